"""The two logs of a run: `metrics.jsonl` for its results, `timings.jsonl` for their duration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.storage.jsonl import Journal


class MetricsLog:
    """Writes the logs of a run.

    Two runs of the same configuration and data write the same `metrics.jsonl`, but not the same
    `timings.jsonl`.

    Args:
        folder: The run's folder.
        length: The length in bytes to which `metrics.jsonl` is cut first: its length when the
            checkpoint was saved.
        silent: Whether to write nothing, as on all processes except the first.

    Raises:
        StorageError: A file cannot be written.
    """

    def __init__(self, folder: Path, length: int, *, silent: bool) -> None:
        self._folder, self._silent = folder, silent
        self._metrics: Journal | None = None
        self._timings: Journal | None = None
        self.cut(length)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        for journal in (self._metrics, self._timings):
            if journal is not None:
                journal.close()

    def cut(self, length: int) -> None:
        """Cuts `metrics.jsonl` back to a length in bytes."""
        if self._silent:
            return
        self.__exit__()
        self._metrics = self._timings = None
        self._metrics = Journal(self._folder / "metrics.jsonl", length)
        self._timings = Journal(self._folder / "timings.jsonl", None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Appends a line to `metrics.jsonl`."""
        if self._metrics is not None:
            self._metrics.write({"kind": kind, "step": step, **values})

    def time(self, kind: str, step: int, **values: Any) -> None:
        """Appends a line to `timings.jsonl`. Floats are rounded to 4 digits."""
        if self._timings is not None:
            self._timings.write({"kind": kind, "step": step, **_rounded(values)})

    def commit(self) -> int:
        """Waits until `metrics.jsonl` is on the disk, and returns its length in bytes."""
        if self._metrics is None:
            return 0
        self._metrics.sync()
        return self._metrics.length


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
