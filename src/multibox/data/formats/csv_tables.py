"""Reads annotations from CSV files with a row for each object.

The columns are found by the names in the header: those of TensorFlow's tutorials and Roboflow
(`filename,width,height,class,xmin,ymin,xmax,ymax`), of ssd_keras, of Open Images, of Kaggle
(`bbox` as "[x, y, width, height]"), and similar ones. keras-retinanet has no header: its columns
are path, x1, y1, x2, y2 and class, and a row with the path only is an image without objects.

Coordinates are pixels, or fractions of the image if those of most rows are at most 1. The splits
come from a column `split`, or from the paths of the files. The rows of an image may be anywhere in
a file. Nothing is written.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Note, Object, Scene
from multibox.data.files import SUFFIXES, read_ends
from multibox.data.formats.plain_text import (
    NumberedNames,
    check_name,
    name_of,
    parse_index,
    parse_number,
    read_text,
    snap_box,
    use_numbers,
)
from multibox.data.formats.tree import UNSPLIT, FileTree
from multibox.data.images import check_image
from multibox.data.reading import Reading
from multibox.errors import DataError

_MAX_BYTES = 1 << 30
_HEAD_BYTES = 1 << 16
# How many files are opened to recognise the format.
_SNIFFED = 200
_DELIMITERS = (",", ";", "\t", "|")
_IMAGE = (
    *("filename", "imagefilename", "imagename", "imagefile", "filepath", "imagepath", "path"),
    *("file", "image", "imageid", "frame", "imgname", "imgpath", "imgfile", "imgid", "img"),
)
_CLASS = (
    *("classname", "class", "labelname", "label", "categoryname", "category", "objectclass"),
    *("classid", "labelid", "categoryid", "cls", "object", "name"),
)
_CORNERS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
    ("minx", "miny", "maxx", "maxy"),
    ("bboxxmin", "bboxymin", "bboxxmax", "bboxymax"),
    ("bboxx1", "bboxy1", "bboxx2", "bboxy2"),
    ("xtl", "ytl", "xbr", "ybr"),
)
_SIDES = (
    ("x", "y", "w", "h"),
    ("bboxx", "bboxy", "bboxw", "bboxh"),
    ("bboxx", "bboxy", "bboxwidth", "bboxheight"),
    ("x", "y", "bboxwidth", "bboxheight"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("bboxleft", "bboxtop", "bboxwidth", "bboxheight"),
    ("xmin", "ymin", "width", "height"),
    ("xmin", "ymin", "w", "h"),
)
_BOX = ("bbox", "box", "boundingbox")
_SIZES = (
    ("width", "height"),
    ("imagewidth", "imageheight"),
    ("imgwidth", "imgheight"),
    ("imagew", "imageh"),
)
_DIFFICULT = ("isgroupof", "difficult", "isdifficult", "iscrowd")
_SPLIT = ("split", "subset", "set")
_SCORES = {"score", "scores", "confidence", "conf", "probability", "prediction"}
_RETINANET = ("path", "x1", "y1", "x2", "y2", "class")
_WHOLE = re.compile(r"[0-9]{1,9}(\.0*)?")
_FLAGS = {"": False, "0": False, "-1": False, "false": False, "1": True, "true": True}

_ONE_CLASS = "object"
_NO_CLASS = Note(
    "class-names-missing", f"objects have no column of the class: they are called {_ONE_CLASS!r}"
)


class _Columns(NamedTuple):
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


class _Table(NamedTuple):
    """A file with annotations.

    Attributes:
        file: The file.
        columns: The meaning of its columns.
        split: The value of the column `split` in the rows to read. None: all rows.
        class_file: A file with names and numbers of the classes, or None.
        titles_file: A file of Open Images that translates its class codes, or None.
    """

    file: Path
    columns: _Columns
    split: str | None
    class_file: Path | None
    titles_file: Path | None


_TWO_COLUMNS = _Columns(",", ("name", "number"), False, 0, (), True)


class _Row(NamedTuple):
    line: int
    fields: list[str]


def find_splits(tree: FileTree) -> dict[str, list[_Table]]:
    """Returns the tables of each split: none if no file is a table of annotated images.

    Raises:
        DataError: A table has images, but its header cannot be understood.
    """
    tables: list[tuple[Path, _Columns]] = []
    class_files: list[Path] = []
    titles: list[Path] = []
    unclear: DataError | None = None
    for file in tree.with_suffix(".csv", ".tsv")[:_SNIFFED]:
        lines = _head(file)
        if file.stem.lower().startswith("class-descriptions"):
            titles.append(file)
        elif _lists_classes(file, lines):
            class_files.append(file)
        else:
            try:
                columns = _columns(lines)
            except DataError as error:
                unclear = unclear or DataError(
                    error.reason, kind=error.kind, file=file, position="line 1"
                )
                continue
            if columns is not None:
                tables.append((file, columns))
    if unclear is not None and not tables:
        raise unclear
    splits: dict[str, list[_Table]] = {}
    for file, columns in tables:
        for split, value in _splits_in(file, columns, tree):
            table = _Table(file, columns, value, _near(file, class_files), _near(file, titles))
            splits.setdefault(split, []).append(table)
    return splits


def read_split(tables: Sequence[_Table], tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    return [scene for table in tables for scene in _read_table(table, tree, reading)]


# --- recognising tables by their first lines


def _head(file: Path) -> list[str]:
    """Returns the first lines of a file. Bytes that are not UTF-8 are replaced."""
    try:
        data, _ = read_ends(file, head=_HEAD_BYTES, tail=1, limit=_MAX_BYTES)
    except DataError:
        return []
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = data.decode(encoding, "replace").splitlines()
    # The last line may be cut off.
    return lines[:-1] if len(data) == _HEAD_BYTES else lines


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []
    return [field.strip() for field in row]


def _columns(lines: Sequence[str]) -> _Columns | None:
    """Returns the meaning of a table's columns, or None if it has no annotated images.

    Raises:
        DataError: It has images, but no columns of a box. The error names no file.
    """
    lines = [line for line in lines[:20] if line.strip()]
    if not lines:
        return None
    delimiter = max(_DELIMITERS, key=lambda mark: len(_fields(lines[0], mark)))
    names = _fields(lines[0], delimiter)
    if all(_is_retinanet(_fields(line, delimiter)) for line in lines):
        return _Columns(delimiter, _RETINANET, False, 0, (1, 2, 3, 4), True, 5)
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    if _SCORES & set(plain) and "source" not in plain:
        return None  # results of a detector
    place = {name: plain.index(name) for name in plain}
    image = next((place[name] for name in _IMAGE if name in place), None)
    label = next((place[name] for name in _CLASS if name in place), None)
    box, corners = _box_columns(place)
    if {"annotationid", "leadtime"} <= place.keys():
        raise DataError(
            "is Label Studio's CSV. Export the project as JSON, COCO or YOLO instead",
            kind="csv-header",
        )
    if image is None or not box:
        if (image is not None and label is not None) or (box and label is not None):
            missing = "of the box (xmin, ymin, xmax, ymax)" if box is None else "of the image"
            raise DataError(
                f"has the columns {', '.join(names)[:400]}, but none {missing}. Name the columns "
                "filename, class, xmin, ymin, xmax and ymax",
                kind="csv-header",
            )
        return None
    sizes = [tuple(place[name] for name in pair) for pair in _SIZES if place.keys() >= set(pair)]
    size = next(((w, h) for w, h in sizes if w not in box), None)
    difficult = next((place[name] for name in _DIFFICULT if name in place), None)
    split = next((place[name] for name in _SPLIT if name in place), None)
    return _Columns(
        delimiter, tuple(names), True, image, box, corners, label, size, difficult, split
    )


def _box_columns(place: dict[str, int]) -> tuple[tuple[int, ...] | None, bool]:
    """Returns the columns of the box, and whether they are its corners."""
    kinds: tuple[tuple[tuple[tuple[str, ...], ...], bool], ...] = (
        (_CORNERS, True),
        (_SIDES, False),
        (tuple((name,) for name in _BOX), False),
    )
    for groups, corners in kinds:
        for group in groups:
            if place.keys() >= set(group):
                return tuple(place[name] for name in group), corners
    return None, False


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


def _lists_classes(file: Path, lines: Sequence[str]) -> bool:
    """Whether a file has a class's name and number in each row, like keras-retinanet's."""
    if not any(word in file.stem.lower() for word in ("class", "label", "categor")):
        return False
    rows = [_fields(line, ",") for line in lines if line.strip()]
    rows = rows[1:] if rows and not any(map(_WHOLE.fullmatch, rows[0])) else rows
    return bool(rows) and all(len(row) == 2 and any(map(_WHOLE.fullmatch, row)) for row in rows)


def _near(file: Path, others: Sequence[Path]) -> Path | None:
    """Returns the file in the same folder, or else the first one."""
    ranked = sorted(others, key=lambda path: (path.parent != file.parent, len(path.parts), path))
    return ranked[0] if ranked else None


def _splits_in(file: Path, columns: _Columns, tree: FileTree) -> list[tuple[str, str | None]]:
    """Returns the splits of a table, each with its value in the column of the split."""
    if columns.split is None:
        return [(tree.split_of(file), None)]
    try:
        rows = list(_rows(file, columns))
    except DataError:
        # The reader raises it.
        return [(tree.split_of(file), None)]
    values = dict.fromkeys(
        row.fields[columns.split].strip() for row in rows if len(row.fields) > columns.split
    )
    return [(value if value.isprintable() and value else UNSPLIT, value) for value in values]


# --- reading tables


def _rows(file: Path, columns: _Columns) -> Iterator[_Row]:
    """Yields the rows of a table that are not empty, without the header.

    Raises:
        DataError: The file is not UTF-8, or its quotes are malformed.
    """
    text = read_text(file, limit=_MAX_BYTES)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=columns.delimiter,
        skipinitialspace=True,
        strict=True,
    )
    awaited = columns.header
    try:
        for fields in reader:
            if not any(map(str.strip, fields)):
                continue
            if not awaited:
                yield _Row(reader.line_num, fields)
            awaited = False
    except csv.Error as error:
        raise DataError(
            f"is not CSV that can be read: {error}",
            kind="csv-malformed",
            file=file,
            position=f"line {reader.line_num}",
            remedy="Correct the quotes, or export it again",
        ) from None


class _Classes(NamedTuple):
    """The names of classes that tables write as numbers or codes."""

    numbered: NumberedNames | None
    by_code: dict[str, str]

    def name(self, text: str, reading: Reading) -> str:
        """Returns the name of a class that a table writes as a name, a number or a code.

        Raises:
            DataError: The number has no name, or the name is not plain text.
        """
        text = text.strip()
        if text in self.by_code:
            return self.by_code[text]
        names = self.numbered.by_number.values() if self.numbered else ()
        if not _WHOLE.fullmatch(text) or text in names:
            return check_name(text, "its class")
        return name_of(parse_index(text, "its class"), self.numbered, reading)


def _read_classes(table: _Table, reading: Reading) -> _Classes:
    numbered: NumberedNames | None = None
    if table.class_file is not None:
        numbered = NumberedNames(table.class_file, {})
        for line, fields in _rows(table.class_file, _TWO_COLUMNS):
            try:
                _add_number(fields, numbered.by_number)
            except DataError as error:
                reading.add_fault(error, table.class_file, f"line {line}")
        use_numbers(numbered, reading)
    by_code: dict[str, str] = {}
    if table.titles_file is not None:
        for _, fields in _rows(table.titles_file, _TWO_COLUMNS):
            if len(fields) == 2 and fields[1].strip() and fields[1].strip().isprintable():
                by_code[fields[0].strip()] = fields[1].strip()
    return _Classes(numbered, by_code)


def _add_number(fields: Sequence[str], by_number: dict[int, str]) -> None:
    """Adds the class in a row of a name and its number. A header has no number."""
    if len(fields) == 1:
        raise DataError("has one column", kind="text-malformed")
    numbers = [place for place in (1, 0) if _WHOLE.fullmatch(fields[place].strip())]
    if len(fields) == 2 and numbers:
        name = check_name(fields[1 - numbers[0]], "the name of a class")
        by_number[int(float(fields[numbers[0]]))] = name


def _read_table(table: _Table, tree: FileTree, reading: Reading) -> list[Scene]:
    columns, file = table.columns, table.file
    classes = _read_classes(table, reading)
    rows = list(_rows(file, columns))
    unit: Literal["fraction", "pixel"] = "fraction" if _are_fractions(rows, columns) else "pixel"
    if unit == "pixel" and {"ImageID", "LabelName"} <= set(columns.names):
        text = "tables with the columns of Open Images were read as pixels, not as fractions"
        reading.notes[Note("read-otherwise", text)] += 1
    # An image that is left out is None.
    by_name: dict[str, Scene | None] = {}
    by_path: dict[Path, Scene] = {}
    for line, fields in rows:
        place = f"line {line}"
        try:
            if len(fields) != len(columns.names):
                raise DataError(
                    f"has {len(fields)} columns, but the table has {len(columns.names)}",
                    kind="columns-malformed",
                )
            if table.split not in (None, fields[columns.split or 0].strip()):
                continue
            name = fields[columns.image].strip()
            size = _size(fields, columns)
            if name not in by_name:
                by_name[name] = None
                by_name[name] = _scene(name, size, file, place, by_path, tree, reading)
            scene = by_name[name]
            if scene is None:
                continue
            if size not in (None, (0, 0), scene.size_px):
                written = f"{scene.size_px[0]} x {scene.size_px[1]}"
                raise DataError(
                    f"its width and height differ from its image, {written}", kind="size-differs"
                )
            item = _object(fields, columns, scene, unit, classes, reading)
            if item is not None:
                scene.objects.append(reading.fitted(item, scene.size_px))
        except DataError as error:
            reading.add_fault(error, file, place)
    return list(by_path.values())


def _scene(
    name: str,
    declared_px: tuple[int, int] | None,
    file: Path,
    place: str,
    by_path: dict[Path, Scene],
    tree: FileTree,
    reading: Reading,
) -> Scene:
    """Returns the image that a row names, without its objects."""
    if not name.isprintable():
        raise DataError(f"its image name {name[:80]!r} is not plain text", kind="text-malformed")
    path = tree.find_image(name, beside=file, required=reading.images == "check")
    if path not in by_path:
        reading.list_once(str(path), f"{file}, {place}")
        size = check_image(path) if declared_px is None else reading.frame(declared_px, path)
        by_path[path] = Scene(str(tree.relative(path)), path, size, [])
    return by_path[path]


def _size(fields: Sequence[str], columns: _Columns) -> tuple[int, int] | None:
    """Returns width and height of the image in a row: zeros if empty, None without such columns."""
    if columns.size is None:
        return None
    width, height = (
        parse_index(fields[column].strip() or "0", f"its column {columns.names[column]!r}")
        for column in columns.size
    )
    return width, height


def _object(
    fields: Sequence[str],
    columns: _Columns,
    scene: Scene,
    unit: Literal["fraction", "pixel"],
    classes: _Classes,
    reading: Reading,
) -> Object | None:
    """Returns the object in a row, or None if it has no box and no class."""
    label = None if columns.label is None else fields[columns.label].strip()
    if not label and not any(fields[column].strip() for column in columns.box):
        return None
    left, top, right, bottom = _numbers(fields, columns)
    if not columns.corners:
        right, bottom = left + right, top + bottom
    width, height = scene.size_px if unit == "fraction" else (1, 1)
    corners = left * width, top * height, right * width, bottom * height
    if label is None:
        reading.notes[_NO_CLASS] += 1
        name = _ONE_CLASS
    elif not label:
        raise DataError("its class is empty", kind="name-empty")
    else:
        name = classes.name(label, reading)
    flag = "" if columns.difficult is None else fields[columns.difficult].strip().lower()
    if flag not in _FLAGS:
        raise DataError(
            f"its column {columns.names[columns.difficult or 0]!r} is {flag[:40]!r}, not 0 or 1",
            kind="difficult-malformed",
        )
    return Object(name, snap_box(corners, scene.size_px), _FLAGS[flag])


def _numbers(fields: Sequence[str], columns: _Columns) -> list[float]:
    """Returns the four numbers of a box as they are written."""
    if len(columns.box) == 4:
        return [
            parse_number(fields[column], f"its column {columns.names[column]!r}")
            for column in columns.box
        ]
    text = fields[columns.box[0]].strip()
    words = text.strip("[]()").replace(",", " ").split()
    if len(words) != 4:
        raise DataError(
            f"its column {columns.names[columns.box[0]]!r} is {text[:40]!r}, not four numbers",
            kind="bbox-malformed",
        )
    return [parse_number(word, f"its column {columns.names[columns.box[0]]!r}") for word in words]


def _are_fractions(rows: Sequence[_Row], columns: _Columns) -> bool:
    """Whether the coordinates of most rows are at most 1. A box in pixels is larger than that."""
    votes = 0
    for _, fields in rows:
        try:
            numbers = _numbers(fields, columns) if len(fields) == len(columns.names) else []
        except DataError:
            continue
        if numbers:
            votes += 1 if max(map(abs, numbers)) <= 1 else -1
    return votes > 0
