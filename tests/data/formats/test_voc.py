"""VOC-layout folders: what is read, and that every fault is named with its file and place."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from multibox.data.dataset import Dataset, Fault, Note, require_objects
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.data.formats.voc import read_voc
from multibox.errors import DataError

WIDTH, HEIGHT = 100, 50
IMAGE = simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def box(xmin: object = 10, ymin: object = 5, xmax: object = 40, ymax: object = 45) -> str:
    values = zip(CORNERS, (xmin, ymin, xmax, ymax), strict=True)
    return f"<bndbox>{''.join(f'<{tag}>{value}</{tag}>' for tag, value in values)}</bndbox>"


def thing(name: str = "cat", bndbox: str = "", more: str = "") -> str:
    return f"<object><name>{name}</name>{bndbox or box()}{more}</object>"


def annotation(*objects: str, size: str = SIZE) -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def lay_out(folder: Path, xml_by_id: dict[str, str], split: str = "trainval") -> Path:
    """Makes a layout folder in which every id has an image."""
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for image_id, xml in xml_by_id.items():
        (folder / "Annotations" / f"{image_id}.xml").write_text(xml)
        (folder / "JPEGImages" / f"{image_id}.jpg").write_bytes(IMAGE)
    lines = "".join(f"{image_id}\n" for image_id in xml_by_id)
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return folder


def one(tmp_path: Path, xml: str, **options: object) -> Dataset:
    return read_voc(lay_out(tmp_path, {"a": xml}), "trainval", **options)


def names(dataset: Dataset, index: int = 0) -> list[str]:
    return [dataset.classes[label] for label in dataset.annotations[index].labels]


def test_real_dataset_lists_its_faults_or_leaves_out_just_those(shared: Path) -> None:
    root = shared / "data" / "bccd" / "VOCdevkit" / "BCCD"
    with pytest.raises(DataError, match="2 faults") as caught:
        read_voc(root, "trainval")
    message = str(caught.value)
    assert "BloodImage_00338.xml, object 13 ('RBC'): its box (504, 337, 504, 337)" in message
    assert "BloodImage_00343.xml, object 4 ('RBC'): its box (181, 329, 181, 329)" in message

    dataset = read_voc(root, "trainval", on_bad="skip")
    assert len(dataset) == 292
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert [fault.file.stem for fault in dataset.faults] == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    written = sum(
        len(ElementTree.parse(root / "Annotations" / f"{item.image_id}.xml").findall("object"))
        for item in dataset.annotations
    )
    assert sum(dataset.objects_per_class.values()) == written - 2
    test = read_voc(root, "test", classes=dataset.classes)
    assert len(test) == 72
    assert not test.faults


def test_devkit_annotations_are_read_without_images(shared: Path) -> None:
    root = shared / "data" / "voc-devkit-goldens"
    dataset = read_voc(root, "2007:test", images="ignore")
    assert (dataset.name, len(dataset), len(dataset.classes)) == ("2007:test", 250, 20)
    for item in dataset.annotations:
        tree = ElementTree.parse(root / "VOC2007" / "Annotations" / f"{item.image_id}.xml")
        expected = sorted(
            (
                element.findtext("name"),
                *(float(element.findtext(f"bndbox/{tag}")) for tag in CORNERS),
                element.findtext("difficult") == "1",
            )
            for element in tree.iter("object")
        )
        read = sorted(
            (dataset.classes[label], *map(float, corners), bool(flag))
            for label, corners, flag in zip(item.labels, item.boxes_px, item.difficult, strict=True)
        )
        assert read == expected
    assert any(item.difficult.any() for item in dataset.annotations)
    with pytest.raises(DataError, match="JPEGImages"):
        read_voc(root, "2007:test")


def test_boxes_are_as_written_and_divided_by_the_size(tmp_path: Path) -> None:
    dataset = one(tmp_path, annotation(thing(bndbox=box(1, "2.5", 100, 50))))
    (item,) = dataset.annotations
    np.testing.assert_array_equal(item.boxes_px, np.float32([[1, 2.5, 100, 50]]))
    np.testing.assert_array_equal(item.boxes, np.float32([[0.01, 0.05, 1, 1]]))
    assert item.boxes.dtype == item.boxes_px.dtype == np.float32
    assert (item.width_px, item.height_px) == (WIDTH, HEIGHT)
    assert item.image_path == tmp_path / "JPEGImages" / "a.jpg"


def test_objects_are_grouped_by_class_in_order_of_first_appearance(tmp_path: Path) -> None:
    order = ["dog", "cat", "dog", "ant", "cat", "dog"]
    things = [thing(name, box(xmin=place + 1)) for place, name in enumerate(order)]
    dataset = one(tmp_path, annotation(*things))
    assert dataset.classes == ("ant", "cat", "dog")
    assert names(dataset) == ["dog", "dog", "dog", "cat", "cat", "ant"]
    assert dataset.annotations[0].boxes_px[:, 0].tolist() == [1, 3, 6, 2, 5, 4]
    assert dataset.objects_per_class == {"ant": 1, "cat": 2, "dog": 3}


def test_body_parts_are_no_objects(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{box(1, 1, 9, 9)}<difficult>1</difficult></part>"
    for place in (thing("person", part + box()), thing("person", box(), part)):
        dataset = one(tmp_path, annotation(place))
        assert names(dataset) == ["person"]
        assert dataset.annotations[0].boxes_px.tolist() == [[10, 5, 40, 45]]
        assert not dataset.annotations[0].difficult.any()


def test_difficult_is_read_wherever_it_stands(tmp_path: Path) -> None:
    flag = "<difficult>1</difficult>"
    things = [thing(bndbox=flag + box()), thing(more=flag), thing(), thing(more="<difficult/>")]
    dataset = one(tmp_path, annotation(*things))
    assert dataset.annotations[0].difficult.tolist() == [True, True, False, False]


def test_an_image_without_objects_is_kept(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"empty": annotation(), "full": annotation(thing())})
    dataset = read_voc(root, "trainval")
    assert [item.image_id for item in dataset.annotations] == ["empty", "full"]
    assert dataset.annotations[0].boxes.shape == (0, 4)
    assert dataset.annotations[0].labels.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b\r\n\r\na\r\n", ["b", "a"]),
        ("\ufeffa\nb", ["a", "b"]),
        ("a  1\nb -1\nc\t0\n", ["a", "c"]),
        ("  a \n\n\n", ["a"]),
        ("my cat 7\na", ["my cat 7", "a"]),
    ],
)
def test_forms_of_lists(tmp_path: Path, text: str, expected: list[str]) -> None:
    root = lay_out(tmp_path, dict.fromkeys(["a", "b", "c", "my cat 7"], annotation(thing())))
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(text.encode())
    dataset = read_voc(root, "train")
    assert [item.image_id for item in dataset.annotations] == expected


def spaced(tmp_path: Path, ids: list[str], text: str) -> Dataset:
    root = lay_out(tmp_path, dict.fromkeys(ids, annotation(thing())))
    (root / "ImageSets" / "Main" / "train.txt").write_text(text)
    return read_voc(root, "train")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Before, the first line was read as `photo`, and the last one was left out.
        ("photo 1\nphoto 2\nphoto -1\n", ["photo 1", "photo 2", "photo -1"]),
        ("photo 1\nphoto 0\n", ["photo 1", "photo 0"]),
        ("photo 1  1\nphoto 2 -1\nphoto  0\n", ["photo 1", "photo"]),
        ("photo 1 1\nphoto 2  0\n", ["photo 1", "photo 2"]),
        ("photo  1\nphoto 2 -1\n", ["photo"]),
    ],
)
def test_a_word_is_a_flag_only_if_no_file_has_the_whole_line_as_its_id(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    ids = ["photo", "photo 0", "photo 1", "photo 2", "photo -1"]
    if "photo 2 -1" in text:
        ids.remove("photo -1")
    dataset = spaced(tmp_path, ids, text)
    assert [item.image_id for item in dataset.annotations] == expected


def test_flags_must_be_on_every_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b 1\.xml: does not exist"):
        spaced(tmp_path, ["a", "b"], "a\nb 1\n")


@pytest.mark.parametrize(
    "line",
    [
        "a.jpg",
        "a.JPG",
        "images\\a.jpg",
        "train/a.jpg",
        "./JPEGImages/a.jpg",
        "data/obj_train_data/a.jpg",
        "cells/JPEGImages/a",
        "a.png",
    ],
)
def test_a_line_may_be_a_file_name_or_a_path(tmp_path: Path, line: str) -> None:
    dataset = spaced(tmp_path, ["a", "b"], f"{line}\nb\n")
    assert [item.image_id for item in dataset.annotations] == ["a", "b"]
    assert dataset.annotations[0].image_path == tmp_path / "JPEGImages" / "a.jpg"


def test_ids_may_have_folders(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"x": annotation()})
    for side, name in (("left", "cat"), ("right", "dog")):
        (root / "Annotations" / side).mkdir()
        (root / "JPEGImages" / side).mkdir()
        (root / "Annotations" / side / "1.xml").write_text(annotation(thing(name)))
        (root / "JPEGImages" / side / "1.jpg").write_bytes(IMAGE)
    (root / "ImageSets" / "Main" / "train.txt").write_text("left/1\nimages\\right\\1.jpg\n")
    dataset = read_voc(root, "train")
    assert [item.image_id for item in dataset.annotations] == ["left/1", "right/1"]
    assert [names(dataset, place) for place in (0, 1)] == [["cat"], ["dog"]]
    assert dataset.annotations[1].image_path == root / "JPEGImages" / "right" / "1.jpg"


def test_other_spellings_of_the_layout(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "a", {"1": annotation(thing())})
    (root / "Annotations" / "1.xml").rename(root / "Annotations" / "1.XML")
    (root / "JPEGImages").rename(root / "images")
    assert read_voc(root, "trainval").annotations[0].image_path == root / "images" / "1.jpg"
    (root / "images").rename(root / "JpegImages")
    assert read_voc(root, "trainval").annotations[0].image_path == root / "JpegImages" / "1.jpg"
    (root / "ImageSets" / "Main" / "trainval.txt").rename(root / "ImageSets" / "all.txt")
    (root / "ImageSets" / "Main").rmdir()
    assert read_dataset(root, "all").annotations[0].image_id == "1"
    assert open_dataset(root).format == "PASCAL VOC"


def test_the_layout_may_lie_in_a_folder_of_the_archive(tmp_path: Path) -> None:
    lay_out(tmp_path / "x" / "BCCD", {"1": annotation(thing())})
    assert known_splits(tmp_path / "x") == known_splits(tmp_path) == ("trainval",)
    with zipfile.ZipFile(tmp_path / "BCCD.zip", "w") as archive:
        for path in (tmp_path / "x").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "x"))
    assert known_splits(tmp_path / "BCCD.zip") == ("trainval",)
    assert len(read_dataset(tmp_path / "BCCD.zip", "trainval")) == 1


def test_lists_of_classes_without_a_list_of_the_split(tmp_path: Path) -> None:
    """As VoTT writes them: each list has all images of the split, with their suffix."""
    root = lay_out(tmp_path, dict.fromkeys("abc", annotation(thing())))
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").unlink()
    (lists / "cat_train.txt").write_text("a.jpg 1\nb.jpg -1\n")
    (lists / "dog_train.txt").write_text("a.jpg -1\nb.jpg 1\n")
    (lists / "cat_val.txt").write_text("c.jpg -1\n")
    assert known_splits(root) == ("train", "val")
    for split, expected in (("train", ["a", "b"]), ("val", ["c"]), ("cat_train", ["a"])):
        dataset = read_voc(root, split)
        assert [item.image_id for item in dataset.annotations] == expected


@pytest.mark.parametrize(
    "line", ["../a", "/etc/passwd", "sub/../../a", "C:\\a", "C:a", "..", "a\0", "a\x1b[0m", "a"]
)
def test_bad_lines_are_faults(tmp_path: Path, line: str) -> None:
    root = lay_out(tmp_path, {"a": annotation(thing())})
    (root / "ImageSets" / "Main" / "train.txt").write_text(f"a\n\n{line}\n")
    with pytest.raises(DataError, match=r"train\.txt, line 3: "):
        read_voc(root, "train")
    dataset = read_voc(root, "train", on_bad="skip")
    assert len(dataset) == len(dataset.faults) == 1


def test_an_image_in_two_splits_is_a_fault(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"a": annotation(thing())}, "train")
    lay_out(root, {"b": annotation(thing()), "a": annotation(thing())}, "val")
    with pytest.raises(DataError, match=r"val\.txt, line 2: 'a' is listed already, in .*train"):
        read_voc(root, "train+val")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"a -1\n", b"a\xff\n"])
def test_lists_of_nothing_are_refused(tmp_path: Path, content: bytes) -> None:
    root = lay_out(tmp_path, {"a": annotation(thing())})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.txt"):
        read_voc(root, "train", on_bad="skip")


def bad_box(corner: str, text: object) -> str:
    return annotation(thing(bndbox=box(**{corner: text})))


BAD_OBJECTS = {
    "empty box": (bad_box("xmax", 10), "(10, 5, 10, 45) is empty"),
    "inverted box": (bad_box("ymax", 4), "is empty"),
    "outside": (bad_box("xmax", 101.5), "leaves the image of 100 x 50"),
    "far outside": (bad_box("ymax", 10**9), "leaves the image"),
    "negative": (bad_box("xmin", -2), "leaves the image"),
    "nothing left of it": (annotation(thing(bndbox=box(100, 5, 101, 45))), "is empty"),
    "no exponent": (bad_box("xmax", "1e"), "<xmax> is '1e', not a plain number"),
    "huge exponent": (bad_box("xmax", "1e999"), "<xmax> is '1e999', not a plain number"),
    "underscore": (bad_box("xmax", "4_0"), "not a plain number"),
    "not a number": (bad_box("xmin", "nan"), "not a plain number"),
    "infinite": (bad_box("xmax", "inf"), "not a plain number"),
    "full width": (bad_box("xmax", "\uff14\uff10"), "not a plain number"),
    "hexadecimal": (bad_box("xmax", "0x20"), "not a plain number"),
    "no digits": (bad_box("xmax", ""), "not a plain number"),
    "5000 digits": (bad_box("xmax", "9" * 5000), "not a plain number"),
    "two boxes": (annotation(thing(bndbox=box() + box())), "has 2 <bndbox>"),
    "no box": (annotation("<object><name>cat</name></object>"), "has no <bndbox>"),
    "no corner": (annotation(thing(bndbox="<bndbox><xmin>1</xmin></bndbox>")), "has no <ymin>"),
    "no name": (annotation(f"<object>{box()}</object>"), "has no <name>"),
    "empty name": (annotation(thing(" ")), "<name> is empty"),
    "difficult": (annotation(thing(more="<difficult>yes</difficult>")), "<difficult> is 'yes'"),
    "other class": (annotation(thing("unicorn")), "its class is not one of cat, dog"),
}


@pytest.mark.parametrize(("xml", "reason"), BAD_OBJECTS.values(), ids=BAD_OBJECTS.keys())
def test_bad_objects_are_faults(tmp_path: Path, xml: str, reason: str) -> None:
    xml = xml.replace(SIZE, SIZE + thing("dog"))
    with pytest.raises(DataError) as caught:
        one(tmp_path, xml, classes=("cat", "dog"))
    assert caught.value.remedy
    dataset = one(tmp_path, xml, classes=("cat", "dog"), on_bad="skip")
    (fault,) = dataset.faults
    assert str(fault) in str(caught.value)
    assert str(fault).startswith(f"{tmp_path / 'Annotations' / 'a.xml'}, object 2 (")
    assert reason in fault.reason
    assert names(dataset) == ["dog"]


BAD_FILES = {
    "empty": ("", "is not XML"),
    "cut short": (annotation(thing())[:-20], "is not XML"),
    "two roots": (annotation() * 2, "is not XML"),
    "NUL": (annotation(thing("\0")), "is not XML"),
    "unknown encoding": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not XML"),
    "multi-byte encoding": ('<?xml version="1.0" encoding="gbk"?><annotation/>', "is not XML"),
    "other root": (f"<annotations>{SIZE}</annotations>", "not 'annotation'"),
    "namespace": ('<annotation xmlns="urn:x"></annotation>', "not 'annotation'"),
    "DTD": ("<!DOCTYPE annotation><annotation/>", "has a DTD"),
    "entity": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "has a DTD"),
    "external": ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "has a DTD"),
    "over 1 MiB": (annotation(size=SIZE + " " * 2**20), "the limit is 1048576"),
    "other size": (
        annotation(size=SIZE.replace("100", "50")),
        "50 x 50, but its image is 100 x 50",
    ),
    "no number": (annotation(size=SIZE.replace("100", "wide")), "<width> is 'wide'"),
    "two widths": (
        annotation(size=SIZE.replace("<depth>", "<width>1</width><depth>")),
        "has 2 <width>",
    ),
}


@pytest.mark.parametrize(("xml", "reason"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_annotations_leave_the_image_out(tmp_path: Path, xml: str, reason: str) -> None:
    root = lay_out(tmp_path, {"good": annotation(thing()), "bad": xml})
    with pytest.raises(DataError, match="1 fault"):
        read_voc(root, "trainval")
    dataset = read_voc(root, "trainval", on_bad="skip")
    assert [item.image_id for item in dataset.annotations] == ["good"]
    (fault,) = dataset.faults
    assert fault.file == root / "Annotations" / "bad.xml"
    assert reason in fault.reason


def test_growing_entities_are_refused_at_once(tmp_path: Path) -> None:
    entities = "".join(
        f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' if n else '<!ENTITY e0 "ha">' for n in range(12)
    )
    # Expanded, it would have 10^11 entities and never come back.
    with pytest.raises(DataError, match="has a DTD"):
        one(tmp_path, f"<!DOCTYPE a [{entities}]><annotation>&e11;</annotation>")


def test_depth_does_not_overflow(tmp_path: Path) -> None:
    deep = annotation(thing(), "<x>" * 100_000 + "</x>" * 100_000)
    assert names(one(tmp_path, deep)) == ["cat"]


def remove_xml(root: Path) -> Path:
    path = root / "Annotations" / "b.xml"
    path.unlink()
    return path


def remove_image(root: Path) -> Path:
    path = root / "JPEGImages" / "b.jpg"
    path.unlink()
    return path


def cut_image(root: Path) -> Path:
    path = root / "JPEGImages" / "b.jpg"
    path.write_bytes(IMAGE[:-40])
    return path


def not_an_image(root: Path) -> Path:
    path = root / "JPEGImages" / "b.jpg"
    path.write_text("<html>404</html>")
    return path


@pytest.mark.parametrize("spoil", [remove_xml, remove_image, cut_image, not_an_image])
def test_missing_and_damaged_files_are_faults(
    tmp_path: Path, spoil: Callable[[Path], Path]
) -> None:
    root = lay_out(tmp_path, dict.fromkeys("abc", annotation(thing())))
    path = spoil(root)
    with pytest.raises(DataError, match=f"1 fault\n  {path}: "):
        read_voc(root, "trainval")
    dataset = read_voc(root, "trainval", on_bad="skip")
    assert [item.image_id for item in dataset.annotations] == ["a", "c"]
    assert [fault.file for fault in dataset.faults] == [path]


def test_images_may_be_ignored(tmp_path: Path) -> None:
    root = lay_out(tmp_path, {"a": annotation(thing())})
    remove_image(lay_out(root, {"b": annotation(thing())}, "val"))
    assert len(read_voc(root, "val", images="ignore")) == 1
    lay_out(root, {"b": annotation(thing(), size="")}, "val")
    with pytest.raises(DataError, match="has no size above 0"):
        read_voc(root, "val", images="ignore")


def test_a_missing_size_is_the_images_own(tmp_path: Path) -> None:
    zero = SIZE.replace("100", "0").replace("50", "0")
    xml = {"a": annotation(thing(), size=""), "b": annotation(thing(), size=zero)}
    dataset = read_voc(lay_out(tmp_path, xml), "trainval")
    assert [(a.width_px, a.height_px) for a in dataset.annotations] == [(WIDTH, HEIGHT)] * 2
    assert dataset.notes == (
        Note("size-missing", "2 annotations without a size: the image's size is used"),
    )


def test_a_pixel_outside_is_clipped_and_noted(tmp_path: Path) -> None:
    inside, outside = box(0, 0, 100, 50), box(-1, "-0.5", 101, 51)
    dataset = one(tmp_path, annotation(thing(bndbox=inside), thing(bndbox=outside)))
    assert dataset.annotations[0].boxes_px.tolist() == [[0, 0, 100, 50]] * 2
    assert dataset.notes == (
        Note("box-clipped", "1 boxes that left their image by up to a pixel were clipped"),
    )


def test_the_message_lists_twenty_faults_and_counts_the_rest(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, annotation(thing(), *[thing(bndbox=box(xmax=0))] * 33))
    message = str(caught.value)
    assert "33 faults" in message
    assert message.count(" is empty") == 20
    assert "and 13 more" in message
    assert "--on-bad skip" in message


def test_skipping_is_proposed_only_if_it_leaves_objects(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\nCorrect the files\.$"):
        one(tmp_path / "a", annotation(thing(bndbox=box(xmax=0))))
    with pytest.raises(DataError, match="use --on-bad skip"):
        one(tmp_path / "b", annotation(thing(bndbox=box(xmax=0)), thing()))


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_swapped_sides_are_explained_by_the_exif_orientation(
    tmp_path: Path, orientation: int
) -> None:
    size = "<size><width>50</width><height>100</height></size>"
    root = lay_out(tmp_path, {"a": annotation(thing(), size=size)})
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / "a.jpg", exif=exif)
    with pytest.raises(
        DataError, match="its size is 50 x 100, but its image is 100 x 50"
    ) as caught:
        read_voc(root, "trainval")
    explained = "its EXIF orientation, which is not applied, swaps the sides" in str(caught.value)
    assert explained == (orientation >= 5)


def test_a_fault_is_one_line() -> None:
    text = str(Fault("xml-root", Path("a\nb.xml"), "object 1", "is \x1b[31mred\u2028"))
    assert text == "a\\nb.xml, object 1: is \\x1b[31mred\\u2028"


def test_leaving_out_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image of trainval can be used"):
        one(tmp_path, "", on_bad="skip")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """Two years, of which 2007 alone has a test split, in the folder VOCdevkit."""
    for year, image_id in ((2007, "000001"), (2012, "2012_000001")):
        lay_out(tmp_path / "VOCdevkit" / f"VOC{year}", {image_id: annotation(thing())})
    lay_out(tmp_path / "VOCdevkit" / "VOC2007", {"000002": annotation(thing())}, "test")
    return tmp_path


@pytest.mark.parametrize(
    ("below", "splits", "name"),
    [
        ("", "2007:trainval+2012:trainval", "2007:trainval+2012:trainval"),
        ("VOCdevkit", "2012:trainval+2007:trainval", "2012:trainval+2007:trainval"),
        ("VOCdevkit", "trainval", "2007:trainval+2012:trainval"),
        ("VOCdevkit", "test", "2007:test"),
        ("VOCdevkit", "trainval+2007:trainval+test", "2007:trainval+2012:trainval+2007:test"),
        ("VOCdevkit/VOC2007", "trainval", "2007:trainval"),
        ("VOCdevkit/VOC2012", "2012:trainval", "2012:trainval"),
    ],
)
def test_years(devkit: Path, below: str, splits: str, name: str) -> None:
    dataset = read_voc(devkit / below, splits)
    assert dataset.name == name
    assert dataset.notes == ()
    ids = {"2007:trainval": "000001", "2012:trainval": "2012_000001", "2007:test": "000002"}
    assert [a.image_id for a in dataset.annotations] == [ids[part] for part in name.split("+")]


def test_a_folder_without_a_year_is_taken_for_any_once(tmp_path: Path) -> None:
    root = lay_out(tmp_path / "cells", {"a": annotation(thing())})
    dataset = read_voc(root, "2007:trainval+2012:trainval")
    assert (dataset.name, len(dataset)) == ("trainval", 1)
    assert dataset.notes == (
        Note("read-otherwise", "2007:trainval+2012:trainval was read as trainval"),
    )


@pytest.mark.parametrize(
    ("below", "splits"),
    [
        ("", "2012:test"),
        ("", "2010:trainval"),
        ("", "tset"),
        ("", "trainval+"),
        ("", ""),
        ("", "../trainval"),
        ("VOCdevkit/VOC2007", "2012:trainval"),
    ],
)
def test_missing_splits_are_refused_with_those_there_are(
    devkit: Path, below: str, splits: str
) -> None:
    with pytest.raises(DataError, match="has no split") as caught:
        read_voc(devkit / below, splits)
    assert "Choose from 2007:test, 2007:trainval" in str(caught.value.remedy)


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="VOC<year>"):
        read_voc(tmp_path / "absent", "test")
    with pytest.raises(DataError, match="VOC<year>"):
        read_voc(tmp_path, "test")
    root = lay_out(tmp_path / "VOCdevkit" / "cells", {"a": annotation(thing())})
    assert len(read_voc(tmp_path, "trainval")) == 1
    other = lay_out(tmp_path / "VOCdevkit" / "more", {"a": annotation(thing())})
    with pytest.raises(DataError, match=f"Use {root} or {other}"):
        read_voc(tmp_path, "trainval")


def test_classes_decide_labels_and_must_have_objects(tmp_path: Path) -> None:
    xml = annotation(thing("dog"), thing("cat"))
    dataset = one(tmp_path, xml, classes=("dog", "cat"))
    assert dataset.annotations[0].labels.tolist() == [0, 1]
    require_objects(dataset)
    lacking = one(tmp_path, xml, classes=("bird", "dog", "cat", "ant"))
    assert lacking.annotations[0].labels.tolist() == [1, 2]
    with pytest.raises(DataError, match="'bird', 'ant'"):
        require_objects(lacking)
    with pytest.raises(DataError, match="any class"):
        require_objects(one(tmp_path, annotation()))


def test_digest_tells_any_change_and_not_the_place(tmp_path: Path) -> None:
    def digest(folder: str, *objects: str, **options: object) -> str:
        return one(tmp_path / folder, annotation(*objects), **options).digest

    original = digest("here", thing(), thing("dog"))
    assert len(original) == 16
    assert digest("there", thing(), thing("dog")) == original
    others = {
        digest("here", thing()),
        digest("here", thing("dog"), thing()),
        digest("here", thing(), thing("cow")),
        digest("here", thing(), thing("dog", box(xmin=11))),
        digest("here", thing(), thing("dog", more="<difficult>1</difficult>")),
        digest("here", thing(), thing("dog"), classes=("dog", "cat")),
    }
    assert len(others | {original}) == 7


def test_nothing_is_written(devkit: Path) -> None:
    def state() -> dict[Path, tuple[int, str]]:
        return {
            path: (
                path.stat().st_mtime_ns,
                hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            )
            for path in devkit.rglob("*")
        }

    before = state()
    read_voc(devkit, "trainval+test")
    assert state() == before


FRAGMENTS = st.sampled_from(
    [
        *(b"<object>", b"</object>", b"<name>", b"</bndbox>", b"<difficult>", b"<size>"),
        *(b"<!DOCTYPE x>", b"<![CDATA[", b"&#0;", b"\xff", b"\0", b"", b"-", b"1e9", b"9" * 20),
    ]
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), FRAGMENTS), max_size=4))
def test_mutated_annotations_are_read_or_named(
    tmp_path: Path, edits: list[tuple[float, int, bytes]]
) -> None:
    data = annotation(thing(), thing("dog", more="<difficult>1</difficult>")).encode()
    for place, removed, inserted in edits:
        start = round(place * len(data))
        data = data[:start] + inserted + data[start + removed :]
    root = lay_out(tmp_path, {"a": annotation(), "b": ""})
    (root / "Annotations" / "b.xml").write_bytes(data)
    dataset = read_voc(root, "trainval", on_bad="skip")
    if len(dataset) == 1:
        assert dataset.faults
        return
    boxes = dataset.annotations[1].boxes
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert ((boxes >= 0) & (boxes <= 1)).all()
