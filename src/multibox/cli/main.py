"""Runs a command line: calls the verb, prints its result, turns errors into messages."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    RecipeArguments,
    ReportArguments,
    TrainArguments,
    parse,
)
from multibox.cli.predict import run_predict
from multibox.cli.printing import refuse
from multibox.commands.ablate import ablate
from multibox.commands.automatic import AUTOMATIC, choose
from multibox.commands.bench.bench import bench, bench_exported
from multibox.commands.check import check, fix_summary, print_check
from multibox.commands.check_labels import FOLDER, check_labels, is_run
from multibox.commands.convert import convert
from multibox.commands.convert_data import convert_data
from multibox.commands.demo.demo import demo
from multibox.commands.evaluate import evaluate_model, evaluate_results
from multibox.commands.export import Checks, export
from multibox.commands.report import (
    is_finished,
    keep_renewing,
    wait_for_interrupt,
    write_comparison,
    write_report,
)
from multibox.commands.train import Request, train
from multibox.data.check.fixed_copy import RECORD
from multibox.download.catalogue import published_rows
from multibox.errors import (
    ConfigError,
    DataError,
    MultiboxError,
    ProcessError,
    StorageError,
    one_line,
)
from multibox.export.runtimes import is_exported
from multibox.processes.distributed import is_first
from multibox.processes.signals import Interrupted, end_at_once
from multibox.recipes import RECIPES
from multibox.reporting.loggers import LoggerName

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    Args:
        arguments: The words after `multibox`; by default those of this process.
    """
    console = Console(stderr=True, quiet=not is_first())
    try:
        with _printing():
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
            _train(r, console)
        case CheckArguments():
            return _check(verb, console)
        case EvaluateArguments():
            return _evaluate(verb, console)
        case ReportArguments():
            _report(verb, console)
        case PredictArguments():
            return run_predict(verb, console)
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
            _print_written(verb.out, lines, console)
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
            _print_written(verb.out, lines, console)
        case ConvertDataArguments():
            lines = convert_data(
                verb.data, verb.out, target=verb.to, on_bad=verb.on_bad, split_of=verb.split_of
            )
            _print_written(verb.out, lines, console)
        case DownloadArguments():
            # Imported here, so that no other verb loads code that opens connections.
            from multibox.download.download import download

            if not verb.names:
                _list_published()
                return 0
            for folder in download(verb.names, verb.out, console):
                _print(folder)
        case BenchArguments():
            _bench(verb)
        case AblateArguments():
            _ablate(verb, console)
        case DemoArguments():
            page = demo(verb.out, console)
            console.print("Summary page:", end=" ")
            _print(page)
    return 0


def _train(verb: RecipeArguments, console: Console) -> None:
    name = verb.data.resolve()
    out = verb.out or Path("runs") / (name.stem if name.suffix.lower() == ".zip" else name.name)
    request = Request(
        verb.recipe, verb.config, verb.data, out, verb.init, verb.licence, verb.decoded_cache_gib
    )
    chosen: dict[LoggerName, bool] = {
        "tensorboard": verb.tensorboard,
        "wandb": verb.wandb,
        "mlflow": verb.mlflow,
    }
    request = request._replace(loggers=tuple(name for name, used in chosen.items() if used))
    if verb.recipe == AUTOMATIC or verb.minutes is not None or verb.dry_run:
        request, lines = choose(request, verb.typed, minutes=verb.minutes, console=console)
        for subject, text in lines:
            console.print(f"{subject:11}{text}", highlight=False, markup=False, soft_wrap=True)
    if verb.dry_run:
        return
    train(request, console)
    if verb.recipe == AUTOMATIC:
        console.print("Summary page:", end=" ")
        _print(write_report(out))
    else:
        done = f"Done: {out}. Summary: multibox report {out}"
        console.print(done, highlight=False, markup=False)


def _report(verb: ReportArguments, console: Console) -> None:
    if not verb.runs:
        raise ConfigError("report needs a run", remedy="Name the folder of a run")
    several = len(verb.runs) > 1
    if several:
        _refuse_unused("several runs", {"--beside": verb.beside is not None})
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
    _print(page)
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


def _check(verb: CheckArguments, console: Console) -> int:
    if is_run(verb.data):
        return _check_labels(verb)
    _refuse_unused("a dataset", {"--runs": bool(verb.runs)})
    found = check(
        verb.data,
        console,
        splits=verb.splits,
        classes=verb.classes,
        network=verb.network,
        fix=verb.fix,
    )
    if verb.json:
        _print(json.dumps(found.as_json()))
    else:
        with _printing():
            print_check(found, Console(), examples=max(1, verb.examples))
        if verb.fix is not None:
            changes = f"{found.changes} changes are in {verb.fix / RECORD}"
            console.print(changes, highlight=False, markup=False)
            console.print(fix_summary(found), highlight=False, markup=False, soft_wrap=True)
    counting = found.count("fault") + verb.strict * found.count("warning")
    return DataError.exit_code if counting else 0


def _check_labels(verb: CheckArguments) -> int:
    unused = {"--splits": bool(verb.splits), "--classes": bool(verb.classes)}
    unused |= {"--network": verb.network is not None, "--fix": verb.fix is not None}
    _refuse_unused("a run", unused | {"--strict": verb.strict})
    found = check_labels([verb.data, *verb.runs])
    if verb.json:
        _print(json.dumps([doubt.as_json() for doubt in found]))
        return 0
    table = Table("kind", "count", "examples")
    for kind in dict.fromkeys(doubt.kind for doubt in found):
        of_kind = [doubt for doubt in found if doubt.kind == kind]
        shown = [
            f"{doubt.image.image_path.name}: {doubt.describe()}"
            for doubt in of_kind[: max(1, verb.examples)]
        ]
        table.add_row(kind, str(len(of_kind)), Text("\n".join(shown), overflow="fold"))
    with _printing():
        Console().print(table)
    _print(verb.data / FOLDER / "index.html")
    return 0


