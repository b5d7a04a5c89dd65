"""A preflight finds all that is planted, where it was planted, and nothing in clean data."""

import ast
import copy
import errno
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import planted_faults as planted
import pytest
from PIL import Image

from multibox.build import read_datasets
from multibox.commands.demo.dataset import draw_dataset
from multibox.config import Config
from multibox.data.check.dataset_checks import check_dataset
from multibox.data.check.findings import FAULTS, KINDS, Finding
from multibox.data.check.split_checks import roles
from multibox.data.formats.layouts import known_splits, read_dataset
from multibox.data.image_metadata import (
    find_orientation,
    has_rotated_orientation,
    has_sixteen_bits,
    unusual_properties,
    without_orientation,
)
from multibox.data.images import read_image
from multibox.errors import DataError
from multibox.recipes import RECIPES

SOURCE = Path(__file__).parents[3] / "src" / "multibox" / "data"
RAISED = ("DataError", "NoImagesError", "Note", "Finding")


def look(
    root: Path, splits: tuple[str, ...] = (), classes: tuple[str, ...] = ()
) -> tuple[Finding, ...]:
    return check_dataset(root, splits, classes, workers=2, progress=lambda *_: None).findings


def kinds(findings: tuple[Finding, ...]) -> Counter[str]:
    return Counter(finding.kind for finding in findings)


def tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        digest.update(f"{path.relative_to(root)} {path.lstat().st_mtime_ns}".encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def config(train: str = "trainval", test: str = "test") -> Config:
    recipe = RECIPES["ssd300-lite"]()
    return replace(recipe, data=replace(recipe.data, train_split=train, test_split=test))


def training_refuses(root: Path, train: str = "trainval", test: str = "test") -> bool:
    """Whether reading refuses a dataset, or a loader would."""
    try:
        for dataset in read_datasets(config(train, test), root)[:2]:
            for item in dataset.annotations:
                read_image(item.image_path)
    except DataError:
        return True
    return False


def small_voc(folder: Path) -> Path:
    train = [str(number) for number in range(1, 13)]
    return planted.write_voc(folder, {"trainval": train, "test": ["51", "52"]})


PLANTS = [*(({kind}, plant) for kind, plant in planted.VOC), *planted.BOTH]


def test_all_that_is_planted_in_images_is_found_and_nothing_else(tmp_path: Path) -> None:
    ids = [str(number) for number in range(1, 13 + len(PLANTS))]
    root = planted.write_voc(tmp_path / "voc", {"trainval": ids, "test": ["501", "502"]})
    for (_, plant), image_id in zip(PLANTS, ids, strict=False):
        plant(root, image_id)
    before = tree_hash(root)
    findings = look(root)
    assert tree_hash(root) == before
    expected = {
        (kind, image_id)
        for (wanted, _), image_id in zip(PLANTS, ids, strict=False)
        for kind in wanted
    }
    # Some of the drawn pictures resemble each other.
    found = {(finding.kind, finding.file.stem) for finding in findings}
    assert {item for item in found if item[0] != "near-duplicate-image"} == expected
    assert len(PLANTS) >= 231  # with COCO's 69: 300
    assert all(finding.remedy and finding.reason for finding in findings)


ONE_OF_EACH = {"+".join(sorted(kinds)): (kinds, plant) for kinds, plant in PLANTS}


@pytest.mark.parametrize(("wanted", "plant"), ONE_OF_EACH.values(), ids=ONE_OF_EACH.keys())
def test_a_fault_is_what_training_refuses(
    tmp_path: Path, wanted: set[str], plant: planted.Plant
) -> None:
    root = small_voc(tmp_path / "voc")
    plant(root, "3")
    assert training_refuses(root) == bool(wanted & FAULTS.keys())
    assert any(finding.severity == "fault" for finding in look(root)) == training_refuses(root)


def test_all_that_is_planted_in_coco_is_found_and_nothing_else(tmp_path: Path) -> None:
    objects, images = planted.COCO_OBJECTS, planted.COCO_IMAGES
    content = planted.coco_content(len(objects) + len(images) + 20)
    expected = Counter[str]()
    for place, (kind, changes) in enumerate(objects, start=10):
        content["annotations"].append(planted.coco_thing(5000 + place, image_id=place) | changes)
        content["annotations"][-1].setdefault("bbox", [1, 1, 9, 9])
        if "bbox" not in changes:
            content["annotations"][-1]["bbox"] = [2, 2, 30, 30]
        expected[kind] += 1
    planted.write_coco(tmp_path, content)
    planted.write_coco(tmp_path, planted.coco_content(2, first=801), "val")
    for place, (kind, changes) in enumerate(images, start=10 + len(objects)):
        content["images"][place] |= changes
        expected[kind] += 1
    content["images"].append(7)
    content["annotations"].append("no object")
    expected["json-form"] += 2
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    found = look(tmp_path)
    assert kinds(found) == expected
    assert sum(expected.values()) >= 69
    assert training_refuses(tmp_path, "train", "val")
    with pytest.raises(DataError, match=f"{sum(expected.values())} faults"):
        read_dataset(tmp_path, "train")


def edit_coco(folder: Path, key: str, records: object) -> Path:
    content = copy.deepcopy(planted.coco_content(12)) | {key: records}
    root = planted.write_coco(folder, planted.coco_content(12))
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("key", "records", "expected"),
    [
        ("images", [], "empty-split"),
        ("images", None, "json-form"),
        ("annotations", {}, "json-form"),
        ("categories", "cat", "json-form"),
        ("categories", [{"id": 1, "name": "cat"}] * 2, "duplicate-id"),
        ("categories", [{"id": 1, "name": " "}], "text-malformed"),
        ("categories", [{"id": None, "name": "cat"}], "number-malformed"),
        ("annotations", [], "nothing-to-learn"),
    ],
)
def test_files_of_coco_that_no_image_of_can_be_used(
    tmp_path: Path, key: str, records: object, expected: str
) -> None:
    root = edit_coco(tmp_path, key, records)
    assert expected in kinds(look(root))
    assert training_refuses(root, "train", "train")


