"""The two journals of a run: what it computed, and how long that took."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multibox.storage.jsonl import Journal


class MetricsLog:
    """Writes `metrics.jsonl`, which repeats exactly, and `timings.jsonl`, which does not.

    Args:
        folder: The run's folder.
        length: What `metrics.jsonl` is cut to first: its length when the checkpoint was saved.
        silent: Write nothing, on all processes but the first.

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
        """Forgets what was written to `metrics.jsonl` after its first bytes."""
        if self._silent:
            return
        self.__exit__()
        self._metrics = self._timings = None
        self._metrics = Journal(self._folder / "metrics.jsonl", length)
        self._timings = Journal(self._folder / "timings.jsonl", None)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Adds to what the run computed."""
        if self._metrics is not None:
            self._metrics.write({"kind": kind, "step": step, **values})

    def time(self, kind: str, step: int, **values: Any) -> None:
        """Adds to how long it took."""
        if self._timings is not None:
            self._timings.write({"kind": kind, "step": step, **_rounded(values)})

    def commit(self) -> int:
        """Returns the length of `metrics.jsonl` once that is on the disk."""
        if self._metrics is None:
            return 0
        self._metrics.sync()
        return self._metrics.length


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
