"""Reads the detectors in Caffe's format that are not on VGG-16.

They are OpenCV's face detector (`res10_300x300_ssd_iter_140000.caffemodel`, and its version with
half-precision numbers) and chuanqi305's MobileNet-SSD, with batch normalisation as in training
(`mobilenet_iter_73000.caffemodel`) or merged (`MobileNetSSD_deploy.caffemodel`).
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from multibox.build import NETWORKS, build_network
from multibox.errors import WeightsError
from multibox.weights.caffe import CaffeLayer
from multibox.weights.caffe_boxes import file_traits
from multibox.weights.class_names import count_classes, name_classes
from multibox.weights.publishers import MOBILENET_SSD, OPENCV_FACE, Foreign, Origin
from multibox.weights.renaming import rename
from multibox.weights.state_dicts import caffe_tensors


class _Detector(NamedTuple):
    """The layers of a detector in Caffe and in our network.

    Attributes:
        origin: The publisher.
        network: Name of our architecture.
        convolutions: Our names of the layers of the backbone that have weights and possibly a bias,
            by Caffe's names.
        norms: Our names of the batch normalisations, by Caffe's names of the two layers that make
            up one: statistics, and scale with bias.
        sources: Caffe's names of the feature maps, finest first.
        bgr: Our tensors that have blue, green and red channels in the file, with the dimension.
        classes: Class names of the published file.
    """

    origin: Origin
    network: str
    convolutions: dict[str, str]
    norms: dict[tuple[str, str], str]
    sources: tuple[str, ...]
    bgr: dict[str, int]
    classes: tuple[str, ...] = ()


_EXTRA = [f"conv{block}_{place}" for block in range(6, 10) for place in (1, 2)]
_STATISTICS = ("running_mean", "running_var")
_DATA_NORM = [f"data_norm.{kind}" for kind in ("weight", "bias", *_STATISTICS)]

_FACE = _Detector(
    OPENCV_FACE,
    "ssd300-resnet10",
    {
        "conv1_h": "conv1",
        "layer_64_1_conv1_h": "block64.conv1",
        "layer_64_1_conv2_h": "block64.conv2",
        "layer_128_1_conv1_h": "block128.conv1",
        "layer_128_1_conv2": "block128.conv2",
        "layer_128_1_conv_expand_h": "block128.expand",
        "layer_256_1_conv1": "block256.conv1",
        "layer_256_1_conv2": "block256.conv2",
        "layer_256_1_conv_expand": "block256.expand",
        "layer_512_1_conv1_h": "block512.conv1",
        "layer_512_1_conv2_h": "block512.conv2",
        "layer_512_1_conv_expand_h": "block512.expand",
        "conv4_3_norm": "conv4_3_norm",
        **{f"{name}_h": f"extra.{name}.conv" for name in _EXTRA},
    },
    {
        ("data_bn", "data_scale"): "data_norm",
        ("conv1_bn_h", "conv1_scale_h"): "norm1",
        ("layer_64_1_bn2_h", "layer_64_1_scale2_h"): "block64.norm2",
        ("layer_128_1_bn1_h", "layer_128_1_scale1_h"): "norm128",
        ("layer_128_1_bn2", "layer_128_1_scale2"): "block128.norm2",
        ("layer_256_1_bn1", "layer_256_1_scale1"): "norm256",
        ("layer_256_1_bn2", "layer_256_1_scale2"): "block256.norm2",
        ("layer_512_1_bn1", "layer_512_1_scale1"): "norm512",
        ("layer_512_1_bn2_h", "layer_512_1_scale2_h"): "block512.norm2",
        ("last_bn_h", "last_scale_h"): "last_norm",
    },
    ("conv4_3_norm", "fc7", *_EXTRA[1::2]),
    {**dict.fromkeys(_DATA_NORM, 0), "conv1.weight": 1},
    ("face",),
)


def _mobilenet_layers() -> dict[str, str]:
    """Returns our names of the convolutions of MobileNet-SSD's backbone, by Caffe's names."""
    names, block = {"conv0": "stages.0.0"}, 0
    for stage, blocks in enumerate((1, 2, 2, 6, 2)):
        for place in range(blocks):
            block += 1
            # The stem comes before the first block.
            ours = f"stages.{stage}.{place + (stage == 0)}"
            names[f"conv{block}/dw"] = f"{ours}.depthwise"
            names[f"conv{block}"] = f"{ours}.pointwise"
    names |= {f"conv{14 + n}_{1 + k}": f"extra.{n}.{k}" for n in range(4) for k in (0, 1)}
    return names


_MOBILENET = _Detector(
    MOBILENET_SSD,
    "ssd300-mobilenetv1-caffe",
    {theirs: f"{ours}.conv" for theirs, ours in _mobilenet_layers().items()},
    {},
    ("conv11", "conv13", "conv14_2", "conv15_2", "conv16_2", "conv17_2"),
    {"stages.0.0.conv.weight": 1},
)
_MOBILENET_BN = _MOBILENET._replace(
    network="ssd300-mobilenetv1-caffe-bn",
    norms={
        (f"{name}/bn", f"{name}/scale"): f"{ours}.norm"
        for name, ours in _mobilenet_layers().items()
    },
)

# Each with a layer that the ones before it lack.
_MARKS = {"layer_512_1_conv1_h": _FACE, "conv1/dw/bn": _MOBILENET_BN, "conv1/dw": _MOBILENET}


def read_caffe_detector(
    layers: Mapping[str, CaffeLayer], path: Path, classes: tuple[str, ...]
) -> Foreign | None:
    """Returns the detector in a `.caffemodel`; None if it is another model.

    Raises:
        WeightsError: A tensor is missing, there are unknown tensors, or our network cannot have the
            default boxes of the file.
    """
    detector = next((found for mark, found in _MARKS.items() if mark in layers), None)
    if detector is None:
        return None
    architecture = NETWORKS[detector.network]
    levels = next(iter(architecture.tables.values()))
    own = _tensor_names(detector.network)
    names = {theirs: ours for theirs, ours in _names(detector).items() if ours in own}
    tensors = rename(caffe_tensors(layers, path), names, path)
    for name, dimension in detector.bgr.items():
        tensor = tensors[f"backbone.{name}"]
        if tensor.ndim <= dimension:
            raise WeightsError("has too few dimensions", file=path, position=name)
        tensors[f"backbone.{name}"] = tensor.flip(dimension)
    # PyTorch's batch normalisation counts batches; the count has no effect here.
    tensors |= {name: torch.tensor(0) for name in own if name.endswith("num_batches_tracked")}
    count = count_classes(tensors, levels[0].boxes_per_cell, path)
    known = detector.classes if count == len(detector.classes) else ()
    titles, notes = name_classes(count, classes or known, path)
    traits, guesses = file_traits(layers, detector.sources, architecture, path)
    origin, network = detector.origin, detector.network
    return Foreign(origin, network, titles, tensors, traits, (*notes, *guesses))


@cache
def _tensor_names(network: str) -> tuple[str, ...]:
    with torch.device("meta"):
        return tuple(build_network(network, 1).state_dict())


def _names(detector: _Detector) -> dict[str, str]:
    """Returns our names of a detector's tensors, and of some that it may lack, by Caffe's names."""
    parts = [
        *((theirs, f"backbone.{ours}") for theirs, ours in detector.convolutions.items()),
        *(
            (f"{source}_mbox_{theirs}", f"{ours}.{level}")
            for level, source in enumerate(detector.sources)
            for theirs, ours in (("loc", "offset_heads"), ("conf", "logit_heads"))
        ),
    ]
    kinds = [(theirs, ours, kind) for theirs, ours in parts for kind in ("weight", "bias")]
    for (statistics, scale), ours in detector.norms.items():
        kinds += [(statistics, f"backbone.{ours}", kind) for kind in _STATISTICS]
        kinds += [(scale, f"backbone.{ours}", kind) for kind in ("weight", "bias")]
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours, kind in kinds}
