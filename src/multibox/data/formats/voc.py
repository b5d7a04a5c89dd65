"""Reads folders in the layout of PASCAL VOC: ImageSets/Main, Annotations, JPEGImages.

The lists may also lie in ImageSets itself, and the images in `images`. The image file is found by
the image's id; `<filename>` is ignored. Nothing is written.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Dataset, Note, Scene
from multibox.data.files import is_folder, list_folder
from multibox.data.formats.voc_lists import LayoutFolder, is_layout, lists_folder
from multibox.data.formats.voc_xml import declared_size, parse_annotation, read_objects
from multibox.data.images import SUFFIXES
from multibox.data.reading import Reading
from multibox.errors import DataError

_LAYOUT = "a folder that has ImageSets/Main and Annotations"
_SPLIT = re.compile(r"(?:([0-9]{4}):)?(\w[\w.-]*)")
_YEAR_FOLDER = re.compile(r"VOC[0-9]{4}")
# There may be many of them, so the file system is not asked whether they are folders.
_FILES = (*SUFFIXES, ".xml", ".txt", ".json")


class _Split(NamedTuple):
    """A split of one layout folder. Its name contains the year if the folder has one."""

    folder: Path
    name: str
    list_file: Path


def read_voc(
    root: Path,
    splits: str,
    *,
    classes: tuple[str, ...] = (),
    on_bad: Literal["fail", "skip"] = "fail",
    images: Literal["check", "ignore"] = "check",
) -> Dataset:
    """Reads the annotated images of one or more splits, in the order of their lists.

    Images without objects are kept. A box that leaves its image by up to one pixel is clipped. If
    `<difficult>` is missing, the object is not difficult. If `<size>` is missing, the size of the
    image is used.

    Args:
        root: A folder with ImageSets/Main and Annotations, or a folder that holds VOC<year>
            folders, directly or in VOCdevkit.
        splits: For example `trainval` or `2007:trainval+2012:trainval`. Without a year, the split
            is read from every year that has it. A folder without a year in its name matches any.
        classes: Class names in label order. If empty, the names that are found, sorted.
        on_bad: Whether to raise all faults as one error ("fail"), or to leave out the faulty images
            and objects ("skip").
        images: Whether to check each image's header and end ("check"), or to read the annotations
            only ("ignore"), as when evaluating detections that were made elsewhere.

    Raises:
        DataError: A folder or split is missing, or no image can be used. If `on_bad` is "fail",
            also if there is any fault; the message lists the faults.
    """
    chosen, notes = _find_splits(root, splits)
    reading = Reading(root, classes, on_bad, images)
    found = [scene for split in chosen for scene in _read_split(split, reading)]
    return reading.conclude("+".join(split.name for split in chosen), found, notes)


def _find_splits(root: Path, splits: str) -> tuple[list[_Split], list[Note]]:
    """Returns the named splits without repetitions, and a note if the years were ignored."""
    folders = _layout_folders(root)
    found: dict[_Split, None] = {}
    for part in splits.split("+"):
        match = _SPLIT.fullmatch(part)
        year, name = match.groups() if match else (None, "")
        among = [
            _Split(folder, f"{own}:{name}" if own else name, path)
            for own, folder in folders.items()
            for path in list_folder(lists_folder(folder))
            if path.name == f"{name}.txt" and (not year or own in ("", year))
        ]
        existing = dict.fromkeys(among)
        if not existing:
            remedy = f"Choose from {_known_splits(folders)}"
            raise DataError(
                f"has no split {part!r}", kind="split-missing", file=root, remedy=remedy
            )
        found.update(existing)
    read_as = f"{splits} was read as {'+'.join(split.name for split in found)}"
    note = Note("read-otherwise", read_as)
    return list(found), [note] if "" in folders and ":" in splits else []


def _layout_folders(root: Path) -> dict[str, Path]:
    """Returns layout folders by year. The year is empty if the folder's name contains none."""
    name = root.resolve().name
    if is_layout(root):
        return {name[3:] if _YEAR_FOLDER.fullmatch(name) else "": root}
    layouts = _layouts_below(root)
    years = {path.name[3:]: path for path in layouts if _YEAR_FOLDER.fullmatch(path.name)}
    if years:
        return dict(sorted(years.items()))
    if len(layouts) != 1:
        remedy = f"Use {' or '.join(map(str, layouts)) or _LAYOUT}"
        raise DataError(
            "is not a folder that holds VOC<year> folders",
            kind="layout-unknown",
            file=root,
            remedy=remedy,
        )
    return {"": layouts[0]}


