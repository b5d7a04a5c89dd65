"""The command line: parses, calls a verb, prints its result, and turns refusals into messages."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from multibox.bench import Part, bench
from multibox.check import check, print_checkup
from multibox.config import Config
from multibox.convert import Target, convert
from multibox.demo import demo
from multibox.errors import ConfigError, DataError, MultiboxError
from multibox.evaluate import evaluate_model, evaluate_results
from multibox.model import NO_LICENCE
from multibox.predict import Detector, predict
from multibox.recipes import RECIPES
from multibox.report import write_report
from multibox.runtime.signals import Interrupted
from multibox.ssd.network import Scales
from multibox.train import Request, train

INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """Train with this recipe; the same line again goes on where the run stands."""

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    data: Path
    """Folder of annotated images in VOC or COCO layout."""
    out: Path
    """Folder of the run."""
    config: Config
    init: Path | None = None
    """Run or weights file of any known format to start from, instead of random weights."""
    licence: str = NO_LICENCE
    """What the weights may be used for; goes into every file of weights."""


if TYPE_CHECKING:
    _Recipe = RecipeArguments
else:
    _Recipe = tyro.extras.subcommand_type_from_defaults(
        {
            name: RecipeArguments(recipe=name, data=tyro.MISSING, out=tyro.MISSING, config=recipe())
            for name, recipe in RECIPES.items()
        },
        {name: recipe.__doc__.partition("\n")[0] for name, recipe in RECIPES.items()},
    )


@dataclass(frozen=True)
class TrainArguments:
    """Train a detector: journal, validation, average precision, checkpoints."""

    recipe: _Recipe


@dataclass(frozen=True)
class CheckArguments:
    """List what is wrong with a dataset before anything trains on it, and count what is in it."""

    data: tyro.conf.Positional[Path]
    """Folder of annotated images in VOC or COCO layout; never written to."""
    splits: tuple[str, ...] = ()
    """Splits, as train takes them; by default all there are."""
    classes: tuple[str, ...] = ()
    """The only names that objects may have; by default any."""
    network: str | None = None
    """Network whose default boxes are compared with the objects; by default SSD300 and SSD512."""
    fix: Path | None = None
    """Write a corrected copy in VOC layout to this new folder, and check that."""
    strict: bool = False
    """Warnings count: they, too, end in status 3."""
    examples: int = 3
    """How many findings of a kind are printed; --json has all."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Compute the average precision of a model, or of results files in the devkit's format."""

    model: tyro.conf.Positional[Path | None] = None
    """Folder of a run, or weights of any known format."""
    results: Path | None = None
    """Folder of files <name>_det_<split>_<class>.txt, instead of a model."""
    data: Path | None = None
    """Folder of annotated images; for a run by default the one it was trained on."""
    split: str | None = None
    """For a run by default its test split."""
    on_bad: Literal["fail", "skip"] | None = None
    """What to do with objects and images that cannot be used; for a run by default as it did."""
    metric: Literal["voc07", "voc12", "coco"] = "voc07"
    """11 points, area, or COCO's average over overlaps from 0.5 to 0.95."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ReportArguments:
    """Write the summary page of a run, finished or not."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    beside: str | None = None
    """Published figures to stand beside the run's: ssd-keras-voc0712."""


@dataclass(frozen=True)
class PredictArguments:
    """Find objects in images: JSON and drawn pictures."""

    model: tyro.conf.Positional[Path]
    """Folder of a run or of a checkpoint, or weights of any known format."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    out: Path
    """Folder for <image>.json and <image>.jpg."""
    score_threshold: float = 0.5
    """Detections of a lower score are left out."""
    which: str = "last"
    """Checkpoint of a run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""


@dataclass(frozen=True)
class ConvertArguments:
    """Convert weights of Caffe, Keras or PyTorch into multibox's own, or a run's into theirs."""

    source: tyro.conf.Positional[Path]
    """Weights file of any known format, a run's folder, or a checkpoint's."""
    out: tyro.conf.Positional[Path]
    """The new file."""
    to: Target = "multibox"
    """Format of the new file."""
    classes: tuple[str, ...] = ()
    """Names of the outputs, where a foreign file was trained on classes of its own."""
    default_boxes: Scales | None = None
    """Whose default boxes a foreign file was trained with that does not say so itself."""
    which: str = "last"
    """Checkpoint of a run: last, best or a step."""
    licence: str | None = None
    """What the weights may be used for; by default what is known of the source."""


@dataclass(frozen=True)
class DownloadArguments:
    """Fetch published datasets, check them, and unpack them for training."""

    names: tyro.conf.Positional[tuple[Literal["voc2007", "voc2012", "coco2017"], ...]]
    """Datasets; voc2007 has trainval and test."""
    out: Path
    """Folder for the datasets; the same line again goes on where the last one stopped."""


