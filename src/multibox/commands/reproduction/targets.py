"""What `reproduce` can reproduce: recipe, data, weights and the published results."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

from multibox.commands.reproduction.look_alike import IMAGES, SCALE, scaled
from multibox.config import Config, RunConfig, ScheduleConfig
from multibox.recipes import (
    VOC_0712,
    ssd300_lite,
    ssd300_vgg16_coco,
    ssd300_vgg16_voc0712,
    ssd512_vgg16_voc0712,
)
from multibox.reporting.reproduction import Publication, Published

REHEARSAL = "rehearsal"


class Target(NamedTuple):
    """A published training.

    Attributes:
        title: Name of the training, for the page.
        recipe: Name of the recipe, which the runs store.
        config: Returns the configuration.
        datasets: The datasets to download, by the names of `download`. Empty: they are drawn.
        weights: The weights to download. Empty: they are random.
        data: The dataset's folder, below the folder of all datasets.
        images: Number of images of each split.
        published: The published results.
        warning: Why the figures cannot be compared; empty if they can.
    """

    title: str
    recipe: str
    config: Callable[[], Config]
    datasets: tuple[str, ...]
    weights: str
    data: str
    images: Mapping[str, int]
    published: Published
    warning: str = ""


VGG = "vgg16-caffe-imagenet"
_VOC = ("voc2007", "voc2012")
# Results on VOC2007 test of networks that were trained on VOC2007 trainval + VOC2012 trainval.
_SSD300_VOC = Published(
    "voc07",
    "Pascal VOC 2007 test",
    (
        Publication(0.771, "P. Ferrari, ssd_keras: training summary of SSD300 07+12 at 102k steps"),
        Publication(0.772, "W. Liu, caffe (branch ssd): README, SSD300 with expansion"),
        Publication(0.774, "amdegroot, ssd.pytorch: README, trained from VGG-16 (77.43)"),
        Publication(0.775, "ChainerCV: README of examples/ssd, trained on one GPU"),
        Publication(0.776, "ChainerCV: README of examples/ssd, trained on four GPUs"),
        Publication(0.777, "lufficc, SSD: README"),
        Publication(0.778, "zhreshold, mxnet-ssd: release notes"),
        Publication(0.782, "PaddleDetection: pull request 1782, 240 epochs on four GPUs"),
    ),
    {
        20_000: (
            Publication(0.696, "ssd_keras, training summary: first training"),
            Publication(0.665, "ssd_keras, training summary: second training, same configuration"),
        )
    },
    reference="ssd-keras-voc0712",
)
_SSD512_VOC = Published(
    "voc07",
    "Pascal VOC 2007 test",
    (
        Publication(0.798, "W. Liu, caffe (branch ssd): README, SSD512 with expansion"),
        Publication(0.799, "zhreshold, mxnet-ssd: release notes"),
        Publication(0.801, "ChainerCV: README of examples/ssd, trained on one GPU"),
        Publication(0.805, "ChainerCV: README of examples/ssd, trained on four GPUs"),
        Publication(0.807, "lufficc, SSD: README"),
    ),
)
_SSD300_COCO = Published(
    "coco",
    "COCO val2017",
    (
        Publication(0.247, "P. Ferrari, ssd_keras: Caffe's weights, on val2017"),
        Publication(0.251, "W. Liu, caffe (branch ssd): on test-dev 2015"),
        Publication(0.252, "lufficc, SSD: README, on minival 2014"),
    ),
    same_images=False,
)


def _coco() -> Config:
    # Two boxes of train2017 have no height: annotations 918 and 2206849 (cocodataset/cocoapi#355).
    return ssd300_vgg16_coco().override({"on_bad": "skip"})


def _rehearsal() -> Config:
    """Returns a thousandth of the steps of SSD300, with a network that two cores can train.

    SSD300 with a VGG-16 takes about a second per image on a core, which is an hour for 120 steps.
    Batch size, number of steps and drops of the rate follow the recipe of SSD300. The optimizer is
    that of `ssd300-lite`, because SGD with a rate of 0.001 learns nothing in 120 steps.
    """
    recipe = ssd300_lite()
    return dataclasses.replace(
        recipe,
        data=VOC_0712,
        optimizer=dataclasses.replace(recipe.optimizer, ema_decay=0.9),
        schedule=ScheduleConfig(steps=120, drops=(80, 100), warmup_steps=10),
        run=RunConfig(
            batch_size=32, log_every=1, validate_every=10, evaluate_every=20, checkpoint_every=5
        ),
    )


TARGETS: dict[str, Target] = {
    "ssd300-voc0712": Target(
        "SSD300 on Pascal VOC 07+12",
        "ssd300-vgg16-voc0712",
        ssd300_vgg16_voc0712,
        _VOC,
        VGG,
        "VOCdevkit",
        IMAGES,
        _SSD300_VOC,
    ),
    "ssd512-voc0712": Target(
        "SSD512 on Pascal VOC 07+12",
        "ssd512-vgg16-voc0712",
        ssd512_vgg16_voc0712,
        _VOC,
        VGG,
        "VOCdevkit",
        IMAGES,
        _SSD512_VOC,
    ),
    "ssd300-coco": Target(
        "SSD300 on COCO 2017",
        "ssd300-vgg16-coco",
        _coco,
        ("coco2017",),
        VGG,
        "coco2017",
        {"train2017": 118_287, "val2017": 5_000},
        _SSD300_COCO,
    ),
    REHEARSAL: Target(
        "SSD300 on Pascal VOC 07+12",
        REHEARSAL,
        _rehearsal,
        (),
        "",
        "VOCdevkit",
        scaled(SCALE),
        _SSD300_VOC._replace(milestones={}),
        warning="This is a rehearsal. A small network was trained on a few drawn images for a "
        "thousandth of the steps. It shows that every stage works. Its figures cannot be compared "
        "with the published ones, so its verdicts mean nothing.",
    ),
}
"""The trainings by the names that `reproduce` takes."""
