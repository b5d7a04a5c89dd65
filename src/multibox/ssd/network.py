"""SSD: a backbone that yields feature maps, and two convolutional heads on each of them.

The network takes RGB pixels as they are decoded, 0..255, and normalises them itself, so that a
weights file carries all that a prediction needs. It returns raw offsets and logits, always.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from multibox.ssd.backbones.vgg import L2Norm
from multibox.ssd.default_boxes import Level, default_boxes
from multibox.structures import Output

MEAN_RGB = (123.0, 117.0, 104.0)
"""Caffe's mean colour (`ssd_pascal.py:177`), there in the order blue, green, red."""


class Backbone(Protocol):
    """What the heads need to know of a backbone.

    Attributes:
        channels: Channels of each feature map, finest first.
    """

    channels: tuple[int, ...]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Returns the feature maps, (B, channels[i], cells[i], cells[i])."""
        ...


class SSD(nn.Module):
    """A single-shot detector.

    Args:
        backbone: A module that is a `Backbone`.
        levels: The default boxes of each of its feature maps.
        image_size_px: Side of the square input.
        num_classes: C, not counting the background.
        pixel_scale: What pixels are multiplied by after their mean is subtracted; 1 in Caffe.
        head_kernel: Side of the heads' convolutions.

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
        image_size_px: int,
        num_classes: int,
        pixel_scale: float = 1.0,
        head_kernel: int = 3,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.image_size_px = image_size_px
        self.pixel_scale = pixel_scale
        channels = cast(Backbone, backbone).channels
        sizes = [level.boxes_per_cell for level in levels]

        def heads(per_box: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.Conv2d(inputs, boxes * per_box, head_kernel, padding=head_kernel // 2)
                for inputs, boxes in zip(channels, sizes, strict=True)
            )

        self.offset_heads = heads(4)
        self.logit_heads = heads(num_classes + 1)
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(1, 3, 1, 1), persistent=False)
        table = default_boxes(levels, image_size_px)
        self.register_buffer("default_boxes", table, persistent=False)

    def forward(self, images: Shaped[Tensor, "B 3 H W"]) -> Output:
        """Returns the offsets and logits of RGB images, uint8 or float in 0..255."""
        pixels = (images.to(torch.float32) - self.mean) * self.pixel_scale
        maps = self.backbone(pixels)
        offsets = [head(x) for head, x in zip(self.offset_heads, maps, strict=True)]
        logits = [head(x) for head, x in zip(self.logit_heads, maps, strict=True)]
        return Output(_by_box(offsets, 4), _by_box(logits, self.num_classes + 1))


def _by_box(maps: Sequence[Tensor], width: int) -> Float[Tensor, "B K width"]:
    """Concatenates head outputs (B, A * width, H, W) in the order of the default boxes."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, width) for x in maps], dim=1)


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fills all parameters and running statistics.

    Convolutions: uniform within sqrt(3 / fan_in) and zero biases, which is Caffe's `xavier`
    (`filler.hpp:144-166`; PyTorch's function of that name also counts the outputs). Batch
    normalisation: identity. L2 normalisation: 20.

    Args:
        network: Any module made of the layers of this package.
        generator: Draws all values, in order of the modules.
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
    """Returns Caffe's groups for an optimizer (`model_libs.py:84-90`).

    Weights and the scale of the L2 normalisation decay; biases learn twice as fast and do not
    decay; batch normalisation learns at the common rate and does not decay. Each group has a
    `lr_multiplier`, for schedules.
    """
    weights, biases, norms = [], [], []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
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