@dataclass(frozen=True)
class BenchArguments:
    """Time a part on this machine, beside what bounds it: decoding alone, the network alone."""

    part: tyro.conf.Positional[Part]
    """The input pipeline, a training step, detection, evaluation, or prediction."""
    recipe: tyro.conf.Positional[str] = "ssd300-lite"
    """Whose network, augmentation and batch size."""
    data: Path | None = None
    """Annotated photographs to prepare; by default drawn ones."""
    batch_size: int | None = None
    """Images per step; by default the recipe's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class DemoArguments:
    """Draw a dataset, train on it, evaluate and report: the whole path in a few minutes."""

    out: Path = Path("runs/demo")
    """Folder for the data and the run."""


_Verb = (
    Annotated[TrainArguments, tyro.conf.subcommand("train")]
    | Annotated[CheckArguments, tyro.conf.subcommand("check")]
    | Annotated[EvaluateArguments, tyro.conf.subcommand("evaluate")]
    | Annotated[ReportArguments, tyro.conf.subcommand("report")]
    | Annotated[PredictArguments, tyro.conf.subcommand("predict")]
    | Annotated[ConvertArguments, tyro.conf.subcommand("convert")]
    | Annotated[DownloadArguments, tyro.conf.subcommand("download")]
    | Annotated[BenchArguments, tyro.conf.subcommand("bench")]
    | Annotated[DemoArguments, tyro.conf.subcommand("demo")]
)


def parse(arguments: Sequence[str] | None = None) -> object:
    """Returns the verb that a command line means; leaves with status 2 if it means none.

    Args:
        arguments: What follows the command's name; by default this process's.

    Raises:
        ConfigError: A value is out of its range.
    """
    verb: object = tyro.cli(
        _Verb,
        prog="multibox",
        args=arguments,
        description="SSD object detection: check, train, evaluate, report, predict, download.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return verb


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status.

    Args:
        arguments: What follows the command's name; by default this process's.
    """
    console = Console(stderr=True)
    try:
        return _run(parse(arguments), console)
    except MultiboxError as error:
        _refuse(error, console)
        return error.exit_code
    except Interrupted as stop:
        console.print(
            f"Stopped after step {stop.step}, which is saved; the same line again goes on.",
            highlight=False,
        )
        return 128 + stop.number
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return INTERRUPTED


def _run(verb: object, console: Console) -> int:
    match verb:
        case TrainArguments(recipe=r):
            train(Request(r.recipe, r.config, r.data, r.out, r.init, r.licence), console)
            console.print(f"Done: {r.out}. Summary: multibox report {r.out}", highlight=False)
        case CheckArguments():
            return _check(verb, console)
        case EvaluateArguments():
            return _evaluate(verb, console)
        case ReportArguments():
            print(write_report(verb.run, beside=verb.beside))  # noqa: T201  # the result
        case PredictArguments():
            detector = Detector.open(verb.model, which=verb.which, device=verb.device)
            for note in detector.notes:
                console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
            refusals = predict(
                detector, verb.images, out=verb.out, score_threshold=verb.score_threshold
            )
            for refusal in refusals:
                _refuse(refusal, console)
            return DataError.exit_code if refusals else 0
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
            for line in lines:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            print(verb.out)  # noqa: T201  # the result
        case DownloadArguments():
            # Here alone, so that nothing else loads what opens connections.
            from multibox.download import download

            for folder in download(verb.names, verb.out, console):
                print(folder)  # noqa: T201  # the result
        case BenchArguments():
            _bench(verb)
        case DemoArguments():
            page = demo(verb.out, console)
            console.print("Summary page:", end=" ")
            print(page)  # noqa: T201  # the result
    return 0


def _check(verb: CheckArguments, console: Console) -> int:
    found = check(
        verb.data,
        console,
        splits=verb.splits,
        classes=verb.classes,
        network=verb.network,
        fix=verb.fix,
    )
    if verb.json:
        print(json.dumps(found.as_json()))  # noqa: T201  # the result
    else:
        print_checkup(found, Console(), examples=max(1, verb.examples))
    counting = found.count("fault") + verb.strict * found.count("warning")
    return DataError.exit_code if counting else 0


def _evaluate(verb: EvaluateArguments, console: Console) -> int:
    if (verb.model is None) == (verb.results is None):
        raise ConfigError("evaluate takes a run or weights, or --results, and not both")
    if verb.model is not None:
        metrics = evaluate_model(
            verb.model,
            which=verb.which,
            data=verb.data,
            split=verb.split,
            on_bad=verb.on_bad,
            device=verb.device,
        )
    else:
        if verb.data is None or verb.results is None:
            raise ConfigError("--results needs --data", remedy="Say where the annotations are")
        metrics, missing = evaluate_results(
            verb.results, data=verb.data, split=verb.split or "test"
        )
        for name in missing:
            console.print(f"No file for {name}: it has no detections", highlight=False)
    found = metrics[verb.metric]
    mean = found["AP"] if verb.metric == "coco" else found["mAP"]
    by_class = found["AP_by_class"] if verb.metric == "coco" else found["AP"]
    if verb.json:
        print(json.dumps({"metric": verb.metric, "mAP": mean, "AP": by_class}))  # noqa: T201
        return 0
    table = Table("class", f"AP ({verb.metric})")
    for name, value in [*by_class.items(), ("mean", mean)]:
        table.add_row(name, "none" if value is None else f"{value:.4f}")
    Console().print(table)
    return 0


def _bench(verb: BenchArguments) -> None:
    if verb.recipe not in RECIPES:
        raise ConfigError(
            f"no recipe is called {verb.recipe!r}", remedy=f"Say {', '.join(RECIPES)}"
        )
    config = RECIPES[verb.recipe]()
    size = verb.batch_size or config.run.batch_size
    config = replace(config, run=replace(config.run, batch_size=size))
    figures = bench(verb.part, config, data=verb.data, device=verb.device)
    if verb.json:
        rows = [figure._asdict() | {"images_per_second": figure.per_second} for figure in figures]
        print(json.dumps({"part": verb.part, "recipe": verb.recipe, "figures": rows}))  # noqa: T201
        return
    table = Table("work", "ms", "images/s", "rate beside")
    for figure in figures:
        beside = "" if figure.ratio is None else f"{figure.ratio:.2f} of {figure.beside}"
        ms, rate = f"{1000 * figure.seconds:.1f}", f"{figure.per_second:.1f}"
        table.add_row(figure.name, ms, rate, beside)
    Console().print(table)


def _refuse(error: MultiboxError, console: Console) -> None:
    console.print("[bold red]error:[/]", end=" ")
    console.print(error, markup=False, highlight=False, soft_wrap=True)
