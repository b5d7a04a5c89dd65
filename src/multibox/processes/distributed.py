"""Several processes as one: the only module that knows `torch.distributed`.

Without torchrun there is one process, and everything here is the identity.
"""

import json
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from multibox.errors import ConfigError, ProcessError
from multibox.processes.heartbeat import HINT, Liveness
from multibox.processes.signals import Interrupted

_Store = Any
"""A `torch.distributed.Store`, a name that PyTorch does not export."""

_ENDED: list[Any] = []
"""Process groups that are left."""

MEETING_SECONDS = 120.0
"""How long the processes that came wait for the others."""

GROUP_SECONDS = 1800.0
"""How long a process waits for another's part in a computation. That one may be reading a large
dataset or drawing pictures; whether it is alive does not have to be guessed from this."""

POLL_SECONDS = 0.2
"""How often a process that waits without a limit looks for the others."""


class Processes(NamedTuple):
    """This process among those of the run.

    Attributes:
        rank: Its number; 0 reads the arguments' advice, writes files and talks to the user.
        world_size: How many there are.
        device: Where its network runs.
        store: What the processes tell each other outside of computations; None where there is one.
    """

    rank: int
    world_size: int
    device: torch.device
    store: _Store = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of them share this machine's cores: all, where nothing says otherwise."""
        # torchrun's.
        local = os.environ.get("LOCAL_WORLD_SIZE", "")
        count = int(local) if local.isdecimal() else self.world_size
        return min(max(1, count), self.world_size)


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

    Whatever ends one of several processes ends them all, wherever they are, with one message by
    the first and one exit status: `runtime/liveness.py`. Without torchrun, its variables serve as
    well: `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: A GPU is asked for, and there is none; or the variables are not all there.
        ProcessError: The processes do not find each other.
    """
    if not _several():
        yield Processes(0, 1, pick_device(device))
        return
    store, rank, world_size, liveness = _meet()
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
        # All stop after the same step.
        _part(liveness)
        raise
    except BaseException as error:
        named = _named(error)
        liveness.fail(named)
        if named is error:
            raise
        raise named from None
    _part(liveness)


def _part(liveness: Liveness) -> None:
    # Of the last two that hold gloo's threads, the other, the replica that an exception's frames
    # keep, would await them with the interpreter in its hands, for which they wait.
    _ENDED.append(dist.group.WORLD)
    dist.destroy_process_group()
    liveness.leave()


def _named(error: BaseException) -> BaseException:
    """Returns an error, or what it means that PyTorch could not exchange something."""
    text = str(error).partition("\n")[0]
    collective = isinstance(error, dist.DistError) or "gloo" in text.lower()
    if isinstance(error, RuntimeError) and collective:
        return ProcessError(f"the processes do not reach each other ({text})", remedy=HINT)
    return error


def is_first() -> bool:
    """Whether this process talks to the user, before it has joined the others."""
    return not _several() or os.environ.get("RANK") == "0"


def _several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _meet() -> tuple[_Store, int, int, Liveness]:
    """Finds the other processes."""
    try:
        _await_first()
        meeting = rendezvous("env://", timeout=timedelta(seconds=MEETING_SECONDS))
        store, rank, world_size = next(meeting)
        # What the processes of before a restart by torchrun have left there is not ours.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]  # not exported
        host = os.environ["MASTER_ADDR"]
        if rank == 0:
            liveness = Liveness.listen(host, world_size)
            store.set("liveness", liveness.address)
            liveness.wait_for_all(MEETING_SECONDS)
        else:
            address = store.get("liveness").decode()
            liveness = Liveness.connect(host, address, rank, world_size)
    except ValueError as error:
        raise ConfigError(f"the processes cannot be joined: {error}") from None
    except (dist.DistError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ProcessError(
            f"the processes do not find each other ({reason})",
            remedy="Start all of a run at once; MASTER_ADDR and MASTER_PORT say where they meet",
        ) from None
    return store, rank, world_size, liveness


def _await_first() -> None:
    """Returns when the first process can be reached; torch's own wait is long and talkative."""
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
    """Returns the device that is this process's alone."""
    place = pick_device(device)
    if place.type == "cpu":
        return place
    count = torch.cuda.device_count()
    number = int(os.environ.get("LOCAL_RANK", rank % count))
    if number >= count:
        raise ConfigError(
            f"{number + 1} processes share a machine of {count} GPUs",
            remedy="Start as many processes as there are GPUs, or say --device cpu",
        )
    place = torch.device("cuda", number)
    torch.cuda.set_device(place)
    return place


def _require_same_device(place: torch.device, rank: int, store: _Store) -> None:
    """Refuses GPUs beside CPUs, before they wait for each other in different languages."""
    if rank == 0:
        store.set("device", place.type)
    elif (first := store.get("device").decode()) != place.type:
        raise ConfigError(
            f"would run on {place.type}, the first process on {first}",
            remedy="Say --device cpu, or repair the GPU of that process",
        )


def replicate(network: nn.Module, example: Tensor, processes: Processes) -> nn.Module:
    """Returns the network with gradients averaged over the processes.

    After its first pass PyTorch arranges anew which gradients are sent together, and with that
    the order in which those of three and more processes are added. A pass whose gradients are
    dropped comes first, so that a continued run adds in the order of an unbroken one.

    Args:
        network: On its device.
        example: An input.
        processes: This process among the others.
    """
    if processes.world_size == 1:
        return network
    devices = [processes.device] if processes.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Its successor synchronizes them once, which is not asked for, and torch 2.11 has it not.
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        replica = nn.parallel.DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False
        )
    # Without batch statistics, which would be remembered.
    network.eval()
    torch.autograd.backward([tensor.sum() for tensor in replica(example)])
    network.zero_grad()
    network.train()
    return replica


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
    """Returns the greatest of the processes' numbers; each calls it at the same point."""
    if processes.world_size == 1:
        return number
    greatest = torch.tensor(number, device=processes.device)
    dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return int(greatest)


def require_same(facts: Mapping[str, Any], processes: Processes) -> None:
    """Compares what must not differ between the processes.

    Args:
        facts: JSON, by name.
        processes: This process among the others.

    Raises:
        ConfigError: Another process has other facts; raised by all.
    """
    line = json.dumps(facts).encode() + b"\n"
    values = torch.tensor(list(line), dtype=torch.uint8, device=processes.device)
    lines = bytes(gather(values, processes).tolist()).splitlines()
    first, *others = map(json.loads, lines)
    for rank, other in enumerate(others, start=1):
        found = [
            f"{name}: {other.get(name)}, there {first[name]}"
            for name in first
            if other.get(name) != first[name]
        ]
        if found:
            raise ConfigError(
                f"process {rank} has not what the first has ({'; '.join(found)})",
                remedy="Give all processes the same command line, data and versions",
            )


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


def wait_without_limit(name: str, processes: Processes) -> None:
    """Returns when every process has come here, if that takes hours.

    A computation of all processes ends after `GROUP_SECONDS`. Here, only the death of a process
    ends the others.

    Args:
        name: Of the place. Each process comes to each place once.
        processes: This process among the others.
    """
    if processes.world_size == 1:
        return
    arrived = [f"{name}-{rank}" for rank in range(processes.world_size)]
    processes.store.set(arrived[processes.rank], "")
    while not processes.store.check(arrived):
        time.sleep(POLL_SECONDS)
