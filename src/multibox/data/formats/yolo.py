"""Reads folders in YOLO's format: a text file for each image, with fractions of its size.

A line is `class x y width height`, where x and y are the box's centre. A line with the class and
three or more points is an outline or an oriented box; its bounds are used. With `kpt_shape` in the
YAML file, keypoints may follow a box; they are not read. Ultralytics refuses lines of six columns
(a confidence or a track in the sixth), and so does this reader.

The splits and class names come from the dataset's description (see `yolo_description`). Without it,
the folders tell the splits.

The label file of an image has its path with the last folder `images` replaced by `labels`.
Otherwise it lies beside the image, or is the only one with the image's stem in the image's split.
An image without a label file has no objects. Nothing is written.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from multibox.data.dataset import Fault, Note, Object, Scene
from multibox.data.files import SUFFIXES, read_bytes
from multibox.data.formats.outlines import Box, bounds
from multibox.data.formats.plain_text import (
    NumberedNames,
    name_of,
    parse_index,
    parse_number,
    read_text,
    snap_box,
    use_numbers,
)
from multibox.data.formats.tree import UNSPLIT, FileTree, plain_key
from multibox.data.formats.yolo_description import (
    NAME_FILES,
    SPLITS,
    Description,
    Images,
    find_name_files,
    read_description,
    read_name_file,
)
from multibox.data.images import check_image
from multibox.data.reading import Reading
from multibox.errors import DataError

_MAX_LABEL_BYTES = 1 << 24
_MAX_LIST_BYTES = 1 << 28
# How many files are opened to recognise the format.
_SNIFFED = 50
_LABEL = re.compile(rb"\s*[0-9]{1,9}(?:\.0*)?(?:[ \t]+[-+0-9.eE]{1,40}){4,}\s*")
# Numbers above it are pixels. Fractions exceed 1 by rounding only.
_MAX_FRACTION = 2.0

_UNLABELLED = Note("label-missing", "images have no label file and count as without objects")


class _Folder(NamedTuple):
    """What holds for all splits of a folder.

    Attributes:
        description: The dataset's description.
        labels: The text files that may be label files, by the key of their stem.
        name_files: The files with class names, by folder.
    """

    description: Description
    labels: dict[str, list[Path]]
    name_files: dict[Path, Path]


class _Split(NamedTuple):
    images: Images
    folder: _Folder


def find_splits(tree: FileTree) -> dict[str, _Split]:
    """Returns the images of each split: none if the folder is not in YOLO's format."""
    labels: dict[str, list[Path]] = defaultdict(list)
    for path in tree.with_suffix(".txt"):
        if path.name not in NAME_FILES:
            labels[_key(path)].append(path)
    folder = _Folder(read_description(tree), dict(labels), find_name_files(tree))
    splits = folder.description.splits
    if not splits and _has_labels(folder):
        splits = _splits_of_folders(tree, folder)
    return {name: _Split(images, folder) for name, images in splits.items()}


