"""Converts the content of foreign weights files to parameters by Caffe's layer names."""

import itertools
import mmap
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multibox.errors import WeightsError, counted
from multibox.structures import MEAN_RGB
from multibox.weights.caffe import CaffeLayer, parse_caffemodel
from multibox.weights.keras import KerasFile
from multibox.weights.layer_names import (
    SCALE,
    TRUNK,
    PyTorchFormat,
    layers,
    pytorch_names,
    trunk_names,
)
from multibox.weights.publishers import (
    CAFFE,
    LUFFICC,
    SSD_KERAS,
    SSD_PYTORCH,
    TORCHVISION,
    Found,
    Origin,
)
from multibox.weights.renaming import first_names, rename_layers
from multibox.weights.vgg_reduction import in_caffe_range

_MOST_LEVELS = 7
# Of PyTorch's batch normalisation.
_EPSILON = 1e-5


def read_caffe(path: Path) -> dict[str, CaffeLayer]:
    """Returns the layers of a `.caffemodel` file, at least one with parameters.

    Raises:
        WeightsError: The file is not a `.caffemodel`, or it is damaged or truncated.
    """
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise WeightsError("is empty", file=path) from None
    found = parse_caffemodel(memoryview(data), file=path)
    if not any(layer.blobs for layer in found.values()):
        raise WeightsError(
            "has an unknown format or no weights",
            file=path,
            remedy="Use a multibox weights file, a .caffemodel, Keras's .h5 or PyTorch's .pth",
        )
    return found


def caffe_tensors(layers: Mapping[str, CaffeLayer], path: Path) -> dict[str, Tensor]:
    """Returns the parameters of layers as `LAYER.weight` and `LAYER.bias`.

    A layer with three blobs is a batch normalisation. Caffe stores its statistics times a factor,
    and this factor (`batch_norm_layer.cpp:106-113`). The result has `LAYER.running_mean` and
    `LAYER.running_var` for PyTorch's epsilon.

    Raises:
        WeightsError: A batch normalisation has statistics of other shapes.
    """
    tensors = {}
    for name, layer in layers.items():
        blobs = [torch.from_numpy(np.array(blob)) for blob in layer.blobs]
        if len(blobs) == 3:
            mean, variance, weight = (blob.flatten() for blob in blobs)
            if len(weight) != 1 or mean.shape != variance.shape:
                raise WeightsError("is not a batch normalisation", file=path, position=name)
            scale = 1 / weight if weight else weight
            tensors[f"{name}.running_mean"] = mean * scale
            tensors[f"{name}.running_var"] = variance * scale + (layer.epsilon - _EPSILON)
        else:
            kinds = ("weight", "bias")
            tensors |= {f"{name}.{kind}": x for kind, x in zip(kinds, blobs, strict=False)}
    # In old files, every blob has four dimensions.
    return {name: x.flatten() if _is_vector(name) else x for name, x in tensors.items()}


def from_caffe(layers: Mapping[str, CaffeLayer], path: Path) -> Found:
    """Returns the content of a `.caffemodel` file."""
    tensors = caffe_tensors(layers, path)
    side = 300 if count_levels(tensors) == 6 else 512
    scale, clipped = _prior_boxes(layers.values(), side)
    return Found(CAFFE, tensors, bgr=True, first_scale=scale, clipped=clipped)


def _is_vector(name: str) -> bool:
    return name.endswith(".bias") or name == f"{SCALE}.weight"


def _prior_boxes(found: Iterable[CaffeLayer], side: int) -> tuple[float | None, bool]:
    """Returns the smallest scale of the default boxes, and whether any of them are clipped."""
    priors = [layer.prior for layer in found if layer.prior is not None]
    scale = min((prior.min_sizes_px[0] for prior in priors), default=None)
    return (None if scale is None else scale / side), any(prior.clip for prior in priors)


def from_keras(file: KerasFile) -> Found:
    """Returns the content of a Keras `.h5` file."""
    return Found(SSD_KERAS, file.tensors, bgr=True, first_scale=file.first_scale, clipped=file.clip)


