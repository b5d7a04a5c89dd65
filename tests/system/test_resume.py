"""A run that is killed and begun again, as a user does it, ends as one that was not."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rig import digests, journal
from system.conftest import TINY, environment


def arguments(data: Path, out: Path, workers: int) -> list[str]:
    paths = ["--data", str(data), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "multibox", "train", "ssd300-lite", *paths, *TINY]


def train(command: Sequence[str], *, kill_after: float | None = None, number: int = 9) -> int:
    """Runs to the end, or sends a signal after some seconds; returns the exit status."""
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            return process.wait(timeout=kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            return process.wait()


@pytest.fixture(scope="module")
def unbroken(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that nothing interrupted, and the seconds it took."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    start = time.monotonic()
    assert train(arguments(drawn, out, workers=0)) == 0
    return out, time.monotonic() - start


@pytest.mark.system
def test_killed_run_ends_with_the_same_bits(
    drawn: Path, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    run, seconds = unbroken
    out = tmp_path / "run"
    command = arguments(drawn, out, workers=1)
    # While it imports; then from before its first step to near its end.
    assert train(command, kill_after=0.3, number=signal.SIGINT) in (-signal.SIGINT, 130)
    assert not out.exists()
    for part in (0.6, 0.9):
        train(command, kill_after=part * seconds)
    assert train(command) == 0
    assert digests(out) == digests(run)
    assert journal(out)["train"] == [3, 6, 9, 10]


@pytest.mark.slow
def test_a_signal_saves_the_step_and_the_same_line_goes_on(
    drawn: Path, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = arguments(drawn, out, workers=0)
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        # The first checkpoint, of step 0, shows that the loop has begun.
        while not (out / "checkpoints").is_dir():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped and saved" in message
    assert train(command) == 0
    assert digests(out) == digests(unbroken[0]) | {
        name: digest for name, digest in digests(out).items() if name.startswith("checkpoints/")
    }
    final = [name for name in digests(unbroken[0]) if "step-00000010" in name]
    assert {name: digests(out)[name] for name in final} == {
        name: digests(unbroken[0])[name] for name in final
    }
