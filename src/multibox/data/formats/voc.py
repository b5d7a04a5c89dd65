"""Reads folders in the layout of PASCAL VOC: ImageSets/Main, Annotations, JPEGImages.

Of an annotation only the size is read, and of its objects the direct children name, difficult and
bndbox: the body parts inside a VOC person have boxes of their own. An image is found by its id;
`<filename>` is not trusted. Nothing is ever written.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from multibox.data.dataset import Dataset, Note, Object, Scene
from multibox.data.images import find_images, list_folder, read_bytes
from multibox.data.reading import Reading
from multibox.errors import DataError

_LISTS = "ImageSets/Main"
_LAYOUT = f"a folder that has {_LISTS} and Annotations"
MAX_LIST_BYTES = 1 << 28
_MAX_XML_BYTES = 1 << 20
_SPLIT = re.compile(r"(?:([0-9]{4}):)?(\w[\w.-]*)")
_YEAR_FOLDER = re.compile(r"VOC[0-9]{4}")
_NUMBER = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,20})?")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Split(NamedTuple):
    """A split of one layout folder; its name has the year where the folder has one."""

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
    """Returns the annotated images of one or more splits, in the order of their lists.

    An image without objects is kept, a box that leaves its image by up to a pixel is clipped, a
    missing `<difficult>` is 0, and a missing `<size>` is taken from the image.

    Args:
        root: A layout folder, or one that holds VOC<year> folders, directly or in VOCdevkit.
        splits: `trainval` or `2007:trainval+2012:trainval`. Without a year, a split of every
            year that has it; a folder without a year in its name is taken for any.
        classes: Names in the order of the labels; empty: those found, sorted.
        on_bad: Whether to raise all that cannot be used as one error, or to leave it out.
        images: Whether to look at each image's header and end, or to be content with the
            annotations, for an evaluation of detections that were made elsewhere.

    Raises:
        DataError: If a folder or split is missing or nothing can be used; with on_bad "fail"
            also if something cannot be used. The message then lists it all.
    """
    chosen, notes = _find_splits(root, splits)
    reading = Reading(root, classes, on_bad, images)
    found = [scene for split in chosen for scene in _read_split(split, reading)]
    names = classes or tuple(sorted({item.name for scene in found for item in scene.objects}))
    return reading.conclude("+".join(split.name for split in chosen), found, names, notes)


def _find_splits(root: Path, splits: str) -> tuple[list[_Split], list[Note]]:
    """Returns the splits meant, in order and each once, and a note where years were dropped."""
    folders = _layout_folders(root)
    found: dict[_Split, None] = {}
    for part in splits.split("+"):
        match = _SPLIT.fullmatch(part)
        year, name = match.groups() if match else (None, "")
        among = [
            _Split(folder, f"{own}:{name}" if own else name, folder / _LISTS / f"{name}.txt")
            for own, folder in folders.items()
            if name and (not year or own in ("", year))
        ]
        existing = {split: None for split in among if split.list_file.is_file()}
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
    """Returns layout folders by year; the year is empty where the folder's name has none."""
    name = root.resolve().name
    if _is_layout(root):
        return {name[3:] if _YEAR_FOLDER.fullmatch(name) else "": root}
    layouts = _layouts_below(root)
    years = {name[3:]: layouts[name] for name in sorted(layouts) if _YEAR_FOLDER.fullmatch(name)}
    if not years:
        remedy = f"Give {' or '.join(map(str, layouts.values())) or _LAYOUT}"
        raise DataError(
            "is not a folder that holds VOC<year> folders",
            kind="layout-unknown",
            file=root,
            remedy=remedy,
        )
    return years


def has_layouts(root: Path) -> bool:
    """Returns whether a folder is a layout folder or has some below it."""
    return _is_layout(root) or bool(_layouts_below(root))


def _layouts_below(root: Path) -> dict[str, Path]:
    below = (*list_folder(root / "VOCdevkit"), *list_folder(root))
    return {path.name: path for path in below if _is_layout(path)}


def annotation_file(image: Path) -> Path:
    """Returns the XML file of an image in a layout folder."""
    return image.parent.parent / "Annotations" / f"{image.stem}.xml"


def _is_layout(folder: Path) -> bool:
    try:
        return (folder / _LISTS).is_dir() and (folder / "Annotations").is_dir()
    except PermissionError:
        # A folder that this user may not enter, such as lost+found.
        return False


def split_lists(root: Path) -> dict[str, Path]:
    """Returns the lists of a folder by split.

    VOC's lists of a class in a split, such as `cat_train`, are left out: they repeat that split.

    Raises:
        DataError: If the folder holds layouts, but neither is one nor has years.
    """
    files = _split_lists(_layout_folders(root))
    stems = {path.stem for path in files.values()}
    return {
        name: path
        for name, path in files.items()
        if not (any(path.stem.endswith(f"_{stem}") for stem in stems) and _is_flagged(path))
    }


def all_lists(root: Path) -> list[Path]:
    """Returns all lists of a folder, those of a class in a split last.

    Raises:
        DataError: As `split_lists` has it.
    """
    return list(_split_lists(_layout_folders(root)).values())


def _is_flagged(file: Path) -> bool:
    """Whether a list says of its first image if it shows something."""
    try:
        words = read_bytes(file, limit=MAX_LIST_BYTES).partition(b"\n")[0].split()
    except DataError:
        return False
    return len(words) == 2 and words[1] in (b"-1", b"0", b"1")


