"""A run that is killed and begun again ends with the same bits as one that was not."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from system.conftest import TINY, environment

from multibox.rng import stream

# What must not differ. `timings.jsonl` may, and the pictures follow from the evaluations.
PROMISED = ("metrics.jsonl", "checkpoints/**/*", "evaluations/**/*", "samples/*")


def arguments(data: Path, out: Path, workers: int) -> list[str]:
    paths = ["--data", str(data), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "multibox", "train", "ssd300-lite", *paths, *TINY]


def digests(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in PROMISED
        for path in sorted(run.glob(pattern))
        if path.is_file()
    }


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


def killed_until_done(data: Path, out: Path, *, workers: int, trial: int, seconds: float) -> int:
    """Kills a run at random moments until it comes to its end; returns the number of kills."""
    rng = stream(trial, "kill", workers)
    command = arguments(data, out, workers)
    kills = 0
    while kills < 3:
        # From before the first import to after the last step.
        if train(command, kill_after=float(rng.uniform(0.05, 1.05)) * seconds) == 0:
            return kills
        kills += 1
    assert train(command) == 0
    return kills


def check_trial(
    drawn: Path, unbroken: tuple[Path, float], tmp_path: Path, workers: int, trial: int
) -> None:
    run, seconds = unbroken
    out = tmp_path / "run"
    killed_until_done(drawn, out, workers=workers, trial=trial, seconds=seconds)
    assert digests(out) == digests(run)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [3, 6, 9, 10]


@pytest.mark.system
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_with_the_same_bits(
    drawn: Path, unbroken: tuple[Path, float], tmp_path: Path, workers: int
) -> None:
    check_trial(drawn, unbroken, tmp_path, workers, trial=0)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(1, 21))
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_of_twenty(
    drawn: Path, unbroken: tuple[Path, float], tmp_path: Path, workers: int, trial: int
) -> None:
    check_trial(drawn, unbroken, tmp_path, workers, trial)


@pytest.mark.system
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
    assert "which is saved" in message
    assert train(command) == 0
    assert digests(out) == digests(unbroken[0]) | {
        name: digest for name, digest in digests(out).items() if name.startswith("checkpoints/")
    }
    final = [name for name in digests(unbroken[0]) if "step-00000010" in name]
    assert {name: digests(out)[name] for name in final} == {
        name: digests(unbroken[0])[name] for name in final
    }