def from_pytorch(state: dict[str, Tensor], path: Path) -> Found:
    """Returns the content of a PyTorch state dict.

    Raises:
        WeightsError: The state dict does not belong to a known model.
    """
    detectors: dict[str, tuple[Origin, PyTorchFormat, str]] = {
        "vgg.0.weight": (SSD_PYTORCH, "ssd-pytorch", "loc.{}.weight"),
        "backbone.vgg.0.weight": (
            LUFFICC,
            "lufficc",
            "box_head.predictor.reg_headers.{}.weight",
        ),
        "backbone.features.0.weight": (
            TORCHVISION,
            "torchvision",
            "head.regression_head.module_list.{}.weight",
        ),
    }
    for mark, (origin, format, head) in detectors.items():
        if mark in state:
            levels = sum(head.format(level) in state for level in range(_MOST_LEVELS + 1))
            parts = {name.partition(".")[0] for name in pytorch_names(format, _MOST_LEVELS)}
            require_heads(levels, state, parts, path)
            theirs = pytorch_names(format, levels)
            names = zip(theirs, (layer.caffe for layer in layers(levels)), strict=True)
            state = {name.replace("scale_weight", "scale.weight"): x for name, x in state.items()}
            return Found(origin, rename_layers(state, dict(names)))
    if "features.0.weight" in state:
        return _torchvision_classifier(state, path)
    if "0.weight" in state:
        names = zip(trunk_names(""), TRUNK, strict=True)
        return Found(SSD_PYTORCH, rename_layers(state, dict(names)))
    some = ", ".join(itertools.islice(state, 3))
    raise WeightsError(
        f"is a state dict of an unknown model ({some[:150]})",
        file=path,
        remedy="Use weights of ssd.pytorch, lufficc/SSD, mmdetection, qfgaohao/pytorch-ssd, "
        "torchvision's ssd300_vgg16, ssdlite320_mobilenet_v3_large or vgg16, or "
        "EfficientNet-Lite-PyTorch",
    )


def _torchvision_classifier(state: dict[str, Tensor], path: Path) -> Found:
    """Returns the trunk of torchvision's VGG-16, with or without a classifier.

    Torchvision starts SSD from a file without a classifier (`VGG16_Weights.IMAGENET1K_FEATURES`).
    It contains Caffe's weights, for Caffe's range of pixels. The classifier is missing or NaN.
    """
    names = dict(zip(trunk_names("features."), TRUNK[:-2], strict=False))
    classifier = state.get("classifier.0.weight")
    if classifier is None or not torch.isfinite(classifier).all():
        features = {name: x for name, x in state.items() if name.startswith("features.")}
        return Found(TORCHVISION, rename_layers(features, names))
    names |= {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
    try:
        trunk = in_caffe_range(rename_layers(state, names), MEAN_RGB)
    except (KeyError, RuntimeError):
        raise WeightsError("lacks conv1_1 of a VGG-16", file=path) from None
    note = "conv1_1 was rescaled from torchvision's range of pixels to 0..255"
    return Found(TORCHVISION, trunk, notes=(note,))


def require_heads(levels: int, state: Iterable[str], parts: Collection[str], path: Path) -> None:
    """Refuses a detector with a VGG-16 that is neither SSD300 nor SSD512.

    Args:
        levels: Number of feature maps that have SSD's heads.
        state: Names of all tensors.
        parts: First parts of the names that SSD has.
        path: The file, for messages.
    """
    if levels in (_MOST_LEVELS - 1, _MOST_LEVELS):
        return
    unknown = sorted({name.partition(".")[0] for name in state}.difference(parts))
    heads = f"the heads of {counted(levels, 'feature map')}"
    others = f", and the unknown parts {first_names(unknown)}" if unknown else ""
    raise WeightsError(
        f"is neither SSD300 nor SSD512: it has {heads}{others}",
        file=path,
        remedy="Use the published architectures, which docs/weights.md lists",
    )


def count_levels(tensors: Iterable[str]) -> int:
    """Returns the number of feature maps that have heads."""
    return sum(name.endswith("_mbox_loc.weight") for name in tensors)
