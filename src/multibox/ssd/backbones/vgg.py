"""The reduced VGG-16 with SSD's extra layers (SSD section 3, `model_libs.py:308-448`).

Layers have Caffe's names. fc6 and fc7 are convolutions, and fc6 has a dilation of 6. pool5 keeps
the size, and pool3 rounds up (75 to 38). The finest map is conv4_3 after its ReLU, with L2
normalisation for the heads only.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

L2NormGradient = Literal["exact", "caffe"]


class L2Norm(nn.Module):
    """Scales each position's channels to length 1 and by a learnt factor per channel.

        y_c = s_c x_c / sqrt(sum_k x_k^2 + 1e-10)

    The epsilon is inside the root (`normalize_layer.cpp:92-132`).

    Args:
        channels: C.
        gradient: The gradient of x in training. "exact" is the derivative. "caffe" is what Caffe
            computes instead (see `_CaffeL2Norm`). They are equal while all scales are equal.
    """

    INITIAL_SCALE: ClassVar[float] = 20.0
    EPSILON: ClassVar[float] = 1e-10

    def __init__(self, channels: int, gradient: L2NormGradient = "exact") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), self.INITIAL_SCALE))
        self.gradient = gradient

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Returns the normalised map."""
        if self.gradient == "caffe" and torch.is_grad_enabled():
            result: Tensor = _CaffeL2Norm.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return result
        length = x.float().square().sum(dim=1, keepdim=True).add(self.EPSILON).sqrt()
        return (x / length * self.weight.view(1, -1, 1, 1)).to(x.dtype)


class _CaffeL2Norm(torch.autograd.Function):
    """L2 normalisation with the backward pass of Caffe (`normalize_layer.cpp:135-231`).

    With n the length of x and g the gradient of y, Caffe passes

        s_c / n (g_c - x_c sum_k x_k g_k / n^2)

    to x. The derivative has s_k g_k instead of g_k inside the sum.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        """Returns the normalised map."""
        length = x.float().square().sum(dim=1, keepdim=True).add(L2Norm.EPSILON).sqrt()
        ctx.save_for_backward(x, scale, length)
        return (x / length * scale.view(1, -1, 1, 1)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns Caffe's gradients of x and of the scale."""
        x, scale, length = ctx.saved_tensors
        (gradient,) = gradients
        unit, gradient = x / length, gradient.float()
        along = unit * (unit * gradient).sum(dim=1, keepdim=True)
        of_x = scale.view(1, -1, 1, 1) / length * (gradient - along)
        return of_x.to(x.dtype), (unit * gradient).sum(dim=(0, 2, 3))


class ConvReLU(nn.Sequential):
    """A convolution with optional batch normalisation, and ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        groups: int = 1,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        padding = kernel // 2 * dilation if padding is None else padding
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, groups, bias=not batch_norm
        )
        if batch_norm:
            self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


_TRUNK = {
    "conv1_1": (3, 64),
    "conv1_2": (64, 64),
    "conv2_1": (64, 128),
    "conv2_2": (128, 128),
    "conv3_1": (128, 256),
    "conv3_2": (256, 256),
    "conv3_3": (256, 256),
    "conv4_1": (256, 512),
    "conv4_2": (512, 512),
    "conv4_3": (512, 512),
    "conv5_1": (512, 512),
    "conv5_2": (512, 512),
    "conv5_3": (512, 512),
}
_POOLED_BEFORE = {"conv2_1", "conv3_1", "conv4_1", "conv5_1"}

# Name: inputs, outputs, kernel, stride, padding.
_EXTRA = {
    "conv6_1": (1024, 256, 1, 1, 0),
    "conv6_2": (256, 512, 3, 2, 1),
    "conv7_1": (512, 128, 1, 1, 0),
    "conv7_2": (128, 256, 3, 2, 1),
}
_EXTRA_300 = _EXTRA | {
    "conv8_1": (256, 128, 1, 1, 0),
    "conv8_2": (128, 256, 3, 1, 0),
    "conv9_1": (256, 128, 1, 1, 0),
    "conv9_2": (128, 256, 3, 1, 0),
}
_EXTRA_512 = _EXTRA | {
    "conv8_1": (256, 128, 1, 1, 0),
    "conv8_2": (128, 256, 3, 2, 1),
    "conv9_1": (256, 128, 1, 1, 0),
    "conv9_2": (128, 256, 3, 2, 1),
    "conv10_1": (256, 128, 1, 1, 0),
    "conv10_2": (128, 256, 4, 1, 1),
}
_EXTRA_BY_SIZE = {300: _EXTRA_300, 512: _EXTRA_512}


class VGG16(nn.Module):
    """The backbone of SSD300 and SSD512.

    Args:
        image_size_px: 300 or 512.
        batch_norm: Whether each convolution has batch normalisation, which allows training from
            random weights.
        finest_norm: Returns the normalisation of the finest map for a number of channels.
    """

    def __init__(
        self,
        image_size_px: int,
        *,
        batch_norm: bool,
        finest_norm: Callable[[int], nn.Module] = L2Norm,
    ) -> None:
        super().__init__()
        self.trunk = nn.ModuleDict(
            {name: ConvReLU(*shape, batch_norm=batch_norm) for name, shape in _TRUNK.items()}
        )
        self.trunk["fc6"] = ConvReLU(512, 1024, dilation=6, batch_norm=batch_norm)
        self.trunk["fc7"] = ConvReLU(1024, 1024, 1, batch_norm=batch_norm)
        self.conv4_3_norm = finest_norm(512)
        extra = _EXTRA_BY_SIZE[image_size_px]
        self.extra = nn.ModuleDict(
            {
                name: ConvReLU(
                    inputs, outputs, kernel, stride=stride, padding=padding, batch_norm=batch_norm
                )
                for name, (inputs, outputs, kernel, stride, padding) in extra.items()
            }
        )
        outputs = [shape[1] for name, shape in extra.items() if name.endswith("_2")]
        self.channels = (512, 1024, *outputs)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns conv4_3_norm, fc7, conv6_2, conv7_2, ... (`ssd_pascal.py:14-65,300`)."""
        maps = []
        x = images
        for name, layer in self.trunk.items():
            if name in _POOLED_BEFORE:
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            elif name == "fc6":
                x = F.max_pool2d(x, 3, 1, padding=1)
            x = layer(x)
            if name == "conv4_3":
                maps.append(self.conv4_3_norm(x))
        maps.append(x)
        for name, layer in self.extra.items():
            x = layer(x)
            if name.endswith("_2"):
                maps.append(x)
        return maps
