import math

import numpy as np
import pytest

from multibox.config import AugmentationConfig
from multibox.data.pixels import Colour, distort, draw_colour
from multibox.rng import stream

DRAWS = 20_000
SHARED_TRIP = 0.3
"""By how many levels means may differ: saturation and hue share one trip through HSV here."""


def colour_of(operations: list[list[float]]) -> Colour:
    """Caffe's numbers of operations: 0 brightness, 1 contrast, 2 saturation, 3 hue, -1 none."""
    values = {int(kind): value for kind, value in operations if kind >= 0}
    # Caffe leaves out a contrast that close to 1. A saturation of exactly 1, which is never drawn,
    # makes the trip through HSV there and not here.
    contrast = values.get(1, 1.0)
    if values.get(2) == 1:
        values[2] = math.nextafter(1, 2)
    return Colour(
        values.get(0, 0.0),
        1.0 if abs(contrast - 1) <= 1e-3 else contrast,
        values.get(2, 1.0),
        values.get(3, 0.0),
        contrast_last=[int(kind) for kind, _ in operations][-1] == 1,
    )


def test_operations_are_caffes(recorded, compare) -> None:
    archive = recorded("distort")
    image = np.ascontiguousarray(archive["noise_bgr"][..., ::-1])
    for operations, theirs in zip(
        archive["sequences"].tolist(), archive["adjusted_bgr"], strict=True
    ):
        colour = colour_of(operations)
        ours = distort(image, colour)[..., ::-1]
        if colour.saturation != 1 and colour.hue != 0:
            compare("levels, saturation and hue together", ours, theirs, tolerance=5)
            means = [np.mean(levels, dtype=np.float64) for levels in (ours, theirs)]
            compare("mean, saturation and hue together", *means, tolerance=SHARED_TRIP)
        else:
            compare("levels, one operation", ours, theirs, tolerance=0)


@pytest.mark.parametrize("kind", ["plain", "jpeg"])
def test_colours_are_distributed_as_caffes_own(recorded, compare, kind: str) -> None:
    """Caffe also encodes the image as JPEG, which we leave out: that moves means by rounding."""
    archive = recorded("distort")
    image = np.ascontiguousarray(archive["image_bgr"][..., ::-1])
    rng, config = stream(0, "distort"), AugmentationConfig()
    drawn = [distort(image, draw_colour(rng, config))[..., ::-1] for _ in range(DRAWS)]
    levels = np.array(drawn, np.float64).reshape(DRAWS, 48)
    deviations = np.sqrt(np.diag(archive[f"{kind}_cov"]))
    theirs = archive[f"{kind}_mean"].reshape(48)
    error = 5 * deviations * np.sqrt(1 / DRAWS + 1 / int(archive[f"{kind}_draws"]))
    excess = np.maximum(np.abs(levels.mean(axis=0) - theirs) - error, 0)
    compare(f"means beyond 5 standard errors, {kind}", excess, np.zeros(48), tolerance=SHARED_TRIP)
    compare(f"standard deviations, {kind}", levels.std(axis=0), deviations, tolerance=1.5)
    if kind == "plain":
        share = (levels == image[..., ::-1].reshape(48)).all(axis=1).mean()
        expected = int(archive["plain_unchanged"]) / int(archive["plain_draws"])
        error = 5 * np.sqrt(expected / DRAWS)
        compare("share of unchanged images", share, expected, tolerance=error)
