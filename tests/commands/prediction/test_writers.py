import csv
import json
from pathlib import Path

import cv2
import pytest

from multibox.commands.predict import Options, predict
from multibox.commands.prediction.selection import choose, parse_thresholds
from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.errors import ConfigError, StorageError

FORMATS = ("json", "images", "csv", "coco", "yolo", "voc", "crops")


def test_all_formats_hold_the_same_detections(detector: Detector, photos: Path) -> None:
    out = photos.parent / "out"
    (photos / "3.png").write_bytes(b"hello")
    done = predict(detector, [photos], out=out, options=Options(0.2, save=FORMATS))
    assert (done.images, done.refused) == (6, 1)
    assert "3.png" in str(done.refusals[0])
    records = [json.loads(path.read_text()) for path in sorted(out.glob("[0-9].json"))]
    count = sum(len(record["detections"]) for record in records)
    assert count == done.objects > 0
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    assert sum(row["class"] != "" for row in rows) == count
    assert {row["image"] for row in rows} == {record["image"] for record in records}
    assert len(json.loads((out / "coco-results.json").read_text())) == count
    images = json.loads((out / "coco-images.json").read_text())
    # The names of the images are whole numbers, so these are the ids, as in COCO.
    assert [image["id"] for image in images["images"]] == [0, 1, 2, 4, 5, 6]
    assert [found["name"] for found in images["categories"]] == ["cat", "dog"]
    labels = [p for p in (out / "labels").iterdir() if p.name != "classes.txt"]
    assert sum(len(path.read_text().splitlines()) for path in labels) == count
    devkit = out.glob("comp4_det_test_*.txt")
    assert sum(len(path.read_text().splitlines()) for path in devkit) == count
    assert 0 < len(list((out / "crops").rglob("*.jpg"))) <= count
    assert read_image(out / "0.jpg").shape == (80, 100, 3)
    # Results of the same command are replaced.
    assert predict(detector, [photos], out=out, options=Options(0.2, save=FORMATS)).images == 6


def test_files_of_others_are_not_overwritten(detector: Detector, photos: Path) -> None:
    for name, format_ in (("detections.csv", "csv"), ("labels/0.txt", "yolo")):
        out = photos.parent / format_
        file = out / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(StorageError, match="not overwritten"):
            predict(detector, [photos], out=out, options=Options(save=(format_,)))
        assert [path.name for path in out.rglob("*") if path.is_file()] == [file.name]
        assert file.read_text() == "mine"


def test_nothing_is_written_if_nothing_is_saved(detector: Detector, photos: Path) -> None:
    before = sorted(photos.parent.rglob("*"))
    done = predict(detector, [photos], out=None, options=Options(0.2, save=("none",)))
    assert done.images == 7
    assert sorted(photos.parent.rglob("*")) == before
    with pytest.raises(ConfigError, match="Add --out"):
        predict(detector, [photos], out=None)


def test_classes_and_their_thresholds_are_kept(detector: Detector, photos: Path) -> None:
    def found(options: Options) -> list[tuple[str, float]]:
        out = photos.parent / "out"
        predict(detector, [photos], out=out, options=options._replace(save=("json",)))
        records = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
        return [(d["name"], d["score"]) for record in records for d in record["detections"]]

    everything = found(Options(0.05))
    assert found(Options(0.05, classes=("cat",))) == [d for d in everything if d[0] == "cat"]
    middle = sorted(score for name, score in everything if name == "dog")[3]
    special = Options(0.05, class_thresholds={"dog": middle})
    assert found(special) == [d for d in everything if d[0] == "cat" or d[1] >= middle]


def test_wrong_classes_and_thresholds_are_refused() -> None:
    with pytest.raises(ConfigError, match="no class 'bird'"):
        choose(("cat",), 0.5, only=("bird",))
    with pytest.raises(ConfigError, match="scores lie"):
        choose(("cat",), 0.5, by_class={"cat": 2.0})
    assert parse_thresholds(["a=b=0.3"]) == {"a=b": 0.3}
    for word in ("cat", "=0.3", "cat=x"):
        with pytest.raises(ConfigError, match="class threshold"):
            parse_thresholds([word])


def test_the_mirror_image_is_used_as_well(detector: Detector, photos: Path) -> None:
    pixels = detector.prepare(cv2.imread(str(photos / "0.png")))
    mirrored = pixels[:, ::-1].copy()
    (one,), (other,) = (detector.detect_flipped([image]) for image in (pixels, mirrored))
    assert sorted(one.scores.tolist()) == pytest.approx(sorted(other.scores.tolist()))
    assert sorted((1 - other.boxes[:, 2]).tolist()) == pytest.approx(
        sorted(one.boxes[:, 0].tolist()), abs=1e-5
    )
