"""VOC's XML files anywhere in a folder: which image each belongs to, and what each tool writes."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from multibox.data.check.dataset_checks import check_dataset
from multibox.data.dataset import Dataset, Note
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

IMAGE = simplejpeg.encode_jpeg(np.full((50, 100, 3), 90, np.uint8))
SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"
BOX = "<bndbox><xmin>10</xmin><ymin>5</ymin><xmax>40</xmax><ymax>45</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


def annotation(*objects: str, head: str = "") -> str:
    return f"<annotation>{head}{SIZE}{''.join(objects or (CAT,))}</annotation>"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """Writes files. An image's content is the same everywhere."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def folder(root: Path, *names: str, xml: str = "") -> Path:
    """Writes images, and the same annotation into all .xml files."""
    content = {n: (xml or annotation()) if n.lower().endswith(".xml") else IMAGE for n in names}
    return write(root, content)


def pairs(dataset: Dataset, root: Path) -> dict[str, str]:
    return {a.image_id: str(a.image_path.relative_to(root)) for a in dataset.annotations}


@pytest.mark.parametrize(
    "names",
    [
        ("a.jpg", "a.xml"),
        ("images/a.jpg", "annotations/a.xml"),
        ("images/a.jpg", "annots/a.xml"),
        ("images/a.jpg", "labels/a.xml"),
        ("images/a.jpg", "Annotations/xmls/a.xml"),
        ("images/a.jpg", "xml/a.xml"),
        ("JPEGImages/a.jpg", "Annotations/a.xml"),
        ("JPEGImages/a.jpg", "Annotations/a.XML"),
        ("deep/er/images/a.jpg", "deep/er/annotations/a.xml"),
        ("a.jpg", "a.jpg.xml"),
        ("a b (1).JPG", "a b (1).xml"),
        ("left/a.jpg", "right/a.xml", "notes.json", "classes.txt", ".DS_Store"),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = folder(tmp_path, *names)
    assert known_splits(root) == ("all",)
    dataset = read_dataset(root, "all")
    assert [a.image_path for a in dataset.annotations] == [root / names[0]]
    assert dataset.annotations[0].boxes_px.tolist() == [[10, 5, 40, 45]]
    assert dataset.classes == ("cat",)
    assert not dataset.notes


def test_an_archive_is_read_without_unpacking(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x/images/a.jpg", IMAGE)
        archive.writestr("x/annotations/a.xml", annotation())
    assert open_dataset(tmp_path / "x.zip").format == "VOC XML"
    assert len(read_dataset(tmp_path / "x.zip", "all")) == 1


def test_each_split_has_its_folders(tmp_path: Path) -> None:
    names = [f"{s}/{n}{x}" for s, n in (("train", "a"), ("valid", "b")) for x in (".jpg", ".xml")]
    root = folder(tmp_path, *names, "test/images/c.jpg", "test/labels/c.xml")
    assert known_splits(root) == ("test", "train", "valid")
    assert pairs(read_dataset(root, "train+test"), root) == {
        "a": "train/a.jpg",
        "c": "test/images/c.jpg",
    }
    other = folder(tmp_path / "other", "images/train/a.jpg", "images/val/b.jpg", "xml/a.xml")
    folder(other, "xml/b.xml")
    assert known_splits(other) == ("train", "val")
    assert pairs(read_dataset(other, "val"), other) == {"b": "images/val/b.jpg"}
    same = folder(tmp_path / "same", "images/train/1.jpg", "images/val/1.jpg")
    folder(same, "annotations/train/1.xml", "annotations/val/1.xml")
    assert pairs(read_dataset(same, "val"), same) == {"1": "images/val/1.jpg"}


def test_a_picture_of_a_train_is_in_no_split(tmp_path: Path) -> None:
    root = folder(tmp_path, "bus_1.jpg", "bus_1.xml", "train_1.jpg", "train_1.xml")
    assert known_splits(root) == ("all",)
    assert len(read_dataset(root, "all")) == 2


@pytest.mark.parametrize(
    ("files", "splits", "expected"),
    [
        ({"train.txt": "a\nb\n", "val.txt": "c\n"}, ("train", "val"), "ab"),
        ({"ImageSets/train.txt": "b\na\n"}, ("train",), "ba"),
        ({"ImageSets/Main/train.txt": "a.jpg\nJPEGImages/b.jpg\n"}, ("train",), "ab"),
        ({"trainval.txt": "a  1\nb -1\nc  0\n"}, ("trainval",), "ac"),
        (
            {"train_list.txt": "./JPEGImages/a.jpg ./xml/a.xml\nJPEGImages/c.jpg xml/c.xml\n"},
            ("train",),
            "ac",
        ),
        ({"train.txt": "cat\ndog\n"}, ("all",), "abc"),
        ({"readme.txt": "a\nb\n"}, ("all",), "abc"),
    ],
)
def test_lists_are_optional(
    tmp_path: Path, files: dict[str, str], splits: tuple[str, ...], expected: str
) -> None:
    root = folder(tmp_path, *[f"{n}.{x}" for n in "abc" for x in ("jpg", "xml")])
    write(root, dict(files))
    assert known_splits(root) == splits
    dataset = read_dataset(root, splits[0])
    assert "".join(a.image_id for a in dataset.annotations) == expected


def test_faults_of_lists(tmp_path: Path) -> None:
    root = folder(tmp_path, *[f"{n}.{x}" for n in "ab" for x in ("jpg", "xml")])
    write(root, {"train.txt": "a\nx\na\n"})
    dataset = read_dataset(root, "train", on_bad="skip")
    assert [(f.kind, f.file, f.position) for f in dataset.faults] == [
        ("annotation-missing", root / "train.txt", "line 2"),
        ("listed-twice", root / "train.txt", "line 3"),
    ]


@pytest.mark.parametrize(
    ("head", "image"),
    [
        ("<filename>photo.jpg</filename>", "images/photo.jpg"),
        ("<filename>photo</filename>", "images/photo.jpg"),
        ("<filename>C:\\data\\photo.jpg</filename>", "images/photo.jpg"),
        ("<filename>x</filename><path>/home/bob/photo.jpg</path>", "images/photo.jpg"),
        ("<filename>x</filename><path>D:\\my pictures\\photo.jpg</path>", "images/photo.jpg"),
        ("<filename>other.jpg</filename>", "images/001.jpg"),
        ("<filename>&lt;a&gt; &amp; b.jpg</filename>", "images/<a> & b.jpg"),
    ],
)
def test_the_image_of_an_annotation(tmp_path: Path, head: str, image: str) -> None:
    """The annotation's own name comes first, then <filename>, then <path>."""
    root = write(tmp_path, {"xml/001.xml": annotation(head=head), image: IMAGE})
    dataset = read_dataset(root, "all")
    assert [a.image_path for a in dataset.annotations] == [root / image]


def test_images_of_the_same_name_in_two_folders(tmp_path: Path) -> None:
    names = [f"{kind}/{side}/1.{x}" for side in "LR" for kind, x in (("i", "jpg"), ("x", "xml"))]
    root = folder(tmp_path, *names)
    assert pairs(read_dataset(root, "all"), root) == {
        "i/L/1.jpg": "i/L/1.jpg",
        "i/R/1.jpg": "i/R/1.jpg",
    }
    unclear = folder(tmp_path / "unclear", "i/L/1.jpg", "i/R/1.jpg", "x/1.xml")
    with pytest.raises(DataError, match=r"may be i/L/1\.jpg or i/R/1\.jpg"):
        read_dataset(unclear, "all")


@pytest.mark.parametrize(
    ("image", "xml", "other"),
    [
        ("a.png", "a.xml", "masks/a.png"),
        ("images/a.png", "annotations/a.xml", "masks/a.png"),
        ("JPEGImages/a.png", "Annotations/xmls/a.xml", "SegmentationClass/a.png"),
        ("train/images/a.png", "train/labels/a.xml", "train/masks/a.png"),
        ("thumbs/a.jpg", "thumbs/a.xml", "a.jpg"),
    ],
)
def test_a_near_image_is_used_although_another_has_its_name(
    tmp_path: Path, image: str, xml: str, other: str
) -> None:
    root = folder(tmp_path, image, xml, other)
    dataset = read_dataset(root, known_splits(root)[0])
    assert [item.image_path for item in dataset.annotations] == [root / image]


def test_the_image_beside_an_annotation_comes_first(tmp_path: Path) -> None:
    root = folder(tmp_path, "1.jpg", "1.xml", "sub/1.jpg", "sub/1.xml")
    assert pairs(read_dataset(root, "all"), root) == {"1.jpg": "1.jpg", "sub/1.jpg": "sub/1.jpg"}


def test_accented_letters_may_be_decomposed(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "xml/1.xml": annotation(head="<filename>caf\u00e9.jpg</filename>"),
            "images/cafe\u0301.jpg": IMAGE,
        },
    )
    assert len(read_dataset(root, "all")) == 1


def test_two_annotations_of_one_image_are_a_fault(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg", "a.xml", "copy/a.xml")
    with pytest.raises(DataError, match=r"its image 'a\.jpg' has another annotation, .*a\.xml"):
        read_dataset(root, "all")


def test_images_without_annotation_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.jpg", "a.xml", "b.jpg", "c.jpg", "masks/m.png")
    dataset = read_dataset(root, "all")
    assert len(dataset) == 1
    assert dataset.notes == (
        Note("image-unannotated", "2 images without an annotation were left out"),
    )
    write(root, {"b.xml": f"<annotation>{SIZE}</annotation>"})
    assert len(read_dataset(root, "all")) == 2


@pytest.mark.parametrize("spoil", ["", "<annotation>", "<!DOCTYPE a><annotation/>"])
def test_damaged_annotations_are_faults(tmp_path: Path, spoil: str) -> None:
    root = write(folder(tmp_path, "a.jpg", "a.xml", "b.jpg"), {"b.xml": spoil})
    with pytest.raises(DataError, match=r"1 fault\n  .*b\.xml: "):
        read_dataset(root, "all")
    assert len(read_dataset(root, "all", on_bad="skip")) == 1


def test_a_missing_image_is_a_fault(tmp_path: Path) -> None:
    root = write(folder(tmp_path, "a.jpg", "a.xml"), {"b.xml": annotation()})
    with pytest.raises(DataError, match=r"b\.xml: its image 'b' does not exist"):
        read_dataset(root, "all")
    assert len(read_dataset(root, "all", images="ignore")) == 2


def test_other_xml_files_are_not_annotations(tmp_path: Path) -> None:
    root = write(folder(tmp_path, "a.jpg", "a.xml"), {"z.xml": "<svg/>", "pom.xml": "<project/>"})
    dataset = read_dataset(root, "all")
    assert dataset.notes == (
        Note("read-otherwise", "2 XML files that are not annotations were ignored"),
    )
    lonely = write(tmp_path / "lonely", {"b.xml": "<svg/>", "b.jpg": IMAGE})
    with pytest.raises(DataError, match="no annotations in a known format"):
        open_dataset(lonely)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"a.xml": "<svg/>", "b.xml": "<svg/>"},
            "the first of its 2 .xml files, a.xml, has the root element 'svg', not 'annotation'",
        ),
        ({"x/a.xml": "cat"}, "the first of its 1 .xml files, x/a.xml, is not XML"),
        (
            {"ImageSets/Main/train.txt": "a\n"},
            "ImageSets/Main exists, but Annotations does not exist",
        ),
        ({"Annotations/a.md": ""}, "Annotations exists, but holds no .xml file"),
    ],
)
def test_an_unknown_folder_is_told_what_it_lacks(
    tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    root = write(tmp_path, {"a.jpg": IMAGE, **files})
    with pytest.raises(DataError) as caught:
        open_dataset(root)
    assert caught.value.kind == "layout-unknown"
    assert reason in str(caught.value)
    assert "It holds 1 images" in str(caught.value)


def encoded(text: str, encoding: str, declared: str) -> bytes:
    return f'<?xml version="1.0" encoding="{declared}"?>\n{text}'.encode(encoding)


NAMED = annotation(f"<object><name>k\xe4tzchen</name>{BOX}</object>")


@pytest.mark.parametrize(
    "data",
    [
        NAMED.encode(),
        NAMED.encode("utf-8-sig"),
        NAMED.replace(">", ">\r\n").encode(),
        b"\n \n" + encoded(NAMED, "utf-8", "utf-8"),
        encoded(NAMED, "utf-16", "utf-16"),
        encoded(NAMED, "utf-16-le", "utf-16"),
        encoded(NAMED, "utf-8", "utf-16"),
        encoded(NAMED, "latin-1", "iso-8859-1"),
        encoded(NAMED, "cp1252", "windows-1252"),
        f"<!-- by hand -->{NAMED}<!-- end -->".encode(),
        NAMED.replace("\xe4", "&#xe4;").encode(),
        NAMED.replace("k\xe4tzchen", "<![CDATA[k\xe4tzchen]]>").encode(),
    ],
)
def test_encodings(tmp_path: Path, data: bytes) -> None:
    root = write(tmp_path, {"a.jpg": IMAGE, "a.xml": data})
    assert read_dataset(root, "all").classes == ("k\xe4tzchen",)


def one_object(tmp_path: Path, thing: str, size: str = SIZE) -> Dataset:
    xml = f"<annotation>{size}{thing}</annotation>"
    return read_dataset(write(tmp_path, {"a.jpg": IMAGE, "a.xml": xml}), "all")


def corners(*values: object) -> str:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True)
    return f"<bndbox>{''.join(f'<{tag}> {value} </{tag}>' for tag, value in tags)}</bndbox>"


