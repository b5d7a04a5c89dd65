"""Writes a detector in the formats of Keras and of PyTorch implementations."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from multibox.weights.layer_names import SCALE, PyTorchFormat, layers, pytorch_names, ssd7_layers
from multibox.weights.ssdlite import SSDLITE, ssdlite_names

LEVELS = {"ssd300-vgg16": 6, "ssd512-vgg16": 7}
"""Number of feature maps of the architectures that other implementations also have."""

_CONVOLUTION = {"weight": "kernel", "bias": "bias"}
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def write_pytorch(
    path: Path, network: str, tensors: Mapping[str, Tensor], target: PyTorchFormat
) -> None:
    """Writes a state dict. `read_foreign` reads the same tensors from it, bit by bit.

    Args:
        path: The new file.
        network: Name of the architecture: a key of `LEVELS`, or for torchvision `SSDLITE`.
        tensors: The state dict of our network.
        target: The implementation that the file is for.
    """
    names = ssdlite_names() if network == SSDLITE else _names(network, tensors, target)
    state = {theirs: tensors[ours].detach().cpu().contiguous() for theirs, ours in names.items()}
    torch.save({"model": state} if target == "lufficc" else state, path)


def _names(network: str, tensors: Iterable[str], target: PyTorchFormat) -> dict[str, str]:
    """Returns our names of the tensors, by those of the target."""
    levels = LEVELS[network]
    theirs = pytorch_names(target, levels)
    names = {layer.ours: name for layer, name in zip(layers(levels), theirs, strict=True)}
    found = {}
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        # In torchvision, the scale is a parameter of the backbone.
        found[f"{names[layer]}.{kind}".replace("scale.weight", "scale_weight")] = name
    return found


def write_keras(path: Path, network: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes weights for `model.load_weights(path, by_name=True)` of ssd_keras.

    `read_foreign` reads the same tensors from the file, bit by bit.

    Args:
        path: The new file.
        network: Name of the architecture: a key of `LEVELS`, or `ssd7`.
        tensors: The state dict of our network.
    """
    known = ssd7_layers() if network == "ssd7" else layers(LEVELS[network])
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([layer.caffe for layer in known], "S")
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.2.4"
        for layer in known:
            group = file.create_group(layer.caffe)
            variables = _variables(layer.caffe, layer.ours, tensors)
            names = [f"{layer.caffe}/{name}:0" for name in variables]
            group.attrs["weight_names"] = np.array(names, "S")
            for name, values in zip(names, variables.values(), strict=True):
                group[name] = values


def _variables(layer: str, ours: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns the variables of a layer with Keras's names and order of axes."""
    kinds = _NORM if f"{ours}.running_mean" in tensors else _CONVOLUTION
    if layer == SCALE:
        kinds = {"weight": f"{SCALE}_gamma"}
    found = {}
    for kind, name in kinds.items():
        tensor = tensors[f"{ours}.{kind}"].detach().cpu()
        if layer == "conv1_1" and kind == "weight":
            tensor = tensor.flip(1)  # blue first
        if tensor.ndim == 4:
            tensor = tensor.permute(2, 3, 1, 0)
        found[name] = tensor.contiguous().numpy()
    return found
