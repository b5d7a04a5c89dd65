"""MobileNetV2 (Sandler et al. 2018) with the extra layers and heads of SSDLite.

They are those of qfgaohao/pytorch-ssd (`vision/nn/mobilenet_v2.py`,
`vision/ssd/mobilenet_v2_ssd_lite.py`).
"""

from collections.abc import Iterable
from functools import partial
from typing import cast

from jaxtyping import Float
from torch import Tensor, nn

from multibox.ssd.backbones.depthwise import FastConvNorm
from multibox.ssd.backbones.efficientnet_lite import InvertedBottleneck

_STEM = 32
# The groups of each stage: blocks, stride, expansion, channels. The stages end at strides 2 to 32.
_STAGES = (
    ((1, 1, 1, 16),),
    ((2, 2, 6, 24),),
    ((3, 2, 6, 32),),
    ((4, 2, 6, 64), (3, 1, 6, 96)),
    ((3, 2, 6, 160), (1, 1, 6, 320)),
)
_LAST = 1280
# Channels of the finest map, inside the first block of the last stage.
_FINEST = 576
# Channels inside and after each extra stage. Each of them halves the resolution.
_EXTRA = ((256, 512), (128, 256), (128, 256), (64, 64))

_block = partial(InvertedBottleneck, kernel=3, conv=FastConvNorm)


class MobileNetV2(nn.Module):
    """The backbone of `ssd300-mobilenetv2-lite`.

    Attributes:
        stages: The stages of MobileNetV2, which end at strides 2, 4, 8, 16 and 32. The first layer
            of the first is the stem. The last layer of the last is a 1x1 convolution.
        extra: The four extra stages, blocks like those of the trunk.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = _STEM
        stages: list[list[nn.Module]] = []
        for groups in _STAGES:
            layers: list[nn.Module] = [] if stages else [FastConvNorm(3, _STEM, 3, stride=2)]
            for blocks, stride, expansion, outputs in groups:
                for step in (stride, *[1] * (blocks - 1)):
                    inner = inputs * expansion
                    layers.append(_block(inputs, outputs, stride=step, inner=inner))
                    inputs = outputs
            stages.append(layers)
        stages[-1].append(FastConvNorm(inputs, _LAST))
        self.stages = nn.ModuleList(nn.Sequential(*layers) for layers in stages)
        self.extra = nn.ModuleList()
        inputs = _LAST
        for inner, outputs in _EXTRA:
            self.extra.append(_block(inputs, outputs, stride=2, inner=inner))
            inputs = outputs
        self.channels = (_FINEST, _LAST, *(outputs for _, outputs in _EXTRA))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps: for 300 pixels, of 19, 10, 5, 3, 2 and 1 cells.

        The finest is in the middle of a block: the map of stride 16 after the 1x1 convolution that
        precedes the stride of 32.
        """
        *fine, last = cast(Iterable[nn.Sequential], self.stages)
        x = images
        for stage in fine:
            x = stage(x)
        block = cast(InvertedBottleneck, last[0])
        finest = block.expand(x)
        maps = [last[1:](block.project(block.depthwise(finest)))]
        for extra in self.extra:
            maps.append(extra(maps[-1]))
        return [finest, *maps]


def separable_head(level: int, inputs: int, outputs: int) -> nn.Module:
    """Returns a head: a depthwise and a 1x1 convolution, only the latter for the last level."""
    last = nn.Conv2d(inputs, outputs, 1)
    if level == len(_EXTRA) + 1:
        return last
    return nn.Sequential(FastConvNorm(inputs, inputs, 3, groups=inputs), last)
