"""Reads annotations in JSON: recognises files by their first and last bytes, loads, checks values.

COCO, LabelMe and Label Studio share this code.
"""

import json
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from multibox.data.dataset import Note
from multibox.data.files import read_bytes, read_ends
from multibox.data.reading import Reading
from multibox.errors import DataError

Record = dict[str, Any]

_MAX_BYTES = 1 << 30
_END_BYTES = 1 << 16
# A folder with more JSON files has one for each image, and the first ones tell the format.
_SAMPLE_PER_FOLDER = 24
# Limit of all coordinates, sides and areas. The sum of two such numbers does not overflow.
_MAX_PX = 1e9
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")
_EMBEDDED = re.compile(rb'"imageData"\s*:\s*"')
_LISTED = 12

_OTHER = Note("json-other", "JSON files in another form were left out")


def ends_of_files(files: Iterable[Path]) -> dict[Path, str]:
    """Returns the first and last characters of some files, without reading what is between.

    Files after the first ones in a folder are left out.
    """
    seen, ends = Counter[Path](), {}
    for file in files:
        seen[file.parent] += 1
        if seen[file.parent] <= _SAMPLE_PER_FOLDER:
            try:
                head, tail = read_ends(file, head=_END_BYTES, tail=_END_BYTES, limit=_MAX_BYTES)
            except DataError:
                # It may have nothing to do with the dataset. If it has, its reader reports it.
                continue
            ends[file] = b"\n".join((head, tail)).decode("utf-8", "replace").lstrip("\ufeff \r\n\t")
    return ends


def has_key(text: str, *keys: str) -> bool:
    """Whether one of these keys of an object is in a part of a JSON file."""
    return any(re.search(rf'"{key}"\s*:', text) for key in keys)


def load(file: Path, hook: Callable[[Record], Record] | None = None) -> Any:
    """Returns the content of a JSON file.

    Args:
        file: The file. An image in it (LabelMe's `imageData`) is left out before it is parsed.
        hook: Is called with each object, and returns what takes its place.

    Raises:
        DataError: The file cannot be read, or is not JSON.
    """
    data = read_bytes(file, limit=_MAX_BYTES)
    embedded = _EMBEDDED.search(data)
    if embedded:
        start = embedded.end()
        end = data.find(b'"', start)
        if data.find(b"\\", start, end) < 0 <= end:
            data = data[:start] + data[end:]
    try:
        return json.loads(data, object_hook=hook)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"is not JSON: {error}", kind="json-malformed", file=file, remedy="Export it again"
        ) from None


def leave_out_other(reading: Reading) -> None:
    """Counts a JSON file that is not in the form of the format."""
    reading.notes[_OTHER] += 1


def identifier(record: Record, key: str) -> int | str:
    """Returns an id. The numbers 3 and 3.0 and the text "3" are the same id.

    Raises:
        DataError: It is neither a whole number nor text. The error names no file.
    """
    value = record.get(key)
    number = _whole(value)
    if number is not None:
        return number
    if type(value) is str and value.isprintable() and value.strip():
        return value
    reason = f"its {key} is {reprlib.repr(value)}, not a whole number"
    raise DataError(reason, kind="number-malformed")


def side_px(record: Record, key: str) -> int:
    """Returns a width or height, or 0 if it is missing.

    Raises:
        DataError: It is not a whole number, or is larger than any image. The error names no file.
    """
    value = record.get(key)
    side = 0 if value is None else _whole(value)
    if side is None:
        reason = f"its {key} is {reprlib.repr(value)}, not a whole number"
        raise DataError(reason, kind="number-malformed")
    if side > _MAX_PX:
        reason = f"its {key} is {reprlib.repr(side)}, larger than any image"
        raise DataError(reason, kind="size-too-large")
    return side


def _whole(value: object) -> int | None:
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if type(value) is str and _WHOLE.fullmatch(value):
        return int(value)
    return None


def text(record: Record, key: str) -> str:
    """Returns printable text.

    Raises:
        DataError: It is empty or not printable. The error names no file.
    """
    value = record.get(key)
    if type(value) is not str or not value.strip() or not value.isprintable():
        reason = f"its {key} is {reprlib.repr(value)}, not plain text"
        raise DataError(reason, kind="text-malformed")
    return value


def is_plain(value: object) -> bool:
    """Whether a value is a number of at most 1e9. NaN and true are not."""
    return type(value) in (int, float) and abs(value) <= _MAX_PX  # type: ignore[arg-type]  # a number


def are_plain(values: object, count: int) -> bool:
    """Whether a value is a list of so many plain numbers."""
    return type(values) is list and len(values) == count and all(map(is_plain, values))


def require_object(record: object) -> Record:
    """Returns a JSON object.

    Raises:
        DataError: It is something else. The error names no file.
    """
    if type(record) is not dict:
        raise DataError("is not a JSON object", kind="json-form")
    return record


def some_of(values: Iterable[object]) -> str:
    """Returns the first few values as text."""
    shown = list(values)
    rest = len(shown) - _LISTED
    return ", ".join(map(str, shown[:_LISTED])) + (f" and {rest} more" if rest > 0 else "")
