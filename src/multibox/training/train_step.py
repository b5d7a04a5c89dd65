"""What a training step changes, and how: a network, its optimizer and its moving average."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multibox.build import build_optimizer, compile_network, compiler_errors
from multibox.config import Config
from multibox.precision import autocast, compute_dtype
from multibox.processes.distributed import Processes, replicate, sum_over_processes, summing
from multibox.ssd.loss import multibox_loss
from multibox.ssd.network import SSD
from multibox.structures import Batch, Matches

REPORTED_DECAY = 0.0005
"""The weight of the L2 term in ssd_keras's loss, whatever this run's own decay is."""

_VELOCITY = "momentum_buffer"
"""Where PyTorch's SGD keeps the velocity of a parameter, divided by the learning rate."""


class StepLosses(NamedTuple):
    """The multibox loss of one step, over all processes.

    Attributes:
        confidence: Divided by the positives.
        localization: Likewise.
        positives: Matched default boxes.
    """

    confidence: float
    localization: float
    positives: float


class NonFinite(Exception):  # noqa: N818  # a condition the loop handles; not a failure in itself
    """A number that a run depends on is NaN or infinite.

    Args:
        what: Which, as a clause.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Learner:
    """Updates a network.

    Args:
        network: On the CPU, its weights filled.
        config: The run's.
        processes: This process among the others.

    Attributes:
        network: The network being trained.
        precision: Its arithmetic: `torch.bfloat16` or `torch.float32`.
    """

    def __init__(self, network: SSD, config: Config, processes: Processes) -> None:
        self.network = network.to(processes.device)
        self.precision = compute_dtype(config.run.precision, processes.device)
        self._config = config.optimizer
        self._processes = processes
        self._optimizer = build_optimizer(self.network, config.optimizer)
        blank = torch.zeros(1, 3, *network.image_size_px, dtype=torch.uint8)
        # It would choose what is fastest, and with that the order in which gradients are added.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self._replica = replicate(self.network, blank.to(processes.device), processes)
        self._forward = compile_network(self._replica) if config.run.compile else self._replica
        self._parameters = list(self.network.parameters())
        # The weights and running statistics that are real numbers, and their average.
        state: dict[str, Tensor] = self.network.state_dict()
        self._learnt = {name: t for name, t in state.items() if t.is_floating_point()}
        self._average: dict[str, Tensor] = {}
        if self._config.ema_decay:
            self._average = {name: t.clone() for name, t in self._learnt.items()}

    def step(self, batch: Batch, *, lr: float, number: int) -> StepLosses:
        """Updates the weights by one batch.

        Args:
            batch: This process's share of the step's samples.
            lr: The learning rate of weights.
            number: How many steps came before this one.

        Raises:
            ConfigError: The network is to be compiled, and cannot be here.
            NonFinite: A loss or gradient is NaN or infinite; weights, optimizer and average are as
                they were. Only the running statistics of batch normalisation have seen the batch.
        """
        processes, parts = self._processes, self._config.accumulate
        self.network.train()
        images = batch.images.to(processes.device, non_blocking=True)
        matches = batch.matches.to(processes.device)
        shares = [slice(part, None, parts) for part in range(parts)]
        matched = torch.stack([(matches.classes[share] > 0).sum() for share in shares])
        positives = sum_over_processes(matched.to(torch.float32), processes)
        normalisers = self._normalisers(positives)
        sums = torch.zeros(2, device=processes.device)
        for part, share in enumerate(shares):
            wanted = Matches(*(field[share] for field in matches))
            with summing(self._replica, last=part == parts - 1), compiler_errors():
                with autocast(self.precision, processes.device):
                    output = self._forward(images[share])
                losses = multibox_loss(output, wanted, normalisers[part])
                torch.autograd.backward(losses.confidence + losses.localization)
            sums += torch.stack([losses.confidence, losses.localization]).detach()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        confidence, localization = (
            sum_over_processes(sums, processes) / processes.world_size
        ).tolist()
        if not torch.isfinite(norm + confidence + localization):
            self._optimizer.zero_grad()
            raise NonFinite(
                "the loss or a gradient is NaN or infinite, and the weights were not updated"
            )
        clip_norm = self._config.clip_norm or float("inf")
        # PyTorch would multiply by 1 below that, which takes as long. It adds as much to the norm.
        if norm + 1e-6 > clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, clip_norm, norm, foreach=True)
        self._set_rate(lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._follow(number)
        return StepLosses(confidence, localization, positives.sum().item())

    def _normalisers(self, positives: Float[Tensor, " parts"]) -> Float[Tensor, " parts"]:
        """Returns what each part's loss is divided by, given the matches of all processes in it.

        Gradients are averaged over the processes and summed over the parts.
        """
        if self._config.accumulate_normaliser == "part":
            divisor = positives.clamp(min=1) * len(positives)
        else:
            divisor = positives.sum().clamp(min=1).expand_as(positives)
        return divisor / self._processes.world_size

    def _set_rate(self, lr: float) -> None:
        """Sets the groups' rates; in Caffe's way, the velocity lr * buffer stays what it was."""
        for group in self._optimizer.param_groups:
            new = lr * group["lr_multiplier"]
            # At a rate of 0 there is no such buffer.
            if self._config.lr_in_velocity and 0 < new != group["lr"]:
                states = [self._optimizer.state[parameter] for parameter in group["params"]]
                # Adam, and SGD without momentum, have no velocity.
                buffers = [state[_VELOCITY] for state in states if state.get(_VELOCITY) is not None]
                if buffers:
                    torch._foreach_mul_(buffers, group["lr"] / new)
            group["lr"] = new

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Moves the average towards the weights, faster while the run is young."""
        if not self._average:
            return
        decay = min(self._config.ema_decay, (1 + number) / (10 + number))
        torch._foreach_lerp_(list(self._average.values()), list(self._learnt.values()), 1 - decay)

    @torch.no_grad()
    def l2(self) -> float:
        """Returns 0.0005 times the sum of all squared convolution weights.

        ssd_keras adds that to the loss it reports; here it is reported beside the loss, and never
        part of it.
        """
        kernels: list[Tensor] = [p for p in self._parameters if p.dim() == 4]
        squares = torch.stack(torch._foreach_norm(kernels)).square().sum()
        return REPORTED_DECAY * squares.item()

    @torch.no_grad()
    def require_finite(self) -> None:
        """Looks at what would be saved: not every number of it bears on the loss of every step.

        Raises:
            NonFinite: A weight, a statistic, the average or the optimizer is NaN or infinite.
        """
        tensors = self.model() | self.optimizer()
        named = {n: t for n, t in tensors.items() if t.is_floating_point() and t.dim() > 0}
        largest = torch.stack(torch._foreach_norm(list(named.values()), float("inf")))
        finite = largest.isfinite().tolist()
        broken = [name for name, sound in zip(named, finite, strict=True) if not sound]
        if broken:
            more = f" and {len(broken) - 1} other tensors" if len(broken) > 1 else ""
            raise NonFinite(f"{broken[0]}{more} has NaN or infinite values")

    def model(self) -> dict[str, Tensor]:
        """Returns the weights that are evaluated and kept: the average where there is one."""
        return self.network.state_dict() | self._average

    def optimizer(self) -> dict[str, Tensor]:
        """Returns what besides `model` a continued run needs."""
        names: dict[Tensor, str] = {p: name for name, p in self.network.named_parameters()}
        tensors = {
            f"optimizer.{key}.{names[parameter]}": value
            for parameter, state in self._optimizer.state.items()
            for key, value in state.items()
            if value is not None
        }
        if self._average:
            tensors |= {f"raw.{name}": tensor for name, tensor in self._learnt.items()}
        return tensors

    def restore(
        self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], lr: float
    ) -> None:
        """Takes back what `model` and `optimizer` returned, and the rate of the step before."""
        weights = dict(model)
        raw = {n.removeprefix("raw."): t for n, t in optimizer.items() if n.startswith("raw.")}
        self.network.load_state_dict(weights | raw)
        for name in self._average:
            self._average[name].copy_(weights[name])
        by_name = dict(self.network.named_parameters())
        self._optimizer.state.clear()
        for full_name, tensor in optimizer.items():
            kind, _, rest = full_name.partition(".")
            if kind != "optimizer":
                continue
            key, _, name = rest.partition(".")
            parameter = by_name[name]
            # Laid out in memory as the parameter is; the count of steps is a scalar.
            blank = torch.empty_like(parameter) if tensor.dim() else parameter.new_empty(())
            self._optimizer.state[parameter][key] = blank.copy_(tensor)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]
