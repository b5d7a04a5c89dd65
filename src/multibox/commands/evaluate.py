"""The verb `evaluate`: average precision of a network, or of results files."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from multibox.config import Config
from multibox.data.formats.layouts import read_dataset
from multibox.data.workers import OnLoss, unsaid
from multibox.errors import ConfigError
from multibox.evaluation.results import file_split, read_results
from multibox.inference import (
    EvaluationSettings,
    detect_all,
    detections_by_class,
    objects_by_class,
    score,
)
from multibox.precision import compute_dtype
from multibox.processes.distributed import join
from multibox.storage.run_folder import read_run
from multibox.training.data_loader import worker_count
from multibox.weights.files import find_weights, load_network, read_weights


def _data_root(facts: Mapping[str, Any], file: Path) -> Path:
    root = facts.get("data_root")
    if not isinstance(root, str):
        raise ConfigError("does not say where its data are", file=file, remedy="Give --data")
    return Path(root)


def evaluate_model(
    path: Path,
    *,
    which: str,
    data: Path | None,
    split: str | None,
    on_bad: Literal["fail", "skip"] | None,
    device: str,
    workers: int,
    on_loss: OnLoss = unsaid,
) -> dict[str, Any]:
    """Returns all metrics of a network; nothing is written.

    Args:
        path: A run's folder, or weights of any known format.
        which: For a run: `last`, `best` or a step.
        data: The folder of annotated images; for a run by default the one it was trained on.
        split: For a run by default its test split.
        on_bad: What to do with what cannot be used; for a run by default as it did, else `fail`.
        device: `auto`, `cpu` or `cuda`.
        workers: Processes that prepare images; 0: this one; -1: by the hardware. The result does
            not depend on it.
        on_loss: Is told why workers are replaced.

    Raises:
        ConfigError: Weights alone are given, and not what to evaluate them on; or there cannot be
            so many workers.
        MultiboxError: The network or the data cannot be used.
    """
    weights = read_weights(find_weights(path, which))
    config = Config(network=weights.network)
    if (path / "config.json").exists():
        config, facts = read_run(path)
        data = data or _data_root(facts, path / "run.json")
        split = split or config.data.test_split
    if data is None or split is None:
        raise ConfigError(
            "weights alone do not say what to evaluate them on",
            file=path,
            remedy="Give --data and --split",
        )
    run = replace(config.run, workers=workers)
    dataset = read_dataset(
        data, split, classes=weights.classes, on_bad=on_bad or config.data.on_bad
    )
    with join(device) as processes:
        network = load_network(weights, processes.device)
        precision = compute_dtype(run.precision, processes.device)
        count = worker_count(run.workers, processes)
        setting = EvaluationSettings(run.batch_size, count, precision, processes, on_loss)
        found = detect_all(network, dataset, setting)
    return score(detections_by_class(dataset, found), objects_by_class(dataset))


def evaluate_results(results: Path, *, data: Path, split: str) -> tuple[dict[str, Any], list[str]]:
    """Returns all metrics of somebody's results files, and the classes without a file.

    Args:
        results: A folder above files in the devkit's format.
        data: The folder of annotations; images need not be there.
        split: The image set.

    Raises:
        DataError: A file or the data cannot be used.
    """
    dataset = read_dataset(data, split, images="ignore")
    read = read_results(
        results,
        split=file_split(split),
        classes=dataset.classes,
        image_ids=[annotation.image_id for annotation in dataset.annotations],
    )
    return score(read.detections, objects_by_class(dataset)), list(read.missing)
