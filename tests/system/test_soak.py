"""A long run needs no more memory, files and processes at its end than at its beginning."""

import time
from pathlib import Path

import numpy as np
import pytest
from rig import Rig

STEPS = 20_000
WARM = 5_000
"""After these steps everything that happens in a run has happened several times."""


@pytest.mark.slow
def test_twenty_thousand_steps(tmp_path: Path) -> None:
    periods = {"log": 100, "checkpoint": 500, "validate": 500, "evaluate": 1000}
    options = ["--steps", str(STEPS)]
    for name, steps in periods.items():
        options += [f"--{name}-every", str(steps)]
    samples = []
    with Rig(tmp_path) as rig:
        run = rig.start(tmp_path / "run", workers=1, options=options)
        end = time.monotonic() + 3600
        while not (done := run.steps()) or done[-1] < STEPS - 50:
            assert time.monotonic() < end
            time.sleep(0.5)
            try:
                samples.append((len(done), *run.usage()))
            except OSError:
                break
        assert run.wait() == 0, run.said()
        assert run.steps() == list(range(1, STEPS + 1))
        assert rig.orphans() == []
    steps, rss, files, children = np.array([s for s in samples if s[0] >= WARM]).T
    assert len(steps) > 100
    slope = float(np.polyfit(steps, rss, 1)[0]) * 1000 / 2**20
    early, late = steps < (WARM + STEPS) / 2, steps >= (WARM + STEPS) / 2
    print(  # noqa: T201
        f"{slope:.3f} MiB per 1,000 steps at {rss.mean() / 2**20:.0f} MiB; open files at most "
        f"{files[early].max()}, then {files[late].max()}; processes {children[early].max()}, then "
        f"{children[late].max()}"
    )
    assert slope <= 1
    # A batch on its way is some open files, and a sample may just miss one.
    assert files[late].max() <= files[early].max() + 8
    assert children[late].max() <= children[early].max()
