"""Formats numbers and names for the page, and escapes them."""

import html
import math
import re

import numpy as np
from markupsafe import Markup

ABSENT = "–"  # noqa: RUF001  # an en dash, so that no number looks negative
MARKDOWN = re.compile(r"([\\`*_\[\]|~$#!]|(?<=:)/)")


def decimals(value: float, *, places: int = 4, signed: bool = False) -> str:
    """Returns a number with a fixed number of decimals, or a dash for NaN."""
    if not math.isfinite(value):
        return ABSENT
    sign = "+" if signed else ""
    return f"{value:{sign}.{places}f}".replace("-", "−")  # noqa: RUF001  # a minus, not a hyphen


def rate(value: float) -> str:
    """Returns a learning rate without an exponent, as in `0.00001`, or a dash for NaN."""
    if not math.isfinite(value):
        return ABSENT
    return np.format_float_positional(value, precision=10, trim="-")


def step_label(step: int | float) -> str:
    """Returns `20k` for 20,000 and `120` for 120."""
    return f"{step / 1000:.10g}k" if step >= 1000 and step % 100 == 0 else f"{step:.10g}"


def duration(seconds: float) -> str:
    """Returns `41.3 s`, `12 min 5 s` or `7 h 2 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def printable(text: str) -> str:
    """Returns a text in which unprintable characters are replaced by escape sequences."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def html_value(value: object) -> object:
    """Returns a value for an HTML template. Jinja2 escapes it afterwards."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return value if value.isprintable() else printable(value)
    return value


def with_code(sentence: str) -> Markup:
    """Returns a sentence as HTML in which what stands between backticks is code."""
    parts = [html.escape(printable(part)) for part in sentence.split("`")]
    marked = [f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts)]
    return Markup("".join(marked))


def markdown_value(value: object) -> object:
    """Returns a value for a Markdown template. It cannot become markup, HTML, a cell or a link."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return MARKDOWN.sub(r"\\\1", html.escape(printable(value), quote=False))
    return value


def markdown_table(header: list[str], rows: list[list[str]]) -> Markup:
    """Returns a Markdown table with escaped cells."""
    lines = [header, ["---"] * len(header), *rows]
    escape = markdown_value
    return Markup(
        "\n".join(
            "| " + " | ".join(str(cell if n == 1 else escape(cell)) for cell in line) + " |"
            for n, line in enumerate(lines)
        )
    )
