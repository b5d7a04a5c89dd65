"""Reads folders in the layout of PASCAL VOC: ImageSets/Main, Annotations, JPEGImages.

The lists may also lie in ImageSets itself, and the images in `images`. The image file is found by
the image's id; `<filename>` is ignored. Nothing is written.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Dataset, Note, Scene
from multibox.data.files import SUFFIXES, is_folder, list_folder
from multibox.data.formats.voc_lists import LayoutFolder, is_layout, lists_folder
from multibox.data.formats.voc_xml import declared_size, parse_annotation, read_objects
from multibox.data.reading import Reading
from multibox.errors import DataError

_LAYOUT = "a folder that has ImageSets/Main and Annotations"
_SPLIT = re.compile(r"(?:([0-9]{4}):)?(\w[\w.-]*)")
_YEAR_FOLDER = re.compile(r"VOC[0-9]{4}")
_SPLITS = ("train", "val", "trainval", "test")
# There may be many of them, so the file system is not asked whether they are folders. Archives in a
# folder are not read.
_FILES = (*SUFFIXES, ".xml", ".txt", ".json", ".zip")


class _Split(NamedTuple):
    """A split of one layout folder.

    Attributes:
        folder: The layout folder.
        name: The name of the split. It contains the year if the folder has one.
        lists: The list of its images, or the lists of one class that VoTT writes instead. Each of
            them lists all images, with a flag.
    """

    folder: Path
    name: str
    lists: tuple[Path, ...]


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
            _Split(folder, f"{own}:{name}" if own else name, _lists_of(folder, name))
            for own, folder in folders.items()
            if not year or own in ("", year)
        ]
        existing = {split: None for split in among if split.lists}
        if not existing:
            remedy = f"Choose from {_known_splits(folders)}"
            raise DataError(
                f"has no split {part!r}", kind="split-missing", file=root, remedy=remedy
            )
        found.update(existing)
    read_as = f"{splits} was read as {'+'.join(split.name for split in found)}"
    note = Note("read-otherwise", read_as)
    return list(found), [note] if "" in folders and ":" in splits else []


def _lists_of(folder: Path, name: str) -> tuple[Path, ...]:
    files = [path for path in list_folder(lists_folder(folder)) if path.suffix == ".txt"]
    exact = tuple(path for path in files if path.stem == name)
    if exact or name not in _SPLITS:
        return exact
    layout = LayoutFolder(folder)
    of_classes = (path for path in files if path.stem.endswith(f"_{name}"))
    return tuple(path for path in of_classes if layout.has_flags(path))


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
    splits = dict[str, Path]()
    for year, folder in _layout_folders(root).items():
        files, layout = _split_lists({year: folder}), LayoutFolder(folder)
        stems = {path.stem for path in files.values()}
        for name, path in files.items():
            ends = [stem for stem in (*stems, *_SPLITS) if path.stem.endswith(f"_{stem}")]
            if not ends or not layout.has_flags(path):
                splits[name] = path
            elif not stems.intersection(ends):
                # VoTT writes the lists of the classes only. Each of them has all images.
                splits.setdefault(f"{year}:{ends[0]}" if year else ends[0], path)
    return splits


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
    for image_id in _read_ids(split, folder, reading):
        xml, path = folder.xml(image_id), folder.image(image_id)
        try:
            tree = parse_annotation(xml)
            size = reading.frame(declared_size(tree), path)
            scenes.append(Scene(image_id, path, size, read_objects(tree, xml, size, reading)))
        except DataError as error:
            reading.add_fault(error, xml)
    return scenes


def _read_ids(split: _Split, folder: LayoutFolder, reading: Reading) -> list[str]:
    """Returns the ids in the lists of a split. They may be lists of one class (see `_Split`).

    Otherwise, a flag of 0 or 1 after an id is ignored; -1 leaves the id out.
    """
    ids, known_faults = dict[str, None](), len(reading.faults)
    for file in split.lists:
        is_of_class = file.stem != split.name.rpartition(":")[2]
        for line in folder.read_list(file):
            place = f"line {line.number}"
            if line.flag == "-1" and not is_of_class:
                continue
            try:
                image_id = folder.find_id(line.text)
                if not is_of_class or image_id not in ids:
                    reading.list_once(image_id, f"{file}, {place}")
            except DataError as error:
                reading.add_fault(error, file, place)
                continue
            ids[image_id] = None
    if not ids and len(reading.faults) == known_faults:
        raise DataError(
            "lists no images",
            kind="empty-split",
            file=split.lists[0],
            remedy="Choose another split",
        )
    return list(ids)
