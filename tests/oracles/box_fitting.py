"""How well default boxes overlap objects, one pair at a time. Slow and literal on purpose."""

import math
from collections.abc import Sequence

from oracles.matching import Box, overlap

from multibox.ssd.default_boxes import Level


def best_overlaps(
    objects: Sequence[Box], levels: Sequence[Level], image_size_px: tuple[int, int]
) -> list[float]:
    """The best IoU of each object, in the unit frame, with a default box of any cell and shape."""
    height, width = image_size_px
    found = []
    for x0, y0, x1, y1 in objects:
        box = (x0 * width, y0 * height, x1 * width, y1 * height)
        best = 0.0
        for level in levels:
            middle = math.sqrt(level.min_size_px * level.max_size_px)
            for row in range(level.cells[0]):
                for column in range(level.cells[1]):
                    y, x = (row + 0.5) * level.step_px[0], (column + 0.5) * level.step_px[1]
                    for size, ratio in [
                        *((level.min_size_px, ratio) for ratio in level.ratios),
                        (middle, level.doubled),
                    ]:
                        w, h = size * math.sqrt(ratio), size / math.sqrt(ratio)
                        default = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                        best = max(best, overlap(box, default))
        found.append(best)
    return found
