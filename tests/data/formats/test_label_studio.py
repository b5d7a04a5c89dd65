"""Label Studio's JSON: values, names of images, regions, and that every fault is named."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

WIDTH, HEIGHT = 200, 50
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))

Content = dict[str, Any]


def rectangle(*labels: str, **changes: object) -> Content:
    value = {"x": 10, "y": 20.5, "width": 30, "height": 40, "rotation": 0}
    return region({"rectanglelabels": list(labels or ("dog",))} | value | changes)


def region(value: object, kind: str | None = "rectanglelabels", **changes: object) -> Content:
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    fields = {"id": "abc", "from_name": "label", "to_name": "image", "type": kind}
    return sizes | fields | {"value": value} | changes


def annotation(*regions: object, **changes: object) -> Content:
    return {"id": 7, "completed_by": 1, "was_cancelled": False, "result": list(regions)} | changes


def task(*annotations: object, name: str = "/data/upload/1/1a2b3c4d-a.jpg", **more: Any) -> Content:
    fields = {"id": 3, "annotations": list(annotations), "predictions": [annotation(rectangle())]}
    return fields | {"data": {"image": name}} | more


def minimal(*regions: object, name: str = "/data/upload/1/1a2b3c4d-a.jpg", **more: Any) -> Content:
    """A row of JSON-MIN."""
    sizes = {"original_width": WIDTH, "original_height": HEIGHT}
    values = [one["value"] | sizes for one in regions]
    fields = {"image": name, "id": 3, "label": values, "annotator": 1, "annotation_id": 7}
    return fields | {"created_at": "2026-11-26T03:50:09.839Z", "lead_time": 4.2} | more


def lay_out(root: Path, written: object, name: str = "project-1.json", *images: str) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(written if isinstance(written, str) else json.dumps(written))
    for image in images or ("1a2b3c4d-a.jpg",):
        (root / "images" / image).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / image).write_bytes(IMAGE)
    return root


def read(root: Path, *regions: object, **options: Any) -> Dataset:
    return read_dataset(lay_out(root, [task(annotation(*regions))]), "all", **options)


def kinds(dataset: Dataset) -> dict[str, str]:
    return {note.kind: note.text.split()[0] for note in dataset.notes}


BOX = [20, 10.25, 80, 30.25]


@pytest.mark.parametrize(
    "written",
    [
        [task(annotation(rectangle("dog"), rectangle("cat", "dog")))],
        [minimal(rectangle("dog"), rectangle("cat", "dog"))],
        task(annotation(rectangle("dog"), rectangle("cat", "dog"))),
        annotation(rectangle("dog"), rectangle("cat", "dog"), task=task()),
    ],
    ids=["JSON", "JSON-MIN", "a task", "an annotation with its task"],
)
def test_what_is_read(tmp_path: Path, written: object) -> None:
    lay_out(tmp_path, written)
    assert open_dataset(tmp_path).format == "Label Studio"
    dataset = read_dataset(tmp_path, "all")
    assert dataset.classes == ("cat", "dog")
    (item,) = dataset.annotations
    assert item.image_path == tmp_path / "images" / "1a2b3c4d-a.jpg"
    assert (item.width_px, item.height_px) == (WIDTH, HEIGHT)
    assert item.boxes_px.tolist() == [BOX] * 3
    assert item.labels.tolist() == [1, 1, 0]
    assert kinds(dataset) == {}


NAMES = {
    "upload": ("/data/upload/1/1a2b3c4d-a.jpg", "1a2b3c4d-a.jpg"),
    "upload without the prefix": ("/data/upload/1/1a2b3c4d-a.jpg", "a.jpg"),
    "escaped": ("/data/upload/1/1a2b3c4d-r%C3%A4ccoon%201.jpg", "1a2b3c4d-r\xe4ccoon 1.jpg"),
    "local files": ("/data/local-files/?d=photos/a.jpg", "photos/a.jpg"),
    "local files on Windows": ("/data/local-files/?d=photos%5Ca.jpg", "photos/a.jpg"),
    "S3": ("s3://bucket/photos/a.jpg", "photos/a.jpg"),
    "address": ("https://example.org/photos/a.jpg?size=large", "a.jpg"),
    "file name": ("a.jpg", "a.jpg"),
    "no suffix": ("/a", "a"),
}


@pytest.mark.parametrize(("name", "image"), NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize("key", ["image", "img", "photo of something"])
def test_images_are_found(tmp_path: Path, key: str, name: str, image: str) -> None:
    data = {"text": "a dog.", "number": 7, key: name, "other": "x"}
    lay_out(tmp_path, [task(annotation(rectangle()), data=data)], "export.json", image)
    (item,) = read_dataset(tmp_path, "all").annotations
    assert item.image_path == tmp_path / "images" / image


def turned(degrees: float) -> list[float]:
    """The bounds of the rectangle of 60 x 20 pixels about its corner at (60, 10)."""
    at = math.radians(degrees)
    corners = np.array([[0, 0], [60, 0], [60, 20], [0, 20]])
    matrix = np.array([[math.cos(at), math.sin(at)], [-math.sin(at), math.cos(at)]])
    points = corners @ matrix + (60, 10)
    return [*points.min(axis=0), *points.max(axis=0)]


def points_of(*points: list[float]) -> Content:
    return region({"points": list(points), "polygonlabels": ["dog"]}, "polygonlabels")


ROTATED = {"x": 30, "y": 20, "width": 30, "height": 40}
ELLIPSE = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 20, "ellipselabels": ["dog"]}
SHAPES = {
    "polygon": (points_of([10, 20], [50, 20], [30, 90]), [20, 10, 100, 45], "box-from-outline"),
    "rotated by 30": (rectangle(**ROTATED | {"rotation": 30}), turned(30), "box-rotated"),
    "rotated by 90": (rectangle(**ROTATED | {"rotation": 90}), [40, 10, 60, 50], "box-clipped"),
    "rotated by 350": (rectangle(**ROTATED | {"rotation": 350}), turned(350), "box-clipped"),
    "ellipse": (region(ELLIPSE, "ellipselabels"), [80, 15, 120, 35], "box-from-outline"),
    "turned ellipse": (
        region(ELLIPSE | {"rotation": 90}, "ellipselabels"),
        [90, 5, 110, 45],
        "box-from-outline",
    ),
    "any labels": (
        region({"x": 10, "y": 20.5, "width": 30, "height": 40, "labels": ["dog"]}, "labels"),
        BOX,
        None,
    ),
}


@pytest.mark.parametrize(("written", "box", "note"), SHAPES.values(), ids=SHAPES.keys())
def test_other_shapes_get_the_box_around_them(
    tmp_path: Path, written: Content, box: list[float], note: str | None
) -> None:
    for content in ([task(annotation(written))], [minimal(written)]):
        dataset = read_dataset(lay_out(tmp_path, content), "all")
        expected = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]).tolist()
        assert dataset.annotations[0].boxes_px.tolist() == [pytest.approx(expected, abs=1e-4)]
        assert (note in kinds(dataset)) if note else not dataset.notes


def test_boxes_at_the_edge_are_not_counted_as_clipped(tmp_path: Path) -> None:
    third = 100 / 3
    dataset = read(tmp_path, rectangle(x=third, y=third, width=100 - third, height=100 - third))
    assert dataset.annotations[0].boxes_px[0, 2:].tolist() == [WIDTH, HEIGHT]
    assert kinds(dataset) == {}


def test_points_choices_and_texts_are_no_objects(tmp_path: Path) -> None:
    dot = {"x": 10, "y": 20, "width": 0.5, "keypointlabels": ["nose"]}
    others = [
        region(dot, "keypointlabels"),
        region({"choices": ["indoor"]}, "choices"),
        region({"text": ["a dog"]}, "textarea"),
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    dataset = read(tmp_path, *others, rectangle())
    assert dataset.annotations[0].boxes_px.tolist() == [BOX]
    assert kinds(dataset) == {"shape-without-box": "1"}
    row = minimal(rectangle()) | {"choice": ["indoor", "day"], "text": "a dog"}
    dataset = read_dataset(lay_out(tmp_path, [row]), "all")
    assert dataset.annotations[0].boxes_px.tolist() == [BOX]


def test_a_shape_and_its_label_may_be_two_regions(tmp_path: Path) -> None:
    shape = {"x": 10, "y": 20.5, "width": 30, "height": 40}
    pair = [region(shape, "rectangle"), region(shape | {"labels": ["dog"]}, "labels")]
    dataset = read(tmp_path, *pair)
    assert dataset.annotations[0].boxes_px.tolist() == [BOX]
    dataset = read(tmp_path, *pair, region(shape, "rectangle", id="other"), on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.position) == ("name-empty", "[0] (id 3), region 2")


def test_the_last_annotation_that_was_not_cancelled_is_used(tmp_path: Path) -> None:
    found = [
        annotation(rectangle("cat")),
        annotation(rectangle("dog")),
        annotation(rectangle("fox"), was_cancelled=True),
    ]
    dataset = read_dataset(lay_out(tmp_path, [task(*found)]), "all")
    assert dataset.classes == ("dog",)
    assert kinds(dataset) == {"annotated-twice": "1"}
    rows = [minimal(rectangle("cat")), minimal(rectangle("dog"))]
    dataset = read_dataset(lay_out(tmp_path, rows), "all")
    assert (dataset.classes, kinds(dataset)) == (("dog",), {"annotated-twice": "1"})


def test_tasks_without_an_annotation_are_left_out(tmp_path: Path) -> None:
    tasks = [
        task(annotation(rectangle())),
        task(name="b.jpg"),
        task(annotation(rectangle(), was_cancelled=True), name="c.jpg"),
        task(annotation(), name="d.jpg"),
    ]
    lay_out(tmp_path, tasks, "all.json", "1a2b3c4d-a.jpg", "b.jpg", "c.jpg", "d.jpg")
    dataset = read_dataset(tmp_path, "all")
    found = {item.image_id: len(item.labels) for item in dataset.annotations}
    assert found == {"1a2b3c4d-a": 1, "d": 0}
    assert kinds(dataset) == {"image-unannotated": "2", "size-missing": "1"}


def test_a_folder_of_a_cloud_storage(tmp_path: Path) -> None:
    for number in range(2, 40):
        written = annotation(rectangle(f"kind {number % 3}"), id=number)
        whole = task(name=f"s3://bucket/{number % 13}.jpg")
        lay_out(tmp_path, written | {"task": whole}, f"target/{number}", f"{number % 13}.jpg")
    (tmp_path / "LICENSE").write_text("{")
    assert known_splits(tmp_path) == ("all",)
    dataset = read_dataset(tmp_path, "all")
    assert len(dataset) == 13
    # The last annotation of image 0 has the number 39, and of image 9 the number 35.
    names = {item.image_id: dataset.classes[item.labels[0]] for item in dataset.annotations}
    assert (names["0"], names["9"]) == ("kind 0", "kind 2")
    assert kinds(dataset) == {"annotated-twice": "25"}


def test_files_are_splits(tmp_path: Path) -> None:
    for name in ("train", "val"):
        image = f"{name}.jpg"
        lay_out(tmp_path, [task(annotation(rectangle()), name=image)], f"{name}.json", image)
    assert known_splits(tmp_path) == ("train", "val")
    assert [item.image_id for item in read_dataset(tmp_path, "val").annotations] == ["val"]


@pytest.mark.parametrize(
    "written",
    [
        [{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}],
        {"data": {"image": "a.jpg"}, "result": "ok"},
        [1, 2],
        {"shapes": [], "imagePath": "a.jpg"},
    ],
)
def test_other_json_is_not_taken_for_it(tmp_path: Path, written: object) -> None:
    lay_out(tmp_path, written)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path, "all")
    assert caught.value.kind == "layout-unknown" or "imagePath" in json.dumps(written)


BAD_REGIONS = {
    "no label": (rectangle(rectanglelabels=[]) | {"id": "b"}, "name-empty", "has no label"),
    "odd label": (rectangle(rectanglelabels=[7]), "text-malformed", "its label is 7"),
    "no y": (rectangle(y=None), "number-malformed", "its y is None, not a plain number"),
    "NaN": (rectangle(x=float("nan")), "number-malformed", "its x is nan"),
    "text": (rectangle(width="3"), "number-malformed", "its width is '3'"),
    "odd rotation": (rectangle(rotation=[1]), "number-malformed", "its rotation is [1]"),
    "empty": (rectangle(width=0), "box-empty", "is empty"),
    "outside": (rectangle(x=90), "box-outside", "leaves the image of 200 x 50"),
    "no points": (points_of(), "outline-malformed", "its points are []"),
    "odd points": (points_of([1, 2, 3]), "outline-malformed", "its points are [[1, 2, 3]]"),
    "brush": (
        region({"format": "rle", "rle": [0, 1], "brushlabels": ["dog"]}, "brushlabels"),
        "shape-unsupported",
        "no box can be made of its shape (format, rle, brushlabels)",
    ),
    "turned image": (
        rectangle() | {"image_rotation": 90},
        "image-rotated",
        "its image was rotated by 90 degrees",
    ),
}


@pytest.mark.parametrize(("bad", "kind", "reason"), BAD_REGIONS.values(), ids=BAD_REGIONS.keys())
def test_bad_regions_are_faults(tmp_path: Path, bad: object, kind: str, reason: str) -> None:
    dataset = read(tmp_path, rectangle(), bad, rectangle("cat"), on_bad="skip")
    (fault,) = dataset.faults
    assert fault.kind == kind
    assert str(fault).startswith(f"{tmp_path / 'project-1.json'}, [0] (id 3), region 1: ")
    assert reason in fault.reason
    assert len(dataset.annotations[0].labels) == 2
    with pytest.raises(DataError, match="1 fault\n"):
        read(tmp_path, bad)


GOOD = task(annotation(rectangle()))
BAD_TASKS = {
    "no object": ([GOOD, 7], "json-form", "is not a task of Label Studio"),
    "no data": ([GOOD, task(data=None)], "json-form", "is not a task of Label Studio"),
    "no image": ([GOOD, task(annotation(), data={"text": "x"})], "field-missing", "name no image"),
    "missing": ([GOOD, task(annotation(), name="x.jpg")], "image-missing", "'x.jpg' does not"),
    "twice": ([GOOD, task(annotation(), name="1a2b3c4d-a.jpg")], "listed-twice", "is listed alre"),
    "annotations": ([GOOD, task() | {"annotations": 7}], "json-form", "its annotations is 7"),
    "an annotation": ([GOOD, task(7)], "json-form", "is not a JSON object"),
    "no result": ([GOOD, task({"id": 3})], "json-form", "its result is None, not a list"),
    "other size": (
        [GOOD, task(annotation(rectangle() | {"original_width": 7}), name="b.jpg")],
        "size-differs",
        "its size is 7 x 50",
    ),
}


@pytest.mark.parametrize(("tasks", "kind", "reason"), BAD_TASKS.values(), ids=BAD_TASKS.keys())
def test_bad_tasks_are_faults(tmp_path: Path, tasks: object, kind: str, reason: str) -> None:
    lay_out(tmp_path, tasks, "project-1.json", "1a2b3c4d-a.jpg", "b.jpg")
    dataset = read_dataset(tmp_path, "all", on_bad="skip")
    (fault,) = dataset.faults
    assert fault.kind == kind
    assert fault.position
    assert fault.position.startswith("[1]")
    assert reason in fault.reason
    assert len(dataset) == 1


def test_damaged_and_other_files_beside_an_export(tmp_path: Path) -> None:
    lay_out(tmp_path, [GOOD])
    lay_out(tmp_path, json.dumps([GOOD])[:-9], "cut.json")
    lay_out(tmp_path, {"classes": ["dog"]}, "notes.json")
    dataset = read_dataset(tmp_path, "all", on_bad="skip")
    (fault,) = dataset.faults
    assert (fault.kind, fault.file.name) == ("json-malformed", "cut.json")
    assert kinds(dataset) == {"json-other": "1"}
    assert len(dataset) == 1
