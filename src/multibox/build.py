"""The one place where a configuration becomes networks, optimizers and datasets."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from multibox.config import Config, OptimizerConfig
from multibox.data.dataset import Dataset, require_objects
from multibox.data.formats import read_dataset
from multibox.errors import ConfigError
from multibox.rng import torch_generator
from multibox.ssd.backbones.lite import Lite
from multibox.ssd.backbones.vgg import VGG16
from multibox.ssd.default_boxes import SSD300_COCO, SSD300_VOC, SSD512_VOC
from multibox.ssd.network import SSD, initialise, parameter_groups


def _vgg16(num_classes: int, *, image_size_px: int, batch_norm: bool) -> SSD:
    backbone = VGG16(image_size_px, batch_norm=batch_norm)
    levels = {300: SSD300_VOC, 512: SSD512_VOC}[image_size_px]
    return SSD(backbone, levels, image_size_px=image_size_px, num_classes=num_classes)


def _ssd300_lite(num_classes: int) -> SSD:
    # COCO's smaller boxes: small datasets are full of small things, and large ones are found too.
    return SSD(Lite(), SSD300_COCO, image_size_px=300, num_classes=num_classes, pixel_scale=1 / 64)


NETWORKS: dict[str, Callable[[int], SSD]] = {
    "ssd300-vgg16": partial(_vgg16, image_size_px=300, batch_norm=False),
    "ssd300-vgg16-bn": partial(_vgg16, image_size_px=300, batch_norm=True),
    "ssd512-vgg16": partial(_vgg16, image_size_px=512, batch_norm=False),
    "ssd512-vgg16-bn": partial(_vgg16, image_size_px=512, batch_norm=True),
    "ssd300-lite": _ssd300_lite,
}


def build_network(name: str, num_classes: int) -> SSD:
    """Returns an architecture whose weights are still to be filled.

    Raises:
        ConfigError: There is no network of that name.
    """
    if name not in NETWORKS:
        raise ConfigError(f"no network is called {name!r}", remedy=f"Say {', '.join(NETWORKS)}")
    # The layers' own initial values come from the caller's global generator; leave it as it was.
    with torch.random.fork_rng(devices=[]):
        network = NETWORKS[name](num_classes)
    # PyTorch's annotations do not know this form of `to`, which changes the network in place.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def new_network(config: Config, num_classes: int) -> SSD:
    """Returns the network that a run starts from."""
    network = build_network(config.network, num_classes)
    initialise(network, torch_generator(config.run.seed, "initialise"))
    return network


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
