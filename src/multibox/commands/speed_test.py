"""A short test of the speed of a training, before it begins."""

import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from multibox.build import Datasets, matcher, new_network
from multibox.config import Config
from multibox.data.workers import ignore_loss
from multibox.errors import counted
from multibox.inference import EvaluationSettings, detect_all, validation_loss
from multibox.processes.distributed import Processes, join
from multibox.training.data_loader import BatchLoader
from multibox.training.train_step import Learner

_MEASURED_STEPS, _MEASURED_SECONDS, _MEASURED_IMAGES = 15, 20.0, 32
_SINGLE_THREAD_STEPS = 4


class Duration(NamedTuple):
    """The expected duration of a run's parts, in seconds.

    Attributes:
        step: Seconds for each measured step, with its data.
        validated_image: Seconds for an image in the validation loss.
        evaluated_image: Seconds for an image in an evaluation.
        single_thread: The least seconds of a step in a single thread on the CPU; 0 if it was not
            measured.
    """

    step: tuple[float, ...]
    validated_image: float
    evaluated_image: float
    single_thread: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether several threads are slower than one, because other programs use the cores.

        Each layer ends when its last thread ends. If that thread is waiting for a core, all wait.
        """
        return 0 < self.single_thread < 0.7 * min(self.step)

    def expected(self, config: Config, datasets: Datasets) -> tuple[float, float, float]:
        """Returns the expected, the least and the most seconds of a run."""
        run, steps = config.run, config.schedule.steps
        images = len(datasets.validation)
        rest = -(-steps // run.validate_every) * images * self.validated_image
        rest += -(-steps // run.evaluate_every) * images * self.evaluated_image
        rest += len(datasets.test or ()) * self.evaluated_image
        # One slow step says little about thousands of steps, so the extremes are left out.
        few, usual, many = np.percentile(self.step, (20, 50, 80)).tolist()
        return steps * usual + rest, steps * few + rest, steps * many + rest


def measure(config: Config, datasets: Datasets, console: Console) -> Duration:
    """Measures some steps and a small evaluation, with a network that is thrown away.

    Args:
        config: The configuration of the run.
        datasets: The splits.
        console: Prints messages of the loader.

    Raises:
        MultiboxError: The network or the data cannot be used.
    """
    with join(config.run.device) as processes:
        network = new_network(config, len(datasets.train.classes))
        loader = BatchLoader(
            config,
            datasets.train,
            network.image_size_px,
            match=matcher(network, difficult=config.data.train_difficult),
            folder=Path(),
            processes=processes,
            console=console,
            decoded_cache_gib=0.0,
        )
        learner = Learner(network, config, processes)
        steps = _time_steps(loader, learner, _MEASURED_STEPS)
        images = _time_images(config, datasets, learner, processes)
        single, threads = 0.0, torch.get_num_threads()
        if processes.device.type == "cpu" and threads > 1:
            torch.set_num_threads(1)
            single = min(_time_steps(loader, learner, _SINGLE_THREAD_STEPS))
            torch.set_num_threads(threads)
        return Duration(steps, *images, single)


def _time_steps(loader: BatchLoader, learner: Learner, most: int) -> tuple[float, ...]:
    seconds, begun = [], time.monotonic()
    start = begun
    batches = loader.batches(0, on_loss=ignore_loss)
    for number, batch in enumerate(islice(batches, most)):
        learner.step(batch, lr=0.0, number=number)
        now = time.monotonic()
        seconds.append(now - start)
        start = now
        if now - begun > _MEASURED_SECONDS:
            break
    # The first steps take longer, as nothing is prepared yet.
    return tuple(seconds[len(seconds) // 3 :])


def _time_images(
    config: Config, datasets: Datasets, learner: Learner, processes: Processes
) -> tuple[float, float]:
    few = replace(
        datasets.validation, annotations=datasets.validation.annotations[:_MEASURED_IMAGES]
    )
    settings = EvaluationSettings(config.run.batch_size, 0, learner.precision, processes)
    start = time.monotonic()
    validation_loss(learner.network, few, settings)
    between = time.monotonic()
    detect_all(learner.network, few, settings)
    return (between - start) / len(few), (time.monotonic() - between) / len(few)


def describe_busy(duration: Duration) -> str:
    """Returns what a user can do on a busy machine, as a line."""
    usual, single = float(np.median(duration.step)), duration.single_thread
    return (
        f"other programs use this machine: a step takes {usual:.2g} seconds, and {single:.2g} "
        "seconds with OMP_NUM_THREADS=1 in front of the command, which changes the last digits"
    )


def describe_time(expected: float, least: float, most: float) -> str:
    """Returns the expected duration of a run, with its range, as a line. All are in seconds."""

    def worded(seconds: float) -> str:
        if seconds < 90:
            return counted(max(1, round(seconds)), "second")
        if seconds < 7_200:
            return f"{seconds / 60:.1f} minutes"
        hours = seconds / 3_600
        return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:,.1f} days"

    about, few, many = map(worded, (expected, least, most))
    return f"about {about}" + ("" if few == many else f"; {few} to {many} by a short test")
