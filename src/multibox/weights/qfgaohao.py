"""Reads and writes the state dicts of qfgaohao/pytorch-ssd.

It has the detectors `mb1-ssd`, `mb2-ssd-lite` and `vgg16-ssd` (`vision/ssd`). The last had an L2
normalisation of conv4_3 at first, and has batch normalisation since commit 780b58a.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from multibox.build import NETWORKS
from multibox.errors import WeightsError
from multibox.weights.class_names import name_classes
from multibox.weights.layer_names import layers, trunk_names
from multibox.weights.publishers import QFGAOHAO, Foreign
from multibox.weights.renaming import rename

V1, V2 = "ssd300-mobilenetv1", "ssd300-mobilenetv2-lite"
VGG, VGG_NORM = "ssd300-vgg16", "ssd300-vgg16-bn-conv4"
WRITTEN = (V1, V2, VGG, VGG_NORM)
"""Networks that pytorch-ssd also has."""
TRUNKS = {"mobilenetv1-trunk": V1, "mobilenetv2-trunk": V2}
"""Network names of files that contain only a trunk, each with the network that has it."""

_LEVELS = 6
_HEADS = (("regression_headers", "offset_heads"), ("classification_headers", "logit_heads"))
_CONV = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# Indices of the trunk's layers at which our stages start, and the number of layers.
_STARTS = {V1: (0, 2, 4, 6, 12, 14), V2: (0, 2, 4, 7, 14, 19)}
_TRUNK = "base_net."
# A tensor that the other networks do not have.
_MARKS = {
    f"{_TRUNK}1.3.weight": V1,
    f"{_TRUNK}1.conv.3.weight": V2,
    "source_layer_add_ons.0.scale": VGG,
    "source_layer_add_ons.0.weight": VGG_NORM,
}


def read_qfgaohao(state: dict[str, Tensor], path: Path, classes: tuple[str, ...]) -> Foreign | None:
    """Returns the detector or trunk in a state dict; None if it is another model.

    Raises:
        WeightsError: A tensor is missing, there are unknown tensors, or `classes` does not fit.
    """
    for mark, network in _MARKS.items():
        if mark in state:
            return _detector(state, network, path, classes)
        if mark.startswith(_TRUNK) and mark.removeprefix(_TRUNK) in state:
            return _trunk({f"{_TRUNK}{name}": x for name, x in state.items()}, network, path)
    return None


def _trunk(state: dict[str, Tensor], network: str, path: Path) -> Foreign:
    names = {theirs: ours for theirs, ours in _names(network).items() if theirs.startswith(_TRUNK)}
    tensors = _renamed(state, names, path)
    trunk = next(name for name, detector in TRUNKS.items() if detector == network)
    return Foreign(QFGAOHAO, trunk, (), tensors, NETWORKS[network].traits, ())


def _detector(
    state: dict[str, Tensor], network: str, path: Path, classes: tuple[str, ...]
) -> Foreign:
    tensors = _renamed(state, _names(network), path)
    for name in _biases_before_norms(network):
        # The batch normalisation subtracts the bias again, if its mean contains it.
        bias, mean = tensors.pop(name), name.replace("conv.bias", "norm.running_mean")
        if bias.shape != tensors[mean].shape:
            raise WeightsError("does not have the shape of its layer", file=path, position=name)
        tensors[mean] = tensors[mean] - bias
    boxes = NETWORKS[network].tables["voc"][-1].boxes_per_cell
    outputs, rest = divmod(tensors[f"logit_heads.{_LEVELS - 1}.bias"].numel(), boxes)
    if rest or outputs < 2:
        raise WeightsError(
            "does not have the number of outputs of an SSD",
            file=path,
            position=f"{_HEADS[1][0]}.{_LEVELS - 1}.bias",
        )
    names, notes = name_classes(outputs - 1, classes, path)
    own = NETWORKS[V1].traits
    traits = NETWORKS[network].traits._replace(clip=own.clip, per_class=own.per_class)
    return Foreign(QFGAOHAO, network, names, tensors, traits, notes)


def write_qfgaohao(path: Path, network: str, tensors: Mapping[str, Tensor]) -> None:
    """Writes a state dict. `read_qfgaohao` reads the same tensors from it, bit by bit.

    Args:
        path: The new file.
        network: Name of the architecture, one of `WRITTEN`.
        tensors: The state dict of our network.
    """
    zeros = {
        name: torch.zeros_like(tensors[name.replace("conv.bias", "norm.running_mean")])
        for name in _biases_before_norms(network)
    }
    ours = {**tensors, **zeros}
    names = _names(network).items()
    state = {theirs: ours[name].detach().cpu().contiguous() for theirs, name in names}
    torch.save(state, path)


def _renamed(state: dict[str, Tensor], names: dict[str, str], path: Path) -> dict[str, Tensor]:
    # PyTorch 0.4.0 did not count the batches. The count has no effect here.
    counts = [name for name in names if name.endswith("num_batches_tracked")]
    tensors = rename({**dict.fromkeys(counts, torch.tensor(0.0)), **state}, names, path)
    for count in counts:
        tensors[names[count]] = tensors[names[count]].to(torch.int64)
    return tensors


def _names(network: str) -> dict[str, str]:
    """Returns our names of all tensors of a detector, by those of pytorch-ssd.

    `_biases_before_norms` are among them, which our network does not have.
    """
    if network in (VGG, VGG_NORM):
        return _vgg(network)
    names: dict[str, str] = {}
    for stage, (start, end) in enumerate(itertools.pairwise(_STARTS[network])):
        for layer in range(start, end):
            theirs, ours = f"{_TRUNK}{layer}", f"backbone.stages.{stage}.{layer - start}"
            # The first layer, and the last one of MobileNetV2, are plain convolutions.
            if layer in (0, 18):
                names |= _conv_norm(theirs, 0, ours)
            elif network == V1:
                names |= _conv_norm(theirs, 0, f"{ours}.depthwise")
                names |= _conv_norm(theirs, 3, f"{ours}.pointwise")
            else:
                names |= _block(f"{theirs}.conv", ours, expanded=layer > 1)
    for stage in range(_LEVELS - 2):
        theirs, ours = f"extras.{stage}", f"backbone.extra.{stage}"
        if network == V1:
            names |= _conv(f"{theirs}.0", f"{ours}.0.conv") | _conv(f"{theirs}.2", f"{ours}.1.conv")
        else:
            names |= _block(f"{theirs}.conv", ours, expanded=True)
    for (there, here), level in itertools.product(_HEADS, range(_LEVELS)):
        theirs, ours = f"{there}.{level}", f"{here}.{level}"
        if network == V1 or level == _LEVELS - 1:
            names |= _conv(theirs, ours)
        else:
            names |= _conv_norm(theirs, 0, f"{ours}.0") | _conv(f"{theirs}.3", f"{ours}.1")
            names[f"{theirs}.0.bias"] = f"{ours}.0.conv.bias"
    return names


def _biases_before_norms(network: str) -> list[str]:
    """Returns our names of the biases that batch normalisation follows. Only heads have these."""
    names = _names(network).values()
    return [name for name in names if "_heads." in name and name.endswith(".conv.bias")]


def _block(theirs: str, ours: str, *, expanded: bool) -> dict[str, str]:
    names: dict[str, str] = {}
    parts = ("expand", "depthwise", "project") if expanded else ("depthwise", "project")
    for number, part in enumerate(parts):
        names |= _conv_norm(theirs, 3 * number, f"{ours}.{part}")
    return names


def _conv(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in _CONV}


def _conv_norm(theirs: str, place: int, ours: str) -> dict[str, str]:
    norm = {f"{theirs}.{place + 1}.{kind}": f"{ours}.norm.{kind}" for kind in _NORM}
    return {f"{theirs}.{place}.weight": f"{ours}.conv.weight"} | norm


def _vgg(network: str) -> dict[str, str]:
    theirs = [
        *trunk_names(_TRUNK),
        *(f"extras.{stage}.{place}" for stage in range(_LEVELS - 2) for place in (0, 2)),
        *(f"{there}.{level}" for there, _ in _HEADS for level in range(_LEVELS)),
    ]
    *ours, norm = (layer.ours for layer in layers(_LEVELS))
    names: dict[str, str] = {}
    for there, here in zip(theirs, ours, strict=True):
        names |= _conv(there, here)
    if network == VGG:
        return names | {"source_layer_add_ons.0.scale": f"{norm}.weight"}
    return names | {f"source_layer_add_ons.0.{kind}": f"{norm}.{kind}" for kind in _NORM}
