"""Reads weights from a run, a checkpoint or a file, and builds the network that they belong to."""

import json
import os
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from multibox.build import NETWORKS, Architecture, build_network
from multibox.download.catalogue import WEIGHTS
from multibox.download.stored_weights import find_stored
from multibox.errors import ConfigError, WeightsError
from multibox.ssd.default_boxes import Clip, Level
from multibox.ssd.network import CAFFE, SSD, Scales, Traits
from multibox.storage import checkpoint as checkpoints
from multibox.weights.foreign import TRUNKS, is_safetensors, read_foreign, read_state_dict
from multibox.weights.publishers import Foreign
from multibox.weights.pytorch import plain_tensors
from multibox.weights.score_threshold import read_threshold, threshold_header

_OURS = "multibox"
FORMAT = f"{_OURS}-1"

_MANY_CLASSES = 1_000

# Cells and steps are the architecture's.
_FITTED = {"min_size_px", "max_size_px", "ratios", "doubled"}

# Traits that the first files do not have, with their values in a file without them.
_LATER_TRAITS: dict[str, Any] = {
    "fitted": [],
    "score_threshold": CAFFE.score_threshold,
    "per_class": CAFFE.per_class,
    "iou_threshold": CAFFE.iou_threshold,
    "per_image": CAFFE.per_image,
}
# Suppression compares all pairs of the candidates of a class.
_MOST = {"per_class": 1_000, "per_image": 100_000}

NO_LICENCE = "not stated by whoever trained them"


class Weights(NamedTuple):
    """The content of a weights file.

    Attributes:
        network: Name of the architecture.
        classes: Class names in the order of the labels.
        tensors: Parameters and running statistics by name.
        path: The weights file.
        traits: Normalisation of the pixels, and properties of the default boxes.
        score_threshold: The score with the best F1 on the validation split, 0..1; None if the file
            does not store one.
        licence: Terms of use.
        origin: Name of the implementation that wrote the file.
        notes: Changes and guesses made while reading, one clause each.
    """

    network: str
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    path: Path
    traits: Traits
    score_threshold: float | None = None
    licence: str = NO_LICENCE
    origin: str = "multibox"
    notes: tuple[str, ...] = ()


def make_header(
    network: SSD,
    name: str,
    classes: tuple[str, ...],
    licence: str,
    score_threshold: float | None = None,
) -> dict[str, str]:
    """Returns the header for a weights file, with which the file can be used without its run."""
    return {
        "format": FORMAT,
        "network": name,
        "classes": json.dumps(classes, ensure_ascii=False),
        "image_size": json.dumps(network.image_size_px),
        "traits": json.dumps(_traits_json(network.traits)),
        "licence": licence,
        **threshold_header(score_threshold),
    }


def fitted_json(levels: Sequence[Level]) -> list[dict[str, Any]]:
    """Returns fitted default boxes as JSON: an object with `_FITTED` for each level."""
    return [
        {
            "min_size_px": level.min_size_px,
            "max_size_px": level.max_size_px,
            "ratios": list(level.ratios),
            "doubled": level.doubled,
        }
        for level in levels
    ]


def _traits_json(traits: Traits) -> dict[str, Any]:
    value = traits._asdict() | {"fitted": fitted_json(traits.fitted)}
    # An older version can read a file without these entries.
    usual = [name for name in _LATER_TRAITS if getattr(traits, name) == getattr(CAFFE, name)]
    return {name: entry for name, entry in value.items() if name not in usual}


def checked_header(weights: Weights) -> dict[str, str]:
    """Checks that weights fit their network, and returns the header for a file of them.

    Raises:
        WeightsError: A tensor is missing, unknown or has an unexpected shape.
    """
    if weights.network in TRUNKS:
        whole = build_network(TRUNKS[weights.network], 1).state_dict()
        for name, tensor in weights.tensors.items():
            if name not in whole or tensor.shape != whole[name].shape:
                reason = f"does not belong to {weights.network}"
                raise WeightsError(reason, file=weights.path, position=name)
        header = {"format": FORMAT, "network": weights.network, "classes": "[]"}
        return {**header, "licence": weights.licence}
    network = load_network(weights, torch.device("cpu"))
    return make_header(
        network, weights.network, weights.classes, weights.licence, weights.score_threshold
    )