def read_split(split: _Split, tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    files, lists = split.images
    about = split.folder.description
    if about.fault and all(fault.reason != about.fault.reason for fault in reading.faults):
        reading.add_fault(about.fault, tree.root)
    if about.absent:
        text = f"splits in the description do not exist: {', '.join(about.absent)}"
        reading.notes[Note("read-otherwise", text)] = len(about.absent)
    if about.names:
        use_numbers(about.names, reading)
    listed = (image for file in lists for image in _listed(file, tree, reading))
    images = dict.fromkeys(chain(files, listed))
    numbering: dict[Path, NumberedNames | None] = {}
    used: set[Path] = set()
    known = len(reading.faults)
    scenes = []
    for image in images:
        label = _label_file(image, tree, split.folder.labels)
        try:
            reading.list_once(str(image), str(lists[0] if lists else image.parent))
            scene = Scene(str(tree.relative(image)), image, check_image(image), [])
            if label is None:
                reading.notes[_UNLABELLED] += 1
            else:
                used.add(label)
                names = about.names or _names_for(
                    label, split.folder.name_files, numbering, reading
                )
                _read_label(label, scene, names, about.keypoints, reading)
        except DataError as error:
            reading.add_fault(error, label or image)
            continue
        scenes.append(scene)
    if not lists:
        _report_orphans(used, split, tree, reading)
    if about.names:
        _refuse_shifted(scenes, reading.faults[known:], about.names)
    return scenes


# --- images, label files and class names


def _splits_of_folders(tree: FileTree, folder: _Folder) -> dict[str, Images]:
    """Returns the images of the folders in which at least one image has a label file, by split."""
    found: dict[Path, list[Path]] = defaultdict(list)
    for image in tree.images:
        found[image.parent].append(image)
    splits: dict[str, list[Path]] = defaultdict(list)
    for images in found.values():
        if any(_label_file(image, tree, folder.labels) for image in images):
            splits[_split_of(images[0], tree)] += images
    if not splits:
        # The reader reports that each label file lacks its image.
        splits = {_split_of(path, tree): [] for paths in folder.labels.values() for path in paths}
    return {name: Images(tuple(images)) for name, images in sorted(splits.items())}


def _listed(file: Path, tree: FileTree, reading: Reading) -> Iterator[Path]:
    """Yields the images in a list. A line that names none becomes a fault."""
    lines = read_text(file, limit=_MAX_LIST_BYTES).splitlines()
    for number, line in enumerate(lines, start=1):
        name = line.strip().removeprefix("./")
        if not name:
            continue
        beside = file.parent / name
        if beside in tree.file_set and beside.suffix.lower() in SUFFIXES:
            yield beside
            continue
        try:
            yield tree.find_image(name, beside=file, required=True)
        except DataError as error:
            reading.add_fault(error, file, f"line {number}")


def _label_file(image: Path, tree: FileTree, labels: dict[str, list[Path]]) -> Path | None:
    """Returns an image's label file, or None if it has none."""
    places = labels.get(_key(image))
    if not places:
        return None
    *folders, name = tree.relative(image).parts
    if "images" in folders:
        folders[-1 - folders[::-1].index("images")] = "labels"
    for beside in (tree.root.joinpath(*folders, name), image):
        if beside.with_suffix(".txt") in places:
            return beside.with_suffix(".txt")
    split = _split_of(image, tree).casefold()
    # Two images may have the names `a b` and `a%20b`.
    same = [path for path in places if path.stem == image.stem] or [
        path for path in places if unquote(path.stem) == image.stem
    ]
    same = [path for path in same if _split_of(path, tree).casefold() in (split, UNSPLIT)]
    return same[0] if len(same) == 1 and same[0].stem not in SPLITS else None


def _key(file: Path) -> str:
    # Label Studio escapes the names of label files as in addresses.
    return plain_key(unquote(file.stem))


def _split_of(file: Path, tree: FileTree) -> str:
    """Returns the split in the folders of a file. Its own name may be that of a train."""
    return tree.split_of(file.parent / "_.jpg")


def _names_for(
    label: Path,
    name_files: dict[Path, Path],
    numbering: dict[Path, NumberedNames | None],
    reading: Reading,
) -> NumberedNames | None:
    """Returns the class names in the folder closest above a label file, or in the only other one.

    LabelImg writes a `classes.txt` into each folder, and their numbers may differ.
    """
    if label.parent not in numbering:
        above = [folder for folder in label.parents if folder in name_files]
        files = [name_files[above[0]]] if above else list(name_files.values())
        names = list(map(read_name_file, files))
        same = names and all(each.by_number == names[0].by_number for each in names)
        numbering[label.parent] = names[0] if same else None
        if same:
            use_numbers(names[0], reading)
    return numbering[label.parent]


# --- label files


def _has_labels(folder: _Folder) -> bool:
    """Whether one of the first text files is a label file. Those in `labels` come first."""
    ranked = sorted(
        chain.from_iterable(folder.labels.values()),
        key=lambda path: ("labels" not in path.parts, path.parent not in folder.name_files, path),
    )
    return any(map(_is_label, ranked[:_SNIFFED]))


def _is_label(file: Path) -> bool:
    """Whether the first line of a file, that is not empty, is a line of a label file."""
    try:
        lines = read_bytes(file, limit=_MAX_LABEL_BYTES).splitlines()
    except DataError:
        return False
    first = next((line for line in lines if line.strip()), b"")
    return _LABEL.fullmatch(first) is not None


def _read_label(
    file: Path, scene: Scene, names: NumberedNames | None, keypoints: int, reading: Reading
) -> None:
    """Adds the objects of a label file to its image."""
    lines = read_text(file, limit=_MAX_LABEL_BYTES).splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            box_px = _box_px(words, scene.size_px, keypoints)
            name = name_of(parse_index(words[0], "its class"), names, reading)
            scene.objects.append(reading.fitted(Object(name, box_px, False), scene.size_px))
        except DataError as error:
            reading.add_fault(error, file, f"line {number}")


def _refuse_shifted(scenes: Sequence[Scene], faults: Sequence[Fault], names: NumberedNames) -> None:
    """Raises an error if the label files seem to number the classes from 1.

    Otherwise most objects would silently get the name of another class.
    """
    count = len(names.by_number)
    unknown = [fault for fault in faults if fault.kind == "category-unknown"]
    used = {item.name for scene in scenes for item in scene.objects}
    shifted = all(fault.reason.startswith(f"its class is {count},") for fault in unknown)
    if unknown and shifted and names.by_number.get(0) not in used:
        raise DataError(
            f"its class is {count}, and no class is 0: the label files seem to number the "
            f"{count} classes of {names.file.name} from 1",
            kind="category-unknown",
            file=unknown[0].file,
            position=unknown[0].position,
            remedy=f"Subtract 1 from each class, or add a first name to {names.file.name}",
        )


def _box_px(words: Sequence[str], size_px: tuple[int, int], keypoints: int) -> Box:
    """Returns the corners of a line's box, in pixels."""
    count = len(words)
    if keypoints and count == 5 + keypoints:
        words = words[:5]
    elif count < 5 or count == 6 or count % 2 == 0:
        raise DataError(
            f"has {count} columns. A box has 5 (class, x, y, width, height), and an outline has "
            "the class and at least three points",
            kind="columns-malformed",
        )
    numbers = [parse_number(word, f"its column {place}") for place, word in enumerate(words[1:], 2)]
    largest = max(map(abs, numbers))
    if largest > _MAX_FRACTION:
        raise DataError(
            f"its coordinate {largest:g} is not a fraction of the image's size; it seems to be "
            "in pixels",
            kind="not-a-fraction",
        )
    width, height = size_px
    if len(words) == 5:
        x, y, w, h = numbers
        x, y, half_w, half_h = x * width, y * height, w * width / 2, h * height / 2
        box = x - half_w, y - half_h, x + half_w, y + half_h
    else:
        left, top, right, bottom = bounds(numbers[::2], numbers[1::2])
        box = left * width, top * height, right * width, bottom * height
    return snap_box(box, size_px)


def _report_orphans(used: set[Path], split: _Split, tree: FileTree, reading: Reading) -> None:
    """Adds a fault for each label file without an image, in the folders of the used ones."""
    names = {_split_of(image, tree) for image in split.images.files}
    folders = {label.parent for label in used}
    stems = {image.stem for image in split.images.files}
    for paths in split.folder.labels.values():
        for path in paths:
            if stems and (path.parent not in folders or _split_of(path, tree) not in names):
                continue
            if path not in used and path.stem not in stems and _is_label(path):
                reason = f"no image is called {unquote(path.stem)!r}"
                reading.add_fault(DataError(reason, kind="image-missing"), path)
