"""Compares runs: their results, whether they differ by more than chance, and their settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from multibox.errors import ConfigError
from multibox.reporting import summary, tables
from multibox.reporting.evaluated import EvaluatedSplit, read_run_data
from multibox.reporting.record import METRICS, Evaluation, Record
from multibox.reporting.series import Series, chart
from multibox.reporting.tables import Cell
from multibox.reporting.text import ABSENT, decimals

MOST_RUNS = 12


class Run(NamedTuple):
    """A run in a comparison.

    Attributes:
        name: A name that no other run has.
        record: The content of its folder.
        result: The evaluation that is its result so far, or None.
        split: The split of the result with the detections, or None if it cannot be read.
    """

    name: str
    record: Record
    result: Evaluation | None
    split: EvaluatedSplit | None

    def mean(self, metric: str) -> float:
        """Returns the mean average precision of the result; NaN if there is none."""
        return self.result.mean[metric] if self.result else math.nan


class Difference(NamedTuple):
    """The difference between the mean average precisions of a run and of the first run.

    Attributes:
        value: The difference; NaN if a run has no result.
        low: Lower limit of the middle 95 % over resamples of the same images; NaN if unknown.
        high: Upper limit.
        seeds: Two standard deviations of the difference over seeds; NaN if no two runs differ only
            in the seed.
    """

    value: float
    low: float
    high: float
    seeds: float

    def verdict(self) -> str:
        """Returns whether the difference exceeds the noise, as far as it is known."""
        if not math.isfinite(self.value):
            return ABSENT
        if not math.isfinite(self.low):
            return "unknown"
        if self.low <= 0 <= self.high:
            return "within the noise of the images"
        if not math.isfinite(self.seeds):
            return "more than the noise of the images; that of the seeds is unknown"
        if abs(self.value) <= self.seeds:
            return "within the noise of the seeds"
        return "more than the noise"


def name_runs(records: Sequence[Record]) -> list[str]:
    """Returns the names of the runs' folders, or their paths where names are equal."""
    names = [record.folder.resolve().name for record in records]
    return [
        name if names.count(name) == 1 else str(record.folder)
        for name, record in zip(names, records, strict=True)
    ]


def read_runs(records: Sequence[Record]) -> list[Run]:
    """Returns the runs with their results.

    Raises:
        ConfigError: There are more than `MOST_RUNS`.
    """
    if len(records) > MOST_RUNS:
        raise ConfigError(
            f"{len(records)} runs are too many for one page",
            remedy=f"Compare at most {MOST_RUNS}",
        )
    runs = []
    for name, record in zip(name_runs(records), records, strict=True):
        result = summary.result(record)
        split = read_run_data(record, result).evaluated if result else None
        runs.append(Run(name, record, result, split))
    return runs


def difference(run: Run, first: Run, metric: str, seeds: float) -> Difference:
    """Returns how much better a run is than the first one.

    Both are resampled with the same images, so what makes images hard for both cancels out.

    Args:
        run: The run.
        first: The first run.
        metric: One of METRICS.
        seeds: Standard deviation of a result over seeds; NaN if unknown.
    """
    value, low, high = run.mean(metric) - first.mean(metric), math.nan, math.nan
    ours, theirs = run.split, first.split
    if ours and theirs and ours.dataset.digest == theirs.dataset.digest:
        for name, means in ours.analysis.spread.means.items():
            if name == metric:
                gaps = means - theirs.analysis.spread.means[name]
                gaps = gaps[~np.isnan(gaps)]
                low, high = np.quantile(gaps, (0.025, 0.975)).tolist() if len(gaps) else (low, high)
    return Difference(value, low, high, 2 * math.sqrt(2) * seeds)


