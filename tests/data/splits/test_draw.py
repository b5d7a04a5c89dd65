"""Drawn splits: shares, seeds, stability, near-duplicates, classes."""

from pathlib import Path

import numpy as np
import pytest

from multibox.data.dataset import Annotation, Dataset
from multibox.data.splits.draw import draw, parse_shares, pool, take
from multibox.errors import ConfigError, DataError
from multibox.rng import stream

SHARES = parse_shares("80/10/10")


def dataset(count: int, labels: dict[int, int] | None = None) -> Dataset:
    """Images of the class "a", except those with a label of their own."""
    annotations = tuple(
        Annotation(
            f"{number:05}",
            Path(f"{number:05}.jpg"),
            50,
            50,
            np.array([[1, 1, 9, 9]], np.float32),
            np.array([(labels or {}).get(number, 0)]),
            np.zeros(1, np.bool_),
        )
        for number in range(count)
    )
    return Dataset("all", ("a", "b", "c"), annotations)


def different(count: int) -> np.ndarray:
    """Thumbnails that do not resemble each other."""
    vectors = stream(0, "thumbnails").normal(0, 1, (count, 576)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def places(ids: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {image: split for split, images in ids.items() for image in images}


def test_shares_and_seeds() -> None:
    drawn = [draw(dataset(4000), different(4000), SHARES, seed).ids for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for ids in drawn:
        assert sorted(image for images in ids.values() for image in images) == [
            item.image_id for item in dataset(4000).annotations
        ]
        # Five standard deviations of a binomial distribution.
        assert abs(len(ids["test"]) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
        assert abs(len(ids["val"]) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5


def test_images_keep_their_split_when_others_are_added() -> None:
    vectors = different(500)
    few = places(draw(dataset(300), vectors[:300], SHARES, 7).ids)
    many = places(draw(dataset(500), vectors, SHARES, 7).ids)
    assert all(many[image] == split for image, split in few.items())


@pytest.mark.parametrize("seed", range(20))
def test_near_duplicates_are_never_split(seed: int) -> None:
    vectors = different(120)
    vectors[100:] = vectors[:20]
    found = draw(dataset(120), vectors, SHARES, seed)
    place = places(found.ids)
    assert all(place[f"{number:05}"] == place[f"{number + 100:05}"] for number in range(20))
    assert [note.text for note in found.notes] == [
        "40 near-duplicate images in 20 groups were kept together"
    ]


@pytest.mark.parametrize("seed", range(20))
def test_no_split_is_empty_and_training_has_every_class(seed: int) -> None:
    for count in (3, 4, 10):
        ids = draw(dataset(count), different(count), SHARES, seed).ids
        assert all(ids.values())
    rare = dataset(60, {11: 1, 12: 1, 50: 2})
    ids = draw(rare, different(60), SHARES, seed).ids
    assert "00050" in ids["train"]
    assert {"00011", "00012"} & set(ids["train"])


@pytest.mark.parametrize("seed", range(20))
def test_a_class_of_one_image_does_not_empty_its_split(seed: int) -> None:
    ids = draw(dataset(5, {2: 1}), different(5), SHARES, seed).ids
    assert all(ids.values())
    assert "00002" in ids["train"]
    with pytest.raises(DataError, match="those of the training split must show every class"):
        draw(dataset(4, {1: 1, 2: 2}), different(4), SHARES, seed)


def test_images_of_a_fixed_camera_are_split_nevertheless() -> None:
    base = different(1)
    vectors = base + 0.005 * stream(1, "noise").normal(0, 1, (200, 576)).astype(np.float32)
    vectors[150:160] = vectors[0]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    found = draw(dataset(200), vectors, SHARES, 0)
    assert "fixed camera" in found.notes[-1].text
    place = places(found.ids)
    assert len({place[f"{number:05}"] for number in (0, *range(150, 160))}) == 1
    assert all(found.ids.values())


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"too few images that differ \(2\): each of the 3 splits"):
        draw(dataset(2), different(2), SHARES, 0)
    same = np.repeat(different(1), 9, axis=0)
    with pytest.raises(DataError, match=r"too few images that differ \(1\)"):
        draw(dataset(9), same, SHARES, 0)


@pytest.mark.parametrize("text", ["80", "80/20/10/5", "a/b", "80/-20", "80/0/20", "nan/1", "", "/"])
def test_shares_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="two or three numbers above 0"):
        parse_shares(text)


def test_shares_are_normalised() -> None:
    assert parse_shares("8/1/1") == {"train": 0.8, "val": 0.1, "test": 0.1}
    assert parse_shares("3/1") == {"train": 0.75, "val": 0.25}


def test_pooled_splits_hold_each_image_once() -> None:
    assert pool(("test", "train", "trainval", "val")) == "test+trainval"
    years = ("2007:test", "2007:train", "2007:trainval", "2012:train", "2012:val")
    assert pool(years) == "2007:test+2007:trainval+2012:train+2012:val"
    assert pool(("train", "valid")) == "train+valid"


def test_an_image_that_has_gone_is_named() -> None:
    assert [item.image_id for item in take(dataset(5), ["00003", "00001"], "val").annotations] == [
        "00001",
        "00003",
    ]
    with pytest.raises(DataError, match="lacks the image '00007' of the split 'val', and 1 more"):
        take(dataset(5), ["00001", "00008", "00007"], "val")
