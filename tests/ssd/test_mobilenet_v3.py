"""The squeeze-and-excitation of MobileNetV3. `weights/test_ssdlite.py` tests the whole network."""

import torch

from multibox.ssd.backbones.mobilenet_v3 import SqueezeExcitation


def test_squeeze_and_excitation_by_hand() -> None:
    layer = SqueezeExcitation(2, 1)
    for parameter, values in zip(
        layer.parameters(), ([1.0, 0.5], [0.25], [1.0, -3.0], [0.0, 1.0]), strict=True
    ):
        parameter.data = torch.tensor(values).view_as(parameter)
    x = torch.tensor([[0.0, 2.0], [4.0, -2.0]]).view(1, 2, 1, 2)
    # Means 1 and 1; squeezed 1 + 0.5 + 0.25 = 1.75; factors (1.75 + 3) / 6 and 0.
    expected = torch.tensor([[0.0, 2 * 4.75 / 6], [0.0, 0.0]]).view(1, 2, 1, 2)
    torch.testing.assert_close(layer(x), expected)
