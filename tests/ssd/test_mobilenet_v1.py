"""MobileNetV1: the sizes of its maps."""

import torch

from multibox.ssd.backbones.mobilenet_v1 import MobileNetV1


def test_the_maps_have_the_cells_and_channels_of_mobilenet_ssd() -> None:
    network = MobileNetV1(((256, 512), (128, 256), (128, 256), (64, 128)), batch_norm=False)
    maps = network(torch.zeros(1, 3, 300, 300))
    assert [x.shape[2:] for x in maps] == [(n, n) for n in (19, 10, 5, 3, 2, 1)]
    assert tuple(x.shape[1] for x in maps) == network.channels == (512, 1024, 512, 256, 256, 128)


def test_the_stages_end_at_strides_of_2_to_32() -> None:
    x, sizes = torch.zeros(1, 3, 64, 64), []
    for stage in MobileNetV1((), batch_norm=False).stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4, 2]
