"""Decisions drawn from bytes: what a case of a fuzz target is made of.

The same target runs on bytes of a seeded generator and on those of a coverage-guided one. Where the
bytes are used up every decision is the first of its kind, which targets take to mean: leave it.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """A sequence of decisions; equal bytes make equal ones."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def below(self, bound: int) -> int:
        """Returns 0..bound - 1, about evenly."""
        size = 1 if bound <= 256 else 4
        end = self._position + size
        number = int.from_bytes(self._data[self._position : end], "little")
        self._position = end
        return number % bound

    def one_in(self, count: int) -> bool:
        return self.below(count) == count - 1

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def bytes(self, count: int) -> bytes:
        """Returns so many bytes, or as many as are left."""
        start = self._position
        self._position = start + count
        return self._data[start : start + count]


TEXTS = (
    "",
    " ",
    "0",
    "1",
    "-1",
    "cat",
    "caf\xe9",
    "\u0661\u0662",
    "\uff11\uff12",
    "1_0",
    "1e1",
    "1e999",
    "0x1p3",
    "nan",
    "inf",
    "-0",
    "45.7",
    "1000000000",
    "9" * 30,
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    ".",
    "C:x",
    "a b",
    "a\tb",
    "a\nb",
    "a\rb",
    "\x00",
    "\x1b[31m",
    "\x85",
    "\u2028",
    "\u202e",
    "\ud800",
    "\U0001f600",
    "=cmd()",
    "<script>",
    "[red]",
    "%s%n",
    "{0}",
    "$HOME",
    "~",
    "-",
    "--out",
    "http://127.0.0.1/",
    "x" * 300,
    "x" * 5000,
)
"""What readers of text fall over."""


def damaged(data: bytes, choices: Choices) -> bytes:
    """Returns bytes of which some are changed, left out, doubled, moved or put in."""
    out = bytearray(data)
    for _ in range(1 + choices.below(3)):
        if not out:
            break
        start, length = choices.below(len(out)), 1 + choices.below(40)
        match choices.below(7):
            case 0:
                out[start] ^= 1 << choices.below(8)
            case 1:
                out[start] = choices.pick((0, 0xFF, 0x7F, 0x80, 1, 10, 34))
            case 2:
                del out[start : start + length]
            case 3:
                del out[start:]
            case 4:
                out[start:start] = out[start : start + length]
            case 5:
                part = out[start : start + length]
                other = choices.below(len(out))
                out[other:other] = part
            case _:
                out[start : start + 4] = choices.bytes(4)
    return bytes(out)
