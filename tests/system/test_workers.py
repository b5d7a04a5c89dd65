"""Processes that prepare images are killed or hang: others take over, or the run says why not."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from rig import LINES, Rig, digests, journal, timings

from multibox.rng import stream

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def unbroken(rig: Rig) -> tuple[Path, float]:
    """A run that nothing interrupted, and the seconds it took."""
    out = rig.folder / "unbroken"
    return out, rig.timed(out, workers=2)


@pytest.mark.parametrize("wanted", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_a_killed_worker_alters_nothing(
    wanted: int, rig: Rig, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    whole, seconds = unbroken
    kills = runs = 0
    noticed = [0.0]
    while kills < wanted:
        rng = stream(wanted, "worker", runs)
        out = tmp_path / f"run{runs}"
        runs += 1
        run = rig.start(out, workers=int(rng.integers(1, 4)))
        time.sleep(float(rng.uniform(0, seconds)))
        victims = run.workers()
        if victims:
            os.kill(victims[rng.integers(len(victims))], signal.SIGKILL)
            kills += 1
        assert run.wait() == 0, run.said()
        assert digests(out) == digests(whole)
        assert journal(out) == LINES
        lost = timings(out, "workers")
        assert run.said().count("; a new one takes over") == len(lost)
        noticed += [line["seconds"] for line in lost]
        shutil.rmtree(out)
    print(  # noqa: T201
        f"{kills} workers of {kills} killed, {len(noticed) - 1} of them replaced, the others were "
        f"no more needed; noticed after {max(noticed):.1f} s at the latest"
    )


# In the second case it has batches to hand over, and in the last it has the time that it is given.
@pytest.mark.parametrize(
    ("stuck_seconds", "after"), [(2, 0), (2, 3), pytest.param(0, 3, marks=pytest.mark.slow)]
)
def test_a_worker_that_hangs_is_replaced(
    stuck_seconds: int, after: int, rig: Rig, unbroken: tuple[Path, float]
) -> None:
    out = rig.folder / f"stuck{stuck_seconds}{after}"
    run = rig.start(out, workers=2, stuck_seconds=stuck_seconds)
    end = time.monotonic() + 60
    while not run.workers() or len(run.steps()) < after:
        assert time.monotonic() < end
    victim = min(run.workers())
    os.kill(victim, signal.SIGSTOP)
    assert run.wait() == 0, run.said()
    assert "hang: no batch in" in run.said()
    assert digests(out) == digests(unbroken[0])
    (lost,) = timings(out, "workers")
    assert lost["seconds"] <= 60
    assert not Path(f"/proc/{victim}").exists()


def test_an_image_that_kills_every_worker_is_named(rig: Rig) -> None:
    out = rig.folder / "deadly"
    run = rig.start(out, workers=2, deadly="000020.jpg")
    assert run.wait() == 5
    said = run.said()
    assert "Traceback" not in said
    assert "000020.jpg" in said
    assert "ended by SIGKILL, 4 times at the same batch" in said
    assert len(timings(out, "workers")) == 3


def test_an_unforeseen_error_leaves_no_worker_behind(rig: Rig) -> None:
    run = rig.start(rig.folder / "broken", workers=2, broken_step=4)
    assert run.wait() == 1
    assert "ZeroDivisionError: planted" in run.said()
    assert rig.orphans(0) == []
