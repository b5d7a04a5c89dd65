"""What the README says can be typed, and the Python it shows runs."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from multibox.cli.arguments import parse
from multibox.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README, EXPORT, PREDICT, MACHINES, SERVE = (
    (ROOT / "README.md" if name == "README.md" else ROOT / "docs" / name).read_text("utf-8")
    for name in ("README.md", "export.md", "predict.md", "many-machines.md", "serve.md")
)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Returns the language and the content of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = _blocks(README + PREDICT.replace("MODEL SOURCE...", "M S"))
COMMANDS = [
    re.sub(r"^torchrun .* -m multibox", "multibox", line.partition("  #")[0])
    for language, block in [*BLOCKS, *_blocks(EXPORT), *_blocks(SERVE)]
    for line in block.splitlines()
    if language == "" and re.match(r"(torchrun .* -m )?multibox ", line)
]


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        *("train", "check", "evaluate", "report", "predict", "convert", "convert-data", "export"),
        *("download", "bench", "ablate", "serve"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parse(words)
    else:
        assert parse(words) is not None


def test_commands_for_many_machines_are_understood() -> None:
    manifests = [
        document
        for language, block in _blocks(MACHINES)
        if language == "yaml"
        for document in yaml.safe_load_all(block)
    ]
    assert [manifest["kind"] for manifest in manifests] == ["Service", "Job"]
    (container,) = manifests[1]["spec"]["template"]["spec"]["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {v["name"] for v in manifests[1]["spec"]["template"]["spec"]["volumes"]}
    command = container["command"]
    lines = [command[command.index("multibox") + 1 :]]
    lines += [shlex.split(line) for line in re.findall(r"multibox (train [^'\n]*)", MACHINES)]
    assert len(lines) == 4
    for words in lines:
        assert parse(words) is not None
    for launched in (command, *re.findall(r"^(torchrun .*) -m multibox", MACHINES, re.MULTILINE)):
        words = shlex.split(launched) if isinstance(launched, str) else launched
        end = words.index("-m") if "-m" in words else len(words)
        get_args_parser().parse_args([*words[1:end], "-m", "multibox"])


def test_options_that_the_readme_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse(["train", "ssd300-lite", "--help"])
    known = capsys.readouterr().out
    block = next(block for _, block in BLOCKS if block.startswith("--steps"))
    for option in re.findall(r"--[a-z-]+", block):
        assert option in known


def test_every_recipe_is_in_the_readme() -> None:
    assert all(f"`{name}`" in README for name in RECIPES)


@pytest.mark.parametrize(
    "name",
    [
        *("ARCHITECTURE.md", "SECURITY.md"),
        *("docs/weights.md", "docs/export.md", "docs/predict.md", "docs/fidelity.md"),
        "docs/many-machines.md",
    ],
)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "src" / "multibox")), path
