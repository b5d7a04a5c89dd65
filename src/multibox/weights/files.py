"""Weights with all that a prediction needs: of a run, a checkpoint or a file."""

import json
import re
import sys
import typing
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from multibox.build import NETWORKS, build_network
from multibox.errors import ConfigError, WeightsError
from multibox.ssd.default_boxes import Clip
from multibox.ssd.network import SSD, Scales, Traits
from multibox.storage import checkpoint as checkpoints
from multibox.weights.foreign import TRUNK_ONLY, is_ours, read_foreign

FORMAT = "multibox-1"

_MANY_CLASSES = 1_000

NO_LICENCE = "not stated by whoever trained them"


class Weights(NamedTuple):
    """What a file of weights holds.

    Attributes:
        network: The architecture's name.
        classes: Names in the order of the labels.
        tensors: Parameters and running statistics by name.
        path: Where they come from.
        traits: How the network that learnt them sees pixels, and what its default boxes are.
        licence: What they may be used for.
        origin: Whose format they were in.
        notes: What was altered or guessed in reading them, a clause each.
    """

    network: str
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    path: Path
    traits: Traits
    licence: str = NO_LICENCE
    origin: str = "multibox"
    notes: tuple[str, ...] = ()


def describe(network: SSD, name: str, classes: tuple[str, ...], licence: str) -> dict[str, str]:
    """Returns the header of a weights file, which makes it complete without its run."""
    return {
        "format": FORMAT,
        "network": name,
        "classes": json.dumps(classes, ensure_ascii=False),
        "image_size": json.dumps(network.image_size_px),
        "traits": json.dumps(network.traits._asdict()),
        "licence": licence,
    }


def header_of(weights: Weights) -> dict[str, str]:
    """Returns the header for a file of some weights, after a look whether they fit their network.

    Raises:
        WeightsError: A tensor is missing, unknown or of another shape.
    """
    if weights.network == TRUNK_ONLY:
        whole = build_network("ssd300-vgg16", 1).state_dict()
        for name, tensor in weights.tensors.items():
            if name not in whole or tensor.shape != whole[name].shape:
                raise WeightsError("is no part of a VGG-16", file=weights.path, position=name)
        header = {"format": FORMAT, "network": TRUNK_ONLY, "classes": "[]"}
        return {**header, "licence": weights.licence}
    network = load_network(weights, torch.device("cpu"))
    return describe(network, weights.network, weights.classes, weights.licence)


def find_weights(path: Path, which: str = "last") -> Path:
    """Returns the weights file meant by a run, a checkpoint's folder or a file.

    Args:
        path: Any of the three.
        which: For a run: `last`, `best` (by the average precision of its milestones) or a step.

    Raises:
        WeightsError: There is no such checkpoint.
        ConfigError: One of several is asked for where there is but one.
    """
    alone = path if path.is_file() else path / "model.safetensors"
    if alone.is_file():
        if which != "last":
            raise ConfigError("is no run", file=path, remedy=f"Leave out --which {which}")
        return alone
    folder = path / "checkpoints"
    steps = checkpoints.steps(folder)
    if not steps:
        raise WeightsError(
            "holds no checkpoint" if path.is_dir() else "does not exist",
            file=path,
            remedy="Give a run's folder, a checkpoint's, or a weights file",
        )
    step = steps[-1]
    if which == "best":
        step = _best_step(folder, step)
    elif which != "last":
        step = int(which) if re.fullmatch(r"\d+", which) else -1
    if step not in steps:
        known = ", ".join(str(known) for known in steps)
        raise WeightsError(
            f"has no checkpoint {which!r}", file=path, remedy=f"Say last, best or one of {known}"
        )
    return checkpoints.path_of(folder, step) / "model.safetensors"


def _best_step(folder: Path, step: int) -> int:
    """Returns the step of the best checkpoint by the newest one; that one's own where none is."""
    newest = checkpoints.path_of(folder, step)
    state = checkpoints.load(newest).state
    best = state.get("best") or {"step": step}
    found = best.get("step") if isinstance(best, dict) else None
    if "best" not in state or type(found) is not int:
        raise WeightsError("does not say which checkpoint is the best", file=newest / "state.json")
    return found


