"""Reads folders in YOLO's format: a text file for each image, with fractions of its size.

A line is `class x y width height`, where x and y are the box's centre. A line with the class and
three or more points is an outline or an oriented box; its bounds are used. With `kpt_shape` in the
YAML file, keypoints may follow a box; they are not read. Ultralytics refuses lines of six columns
(a confidence or a track in the sixth), and so does this reader.

The splits and class names come from a YAML file of Ultralytics, or from darknet's `obj.data`.
Without them, they come from the folders, and from `classes.txt`, `obj.names` or `notes.json`.

The label file of an image has its path with the last folder `images` replaced by `labels`.
Otherwise it lies beside the image, or is the only one with the image's stem in the image's split.
An image without a label file has no objects. Nothing is written.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import yaml

from multibox.data.dataset import Fault, Note, Object, Scene
from multibox.data.files import SUFFIXES, read_bytes
from multibox.data.formats.plain_text import (
    NAMELESS,
    check_name,
    number_names,
    parse_index,
    parse_number,
    read_names,
    read_text,
    snap_box,
    use_numbers,
)
from multibox.data.formats.tree import UNSPLIT, FileTree, plain_key
from multibox.data.images import check_image
from multibox.data.reading import Reading
from multibox.errors import DataError

_SPLITS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = ("classes.txt", "obj.names", "predefined_classes.txt", "_darknet.labels")
_MAX_YAML_BYTES = 1 << 20
_MAX_YAML_DEPTH = 8
# Limits of the folders and lists of a split, and of the folders in a path.
_MAX_ENTRIES = 1000
_MAX_FOLDERS = 64
_MAX_LABEL_BYTES = 1 << 24
_MAX_LIST_BYTES = 1 << 28
# How many files are opened to recognise the format.
_SNIFFED = 50
_SNIFFED_YAML = 10
_LABEL = re.compile(rb"\s*[0-9]{1,9}(?:\.0*)?(?:[ \t]+[-+0-9.eE]{1,40}){4,}\s*")
_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "null", "seq", "map"))
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Numbers above it are pixels. Fractions exceed 1 by rounding only.
_MAX_FRACTION = 2.0

_UNLABELLED = Note("label-missing", "images have no label file and count as without objects")


class _Names(NamedTuple):
    """Class names by number, and the file that they come from."""

    file: Path
    by_number: dict[int, str]


class _About(NamedTuple):
    """What holds for all splits of a folder.

    Attributes:
        files: All files of the folder.
        folders: The folders with images, directly or further below.
        labels: The text files that may be label files, by stem in lower case.
        names: The class names of the YAML file or `obj.data`. None: they come from the files in
            `name_files`.
        name_files: The files with class names, by folder.
        keypoints: How many columns of a line belong to keypoints.
        fault: A contradiction in the description of the dataset.
        absent: The splits that the description names, but that do not exist.
    """

    files: frozenset[Path]
    folders: frozenset[Path]
    labels: dict[str, list[Path]]
    names: _Names | None = None
    name_files: dict[Path, Path] = {}  # noqa: RUF012  # never changed
    keypoints: int = 0
    fault: DataError | None = None
    absent: tuple[str, ...] = ()


class _Split(NamedTuple):
    """The image files of a split, and the text files that list further ones."""

    images: tuple[Path, ...]
    lists: tuple[Path, ...]
    about: _About


def find_splits(tree: FileTree) -> dict[str, _Split]:
    """Returns the images of each split: none if the folder is not in YOLO's format."""
    texts = tree.with_suffix(".txt")
    labels: dict[str, list[Path]] = defaultdict(list)
    name_files = {path.parent: path for path in tree.with_suffix(".names")}
    for name in reversed(_NAME_FILES):
        name_files |= {path.parent: path for path in tree.files if path.name == name}
    for path in texts:
        if path.name not in _NAME_FILES:
            # Label Studio escapes the names of label files as in addresses.
            labels[plain_key(unquote(path.stem))].append(path)
    own = {image.parent for image in tree.images}
    above = {folder for image in own for folder in image.parents}
    about = _About(
        frozenset(tree.files), frozenset(own | above), dict(labels), name_files=name_files
    )
    described = _from_yaml(tree, about) or _from_obj_data(tree, about)
    if isinstance(described, dict):
        return described
    about = described or about
    if not about.name_files and about.names is None:
        about = about._replace(name_files=_notes_files(tree))
    candidates = [path for paths in about.labels.values() for path in paths]
    if not any(_is_label(path) for path in _sniffed(candidates, about.name_files)):
        return {}
    return _from_folders(tree, about)


