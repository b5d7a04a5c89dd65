"""Everything that the templates of the report show."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from multibox.config import Config
from multibox.errors import MultiboxError
from multibox.reporting import advice, series, summary, tables
from multibox.reporting.advice import Confused, Facts, Found
from multibox.reporting.analysis_tables import (
    class_header,
    class_rows,
    confusion_rows,
    error_bars,
    position_rows,
    shape_bars,
    size_bars,
    threshold_series,
)
from multibox.reporting.evaluated import EvaluatedSplit, read_run_data
from multibox.reporting.galleries import galleries
from multibox.reporting.gallery_pictures import embed
from multibox.reporting.incidents import Gallery
from multibox.reporting.record import METRICS, Evaluation, Record
from multibox.reporting.reference import Reference
from multibox.reporting.tables import Cell
from multibox.reporting.text import decimals
from multibox.reporting.training_data import MATCHED, TrainingData, describe_training_data

TOGETHER = 20
"""Largest number of classes in the table of classes in the same image."""


class Context(NamedTuple):
    """What a report shows.

    Attributes:
        values: The values of the templates.
        data: What the scripts of the page read: charts, pictures, galleries and samples.
    """

    values: dict[str, Any]
    data: dict[str, Any]


def build_context(record: Record, metric: str, reference: Reference | None) -> Context:
    """Returns everything that a report shows.

    Args:
        record: The run.
        metric: The metric of the tables by class and step.
        reference: Published results to show beside the run's, or None.
    """
    result = summary.result(record)
    read = read_run_data(record, result)
    split, absent = read.evaluated, list(read.absent)
    seen = None
    if read.train is not None:
        config = Config.from_json(json.dumps(record.config))
        try:
            seen = describe_training_data(read.train, config, record.facts.get("fitted_boxes"))
        except (MultiboxError, ValueError) as error:
            absent.append(f"The training images cannot be read: {error}.")
    found = galleries(split) if split else {}
    facts = gather_facts(record, result, split, seen, found)
    charts = _charts(record, result, split, metric, reference)
    embedded = embed(split, found) if split else {"pictures": [], "galleries": {}}
    samples = seen.samples if seen else []
    values = {
        **_run_values(record, result, metric, reference),
        **_answers(facts),
        **(_error_values(split, found) if split else {}),
        "class_header": class_header(reference),
        "class_rows": class_rows(record, result, split, reference) if result else [],
        "split": split,
        "absent": absent,
        "charts": charts,
        "galleries": embedded["galleries"],
        "seen": seen,
        "together": _together(seen, record.about.classes) if seen else [],
        "matched": MATCHED,
        "threshold_sentence": _threshold_sentence(split) if split else "",
    }
    return Context(values, {"charts": charts, "samples": samples, **embedded})


def _run_values(
    record: Record, result: Evaluation | None, metric: str, reference: Reference | None
) -> dict[str, Any]:
    images_per_second, data_wait = tables.speed(record)
    every = record.evaluations
    means = result.mean if result else {}
    return {
        "about": record.about,
        "classes": record.about.classes,
        "run_name": record.folder.resolve().name,
        "run_path": str(record.folder),
        "evaluation": result,
        "last_step": record.last_step,
        "title": summary.title(record),
        "summary": summary.summary(record),
        "data": summary.split_sentences(record),
        "result_role": "Test" if summary.has_test_split(record) else "Validation",
        "metric_names": METRICS,
        "metric": metric,
        "other_means": [
            ("COCO AP" if key == "coco" else f"mAP, {name}", decimals(means[key]))
            for key, name in METRICS.items()
            if result and key != result.metric and math.isfinite(means[key])
        ],
        "precision": tables.precision_table(record, metric, reference) if every else None,
        "coco_rows": tables.coco_rows(result) if result else [],
        "reference": reference,
        "loss_rows": tables.loss_rows(record, reference) if reference else [],
        "drops": tables.drop_rows(record),
        "rollbacks": tables.rollback_rows(record),
        "object_rows": tables.object_rows(record),
        "config_rows": tables.config_rows(record),
        "environment_rows": tables.environment_rows(record),
        "time_rows": tables.time_rows(record) if record.timings else [],
        "images_per_second": images_per_second,
        "data_wait": data_wait,
    }


def _answers(facts: Facts) -> dict[str, Any]:
    low, high = facts.interval
    known = math.isfinite(low)
    return {
        "good": advice.how_good(facts),
        "wrong": advice.what_is_wrong(facts),
        "next": advice.what_next(facts),
        "interval": f"{decimals(low, places=3)} to {decimals(high, places=3)}" if known else "",
    }


def _error_values(split: EvaluatedSplit, found: Mapping[str, Gallery]) -> dict[str, Any]:
    objects = split.analysis.found_objects
    errors, sizes = error_bars(split, found), size_bars(objects.sizes)
    return {
        "errors": errors,
        "error_rows": [[bar.name, bar.cost, f"{bar.number:,}"] for bar in errors],
        "size_rows": [[bar.name, f"{bar.found:,}", f"{bar.missed:,}", bar.recall] for bar in sizes],
        "confusion": confusion_rows(split),
        "sizes": sizes,
        "aspects": shape_bars(objects.aspects),
        "positions": position_rows(objects.found_at, objects.missed_at),
    }


def _charts(
    record: Record,
    result: Evaluation | None,
    split: EvaluatedSplit | None,
    metric: str,
    reference: Reference | None,
) -> dict[str, Any]:
    charts = {"loss": series.loss_chart(record, reference), "rate": series.rate_chart(record)}
    if len(record.evaluations) > 1 or (record.evaluations and reference):
        charts["average_precision"] = series.precision_chart(record, metric, reference)
    if result and result.curves:
        charts["curves"] = series.recall_chart(result, metric)
    if split:
        threshold = split.analysis.score_threshold
        charts["threshold"] = series.threshold_chart(threshold_series(split), threshold)
    return {name: chart for name, chart in charts.items() if chart}


def gather_facts(
    record: Record,
    result: Evaluation | None,
    split: EvaluatedSplit | None,
    seen: TrainingData | None,
    found: Mapping[str, Gallery],
) -> Facts:
    """Returns the figures that the sentences of the report follow from."""
    every = record.evaluations
    declared = result.metric if result else "voc07"
    counts = record.about.train.objects
    rarest = min(counts, key=lambda name: counts[name]) if counts else None
    facts = Facts(
        run=str(record.folder),
        last_step=record.last_step,
        planned_steps=record.about.planned_steps,
        stopped_early=summary.stopped_early(record),
        means=tuple(e.mean[declared] for e in every),
        training_loss=record.training[-1].multibox if record.training else math.nan,
        validation_losses=tuple(loss.multibox for loss in record.validation),
        forced=seen.forced if seen else math.nan,
        fitted=bool(record.facts.get("fitted_boxes")),
        rarest=(rarest, counts[rarest]) if rarest is not None else None,
    )
    if result is None:
        return facts
    aps = result.classes["voc07" if declared == "coco" else declared]
    known = {name: ap for name, ap in aps.items() if math.isfinite(ap)}
    weakest = min(known, key=lambda name: known[name]) if len(known) > 1 else None
    facts = facts._replace(
        metric="COCO AP" if declared == "coco" else f"mAP ({METRICS[declared]})",
        mean=result.mean[declared],
        images=result.images,
        objects=result.objects,
        weakest=(weakest, known[weakest]) if weakest is not None else None,
    )
    return facts if split is None else _with_analysis(facts, declared, split, found)


def _with_analysis(
    facts: Facts, declared: str, split: EvaluatedSplit, found: Mapping[str, Gallery]
) -> Facts:
    analysis = split.analysis
    for metric in analysis.spread.means:
        if metric == declared:
            facts = facts._replace(
                interval=analysis.spread.interval(metric),
                deviation=analysis.spread.deviation(metric),
            )
    groups = analysis.found_objects.coco_sizes
    small, *larger = zip(
        groups.found.sum(axis=0).tolist(), groups.missed.sum(axis=0).tolist(), strict=True
    )
    counts = analysis.confusion.counts[:-1, :-1].copy()
    np.fill_diagonal(counts, 0)
    row, column = divmod(int(counts.argmax()), len(counts))
    names = analysis.confusion.classes
    count = int(counts[row, column])
    return facts._replace(
        costs={str(kind): cost for kind, cost in analysis.errors.costs.items()},
        confused=Confused(names[row], names[column], count) if count else None,
        small=Found(*small),
        larger=Found(*map(sum, zip(*larger, strict=True))),
        unannotated=found["doubt-missing-label"].total,
    )


def _together(seen: TrainingData, classes: list[str]) -> list[tuple[str, list[Cell]]]:
    if len(classes) < 2:
        return []
    counts = seen.together
    order = np.argsort(-counts.diagonal(), kind="stable")[:TOGETHER]
    chosen = np.sort(order)
    most = max(1, int(counts.max()))
    return [
        (classes[row], [Cell(f"{n:,}", "", n / most) for n in counts[row, chosen].tolist()])
        for row in chosen.tolist()
    ]


def _threshold_sentence(split: EvaluatedSplit) -> str:
    best = split.analysis.all_thresholds.best()
    if best is None:
        return "No detection is right, so no threshold is better than another."
    return (
        f"The best F1 over all classes is {decimals(best.f1, places=3)}, at a score threshold of "
        f"{best.threshold:.2f}: {best.right:,} right and {best.wrong:,} wrong detections, and "
        f"{best.missed:,} missed objects. It was chosen on these images, so other images give a "
        "slightly lower F1. The weights store the threshold of the last evaluation in training, "
        "and `predict` uses it."
    )
