"""The hardware that this process may use."""

import os

import torch


def usable_cores() -> int:
    """Returns the number of cores that this process may use; all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(device: torch.device) -> str:
    """Returns a device in words: the name and memory of a GPU, or the number of cores."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name} with {properties.total_memory / 2**30:.0f} GiB"
    cores = usable_cores()
    return f"CPU with {cores} core{'s' * (cores != 1)}; PyTorch finds no GPU"
