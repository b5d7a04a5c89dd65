"""Stages of EfficientNet-Lite0 and MobileNetV3 that are excluded from training."""

import pytest
import torch
from torch import Tensor, nn

from multibox.build import build_network, network_shape
from multibox.config import Config, OptimizerConfig
from multibox.errors import ConfigError
from multibox.ssd.network import SSD, initialise, parameter_groups

NAMES = ("ssd300-efficientnet-lite0", "ssdlite320-mobilenetv3")


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def trained(name: str, frozen: int) -> SSD:
    network = build_network(name, 2)
    generator = torch.Generator().manual_seed(3)
    initialise(network, generator)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
    assert network.freeze(frozen) == 5
    return network


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages_compute_the_same_in_training_as_in_evaluation(name: str) -> None:
    network = trained(name, 3)
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


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages_have_no_gradient_and_no_place_in_an_optimizer(name: str) -> None:
    network = trained(name, 3).train()
    stages = network.backbone.stages
    assert [stage.training for stage in stages] == [False] * 3 + [True] * 2
    frozen = {id(parameter) for stage in stages[:3] for parameter in stage.parameters()}
    groups = parameter_groups(network, lr=0.1, weight_decay=0.1)
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held.isdisjoint(frozen)
    assert held | frozen == {id(parameter) for parameter in network.parameters()}
    assert not network.eval().training


def test_networks_without_such_stages_are_refused() -> None:
    for name, count, number in (("ssd300-lite", 1, 0), *((name, 6, 5) for name in NAMES)):
        config = Config(network=name, optimizer=OptimizerConfig(frozen_stages=count))
        with pytest.raises(ConfigError, match=f"has {number} that can be frozen"):
            network_shape(config, 2)
