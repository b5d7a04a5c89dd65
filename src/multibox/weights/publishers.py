"""The publishers of weights, with the properties that all their files share."""

from typing import NamedTuple

from torch import Tensor

from multibox.ssd.default_boxes import Clip
from multibox.structures import MEAN_RGB

# Torchvision's SSD300 subtracts this from pixels in 0..1 (`detection/ssd.py`).
TORCHVISION_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)

_LICENCE = (
    "published with {} (its code: {}); no terms stated for the weights, which learnt from ImageNet "
    "and, if a detector, from VOC or COCO"
)


class Origin(NamedTuple):
    """The properties that all files of one publisher share.

    Attributes:
        title: The publisher's name, for people.
        licence: The known terms of use.
        mean_rgb: The colour that its loader subtracts from the pixels.
        clip: How it clips default boxes.
        clip_detections: Whether it clips boxes before suppression.
    """

    title: str
    licence: str
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    clip: Clip = "none"
    clip_detections: bool = False


CAFFE = Origin("Caffe", _LICENCE.format("weiliu89/caffe", "BSD-2-Clause"))
SSD_KERAS = Origin("ssd_keras", _LICENCE.format("pierluigiferrari/ssd_keras", "Apache-2.0"))
SSD_PYTORCH = Origin("ssd.pytorch", _LICENCE.format("amdegroot/ssd.pytorch", "MIT"), clip="centre")
LUFFICC = Origin("lufficc/SSD", _LICENCE.format("lufficc/SSD", "MIT"), clip="centre")
TORCHVISION = Origin(
    "torchvision",
    _LICENCE.format("torchvision", "BSD-3-Clause"),
    TORCHVISION_MEAN,
    clip="sides",
    clip_detections=True,
)


class Found(NamedTuple):
    """The content of a file of weights.

    Attributes:
        origin: The publisher.
        tensors: Parameters by Caffe's names, such as `conv1_1.weight`.
        bgr: Whether the first input channel of conv1_1 is blue.
        first_scale: Scale of the finest default boxes as a fraction of the image's side, if known.
        clipped: Whether the file says that the corners of default boxes are clipped.
        notes: Changes that were made, a clause each.
    """

    origin: Origin
    tensors: dict[str, Tensor]
    bgr: bool = False
    first_scale: float | None = None
    clipped: bool = False
    notes: tuple[str, ...] = ()
