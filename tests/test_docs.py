"""What the README says can be typed, and the Python it shows runs."""

import re
import shlex
from pathlib import Path

import pytest

from multibox.cli.arguments import parse
from multibox.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README, EXPORT, PREDICT, REPRODUCE = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/export.md", "docs/predict.md", "docs/reproduce.md")
)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Returns the language and the content of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


BLOCKS = _blocks(README + PREDICT.replace("MODEL SOURCE...", "M S"))
COMMANDS = [
    re.sub(r"^torchrun .* -m multibox", "multibox", line.partition("  #")[0])
    for language, block in [*BLOCKS, *_blocks(EXPORT), *_blocks(REPRODUCE)]
    for line in block.splitlines()
    if language == "" and re.match(r"(torchrun .* -m )?multibox ", line)
]


def test_there_are_commands() -> None:
    assert {command.split()[1] for command in COMMANDS} == {
        *("train", "check", "evaluate", "report", "predict", "convert", "convert-data", "export"),
        *("download", "bench", "ablate", "reproduce"),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command)[1:]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parse(words)
    else:
        assert parse(words) is not None


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
        "docs/reproduce.md",
    ],
)
def test_every_file_that_a_document_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)`", text):
        assert any((base / path).exists() for base in (ROOT, ROOT / "src" / "multibox")), path