def _evaluate(verb: EvaluateArguments, console: Console) -> int:
    if (verb.model is None) == (verb.results is None):
        raise ConfigError("give either a run or weights, or --results")
    if verb.results is not None:
        unused = {"--which": verb.which != "last", "--device": verb.device != "auto"}
        unused |= {"--on-bad": verb.on_bad is not None, "--workers": verb.workers != -1}
        _refuse_unused("--results", unused)
    if verb.model is not None:

        def note_loss(reason: str, _seconds: float) -> None:
            console.print(f"note: {reason}; new ones take over", highlight=False)

        metrics = evaluate_model(
            verb.model,
            which=verb.which,
            data=verb.data,
            split=verb.split,
            on_bad=verb.on_bad,
            device=verb.device,
            workers=verb.workers,
            on_loss=note_loss,
        )
    else:
        if verb.data is None or verb.results is None:
            raise ConfigError("--results needs --data", remedy="Give the folder of the annotations")
        metrics, missing = evaluate_results(
            verb.results, data=verb.data, split=verb.split or "test"
        )
        for name in missing:
            console.print(
                f"There is no results file for {one_line(name)}; it counts as having no detections",
                highlight=False,
                markup=False,
            )
    found = metrics[verb.metric]
    mean = found["AP"] if verb.metric == "coco" else found["mAP"]
    by_class = found["AP_by_class"] if verb.metric == "coco" else found["AP"]
    if verb.json:
        _print(json.dumps({"metric": verb.metric, "mAP": mean, "AP": by_class}))
        return 0
    table = Table("class", f"AP ({verb.metric})")
    table.columns[0].overflow = "fold"
    for name, value in [*by_class.items(), ("mean", mean)]:
        # As `Text`, because [red] in a class name is not a style.
        table.add_row(Text(one_line(name)), "none" if value is None else f"{value:.4f}")
    with _printing():
        Console().print(table)
    return 0


def _bench(verb: BenchArguments) -> None:
    exported = verb.part == "predict" and is_exported(Path(verb.recipe))
    if verb.recipe not in RECIPES and not exported:
        raise ConfigError(
            f"no recipe is called {verb.recipe!r}", remedy=f"Use one of {', '.join(RECIPES)}"
        )
    part = verb.part
    unused = {
        "--data": verb.data is not None and part not in ("data", "predict"),
        "--batch-size": verb.batch_size is not None and part != "step",
        "--compile": verb.compile and part != "step",
        "--device": verb.device != "auto" and (part == "evaluate" or exported),
    }
    _refuse_unused(f"bench {part}", unused)
    if exported:
        figures = bench_exported(Path(verb.recipe), data=verb.data)
    else:
        config = RECIPES[verb.recipe]()
        size = config.run.batch_size if verb.batch_size is None else verb.batch_size
        run = replace(config.run, batch_size=size, compile=verb.compile)
        config = replace(config, run=run)
        figures = bench(verb.part, config, data=verb.data, device=verb.device)
    if verb.json:
        rows = [figure._asdict() | {"images_per_second": figure.per_second} for figure in figures]
        _print(json.dumps({"part": verb.part, "recipe": verb.recipe, "figures": rows}))
        return
    table = Table("work", "ms", "images/s", "rate beside")
    for figure in figures:
        beside = "" if figure.ratio is None else f"{figure.ratio:.2f} of {figure.beside}"
        ms, rate = f"{1000 * figure.seconds:.1f}", f"{figure.per_second:.1f}"
        table.add_row(figure.name, ms, rate, beside)
    with _printing():
        Console().print(table)


def _list_published() -> None:
    table = Table("name", "size", "licence", "content")
    # A name that is broken into two lines cannot be copied.
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for row in published_rows():
        table.add_row(*map(Text, row))
    with _printing():
        Console().print(table)


def _ablate(verb: AblateArguments, console: Console) -> None:
    results = ablate(
        verb.table, verb.data, verb.out, seeds=verb.seeds, folds=verb.folds, console=console
    )
    for metric in ("voc07", "coco"):
        table = Table("change", "runs", f"mean AP ({metric})", "difference", "verdict")
        table.columns[0].overflow = "fold"
        for change, runs, mean, difference, error, verdict in results.effects(metric):
            beside = f"{difference:+.4f} ± {error:.4f}" if verdict else ""
            table.add_row(Text(change), str(runs), f"{mean:.4f}", beside, verdict)
        with _printing():
            Console().print(table)


def _print_written(out: Path, lines: Sequence[str], console: Console) -> None:
    """Prints notes on a new file or folder, and its path as the result."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    _print(out)


def _refuse_unused(what: str, unused: dict[str, bool]) -> None:
    """Refuses options that have no effect."""
    for option, given in unused.items():
        if given:
            raise ConfigError(f"{option} has no effect with {what}", remedy="Leave it out")


def _print(result: object) -> None:
    with _printing():
        print(result)  # noqa: T201  # the result of the verb


@contextmanager
def _printing() -> Iterator[None]:
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
