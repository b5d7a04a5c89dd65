"""SSD: a backbone that returns feature maps, and two convolutional heads for each of them.

The network takes decoded RGB pixels, 0..255, and normalises them itself, so that a weights file
contains everything a prediction needs. It always returns raw offsets and logits.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from multibox.ssd.backbones.vgg import L2Norm
from multibox.ssd.coding import CAFFE_VARIANCES, Variances
from multibox.ssd.default_boxes import Clip, Level, default_boxes
from multibox.ssd.detect import DetectionSettings, detect
from multibox.structures import MEAN_RGB, Detections, Output

Scales = Literal["voc", "coco"]

_CAFFE_DETECTION = DetectionSettings()


class Traits(NamedTuple):
    """Differences between published implementations of an architecture. Defaults: Caffe, VOC.

    Attributes:
        mean_rgb: Subtracted from the pixels, 0..255.
        pixel_scale: Multiplies the pixels after the subtraction.
        scales: The table of default boxes. An architecture with a single table calls it `voc`.
        clip: Which parts of the default boxes are clipped to the image.
        whole_scales: Whether their scales are truncated to whole pixels.
        clip_detections: Whether detected boxes are clipped to the image before suppression.
        fitted: Default boxes that were fitted to a dataset and replace the table; may be empty.
        score_threshold: Only higher scores become detections.
        per_class: Maximum number of candidates of a class before suppression.
        iou_threshold: A box is suppressed if its IoU with a better one is larger.
        per_image: Maximum number of detections of an image.
    """

    mean_rgb: tuple[float, float, float] = MEAN_RGB
    pixel_scale: float = 1.0
    scales: Scales = "voc"
    clip: Clip = "none"
    whole_scales: bool = True
    clip_detections: bool = False
    fitted: tuple[Level, ...] = ()
    score_threshold: float = _CAFFE_DETECTION.score_threshold
    per_class: int = _CAFFE_DETECTION.per_class
    iou_threshold: float = _CAFFE_DETECTION.iou_threshold
    per_image: int = _CAFFE_DETECTION.per_image

    @property
    def detection(self) -> DetectionSettings:
        """The settings that turn outputs into detections."""
        return DetectionSettings(
            self.score_threshold,
            self.per_class,
            self.iou_threshold,
            self.per_image,
            self.clip_detections,
        )


CAFFE = Traits()


class Backbone(Protocol):
    """The interface of a backbone.

    Attributes:
        channels: Number of channels of each feature map, finest first.
    """

    channels: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps of the levels, (B, channels[i], rows, columns)."""
        ...


Head = Callable[[int, int, int], nn.Module]
"""Returns a new head for a level, a number of input channels and a number of output channels.

The last layer of a head is a convolution with a bias."""