def find_weights(path: Path, which: str = "last") -> Path:
    """Returns the weights file of a run or of a checkpoint, or the file itself.

    Args:
        path: The folder of a run, the folder of a checkpoint, a weights file, or the name of
            downloaded weights. A file or a folder with this name is preferred.
        which: The checkpoint of a run: `last`, `best` (highest average precision in the periodic
            evaluations) or a step.

    Raises:
        WeightsError: The checkpoint does not exist, or the weights were not downloaded.
        ConfigError: `which` is not `last`, but `path` is not a run.
    """
    is_name = str(path) in WEIGHTS and not os.path.lexists(path)
    alone = path if is_name or path.is_file() else path / "model.safetensors"
    if is_name or alone.is_file():
        if which != "last":
            raise ConfigError("is not a run", file=path, remedy=f"Leave out --which {which}")
        return find_stored(str(path)) if is_name else alone
    folder = path / "checkpoints"
    steps = checkpoints.steps(folder)
    if not steps:
        raise WeightsError(
            "contains no checkpoint" if path.is_dir() else "does not exist",
            file=path,
            remedy="Use the folder of a run, the folder of a checkpoint, a weights file, or a name "
            "that multibox download lists",
        )
    step = steps[-1]
    if which == "best":
        step = _best_step(folder, step)
    elif which != "last":
        step = int(which) if re.fullmatch(r"\d+", which) else -1
    if step not in steps:
        known = ", ".join(str(known) for known in steps)
        raise WeightsError(
            f"has no checkpoint {which!r}", file=path, remedy=f"Use last, best or one of {known}"
        )
    return checkpoints.path_of(folder, step) / "model.safetensors"


def _best_step(folder: Path, step: int) -> int:
    """Returns the step of the best checkpoint as recorded in the newest; without one, `step`."""
    newest = checkpoints.path_of(folder, step)
    state = checkpoints.load(newest).state
    best = state.get("best") or {"step": step}
    found = best.get("step") if isinstance(best, dict) else None
    if "best" not in state or type(found) is not int:
        raise WeightsError(
            "does not record which checkpoint is the best", file=newest / "state.json"
        )
    return found


def read_weights(
    path: Path, *, classes: tuple[str, ...] = (), scales: Scales | None = None
) -> Weights:
    """Returns the content of a weights file of multibox or of another implementation.

    Args:
        path: The weights file. Its content decides the format.
        classes: Class names in the order of the outputs, for a foreign file that was not trained on
            the classes of VOC or COCO.
        scales: Default boxes of a foreign file that does not record them.

    Raises:
        WeightsError: The file has an unknown or newer format, or is damaged; or `classes` or
            `scales` are given for a multibox file.
    """
    try:
        with path.open("rb") as file:
            safe = is_safetensors(file.read(16))
    except OSError as error:
        raise WeightsError(f"cannot be read as weights ({error.strerror})", file=path) from None
    if not safe:
        return _of(read_foreign(path, classes=classes, scales=scales), path)
    header, tensors = _read_safetensors(path)
    # Other programs write no header, or the format `pt`.
    if not header.get("format", "").startswith(_OURS):
        state = plain_tensors(tensors, path)
        return _of(read_state_dict(state, path, classes=classes, scales=scales), path)
    if classes or scales:
        raise WeightsError(
            "is a multibox file, which records its classes and default boxes",
            file=path,
            remedy="Leave out --classes and --default-boxes",
        )
    return _own(header, tensors, path)


