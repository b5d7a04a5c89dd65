"""Compares runs: their results, whether they differ by more than chance, and their settings."""

import math
from collections.abc import Sequence
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
    nan = math.nan
    if run.result is None or first.result is None:
        return Difference(nan, nan, nan, nan)
    value = run.result.mean[metric] - first.result.mean[metric]
    low = high = nan
    ours, theirs = run.split, first.split
    if ours and theirs and ours.dataset.digest == theirs.dataset.digest:
        for name, means in ours.analysis.spread.means.items():
            if name == metric:
                gaps = means - theirs.analysis.spread.means[name]
                gaps = gaps[~np.isnan(gaps)]
                low, high = np.quantile(gaps, (0.025, 0.975)).tolist() if len(gaps) else (nan, nan)
    return Difference(value, low, high, 2 * math.sqrt(2) * seeds)


def seed_groups(runs: Sequence[Run], metric: str) -> list[tuple[list[Run], float, float]]:
    """Returns the groups of runs that differ only in the seed, with mean and standard deviation."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        settings = {key: value for key, value in flat(run.record).items() if key != "run.seed"}
        if run.result is not None and math.isfinite(run.result.mean[metric]):
            key = repr((sorted(settings.items()), run.record.facts.get("data_root")))
            groups.setdefault(key, {}).setdefault(run.record.config["run"]["seed"], run)
    found = []
    for group in (list(by_seed.values()) for by_seed in groups.values()):
        values = [run.result.mean[metric] for run in group if run.result]
        if len(values) > 1:
            found.append((group, float(np.mean(values)), float(np.std(values, ddof=1))))
    return found


def flat(record: Record) -> dict[str, Any]:
    """Returns the settings of a run by section and name."""
    settings = {}
    for section, value in record.config.items():
        if isinstance(value, dict):
            settings.update({f"{section}.{name}": setting for name, setting in value.items()})
        else:
            settings[section] = value
    return settings


def compare(runs: Sequence[Run], metric: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of the template of a comparison, and what its scripts read.

    Args:
        runs: The runs, at least two. The others are compared with the first.
        metric: One of METRICS.
    """
    groups = seed_groups(runs, metric)
    spread = math.sqrt(np.mean([s**2 for *_, s in groups])) if groups else math.nan
    gaps = [difference(run, runs[0], metric, spread) for run in runs]
    charts = _charts(runs, metric)
    values = {
        "names": [run.name for run in runs],
        "metric_name": METRICS[metric],
        "sentences": [
            *_sentences(runs, gaps),
            *(_seed_sentence(group, mean, deviation) for group, mean, deviation in groups),
        ],
        "rows": [
            _row(run, gap, run is runs[0], metric) for run, gap in zip(runs, gaps, strict=True)
        ],
        "class_rows": _class_rows(runs, "voc07" if metric == "coco" else metric),
        "settings": _settings(runs),
        "charts": charts,
        "galleries": {},
        "stills": {},
        "refresh": 0,
    }
    return values, {"charts": charts, "galleries": {}, "pictures": [], "samples": []}


def _sentences(runs: Sequence[Run], gaps: Sequence[Difference]) -> list[str]:
    found = []
    for run, gap in list(zip(runs, gaps, strict=True))[1:]:
        if not math.isfinite(gap.value):
            continue
        way = "higher" if gap.value >= 0 else "lower"
        limits = ""
        if math.isfinite(gap.low):
            low, high = (decimals(limit, places=3, signed=True) for limit in (gap.low, gap.high))
            limits = f" ({low} to {high} over resampled images)"
        found.append(
            f"{run.name} is {decimals(abs(gap.value), places=3)} {way} than {runs[0].name}"
            f"{limits}: {gap.verdict()}."
        )
    return found or ["There are not yet two results to compare."]


def _seed_sentence(group: Sequence[Run], mean: float, deviation: float) -> str:
    names = ", ".join(run.name for run in group)
    return (
        f"{names} differ only in the seed: their mean is {decimals(mean, places=3)}, with a "
        f"standard deviation of {decimals(deviation, places=3)}."
    )


def _row(run: Run, gap: Difference, is_first: bool, metric: str) -> tuple[str, list[Cell]]:
    record, result = run.record, run.result
    means = result.mean if result else dict.fromkeys(METRICS, math.nan)
    interval = ABSENT
    if run.split:
        for name in run.split.analysis.spread.means:
            if name == metric:
                low, high = run.split.analysis.spread.interval(name)
                interval = f"{decimals(low, places=3)} to {decimals(high, places=3)}"
    times = tables.time_rows(record)[-1][2] if record.timings else ABSENT
    shown = [
        *(decimals(means[name]) for name in METRICS),
        interval,
        ABSENT if is_first else decimals(gap.value, signed=True),
        ABSENT if is_first else gap.verdict(),
        f"{record.last_step:,}",
        times,
        f"{record.about.parameters:,}",
    ]
    return run.name, [Cell(text) for text in shown]


def _class_rows(runs: Sequence[Run], metric: str) -> list[tuple[str, list[Cell]]]:
    names = dict.fromkeys(name for run in runs for name in run.record.about.classes)
    rows = []
    for name in names:
        aps = [
            run.result.classes[metric].get(name, math.nan) if run.result else math.nan
            for run in runs
        ]
        known = [ap for ap in aps if math.isfinite(ap)]
        span = max(known) - min(known) if known else math.nan
        rows.append((name, [*(Cell(decimals(ap)) for ap in aps), Cell(decimals(span))]))
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


def _charts(runs: Sequence[Run], metric: str) -> dict[str, Any]:
    def lines(points: Any) -> list[Series]:
        return [Series(run.name, points(run.record)) for run in runs]

    charts = {
        "training": chart(
            "step",
            lines(lambda record: {loss.step: loss.multibox for loss in record.training}),
            logarithmic=True,
            digits=3,
        ),
        "validation": chart(
            "step",
            lines(lambda record: {loss.step: loss.multibox for loss in record.validation}),
            logarithmic=True,
            digits=3,
        ),
        "average_precision": chart(
            "step",
            lines(lambda record: {e.step: e.mean[metric] for e in record.evaluations}),
            unit_range=True,
        ),
    }
    return {name: found for name, found in charts.items() if found}
