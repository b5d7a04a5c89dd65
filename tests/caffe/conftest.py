"""What the tests against Caffe's own recorded figures share.

Caffe was built and run; `../shared/parity/caffe/README.md` says how, and what the arrays hold. Each
test prints how many figures it compared and the largest difference of each kind, so that
`pytest tests -k caffe -rP` gives a summary.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

Recorded = Callable[[str], Mapping[str, np.ndarray]]


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Recorded:
    """Reads one archive of recorded figures."""
    folder = shared / "parity" / "caffe"
    if not folder.is_dir():
        pytest.skip(
            "Caffe's recorded figures (../shared/parity/caffe) are not beside this checkout"
        )

    def load(name: str) -> Mapping[str, np.ndarray]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    return load


class Comparison:
    """Compares figures with recorded ones, and counts."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[int, float]] = {}

    def __call__(
        self, kind: str, ours, theirs, *, tolerance: float, relative: bool = False
    ) -> None:
        """Asserts that no figure differs by more than a tolerance.

        Args:
            kind: What the figures are.
            ours: Ours.
            theirs: Those recorded.
            tolerance: The largest difference that is allowed; 0: the figures are equal.
            relative: Differences are divided by the largest recorded figure of the array.
        """
        a, b = np.asarray(ours), np.asarray(theirs)
        assert a.shape == b.shape, f"{kind}: {a.shape} instead of {b.shape}"
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0)
        if relative:
            difference /= max(np.abs(b).max(initial=0), np.finfo(np.float32).tiny)
        count, largest = self.kinds.get(kind, (0, 0.0))
        self.kinds[kind] = (count + b.size, max(largest, float(difference)))
        assert difference <= tolerance, f"{kind} differs by {difference:.3g}"


@pytest.fixture
def compare() -> Iterator[Comparison]:
    """Compares, and prints what it found when the test is over."""
    comparison = Comparison()
    yield comparison
    for kind, (count, largest) in comparison.kinds.items():
        text = f"{kind}: {count:,} recorded figures, largest difference {largest:.2g}"
        print(text)  # noqa: T201  # the summary
