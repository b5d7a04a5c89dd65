"""The errors that multibox raises. Each names the file, the position, the reason and a remedy.

The command line prints them as one message without a traceback, and exits with `exit_code`.
"""

from functools import partial
from pathlib import Path
from typing import Any

_MOST_CHARACTERS = 8_000
"""Length limit of a reason or a position in a message. They may quote files of any size."""


def one_line(text: str) -> str:
    """Returns a text with line breaks and terminal control characters escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _brief(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} [and so on]"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, such as `1 image` or `2,000 images`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


class MultiboxError(Exception):
    """Base class of all errors of multibox.

    Args:
        reason: What is wrong, as a clause without a final full stop.
        file: The file or folder with the fault.
        position: The place inside it, e.g. a line, `object 3` or the name of a tensor.
        remedy: What the user can do about it, as a clause without a final full stop.
    """

    exit_code = 1

    def __init__(
        self,
        reason: str,
        *,
        file: Path | str | None = None,
        position: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason, self.file, self.position, self.remedy = reason, file, position, remedy
        self._fields: dict[str, Any] = {"file": file, "position": position, "remedy": remedy}
        # Names and contents of files come from others, so they are escaped. A reason may have
        # several lines.
        parts = [str(part) for part in (file, position) if part is not None]
        where = ", ".join(one_line(_brief(part)) for part in parts)
        reason = "\n".join(map(one_line, _brief(reason).split("\n")))
        message = f"{where}: {reason}" if where else reason
        super().__init__(f"{message}. {remedy}." if remedy else f"{message}.")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles all fields, so that an error in a worker process arrives complete."""
        return partial(type(self), **self._fields), (self.reason,)


class ConfigError(MultiboxError):
    """An option, a recipe or a stored configuration that cannot be used."""

    exit_code = 2


class DataError(MultiboxError):
    """An annotation, an image or a list of images that cannot be used.

    Args:
        reason: What is wrong. It and `file`, `position` and `remedy` are as in `MultiboxError`.
        kind: The kind of fault, such as `box-empty`. Programs rely on it: keep it when you reword
            the reason. `data/check/findings.py` lists the kinds of faults in datasets.
    """

    exit_code = 3

    def __init__(
        self,
        reason: str,
        *,
        kind: str,
        file: Path | str | None = None,
        position: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(reason, file=file, position=position, remedy=remedy)
        self.kind = kind
        self._fields["kind"] = kind


class WeightsError(MultiboxError):
    """A checkpoint or weights file that cannot be used."""

    exit_code = 4


class StorageError(MultiboxError):
    """A folder that cannot be written, a run that is in use, or a full disk."""

    exit_code = 5


class WorkerError(MultiboxError):
    """Worker processes that die or hang again after each replacement."""

    exit_code = 5


class NonFiniteError(MultiboxError):
    """A loss, gradient or weight that is NaN or infinite."""

    exit_code = 6


class DownloadError(MultiboxError):
    """A file that cannot be downloaded, or that differs from the published one."""

    exit_code = 7


class ProcessError(MultiboxError):
    """Another process of the run that has ended, hangs or did not connect."""

    exit_code = 8
