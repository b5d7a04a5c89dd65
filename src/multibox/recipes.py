"""Recipes: functions that return a complete configuration, each with what it costs and reaches."""

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

    Ten minutes on two cores; half the steps give a usable detector (`benchmarks/results`).
    Images are put into canvases of twice their size at most, because a short run has no time to
    learn objects that are smaller than those it is to find.
    """
    return Config(
        network="ssd300-lite",
        augmentation=AugmentationConfig(expand_max_ratio=2.0),
        optimizer=OptimizerConfig(
            optimizer="adamw", lr=0.002, weight_decay=0.05, clip_norm=10.0, ema_decay=0.998
        ),
        schedule=ScheduleConfig(steps=2_300, schedule="cosine", warmup_steps=100),
        run=RunConfig(
            batch_size=16,
            log_every=50,
            validate_every=230,
            evaluate_every=575,
            checkpoint_every=230,
        ),
    )


RECIPES: dict[str, Callable[[], Config]] = {
    "ssd300-vgg16-voc0712": ssd300_vgg16_voc0712,
    "ssd512-vgg16-voc0712": ssd512_vgg16_voc0712,
    "ssd300-vgg16-bn": ssd300_vgg16_bn,
    "ssd300-lite": ssd300_lite,
}
