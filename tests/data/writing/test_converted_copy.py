"""Copies in other formats: from each format to each, every box and class is the same again."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from multibox.cli.main import main
from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.data.writing.converted_copy import write_converted
from multibox.errors import ConfigError, DataError, StorageError

WIDTH, HEIGHT = 187, 93
FORMATS = ("voc", "coco", "yolo", "csv")
TITLES = {"voc": "PASCAL VOC", "coco": "COCO JSON", "yolo": "YOLO", "csv": "CSV"}
# In the order of their numbers, which is not that of the alphabet.
CLASSES = ("zebra", "no", "7", 'cat, "big"', "\xe4ffchen")
BOXES = (
    (0, 0, WIDTH, HEIGHT),
    (10.1, 20.25, 30.333333, 40.7),
    (0, 1 / 3, 0.1, 90.00001),
    (WIDTH - 1.5, HEIGHT - 0.7, WIDTH, HEIGHT),
    (1e-3, 2, 186.99998, 92.999),
)


def image(shade: int) -> bytes:
    return simplejpeg.encode_jpeg(np.full((HEIGHT, WIDTH, 3), shade, np.uint8))


def write_coco(root: Path) -> Path:
    """Two splits: three images with objects and one without."""
    number = 0
    for split, names in (("train", ("a b", "b", "empty")), ("test", ("c",))):
        (root / split).mkdir(parents=True)
        images, things = [], []
        for image_id, name in enumerate(names):
            (root / split / f"{name}.jpg").write_bytes(image(90 + number + image_id))
            size = {"width": WIDTH, "height": HEIGHT}
            images.append({"id": image_id, "file_name": f"{name}.jpg", **size})
            for place, box in enumerate([] if name == "empty" else BOXES):
                x0, y0, x1, y1 = map(float, np.float32(box))
                things.append(
                    {
                        "id": (number := number + 1),
                        "image_id": image_id,
                        "category_id": 10 * ((place + image_id) % len(CLASSES)),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": int(place == 2),
                    }
                )
        categories = [{"id": 10 * n, "name": name} for n, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": things, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def content(dataset: Dataset, *, difficult: bool) -> object:
    """Returns everything that a copy must keep, by the bytes of the images."""
    return {
        item.image_path.read_bytes(): [
            (dataset.classes[label], tuple(box), flag if difficult else None)
            for label, box, flag in zip(
                item.labels.tolist(), item.boxes_px.tolist(), item.difficult.tolist(), strict=True
            )
        ]
        for item in dataset.annotations
    }


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_from_each_format_to_each(tmp_path: Path, first: str, second: str) -> None:
    source = write_coco(tmp_path / "source")
    write_converted(source, tmp_path / "first", first)
    write_converted(tmp_path / "first", tmp_path / "second", second)
    assert open_dataset(tmp_path / "second").format == TITLES[second]
    marks = {first, second} <= {"voc", "coco"}
    for split in ("train", "test"):
        expected, found = (read_dataset(folder, split) for folder in (source, tmp_path / "second"))
        assert content(found, difficult=marks) == content(expected, difficult=marks)
        assert [item.image_path.stem for item in found.annotations] == [
            item.image_path.stem.replace(" ", "_") for item in expected.annotations
        ]
        if "voc" not in (first, second):  # It does not number classes.
            assert found.classes == expected.classes
        assert not found.faults
        assert not found.notes
    assert set(known_splits(tmp_path / "second")) == {"train", "test"}


def test_random_boxes_keep_their_float32_values(tmp_path: Path) -> None:
    rng = np.random.Generator(np.random.SFC64(5))
    corners = np.sort(rng.uniform(0, 1, (500, 2, 2)), axis=1) * (WIDTH, HEIGHT)
    corners = corners[(corners[:, 1] - corners[:, 0]).min(axis=1) > 0.02].astype(np.float32)
    rows = [f"a.jpg,x,{','.join(map(repr, map(float, box.ravel())))}" for box in corners]
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jpg").write_bytes(image(90))
    (source / "t.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *rows]))
    for target in FORMATS:
        write_converted(source, tmp_path / target, target)
        (item,) = read_dataset(tmp_path / target, "all").annotations
        np.testing.assert_array_equal(item.boxes_px, corners.reshape(-1, 4))


@pytest.mark.parametrize("target", FORMATS)
def test_years_of_voc_stay_apart(tmp_path: Path, target: str) -> None:
    for year in ("2007", "2012"):
        csv = tmp_path / year
        csv.mkdir()
        (csv / "a.jpg").write_bytes(image(int(year[-1])))
        (csv / "test.csv").write_text("filename,class,xmin,ymin,xmax,ymax\na.jpg,cat,1,2,3,4\n")
        write_converted(csv, tmp_path / "kit" / f"VOC{year}", "voc")
    write_converted(tmp_path / "kit", tmp_path / "out", target)
    mark = "_" if target in ("voc", "coco") else ":"
    expected = (f"2007{mark}test", f"2012{mark}test")
    assert tuple(sorted(known_splits(tmp_path / "out"))) == expected
    for split in expected:
        (item,) = read_dataset(tmp_path / "out", split).annotations
        assert item.boxes_px.tolist() == [[1, 2, 3, 4]]
        assert item.image_path.read_bytes() == image(int(split[3]))


@pytest.mark.parametrize("target", FORMATS)
def test_an_archive_is_written_out(tmp_path: Path, target: str) -> None:
    source = write_coco(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in source.rglob("*.*"):
            archive.write(path, path.relative_to(source))
    write_converted(tmp_path / "x.zip", tmp_path / "out", target)
    found = read_dataset(tmp_path / "out", "train")
    assert content(found, difficult=False) == content(
        read_dataset(source, "train"), difficult=False
    )


def test_an_image_in_two_splits_is_one_file_of_voc(tmp_path: Path) -> None:
    write_coco(tmp_path / "source")
    write_converted(tmp_path / "source", tmp_path / "voc", "voc")
    lists = tmp_path / "voc/ImageSets/Main"
    (lists / "val.txt").write_text("b\n")
    (lists / "trainval.txt").write_text("a_b\nb\nempty\n")
    for target in FORMATS:
        out = tmp_path / f"{target}-out"
        copy = write_converted(tmp_path / "voc", out, target)
        assert {name: len(dataset) for name, dataset in copy.splits.items()} == {
            "test": 1,
            "train": 3,
            "trainval": 3,
            "val": 1,
        }
        for split, count in (("val", 1), ("train", 3), ("trainval", 3)):
            dataset = read_dataset(out, split)
            folders = {item.image_path.parent.name for item in dataset.annotations}
            assert len(dataset) == count
            assert folders == {"JPEGImages" if target == "voc" else split}


def test_what_is_lost_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_coco(tmp_path / "source")
    assert main(["convert-data", str(source), str(tmp_path / "out"), "--to", "yolo"]) == 0
    printed = capfd.readouterr()
    assert printed.out == f"{tmp_path / 'out'}\n"
    assert printed.err.splitlines() == [
        "format: COCO JSON",
        "test: 1 images, 5 objects",
        "train: 3 images, 10 objects",
        "note: 3 difficult objects are not marked any more",
        "note: 1 images have other names",
    ]


def test_faults_stop_or_are_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_coco(tmp_path / "source")
    (source / "train" / "b.jpg").unlink()
    arguments = ["convert-data", str(source), str(tmp_path / "out"), "--to", "voc"]
    assert main(arguments) == DataError.exit_code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    assert main([*arguments, "--on-bad", "skip"]) == 0
    assert "left out: " in capfd.readouterr().err
    assert len(read_dataset(tmp_path / "out", "train")) == 2


def test_a_class_with_a_line_break_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_converted(write_coco(tmp_path / "coco"), source, "voc")
    for path in (source / "Annotations").iterdir():
        path.write_text(path.read_text().replace("zebra", "ze\nbra"))
    with pytest.raises(DataError, match=r"the class name 'ze\\nbra' has a line break"):
        write_converted(source, tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()


def test_the_new_folder_must_be_new_and_elsewhere(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "source")
    for out in (source, source / "out", tmp_path):
        with pytest.raises(ConfigError, match="would overlap"):
            write_converted(source, out, "csv")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(StorageError, match="is not empty"):
        write_converted(source, tmp_path / "full", "csv")
    (tmp_path / "empty").mkdir()
    write_converted(source, tmp_path / "empty", "csv")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        *("classes.csv", "images", "test_labels.csv", "train_labels.csv"),
    ]
