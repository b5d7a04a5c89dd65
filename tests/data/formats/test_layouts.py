"""The same photographs in every layout are read alike."""

from pathlib import Path

import pytest
from layouts import LAYOUTS, NAMELESS, SPLITS, Photo, photos

from multibox.data.check.split_checks import roles
from multibox.data.formats.layouts import open_dataset, unread_formats
from multibox.data.splits.draw import pool
from multibox.errors import DataError

LISTED = {"voc-lists", "voc-year", "voc-lists.zip"}
"""Layouts with lists of images, which keep their order."""


@pytest.fixture(scope="module")
def raccoons(shared: Path) -> list[Photo]:
    return photos(shared)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, raccoons: list[Photo], tmp_path: Path) -> None:
    root = tmp_path / name
    LAYOUTS[name](root, raccoons[::-1])
    folder = open_dataset(root)
    assert unread_formats(open_dataset(root)) == ()
    for split in folder.splits:
        paths = [item.image_path for item in folder.read(split).annotations]
        by_name = {path.name: path for path in paths}
        written = [by_name[photo.name] for photo in raccoons[::-1] if photo.name in by_name]
        assert paths == (written if name in LISTED else sorted(paths))
    dataset = folder.read(pool(folder.splits))
    assert dataset.faults == ()
    found = {item.image_path.name: item for item in dataset.annotations}
    assert found.keys() == {photo.name for photo in raccoons}
    classes = dataset.classes
    if name in NAMELESS:
        classes = tuple(("large raccoon", "raccoon")[int(number) - 1] for number in classes)
    assert set(classes) == {"large raccoon", "raccoon"}
    for photo in raccoons:
        item = found[photo.name]
        assert (item.width_px, item.height_px) == (photo.width, photo.height)
        read = sorted(
            (classes[label], *box)
            for label, box in zip(item.labels.tolist(), item.boxes_px.tolist(), strict=True)
        )
        written = sorted((of, *box) for of, box in photo.objects)
        assert [one[0] for one in read] == [one[0] for one in written]
        for one, other in zip(read, written, strict=True):
            assert one[1:] == pytest.approx(other[1:], abs=0.01)
    # A layout has all splits or none.
    if len(folder.splits) > 1:
        assert {role for split in folder.splits for role in roles(split)} == set(SPLITS)
        for split in folder.splits:
            ids = {item.image_path.name for item in folder.read(split).annotations}
            (role,) = roles(split)
            assert ids == {photo.name for photo in raccoons if photo.split == role}


def test_further_formats_are_named(raccoons: list[Photo], tmp_path: Path) -> None:
    for name in ("voc-beside", "csv-tensorflow"):
        LAYOUTS[name](tmp_path, raccoons)
    folder = open_dataset(tmp_path)
    assert (folder.format, unread_formats(folder)) == ("VOC XML", ("CSV",))


def test_archives_in_a_folder_are_not_read(raccoons: list[Photo], tmp_path: Path) -> None:
    """Not even opened, because a damaged one would make the images beside it unreadable."""
    (tmp_path / "photos.zip").touch()
    with pytest.raises(DataError, match=r"to read an archive, name it: .*photos\.zip"):
        open_dataset(tmp_path)
    LAYOUTS["voc-beside"](tmp_path, raccoons)
    assert open_dataset(tmp_path).format == "VOC XML"
