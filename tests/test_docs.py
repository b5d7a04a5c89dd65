"""Every command and every Python example of the README and of docs/ is run, or at least parsed.

A command is run on small data in a folder that has what the pages name: photographs, VOC, a trained
run. It is only parsed if its inputs are not in that folder (published weights, a placeholder such
as RUN), if it needs the network, a GPU, several processes or a camera, or if it does not
end by itself or measures times. `_reason_to_parse_only` has these rules.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import command_reference
import cv2
import jaxtyping
import numpy as np
import pytest
import yaml
from coco_layout import export_coco
from rig import small_dataset
from tiny import TINY
from torch.distributed.run import get_args_parser

from multibox import build
from multibox.cli.arguments import (
    BenchArguments,
    DownloadArguments,
    ExportArguments,
    PredictArguments,
    ReportArguments,
    ReproduceArguments,
    ServeArguments,
    TrainArguments,
    parse,
)
from multibox.cli.main import main
from multibox.config import Config, flatten
from multibox.errors import MultiboxError
from multibox.recipes import RECIPES

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
# What starts a command. A block that has one of these has commands only.
PROGRAMS = r"multibox|torchrun|make|pip|python|pytest|docker|curl|[A-Z_]+=\S+ \w+"
SLOW = ("train", "export", "convert", "bench", "ablate", "demo")
INPUTS = ("data", "model", "source", "sources", "runs", "results", "table")
# These take the place of what a command of `train` has.
SHORT = {
    **{"--network": "tiny", "--steps": "2", "--batch-size": "4", "--warmup-steps": "0"},
    **{"--workers": "0", "--device": "cpu"},
}


def _blocks(text: str, *languages: str) -> list[str]:
    """Returns the contents of the blocks of code in these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def _commands() -> list[tuple[str, str]]:
    """Returns the page and the text of each command, without comments and without repetitions."""
    found: dict[str, str] = {}
    for page, text in PAGES.items():
        for block in _blocks(text, "", "sh", "bash", "shell", "console"):
            if not re.search(rf"^(?:\$ )?(?:{PROGRAMS})\b", block, re.MULTILINE):
                continue
            for line in block.replace("\\\n", " ").splitlines():
                command = line.partition("  #")[0].removeprefix("$ ").strip()
                if command and not command.startswith("#"):
                    found.setdefault(command, page)
    return [(page, command) for command, page in found.items()]


COMMANDS = _commands()
FIRST_REPORT = next(command for _, command in COMMANDS if command.startswith("multibox report "))


def _marks(command: str) -> list[pytest.MarkDecorator]:
    verb = command.split()[1]
    slow = verb in SLOW or (verb == "report" and command != FIRST_REPORT)
    return [pytest.mark.slow] if slow else []


OURS = [
    pytest.param(command, marks=_marks(command), id=f"{page}: {command}")
    for page, command in COMMANDS
    if command.startswith("multibox ")
]
OTHERS = [command for _, command in COMMANDS if not command.startswith("multibox ")]
EXAMPLES = [
    pytest.param(block, id=f"{page}: {block.splitlines()[-1]}")
    for page, text in PAGES.items()
    for block in _blocks(text, "python")
]


def _dataset(folder: Path) -> None:
    """Writes a dataset of cats and dogs in VOC's layout. Ids begin with the year, as in VOC2012."""
    small_dataset(folder, train=24, test=8)
    year = folder.name.removeprefix("VOC")
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".txt":
            lines = path.read_text().splitlines()
            path.write_text("".join(f"{year}_{line}\n" for line in lines))
            continue
        path = path.rename(path.with_name(f"{year}_{path.name}"))
        if path.suffix == ".xml":
            text = path.read_text()
            path.write_text(text.replace("square", "cat").replace("disc", "dog"))


def _results(folder: Path) -> None:
    """Writes COCO's layout, and detections of others in COCO's and in the devkit's format."""
    coco = export_coco(folder / "VOC2007", folder / "coco2017")
    for before, after in (("trainval", "train2017"), ("test", "val2017")):
        (coco / before).rename(coco / after)
        annotations = coco / "annotations"
        (annotations / f"instances_{before}.json").rename(annotations / f"instances_{after}.json")
    found = [{"image_id": 0, "category_id": 7, "bbox": [1, 1, 20, 20], "score": 0.5}]
    (folder / "detections.json").write_text(json.dumps(found))
    # The pages call it FOLDER.
    (folder / "FOLDER").mkdir()
    for split, image in (("test", "2007_000024"), ("trainval", "2012_000000")):
        line = f"{image} 0.5 1 1 20 20\n"
        (folder / "FOLDER" / f"comp4_det_{split}_cat.txt").write_text(line)


