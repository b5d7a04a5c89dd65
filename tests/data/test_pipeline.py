import multiprocessing
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.commands.demo.dataset import draw_dataset
from multibox.config import AugmentationConfig
from multibox.data.formats.voc import read_voc
from multibox.data.pipeline import (
    PlainExamples,
    TrainingExamples,
    batches,
    training_numbers,
    without_difficult,
)
from multibox.data.workers import one_ahead
from multibox.errors import DataError
from multibox.structures import Batch, Matches, Targets


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "data"
    draw_dataset(folder, train_images=7, test_images=3)
    return folder


def examples(folder: Path, seed: int = 0) -> TrainingExamples:
    dataset = read_voc(folder, "trainval")
    return TrainingExamples(dataset.annotations, (48, 64), AugmentationConfig(), seed)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.images, *batch.targets, *batch.matches, batch.samples, batch.indices]


def one_each(targets: Targets) -> Matches:
    """Matches object n of each image to default box n."""
    boxes = torch.arange(targets.valid.shape[1]) * targets.valid
    return Matches(boxes, (targets.labels + 1) * targets.valid, 2 * targets.boxes)


def load(folder: Path, steps: range, workers: int) -> list[Batch]:
    numbers = training_numbers(steps, batch_size=4, rank=0, world_size=1)
    return list(
        batches(examples(folder), numbers, workers=workers, pin_memory=False, match=one_each)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_the_first_step_alter_nothing(folder: Path, workers: int) -> None:
    alone = load(folder, range(6), workers=0)
    together = load(folder, range(2, 6), workers=workers)
    for one, other in zip(alone[2:], together, strict=True):
        for a, b in zip(tensors(one), tensors(other), strict=True):
            assert torch.equal(a, b)
        for a, b in zip(one.matches, one_each(one.targets), strict=True):
            assert torch.equal(a, b)


def test_workers_need_not_be_how_python_starts_processes(folder: Path) -> None:
    """Python 3.14 no longer forks them of itself."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        (found,) = load(folder, range(1), workers=1)
    finally:
        multiprocessing.set_start_method(before, force=True)
    (expected,) = load(folder, range(1), workers=0)
    assert torch.equal(found.images, expected.images)


def test_batches_of_workers_stay_as_they_are_when_later_ones_are_made(folder: Path) -> None:
    """Although workers use the same memory again: here four times over, for both of them."""
    numbers = training_numbers(range(21), batch_size=4, rank=0, world_size=1)
    loaded = batches(examples(folder), numbers, workers=2, pin_memory=False)
    kept = [(batch, batch.images.clone()) for batch in loaded]
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)
    addresses = {batch.images.data_ptr() for batch, _ in kept}
    assert len(addresses) == len(kept)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_batches_are_the_same(folder: Path, workers: int) -> None:
    numbers = training_numbers(range(3), batch_size=4, rank=0, world_size=1)
    loaded = batches(examples(folder), numbers, workers=workers, pin_memory=True, match=one_each)
    for pinned, plain in zip(loaded, load(folder, range(3), workers=0), strict=True):
        for a, b in zip(tensors(pinned), tensors(plain), strict=True):
            # PyTorch does not pin empty tensors.
            assert a.is_pinned() or not a.numel()
            assert torch.equal(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_last_batch_may_be_smaller(folder: Path, workers: int) -> None:
    plain = PlainExamples(read_voc(folder, "trainval").annotations, (48, 64))
    loaded = batches(plain, [[0, 1, 2, 3], [4, 5, 6]], workers=workers, pin_memory=False)
    assert [batch.images.shape[0] for batch in loaded] == [4, 3]
    assert list(batches(plain, [], workers=workers, pin_memory=False)) == []


def test_samples_are_the_same_one_by_one_and_many_at_once(folder: Path) -> None:
    line = examples(folder)
    for number, made in enumerate(line.make(range(6))):
        alone = line[number]
        assert made[4:] == alone[4:]
        for a, b in zip(made[:4], alone[:4], strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_item_is_made_while_the_one_before_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number
        raise DataError("was the last", kind="unreadable")

    ahead = one_ahead(items())
    for number in range(4):
        assert next(ahead) == number
        assert made[min(number + 1, 3)].wait(timeout=10)
        assert not any(event.is_set() for event in made[number + 2 :])
    with pytest.raises(DataError, match="was the last"):
        next(ahead)


def test_every_epoch_shows_every_image_once_in_another_order(folder: Path) -> None:
    line = examples(folder)
    orders = [[line[7 * epoch + n].place for n in range(7)] for epoch in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_seeds_and_samples_are_augmented_differently(folder: Path) -> None:
    line = examples(folder)
    place = line[0].place
    again = next(n for n in range(7, 14) if line[n].place == place)
    assert not np.array_equal(line[0].image, line[again].image)
    assert not np.array_equal(line[0].image, examples(folder, seed=1)[0].image)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_samples_of_a_step(world_size: int) -> None:
    shares = [
        list(training_numbers(range(5, 8), batch_size=8, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    together = [[*chain(*parts)] for parts in zip(*shares, strict=True)]
    assert together == [list(range(8 * step, 8 * step + 8)) for step in range(5, 8)]


def test_targets_are_padded_to_the_fullest_image(folder: Path) -> None:
    dataset = read_voc(folder, "trainval")
    plain = PlainExamples(dataset.annotations, (48, 64))
    (batch,) = batches(plain, [list(range(7))], workers=0, pin_memory=False)
    counts = [len(annotation.labels) for annotation in dataset.annotations]
    assert batch.targets.valid.sum(dim=1).tolist() == counts
    assert batch.targets.boxes.shape == (7, max(counts), 4)
    for row, annotation in enumerate(dataset.annotations):
        found = batch.targets.boxes[row, : counts[row]].numpy()
        np.testing.assert_array_equal(found, annotation.boxes)
    assert not batch.targets.boxes[~batch.targets.valid].any()
    assert batch.images.shape == (7, 3, 48, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_difficult_objects_can_be_left_out(folder: Path) -> None:
    plain = PlainExamples(read_voc(folder, "trainval").annotations, (48, 64))
    (batch,) = batches(plain, [list(range(7))], workers=0, pin_memory=False)
    targets = batch.targets._replace(difficult=batch.targets.labels == 0)
    left = without_difficult(targets)
    assert torch.equal(left.valid, batch.targets.valid & (batch.targets.labels != 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_whoever_reads_it(tmp_path: Path, workers: int) -> None:
    draw_dataset(tmp_path / "data", train_images=4, test_images=1)
    line = examples(tmp_path / "data")
    victim = line.annotations[line[5].place].image_path
    victim.write_bytes(victim.read_bytes()[:500])
    numbers = training_numbers(range(4), batch_size=2, rank=0, world_size=1)
    with pytest.raises(DataError, match=victim.name):
        list(batches(line, numbers, workers=workers, pin_memory=False))


def test_an_image_that_changed_its_size_is_refused(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "data", train_images=2, test_images=1)
    line = examples(tmp_path / "data")
    first, second = (annotation.image_path for annotation in line.annotations)
    first.write_bytes(second.read_bytes())
    errors = [line[n] for n in range(2)]
    assert sum(isinstance(error, DataError) and "changed" in str(error) for error in errors) == 1
