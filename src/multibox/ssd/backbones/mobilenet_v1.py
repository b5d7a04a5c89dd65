"""MobileNetV1 (Howard et al. 2017) with the extra layers of SSD."""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multibox.ssd.backbones.depthwise import FastConvNorm
from multibox.ssd.backbones.vgg import ConvReLU

# The stem, then the blocks of each stage: outputs and stride. The stages end at strides of 2 to 32.
_STEM = 32
_STAGES = (
    ((64, 1),),
    ((128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), *((512, 1),) * 5),
    ((1024, 2), (1024, 1)),
)

_conv = partial(FastConvNorm, activation=partial(F.relu, inplace=True))
_Conv = Callable[..., nn.Module]


class SeparableConv(nn.Sequential):
    """A depthwise and a 1x1 convolution, both with ReLU.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        stride: Stride of the depthwise convolution.
        conv: Makes a convolution with ReLU, and possibly with batch normalisation.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, conv: _Conv = _conv) -> None:
        super().__init__()
        self.depthwise = conv(inputs, inputs, 3, stride=stride, groups=inputs)
        self.pointwise = conv(inputs, outputs, 1)


class MobileNetV1(nn.Module):
    """The backbone of `ssd300-mobilenetv1`.

    Args:
        extra: Channels of the 1x1 and of the 3x3 convolution of each extra stage, coarsest last.
        batch_norm: Whether the extra layers have batch normalisation instead of biases.
        trunk_norm: The same for all other layers.

    Attributes:
        stages: The stages of MobileNetV1, which end at strides 2, 4, 8, 16 and 32. The first layer
            of the first is the stem.
        extra: Two layers for each extra stage, `0.0` and `0.1` to `3.0` and `3.1`.
    """

    def __init__(
        self, extra: Sequence[tuple[int, int]], *, batch_norm: bool, trunk_norm: bool = True
    ) -> None:
        super().__init__()
        conv: _Conv = _conv if trunk_norm else ConvReLU
        inputs = _STEM
        stages: list[nn.Module] = []
        for blocks in _STAGES:
            layers: list[nn.Module] = [] if stages else [conv(3, _STEM, 3, stride=2)]
            for outputs, stride in blocks:
                layers.append(SeparableConv(inputs, outputs, stride=stride, conv=conv))
                inputs = outputs
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.extra = nn.ModuleList()
        for narrow, wide in extra:
            self.extra.append(
                nn.Sequential(
                    ConvReLU(inputs, narrow, 1, batch_norm=batch_norm),
                    ConvReLU(narrow, wide, 3, stride=2, batch_norm=batch_norm),
                )
            )
            inputs = wide
        self.channels = (512, 1024, *(wide for _, wide in extra))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns the maps of strides 16 and 32 and of the extra stages.

        With 300 pixels and four extra stages, the maps have 19, 10, 5, 3, 2 and 1 cells.
        """
        x, maps = images, []
        for stage in (*self.stages, *self.extra):
            x = stage(x)
            maps.append(x)
        return maps[len(_STAGES) - 2 :]
