"""Batch normalisation over the images of all processes, on CPUs and GPUs."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from multibox.processes.distributed import Processes, sum_over_processes


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """A `BatchNorm2d` that shares parameters and statistics with the layer it is made from.

    In training mode it normalises with the mean and the variance of the batches of all processes,
    which must have the same size. `torch.nn.SyncBatchNorm` does the same, but only on GPUs.

    Args:
        layer: The layer to replace.
        processes: This process among the others.
    """

    def __init__(self, layer: nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, device="meta")
        self._parameters, self._buffers = layer._parameters, layer._buffers
        # The network is copied, which a store does not allow.
        self._processes = processes._replace(store=None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised maps, (B, channels, rows, columns)."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * self._processes.world_size
        normalised, mean, variance = _Normalise.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.eps, count, self._processes
        )
        momentum = cast(float, self.momentum)
        cast(Tensor, self.running_mean).lerp_(mean, momentum)
        cast(Tensor, self.running_var).lerp_(variance * (count / (count - 1)), momentum)
        cast(Tensor, self.num_batches_tracked).add_(1)
        return cast(Tensor, normalised)


class _Normalise(torch.autograd.Function):
    """Normalises each channel with its mean and variance over all processes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        count: int,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        mean = sum_over_processes(wide.sum((0, 2, 3)), processes) / count
        centred = wide - _per_channel(mean)
        variance = sum_over_processes(centred.square().sum((0, 2, 3)), processes) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.count, ctx.processes = count, processes
        ctx.mark_non_differentiable(mean, variance)
        normalised = centred * _per_channel(scale * weight) + _per_channel(bias)
        return normalised.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        wide = gradient.float()
        unit = (x.float() - _per_channel(mean)) * _per_channel(scale)
        # The gradients of weight and bias are those of this process, as for all other layers.
        own = torch.stack([wide.sum((0, 2, 3)), (wide * unit).sum((0, 2, 3))])
        means = sum_over_processes(own.clone(), ctx.processes) / ctx.count
        shifted = wide - _per_channel(means[0]) - unit * _per_channel(means[1])
        return (
            (shifted * _per_channel(scale * weight)).to(x.dtype),
            own[1],
            own[0],
            None,
            None,
            None,
        )


def _per_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


def synchronise_batch_norm(network: nn.Module, processes: Processes) -> None:
    """Replaces all batch normalisation of a network, in place, if there are several processes."""
    for module in list(network.modules()) if processes.world_size > 1 else []:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SynchronisedBatchNorm(child, processes))
