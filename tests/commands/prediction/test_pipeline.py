"""Batches are computed at once, and their results come in order."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from multibox.commands.predict import no_addresses
from multibox.commands.prediction.items import ImageRef
from multibox.commands.prediction.pipeline import How, Loaded, Refused, detect_batches
from multibox.commands.prediction.selection import choose
from multibox.detector import Detector


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def batches(count: int) -> Iterator[list[Loaded | Refused]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        ref = ImageRef(str(number), str(number))
        yield [Loaded(ref, str(number), pixels, pixels, 64, 64)]


def how(detector: Detector) -> How:
    return How(choose(detector.classes, 0.1), 1, flip=False, fetch=no_addresses)


def test_results_are_in_order_and_equal(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [
        detector.detect(item.resized, score_threshold=0.1)
        for (item,) in batches(20)
        if isinstance(item, Loaded)
    ]
    callers, shares, run = set[int](), list[int](), detector.detect_batch

    def detect(*arguments: object, **options: object) -> object:
        callers.add(threading.get_ident())
        shares.append(torch.get_num_threads())
        return run(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(detector, "detect_batch", detect)
    found = [
        result for batch in detect_batches(detector, batches(20), how(detector)) for result in batch
    ]
    assert [result.image.key for result in found if not isinstance(result, Refused)] == [
        str(number) for number in range(20)
    ]
    for result, one in zip(found, expected, strict=True):
        assert not isinstance(result, Refused)
        assert torch.equal(result.found.scores, one.scores)
    assert threading.get_ident() not in callers
    assert set(shares) == {1}
    assert torch.get_num_threads() == 3
    # Threads that start later have all threads again.
    late = list[int]()
    thread = threading.Thread(target=lambda: late.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert late == [3]


@pytest.mark.parametrize(("count", "at_once"), [(1, True), (5, False)])
def test_a_single_batch_and_live_frames_have_all_threads(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, count: int, at_once: bool
) -> None:
    callers, run = set[int](), detector.detect_batch

    def detect(*arguments: object, **options: object) -> object:
        callers.add(threading.get_ident())
        return run(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(detector, "detect_batch", detect)
    found = list(detect_batches(detector, batches(count), how(detector), at_once=at_once))
    assert len(found) == count
    assert callers == {threading.get_ident()}


def test_an_error_ends_it_and_restores_the_threads(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise ValueError("x")

    monkeypatch.setattr(detector, "detect_batch", fail)
    with pytest.raises(ValueError, match="x"):
        list(detect_batches(detector, batches(9), how(detector)))
    assert torch.get_num_threads() == 3
