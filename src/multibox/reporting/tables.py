"""The tables of the report, as text for the HTML and the Markdown page."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from multibox.reporting.record import METRICS, Evaluation, Record
from multibox.reporting.reference import Reference
from multibox.reporting.text import ABSENT, decimals, duration, markdown_value, rate, step_label

MAX_MILESTONES = 8


class Row(NamedTuple):
    """A row of the table of average precisions. `kind` is AP or mAP."""

    name: str
    kind: str
    cells: list[str]
    strong: bool = False


class PrecisionTable(NamedTuple):
    """Average precision by class and milestone, with the means below.

    Attributes:
        header: The steps of the milestones, then the titles of the reference's columns.
        rows: Each has as many cells as the header.
        milestones: Number of columns that show this run.
    """

    header: list[str]
    rows: list[Row]
    milestones: int


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: What it shows.
        gallery: Key of the gallery that it opens, or nothing.
        shade: Share of the largest value of its row, 0..1, for its background.
    """

    text: str
    gallery: str = ""
    shade: float = 0.0


def milestones(record: Record, metric: str) -> list[Evaluation]:
    """Returns up to MAX_MILESTONES evaluations at even distances, with the best and the last."""
    every = record.evaluations
    if len(every) <= MAX_MILESTONES:
        return every
    # One fewer than the maximum, to leave room for the best one.
    spread = MAX_MILESTONES - 2
    chosen = {round(place * (len(every) - 1) / spread) for place in range(spread + 1)}
    best = every.index(best_evaluation(every, metric))
    return [every[place] for place in sorted(chosen | {best})]


def best_evaluation(evaluations: list[Evaluation], metric: str) -> Evaluation:
    """Returns the evaluation with the highest mean, or the first of several."""
    return max(
        evaluations,
        key=lambda e: e.mean[metric] if math.isfinite(e.mean[metric]) else -1.0,
    )


def precision_table(record: Record, metric: str, reference: Reference | None) -> PrecisionTable:
    """Returns the table in the form of the classic training summary.

    If the run has evaluated its test split, the last column of the run is that result.

    If there is a reference, the table also has columns with its last milestone and the difference
    to ours, and rows with its mean at the same steps. The reference must use the same metric.
    """
    columns = milestones(record, metric)
    header = [step_label(e.step) for e in columns]
    if record.test:
        columns, header = [*columns, record.test], [*header, "test"]
    rows = [
        _row(name, "AP", [e.classes[metric].get(name, math.nan) for e in columns])
        for name in record.about.classes
    ]
    rows.append(_row("", "mAP", [e.mean[metric] for e in columns], strong=True))
    for other, name in METRICS.items():
        values = [e.mean[other] for e in columns]
        if other != metric and any(map(math.isfinite, values)):
            rows.append(_row(f"({name})", "AP" if other == "coco" else "mAP", values))
    table = PrecisionTable(header, rows, len(columns))
    return table if reference is None else _beside(table, columns, metric, reference)


def _row(name: str, kind: str, values: list[float], *, strong: bool = False) -> Row:
    return Row(name, kind, [decimals(value) for value in values], strong)


def _beside(
    table: PrecisionTable, columns: list[Evaluation], metric: str, reference: Reference
) -> PrecisionTable:
    last = columns[-1]
    theirs = {name: values[-1] for name, values in reference.AP.items()}
    rows = []
    for row in table.rows:
        ours, other = math.nan, math.nan
        if row.strong:
            ours, other = last.mean[metric], reference.mAP[-1]
        elif row.name in last.classes[metric]:
            ours, other = last.classes[metric][row.name], theirs.get(row.name, math.nan)
        pair = [decimals(other), decimals(ours - other, signed=True)]
        rows.append(row._replace(cells=row.cells + pair))
    published = dict(zip(reference.steps, reference.mAP, strict=True))
    means = [published.get(e.step, math.nan) for e in columns]
    if any(map(math.isfinite, means)):
        gaps = [e.mean[metric] - mean for e, mean in zip(columns, means, strict=True)]
        cells = [decimals(gap, signed=True) for gap in gaps]
        rows.append(Row("(reference)", "mAP", [*map(decimals, means), ABSENT, ABSENT]))
        rows.append(Row("(difference)", "mAP", [*cells, ABSENT, ABSENT]))
    header = [*table.header, f"ref. {step_label(reference.steps[-1])}", "difference"]
    return PrecisionTable(header, rows, table.milestones)


def text_rows(rows: Sequence[tuple[str, Sequence[Cell]]]) -> list[list[str]]:
    """Returns the names and the texts of the cells of a table."""
    return [[name, *(cell.text for cell in cells)] for name, cells in rows]


