"""Runs the verb `reproduce`: asks before it downloads, and prints the page or the plan."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal

from multibox.cli.arguments import ReproduceArguments
from multibox.cli.printing import print_result, say
from multibox.commands.reproduce import reproduce, require_options
from multibox.commands.reproduction.plan import plan
from multibox.commands.reproduction.state import Download, Place
from multibox.commands.reproduction.targets import REHEARSAL, TARGETS
from multibox.errors import ConfigError


def run_reproduce(verb: ReproduceArguments, console: Console) -> None:
    """Reproduces a training, or prints what would be done.

    Raises:
        MultiboxError: An option, the data or an existing run cannot be used, or there is no
            permission to download.
    """
    target = TARGETS[verb.target]
    out = verb.out or Path("runs") / verb.target
    # The drawn images must not come between the real ones.
    data = verb.data or (out / "data" if verb.target == REHEARSAL else Path("data"))
    place = Place(data, out, verb.seeds, verb.device, verb.workers, verb.pipeline)
    if verb.dry_run:
        require_options(place)
        for subject, text in plan(target, place, console):
            say(f"{subject:11}{text}", console)
        return

    def confirm(downloads: list[Download]) -> None:
        for each in downloads:
            say(f"{each.name}: {decimal(each.size)}. Licence: {each.licence}", console)
        total = decimal(sum(each.size for each in downloads))
        if verb.yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            names = " ".join(each.name for each in downloads)
            raise ConfigError(
                f"{total} have to be downloaded, but there is no terminal to ask for permission",
                remedy=f"Add --yes, or run multibox download {names} --out {data}",
            )
        question = f"Download {total} into {data}? [y/N] "
        if console.input(question, markup=False).strip().lower() not in ("y", "yes"):
            raise ConfigError("the download was declined", remedy="Answer y, or add --yes")

    def fetch(names: Sequence[str], folder: Path) -> object:
        # Imported here, so that no other verb loads code that opens connections.
        from multibox.download.download import download

        return download(names, folder, console)

    page = reproduce(target, place, console, fetch=fetch, confirm=confirm)
    if target.warning:
        say(target.warning, console)
    console.print("Summary page:", end=" ")
    print_result(page)
