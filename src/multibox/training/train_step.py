"""One training step: network, optimizer and moving average."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from multibox.build import build_loss, build_optimizer, compile_network, compiler_errors
from multibox.config import Config
from multibox.precision import autocast, compute_dtype
from multibox.processes.distributed import Processes, replicate, sum_over_processes, summing
from multibox.ssd.network import SSD
from multibox.structures import Batch, Matches
from multibox.training.batch_norm import synchronise_batch_norm

REPORTED_DECAY = 0.0005
"""Factor of the L2 term in ssd_keras's loss. It does not depend on the run's weight decay."""

_VELOCITY = "momentum_buffer"
"""Key of a parameter's buffer in PyTorch's SGD: the velocity, divided by the learning rate."""


class StepLosses(NamedTuple):
    """The multibox loss of one step, over all processes.

    Attributes:
        confidence: Confidence loss, divided by the number of positives.
        localization: Localization loss, divided by the number of positives.
        positives: Number of matched default boxes.
    """

    confidence: float
    localization: float
    positives: float


class NonFinite(Exception):  # noqa: N818  # a condition the loop handles; not a failure in itself
    """A loss, gradient, weight or statistic is NaN or infinite.

    Args:
        reason: What is NaN or infinite, as a clause.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Learner:
    """Updates a network, one batch at a time.

    Args:
        network: The network, on the CPU, with its initial weights.
        config: The configuration of the run.
        processes: This process among the others.

    Attributes:
        network: The network, on the device of this process.
        precision: The dtype of the network's arithmetic: `torch.bfloat16` or `torch.float32`.
    """

    def __init__(self, network: SSD, config: Config, processes: Processes) -> None:
        self.network = network.to(processes.device)
        if config.run.sync_batch_norm:
            synchronise_batch_norm(self.network, processes)
        self.precision = compute_dtype(config.run.precision, processes.device)
        self._config = config.optimizer
        self._processes = processes
        self._optimizer = build_optimizer(self.network, config.optimizer)
        self._loss = build_loss(self.network, config.loss)
        blank = torch.zeros(1, 3, *network.image_size_px, dtype=torch.uint8)
        # In benchmark mode, the fastest algorithm and so the order of additions could vary.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        if processes.device.type == "cuda":
            # The processor only copies batches, and threads that copy would wait for the workers.
            torch.set_num_threads(1)
        self._replica = replicate(self.network, blank.to(processes.device), processes)
        self._forward = compile_network(self._replica) if config.run.compile else self._replica
        self._parameters = list(self.network.parameters())
        # The weights and running statistics of a floating-point dtype, and their average.
        state: dict[str, Tensor] = self.network.state_dict()
        self._learnt = {name: t for name, t in state.items() if t.is_floating_point()}
        self._average: dict[str, Tensor] = {}
        if self._config.ema_decay or self._config.swa_from:
            self._average = {name: t.clone() for name, t in self._learnt.items()}

    def step(self, batch: Batch, *, lr: float, number: int) -> StepLosses:
        """Updates the weights with one batch.

        Args:
            batch: This process's share of the samples of this step.
            lr: Learning rate of the weights. Biases learn twice as fast.
            number: Number of steps before this one.

        Raises:
            ConfigError: `compile` is set, but the network cannot be compiled on this machine.
            NonFinite: A loss or gradient is NaN or infinite. Weights, optimizer and average are
                unchanged; only the running statistics of batch normalisation include the batch.
        """
        processes, parts = self._processes, self._config.accumulate
        self.network.train()
        images = batch.images.to(processes.device, non_blocking=True)
        matches = batch.matches.to(processes.device)
        shares = [slice(part, None, parts) for part in range(parts)]
        positives = sum_over_processes(
            torch.stack([(matches.classes[share] > 0).sum() for share in shares]).float(), processes
        )
        normalisers = self._normalisers(positives)
        sums = torch.zeros(2, device=processes.device)
        for part, share in enumerate(shares):
            part_matches = Matches(*(field[share] for field in matches))
            with summing(self._replica, last=part == parts - 1), compiler_errors():
                with autocast(self.precision, processes.device):
                    output = self._forward(images[share])
                losses = self._loss(output, part_matches, normalisers[part])
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
        # Gradients with a smaller norm need no clipping. PyTorch would multiply them by 1, which
        # takes as long as clipping. The comparison adds 1e-6 to the norm, as PyTorch does.
        if norm + 1e-6 > clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, clip_norm, norm, foreach=True)
        self._set_lr(lr)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._update_average(number)
        return StepLosses(confidence, localization, positives.sum().item())

    def _normalisers(self, positives: Float[Tensor, " parts"]) -> Float[Tensor, " parts"]:
        """Returns the number that the loss of each part is divided by.

        The gradients are summed over the parts but averaged over the processes, so the divisor is
        divided by the number of processes.

        Args:
            positives: The number of matched default boxes in each part, over all processes.
        """
        if self._config.accumulate_normaliser == "part":
            divisor = positives.clamp(min=1) * len(positives)
        else:
            divisor = positives.sum().clamp(min=1).expand_as(positives)
        return divisor / self._processes.world_size

    def _set_lr(self, lr: float) -> None:
        """Sets the learning rates of all parameter groups.

        With `lr_in_velocity`, it also scales the momentum buffers, so that the velocity (learning
        rate times buffer) stays the same, as in Caffe.
        """
        for group in self._optimizer.param_groups:
            new = lr * group["lr_multiplier"]
            # If the new rate is 0, no buffer gives the same velocity.
            if self._config.lr_in_velocity and 0 < new != group["lr"]:
                states = [self._optimizer.state[parameter] for parameter in group["params"]]
                # Adam, and SGD without momentum, have no velocity.
                buffers = [state[_VELOCITY] for state in states if state.get(_VELOCITY) is not None]
                if buffers:
                    torch._foreach_mul_(buffers, group["lr"] / new)
            group["lr"] = new

    @torch.no_grad()
    def _update_average(self, number: int) -> None:
        """Moves the average towards the weights, by larger steps early in the run.

        With `swa_from`, it is the plain average of the weights after that step and all later ones
        (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), and before it the weights. Running
        statistics of batch normalisation are averaged too, not computed again.
        """
        if not self._average:
            return
        decay = min(self._config.ema_decay, (1 + number) / (10 + number))
        if self._config.swa_from:
            earlier = max(0, number + 1 - self._config.swa_from)
            decay = earlier / (earlier + 1)
        torch._foreach_lerp_(list(self._average.values()), list(self._learnt.values()), 1 - decay)

    @torch.no_grad()
    def l2(self) -> float:
        """Returns 0.0005 times the sum of all squared convolution weights.

        ssd_keras includes this term in the loss that it reports. multibox reports it separately,
        and it is not part of the loss.
        """
        kernels: list[Tensor] = [p for p in self._parameters if p.dim() == 4]
        squares = torch.stack(torch._foreach_norm(kernels)).square().sum()
        return REPORTED_DECAY * squares.item()

    @torch.no_grad()
    def require_finite(self) -> None:
        """Checks all tensors that a checkpoint contains.

        A finite loss is not enough: some of these values do not affect the loss of every step.

        Raises:
            NonFinite: A weight, a running statistic, the average or the optimizer's state has NaN
                or infinite values.
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
        """Returns the weights to evaluate and save: the average, if there is one."""
        return self.network.state_dict() | self._average

    def optimizer(self) -> dict[str, Tensor]:
        """Returns the other tensors that a resumed run needs.

        These are the optimizer's state and, if `model` returns the average, the raw weights.
        """
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
        """Restores the state that `model` and `optimizer` returned.

        Args:
            model: What `model` returned.
            optimizer: What `optimizer` returned.
            lr: Learning rate of the previous step.
        """
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
            # Tensors need the memory format of the parameter. Adam's step count is a scalar.
            blank = torch.empty_like(parameter) if tensor.dim() else parameter.new_empty(())
            self._optimizer.state[parameter][key] = blank.copy_(tensor)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]
