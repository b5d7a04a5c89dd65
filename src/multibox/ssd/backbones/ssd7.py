"""The seven-layer backbone of ssd_keras's SSD7 (`models/keras_ssd7.py:277-346`).

It has seven blocks of convolution, batch normalisation and ELU. After each block except the last
there is a pooling that rounds down. Layers have the names of ssd_keras. Batch normalisation has
eps 0.001 and momentum 0.01, and the convolutions have biases.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_CHANNELS = (32, 48, 64, 64, 48, 48, 32)
_FIRST_MAP = 4


class SSD7(nn.ModuleDict):
    """The backbone of `ssd7`: conv1, bn1, ..., conv7, bn7."""

    def __init__(self) -> None:
        super().__init__()
        for block, (inputs, outputs) in enumerate(pairwise((3, *_CHANNELS)), start=1):
            kernel = 5 if block == 1 else 3
            self[f"conv{block}"] = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
            self[f"bn{block}"] = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        self.channels = _CHANNELS[_FIRST_MAP - 1 :]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns the maps of blocks 4 to 7: for 300 x 480 pixels, 37 x 60 to 4 x 7 cells."""
        maps = []
        x = images
        for block in range(1, len(_CHANNELS) + 1):
            if block > 1:
                x = F.max_pool2d(x, 2)
            x = F.elu(self[f"bn{block}"](self[f"conv{block}"](x)))
            if block >= _FIRST_MAP:
                maps.append(x)
        return maps
