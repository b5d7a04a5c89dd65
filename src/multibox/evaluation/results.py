"""The devkit's results files: one per class, a line `<image> <score> <x0> <y0> <x1> <y1>` each.

Detections become files as Caffe writes them (`detection_output_layer.cpp:335-415`) and files
become detections as the devkit reads them (`VOCevaldet.m:81-92`), whoever wrote them.
"""

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64

from multibox.errors import DataError, StorageError
from multibox.evaluation.voc import NO_DETECTIONS, ClassDetections
from multibox.structures import Detections

# A line is an image and a score and four coordinates.
NUM_NUMBERS = 5


class Results(NamedTuple):
    """What a folder of results files holds.

    Attributes:
        detections: Of every class, in the files' order.
        missing: The classes without a file, which have no detections.
    """

    detections: dict[str, ClassDetections]
    missing: tuple[str, ...]


def file_split(splits: str) -> str:
    """Returns the name that the devkit's files have for one or more splits, which is without years.

    `2007:test` is `test`; `2007:trainval+2012:trainval` is `trainval`, and splits of several names
    are joined: `test+val`.
    """
    names = [part.rpartition(":")[2] for part in splits.split("+")]
    return "+".join(dict.fromkeys(names))


def by_class_in_pixels(
    detections: Sequence[Detections], sizes: Int64[np.ndarray, "I 2"], classes: Sequence[str]
) -> dict[str, ClassDetections]:
    """Returns every class's detections in all images, clipped to the images, in their pixels.

    Args:
        detections: Of one image each, in the order of the image set, on the CPU.
        sizes: int64 (I, 2), the images' heights and widths in pixels.
        classes: Names in the order of the labels.
    """
    counts = [len(found.labels) for found in detections]
    images = np.repeat(np.arange(len(counts)), counts)
    labels = torch.cat([found.labels for found in detections]).numpy()
    scores = torch.cat([found.scores for found in detections]).double().numpy()
    # In float32 like Caffe (`bbox_util.cpp:208-214`): the files' integers depend on it.
    boxes = torch.cat([found.boxes for found in detections]).clamp(0, 1).float().numpy()
    height, width = sizes.astype(np.float32).T
    boxes_px = boxes * np.stack([width, height, width, height], axis=1)[images]
    by_class = {}
    for label, name in enumerate(classes):
        of_class = labels == label
        by_class[name] = ClassDetections(
            images[of_class], scores[of_class], boxes_px[of_class].astype(np.float64)
        )
    return by_class


