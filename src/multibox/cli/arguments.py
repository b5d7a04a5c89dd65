"""The arguments of the command line: one dataclass per verb, with one field per argument."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from multibox.commands.automatic import AUTOMATIC
from multibox.commands.bench.bench import Part
from multibox.commands.convert import Target
from multibox.commands.predict import Save
from multibox.commands.reproduction.targets import TARGETS
from multibox.config import Config, flatten
from multibox.data.writing.converted_copy import DataFormat
from multibox.download.catalogue import SOURCES, WEIGHTS
from multibox.errors import ConfigError
from multibox.export.files import Format
from multibox.export.files import Precision as ExportPrecision
from multibox.recipes import RECIPES, ssd300_lite
from multibox.ssd.network import Scales
from multibox.weights.files import NO_LICENCE

# Without a name of their own, the help would show them as `{None}|PATH` and `{None}|STR`.
_OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
_OptionalText = Annotated[str | None, tyro.conf.arg(metavar="STR")]


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """Train with this recipe. To resume a stopped run, repeat the same command."""

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    typed: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    data: Path
    """Folder or .zip archive of images with annotations: VOC XML, COCO, YOLO, CSV and others."""
    out: _OptionalPath = None
    """Folder for the run: checkpoints, metrics and pictures. By default runs/<name of the data>."""
    config: Config
    minutes: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Train for about this time: the number of steps is fixed at the start by the speed of this
    machine, and the schedule is fitted to it."""
    scale_lr: bool = False
    """Multiply --lr by --batch-size over the batch size of the recipe. The warm-up stays."""
    dry_run: bool = False
    """Print what would be done, and stop."""
    init: _OptionalPath = None
    """Start from the weights of this run, weights file or downloaded weights, instead of random
    weights."""
    licence: str = NO_LICENCE
    """Licence of the trained weights; it is stored in every weights file."""
    decoded_cache_gib: float = 0.0
    """Keep up to this many GiB of decoded training images below --out until the run ends.
    Each takes width x height x 3 bytes. This is faster if they also fit in memory; the samples are
    the same."""
    tensorboard: bool = False
    """Copy the metrics to event files in <out>/tensorboard at every checkpoint."""
    wandb: bool = False
    """Copy the metrics to Weights & Biases at every checkpoint: offline, unless WANDB_MODE is set.
    """
    mlflow: bool = False
    """Copy the metrics to MLflow at every checkpoint: to <out>, unless MLFLOW_TRACKING_URI is set.
    """


# Its values are defaults only: `choose` replaces those that are not typed.
_RECIPES = {AUTOMATIC: ssd300_lite, **RECIPES}

if TYPE_CHECKING:
    _Recipe = RecipeArguments
else:
    _Recipe = tyro.extras.subcommand_type_from_defaults(
        {
            name: RecipeArguments(recipe=name, data=tyro.MISSING, config=recipe())
            for name, recipe in _RECIPES.items()
        },
        {
            AUTOMATIC: "Choose everything from the data and this machine, as without a recipe.",
            **{name: recipe.__doc__.partition("\n")[0] for name, recipe in RECIPES.items()},
        },
    )


@dataclass(frozen=True)
class TrainArguments:
    """Train a detector, with validation, average precision and checkpoints.

    Without a recipe, everything is chosen from the data: multibox train --data FOLDER
    """

    recipe: _Recipe


