"""Every verb leaves the dataset as it is, works where it could not write, and asks no network."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from coco_layout import export_coco

from multibox.commands.demo.dataset import draw_dataset

pytestmark = pytest.mark.system

WATCHED = Path(__file__).with_name("watched.py")
SAVED = ("images", "json", "csv", "coco", "yolo", "voc", "crops")
SHORT = ("--steps", "2", "--batch-size", "2", "--warmup-steps", "1", "--device", "cpu")


def unprivileged() -> list[str]:
    """Returns what to put before a command that must not write what is closed to others."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not there, and root may write everywhere")
    # Nobody, who may still read: the interpreter may be root's own.
    reading = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *reading]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)


def tree(root: Path) -> dict[str, tuple[int, int, str]]:
    """Returns mode, time of change and content of all that is below a folder, and of itself."""
    found = {}
    for path in (root, *root.rglob("*")):
        status = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def watched(mine: Path, root: Path, lines: list[list[object]]) -> dict[str, Any]:
    arguments = json.dumps([[str(word) for word in line] for line in lines])
    environment = os.environ | {
        "HOME": str(mine),
        "MPLCONFIGDIR": str(mine / "matplotlib"),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [*unprivileged(), sys.executable, str(WATCHED), str(root), arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=mine,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    assert not any(found["statuses"]), (found["statuses"], result.stderr)
    return found


def lines_for(root: Path, image: Path, mine: Path) -> list[list[object]]:
    run = mine / "run"
    train = ["train", "ssd300-lite", "--data", root, "--out", run, *SHORT]
    return [
        ["check", root],
        ["check", root, "--fix", mine / "fixed"],
        ["convert-data", root, mine / "converted", "--to", "yolo"],
        [*train, "--workers", "2"],
        ["evaluate", run],
        ["evaluate", run, "--data", root, "--split", "test", "--json"],
        ["report", run],
        ["predict", run, image, "--out", mine / "found"],
        ["predict", run, image.parent, "--out", mine / "all", "--save", *SAVED],
        ["predict", run, image.parent, "--out", mine / "rows", "--save", "parquet"],
    ]


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_every_verb_leaves_the_dataset_alone_and_the_network_too(
    open_folder: Path, layout: str
) -> None:
    root, mine = open_folder / "data", open_folder / "mine"
    draw_dataset(open_folder / "drawn", train_images=6, test_images=2)
    if layout == "voc":
        shutil.move(open_folder / "drawn", root)
    else:
        export_coco(open_folder / "drawn", root)
    mine.mkdir()
    mine.chmod(0o777)
    image = next(path for path in root.rglob("*.jpg"))
    lines = lines_for(root, image, mine)
    if layout == "voc":
        lines += [
            ["bench", "data", "ssd300-lite", "--data", root],
            ["convert", mine / "run", mine / "ours.safetensors"],
            ["export", mine / "run", "--out", mine / "ours.onnx"],
            ["export", mine / "run", "--format", "openvino", "--out", mine / "ours.xml"],
            ["predict", mine / "ours.xml", image, "--out", mine / "by-openvino"],
            ["demo", "--out", mine / "demo"],
        ]
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree(root)
    assert watched(mine, root, lines)["noted"] == []
    assert tree(root) == before


def test_the_watch_sees_connections_and_files_opened_for_writing(tmp_path: Path) -> None:
    """Else the test above would show nothing; as the user who runs the tests."""
    command = [sys.executable, str(WATCHED), str(tmp_path), "[]"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    noted = json.loads(result.stdout.splitlines()[-1])["noted"]
    assert [line.split()[0] for line in noted] == ["socket.connect", "open"]
