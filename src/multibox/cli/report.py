"""Runs the verb `report`: writes the page of runs, renews it while they train, and serves it."""

from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from multibox.cli.arguments import ReportArguments, refuse_unused
from multibox.cli.printing import print_result
from multibox.commands.report import (
    is_finished,
    keep_renewing,
    wait_for_interrupt,
    write_comparison,
    write_report,
)
from multibox.errors import ConfigError


def run_report(verb: ReportArguments, console: Console) -> None:
    """Prints the path of the page. `--live` waits for the end of the runs, `--serve` for Ctrl-C.

    Raises:
        MultiboxError: A run cannot be read, or an option has no effect.
    """
    if not verb.runs:
        raise ConfigError("report needs a run", remedy="Name the folder of a run")
    several = len(verb.runs) > 1
    if several:
        refuse_unused("several runs", {"--beside": verb.beside is not None})
    if not 1 <= verb.every <= 3600:
        raise ConfigError(f"every is {verb.every}, but it must lie in 1..3600")

    def write(refresh: int) -> Path:
        if several:
            return write_comparison(verb.runs, refresh=refresh)
        return write_report(verb.runs[0], beside=verb.beside, refresh=refresh)

    def renew() -> bool:
        unfinished = not all(map(is_finished, verb.runs))
        write(verb.every if unfinished else 0)
        return unfinished

    page = write(verb.every if verb.live and not all(map(is_finished, verb.runs)) else 0)
    print_result(page)
    with ExitStack() as stack:
        if verb.serve:
            # Imported here, so that no other verb loads code that opens connections.
            from multibox.commands.report_server import serving

            address = stack.enter_context(serving(page, verb.port))
            console.print(f"The page is at {address}. Ctrl-C ends it.", highlight=False)
        if verb.live:
            keep_renewing(renew, verb.every)
        if verb.serve:
            wait_for_interrupt()
