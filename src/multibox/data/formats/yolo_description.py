"""Reads the description of a dataset in YOLO's format: its splits and the names of its classes.

It is a YAML file of Ultralytics, or darknet's `obj.data`. Class names may also be in text files
such as `classes.txt` and `obj.names`, or in Label Studio's `notes.json`.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from multibox.data.files import read_bytes
from multibox.data.formats.plain_text import (
    NumberedNames,
    check_name,
    number_names,
    parse_index,
    read_names,
    read_text,
)
from multibox.data.formats.tree import FileTree
from multibox.errors import DataError

SPLITS = ("train", "val", "valid", "validation", "test")
NAME_FILES = ("classes.txt", "obj.names", "predefined_classes.txt", "_darknet.labels")
"""Files with a class name in each line. The first one in a folder is used."""
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 8
# Limits of the folders and lists of a split, and of the folders in a path.
_MAX_ENTRIES = 1000
_MAX_FOLDERS = 64
# How many files are opened to find the description.
_TRIED = 50
_TRIED_YAML = 10
_TAGS = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "null", "seq", "map"))
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Images(NamedTuple):
    """The image files of a split, and the text files that list further ones."""

    files: tuple[Path, ...]
    lists: tuple[Path, ...] = ()


class Description(NamedTuple):
    """The description of a dataset.

    Attributes:
        splits: The images of each split.
        names: The class names, or None if it has none.
        keypoints: How many columns of a line in a label file belong to keypoints.
        fault: A contradiction in it, or what is malformed.
        absent: The splits that it names, but that do not exist.
    """

    splits: dict[str, Images]
    names: NumberedNames | None = None
    keypoints: int = 0
    fault: DataError | None = None
    absent: tuple[str, ...] = ()


def read_description(tree: FileTree) -> Description:
    """Returns the description of a dataset. It is empty if no file describes the dataset."""
    return _from_yaml(tree) or _from_obj_data(tree) or Description({})


def find_name_files(tree: FileTree) -> dict[Path, Path]:
    """Returns the files with class names, by folder. `notes.json` counts if there are no others."""
    found = {path.parent: path for path in tree.with_suffix(".names")}
    for name in reversed(NAME_FILES):
        found |= {path.parent: path for path in tree.files if path.name == name}
    notes = [path for path in tree.files if path.name == "notes.json"]
    return found or {path.parent: path for path in notes[:_TRIED] if _categories(path)}


def read_name_file(file: Path) -> NumberedNames:
    """Returns the class names in a file.

    Raises:
        DataError: The file cannot be read, or a name is malformed.
    """
    if file.suffix.lower() != ".json":
        return read_names(file)
    try:
        pairs = ((int(record["id"]), record["name"]) for record in _categories(file))
        names = {number: check_name(name, "the name of a class") for number, name in pairs}
        return NumberedNames(file, names)
    except DataError as error:
        raise DataError(error.reason, kind=error.kind, file=file) from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError("has a category without id or name", kind="json-form", file=file) from None


def _categories(file: Path) -> list[Any]:
    """Returns the categories in a `notes.json`. The list is empty if it is another file."""
    try:
        content = json.loads(read_bytes(file, limit=_MAX_BYTES))
    except (DataError, ValueError, RecursionError):
        return []
    records = content.get("categories") if isinstance(content, dict) else None
    return records if isinstance(records, list) else []


def _from_yaml(tree: FileTree) -> Description | None:
    files = sorted(tree.with_suffix(".yaml", ".yml"), key=lambda path: len(path.parts))
    found: list[tuple[Path, dict[str, Any]]] = []
    broken: DataError | None = None
    for file in files[:_TRIED_YAML]:
        try:
            content = _load_yaml(file)
        except DataError as error:
            if file.stem in ("data", "dataset"):
                broken = broken or error
            continue
        if isinstance(content.get("names"), list | dict) or content.keys() & {"train", "nc"}:
            found.append((file, content))
    if not found:
        return Description({}, fault=broken) if broken else None
    file, content = min(
        found, key=lambda pair: (not pair[1].keys() & set(SPLITS), "names" not in pair[1])
    )
    path = str(content.get("path") or "")
    keys = [key for key in SPLITS if content.get(key)]
    keys += (
        key
        for key, value in islice(content.items(), _MAX_ENTRIES)
        if key not in (*SPLITS, "path", "names", "nc", "download")
        and isinstance(value, str)
        and value
        and _is_folder(value, file, path, tree)
    )
    splits = {key: _images(content[key], file, path, tree) for key in keys}
    existing = {key: images for key, images in splits.items() if any(images)}
    return _about_classes(file, content)._replace(
        splits=existing, absent=tuple(key for key in splits if key not in existing)
    )


def _about_classes(file: Path, content: dict[str, Any]) -> Description:
    """Returns the class names, the keypoints and the fault of a YAML file."""
    fault: DataError | None = None
    names: NumberedNames | None = None
    keypoints = 0
    try:
        written, count, shape = map(content.get, ("names", "nc", "kpt_shape"))
        if isinstance(written, dict):
            pairs = ((parse_index(key, "a number in `names`"), written[key]) for key in written)
            names = NumberedNames(
                file, {n: check_name(name, f"the name of class {n}") for n, name in pairs}
            )
        elif isinstance(written, list):
            names = number_names(file, written)
        if names and isinstance(count, str) and count:
            stated = parse_index(count, "`nc`")
            if stated != len(names.by_number):
                raise DataError(
                    f"`nc` is {stated}, but `names` has {len(names.by_number)} names",
                    kind="yaml-form",
                )
        if isinstance(shape, list) and len(shape) == 2:
            points, numbers = (parse_index(str(side), "`kpt_shape`") for side in shape)
            keypoints = points * numbers
    except DataError as error:
        fault = DataError(error.reason, kind=error.kind, file=file)
    return Description({}, names, keypoints, fault)


def _load_yaml(file: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file. Scalars stay text, so that a class may be called `no`.

    The parser's events are used, so that nothing is built from tags, and aliases are not expanded.

    Raises:
        DataError: It is not YAML, or has aliases, tags of its own, or too many levels.
    """
    text = read_text(file, limit=_MAX_BYTES)
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
            if len(stack) > _MAX_DEPTH:
                raise ValueError(f"it has more than {_MAX_DEPTH} levels")
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


