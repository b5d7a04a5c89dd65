"""The default boxes (SSD section 2.2), also known as priors or anchors, as one table.

A level is a square feature map. Each of its cells has a box of scale m and ratio 1, one of scale
sqrt(m * M), and two for every further ratio r: (m sqrt(r), m / sqrt(r)) and the same upright.
Their order (cells row by row, and within a cell as just listed) is Caffe's, so that published
weights fit. Nothing is clipped: boxes may reach beyond the image (`ssd_pascal.py:328`).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Level(NamedTuple):
    """One feature map and the default boxes of its cells; lengths are pixels of the input.

    Attributes:
        cells: Rows, and as many columns, of the map.
        step_px: Distance of neighbouring centres. It need not be the image's size over `cells`.
        min_size_px: The scale m.
        max_size_px: The scale M, which is the next level's m.
        ratios: The further ratios of width to height; their inverses are implied.
    """

    cells: int
    step_px: float
    min_size_px: float
    max_size_px: float
    ratios: tuple[int, ...]

    @property
    def boxes_per_cell(self) -> int:
        """How many default boxes a cell has."""
        return 2 + 2 * len(self.ratios)

    def shapes_px(self) -> list[tuple[float, float]]:
        """Returns (width, height) of a cell's boxes, in order (`prior_box_layer.cpp:119-219`).

        The scales are cut to whole pixels as in Caffe (`prior_box_layer.cpp:149,163`). That
        alters nothing for SSD300, whose scales are whole, and every box of SSD512.
        """
        m, maximum = int(self.min_size_px), int(self.max_size_px)
        middle = math.sqrt(m * maximum)
        shapes = [(float(m), float(m)), (middle, middle)]
        for ratio in self.ratios:
            root = math.sqrt(ratio)
            shapes += [(m * root, m / root), (m / root, m * root)]
        return shapes


def _levels(
    cells: Sequence[int], steps: Sequence[float], sizes: Sequence[float], long: Sequence[bool]
) -> tuple[Level, ...]:
    """Returns the levels of a table; where `long`, the ratios are 2 and 3, elsewhere 2."""
    return tuple(
        Level(n, step, low, high, (2, 3) if both else (2,))
        for n, step, low, high, both in zip(cells, steps, sizes[:-1], sizes[1:], long, strict=True)
    )


SSD300_VOC = _levels(
    cells=(38, 19, 10, 5, 3, 1),
    steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    sizes=(30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0),
    long=(False, True, True, True, False, False),
)
"""`ssd_pascal.py:297-319`; 8,732 boxes."""

SSD300_COCO = _levels(
    cells=(38, 19, 10, 5, 3, 1),
    steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    sizes=(21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0),
    long=(False, True, True, True, False, False),
)
"""`ssd_coco.py:299-320`: the same cells with smaller boxes."""

SSD512_VOC = _levels(
    cells=(64, 32, 16, 8, 4, 2, 1),
    steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
    sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    long=(False, True, True, True, True, False, False),
)
"""As the ports of SSD512 agree, since its script was not published; 24,564 boxes."""


def default_boxes(levels: Sequence[Level], image_size_px: int) -> Float[Tensor, "K 4"]:
    """Returns the default boxes of all levels, xyxy in the unit frame.

    Args:
        levels: The feature maps, finest first.
        image_size_px: Side of the (square) network input.
    """
    tables = []
    for level in levels:
        centres = (torch.arange(level.cells, dtype=torch.float64) + 0.5) * level.step_px
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        centre = torch.stack([x, y], dim=-1).reshape(-1, 1, 2)
        half = torch.tensor(level.shapes_px(), dtype=torch.float64) / 2
        tables.append(torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4))
    return (torch.cat(tables) / image_size_px).to(torch.float32)
