"""Builds the networks, optimizers and datasets of a configuration."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from multibox.config import Config, LossConfig, OptimizerConfig
from multibox.data.dataset import Dataset, Note, require_objects
from multibox.data.formats.layouts import open_dataset
from multibox.data.pipeline import without_difficult
from multibox.data.splits.draw import draw, parse_shares, pool, take
from multibox.data.splits.near_duplicates import thumbnails
from multibox.errors import ConfigError, counted
from multibox.hardware import usable_cores
from multibox.rng import torch_generator
from multibox.ssd.backbones.efficientnet_lite import EfficientNetLite0
from multibox.ssd.backbones.lite import Lite
from multibox.ssd.backbones.mobilenet_v1 import MobileNetV1
from multibox.ssd.backbones.mobilenet_v2 import MobileNetV2, separable_head
from multibox.ssd.backbones.mobilenet_v3 import MobileNetV3, ssdlite_head
from multibox.ssd.backbones.resnet10 import ResNet10
from multibox.ssd.backbones.ssd7 import SSD7
from multibox.ssd.backbones.vgg import VGG16, L2Norm
from multibox.ssd.coding import CAFFE_VARIANCES, Variances
from multibox.ssd.default_boxes import (
    MOBILENET_CAFFE_LEVELS,
    RESNET10_LEVELS,
    SSD7_LEVELS,
    SSD300_COCO,
    SSD300_MOBILENET,
    SSD300_VOC,
    SSD384_COCO,
    SSD512_COCO,
    SSD512_VOC,
    SSDLITE320,
    Level,
    default_boxes,
)
from multibox.ssd.loss import multibox_loss
from multibox.ssd.loss_variants import Variant, variant_loss
from multibox.ssd.matching import match
from multibox.ssd.network import (
    CAFFE,
    SSD,
    Head,
    Scales,
    Traits,
    convolution,
    initialise,
    parameter_groups,
    pointwise,
)
from multibox.structures import Losses, Matches, Output, Targets


class Architecture(NamedTuple):
    """A network architecture.

    Attributes:
        backbone: Returns a new backbone.
        image_size_px: (height, width) of the input, in pixels.
        tables: Available default boxes, by the dataset that they were designed for.
        traits: Default traits: normalisation of pixels, default boxes, clipping.
        variances: Variances of the offsets.
        head: Makes the heads of the network.
    """

    backbone: Callable[[], nn.Module]
    image_size_px: tuple[int, int]
    tables: Mapping[Scales, tuple[Level, ...]]
    traits: Traits = CAFFE
    variances: Variances = CAFFE_VARIANCES
    head: Head = convolution


_PRIOR = 0.01
"""Probability of an object in each default box of a new network for the focal loss."""

_SSD300: dict[Scales, tuple[Level, ...]] = {"voc": SSD300_VOC, "coco": SSD300_COCO}
_SSD512: dict[Scales, tuple[Level, ...]] = {"voc": SSD512_VOC, "coco": SSD512_COCO}
# Pixels as in the training on ImageNet (`efficientnet_lite_builder.py`).
_EFFICIENTNET_LITE = Traits((127.0, 127.0, 127.0), 1 / 128, scales="coco")
# qfgaohao/pytorch-ssd (`mobilenetv1_ssd_config.py:6-8`, `mobilenetv1_ssd.py:65`).
_MOBILENET_SSD = Traits((127.0, 127.0, 127.0), 1 / 128, clip="centre", per_class=200)


def _mobilenet_caffe(*, batch_norm: bool) -> MobileNetV1:
    """Returns the backbone of chuanqi305/MobileNet-SSD."""
    extra = ((256, 512), (128, 256), (128, 256), (64, 128))
    return MobileNetV1(extra, batch_norm=batch_norm, trunk_norm=batch_norm)


# Pixels as in its `MobileNetSSD_train.prototxt`.
_MOBILENET_CAFFE = Architecture(
    partial(_mobilenet_caffe, batch_norm=True),
    (300, 300),
    {"voc": MOBILENET_CAFFE_LEVELS},
    Traits(mean_rgb=(127.5, 127.5, 127.5), pixel_scale=0.007843),
    head=pointwise,
)

NETWORKS = {
    "ssd300-vgg16": Architecture(partial(VGG16, 300, batch_norm=False), (300, 300), _SSD300),
    "ssd300-vgg16-bn": Architecture(partial(VGG16, 300, batch_norm=True), (300, 300), _SSD300),
    "ssd512-vgg16": Architecture(partial(VGG16, 512, batch_norm=False), (512, 512), _SSD512),
    "ssd512-vgg16-bn": Architecture(partial(VGG16, 512, batch_norm=True), (512, 512), _SSD512),
    # COCO's smaller boxes: small datasets have many small objects, and large ones are found too.
    "ssd300-lite": Architecture(
        Lite, (300, 300), _SSD300, Traits(pixel_scale=1 / 64, scales="coco")
    ),
    "ssd300-efficientnet-lite0": Architecture(
        EfficientNetLite0, (300, 300), _SSD300, _EFFICIENTNET_LITE
    ),
    "ssd384-efficientnet-lite0": Architecture(
        EfficientNetLite0, (384, 384), {"coco": SSD384_COCO}, _EFFICIENTNET_LITE
    ),
    # As in qfgaohao/pytorch-ssd, which replaced the L2 normalisation (`vgg_ssd.py:15-18`).
    "ssd300-vgg16-bn-conv4": Architecture(
        partial(VGG16, 300, batch_norm=False, finest_norm=nn.BatchNorm2d), (300, 300), _SSD300
    ),
    # Also as there (`mobilenetv1_ssd.py`, `mobilenet_v2_ssd_lite.py`, `mobilenetv1_ssd_config.py`).
    "ssd300-mobilenetv1": Architecture(
        partial(MobileNetV1, ((256, 512), *((128, 256),) * 3), batch_norm=False),
        (300, 300),
        {"voc": SSD300_MOBILENET},
        _MOBILENET_SSD,
    ),
    "ssd300-mobilenetv2-lite": Architecture(
        MobileNetV2,
        (300, 300),
        {"voc": SSD300_MOBILENET},
        _MOBILENET_SSD,
        head=separable_head,
    ),
    # Pixels in -1..1 and thresholds of the detection (`ssdlite.py` of torchvision).
    "ssdlite320-mobilenetv3": Architecture(
        MobileNetV3,
        (320, 320),
        {"voc": SSDLITE320},
        Traits(
            mean_rgb=(127.5, 127.5, 127.5),
            pixel_scale=1 / 127.5,
            clip="sides",
            clip_detections=True,
            score_threshold=0.001,
            per_class=300,
            iou_threshold=0.55,
            per_image=300,
        ),
        head=ssdlite_head,
    ),
    # Batch normalisation is merged into the convolutions, as in the published file for detection.
    "ssd300-mobilenetv1-caffe": _MOBILENET_CAFFE._replace(
        backbone=partial(_mobilenet_caffe, batch_norm=False)
    ),
    "ssd300-mobilenetv1-caffe-bn": _MOBILENET_CAFFE,
    # OpenCV's face detector. The mean is that of its documentation (`samples/dnn/models.yml`).
    "ssd300-resnet10": Architecture(
        ResNet10, (300, 300), {"voc": RESNET10_LEVELS}, Traits(mean_rgb=(123.0, 177.0, 104.0))
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
        remedy = f"Use one of {', '.join(NETWORKS)}"
        raise ConfigError(f"no network is called {name!r}", remedy=remedy)
    return NETWORKS[name]


def build_network(name: str, num_classes: int, traits: Traits | None = None) -> SSD:
    """Returns a network without meaningful weights.

    Args:
        name: Name of the architecture, one of `NETWORKS`.
        num_classes: Number of classes C, without the background.
        traits: Traits of the network. None: the architecture's own.

    Raises:
        ConfigError: The name is unknown, or the architecture does not have these default boxes.
    """
    architecture = _architecture(name)
    traits = traits or architecture.traits
    if traits.scales not in architecture.tables:
        raise ConfigError(
            f"{name} has no default boxes {traits.scales!r}",
            remedy=f"Use one of {', '.join(architecture.tables)}",
        )
    # PyTorch's layers draw initial values from the global generator. Do not change its state.
    with torch.random.fork_rng(devices=[]):
        network = SSD(
            architecture.backbone(),
            traits.fitted or architecture.tables[traits.scales],
            image_size_px=architecture.image_size_px,
            num_classes=num_classes,
            traits=traits,
            variances=architecture.variances,
            head=architecture.head,
        )
    # PyTorch's annotations do not know this form of `to`, which changes the network in place.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def default_box_tables(name: str) -> dict[Scales, Float[Tensor, "K 4"]]:
    """Returns the available default boxes of an architecture, xyxy in the unit frame.

    Raises:
        ConfigError: The name is unknown.
    """
    architecture = _architecture(name)
    size, traits = architecture.image_size_px, architecture.traits
    return {
        scales: default_boxes(levels, size, traits.clip, whole_scales=traits.whole_scales)
        for scales, levels in architecture.tables.items()
    }


def new_network(config: Config, num_classes: int, fitted: tuple[Level, ...] = ()) -> SSD:
    """Returns the network of a new run, with random weights from the run's seed.

    Args:
        config: The configuration of the run.
        num_classes: Number of classes C, without the background.
        fitted: Default boxes that replace the architecture's tables, if not empty.
    """
    network = _chosen_network(config, num_classes, fitted)
    initialise(network, torch_generator(config.run.seed, "initialise"))
    if config.loss.class_loss == "focal":
        # Otherwise the many default boxes without an object dominate the first steps (Lin et al.
        # 2017, section 3.3).
        for layer in network.class_layers().values():
            bias = cast(Tensor, layer.bias).detach()
            bias.view(-1, num_classes + 1)[:, 0] = math.log(num_classes * (1 - _PRIOR) / _PRIOR)
    return network


def network_shape(config: Config, num_classes: int) -> SSD:
    """Returns the network of a run on the meta device, where it needs no memory.

    Raises:
        ConfigError: The network is unknown, or it does not have the chosen default boxes.
    """
    with torch.device("meta"):
        return _chosen_network(config, num_classes)


def levels_to_choose(config: Config) -> list[tuple[Level, ...]]:
    """Returns the tables of a run's architecture. The table that the run uses is the first."""
    tables, scales = _architecture(config.network).tables, _traits(config).scales
    return [tables[scales], *(tables[name] for name in tables if name != scales)]


