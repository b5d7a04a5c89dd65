"""A network of a few thousand parameters, for tests of everything around a network."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multibox.build import Architecture, matcher
from multibox.rng import stream
from multibox.ssd.coding import Variances
from multibox.ssd.default_boxes import Level
from multibox.ssd.network import SSD, Traits, initialise
from multibox.structures import Batch, Targets

SIDE = 64
LEVELS = (
    Level((8, 8), (8, 8), 12, 24, (1, 2, 1 / 2)),
    Level((4, 4), (16, 16), 24, 40, (1, 2, 1 / 2)),
)
SMALLER = tuple(level._replace(min_size_px=level.min_size_px / 2) for level in LEVELS)
FITTED = (
    LEVELS[0]._replace(min_size_px=9.0, max_size_px=20.0, ratios=(0.8, 1.7, 0.45), doubled=0.8),
    LEVELS[1]._replace(min_size_px=20.0, max_size_px=44.0, ratios=(0.8, 1.7, 0.45), doubled=0.8),
)
"""Default boxes as `--fit-boxes` finds them."""


class TinyBackbone(nn.Module):
    """Two maps, of 8 and 4 cells."""

    channels = (8, 8)

    def __init__(self, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(8) if batch_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.norms[0](self.first(images)).relu()
        return [fine, self.norms[1](self.second(fine)).relu()]


TINY = Architecture(
    TinyBackbone,
    (SIDE, SIDE),
    {"voc": LEVELS, "coco": SMALLER},
    Traits(pixel_scale=1 / 64),
    Variances(0.2, 0.4),
)


def tiny_network(seed: int = 0, num_classes: int = 2, fitted: tuple[Level, ...] = ()) -> SSD:
    network = SSD(
        TinyBackbone(),
        fitted or LEVELS,
        image_size_px=TINY.image_size_px,
        num_classes=num_classes,
        traits=TINY.traits._replace(fitted=fitted),
        variances=TINY.variances,
    )
    initialise(network, torch.Generator().manual_seed(seed))
    return network


def batch(size: int, *, seed: int = 0, objects: Sequence[int] | None = None) -> Batch:
    """Random images with up to three random objects each, matched as for `tiny_network`."""
    rng = stream(seed, "batch")
    counts = objects if objects is not None else rng.integers(1, 4, size).tolist()
    low = rng.uniform(0, 0.6, (size, 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.1, 0.4, (size, 3, 2))], axis=2)
    valid = torch.arange(3) < torch.tensor(list(counts)).unsqueeze(1)
    images = torch.from_numpy(rng.integers(0, 256, (size, 3, SIDE, SIDE), dtype="uint8"))
    targets = Targets(
        torch.from_numpy(boxes.astype("float32")),
        torch.from_numpy(rng.integers(0, 2, (size, 3))),
        torch.zeros(size, 3, dtype=torch.bool),
        valid,
    )
    return Batch(
        images,
        targets,
        matcher(tiny_network(), difficult=True)(targets),
        torch.arange(size),
        torch.arange(size),
    )
