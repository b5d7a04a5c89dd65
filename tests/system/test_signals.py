"""Runs that are asked to stop, at any moment, keep every step; and no signal harms a worker."""

import shutil
import signal
import time
from pathlib import Path

import pytest
from rig import LINES, STEPS, Rig, digests, journal

from multibox.rng import stream
from multibox.storage import checkpoint as checkpoints

pytestmark = pytest.mark.system

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(scope="module")
def seconds(rig: Rig) -> dict[int, float]:
    """What runs take that nothing interrupts, by their number of workers; they stay in `rig`."""
    return {n: rig.timed(rig.folder / f"unbroken{n}", workers=n) for n in (0, 2)}


def end_of(run: Path) -> dict[str, str]:
    """The digests without checkpoints in the middle: those are saved where a signal comes."""
    last = f"checkpoints/step-{STEPS:08d}"
    return {n: d for n, d in digests(run).items() if not n.startswith("check") or last in n}


def saved(out: Path) -> int:
    """The step of the newest checkpoint, which must be sound; 0 where there is none."""
    newest, refusals = checkpoints.newest(out / "checkpoints")
    assert refusals == []
    return newest.step if newest else 0


def wait_for(path: Path) -> None:
    """Returns when a run has made a file or folder."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("wanted", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_signal_loses_no_completed_step(
    wanted: int, rig: Rig, seconds: dict[int, float], tmp_path: Path
) -> None:
    stopped = trials = twice = late = 0
    while stopped < wanted:
        rng = stream(wanted, "signal", trials)
        out, number = tmp_path / f"run{trials}", NUMBERS[trials % 3]
        # As a terminal or a scheduler does, to all processes; or to the training process alone.
        group, workers = bool(trials % 2), 2 * int(rng.integers(2))
        again = trials % 5 == 4
        trials += 1
        run = rig.start(out, workers=workers)
        time.sleep(float(rng.uniform(0, seconds[workers])))
        run.send(number, group=group)
        if again:
            time.sleep(float(rng.uniform(0, 0.05)))
            run.send(number, group=group)
        status, done = run.wait(), run.steps()
        assert status in (0, -number, 128 + number), run.said()
        # What Python says when its own end is interrupted is not ours.
        said = run.said().partition("Done: ")[0]
        assert "Traceback" not in said
        assert "Exception" not in said
        assert done == list(range(1, len(done) + 1))
        # The second signal may come before the save that the first one asks for.
        assert saved(out) == len(done) or (again and status == -number), run.said()
        if status != 0:
            stopped, twice, late = stopped + 1, twice + again, late + bool(done)
            assert rig.start(out, workers=0).wait() == 0
        assert end_of(out) == end_of(rig.folder / "unbroken0")
        assert journal(out) == LINES
        shutil.rmtree(out)
    print(  # noqa: T201
        f"{stopped} signals of {stopped} to living runs, {late} of them after the first step and "
        f"{twice} sent twice"
    )


def test_a_second_ctrl_c_stops_at_once(rig: Rig, seconds: dict[int, float]) -> None:
    out = rig.folder / "twice"
    # Step 7 takes half a minute, and step 6 is saved.
    run = rig.start(out, workers=2, slow_step=7)
    wait_for(out / "checkpoints" / "step-00000006")
    time.sleep(0.2)
    run.send(signal.SIGINT, group=True)
    # A signal that comes twice in a moment may be the echo of one.
    time.sleep(2.5)
    assert run.workers()
    asked = time.monotonic()
    run.send(signal.SIGINT, group=True)
    assert run.wait() == -signal.SIGINT
    assert time.monotonic() - asked < 5
    assert saved(out) == 6
    assert rig.start(out, workers=0).wait() == 0
    assert digests(out) == digests(rig.folder / "unbroken0")


def test_a_hangup_that_is_ignored_stays_so(rig: Rig, seconds: dict[int, float]) -> None:
    out = rig.folder / "nohup"
    run = rig.start(out, workers=1, nohup=True)
    wait_for(out / "checkpoints")
    run.send(signal.SIGHUP, group=True)
    assert run.wait() == 0, run.said()
    assert digests(out) == digests(rig.folder / "unbroken0")