def read_weights(
    path: Path, *, classes: tuple[str, ...] = (), scales: Scales | None = None
) -> Weights:
    """Returns what a weights file of ours, or of another implementation, holds.

    Args:
        path: The file, told apart by its content.
        classes: Names in the order of the outputs, for a foreign file of classes of its own.
        scales: Whose default boxes, for a foreign file that does not say so itself.

    Raises:
        WeightsError: It is of no known format, is damaged, is of a newer format, or says itself
            what is given here.
    """
    try:
        with path.open("rb") as file:
            ours = is_ours(file.read(16))
    except OSError as error:
        raise WeightsError(f"cannot be read as weights ({error.strerror})", file=path) from None
    if not ours:
        return _read_foreign(path, classes, scales)
    if classes or scales:
        raise WeightsError("is multibox's own, and says its classes and boxes itself", file=path)
    return _read_own(path)


def _read_foreign(path: Path, classes: tuple[str, ...], scales: Scales | None) -> Weights:
    found = read_foreign(path, classes=classes, scales=scales)
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


def _read_own(path: Path) -> Weights:
    checkpoints.check_weights(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot be read as weights ({error})", file=path) from None
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"has the format {header.get('format')!r}, not {FORMAT!r}",
            file=path,
            remedy="Give a file that multibox wrote, of this version or an older one",
        )
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise WeightsError("holds NaN or infinity", file=path, position=name)
    try:
        classes, network = json.loads(header["classes"]), header["network"]
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(f"has a damaged header ({error})", file=path) from None
    if not isinstance(classes, list) or not all(isinstance(x, str) and x for x in classes):
        raise WeightsError("its classes are no list of names", file=path)
    if len(set(classes)) < len(classes):
        raise WeightsError("has two classes of one name", file=path)
    if network not in (*NETWORKS, TRUNK_ONLY):
        raise WeightsError(f"is of an unknown network, {network!r}", file=path)
    traits = Traits() if network == TRUNK_ONLY else _traits(header, network, path)
    licence = header.get("licence", NO_LICENCE)
    return Weights(network, tuple(classes), tensors, path, traits, licence=licence)


def _traits(header: dict[str, str], network: str, path: Path) -> Traits:
    """Returns the traits in a header, or the architecture's own: the first files have none."""
    architecture = NETWORKS[network]
    if "traits" not in header:
        return architecture.traits
    try:
        value = json.loads(header["traits"])
        numbers = [*value["mean_rgb"], value["pixel_scale"]]
        sound = (
            value.keys() == set(Traits._fields)
            and len(numbers) == 4
            and all(type(n) in (int, float) and abs(n) <= sys.float_info.max for n in numbers)
            and value["pixel_scale"] > 0
            and value["scales"] in [*architecture.tables]
            and value["clip"] in typing.get_args(Clip)
            and type(value["whole_scales"]) is bool
            and type(value["clip_detections"]) is bool
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise WeightsError(
            f"has traits that {network} cannot have ({header['traits'][:200]})", file=path
        )
    red, green, blue, scale = map(float, numbers)
    return Traits(**value | {"mean_rgb": (red, green, blue), "pixel_scale": scale})


def load_network(weights: Weights, device: torch.device) -> SSD:
    """Returns the network of some weights, ready to predict.

    Raises:
        WeightsError: A tensor is missing, unknown or of another shape, or it is a trunk only.
    """
    if weights.network == TRUNK_ONLY:
        raise WeightsError(
            "holds no detector, but a trunk that a training starts from",
            file=weights.path,
            remedy="Give it to train: --init",
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
    """Refuses more classes than there are outputs, before a network of so many fills the memory.

    Raises:
        WeightsError: A head is missing or has another shape.
    """
    outputs = len(weights.classes) + 1
    for name, one in build_network(weights.network, 1, weights.traits).state_dict().items():
        shape = (one.shape[0] // 2 * outputs, *one.shape[1:]) if one.ndim else ()
        found = weights.tensors.get(name)
        if name.startswith("logit_heads.") and (found is None or found.shape != shape):
            reason = f"has no outputs for the {len(weights.classes)} classes of its header"
            raise WeightsError(reason, file=weights.path, position=name)
