"""Runs a command line: calls the verb, prints its result, turns errors into messages."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from multibox.cli.ablate import run_ablate
from multibox.cli.arguments import (
    AblateArguments,
    BenchArguments,
    CheckArguments,
    ConvertArguments,
    ConvertDataArguments,
    DemoArguments,
    DownloadArguments,
    EvaluateArguments,
    ExportArguments,
    PredictArguments,
    ReportArguments,
    ReproduceArguments,
    ServeArguments,
    TrainArguments,
    parse,
)
from multibox.cli.bench import run_bench
from multibox.cli.check import run_check
from multibox.cli.evaluate import run_evaluate
from multibox.cli.predict import run_predict
from multibox.cli.printing import print_result, print_written, printing, refuse
from multibox.cli.report import run_report
from multibox.cli.reproduce import run_reproduce
from multibox.cli.serve import run_serve
from multibox.cli.train import run_train
from multibox.commands.convert import convert
from multibox.commands.convert_data import convert_data
from multibox.commands.demo.demo import demo
from multibox.commands.export import Checks, export
from multibox.download.catalogue import published_rows
from multibox.errors import MultiboxError, ProcessError
from multibox.processes.distributed import is_first
from multibox.processes.signals import Interrupted, end_at_once

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    Args:
        arguments: The words after `multibox`; by default those of this process.
    """
    console = Console(stderr=True, quiet=not is_first())
    try:
        with printing():
            verb = parse(arguments)
        return _run(verb, console)
    except MultiboxError as error:
        # If the processes cannot reach each other, each of them has to report it.
        refuse(error, Console(stderr=True) if isinstance(error, ProcessError) else console)
        return error.exit_code
    except Interrupted as stop:
        end_at_once()
        console.print(
            f"Stopped and saved after step {stop.step}. Run the same command to resume.",
            highlight=False,
        )
        return 128 + stop.number
    except KeyboardInterrupt:
        end_at_once()
        console.print("Interrupted.")
        return INTERRUPTED


def _run(verb: object, console: Console) -> int:
    match verb:
        case TrainArguments(recipe=r):
            run_train(r, console)
        case CheckArguments():
            return run_check(verb, console)
        case EvaluateArguments():
            run_evaluate(verb, console)
        case ReportArguments():
            run_report(verb, console)
        case PredictArguments():
            return run_predict(verb, console)
        case ServeArguments():
            run_serve(verb, console)
        case ConvertArguments():
            lines = convert(
                verb.source,
                verb.out,
                target=verb.to,
                which=verb.which,
                classes=verb.classes,
                scales=verb.default_boxes,
                licence=verb.licence,
            )
            print_written(verb.out, lines, console)
        case ExportArguments():
            lines = export(
                verb.model,
                verb.out,
                target=verb.format,
                precision=verb.precision,
                which=verb.which,
                licence=verb.licence,
                checks=Checks(
                    verb.data,
                    verb.split,
                    verb.on_bad,
                    verb.calibration_split,
                    verb.images,
                    verb.calibration_images,
                    verb.max_loss,
                ),
            )
            print_written(verb.out, lines, console)
        case ConvertDataArguments():
            lines = convert_data(
                verb.data, verb.out, target=verb.to, on_bad=verb.on_bad, split_of=verb.split_of
            )
            print_written(verb.out, lines, console)
        case DownloadArguments():
            # Imported here, so that no other verb loads code that opens connections.
            from multibox.download.download import download

            if not verb.names:
                _list_published()
                return 0
            for folder in download(verb.names, verb.out, console):
                print_result(folder)
        case BenchArguments():
            run_bench(verb)
        case AblateArguments():
            run_ablate(verb, console)
        case ReproduceArguments():
            run_reproduce(verb, console)
        case DemoArguments():
            page = demo(verb.out, console)
            console.print("Summary page:", end=" ")
            print_result(page)
    return 0


def _list_published() -> None:
    table = Table("name", "size", "licence", "content")
    # A name that is broken into two lines cannot be copied.
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in published_rows():
        table.add_row(*map(Text, row))
    with printing():
        Console().print(table)
