"""The verb `train`: trains a network on a dataset and writes a run's folder."""

import json
from contextlib import ExitStack, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn

from multibox.build import Datasets, matcher, network_shape, new_network, read_datasets
from multibox.commands.box_fitting import fitted_levels
from multibox.commands.starting_weights import read_init, start_from, use_pretrained
from multibox.config import Config, OptimizerConfig, flatten
from multibox.data.dataset import Dataset
from multibox.data.decoded import remove_decoded
from multibox.errors import ConfigError, counted
from multibox.precision import compute_dtype
from multibox.processes.distributed import Processes, join, require_same, wait_for_all
from multibox.reporting.loggers import JournalCopy, LoggerName
from multibox.rng import STREAM_VERSION
from multibox.ssd.network import SSD
from multibox.storage.checkpoint import steps
from multibox.storage.disk import mebibytes, require_room
from multibox.storage.lock import RunLock
from multibox.storage.run_folder import (
    claim,
    environment,
    read_split,
    refuse_foreign,
    write_json,
)
from multibox.training.data_loader import BatchLoader
from multibox.training.loop import Loop, RunContext
from multibox.training.periodic_evaluation import SAMPLE_PICTURES
from multibox.training.train_step import Learner
from multibox.weights.files import fitted_json, make_header

RESULTS_BYTES = 200 * 40
"""Upper bound for one image in the results files of an evaluation: `keep_top_k` lines."""

PICTURE_BYTES = 2**18
"""Upper bound for one picture with drawn boxes."""


class Request(NamedTuple):
    """The arguments of `train`.

    Attributes:
        recipe: Name of the recipe that `config` is based on.
        config: The complete configuration.
        data: The dataset's folder.
        out: The run's folder.
        init: Run or weights file to start from; None: ImageNet weights if they are installed for
            the network, else random weights.
        licence: Licence of the trained weights, in the owner's words.
        decoded_cache_gib: Disk space that decoded images may take, in GiB.
        datasets: The splits, if they were read before. None: `train` reads them.
        loggers: Where to copy the metrics, besides `metrics.jsonl`.
    """

    recipe: str
    config: Config
    data: Path
    out: Path
    init: Path | None
    licence: str
    decoded_cache_gib: float = 0.0
    datasets: Datasets | None = None
    loggers: tuple[LoggerName, ...] = ()


def train(request: Request, console: Console) -> None:
    """Starts a run, or resumes the one in `out`. A finished run stays unchanged.

    Raises:
        MultiboxError: An argument, a file or the hardware cannot be used. An existing run in `out`
            keeps its last checkpoint.
        Interrupted: A signal stopped the run; its state is saved.
    """
    config = request.config
    with ExitStack() as stack:
        processes = stack.enter_context(join(config.run.device))
        console.quiet = console.quiet or not processes.is_first
        # These checks come first, because reading the dataset may take minutes.
        shape = network_shape(config, max(1, len(config.data.classes)))
        check_shares(config, shape, processes)
        _require_size(request.decoded_cache_gib)
        require_apart(request.out, request.data)
        if processes.is_first:
            refuse_foreign(request.out)
            stack.enter_context(RunLock(request.out))
            _require_room(request.out, config, shape, images=0)
        config, init = use_pretrained(config, request.init, request.out, console)
        init_digest, weights = read_init(init, request.out, console)
        datasets = request.datasets
        if datasets is None:
            datasets = read_datasets(config, request.data, read_split(request.out))
        train_set = datasets.train
        for dataset in filter(None, datasets[:3]):
            _print_dataset(dataset, console)
        fitted = fitted_levels(config, train_set, console)
        network = new_network(config, len(train_set.classes), fitted)
        if weights:
            start_from(weights, network, train_set.classes, console)
        precision = compute_dtype(config.run.precision, processes.device)
        facts = {
            "multibox": version("multibox"),
            "recipe": request.recipe,
            "init_digest": init_digest,
            "precision": str(precision).removeprefix("torch."),
            "stream_version": STREAM_VERSION,
            "data_root": str(request.data.resolve()),
            "fitted_boxes": fitted_json(fitted) or None,
            **_facts(network, datasets),
        }
        _compare(config, facts, processes)
        if processes.is_first:
            _require_room(request.out, config, network, images=len(datasets.validation))
            claim(request.out, config, facts, datasets.drawn)
            _describe_machine(request.out, processes, precision, console)
        wait_for_all(processes)
        names = request.loggers if processes.is_first else ()
        copy = JournalCopy(request.out, names, flatten(config), partial(_warn, console))
        stack.callback(copy.close)
        context = RunContext(
            folder=request.out,
            train_set=train_set,
            validation_set=datasets.validation,
            test_set=datasets.test,
            processes=processes,
            console=console,
            batch_loader=BatchLoader(
                config,
                train_set,
                network.image_size_px,
                match=matcher(network, difficult=config.data.train_difficult),
                folder=request.out,
                processes=processes,
                console=console,
                decoded_cache_gib=request.decoded_cache_gib,
            ),
            metadata=make_header(network, config.network, train_set.classes, request.licence),
            after_save=copy.advance,
        )
        try:
            Loop(config, Learner(network, config, processes), context).run()
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"the GPU ran out of memory ({reason})",
                remedy="Start a run in another folder with a larger --accumulate, a smaller "
                "--batch-size or --pipeline cpu",
            ) from None
        if processes.is_first:
            remove_decoded(request.out)


