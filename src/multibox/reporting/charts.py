"""The charts of the report: loss, average precision, and precision over recall."""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multibox.reporting.axes import Line, Theme, draw_lines, name_ends, new_figure, style
from multibox.reporting.record import METRICS, Evaluation, Loss, Record
from multibox.reporting.reference import Reference
from multibox.reporting.series import Series
from multibox.reporting.text import decimals, printable, rate

LEGEND_CLASSES = 8
PANEL_COLUMNS = 5
MAX_PANELS = 80


def loss_chart(record: Record, reference: Reference | None, theme: Theme) -> Figure:
    """Returns a chart of the multibox loss over steps, and below it the loss with the L2 term.

    The reference reports their sum as one number, so only the lower panel shows it.
    """
    bare = _loss_lines(record, lambda loss: loss.multibox, theme, "-")
    both = _loss_lines(record, lambda loss: loss.total, theme, "--")
    if reference is not None:
        steps = reference.loss_steps
        for name, colour in (("training", theme.lines[5]), ("validation", theme.lines[4])):
            both.append(Line(f"ref. {name}", steps, reference.loss[name], colour, ":", "."))
    figure = new_figure(6.2, theme)
    figure.subplots_adjust(left=0.07, right=0.71, top=0.95, bottom=0.08, hspace=0.22)
    upper, lower = figure.subplots(2, 1, sharex=True)
    draw_lines(upper, bare)
    draw_lines(lower, both)
    style(upper, theme, "Multibox loss (confidence + localization)")
    style(lower, theme, "Multibox loss + L2 term")
    lower.set_xlabel("step", color=theme.muted, fontsize=9)
    for axes in (upper, lower):
        _mark_events(axes, record, theme)
    name_ends(upper, bare)
    name_ends(lower, both)
    return figure


def _loss_lines(
    record: Record, part: Callable[[Loss], float], theme: Theme, dashes: str
) -> list[Line]:
    named = (("training", record.training), ("validation", record.validation))
    return [
        Line(name, [loss.step for loss in losses], list(map(part, losses)), colour, dashes)
        for (name, losses), colour in zip(named, theme.lines, strict=False)
    ]


def _mark_events(axes: Axes, record: Record, theme: Theme) -> None:
    marks = [(drop.step, f"lr {rate(drop.lr)}", theme.muted) for drop in record.drops]
    marks += [
        (rollback.step, f"rollback to {rollback.to:,}", theme.lines[3])
        for rollback in record.rollbacks
    ]
    for step, label, colour in marks:
        axes.axvline(step, color=colour, linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(
            label,
            xy=(step, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-3, -2),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            color=colour,
            fontsize=8,
        )


def average_precision_chart(record: Record, reference: Reference | None, theme: Theme) -> Figure:
    """Returns a chart of the mean average precision over steps, with a line for each metric."""
    steps = [evaluation.step for evaluation in record.evaluations]
    lines = [
        Line(name, steps, [e.mean[metric] for e in record.evaluations], colour, "-", "o")
        for (metric, name), colour in zip(METRICS.items(), theme.lines, strict=False)
    ]
    if reference is not None:
        name = f"ref. {METRICS[reference.metric]}"
        lines.append(Line(name, reference.steps, reference.mAP, theme.muted, ":", "."))
    return _over_steps("Mean average precision", lines, theme, unit_range=True)


def comparison_chart(title: str, series: Sequence[Series], theme: Theme) -> Figure:
    """Returns a chart with a line over steps for each run."""
    colours = len(theme.lines)
    lines = [
        Line(
            _short(line.name, 16),
            list(line.points),
            list(line.points.values()),
            theme.lines[number % colours],
            "-" if number < colours else "--",
        )
        for number, line in enumerate(series)
    ]
    return _over_steps(title, lines, theme, unit_range="precision" in title)


def _over_steps(title: str, lines: list[Line], theme: Theme, *, unit_range: bool) -> Figure:
    figure = new_figure(3.2, theme)
    figure.subplots_adjust(left=0.07, right=0.71, top=0.9, bottom=0.15)
    axes = figure.subplots()
    draw_lines(axes, lines)
    if unit_range:
        axes.set_yscale("linear")
        axes.set_ylim(0, 1)
    style(axes, theme, title)
    axes.set_xlabel("step", color=theme.muted, fontsize=9)
    name_ends(axes, lines)
    return figure


def precision_recall_chart(evaluation: Evaluation, metric: str, theme: Theme) -> Figure:
    """Returns a chart of precision over recall, with a line or a panel for each class.

    If there are more than MAX_PANELS classes, it shows those with the lowest AP.
    """
    aps = evaluation.classes[metric]
    order = sorted(evaluation.curves, key=lambda name: -_ap(aps, name))
    if len(order) > LEGEND_CLASSES:
        return _small_multiples(evaluation, aps, order[-MAX_PANELS:], theme)
    figure = new_figure(3.6, theme)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    handles = [
        axes.plot(*evaluation.curves[name], color=colour, linewidth=1.8, clip_on=False)[0]
        for name, colour in zip(order, theme.lines, strict=False)
    ]
    legend = figure.legend(
        handles,
        # The number comes first because matplotlib omits labels that begin with an underscore.
        [f"{decimals(aps.get(name, math.nan))}  {_short(name, 20)}" for name in order],
        loc="outside right upper",
        title="AP",
        fontsize=9,
        frameon=False,
        labelcolor=theme.text,
        alignment="left",
    )
    legend.get_title().set_color(theme.muted)
    for text in legend.get_texts():
        text.set_parse_math(False)
    style(axes, theme, "Precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.set_xlabel("recall", color=theme.muted, fontsize=9)
    return figure


def _small_multiples(
    evaluation: Evaluation, aps: dict[str, float], order: list[str], theme: Theme
) -> Figure:
    rows = -(-len(order) // PANEL_COLUMNS)
    height = 0.5 + 1.25 * rows
    figure = new_figure(height, theme)
    # The constrained layout takes seconds for many panels.
    figure.subplots_adjust(
        left=0.09, right=0.98, top=1 - 0.38 / height, bottom=0.45 / height, hspace=0.6, wspace=0.15
    )
    grid = figure.subplots(rows, PANEL_COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(order) :]:
        axes.set_visible(False)
    for name, axes in zip(order, grid.flat, strict=False):
        curve = evaluation.curves[name]
        axes.fill_between(*curve, color=theme.lines[0], alpha=0.18, linewidth=0)
        axes.plot(*curve, color=theme.lines[0], linewidth=1.4, clip_on=False)
        style(axes, theme, f"{_short(name, 14)}\n{decimals(aps.get(name, math.nan))}")
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.set_xticks([0, 0.5, 1], ["0", "", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "", "1"])
    figure.supxlabel("recall", color=theme.muted, fontsize=9)
    figure.supylabel("precision", color=theme.muted, fontsize=9)
    return figure


def _ap(aps: dict[str, float], name: str) -> float:
    """Returns the key that sorts classes without an AP last."""
    value = aps.get(name, math.nan)
    return value if math.isfinite(value) else -1.0


def _short(name: str, length: int) -> str:
    text = printable(name)
    return text if len(text) <= length else f"{text[: length - 1]}…"
