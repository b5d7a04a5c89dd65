"""From a VGG-16 that classifies to the trunk that SSD starts from.

The original's fc6 and fc7 are sub-sampled from the classifier's: every fourth output, and of
fc6's 7 x 7 taps every third (SSD section 3, "subsample parameters from fc6 and fc7"; the exact
places were not published, these are those that the ports agree on).
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from multibox.errors import WeightsError

_KEPT_OUTPUTS = 4
_KEPT_TAPS = 3
_FULL_OUTPUTS = 4096
_POOLED_SIDE = 7

# What torchvision's classifiers are fed: pixels in 0..1, minus this, over that.
_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)


def is_full(trunk: Mapping[str, Tensor]) -> bool:
    """Returns whether the trunk's fc6 is still the classifier's."""
    bias = trunk.get("fc6.bias")
    return bias is not None and bias.numel() == _FULL_OUTPUTS


def reduced(trunk: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the trunk with fc6 and fc7 sub-sampled to convolutions of 1,024 outputs.

    Args:
        trunk: By Caffe's names, of a full VGG-16, fc6 in any shape of its 4,096 x 25,088 numbers.
        path: Their file, for the error.

    Raises:
        WeightsError: A part of fc6 or fc7 is missing, or has another count of numbers.
    """
    side = _POOLED_SIDE
    try:
        six = trunk["fc6.weight"].reshape(_FULL_OUTPUTS, -1, side, side)
        seven = trunk["fc7.weight"].reshape(_FULL_OUTPUTS, _FULL_OUTPUTS, 1, 1)
        small = {
            "fc6.weight": six[::_KEPT_OUTPUTS, :, ::_KEPT_TAPS, ::_KEPT_TAPS],
            "fc7.weight": seven[::_KEPT_OUTPUTS, ::_KEPT_OUTPUTS],
            "fc6.bias": trunk["fc6.bias"].flatten()[::_KEPT_OUTPUTS],
            "fc7.bias": trunk["fc7.bias"].flatten()[::_KEPT_OUTPUTS],
        }
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"holds no VGG-16's fc6 and fc7 ({error})", file=path) from None
    return {**trunk, **{name: value.contiguous() for name, value in small.items()}}


def in_caffe_range(
    trunk: Mapping[str, Tensor], mean_rgb: tuple[float, float, float]
) -> dict[str, Tensor]:
    """Returns torchvision's trunk for pixels in 0..255 minus a mean, instead of its own range.

    The same outputs come from the other input, but at the image's rim, where both pad with zeros.

    Args:
        trunk: By Caffe's names.
        mean_rgb: What will be subtracted from the pixels.
    """
    scale = 1 / (255 * torch.tensor(_TORCHVISION_STD))
    shift = torch.tensor(mean_rgb) - 255 * torch.tensor(_TORCHVISION_MEAN)
    weight = trunk["conv1_1.weight"] * scale.view(1, 3, 1, 1)
    bias = trunk["conv1_1.bias"] + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    return {**trunk, "conv1_1.weight": weight, "conv1_1.bias": bias}