def convolution(_level: int, inputs: int, outputs: int) -> nn.Module:
    """Returns SSD's own head, the same for every level: a 3x3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def pointwise(_level: int, inputs: int, outputs: int) -> nn.Module:
    """Returns the head of MobileNet-SSD, the same for every level: a 1x1 convolution."""
    return nn.Conv2d(inputs, outputs, 1)


class SSD(nn.Module):
    """A single-shot detector.

    Args:
        backbone: A module that is a `Backbone`.
        levels: The default boxes of each feature map: `traits.fitted`, or else `traits.scales`.
        image_size_px: (height, width) of the input.
        num_classes: C, without the background.
        traits: Normalisation of pixels, clipping of default boxes, settings of the detection.
        variances: The variances of the offsets.
        head: Makes the heads.

    Attributes:
        default_boxes: float32 (K, 4), xyxy in the unit frame.
    """

    default_boxes: Tensor
    mean: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        levels: Sequence[Level],
        *,
        image_size_px: tuple[int, int],
        num_classes: int,
        traits: Traits = CAFFE,
        variances: Variances = CAFFE_VARIANCES,
        head: Head = convolution,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_size_px = image_size_px
        self.traits = traits
        self.variances = variances
        channels = cast(Backbone, backbone).channels
        sizes = [level.boxes_per_cell for level in levels]

        def heads(per_box: int) -> nn.ModuleList:
            return nn.ModuleList(
                head(level, inputs, boxes * per_box)
                for level, (inputs, boxes) in enumerate(zip(channels, sizes, strict=True))
            )

        self.offset_heads = heads(4)
        self.logit_heads = heads(num_classes + 1)
        mean = torch.tensor(traits.mean_rgb).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        table = default_boxes(levels, image_size_px, traits.clip, whole_scales=traits.whole_scales)
        self.register_buffer("default_boxes", table, persistent=False)
        self._frozen: list[nn.Module] = []

    def freeze(self, count: int) -> int:
        """Excludes the first stages of the backbone from training, with their statistics.

        Returns:
            The number of stages that the backbone has.
        """
        stages = [*cast(nn.ModuleList, getattr(self.backbone, "stages", nn.ModuleList()))]
        self._frozen = stages[:count]
        for stage in self._frozen:
            stage.requires_grad_(False)
        return len(stages)

    def train(self, mode: bool = True) -> "SSD":
        """Sets the training mode of all layers except the frozen ones."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Output:
        """Returns the offsets and logits of RGB images, uint8 or float in 0..255."""
        pixels = (images.to(torch.float32) - self.mean) * self.traits.pixel_scale
        maps = self.backbone(pixels)
        offsets = [head(x) for head, x in zip(self.offset_heads, maps, strict=True)]
        logits = [head(x) for head, x in zip(self.logit_heads, maps, strict=True)]
        return Output(_by_box(offsets, 4), _by_box(logits, self.num_classes + 1))

    def class_layers(self) -> dict[str, nn.Conv2d]:
        """Returns the last layer of each head for the logits by its name in the state dict.

        Their outputs belong to classes: (default box of the cell, class), class 0 first.
        """
        last = [
            [*head.named_modules(prefix=f"logit_heads.{level}")][-1]
            for level, head in enumerate(self.logit_heads)
        ]
        return {name: cast(nn.Conv2d, layer) for name, layer in last}

    def detect(self, output: Output, *, score_threshold: float = 0.0) -> list[Detections]:
        """Returns the detections of each image from an output of this network (see `detect`).

        Args:
            output: An output of this network.
            score_threshold: Removes detections with a lower score. It does not change the others,
                because only better detections can suppress a detection.
        """
        settings = self.traits.detection
        below = torch.nextafter(torch.tensor(score_threshold), torch.tensor(-1.0)).item()
        settings = settings._replace(score_threshold=max(settings.score_threshold, below))
        return detect(output, self.default_boxes, settings, self.variances)


def _by_box(maps: Sequence[Tensor], width: int) -> Float[Tensor, "B K width"]:
    """Concatenates head outputs (B, A * width, H, W) in the order of the default boxes."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps], dim=1)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Initialises all parameters and running statistics.

    Weights of convolutions are uniform in ±sqrt(3 / fan_in) and biases zero. This is Caffe's
    `xavier` (`filler.hpp:144-166`); PyTorch's function of that name also uses the fan-out. Batch
    normalisation is the identity. The scale of the L2 normalisation is 20.

    Args:
        network: A module made of the layers of this package.
        generator: Draws all values in the order of the modules.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear", generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, L2Norm):
            module.weight.fill_(L2Norm.INITIAL_SCALE)


def parameter_groups(
    network: nn.Module, *, lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Returns Caffe's parameter groups for an optimizer (`model_libs.py:84-90`).

    Weights and the scale of the L2 normalisation have weight decay. Biases have twice the learning
    rate and no decay. Batch normalisation has no decay. Each group has an `lr_multiplier` for
    schedules. Frozen parameters are in no group.
    """
    weights, biases, norms = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, nn.BatchNorm2d):
                norms.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                weights.append(parameter)
    groups = [(weights, 1.0, weight_decay), (biases, 2.0, 0.0), (norms, 1.0, 0.0)]
    return [
        {
            "params": parameters,
            "lr": lr * multiplier,
            "lr_multiplier": multiplier,
            "weight_decay": decay,
        }
        for parameters, multiplier, decay in groups
        if parameters
    ]
