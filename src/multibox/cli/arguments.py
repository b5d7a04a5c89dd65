"""The arguments of the command line: one dataclass per verb, with one field per argument."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from multibox.commands.bench.bench import Part
from multibox.commands.convert import Target
from multibox.config import Config
from multibox.recipes import RECIPES
from multibox.ssd.network import Scales
from multibox.weights.files import NO_LICENCE

# Without a name of their own, the help would show them as `{None}|PATH` and `{None}|STR`.
_OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
_OptionalText = Annotated[str | None, tyro.conf.arg(metavar="STR")]


@dataclass(frozen=True, kw_only=True)
class RecipeArguments:
    """Train with this recipe. To resume a stopped run, repeat the same command."""

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    data: Path
    """Folder of the dataset, in VOC or COCO layout."""
    out: Path
    """Folder for the run: checkpoints, metrics and pictures."""
    config: Config
    init: _OptionalPath = None
    """Start from the weights of this run or weights file instead of random weights."""
    licence: str = NO_LICENCE
    """Licence of the trained weights; it is stored in every weights file."""
    decoded_cache_gib: float = 0.0
    """Keep up to this many GiB of decoded training images below --out until the run ends.
    Each takes width x height x 3 bytes. This is faster if they also fit in memory; the samples are
    the same."""


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
    """Train a detector, with validation, average precision and checkpoints. Choose a recipe."""

    recipe: _Recipe


@dataclass(frozen=True)
class CheckArguments:
    """List the faults of a dataset and show its statistics, before training on it."""

    data: tyro.conf.Positional[Path]
    """Folder of the dataset, in VOC or COCO layout. It is not changed."""
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
    """Folder of a run or of a checkpoint, or a weights file."""
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
    """Write a summary page of a finished or unfinished run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    beside: _OptionalText = None
    """Published results to show next to the run's: ssd-keras-voc0712."""


@dataclass(frozen=True)
class PredictArguments:
    """Detect objects in images; write the boxes as JSON and draw them."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """Folder of a run or of a checkpoint, or a weights file."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Image files, or folders with image files."""
    out: Path
    """Folder for <image>.json (boxes) and <image>.jpg (drawn)."""
    score_threshold: float = 0.5
    """Leave out detections with a lower score, 0..1."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""


@dataclass(frozen=True)
class ConvertArguments:
    """Convert weights between multibox's format and those of other programs."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """Weights file, or folder of a run or of a checkpoint."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new file. It must not exist."""
    to: Target = "multibox"
    """Format of the new file."""
    classes: tuple[str, ...] = ()
    """Class names of a foreign file that was trained on classes of its own."""
    default_boxes: Scales | None = None
    """Default boxes of a foreign file that does not record them."""
    which: str = "last"
    """Checkpoint of the run: last, best or a step."""
    licence: _OptionalText = None
    """Licence of the weights; by default that of the source, if known."""


@dataclass(frozen=True)
class DownloadArguments:
    """Download published datasets, check their files, and unpack them."""

    names: tyro.conf.Positional[tuple[Literal["voc2007", "voc2012", "coco2017"], ...]]
    """Datasets to download; voc2007 contains trainval and test."""
    out: Path
    """Folder for the datasets. To resume a stopped download, repeat the same command."""


@dataclass(frozen=True)
class BenchArguments:
    """Measure the speed of one part on this machine, next to the work that limits it."""

    part: tyro.conf.Positional[Part]
    """The part: input pipeline, training step, detection, evaluation or prediction."""
    recipe: tyro.conf.Positional[str] = "ssd300-lite"
    """Recipe with the network, the augmentation and the batch size."""
    data: _OptionalPath = None
    """Dataset with the images; by default drawn images."""
    batch_size: int | None = None
    """Number of images per training step; by default the recipe's."""
    compile: bool = False
    """Time the training step with torch.compile; the network alone is not compiled."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the network. auto: a GPU if there is one."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class DemoArguments:
    """Try everything in a few minutes: draw a dataset, train, evaluate and report."""

    out: Path = Path("runs/demo")
    """Folder for the dataset and the run."""


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
    """Returns the arguments of a command line; exits with status 2 if they are invalid.

    Args:
        arguments: The words after `multibox`; by default those of this process.

    Raises:
        ConfigError: A value is out of range.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"multibox {version('multibox')}")  # noqa: T201  # the result
        raise SystemExit(0)
    verb: object = tyro.cli(
        _Verb,
        prog="multibox",
        args=given,
        description="SSD object detection: train, evaluate and use SSD300 and SSD512.\n"
        "`multibox VERB --help` lists the options of a verb. `multibox --version` prints the "
        "version.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return verb
