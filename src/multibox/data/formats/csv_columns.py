"""Finds the meaning of a CSV table's columns by the names in its header.

These are the names of TensorFlow's tutorials and Roboflow
(`filename,width,height,class,xmin,ymin,xmax,ymax`), of ssd_keras, of Open Images, of Kaggle
(`bbox` as "[x, y, width, height]"), and similar ones. keras-retinanet has no header: its columns
are path, x1, y1, x2, y2 and class, and a row with the path only is an image without objects.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from multibox.data.files import SUFFIXES, read_ends
from multibox.data.formats.plain_text import parse_number
from multibox.errors import DataError

MAX_BYTES = 1 << 30
"""The maximum size of a table."""
WHOLE = re.compile(r"[0-9]{1,9}(\.0*)?")
"""A class number. Some tools write it as 2.0."""
_HEAD_BYTES = 1 << 16
_DELIMITERS = (",", ";", "\t", "|")
_IMAGE = (
    "filename imagefilename imagename imagefile filepath imagepath path file image imageid frame "
    "imgname imgpath imgfile imgid img"
)
_CLASS = (
    "classname class labelname label categoryname category objectclass classid labelid categoryid "
    "cls object name"
)
_DIFFICULT = "isgroupof difficult isdifficult iscrowd"
_SPLIT = "split subset set"
_CORNERS = (
    "xmin ymin xmax ymax",
    "x0 y0 x1 y1",
    "x1 y1 x2 y2",
    "left top right bottom",
    "minx miny maxx maxy",
    "bboxxmin bboxymin bboxxmax bboxymax",
    "bboxx1 bboxy1 bboxx2 bboxy2",
    "xtl ytl xbr ybr",
)
_SIDES = (
    "x y w h",
    "bboxx bboxy bboxw bboxh",
    "bboxx bboxy bboxwidth bboxheight",
    "x y bboxwidth bboxheight",
    "x y width height",
    "left top width height",
    "bboxleft bboxtop bboxwidth bboxheight",
    "xmin ymin width height",
    "xmin ymin w h",
)
# One column with x, y, width and height.
_BOX = ("bbox", "box", "boundingbox")
_SIZES = ("width height", "imagewidth imageheight", "imgwidth imgheight", "imagew imageh")
_SCORES = {"score", "scores", "confidence", "conf", "probability", "prediction"}


class Columns(NamedTuple):
    """Which column of a table has which meaning.

    Attributes:
        delimiter: The character between columns.
        names: The names of the columns. Messages use them.
        header: Whether the first row has these names.
        image: The column of the image's name.
        box: The columns of the box: four, or one that has all numbers as text.
        corners: Whether the box is xmin, ymin, xmax, ymax. Otherwise it is x, y, width, height.
        label: The column of the class, or None.
        size: The columns of the image's width and height, or None.
        difficult: The column that marks difficult objects, or None.
        split: The column of the split, or None.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bool
    image: int
    box: tuple[int, ...]
    corners: bool
    label: int | None = None
    size: tuple[int, int] | None = None
    difficult: int | None = None
    split: int | None = None


# The delimiter may differ.
_RETINANET = Columns(
    ",", ("path", "x1", "y1", "x2", "y2", "class"), False, 0, (1, 2, 3, 4), True, 5
)
CLASS_LIST = Columns(",", ("name", "number"), False, 0, (), True)
"""The columns of a table with the names of classes."""


def read_head(file: Path) -> list[str]:
    """Returns the first lines of a file. Bytes that are not UTF-8 are replaced."""
    try:
        data, _ = read_ends(file, head=_HEAD_BYTES, tail=1, limit=MAX_BYTES)
    except DataError:
        return []
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = data.decode(encoding, "replace").splitlines()
    # The last line may be cut off.
    return lines[:-1] if len(data) == _HEAD_BYTES else lines


def find_columns(lines: Sequence[str]) -> Columns | None:
    """Returns the meaning of a table's columns, or None if it has no annotated images.

    Args:
        lines: The first lines of the table.

    Raises:
        DataError: It has images, but no columns of a box. The error names no file.
    """
    lines = [line for line in lines[:20] if line.strip()]
    if not lines:
        return None
    delimiter = max(_DELIMITERS, key=lambda mark: len(_fields(lines[0], mark)))
    if all(_is_retinanet(_fields(line, delimiter)) for line in lines):
        return _RETINANET._replace(delimiter=delimiter)
    names = _fields(lines[0], delimiter)
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    if _SCORES & set(plain) and "source" not in plain:
        return None  # results of a detector
    place = {name: plain.index(name) for name in plain}
    if {"annotationid", "leadtime"} <= place.keys():
        raise DataError(
            "is Label Studio's CSV. Export the project as JSON, COCO or YOLO instead",
            kind="csv-header",
        )

    def groups(options: Sequence[str]) -> Iterator[tuple[int, ...]]:
        """Yields the columns of each group of names that the table has."""
        for words in map(str.split, options):
            if place.keys() >= set(words):
                yield tuple(place[word] for word in words)

    def column(options: str) -> int | None:
        return next((found for (found,) in groups(options.split())), None)

    image, label = column(_IMAGE), column(_CLASS)
    corners = next(groups(_CORNERS), None)
    box = corners or next(groups((*_SIDES, *_BOX)), None)
    if image is None or box is None:
        if label is None or (image is None and box is None):
            return None
        missing = "of the box (xmin, ymin, xmax, ymax)" if box is None else "of the image"
        raise DataError(
            f"has the columns {', '.join(names)[:400]}, but none {missing}. Name the columns "
            "filename, class, xmin, ymin, xmax and ymax",
            kind="csv-header",
        )
    size = next(((w, h) for w, h in groups(_SIZES) if w not in box), None)
    return Columns(
        *(delimiter, tuple(names), True, image, box, corners is not None),
        *(label, size, column(_DIFFICULT), column(_SPLIT)),
    )


def _is_retinanet(fields: Sequence[str]) -> bool:
    """Whether a row is keras-retinanet's: an image's path, four numbers and a class, or no box."""
    if len(fields) != 6 or Path(fields[0]).suffix.lower() not in SUFFIXES:
        return False
    return not any(fields[1:]) or all(_is_number(field) for field in fields[1:5])


def _is_number(text: str) -> bool:
    try:
        parse_number(text, "")
    except DataError:
        return False
    return True


def lists_classes(file: Path, lines: Sequence[str]) -> bool:
    """Whether a file has a class's name and number in each row, like keras-retinanet's."""
    if not any(word in file.stem.lower() for word in ("class", "label", "categor")):
        return False
    rows = [_fields(line, ",") for line in lines if line.strip()]
    rows = rows[1:] if rows and not any(map(WHOLE.fullmatch, rows[0])) else rows
    return bool(rows) and all(len(row) == 2 and any(map(WHOLE.fullmatch, row)) for row in rows)


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [field.strip() for field in row]
