"""Samples have the same bits with decoded images and without, whatever befalls their file."""

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch

from multibox.commands.demo.dataset import draw_dataset
from multibox.config import AugmentationConfig
from multibox.data import decoded
from multibox.data.dataset import Dataset
from multibox.data.decoded import NAME, DecodedImages, decode_into, find_decoded
from multibox.data.formats.voc import read_voc
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.errors import DataError

ALL = 1 << 30
IMAGES = 7


class Place(NamedTuple):
    """A dataset, and the folder of a run."""

    dataset: Dataset
    run: Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    draw_dataset(tmp_path / "data", train_images=IMAGES, test_images=1)
    (tmp_path / "run").mkdir()
    return Place(read_voc(tmp_path / "data", "trainval"), tmp_path / "run")


def decode(place: Place, limit_bytes: int = ALL) -> tuple[DecodedImages | None, list[str]]:
    said: list[str] = []
    return decode_into(place.run, place.dataset, limit_bytes=limit_bytes, say=said.append), said


def samples(
    place: Place, images: DecodedImages | None, workers: int = 0
) -> list[list[torch.Tensor]]:
    line = TrainingExamples(place.dataset.annotations, (48, 64), AugmentationConfig(), 0, images)
    numbers = training_numbers(range(4), batch_size=5, rank=0, world_size=1)
    loaded = batches(line, numbers, workers=workers, pin_memory=False)
    return [[batch.images, *batch.targets] for batch in loaded]


def assert_same_samples(place: Place, images: DecodedImages | None, workers: int = 0) -> None:
    for one, other in zip(samples(place, None), samples(place, images, workers), strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def stored(place: Place, images: DecodedImages | None) -> list[bool]:
    assert images is not None
    return [images.read(n, a) is not None for n, a in enumerate(place.dataset.annotations)]


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same(place: Place, workers: int) -> None:
    images, said = decode(place)
    assert stored(place, images) == [True] * IMAGES
    assert f"{IMAGES} of {IMAGES} images" in said[0]
    assert_same_samples(place, images, workers)


def test_decoded_images_are_really_used(place: Place) -> None:
    """Without their files, samples can come from nowhere else."""
    expected = samples(place, None)
    images, _ = decode(place)
    for annotation in place.dataset.annotations:
        annotation.image_path.unlink()
    for one, other in zip(expected, samples(place, images), strict=True):
        assert torch.equal(one[0], other[0])


def test_the_first_images_are_stored_where_the_limit_does_not_admit_all(place: Place) -> None:
    annotations = place.dataset.annotations
    three = sum(a.width_px * a.height_px * 3 for a in annotations[:3])
    for limit, count in [(three, 3), (three - 1, 2)]:
        images, _ = decode(place, limit)
        assert stored(place, images) == [True] * count + [False] * (IMAGES - count)
        assert_same_samples(place, images)
    assert decode(place, 10) == (None, [])


def test_a_run_that_goes_on_finds_its_file(place: Place) -> None:
    decode(place)
    before = (place.run / NAME).stat()
    images, said = decode(place)
    assert (place.run / NAME).stat().st_mtime_ns == before.st_mtime_ns
    assert said == []
    assert stored(place, images) == [True] * IMAGES


def touch(place: Place) -> None:
    os.utime(place.dataset.annotations[2].image_path, (1, 1))


def exchange(place: Place) -> None:
    """Another image of the same size in pixels, as long after 1970 as the one before."""
    path = place.dataset.annotations[0].image_path
    status = path.stat()
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def tear(place: Place) -> None:
    os.truncate(place.run / NAME, (place.run / NAME).stat().st_size - 1)


def put_a_foreign_file(place: Place) -> None:
    (place.run / NAME).write_bytes(b'{"key": 1}' + bytes(100))


def put_a_foreign_index(place: Place) -> None:
    index = b"[1]"
    (place.run / NAME).write_bytes(index + decoded._END.pack(len(index), decoded._FORM))


def leave_a_part(place: Place) -> None:
    """As a kill does."""
    (place.run / NAME).rename(place.run / f".{NAME}.partial")


@pytest.mark.parametrize(
    "harm", [touch, exchange, tear, put_a_foreign_file, put_a_foreign_index, leave_a_part]
)
def test_a_file_that_is_torn_foreign_or_of_other_images_is_made_anew(
    place: Place, harm: Callable[[Place], None]
) -> None:
    decode(place)
    harm(place)
    assert find_decoded(place.run, place.dataset, limit_bytes=ALL) is None
    images, said = decode(place)
    assert len(said) == 1
    assert stored(place, images) == [True] * IMAGES
    assert_same_samples(place, images)
    assert [path.name for path in place.run.iterdir()] == [NAME]


def test_damaged_pixels_are_decoded_instead(place: Place) -> None:
    decode(place)
    content = bytearray((place.run / NAME).read_bytes())
    content[1000] ^= 16
    (place.run / NAME).write_bytes(content)
    images, _ = decode(place)
    assert stored(place, images) == [False] + [True] * (IMAGES - 1)
    assert_same_samples(place, images)


@pytest.mark.parametrize("free", [0, 1 << 40])
def test_a_full_disk_is_said_once_and_alters_nothing(
    place: Place, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the space is known to be missing or runs out while writing."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    monkeypatch.setattr(os, "pwrite", full)
    images, said = decode(place)
    assert images is None
    assert ["No space left" in line for line in said] == [False, True]
    assert not list(place.run.iterdir())


def test_an_unreadable_image_is_named_when_its_turn_comes(place: Place) -> None:
    victim = place.dataset.annotations[4].image_path
    victim.write_bytes(victim.read_bytes()[:500])
    images, _ = decode(place)
    assert stored(place, images) == [n != 4 for n in range(IMAGES)]
    with pytest.raises(DataError, match=victim.name):
        samples(place, images)


def test_a_process_that_is_not_forked_opens_the_file_itself(place: Place) -> None:
    images, _ = decode(place)
    assert stored(place, pickle.loads(pickle.dumps(images))) == [True] * IMAGES


def test_pixels_are_the_decoders(place: Place) -> None:
    images, _ = decode(place)
    assert images is not None
    for number, annotation in enumerate(place.dataset.annotations):
        found = images.read(number, annotation)
        expected = decoded.read_image(annotation.image_path)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_pixels_of_another_version_of_a_decoder_are_not_used(
    place: Place, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(place)
    assert find_decoded(place.run, place.dataset, limit_bytes=ALL) is not None
    real = decoded.version
    monkeypatch.setattr(decoded, "version", lambda name: "0" if name == decoder else real(name))
    assert find_decoded(place.run, place.dataset, limit_bytes=ALL) is None