def _split_lists(folders: dict[str, Path]) -> dict[str, Path]:
    """Returns all lists whose split can be chosen; those with a _ in their name come last."""
    files = [
        (year, path)
        for year, folder in folders.items()
        for path in list_folder(folder / _LISTS)
        if path.suffix == ".txt"
    ]
    named = {f"{year}:{path.stem}" if year else path.stem: path for year, path in files}
    names = sorted(filter(_SPLIT.fullmatch, named), key=lambda name: ("_" in name, name))
    return {name: named[name] for name in names}


def _known_splits(folders: dict[str, Path]) -> str:
    """Returns twelve of the splits there are."""
    names = list(_split_lists(folders))
    return ", ".join(names[:12]) or f"none: {_LISTS} has no list"


def _read_split(split: _Split, reading: Reading) -> list[Scene]:
    files = find_images(split.folder / "JPEGImages") if reading.images == "check" else {}
    scenes = []
    for image_id in _read_ids(split.list_file, reading):
        xml = split.folder / "Annotations" / f"{image_id}.xml"
        path = files.get(image_id, split.folder / "JPEGImages" / f"{image_id}.jpg")
        try:
            tree = parse_annotation(xml)
            size = reading.frame(declared_size(tree), path)
            scenes.append(Scene(image_id, path, size, _objects(tree, xml, size, reading)))
        except DataError as error:
            reading.add_fault(error, xml)
    return scenes


def _read_ids(file: Path, reading: Reading) -> list[str]:
    """Returns the ids of a list: lines of an id, or of an id and -1 (left out), 0 or 1."""
    try:
        lines = read_bytes(file, limit=MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8: {error.reason}", kind="list-encoding", file=file, remedy="Convert it"
        ) from error
    ids, known_faults = list[str](), len(reading.faults)
    for number, line in enumerate(lines, start=1):
        words = line.rsplit(maxsplit=1)
        if not words or (len(words) == 2 and words[1] == "-1"):
            continue
        image_id = words[0] if words[-1] in ("0", "1") else line.strip()
        place = f"line {number}"
        try:
            if not image_id.isprintable() or any(part in image_id for part in ("/", "\\", "..")):
                raise DataError(f"{image_id!r} is a path, not an image id", kind="path-unsafe")
            reading.list_once(image_id, f"{file}, {place}")
        except DataError as error:
            reading.add_fault(error, file, place)
            continue
        ids.append(image_id)
    if not ids and len(reading.faults) == known_faults:
        raise DataError(
            "lists no image", kind="empty-split", file=file, remedy="Choose another split"
        )
    return ids


def parse_annotation(file: Path) -> Element:
    """Returns an annotation's root.

    Raises:
        DataError: It is not VOC's, or has a DTD, whose entities could grow or reach elsewhere.
    """
    # The parser's own builder of trees is pure Python and takes twice the time.
    parser = DefusedXMLParser(target=TreeBuilder(), forbid_dtd=True)
    try:
        parser.feed(read_bytes(file, limit=_MAX_XML_BYTES))
        tree: Element = parser.close()
    except DefusedXmlException as error:
        raise DataError("has a DTD, which is refused", kind="xml-dtd", file=file) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"is not XML: {error}", kind="xml-malformed", file=file) from error
    if tree.tag != "annotation":
        raise DataError(f"is a {tree.tag[:40]!r}, not an 'annotation'", kind="xml-root", file=file)
    return tree


def declared_size(tree: Element) -> tuple[int, int]:
    """Returns the (width, height) in an annotation; zeros where there is none.

    Raises:
        DataError: It is no size; the reason alone is given.
    """
    size = tree.find("size")
    return (0, 0) if size is None else (int(_number(size, "width")), int(_number(size, "height")))


def _objects(tree: Element, file: Path, frame: tuple[int, int], reading: Reading) -> list[Object]:
    objects = []
    for number, element in enumerate(tree.findall("object"), start=1):
        try:
            objects.append(reading.fitted(parse_object(element), frame))
        except DataError as error:
            reading.add_fault(error, file, object_position(number, element))
    return objects


def object_position(number: int, element: Element) -> str:
    """Names an object by its number, counted from 1, and its class."""
    return f"object {number} ({element.findtext('name')!r})"


def parse_object(element: Element) -> Object:
    """Returns an object as it is written.

    Raises:
        DataError: It has no name or box; the reason alone is given.
    """
    bndbox = _child(element, "bndbox")
    flag = (element.findtext("difficult") or "0").strip()
    if flag not in ("0", "1"):
        raise DataError(
            f"its <difficult> is {flag[:40]!r}, neither 0 nor 1", kind="difficult-malformed"
        )
    name = (_child(element, "name").text or "").strip()
    if not name:
        raise DataError("its <name> is empty", kind="name-empty")
    left, top, right, bottom = (_number(bndbox, tag) for tag in _CORNERS)
    return Object(name, (left, top, right, bottom), flag == "1")


def _number(parent: Element, tag: str) -> float:
    text = (_child(parent, tag).text or "").strip()
    if not _NUMBER.fullmatch(text):
        raise DataError(
            f"its <{tag}> is {text[:40]!r}, not a plain number", kind="number-malformed"
        )
    return float(text)


def _child(parent: Element, tag: str) -> Element:
    found = parent.findall(tag)
    if len(found) != 1:
        raise DataError(
            f"has {len(found) or 'no'} <{tag}> in its <{parent.tag}>",
            kind="field-repeated" if found else "field-missing",
        )
    return found[0]
