"""The common style of the report's charts.

It uses matplotlib's object API, so there is no global state. The colours are those of Okabe and
Ito, which colour-blind readers can distinguish, in a lighter version for the dark scheme.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from multibox.reporting.text import step_label

# Inches. The text must stay readable on a telephone, where the width is about 360 pixels.
WIDTH = 5.4
DPI = 180
# If the ratio of the largest to the smallest value is higher, the axis is logarithmic.
LOG_RATIO = 20
# Minimum distance between the names at the ends of lines, in points.
NAME_DISTANCE = 12


class Theme(NamedTuple):
    """Colours of the light or the dark scheme. The first of `lines` are the most distinct."""

    background: str
    text: str
    muted: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#1b1f24",
    "#5b6570",
    "#e1e5ea",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24", "#8a8f98"),
)
DARK = Theme(
    "#14181d",
    "#e6e9ec",
    "#a3adb8",
    "#2d343c",
    ("#56b4e9", "#ff8a3d", "#2cc99a", "#e59ac4", "#f0c040", "#3f86d6", "#e6e9ec", "#8a8f98"),
)


class Line(NamedTuple):
    """A series over steps. Its name and last value are written at its right end."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    colour: str
    style: str = "-"
    marker: str = ""


def new_figure(height: float, theme: Theme) -> Figure:
    """Returns an empty figure of the common width and a height in inches."""
    return Figure(figsize=(WIDTH, height), facecolor=theme.background)


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The font may lack the script of a class name. The tables show the complete name.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def style(axes: Axes, theme: Theme, title: str) -> None:
    """Applies the common style. The title is literal text; dollar signs do not start a formula."""
    axes.set_facecolor(theme.background)
    axes.set_title(title, loc="left", fontsize=10, color=theme.text).set_parse_math(False)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", colors=theme.muted, labelsize=9, length=0)


def draw_lines(axes: Axes, lines: list[Line]) -> None:
    """Draws lines over steps. A NaN interrupts a line."""
    lines = [line for line in lines if any(map(math.isfinite, line.values))]
    for line in lines:
        axes.plot(
            line.steps,
            line.values,
            line.style,
            color=line.colour,
            linewidth=1.6,
            marker=line.marker or ("o" if len(line.steps) == 1 else ""),
            markersize=4,
        )
    values = [value for line in lines for value in line.values if math.isfinite(value)]
    if values and 0 < min(values) < max(values) / LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values and min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: step_label(step)))


def name_ends(axes: Axes, lines: list[Line]) -> None:
    """Writes the names and last values to the right of the axes, without overlap.

    Call it when the axes have their final limits.
    """
    ends = []
    for line in lines:
        finite = [value for value in line.values if math.isfinite(value)]
        if finite:
            pixel = axes.transData.transform((0, finite[-1]))[1]
            ends.append((pixel * 72 / axes.figure.dpi, finite[-1], line))
    ends.sort(key=lambda end: end[0])
    floor = -math.inf
    for height, value, line in ends:
        floor = max(height, floor + NAME_DISTANCE)
        axes.annotate(
            f"{line.name} {value:.2f}",
            xy=(1, value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, floor - height),
            textcoords="offset points",
            color=line.colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )
