"""Reads the weights of torchvision's `ssdlite320_mobilenet_v3_large`."""

from pathlib import Path

import torch
from torch import Tensor

from multibox.build import NETWORKS
from multibox.errors import WeightsError
from multibox.ssd.backbones.mobilenet_v3 import BLOCKS, STAGE_STARTS
from multibox.weights.class_names import name_classes
from multibox.weights.publishers import TORCHVISION, Foreign
from multibox.weights.renaming import rename

SSDLITE = "ssdlite320-mobilenetv3"
"""Network name of these files."""

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SQUEEZE = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
_BOXES_PER_CELL = 6
_FIRST = "backbone.features.0.0.0.weight"
_LAST = "backbone.features.1.3.0.weight"


def read_ssdlite(state: dict[str, Tensor], path: Path, classes: tuple[str, ...]) -> Foreign | None:
    """Returns the detector in a state dict; None if it is another model.

    Raises:
        WeightsError: A tensor is missing, there are unknown tensors, or `classes` does not fit.
    """
    if _FIRST not in state:
        return None
    tensors = rename(state, ssdlite_names(), path)
    if state[_LAST].shape[:1] == (12 * BLOCKS[-1].outputs,):
        raise WeightsError(
            "has the MobileNetV3 that starts from ImageNet weights, with twice the channels in its "
            "last three blocks",
            file=path,
            remedy="Train with weights_backbone=None, as the published file was",
        )
    outputs, rest = divmod(tensors["logit_heads.0.1.bias"].numel(), _BOXES_PER_CELL)
    if rest or outputs < 2:
        raise WeightsError(
            "does not have the number of outputs of an SSD", file=path, position="logit_heads.0"
        )
    for name, tensor in tensors.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = tensor.to(torch.int64)
    names, notes = name_classes(outputs - 1, classes, path)
    return Foreign(TORCHVISION, SSDLITE, names, tensors, NETWORKS[SSDLITE].traits, notes)


def ssdlite_names() -> dict[str, str]:
    """Returns our names of all tensors, by torchvision's, in the order of its state dict."""
    levels = len(NETWORKS[SSDLITE].tables["voc"])
    names: dict[str, str] = {}
    for theirs, ours in _trunk().items():
        if ours.endswith("squeeze"):
            names |= {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in _SQUEEZE}
        else:
            names |= _conv_norm(theirs, ours)
    for level in range(levels - 2):
        for layer in range(3):
            names |= _conv_norm(
                f"backbone.extra.{level}.{layer}", f"backbone.extra.{level}.{layer}"
            )
    for theirs, ours in (("classification", "logit"), ("regression", "offset")):
        for level in range(levels):
            there, here = f"head.{theirs}_head.module_list.{level}", f"{ours}_heads.{level}"
            names |= _conv_norm(f"{there}.0", f"{here}.0")
            names |= {f"{there}.1.{kind}": f"{here}.1.{kind}" for kind in ("weight", "bias")}
    return names


def _conv_norm(theirs: str, ours: str) -> dict[str, str]:
    norms = {f"{theirs}.1.{kind}": f"{ours}.norm.{kind}" for kind in _NORM}
    return {f"{theirs}.0.weight": f"{ours}.conv.weight"} | norms


def _trunk() -> dict[str, str]:
    """Returns our names of the layers of MobileNetV3.

    torchvision has two stages. The second one starts inside the first block of our last stage, and
    calls the layers of this block by their numbers.
    """
    split = STAGE_STARTS[-1]
    names = {"0.0": "0.0"}
    stage = 0
    for number, block in enumerate(BLOCKS):
        stage += number in STAGE_STARTS[1:]
        # The stem comes before block 0.
        ours = f"{stage}.{number - STAGE_STARTS[stage] + (stage == 0)}"
        parts = ["depthwise", "squeeze", "project"] if block.squeezed else ["depthwise", "project"]
        if number == split:
            names[f"0.{split + 1}"] = f"{stage - 1}.{split - STAGE_STARTS[stage - 1]}"
            names |= {f"1.0.{n}": f"{ours}.{part}" for n, part in enumerate(parts, start=1)}
        else:
            there = f"0.{number + 1}" if number < split else f"1.{number - split}"
            parts = ["expand", *parts] if number else parts
            names |= {f"{there}.block.{n}": f"{ours}.{part}" for n, part in enumerate(parts)}
    names[f"1.{len(BLOCKS) - split}"] = f"{stage}.{len(BLOCKS) - split}"
    return {f"backbone.features.{a}": f"backbone.stages.{b}" for a, b in names.items()}
