"""Convolutions of EfficientNet-Lite0, and stages that are excluded from training."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multibox.build import build_network, network_shape
from multibox.config import Config, OptimizerConfig
from multibox.errors import ConfigError
from multibox.ssd.backbones.efficientnet_lite import SameConv, _Depthwise
from multibox.ssd.network import SSD, initialise, parameter_groups

NAME = "ssd300-efficientnet-lite0"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, 9), (5, 1, 9), (3, 2, 8), (5, 2, 9)])
def test_padding_is_tensorflow_s(kernel: int, stride: int, size: int) -> None:
    """Output o sees the inputs from o * stride - before, with `before` half of all padding."""
    layer = SameConv(2, 3, kernel, stride=stride, relu=False).eval()
    x, weight = random(1, 2, size, size), layer.conv.weight
    outputs = -(-size // stride)
    total = (outputs - 1) * stride + kernel - size
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = F.conv2d(padded, weight, stride=stride) / (1 + 1e-3) ** 0.5
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
    for dtype, convolve in ((torch.float64, None), (torch.bfloat16, _Depthwise.apply)):
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
    monkeypatch.setattr(_Depthwise, "apply", lambda x, w, *_: used.append(w.dtype) or x)
    layer = SameConv(8, 8, kernel, groups=8)
    x = random(2, 8, 6, 6)
    layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        with torch.no_grad():
            layer(x)
    assert used == [torch.bfloat16, torch.bfloat16]


def trained(frozen: int) -> SSD:
    network = build_network(NAME, 2)
    generator = torch.Generator().manual_seed(3)
    initialise(network, generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
    assert network.freeze(frozen) == 5
    return network


def test_frozen_stages_compute_the_same_in_training_as_in_evaluation() -> None:
    network = trained(3)
    images = random(2, 3, 64, 64)
    expected = images
    network.eval()
    with torch.no_grad():
        for stage in network.backbone.stages[:3]:
            expected = stage(expected)
    network.train()
    found = images
    for stage in network.backbone.stages[:3]:
        found = stage(found)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frozen_stages_have_no_gradient_and_no_place_in_an_optimizer() -> None:
    network = trained(3).train()
    stages = network.backbone.stages
    assert [stage.training for stage in stages] == [False] * 3 + [True] * 2
    frozen = {id(parameter) for stage in stages[:3] for parameter in stage.parameters()}
    groups = parameter_groups(network, lr=0.1, weight_decay=0.1)
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held.isdisjoint(frozen)
    assert held | frozen == {id(parameter) for parameter in network.parameters()}
    assert not network.eval().training


def test_networks_without_such_stages_are_refused() -> None:
    for name, count, number in (("ssd300-lite", 1, 0), (NAME, 6, 5)):
        config = Config(network=name, optimizer=OptimizerConfig(frozen_stages=count))
        with pytest.raises(ConfigError, match=f"has {number} that can be frozen"):
            network_shape(config, 2)
