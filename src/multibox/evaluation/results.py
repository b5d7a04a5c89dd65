"""Reads and writes the results files of the VOC devkit.

The devkit has one file per class, with lines `<image> <score> <x0> <y0> <x1> <y1>`. Files are
written as Caffe writes them (`detection_output_layer.cpp:335-415`) and read as the devkit reads
them (`VOCevaldet.m:81-92`).
"""

import hashlib
import io
import math
import os
import unicodedata
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

# A line contains an image, a score and four coordinates.
NUM_NUMBERS = 5

_PREFIX = "comp4_det_"
_RESERVED = frozenset('/\\:*?"<>|%')
_MAX_NAME_BYTES = 255
_MAX_SPLIT_BYTES = 100


class Results(NamedTuple):
    """The content of a folder of results files.

    Attributes:
        detections: The detections of each class, in the order of its file.
        missing: The classes without a file. They have no detections.
    """

    detections: dict[str, ClassDetections]
    missing: tuple[str, ...]


def file_split(splits: str) -> str:
    """Returns the name of one or more splits in the devkit's file names, which have no years.

    `2007:test` becomes `test`, `2007:trainval+2012:trainval` becomes `trainval`, and different
    names are joined, as in `test+val`.
    """
    names = [part.rpartition(":")[2] for part in splits.split("+")]
    return "+".join(dict.fromkeys(names))


def by_class_in_pixels(
    detections: Sequence[Detections], sizes: Int64[np.ndarray, "I 2"], classes: Sequence[str]
) -> dict[str, ClassDetections]:
    """Returns the detections by class, in pixels and clipped to their images.

    Args:
        detections: The detections of each image, in the order of the image set, on the CPU.
        sizes: int64 (I, 2), height and width of each image in pixels.
        classes: Names in the order of the labels.
    """
    counts = [len(found.labels) for found in detections]
    images = np.repeat(np.arange(len(counts)), counts)
    labels = torch.cat([found.labels for found in detections]).numpy()
    scores = torch.cat([found.scores for found in detections]).double().numpy()
    # In float32 like Caffe (`bbox_util.cpp:208-214`), because the integers in the files depend on
    # it.
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

    A class without detections gets an empty file, because the devkit requires one. Characters of a
    class that cannot be in a file name are written as `%` and two hexadecimal digits per byte
    (`car/truck` becomes `car%2Ftruck`), and a name that is too long is cut. `read_results` finds
    these files by the class. Scores have six
    significant digits. Pixels are integers: the corner, the width and the height are each rounded
    to two decimals and then truncated.

    Args:
        folder: The folder to write to, created if it is absent. Existing files are replaced.
        detections: The clipped detections of each class, as `by_class_in_pixels` returns them.
        image_ids: The ids of the image set.
        split: The name of the image set, as `file_split` returns it.

    Raises:
        StorageError: The folder cannot be written.
    """
    paths = []
    files = results_file_names(split, list(detections))
    for found, file in zip(detections.values(), files, strict=True):
        path = folder / file
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


def results_file_names(split: str, classes: Sequence[str]) -> list[str]:
    """Returns the name of each class's file. Names that differ by case only get a hash.

    On some file systems, they would be the same file.
    """
    before = f"{_PREFIX}{_escape(split, _MAX_SPLIT_BYTES)}_"
    names, taken = [], set[str]()
    for name in classes:
        folded = unicodedata.normalize("NFC", name).casefold()
        names.append(f"{before}{_in_file_name(name, before, hashed=folded in taken)}.txt")
        taken.add(folded)
    return names


def _in_file_name(name: str, before: str, *, hashed: bool = False) -> str:
    """Returns the part of a file name that stands for a class."""
    return _escape(name, _MAX_NAME_BYTES - len(f"{before}.txt".encode()), hashed=hashed)


def _escape(name: str, limit: int, *, hashed: bool = False) -> str:
    """Returns a name with at most `limit` bytes, for use in a file name.

    If it is longer, the end is replaced by a hash. Different names have different results.
    """
    escaped = "".join(
        char
        if char.isprintable() and char not in _RESERVED
        else "".join(f"%{byte:02X}" for byte in char.encode(errors="surrogatepass"))
        for char in name
    )
    if not hashed and len(escaped.encode()) <= limit:
        return escaped
    digest = f"%{hashlib.sha256(escaped.encode()).hexdigest()[:16]}"
    return escaped.encode()[: limit - len(digest)].decode(errors="ignore") + digest


def read_results(
    folder: Path, *, split: str, classes: Sequence[str], image_ids: Sequence[str]
) -> Results:
    """Returns the detections of all files `*_det_<split>_<class>.txt` below a folder.

    Files without a prefix (`det_<split>_<class>.txt`) are read, too. The names of classes are as
    `write_results` writes them, or literal.

    Args:
        folder: A folder that contains the files at any depth, at most one for each class.
        split: The name of the image set, as `file_split` returns it.
        classes: The classes to read. Files of other classes are ignored.
        image_ids: The ids of the image set, in order.

    Raises:
        DataError: There is no such file, a class has several files, a line is not an image and five
            finite numbers, or an image is not in the image set or is in it twice.
    """
    places = {name: place for place, name in enumerate(image_ids)}
    if len(places) != len(image_ids):
        twice = next(name for place, name in enumerate(image_ids) if places[name] != place)
        raise DataError(
            f"the image set {split} lists image {twice} more than once", kind="listed-twice"
        )
    paths = _find(folder, split, frozenset(classes))
    detections = {
        name: _read(paths[name], places) if name in paths else NO_DETECTIONS for name in classes
    }
    return Results(detections, tuple(name for name in classes if name not in paths))


def _find(folder: Path, split: str, classes: frozenset[str]) -> dict[str, Path]:
    """Returns the file of each class that has one."""
    before, paths = f"{_PREFIX}{_escape(split, _MAX_SPLIT_BYTES)}_", dict[str, Path]()
    infix = before.removeprefix("comp4")
    known = {name: name for name in classes}
    for hashed in (True, False):
        known |= {_in_file_name(name, before, hashed=hashed): name for name in classes}
    for path in _text_files(folder):
        name = known.get(f"_{path.name[: -len('.txt')]}".partition(infix)[2], "")
        if name in paths:
            raise DataError(
                f"two files for class {name}: {path.relative_to(folder)} and "
                f"{paths[name].relative_to(folder)}",
                kind="results-ambiguous",
                file=folder,
                remedy="Pass the folder of one of them",
            )
        if name:
            paths[name] = path
    if not paths:
        raise DataError(
            f"no results file named *{infix}<class>.txt of any class",
            kind="results-missing",
            file=folder,
            remedy="Check the folder and the name of the image set",
        )
    return paths


def _text_files(folder: Path) -> list[Path]:
    """Returns the text files at any depth, sorted.

    `Path.rglob` would leave out what is below a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise DataError(
                f"cannot be listed ({error.strerror})",
                kind="unreadable",
                file=error.filename,
                remedy="Check the path and its permissions",
            )

    walk = os.walk(folder, onerror=refuse)
    return sorted(
        Path(place, name) for place, _, names in walk for name in names if name.endswith(".txt")
    )