def has_layouts(root: Path) -> bool:
    """Returns whether a folder is a VOC layout folder or holds one."""
    return is_layout(root) or bool(_layouts_below(root))


def _layouts_below(root: Path) -> list[Path]:
    """Returns the layout folders in a folder, or those in its folders if there are none."""
    below = [path for path in list_folder(root) if _is_folder(path)]
    layouts = list(filter(is_layout, below))
    return layouts or [
        path for folder in below for path in _list_or_pass(folder) if is_layout(path)
    ]


def _is_folder(path: Path) -> bool:
    try:
        return path.suffix.lower() not in _FILES and is_folder(path)
    except PermissionError:
        return False


def _list_or_pass(folder: Path) -> list[Path]:
    """Returns the folders in a folder, or nothing if it cannot be listed, such as lost+found."""
    try:
        return [path for path in list_folder(folder) if _is_folder(path)]
    except DataError:
        return []


def split_lists(root: Path) -> dict[str, Path]:
    """Returns the list files of a folder by split.

    Lists of one class in a split, such as VOC's `cat_train`, are left out, because they repeat the
    images of that split.

    Raises:
        DataError: The folder is not a layout folder and holds no VOC<year> folders.
    """
    files = _split_lists(_layout_folders(root))
    stems = {path.stem for path in files.values()}
    return {
        name: path
        for name, path in files.items()
        if not (
            any(path.stem.endswith(f"_{stem}") for stem in stems)
            and LayoutFolder.of_list(path).has_flags(path)
        )
    }


def all_lists(root: Path) -> list[Path]:
    """Returns all list files of a folder. The lists of one class in a split come last.

    Raises:
        DataError: The folder is not a layout folder and holds no VOC<year> folders.
    """
    return list(_split_lists(_layout_folders(root)).values())


def _split_lists(folders: dict[str, Path]) -> dict[str, Path]:
    """Returns the list files by split, if the split's name is valid. Names with a _ come last."""
    files = [
        (year, path)
        for year, folder in folders.items()
        for path in list_folder(lists_folder(folder))
        if path.suffix == ".txt"
    ]
    named = {f"{year}:{path.stem}" if year else path.stem: path for year, path in files}
    names = sorted(filter(_SPLIT.fullmatch, named), key=lambda name: ("_" in name, name))
    return {name: named[name] for name in names}


def _known_splits(folders: dict[str, Path]) -> str:
    """Returns the names of up to twelve splits as text."""
    names = list(_split_lists(folders))
    return ", ".join(names[:12]) or "none: ImageSets/Main has no list"


def _read_split(split: _Split, reading: Reading) -> list[Scene]:
    folder = LayoutFolder(split.folder)
    if reading.images == "check":
        folder.require_images()
    scenes = []
    for image_id in _read_ids(split.list_file, folder, reading):
        xml, path = folder.xml(image_id), folder.image(image_id)
        try:
            tree = parse_annotation(xml)
            size = reading.frame(declared_size(tree), path)
            scenes.append(Scene(image_id, path, size, read_objects(tree, xml, size, reading)))
        except DataError as error:
            reading.add_fault(error, xml)
    return scenes


def _read_ids(file: Path, folder: LayoutFolder, reading: Reading) -> list[str]:
    """Returns the ids in a list. A flag of 0 or 1 after an id is ignored; -1 leaves the id out."""
    ids, known_faults = list[str](), len(reading.faults)
    for line in folder.read_list(file):
        if line.flag == "-1":
            continue
        place = f"line {line.number}"
        try:
            image_id = folder.find_id(line.text)
            reading.list_once(image_id, f"{file}, {place}")
        except DataError as error:
            reading.add_fault(error, file, place)
            continue
        ids.append(image_id)
    if not ids and len(reading.faults) == known_faults:
        raise DataError(
            "lists no images", kind="empty-split", file=file, remedy="Choose another split"
        )
    return ids
