"""The verb `predict`: detects objects in images, and writes them as JSON and as pictures."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from multibox.data.files import SUFFIXES, list_folder
from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.drawing import draw_detections, write_picture
from multibox.errors import ConfigError, DataError, MultiboxError, StorageError
from multibox.storage.run_folder import write_json


class Predicted(NamedTuple):
    """What was written.

    Attributes:
        images: Number of images.
        objects: Number of objects that were detected in them.
        refusals: The errors of the images that cannot be read.
        score_threshold: The threshold that was used, and where it is from, as a sentence without a
            full stop.
    """

    images: int
    objects: int
    refusals: list[MultiboxError]
    score_threshold: str


def predict(
    detector: Detector, images: Sequence[Path], *, out: Path, score_threshold: float | None = None
) -> Predicted:
    """Writes `<image>.json` (boxes) and `<image>.jpg` (drawn boxes) for each image.

    If an image cannot be read, the others are still processed.

    Args:
        detector: Detects the objects.
        images: The image files. A folder stands for all image files directly in it.
        out: Folder to write to; created if it does not exist.
        score_threshold: Detections with a lower score are left out, 0..1. None: the one that the
            weights store, or else `DEFAULT_SCORE_THRESHOLD`.

    Raises:
        ConfigError: `images` is empty, or `score_threshold` is out of range.
        DataError: A folder has no images, or cannot be listed.
        StorageError: The folder cannot be written, or it has a file of the same name that `predict`
            did not write.
    """
    if not images:
        raise ConfigError("no image is given", remedy="Name at least one image file or folder")
    threshold = detector.score_threshold if score_threshold is None else score_threshold
    if not 0 <= threshold <= 1:
        raise ConfigError(f"score_threshold is {threshold}, but scores lie in 0..1")
    refusals: list[MultiboxError] = []
    objects = 0
    images = _files(images)
    names = _names(images)
    for name in names:
        _require_replaceable(out, name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be created ({error.strerror})", file=out) from None
    for path, name in zip(images, names, strict=True):
        try:
            pixels = read_image(path)
        except MultiboxError as error:
            refusals.append(error)
            continue
        found = detector.detect(pixels, score_threshold=threshold)
        height, width = pixels.shape[:2]
        named = [detection._asdict() for detection in detector.name(found, pixels)]
        objects += len(named)
        record = {"image": str(path), "width": width, "height": height, "detections": named}
        write_json(out / f"{name}.json", record)
        draw_detections(pixels, found, detector.classes, score_threshold=threshold)
        write_picture(out / f"{name}.jpg", pixels)
    source = "the best F1 on the validation split"
    if score_threshold is not None:
        source = "as given"
    elif detector.stored_threshold is None:
        source = "because the weights do not store one"
    used = f"score threshold {threshold:.4g}, {source}"
    return Predicted(len(images) - len(refusals), objects, refusals, used)


def _files(images: Sequence[Path]) -> list[Path]:
    """Returns the images with each folder replaced by the image files in it, sorted by name."""
    files: list[Path] = []
    for path in images:
        if not path.is_dir():
            files.append(path)
            continue
        found = [file for file in list_folder(path) if file.suffix.lower() in SUFFIXES]
        if not found:
            raise DataError(
                "contains no images",
                kind="image-missing",
                file=path,
                remedy=f"Use a folder with files of these types: {', '.join(sorted(SUFFIXES))}",
            )
        files += found
    return files


def _names(images: Sequence[Path]) -> list[str]:
    """Returns the name of each image's results: its stem, numbered if several images share it.

    Case is ignored, because on some disks names that differ only in case are the same file.
    """
    taken = {path.stem.casefold() for path in images}
    names: list[str] = []
    first = set[str]()
    for path in images:
        name, number = path.stem, 1
        if name.casefold() in first:
            while name.casefold() in taken:
                number += 1
                name = f"{path.stem}-{number}"
        first.add(name.casefold())
        taken.add(name.casefold())
        names.append(name)
    return names


def _require_replaceable(out: Path, name: str) -> None:
    """Checks that no other file would be overwritten, such as the image itself."""
    record = out / f"{name}.json"
    for file in (record, out / f"{name}.jpg"):
        if os.path.lexists(file) and not _is_record(record):
            raise StorageError(
                "already exists and was not written by predict, so it is not overwritten",
                file=file,
                remedy="Choose another folder for --out",
            )


def _is_record(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"image", "width", "height", "detections"}
