"""Reads annotations from CSV files with a row for each object.

The columns are found by the names in the header (see `csv_columns`). Coordinates are pixels, or
fractions of the image if those of most rows are at most 1. The splits come from a column `split`,
or from the paths of the files. The rows of an image may be anywhere in a file. Nothing is written.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from multibox.data.dataset import Note, Object, Scene
from multibox.data.formats.csv_columns import (
    CLASS_LIST,
    MAX_BYTES,
    WHOLE,
    Columns,
    find_columns,
    lists_classes,
    read_head,
)
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

# How many files are opened to recognise the format.
_SNIFFED = 200
_FLAGS = {"": False, "0": False, "-1": False, "false": False, "1": True, "true": True}

_ONE_CLASS = "object"
_NO_CLASS = Note(
    "class-names-missing", f"objects have no column of the class: they are called {_ONE_CLASS!r}"
)


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
    columns: Columns
    split: str | None
    class_file: Path | None
    titles_file: Path | None


class _Row(NamedTuple):
    line: int
    fields: list[str]


def find_splits(tree: FileTree) -> dict[str, list[_Table]]:
    """Returns the tables of each split: none if no file is a table of annotated images.

    Raises:
        DataError: A table has images, but its header cannot be understood.
    """
    tables: list[tuple[Path, Columns]] = []
    class_files: list[Path] = []
    titles: list[Path] = []
    unclear: DataError | None = None
    for file in tree.with_suffix(".csv", ".tsv")[:_SNIFFED]:
        lines = read_head(file)
        if file.stem.lower().startswith("class-descriptions"):
            titles.append(file)
        elif lists_classes(file, lines):
            class_files.append(file)
        else:
            try:
                columns = find_columns(lines)
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


def _near(file: Path, others: Sequence[Path]) -> Path | None:
    """Returns the file in the same folder, or else the first one."""
    return min(
        others, key=lambda path: (path.parent != file.parent, len(path.parts), path), default=None
    )


def _splits_in(file: Path, columns: Columns, tree: FileTree) -> list[tuple[str, str | None]]:
    """Returns the splits of a table, each with its value in the column of the split."""
    place = columns.split
    with suppress(DataError):  # The reader raises it.
        if place is not None:
            rows = [fields for _, fields in _rows(file, columns) if len(fields) > place]
            values = dict.fromkeys(fields[place].strip() for fields in rows)
            return [
                (value if value.isprintable() and value else UNSPLIT, value) for value in values
            ]
    return [(tree.split_of(file), None)]


# --- reading tables


def _rows(file: Path, columns: Columns) -> Iterator[_Row]:
    """Yields the rows of a table that are not empty, without the header.

    Raises:
        DataError: The file is not UTF-8, or its quotes are malformed.
    """
    text = read_text(file, limit=MAX_BYTES)
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
        if not WHOLE.fullmatch(text) or text in names:
            return check_name(text, "its class")
        return name_of(parse_index(text, "its class"), self.numbered, reading)


def _read_classes(table: _Table, reading: Reading) -> _Classes:
    numbered: NumberedNames | None = None
    if table.class_file is not None:
        numbered = NumberedNames(table.class_file, {})
        for line, fields in _rows(table.class_file, CLASS_LIST):
            try:
                _add_number(fields, numbered.by_number)
            except DataError as error:
                reading.add_fault(error, table.class_file, f"line {line}")
        use_numbers(numbered, reading)
    by_code: dict[str, str] = {}
    if table.titles_file is not None:
        for _, fields in _rows(table.titles_file, CLASS_LIST):
            if len(fields) == 2 and fields[1].strip() and fields[1].strip().isprintable():
                by_code[fields[0].strip()] = fields[1].strip()
    return _Classes(numbered, by_code)


def _add_number(fields: Sequence[str], by_number: dict[int, str]) -> None:
    """Adds the class in a row of a name and its number. A header has no number."""
    if len(fields) == 1:
        raise DataError("has one column", kind="text-malformed")
    numbers = [place for place in (1, 0) if WHOLE.fullmatch(fields[place].strip())]
    if len(fields) == 2 and numbers:
        name = check_name(fields[1 - numbers[0]], "the name of a class")
        by_number[parse_index(fields[numbers[0]], "the number of a class")] = name


def _read_table(table: _Table, tree: FileTree, reading: Reading) -> list[Scene]:
    columns, file = table.columns, table.file
    classes = _read_classes(table, reading)
    rows = list(_rows(file, columns))
    are_fractions = _are_fractions(rows, columns)
    if not are_fractions and {"ImageID", "LabelName"} <= set(columns.names):
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
            item = _object(fields, columns, scene, are_fractions, classes, reading)
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


def _size(fields: Sequence[str], columns: Columns) -> tuple[int, int] | None:
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
    columns: Columns,
    scene: Scene,
    are_fractions: bool,
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
    width, height = scene.size_px if are_fractions else (1, 1)
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


def _numbers(fields: Sequence[str], columns: Columns) -> list[float]:
    """Returns the four numbers of a box as they are written."""
    titles = [f"its column {columns.names[column]!r}" for column in columns.box]
    words = [fields[column] for column in columns.box]
    if len(words) == 1:
        titles, text = titles * 4, words[0].strip()
        words = text.strip("[]()").replace(",", " ").split()
        if len(words) != 4:
            raise DataError(
                f"{titles[0]} is {text[:40]!r}, not four numbers", kind="bbox-malformed"
            )
    return list(map(parse_number, words, titles))


def _are_fractions(rows: Sequence[_Row], columns: Columns) -> bool:
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
