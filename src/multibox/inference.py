"""Runs a network over a split: detections, validation loss and scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from multibox.build import matcher
from multibox.data.collate import Match, unmatched
from multibox.data.dataset import Annotation, Dataset
from multibox.data.pipeline import PlainExamples, batches
from multibox.data.workers import OnLoss, ignore_loss
from multibox.evaluation.coco import evaluate_coco
from multibox.evaluation.confidence import threshold_curve
from multibox.evaluation.results import by_class_in_pixels
from multibox.evaluation.voc import (
    ClassDetections,
    ClassObjects,
    Curve,
    average,
    curve_of,
    judge_classes,
)
from multibox.export.runtimes import ExportedDetector
from multibox.precision import autocast
from multibox.processes.distributed import Processes, gather, sum_over_processes
from multibox.ssd.loss import multibox_loss
from multibox.ssd.network import SSD
from multibox.structures import Batch, Detections, Output

CURVE_POINTS = 200
"""Number of points of a precision-recall curve that are saved for drawing."""


class EvaluationSettings(NamedTuple):
    """How a network is run over a split.

    Attributes:
        batch_size: Number of images per batch, in each process.
        workers: Number of worker processes that prepare images.
        precision: The dtype in which the network computes.
        processes: This process among the others. They share the images.
        on_loss: Called with the reason when workers are replaced.
    """

    batch_size: int
    workers: int
    precision: torch.dtype
    processes: Processes
    on_loss: OnLoss = ignore_loss


class ValidationLoss(NamedTuple):
    """The multibox loss over a split, without augmentation and without difficult objects.

    Attributes:
        confidence: Confidence loss, summed over all images and divided by all positives.
        localization: Localization loss, summed over all images and divided by all positives.
    """

    confidence: float
    localization: float


def _batches(
    image_size_px: tuple[int, int],
    annotations: Sequence[Annotation],
    settings: EvaluationSettings,
    match: Match,
) -> Iterator[Batch]:
    """Returns this process's share of the images, in batches."""
    processes, size = settings.processes, settings.batch_size
    numbers = range(processes.rank, len(annotations), processes.world_size)
    return batches(
        PlainExamples(annotations, image_size_px),
        [list(numbers[i : i + size]) for i in range(0, len(numbers), size)],
        workers=settings.workers,
        pin_memory=processes.device.type == "cuda",
        match=match,
        on_loss=settings.on_loss,
    )


def _outputs(
    network: SSD,
    annotations: Sequence[Annotation],
    settings: EvaluationSettings,
    match: Match = unmatched,
) -> Iterator[tuple[Batch, Output]]:
    """Yields this process's share of the images, in batches, with the outputs of the network."""
    processes = settings.processes
    network.eval()
    for batch in _batches(network.image_size_px, annotations, settings, match):
        with torch.inference_mode(), autocast(settings.precision, processes.device):
            output = network(batch.images.to(processes.device, non_blocking=True))
        yield batch, output


def validation_loss(network: SSD, dataset: Dataset, settings: EvaluationSettings) -> ValidationLoss:
    """Returns the loss over a split. It is the same on every process."""
    device = settings.processes.device
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    one = torch.ones((), device=device)
    match = matcher(network, difficult=False)
    for batch, output in _outputs(network, dataset.annotations, settings, match):
        matches = batch.matches.to(device)
        losses = multibox_loss(output, matches, one)
        positives = (matches.classes > 0).sum()
        sums += torch.stack([losses.confidence, losses.localization, positives]).double()
    confidence, localization, positives = sum_over_processes(sums, settings.processes).tolist()
    return ValidationLoss(confidence / max(1, positives), localization / max(1, positives))


def detect_all(
    network: SSD | ExportedDetector, dataset: Dataset, settings: EvaluationSettings
) -> list[Detections]:
    """Returns the detections in each image of a split. They are the same on every process."""
    rows = [torch.zeros(0, 7, dtype=torch.float64)]
    for batch, detections in _detections(network, dataset.annotations, settings):
        for index, found in zip(batch.indices.tolist(), detections, strict=True):
            scores, labels = found.scores.unsqueeze(1), found.labels.unsqueeze(1)
            columns = [torch.full_like(scores, index), labels, scores, found.boxes]
            rows.append(torch.cat([column.double() for column in columns], dim=1).cpu())
    table = gather(torch.cat(rows).to(settings.processes.device), settings.processes).cpu()
    table = table[table[:, 0].argsort(stable=True)]
    counts = torch.bincount(table[:, 0].long(), minlength=len(dataset)).tolist()
    return [
        Detections(part[:, 3:].float(), part[:, 2].float(), part[:, 1].long())
        for part in torch.split(table, counts)
    ]


