"""COCO's JSON: what is read, compared with pycocotools, and that every fault is named."""

import contextlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from coco_layout import export_coco
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from multibox.commands.demo.dataset import draw_dataset
from multibox.data.dataset import Dataset, Note
from multibox.data.formats import coco
from multibox.data.formats.layouts import known_splits, read_dataset
from multibox.data.formats.outlines import mask_bounds
from multibox.data.formats.tree import FileTree
from multibox.errors import DataError
from multibox.evaluation.coco import evaluate_coco
from multibox.evaluation.voc import ClassDetections
from multibox.inference import objects_by_class
from multibox.rng import stream

WIDTH, HEIGHT = 100, 50
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
OFFICIAL, EXPORTED = "annotations/instances_{}.json", "{}/_annotations.coco.json"

Content = dict[str, Any]


def image(number: int = 1, **changes: object) -> Content:
    name = f"{number:04d}.jpg"
    return {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} | changes


def thing(number: int = 1, **changes: object) -> Content:
    fields = {"id": number, "image_id": 1, "category_id": 18, "bbox": [10, 5, 30, 40]}
    return fields | {"iscrowd": 0, "segmentation": [[1.5, 2.5]]} | changes


def content(*things: object, images: object = None) -> Content:
    """Two images, the first with the objects; categories 18 and 3, in that order."""
    return {
        "images": [image(1), image(2)] if images is None else images,
        "annotations": [thing(), *things],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    }


def lay_out(
    root: Path,
    written: Content | str,
    split: str = "train",
    layout: str = OFFICIAL,
    folder: str = "{}",
) -> Path:
    """Writes annotations, and a file for each image whose name is a plain one."""
    file, below = root / layout.format(split), root / folder.format(split)
    file.parent.mkdir(parents=True, exist_ok=True)
    below.mkdir(parents=True, exist_ok=True)
    file.write_text(written if isinstance(written, str) else json.dumps(written))
    for record in written["images"] if isinstance(written, dict) else []:
        name = record.get("file_name") if isinstance(record, dict) else None
        if (
            isinstance(name, str)
            and name.isprintable()
            and name.endswith("jpg")
            and len(name) < 200
            and not any(part in name for part in ("..", "\\", ":"))
        ):
            (below / name).parent.mkdir(parents=True, exist_ok=True)
            (below / name).write_bytes(IMAGE)
    return root


def one(tmp_path: Path, *things: object, **options: object) -> Dataset:
    return read_dataset(lay_out(tmp_path, content(*things)), "train", **options)


def random_content(seed: int) -> Content:
    """Forty images in no order with crowds, gaps among the ids, and two idle categories."""
    rng = stream(seed, "coco")
    numbers = rng.permutation(1000)[:40].tolist()
    low = rng.uniform(0, 40, (200, 2)).round(2)
    size = rng.uniform(0.5, [60, 10], (200, 2)).round(2)
    categories = [90, 7, 1, 33, 12, 64]
    things = [
        thing(
            number,
            image_id=int(rng.choice(numbers[:30])),
            category_id=int(rng.choice(categories[:4])),
            bbox=[*low[place].tolist(), *size[place].tolist()],
            area=float(size[place].prod()),
            iscrowd=int(rng.random() < 0.2),
        )
        for place, number in enumerate((rng.permutation(10_000)[:200] + 1).tolist())
    ]
    names = [{"id": number, "name": f"kind {number}"} for number in categories]
    return {"images": list(map(image, numbers)), "annotations": things, "categories": names}


