"""The default boxes (SSD section 2.2), also known as priors or anchors, as one table.

A level is a feature map. Each of its cells has a box (m sqrt(r), m / sqrt(r)) for every aspect
ratio r. After the box of one ratio, which is 1 in published tables, follows a second one of scale
sqrt(m * M), if the level has a scale M. Cells are sorted by row, and the boxes of a cell by the
ratios of the level. This is the order of Caffe and ssd_keras, which published weights need. Caffe
does not clip: boxes may reach beyond the image (`ssd_pascal.py:328`).

Every number is rounded to float32 where Caffe stores one, so that the tables equal Caffe's bit for
bit, and equal overlaps stay equal. Unqualified `sqrt` is the double-precision one, as with the
compilers of 2016 (gcc before 6), with which the published networks were trained.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Clip = Literal["none", "corners", "centre", "sides"]
"""What is clipped to the image. `none`: nothing. `corners`: the corners, an option that published
Caffe models do not use (`prior_box_layer.cpp:222-227`). `centre`: centre, width and height, as
in ssd.pytorch (`prior_box.py:53-54`) and lufficc/SSD (`prior_box.py:51-53`). `sides`: width and
height, as in torchvision (`DBoxGenerator`)."""


class Level(NamedTuple):
    """A feature map and the default boxes of its cells. Lengths are in pixels of the input.

    Attributes:
        cells: (rows, columns) of the map.
        step_px: (vertical, horizontal) distance of neighbouring centres. It may differ from the
            image size divided by `cells`.
        min_size_px: The scale m.
        max_size_px: The scale M, which is m of the next level. None: there is no second box.
        ratios: Ratios of width to height, all different.
        doubled: The ratio, one of `ratios`, that also has a box of scale sqrt(m * M).
    """

    cells: tuple[int, int]
    step_px: tuple[float, float]
    min_size_px: float
    max_size_px: float | None
    ratios: tuple[float, ...]
    doubled: float = 1.0

    @property
    def boxes_per_cell(self) -> int:
        """Number of default boxes of a cell."""
        return len(self.ratios) + (self.max_size_px is not None)

    def is_plausible(self, side_px: int) -> bool:
        """Returns whether the sizes and ratios can be right for an input of this longer side."""
        largest = self.min_size_px if self.max_size_px is None else self.max_size_px
        return (
            1 <= self.min_size_px <= largest <= 16 * side_px
            and all(1 / 64 <= ratio <= 64 for ratio in self.ratios)
            and len(set(self.ratios)) == len(self.ratios)
            and self.doubled in self.ratios
        )

    def shapes_px(self, *, whole_scales: bool) -> list[tuple[float, float]]:
        """Returns (width, height) of a cell's boxes, in order (`prior_box_layer.cpp:119-219`).

        The lengths and the square roots are of double precision; ratios are float32, as in Caffe.

        Args:
            whole_scales: Whether scales are truncated to whole pixels, as in Caffe
                (`prior_box_layer.cpp:149,163`) and unlike the ports. This changes every box of
                SSD512, and none of SSD300, which has whole scales.
        """
        m = self.min_size_px
        maximum = m if self.max_size_px is None else self.max_size_px
        if whole_scales:
            m, maximum = float(int(m)), float(int(maximum))
        shapes = []
        for ratio in self.ratios:
            # On the CPU also while a network is described without numbers, on the meta device.
            root = math.sqrt(torch.tensor(ratio, dtype=torch.float32, device="cpu").item())
            second = ratio == self.doubled and self.max_size_px is not None
            scales = (m, math.sqrt(m * maximum)) if second else (m,)
            shapes += [(scale * root, scale / root) for scale in scales]
        return shapes


def _levels(
    cells: Sequence[int], steps: Sequence[float], sizes: Sequence[float], long: Sequence[bool]
) -> tuple[Level, ...]:
    """Returns the levels of a square input. Levels in `long` also have boxes of ratio 3 and 1/3."""
    short = (1, 2, 1 / 2)
    return tuple(
        Level((n, n), (step, step), low, high, (*short, 3, 1 / 3) if both else short)
        for n, step, low, high, both in zip(cells, steps, sizes[:-1], sizes[1:], long, strict=True)
    )


_ssd300 = partial(
    _levels,
    cells=(38, 19, 10, 5, 3, 1),
    steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    long=(False, True, True, True, False, False),
)
_ssd512 = partial(
    _levels,
    cells=(64, 32, 16, 8, 4, 2, 1),
    steps=(8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
    long=(False, True, True, True, True, False, False),
)

SSD300_VOC = _ssd300(sizes=(30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0))
"""`ssd_pascal.py:297-319`; 8,732 boxes."""

SSD300_COCO = _ssd300(sizes=(21.0, 45.0, 99.0, 153.0, 207.0, 261.0, 315.0))
"""`ssd_coco.py:299-320`: the same cells with smaller boxes."""

SSD384_COCO = _levels(
    cells=(48, 24, 12, 6, 4, 2),
    steps=(8.0, 16.0, 32.0, 64.0, 96.0, 192.0),
    sizes=(27.0, 58.0, 127.0, 196.0, 265.0, 334.0, 403.0),
    long=(False, True, True, True, False, False),
)
"""multibox's own for 384 pixels: those of SSD300 for COCO, scaled to whole pixels; 13,832 boxes."""