def _traits(config: Config) -> Traits:
    traits = _architecture(config.network).traits
    return traits if config.default_boxes == "own" else traits._replace(scales=config.default_boxes)


def _chosen_network(config: Config, num_classes: int, fitted: tuple[Level, ...] = ()) -> SSD:
    traits = _traits(config)._replace(fitted=fitted)
    network = build_network(config.network, num_classes, traits)
    for module in network.modules():
        if isinstance(module, L2Norm):
            module.gradient = config.optimizer.l2norm_gradient
    frozen = config.optimizer.frozen_stages
    if frozen > (known := network.freeze(frozen)):
        reason = f"frozen_stages is {frozen}, but {config.network} has {known} that can be frozen"
        raise ConfigError(reason, remedy="Change --frozen-stages")
    return network


def build_loss(network: SSD, config: LossConfig) -> Callable[[Output, Matches, Tensor], Losses]:
    """Returns the loss of a network in training: a function like `multibox_loss`.

    Args:
        network: The network, on its device.
        config: The loss.
    """
    if config == LossConfig():
        return multibox_loss
    variant = Variant(network.default_boxes, network.variances, **asdict(config))
    return partial(variant_loss, variant=variant)


def matcher(network: SSD, *, difficult: bool) -> Callable[[Targets], Matches]:
    """Returns a function that matches a network's default boxes to the objects of a batch.

    It runs on the CPU.

    Args:
        network: The network, on any device.
        difficult: Whether difficult objects are matched.
    """
    default_boxes = network.default_boxes.cpu()

    def matched(targets: Targets) -> Matches:
        kept = targets if difficult else without_difficult(targets)
        return match(default_boxes, kept, network.variances)

    return matched


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Returns the optimizer, with Caffe's parameter groups."""
    groups = parameter_groups(network, lr=config.lr, weight_decay=config.weight_decay)
    betas = (config.momentum, 0.999)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr, betas=betas, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


