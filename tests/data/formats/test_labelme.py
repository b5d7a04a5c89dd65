"""LabelMe's JSON: values, names of images, shapes, and that every fault is named."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

WIDTH, HEIGHT = 100, 50
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))

Content = dict[str, Any]


def shape(kind: str | None = "rectangle", *points: list[float], **changes: object) -> Content:
    corners = points or ([10, 5.5], [40, 45])
    fields: Content = {"label": "dog", "points": list(corners), "group_id": None, "flags": {}}
    return fields | {"shape_type": kind} | changes


def content(*shapes: object, **changes: object) -> Content:
    fields = {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": "a.jpg"}
    return fields | {"imageData": None, "imageHeight": HEIGHT, "imageWidth": WIDTH} | changes


def lay_out(root: Path, written: Content | str, name: str = "a.json", image: str = "a.jpg") -> Path:
    for file, data in (
        (root / name, written if isinstance(written, str) else json.dumps(written)),
        (root / image, IMAGE),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def read(root: Path, *shapes: object, **options: Any) -> Dataset:
    return read_dataset(lay_out(root, content(*shapes)), "all", **options)


def kinds(dataset: Dataset) -> dict[str, str]:
    return {note.kind: note.text.split()[0] for note in dataset.notes}


def test_what_is_read(tmp_path: Path) -> None:
    lay_out(tmp_path, content(shape(), shape(label=" cat ", difficult=True)))
    lay_out(tmp_path, content(imagePath="b.jpg", imageWidth=None), "b.json", "b.jpg")
    assert open_dataset(tmp_path).format == "LabelMe"
    dataset = read_dataset(tmp_path, "all")
    assert dataset.classes == ("cat", "dog")
    first, second = dataset.annotations
    assert (first.image_id, first.width_px, first.height_px) == ("a", WIDTH, HEIGHT)
    assert first.boxes_px.tolist() == [[10, 5.5, 40, 45]] * 2
    assert first.labels.tolist() == [1, 0]
    assert first.difficult.tolist() == [False, True]
    assert (second.image_id, len(second.labels)) == ("b", 0)
    assert not dataset.faults
    assert kinds(dataset) == {"size-missing": "1"}


@pytest.mark.parametrize(
    "points",
    [
        ([10, 5.5], [40, 45]),
        ([40, 45], [10, 5.5]),
        ([40, 5.5], [10, 45]),
        ([10, 5.5], [40, 5.5], [40, 45], [10, 45]),
    ],
)
def test_corners_of_rectangles_come_in_any_order(tmp_path: Path, points: Any) -> None:
    dataset = read(tmp_path, shape("rectangle", *points))
    assert dataset.annotations[0].boxes_px.tolist() == [[10, 5.5, 40, 45]]
    assert kinds(dataset) == {}


SHAPES = {
    "polygon": (shape("polygon", [30, 20], [50, 20.5], [41, 40]), [30, 20, 50, 40]),
    "polygon of old versions": (shape(None, [30, 20], [50, 20], [41, 40]), [30, 20, 50, 40]),
    "circle": (shape("circle", [50, 25], [53, 29]), [45, 20, 55, 30]),
    "circle over the edge": (shape("circle", [3, 25], [3, 35]), [0, 15, 13, 35]),
    "line of several points": (shape("linestrip", [30, 20], [50, 21], [41, 40]), [30, 20, 50, 40]),
    "points": (shape("points", [30, 20], [50, 21], [41, 40]), [30, 20, 50, 40]),
    "mask": (shape("mask", [30, 20], [50, 40], mask="iVBORw0KGgo="), [30, 20, 50, 40]),
    "rotated": (
        shape("rotation", [40, 10], [50, 20], [40, 30], [30, 20], direction=0.785),
        [30, 10, 50, 30],
    ),
}


@pytest.mark.parametrize(("written", "box"), SHAPES.values(), ids=SHAPES.keys())
def test_other_shapes_get_the_box_around_them(
    tmp_path: Path, written: Content, box: list[float]
) -> None:
    dataset = read(tmp_path, written)
    assert dataset.annotations[0].boxes_px.tolist() == [box]
    clipped = {"box-clipped": "1"} if box[0] == 0 else {}
    assert kinds(dataset) == clipped | {"box-from-outline": "1"}


@pytest.mark.parametrize(
    "written",
    [
        shape("point", [30, 20]),
        shape("line", [30, 20], [50, 40]),
        shape("linestrip", [30, 20], [50, 20]),
        shape("points", [30, 20]),
    ],
)
def test_shapes_without_an_area_are_left_out_with_a_note(tmp_path: Path, written: Content) -> None:
    dataset = read(tmp_path, written, shape())
    assert dataset.annotations[0].boxes_px.tolist() == [[10, 5.5, 40, 45]]
    assert kinds(dataset) == {"shape-without-box": "1"}
    assert not dataset.faults


def test_outlines_of_one_group_are_one_object(tmp_path: Path) -> None:
    parts = [
        shape("polygon", [10, 10], [20, 10], [20, 20], group_id=1),
        shape("rectangle", [60, 5], [70, 25], group_id=1),
        shape("polygon", [40, 30], [50, 30], [50, 45], group_id=1),
        shape("polygon", [40, 30], [50, 30], [50, 45], group_id=1, label="cat"),
        shape("polygon", [40, 30], [50, 30], [50, 45], group_id=2),
    ]
    dataset = read(tmp_path, *parts)
    assert dataset.annotations[0].boxes_px.tolist() == [
        [10, 10, 50, 45],
        [60, 5, 70, 25],
        [40, 30, 50, 45],
        [40, 30, 50, 45],
    ]
    assert kinds(dataset) == {"box-from-outline": "4", "box-joined": "1"}


PATHS = {
    "beside": ("a.json", "a.jpg", "a.jpg"),
    "folder": ("labels/a.json", "../images/a.jpg", "images/a.jpg"),
    "backslashes": ("labels/a.json", "..\\images\\a.jpg", "images/a.jpg"),
    "drive": ("a.json", "D:\\photos\\a.jpg", "pictures/a.jpg"),
    "absolute": ("a.json", "/home/someone/a.jpg", "a.jpg"),
    "other name": ("0001.json", "a.jpg", "a.jpg"),
    "no suffix": ("a.json", "a", "a.jpg"),
}


@pytest.mark.parametrize(("file", "name", "image"), PATHS.values(), ids=PATHS.keys())
def test_images_are_found(tmp_path: Path, file: str, name: str, image: str) -> None:
    lay_out(tmp_path, content(shape(), imagePath=name), file, image)
    (item,) = read_dataset(tmp_path, "all").annotations
    assert item.image_path == tmp_path / image


def test_the_folder_is_the_split_and_not_the_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        written = content(shape(), imagePath="test_7.jpg")
        lay_out(tmp_path, written, f"{split}/test_7.json", f"{split}/test_7.jpg")
    assert known_splits(tmp_path) == ("train", "val")
    (item,) = read_dataset(tmp_path, "val").annotations
    assert item.image_path == tmp_path / "val" / "test_7.jpg"


def test_images_inside_annotations_are_skipped_but_must_exist_as_files(tmp_path: Path) -> None:
    data = base64.b64encode(bytes(4_000_000)).decode()
    for first in (True, False):
        written = content(shape(), imageData=data)
        if first:
            written = {"imageData": data} | written
        lay_out(tmp_path, written)
        assert read_dataset(tmp_path, "all").annotations[0].boxes_px.tolist() == [[10, 5.5, 40, 45]]
    lay_out(tmp_path, content(shape(), imagePath="c.jpg"), "c.json", "c.jpg")
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DataError, match="Its copy in imageData is not read: save it as a file"):
        read_dataset(tmp_path, "all")
    (fault,) = read_dataset(tmp_path, "all", on_bad="skip").faults
    assert fault.kind == "image-missing"


@pytest.mark.parametrize("data", ['"', "x", '\\"', "a\\", 'a", "imageData": "b'])
def test_hostile_copies_of_images_change_nothing_else(tmp_path: Path, data: str) -> None:
    lay_out(tmp_path, json.dumps(content(shape(), imageData=data)))
    assert len(read_dataset(tmp_path, "all").annotations[0].labels) == 1


def test_other_json_beside_them_is_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, content(shape()))
    (tmp_path / "classes.json").write_text('{"shapes": 3}')
    (tmp_path / "list.json").write_text("[1]")
    dataset = read_dataset(tmp_path, "all")
    assert len(dataset) == 1
    assert kinds(dataset) == {"json-other": "2"}


def test_many_files_are_recognised_by_a_few(tmp_path: Path) -> None:
    for number in range(60):
        written = content(shape(), imagePath=f"{number}.jpg")
        lay_out(tmp_path, written, f"{number}.json", f"{number}.jpg")
    dataset = read_dataset(tmp_path, "all")
    names = sorted(f"{number}.jpg" for number in range(60))
    assert [item.image_path.name for item in dataset.annotations] == names


BAD_SHAPES = {
    "no object": (7, "json-form", "is not a JSON object"),
    "no label": (shape(label=None), "text-malformed", "its label is None"),
    "empty label": (shape(label=" "), "text-malformed", "its label is ' '"),
    "odd type": (shape(shape_type=[1]), "text-malformed", "its shape_type is [1]"),
    "no points": (shape(points=[]), "outline-malformed", "its points are []"),
    "odd points": (shape(points=[[1, 2, 3]]), "outline-malformed", "not pairs of plain numbers"),
    "text": (shape(points=[["1", 2]]), "outline-malformed", "not pairs of plain numbers"),
    "NaN": (shape(points=[[float("nan"), 2]]), "outline-malformed", "not pairs of plain numbers"),
    "300 digits": (shape(points=[[10**300, 2]]), "outline-malformed", "not pairs of plain"),
    "half a circle": (shape("circle", [1, 2]), "outline-malformed", "its circle has 1 points"),
    "empty": (shape("rectangle", [1, 2], [1, 20]), "box-empty", "is empty"),
    "outside": (shape("rectangle", [1, 2], [1000, 20]), "box-outside", "leaves the image"),
    "a circle outside": (shape("circle", [200, 25], [205, 25]), "box-empty", "is empty"),
    "fractions": (shape("rectangle", [0.1, 0.2], [0.5, 0.6]), "box-fractions", "like fractions"),
    "odd flag": (shape(difficult="maybe"), "difficult-malformed", "its difficult is 'maybe'"),
}


@pytest.mark.parametrize(("bad", "kind", "reason"), BAD_SHAPES.values(), ids=BAD_SHAPES.keys())
def test_bad_shapes_are_faults(tmp_path: Path, bad: object, kind: str, reason: str) -> None:
    dataset = read(tmp_path, shape(), bad, shape(label="cat"), on_bad="skip")
    (fault,) = dataset.faults
    assert fault.kind == kind
    assert str(fault).startswith(f"{tmp_path / 'a.json'}, shapes[1]")
    assert reason in fault.reason
    assert len(dataset.annotations[0].labels) == 2
    with pytest.raises(DataError, match="1 fault\n"):
        read(tmp_path, bad)


BAD_FILES = {
    "cut short": (json.dumps(content(shape()))[:-20], "json-malformed", "is not JSON"),
    "deep": ('{"shapes": ' + "[" * 200_000, "json-malformed", "is not JSON"),
    "no name": (content(imagePath=None), "text-malformed", "its imagePath is None"),
    "missing": (content(imagePath="x.jpg"), "image-missing", "'x.jpg' does not exist"),
    "twice": (content(imagePath="good.jpg"), "listed-twice", "is listed already, in"),
    "other size": (content(imageWidth=50), "size-differs", "its size is 50 x 50, but"),
    "odd size": (content(imageWidth="wide"), "number-malformed", "its imageWidth is 'wide'"),
}


@pytest.mark.parametrize(("written", "kind", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_faults(
    tmp_path: Path, written: Content | str, kind: str, reason: str
) -> None:
    lay_out(tmp_path, content(shape(), imagePath="good.jpg"), "good.json", "good.jpg")
    lay_out(tmp_path, written, "other.json")
    dataset = read_dataset(tmp_path, "all", on_bad="skip")
    (fault,) = dataset.faults
    assert fault.kind == kind
    assert fault.file == tmp_path / "other.json"
    assert reason in fault.reason
    assert [item.image_id for item in dataset.annotations] == ["good"]


def test_annotations_alone(tmp_path: Path) -> None:
    lay_out(tmp_path, content(shape()))
    (tmp_path / "a.jpg").unlink()
    (item,) = read_dataset(tmp_path, "all", images="ignore").annotations
    assert (item.width_px, item.boxes_px.tolist()) == (WIDTH, [[10, 5.5, 40, 45]])
    with pytest.raises(DataError, match="none of the 1 images of the split 'all' exists in"):
        read_dataset(tmp_path, "all")
