"""Writes a run on drawn images with planted errors, as `train` leaves it."""

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

import cv2
import numpy as np
import synthetic_runs

from multibox.data.formats.layouts import read_dataset
from multibox.evaluation.results import write_results
from multibox.evaluation.voc import ClassDetections
from multibox.inference import objects_by_class, score

HOSTILE = "<script>alert(1)</script>"
CLASSES = ("cat", "dog", HOSTILE)
SIZE_PX = (320, 240)
LEFT, RIGHT, LOW = (20, 20, 100, 120), (180, 30, 290, 150), (130, 180, 150, 200)

Found = tuple[int, str, float, tuple[int, int, int, int]]
"""A detection: image, class, score and box."""

OBJECTS = [("cat", LEFT), ("dog", RIGHT), (HOSTILE, LOW)]
"""The objects of every image."""


def detections(images: int, shift: int = 0) -> list[Found]:
    """Most objects are found. In image 0 one is taken for another class, in image 1 one is missed,
    in image 2 there is a second detection, and in image 3 a detection of nothing."""
    found: list[Found] = []
    for image in range(images):
        for name, (x0, y0, x1, y1) in OBJECTS:
            box = (x0 + shift, y0, x1 + shift, y1)
            if (image, name) == (0, "dog"):
                found.append((image, "cat", 0.95, box))
            elif (image, name) != (1, HOSTILE):
                found.append((image, name, 0.9 - image / 100, box))
    found += [(2, "cat", 0.4, LEFT), (3, "dog", 0.85, (20, 160, 90, 230))]
    return found


def make_folders(root: Path) -> None:
    """Makes the folders of VOC's layout."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)


def annotate(
    root: Path,
    name: str,
    size_px: tuple[int, int],
    objects: Iterable[tuple[str, Iterable[float]]],
) -> None:
    """Writes the annotation of an image."""
    rows = []
    for label, corners in objects:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
        rows.append(
            f"<object><name>{escape(label)}</name><difficult>0</difficult>"
            f"<bndbox>{box}</bndbox></object>"
        )
    (root / f"Annotations/{name}.xml").write_text(
        f"<annotation><filename>{name}.jpg</filename><size><width>{size_px[0]}</width>"
        f"<height>{size_px[1]}</height><depth>3</depth></size>{''.join(rows)}</annotation>"
    )


def write_dataset(root: Path, train: int = 6, test: int = 6) -> Path:
    """Writes a dataset in VOC layout, with every object a rectangle of a colour of its own."""
    make_folders(root)
    for split, count in (("trainval", train), ("test", test)):
        names = [f"{split}-{number}" for number in range(count)]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            pixels = np.full((SIZE_PX[1], SIZE_PX[0], 3), 200, np.uint8)
            for number, (_, (x0, y0, x1, y1)) in enumerate(OBJECTS):
                colour = [(200, 60, 60), (60, 160, 60), (60, 60, 200)][number]
                cv2.rectangle(pixels, (x0, y0), (x1, y1), colour, cv2.FILLED)
            cv2.imwrite(str(root / f"JPEGImages/{name}.jpg"), pixels)
            annotate(root, name, SIZE_PX, OBJECTS)
    return root


def write_run(folder: Path, data: Path, *, seed: int = 0, shift: int = 0, drops: int = 0) -> Path:
    """Writes a finished run with one evaluation, and returns its folder.

    Args:
        folder: The run.
        data: The dataset.
        seed: The seed in its configuration.
        shift: Distance in pixels by which all detections are shifted.
        drops: The step of a drop of the learning rate. 0: there is none.
    """
    images = len((data / "ImageSets/Main/test.txt").read_text().split())
    found = {}
    for name in CLASSES:
        mine = [row for row in detections(images, shift) if row[1] == name]
        found[name] = ClassDetections(
            np.array([row[0] for row in mine], np.int64),
            np.array([row[2] for row in mine], np.float64),
            np.array([row[3] for row in mine], np.float64).reshape(-1, 4),
        )
    return write_run_of(folder, data, found, seed=seed, drops=drops)


def write_run_of(
    folder: Path,
    data: Path,
    found: dict[str, ClassDetections],
    *,
    seed: int = 0,
    drops: int = 0,
) -> Path:
    """Writes a finished run whose only evaluation made these detections."""
    classes = tuple(found)
    story = synthetic_runs.Story(
        classes=list(classes),
        planned=600,
        every=20,
        milestones=[],
        reached=600,
        drops={drops: 1e-4} if drops else {},
    )
    synthetic_runs.write_run(folder, story)
    config = json.loads((folder / "config.json").read_text())
    config["network"] = "ssd300-lite"
    config["data"] |= {"train_split": "trainval", "test_split": "test"}
    config["run"]["seed"] = seed
    synthetic_runs.write_json(folder / "config.json", config)
    splits = {name: read_dataset(data, name, classes=classes) for name in ("trainval", "test")}
    train, test = splits.values()
    facts = json.loads((folder / "run.json").read_text())
    facts["data"] = {
        role: {"name": each.name, "images": len(each), "objects": each.objects_per_class}
        for role, each in (("train", train), ("test", test))
    }
    facts |= {"data_root": str(data), "data_digest": f"{train.digest}-{test.digest}"}
    synthetic_runs.write_json(folder / "run.json", facts)
    objects = objects_by_class(test)
    evaluation = {
        "step": 600,
        "split": "test",
        "images": len(test),
        "objects": sum(len(each.images) for each in objects.values()),
        "metric": "voc07",
        **score(found, objects),
    }
    (folder / "evaluations").mkdir()
    ids = [item.image_id for item in test.annotations]
    write_results(folder / "evaluations" / "step-00000600", found, ids, split="test")
    synthetic_runs.write_json(folder / "evaluations" / "step-00000600.json", evaluation)
    return folder
