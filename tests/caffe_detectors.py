"""Writes `.caffemodel` files of OpenCV's face detector and of MobileNet-SSD.

Their parameters are those of `oracles/formula.py`. OpenCV 4 reads these files with the published
prototxt (`weights/record_opencv.py`), so the names and shapes are correct.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from oracles import caffemodel as caffe
from oracles.formula import kernel, noise

Layers = dict[str, list[np.ndarray]]

_FACTOR = 999.98236
"""Caffe's statistics are times a factor of about 1000."""

FACE_MAPS = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2")
MOBILENET_MAPS = ("conv11", "conv13", "conv14_2", "conv15_2", "conv16_2", "conv17_2")


class Prior(NamedTuple):
    """The default boxes of a map."""

    min_px: float
    max_px: float | None
    ratios: tuple[float, ...]
    step_px: float | None = None

    @property
    def boxes(self) -> int:
        return 1 + (self.max_px is not None) + 2 * len(self.ratios)


FACE_PRIORS = (
    Prior(30, 60, (2,), 8),
    Prior(60, 111, (2, 3), 16),
    Prior(111, 162, (2, 3), 32),
    Prior(162, 213, (2, 3), 64),
    Prior(213, 264, (2,), 100),
    Prior(264, 315, (2,), 300),
)
MOBILENET_PRIORS = (
    Prior(60, None, (2,)),
    Prior(105, 150, (2, 3)),
    Prior(150, 195, (2, 3)),
    Prior(195, 240, (2, 3)),
    Prior(240, 285, (2, 3)),
    Prior(285, 300, (2, 3)),
)


def priors(maps: Sequence[str], boxes: Sequence[Prior]) -> bytes:
    """Returns the layers that make the default boxes."""
    return b"".join(
        caffe.prior_box(
            f"{name}_mbox_priorbox",
            prior.min_px,
            max_size=prior.max_px,
            ratios=prior.ratios,
            step=prior.step_px,
            variances=(0.1, 0.1, 0.2, 0.2),
        )
        for name, prior in zip(maps, boxes, strict=True)
    )


def _conv(
    name: str, inputs: int, outputs: int, size: int, *, bias: bool, gain: float = 0.8
) -> Layers:
    weight = kernel(name, (outputs, inputs, size, size), gain)
    return {name: [weight, *([_vector(f"{name} bias", outputs, 0.1)] if bias else [])]}


def _vector(name: str, count: int, size: float, middle: float = 0.0) -> np.ndarray:
    return (middle + size * noise(name, (count,))).astype(np.float32)


def _norm(statistics: str, scale: str, channels: int, spread: float = 1.0) -> Layers:
    mean = _vector(f"{statistics} mean", channels, 0.1 * spread) * np.float32(_FACTOR)
    variance = _vector(f"{statistics} variance", channels, 0.5, 1.0) * np.float32(spread**2)
    factor = np.array([_FACTOR], np.float32)
    return {
        statistics: [mean, variance * factor, factor],
        scale: [_vector(f"{scale} weight", channels, 0.2, 1.0), _vector(scale, channels, 0.1)],
    }


def _heads(
    maps: Sequence[str],
    channels: Sequence[int],
    boxes: Sequence[Prior],
    outputs: int,
    *,
    size: int,
    gain: float = 0.8,
) -> Layers:
    layers: Layers = {}
    for name, inputs, prior in zip(maps, channels, boxes, strict=True):
        for kind, each in (("loc", 4), ("conf", outputs)):
            head = f"{name}_mbox_{kind}"
            layers |= _conv(head, inputs, prior.boxes * each, size, bias=True, gain=gain)
    return layers