class Datasets(NamedTuple):
    """The splits of a run. All of them have the classes of the training split.

    Attributes:
        train: The training split.
        validation: The split for validation and evaluation during training.
        test: The split that is evaluated once, at the end. None if it is the validation split, or
            if there is none.
        drawn: The image ids of drawn splits, by split. None if they are the folder's.
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    drawn: dict[str, tuple[str, ...]] | None = None


def read_datasets(
    config: Config, root: Path, drawn: Mapping[str, Sequence[str]] | None = None
) -> Datasets:
    """Returns the splits of a run.

    Args:
        config: The configuration.
        root: The dataset's folder.
        drawn: The image ids of splits that were drawn earlier. None: they are drawn if the
            configuration asks for it.

    Raises:
        DataError: A folder, split, image or object cannot be used, or the training split has no
            object of a class.
    """
    data = config.data
    if data.split:
        return _read_drawn(config, root, drawn)
    folder = open_dataset(root)
    train = folder.read(data.train_split, classes=data.classes, on_bad=data.on_bad)
    require_objects(train)
    others = [
        _note_shared(folder.read(split, classes=train.classes, on_bad=data.on_bad), train)
        for split in (data.val_split, data.test_split)
        if split
    ]
    return Datasets(train, others[0], others[1] if len(others) > 1 else None)


def _note_shared(dataset: Dataset, train: Dataset) -> Dataset:
    """Adds a note to a validation or test split that has images of the training split."""
    trained = {item.image_path for item in train.annotations}
    count = sum(item.image_path in trained for item in dataset.annotations)
    if not count:
        return dataset
    both = f"{counted(count, 'image')} of {dataset.name} also in {train.name}"
    note = Note("leaked-image", f"{both}: the result is too good")
    return replace(dataset, notes=(*dataset.notes, note))


def _read_drawn(config: Config, root: Path, drawn: Mapping[str, Sequence[str]] | None) -> Datasets:
    shares, data = parse_shares(config.data.split), config.data
    folder = open_dataset(root)
    pooled = folder.read(pool(folder.splits), classes=data.classes, on_bad=data.on_bad)
    notes = pooled.notes
    if drawn is None:
        paths = [item.image_path for item in pooled.annotations]
        found = draw(pooled, thumbnails(paths, threads=usable_cores()), shares, config.run.seed)
        drawn, notes = found.ids, (*notes, *found.notes)
    elif extra := len(pooled) - sum(map(len, drawn.values())):
        added = f"{counted(extra, 'image')} added after the splits were drawn: not used"
        notes = (*notes, Note("images-added", added))
    train, *others = (take(pooled, ids, name) for name, ids in drawn.items())
    require_objects(train)
    train = replace(train, faults=pooled.faults, notes=notes)
    ids = {name: tuple(listed) for name, listed in drawn.items()}
    return Datasets(train, others[0], others[1] if len(others) > 1 else None, ids)


def compile_network(network: nn.Module) -> Callable[[Tensor], Output]:
    """Returns the network's forward pass, compiled by `torch.compile` at the first call.

    The network itself is not changed.
    """
    # The compiler's cache consists of pickles, in a folder that other users can predict.
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", "dynamo_pgo force disabled", UserWarning)
    compiled: Callable[[Tensor], Output] = torch.compile(network, dynamic=False)
    return compiled


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turns a compiler failure into a ConfigError.

    The compiler runs in the first forward pass and in the first backward pass.

    Raises:
        ConfigError: The network cannot be compiled on this machine.
    """
    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"compile is set, but the network cannot be compiled here ({reason})",
            remedy="Install a C++ compiler or leave out --compile",
        ) from None
