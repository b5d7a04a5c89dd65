"""Reads the small text files that several formats share: lines, numbers and class names."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from multibox.data.dataset import Note
from multibox.data.files import read_bytes
from multibox.data.reading import Reading
from multibox.errors import DataError

_NAMELESS = Note("class-names-missing", "objects have a class without a name: its number is used")
# A plain number has few characters. The pattern bounds what `float` has to read.
_NUMBER = re.compile(
    r"[-+]?(?:[0-9]{1,18}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?"
)
_MAX = 1e9
# Errors of float64 in this share of a side are no reason for a note.
_ROUNDING = 1e-9
_REPEATED = Note("category-twice", "class names of another number were merged with it")


class NumberedNames(NamedTuple):
    """Class names by number, and the file that they come from."""

    file: Path
    by_number: dict[int, str]


def read_text(file: Path, *, limit: int) -> str:
    """Returns the text of a file in UTF-8, without a byte order mark.

    Raises:
        DataError: The file cannot be read, is larger than `limit` bytes, or is not UTF-8.
    """
    try:
        return read_bytes(file, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8: {error.reason}",
            kind="list-encoding",
            file=file,
            remedy="Save it as UTF-8",
        ) from None


def parse_number(text: str, what: str) -> float:
    """Returns a decimal number of at most a thousand million.

    Args:
        text: The number, with or without spaces around it.
        what: What the number is, for the message: `its column 'xmin'`.

    Raises:
        DataError: It is another text. The error names no file.
    """
    text = text.strip()
    number = float(text) if _NUMBER.fullmatch(text) else _MAX + 1
    if abs(number) > _MAX:
        raise DataError(f"{what} is {text[:40]!r}, not a plain number", kind="number-malformed")
    return number


def parse_index(text: str, what: str) -> int:
    """Returns a whole number from 0 on. `2.0` is one, too, because some tools write it.

    Raises:
        DataError: It is another text. The error names no file.
    """
    number = parse_number(text, what)
    if number < 0 or number != int(number):
        reason = f"{what} is {text.strip()[:40]!r}, not a whole number from 0 on"
        raise DataError(reason, kind="number-malformed")
    return int(number)


def snap_box(
    corners_px: Sequence[float], size_px: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Returns a box's corners. Those that leave the image by rounding of float64 are on its edge.

    Args:
        corners_px: x0, y0, x1 and y1 in pixels.
        size_px: (width, height) of the image.
    """
    left, top, right, bottom = (
        min(max(corner, 0.0), float(side))
        if -_ROUNDING * side <= corner <= side * (1 + _ROUNDING)
        else corner
        for corner, side in zip(corners_px, (*size_px, *size_px), strict=True)
    )
    return left, top, right, bottom


def check_name(name: object, what: str) -> str:
    """Returns a class name without spaces around it.

    Args:
        name: The name.
        what: What has the name, for the message.

    Raises:
        DataError: It is not text, is empty, or has control characters. The error names no file.
    """
    if type(name) is not str or not name.strip() or not name.strip().isprintable():
        found = repr(name)[:80]
        raise DataError(f"{what} is {found}, not plain text", kind="text-malformed")
    return name.strip()


def read_names(file: Path) -> NumberedNames:
    """Returns the class names in a text file: a name in each line, numbered from 0 on.

    Raises:
        DataError: The file cannot be read, or a line between two names is empty.
    """
    lines = read_text(file, limit=1 << 20).rstrip().splitlines()
    return number_names(file, lines)


def number_names(file: Path, names: Sequence[object]) -> NumberedNames:
    """Returns the class names in a file, numbered from 0 on.

    Raises:
        DataError: A name is not plain text.
    """
    try:
        checked = (check_name(name, f"the name of class {n}") for n, name in enumerate(names))
        return NumberedNames(file, dict(enumerate(checked)))
    except DataError as error:
        raise DataError(error.reason, kind=error.kind, file=file) from None


def name_of(number: int, names: NumberedNames | None, reading: Reading) -> str:
    """Returns the name of a class, or its number as text if the classes have no names.

    Raises:
        DataError: Other classes have names. The error names no file.
    """
    if names is None:
        reading.notes[_NAMELESS] += 1
        reading.order[str(number)] = number
        return str(number)
    if number not in names.by_number:
        raise DataError(
            f"its class is {number}, but {names.file.name} has {len(names.by_number)} names, "
            f"numbered from {min(names.by_number, default=0)}",
            kind="category-unknown",
        )
    return names.by_number[number]


def use_numbers(names: NumberedNames, reading: Reading) -> None:
    """Gives the classes the order of their numbers, and notes names that occur twice."""
    for number, name in sorted(names.by_number.items()):
        if reading.order.setdefault(name, number) != number:
            reading.notes[_REPEATED] += 1
