"""The verb `predict`: detections in images, as JSON and as pictures."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.drawing import draw_detections, write_picture
from multibox.errors import ConfigError, MultiboxError, StorageError
from multibox.storage.run_folder import write_json


def predict(
    detector: Detector, images: Sequence[Path], *, out: Path, score_threshold: float
) -> list[MultiboxError]:
    """Writes `<image>.json` and the drawn `<image>.jpg` for every image, and returns refusals.

    An image that cannot be read does not keep the others from being done.

    Args:
        detector: Finds the objects.
        images: The files.
        out: The folder to write to; made where it is absent.
        score_threshold: Detections of a lower score are left out.

    Raises:
        ConfigError: There is no image, or no such threshold.
        StorageError: The folder cannot be written, or has a file of one of these names that is not
            of an earlier prediction.
    """
    if not images:
        raise ConfigError("no image is given", remedy="Name the files to look at")
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"score_threshold is {score_threshold}, but scores lie in 0..1")
    refusals: list[MultiboxError] = []
    names = _names(images)
    for name in names:
        _spare_others(out, name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be made ({error.strerror})", file=out) from None
    for path, name in zip(images, names, strict=True):
        try:
            pixels = read_image(path)
        except MultiboxError as error:
            refusals.append(error)
            continue
        found = detector.detect(pixels, score_threshold=score_threshold)
        height, width = pixels.shape[:2]
        named = [detection._asdict() for detection in detector.name(found, pixels)]
        record = {"image": str(path), "width": width, "height": height, "detections": named}
        write_json(out / f"{name}.json", record)
        draw_detections(pixels, found, detector.classes, score_threshold=score_threshold)
        write_picture(out / f"{name}.jpg", pixels)
    return refusals


def _names(images: Sequence[Path]) -> list[str]:
    """Returns a name for each image's results: its stem, numbered where several share it.

    Names that differ in case only would be the same file on some disks.
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


def _spare_others(out: Path, name: str) -> None:
    """Refuses to replace what is not an earlier result: the image itself, if it lies there."""
    record = out / f"{name}.json"
    for file in (record, out / f"{name}.jpg"):
        if os.path.lexists(file) and not _is_record(record):
            raise StorageError(
                "exists, is not of an earlier prediction, and is not replaced",
                file=file,
                remedy="Choose another folder for --out",
            )


def _is_record(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"image", "width", "height", "detections"}
