"""How single values are written."""

import math

import pytest
from markdown_it import MarkdownIt

from multibox.reporting.text import (
    decimals,
    duration,
    markdown_table,
    markdown_value,
    printable,
    rate,
    step_label,
)


@pytest.mark.parametrize(
    ("step", "label"),
    [
        (0, "0"),
        (120, "120"),
        (1000, "1k"),
        (1500, "1.5k"),
        (1234, "1234"),
        (102_000, "102k"),
        (1_234_567, "1234567"),
    ],
)
def test_step_label(step: int, label: str) -> None:
    assert step_label(step) == label


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(41.26, "41.3 s"), (59.97, "1 min 0 s"), (725.0, "12 min 5 s"), (25_320.0, "7 h 2 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "0.001"), (1e-5, "0.00001"), (2.0, "2"), (math.nan, "–")],  # noqa: RUF001
)
def test_rate(value: float, text: str) -> None:
    assert rate(value) == text


def test_decimals() -> None:
    assert decimals(0.795) == "0.7950"
    assert decimals(-0.1, places=2, signed=True) == "−0.10"  # noqa: RUF001
    assert decimals(0.1, signed=True) == "+0.1000"
    assert decimals(math.inf) == "–"  # noqa: RUF001


def test_printable_shows_what_cannot_be_seen() -> None:
    assert printable("a\tb\x1b\u202e\ud800 漢") == "a\\tb\\x1b\\u202e\\ud800 漢"


@pytest.mark.parametrize(
    "name",
    [
        "*a*",
        "_a_",
        "a_b_c",
        "`a`",
        "[a](b)",
        "<b>",
        "&amp;",
        "a|b",
        "\\",
        "~~a~~",
        "![a](b)",
        "$a$",
    ],
)
def test_escaped_markdown_reads_as_the_name_itself(name: str) -> None:
    token = MarkdownIt("gfm-like", {"linkify": False}).parseInline(str(markdown_value(name)))[0]
    assert token.children is not None
    assert {child.type for child in token.children} <= {"text", "text_special"}
    assert "".join(child.content for child in token.children) == name


def test_markdown_table() -> None:
    assert markdown_table(["a|b", "c"], [["1", "*"]]) == "| a\\|b | c |\n| --- | --- |\n| 1 | \\* |"