def face(classes: int = 1) -> Layers:
    """Returns the layers of OpenCV's face detector with parameters."""
    layers = _norm("data_bn", "data_scale", 3, spread=60)
    layers |= _conv("conv1_h", 3, 32, 7, bias=True) | _norm("conv1_bn_h", "conv1_scale_h", 32)
    # Name, suffix of the first normalisation, that of the other layers, channels.
    for name, first, other, last, inputs, inner, outputs in (
        ("layer_64_1", None, "_h", "_h", 32, 32, 32),
        ("layer_128_1", "_h", "", "", 32, 128, 128),
        ("layer_256_1", "", "", "", 128, 256, 256),
        ("layer_512_1", "", "_h", "_h", 256, 128, 256),
    ):
        if first is not None:
            layers |= _norm(f"{name}_bn1{first}", f"{name}_scale1{first}", inputs)
            expand = f"{name}_conv_expand" + ("" if name == "layer_256_1" else "_h")
            layers |= _conv(expand, inputs, outputs, 1, bias=False)
        conv1 = f"{name}_conv1" + ("" if name == "layer_256_1" else "_h")
        layers |= _conv(conv1, inputs, inner, 3, bias=False)
        layers |= _norm(f"{name}_bn2{other}", f"{name}_scale2{other}", inner)
        layers |= _conv(f"{name}_conv2{last}", inner, outputs, 3, bias=False)
    layers |= _norm("last_bn_h", "last_scale_h", 256)
    for name, inputs, outputs, size in (
        ("conv6_1_h", 256, 128, 1),
        ("conv6_2_h", 128, 256, 3),
        ("conv7_1_h", 256, 64, 1),
        ("conv7_2_h", 64, 128, 3),
        ("conv8_1_h", 128, 64, 1),
        ("conv8_2_h", 64, 128, 3),
        ("conv9_1_h", 128, 64, 1),
        ("conv9_2_h", 64, 128, 3),
    ):
        layers |= _conv(name, inputs, outputs, size, bias=True)
    layers["conv4_3_norm"] = [_vector("conv4_3_norm", 128, 1.0, 20.0)]
    channels = (128, 256, 256, 128, 128, 128)
    return layers | _heads(FACE_MAPS, channels, FACE_PRIORS, classes + 1, size=3)


def mobilenet(classes: int = 20) -> Layers:
    """Returns the layers of MobileNet-SSD with parameters, as it is trained."""
    widths = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    shapes = [("conv0", 3, 32, 3)]
    for block in range(1, 14):
        shapes.append((f"conv{block}/dw", 1, widths[block - 1], 3))
        shapes.append((f"conv{block}", widths[block - 1], widths[block], 1))
    inputs = 1024
    for block, narrow, wide in ((14, 256, 512), (15, 128, 256), (16, 128, 256), (17, 64, 128)):
        shapes += [(f"conv{block}_1", inputs, narrow, 1), (f"conv{block}_2", narrow, wide, 3)]
        inputs = wide
    layers: Layers = {}
    for name, inputs, outputs, size in shapes:
        layers |= _conv(name, inputs, outputs, size, bias=False, gain=1.05)
        layers |= _norm(f"{name}/bn", f"{name}/scale", outputs)
    channels = (512, 1024, 512, 256, 256, 128)
    return layers | _heads(
        MOBILENET_MAPS, channels, MOBILENET_PRIORS, classes + 1, size=1, gain=0.1
    )


def tiny(layers: Mapping[str, Sequence[np.ndarray]]) -> Layers:
    """Returns the layers with few numbers, except for the outputs of the heads."""
    found: Layers = {}
    for name, blobs in layers.items():
        if "_mbox_" in name:
            found[name] = [blobs[0][:, :1, :1, :1], blobs[1]]
        else:
            found[name] = [x[:2, :3, :1, :1] if x.ndim == 4 else x[:3] for x in blobs]
    return found


def merged(layers: Mapping[str, Sequence[np.ndarray]]) -> Layers:
    """Merges batch normalisation into the convolutions, as `merge_bn.py` of MobileNet-SSD does."""
    found: Layers = {}
    for name, blobs in layers.items():
        if name.endswith(("/bn", "/scale")):
            continue
        if f"{name}/bn" in layers:
            mean, variance, factor = (x.astype(np.float64) for x in layers[f"{name}/bn"])
            weight, bias = layers[f"{name}/scale"]
            scale = weight / np.sqrt(variance / factor + 1e-5)
            kernels = blobs[0] * scale[:, None, None, None]
            both = kernels, bias - mean / factor * scale
            found[name] = [part.astype(np.float32) for part in both]
        else:
            found[name] = [*blobs]
    return found
