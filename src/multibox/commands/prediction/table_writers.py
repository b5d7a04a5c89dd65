"""Writes the results of all images in one file: CSV, COCO's results, the devkit's files of VOC."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from multibox.commands.prediction.items import ImageRef
from multibox.commands.prediction.out_folder import OutFolder, unwritable
from multibox.commands.prediction.pipeline import Result
from multibox.commands.prediction.writers import Sources, key_of_frame
from multibox.evaluation.results import by_class_in_pixels, results_file_names, write_results
from multibox.structures import Detections

_CSV = "detections.csv"
_CSV_HEADER = (
    "image",
    "frame",
    "width",
    "height",
    "class",
    "score",
    "xmin",
    "ymin",
    "xmax",
    "ymax",
)
_COCO, _COCO_IMAGES = "coco-results.json", "coco-images.json"
_SPLIT = "test"


class _Growing:
    """A text file that gets its name when it is complete.

    Args:
        out: The folder.
        name: Name of the file.
        head: The first text in the file, which a file without results has too.
    """

    def __init__(self, out: OutFolder, name: str, head: str) -> None:
        self._out, self._name, self._head = out, name, head
        self._path = out.folder / name
        self._partial = out.folder / f".{name}.partial"
        self._file: IO[bytes] | None = None

    def write(self, text: str) -> None:
        try:
            if self._file is None:
                self._out.claim(self._name)
                self._file = self._partial.open("wb")
                text = self._head + text
            self._file.write(text.encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise unwritable(self._path, error) from None

    def close(self) -> None:
        self.write("")
        try:
            if self._file is not None:
                self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            raise unwritable(self._path, error) from None


class CsvWriter:
    """Writes `detections.csv` with a row for each object. Boxes are in pixels.

    An image without objects has a row without class and box.
    """

    def __init__(self, out: OutFolder) -> None:
        self._file = _Growing(out, _CSV, ",".join(_CSV_HEADER) + "\n")

    def names(self, sources: Sources) -> list[str]:
        """Returns the file."""
        del sources
        return [_CSV]

    def write(self, result: Result) -> None:
        """Appends the rows of an image or frame."""
        image = result.image
        frame = "" if image.frame is None else image.frame
        start = (image.source.name, frame, image.width, image.height)
        for found in result.named:
            self._row((*start, found.name, found.score, *found.box_px))
        if not result.named:
            self._row((*start, *[""] * 6))

    def close(self) -> None:
        """Completes the file."""
        self._file.close()

    def _row(self, values: Sequence[object]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        self._file.write(text.getvalue())


class CocoWriter:
    """Writes `coco-results.json` in COCO's results format, and `coco-images.json` with all ids.

    If the names of all images are different whole numbers, as in COCO, these are the image ids.
    Otherwise they count from 1. Category ids count from 1 in the order of the labels.
    """

    def __init__(self, out: OutFolder, classes: Sequence[str], sources: Sources) -> None:
        stems = [Path(source.name).stem for source, _ in sources]
        numeric = all(stem.isascii() and stem.isdecimal() and len(stem) < 16 for stem in stems)
        images = all(isinstance(source, ImageRef) for source, _ in sources)
        self._by_name = numeric and images and len(set(map(int, stems))) == len(stems)
        self._classes = {name: number for number, name in enumerate(classes, start=1)}
        self._results = _Growing(out, _COCO, "[")
        self._images = _Growing(out, _COCO_IMAGES, '{"images": [')
        self._count, self._objects = 0, 0

    def names(self, sources: Sources) -> list[str]:
        """Returns the two files."""
        del sources
        return [_COCO, _COCO_IMAGES]

    def write(self, result: Result) -> None:
        """Appends an image or frame and its objects."""
        image = result.image
        self._count += 1
        number = int(Path(image.source.name).stem) if self._by_name else self._count
        record: dict[str, Any] = {"id": number, "file_name": image.source.name}
        record |= {"width": image.width, "height": image.height}
        if image.frame is not None:
            record["frame"] = image.frame
        separator = ",\n" if self._count > 1 else "\n"
        self._images.write(separator + json.dumps(record, ensure_ascii=False))
        for name, score, (x0, y0, x1, y1) in result.named:
            found = {
                "image_id": number,
                "category_id": self._classes[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            self._results.write((",\n" if self._objects else "\n") + json.dumps(found))
            self._objects += 1

    def close(self) -> None:
        """Completes both files."""
        categories = [{"id": number, "name": name} for name, number in self._classes.items()]
        self._results.write("\n]\n")
        text = json.dumps(categories, ensure_ascii=False)
        self._images.write(f'\n],\n"categories": {text}}}\n')
        self._results.close()
        self._images.close()


class VocWriter:
    """Writes the devkit's `comp4_det_test_<class>.txt`. Detections stay in memory until the end."""

    def __init__(self, out: OutFolder, classes: Sequence[str]) -> None:
        self._out, self._classes = out, tuple(classes)
        self._results: list[tuple[str, int, int]] = []
        self._found: list[Detections] = []

    def names(self, sources: Sources) -> list[str]:
        """Returns the file of each class."""
        del sources
        return results_file_names(_SPLIT, self._classes)

    def write(self, result: Result) -> None:
        """Keeps the detections of an image or frame."""
        image = result.image
        self._results.append((key_of_frame(result), image.height, image.width))
        self._found.append(result.found)

    def close(self) -> None:
        """Writes all files."""
        for name in results_file_names(_SPLIT, self._classes):
            self._out.claim(name)
        if not self._found:
            return
        sizes = np.array([row[1:] for row in self._results], np.int64).reshape(-1, 2)
        by_class = by_class_in_pixels(self._found, sizes, self._classes)
        ids = [row[0] for row in self._results]
        write_results(self._out.folder, by_class, ids, split=_SPLIT)
