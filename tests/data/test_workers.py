import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from multibox.data import workers
from multibox.data.workers import AHEAD, work_ahead
from multibox.errors import WorkerError


class Squares:
    def __getitem__(self, number: int) -> int:
        return number**2


def listed(samples: Sequence[int]) -> list[int]:
    return list(samples)


def no_files(_: list[int]) -> list[Path]:
    return [Path("image.jpg")]


@pytest.mark.parametrize("crew", [0, 1, 3])
def test_lists_come_in_order_and_are_taken_ahead(crew: int) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[list[int]]:
        for number in range(10):
            taken.append(number)
            yield [number, number + 1]

    made = work_ahead(Squares(), listed, numbers(), workers=crew, pin_memory=False, files=no_files)
    for number, found in enumerate(made):
        assert found == [number**2, (number + 1) ** 2]
        assert len(taken) == min(10, number + 1 + AHEAD * crew)
    assert multiprocessing.active_children() == []


def test_tensors_of_a_worker_outlive_it() -> None:
    def join(samples: Sequence[int]) -> tuple[torch.Tensor, int]:
        return torch.tensor(samples), len(samples)

    (made,) = work_ahead(Squares(), join, [[2, 3]], workers=1, pin_memory=False, files=no_files)
    assert multiprocessing.active_children() == []
    assert not made[0].is_shared()
    assert torch.equal(made[0], torch.tensor([4, 9]))
    assert made[1] == 2


def test_an_unforeseen_error_of_a_worker_is_raised_with_its_place() -> None:
    class Broken:
        def __getitem__(self, number: int) -> int:
            return 1 // number

    made = work_ahead(Broken(), listed, [[1], [0]], workers=2, pin_memory=False, files=no_files)
    assert next(made) == [1]
    with pytest.raises(RuntimeError, match=r"test_workers(?s:.*)ZeroDivisionError"):
        next(made)
    assert multiprocessing.active_children() == []


def test_a_worker_that_stops_in_the_middle_of_its_answer_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "STUCK_SECONDS", 1.0)
    losses: list[str] = []

    def join(samples: Sequence[int]) -> bytes:
        # More than a pipe holds.
        return bytes(samples) * 10_000_000

    made = work_ahead(
        Squares(),
        join,
        [[1], [2], [3]],
        workers=1,
        pin_memory=False,
        files=no_files,
        on_loss=lambda reason, _: losses.append(reason),
    )
    assert next(made)[-1] == 1
    (victim,) = multiprocessing.active_children()
    time.sleep(0.5)
    os.kill(victim.pid, signal.SIGSTOP)
    assert [part[-1] for part in made] == [4, 9]
    assert losses == ["a process that prepares images seems to hang: no batch in 1 s"]


def test_workers_of_two_lines_end_with_the_first_of_them() -> None:
    """As those of training and validation do, of which one is within the other."""
    outer = work_ahead(
        Squares(), listed, ([n] for n in range(9)), workers=2, pin_memory=False, files=no_files
    )
    assert next(outer) == [0]
    inner = work_ahead(
        Squares(), listed, ([n] for n in range(9)), workers=1, pin_memory=False, files=no_files
    )
    assert next(inner) == [0]
    assert len(multiprocessing.active_children()) == 3
    outer.close()
    assert len(multiprocessing.active_children()) == 1
    assert [found for (found,) in inner] == [n**2 for n in range(1, 9)]


def test_a_list_that_ends_every_worker_ends_the_run() -> None:
    class Deadly:
        def __getitem__(self, number: int) -> int:
            if number == 3:
                os._exit(7)
            return number

    losses: list[str] = []
    made = work_ahead(
        Deadly(),
        listed,
        [[n] for n in range(6)],
        workers=2,
        pin_memory=False,
        files=no_files,
        on_loss=lambda reason, _: losses.append(reason),
    )
    assert [next(made) for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(WorkerError, match=r"status 7, 4 times at the same batch.*image\.jpg"):
        next(made)
    assert losses == ["a process that prepares images was ended with status 7"] * 3
    assert multiprocessing.active_children() == []
