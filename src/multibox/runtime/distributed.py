"""Several processes as one: the only module that knows `torch.distributed`.

Without torchrun there is one process, and everything here is the identity.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from multibox.errors import ConfigError


class Processes(NamedTuple):
    """This process among those of the run.

    Attributes:
        rank: Its number; 0 reads the arguments' advice, writes files and talks to the user.
        world_size: How many there are.
        device: Where its network runs.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0


def pick_device(device: str) -> torch.device:
    """Returns the device meant by `auto` (a GPU where there is one), `cpu` or `cuda`.

    Raises:
        ConfigError: A GPU is asked for, and there is none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no GPU can be used here", remedy="Leave out --device, or say cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Joins the processes that torchrun started, if it did, for as long as the context lasts.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: A GPU is asked for, and there is none.
    """
    place = pick_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, place)
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, place)
    finally:
        dist.destroy_process_group()


def replicate(network: nn.Module, processes: Processes) -> nn.Module:
    """Returns the network with gradients averaged over the processes."""
    if processes.world_size == 1:
        return network
    devices = [processes.device] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


@contextmanager
def summing(replica: nn.Module, *, last: bool) -> Iterator[None]:
    """Lets gradients pile up in each process and be averaged with those of the last part."""
    if last or not isinstance(replica, nn.parallel.DistributedDataParallel):
        yield
    else:
        with replica.no_sync():
            yield


def total(values: Tensor, processes: Processes) -> Tensor:
    """Returns the sum of a tensor over the processes, in place."""
    if processes.world_size > 1:
        dist.all_reduce(values)
    return values


def agree(number: int, processes: Processes) -> int:
    """Returns the sum of a whole number over the processes; each calls it at the same point."""
    if processes.world_size == 1:
        return number
    return int(total(torch.tensor(number, device=processes.device), processes))


def from_first(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Returns the first process's values of tensors that each process has, by name."""
    if processes.world_size == 1:
        return dict(tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in copies.values():
        dist.broadcast(tensor, src=0)
    return copies


def gather(values: Tensor, processes: Processes) -> Tensor:
    """Returns the rows (any number, the same width) of all processes, by rank."""
    if processes.world_size == 1:
        return values
    counts = torch.zeros(processes.world_size, dtype=torch.int64, device=values.device)
    counts[processes.rank] = values.shape[0]
    sizes = total(counts, processes).tolist()
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def wait_for_all(processes: Processes) -> None:
    """Returns when every process has come here."""
    if processes.world_size > 1:
        dist.barrier()