class SeedGroup(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
        runs: The runs, at least two.
        mean: Mean of their results.
        deviation: Standard deviation of their results over the seeds.
    """

    runs: list[Run]
    mean: float
    deviation: float

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return [run.name for run in self.runs]

    def error(self) -> float:
        """Returns the standard error of the mean."""
        return self.deviation / math.sqrt(len(self.runs))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean and the standard deviation of a sample of at least two."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def seed_groups(runs: Sequence[Run], metric: str) -> list[SeedGroup]:
    """Returns the groups of runs that differ only in the seed, in the order of the runs."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.record).items() if key != "run.seed"}
        if math.isfinite(run.mean(metric)):
            key = repr((sorted(settings.items()), run.record.facts.get("data_root")))
            groups.setdefault(key, {}).setdefault(run.record.config["run"]["seed"], run)
    return [
        SeedGroup(group, *mean_and_deviation([run.mean(metric) for run in group]))
        for group in (list(by_seed.values()) for by_seed in groups.values())
        if len(group) > 1
    ]


def flat(record: Record) -> dict[str, Any]:
    """Returns the settings of a run by section and name."""
    settings = {}
    for section, value in record.config.items():
        if isinstance(value, dict):
            settings.update({f"{section}.{name}": setting for name, setting in value.items()})
        else:
            settings[section] = value
    return settings


class Comparison(NamedTuple):
    """What a comparison shows.

    Attributes:
        values: The values of the templates.
        data: What the scripts of the page read.
        curves: The lines of each chart, by its key.
    """

    values: dict[str, Any]
    data: dict[str, Any]
    curves: dict[str, list[Series]]


CURVES = {
    "average_precision": "Mean average precision",
    "validation": "Validation loss",
    "training": "Training loss",
}
"""The titles of the charts by key."""


def compare(runs: Sequence[Run], metric: str) -> Comparison:
    """Returns what a comparison shows.

    Args:
        runs: The runs, at least two. The others are compared with the first.
        metric: One of METRICS.
    """
    groups = seed_groups(runs, metric)
    spread = math.sqrt(np.mean([g.deviation**2 for g in groups])) if groups else math.nan
    base = next((group for group in groups if runs[0].name in group.names), None)
    first = base.names if base else [runs[0].name]
    gaps = {
        run.name: difference(run, runs[0], metric, spread) for run in runs if run.name not in first
    }
    curves = _curves(runs, metric)
    charts = {
        key: chart("step", lines, logarithmic=not precise, unit_range=precise, digits=3 + precise)
        for key, lines in curves.items()
        for precise in (key == "average_precision",)
    }
    same = len(first) == len(runs)
    named = ["Mean", "Standard deviation"] if same else ["Span"]
    values = {
        "names": [run.name for run in runs],
        "metric_name": METRICS[metric],
        "sentences": [
            *(_seed_sentence(group, metric) for group in groups),
            *(_group_sentence(group, base) for group in groups if base and group is not base),
            *_sentences(runs[0], gaps, groups if base else [], spread),
        ],
        "header": [
            *(f"AP {name}" for name in METRICS.values()),
            "Interval",
            *(["Difference", "Verdict"] if gaps else []),
            "Steps",
            "Time",
        ],
        "rows": [_row(run, gaps, metric) for run in runs],
        "means": [
            _mean_row(group, f"{len(group.runs)} seeds" if same else ", ".join(group.names), gaps)
            for group in groups
        ],
        "class_header": [*(run.name for run in runs), *named],
        "class_rows": _class_rows(runs, "voc07" if metric == "coco" else metric, same=same),
        "settings": _settings(runs),
        "titles": CURVES,
        "charts": charts,
        "galleries": {},
        "refresh": 0,
    }
    data = {"charts": charts, "galleries": {}, "pictures": [], "samples": []}
    return Comparison(values, data, curves)


def _sentences(
    first: Run, gaps: Mapping[str, Difference], compared: Sequence[SeedGroup], spread: float
) -> list[str]:
    """Returns a sentence on each run that is not in a group that was compared as a whole."""
    if compared and not gaps:
        limit = decimals(2 * math.sqrt(2) * spread, places=3)
        return [
            "If you change a setting and train once, the result exceeds the noise of the seeds if "
            f"it is more than {limit} (2√2 standard deviations) away from one of these."
        ]
    grouped = {name for group in compared for name in group.names}
    found = [
        f"{name} is {_higher(gap.value)} than {first.name}.{_limits(gap)} This is {gap.verdict()}."
        for name, gap in gaps.items()
        if name not in grouped and math.isfinite(gap.value)
    ]
    return found if found or compared else ["There are not yet two results to compare."]


def _higher(value: float) -> str:
    return f"{decimals(abs(value), places=3)} {'higher' if value >= 0 else 'lower'}"


def _limits(gap: Difference) -> str:
    if not math.isfinite(gap.low):
        return ""
    low, high = (decimals(limit, places=3, signed=True) for limit in (gap.low, gap.high))
    return f" With other images, the difference would be {low} to {high} in 95 of 100 cases."


def _seed_sentence(group: SeedGroup, metric: str) -> str:
    results = [run.mean(metric) for run in group.runs]
    low, high = (decimals(value, places=3) for value in (min(results), max(results)))
    return (
        f"{', '.join(group.names)} differ only in the seed. Their AP ({METRICS[metric]}) is "
        f"{decimals(group.mean, places=3)} ± {decimals(group.deviation, places=3)}: mean and "
        f"standard deviation over {len(group.runs)} seeds, from {low} to {high}."
    )


def _group_sentence(group: SeedGroup, base: SeedGroup) -> str:
    """Returns a sentence on a group, compared with that of the first run."""
    gap, noise = group.mean - base.mean, 2 * math.hypot(group.error(), base.error())
    verdict = "more than" if abs(gap) > noise else "within"
    return (
        f"The mean of {', '.join(group.names)} is {_higher(gap)} than that of "
        f"{', '.join(base.names)}. Two standard errors of this difference are "
        f"{decimals(noise, places=3)}, so it is {verdict} the noise of the seeds."
    )


def _row(run: Run, gaps: Mapping[str, Difference], metric: str) -> tuple[str, list[Cell]]:
    """Returns the results of a run, with a difference if any run has one."""
    record = run.record
    interval = ABSENT
    for name in run.split.analysis.spread.means if run.split else ():
        if run.split and name == metric:
            low, high = run.split.analysis.spread.interval(name)
            interval = f"{decimals(low, places=3)} to {decimals(high, places=3)}"
    gap = gaps.get(run.name)
    shown = [
        *(decimals(run.mean(name)) for name in METRICS),
        interval,
        *([decimals(gap.value, signed=True), gap.verdict()] if gap else [ABSENT] * 2 * bool(gaps)),
        f"{record.last_step:,}",
        tables.time_rows(record)[-1][2] if record.timings else ABSENT,
    ]
    return run.name, [Cell(text) for text in shown]


def _mean_row(
    group: SeedGroup, name: str, gaps: Mapping[str, Difference]
) -> tuple[str, list[Cell]]:
    cells = [Cell(_with_deviation([run.mean(metric) for run in group.runs])) for metric in METRICS]
    return f"mean of {name}", [*cells, *[Cell("")] * (5 if gaps else 3)]


def _with_deviation(values: Sequence[float]) -> str:
    mean, deviation = mean_and_deviation(values)
    return f"{decimals(mean)} ± {decimals(deviation)}" if math.isfinite(mean) else ABSENT


def _class_rows(runs: Sequence[Run], metric: str, *, same: bool) -> list[tuple[str, list[Cell]]]:
    """Returns the average precisions of each class in each run, and how much they vary.

    Args:
        runs: The runs.
        metric: The metric.
        same: Whether they differ only in the seed.
    """
    names = dict.fromkeys(name for run in runs for name in run.record.about.classes)
    rows = []
    for name in names:
        aps = [
            run.result.classes[metric].get(name, math.nan) if run.result else math.nan
            for run in runs
        ]
        known = [ap for ap in aps if math.isfinite(ap)]
        span = max(known) - min(known) if known else math.nan
        spread = [*mean_and_deviation(aps)] if same else [span]
        rows.append((name, [Cell(decimals(value)) for value in (*aps, *spread)]))
    return rows


def _settings(runs: Sequence[Run]) -> list[list[str]]:
    """Returns the settings and facts in which the runs differ."""
    every = []
    for run in runs:
        facts = run.record.facts
        more = {"data": facts.get("data_root"), "data digest": facts.get("data_digest")}
        more |= {"initial weights": facts.get("init_digest"), "multibox": facts.get("multibox")}
        every.append(flat(run.record) | more)
    return [
        [name, *(str(settings.get(name, ABSENT)) for settings in every)]
        for name in dict.fromkeys(name for settings in every for name in settings)
        if len({repr(settings.get(name)) for settings in every}) > 1
    ]


def _curves(runs: Sequence[Run], metric: str) -> dict[str, list[Series]]:
    """Returns the lines of each chart. One step alone makes no curve."""
    read: dict[str, Callable[[Record], dict[int, float]]] = {
        "average_precision": lambda record: {e.step: e.mean[metric] for e in record.evaluations},
        "validation": lambda record: {loss.step: loss.multibox for loss in record.validation},
        "training": lambda record: {loss.step: loss.multibox for loss in record.training},
    }
    curves = {
        key: [Series(run.name, points) for run in runs if (points := of_run(run.record))]
        for key, of_run in read.items()
    }
    return {
        key: lines
        for key, lines in curves.items()
        if len(set().union(*(line.points for line in lines))) > 1
    }
