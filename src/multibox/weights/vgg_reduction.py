"""Converts a VGG-16 classifier to the trunk that SSD starts from.

SSD's fc6 and fc7 are subsampled from the classifier's: every fourth output, and every third of the
7 x 7 taps of fc6 (SSD section 3, "subsample parameters from fc6 and fc7"). The exact positions were
not published. The ones used here are the ones that the ports agree on.
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

# Torchvision's classifiers take pixels in 0..1, minus this mean, divided by this deviation.
_TORCHVISION_MEAN = (0.485, 0.456, 0.406)
_TORCHVISION_STD = (0.229, 0.224, 0.225)


def is_full(trunk: Mapping[str, Tensor]) -> bool:
    """Returns whether fc6 has all outputs of the classifier."""
    bias = trunk.get("fc6.bias")
    return bias is not None and bias.numel() == _FULL_OUTPUTS


def reduce_classifier(trunk: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns the trunk with fc6 and fc7 subsampled to convolutions of 1,024 outputs.

    Args:
        trunk: Parameters of a full VGG-16 by Caffe's names. fc6 has 4,096 x 25,088 numbers in any
            shape.
        path: The weights file, for error messages.

    Raises:
        WeightsError: A part of fc6 or fc7 is missing or has an unexpected size.
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
        raise WeightsError(f"lacks fc6 and fc7 of a VGG-16 ({error})", file=path) from None
    return {**trunk, **{name: value.contiguous() for name, value in small.items()}}


def in_caffe_range(
    trunk: Mapping[str, Tensor], mean_rgb: tuple[float, float, float]
) -> dict[str, Tensor]:
    """Rescales torchvision's conv1_1 for pixels in 0..255 minus a mean.

    The outputs stay the same, except at the border of the image, where both networks pad with 0.

    Args:
        trunk: Parameters by Caffe's names.
        mean_rgb: Mean colour that will be subtracted from the pixels, in 0..255.

    Returns:
        The trunk with new parameters of conv1_1.
    """
    scale = 1 / (255 * torch.tensor(_TORCHVISION_STD))
    shift = torch.tensor(mean_rgb) - 255 * torch.tensor(_TORCHVISION_MEAN)
    weight = trunk["conv1_1.weight"] * scale.view(1, 3, 1, 1)
    bias = trunk["conv1_1.bias"] + (weight.sum(dim=(2, 3)) * shift).sum(dim=1)
    return {**trunk, "conv1_1.weight": weight, "conv1_1.bias": bias}
