"""Writes the annotations of a split: COCO's JSON, YOLO's label files, or a CSV table.

The numbers have enough digits to be read again as the same float32 boxes.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from multibox.data.dataset import Annotation
from multibox.data.writing.voc import plain_number

_HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")


class NamedImage(NamedTuple):
    """An image with its objects, and the name of its copy.

    Attributes:
        name: The file name of the copy, with suffix. If several splits have the image, it starts
            with the split's folder.
        item: The image and its objects.
    """

    name: str
    item: Annotation


def coco_json(images: Sequence[NamedImage], classes: tuple[str, ...]) -> str:
    """Returns a split as COCO's JSON. Difficult objects become crowds. Ids count from 1."""
    records: list[dict[str, Any]] = []
    things: list[dict[str, Any]] = []
    for number, (name, item) in enumerate(images, start=1):
        size = {"width": item.width_px, "height": item.height_px}
        records.append({"id": number, "file_name": name, **size})
        for place, (label, corners) in enumerate(_objects(item)):
            x0, y0, x1, y1 = corners
            bbox = [x0, y0, x1 - x0, y1 - y0]
            area = bbox[2] * bbox[3] if item.areas_px2 is None else float(item.areas_px2[place])
            things.append(
                {
                    "id": len(things) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [int(side) if side.is_integer() else side for side in bbox],
                    "area": area,
                    "iscrowd": int(item.difficult[place]),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    content = {"images": records, "annotations": things, "categories": categories}
    return json.dumps(content, ensure_ascii=False) + "\n"


def yolo_label(item: Annotation) -> str:
    """Returns the label file of an image: empty if it has no objects."""
    width, height = item.width_px, item.height_px
    lines = []
    for label, (x0, y0, x1, y1) in _objects(item):
        centre = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
        sides = (x1 - x0) / width, (y1 - y0) / height
        lines.append(f"{label} {' '.join(map(plain_number, (*centre, *sides)))}\n")
    return "".join(lines)


def yolo_description(splits: dict[str, str], classes: tuple[str, ...]) -> str:
    """Returns Ultralytics' data.yaml.

    Args:
        splits: The folder of each split's images, from the file.
        classes: The class names in label order.
    """
    # Strings of JSON are strings of YAML too. `train` needs no quotes.
    keys = {name: name if re.fullmatch(r"[a-z]{3,}", name) else json.dumps(name) for name in splits}
    lines = ["path: ."]
    lines += [f"{keys[name]}: {json.dumps(folder)}" for name, folder in splits.items()]
    lines += [f"nc: {len(classes)}", "names:"]
    lines += [f"  {n}: {json.dumps(name, ensure_ascii=False)}" for n, name in enumerate(classes)]
    return "".join(f"{line}\n" for line in lines)


def csv_table(
    images: Sequence[NamedImage], classes: tuple[str, ...], *, split: str | None = None
) -> str:
    """Returns a split as a table with TensorFlow's columns.

    An image without objects has a row without class and box.

    Args:
        images: The images.
        classes: The class names in label order.
        split: The value of a further column `split`. None: without this column.
    """
    more = () if split is None else (split,)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER if split is None else (*_HEADER, "split"))
    for name, item in images:
        size = item.width_px, item.height_px
        for label, corners in zip(item.labels, item.boxes_px, strict=True):
            writer.writerow((name, *size, classes[label], *map(plain_number, corners), *more))
        if not len(item.labels):
            writer.writerow((name, *size, *[""] * 5, *more))
    return text.getvalue()


def csv_classes(classes: tuple[str, ...]) -> str:
    """Returns the table of class names and numbers, as keras-retinanet has it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((name, n) for n, name in enumerate(classes))
    return text.getvalue()


def write_text(file: Path, text: str) -> None:
    """Writes a text file in UTF-8 with line feeds, in a folder that is made if needed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())


def _objects(item: Annotation) -> Iterator[tuple[int, list[float]]]:
    """Yields label and corners of each object."""
    return zip(item.labels.tolist(), item.boxes_px.tolist(), strict=True)