def read_split(split: _Split, tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    about = split.about
    if about.fault and all(fault.reason != about.fault.reason for fault in reading.faults):
        reading.add_fault(about.fault, tree.root)
    if about.absent:
        text = f"its description also names {', '.join(about.absent)}, which do not exist"
        reading.notes[Note("read-otherwise", text)] = 1
    if about.names:
        use_numbers(about.names.by_number, reading)
    images = list(split.images)
    for file in split.lists:
        images += _listed(file, tree, reading, about)
    numbering: dict[Path, _Names | None] = {}
    used: set[Path] = set()
    known = len(reading.faults)
    scenes = []
    for image in dict.fromkeys(images):
        label = _label_file(image, tree, about)
        try:
            reading.list_once(str(image), str(split.lists[0] if split.lists else image.parent))
            size = check_image(image)
            scene = Scene(str(tree.relative(image)), image, size, [])
            if label is None:
                reading.notes[_UNLABELLED] += 1
            else:
                used.add(label)
                names = about.names or _names_for(label, about, numbering, reading)
                _read_label(label, scene, names, about, reading)
        except DataError as error:
            reading.add_fault(error, label or image)
            continue
        scenes.append(scene)
    if not split.lists:
        _report_orphans(used, split, tree, reading)
    if about.names:
        _refuse_shifted(scenes, reading.faults[known:], about.names)
    return scenes


# --- the description of a dataset


def _from_yaml(tree: FileTree, about: _About) -> dict[str, _Split] | _About | None:
    """Returns the splits of a YAML file, or its class names only, or None without such a file."""
    files = sorted(tree.with_suffix(".yaml", ".yml"), key=lambda path: len(path.parts))
    found: list[tuple[Path, dict[str, Any]]] = []
    broken: DataError | None = None
    for file in files[:_SNIFFED_YAML]:
        try:
            content = _load_yaml(file)
        except DataError as error:
            broken = broken or error if file.stem in ("data", "dataset") else broken
            continue
        if isinstance(content.get("names"), list | dict) or content.keys() & {"train", "nc"}:
            found.append((file, content))
    found.sort(key=lambda pair: (not pair[1].keys() & set(_SPLITS), "names" not in pair[1]))
    if not found:
        return about._replace(fault=broken) if broken else None
    file, content = found[0]
    about = _described(file, content, about)
    named = {key: content[key] for key in _SPLITS if content.get(key)}
    path = str(content.get("path") or "")
    splits = {key: _resolved(value, file, path, tree, about) for key, value in named.items()}
    for key, value in list(content.items())[:_MAX_ENTRIES]:
        # A split of another name. Its folder must exist as it is written.
        if key in (*_SPLITS, "path", "names", "nc", "download") or type(value) is not str:
            continue
        if value.count("/") + path.count("/") > _MAX_FOLDERS:
            continue
        places = (PurePosixPath(path) / value, PurePosixPath(value)) if value else ()
        folders = (_usable(file.parent, place.parts, tree, about) for place in places)
        if any(folder not in (None, tree.root) for folder in folders):
            splits[key] = _resolved(value, file, path, tree, about)
    absent = tuple(key for key, split in splits.items() if not split.images and not split.lists)
    about = about._replace(absent=absent)
    splits = {key: split._replace(about=about) for key, split in splits.items()}
    return {key: splits[key] for key in splits if key not in absent} or about


def _described(file: Path, content: dict[str, Any], about: _About) -> _About:
    """Returns what a YAML file says about all splits."""
    fault: DataError | None = None
    names: _Names | None = None
    keypoints = 0
    try:
        written = content.get("names")
        if isinstance(written, dict):
            pairs = ((parse_index(key, "a number in `names`"), key) for key in written)
            names = _Names(
                file, {n: check_name(written[key], f"the name of class {n}") for n, key in pairs}
            )
        elif isinstance(written, list):
            names = _Names(file, number_names(file, written))
        count = content.get("nc")
        if names and isinstance(count, str) and count:
            stated = parse_index(count, "`nc`")
            if stated != len(names.by_number):
                raise DataError(
                    f"`nc` is {stated}, but `names` has {len(names.by_number)} names",
                    kind="yaml-form",
                )
        shape = content.get("kpt_shape")
        if isinstance(shape, list) and len(shape) == 2:
            points, numbers = (parse_index(str(side), "`kpt_shape`") for side in shape)
            keypoints = points * numbers
    except DataError as error:
        fault = DataError(error.reason, kind=error.kind, file=file)
    return about._replace(names=names, keypoints=keypoints, fault=fault)


def _load_yaml(file: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file. Scalars stay text, so that a class may be called `no`.

    The parser's events are used, so that nothing is built from tags, and aliases are not expanded.

    Raises:
        DataError: It is not YAML, or has aliases, tags of its own, or too many levels.
    """
    text = read_text(file, limit=_MAX_YAML_BYTES)
    stack: list[list[Any]] = [[]]
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            tag = getattr(event, "tag", None)
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, which are not supported")
            if tag and tag not in _TAGS:
                raise ValueError(f"it has the tag {tag[:80]!r}")
            if isinstance(event, yaml.CollectionStartEvent):
                stack.append([])
            elif isinstance(event, yaml.CollectionEndEvent):
                items = stack.pop()
                sequence = isinstance(event, yaml.SequenceEndEvent)
                stack[-1].append(items if sequence else _mapping(items))
            elif isinstance(event, yaml.ScalarEvent):
                empty = event.implicit[0] and event.value in ("~", "null", "Null", "NULL")
                stack[-1].append("" if empty else event.value)
            if len(stack) > _MAX_YAML_DEPTH:
                raise ValueError(f"it has more than {_MAX_YAML_DEPTH} levels")
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise DataError(
            f"is not YAML that can be read: {reason}",
            kind="yaml-malformed",
            file=file,
            remedy="Write names, train and val without aliases and tags",
        ) from None
    return stack[0][0] if stack[0] and isinstance(stack[0][0], dict) else {}


def _mapping(items: list[Any]) -> dict[str, Any]:
    keys = items[::2]
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("a key is not text")
    return dict(zip(keys, items[1::2], strict=True))


def _from_obj_data(tree: FileTree, about: _About) -> dict[str, _Split] | _About | None:
    """Returns the splits of darknet's `obj.data`, or its class names only, or None without it."""
    for file in tree.with_suffix(".data")[:_SNIFFED]:
        try:
            lines = read_text(file, limit=_MAX_YAML_BYTES).splitlines()
        except DataError:
            continue
        pairs = (line.partition("=") for line in lines if "=" in line)
        content = {key.strip(): value.strip() for key, _, value in pairs}
        if "names" not in content:
            continue
        fault: DataError | None = None
        names: _Names | None = None
        listed = _existing(content["names"], file, "", tree, about)
        try:
            if listed is not None:
                names = _Names(listed, read_names(listed))
        except DataError as error:
            fault = error
        about = about._replace(names=names, fault=fault)
        splits = {
            key: _resolved(content[key], file, "", tree, about) for key in _SPLITS if key in content
        }
        return {key: split for key, split in splits.items() if split.lists or split.images} or about
    return None


def _resolved(value: Any, file: Path, path: str, tree: FileTree, about: _About) -> _Split:
    """Returns the images of a split: `value` is a folder, a text file, or a list of these."""
    entries = (value if isinstance(value, list) else [value])[:_MAX_ENTRIES]
    texts = dict.fromkeys(entry for entry in entries if isinstance(entry, str))
    found = {_existing(text, file, path, tree, about) for text in texts} - {None}
    lists = found & about.files
    parents = {image.parent for image in tree.images}
    folders = {above for above in parents if not found.isdisjoint((above, *above.parents))}
    images = tuple(image for image in tree.images if image.parent in folders)
    return _Split(images, tuple(sorted(filter(None, lists))), about)


def _existing(entry: str, file: Path, path: str, tree: FileTree, about: _About) -> Path | None:
    """Returns a folder with images, or a text file, that a description names.

    The path may be that of another machine: then its first folders are left out, except for one
    with the name of a split.
    """
    entry, path = entry.strip().replace("\\", "/"), path.strip().replace("\\", "/")
    root = tree.root.resolve().as_posix()
    if entry.startswith(f"{root}/"):
        entry, path = entry.removeprefix(f"{root}/"), ""
    if entry.count("/") + path.count("/") > _MAX_FOLDERS:
        return None
    places = [PurePosixPath(path) / entry, PurePosixPath(entry)]
    for place in places:
        for base in (file.parent, tree.root):
            found = _usable(base, place.parts, tree, about)
            if found is not None:
                return found
    parts = [part for part in places[0].parts if part not in ("..", "/")]
    while parts:
        for base in (file.parent, tree.root):
            found = _usable(base, parts, tree, about)
            if found is not None:
                return found
        if parts.pop(0).casefold() in _SPLITS:
            return None
    return None


def _usable(base: Path, parts: Sequence[str], tree: FileTree, about: _About) -> Path | None:
    """Returns a path below a folder if it is a text file or has images, inside the root only."""
    place = base
    for part in parts:
        if part == "..":
            if place == tree.root:
                return None
            place = place.parent
        elif part == "/":
            return None
        else:
            place = place / part
    if place.suffix.lower() in (".txt", ".names"):
        return place if place in about.files else None
    return place if place in about.folders else None


# --- images, label files and class names


def _from_folders(tree: FileTree, about: _About) -> dict[str, _Split]:
    """Returns the images of the folders in which at least one image has a label file, by split."""
    found: dict[Path, list[Path]] = defaultdict(list)
    for image in tree.images:
        found[image.parent].append(image)
    splits: dict[str, list[Path]] = defaultdict(list)
    for images in found.values():
        if any(_label_file(image, tree, about) for image in images):
            splits[_split_of(images[0], tree)] += images
    if not splits:
        # The reader reports that each label file lacks its image.
        splits = {_split_of(path, tree): [] for paths in about.labels.values() for path in paths}
    return {name: _Split(tuple(images), (), about) for name, images in sorted(splits.items())}


def _listed(file: Path, tree: FileTree, reading: Reading, about: _About) -> Iterator[Path]:
    """Yields the images in a list. A line that names none becomes a fault."""
    lines = read_text(file, limit=_MAX_LIST_BYTES).splitlines()
    for number, line in enumerate(lines, start=1):
        name = line.strip().removeprefix("./")
        if not name:
            continue
        beside = file.parent / name
        if ".." not in beside.parts and beside in about.files and beside.suffix.lower() in SUFFIXES:
            yield beside
            continue
        try:
            yield tree.find_image(name, beside=file, required=True)
        except DataError as error:
            reading.add_fault(error, file, f"line {number}")


def _label_file(image: Path, tree: FileTree, about: _About) -> Path | None:
    """Returns an image's label file, or None if it has none."""
    places = about.labels.get(plain_key(unquote(image.stem)), ())
    if not places:
        return None
    parts = list(tree.relative(image).parts)
    folders = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if folders:
        parts[folders[-1]] = "labels"
        label = tree.root.joinpath(*parts).with_suffix(".txt")
        if label in about.files:
            return label
    label = image.with_suffix(".txt")
    if label in about.files:
        return label
    split = _split_of(image, tree).casefold()
    # Two images may have the names `a b` and `a%20b`.
    same = [path for path in places if path.stem == image.stem] or [
        path for path in places if unquote(path.stem) == image.stem
    ]
    same = [path for path in same if _split_of(path, tree).casefold() in (split, UNSPLIT)]
    return same[0] if len(same) == 1 and same[0].stem not in _SPLITS else None


def _split_of(file: Path, tree: FileTree) -> str:
    """Returns the split in the folders of a file. Its own name may be that of a train."""
    return tree.split_of(file.parent / "_.jpg")


def _names_for(
    label: Path, about: _About, numbering: dict[Path, _Names | None], reading: Reading
) -> _Names | None:
    """Returns the class names in the folder closest above a label file, or in the only other one.

    LabelImg writes a `classes.txt` into each folder, and their numbers may differ.
    """
    if label.parent not in numbering:
        above = [folder for folder in label.parents if folder in about.name_files]
        files = [about.name_files[above[0]]] if above else list(about.name_files.values())
        names = [_Names(file, _read_name_file(file)) for file in files]
        same = names and all(each.by_number == names[0].by_number for each in names)
        numbering[label.parent] = names[0] if same else None
        if same:
            use_numbers(names[0].by_number, reading)
    return numbering[label.parent]


def _read_name_file(file: Path) -> dict[int, str]:
    if file.suffix.lower() != ".json":
        return read_names(file)
    records = _notes(file)
    try:
        return {
            int(record["id"]): check_name(record["name"], "the name of a class")
            for record in records
        }
    except DataError as error:
        raise DataError(error.reason, kind=error.kind, file=file) from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError("has a category without id or name", kind="json-form", file=file) from None


def _notes_files(tree: FileTree) -> dict[Path, Path]:
    """Returns Label Studio's files of class names, by folder."""
    files = [path for path in tree.with_suffix(".json") if path.name == "notes.json"]
    return {path.parent: path for path in files[:_SNIFFED] if _notes(path)}


def _notes(file: Path) -> list[Any]:
    try:
        content = json.loads(read_bytes(file, limit=_MAX_YAML_BYTES))
    except (DataError, ValueError, RecursionError):
        return []
    records = content.get("categories") if isinstance(content, dict) else None
    return records if isinstance(records, list) else []


# --- label files


def _sniffed(candidates: Sequence[Path], name_files: dict[Path, Path]) -> list[Path]:
    """Returns the files that are opened to recognise the format: those in `labels` come first."""
    near = set(name_files)
    ranked = sorted(
        candidates, key=lambda path: ("labels" not in path.parts, path.parent not in near, path)
    )
    return ranked[:_SNIFFED]


def _is_label(file: Path) -> bool:
    """Whether the first line of a file, that is not empty, is a line of a label file."""
    try:
        lines = read_bytes(file, limit=_MAX_LABEL_BYTES).splitlines()
    except DataError:
        return False
    first = next((line for line in lines if line.strip()), b"")
    return _LABEL.fullmatch(first) is not None


def _read_label(
    file: Path, scene: Scene, names: _Names | None, about: _About, reading: Reading
) -> None:
    """Adds the objects of a label file to its image."""
    lines = read_text(file, limit=_MAX_LABEL_BYTES).splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        try:
            box_px = _box_px(words, scene.size_px, about.keypoints)
            name = _class_name(words[0], names, reading)
            scene.objects.append(reading.fitted(Object(name, box_px, False), scene.size_px))
        except DataError as error:
            reading.add_fault(error, file, f"line {number}")


def _class_name(word: str, names: _Names | None, reading: Reading) -> str:
    number = parse_index(word, "its class")
    if names is None:
        reading.notes[NAMELESS] += 1
        reading.order[str(number)] = number
        return str(number)
    if number not in names.by_number:
        raise DataError(
            f"its class is {number}, but {names.file.name} has {len(names.by_number)} names, "
            "numbered from 0",
            kind="category-unknown",
        )
    return names.by_number[number]


def _refuse_shifted(scenes: Sequence[Scene], faults: Sequence[Fault], names: _Names) -> None:
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


def _box_px(
    words: Sequence[str], size_px: tuple[int, int], keypoints: int
) -> tuple[float, float, float, float]:
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
        centre, half = (x * width, y * height), (w * width / 2, h * height / 2)
        corners = [c - d for c, d in zip(centre, half, strict=True)]
        corners += [c + d for c, d in zip(centre, half, strict=True)]
    else:
        across, down = numbers[::2], numbers[1::2]
        corners = [min(across) * width, min(down) * height, max(across) * width, max(down) * height]
    return snap_box(corners, size_px)


def _report_orphans(used: set[Path], split: _Split, tree: FileTree, reading: Reading) -> None:
    """Adds a fault for each label file without an image, in the folders of the used ones."""
    names = {_split_of(image, tree) for image in split.images}
    folders = {label.parent for label in used}
    stems = {image.stem for image in split.images}
    for paths in split.about.labels.values():
        for path in paths:
            if split.images and (path.parent not in folders or _split_of(path, tree) not in names):
                continue
            if path not in used and path.stem not in stems and _is_label(path):
                reason = f"no image is called {unquote(path.stem)!r}"
                reading.add_fault(DataError(reason, kind="image-missing"), path)
