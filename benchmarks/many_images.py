"""Kills `predict --save parquet` twice, resumes it, and compares the rows with an unbroken run.

    python benchmarks/many_images.py --images 50000 [--engine ray] [--network tiny]

It makes a folder with as many names, links to a few photographs, runs the command once unbroken and
once with two kills, and prints JSON: whether each image has exactly one row, whether the rows are
the same, and the largest memory of all processes in each fifth of the files. Of --engine ray, the
broken run is compared with an unbroken run without Ray. All runs together take about three times as
long as the unbroken run.

The network `tiny` has a few thousand parameters. It is known to this program and its workers only.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from torch import Tensor, nn

from multibox.build import NETWORKS, Architecture, new_network
from multibox.config import Config
from multibox.ssd.default_boxes import Level
from multibox.ssd.network import Traits
from multibox.storage.checkpoint import Checkpoint, save
from multibox.weights.files import make_header

HERE = Path(__file__).resolve().parent
PAGE = os.sysconf("SC_PAGE_SIZE")
PHOTOGRAPHS = 64


class TinyBackbone(nn.Module):
    """Two maps, of 8 and 4 cells."""

    channels = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns both maps."""
        fine = self.first(images).relu()
        return [fine, self.second(fine).relu()]


LEVELS = (
    Level((8, 8), (8, 8), 12, 24, (1, 2, 1 / 2)),
    Level((4, 4), (16, 16), 24, 40, (1, 2, 1 / 2)),
)
NETWORKS["tiny"] = Architecture(TinyBackbone, (64, 64), {"voc": LEVELS}, Traits(pixel_scale=1 / 64))


def main() -> None:
    """Runs everything, or the command line in a child process."""
    if sys.argv[1:2] == ["--command"]:
        from multibox.cli.main import main as multibox

        raise SystemExit(multibox(sys.argv[2:]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--chunk-size", type=int, default=512)
    parser.add_argument("--photographs", type=Path, help="folder; by default drawn images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), options), indent=2))


def measure(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Returns what was found."""
    make_images(work, options.images, options.photographs)
    model = make_model(work / "run", options.network)
    line = ["predict", str(model), str(work / "images"), "--save", "parquet", "--batch-size", "16"]
    line += ["--chunk-size", str(options.chunk_size), "--score-threshold", "0.8"]
    files = -(-options.images // options.chunk_size)
    started = time.monotonic()
    whole = follow([*line, "--out", str(work / "whole")], work / "whole", files)
    seconds = time.monotonic() - started
    broken = [*line, "--out", str(work / "broken"), "--engine", options.engine]
    kills = [
        follow(broken, work / "broken", files, kill_after=files * share // 8) for share in (2, 5)
    ]
    last = follow(broken, work / "broken", files)
    rows, rows_whole = (pq.read_table(work / name) for name in ("broken", "whole"))
    names = rows.column("image").to_pylist()
    expected = [str(work / "images" / f"{number:07d}.jpg") for number in range(options.images)]
    return {
        "images": options.images,
        "engine": options.engine,
        "network": options.network,
        "images_per_second_unbroken": round(options.images / seconds, 1),
        "files_when_killed": [kill["files"] for kill in kills],
        "each_image_once": sorted(names) == expected,
        "same_rows": rows.equals(rows_whole),
        "same_bytes": all(
            file.read_bytes() == (work / "whole" / file.name).read_bytes()
            for file in (work / "broken").glob("*.parquet")
        ),
        "objects": sum(map(len, rows.column("detections").to_pylist())),
        "left_over": sorted(
            file.name for file in (work / "broken").iterdir() if not file.name.startswith("part-")
        ),
        "unbroken_mib_by_fifths": whole["mib"],
        "last_run_mib_by_fifths_of_its_files": last["mib"],
    }


def follow(
    line: list[str], out: Path, files: int, *, kill_after: int | None = None
) -> dict[str, object]:
    """Runs a command, and notes its memory. Kills it when so many files are written."""
    environment = os.environ | {"PYTHONPATH": f"{site(out.parent)}:{HERE.parent / 'src'}"}
    command = [sys.executable, __file__, "--command", *line]
    process = subprocess.Popen(
        command,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Since this command began to write, its memory by the number of files.
    before, seen = count(out), dict[int, float]()
    while process.poll() is None:
        number = count(out)
        if number > before:
            seen[number] = max(seen.get(number, 0), memory_mib(process.pid))
        if kill_after is not None and number >= kill_after:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(3)  # Ray's processes notice that their driver is gone.
            return {"files": count(out)}
        time.sleep(0.05)
    assert process.stderr is not None
    if process.returncode:
        raise SystemExit(process.stderr.read())
    fifths: dict[int, float] = {}
    for number, mib in seen.items():
        part = min(4, 5 * (number - before) // max(1, files - before))
        fifths[part] = max(fifths.get(part, 0), mib)
    return {"files": count(out), "mib": [round(fifths[part]) for part in sorted(fifths)]}


def count(folder: Path) -> int:
    """Returns the number of finished files."""
    return len(list(folder.glob("part-*.parquet")))


def memory_mib(pid: int) -> float:
    """Returns the resident memory of a process and of those that it started, in MiB."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # Field 6 of the file is the session, field 24 the number of resident pages.
        if int(fields[3]) == pid:
            total += int(fields[21]) * PAGE
    return total / 2**20


def make_images(work: Path, number: int, photographs: Path | None) -> None:
    """Makes a folder with links to a few images."""
    (work / "originals").mkdir()
    (work / "images").mkdir()
    if photographs is not None:
        originals = sorted(photographs.iterdir())
    else:
        rng = np.random.default_rng(0)
        originals = []
        for index in range(PHOTOGRAPHS):
            small = rng.integers(0, 256, (9, 12, 3), np.uint8)
            path = work / "originals" / f"{index}.jpg"
            cv2.imwrite(str(path), cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))
            originals.append(path)
    for index in range(number):
        link = work / "images" / f"{index:07d}.jpg"
        link.symlink_to(originals[index % len(originals)].resolve())


def make_model(run: Path, name: str) -> Path:
    """Returns a run folder with untrained weights."""
    network = new_network(Config(network=name, default_boxes="voc"), 2)
    header = make_header(network, name, ("cat", "dog"), "CC0")
    state = {"best": {"step": 1, "mAP": 0.0}}
    save(run / "checkpoints", Checkpoint(1, network.state_dict(), {}, state), metadata=header)
    return run


def site(work: Path) -> Path:
    """Returns a folder of Python's that makes the tiny network known in the workers of Ray."""
    folder = work / "site"
    folder.mkdir(exist_ok=True)
    lines = (
        "import sys",
        "if any(word.endswith('default_worker.py') for word in sys.orig_argv):",
        f"    sys.path.insert(0, {str(HERE)!r})",
        "    import many_images",
    )
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return folder


if __name__ == "__main__":
    main()
