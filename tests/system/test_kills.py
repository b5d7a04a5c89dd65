"""Runs that are killed at random moments, and begun again, end with the same bits."""

import shutil
import time
from pathlib import Path
from signal import SIGKILL

import pytest
from rig import LINES, Rig, digests, journal

from multibox.rng import stream


@pytest.mark.system
@pytest.mark.parametrize("wanted", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_bits(wanted: int, tmp_path: Path) -> None:
    kills = runs = redone = 0
    with Rig(tmp_path) as rig:
        seconds = {n: rig.timed(tmp_path / f"unbroken{n}", workers=n) for n in (0, 2)}
        expected = digests(tmp_path / "unbroken0")
        assert journal(tmp_path / "unbroken0") == LINES
        while kills < wanted:
            rng = stream(wanted, "kill", runs)
            out, workers = tmp_path / f"run{runs}", 2 * (runs % 2)
            runs += 1
            left = int(rng.integers(1, 7))
            while True:
                run = rig.start(out, workers=workers)
                if left:
                    time.sleep(float(rng.uniform(0, seconds[workers])))
                    run.send(SIGKILL)
                status = run.wait()
                if status == 0:
                    break
                assert status == -SIGKILL, run.said()
                left, kills = left - 1, kills + 1
            assert digests(out) == expected
            assert journal(out) == LINES
            # Of a step there are at most as many as there were kills, and none is left out.
            assert sorted(set(run.steps())) == list(range(1, 13))
            redone += len(run.steps()) - 12
            shutil.rmtree(out)
        assert rig.orphans() == []
    print(f"{kills} kills of {kills} in {runs} runs, {redone} steps made again")  # noqa: T201


LOSSES = ("--box-loss", "ciou", "--class-loss", "softmax", "--label-smoothing", "0.1", "--pisa")


@pytest.mark.system
@pytest.mark.parametrize(
    "options",
    [
        (*LOSSES, "--box-weight", "2", "--swa-from", "4"),
        ("--box-loss", "giou", "--class-loss", "focal", "--ema-decay", "0.9"),
    ],
)
def test_options_of_the_loss_and_of_the_average_keep_the_bits(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    with Rig(tmp_path) as rig:
        assert rig.start(tmp_path / "unbroken", workers=0, options=options).wait() == 0
        out = tmp_path / "run"
        for checkpoint in (2, 6, 10):
            run = rig.start(out, workers=2, options=options)
            while not (out / "checkpoints" / f"step-{checkpoint:08d}").is_dir():
                time.sleep(0.001)
            run.send(SIGKILL)
            assert run.wait() in (-SIGKILL, 0), run.said()
        assert rig.start(out, workers=1, options=options).wait() == 0
        assert digests(out) == digests(tmp_path / "unbroken")
        assert rig.orphans() == []
