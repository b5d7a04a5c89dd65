"""Convolutions with batch normalisation, and the gradients of depthwise convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multibox.ssd.backbones.depthwise import Depthwise, FastConvNorm


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 9), (5, 1, 9), (3, 2, 8), (5, 2, 9)])
def test_tensorflow_s_padding(kernel: int, stride: int, size: int) -> None:
    """Output o sees the inputs from o * stride - before, with `before` half of all padding."""
    layer = FastConvNorm(
        2, 3, kernel, stride=stride, activation=None, tensorflow_padding=True
    ).eval()
    x, weight = random(1, 2, size, size), layer.conv.weight
    outputs = -(-size // stride)
    total = (outputs - 1) * stride + kernel - size
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = F.conv2d(padded, weight, stride=stride) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(layer(x), expected)
    assert expected.shape == (1, 3, outputs, outputs)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, 7), (5, 2, 2, 8), (5, 1, 2, 7), (5, 2, 2, 9)],
)
def test_depthwise_gradients_are_those_of_autograd(
    kernel: int, stride: int, padding: int, size: int
) -> None:
    x = random(2, 16, size, size).bfloat16().to(memory_format=torch.channels_last)
    weight = random(16, 1, kernel, kernel, seed=1).bfloat16()
    found = []
    for dtype, convolve in ((torch.float64, None), (torch.bfloat16, Depthwise.apply)):
        # Leaves of their own.
        a, b = (t.detach().to(dtype).requires_grad_() for t in (x, weight))
        if convolve:
            y = convolve(a, b, stride, padding)
        else:
            y = F.conv2d(a, b, None, stride, padding, groups=16)
        given = random(*y.shape, seed=2).bfloat16().to(memory_format=torch.channels_last)
        y.backward(given.to(dtype))
        found.append((y.detach(), a.grad, b.grad))
    for exact, fast in zip(*found, strict=True):
        error = (fast.double() - exact).norm() / exact.norm()
        # Each result is rounded to bfloat16 once.
        assert error < 2**-8


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_layers_use_them_in_bfloat16_only(
    kernel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(Depthwise, "apply", lambda x, w, *_: used.append(w.dtype) or x)
    layer = FastConvNorm(8, 8, kernel, groups=8)
    x = random(2, 8, 6, 6)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        with torch.no_grad():
            layer(x)
    assert used == [torch.bfloat16, torch.bfloat16]
