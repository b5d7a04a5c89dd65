"""Convolutions with batch normalisation, with depthwise convolutions that train fast on a CPU."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]

relu6: Activation = partial(F.relu6, inplace=True)


class Depthwise(torch.autograd.Function):
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


class FastConvNorm(nn.Module):
    """A convolution with batch normalisation and an optional activation.

    Args:
        inputs: Number of input channels.
        outputs: Number of output channels.
        kernel: The sides of the kernel, an odd number.
        stride: The stride.
        groups: Number of groups.
        activation: The activation. None: there is none.
        norm: Returns a new batch normalisation for a number of channels.
        tensorflow_padding: Whether the padding is TensorFlow's. Where the stride is 2, a 3x3
            convolution must then get a map with even sides, and a 5x5 convolution one with odd
            sides. So only the former has an uneven padding: one row and column at the end.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = relu6,
        norm: Callable[[int], nn.BatchNorm2d] = nn.BatchNorm2d,
        tensorflow_padding: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        self.norm = norm(outputs)
        self.uneven = tensorflow_padding and (kernel, stride) == (3, 2)
        self.activation = activation

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
            x = Depthwise.apply(  # type: ignore[no-untyped-call]
                x.to(dtype), weight.to(dtype), stride, padding
            )
        else:
            x = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        x = x if frozen else norm(x)
        return self.activation(x) if self.activation else x
