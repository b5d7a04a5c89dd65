"""Compares runs with published results, for the page of `multibox reproduce`.

The rule of the verdicts, which the page repeats:

- The mean of the classes is *within* if it lies between the lowest and the highest result that is
  published for the network, after rounding to the published decimals. On VOC, all of these networks
  were tested on the same images, so the published results contain the noise of training and the
  differences between implementations. On COCO, they were tested on different images.
- A class has only one published value, of one run. It is *within* if it differs by at most a
  tolerance: two standard deviations of the difference, 2 sqrt(b² + (1 + 1/S) s²). b is the
  standard deviation of our average precision over resampled images (`evaluation/bootstrap.py`), the
  root mean square over the S runs. s is the standard deviation over the seeds, the root mean square
  over all classes, because a few seeds are too few for each class. The published run has the same
  noise, hence 1 + 1/S. With one seed, s is unknown and left out.
- b treats the two networks as if they were tested on different images. Because both saw the same
  ones, b is larger than needed: *above* and *below* are strong statements, *within* is a weak one.
  For about one class in 20, chance alone exceeds a tolerance of two standard deviations.
- A milestone is *within* if it lies between the published runs at this step. Otherwise it has no
  verdict, because one published run has no spread.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from multibox.errors import counted
from multibox.reporting.comparison import Run
from multibox.reporting.record import METRICS
from multibox.reporting.reference import Reference
from multibox.reporting.series import Series, chart
from multibox.reporting.text import ABSENT, decimals, step_label

Judgement = Literal["within", "above", "below", "unknown"]


class Publication(NamedTuple):
    """A published result.

    Attributes:
        value: Mean average precision, 0..1.
        source: Who published it, and where.
    """

    value: float
    source: str


class Published(NamedTuple):
    """What is published on a network and a dataset.

    Attributes:
        metric: The metric of all values, one of METRICS.
        test: The images that they were measured on.
        finals: The results of whole trainings.
        milestones: Results of several runs at the same step.
        decimals: Number of decimals of the published means.
        reference: Name of the reference with a value for each class; empty if there is none.
        same_images: Whether all results were measured on `test`.
    """

    metric: str
    test: str
    finals: tuple[Publication, ...]
    milestones: Mapping[int, tuple[Publication, ...]] = {}
    decimals: int = 3
    reference: str = ""
    same_images: bool = True


class Verdict(NamedTuple):
    """The comparison of one value with what is published.

    Attributes:
        name: A class, or `mean`.
        ours: The mean over the runs, 0..1; NaN if it is unknown.
        low: Lowest value that is within.
        high: Highest value that is within.
        published: The published value; NaN if there are several.
        tolerance: Largest difference from `published` that is within; NaN if there are several.
        judgement: The verdict.
    """

    name: str
    ours: float
    low: float
    high: float
    published: float
    tolerance: float
    judgement: Judgement


def judge(value: float, low: float, high: float) -> Judgement:
    """Returns whether a value lies between two limits; `unknown` if one of them is NaN."""
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return "unknown"
    return "below" if value < low else "above" if value > high else "within"


def judge_mean(values: Sequence[float], finals: Sequence[Publication], places: int) -> Verdict:
    """Returns the verdict on the mean average precision.

    Args:
        values: The mean average precision of each run.
        finals: The published results.
        places: Number of decimals of the published results.
    """
    ours = float(np.mean(values)) if values else math.nan
    low, high = min(final.value for final in finals), max(final.value for final in finals)
    rounded = round(ours, places) if math.isfinite(ours) else ours
    judgement = judge(rounded, low, high)
    return Verdict("mean", ours, low, high, math.nan, math.nan, judgement)


def judge_classes(
    ours: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
    published: Mapping[str, float],
) -> list[Verdict]:
    """Returns the verdicts on the classes, by the rule above.

    Args:
        ours: The average precision of each run by class.
        deviations: The standard deviation over resampled images of each run by class. A class is
            absent if it is unknown.
        published: The published average precision by class.
    """
    spreads = [np.var(values, ddof=1) for values in ours.values() if len(values) > 1]
    known = [spread for spread in spreads if math.isfinite(spread)]
    seeds = float(np.mean(known)) if known else 0.0
    verdicts = []
    for name, value in published.items():
        values = ours.get(name, ())
        mean = float(np.mean(values)) if len(values) else math.nan
        images = float(np.mean(np.square(deviations.get(name, (math.nan,)))))
        runs = max(1, len(values))
        tolerance = 2 * math.sqrt(images + (1 + 1 / runs) * seeds)
        low, high = value - tolerance, value + tolerance
        judgement = judge(mean, low, high)
        verdicts.append(Verdict(name, mean, low, high, value, tolerance, judgement))
    return verdicts


class Reproduction(NamedTuple):
    """Runs beside the published results.

    Attributes:
        runs: The runs, which differ in the seed only.
        published: The published results.
        reference: The published results by class, if there are any.
        mean: The verdict on the mean.
        classes: The verdicts on the classes of the reference.
    """

    runs: Sequence[Run]
    published: Published
    reference: Reference | None
    mean: Verdict
    classes: list[Verdict]


def compare_with_published(
    runs: Sequence[Run], published: Published, reference: Reference | None
) -> Reproduction:
    """Returns runs beside what is published.

    Args:
        runs: The runs.
        published: The published results.
        reference: The published results by class. Its last milestone counts.
    """
    metric = published.metric
    results = [run.result for run in runs if run.result is not None]
    mean = judge_mean([r.mean[metric] for r in results], published.finals, published.decimals)
    verdicts: list[Verdict] = []
    if reference is not None:
        ours = {
            name: [result.classes[metric].get(name, math.nan) for result in results]
            for name in reference.AP
        }
        deviations: dict[str, list[float]] = {}
        for run in runs:
            spread = run.split.analysis.spread if run.split else None
            for key, classes in spread.classes.items() if spread else ():
                for name in classes if key == metric else ():
                    found = deviations.setdefault(name, [])
                    found.append(spread.class_deviation(key, name) if spread else math.nan)
        final = {name: values[-1] for name, values in reference.AP.items()}
        verdicts = judge_classes(ours, deviations, final)
    return Reproduction(runs, published, reference, mean, verdicts)


def sentences(found: Reproduction) -> list[str]:
    """Returns the verdicts in words."""
    mean, places = found.mean, found.published.decimals
    band = f"the published {decimals(mean.low, places=places)} to "
    band += decimals(mean.high, places=places)
    count = sum(run.result is not None for run in found.runs)
    who = "The mAP" if count == 1 else f"The mean mAP of {counted(count, 'seed')}"
    if mean.judgement == "unknown":
        lines = ["There is no result yet."]
    else:
        lines = [f"{who} is {decimals(mean.ours, places=places + 1)}: {mean.judgement} {band}."]
    known = [verdict for verdict in found.classes if verdict.judgement != "unknown"]
    if known:
        counts = [
            f"{sum(verdict.judgement == kind for verdict in known)} {kind}"
            for kind in ("within", "above", "below")
        ]
        expected = max(1, round(len(known) / 20))
        lines.append(
            f"Of {len(known)} classes, {', '.join(counts)} the spread around the published value. "
            f"By chance alone, about {expected} of {len(known)} would be outside."
        )
    elif found.reference is None:
        lines.append("No publication lists the classes, so only the mean has a verdict.")
    return lines


def as_json(found: Reproduction) -> dict[str, Any]:
    """Returns the figures of the page as a JSON object. NaN becomes null."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    def verdict(each: Verdict) -> dict[str, Any]:
        numbers = {name: number(getattr(each, name)) for name in Verdict._fields[1:-1]}
        return {"name": each.name, **numbers, "verdict": each.judgement}

    metric = found.published.metric
    return {
        "metric": metric,
        "runs": [
            {
                "name": run.name,
                "seed": run.record.config["run"]["seed"],
                "steps": run.record.last_step,
                "milestones": {str(e.step): number(e.mean[metric]) for e in run.record.evaluations},
            }
            for run in found.runs
        ],
        "mean": verdict(found.mean),
        "classes": [verdict(each) for each in found.classes],
    }


