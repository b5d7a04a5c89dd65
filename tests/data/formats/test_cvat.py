"""CVAT's XML: images and videos, shapes, splits and faults."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from multibox.data.check.dataset_checks import check_dataset
from multibox.data.dataset import Dataset, Note
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.errors import DataError

IMAGE = simplejpeg.encode_jpeg(np.full((50, 100, 3), 90, np.uint8))
META = """<version>1.1</version><meta><task><name>t</name><size>4</size><labels>
<label><name>dog</name></label><label><name>cat</name></label><label><name>ant</name></label>
</labels><original_size><width>100</width><height>50</height></original_size></task></meta>"""
BOX = '<box label="cat" occluded="1" xtl="10.00" ytl="5.50" xbr="40.00" ybr="45.00" z_order="0"/>'


def image(name: str, *shapes: str, more: str = "") -> str:
    inside = "".join(shapes or (BOX,))
    return f'<image id="0" name="{name}" width="100" height="50" {more}>{inside}</image>'


def write(root: Path, *parts: str, name: str = "annotations.xml", images: str = "") -> Path:
    """Writes an annotation file, and the images, of which the names have spaces between them."""
    root.mkdir(exist_ok=True)
    (root / name).write_text(f"<annotations>{META}{''.join(parts)}</annotations>")
    for file in images.split():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(IMAGE)
    return root


def boxes(dataset: Dataset) -> dict[str, list[list[float]]]:
    return {item.image_id: item.boxes_px.tolist() for item in dataset.annotations}


def test_images_with_labels_in_the_order_of_the_task(tmp_path: Path) -> None:
    dog = BOX.replace("cat", "dog").replace("10.00", "11.25")
    hard = BOX.replace("/>", '><attribute name="difficult">true</attribute></box>')
    parts = image("left/a.jpg", BOX, dog), image("b.jpg", hard), image("c.jpg", " ")
    root = write(tmp_path, *parts, images="images/left/a.jpg images/b.jpg images/c.jpg")
    assert open_dataset(root).format == "CVAT XML"
    assert known_splits(root) == ("all",)
    dataset = read_dataset(root, "all")
    assert dataset.classes == ("dog", "cat")
    assert boxes(dataset) == {
        "a": [[10, 5.5, 40, 45], [11.25, 5.5, 40, 45]],
        "b": [[10, 5.5, 40, 45]],
        "c": [],
    }
    flags = {item.image_id: item.difficult.tolist() for item in dataset.annotations}
    assert flags == {"a": [False, False], "b": [True], "c": []}
    assert dataset.notes == (
        Note("category-idle", "1 classes without objects were left out, including 'ant'"),
    )


OUTLINED = ("box-from-outline", "1 objects have an outline only: the box around it is used")
ROTATED = ("box-rotated", "1 boxes are rotated: the upright box around each is used")
CORNERS = 'xtl="30" ytl="15" xbr="70" ybr="35"'


@pytest.mark.parametrize(
    ("shape", "expected", "note"),
    [
        ('<polygon label="cat" points="10.5,5;40,9;20,45"/>', (10.5, 5, 40, 45), OUTLINED),
        ('<polyline label="cat" points="10,5;40,9"/>', (10, 5, 40, 9), OUTLINED),
        ('<ellipse label="cat" cx="50" cy="25" rx="20" ry="10"/>', (30, 15, 70, 35), OUTLINED),
        (
            '<ellipse label="cat" cx="50" cy="25" rx="20" ry="10" rotation="90"/>',
            (40, 5, 60, 45),
            OUTLINED,
        ),
        (
            '<mask label="cat" rle="0,4" left="7" top="8" width="20" height="10"/>',
            (7, 8, 27, 18),
            OUTLINED,
        ),
        (f'<box label="cat" {CORNERS} rotation="90"/>', (40, 5, 60, 45), ROTATED),
        (f'<box label="cat" {CORNERS} rotation="0.0"/>', (30, 15, 70, 35), None),
        (
            # 40 * sqrt(3) / 4 + 20 / 4 and 40 / 4 + 20 * sqrt(3) / 4, around (50, 25).
            f'<box label="cat" {CORNERS} rotation="330"/>',
            (50 - 22.3205, 25 - 18.6603, 50 + 22.3205, 25 + 18.6603),
            ROTATED,
        ),
    ],
)
def test_shapes(
    tmp_path: Path, shape: str, expected: tuple[float, ...], note: tuple[str, str] | None
) -> None:
    root = write(tmp_path, image("a.jpg", shape), images="a.jpg")
    dataset = read_dataset(root, "all", classes=("cat",))
    np.testing.assert_allclose(dataset.annotations[0].boxes_px, [expected], atol=1e-4)
    assert dataset.notes == ((Note(*note),) if note else ())


def test_shapes_without_a_box_are_left_out(tmp_path: Path) -> None:
    shapes = '<points label="cat" points="1,2;3,4"/>', '<tag label="cat"/>', '<skeleton label="x"/>'
    root = write(tmp_path, image("a.jpg", BOX, *shapes), images="a.jpg")
    dataset = read_dataset(root, "all", classes=("cat",))
    assert len(dataset.annotations[0].labels) == 1
    assert dataset.notes == (
        Note("shape-without-box", "3 points, cuboids, skeletons and tags were left out"),
    )


def test_splits(tmp_path: Path) -> None:
    def named(root: Path) -> dict[str, list[str]]:
        folder = open_dataset(root)
        read = {name: folder.read(name) for name in folder.splits}
        return {
            name: [str(item.image_path.relative_to(root)) for item in dataset.annotations]
            for name, dataset in read.items()
        }

    one, two = "images/Train/1.jpg", "images/Validation/1.jpg"
    by_subset = image("1.jpg", more='subset="Train"'), image("1.jpg", more='subset="Validation"')
    root = write(tmp_path / "subset", *by_subset, images=f"{one} {two}")
    assert named(root) == {"Train": [one], "Validation": [two]}
    by_name = image("Train/1.jpg"), image("Validation/1.jpg")
    root = write(tmp_path / "name", *by_name, images=f"{one} {two}")
    assert named(root) == {"Train": [one], "Validation": [two]}
    by_folder = image("train_1.jpg"), image("2.jpg")
    files = "images/train/train_1.jpg images/val/2.jpg"
    root = write(tmp_path / "folder", *by_folder, images=files)
    assert named(root) == {"train": ["images/train/train_1.jpg"], "val": ["images/val/2.jpg"]}
    root = write(tmp_path / "file", image("1.jpg"), name="train.xml", images="images/1.jpg")
    write(root, image("2.jpg"), name="test.xml", images="images/2.jpg")
    assert named(root) == {"test": ["images/2.jpg"], "train": ["images/1.jpg"]}
    assert not [note for note in read_dataset(root, "test").notes if note.kind != "category-idle"]


def track(*shapes: str, more: str = "") -> str:
    return f'<track id="0" label="cat" {more}>{"".join(shapes)}</track>'


def framed(number: object, outside: int = 0) -> str:
    return BOX.replace('label="cat"', f'frame="{number}" outside="{outside}" keyframe="0"')


def test_tracks_of_a_video(tmp_path: Path) -> None:
    files = " ".join(f"images/frame_{number:06d}.PNG" for number in (0, 1, 2, 3, 9))
    moved = framed(1).replace("10.00", "12.00")
    tracks = track(framed(0), framed(1, outside=1)), track(moved, framed(2, outside=1))
    root = write(tmp_path, *tracks, images=files)
    dataset = read_dataset(root, "all", classes=("cat",))
    assert boxes(dataset) == {
        "frame_000000": [[10, 5.5, 40, 45]],
        "frame_000001": [[12, 5.5, 40, 45]],
        # The object has left.
        "frame_000002": [],
        # The task has 4 frames.
        "frame_000003": [],
    }
    assert dataset.notes == (
        Note("image-unannotated", "1 images without an annotation were left out"),
    )


def test_a_frame_without_an_image_is_a_fault(tmp_path: Path) -> None:
    root = write(tmp_path, track(framed(0), framed(7)), images="images/frame_000000.jpg")
    with pytest.raises(DataError, match=r"annotations\.xml, frame 7: its image 'frame_000007' doe"):
        read_dataset(root, "all")
    assert len(read_dataset(root, "all", on_bad="skip")) == 1


def test_videos_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    one, two = track(framed(0), more='task_id="1"'), track(framed(0), more='task_id="2"')
    root = write(tmp_path, one, two, images="images/frame_000000.jpg")
    with pytest.raises(DataError, match="tracks of several videos"):
        read_dataset(root, "all", on_bad="skip")


BAD_SHAPES = {
    '<box label="cat" xtl="10" ytl="5" xbr="40"/>': ("has no ybr", "field-missing"),
    BOX.replace("10.00", "ten"): ("its xtl is 'ten', not a plain number", "number-malformed"),
    BOX.replace("40.00", "nan"): ("its xbr is 'nan', not a plain number", "number-malformed"),
    BOX.replace("40.00", "1e99"): ("its xbr is '1e99', not a plain number", "number-malformed"),
    BOX.replace("40.00", "10.00"): ("its box (10, 5.5, 10, 45) is empty", "box-empty"),
    BOX.replace("40.00", "140"): ("leaves the image of 100 x 50", "box-outside"),
    BOX.replace('"cat"', '" "'): ("its label is empty", "name-empty"),
    BOX.replace('label="cat"', ""): ("its label is empty", "name-empty"),
    BOX.replace("z_order", 'rotation="up" z_order'): ("its rotation is 'up'", "number-malformed"),
    '<polygon label="cat" points=""/>': ("its outline has no points", "outline-malformed"),
    '<polygon label="cat" points="1,2,3;4,5"/>': ("are not pairs of numbers", "outline-malformed"),
    '<polygon label="cat" points="1,x;4,5"/>': ("its points is 'x'", "number-malformed"),
    '<mask label="cat" left="7" top="8" width="9"/>': ("has no height", "field-missing"),
}


@pytest.mark.parametrize(("shape", "expected"), BAD_SHAPES.items())
def test_bad_shapes_are_faults(tmp_path: Path, shape: str, expected: tuple[str, str]) -> None:
    root = write(tmp_path, image("a.jpg", BOX, shape), images="a.jpg")
    with pytest.raises(DataError):
        read_dataset(root, "all")
    dataset = read_dataset(root, "all", on_bad="skip")
    (fault,) = dataset.faults
    tag = shape[1:].split()[0]
    assert (fault.file, fault.position) == (
        root / "annotations.xml",
        f"image 1 ('a.jpg'), {tag} 2",
    )
    assert expected[0] in fault.reason
    assert fault.kind == expected[1]
    assert len(dataset.annotations[0].labels) == 1


def test_bad_images_are_faults(tmp_path: Path) -> None:
    parts = (
        image("a.jpg"),
        image("a.jpg"),
        image("absent.jpg"),
        image("b.jpg").replace("100", "99"),
        image("c.jpg").replace('width="100"', 'width="wide"'),
        image(""),
        image("../d.jpg").replace('width="100" height="50"', ""),
    )
    root = write(tmp_path, *parts, images="a.jpg b.jpg c.jpg d.jpg")
    dataset = read_dataset(root, "all", on_bad="skip")
    assert boxes(dataset).keys() == {"a", "d"}
    assert [(fault.kind, fault.position) for fault in dataset.faults] == [
        ("listed-twice", "image 2 ('a.jpg')"),
        ("image-missing", "image 3 ('absent.jpg')"),
        ("size-differs", "image 4 ('b.jpg')"),
        ("number-malformed", "image 5 ('c.jpg')"),
        ("text-malformed", "image 6 ('')"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotations><version>1.1</version><image", "is not XML"),
        ("<annotations><version>1.1</version></annotations>", "lists no images"),
        (f"<annotations>{track(framed('x'))}</annotations>", "its frame is 'x'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=reason) as caught:
        read_dataset(tmp_path, "all", on_bad="skip")
    assert caught.value.file == tmp_path / "annotations.xml"


def test_check_reads_it(tmp_path: Path) -> None:
    root = write(tmp_path, image("a.jpg", BOX.replace("40.00", "9")), image("b.jpg"))
    write(root, image("a.jpg", BOX.replace("40.00", "9")), image("b.jpg"), images="a.jpg b.jpg")
    found = check_dataset(root, (), (), workers=1, progress=lambda *_: None)
    assert len(found.datasets["all"]) == 2
    assert ("box-empty", root / "annotations.xml", "image 1 ('a.jpg'), box 1") in [
        (finding.kind, finding.file, finding.position) for finding in found.findings
    ]
