"""The verb `evaluate`: average precision of a network or of results files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.formats.coco import result_ids
from multibox.data.formats.layouts import open_dataset, read_dataset
from multibox.data.splits.draw import pool, take
from multibox.data.workers import OnLoss, ignore_loss
from multibox.detector import require_cpu
from multibox.errors import ConfigError
from multibox.evaluation.coco_results import read_coco_results
from multibox.evaluation.results import file_split, read_results
from multibox.export.runtimes import is_exported, open_exported
from multibox.inference import (
    EvaluationSettings,
    detect_all,
    detections_by_class,
    objects_by_class,
    score,
)
from multibox.precision import compute_dtype
from multibox.processes.distributed import join
from multibox.storage.run_folder import read_run, read_split
from multibox.structures import Detections
from multibox.training.data_loader import worker_count
from multibox.weights.files import find_weights, load_network, read_weights


def _data_root(facts: Mapping[str, Any], file: Path) -> Path:
    root = facts.get("data_root")
    if not isinstance(root, str):
        raise ConfigError("does not name the run's dataset", file=file, remedy="Use --data")
    return Path(root)


class Evaluated(NamedTuple):
    """A split, and what a network detects in it.

    Attributes:
        dataset: The split.
        detections: The detections in each image.
    """

    dataset: Dataset
    detections: list[Detections]


def detect_split(
    path: Path,
    *,
    which: str,
    data: Path | None,
    split: str | None,
    on_bad: Literal["fail", "skip"] | None,
    device: str,
    workers: int,
    on_loss: OnLoss = ignore_loss,
) -> Evaluated:
    """Returns the detections of a network in all images of a split. It writes no files.

    Args:
        path: Folder of a run or of a checkpoint, a weights file, or an exported file.
        which: Checkpoint of a run: `last`, `best` or a step.
        data: Folder of the dataset. None: the one that the run was trained on.
        split: Name of the split. None: the run's test split, or its validation split.
        on_bad: What to do with invalid objects and images. None: the run's setting, or `fail` for
            weights without a run.
        device: `auto`, `cpu` or `cuda`.
        workers: Number of processes that prepare images. 0: this process prepares them; -1: chosen
            by the number of cores. The result does not depend on it.
        on_loss: Called with the reason when workers are replaced.

    Raises:
        ConfigError: `data` or `split` is None and there is no run to take it from, or `workers` is
            out of range.
        MultiboxError: The network or the data cannot be used.
    """
    if is_exported(path):
        require_cpu(path, which=which, device=device)
        exported = open_exported(path)
        dataset, config = open_split(path, exported.classes, data=data, split=split, on_bad=on_bad)
        device = "cpu"
    else:
        weights = read_weights(find_weights(path, which))
        dataset, config = open_split(path, weights.classes, data=data, split=split, on_bad=on_bad)
    run = replace(config.run, workers=workers)
    with join(device) as processes:
        network = exported if is_exported(path) else load_network(weights, processes.device)
        precision = compute_dtype(run.precision, processes.device)
        count = worker_count(run.workers, processes)
        settings = EvaluationSettings(run.batch_size, count, precision, processes, on_loss)
        return Evaluated(dataset, detect_all(network, dataset, settings))


def open_split(
    path: Path,
    classes: tuple[str, ...],
    *,
    data: Path | None,
    split: str | None,
    on_bad: Literal["fail", "skip"] | None,
) -> tuple[Dataset, Config]:
    """Returns a split of a dataset, and the configuration of the run that it belongs to.

    Args:
        path: Folder of a run, or any other model.
        classes: Class names in the order of the model's labels.
        data: Folder of the dataset. None: the one that the run was trained on.
        split: Name of the split. None: the run's test split, or its validation split.
        on_bad: What to do with invalid objects and images. None: the run's setting, or `fail`.

    Raises:
        ConfigError: `data` or `split` is None and there is no run to take it from.
        MultiboxError: The data cannot be used.
    """
    drawn: dict[str, list[str]] = {}
    config = Config(network="")
    if (path / "config.json").exists():
        config, facts = read_run(path)
        data = data or _data_root(facts, path / "run.json")
        drawn = read_split(path) or {}
        declared = [config.data.val_split, config.data.test_split, *drawn]
        split = split or list(filter(None, declared))[-1]
    if data is None or split is None:
        raise ConfigError(
            "is not a run, so the dataset and the split are unknown",
            file=path,
            remedy="Use --data and --split",
        )
    folder, bad = open_dataset(data), on_bad or config.data.on_bad
    read = pool(folder.splits) if split in drawn else split
    dataset = folder.read(read, classes=classes, on_bad=bad)
    return (take(dataset, drawn[split], split) if split in drawn else dataset), config


def evaluate_model(path: Path, **options: Any) -> dict[str, Any]:
    """Returns all metrics of a network on a split; see `multibox.inference.score`.

    Args:
        path: Folder of a run or of a checkpoint, or a weights file.
        options: The other arguments of `detect_split`.

    Raises:
        MultiboxError: As in `detect_split`.
    """
    dataset, found = detect_split(path, **options)
    return score(detections_by_class(dataset, found), objects_by_class(dataset))


def evaluate_results(results: Path, *, data: Path, split: str) -> tuple[dict[str, Any], list[str]]:
    """Returns all metrics of results files, and the names of the classes without a file.

    Args:
        results: Folder that contains files in the VOC devkit's format, at any depth, or a file in
            COCO's results format for a dataset in COCO layout.
        data: Folder of the dataset. Its images are not needed.
        split: The split that the results are for.

    Raises:
        DataError: A results file or the dataset cannot be used.
    """
    dataset = read_dataset(data, split, images="ignore")
    if results.is_file():
        paths, categories = result_ids(data, split)
        places = {annotation.image_path: n for n, annotation in enumerate(dataset.annotations)}
        images = {number: places[path] for number, path in paths.items() if path in places}
        detections = read_coco_results(
            results, images=images, categories=categories, classes=dataset.classes
        )
        return score(detections, objects_by_class(dataset)), []
    read = read_results(
        results,
        split=file_split(split),
        classes=dataset.classes,
        image_ids=[annotation.image_id for annotation in dataset.annotations],
    )
    return score(read.detections, objects_by_class(dataset)), list(read.missing)
