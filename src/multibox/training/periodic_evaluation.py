"""Evaluates the network during a run and at its end, and writes the results to its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multibox.data.dataset import Dataset
from multibox.data.images import read_image
from multibox.drawing import draw_detections, draw_truth, write_picture
from multibox.evaluation.results import file_split, write_results
from multibox.inference import (
    EvaluationSettings,
    detect_all,
    detections_by_class,
    objects_by_class,
    score,
)
from multibox.ssd.network import SSD
from multibox.storage.disk import sync_files
from multibox.storage.run_folder import write_json
from multibox.structures import Detections

SAMPLE_PICTURES = 12
"""Number of images of the split that are drawn."""

SHOWN_SCORE = 0.5
"""Detections with a lower score are not drawn."""


class Figures(NamedTuple):
    """The figures of an evaluation that the run needs.

    Attributes:
        means: The mean average precision by metric: `voc07`, `voc12` and `coco`. It is None if
            there are no objects.
        score_threshold: The score with the best F1 over all classes; None if no detection is right.
    """

    means: dict[str, float | None]
    score_threshold: float | None


def evaluate_periodically(
    network: SSD,
    dataset: Dataset,
    settings: EvaluationSettings,
    *,
    folder: Path,
    name: str,
    step: int,
) -> Figures:
    """Evaluates the network of a run on a split, and returns the figures.

    The first process writes `evaluations/<name>.json`, results files in the VOC devkit's format in
    `evaluations/<name>/`, and pictures of some images in `samples/`.

    Args:
        network: The network of the run at this step.
        dataset: The split.
        settings: Batch size, workers, precision and processes.
        folder: The run's folder.
        name: Name of the files.
        step: The number of completed steps.
    """
    found = detect_all(network, dataset, settings)
    objects, by_class = objects_by_class(dataset), detections_by_class(dataset, found)
    metrics = score(by_class, objects)
    if settings.processes.is_first:
        ids = [annotation.image_id for annotation in dataset.annotations]
        results = folder / "evaluations" / name
        files = write_results(results, by_class, ids, split=file_split(dataset.name))
        record = {
            "step": step,
            "split": dataset.name,
            "images": len(dataset),
            "objects": sum(int((~of_class.difficult).sum()) for of_class in objects.values()),
            "metric": "voc07",
            **metrics,
        }
        files.append(folder / "evaluations" / f"{name}.json")
        write_json(files[-1], record)
        files += _draw_samples(folder, name, dataset, found)
        # The next checkpoint records this evaluation as done, so its files must be on the disk.
        sync_files(folder, files)
    means = {name: metrics[name]["mAP"] for name in ("voc07", "voc12")}
    best = metrics["best_f1"]
    return Figures(means | {"coco": metrics["coco"]["AP"]}, best and best["threshold"])


def _draw_samples(
    folder: Path, name: str, dataset: Dataset, detections: Sequence[Detections]
) -> list[Path]:
    """Draws objects and detections on some evenly spaced images; returns the written files."""
    count = min(SAMPLE_PICTURES, len(dataset))
    places = np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()
    listed = []
    for number, place in enumerate(places):
        annotation = dataset.annotations[place]
        image = read_image(annotation.image_path)
        draw_truth(image, annotation.boxes_px, annotation.labels)
        draw_detections(image, detections[place], dataset.classes, score_threshold=SHOWN_SCORE)
        picture = f"samples/{name}-{number}.jpg"
        write_picture(folder / picture, image)
        listed.append({"id": annotation.image_id, "picture": picture})
    index = folder / "samples" / f"{name}.json"
    write_json(index, listed)
    return [index, *(folder / entry["picture"] for entry in listed)]
