"""What can be typed: a dataclass per verb, whose fields are its arguments."""

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
    decoded_cache_gib: float = 0.0
    """Disk below --out, in GiB, for decoded training images until the run ends: width x height x 3
    bytes each. Worth it where memory holds them, too; samples are the same."""


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
    workers: int = -1
    """Processes that prepare the images; 0: this process itself; -1: by the hardware. The result
    is the same."""
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
    """Dataset with pictures to prepare; by default a drawn one."""
    batch_size: int | None = None
    """Images of the training step; by default the recipe's."""
    compile: bool = False
    """Compile the network of the step; the one beside it stays as it is."""
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
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given == ["--version"]:
        print(f"multibox {version('multibox')}")  # noqa: T201  # the result
        raise SystemExit(0)
    verb: object = tyro.cli(
        _Verb,
        prog="multibox",
        args=given,
        description="SSD object detection: trains, evaluates and uses SSD300 and SSD512. "
        "`multibox VERB --help` lists a verb's options; --version says which multibox this is.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return verb
