"""The data of the charts on the page, as JSON values: lines over a common axis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from multibox.reporting.record import METRICS, Evaluation, Loss, Record
from multibox.reporting.reference import Reference
from multibox.reporting.text import decimals, printable, rate, step_label

MOST_POINTS = 2_000
"""Largest number of points of a line. Of more, evenly spaced ones are shown."""

SHOWN_CLASSES = 6
"""Number of classes with a visible line at first, if there are more."""

_GRID = [place / 100 for place in range(101)]


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: Its name.
        points: Values by place on the axis.
        dash: Whether it is dashed.
        shown: Whether it is visible at first.
    """

    name: str
    points: Mapping[Any, float]
    dash: bool = False
    shown: bool = True


def chart(
    axis: str,
    series: Sequence[Series],
    *,
    marks: Sequence[tuple[int | float, str]] = (),
    unit_range: bool = False,
    logarithmic: bool = False,
    digits: int = 4,
) -> dict[str, Any] | None:
    """Returns a chart as a JSON value, or None if it has no point.

    Args:
        axis: Name of the horizontal axis: `step`, or a number in 0..1.
        series: The lines.
        marks: Vertical lines with a text.
        unit_range: Whether the values lie in 0..1.
        logarithmic: Whether a wide range of positive values has a logarithmic axis.
        digits: Number of decimals of the values.

    Returns:
        `axis`, `places`, `series` (`name`, `values` with None where there is none, `dash`,
        `shown`), `marks`, `unitRange`, `logarithmic`, `digits`, and `summary`: sentences for
        readers who cannot see it.
    """
    lines = [line for line in series if any(map(math.isfinite, line.points.values()))]
    if not lines:
        return None
    places = sorted(set().union(*(line.points for line in lines)))
    return {
        "axis": axis,
        "places": places,
        "series": [
            {
                "name": printable(line.name),
                "values": [_number(line.points.get(place, math.nan), digits) for place in places],
                "dash": line.dash,
                "shown": line.shown,
            }
            for line in lines
        ],
        "marks": [[step, text] for step, text in marks],
        "unitRange": unit_range,
        "logarithmic": logarithmic,
        "digits": digits,
        "summary": " ".join(_describe(line, axis, digits) for line in lines if line.shown),
    }


def _number(value: float, digits: int) -> float | None:
    return round(value, digits + 2) if math.isfinite(value) else None


def _describe(line: Series, axis: str, digits: int) -> str:
    known = [(place, value) for place, value in sorted(line.points.items()) if value == value]
    (first, start), (last, end) = known[0], known[-1]
    name = printable(line.name)
    if len(known) == 1:
        return f"{name}: {decimals(start, places=digits)} at {axis} {step_label(first)}."
    return (
        f"{name}: from {decimals(start, places=digits)} at {axis} {step_label(first)} to "
        f"{decimals(end, places=digits)} at {axis} {step_label(last)}."
    )


def _thin(losses: Sequence[Loss]) -> list[Loss]:
    if len(losses) <= MOST_POINTS:
        return list(losses)
    last = MOST_POINTS - 1
    return [losses[round(n * (len(losses) - 1) / last)] for n in range(MOST_POINTS)]


def events(record: Record) -> list[tuple[int | float, str]]:
    """Returns the steps of drops of the learning rate and of rollbacks, with a text."""
    return [
        *((drop.step, f"lr {rate(drop.lr)}") for drop in record.drops),
        *((back.step, f"rollback to {back.to:,}") for back in record.rollbacks),
    ]


def loss_chart(record: Record, reference: Reference | None) -> dict[str, Any] | None:
    """Returns the chart of the losses. At first it shows the multibox loss only."""
    lines = []
    for name, losses in (("training", record.training), ("validation", record.validation)):
        thin = _thin(losses)
        lines += [
            Series(name, {loss.step: loss.multibox for loss in thin}),
            Series(f"{name} with L2", {loss.step: loss.total for loss in thin}, True, False),
            Series(
                f"{name} confidence", {loss.step: loss.confidence for loss in thin}, True, False
            ),
            Series(
                f"{name} localization", {loss.step: loss.localization for loss in thin}, True, False
            ),
        ]
    if reference is not None:
        for name in ("training", "validation"):
            points = dict(zip(reference.loss_steps, reference.loss[name], strict=True))
            lines.append(Series(f"ref. {name} with L2", points, True))
    return chart("step", lines, marks=events(record), logarithmic=True, digits=3)


def rate_chart(record: Record) -> dict[str, Any] | None:
    """Returns the chart of the learning rate."""
    points = {loss.step: loss.lr for loss in _thin(record.training)}
    return chart("step", [Series("learning rate", points)], marks=events(record), digits=7)


def precision_chart(
    record: Record, metric: str, reference: Reference | None
) -> dict[str, Any] | None:
    """Returns the chart of the average precision over steps: the means, and each class."""
    every = record.evaluations
    lines = [Series(name, {e.step: e.mean[key] for e in every}) for key, name in METRICS.items()]
    lines += [
        Series(name, {e.step: e.classes[metric].get(name, math.nan) for e in every}, True, False)
        for name in record.about.classes
    ]
    if reference is not None:
        points = dict(zip(reference.steps, reference.mAP, strict=True))
        lines.append(Series(f"ref. {METRICS[reference.metric]}", points, True))
    return chart("step", lines, marks=events(record), unit_range=True)


def recall_chart(evaluation: Evaluation, metric: str) -> dict[str, Any] | None:
    """Returns the chart of precision over recall: the best precision at each recall."""
    aps = evaluation.classes[metric]
    order = sorted(evaluation.curves, key=lambda name: _or_none(aps.get(name, math.nan)))
    lines = []
    for name in evaluation.curves:
        curve = evaluation.curves[name]
        pairs = sorted(zip(curve.recall, curve.precision, strict=True), reverse=True)
        points, best = {}, 0.0
        for place in reversed(_GRID):
            while pairs and pairs[0][0] >= place:
                best = max(best, pairs.pop(0)[1])
            points[place] = best
        lines.append(Series(name, points, shown=name in order[:SHOWN_CLASSES]))
    return chart("recall", lines, unit_range=True)


def _or_none(value: float) -> float:
    """Returns the key that sorts classes without an AP last."""
    return value if math.isfinite(value) else 2.0


def threshold_chart(curves: Sequence[Series], threshold: float) -> dict[str, Any] | None:
    """Returns the chart of precision, recall and F1 over the score threshold."""
    marks = [(threshold, f"best F1 at {threshold:.2f}")]
    return chart("score threshold", curves, marks=marks, unit_range=True)
