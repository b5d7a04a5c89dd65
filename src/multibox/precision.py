"""The arithmetic that a network computes in: float32 or bfloat16."""

import torch
from torch import nn

from multibox.config import Precision
from multibox.ssd.network import SSD


def cast_convolutions(precision: torch.dtype, network: SSD) -> SSD:
    """Returns a network whose kernels are kept in the type that it computes in, for predictions.

    The results are the same: `autocast` would convert them anew for every image, which takes
    a twentieth of SSD300's time.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.to(precision)
    return network


def autocast(precision: torch.dtype, device: torch.device) -> torch.autocast:
    """Returns the context in which a network computes in some arithmetic."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the type that a network computes in.

    Args:
        precision: `bf16`, `fp32`, or `auto`: bf16 where the hardware computes it.
        device: Where the network runs.
    """
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32
