"""Recipes: functions that return a complete configuration, each with what it costs and reaches."""

import dataclasses
from collections.abc import Callable

from multibox.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

VOC_0712 = DataConfig(train_split="2007:trainval+2012:trainval", test_split="2007:test")
# Crowds are not learnt from (`ssd_coco.py:288`).
COCO_2017 = DataConfig(train_split="train2017", test_split="val2017", train_difficult=False)
# `ssd_coco.py:361-389`; the third step value is the end.
COCO_SCHEDULE = ScheduleConfig(steps=400_000, drops=(280_000, 360_000))


def ssd300_vgg16_voc0712() -> Config:
    """The original SSD300 (`ssd_pascal.py:223-389`), but for a warm-up of 500 steps.

    It starts from ImageNet's VGG-16 (`--init`). `--warmup-steps 0` is the original to the letter;
    `--schedule plateau` drops the rate when the validation loss has converged.
    """
    return Config(
        network="ssd300-vgg16",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr_in_velocity=True),
    )


def ssd512_vgg16_voc0712() -> Config:
    """The original SSD512, in batches of 24 as the ports that fit it on one GPU."""
    return Config(
        network="ssd512-vgg16",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr_in_velocity=True),
        run=RunConfig(batch_size=24),
    )


def ssd300_vgg16_coco() -> Config:
    """The original SSD300 for COCO (`ssd_coco.py`), but for a warm-up of 500 steps.

    It starts from ImageNet's VGG-16 (`--init`) and has smaller default boxes than that for VOC.
    The original's splits were trainval35k and minival of 2014; train2017 and val2017 are almost the
    same images.
    """
    return Config(
        network="ssd300-vgg16",
        default_boxes="coco",
        data=COCO_2017,
        optimizer=OptimizerConfig(lr_in_velocity=True),
        schedule=COCO_SCHEDULE,
    )


def ssd512_vgg16_coco() -> Config:
    """SSD512 for COCO, with the solver of SSD300: the original's script was not published.

    The original's weights are published as those of step 360,000.
    """
    return dataclasses.replace(ssd300_vgg16_coco(), network="ssd512-vgg16")


def ssd300_vgg16_bn() -> Config:
    """SSD300 with batch normalisation, for training without ImageNet weights.

    Published results from scratch use ten times the original's rate.
    """
    return Config(
        network="ssd300-vgg16-bn",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(schedule="cosine", warmup_steps=1_000),
    )


def ssd300_lite() -> Config:
    """A small network that learns a few hundred images in minutes on a CPU, from random weights.

    Eight minutes on two cores; half the steps give a usable detector (`benchmarks/results`).
    Two of Caffe's augmentations suit long runs on the photographs of a whole world: images are put
    into canvases of twice their size at most, because a short run has no time to learn objects
    that are smaller than those it is to find, and colours stay as they are, because in a small
    dataset, mostly of one camera, they tell much.
    """
    return Config(
        network="ssd300-lite",
        augmentation=AugmentationConfig(distort=False, expand_max_ratio=2.0),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=0.002, weight_decay=0.05, clip_norm=10.0, ema_decay=0.998
        ),
        schedule=ScheduleConfig(steps=1_600, schedule="cosine", warmup_steps=100),
        run=RunConfig(
            batch_size=16,
            log_every=50,
            validate_every=200,
            evaluate_every=400,
            checkpoint_every=200,
        ),
    )


def ssd7() -> Config:
    """The small seven-layer network of ssd_keras, as its `ssd7_training.ipynb` trains it.

    For video frames and other images of about 300 rows by 480 columns. The decay is twice
    ssd_keras's L2 factor, because the gradient of that is. These differ from ssd_keras:

    - The augmentation is Caffe's chain, with expansions to twice the size at most, instead of
      shifts and scalings by 0.5 to 2 on black; its colours vary a little less.
    - Convolutions begin with Caffe's uniform numbers, not He's normal ones, and biases learn twice
      as fast.
    - Unmatched default boxes that overlap an object by 0.3 to 0.5 are negatives, not left out, and
      hard negatives are sought in each image, not in the batch.
    - The plateau's threshold is relative, and nothing stops the run early.
    """
    return Config(
        network="ssd7",
        augmentation=AugmentationConfig(expand_max_ratio=2.0),
        optimizer=OptimizerConfig(optimizer="adam", lr=0.001, weight_decay=0.001),
        schedule=ScheduleConfig(
            steps=20_000,
            schedule="plateau",
            drop_factor=0.2,
            warmup_steps=0,
            plateau_patience=8,
            plateau_threshold=0.001,
        ),
        run=RunConfig(batch_size=16, evaluate_every=5_000),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "ssd300-vgg16-voc0712": ssd300_vgg16_voc0712,
    "ssd512-vgg16-voc0712": ssd512_vgg16_voc0712,
    "ssd300-vgg16-coco": ssd300_vgg16_coco,
    "ssd512-vgg16-coco": ssd512_vgg16_coco,
    "ssd300-vgg16-bn": ssd300_vgg16_bn,
    "ssd300-lite": ssd300_lite,
    "ssd7": ssd7,
}