@dataclass(frozen=True)
class CheckArguments:
    """List the faults of a dataset and show its statistics, or the doubtful labels of a run."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder or .zip archive of the dataset. It is not changed.
    For the folder of a run: compare the annotations of its training images with its detections."""
    runs: tuple[Path, ...] = ()
    """Further runs with other seeds: list only the labels that all runs disagree with."""
    splits: tuple[str, ...] = ()
    """Splits to check, named as for train; by default all."""
    classes: tuple[str, ...] = ()
    """Class names that are allowed; by default any."""
    network: _OptionalText = None
    """Compare the objects with the default boxes of this network; by default SSD300 and SSD512."""
    fix: _OptionalPath = None
    """Write a corrected copy in VOC layout to this new folder, and check the copy."""
    strict: bool = False
    """Exit with status 3 on warnings too, not only on faults."""
    examples: int = 3
    """Number of examples to print per kind of finding; --json lists all."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass(frozen=True)
class EvaluateArguments:
    """Compute the average precision of a trained network, or of VOC results files."""

    model: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[MODEL]")] = None
    """Folder of a run or of a checkpoint, a weights file, a file of export, or the name of
    downloaded weights."""
    results: _OptionalPath = None
    """Evaluate these detections instead: a folder with results files of the VOC devkit
    (<name>_det_<split>_<class>.txt), or a JSON file in COCO's results format."""
    data: _OptionalPath = None
    """Folder of the dataset. For a run, the default is the one it was trained on."""
    split: _OptionalText = None
    """Split to evaluate on. For a run, the default is its test split."""
    on_bad: Literal["fail", "skip"] | None = None
    """What to do with invalid objects and images. For a run, the default is the run's setting."""
    metric: Literal["voc07", "voc12", "coco"] = "voc07"
    """voc07: mean precision at 11 recall points. voc12: area under the curve.
    coco: mean over the IoU thresholds 0.5, 0.55, ..., 0.95."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""
    workers: int = -1
    """Number of processes that prepare images. 0: this process prepares them.
    -1: chosen by the number of cores. The result does not depend on it."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ReportArguments:
    """Write a summary page of a finished or unfinished run, or a comparison of several runs."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN...")]
    """Folder of the run. Several: the others are compared with the first."""
    beside: _OptionalText = None
    """Published results to show next to the run's: ssd-keras-voc0712."""
    live: bool = False
    """Write the page again every --every seconds until the run is finished. Browsers that show it
    load it again."""
    every: int = 30
    """Seconds between two pages of --live."""
    serve: bool = False
    """Show the page at an address of this machine, which other machines cannot reach."""
    port: int = 8008
    """Port of --serve. 0: any free one."""


@dataclass(frozen=True)
class PredictArguments:
    """Detect objects in images and videos; write them as JSON, pictures, CSV and others."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run or of a checkpoint, a weights file, a file of export, or the name of
    downloaded weights."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")]
    """Images, videos, folders, patterns such as 'photos/*.jpg', .zip and .tar archives, addresses
    (https, rtsp, s3 and others) or numbers of cameras. -: read a list from standard input."""
    out: _OptionalPath = None
    """Folder for the results. Not needed with --save none."""
    save: tuple[Save, ...] = ()
    """What to write; several may be given. images: drawn pictures or a drawn video. json, csv;
    coco, yolo and voc: the formats of results. crops: each object. parquet: resumable, for very
    many images. By default json and images, or parquet with --shard or --engine ray."""
    score_threshold: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Leave out detections with a lower score, 0..1. By default the threshold with the best F1 on
    the validation split, which the weights of a run store, or else 0.5."""
    class_thresholds: tuple[str, ...] = ()
    """Other thresholds for single classes, such as cat=0.3 dog=0.6."""
    classes: tuple[str, ...] = ()
    """Keep only these classes; by default all."""
    flip: bool = False
    """Detect in the mirror image as well, and join the detections. It takes twice as long."""
    recursive: bool = False
    """Take the images in all folders below a folder, too."""
    batch_size: int = 8
    """Number of images that the network computes at once."""
    max_frames: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Stop each video, camera or stream after this many frames."""
    shard: _OptionalText = None
    """Detect only a share of the images: I/N is the I-th of N shares. Parquet only."""
    chunk_size: int = 512
    """Number of images in each Parquet file."""
    engine: Literal["local", "ray"] = "local"
    """ray: Ray Data shares out the images, on this machine or the cluster of RAY_ADDRESS."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""


