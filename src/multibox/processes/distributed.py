"""The only module that uses `torch.distributed`.

If a run has one process, nothing is sent, and functions that combine values return their input.
"""

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from multibox.errors import ConfigError, ProcessError
from multibox.processes.heartbeat import HINT, Heartbeat
from multibox.processes.signals import Interrupted

_Store = Any
"""A `torch.distributed.Store`. PyTorch does not export this name."""

_ENDED: list[Any] = []
"""The process groups that this process has left. `_part` explains why they are kept."""

MEETING_SECONDS = 120.0
"""How long a process waits for the others to start."""

GROUP_SECONDS = 1800.0
"""How long a process waits in a collective. Another process may be reading a large dataset or
drawing pictures meanwhile. If that process has died, `heartbeat` notices it much earlier."""

POLL_SECONDS = 0.2
"""How long `wait_without_limit` sleeps between two checks for the other processes."""


class Processes(NamedTuple):
    """This process among those of the run.

    Attributes:
        rank: The number of this process, 0..world_size-1. Process 0 writes files and messages.
        world_size: The number of processes.
        device: The device of this process's network.
        store: Key-value store for messages outside of collectives; None for a single process.
    """

    rank: int
    world_size: int
    device: torch.device
    store: _Store = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """Number of processes on this machine: `LOCAL_WORLD_SIZE` (set by torchrun), or all."""
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        count = int(local) if local.isdecimal() else self.world_size
        return min(max(1, count), self.world_size)


