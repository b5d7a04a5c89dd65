"""What `train` chooses from the data and the machine: splits, network, steps and folder."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from multibox.build import Datasets, read_datasets
from multibox.commands.speed_test import Duration, describe_busy, describe_time, measure
from multibox.commands.train import Request, require_apart
from multibox.config import Config, flatten
from multibox.data.check.split_checks import roles
from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import open_dataset, unread_formats
from multibox.data.splits.draw import pool
from multibox.errors import ConfigError, counted
from multibox.processes.distributed import is_one_of_several
from multibox.recipes import (
    RECIPES,
    ssd300_efficientnet_lite0,
    ssd300_lite,
    ssd300_vgg16_bn,
    ssd384_efficientnet_lite0,
)
from multibox.storage.checkpoint import steps as saved_steps
from multibox.storage.run_folder import read_run
from multibox.weights.files import find_weights
from multibox.weights.pretrained import find_pretrained

AUTOMATIC = "auto"
"""The name of the recipe that is chosen from the data and the machine."""

SHARES = "80/10/10"
"""Shares of the splits that are drawn from a folder without splits."""

_MANY_IMAGES = 2_000
# The area of COCO's largest small objects, as a share of an image of 300 pixels.
_SMALL_SHARE = 32**2 / 300**2
_PRETRAINED = "ssd300-efficientnet-lite0"
# The least number of steps, and the factor of the square root of the number of images.
_STEPS = {
    "ssd384-efficientnet-lite0": (600, 60),
    "ssd300-efficientnet-lite0": (600, 60),
    "ssd300-lite": (1_600, 100),
    "ssd300-vgg16-bn": (4_000, 1_000),
}


class Chosen(NamedTuple):
    """A request with everything chosen.

    Attributes:
        request: The request.
        lines: What was chosen and why, as (subject, text).
    """

    request: Request
    lines: list[tuple[str, str]]


def choose(
    request: Request, typed: Sequence[str], *, minutes: float | None, console: Console
) -> Chosen:
    """Chooses what a request leaves open.

    A run that exists in the request's folder keeps its configuration, so that the same command line
    resumes it.

    Args:
        request: The request. Its configuration is complete, but only the typed fields count if the
            recipe is `AUTOMATIC`.
        typed: The names of the fields of the configuration that the user gave.
        minutes: The time that the run may take. None: no limit.
        console: Shows what is being measured.

    Raises:
        ConfigError: An option is out of range, two options exclude each other, or the time is too
            short for a step.
        DataError: The dataset cannot be used.
        WeightsError: There are no weights to start from at the request's path.
    """
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(
            f"minutes is {minutes:g}, but it must be above 0 and finite", remedy="Change --minutes"
        )
    require_apart(request.out, request.data)
    values = {name: value for name, value in flatten(request.config).items() if name in typed}
    automatic = request.recipe == AUTOMATIC
    if (request.out / "config.json").exists():
        stored, facts = read_run(request.out)
        config = stored.override(values) if automatic or minutes is not None else request.config
        lines = _describe_run(request, stored, facts)
        return Chosen(request._replace(config=config), lines)
    if request.init is not None:
        # Before the dataset is read and the speed is measured.
        find_weights(request.init)
    lines = []
    config = request.config
    if automatic:
        config, lines = _choose_splits(request.data, values)
    datasets = read_datasets(config, request.data)
    if automatic:
        if "on_bad" not in values:
            _refuse_mostly_faulty(config, datasets, request.data)
        config, reasons = _choose_network(config, datasets, values)
        lines += reasons
    lines.append(("images", _describe_images(datasets)))
    times = None
    if is_one_of_several():
        if minutes is not None:
            reason = "minutes works with one process only, because the steps follow from its speed"
            raise ConfigError(reason, remedy="Use --steps")
    else:
        with console.status("measuring the speed"):
            duration = measure(config, datasets, console)
        if minutes is not None:
            config = _fit(config, datasets, duration, minutes * 60, values)
        times = duration.expected(config, datasets)
        if duration.is_busy:
            lines.append(("note", describe_busy(duration)))
    lines.append(("steps", _describe_steps(config, len(datasets.train), minutes)))
    lines.append(("evaluation", _describe_evaluation(config, datasets)))
    if times:
        lines.append(("time", describe_time(*times)))
    lines.append(("run", f"{request.out}; the same command resumes it"))
    return Chosen(request._replace(config=config, datasets=datasets), lines)


def _describe_run(request: Request, stored: Config, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns what happens to a run that exists."""
    lines = []
    root, before = str(request.data.resolve()), facts.get("data_root")
    if before not in (None, root):
        lines.append(("data", f"{request.data}, but the run began with {before}"))
    done, steps = (saved_steps(request.out / "checkpoints") or [0])[-1], stored.schedule.steps
    state = f"resumes {request.out} after step {done:,} of {steps:,}"
    if done == steps:
        state = f"{request.out} has finished its {counted(steps, 'step')}; nothing is trained. "
        state += "To train again, choose another folder with --out"
    return [*lines, ("run", state)]


