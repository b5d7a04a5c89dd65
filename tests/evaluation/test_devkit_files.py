"""The full circle: detections to the devkit's files, files to the devkit's average precision."""

import csv
import itertools
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from oracles import voc_ap

from multibox.commands.evaluate import evaluate_results
from multibox.data.formats.voc import read_voc
from multibox.errors import DataError
from multibox.evaluation.results import file_split, read_results, write_results
from multibox.evaluation.voc import (
    NO_DETECTIONS,
    OCTAVE_RECALL_THRESHOLDS,
    ClassDetections,
    average_precision_11_point,
    evaluate_voc,
)
from multibox.inference import objects_by_class

Objects = dict[str, list[tuple[str, voc_ap.Box, bool]]]

YEARS = {
    "2007": ["000005", "000009", "000012"],
    "2012": ["2008_000001", "2008_000002", "2011_003353"],
}


@pytest.mark.parametrize(
    ("metric", "file", "lost"),
    [("voc07", "ap_voc2007_11point.csv", set()), ("voc12", "ap_voc2012_area.csv", {"cow"})],
)
def test_whole_pixels_cost_one_hit_of_the_devkit_s_example(shared, tmp_path, metric, file, lost):
    root = shared / "data/voc-devkit-goldens"
    with (root / file).open() as lines:
        official = {name: float(value) for name, value, _ in csv.reader(lines)}
    dataset = read_voc(root / "VOC2007", "test", images="ignore")
    ids = [annotation.image_id for annotation in dataset.annotations]
    split = file_split(dataset.name)
    written = [root / "results", tmp_path / "once", tmp_path / "twice"]
    for source, target in itertools.pairwise(written):
        read = read_results(source, split=split, classes=dataset.classes, image_ids=ids)
        write_results(target, read.detections, ids, split=split)
    once, twice = ({p.name: p.read_text() for p in folder.iterdir()} for folder in written[1:])
    assert once == twice
    # Cut to whole pixels, one detection of a cow is no hit any more; 11 points do not show it.
    result = evaluate_voc(read.detections, objects_by_class(dataset), metric)
    found = result.by_class
    if metric == "voc07":
        # Octave printed them.
        found = {
            name: average_precision_11_point(curve, OCTAVE_RECALL_THRESHOLDS)
            for name, curve in result.curves.items()
        }
    differing = {name for name in official if abs(found[name] - official[name]) > 1e-9}
    assert differing == lost


def random_box(rng: np.random.Generator) -> voc_ap.Box:
    low = rng.integers(1, 60, 2)
    return tuple(map(float, [*low, *(low + rng.integers(5, 35, 2))]))


def lay_out(root: Path, rng: np.random.Generator) -> Objects:
    """Writes VOC2007 and VOC2012, where <difficult> comes last, and returns their objects."""
    found = Objects()
    for year, ids in YEARS.items():
        folder = root / f"VOC{year}"
        for name in ("ImageSets/Main", "Annotations"):
            (folder / name).mkdir(parents=True)
        (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(ids))
        for image_id in ids:
            # Each image has a dog that is difficult, and no dog is anything else.
            objects = [("dog", random_box(rng), True)]
            objects += [("cat", random_box(rng), bool(rng.random() < 0.3)) for _ in range(4)]
            objects += [("cow", random_box(rng), False), ("unseen", random_box(rng), False)]
            (folder / f"Annotations/{image_id}.xml").write_text(annotation(year, objects))
            for name, box, difficult in objects:
                found.setdefault(name, []).append((image_id, box, difficult))
    return found


def annotation(year: str, objects: Iterable[tuple[str, voc_ap.Box, bool]]) -> str:
    text = "<annotation><size><width>100</width><height>100</height></size>"
    for name, box, difficult in objects:
        flag = f"<difficult>{int(difficult)}</difficult>"
        corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        bndbox = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        parts = [flag, f"<bndbox>{bndbox}</bndbox>"]
        order = parts if year == "2007" else reversed(parts)
        text += f"<object><name>{name}</name>{''.join(order)}</object>"
    return text + "</annotation>"