def _from_obj_data(tree: FileTree) -> Description | None:
    for file in tree.with_suffix(".data")[:_TRIED]:
        try:
            lines = read_text(file, limit=_MAX_BYTES).splitlines()
        except DataError:
            continue
        pairs = (line.partition("=") for line in lines)
        content = {key.strip(): value.strip() for key, mark, value in pairs if mark}
        if "names" not in content:
            continue
        fault: DataError | None = None
        names: NumberedNames | None = None
        try:
            listed = _existing(content["names"], file, "", tree)
            names = read_names(listed) if listed else None
        except DataError as error:
            fault = error
        splits = {key: _images(content[key], file, "", tree) for key in SPLITS if key in content}
        existing = {key: images for key, images in splits.items() if any(images)}
        return Description(existing, names, fault=fault)
    return None


def _images(value: Any, file: Path, path: str, tree: FileTree) -> Images:
    """Returns the images of a split: `value` is a folder, a text file, or a list of these."""
    entries = (value if isinstance(value, list) else [value])[:_MAX_ENTRIES]
    texts = dict.fromkeys(entry for entry in entries if isinstance(entry, str))
    found = set(filter(None, (_existing(text, file, path, tree) for text in texts)))
    parents = {image.parent for image in tree.images}
    folders = {above for above in parents if not found.isdisjoint((above, *above.parents))}
    images = tuple(image for image in tree.images if image.parent in folders)
    return Images(images, tuple(sorted(found & tree.file_set)))


def _is_folder(value: str, file: Path, path: str, tree: FileTree) -> bool:
    """Whether a text names a split's folder or list, as a path that needs no changes."""
    places = (_usable(file.parent, parts, tree) for parts in islice(_places(value, path), 2))
    return any(place not in (None, tree.root) for place in places)


def _existing(entry: str, file: Path, path: str, tree: FileTree) -> Path | None:
    """Returns a folder with images, or a text file, that a description names."""
    entry, path = entry.strip().replace("\\", "/"), path.strip().replace("\\", "/")
    root = tree.root.resolve().as_posix()
    if entry.startswith(f"{root}/"):
        entry, path = entry.removeprefix(f"{root}/"), ""
    for parts in _places(entry, path):
        for base in (file.parent, tree.root):
            found = _usable(base, parts, tree)
            if found is not None:
                return found
    return None


def _places(entry: str, path: str) -> Iterator[Sequence[str]]:
    """Yields where an entry may be.

    The path may be that of another machine: then its first folders are left out, except for one
    with the name of a split.
    """
    if entry.count("/") + path.count("/") > _MAX_FOLDERS:
        return
    whole = PurePosixPath(path) / entry
    yield whole.parts
    yield PurePosixPath(entry).parts
    parts = [part for part in whole.parts if part not in ("..", "/")]
    for start, part in enumerate(parts):
        yield parts[start:]
        if part.casefold() in SPLITS:
            return


def _usable(base: Path, parts: Sequence[str], tree: FileTree) -> Path | None:
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
        return place if place in tree.file_set else None
    return place if place in tree.folders_of_images else None
