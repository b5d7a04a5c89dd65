"""Reads detections in COCO's results format: a JSON list, as `loadRes` of pycocotools reads it."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from multibox.errors import DataError
from multibox.evaluation.results import NUM_NUMBERS
from multibox.evaluation.voc import ClassDetections

_MAX_JSON_BYTES = 1 << 30
# The sum of two such numbers does not overflow.
_MAX_NUMBER = 1e300


def read_coco_results(
    file: Path, *, images: Mapping[int, int], categories: Mapping[int, str], classes: Sequence[str]
) -> dict[str, ClassDetections]:
    """Returns the detections of a file in COCO's results format, by class.

    The file is a list of objects with `image_id`, `category_id`, `bbox` (x, y, width and height in
    pixels) and `score`. Other fields are ignored.

    Args:
        file: The file.
        images: The place in the image set by image id.
        categories: The class name by category id.
        classes: The classes to return. Detections of other categories are ignored.

    Raises:
        DataError: The file is not such a list, or an id is unknown.
    """
    rows: dict[str, list[list[float]]] = {name: [] for name in classes}
    for number, record in enumerate(_json_list(file)):
        name, row = _detection(record, images, categories, file=file, number=number)
        if name in rows:
            rows[name].append(row)
    found = {}
    for name, of_class in rows.items():
        table = np.array(of_class, np.float64).reshape(-1, 1 + NUM_NUMBERS)
        found[name] = ClassDetections(table[:, 0].astype(np.int64), table[:, 1], table[:, 2:])
    return found


def _json_list(file: Path) -> list[object]:
    try:
        if file.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError("it is larger than 1 GiB")
        content = json.loads(file.read_bytes())
        if type(content) is list:
            return content
        reason = "is not a list of detections"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({error})"
    raise DataError(
        reason,
        kind="results-malformed",
        file=file,
        remedy="Use a list in COCO's results format, or a folder of results files of the devkit",
    )


def _detection(
    record: object,
    images: Mapping[int, int],
    categories: Mapping[int, str],
    *,
    file: Path,
    number: int,
) -> tuple[str, list[float]]:
    """Returns the class of a detection, and its place in the image set, score and corners."""
    position, fields = f"detection {number}", record if type(record) is dict else {}
    image, category = fields.get("image_id"), fields.get("category_id")
    numbers = fields.get("bbox"), fields.get("score")
    flat = [*numbers[0], numbers[1]] if type(numbers[0]) is list else []
    plain = all(type(value) in (int, float) and abs(value) <= _MAX_NUMBER for value in flat)
    if type(image) is not int or type(category) is not int or len(flat) != NUM_NUMBERS or not plain:
        raise DataError(
            "expected image_id, category_id, a bbox of four numbers and a score, found "
            f"{reprlib.repr(record)}",
            kind="results-malformed",
            file=file,
            position=position,
        )
    for kind, value, known in (("image", image, images), ("category", category, categories)):
        if value not in known:
            raise DataError(
                f"{kind} id {value} is not in the annotations",
                kind=f"{kind}-unknown",
                file=file,
                position=position,
                remedy="Evaluate with the split that the detections were made on",
            )
    x, y, width, height, score = map(float, flat)
    return categories[category], [float(images[image]), score, x, y, x + width, y + height]