@dataclass(frozen=True)
class ServeArguments:
    """Answer requests for detections over HTTP, with a page to try it in a browser."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run or of a checkpoint, a weights file, a file of export, or the name of
    downloaded weights."""
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can reach it. 0.0.0.0: all others can,
    without a password."""
    port: int = 8000
    """Port to listen on. 0: any free one."""
    score_threshold: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Leave out detections with a lower score, 0..1, unless a request states a threshold. By
    default as for predict."""
    classes: tuple[str, ...] = ()
    """Keep only these classes; by default all."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Maximum number of waiting images that the network computes at once. By default 4 on the CPU
    and 32 on a GPU."""
    max_waiting: int = 128
    """Number of images that may wait. Further ones are refused with status 503."""
    max_mebibytes: float = 32.0
    """Maximum size of an image file in MiB."""
    timeout: float = 30.0
    """Seconds in which an image must arrive, and in which it must be answered."""
    access_log: bool = False
    """Print a line for each request."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""


@dataclass(frozen=True)
class ConvertArguments:
    """Convert weights between multibox's format and those of other programs."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Weights file, folder of a run or of a checkpoint, or the name of downloaded weights."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new file. It must not exist."""
    to: Target = "multibox"
    """Format of the new file."""
    classes: tuple[str, ...] = ()
    """Class names of a foreign file that was trained on classes of its own, or a .txt file with one
    name on each line."""
    default_boxes: Scales | None = None
    """Default boxes of a foreign file that does not record them."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    licence: _OptionalText = None
    """Licence of the weights; by default that of the source, if known."""


@dataclass(frozen=True)
class ExportArguments:
    """Write a detector for ONNX Runtime or OpenVINO, and compare the file with the network.

    The file resizes, normalises, decodes and suppresses boxes itself. A model card lies beside it.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run or of a checkpoint, or a weights file."""
    out: Path
    """The new file: .onnx, or .xml for OpenVINO."""
    format: Format = "onnx"
    """The runtime to write for."""
    precision: ExportPrecision = "fp32"
    """Number format of the layers. int8 is calibrated on training images."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    data: _OptionalPath = None
    """Folder of the dataset. For a run, the default is the one it was trained on."""
    split: _OptionalText = None
    """Split to compare on. For a run, the default is its test split."""
    on_bad: Literal["fail", "skip"] | None = None
    """What to do with invalid objects and images. For a run, the default is the run's setting."""
    calibration_split: _OptionalText = None
    """int8: split to calibrate on. For a run, the default is its training split."""
    images: int = 200
    """Number of images to compare on, at most; evenly spaced in the split."""
    calibration_images: int = 100
    """int8: number of images to calibrate on, at most; evenly spaced in the split."""
    max_loss: float = 0.01
    """fp16 and int8: refuse a file that loses more average precision than this."""
    licence: _OptionalText = None
    """Licence of the weights; by default that of the source, if known."""


@dataclass(frozen=True)
class ConvertDataArguments:
    """Write a dataset in another format: VOC's XML, COCO's JSON, YOLO's text files or CSV."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder or .zip of the dataset, in any format that can be read. It is not changed."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new folder. It must not exist, or be empty."""
    to: DataFormat
    """Format of the new dataset. Only voc and coco can mark difficult objects."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with invalid objects and images: stop, or leave them out."""
    split_of: _OptionalPath = None
    """Write the splits that were drawn for this run, instead of the folder's."""


@dataclass(frozen=True)
class DownloadArguments:
    """Download published datasets and weights, check their SHA-256, and unpack them.

    Without a name, print a table of everything that can be downloaded.
    """

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[NAME...]", help=f"Any of {', '.join((*SOURCES, *WEIGHTS))}"),
    ] = ()
    out: _OptionalPath = None
    """Folder for the datasets and weights. Datasets need it. By default, weights are stored where
    the other verbs find them by name: ~/.cache/multibox/weights. To resume a stopped download,
    repeat the same command."""