def _of(found: Foreign, path: Path) -> Weights:
    return Weights(
        found.network,
        found.classes,
        found.tensors,
        path,
        found.traits,
        licence=found.origin.licence,
        origin=found.origin.title,
        notes=found.notes,
    )


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    checkpoints.check_weights(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {
                name: file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
            }
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot be read as weights ({error})", file=path) from None


def _own(header: dict[str, str], tensors: dict[str, Tensor], path: Path) -> Weights:
    if header["format"] != FORMAT:
        raise WeightsError(
            f"has the format {header['format']!r}, not {FORMAT!r}",
            file=path,
            remedy="Use a file that this version of multibox, or an older one, wrote",
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise WeightsError("contains NaN or infinity", file=path, position=name)
    try:
        classes, network = json.loads(header["classes"]), header["network"]
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"has a damaged header ({error})", file=path) from None
    if not isinstance(classes, list) or not all(isinstance(x, str) and x for x in classes):
        raise WeightsError("has classes that are not a list of names", file=path)
    if len(set(classes)) < len(classes):
        raise WeightsError("has two classes with the same name", file=path)
    if network not in (*NETWORKS, *TRUNKS):
        raise WeightsError(f"has the unknown network {network!r}", file=path)
    traits = _traits(header, TRUNKS.get(network, network), path)
    licence = header.get("licence", NO_LICENCE)
    threshold = read_threshold(header, path)
    return Weights(network, tuple(classes), tensors, path, traits, threshold, licence)


def _traits(header: dict[str, str], network: str, path: Path) -> Traits:
    """Returns the traits in a header. The oldest files have none; they get the architecture's."""
    architecture = NETWORKS[network]
    if "traits" not in header:
        return architecture.traits
    try:
        value = _LATER_TRAITS | json.loads(header["traits"])
        numbers = [*value["mean_rgb"], value["pixel_scale"]]
        thresholds = value["score_threshold"], value["iou_threshold"]
        fitted = _fitted(value["fitted"], architecture)
        sound = (
            value.keys() == set(Traits._fields)
            and len(numbers) == 4
            and all(type(n) in (int, float) and abs(n) <= sys.float_info.max for n in numbers)
            and value["pixel_scale"] > 0
            and value["scales"] in [*architecture.tables]
            and value["clip"] in typing.get_args(Clip)
            and type(value["whole_scales"]) is bool
            and type(value["clip_detections"]) is bool
            and all(type(n) in (int, float) and 0 <= n < 1 for n in thresholds)
            and all(type(value[name]) is int for name in _MOST)
            and all(1 <= value[name] <= most for name, most in _MOST.items())
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise WeightsError(
            f"has invalid traits for {network} ({header['traits'][:200]})", file=path
        )
    red, green, blue, scale = map(float, numbers)
    return Traits(
        **value | {"mean_rgb": (red, green, blue), "pixel_scale": scale, "fitted": fitted}
    )


def _fitted(value: object, architecture: Architecture) -> tuple[Level, ...]:
    """Returns the fitted default boxes in a header. They may be empty.

    Raises:
        TypeError: They are not an array of objects with the expected fields.
        ValueError: A number cannot be right, or the levels are not those of the architecture.
    """
    own = next(iter(architecture.tables.values()))
    if value == []:
        return ()
    if type(value) is not list or len(value) != len(own):
        raise ValueError
    return tuple(
        _fitted_level(one, level, max(architecture.image_size_px))
        for one, level in zip(value, own, strict=True)
    )


def _fitted_level(value: Any, level: Level, side_px: int) -> Level:
    ratios, sizes = value["ratios"], [value["min_size_px"]]
    if level.max_size_px is not None:
        sizes.append(value["max_size_px"])
    sound = (
        value.keys() == _FITTED
        and type(ratios) is list
        and all(type(number) in (int, float) for number in (*ratios, *sizes, value["doubled"]))
        and len(ratios) == len(level.ratios)
    )
    if not sound or (level.max_size_px is None and value["max_size_px"] is not None):
        raise ValueError
    low, high = sizes if len(sizes) > 1 else (*sizes, None)
    made = level._replace(
        min_size_px=low, max_size_px=high, ratios=tuple(ratios), doubled=value["doubled"]
    )
    if not made.is_plausible(side_px):
        raise ValueError
    return made._replace(
        min_size_px=float(low),
        max_size_px=None if high is None else float(high),
        ratios=tuple(map(float, ratios)),
        doubled=float(made.doubled),
    )


def load_network(weights: Weights, device: torch.device) -> SSD:
    """Returns a network with the weights, in evaluation mode.

    Raises:
        WeightsError: A tensor is missing, unknown or has an unexpected shape, or the weights are
            only a trunk.
    """
    if weights.network in TRUNKS:
        raise WeightsError(
            "contains only a trunk, not a detector",
            file=weights.path,
            remedy="Use it with train --init",
        )
    if len(weights.classes) > _MANY_CLASSES:
        _require_outputs(weights)
    network = build_network(weights.network, len(weights.classes), weights.traits)
    try:
        network.load_state_dict(weights.tensors)
    except RuntimeError as error:
        reason = f"does not fit {weights.network} ({str(error).splitlines()[-1].strip()})"
        raise WeightsError(reason, file=weights.path) from None
    return network.to(device).eval()


def _require_outputs(weights: Weights) -> None:
    """Refuses weights with more classes than outputs, before a huge network is allocated.

    Raises:
        WeightsError: A head is missing or has an unexpected shape.
    """
    outputs = len(weights.classes) + 1
    for layer, one in build_network(weights.network, 1, weights.traits).class_layers().items():
        shape = (one.out_channels // 2 * outputs, *one.weight.shape[1:])
        found = weights.tensors.get(f"{layer}.weight")
        if found is None or found.shape != shape:
            reason = f"has no outputs for the {len(weights.classes)} classes of its header"
            raise WeightsError(reason, file=weights.path, position=f"{layer}.weight")
