"""The narrow ResNet-10 of OpenCV's face detector, with SSD's extra layers.

The layers are those of `samples/dnn/face_detector/deploy.prototxt` in OpenCV 4. Its residual blocks
have batch normalisation and ReLU before their convolutions. The pooling rounds up (150 to 75
cells), the last block has a dilation of 2, and the finest map has L2 normalisation for its heads.
The last three maps have 5x5 cells, because conv8_2 and conv9_2 are padded.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from multibox.ssd.backbones.vgg import ConvReLU, L2Norm

# Name: inputs, outputs, kernel, stride, padding.
_EXTRA = {
    "conv6_1": (256, 128, 1, 1, 0),
    "conv6_2": (128, 256, 3, 2, 1),
    "conv7_1": (256, 64, 1, 1, 0),
    "conv7_2": (64, 128, 3, 2, 1),
    "conv8_1": (128, 64, 1, 1, 0),
    "conv8_2": (64, 128, 3, 1, 1),
    "conv9_1": (128, 64, 1, 1, 0),
    "conv9_2": (64, 128, 3, 1, 1),
}


class Residual(nn.Module):
    """A residual block of two 3x3 convolutions.

    Args:
        inputs: Number of input channels.
        inner: Number of channels between the convolutions.
        outputs: Number of output channels.
        stride: Stride of the block.
        dilation: Dilation of the second convolution.
        expand: Whether a 1x1 convolution of the input is added instead of the input.
    """

    def __init__(
        self,
        inputs: int,
        inner: int,
        outputs: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        expand: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, 1, dilation, dilation, bias=False)
        self.expand = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if expand else nn.Identity()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Returns the sum, without normalisation and ReLU."""
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(x)), inplace=True))
        shortcut: Tensor = self.expand(x)
        return y + shortcut


class ResNet10(nn.Module):
    """The backbone of `ssd300-resnet10`."""

    def __init__(self) -> None:
        super().__init__()
        self.data_norm = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 32, 7, 2, 3)
        self.norm1 = nn.BatchNorm2d(32)
        self.block64 = Residual(32, 32, 32, expand=False)
        self.norm128 = nn.BatchNorm2d(32)
        self.block128 = Residual(32, 128, 128, stride=2)
        self.norm256 = nn.BatchNorm2d(128)
        self.conv4_3_norm = L2Norm(128)
        self.block256 = Residual(128, 256, 256, stride=2)
        self.norm512 = nn.BatchNorm2d(256)
        self.block512 = Residual(256, 128, 256, dilation=2)
        self.last_norm = nn.BatchNorm2d(256)
        self.extra = nn.ModuleDict(
            {
                name: ConvReLU(inputs, outputs, kernel, stride=stride, padding=padding)
                for name, (inputs, outputs, kernel, stride, padding) in _EXTRA.items()
            }
        )
        self.channels = (128, 256, 256, 128, 128, 128)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Returns six maps of 38, 19, 10, 5, 5 and 5 cells."""
        x = F.relu(self.norm1(self.conv1(self.data_norm(images))), inplace=True)
        x = self.block64(F.max_pool2d(x, 3, 2, ceil_mode=True))
        x = self.block128(F.relu(self.norm128(x)))
        fine = F.relu(self.norm256(x))
        x = self.block512(F.relu(self.norm512(self.block256(fine))))
        x = F.relu(self.last_norm(x))
        maps = [self.conv4_3_norm(fine), x]
        for name, layer in self.extra.items():
            x = layer(x)
            if name.endswith("_2"):
                maps.append(x)
        return maps
