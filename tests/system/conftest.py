"""A tiny drawn dataset, and the command line in a process of its own."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig import Rig

from multibox.cli.main import main
from multibox.commands.demo.dataset import draw_dataset

Command = Callable[..., subprocess.CompletedProcess[str]]

# A run of seconds: every part of a long one happens in it.
TINY = [
    *("--steps", "10", "--batch-size", "2", "--warmup-steps", "2", "--log-every", "3"),
    *("--validate-every", "4", "--evaluate-every", "6", "--checkpoint-every", "2"),
    *("--device", "cpu", "--precision", "fp32"),
]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 12 training and 4 test images."""
    folder = tmp_path_factory.mktemp("drawn") / "data"
    draw_dataset(folder, train_images=12, test_images=4)
    return folder


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Starts runs of a tiny network, and leaves no process behind."""
    with Rig(tmp_path_factory.mktemp("rig")) as rig:
        yield rig
        assert rig.orphans() == []


def environment() -> dict[str, str]:
    """One thread, so that several processes share two cores in peace."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture
def multibox() -> Command:
    """Runs `multibox` with arguments and returns what it printed and its exit status."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "multibox", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Does the same in this process, which has imported everything already."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        said, complained = io.StringIO(), io.StringIO()
        line = [*map(str, arguments)]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            try:
                status = main(line)
            except SystemExit as end:
                status = end.code
        return subprocess.CompletedProcess(line, status, said.getvalue(), complained.getvalue())

    return run
