"""The one place where a configuration becomes networks, optimizers and datasets."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from multibox.config import Config, OptimizerConfig
from multibox.data.dataset import Dataset, require_objects
from multibox.data.formats.layouts import read_dataset
from multibox.data.pipeline import without_difficult
from multibox.errors import ConfigError
from multibox.rng import torch_generator
from multibox.ssd.backbones.lite import Lite
from multibox.ssd.backbones.ssd7 import SSD7
from multibox.ssd.backbones.vgg import VGG16, L2Norm
from multibox.ssd.coding import CAFFE_VARIANCES, Variances
from multibox.ssd.default_boxes import (
    SSD7_LEVELS,
    SSD300_COCO,
    SSD300_VOC,
    SSD512_COCO,
    SSD512_VOC,
    Level,
    default_boxes,
)
from multibox.ssd.matching import match
from multibox.ssd.network import CAFFE, SSD, Scales, Traits, initialise, parameter_groups
from multibox.structures import Matches, Output, Targets


class Architecture(NamedTuple):
    """What a network's name stands for.

    Attributes:
        backbone: Makes the backbone.
        image_size_px: (height, width) of the input.
        tables: The default boxes to choose from.
        traits: What holds where nothing else is asked for.
        variances: Of the offsets.
    """

    backbone: Callable[[], nn.Module]
    image_size_px: tuple[int, int]
    tables: Mapping[Scales, tuple[Level, ...]]
    traits: Traits = CAFFE
    variances: Variances = CAFFE_VARIANCES


_SSD300: dict[Scales, tuple[Level, ...]] = {"voc": SSD300_VOC, "coco": SSD300_COCO}
_SSD512: dict[Scales, tuple[Level, ...]] = {"voc": SSD512_VOC, "coco": SSD512_COCO}

NETWORKS = {
    "ssd300-vgg16": Architecture(partial(VGG16, 300, batch_norm=False), (300, 300), _SSD300),
    "ssd300-vgg16-bn": Architecture(partial(VGG16, 300, batch_norm=True), (300, 300), _SSD300),
    "ssd512-vgg16": Architecture(partial(VGG16, 512, batch_norm=False), (512, 512), _SSD512),
    "ssd512-vgg16-bn": Architecture(partial(VGG16, 512, batch_norm=True), (512, 512), _SSD512),
    # COCO's smaller boxes: small datasets are full of small things, and large ones are found too.
    "ssd300-lite": Architecture(
        Lite, (300, 300), _SSD300, Traits(pixel_scale=1 / 64, scales="coco")
    ),
    # Pixels in -1..1 and no variances (`ssd7_training.ipynb`).
    "ssd7": Architecture(
        SSD7,
        (300, 480),
        {"voc": SSD7_LEVELS},
        Traits(mean_rgb=(127.5, 127.5, 127.5), pixel_scale=1 / 127.5),
        Variances(1.0, 1.0),
    ),
}


def _architecture(name: str) -> Architecture:
    if name not in NETWORKS:
        raise ConfigError(f"no network is called {name!r}", remedy=f"Say {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build_network(name: str, num_classes: int, traits: Traits | None = None) -> SSD:
    """Returns an architecture whose weights are still to be filled.

    Args:
        name: One of `NETWORKS`.
        num_classes: C, not counting the background.
        traits: By default the architecture's own.

    Raises:
        ConfigError: There is no network of that name, or it has no such default boxes.
    """
    architecture = _architecture(name)
    traits = traits or architecture.traits
    if traits.scales not in architecture.tables:
        raise ConfigError(
            f"{name} has no default boxes {traits.scales!r}",
            remedy=f"Say {', '.join(architecture.tables)}",
        )
    # The layers' own initial values come from the caller's global generator; leave it as it was.
    with torch.random.fork_rng(devices=[]):
        network = SSD(
            architecture.backbone(),
            architecture.tables[traits.scales],
            image_size_px=architecture.image_size_px,
            num_classes=num_classes,
            traits=traits,
            variances=architecture.variances,
        )
    # PyTorch's annotations do not know this form of `to`, which changes the network in place.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def default_box_tables(name: str) -> dict[Scales, Float[Tensor, "K 4"]]:
    """Returns the default boxes that an architecture lets choose from, xyxy in the unit frame.

    Raises:
        ConfigError: There is no network of that name.
    """
    architecture = _architecture(name)
    size, traits = architecture.image_size_px, architecture.traits
    return {
        scales: default_boxes(levels, size, traits.clip, whole_scales=traits.whole_scales)
        for scales, levels in architecture.tables.items()
    }


def new_network(config: Config, num_classes: int) -> SSD:
    """Returns the network that a run starts from."""
    network = _chosen_network(config, num_classes)
    initialise(network, torch_generator(config.run.seed, "initialise"))
    return network


def network_shape(config: Config, num_classes: int) -> SSD:
    """Returns the network of a run without numbers, on the meta device: it needs no memory.

    Raises:
        ConfigError: There is no such network, or it has no such default boxes.
    """
    with torch.device("meta"):
        return _chosen_network(config, num_classes)


def _chosen_network(config: Config, num_classes: int) -> SSD:
    traits = _architecture(config.network).traits
    if config.default_boxes != "own":
        traits = traits._replace(scales=config.default_boxes)
    network = build_network(config.network, num_classes, traits)
    for module in network.modules():
        if isinstance(module, L2Norm):
            module.gradient = config.optimizer.l2norm_gradient
    return network


def matcher(network: SSD, *, difficult: bool) -> Callable[[Targets], Matches]:
    """Returns what matches the default boxes of a network to the objects of a batch, on the CPU.

    Args:
        network: On any device.
        difficult: Whether difficult objects are matched.
    """
    default_boxes = network.default_boxes.cpu()

    def matched(targets: Targets) -> Matches:
        kept = targets if difficult else without_difficult(targets)
        return match(default_boxes, kept, network.variances)

    return matched


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns the optimizer over Caffe's parameter groups."""
    groups = parameter_groups(network, lr=config.lr, weight_decay=config.weight_decay)
    betas = (config.momentum, 0.999)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=betas, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def read_datasets(config: Config, root: Path) -> tuple[Dataset, Dataset]:
    """Returns the training and the test split, with the training split's classes in both.

    Raises:
        DataError: A folder, split, image or object cannot be used, or a class has no object.
    """
    data = config.data
    train = read_dataset(root, data.train_split, classes=data.classes, on_bad=data.on_bad)
    require_objects(train)
    test = read_dataset(root, data.test_split, classes=train.classes, on_bad=data.on_bad)
    return train, test


def compile_network(network: nn.Module) -> Callable[[Tensor], Output]:
    """Returns a network as PyTorch's compiler translates it, when it is first called.

    The network's own methods stay as they are.
    """
    # It would keep its work as pickles, in a folder whose name other users of the machine know.
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled", UserWarning)
    translated: Callable[[Tensor], Output] = torch.compile(network, dynamic=False)
    return translated


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Says it in our words if the compiler fails, in the first pass forward or backward.

    Raises:
        ConfigError: It cannot compile the network here.
    """
    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"compile is set, but the network cannot be compiled here ({reason})",
            remedy="Install a C++ compiler, or leave --compile out",
        ) from None
