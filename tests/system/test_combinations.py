"""All that `train` offers works together, or is refused before the data are read.

All recipes, optimizers and schedules meet; precision, parts of a batch and what is in `VARIED` vary
over them. VGG-16 has an eighth of its channels, which concern neither. At its size it makes one run
a recipe. The runs share one reading of the data.
"""

import itertools
import time
import typing
from functools import partial
from pathlib import Path

import pytest
from rig import small_dataset
from system.conftest import Command
from torch import nn

from multibox import build
from multibox.build import NETWORKS, Datasets, read_datasets
from multibox.config import DefaultBoxes, OptimizerName, ScheduleName
from multibox.recipes import RECIPES
from multibox.ssd.backbones.vgg import VGG16, ConvReLU

pytestmark = [pytest.mark.slow, pytest.mark.system]

STEPS = 3
OPTIMIZERS, SCHEDULES = typing.get_args(OptimizerName), typing.get_args(ScheduleName)
PRECISIONS = ("fp32", "bf16", "auto")

# Five, which has no divisor in common with three: each meets every optimizer and schedule.
VARIED = (
    (),
    ("--ema-decay", "0.9", "--clip-norm", "1", "--no-lr-in-velocity", "--pisa"),
    ("--momentum", "0", "--lr-in-velocity", "--class-loss", "focal"),
    ("--pipeline", "cuda", "--lr-in-velocity", "--box-loss", "ciou", "--swa-from", "2"),
    ("--on-nonfinite", "rollback", "--no-train-difficult", "--label-smoothing", "0.1"),
)
DROPS = ("--drops", "1", "2", "--plateau-patience", "1", "--plateau-threshold", "0.5")


def narrow(backbone: partial[VGG16]) -> VGG16:
    """Returns a VGG-16 with an eighth of the channels."""
    network = backbone()
    for layer in network.modules():
        if isinstance(layer, ConvReLU):
            conv = layer.conv
            layer.conv = nn.Conv2d(
                max(3, conv.in_channels // 8),
                conv.out_channels // 8,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                bias=conv.bias is not None,
            )
            if hasattr(layer, "norm"):
                layer.norm = nn.BatchNorm2d(conv.out_channels // 8)
    network.conv4_3_norm.weight = nn.Parameter(network.conv4_3_norm.weight[:64])
    network.channels = tuple(channels // 8 for channels in network.channels)
    return network


@pytest.fixture
def narrow_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, network in NETWORKS.items():
        if "vgg16" in name:
            thin = partial(narrow, network.backbone)
            monkeypatch.setitem(build.NETWORKS, name, network._replace(backbone=thin))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("combinations") / "data", train=6, test=2)


@pytest.fixture(autouse=True)
def read_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = RECIPES["ssd300-lite"]()
    found = read_datasets(splits, data)

    def read(*_: object) -> Datasets:
        return found

    monkeypatch.setattr("multibox.commands.train.read_datasets", read)


def train_line(data: Path, out: Path, recipe: str, *options: str) -> list[object]:
    line = ["train", recipe, "--data", data, "--out", out, "--device", "cpu", "--workers", "0"]
    line += ["--steps", STEPS, "--batch-size", "4", "--log-every", "1", "--validate-every", "1"]
    return [*line, "--warmup-steps", "2", "--checkpoint-every", "100", *options]


@pytest.mark.usefixtures("narrow_networks")
@pytest.mark.parametrize("recipe", RECIPES)
def test_all_optimizers_and_schedules(
    recipe: str, data: Path, tmp_path: Path, called: Command
) -> None:
    rows = []
    number = [*RECIPES].index(recipe)
    for optimizer, schedule in itertools.product(OPTIMIZERS, SCHEDULES):
        precision = PRECISIONS[(number + number // 3) % 3]
        accumulate = "2" if number % 2 else "1"
        options = ["--optimizer", optimizer, "--schedule", schedule, "--precision", precision]
        options += ["--accumulate", accumulate, *VARIED[number % len(VARIED)]]
        line = train_line(data, tmp_path / str(number), recipe, *options, *DROPS)
        start = time.monotonic()
        done = called(*line)
        rows.append(f"{time.monotonic() - start:6.1f} s  {done.returncode}  {' '.join(options)}")
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        number += 1
    print(f"\n{recipe}", *rows, sep="\n")  # noqa: T201  # for -rP


@pytest.mark.parametrize("recipe", [name for name, make in RECIPES.items() if "vgg" in name])
def test_vgg_at_its_size(recipe: str, data: Path, tmp_path: Path, called: Command) -> None:
    line = train_line(data, tmp_path / "run", recipe, "--batch-size", "2", "--precision", "auto")
    start = time.monotonic()
    done = called(*line)
    assert done.returncode == 0, done.stderr
    print(f"{recipe}: {time.monotonic() - start:.1f} s")  # noqa: T201  # for -rP


@pytest.mark.parametrize(
    ("recipe", "boxes"), [*itertools.product(RECIPES, typing.get_args(DefaultBoxes))]
)
def test_default_boxes_and_a_batch_that_cannot_be_shared(
    recipe: str,
    boxes: str,
    data: Path,
    tmp_path: Path,
    called: Command,
    monkeypatch: pytest.MonkeyPatch,
    narrow_networks: None,
) -> None:
    if boxes not in ("own", *NETWORKS[RECIPES[recipe]().network].tables):
        monkeypatch.delattr("multibox.commands.train.read_datasets")
        done = called(*train_line(data, tmp_path / "run", recipe, "--default-boxes", boxes))
        assert (done.returncode, "has no default boxes" in done.stderr) == (2, True)
        return
    line = train_line(data, tmp_path / "run", recipe, "--default-boxes", boxes)
    assert called(*line).returncode == 0
    monkeypatch.delattr("multibox.commands.train.read_datasets")
    normalised = recipe not in [name for name in RECIPES if "vgg16" in name and "bn" not in name]
    options = ["--default-boxes", boxes, "--accumulate", "4" if normalised else "3"]
    done = called(*train_line(data, tmp_path / "other", recipe, *options))
    assert done.returncode == 2, done.stderr
    assert "Change --" in done.stderr
