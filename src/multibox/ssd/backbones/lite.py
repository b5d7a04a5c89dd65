"""A small residual backbone that learns from random weights on a CPU.

It has stages of bottleneck blocks at strides 4, 8 and 16, extra stages down to one cell, and one
top-down connection that adds the map of stride 16 to the finest map. All convolutions have batch
normalisation. The six maps have the cells of SSD300, so its default boxes can be used.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """A convolution with batch normalisation and an optional ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        relu: bool = True,
    ) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        if relu:
            self.relu = nn.ReLU(inplace=True)


class Bottleneck(nn.Module):
    """A residual block: 1x1, 3x3 and 1x1 convolutions with half the channels in between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = ConvNorm(channels, channels // 2, 1)
        self.middle = ConvNorm(channels // 2, channels // 2, 3)
        self.widen = ConvNorm(channels // 2, channels, 1, relu=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the refined map."""
        return F.relu(x + self.widen(self.middle(self.narrow(x))), inplace=True)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    """Returns a stage that halves the resolution, followed by some blocks."""
    return nn.Sequential(
        ConvNorm(inputs, outputs, 3, stride=2), *(Bottleneck(outputs) for _ in range(blocks))
    )


class Lite(nn.Module):
    """The backbone of `ssd300-lite`."""

    def __init__(self) -> None:
        super().__init__()
        # A single convolution of stride 4: maps of stride 2 would take a sixth of the time.
        self.stage4 = nn.Sequential(ConvNorm(3, 32, 7, stride=4), Bottleneck(32))
        self.stage8 = _stage(32, 96, blocks=2)
        self.stage16 = _stage(96, 192, blocks=2)
        self.stage32 = _stage(192, 128, blocks=1)
        self.stage64 = _stage(128, 128, blocks=1)
        self.stage100 = ConvNorm(128, 128, 3, padding=0)
        self.stage300 = ConvNorm(128, 128, 3, padding=0)
        self.lateral = ConvNorm(192, 96, 1, relu=False)
        self.channels = (96, 192, 128, 128, 128, 128)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps of 38, 19, 10, 5, 3 and 1 cells."""
        fine = self.stage8(self.stage4(images))
        x = self.stage16(fine)
        context = F.interpolate(self.lateral(x), size=fine.shape[-2:], mode="nearest")
        maps = [F.relu(fine + context), x]
        for stage in (self.stage32, self.stage64, self.stage100, self.stage300):
            x = stage(x)
            maps.append(x)
        return maps
