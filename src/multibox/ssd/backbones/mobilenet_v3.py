"""MobileNetV3-Large with extra stages, as in torchvision's SSDlite (`detection/ssdlite.py`).

The last three blocks have half of their channels (Howard et al. 2019, table 6, "reduced tail").
320 pixels give maps of 20, 10, 5, 3, 2 and 1 cells. The finest map is the expansion of the first
block of stride 32, before its depthwise convolution.
"""

import itertools
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multibox.ssd.backbones.depthwise import Activation, FastConvNorm

_hardswish: Activation = partial(F.hardswish, inplace=True)
_relu: Activation = partial(F.relu, inplace=True)


class Block(NamedTuple):
    """The sizes of an inverted residual block.

    Attributes:
        kernel: The sides of the depthwise kernel.
        inner: Number of channels of the depthwise convolution.
        outputs: Number of output channels.
        squeezed: Number of channels of the squeeze-and-excitation. 0: there is none.
        activation: The activation of all convolutions except the last.
        stride: The stride.
    """

    kernel: int
    inner: int
    outputs: int
    squeezed: int
    activation: Activation
    stride: int = 1


BLOCKS = (
    Block(3, 16, 16, 0, _relu),
    Block(3, 64, 24, 0, _relu, stride=2),
    Block(3, 72, 24, 0, _relu),
    Block(5, 72, 40, 24, _relu, stride=2),
    Block(5, 120, 40, 32, _relu),
    Block(5, 120, 40, 32, _relu),
    Block(3, 240, 80, 0, _hardswish, stride=2),
    Block(3, 200, 80, 0, _hardswish),
    Block(3, 184, 80, 0, _hardswish),
    Block(3, 184, 80, 0, _hardswish),
    Block(3, 480, 112, 120, _hardswish),
    Block(3, 672, 112, 168, _hardswish),
    Block(5, 672, 80, 168, _hardswish, stride=2),
    Block(5, 480, 80, 120, _hardswish),
    Block(5, 480, 80, 120, _hardswish),
)
"""`mobilenetv3.py` of torchvision."""

STAGE_STARTS = (0, 1, 3, 6, 12)
"""The first block of each stage. It halves the resolution, except for block 0 after the stem."""

_STEM = 16
_EXTRA = (512, 256, 256, 128)

conv_norm = partial(FastConvNorm, norm=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03))
"""A convolution with the batch normalisation of torchvision's SSDlite."""


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in 0..1 that depends on the means of all channels."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the scaled map."""
        mean = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(mean))))


class InvertedResidual(nn.Module):
    """A block of MobileNetV3: expansion, depthwise convolution, squeeze-and-excitation, projection.

    Args:
        inputs: Number of input channels. If it is `block.inner`, there is no expansion.
        block: The sizes.
    """

    def __init__(self, inputs: int, block: Block) -> None:
        super().__init__()
        kernel, inner, outputs, squeezed, activation, stride = block
        expands = inner != inputs
        self.expand = conv_norm(inputs, inner, activation=activation) if expands else nn.Identity()
        self.depthwise = conv_norm(
            inner, inner, kernel, stride=stride, groups=inner, activation=activation
        )
        self.squeeze = SqueezeExcitation(inner, squeezed) if squeezed else nn.Identity()
        self.project = conv_norm(inner, outputs, activation=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Returns the refined map, which has half the resolution if the stride is 2."""
        y: Tensor = self.project(self.squeeze(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV3(nn.Module):
    """The backbone of `ssdlite320-mobilenetv3`.

    Attributes:
        stages: The stages of MobileNetV3, which end at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = [_STEM, *(block.outputs for block in BLOCKS)]
        first, last = STAGE_STARTS[-1], 6 * inputs[-1]
        # The finest map lies inside this block. Its expansion belongs to the stage before.
        inner = BLOCKS[first].inner
        expansion = conv_norm(inputs[first], inner, activation=_hardswish)
        inputs[first] = inner
        blocks = [InvertedResidual(*pair) for pair in zip(inputs[:-1], BLOCKS, strict=True)]
        stages: list[list[nn.Module]] = [
            [*blocks[start:end]] for start, end in itertools.pairwise((*STAGE_STARTS, len(blocks)))
        ]
        stages[0].insert(0, conv_norm(3, _STEM, 3, stride=2, activation=_hardswish))
        stages[-2].append(expansion)
        stages[-1].append(conv_norm(inputs[-1], last, activation=_hardswish))
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.channels = (inner, last, *_EXTRA)
        self.extra = nn.ModuleList(
            _extra(inputs, outputs) for inputs, outputs in itertools.pairwise(self.channels[1:])
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps. Each side of a map is half of the finer one's, rounded up."""
        x, maps = images, []
        for stage in (*self.stages, *self.extra):
            x = stage(x)
            maps.append(x)
        return maps[len(STAGE_STARTS) - 2 :]


def _extra(inputs: int, outputs: int) -> nn.Sequential:
    """Returns a stage that halves the resolution with a depthwise convolution."""
    inner = outputs // 2
    return nn.Sequential(
        conv_norm(inputs, inner),
        conv_norm(inner, inner, 3, stride=2, groups=inner),
        conv_norm(inner, outputs),
    )


def ssdlite_head(_level: int, inputs: int, outputs: int) -> nn.Module:
    """Returns a head of SSDlite: a depthwise 3x3 convolution, then a 1x1 convolution."""
    return nn.Sequential(conv_norm(inputs, inputs, 3, groups=inputs), nn.Conv2d(inputs, outputs, 1))