def _read(path: Path, places: Mapping[str, int]) -> ClassDetections:
    """Returns the detections of one file. Lines are parsed one by one only to locate a fault."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", kind="unreadable", file=path) from None
    if not text.strip():
        return NO_DETECTIONS
    # One character longer than any id, so that a name which NumPy truncates cannot equal an id.
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
    """Returns an error for the first faulty line."""
    rows = ((number, line.split()) for number, line in enumerate(text.split("\n"), start=1))
    number, row = next(
        (number, row) for number, row in rows if row and not (_parses(row) and row[0] in places)
    )
    if _parses(row):
        kind, reason = "image-unknown", f"image {row[0]} is not in the image set"
        remedy = "Evaluate with the image set that the detections were made on"
    else:
        kind = "results-malformed"
        reason = f"expected an image, a score and four coordinates, found {' '.join(row)!r}"
        remedy = None
    return DataError(reason, kind=kind, file=path, position=f"line {number}", remedy=remedy)


def _parses(row: list[str]) -> bool:
    return len(row) == 1 + NUM_NUMBERS and all(map(_is_number, row[1:]))


def _is_number(token: str) -> bool:
    try:
        # Unlike NumPy, Python reads 1_0 and digits of other scripts.
        return math.isfinite(float(token)) and token.isascii() and "_" not in token
    except ValueError:
        return False


def _whole_pixels(boxes_px: Float64[np.ndarray, "N 4"]) -> Int64[np.ndarray, "N 4"]:
    """Returns corners truncated as in Caffe, which truncates xmin, ymin, width and height."""
    boxes = boxes_px.astype(np.float32)
    low, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    hundredths = np.concatenate([low, size], axis=1) * np.float32(100)
    rounded = np.rint(hundredths).astype(np.float64) / 100
    whole = rounded.astype(np.float32).astype(np.int64)
    whole[:, 2:] += whole[:, :2]
    return whole
