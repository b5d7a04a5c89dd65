"""The verb `check`: what it prints, its exit status, its figures, and the corrected copy."""

import json
from pathlib import Path

import numpy as np
import planted_faults as planted
import pytest
from coco_layout import export_coco
from PIL import Image
from rich.console import Console

from multibox.build import default_box_tables
from multibox.cli.main import main
from multibox.commands.check import CheckResult, check
from multibox.commands.demo.dataset import draw_dataset
from multibox.data.check.statistics import BoxTable, split_statistics
from multibox.data.formats.layouts import read_dataset
from multibox.errors import ConfigError, StorageError
from multibox.ssd.default_boxes import SSD300_VOC, default_boxes

QUIET = Console(quiet=True)


def small_voc(folder: Path) -> Path:
    train = [str(number) for number in range(1, 13)]
    return planted.write_voc(folder, {"trainval": train, "test": ["51", "52"]})


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def kinds(checkup: CheckResult) -> set[str]:
    return {finding.kind for finding in checkup.findings}


def test_status_json_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = small_voc(tmp_path / "voc")
    assert main(["check", str(root), "--strict"]) == 0
    planted.second(planted.thing())(root, "3")
    assert main(["check", str(root), "--network", "ssd300-lite"]) == 0
    assert main(["check", str(root), "--strict"]) == 3
    planted.bad_corner(xmax=3)(root, "4")
    planted.xml_of(root, "5").write_text(planted.CLEAN.replace(">cat<", ">[red]c\x85t[/]<"))
    capsys.readouterr()
    assert main(["check", str(root)]) == 3
    text = capsys.readouterr().out
    assert "Annotations/4.xml, object 2 ('dog')" in text
    assert "\x85" not in text
    assert "[red]c" in text
    assert all(len(line) <= 80 for line in text.splitlines()[:-1])
    assert main(["check", str(root), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["fault"] == 1
    (fault,) = [finding for finding in found["findings"] if finding["severity"] == "fault"]
    assert fault["kind"] == "box-empty"
    assert fault["file"] == str(root / "Annotations" / "4.xml")
    assert fault["position"] == "object 2 ('dog')"
    assert found["splits"]["trainval"]["images"] == 12
    assert main(["check", str(tmp_path)]) == 3
    assert main(["check", str(root), "--network", "ssd301"]) == 2
    capsys.readouterr()
    assert main(["check", str(root), "--splits", "nope"]) == 3
    text = capsys.readouterr().out
    assert "Objects per class" not in text
    assert text.endswith("1 fault, 0 warnings, 0 notes\n")


def test_census_counts_what_a_plain_loop_counts(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "drawn", train_images=12, test_images=4)
    dataset = read_dataset(tmp_path / "drawn", "trainval")
    census = split_statistics(
        dataset,
        [
            BoxTable("ssd300-vgg16", scales, (300, 300), boxes)
            for scales, boxes in default_box_tables("ssd300-vgg16").items()
        ],
    )
    table = default_boxes(SSD300_VOC, (300, 300)).numpy().astype(float).tolist()
    sizes, forced, empty = [], 0, 0
    names: dict[str, list[str]] = {name: [] for name in dataset.classes}
    for item in dataset.annotations:
        empty += not len(item.labels)
        for label in item.labels:
            names[dataset.classes[label]].append(item.image_id)
        for x0, y0, x1, y1 in item.boxes_px.astype(float):
            box = x0 / item.width_px, y0 / item.height_px, x1 / item.width_px, y1 / item.height_px
            sizes.append(300 * ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5)
            forced += max(_iou(box, other) for other in table) < 0.5
    assert (census.images, census.empty_images, census.objects) == (12, empty, len(sizes))
    for name, count in census.classes.items():
        assert (count.objects, count.images) == (len(names[name]), len(set(names[name])))
    (found,) = census.sizes
    expected = [min(sizes), float(np.median(sizes)), max(sizes)]
    assert [found.smallest_px, found.median_px, found.largest_px] == pytest.approx(expected)
    below_64 = sum(size < 64 for size in sizes) / len(sizes)
    assert sum(found.share_by_size[:4]) == pytest.approx(below_64)
    voc, coco = census.reach
    assert (voc.default_boxes, coco.default_boxes) == ("voc", "coco")
    assert voc.forced == pytest.approx(forced / len(sizes))


def _iou(a: tuple[float, ...], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_a_corrected_copy_has_no_fault_and_is_else_the_same(tmp_path: Path) -> None:
    plants = [*planted.VOC, *(("+".join(wanted), plant) for wanted, plant in planted.BOTH)]
    ids = [str(number) for number in range(1, 13 + len(plants))]
    root = planted.write_voc(tmp_path / "voc", {"trainval": ids, "test": ["501", "502"]})
    kind_of = dict(zip(ids, (kind for kind, _ in plants), strict=False))
    for image_id, (_, plant) in zip(ids, plants, strict=False):
        plant(root, image_id)
    before = files_of(root)
    out = tmp_path / "fixed"
    checkup = check(root, QUIET, fix=out)
    assert files_of(root) == before
    assert checkup.count("fault") == 0
    allowed = {"grey", "suffix-differs", "image-small", "image-blank", "difficult-missing"}
    allowed |= {"tiny-box", "nearly-duplicate-object", "box-of-two-classes", "filename-differs"}
    allowed |= {"near-duplicate-image"}
    assert kinds(checkup) <= allowed
    record = json.loads((out / "fixes.json").read_text())
    assert len(record["changes"]) == checkup.changes
    touched = {Path(change["file"]).stem for change in record["changes"]}
    after = files_of(out)
    untouched = [image_id for image_id in ids if image_id not in touched]
    assert set(ids[len(plants) :]) <= set(untouched)
    for image_id in untouched:
        for name in (f"Annotations/{image_id}.xml", f"JPEGImages/{image_id}"):
            same = {k: v for k, v in after.items() if k.startswith(f"{name}.") or k == name}
            assert same
            assert same.items() <= before.items()
    # What an image can be kept with is kept.
    lost = {kind_of[i] for i in ids if f"Annotations/{i}.xml" not in after}
    assert not lost & {"box-empty", "box-outside", "exif-rotation", "cmyk", "alpha", "animated"}
    assert lost >= {"image-missing", "image-damaged", "xml-malformed", "annotation-missing"}


def test_corrections_of_boxes_pixels_and_sizes(tmp_path: Path) -> None:
    root = small_voc(tmp_path / "voc")
    planted.bad_corner(xmax=110)(root, "1")
    planted.bad_corner(xmax=500)(root, "2")
    planted.as_image(planted.encoded(planted.picture(7).convert("CMYK")))(root, "3")
    planted.other_size(100, 70)(root, "4")
    planted.other_size(30, 30)(root, "5")
    planted.as_xml(planted.annotation(planted.thing(bndbox=planted.box(99, 1, 130, 60))))(root, "6")
    # Annotated on the picture as a viewer turns it: 64 wide and 96 high.
    planted.as_image(planted.turned(6, "JPEG"))(root, "7")
    tall = "<size><width>64</width><height>96</height></size>"
    upright = planted.annotation(planted.thing(bndbox=planted.box(2, 30, 60, 94)), size=tall)
    planted.as_xml(upright)(root, "7")
    out = tmp_path / "fixed"
    assert check(root, QUIET, fix=out).count("fault") == 0
    dataset = read_dataset(out, "trainval")
    found = {item.image_id: item for item in dataset.annotations}
    assert found["1"].boxes_px.tolist() == [[10, 5, 60, 45], [10, 5, 96, 45]]
    assert len(found["2"].boxes_px) == 1
    with Image.open(found["3"].image_path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
    assert (found["4"].width_px, found["4"].height_px) == (96, 64)
    assert (found["7"].width_px, found["7"].height_px) == (64, 96)
    with Image.open(found["7"].image_path) as image:
        expected = Image.open(planted.image_of(root, "7")).transpose(Image.Transpose.ROTATE_270)
        difference = np.asarray(image, int) - np.asarray(expected, int)
    assert np.abs(difference).mean() < 1
    assert "6" not in found


def test_swapped_corners_several_boxes_and_what_is_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small_voc(tmp_path / "voc")
    planted.bad_corner(xmin=60, xmax=10)(root, "1")
    two = planted.box(1, 1, 20, 20) + planted.box(30, 30, 90, 60)
    planted.second(planted.thing("dog", two))(root, "2")
    planted.bad_corner(xmin=60)(root, "3")
    planted.second(planted.thing("owl", planted.box(1, 1, 1, 9)))(root, "4")
    planted.gone(planted.image_of)(root, "5")
    planted.as_image(planted.turned(6, "JPEG"))(root, "7")
    planted.other_size(64, 96)(root, "7")
    out = tmp_path / "fixed"
    assert main(["check", str(root), "--fix", str(out)]) == 0
    text = capsys.readouterr()
    assert (
        "objects that were removed: 2 'dog', 1 'cat', 1 'owl'; "
        "1 images were rotated by their EXIF orientation, as annotated\n"
    ) in text.out + text.err
    dataset = read_dataset(out, "trainval")
    found = {item.image_id: item for item in dataset.annotations}
    assert found["1"].boxes_px.tolist() == [[10, 5, 60, 45], [10, 5, 60, 45]]
    assert found["2"].boxes_px.tolist() == [
        [10, 5, 60, 45],
        [1, 1, 20, 20],
        [30, 30, 90, 60],
    ]
    assert [dataset.classes[label] for label in found["2"].labels] == ["cat", "dog", "dog"]
    changes = json.loads((out / "fixes.json").read_text())["changes"]
    assert {change["change"] for change in changes if Path(change["file"]).stem in "12"} == {
        "its reversed corners were swapped",
        "its 2 boxes became an object each",
    }


def test_a_corrected_copy_keeps_names_with_spaces_and_folders(tmp_path: Path) -> None:
    root = small_voc(tmp_path / "voc")
    for old, new in (("1", "photo 1"), ("2", "photo 0"), ("51", "left/51")):
        for path in (planted.xml_of(root, new), planted.image_of(root, new)):
            path.parent.mkdir(exist_ok=True)
        planted.xml_of(root, old).rename(planted.xml_of(root, new))
        planted.image_of(root, old).rename(planted.image_of(root, new))
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("photo 1\nphoto 0\n")
    (lists / "test.txt").write_text("left/51\n52.jpg\n")
    planted.bad_corner(xmax=3)(root, "photo 0")
    assert check(root, QUIET, fix=tmp_path / "fixed").count("fault") == 0
    for split, ids in (("trainval", ["photo 1", "photo 0"]), ("test", ["left/51", "52"])):
        dataset = read_dataset(tmp_path / "fixed", split)
        assert [item.image_id for item in dataset.annotations] == ids


def test_a_corrected_copy_of_xml_without_lists(tmp_path: Path) -> None:
    """Its faults are corrected as those in VOC's layout."""
    root = small_voc(tmp_path / "voc")
    for path in (root / "ImageSets" / "Main").iterdir():
        path.unlink()
    (root / "ImageSets" / "Main").rmdir()
    planted.bad_corner(xmax=110)(root, "1")
    planted.as_image(planted.turned(6, "JPEG"))(root, "2")
    planted.other_size(64, 96)(root, "2")
    planted.gone(planted.image_of)(root, "3")
    (root / "trainval.txt").write_text("1\n2\n3\n4\n9999\n")
    (root / "train.txt").write_text("4\n")
    checkup = check(root, QUIET, fix=tmp_path / "fixed")
    assert checkup.count("fault") == 0
    assert (checkup.rotated, checkup.removed) == (1, {"cat": 1, "dog": 1})
    dataset = read_dataset(tmp_path / "fixed", "trainval")
    found = {item.image_id: item for item in dataset.annotations}
    assert found.keys() == {"1", "2", "4"}
    assert found["1"].boxes_px.tolist() == [[10, 5, 60, 45], [10, 5, 96, 45]]
    assert (found["2"].width_px, found["2"].height_px) == (64, 96)
    assert len(read_dataset(tmp_path / "fixed", "train")) == 1
    assert planted.xml_of(tmp_path / "fixed", "4").read_text() == planted.CLEAN


def test_a_corrected_copy_of_coco(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "drawn", train_images=6, test_images=3)
    root = export_coco(tmp_path / "drawn", tmp_path / "coco")
    file = root / "annotations" / "instances_trainval.json"
    content = json.loads(file.read_text())
    sound = read_dataset(root, "trainval")
    first = content["annotations"][0]
    content["annotations"] += [first | {"id": 9000}, first | {"id": 9001, "bbox": [1, 1, 0, 5]}]
    file.write_text(json.dumps(content))
    before = files_of(root)
    checkup = check(root, QUIET, fix=tmp_path / "fixed")
    assert files_of(root) == before
    assert checkup.count("fault") == 0
    assert checkup.changes == 2
    fixed = read_dataset(tmp_path / "fixed", "trainval", classes=sound.classes)
    for one, other in zip(sound.annotations, fixed.annotations, strict=True):
        assert one.image_path.read_bytes() == other.image_path.read_bytes()
        assert one.boxes_px.tolist() == other.boxes_px.tolist()
        assert one.labels.tolist() == other.labels.tolist()
        assert one.difficult.tolist() == other.difficult.tolist()


def test_years_stay_apart_and_class_lists_follow(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit"
    for year, first in (("2007", 1), ("2012", 101)):
        ids = [str(number) for number in range(first, first + 6)]
        planted.write_voc(root / f"VOC{year}", {"trainval": ids[:5], "test": ids[5:]})
    (root / "VOC2007" / "ImageSets" / "Main" / "cat_trainval.txt").write_text("1  1\n2 -1\n3  0\n")
    (root / "VOC2007" / "ImageSets" / "Main" / "val.txt").write_text("1 -1\n")
    planted.gone(planted.image_of)(root / "VOC2007", "3")
    out = tmp_path / "fixed"
    assert check(root, QUIET, fix=out).count("fault") == 0
    lists = out / "VOC2007" / "ImageSets" / "Main"
    assert (lists / "cat_trainval.txt").read_text() == "1  1\n2 -1\n"
    assert not (lists / "val.txt").exists()
    assert len(read_dataset(out, "2007:trainval+2012:trainval")) == 9


@pytest.mark.parametrize("place", [".", "fixed", ".."])
def test_the_copy_lies_outside_of_the_dataset(tmp_path: Path, place: str) -> None:
    root = small_voc(tmp_path / "voc")
    with pytest.raises(ConfigError, match="the dataset would overlap"):
        check(root, QUIET, fix=root / place)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(StorageError, match="is not empty"):
        check(root, QUIET, fix=tmp_path / "other")
    with pytest.raises(ConfigError, match="copies all splits"):
        check(root, QUIET, splits=("test",), fix=tmp_path / "new")


@pytest.mark.slow
def test_2_000_clean_images_have_no_finding(tmp_path: Path) -> None:
    """What is drawn is sound by how it is made; a false alarm would be one of the program's."""
    draw_dataset(tmp_path / "drawn", train_images=1_600, test_images=400, seed=1)
    checkup = check(tmp_path / "drawn", QUIET)
    assert not [finding for finding in checkup.findings if finding.severity != "note"]
    assert sum(census.images for census in checkup.census.values()) == 2_000
