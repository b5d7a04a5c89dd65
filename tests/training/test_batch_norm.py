"""Batch normalisation over two processes, against PyTorch's over the whole batch."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import TINY, TinyBackbone
from torch import nn

from multibox.config import Config, RunConfig
from multibox.processes.distributed import Processes
from multibox.rng import stream
from multibox.training import batch_norm as module
from multibox.training.batch_norm import SynchronisedBatchNorm, synchronise_batch_norm
from multibox.training.train_step import Learner


class Threads:
    """Two threads that behave like two processes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._barrier = threading.Barrier(2, timeout=30)
        self._values: dict[int, torch.Tensor] = {}
        monkeypatch.setattr(module, "sum_over_processes", self._sum)

    def _sum(self, values: torch.Tensor, processes: Processes) -> torch.Tensor:
        self._values[processes.rank] = values.clone()
        self._barrier.wait()
        total = self._values[0] + self._values[1]
        self._barrier.wait()
        return total

    def both(self, work: Callable[[Processes], object]) -> list[object]:
        members = [
            Processes(rank, 2, torch.device("cpu"), store=threading.Lock()) for rank in (0, 1)
        ]
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, members))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


def normals(purpose: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(stream(0, purpose).standard_normal(shape)).float()


def layer() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(5, eps=1e-3, momentum=0.03)
    with torch.no_grad():
        made.weight.copy_(normals("weight", 5))
        made.bias.copy_(normals("bias", 5))
    return made


def test_two_processes_normalise_as_one(threads: Threads) -> None:
    # A large mean shows whether the variance is computed without cancellation.
    x, given = 3 * normals("x", 8, 5, 6, 7) + 10, normals("gradient", 8, 5, 6, 7)
    whole, whole_x = layer(), x.clone().requires_grad_()
    expected = whole(whole_x)
    expected.backward(given)

    def work(processes: Processes) -> tuple[torch.Tensor, torch.Tensor, nn.Module]:
        own = SynchronisedBatchNorm(layer(), processes)
        share = slice(processes.rank, None, 2)
        own_x = x[share].clone().requires_grad_()
        found = own(own_x)
        found.backward(given[share])
        return found.detach(), own_x.grad, own

    first, second = threads.both(work)
    close = {"rtol": 1e-6, "atol": 2e-6}
    for rank, (found, gradient, own) in enumerate((first, second)):
        torch.testing.assert_close(found, expected.detach()[rank::2], **close)
        torch.testing.assert_close(gradient, whole_x.grad[rank::2], **close)
        for name, statistic in whole.named_buffers():
            torch.testing.assert_close(own.get_buffer(name), statistic, **close)
    for name, parameter in whole.named_parameters():
        summed = first[2].get_parameter(name).grad + second[2].get_parameter(name).grad
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-5, atol=1e-5)


def test_in_evaluation_it_uses_the_running_statistics(threads: Threads) -> None:
    plain, x = layer().eval(), normals("x", 2, 5, 3, 3)

    def work(processes: Processes) -> torch.Tensor:
        return SynchronisedBatchNorm(layer(), processes).eval()(x)

    for found in threads.both(work):
        assert torch.equal(found, plain(x))


def test_a_network_keeps_its_names_and_tensors_and_can_be_copied() -> None:
    network = TinyBackbone(batch_norm=True)
    before = network.state_dict(keep_vars=True)
    synchronise_batch_norm(network, Processes(0, 2, torch.device("cpu"), store=threading.Lock()))
    assert isinstance(network.norms[0], SynchronisedBatchNorm)
    after = copy.deepcopy(network).state_dict()
    assert list(after) == list(before)
    assert all(network.state_dict(keep_vars=True)[name] is before[name] for name in before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_one_process_keeps_pytorch_s_own_layers() -> None:
    from multibox import build

    network = build.SSD(
        TinyBackbone(batch_norm=True),
        TINY.tables["voc"],
        image_size_px=TINY.image_size_px,
        num_classes=2,
    )
    config = Config(network="tiny", run=RunConfig(sync_batch_norm=True, precision="fp32"))
    Learner(network, config, Processes(0, 1, torch.device("cpu")))
    assert type(network.backbone.norms[0]) is nn.BatchNorm2d
