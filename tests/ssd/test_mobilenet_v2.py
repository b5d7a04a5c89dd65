"""MobileNetV2: the strides of its stages, and its heads."""

import torch
from torch import nn

from multibox.build import build_network
from multibox.ssd.backbones.mobilenet_v2 import MobileNetV2


def test_the_stages_end_at_strides_of_2_to_32() -> None:
    x, sizes = torch.zeros(1, 3, 64, 64), []
    for stage in MobileNetV2().stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4, 2]


def test_all_heads_except_the_last_are_separable() -> None:
    network = build_network("ssd300-mobilenetv2-lite", 2)
    for heads in (network.offset_heads, network.logit_heads):
        *separable, plain = heads
        assert all(head[0].conv.groups == head[0].conv.in_channels for head in separable)
        assert isinstance(plain, nn.Conv2d)
        assert plain.kernel_size == (1, 1)