SSD512_VOC = _ssd512(sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6))
"""As the ports of SSD512 agree, since its script was not published; 24,564 boxes."""

SSD512_COCO = _ssd512(sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72))
"""The same cells with the boxes that the ports have for COCO (`vgg_ssd512_coco_trainval35k.yaml`
of lufficc/SSD)."""

RESNET10_LEVELS = _levels(
    cells=(38, 19, 10, 5, 5, 5),
    steps=(8.0, 16.0, 32.0, 64.0, 100.0, 300.0),
    sizes=(30.0, 60.0, 111.0, 162.0, 213.0, 264.0, 315.0),
    long=(False, True, True, True, False, False),
)
"""Those of OpenCV's face detector (`samples/dnn/face_detector/deploy.prototxt`); 8,892 boxes. The
steps of the last two levels are those of SSD300, for maps of 3 and 1 cells. On its maps of 5 cells,
most of these boxes lie beyond the image."""

MOBILENET_CAFFE_LEVELS = tuple(
    # Caffe computes the steps in float32.
    Level((n, n), (torch.tensor(300 / n).item(),) * 2, low, high, (1, 2, 1 / 2, 3, 1 / 3)[:ratios])
    for n, low, high, ratios in (
        (19, 60.0, None, 3),
        (10, 105.0, 150.0, 5),
        (5, 150.0, 195.0, 5),
        (3, 195.0, 240.0, 5),
        (2, 240.0, 285.0, 5),
        (1, 285.0, 300.0, 5),
    )
)
"""Those of chuanqi305/MobileNet-SSD (`voc/MobileNetSSD_deploy.prototxt`); 1,917 boxes."""

SSD300_MOBILENET = _levels(
    cells=(19, 10, 5, 3, 2, 1),
    steps=(16.0, 32.0, 64.0, 100.0, 150.0, 300.0),
    sizes=(60.0, 105.0, 150.0, 195.0, 240.0, 285.0, 330.0),
    long=(True,) * 6,
)
"""qfgaohao/pytorch-ssd's for MobileNet (`mobilenetv1_ssd_config.py:13-20`); 3,000 boxes."""

SSD7_LEVELS = tuple(
    Level((rows, columns), (300 / rows, 480 / columns), low, high, (1 / 2, 1, 2))
    for rows, columns, low, high in (
        (37, 60, 24.0, 48.0),
        (18, 30, 48.0, 96.0),
        (9, 15, 96.0, 192.0),
        (4, 7, 192.0, 288.0),
    )
)
"""ssd_keras's, of 300 rows by 480 columns (`ssd7_training.ipynb`): scales of 0.08 to 0.96 of the
shorter side, steps of the image's size over the cells; 11,692 boxes."""


SSDLITE320 = _levels(
    cells=(20, 10, 5, 3, 2, 1),
    steps=tuple(320 / cells for cells in (20, 10, 5, 3, 2, 1)),
    sizes=(64.0, 112.0, 160.0, 208.0, 256.0, 304.0, 320.0),
    long=(True,) * 6,
)
"""torchvision's (`ssdlite.py`, `anchor_utils.py`): scales of 0.2 to 1 of the image's side, steps of
the image's size over the cells; 3,234 boxes."""


def default_boxes(
    levels: Sequence[Level],
    image_size_px: tuple[int, int],
    clip: Clip = "none",
    *,
    whole_scales: bool = True,
) -> Float[Tensor, "K 4"]:
    """Returns the default boxes of all levels, xyxy in the unit frame.

    Args:
        levels: The feature maps, finest first.
        image_size_px: (height, width) of the network input.
        clip: What is clipped to the image.
        whole_scales: As in `Level.shapes_px`.
    """
    size = torch.tensor(image_size_px[::-1], dtype=torch.float64)
    tables = []
    for level in levels:
        y, x = torch.meshgrid(
            *(
                (torch.arange(cells, dtype=torch.float64) + 0.5) * step
                for cells, step in zip(level.cells, level.step_px, strict=True)
            ),
            indexing="ij",
        )
        # Caffe keeps centres and sides in float32, and computes the corners in double precision.
        centre = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).float().double()
        shapes = torch.tensor(level.shapes_px(whole_scales=whole_scales), dtype=torch.float64)
        sides = shapes.float().double()
        if clip == "centre":
            centre = torch.minimum(centre, size)
        if clip in ("centre", "sides"):
            sides = torch.minimum(sides, size)
        tables.append(torch.cat([centre - sides / 2, centre + sides / 2], dim=-1).reshape(-1, 4))
    boxes = torch.cat(tables) / size.repeat(2)
    return (boxes.clamp(0, 1) if clip == "corners" else boxes).to(torch.float32)