def around(
    objects: Objects, name: str, ids: list[str], rng: np.random.Generator
) -> ClassDetections:
    """Detections near the class's objects, as often in the wrong image, with many equal scores."""
    chosen = [item for item in objects[name] if item[0] in ids for _ in range(3)]
    places = [ids.index(image_id) for image_id, _, _ in chosen]
    boxes = np.array([box for _, box, _ in chosen]) + rng.uniform(-2, 2, (len(chosen), 4))
    astray = rng.integers(0, len(ids), len(chosen))
    images = np.where(rng.random(len(chosen)) < 0.8, places, astray)
    return ClassDetections(images, rng.integers(1, 9, len(chosen)) / 8, boxes)


def expected(
    file: Path, objects: list[tuple[str, voc_ap.Box, bool]], ids: list[str], metric: str
) -> float:
    """The devkit's loops over the lines of a file, and over the objects of these images."""
    lines = [line.split() for line in file.read_text().splitlines()]
    detections = [
        voc_ap.Detection(ids.index(line[0]), float(line[1]), tuple(map(float, line[2:])))
        for line in lines
    ]
    items = [voc_ap.Object(ids.index(i), box, flag) for i, box, flag in objects if i in ids]
    recall, precision = voc_ap.curve(detections, items)
    if metric == "voc12":
        return voc_ap.average_precision_area(recall, precision)
    return voc_ap.average_precision_11_point(recall, precision)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("splits", "years"),
    [
        ("2012:trainval", ["2012"]),
        ("2007:trainval+2012:trainval", ["2007", "2012"]),
        ("trainval", ["2007", "2012"]),
    ],
)
def test_files_of_several_years_have_the_devkit_s_average_precision(tmp_path, splits, years, seed):
    rng = np.random.default_rng(seed)
    objects = lay_out(tmp_path / "VOCdevkit", rng)
    dataset = read_voc(tmp_path / "VOCdevkit", splits, images="ignore")
    ids = [annotation.image_id for annotation in dataset.annotations]
    assert ids == [image_id for year in years for image_id in YEARS[year]]
    detections = {name: around(objects, name, ids, rng) for name in ("cat", "cow", "dog")}
    detections["unseen"] = NO_DETECTIONS
    folder = tmp_path / "results"
    write_results(folder, detections, ids, split=file_split(dataset.name))
    assert {path.name for path in folder.iterdir()} == {
        f"comp4_det_trainval_{name}.txt" for name in detections
    }

    metrics, missing = evaluate_results(folder, data=tmp_path / "VOCdevkit", split=splits)
    assert missing == []
    for metric in ("voc07", "voc12"):
        known = {
            name: expected(folder / f"comp4_det_trainval_{name}.txt", objects[name], ids, metric)
            for name in ("cat", "cow", "unseen")
        }
        assert 0 < known["cat"] < 1
        assert known["unseen"] == 0
        # Every dog is difficult.
        assert metrics[metric]["AP"].pop("dog") is None
        assert metrics[metric]["AP"] == pytest.approx(known, abs=1e-12, rel=0)
        mean = math.fsum(known.values()) / 3
        assert metrics[metric]["mAP"] == pytest.approx(mean, abs=1e-12, rel=0)


def test_files_of_more_years_than_the_split_has_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    objects = lay_out(tmp_path / "VOCdevkit", rng)
    ids = [*YEARS["2007"], *YEARS["2012"]]
    folder = tmp_path / "results"
    (path,) = write_results(
        folder, {"cat": around(objects, "cat", ids, rng)}, ids, split="trainval"
    )
    with pytest.raises(DataError, match="is not in the image set") as error:
        evaluate_results(folder, data=tmp_path / "VOCdevkit", split="2012:trainval")
    assert error.value.file == path


@pytest.mark.parametrize(
    ("splits", "name"),
    [
        ("test", "test"),
        ("2007:test", "test"),
        ("2007:trainval+2012:trainval", "trainval"),
        ("2007:test+2012:val", "test+val"),
    ],
)
def test_the_devkit_s_files_are_named_without_years(splits, name):
    assert file_split(splits) == name