def _warn(console: Console, text: str) -> None:
    console.print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)


def _require_size(decoded_cache_gib: float) -> None:
    if not 0 <= decoded_cache_gib < float("inf"):
        raise ConfigError(
            f"decoded_cache_gib is {decoded_cache_gib}, but it must be finite and not negative",
            remedy="Change --decoded-cache-gib",
        )


def require_apart(out: Path, data: Path) -> None:
    """Checks that a run's folder is outside of the dataset.

    Raises:
        ConfigError: It is inside.
    """
    if out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            "the run's folder is inside the dataset",
            file=out,
            remedy=f"Choose a folder for --out outside {data}",
        )


def check_shares(config: Config, network: SSD, processes: Processes) -> None:
    """Checks that the batch can be divided among the processes.

    Raises:
        ConfigError: The batch is not a multiple of processes times parts, or each part has a single
            image but the network uses batch normalisation.
    """
    remedy = "Change --batch-size, --accumulate or the number of processes"
    batch = config.run.batch_size
    shares = processes.world_size * config.optimizer.accumulate
    by = f"{processes.world_size} processes in {config.optimizer.accumulate} parts each"
    if batch % shares:
        raise ConfigError(f"a batch of {batch} cannot be shared equally by {by}", remedy=remedy)
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    together = config.run.sync_batch_norm and processes.world_size > 1
    if normalised and batch == shares and not together:
        raise ConfigError(
            f"a batch of {batch}, shared by {by}, leaves one image at a time, but the batch "
            f"normalisation of {config.network} needs several",
            remedy=remedy,
        )


def _require_room(out: Path, config: Config, network: SSD, *, images: int) -> None:
    """Checks that the disk has room for the files that the run will keep.

    These are the newest checkpoints, the best one, the one being written, and all evaluations.

    Args:
        out: The run's folder.
        config: The configuration of the run.
        network: The network of the run, or one with fewer classes for a first estimate.
        images: Number of images in each evaluation.

    Raises:
        StorageError: The folder cannot be written, or the disk does not have enough room.
    """
    needed = needed_room(out, config, network, images=images)
    if needed.checkpoints:
        require_room(
            out,
            needed.total,
            purpose=f"{needed.checkpoints} checkpoints of {mebibytes(needed.checkpoint_bytes)} and "
            f"{needed.evaluations} evaluations",
            remedy="Make room, lower --keep-checkpoints, or choose another folder for --out",
        )


class Room(NamedTuple):
    """The disk space that a run will need.

    Attributes:
        checkpoints: Number of checkpoints that will be written and kept; 0 if the run is finished.
        checkpoint_bytes: Size of one.
        evaluations: Number of evaluations that will be written.
        evaluation_bytes: Upper bound for the size of one.
    """

    checkpoints: int
    checkpoint_bytes: int
    evaluations: int
    evaluation_bytes: int

    @property
    def total(self) -> int:
        """The size of everything in bytes."""
        return self.checkpoints * self.checkpoint_bytes + self.evaluations * self.evaluation_bytes


