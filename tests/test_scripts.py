"""The scripts that reproduce published trainings can be read by bash and by the command line."""

import shlex
import subprocess
from pathlib import Path

import pytest

from multibox.cli.arguments import parse
from multibox.commands.reproduction.targets import REHEARSAL, TARGETS

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.sh"))


def test_there_is_a_script_for_each_published_training() -> None:
    assert {path.stem for path in SCRIPTS} == set(TARGETS) - {REHEARSAL}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_understood(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    lines = [line.partition("||")[0] for line in script.read_text().splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("multibox ")]
    verbs = [words[0] for words in commands]
    assert verbs == ["download", "download", "check", "train", "evaluate", "report"]
    for words in commands:
        assert parse(words) is not None