def test_categories_and_folders_of_coco(tmp_path: Path) -> None:
    content = planted.coco_content(12)
    names = [*content["categories"], {"id": 3, "name": "dog"}, {"id": 9, "name": "all"}]
    assert kinds(look(edit_coco(tmp_path / "a", "categories", names))) == {
        "category-twice": 1,
        "category-idle": 1,
    }
    root = planted.write_coco(tmp_path / "b", content)
    (root / "annotations" / "instances_val.json").write_text("{")
    (root / "val").mkdir()
    assert kinds(look(root)) == {"json-malformed": 1}
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    (root / "val").rmdir()
    assert kinds(look(root)) == {"images-folder-missing": 1}


LISTS = [
    ("empty-split", "test", b""),
    ("empty-split", "test", b"\n \n"),
    ("empty-split", "val", b"1 -1\n"),
    ("list-encoding", "test", b"51\xff\n"),
    ("listed-twice", "test", b"51\n52\n51\n"),
    ("path-unsafe", "test", b"51\n52\n../51\n"),
    ("path-unsafe", "test", b"51\n52\n/etc/passwd\n"),
    ("image-missing", "test", b"51\n52\n53\n"),
    ("no-usable-image", "val", b"61\n62\n"),
]


@pytest.mark.parametrize(("expected", "split", "content"), LISTS)
def test_faults_of_lists(tmp_path: Path, expected: str, split: str, content: bytes) -> None:
    root = small_voc(tmp_path)
    if expected == "image-missing":
        planted.xml_of(root, "53").write_text(planted.CLEAN)
    (root / "ImageSets" / "Main" / f"{split}.txt").write_bytes(content)
    found = kinds(look(root))
    assert expected in found
    assert training_refuses(root, "trainval", split)


def test_the_same_fault_in_two_splits_is_one(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    (root / "ImageSets" / "Main" / "train.txt").write_text("1\n2\n")
    planted.bad_corner(xmax=3)(root, "1")
    found = kinds(look(root))
    assert found["box-empty"] == 1
    with pytest.raises(DataError, match="1 fault"):
        read_datasets(config(), root)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Cat"], "class-similar"),
        (["c at"], "class-similar"),
        (["CAT "], "class-similar"),
        (["cats"], "class-similar"),
        (["actt"], "class-few-objects"),
        (["ca2", "cat3"], "class-few-objects"),
        (["+", "-"], "class-few-objects"),
        (["background"], "class-background"),
        (["rhinoceros"], "class-few-objects"),
    ],
)
def test_odd_classes(tmp_path: Path, names: list[str], expected: str) -> None:
    root = small_voc(tmp_path)
    boxes = [planted.box(3 + 9 * place, 3, 20 + 9 * place, 60) for place in range(len(names))]
    extra = [planted.thing(name, bndbox) for name, bndbox in zip(names, boxes, strict=True)]
    planted.second(*extra)(root, "2")
    found = kinds(look(root))
    assert found[expected] == (len(names) if expected == "class-few-objects" else 1)
    assert found.keys() <= {expected, "class-few-objects", "class-not-tested"}
    assert not training_refuses(root)