def _describe_images(datasets: Datasets) -> str:
    splits = [split for split in datasets[:3] if split is not None]
    text = ", ".join(f"{len(split):,} in {split.name}" for split in splits)
    faults = sum(len(split.faults) for split in splits)
    if faults:
        text += f"; {counted(faults, 'fault')} left out, which `multibox check` lists"
    shared = [note.text for split in splits for note in split.notes if note.kind == "leaked-image"]
    return "; ".join([text, *shared])


def _choose_splits(root: Path, values: dict[str, Any]) -> tuple[Config, list[tuple[str, str]]]:
    """Returns the configuration with the splits of a folder.

    Raises:
        ConfigError: Some splits are named, but the others are not clear.
    """
    folder = open_dataset(root)
    unread = "".join(f"; its {name} is not read" for name in unread_formats(folder))
    lines = [("data", f"{root}: {folder.format}, {_listed(folder.splits)}{unread}")]
    # Faults are listed and left out, as nobody was asked.
    chosen: dict[str, Any] = {"on_bad": "skip"}
    named = {"train_split", "val_split", "test_split"} & values.keys()
    found = split_by_role(folder.splits)
    if "split" in values:
        if named:
            option = min(named).replace("_", "-")
            raise ConfigError(
                f"split draws all splits, but {option} names one of the folder",
                remedy=f"Leave out --split or --{option}",
            )
        reason = f"drawn as {values['split']} from {pool(folder.splits)}"
        lines.append(("splits", f"{reason}; near-duplicates stay together"))
    elif named:
        chosen |= _complete(found or {}, folder.splits, values)
        lines.append(("splits", "as you asked"))
    elif found:
        chosen |= found
        lines.append(("splits", "those of the folder"))
    else:
        chosen["split"] = SHARES
        reason = f"drawn as {SHARES} from {pool(folder.splits)}"
        if any(map(roles, folder.splits)):
            reason += ", because the folder does not have both a training and another split"
        lines.append(("splits", f"{reason}; near-duplicates stay together"))
    return ssd300_lite().override(chosen | values), lines


def _refuse_mostly_faulty(config: Config, datasets: Datasets, root: Path) -> None:
    """Lists the faults as an error if there are more of them than usable objects.

    Then the file is probably misread as a whole, and the rest is not to be trusted.

    Raises:
        DataError: There are more faults.
    """
    splits = list(filter(None, datasets[:3]))
    faults = sum(len(split.faults) for split in splits)
    if faults > sum(sum(split.objects_per_class.values()) for split in splits):
        read_datasets(config.override({"on_bad": "fail"}), root)


def _listed(splits: Sequence[str]) -> str:
    return f"split{'s' * (len(splits) != 1)} {', '.join(splits)}"


def _complete(
    found: dict[str, str], splits: Sequence[str], values: dict[str, Any]
) -> dict[str, str]:
    """Returns the splits of a folder for the roles that the user did not name.

    Raises:
        ConfigError: There is no split for training.
    """
    train = values.get("train_split") or found.get("train_split", "")
    if not train:
        raise ConfigError(
            "the split for training is not clear",
            remedy=f"Give --train-split; the folder has the {_listed(splits)}",
        )
    used = {train, values.get("val_split"), values.get("test_split")}
    used = {part for name in used if name for part in name.split("+")}
    in_use = set[str]().union(*(roles(name) for name in train.split("+")))

    def left(role: str) -> str:
        name = found.get(f"{role}_split", "")
        return "" if role in in_use or used & set(name.split("+")) else name

    return {"train_split": train, "val_split": left("val"), "test_split": left("test")}


def split_by_role(splits: Sequence[str]) -> dict[str, str] | None:
    """Returns the splits for training, validation and test, or None if they have to be drawn.

    Args:
        splits: The names of all splits of a folder.
    """

    def joined(*wanted: str) -> str:
        return "+".join(split for split in splits if roles(split) == set(wanted))

    train, val, test, both = joined("train"), joined("val"), joined("test"), joined("train", "val")
    if train and val:
        return {"train_split": train, "val_split": val, "test_split": test}
    if (both or train) and test:
        return {"train_split": both or train, "val_split": "", "test_split": test}
    return None