@dataclass(frozen=True)
class BenchArguments:
    """Measure the speed of one part on this machine, next to the work that limits it."""

    part: tyro.conf.Positional[Part]
    """The part: input pipeline, training step, detection, evaluation or prediction."""
    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RECIPE]")] = "ssd300-lite"
    """Recipe with the network, the augmentation and the batch size.
    For predict also an exported file: .onnx or .xml."""
    data: _OptionalPath = None
    """Dataset with the images; by default drawn images."""
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Number of images per training step; by default the recipe's."""
    compile: bool = False
    """Time the training step with torch.compile; the network alone is not compiled."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class AblateArguments:
    """Train a recipe with several changes and seeds, and say which changes help."""

    table: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TABLE")]
    """TOML file with a recipe, [options] of all runs and [changes.NAME] with options of train."""
    data: Path
    """Folder or .zip archive of the dataset. Its test split is not used."""
    out: Path
    """Folder for the runs and their results. To resume, repeat the same command."""
    seeds: int = 3
    """Number of seeds."""
    folds: int = 0
    """Evaluate on this many folds of the training split, one after the other. 0: evaluate on the
    validation split."""


@dataclass(frozen=True)
class DemoArguments:
    """Try everything in a few minutes: draw a dataset, train, evaluate and report."""

    out: Path = Path("runs/demo")
    """Folder for the dataset and the run."""


@dataclass(frozen=True)
class ReproduceArguments:
    """Reproduce a published training: download, check, train, and compare with what is published.

    To resume, repeat the same command.
    """

    target: tyro.conf.Positional[Literal[tuple(TARGETS)]]  # type: ignore[valid-type]
    """The published training. rehearsal: all stages on drawn images in minutes, without downloads.
    """
    data: _OptionalPath = None
    """Folder for datasets and weights. By default data, or <out>/data for the rehearsal."""
    out: _OptionalPath = None
    """Folder for the runs and the summary page. By default runs/<target>."""
    seeds: tuple[int, ...] = (0,)
    """Seeds. Each has a run of its own; three tell how much results differ by chance."""
    yes: bool = False
    """Download without asking."""
    dry_run: bool = False
    """Print the stages with sizes, disk space and times by a short test, and stop."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""
    workers: int = -1
    """Number of processes that prepare images. 0: the training process prepares them.
    -1: chosen by the number of cores. The result does not depend on it."""
    pipeline: Literal["cpu", "cuda"] = "cpu"
    """Where images are cropped, resized and distorted: in the workers, or on the GPU."""


_Verb = (
    Annotated[TrainArguments, tyro.conf.subcommand("train")]
    | Annotated[CheckArguments, tyro.conf.subcommand("check")]
    | Annotated[EvaluateArguments, tyro.conf.subcommand("evaluate")]
    | Annotated[ReportArguments, tyro.conf.subcommand("report")]
    | Annotated[PredictArguments, tyro.conf.subcommand("predict")]
    | Annotated[ServeArguments, tyro.conf.subcommand("serve")]
    | Annotated[ConvertArguments, tyro.conf.subcommand("convert")]
    | Annotated[ExportArguments, tyro.conf.subcommand("export")]
    | Annotated[ConvertDataArguments, tyro.conf.subcommand("convert-data")]
    | Annotated[DownloadArguments, tyro.conf.subcommand("download")]
    | Annotated[BenchArguments, tyro.conf.subcommand("bench")]
    | Annotated[AblateArguments, tyro.conf.subcommand("ablate")]
    | Annotated[DemoArguments, tyro.conf.subcommand("demo")]
    | Annotated[ReproduceArguments, tyro.conf.subcommand("reproduce")]
)


def parse(arguments: Sequence[str] | None = None) -> object:
    """Returns the arguments of a command line; exits with status 2 if they are invalid.

    Args:
        arguments: The words after `multibox`; by default those of this process.

    Raises:
        ConfigError: A value is out of range, or there is no such recipe.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"multibox {version('multibox')}")  # noqa: T201  # the result
        raise SystemExit(0)
    first = given[1] if given[:1] == ["train"] and len(given) > 1 else ""
    if first.startswith("-") and first not in ("-h", "--help"):
        given = ["train", AUTOMATIC, *given[1:]]
    elif given[:1] == ["train"] and not first.startswith("-") and first not in _RECIPES:
        data = first if first and Path(first).exists() else "FOLDER"
        raise ConfigError(
            f"no recipe is called {first!r}" if first else "train needs a dataset",
            remedy=f"Use multibox train --data {data}, or a recipe: {', '.join(RECIPES)}",
        )
    verb: object = tyro.cli(
        _Verb,
        prog="multibox",
        args=given,
        description="SSD object detection: train, evaluate and use SSD300 and SSD512.\n"
        "`multibox VERB --help` lists the options of a verb. `multibox --version` prints the "
        "version.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    if isinstance(verb, TrainArguments):
        return TrainArguments(replace(verb.recipe, typed=_typed(verb.recipe.config, given)))
    return verb


def _typed(config: Config, words: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of the fields of a configuration that are given on a command line."""
    options = {word.partition("=")[0].replace("-", "_").removeprefix("__no_") for word in words}
    options |= {option.removeprefix("__") for option in options}
    return tuple(name for name in flatten(config) if name in options)


def refuse_unused(what: str, unused: dict[str, bool]) -> None:
    """Refuses options that have no effect."""
    for option, given in unused.items():
        if given:
            raise ConfigError(f"{option} has no effect with {what}", remedy="Leave it out")