def aligned(table: PrecisionTable) -> Markup:
    """Returns the table as Markdown with aligned columns."""
    names = [str(markdown_value(row.name)) for row in table.rows]
    wide = max(map(len, names)) + 2
    widths = [max(10, len(label) + 4) for label in table.header]
    head = "|".join(f"  {label:<{w - 2}}" for label, w in zip(table.header, widths, strict=True))
    lines = [
        f"|{'':{wide}}| Steps |{head}|",
        f"|{'-' * wide}|-------|{'|'.join('-' * width for width in widths)}|",
    ]
    for name, row in zip(names, table.rows, strict=True):
        kind = f"**{row.kind}**" if row.strong else f"  {row.kind:<5}"
        cells = [
            f"{f'**{cell}**' if row.strong else f'  {cell}':<{width}}"
            for cell, width in zip(row.cells, widths, strict=True)
        ]
        lines.append(f"|{name:<{wide}}|{kind}|{'|'.join(cells)}|")
    return Markup("\n".join(lines))


def loss_rows(record: Record, reference: Reference) -> list[list[str]]:
    """Returns rows of step, loss, reference loss and difference, in training and validation.

    It uses at most MAX_MILESTONES of the common steps, at even distances.
    """
    series = []
    for name, losses in (("training", record.training), ("validation", record.validation)):
        published = dict(zip(reference.loss_steps, reference.loss[name], strict=True))
        series.append(({loss.step: loss.total for loss in losses}, published))
    common = [step for step in reference.loss_steps if any(step in ours for ours, _ in series)]
    count = min(MAX_MILESTONES, len(common))
    places = [round(n * (len(common) - 1) / max(1, count - 1)) for n in range(count)]
    rows = []
    for step in (common[place] for place in places):
        cells = [f"{step:,}"]
        for ours, published in series:
            own, other = ours.get(step, math.nan), published[step]
            cells += [decimals(own, places=2), decimals(other, places=2)]
            cells.append(decimals(own - other, places=2, signed=True))
        rows.append(cells)
    return rows


def coco_rows(evaluation: Evaluation) -> list[list[str]]:
    """Returns name and value of each COCO metric."""
    return [[name, decimals(value)] for name, value in evaluation.coco.items()]


def object_rows(record: Record) -> list[list[str]]:
    """Returns the number of training and test objects of each class, and their sums."""
    train, test = record.about.train.objects, record.about.test.objects
    names = list(dict.fromkeys([*record.about.classes, *train, *test]))
    rows = [[name, f"{train.get(name, 0):,}", f"{test.get(name, 0):,}"] for name in names]
    return [*rows, ["all", f"{sum(train.values()):,}", f"{sum(test.values()):,}"]]


def config_rows(record: Record) -> list[list[str]]:
    """Returns section, name and value of each field of config.json."""
    rows = []
    for section, fields in record.config.items():
        if isinstance(fields, dict):
            rows += [[section, name, _plain(value)] for name, value in fields.items()]
        else:
            rows.append([section, "", _plain(fields)])
    return rows


def environment_rows(record: Record) -> list[list[str]]:
    """Returns name and value of each field of environment.json."""
    return [[name, _plain(value)] for name, value in record.environment.items()]


def drop_rows(record: Record) -> list[list[str]]:
    """Returns step and learning rate of each drop."""
    return [[f"{drop.step:,}", rate(drop.lr)] for drop in record.drops]


def rollback_rows(record: Record) -> list[list[str]]:
    """Returns step, target step, factor of the learning rate and reason of each rollback."""
    return [
        [f"{back.step:,}", f"{back.to:,}", f"{back.lr_scale:g}", back.reason]
        for back in record.rollbacks
    ]


def time_rows(record: Record) -> list[list[str]]:
    """Returns kind, count, duration and share of the total time."""
    total = sum(timing.seconds for timing in record.timings)
    rows = []
    for kind in dict.fromkeys(timing.kind for timing in record.timings):
        spent = [timing.seconds for timing in record.timings if timing.kind == kind]
        share = sum(spent) / total if total else 0
        rows.append([kind, str(len(spent)), duration(sum(spent)), f"{share:.1%}"])
    return [*rows, ["all", "", duration(total), ""]]


def speed(record: Record) -> tuple[str, str]:
    """Returns images per second in training, and the share of time spent waiting for images."""
    spans = [t for t in record.timings if t.kind == "train" and t.seconds > 0]
    rates = [(t.images_per_second, t.seconds) for t in spans]
    waits = [(t.data_wait, t.seconds) for t in spans]
    rate, wait = _weighted(rates), _weighted(waits)
    return (
        f"{rate:,.1f}" if math.isfinite(rate) else ABSENT,
        f"{wait:.1%}" if math.isfinite(wait) else ABSENT,
    )


def _weighted(pairs: list[tuple[float, float]]) -> float:
    known = [(value, weight) for value, weight in pairs if math.isfinite(value)]
    if not known:
        return math.nan
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or ABSENT
    return ABSENT if value is None or value == "" else str(value)