def needed_room(out: Path, config: Config, network: SSD, *, images: int) -> Room:
    """Returns the disk space that a run will need in addition to what it has written.

    Args:
        out: The run's folder. It may not exist.
        config: The configuration of the run.
        network: The network of the run.
        images: Number of images in each evaluation.
    """
    run, last = config.run, config.schedule.steps
    size = _checkpoint_bytes(network, config.optimizer)
    present = steps(out / "checkpoints")
    done = present[-1] if present else 0
    pictures = min(SAMPLE_PICTURES, images)
    judged = images * RESULTS_BYTES + pictures * PICTURE_BYTES
    if done == last:
        return Room(0, size, 0, judged)
    milestones = -(-last // run.evaluate_every) - done // run.evaluate_every
    saves = milestones + 1 + last // run.checkpoint_every - done // run.checkpoint_every
    count = max(1, min(saves, run.keep_checkpoints + 2 - len(present)))
    return Room(count, size, milestones, judged)


def _checkpoint_bytes(network: SSD, config: OptimizerConfig) -> int:
    """Returns the size of a checkpoint without file headers; see `Learner.optimizer`."""
    state = network.state_dict().values()
    moments = 2 if config.optimizer != "sgd" else int(config.momentum > 0)
    trained = sum(parameter.nbytes for parameter in network.parameters())
    learnt = sum(tensor.nbytes for tensor in state if tensor.is_floating_point())
    averaged = learnt if config.ema_decay or config.swa_from else 0
    size: int = sum(tensor.nbytes for tensor in state) + moments * trained + averaged
    return size


def _compare(config: Config, facts: dict[str, Any], processes: Processes) -> None:
    """Checks that all processes have the same configuration, data, weights and versions."""
    names = ["multibox", "recipe", "data_digest", "init_digest", "precision", "stream_version"]
    names.append("fitted_boxes")
    same = flatten(config) | {name: facts[name] for name in names} | {"torch": version("torch")}
    del same["workers"]
    require_same(same, processes)


def _describe_machine(
    folder: Path, processes: Processes, precision: torch.dtype, console: Console
) -> None:
    """Writes `environment.json`, and prints a note if the number of processes has changed."""
    path, now = folder / "environment.json", processes.world_size
    before = now
    with suppress(OSError, ValueError):
        before = json.loads(path.read_text(encoding="utf-8")).get("processes", now)
    if before != now:
        console.print(
            f"note: resuming with {now} processes (was {before}): steps see the same samples, "
            "split differently",
            highlight=False,
        )
    write_json(path, environment(processes.device, precision) | {"processes": now})


def _print_dataset(dataset: Dataset, console: Console) -> None:
    """Prints the contents of a split, notes on how it was read, and the skipped faults."""
    counts = ", ".join(f"{count} {name}" for name, count in dataset.objects_per_class.items())
    line = f"{dataset.name}: {counted(len(dataset), 'image')} with {counts}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
    for note in dataset.notes:
        console.print(f"  note: {note.text}", highlight=False, markup=False, soft_wrap=True)
    if dataset.faults:
        console.print(f"  skipped {counted(len(dataset.faults), 'fault')}:", highlight=False)
    for fault in dataset.faults:
        console.print(f"  {fault}", highlight=False, markup=False, soft_wrap=True)


def _facts(network: SSD, datasets: Datasets) -> dict[str, Any]:
    """Returns the entries of `run.json` about the data and the network."""
    # The role "test" alone means that the split is both, as in the original.
    by_role = {"train": datasets.train, "test": datasets.test or datasets.validation}
    if datasets.test:
        by_role["validation"] = datasets.validation
    data = {
        role: {
            "name": dataset.name,
            "images": len(dataset),
            "objects": dataset.objects_per_class,
            "skipped": len(dataset.faults),
            "faults": [str(fault) for fault in dataset.faults],
            "notes": [note.text for note in dataset.notes],
        }
        for role, dataset in by_role.items()
    }
    return {
        "data_digest": "-".join(dataset.digest for dataset in by_role.values()),
        "data": data,
        "classes": datasets.train.classes,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "default_boxes": network.default_boxes.shape[0],
    }