def page_values(found: Reproduction) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of the template of a reproduction, and what its scripts read."""
    metric = found.published.metric
    charts = {"average_precision": chart("step", _lines(found), unit_range=True)}
    charts = {name: each for name, each in charts.items() if each}
    values = {
        "sentences": sentences(found),
        "metric_name": METRICS[metric],
        "test": found.published.test,
        "published": found.published,
        "publication_rows": [
            [decimals(each.value, places=found.published.decimals), each.source]
            for each in sorted(found.published.finals, reverse=True)
        ],
        "reference_notes": found.reference.notes if found.reference else [],
        "cards": _cards(found),
        "run_rows": [_run_row(run, metric) for run in found.runs],
        "class_header": _class_header(found),
        "class_rows": [_class_row(found, each) for each in found.classes],
        "milestone_rows": _milestone_rows(found),
        "charts": charts,
        "galleries": {},
        "stills": {},
        "refresh": 0,
    }
    return values, {"charts": charts, "galleries": {}, "pictures": [], "samples": []}


def _cards(found: Reproduction) -> list[tuple[str, str, str]]:
    """Returns name, value and explanation of the figures at the top."""
    mean, places = found.mean, found.published.decimals
    inside = sum(each.judgement == "within" for each in found.classes)
    cards = [
        ("mAP", decimals(mean.ours), counted(len(found.runs), "seed")),
        (
            "Published",
            f"{decimals(mean.low, places=places)} to {decimals(mean.high, places=places)}",
            counted(len(found.published.finals), "publication"),
        ),
        ("Verdict on the mean", mean.judgement, "the published spread"),
    ]
    if found.classes:
        cards.append(("Classes within", f"{inside} of {len(found.classes)}", "of their tolerance"))
    return cards


def _lines(found: Reproduction) -> list[Series]:
    metric = found.published.metric
    lines = [
        Series(run.name, {e.step: e.mean[metric] for e in run.record.evaluations})
        for run in found.runs
    ]
    if found.reference is not None:
        points = dict(zip(found.reference.steps, found.reference.mAP, strict=True))
        lines.append(Series(found.reference.title, points, dash=True))
    return lines


def _run_row(run: Run, metric: str) -> list[str]:
    record, result = run.record, run.result
    limits = ABSENT
    if run.split:
        for key in run.split.analysis.spread.means:
            if key == metric:
                low, high = run.split.analysis.spread.interval(key)
                limits = f"{decimals(low, places=3)} to {decimals(high, places=3)}"
    steps = f"{record.last_step:,} of {record.about.planned_steps:,}"
    return [run.name, decimals(result.mean[metric]) if result else ABSENT, limits, steps]


def _class_header(found: Reproduction) -> list[str]:
    names = [run.name for run in found.runs if run.result is not None]
    return ["Published", "Ours", *(names if len(names) > 1 else ()), "Difference", "Tolerance"]


def _class_row(found: Reproduction, each: Verdict) -> tuple[str, list[str], str]:
    runs = [run.result for run in found.runs if run.result is not None]
    metric = found.published.metric
    seeds = [decimals(result.classes[metric].get(each.name, math.nan)) for result in runs]
    cells = [
        decimals(each.published),
        decimals(each.ours),
        *(seeds if len(runs) > 1 else ()),
        decimals(each.ours - each.published, signed=True),
        decimals(each.tolerance),
    ]
    return each.name, cells, each.judgement


def _milestone_rows(found: Reproduction) -> list[list[str]]:
    """Returns step, published values, our values and verdict of each milestone."""
    metric, reference = found.published.metric, found.reference
    by_step: dict[int, list[float]] = {}
    for run in found.runs:
        for evaluation in run.record.evaluations:
            by_step.setdefault(evaluation.step, []).append(evaluation.mean[metric])
    rows = []
    for step in sorted(by_step):
        several = [each.value for each in found.published.milestones.get(step, ())]
        listed = dict(zip(reference.steps, reference.mAP, strict=True)) if reference else {}
        shown = several or ([listed[step]] if step in listed else [])
        ours = float(np.mean(by_step[step]))
        low, high = (min(several), max(several)) if len(several) > 1 else (math.nan, math.nan)
        judgement = judge(round(ours, 3), low, high)
        rows.append(
            [
                step_label(step),
                ", ".join(decimals(value, places=3) for value in shown) or ABSENT,
                ", ".join(decimals(value) for value in by_step[step]),
                ABSENT if judgement == "unknown" else judgement,
            ]
        )
    return rows
