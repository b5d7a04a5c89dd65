"""Prints messages on the console."""

from rich.console import Console

from multibox.errors import MultiboxError


def refuse(error: MultiboxError, console: Console) -> None:
    """Prints an error as one message."""
    console.print("[bold red]error:[/]", end=" ")
    console.print(error, markup=False, highlight=False, soft_wrap=True)


def say(text: str, console: Console) -> None:
    """Prints a text as it is: brackets in it are not styles, and it is not wrapped."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