def test_numbers_with_fractions_and_exponents(tmp_path: Path) -> None:
    box = corners("1.25", "5e0", "4.0e+01", "4500E-2")
    dataset = one_object(tmp_path, f"<object><name>cat</name>{box}</object>")
    assert dataset.annotations[0].boxes_px.tolist() == [[1.25, 5, 40, 45]]


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width/><height/><depth/></size>",
        "<size><depth>3</depth></size>",
    ],
)
def test_a_size_may_be_missing(tmp_path: Path, size: str) -> None:
    dataset = one_object(tmp_path, CAT, size)
    assert (dataset.annotations[0].width_px, dataset.annotations[0].height_px) == (100, 50)
    assert [note.kind for note in dataset.notes] == ["size-missing"]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [("", False), ("<difficult/>", False), ("<difficult> 1 </difficult>", True)],
)
def test_difficult_may_be_missing_or_empty(tmp_path: Path, flag: str, expected: bool) -> None:
    thing = f"<object><name>cat</name><truncated/><occluded>0</occluded>{flag}{BOX}</object>"
    assert one_object(tmp_path, thing).annotations[0].difficult.tolist() == [expected]


LABELME = (
    "<polygon><pt><x>10</x><y>5</y></pt><pt><x>40.5</x><y>9</y></pt>"
    "<pt><x>20</x><y>45</y></pt><username>bob</username></polygon>"
)
ROBOFLOW = "<polygon><x1>10</x1><y1>5</y1><x2>40.5</x2><y2>9</y2><x3>20</x3><y3>45</y3></polygon>"


