"""Chooses the dtype in which a network computes: float32 or bfloat16."""

import torch
from torch import nn

from multibox.config import Precision
from multibox.ssd.network import SSD


def cast_convolutions(precision: torch.dtype, network: SSD) -> SSD:
    """Converts the convolutions of a network, in place, to the dtype that it computes in.

    Use it for predictions only. The results are the same, but `autocast` would convert the weights
    again for every image, which takes a twentieth of SSD300's time.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(precision)
    return network


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Returns the context manager in which a network computes in a dtype."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the dtype in which a network computes.

    Args:
        precision: `bf16`, `fp32` or `auto`, which is bf16 if the hardware supports it, else fp32.
        device: Device of the network.
    """
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