def _choose_network(
    config: Config, datasets: Datasets, values: dict[str, Any]
) -> tuple[Config, list[tuple[str, str]]]:
    """Returns the configuration with network, batch, steps and periods."""
    images = len(datasets.train)
    gpu = config.run.device != "cpu" and torch.cuda.is_available()
    if "network" in values:
        network, reason = config.network, "as you asked"
        of_network = [make() for make in RECIPES.values() if make().network == network]
        base = of_network[0] if of_network else ssd300_lite().override({"network": network})
    elif gpu and images >= _MANY_IMAGES:
        base, reason = ssd300_vgg16_bn(), f"a GPU and {images:,} images can train it"
    elif find_pretrained(_PRETRAINED):
        small = _small_class(datasets.train)
        base = ssd384_efficientnet_lite0() if small else ssd300_efficientnet_lite0()
        reason = f"it starts from ImageNet weights, so {images:,} images go a long way"
        if small:
            reason += f"; 384 pixels, because objects of the class {small!r} are small"
    else:
        base = ssd300_lite()
        reason = (
            "it learns from random weights in minutes. With pip install 'multibox[pretrained]', "
            f"{_PRETRAINED} learns more from few images"
        )
    least, factor = _STEPS.get(base.network, _STEPS["ssd300-lite"])
    steps = values.get("steps", max(least, round(math.sqrt(images)) * factor))
    base = replace(base, data=config.data).override(_periods(base, steps, {})).override(values)
    return base, [("network", f"{base.network}: {reason}")]


def _small_class(dataset: Dataset) -> str | None:
    """Returns the first class with a median object that is small; None if there is none."""
    boxes = np.concatenate([item.boxes for item in dataset.annotations])
    labels = np.concatenate([item.labels for item in dataset.annotations])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    for label, name in enumerate(dataset.classes):
        if np.median(areas[labels == label]) < _SMALL_SHARE:
            return name
    return None


def _periods(config: Config, steps: int, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a configuration that follow from the number of steps."""
    ratio = steps / config.schedule.steps
    found = {
        "steps": steps,
        "drops": tuple(sorted({max(1, round(drop * ratio)) for drop in config.schedule.drops})),
        "warmup_steps": min(config.schedule.warmup_steps, steps // 10),
        "log_every": min(1_000, max(10, steps // 32)),
        "validate_every": -(-steps // 8),
        "checkpoint_every": -(-steps // 8),
        "evaluate_every": -(-steps // 4),
    }
    return found | values


def _describe_steps(config: Config, images: int, minutes: float | None) -> str:
    steps, batch = config.schedule.steps, config.run.batch_size
    unit = "minute" if minutes == 1 else "minutes"
    why = "" if minutes is None else f", which fit into {minutes:g} {unit}"
    rounds = counted(max(1, round(steps * batch / images)), "round")
    each = f"{steps:,} with {counted(batch, 'image')} each{why}"
    return f"{each}: {rounds} over {counted(images, 'image')}"


def _describe_evaluation(config: Config, datasets: Datasets) -> str:
    run = config.run
    period = run.evaluate_every
    every = "after every step" if period == 1 else f"every {period:,} steps"
    every += f" on {datasets.validation.name}"
    if datasets.test is None and datasets.validation.name == config.data.test_split:
        every += ", also at the end: there is no validation split, as in the original"
    elif datasets.test is None:
        every += ", also at the end: there is no test split, so the result is optimistic"
    else:
        every += f"; once on {datasets.test.name} at the end, with the {run.test_weights} weights"
    return every


def _fit(
    config: Config, datasets: Datasets, duration: Duration, seconds: float, values: dict[str, Any]
) -> Config:
    """Returns the configuration with as many steps as fit into the time.

    Raises:
        ConfigError: The time is too short for one step and the evaluations, or the steps are given.
    """
    if "steps" in values:
        raise ConfigError("minutes and steps are both given", remedy="Leave out one of them")
    low, high = 0, 2**31
    while high - low > 1:
        middle = (low + high) // 2
        tried = config.override(_periods(config, middle, values))
        fits = duration.expected(tried, datasets)[0] <= seconds
        low, high = (middle, high) if fits else (low, middle)
    if low < 1:
        least = duration.expected(config.override(_periods(config, 1, values)), datasets)[0]
        raise ConfigError(
            f"minutes is {seconds / 60:g}, but a single step with its evaluations takes "
            f"{least / 60:.2g} minutes",
            remedy="Raise --minutes",
        )
    return config.override(_periods(config, low, values))