@pytest.mark.parametrize("outline", [LABELME, ROBOFLOW])
def test_an_outline_without_a_box(tmp_path: Path, outline: str) -> None:
    deleted = f"<object><name>dog</name><deleted>1</deleted>{LABELME}</object>"
    size = "<imagesize><nrows>50</nrows><ncols>100</ncols></imagesize>"
    thing = f"<object><name>cat</name>{outline}</object>{deleted}"
    dataset = one_object(tmp_path, thing, size)
    assert dataset.annotations[0].boxes_px.tolist() == [[10, 5, 40.5, 45]]
    assert dataset.notes == (
        Note("box-from-outline", "1 objects have an outline only: the box around it is used"),
    )
    both = one_object(tmp_path, f"<object><name>cat</name>{BOX}{outline}</object>")
    assert both.annotations[0].boxes_px.tolist() == [[10, 5, 40, 45]]
    assert not both.notes
    with pytest.raises(DataError, match="its outline has no points"):
        one_object(tmp_path, "<object><name>cat</name><polygon/></object>")


def test_a_rotated_box(tmp_path: Path) -> None:
    robndbox = "<cx>50</cx><cy>25</cy><w>40</w><h>20</h><angle>1.5707963267948966</angle>"
    thing = f"<object><name>cat</name><robndbox>{robndbox}</robndbox></object>"
    dataset = one_object(tmp_path, thing)
    np.testing.assert_allclose(dataset.annotations[0].boxes_px, [[40, 5, 60, 45]], atol=1e-5)
    assert dataset.notes == (
        Note("box-rotated", "1 boxes are rotated: the upright box around each is used"),
    )


def test_the_example_folder(shared: Path) -> None:
    dataset = read_dataset(shared / "data" / "raccoon", "all")
    assert (len(dataset), dataset.objects_per_class) == (200, {"raccoon": 217})
    assert not dataset.notes


def test_check_reads_the_folder(tmp_path: Path) -> None:
    root = folder(tmp_path, "images/a.jpg", "annots/a.xml")
    write(root, {"annots/b.xml": annotation(CAT.replace(">40<", ">9<")), "images/b.jpg": IMAGE})
    found = check_dataset(root, (), (), workers=1, progress=lambda *_: None)
    assert ("box-empty", root / "annots/b.xml", "object 1 ('cat')") in [
        (finding.kind, finding.file, finding.position) for finding in found.findings
    ]
    assert ("difficult-missing", root / "annots/a.xml") in [
        (finding.kind, finding.file) for finding in found.findings
    ]
