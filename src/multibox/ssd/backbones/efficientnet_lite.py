"""EfficientNet-Lite0 with a top-down path and extra stages for the six maps of SSD300.

EfficientNet-Lite0 is EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with
ReLU6 (tensorflow/tpu, `efficientnet/lite/efficientnet_lite_builder.py`). Its convolutions have
TensorFlow's padding, so 300 pixels give maps of 38, 19 and 10 cells, which are those of SSD300.
"""

import itertools
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in bfloat16 on a CPU with a faster backward pass.

    With a 5x5 kernel or a stride of 2, PyTorch's own takes 4 to 10 times as long
    (`benchmarks/depthwise.py`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """Returns the convolved map. The kernel size is 3 or 5."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Returns the gradients of the map and of the weights."""
        x, weight = ctx.saved_tensors
        stride, padding, (given,) = ctx.stride, ctx.padding, gradients
        of_x = None
        if ctx.needs_input_grad[0]:
            # With a stride of 2, the kernel for float32 is faster.
            dtype = torch.float32 if stride == 2 else x.dtype
            inputs = given.to(dtype), x.to(dtype), weight.to(dtype)
            of_x = _gradient(*inputs, stride, padding, index=0).to(x.dtype)
        # The kernel for 3x3 weights is faster, so larger weights get their gradient in parts.
        of_weight = torch.empty_like(weight)
        height, width = ((size - 1) * stride + 3 for size in given.shape[2:])
        padded = F.pad(x, (padding,) * 4)
        starts = range(0, weight.shape[2] - 2, 2)
        for row, column in itertools.product(starts, starts):
            part = padded[:, :, row : row + height, column : column + width]
            part = part.contiguous(memory_format=torch.channels_last)
            place = of_weight[:, :, row : row + 3, column : column + 3]
            place.copy_(_gradient(given, part, place.contiguous(), stride, 0, index=1))
        return of_x, of_weight, None, None


def _gradient(
    given: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, *, index: int
) -> Tensor:
    """Returns PyTorch's gradient of the map (index 0) or of the weights (index 1)."""
    place, wanted = ([stride, stride], [padding, padding], [1, 1]), [index == 0, index == 1, False]
    gradients = torch.ops.aten.convolution_backward(
        given, x, weight, None, *place, False, [0, 0], weight.shape[0], wanted
    )
    return cast(Tensor, gradients[index])


class SameConv(nn.Module):
    """A convolution with TensorFlow's padding, batch normalisation and an optional ReLU6.

    Where the stride is 2, a 3x3 convolution gets a map with even sides here, and a 5x5 convolution
    one with odd sides. So only the former has an uneven padding: one row and column at the end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        # The momentum is PyTorch's: the original's 0.01 is for a million steps.
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.uneven = (kernel, stride) == (3, 2)
        self.relu = relu

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Returns the map, (B, outputs, ceil(H / stride), ceil(W / stride))."""
        conv, norm, weight, bias = self.conv, self.norm, self.conv.weight, None
        stride, padding, groups = conv.stride[0], int(conv.padding[0]), conv.groups
        if self.uneven:
            # As a 5x5 convolution. Padding the weights is faster than padding the map.
            weight, padding = F.pad(weight, (2, 0, 2, 0)), 2
        frozen = torch.is_grad_enabled() and not conv.weight.requires_grad
        if frozen:
            # Batch normalisation in the convolution saves half of the time.
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            factor = norm.weight * (variance + norm.eps).rsqrt()
            weight = weight * factor.view(-1, 1, 1, 1)
            bias = norm.bias - mean * factor
        if groups > 1 and torch.is_autocast_enabled("cpu") and weight.requires_grad:
            dtype = torch.get_autocast_dtype("cpu")
            x = _Depthwise.apply(  # type: ignore[no-untyped-call]
                x.to(dtype), weight.to(dtype), stride, padding
            )
        else:
            x = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        x = x if frozen else norm(x)
        return F.relu6(x, inplace=True) if self.relu else x


class InvertedBottleneck(nn.Module):
    """A residual block: 1x1, depthwise and 1x1 convolutions, with more channels in between."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = SameConv(inputs, inner) if expansion > 1 else nn.Identity()
        self.depthwise = SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = SameConv(inner, outputs, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Returns the refined map, which has half the resolution if the stride is 2."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The backbone of `ssd300-efficientnet-lite0`.

    Attributes:
        stages: The stages of EfficientNet-Lite0, which end at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SameConv(3, _STEM, 3, stride=2)]
        inputs = _STEM
        for blocks, kernel, stride, expansion, outputs in _GROUPS:
            for step in (stride, *[1] * (blocks - 1)):
                layers.append(
                    InvertedBottleneck(inputs, outputs, kernel, stride=step, expansion=expansion)
                )
                inputs = outputs
        # The stem is the first layer.
        cuts = [0, *(end + 2 for end in STAGE_ENDS)]
        self.stages = nn.ModuleList(
            nn.Sequential(*layers[start:end]) for start, end in itertools.pairwise(cuts)
        )
        self.lateral = nn.ModuleList(
            ConvNorm(width, _WIDTH, 1, relu=False) for width in (40, 112, 320)
        )
        self.extra = nn.ModuleList(
            ConvNorm(_WIDTH, _WIDTH, 3, stride=stride, padding=padding)
            for stride, padding in ((2, 1), (1, 0), (1, 0))
        )
        self.channels = (_WIDTH,) * 6

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps of 38, 19, 10, 5, 3 and 1 cells."""
        x, trunk = images, []
        for stage in self.stages:
            x = stage(x)
            trunk.append(x)
        maps = [lateral(x) for lateral, x in zip(self.lateral, trunk[2:], strict=True)]
        for level in (1, 0):
            size = maps[level].shape[-2:]
            maps[level] = maps[level] + F.interpolate(maps[level + 1], size=size, mode="nearest")
        maps = [F.relu(x) for x in maps]
        for stage in self.extra:
            maps.append(stage(maps[-1]))
        return maps
