"""The rehearsal of `reproduce`, killed at random moments, ends with the same bits."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rig import digests

from multibox.rng import stream

KILLS = 5


def _command(out: Path) -> list[str]:
    return [sys.executable, "-m", "multibox", "reproduce", "rehearsal", "--out", str(out)]


@pytest.mark.slow
@pytest.mark.system
def test_a_killed_rehearsal_ends_with_the_same_bits(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    begun = time.monotonic()
    subprocess.run(_command(whole), check=True, env=environment)
    seconds = time.monotonic() - begun
    rng = stream(KILLS, "kill", 0)
    # Moments over the whole duration: each kill leaves the rest of the time to the next ones.
    waits = rng.dirichlet([1.0] * (KILLS + 1))[:KILLS] * seconds
    for wait in waits.tolist():
        run = subprocess.Popen(_command(broken), env=environment, start_new_session=True)
        try:
            run.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, 9)
            run.wait()
    subprocess.run(_command(broken), check=True, env=environment)
    expected = digests(whole / "seed-0")
    assert "metrics.jsonl" in expected
    assert any(name.endswith("model.safetensors") for name in expected)
    assert digests(broken / "seed-0") == expected
    summaries = [folder / "summary" / "summary.json" for folder in (whole, broken)]
    assert summaries[0].read_bytes() == summaries[1].read_bytes()
    drawn = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in (folder / "data" / "VOCdevkit").rglob("*")
            if path.is_file()
        }
        for folder in (whole, broken)
    ]
    assert drawn[0] == drawn[1]
