"""Prints messages on the console, and results on the standard output."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from multibox.errors import MultiboxError, StorageError


def refuse(error: MultiboxError, console: Console) -> None:
    """Prints an error as one message."""
    console.print("[bold red]error:[/]", end=" ")
    console.print(error, markup=False, highlight=False, soft_wrap=True)


def say(text: str, console: Console) -> None:
    """Prints a text as it is: brackets in it are not styles, and it is not wrapped."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def print_written(out: Path, lines: Sequence[str], console: Console) -> None:
    """Prints notes on a new file or folder, and its path as the result."""
    for line in lines:
        say(line, console)
    print_result(out)


def print_result(result: object) -> None:
    """Prints the result of a verb, such as a path."""
    with printing():
        print(result)  # noqa: T201


@contextmanager
def printing() -> Iterator[None]:
    """Raises an error if the result cannot be printed, as on a full disk."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # It is None if it was closed.
                sys.stdout.flush()
    except OSError as error:
        # Python would flush again when it exits, and print a message of its own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StorageError(
            f"the result cannot be written ({error.strerror})", file="standard output"
        ) from None