def _short(words: Sequence[str], out: Path) -> list[str]:
    """Returns a command of `train` that takes a second, and writes to another folder."""
    other = SHORT | {"--out": str(out)}
    if "--minutes" in words:
        # The steps follow from the time.
        other |= {"--dry-run": ""}
        del other["--steps"]
    kept, skip = [], False
    for word in words:
        if not skip and word not in other:
            kept.append(word)
        skip = word in other and other[word] != ""
    return [*kept, *(word for pair in other.items() for word in pair if word)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything small that the pages name. It is the current one."""
    folder, before = tmp_path_factory.mktemp("docs"), Path.cwd()
    for name in ("VOC2007", "VOCdevkit/VOC2007", "VOCdevkit/VOC2012"):
        _dataset(folder / name)
    _results(folder)
    (folder / "data").mkdir()
    (folder / "data" / "VOCdevkit").symlink_to(folder / "VOCdevkit")
    photos = folder / "photos"
    photos.mkdir()
    files = sorted(
        path for path in (folder / "VOC2007").rglob("*") if path.suffix in (".jpg", ".xml")
    )
    for path in files:
        shutil.copy(path, photos)
    ids = [path.stem for path in files if path.suffix == ".xml"]
    for split, part in (("train", ids[:20]), ("val", ids[20:26]), ("test", ids[26:])):
        (photos / f"{split}.txt").write_text("".join(f"{name}\n" for name in part))
    for name in ("cat.jpg", "dog.jpg", "photo.jpg"):
        shutil.copy(photos / f"{ids[0]}.jpg", folder / name)
    film = cv2.VideoWriter(str(folder / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        film.write(np.zeros((48, 64, 3), np.uint8))
    film.release()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "tiny", TINY)
        assert main(_short(["train", "--data", "photos"], Path("runs/photos"))) == 0
        for name in ("voc", "a", "b", "c"):
            shutil.copytree("runs/photos", f"runs/{name}")
        yield folder
    os.chdir(before)


def _reason_to_parse_only(verb: Any, command: str) -> str:
    """Returns why a command is not run, or an empty text."""
    train = isinstance(verb, TrainArguments)
    values = verb.recipe if train else verb
    named: list[Any] = [getattr(values, "init", None)] if train else []
    for field in INPUTS:
        value = getattr(values, field, None)
        named += value if isinstance(value, tuple) else [value]
    if "://" in command or (isinstance(verb, DownloadArguments) and verb.names):
        return "it needs the network"
    if "cuda" in command:
        return "it needs a GPU"
    if isinstance(verb, BenchArguments):
        return "it measures times"
    if isinstance(verb, ReproduceArguments):
        return "it takes minutes or days"
    if isinstance(verb, ServeArguments) or (isinstance(verb, ReportArguments) and verb.serve):
        return "it ends by Ctrl-C only"
    if isinstance(verb, PredictArguments):
        if any(source.isdigit() or source == "-" for source in verb.sources):
            return "it needs a camera or standard input"
        if verb.engine == "ray" and importlib.util.find_spec("ray") is None:
            return "it needs Ray"
    for value in filter(None, named):
        if not any(Path.cwd().glob(str(value))):
            return f"there is no {value}"
    return ""


def _outputs(verb: Any) -> Iterator[Path]:
    for field in ("out", "fix"):
        value = getattr(verb, field, None)
        if isinstance(value, Path):
            yield value


def test_there_are_commands() -> None:
    verbs = {str(param.values[0]).split()[1] for param in OURS}
    known = set(re.findall(r"^## ([\w-]+)$", PAGES["docs/commands.md"], re.MULTILINE))
    # `make demo` is the command of the demo.
    assert verbs - {"--version"} == known - {"demo"}
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("command", OURS)
def test_commands_run(workspace: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    if {"--help", "--version"} & set(words):
        with pytest.raises(SystemExit, match="0"):
            parse(words)
        return
    verb = parse(words)
    if reason := _reason_to_parse_only(verb, command):
        pytest.skip(f"parsed only: {reason}")
    if isinstance(verb, TrainArguments):
        folders = sum(1 for _ in (workspace / "runs").iterdir())
        words = _short(words, Path(f"runs/{folders}"))
    for path in _outputs(verb):
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
    exports = isinstance(verb, ExportArguments)
    with mock.patch.object(jaxtyping.config, "jaxtyping_disable", exports):
        status = main(words)
    # `check` finds near-duplicates and other warnings, and no faults.
    assert status == 0, capsys.readouterr()


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_name_what_exists(command: str) -> None:
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    match words[0]:
        case "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for word in words[1:]:
                assert "=" in word or f"\n{word}:" in makefile
        case "torchrun":
            assert parse(words[words.index("multibox") + 1 :]) is not None
        case "docker":
            assert (ROOT / "Dockerfile").exists()
            if words[1] == "run":
                image = next(at for at, word in enumerate(words) if word.startswith("multibox"))
                assert parse(words[image + 1 :]) is not None
        case "curl":
            pass
        case "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for found in re.findall(r"\[([\w,]+)\]", command):
                assert set(found.split(",")) <= set(extras["optional-dependencies"])
        case _:
            # Files that a page names. `.venv` is made by `make`.
            paths = [word for word in words if "/" in word and not word.startswith((".venv", "-"))]
            assert all((ROOT / path).exists() for path in paths)
            if words[0] not in ("python", "pytest", "."):
                assert paths[:1] == words[:1]


@pytest.mark.parametrize("block", EXAMPLES)
def test_python_runs(workspace: Path, block: str) -> None:
    code = compile(block, "example", "exec")
    for package in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"compiled only: {package} is not installed")
    if "://" in block:
        pytest.skip("compiled only: it needs the network")
    for name in re.findall(r'"([\w./-]+\.\w+)"', block):
        if not (workspace / name).exists():
            pytest.skip(f"compiled only: there is no {name}")
    pixels = np.zeros((1, 48, 64, 3), np.uint8)
    names = {"images": pixels, "paths": ["cat.jpg", "dog.jpg"], "__name__": "example"}
    with mock.patch("multibox.commands.train.train") as train:
        try:
            exec(code, names)
        except MultiboxError as error:
            if "is not installed" not in str(error):
                raise
    # It would take minutes.
    for call in train.call_args_list:
        assert call.args[0].data.exists()


def test_commands_for_many_machines_are_understood() -> None:
    page = PAGES["docs/many-machines.md"]
    manifests = [
        document for block in _blocks(page, "yaml") for document in yaml.safe_load_all(block)
    ]
    assert [manifest["kind"] for manifest in manifests] == ["Service", "Job"]
    (container,) = manifests[1]["spec"]["template"]["spec"]["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {v["name"] for v in manifests[1]["spec"]["template"]["spec"]["volumes"]}
    command = container["command"]
    lines = [command[command.index("multibox") + 1 :]]
    lines += [shlex.split(line) for line in re.findall(r"multibox (train [^'\n]*)", page)]
    assert len(lines) == 4
    for words in lines:
        assert parse(words) is not None
    for launched in (command, *re.findall(r"^(torchrun .*) -m multibox", page, re.MULTILINE)):
        words = shlex.split(launched) if isinstance(launched, str) else launched
        end = words.index("-m") if "-m" in words else len(words)
        get_args_parser().parse_args([*words[1:end], "-m", "multibox"])


def test_tables_of_ablations_name_options() -> None:
    for text in PAGES.values():
        for block in _blocks(text, "toml"):
            table = tomllib.loads(block)
            if "recipe" in table:
                assert table["recipe"] in RECIPES
                for options in (table["options"], *table["changes"].values()):
                    assert options.keys() <= flatten(Config(network="")).keys()


def test_options_that_the_pages_list_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["train", "ssd300-lite", "--help"])
    known = capsys.readouterr().out
    blocks = [block for text in PAGES.values() for block in _blocks(text, "")]
    block = next(block for block in blocks if block.startswith("--steps"))
    for option in re.findall(r"--[a-z-]+", block):
        assert option in known


def test_every_recipe_is_described() -> None:
    assert all(f"`{name}`" in PAGES["docs/recipes.md"] for name in RECIPES)


def test_the_command_reference_is_current() -> None:
    """If this fails, run `python tests/command_reference.py`."""
    assert PAGES["docs/commands.md"] == command_reference.reference()


@pytest.mark.parametrize("name", [*PAGES, "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    bases = (ROOT, ROOT / "src" / "multibox", ROOT / "docs")
    # Paths of other repositories follow a commit, or begin with a folder that is not here.
    ours = re.sub(r"\b[0-9a-f]{7}, `[^`]+`", "", text)
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh))`", ours):
        if any((base / path.partition("/")[0]).exists() for base in bases):
            assert any((base / path).exists() for base in bases), path
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((ROOT / name).parent / target).exists(), target
