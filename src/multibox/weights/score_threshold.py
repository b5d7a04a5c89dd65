"""The score threshold in the header of a weights file."""

import json
from collections.abc import Mapping
from pathlib import Path

from multibox.errors import WeightsError

_NAME = "score_threshold"


def threshold_header(score_threshold: float | None) -> dict[str, str]:
    """Returns the entry of the header for a score threshold; none if it is None."""
    return {} if score_threshold is None else {_NAME: json.dumps(score_threshold)}


def read_threshold(header: Mapping[str, str], path: Path) -> float | None:
    """Returns the score threshold in a header, or None if it has none, as in older files.

    Args:
        header: The header of the file.
        path: The file, for error messages.

    Raises:
        WeightsError: It is not a number in 0..1.
    """
    if _NAME not in header:
        return None
    try:
        value = json.loads(header[_NAME])
    except (ValueError, RecursionError):
        value = None
    if type(value) not in (int, float) or not 0 <= value <= 1:
        reason = f"has the score threshold {header[_NAME][:200]!r}, but scores lie in 0..1"
        raise WeightsError(reason, file=path)
    return float(value)