def write_results(
    folder: Path,
    detections: Mapping[str, ClassDetections],
    image_ids: Sequence[str],
    *,
    split: str,
) -> list[Path]:
    """Writes `comp4_det_<split>_<class>.txt` for every class and returns their paths.

    A class without detections has an empty file, because the devkit refuses to go without. Pixels
    are whole numbers, rounded down after rounding to two decimals: first the corner, then width
    and height; the score has six significant digits.

    Args:
        folder: Is made where it is absent; files of the same names are replaced.
        detections: By class, clipped, as `by_class_in_pixels` returns them.
        image_ids: The image set.
        split: The image set's name, `file_split`.

    Raises:
        DataError: A name of a split or class cannot be part of a file's name.
        StorageError: The folder cannot be written.
    """
    paths = []
    for name, found in detections.items():
        path = folder / f"comp4_det_{split}_{name}.txt"
        if path.parent != folder:
            raise DataError(f"no file can be named after split {split!r} and class {name!r}")
        columns = zip(
            found.images.tolist(),
            found.scores.tolist(),
            _whole_pixels(found.boxes_px).tolist(),
            strict=True,
        )
        text = "".join(
            f"{image_ids[image]} {score:g} {x0} {y0} {x1} {y1}\n"
            for image, score, (x0, y0, x1, y1) in columns
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise StorageError(f"cannot be written ({error.strerror})", file=path) from None
        paths.append(path)
    return paths


def read_results(
    folder: Path, *, split: str, classes: Sequence[str], image_ids: Sequence[str]
) -> Results:
    """Returns the detections in all files `*_det_<split>_<class>.txt` below a folder.

    Args:
        folder: Anywhere above the files; each class may have one file in it.
        split: The image set's name, `file_split`.
        classes: The classes to read; files of others are ignored.
        image_ids: The image set, whose order numbers the images.

    Raises:
        DataError: There is no such file at all, a class has several, a line is not an image and
            five finite numbers, an image is not in the image set or is in it twice.
    """
    places = {name: place for place, name in enumerate(image_ids)}
    if len(places) != len(image_ids):
        twice = next(name for place, name in enumerate(image_ids) if places[name] != place)
        raise DataError(f"the image set {split} lists image {twice} more than once")
    paths = _find(folder, split, frozenset(classes))
    detections = {
        name: _read(paths[name], places) if name in paths else NO_DETECTIONS for name in classes
    }
    return Results(detections, tuple(name for name in classes if name not in paths))


def _find(folder: Path, split: str, classes: frozenset[str]) -> dict[str, Path]:
    """The file of every class that has one."""
    infix, paths = f"_det_{split}_", dict[str, Path]()
    for path in sorted(folder.rglob("*.txt")):
        name = path.stem.partition(infix)[2]
        if name in paths:
            raise DataError(
                f"two files for class {name}: {path.relative_to(folder)} and "
                f"{paths[name].relative_to(folder)}",
                file=folder,
                remedy="Pass the folder of one of them",
            )
        if name in classes:
            paths[name] = path
    if not paths:
        raise DataError(
            f"no results file named *{infix}<class>.txt of any class",
            file=folder,
            remedy="Check the folder and the name of the image set",
        )
    return paths


def _read(path: Path, places: Mapping[str, int]) -> ClassDetections:
    """The detections of one file, parsed at once; only a refusal goes line by line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=path) from None
    if not text.strip():
        return NO_DETECTIONS
    # One character more than any image has: what NumPy cuts off cannot make a name a known one.
    name = f"U{max(map(len, places)) + 1}"
    try:
        table = np.loadtxt(
            io.StringIO(text),
            dtype=[("image", name), ("numbers", np.float64, NUM_NUMBERS)],
            comments=None,
            ndmin=1,
        )
        images = np.array([places[name] for name in table["image"].tolist()], dtype=np.int64)
    except (KeyError, ValueError):
        raise _first_fault(path, text, places) from None
    if not np.isfinite(table["numbers"]).all():
        raise _first_fault(path, text, places)
    return ClassDetections(images, table["numbers"][:, 0], table["numbers"][:, 1:])


def _first_fault(path: Path, text: str, places: Mapping[str, int]) -> DataError:
    """What is wrong with the first line that is."""
    rows = ((number, line.split()) for number, line in enumerate(text.split("\n"), start=1))
    number, row = next(
        (number, row) for number, row in rows if row and not (_parses(row) and row[0] in places)
    )
    if _parses(row):
        reason = f"image {row[0]} is not in the image set"
        remedy = "Evaluate with the image set that the detections were made on"
    else:
        reason = f"expected an image, a score and four coordinates, found {' '.join(row)!r}"
        remedy = None
    return DataError(reason, file=path, position=f"line {number}", remedy=remedy)


def _parses(row: list[str]) -> bool:
    return len(row) == 1 + NUM_NUMBERS and all(map(_is_number, row[1:]))


def _is_number(token: str) -> bool:
    try:
        # Python, but not NumPy, reads 1_0 and digits of other scripts.
        return math.isfinite(float(token)) and token.isascii() and "_" not in token
    except ValueError:
        return False


def _whole_pixels(boxes_px: Float64[np.ndarray, "N 4"]) -> Int64[np.ndarray, "N 4"]:
    """Corners as Caffe truncates them: xmin, ymin, width and height, each on its own."""
    boxes = boxes_px.astype(np.float32)
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    hundredths = np.concatenate([low, size], axis=1) * np.float32(100)
    rounded = np.rint(hundredths).astype(np.float64) / 100
    whole = rounded.astype(np.float32).astype(np.int64)
    whole[:, 2:] += whole[:, :2]
    return whole
