"""EfficientNet-Lite0 with a top-down path and extra stages for the six maps of SSD.

EfficientNet-Lite0 is EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with
ReLU6 (tensorflow/tpu, `efficientnet/lite/efficientnet_lite_builder.py`). Its convolutions have
TensorFlow's padding, so 300 pixels give maps of 38, 19 and 10 cells, which are those of SSD300.
The maps of strides 8, 16 and 32 form a feature pyramid (Lin et al. 2017).
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multibox.ssd.backbones.depthwise import FastConvNorm
from multibox.ssd.backbones.lite import ConvNorm

STAGE_ENDS = (0, 2, 4, 10, 15)
"""The last block of each stage. The next block halves the resolution."""

# Blocks, kernel, stride, expansion, channels (`efficientnet_lite_builder.py`).
_GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32
_WIDTH = 128


# The momentum is PyTorch's: the original's 0.01 is for a million steps.
_conv = partial(FastConvNorm, norm=partial(nn.BatchNorm2d, eps=1e-3), tensorflow_padding=True)


class InvertedBottleneck(nn.Module):
    """A residual block: 1x1, depthwise and 1x1 convolutions.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        kernel: The sides of the depthwise kernel, an odd number.
        stride: The stride of the depthwise convolution.
        inner: Number of channels in between. If it equals `inputs`, the first convolution is left
            out.
        conv: Makes a convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int,
        inner: int,
        conv: Callable[..., FastConvNorm] = _conv,
    ) -> None:
        super().__init__()
        self.expand = conv(inputs, inner) if inner != inputs else nn.Identity()
        self.depthwise = conv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = conv(inner, outputs, activation=None)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Returns the refined map, which has half the resolution if the stride is 2."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The backbone of `ssd300-efficientnet-lite0` and `ssd384-efficientnet-lite0`.

    Attributes:
        stages: The stages of EfficientNet-Lite0, which end at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(3, _STEM, 3, stride=2)]
        inputs = _STEM
        for blocks, kernel, stride, expansion, outputs in _GROUPS:
            for step in (stride, *[1] * (blocks - 1)):
                inner = inputs * expansion
                layers.append(InvertedBottleneck(inputs, outputs, kernel, stride=step, inner=inner))
                inputs = outputs
        # The stem is the first layer.
        cuts = [0, *(end + 2 for end in STAGE_ENDS)]
        self.stages = nn.ModuleList(
            nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise(cuts)
        )
        self.lateral = nn.ModuleList(
            ConvNorm(width, _WIDTH, 1, relu=False) for width in (40, 112, 320)
        )
        self.smooth = nn.ModuleList(ConvNorm(_WIDTH, _WIDTH, 3, padding=1) for _ in self.lateral)
        self.extra = nn.ModuleList(
            ConvNorm(_WIDTH, _WIDTH, 3, stride=stride, padding=padding)
            for stride, padding in ((2, 1), (1, 0), (1, 0))
        )
        self.channels = (_WIDTH,) * 6

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps; those of 300 pixels have 38, 19, 10, 5, 3 and 1 cells."""
        x, trunk = images, []
        for stage in self.stages:
            x = stage(x)
            trunk.append(x)
        maps = [lateral(x) for lateral, x in zip(self.lateral, trunk[2:], strict=True)]
        for level in (1, 0):
            size = maps[level].shape[-2:]
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=size, mode="nearest")
        maps = [smooth(x) for smooth, x in zip(self.smooth, maps, strict=True)]
        for stage in self.extra:
            maps.append(stage(maps[-1]))
        return maps
