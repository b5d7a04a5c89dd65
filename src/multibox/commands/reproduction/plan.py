"""What `reproduce --dry-run` prints: the stages, what they need, and how long they take."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.filesize import decimal

from multibox.build import Datasets, network_shape, read_datasets
from multibox.commands.check import check
from multibox.commands.reproduction.look_alike import draw_look_alike
from multibox.commands.reproduction.state import (
    Place,
    has_begun,
    has_splits,
    initial_weights,
    is_finished,
    missing,
)
from multibox.commands.reproduction.targets import Target
from multibox.commands.speed_test import describe_time, measure
from multibox.commands.train import needed_room
from multibox.config import Config
from multibox.download.catalogue import SOURCES
from multibox.errors import counted
from multibox.hardware import describe_device
from multibox.processes.distributed import pick_device
from multibox.storage.checkpoint import steps as saved_steps
from multibox.storage.disk import free_bytes

_CLASSES = {"voc07": 20, "coco": 80}
_DRAWN_SCALE = 300
_CPU_BATCH = 4
"""Number of images in the steps that are measured on a CPU. The time is proportional to it."""


class Times(NamedTuple):
    """The expected duration of the stages, in seconds.

    Attributes:
        checked_image: Of checking one image.
        step: Of the measured training steps, for a whole batch.
        validated_image: Of one image in the validation loss.
        evaluated_image: Of one image in an evaluation.
    """

    checked_image: float
    step: tuple[float, ...]
    validated_image: float
    evaluated_image: float

    def training(self, config: Config, images: int, done: int) -> tuple[float, float, float]:
        """Returns the expected, the least and the most seconds from step `done` on.

        Args:
            config: The configuration of the run.
            images: Number of images of the test split.
            done: Number of steps made.
        """
        run, left = config.run, config.schedule.steps - done
        rest = -(-left // run.validate_every) * images * self.validated_image
        rest += -(-left // run.evaluate_every) * images * self.evaluated_image
        few, usual, many = np.percentile(self.step, (20, 50, 80)).tolist()
        return left * usual + rest, left * few + rest, left * many + rest


def plan(target: Target, place: Place, console: Console) -> list[tuple[str, str]]:
    """Returns the stages of a reproduction, as (subject, text).

    The speed is measured on drawn images in a temporary folder, which is removed. Nothing else on
    the disk is changed.

    Args:
        target: The training to reproduce.
        place: The folders and options.
        console: Shows what is being measured.

    Raises:
        MultiboxError: An option or an existing run cannot be used.
    """
    with console.status("measuring the speed"):
        times = measure_stages(target, place, console)
    device = describe_device(pick_device(place.device))
    lines = [("target", f"{target.title}; {counted(len(place.seeds), 'seed')}")]
    lines += [("fetch", text) for text in _describe_fetch(target, place)]
    lines += _describe_disk(target, place)
    lines.append(("device", device))
    total = np.zeros(3)
    if has_begun(place):
        lines.append(("check", "done: a run has begun"))
    else:
        images = sum(target.images.values())
        seconds = images * times.checked_image
        total += seconds
        about = describe_time(seconds, seconds, seconds)
        lines.append(("check", f"{counted(images, 'image')}: {about}"))
    for seed in place.seeds:
        text, expected = _describe_run(target, place, seed, times)
        lines.append((f"seed {seed}", text))
        total += expected
    lines.append(("summary", f"{place.out / 'summary' / 'index.html'}"))
    about = describe_time(*total.tolist())
    lines.append(("time", f"{about}, without the download and the pages"))
    return lines


def _describe_fetch(target: Target, place: Place) -> list[str]:
    if not target.datasets:
        drawn = has_splits(target, place.data)
        return [f"{place.data / target.data}: {'is there' if drawn else 'will be drawn'}"]
    lines = [
        f"{each.name}: {each.size:,} bytes ({decimal(each.size)}) to download. "
        f"Licence: {each.licence}"
        for each in missing(target, place)
    ]
    if has_splits(target, place.data):
        lines.append(f"{place.data / target.data}: is there, with all splits")
    weights = initial_weights(target, place.data)
    if weights.is_file():
        lines.append(f"{weights}: is there")
    return lines


def _describe_disk(target: Target, place: Place) -> list[tuple[str, str]]:
    downloads = missing(target, place)
    # Archives stay, and the unpacked files need about as much.
    data = sum(each.size * (2 if each.name in SOURCES else 1) for each in downloads)
    test_images = [*target.images.values()][-1]
    runs = 0
    for seed in place.seeds:
        config = place.config(target, seed)
        network = network_shape(config, _CLASSES[target.published.metric])
        runs += needed_room(place.run(seed), config, network, images=test_images).total
    lines = []
    for folder, needed in ((place.data, data), (place.out, runs)):
        free = free_bytes(folder)
        known = "unknown" if free is None else decimal(free)
        lines.append(("disk", f"{folder}: at most {decimal(needed)} needed, {known} free"))
    return lines


def _describe_run(
    target: Target, place: Place, seed: int, times: Times
) -> tuple[str, tuple[float, float, float]]:
    run, config = place.run(seed), place.config(target, seed)
    steps = config.schedule.steps
    if is_finished(run, config):
        return f"{run}: has finished its {counted(steps, 'step')}", (0.0, 0.0, 0.0)
    done = (saved_steps(run / "checkpoints") or [0])[-1]
    test_images = [*target.images.values()][-1]
    expected = times.training(config, test_images, done)
    begun = f" from step {done:,} on" if done else ""
    every = f"evaluated every {config.run.evaluate_every:,} steps"
    each = f"{steps:,} steps{begun} with {counted(config.run.batch_size, 'image')}, {every}"
    return f"{run}: {each}; {describe_time(*expected)}", expected


def measure_stages(target: Target, place: Place, console: Console) -> Times:
    """Measures the stages on drawn images with the target's network.

    On a CPU, the steps have `_CPU_BATCH` images.

    Args:
        target: The training to reproduce.
        place: The options.
        console: Prints messages of the loader.
    """
    config = place.config(target, 0)
    batch = config.run.batch_size
    if pick_device(place.device).type == "cpu":
        batch = min(batch, _CPU_BATCH)
    measured = config.override(
        {
            "train_split": "2007:trainval+2012:trainval",
            "test_split": "2007:test",
            # Rare classes may be absent from the few images for training.
            "on_bad": "skip",
            "batch_size": batch,
        }
    )
    with tempfile.TemporaryDirectory(prefix="multibox-") as temporary:
        folder = Path(temporary) / "VOCdevkit"
        draw_look_alike(folder, scale=_DRAWN_SCALE)
        datasets = _with_classes(read_datasets(measured, folder), _CLASSES[target.published.metric])
        begun = time.monotonic()
        check(folder, Console(quiet=True))
        images = sum(len(split) for split in datasets[:3] if split is not None)
        checked = (time.monotonic() - begun) / images
        duration = measure(measured, datasets, console)
    scale = config.run.batch_size / batch
    return Times(
        checked,
        tuple(scale * seconds for seconds in duration.step),
        duration.validated_image,
        duration.evaluated_image,
    )


def _with_classes(datasets: Datasets, count: int) -> Datasets:
    """Returns datasets with further classes, so that the network has all of its outputs."""
    known = datasets.train.classes
    classes = (*known, *(f"class {number}" for number in range(count - len(known))))
    return datasets._replace(
        train=replace(datasets.train, classes=classes),
        validation=replace(datasets.validation, classes=classes),
    )
