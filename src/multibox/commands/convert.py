"""The verb `convert`: converts weights of any known format to another format."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch

from multibox.errors import WeightsError, one_line
from multibox.ssd.default_boxes import Level
from multibox.ssd.network import Scales
from multibox.storage.run_folder import new_file
from multibox.weights.class_names import read_class_names
from multibox.weights.export import LEVELS, write_keras, write_pytorch
from multibox.weights.files import Weights, checked_header, find_weights, load_network, read_weights
from multibox.weights.foreign import TRUNKS, usual_scales
from multibox.weights.publishers import (
    LUFFICC,
    QFGAOHAO,
    SSD_KERAS,
    SSD_PYTORCH,
    TORCHVISION,
    Origin,
)
from multibox.weights.qfgaohao import VGG, WRITTEN, write_qfgaohao
from multibox.weights.ssdlite import SSDLITE

Target = Literal["multibox", "torchvision", "ssd-pytorch", "lufficc", "qfgaohao", "keras"]

_ORIGINS: dict[Target, Origin] = {
    "torchvision": TORCHVISION,
    "ssd-pytorch": SSD_PYTORCH,
    "lufficc": LUFFICC,
    "qfgaohao": QFGAOHAO,
    "keras": SSD_KERAS,
}
# What the targets have besides SSD300 and SSD512.
_OTHERS: dict[Target, tuple[str, ...]] = {"torchvision": (SSDLITE,), "keras": ("ssd7",)}
# Means that differ by less change no pixel by a hundredth of a level.
_SAME_MEAN = 0.01


def convert(
    source: Path,
    out: Path,
    *,
    target: Target,
    which: str = "last",
    classes: tuple[str, ...] = (),
    scales: Scales | None = None,
    licence: str | None = None,
) -> list[str]:
    """Writes weights in another format and returns the lines to print.

    Args:
        source: A run, a checkpoint's folder, or a file of any known format.
        out: The new file.
        target: Its format.
        which: For a run: `last`, `best` or a step.
        classes: Class names, for a foreign file that was trained on other classes than VOC or COCO.
            A single `.txt` file has one name on each line.
        scales: Default boxes of a foreign file that does not record them.
        licence: Licence of the weights; by default that of the source.

    Raises:
        WeightsError: The source cannot be used, or the target does not have its network.
        StorageError: The new file exists, or cannot be written.
    """
    classes = read_class_names(classes)
    weights = read_weights(find_weights(source, which), classes=classes, scales=scales)
    if licence is not None:
        weights = weights._replace(licence=licence)
    lines = [*introduction(weights), *(f"note: {note}" for note in weights.notes)]
    if target == "multibox":
        header = checked_header(weights)
        with new_file(out) as temporary:
            safetensors.torch.save_file(weights.tensors, temporary, metadata=header)
        return lines
    known = WRITTEN if target == "qfgaohao" else (*LEVELS, *_OTHERS.get(target, ()))
    if weights.network not in known:
        raise WeightsError(
            f"is a {weights.network}, which {target} does not have",
            file=weights.path,
            remedy=f"It has {', '.join(known)}",
        )
    load_network(weights, torch.device("cpu"))  # Raises if the tensors do not fit.
    with new_file(out) as temporary:
        if target == "keras":
            write_keras(temporary, weights.network, weights.tensors)
        elif target == "qfgaohao":
            write_qfgaohao(temporary, weights.network, weights.tensors)
        else:
            write_pytorch(temporary, weights.network, weights.tensors, target)
    return [*lines, *_differences(weights, target)]


def introduction(weights: Weights) -> list[str]:
    """Returns lines that describe weights and how they are used."""
    traits = weights.traits
    mean = ", ".join(f"{value:g}" for value in traits.mean_rgb)
    classes = weights.classes
    some = ", ".join(map(one_line, classes[:3])) + (", ..." if len(classes) > 3 else "")
    lines = [f"format: {weights.origin}", f"network: {weights.network}"]
    if weights.network in TRUNKS:
        lines.append("a backbone without a detector, for train --init")
    else:
        lines.append(f"classes: {len(classes)} ({some})")
        clipped = "" if traits.clip == "none" else f", clipped ({traits.clip})"
        boxes = "fitted to the training data" if traits.fitted else traits.scales
        lines.append(f"default boxes: {boxes}{clipped}")
    lines.append(f"pixels: RGB minus ({mean}), times {traits.pixel_scale:g}")
    if weights.score_threshold is not None:
        lines.append(f"score threshold: {weights.score_threshold:.4g}")
    return [*lines, f"licence: {weights.licence}"]


def describe(levels: Sequence[Level]) -> list[str]:
    """Returns a line for each level: its map, and the size and ratios of its default boxes."""
    lines = []
    for (rows, columns), _, low, high, ratios, doubled in levels:
        line = f"{rows} x {columns} cells: {low:.0f} pixels at ratios {', '.join(map(str, ratios))}"
        if high is not None:
            line += f", and {math.sqrt(low * high):.1f} pixels at ratio {doubled}"
        lines.append(line)
    return lines


def _differences(weights: Weights, target: Target) -> list[str]:
    """Returns lines on how the target's own code differs from the network that was trained."""
    own, origin = weights.traits, _ORIGINS[target]
    found = []
    if weights.score_threshold is not None:
        found.append(
            f"note: give {origin.title} the score threshold, which its file cannot hold: "
            f"{weights.score_threshold:.4g}"
        )
    if own.fitted:
        found.append(f"note: give {origin.title} these default boxes, which its file cannot hold:")
        found += [f"  {line}" for line in describe(own.fitted)]
    if target == "qfgaohao" and weights.network == VGG:
        found.append(f"note: only {origin.title} before its commit 780b58a can load this file")
    if weights.network not in LEVELS:
        # The original has the traits of our architecture.
        return found
    if not own.fitted and own.scales != usual_scales(origin, len(weights.classes)):
        found.append(f"note: give {origin.title} the default boxes for {own.scales}")
    if own.clip != origin.clip:
        found.append(f"note: {origin.title} clips default boxes differently ({origin.clip})")
    if own.clip_detections != origin.clip_detections:
        verb = "clips" if origin.clip_detections else "does not clip"
        found.append(f"note: {origin.title} {verb} boxes before suppression")
    if max(abs(a - b) for a, b in zip(own.mean_rgb, origin.mean_rgb, strict=True)) > _SAME_MEAN:
        found.append(f"note: {origin.title} subtracts a different mean from the pixels")
    return found