@pytest.mark.parametrize(
    ("layout", "folder"), [(OFFICIAL, "{}"), (OFFICIAL, "images/{}"), (EXPORTED, "{}")]
)
def test_what_is_read_is_what_pycocotools_reads(tmp_path: Path, layout: str, folder: str) -> None:
    lay_out(tmp_path, random_content(0), "train2017", layout, folder)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(tmp_path / layout.format("train2017")))
    dataset = read_dataset(tmp_path, "train2017")
    used = sorted({annotation["category_id"] for annotation in known.anns.values()})
    assert dataset.classes == tuple(known.cats[number]["name"] for number in used)
    images = [known.imgs[number] for number in known.getImgIds()]
    assert {item.image_id for item in dataset.annotations} == {
        Path(item["file_name"]).stem for item in images
    }
    for item in dataset.annotations:
        expected = known.loadAnns(known.getAnnIds(imgIds=[int(item.image_id)]))
        # A class's objects stand together, and otherwise in the order of the file.
        first = [annotation["category_id"] for annotation in expected]
        expected.sort(key=lambda annotation: first.index(annotation["category_id"]))
        assert [used[label] for label in item.labels] == [a["category_id"] for a in expected]
        assert item.difficult.tolist() == [a["iscrowd"] == 1 for a in expected]
        boxes = np.array([a["bbox"] for a in expected]).reshape(-1, 4)
        low, size = boxes[:, :2], boxes[:, 2:]
        np.testing.assert_array_equal(item.boxes_px, np.float32(np.hstack([low, low + size])))
        areas = (item.boxes_px[:, 2:] - item.boxes_px[:, :2]).prod(axis=1)
        np.testing.assert_allclose(areas, [a["area"] for a in expected], rtol=1e-4)
        assert item.image_path == tmp_path / folder.format("train2017") / f"{item.image_id}.jpg"
    assert sum(dataset.objects_per_class.values()) == len(known.anns) == 200
    (note,) = dataset.notes
    assert note.text.startswith("2 classes without objects were left out, including 'kind 12'")


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_what_pycocotools_makes_of_the_file(tmp_path: Path, seed: int) -> None:
    written = random_content(seed)
    rng = stream(seed, "areas")
    sides = [8, 31, 32, 33, 60, 95, 96, 97, 150]
    for record in written["images"]:
        record |= {"width": 400, "height": 400}
    for record in written["annotations"]:
        x, y = rng.integers(0, 200, 2).tolist()
        width, height = rng.choice(sides, 2).tolist()
        record |= {"bbox": [x, y, width, height], "area": width * height * rng.uniform(0.2, 1)}
    file = lay_out(tmp_path, written, "train2017") / OFFICIAL.format("train2017")
    dataset = read_dataset(tmp_path, "train2017", images="ignore")
    ids = {item.image_id: place for place, item in enumerate(dataset.annotations)}
    found = []
    for record in written["annotations"]:
        moved = np.array(record["bbox"]) + rng.integers(-6, 7, 4) * [1, 1, 0, 0]
        names = {item["id"]: item["name"] for item in written["categories"]}
        item = {"image_id": record["image_id"], "category_id": record["category_id"]}
        score = float(rng.uniform())
        found.append((names[record["category_id"]], item, moved.tolist(), score))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        results = truth.loadRes([item | {"bbox": box, "score": s} for _, item, box, s in found])
        judge = COCOeval(truth, results, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    places = {item["id"]: ids[Path(item["file_name"]).stem] for item in written["images"]}
    detections = {
        name: ClassDetections(
            np.array([places[i["image_id"]] for n, i, _, _ in found if n == name]),
            np.array([s for n, _, _, s in found if n == name]),
            np.array(
                [[x, y, x + w, y + h] for n, _, (x, y, w, h), _ in found if n == name], np.float64
            ),
        )
        for name in dataset.classes
    }
    ours = evaluate_coco(detections, objects_by_class(dataset))
    figures = [ours.mean, ours.ap50, ours.ap75, ours.small, ours.medium, ours.large]
    assert figures == pytest.approx(judge.stats[:6], abs=1e-12, rel=0)
    assert 0 < ours.small < 1


def test_a_dataset_is_the_same_in_both_layouts(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "voc", train_images=12, test_images=4)
    root = export_coco(tmp_path / "voc", tmp_path / "coco")
    for split in ("trainval", "test"):
        assert read_dataset(root, split).digest == read_dataset(tmp_path / "voc", split).digest


def test_names_are_classes_over_the_splits(tmp_path: Path) -> None:
    # As Roboflow exports: every split counts from 0, the first category is their kind.
    kinds = [{"id": 0, "name": "pets"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    train = {"annotations": [thing(0, category_id=2)], "categories": kinds}
    other = [{"id": 1, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 2, "name": "dog"}]
    things = [thing(number, category_id=number) for number in range(3)]
    lay_out(tmp_path, {"images": [image(1)], **train}, "train", EXPORTED)
    valid = {"images": [image(1), image(2)], "annotations": things, "categories": other}
    lay_out(tmp_path, valid, "valid", EXPORTED)
    dataset = read_dataset(tmp_path, "train+valid+train")
    assert (dataset.name, dataset.classes) == ("train+valid", ("dog", "cat"))
    ids = [item.image_id for item in dataset.annotations]
    assert ids == ["train/0001.jpg", "valid/0001.jpg", "0002"]
    assert [item.labels.tolist() for item in dataset.annotations] == [[1], [0, 0, 1], []]
    assert read_dataset(tmp_path, "train").classes == ("cat",)
    given = read_dataset(tmp_path, "valid", classes=("fox", "cat", "dog"))
    assert given.classes == ("fox", "cat", "dog")
    assert given.notes == (
        Note("category-twice", "1 categories with the name of another one were merged with it"),
    )


def test_what_may_be_missing_and_what_is_clipped(tmp_path: Path) -> None:
    bare = {"id": 5, "file_name": "sub/a.b.jpg"}
    item = {"id": 9, "image_id": 5, "category_id": 3, "bbox": [-0.5, 0, 101.25, 50.0]}
    written = content(item, images=[bare, image(1)])
    dataset = read_dataset(lay_out(tmp_path, written), "train")
    second, first = dataset.annotations
    assert (first.image_id, first.width_px, first.height_px) == ("a.b", WIDTH, HEIGHT)
    assert first.boxes_px.tolist() == [[0, 0, 100, 50]]
    assert not first.difficult.any()
    assert second.boxes_px.tolist() == [[10, 5, 40, 45]]
    assert dataset.notes == (
        Note("size-missing", "1 annotations without a size: the image's size is used"),
        Note("box-clipped", "1 boxes that left their image by up to a pixel were clipped"),
    )
    (tmp_path / "train" / "0001.jpg").unlink()
    with pytest.raises(DataError, match=r"images\[0\] \(id 5\): has no size above 0"):
        read_dataset(tmp_path, "train", images="ignore")
    assert len(read_dataset(tmp_path, "train", images="ignore", on_bad="skip")) == 1


BAD_OBJECTS = {
    "unknown image": ({"image_id": 77}, "its image_id is 77, but no image has this id"),
    "image a list": ({"image_id": [1]}, r"its image_id is [1]"),
    "unknown image as text": ({"image_id": "x"}, "its image_id is 'x', but no image has this id"),
    "unknown category": (
        {"category_id": 4},
        "its category_id is 4, but the categories have the ids 18, 3",
    ),
    "category in words": ({"category_id": "cat"}, "its category_id is 'cat', but the categories"),
    "fractional category": ({"category_id": 3.5}, "its category_id is 3.5, not a whole number"),
    "category true": ({"category_id": True}, "its category_id is True, not a whole number"),
    "other class": ({"category_id": 3}, "its class is not one of dog"),
    "a list of crowds": ({"iscrowd": [1]}, "its iscrowd is [1]"),
    "crowd 2": ({"iscrowd": 2}, "its iscrowd is 2"),
    "words for an area": ({"area": "large"}, "its area is 'large', not a plain number"),
    "negative area": ({"area": -1}, "its area is -1, not a plain number"),
    "no box": ({"bbox": None, "segmentation": []}, "its bbox is None, not four plain numbers"),
    "no box, one point": ({"bbox": None}, "its box (1.5, 2.5, 1.5, 2.5) is empty"),
    "no box, text": ({"bbox": [], "segmentation": "x"}, "it has no bbox, and its segmentation is"),
    "no box, odd": ({"bbox": None, "segmentation": [[1, 2, 3]]}, "its segmentation is [[1, 2, 3]]"),
    "no box, deep": ({"bbox": None, "segmentation": [[[1], 2]]}, "its segmentation is [[[1], 2]]"),
    "a mask without a size": (
        {"bbox": None, "segmentation": {"counts": [1, 2], "size": [0, 2]}},
        "its segmentation is {'counts': [1, 2]",
    ),
    "a mask of letters": (
        {"bbox": None, "segmentation": {"counts": "~o~~", "size": [50, 100]}},
        "its segmentation is",
    ),
    "a mask that never ends": (
        {"bbox": None, "segmentation": {"counts": "o" * 100_000, "size": [50, 100]}},
        "its segmentation is",
    ),
    "a mask larger than its image": (
        {"bbox": None, "segmentation": {"counts": [1, 9000], "size": [50, 100]}},
        "its segmentation is",
    ),
    "an empty mask": (
        {"bbox": None, "segmentation": {"counts": [5000], "size": [50, 100]}},
        "its box (0, 0, 0, 0) is empty",
    ),
    "fractions": ({"bbox": [0.5, 0.25, 0.5, 0.001]}, "looks like fractions of the image"),
    "three numbers": ({"bbox": [1, 2, 3]}, "not four plain numbers"),
    "text": ({"bbox": ["1", 2, 3, 4]}, "not four plain numbers"),
    "bool": ({"bbox": [True, 2, 3, 4]}, "not four plain numbers"),
    "NaN": ({"bbox": [float("nan"), 2, 3, 4]}, "not four plain numbers"),
    "infinite": ({"bbox": [1, 2, float("inf"), 4]}, "not four plain numbers"),
    "300 digits": ({"bbox": [1, 2, 10**400, 4]}, "not four plain numbers"),
    "nested": ({"bbox": [[[[[[[[[[1]]]]]]]]], 2, 3, 4]}, "not four plain numbers"),
    "empty": ({"bbox": [1, 2, 0, 4]}, "is empty"),
    "inverted": ({"bbox": [20, 2, -5, 4]}, "is empty"),
    "nothing in float32": ({"bbox": [1, 2, 1e-9, 4]}, "is empty"),
    "outside": ({"bbox": [90, 2, 12, 4]}, "leaves the image of 100 x 50"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_OBJECTS.values(), ids=BAD_OBJECTS.keys())
def test_bad_objects_are_faults(tmp_path: Path, changes: Content, reason: str) -> None:
    bad = thing(2, **changes)
    with pytest.raises(DataError, match="1 fault") as caught:
        one(tmp_path, bad, thing(3), classes=("dog",))
    dataset = one(tmp_path, bad, thing(3), classes=("dog",), on_bad="skip")
    (fault,) = dataset.faults
    assert f"\n  {fault}" in str(caught.value)
    assert str(fault).startswith(
        f"{tmp_path / 'annotations' / 'instances_train.json'}, annotations[1]"
    )
    assert reason in fault.reason
    assert [len(item.labels) for item in dataset.annotations] == [2, 0]


def test_an_annotation_that_is_no_object(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"annotations\[1\]: is not a JSON object"):
        one(tmp_path, [1, 2])


BAD_IMAGES = {
    "an id twice": ({"id": 1}, "has the id of another image"),
    "no id": ({"id": None}, "its id is None, not a whole number"),
    "a file twice": ({"file_name": "./0001.jpg"}, "is listed already, in "),
    "the same file elsewhere": ({"file_name": "../train/0001.jpg"}, "is listed already, in "),
    "no name": ({"file_name": None}, "its file_name is None"),
    "empty name": ({"file_name": "."}, "names no file"),
    "absolute": ({"file_name": "/etc/passwd"}, "'/etc/passwd' does not exist"),
    "above": ({"file_name": "../../b.jpg"}, "'../../b.jpg' does not exist"),
    "backslash": ({"file_name": "..\\b.jpg"}, "does not exist"),
    "a bad address": ({"file_name": "https://[/b.jpg"}, "names no file"),
    "NUL": ({"file_name": "a\0.jpg"}, "not plain text"),
    "half a character": ({"file_name": "\ud800.jpg"}, "not plain text"),
    "too long": ({"file_name": "a" * 5000}, "does not exist"),
    "missing": ({"file_name": "absent.png"}, "does not exist"),
    "other size": ({"width": 50}, "its size is 50 x 50, but its image is 100 x 50"),
    "endless": ({"width": 10**400}, "larger than any image"),
    "fractional size": ({"height": 50.5}, "its height is 50.5, not a whole number"),
}


@pytest.mark.parametrize(("changes", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_bad_images_are_left_out(tmp_path: Path, changes: Content, reason: str) -> None:
    written = content(images=[image(1), image(5) | changes, image(3)])
    lay_out(tmp_path, written)
    with pytest.raises(DataError, match="1 fault\n"):
        read_dataset(tmp_path, "train")
    dataset = read_dataset(tmp_path, "train", on_bad="skip")
    (fault,) = dataset.faults
    assert reason in fault.reason
    # Whose objects are those of an id that two images have?
    left = ["0003"] if changes == {"id": 1} else ["0001", "0003"]
    assert [item.image_id for item in dataset.annotations] == left


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=6,
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from([None, *image(), *thing(), "name"]),
    VALUES,
    st.sampled_from(["check", "ignore"]),
)
def test_any_value_is_read_or_refused(
    tmp_path: Path, part: str, key: str | None, value: object, images: str
) -> None:
    written = content(thing(2))
    lay_out(tmp_path, written)
    written[part][0] = value if key is None else written[part][0] | {key: value}
    (tmp_path / OFFICIAL.format("train")).write_text(json.dumps(written))
    try:
        annotations = read_dataset(tmp_path, "train", images=images, on_bad="skip").annotations
    except DataError as error:
        annotations, refused = (), error.position or "nowhere"
    else:
        refused = None
    # What is left of the rest can be used, unless no object can be understood.
    assert refused is None or (part == "categories" and refused.startswith("categories[0]"))
    for item in annotations:
        assert (item.boxes[:, :2] < item.boxes[:, 2:]).all()
        assert ((item.boxes >= 0) & (item.boxes <= 1)).all()


def test_all_faults_are_listed_and_counted(tmp_path: Path) -> None:
    written = content(thing(2, iscrowd=5), thing(3, category_id=4), images=[image(1), image(2)])
    lay_out(tmp_path, written)
    broken = tmp_path / "train" / "0002.jpg"
    broken.write_bytes(IMAGE[:-40])
    with pytest.raises(DataError, match="3 faults") as caught:
        read_dataset(tmp_path, "train")
    message = str(caught.value)
    assert f"\n  {broken}: is " in message or f"\n  {broken}: its " in message
    assert "annotations[1] (id 2): its iscrowd" in message
    assert "annotations[2] (id 3): its category_id" in message
    assert len(read_dataset(tmp_path, "train", on_bad="skip").faults) == 3


BAD_FILES = {
    "empty": ("", "is not JSON"),
    "cut short": (json.dumps(content())[:-20], "is not JSON"),
    "deep": ("[" * 200_000, "is not JSON"),
    "deep box": ('{"images": ' * 100_000, "is not JSON"),
    "long number": ('{"images": ' + "9" * 10_000 + "}", "is not JSON"),
    "a list": ("[]", "has no list 'images'"),
    "captions": (json.dumps(content() | {"categories": None}), "has no list 'categories'"),
    "no images": (json.dumps(content(images=[])), "lists no image"),
    "same category": (
        json.dumps(content() | {"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}),
        r"categories[1] (id 3): has the id of another category",
    ),
    "no name": (
        json.dumps(content() | {"categories": [{"id": 3, "name": " "}]}),
        "its name is ' '",
    ),
}


@pytest.mark.parametrize(("text", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_files_in_another_form_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    lay_out(tmp_path, text)
    with pytest.raises(DataError) as caught:
        read_dataset(tmp_path, "train", on_bad="skip")
    assert "instances_train.json" in str(caught.value)
    assert reason in str(caught.value)


def test_files_over_the_limit_are_refused_unread(tmp_path: Path) -> None:
    file = lay_out(tmp_path, content()) / OFFICIAL.format("train")
    with file.open("ab") as stream_:
        stream_.truncate(2**30 + 1)
    with pytest.raises(DataError, match="the limit is 1073741824"):
        read_dataset(tmp_path, "train")


def voc(folder: Path) -> None:
    draw_dataset(folder, train_images=1, test_images=1)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (voc, "VOC"),
        (lambda root: (voc(root), lay_out(root, content(), "trainval")), "VOC"),
        (lambda root: lay_out(root, content(), "trainval"), "COCO"),
        (lambda root: lay_out(root, content(), "trainval", EXPORTED), "COCO"),
        (lambda root: (root / "annotations").mkdir(parents=True), "neither"),
    ],
)
def test_layouts_are_told_by_content(
    tmp_path: Path, make: Callable[[Path], object], found: str
) -> None:
    root = tmp_path / "data"
    make(root)
    if found == "neither":
        with pytest.raises(DataError, match=r"has no annotations in a known format") as caught:
            read_dataset(root, "trainval")
        assert "COCO's JSON" in str(caught.value)
    else:
        assert ("dog" in read_dataset(root, "trainval").classes) == (found == "COCO")


@pytest.mark.parametrize("splits", ["test", "train+test", "", "train+", "../train", "2007:train"])
def test_missing_splits_are_refused_with_those_there_are(tmp_path: Path, splits: str) -> None:
    lay_out(tmp_path, content())
    lay_out(tmp_path, content(), "valid", EXPORTED)
    with pytest.raises(DataError, match=r"has no split .* Choose from train, valid"):
        read_dataset(tmp_path, splits)


def test_missing_folders_of_images_are_refused(tmp_path: Path) -> None:
    many = content(images=[image(number) for number in range(1, 200)])
    lay_out(tmp_path, content(images=[image(501), image(502)]), "val", folder="elsewhere")
    lay_out(tmp_path, json.dumps(many))
    for on_bad in ("fail", "skip"):
        with pytest.raises(DataError) as caught:
            read_dataset(tmp_path, "train", on_bad=on_bad)
        assert caught.value.kind == "images-folder-missing"
        assert f"exists in {tmp_path}, which has other images: 2 in elsewhere" in str(caught.value)
        assert "none of the 199 images of the split 'train'" in str(caught.value)
    assert len(read_dataset(tmp_path, "train", images="ignore")) == 199


NAMES = {
    "annotations/instances_val2017.json": "val2017",
    "annotations/instances_default.json": "all",
    "valid/_annotations.coco.json": "valid",
    "_annotations.coco.json": "all",
    "result.json": "all",
    "labels.json": "all",
    "val.json": "val",
    "annotations/train_annotations.json": "train",
    "test2017/anything.JSON": "test2017",
}


@pytest.mark.parametrize(("name", "split"), NAMES.items(), ids=NAMES.keys())
def test_files_of_any_name_are_recognised(tmp_path: Path, name: str, split: str) -> None:
    lay_out(tmp_path, content(), layout=name, folder="pictures/deep")
    assert known_splits(tmp_path) == (split,)
    dataset = read_dataset(tmp_path, split)
    assert [item.boxes_px.tolist() for item in dataset.annotations] == [[[10, 5, 40, 45]], []]
    paths = [item.image_path.relative_to(tmp_path) for item in dataset.annotations]
    assert paths == [Path("pictures/deep/0001.jpg"), Path("pictures/deep/0002.jpg")]


def test_a_file_that_names_itself_as_coco_does_is_taken_before_others(tmp_path: Path) -> None:
    lay_out(tmp_path, content(), "train")
    others = tmp_path / "annotations"
    for name in ("captions_train", "person_keypoints_train", "image_info_train", "copy"):
        (others / f"{name}.json").write_text(json.dumps(content()))
    assert known_splits(tmp_path) == ("train",)
    assert len(read_dataset(tmp_path, "train")) == 2


@pytest.mark.parametrize(
    "written",
    [
        [content()],
        {"images": [image()], "annotations": [{"image_id": 1, "caption": "a dog"}]},
        {"shapes": [], "imagePath": "0001.jpg"},
        {"videos": [], "categories": [], "annotations": [{"category_id": 1}]},
        {"model": "yolo", "results": {"mAP": 0.5}},
    ],
)
def test_other_json_is_not_taken_for_coco(tmp_path: Path, written: Any) -> None:
    (tmp_path / "data.json").write_text(json.dumps(written))
    assert coco.find_splits(FileTree(tmp_path)) == {}


@pytest.mark.parametrize(
    "order", [*itertools.permutations(["images", "annotations", "categories"])]
)
@pytest.mark.parametrize("indent", [None, 2])
def test_large_files_are_recognised_by_their_ends(
    tmp_path: Path, order: tuple[str, ...], indent: int | None
) -> None:
    lists = {
        "images": [image(number, license=3) for number in range(1, 600)],
        "annotations": [thing(number, id=number) for number in range(1, 600)],
        "categories": [{"id": n, "name": f"kind {n}", "supercategory": "x"} for n in range(600)],
    }
    written = {"info": {"year": 2026}, "licenses": []} | {key: lists[key] for key in order}
    (tmp_path / "data.json").write_text(json.dumps(written, indent=indent))
    assert coco.find_splits(FileTree(tmp_path)) == {"all": [tmp_path / "data.json"]}


def test_names_of_images_of_other_machines(tmp_path: Path) -> None:
    names = [
        "photos/0001.jpg",
        "C:\\photos\\0002.jpg",
        "/home/someone/0003.jpg",
        "../up/0004.jpg",
        "https://example.org/a/0005.jpg?size=3",
        "1a2b3c4d-0006.jpg",
        "/data/upload/7/1a2b3c4d-r%C3%A4ccoon.jpg",
    ]
    images = [image(number, file_name=name) for number, name in enumerate(names, start=1)]
    folder = tmp_path / "train"
    folder.mkdir()
    for stem in ("0001", "0002", "0003", "0004", "0005", "0006", "r\xe4ccoon"):
        (folder / f"{stem}.jpg").write_bytes(IMAGE)
    (tmp_path / "result.json").write_text(json.dumps(content(images=images)))
    dataset = read_dataset(tmp_path, "all")
    ids = [item.image_id for item in dataset.annotations]
    assert ids == ["0001", "0002", "0003", "0004", "0005", "0006", "r\xe4ccoon"]


def test_images_of_a_split_may_lie_in_a_folder_of_another_name_for_it(tmp_path: Path) -> None:
    for split, folder in (("train2017", "train"), ("val", "valid"), ("trainval", "train")):
        root = lay_out(tmp_path / split / "x", content(), split, folder=folder)
        assert len(read_dataset(root, split)) == 2
    root = lay_out(tmp_path / "a" / "b", content(), "train2017", folder="train2014")
    with pytest.raises(DataError, match=r"Did you mean train2014/0001\.jpg"):
        read_dataset(root, "train2017")


def test_ids_of_annotations_are_not_needed(tmp_path: Path) -> None:
    more = [thing(1, bbox=[20, 5, 9, 9]), thing(None), thing("1"), thing([7])]
    del more[1]["id"]
    dataset = one(tmp_path, *more)
    assert [item.boxes_px.tolist() for item in dataset.annotations] == [
        [[10, 5, 40, 45], [20, 5, 29, 14], *[[10, 5, 40, 45]] * 3],
        [],
    ]
    (note,) = [note for note in dataset.notes if note.kind == "annotation-ids"]
    assert note.text.startswith("4 annotations have no id or the id of another one")


def test_ids_may_be_whole_fractions_or_text(tmp_path: Path) -> None:
    written = content(thing(2, image_id="2", category_id=18.0), thing(3, image_id="seven"))
    written["images"] = [image(1, id=1.0), image(2), image(3, id="seven", width="100", height=50.0)]
    written["categories"] = [{"id": "18", "name": "dog"}, {"id": 3.0, "name": "car"}]
    dataset = read_dataset(lay_out(tmp_path, written), "train")
    assert [len(item.labels) for item in dataset.annotations] == [1, 1, 1]
    assert dataset.classes == ("dog",)
    assert not dataset.faults


def test_crowds_and_areas_may_be_text(tmp_path: Path) -> None:
    flags = [None, 0, 1, "0", "1", False, True, 1.0]
    things = [thing(n, iscrowd=flag, area="30.5") for n, flag in enumerate(flags)]
    written = content() | {"annotations": things}
    dataset = read_dataset(lay_out(tmp_path, written), "train")
    item = dataset.annotations[0]
    assert item.difficult.tolist() == [False, False, True, False, True, False, True, True]
    assert item.areas_px2.tolist() == [30.5] * 8


def outline(*outlines: object) -> list[Content]:
    return [thing(number, bbox=None, segmentation=o) for number, o in enumerate(outlines, start=2)]


def test_objects_without_a_box_get_the_box_of_their_outline(tmp_path: Path) -> None:
    polygons = [[10, 20, 30, 20, 30.5, 40], [5, 25, 8, 25, 8, 30]]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[12:31, 40:47] = 1
    runs = {"size": [HEIGHT, WIDTH], "counts": [40 * 50 + 12, *[19, 31] * 6, 19]}
    packed = masks.encode(np.asfortranarray(mask))
    text = packed | {"counts": packed["counts"].decode()}
    written = content(*outline(polygons, runs, text))
    written["annotations"][0]["segmentation"] = polygons
    dataset = read_dataset(lay_out(tmp_path, written), "train")
    assert dataset.annotations[0].boxes_px.tolist() == [
        [10, 5, 40, 45],
        [5, 20, 30.5, 40],
        [40, 12, 47, 31],
        [40, 12, 47, 31],
    ]
    assert [note.text[:16] for note in dataset.notes if note.kind == "box-from-outline"] == [
        "3 objects have a"
    ]


@pytest.mark.parametrize("seed", range(20))
def test_boxes_of_masks_are_pycocotools(seed: int) -> None:
    rng = stream(seed, "masks")
    mask = (rng.random(rng.integers(1, 40, 2)) < rng.choice([0.003, 0.05, 0.5, 1])).astype(np.uint8)
    packed = masks.encode(np.asfortranarray(mask))
    x, y, width, height = masks.toBbox(packed)
    found = mask_bounds(packed["counts"].decode(), list(packed["size"]))
    assert found == (x, y, x + width, y + height)


def test_boxes_in_fractions_are_refused(tmp_path: Path) -> None:
    written = content()
    written["annotations"] = [thing(n, bbox=[0.1, 0.2, 0.3 + n / 100, 0.5]) for n in range(30)]
    lay_out(tmp_path, written)
    with pytest.raises(DataError, match="30 faults") as caught:
        read_dataset(tmp_path, "train")
    assert "its box (0.1, 0.2, 0.4, 0.7) looks like fractions of the image" in str(caught.value)
    dataset = read_dataset(tmp_path, "train", on_bad="skip")
    assert {fault.kind for fault in dataset.faults} == {"box-fractions"}
    tiny = simplejpeg.encode_jpeg(np.full((4, 4, 3), 90, np.uint8))
    written["images"] = [image(1, width=4, height=4)]
    (tmp_path / "annotations/instances_train.json").write_text(json.dumps(written))
    (tmp_path / "train/0001.jpg").write_bytes(tiny)
    assert len(read_dataset(tmp_path, "train").annotations[0].labels) == 30


def test_images_are_sorted_by_path(tmp_path: Path) -> None:
    written = content(images=[image(2), image(3), image(1)])
    dataset = read_dataset(lay_out(tmp_path, written), "train")
    assert [item.image_id for item in dataset.annotations] == ["0001", "0002", "0003"]