def test_classes_of_one_split_only(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    planted.as_xml(planted.annotation(planted.thing("fish")))(root, "51")
    assert kinds(look(root)) == {"class-not-trained": 1}
    assert training_refuses(root)
    (root / "ImageSets" / "Main" / "train.txt").write_text("1\n")
    planted.as_xml(planted.annotation(*[planted.thing("fish")] * 1))(root, "3")
    found = kinds(look(root))
    assert found == {"class-missing-in-split": 1, "class-few-objects": 1}
    assert not training_refuses(root)


def test_classes_that_were_asked_for(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    assert kinds(look(root, classes=("cat",))) == {"class-unknown": 14}
    assert kinds(look(root, classes=("cat", "dog", "unicorn")))["nothing-to-learn"] == 1
    assert kinds(look(root, splits=("train",))) == {"split-missing": 1}


def test_difficult_and_empty_splits(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    for image_id in ("51", "52"):
        text = planted.CLEAN.replace(planted.FLAG, "<difficult>1</difficult>")
        planted.xml_of(root, image_id).write_text(text)
    assert kinds(look(root)) == {"class-all-difficult": 2}
    for image_id in ("51", "52"):
        planted.xml_of(root, image_id).write_text(planted.annotation())
    assert kinds(look(root)) == {"no-objects": 1, "class-not-tested": 2}
    assert not training_refuses(root)


def test_the_same_pixels_twice(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    lists = root / "ImageSets" / "Main"
    (lists / "test.txt").write_text("51\n52\n4\n")
    # Another file with the very pixels of image 5 in training.
    with Image.open(planted.image_of(root, "5")) as image:
        planted.as_image(planted.encoded(image.convert("RGB"), "PNG"), ".png")(root, "52")
    planted.image_of(root, "7").write_bytes(planted.image_of(root, "6").read_bytes())
    found = look(root)
    assert kinds(found) == {"leaked-image": 2, "duplicate-image": 1}
    assert {f.file.stem for f in found if f.kind == "leaked-image"} == {"4", "52"}
    # trainval is train and val; both may share with it, and not with each other.
    (lists / "test.txt").write_text("51\n")
    (lists / "train.txt").write_text("1\n2\n")
    (lists / "val.txt").write_text("3\n2\n")
    (lists / "cat_val.txt").write_text("3  1\n2 -1\n")
    found = look(root, splits=("trainval", "train", "val", "test"))
    assert [f.file.stem for f in found if f.kind == "leaked-image"] == ["2"]


def test_files_in_no_list(tmp_path: Path) -> None:
    root = small_voc(tmp_path)
    (root / "ImageSets" / "Main" / "test.txt").write_text("51\n")
    found = look(root)
    assert kinds(found) == {"image-unlisted": 1, "annotation-unlisted": 1}
    assert {finding.file.stem for finding in found} == {"52"}


def test_names_with_spaces_and_lists_of_classes(tmp_path: Path) -> None:
    """As CVAT exports them."""
    root = small_voc(tmp_path)
    for old, new in (("1", "photo 1"), ("2", "photo -1"), ("3", "photo")):
        planted.xml_of(root, old).rename(planted.xml_of(root, new))
        planted.image_of(root, old).rename(planted.image_of(root, new))
    ids = ["photo 1", "photo -1", "photo", *map(str, range(4, 13))]
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    flags = "".join(f"{image_id} {1 - 2 * (place % 2):2}\n" for place, image_id in enumerate(ids))
    (lists / "cat_trainval.txt").write_text(flags)
    (lists / "test.txt").write_text("51.jpg\nJPEGImages/52.jpg\n")
    assert known_splits(root) == ("test", "trainval")
    assert look(root) == ()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("2007:trainval", {"train", "val"}),
        ("train2017", {"train"}),
        ("valid", {"val"}),
        ("minival2014", {"val"}),
        ("test-dev", {"test"}),
        ("2007:trainval+2007:test", {"train", "val", "test"}),
        ("all", set()),
    ],
)
def test_roles(name: str, expected: set[str]) -> None:
    assert roles(name) == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations_are_pillows_and_are_removed_without_another_change(
    tmp_path: Path, form: str
) -> None:
    for value in range(1, 9):
        data = planted.turned(value, form)
        found = find_orientation(data)
        assert found is not None
        assert found.value == value
        changed = without_orientation(data)
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(changed)
        assert has_rotated_orientation(tmp_path / "a") == (value >= 5)
        assert not has_rotated_orientation(tmp_path / "b")
        with Image.open(tmp_path / "b") as image:
            image.load()
            assert image.getexif().get(0x0112, 1) == 1
        assert (read_image(tmp_path / "a") == read_image(tmp_path / "b")).all()
        assert sum(x != y for x, y in zip(data, changed, strict=True)) <= (
            5 if form == "PNG" else 1
        )
    assert find_orientation(planted.encoded(planted.picture(1), form)) is None


@pytest.mark.parametrize(
    ("suffix", "pixels", "deep"),
    [
        (".png", np.zeros((90, 90, 3), np.uint16), True),
        (".png", np.zeros((90, 90, 3), np.uint8), False),
        (".tif", np.zeros((90, 90), np.uint16), True),
        # The directory follows more pixels than are read first.
        (".tif", np.zeros((300, 300), np.uint16), True),
        (".tif", np.zeros((300, 300), np.uint8), False),
        (".jpg", np.zeros((90, 90), np.uint8), False),
    ],
)
def test_sixteen_bits_are_seen_in_the_header(
    tmp_path: Path, suffix: str, pixels: np.ndarray, deep: bool
) -> None:
    path = tmp_path / f"image{suffix}"
    if suffix == ".tif":
        Image.fromarray(pixels).save(path)
    else:
        cv2.imwrite(str(path), pixels)
    assert has_sixteen_bits(path) == deep
    assert ("sixteen-bit" in unusual_properties(path.read_bytes(), suffix)) == deep


def test_unusual_tiffs_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for mode, expected in (("L", {"grey"}), ("RGBA", {"alpha"}), ("RGB", set()), ("P", set())):
        planted.picture(3).convert(mode).save(path)
        assert unusual_properties(path.read_bytes(), ".tif").keys() == expected
        assert "suffix-differs" in unusual_properties(path.read_bytes(), ".jfif")


def test_every_kind_of_the_readers_is_known() -> None:
    """mypy sees to it that each error has a kind; here each kind has a severity and a remedy."""
    used = set[str]()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in RAISED:
                kinds = [item.value for item in node.keywords if item.arg == "kind"]
                values = kinds or node.args[:1]
                constants = [n for value in values for n in ast.walk(value)]
                used |= {
                    node.value
                    for node in constants
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)
                }
    assert len(used) > 50
    # It lists all faults of a dataset, each of a kind of its own.
    assert used - KINDS.keys() == {"faults"}
    assert FAULTS.keys() <= used | {"image-missing", "annotation-missing"}


def test_no_false_alarm_on_real_and_drawn_data(tmp_path: Path, shared: Path) -> None:
    draw_dataset(tmp_path / "drawn", train_images=80, test_images=20)
    assert look(tmp_path / "drawn") == ()
    found = look(shared / "data" / "bccd" / "VOCdevkit" / "BCCD")
    assert [(finding.kind, finding.file.stem) for finding in found] == [
        ("box-empty", "BloodImage_00343"),
        ("box-empty", "BloodImage_00338"),
        # The same smear, moved by some pixels.
        ("near-duplicate-image", "BloodImage_00038"),
        ("leaked-image", "BloodImage_00037"),
    ]


@pytest.mark.slow
def test_no_false_alarm_on_many_drawn_images(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "drawn", train_images=1600, test_images=400, seed=3)
    assert look(tmp_path / "drawn") == ()


def test_kinds_are_named_alike() -> None:
    assert all(name == name.lower() and " " not in name for name in KINDS)
    assert len(FAULTS) >= 40


@pytest.mark.parametrize(
    "name",
    [
        *("voc", "voc/VOC2007/ImageSets/Main", "voc/VOC2007/Annotations"),
        *("voc/VOC2007/JPEGImages", "coco", "coco/annotations"),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = tmp_path / Path(name).parts[0]
    planted.write_voc(tmp_path / "voc" / "VOC2007", {"trainval": ["1"], "test": ["2"]})
    planted.write_coco(tmp_path / "coco", planted.coco_content(2))
    assert look(root)

    def refuse(path: object, real: Callable[[object], object]) -> object:
        if path == tmp_path / name or path == str(tmp_path / name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    for call in ("listdir", "scandir"):
        monkeypatch.setattr(os, call, partial(refuse, real=getattr(os, call)))
    try:
        found = [(finding.kind, finding.file, finding.reason) for finding in look(root)]
    except DataError as error:
        found = [(error.kind, error.file, error.reason)]
    assert ("unreadable", tmp_path / name, "cannot be read: Input/output error") in found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_that_only_others_may_enter_is_no_layout() -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        voc = planted.write_voc(Path(place) / "voc" / "VOC2007", {"trainval": ["1"]}).parent
        coco = planted.write_coco(Path(place) / "coco", planted.coco_content(1))
        for root in (voc, coco):
            (root / "lost+found").mkdir(mode=0o700)
        os.seteuid(65_534)
        try:
            assert known_splits(voc) == ("2007:trainval",)
            assert known_splits(coco) == ("train",)
        finally:
            os.seteuid(0)
