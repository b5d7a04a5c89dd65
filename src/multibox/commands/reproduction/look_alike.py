"""A drawn look-alike of VOC07+12: its layout, its classes and its statistics, with fewer images.

The 20 classes are the six shapes of the demo in several hues. What follows VOC:

- The layout: VOC2007 with trainval and test, VOC2012 with trainval. Boxes are 1-based, and objects
  are marked difficult or truncated.
- The numbers of images of the three splits, divided by `SCALE`.
- How often each class occurs (`OBJECTS`), and the mean number of objects in an image: 2.5. Drawn
  images reach 2.2, because some objects find no place.
- The mean area of an object: 0.241 of its image (image-net.org/challenges/LSVRC/2012/analysis,
  section 2.3, the mean over PASCAL's classes). Drawn objects reach 0.24.

Only means are published, so the shapes of these two distributions are choices of this module.
"""

from pathlib import Path

import numpy as np
from numpy.random import Generator

from multibox.commands.demo.dataset import HUES, Style, draw_folder, write_split

VERSION = 1
SCALE = 100
IMAGES = {"2007:trainval": 5_011, "2012:trainval": 11_540, "2007:test": 4_952}
"""Numbers of images of VOC's splits (`download/catalogue.py`)."""

OBJECTS = {
    "aeroplane": 306,
    "bicycle": 353,
    "bird": 486,
    "boat": 290,
    "bottle": 505,
    "bus": 229,
    "car": 1_250,
    "cat": 376,
    "chair": 798,
    "cow": 259,
    "diningtable": 215,
    "dog": 510,
    "horse": 362,
    "motorbike": 339,
    "person": 4_690,
    "pottedplant": 514,
    "sheep": 257,
    "sofa": 248,
    "train": 297,
    "tvmonitor": 324,
}
"""Objects of each class in VOC2007 trainval: 12,608 in 5,011 images (M. Everingham et al., The
PASCAL Visual Object Classes Challenge, IJCV 2010, statistics of VOC2007)."""

_SHARES = np.array([*OBJECTS.values()]) / sum(OBJECTS.values())
_MEAN_COUNT = sum(OBJECTS.values()) / IMAGES["2007:trainval"]
# The longer side of an object. The frame's shorter side is 375.
_LEAST_PX, _MOST_PX, _SKEW = 30.0, 370.0, 0.25


def _frame(rng: Generator) -> tuple[int, int]:
    """Most images of VOC are 500 pixels wide and 375 high, and some are turned."""
    return (500, 375) if rng.random() < 0.75 else (375, 500)


def _looks() -> dict[str, tuple[str, float]]:
    shapes = list(HUES)
    return {
        name: (shapes[place % len(shapes)], (place // len(shapes) / 4 + place / 40) % 1)
        for place, name in enumerate(OBJECTS)
    }


STYLE = Style(
    _looks(),
    _frame,
    # At least one, and the mean of VOC.
    lambda rng: int(rng.geometric(1 / _MEAN_COUNT)),
    lambda rng: str(rng.choice(list(OBJECTS), p=_SHARES)),
    lambda rng: _LEAST_PX * (_MOST_PX / _LEAST_PX) ** (rng.random() ** _SKEW),
    _MOST_PX,
    overlap=0.7,
)


def scaled(scale: int = SCALE) -> dict[str, int]:
    """Returns the number of images of each split, divided and rounded."""
    return {split: max(1, round(images / scale)) for split, images in IMAGES.items()}


def draw_look_alike(devkit: Path, *, scale: int = SCALE) -> None:
    """Draws the dataset. A folder that already contains exactly this dataset is left as it is.

    Args:
        devkit: The new folder, which corresponds to VOCdevkit.
        scale: Divisor of VOC's numbers of images.

    Raises:
        StorageError: The folder contains something else, or cannot be written.
    """
    images = scaled(scale)

    def write(folder: Path) -> None:
        begin = 1
        for name, count in images.items():
            year, _, split = name.partition(":")
            write_split(
                folder / f"VOC{year}",
                split,
                range(begin, begin + count),
                seed=0,
                style=STYLE,
                prefix="" if year == "2007" else f"{year}_",
            )
            begin += count

    marker = {"version": VERSION, "scale": scale}
    draw_folder(devkit, marker, sum(images.values()), write)
