"""Processor time of the gradients of depthwise convolutions in bfloat16: PyTorch's and multibox's.

python benchmarks/depthwise.py
"""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from multibox.ssd.backbones.depthwise import Depthwise

# Channels, side of the map, kernel, stride: the kinds of layers in stages 4 and 5.
LAYERS = (
    *((240, 38, 5, 2), (480, 19, 3, 1), (480, 19, 5, 1), (672, 19, 5, 1), (672, 19, 5, 2)),
    *((1152, 10, 5, 1), (1152, 10, 3, 1)),
)


def milliseconds(function: Callable[[], object]) -> float:
    """Returns the least processor time of five calls."""
    function()
    found = []
    for _ in range(5):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found) * 1000


def main() -> None:
    """Prints a line for each layer, for batches of 16."""
    torch.set_num_threads(1)
    for channels, side, kernel, stride in LAYERS:
        x = torch.randn(16, channels, side, side).bfloat16().to(memory_format=torch.channels_last)
        weight = torch.randn(channels, 1, kernel, kernel).bfloat16()
        x, weight, padding = x.requires_grad_(), weight.requires_grad_(), (kernel - 1) // 2
        plain = F.conv2d(x, weight, None, stride, padding, groups=channels)
        ours = Depthwise.apply(x, weight, stride, padding)
        given = torch.randn_like(plain)
        gradient = partial(torch.autograd.grad, inputs=(x, weight), retain_graph=True)
        times = [milliseconds(partial(gradient, y, grad_outputs=given)) for y in (plain, ours)]
        print(
            f"{channels:4} channels, {side} cells, kernel {kernel}, stride {stride}: "
            f"{times[0]:6.1f} ms, multibox {times[1]:5.1f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
