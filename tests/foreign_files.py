"""Writes weights files of every publisher, with the parameters of parity/fill.py or tiny ones."""

import importlib.util
import itertools
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import h5py
import numpy as np
import torch
from oracles.caffemodel import Style, caffemodel
from torch import Tensor

from multibox.weights.layer_names import TRUNK, PyTorchFormat, layers, pytorch_names

ORIGINALS = (
    "ssd_pytorch_ssd300",
    "lufficc_ssd300",
    "torchvision_ssd300_vgg16",
    "ssd_keras_ssd300",
)


def load_fill(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", shared / "parity/fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_h5(path: Path, parameters: Mapping[str, Tensor], *, config: str | None = None) -> None:
    """Writes weights like Keras: f[layer][layer][variable], one level deeper for a whole model."""
    with h5py.File(path, "w") as file:
        root = file if config is None else file.create_group("model_weights")
        if config is not None:
            file.attrs["model_config"] = config.encode()
        for name, value in parameters.items():
            layer, variable = name.split("/")
            root.require_group(f"{layer}/{layer}")[variable] = value.numpy()


def write_original(path: Path, original: str, parameters: Mapping[str, Tensor]) -> None:
    """Writes the file that the original code would have saved."""
    if original == "ssd_keras_ssd300":
        write_h5(path, parameters)
    elif original == "lufficc_ssd300":
        torch.save({"model": dict(parameters), "iteration": 120_000}, path)
    else:
        torch.save(dict(parameters), path)


def write_caffe(path: Path, keras: Mapping[str, Tensor], style: Style) -> None:
    """Writes ssd_keras's parameters as a `.caffemodel`. Only the order of axes differs."""
    found: dict[str, list[np.ndarray]] = {}
    for name, value in keras.items():
        values = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
        found.setdefault(name.split("/")[0], []).append(values.contiguous().numpy())
    path.write_bytes(caffemodel(found, style))


def tiny(format: PyTorchFormat, *, levels: int = 6, classes: int = 20) -> dict[str, Tensor]:
    """Returns a state dict with the right names and small tensors."""
    state = {}
    for layer, name in zip(layers(levels), pytorch_names(format, levels), strict=True):
        outputs = 4 * (classes + 1) if layer.ours == "logit_heads.0" else 2
        kind = "_weight" if name.endswith("scale") else ".weight"
        state[f"{name}{kind}"] = torch.full((outputs, 3, 1, 1), 0.5)
        if not layer.ours.endswith("norm"):
            state[f"{name}.bias"] = torch.zeros(outputs)
    return state


def tiny_mobilenet() -> dict[str, Tensor]:
    """Returns a state dict with the names of `mb2-ssd-lite`, of one class, and small tensors."""
    path = Path(__file__).parent / "weights/qfgaohao/mb2-ssd-lite.json"
    state = {name: torch.full((2,), 0.5) for name in json.loads(path.read_text())}
    state["classification_headers.5.bias"] = torch.zeros(6 * 2)
    return state


def mmdetection_shapes(side: int, classes: int = 80) -> dict[str, list[int]]:
    """Returns the shapes of mmdetection's SSD, as its own state dict had them."""
    trunk = (64, 64, 128, 128, 256, 256, 256, *(512,) * 6)
    indices = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    shapes: dict[str, list[int]] = {}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = [outputs, inputs, kernel, kernel]
        shapes[f"{name}.bias"] = [outputs]

    for index, inputs, outputs in zip(indices, (3, *trunk), trunk, strict=False):
        convolution(f"backbone.features.{index}", inputs, outputs, 3)
    convolution("backbone.features.31", 512, 1024, 3)
    convolution("backbone.features.33", 1024, 1024, 1)
    shapes["neck.l2_norm.weight"] = [512]
    sources = [512, 1024, 512, 256, 256, 256, *([256] if side == 512 else [])]
    boxes = [4, 6, 6, 6, *([6] if side == 512 else []), 4, 4]
    for block, (inputs, outputs) in enumerate(itertools.pairwise(sources[1:])):
        kernel = 4 if side == 512 and block == len(sources) - 3 else 3
        convolution(f"neck.extra_layers.{block}.0.conv", inputs, outputs // 2, 1)
        convolution(f"neck.extra_layers.{block}.1.conv", outputs // 2, outputs, kernel)
    for level, (inputs, count) in enumerate(zip(sources, boxes, strict=True)):
        convolution(f"bbox_head.cls_convs.{level}.0", inputs, count * (classes + 1), 3)
        convolution(f"bbox_head.reg_convs.{level}.0", inputs, count * 4, 3)
    return shapes


def tiny_mmdetection(side: int = 300, classes: int = 20) -> dict[str, Tensor]:
    """Returns a state dict with the right names and numbers of outputs, but small kernels."""
    shapes = mmdetection_shapes(side, classes).items()
    return {name: torch.ones([first, *(1 for _ in rest)]) for name, (first, *rest) in shapes}


def tiny_caffe(*, levels: int = 6, classes: int = 20) -> dict[str, list[np.ndarray]]:
    """Returns the right layers of a `.caffemodel` with small blobs."""
    found = {}
    for layer in layers(levels):
        outputs = 4 * (classes + 1) if layer.ours == "logit_heads.0" else 2
        blobs = [np.full((outputs, 3, 1, 1), 0.5, np.float32), np.zeros(outputs, np.float32)]
        found[layer.caffe] = blobs[:1] if layer.ours.endswith("norm") else blobs
    return found


def tiny_keras(*, classes: int = 20) -> dict[str, Tensor]:
    """Returns the right parameters of ssd_keras with small tensors."""
    found = {}
    for layer, blobs in tiny_caffe(classes=classes).items():
        scale = layer == "conv4_3_norm"
        names = (f"{layer}_gamma:0",) if scale else ("kernel:0", "bias:0")
        for name, blob in zip(names, map(torch.from_numpy, blobs), strict=True):
            found[f"{layer}/{name}"] = blob.permute(2, 3, 1, 0) if blob.ndim == 4 else blob
    return found


def tiny_trunk(*, full: bool) -> dict[str, Tensor]:
    """Returns a VGG-16 by Caffe's names, with fc6 and fc7 in the classifier's size if `full`."""
    state: dict[str, Tensor] = {}
    for name in TRUNK:
        state[f"{name}.weight"] = torch.full((2, 3, 1, 1), 0.5)
        state[f"{name}.bias"] = torch.zeros(2)
    if full:
        numbers = torch.arange(4096, dtype=torch.float32)
        state["fc6.weight"] = numbers[:, None] + torch.arange(49.0).repeat(2) / 64
        state["fc7.weight"] = numbers[:, None] * 4096 + numbers
        state["fc6.bias"] = state["fc7.bias"] = numbers
    return state


SSDLITE_KEYS: dict[str, list[int]] = json.loads(
    (Path(__file__).parent / "weights/torchvision_ssdlite320_keys.json").read_text()
)["shapes"]
"""The shapes of torchvision's state dict of SSDlite320 for 20 classes, by name, in its order."""


def hash_noise(name: str, shape: list[int]) -> Tensor:
    """Returns float64 noise in -1..1, by the formula of `parity/fill.py`."""
    phase = (zlib.crc32(name.encode()) % 100_003) / 7.0
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(steps * 12.9898 + phase) * 43758.5453) % 1 * 2 - 1).reshape(shape)


def ssdlite(problem: int) -> dict[str, Tensor]:
    """Returns the parameters with which the outputs of SSDlite320 were recorded.

    Problem 2 has the formula of `parity/fill.py`, with variances of 0.5 to 1.5 and factors near 1.
    The other problems have larger outputs. In problem 1, most boxes are background, and most others
    belong to class 1. So few scores are above the threshold, except for those of class 1, of which
    only the best candidates are used.
    """
    state = {}
    for name, shape in SSDLITE_KEYS.items():
        value = hash_noise(name, shape)
        if len(shape) == 4:
            value *= (0.8 if problem == 2 else 1.0) * math.sqrt(6.0 / math.prod(shape[1:]))
        elif name.endswith("running_var"):
            value = 1.0 + (0.5 if problem == 2 else 0.3) * value
        elif name.endswith(".weight"):
            value = 1.0 + 0.1 * value
        else:
            value *= 0.1
        if problem < 2 and name.startswith("head.") and name.split(".")[4] == "1":
            logits = "classification" in name
            value *= 0.5 if logits else 0.25
            if logits and problem == 1 and name.endswith(".bias"):
                value.view(-1, 21)[:, :2] += torch.tensor([15.0, 9.5])
        counts = name.endswith("num_batches_tracked")
        state[name] = torch.tensor(7) if counts else value.to(torch.float32)
    return state


def tiny_ssdlite() -> dict[str, Tensor]:
    """Returns a state dict of SSDlite320 with the right names and small tensors."""
    shapes = SSDLITE_KEYS.items()
    return {name: torch.full([min(n, 126) for n in shape[:1]], 0.5) for name, shape in shapes}