def pick_device(device: str) -> torch.device:
    """Returns the device for `auto` (a GPU if there is one), `cpu` or `cuda`.

    Raises:
        ConfigError: `cuda` is asked for, but PyTorch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no GPU can be used here", remedy="Leave out --device")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """Joins this process with the others of the run while the context lasts.

    torchrun sets the variables that describe them: `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and
    `MASTER_PORT`. Without `WORLD_SIZE`, this process is alone. If one process ends by an error, all
    end with one message and one exit status (see `heartbeat`).

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: There is no GPU for this process, or a variable is missing.
        ProcessError: The processes do not find each other.
    """
    if not is_one_of_several():
        yield Processes(0, 1, pick_device(device))
        return
    store, rank, world_size, heartbeat = _meet()
    try:
        place = _own_device(device, rank)
        _require_same_device(place, rank, store)
        timeout = timedelta(seconds=GROUP_SECONDS)
        store.set_timeout(timeout)
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
        yield Processes(rank, world_size, place, store)
    except Interrupted:
        # All processes stop after the same step.
        _part(heartbeat)
        raise
    except BaseException as error:
        named = _named(error)
        heartbeat.fail(named)
        if named is error:
            raise
        raise named from None
    _part(heartbeat)


def _part(heartbeat: Heartbeat) -> None:
    # When the last reference to the group goes, gloo's threads are joined. That reference may be in
    # the replica, which the frames of an exception keep alive. Python's lock would be held during
    # the join, and the threads wait for that lock, so the process would hang. `_ENDED` keeps a
    # reference, so that this never happens.
    _ENDED.append(dist.group.WORLD)
    dist.destroy_process_group()
    heartbeat.leave()


def _named(error: BaseException) -> BaseException:
    """Returns the error, or a `ProcessError` for one that PyTorch raised in a collective."""
    text = str(error).partition("\n")[0]
    collective = isinstance(error, dist.DistError) or "gloo" in text.lower()
    if isinstance(error, RuntimeError) and collective:
        return ProcessError(f"the processes do not reach each other ({text})", remedy=HINT)
    return error


def is_first() -> bool:
    """Whether this process writes messages. It can be called before `join`."""
    return not is_one_of_several() or os.environ.get("RANK") == "0"


def is_one_of_several() -> bool:
    """Whether `torchrun` or another launcher has started several processes for this run."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _meet() -> tuple[_Store, int, int, Heartbeat]:
    """Finds the other processes; returns the store, rank, world size and heartbeat."""
    try:
        _await_first()
        meeting = rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS))
        store, rank, world_size = next(meeting)
        host = os.environ["MASTER_ADDR"]
        if rank == 0:
            heartbeat = Heartbeat.listen(
                host, world_size, MEETING_SECONDS, partial(store.set, "heartbeat")
            )
        else:
            heartbeat = _connect(host, store, rank)
        # After a restart by torchrun, the store still has the keys of previous attempts. The number
        # of the attempt may differ between machines, but the token is the same on all.
        store = dist.PrefixStore(heartbeat.token, store)  # type: ignore[attr-defined]  # not exported
    except ValueError as error:
        raise ConfigError(f"the processes cannot be joined: {error}") from None
    except (dist.DistError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ProcessError(
            f"the processes do not find each other ({reason})",
            remedy="Start all processes of a run at the same time, with the same MASTER_ADDR and "
            "MASTER_PORT",
        ) from None
    return store, rank, world_size, heartbeat


def _connect(host: str, store: _Store, rank: int) -> Heartbeat:
    """Connects to the first process, which may not have replaced the address in the store yet."""
    end = time.monotonic() + MEETING_SECONDS
    while True:
        try:
            return Heartbeat.connect(host, store.get("heartbeat").decode(), rank)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _await_first() -> None:
    """Returns when the first process can be reached. PyTorch's own wait prints many warnings."""
    end = time.monotonic() + MEETING_SECONDS
    place = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", 0))
    while os.environ.get("RANK") != "0" and all(place):
        try:
            socket.create_connection(place, timeout=MEETING_SECONDS).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return


def _own_device(device: str, rank: int) -> torch.device:
    """Returns the CPU, or a GPU that no other process of the run uses."""
    place = pick_device(device)
    if place.type == "cpu":
        return place
    count = torch.cuda.device_count()
    number = int(os.environ.get("LOCAL_RANK", rank % count))
    if number >= count:
        raise ConfigError(
            f"{number + 1} processes share a machine with {count} GPUs",
            remedy="Start as many processes as there are GPUs, or use --device cpu",
        )
    place = torch.device("cuda", number)
    torch.cuda.set_device(place)
    return place


def _require_same_device(place: torch.device, rank: int, store: _Store) -> None:
    """Refuses a mixture of GPUs and CPUs: they use different backends and cannot communicate."""
    if rank == 0:
        store.set("device", place.type)
    elif (first := store.get("device").decode()) != place.type:
        raise ConfigError(
            f"this process would run on {place.type}, but the first process on {first}",
            remedy="Use --device cpu, or make the GPUs visible to all processes",
        )


def replicate(network: nn.Module, example: Tensor, processes: Processes) -> nn.Module:
    """Returns the network with gradients averaged over the processes.

    After the first backward pass, PyTorch changes which gradients are sent together. With three or
    more processes, this also changes the order in which gradients are added. Therefore this
    function runs one pass and drops its gradients, so that a continued run adds in the same order
    as an uninterrupted one.

    Args:
        network: The network, on its device.
        example: A batch of images that the network accepts.
        processes: This process among the others.
    """
    if processes.world_size == 1:
        return network
    devices = [processes.device] if processes.device.type == "cuda" else None
    with warnings.catch_warnings():
        # The argument that replaces `broadcast_buffers` also synchronizes the buffers once, and
        # torch 2.11 does not have it.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        replica = nn.parallel.DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False
        )
    # In evaluation mode, so that batch normalisation does not update its statistics.
    network.eval()
    torch.autograd.backward([tensor.sum() for tensor in replica(example)])
    network.zero_grad()
    network.train()
    return replica


@contextmanager
def summing(replica: nn.Module, *, last: bool) -> Iterator[None]:
    """Adds up the gradients of the parts of a batch within each process.

    Args:
        replica: The result of `replicate`.
        last: Whether this is the last part. Its backward pass averages the sums over all processes.
    """
    if last or not isinstance(replica, nn.parallel.DistributedDataParallel):
        yield
    else:
        with replica.no_sync():
            yield


def sum_over_processes(values: Tensor, processes: Processes) -> Tensor:
    """Sums a tensor over the processes, in place, and returns it."""
    if processes.world_size > 1:
        dist.all_reduce(values)
    return values


def agree(number: int, processes: Processes) -> int:
    """Returns the largest number of all processes. Every process must call it."""
    if processes.world_size == 1:
        return number
    greatest = torch.tensor(number, device=processes.device)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def require_same(facts: Mapping[str, Any], processes: Processes) -> None:
    """Checks that all processes have the same values.

    Args:
        facts: Values that JSON can represent, by name.
        processes: This process among the others.

    Raises:
        ConfigError: Two processes have different values. All processes raise it.
    """
    line = json.dumps(facts).encode() + b"\n"
    values = torch.tensor(list(line), dtype=torch.uint8, device=processes.device)
    lines = bytes(gather(values, processes).tolist()).splitlines()
    first, *others = map(json.loads, lines)
    for rank, other in enumerate(others, start=1):
        found = [
            f"{name}: {other.get(name)} instead of {first[name]}"
            for name in first
            if other.get(name) != first[name]
        ]
        if found:
            raise ConfigError(
                f"process {rank} differs from the first process ({'; '.join(found)})",
                remedy="Start all processes with the same command line, data and versions",
            )


def from_first(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Returns the first process's values of some tensors, by name."""
    if processes.world_size == 1:
        return dict(tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    for tensor in copies.values():
        dist.broadcast(tensor, src=0)
    return copies


def gather(values: Tensor, processes: Processes) -> Tensor:
    """Returns the rows of all processes in the order of their ranks.

    The number of rows may differ between the processes, but not their shape.
    """
    if processes.world_size == 1:
        return values
    counts = torch.zeros(processes.world_size, dtype=torch.int64, device=values.device)
    counts[processes.rank] = values.shape[0]
    sizes = sum_over_processes(counts, processes).tolist()
    padded = values.new_zeros(max(sizes), *values.shape[1:])
    padded[: values.shape[0]] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def wait_for_all(processes: Processes) -> None:
    """Waits until every process has called it."""
    if processes.world_size > 1:
        dist.barrier()


def wait_without_limit(name: str, processes: Processes) -> None:
    """Waits until every process has called it, even for hours.

    A collective fails after `GROUP_SECONDS`. This wait ends early only if a process dies.

    Args:
        name: Identifies this wait. Each process may use a name once.
        processes: This process among the others.
    """
    if processes.world_size == 1:
        return
    arrived = [f"{name}-{rank}" for rank in range(processes.world_size)]
    processes.store.set(arrived[processes.rank], "")
    while not processes.store.check(arrived):
        time.sleep(POLL_SECONDS)