def _detections(
    network: SSD | ExportedDetector, annotations: Sequence[Annotation], settings: EvaluationSettings
) -> Iterator[tuple[Batch, list[Detections]]]:
    if isinstance(network, ExportedDetector):
        for batch in _batches(network.image_size_px, annotations, settings, unmatched):
            yield batch, network.detect(batch.images.permute(0, 2, 3, 1).contiguous().numpy())
        return
    for batch, output in _outputs(network, annotations, settings):
        yield batch, network.detect(output)


def objects_by_class(dataset: Dataset) -> dict[str, ClassObjects]:
    """Returns the annotated objects of each class, with boxes in pixels as annotated."""
    annotations = dataset.annotations
    counts = [len(annotation.labels) for annotation in annotations]
    images = np.repeat(np.arange(len(annotations)), counts)
    labels = np.concatenate([annotation.labels for annotation in annotations])
    boxes_px = np.concatenate([a.boxes_px for a in annotations]).astype(np.float64)
    difficult = np.concatenate([annotation.difficult for annotation in annotations])
    areas_px2 = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(axis=1)
    stated = np.repeat([a.areas_px2 is not None for a in annotations], counts)
    if stated.any():
        areas_px2[stated] = np.concatenate(
            [a.areas_px2 for a in annotations if a.areas_px2 is not None]
        )
    columns = images, boxes_px, difficult, areas_px2
    return {
        name: ClassObjects(*(column[labels == label] for column in columns))
        for label, name in enumerate(dataset.classes)
    }


def detections_by_class(
    dataset: Dataset, detections: Sequence[Detections]
) -> dict[str, ClassDetections]:
    """Returns the detections of each class, with boxes clipped to the image and in pixels."""
    return by_class_in_pixels(detections, sizes_px(dataset), dataset.classes)


def sizes_px(dataset: Dataset) -> Int64[np.ndarray, "I 2"]:
    """Returns height and width of each image in pixels."""
    return np.array([(a.height_px, a.width_px) for a in dataset.annotations], np.int64)


def score(
    detections: Mapping[str, ClassDetections], objects: Mapping[str, ClassObjects]
) -> dict[str, Any]:
    """Returns all metrics as JSON values.

    Args:
        detections: The detections of each class.
        objects: The objects of each class.

    Returns:
        `voc07` and `voc12` with `mAP` and `AP` by class; `coco`; `best_f1`, the results at the
        score threshold with the best F1 over all classes; and `curves`, the precision-recall curve
        of each class. A value is None if there are no objects to average over. `best_f1` is None if
        no detection is right.
    """
    verdicts = judge_classes(detections, objects)
    curves = {name: curve_of(each) for name, each in verdicts.items()}
    best = threshold_curve([*verdicts.values()]).best()
    voc07, voc12 = average(curves, "voc07"), average(curves, "voc12")
    coco = evaluate_coco(detections, objects)
    return {
        "voc07": {"mAP": _number(voc07.mean), "AP": _numbers(voc07.by_class)},
        "voc12": {"mAP": _number(voc12.mean), "AP": _numbers(voc12.by_class)},
        "coco": {
            "AP": _number(coco.mean),
            "AP50": _number(coco.ap50),
            "AP75": _number(coco.ap75),
            "AP_small": _number(coco.small),
            "AP_medium": _number(coco.medium),
            "AP_large": _number(coco.large),
            "AP_by_class": _numbers(coco.by_class),
        },
        "best_f1": best and best.as_json(),
        "curves": {name: _thinned(curve) for name, curve in curves.items()},
    }


def _number(value: float) -> float | None:
    """Returns the number, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else value


def _numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _thinned(curve: Curve) -> dict[str, list[float]]:
    """Returns at most `CURVE_POINTS` points of a curve: points where recall rises, and the last."""
    if curve.num_objects == 0 or len(curve.recall) == 0:
        return {"recall": [], "precision": [], "scores": []}
    rises = np.flatnonzero(np.diff(curve.recall, prepend=0) > 0)
    corners = np.union1d(rises, len(curve.recall) - 1)
    count = min(CURVE_POINTS, len(corners))
    places = corners[np.linspace(0, len(corners) - 1, count).round().astype(int)]
    return {
        name: getattr(curve, name)[places].round(6).tolist()
        for name in ("recall", "precision", "scores")
    }
