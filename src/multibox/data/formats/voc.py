"""Reads folders in the layout of PASCAL VOC: ImageSets/Main, Annotations, JPEGImages.

From an annotation only its size and its objects are read, and from an object only the direct
children name, difficult and bndbox, because the body parts inside a VOC person have boxes, too. The
image file is found by the image's id; `<filename>` is ignored. Nothing is written.
"""

import re
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser, ParseError

from multibox.data.dataset import Dataset, Note, Object, Scene
from multibox.data.files import is_file, is_folder, list_folder, read_bytes
from multibox.data.images import find_images
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
            _Split(folder, f"{own}:{name}" if own else name, folder / _LISTS / f"{name}.txt")
            for own, folder in folders.items()
            if name and (not year or own in ("", year))
        ]
        existing = {split: None for split in among if is_file(split.list_file)}
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
    if _is_layout(root):
        return {name[3:] if _YEAR_FOLDER.fullmatch(name) else "": root}
    layouts = _layouts_below(root)
    years = {name[3:]: layouts[name] for name in sorted(layouts) if _YEAR_FOLDER.fullmatch(name)}
    if not years:
        remedy = f"Use {' or '.join(map(str, layouts.values())) or _LAYOUT}"
        raise DataError(
            "is not a folder that holds VOC<year> folders",
            kind="layout-unknown",
            file=root,
            remedy=remedy,
        )
    return years


def has_layouts(root: Path) -> bool:
    """Returns whether a folder is a VOC layout folder or holds one."""
    return _is_layout(root) or bool(_layouts_below(root))


def _layouts_below(root: Path) -> dict[str, Path]:
    below = (*list_folder(root / "VOCdevkit"), *list_folder(root))
    return {path.name: path for path in below if _is_layout(path)}


def annotation_file(image: Path) -> Path:
    """Returns the XML file of an image in a layout folder."""
    return image.parent.parent / "Annotations" / f"{image.stem}.xml"


def _is_layout(folder: Path) -> bool:
    try:
        return is_folder(folder / _LISTS) and is_folder(folder / "Annotations")
    except PermissionError:
        # The user may not enter the folder, such as lost+found.
        return False


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
        if not (any(path.stem.endswith(f"_{stem}") for stem in stems) and _is_flagged(path))
    }


def all_lists(root: Path) -> list[Path]:
    """Returns all list files of a folder. The lists of one class in a split come last.

    Raises:
        DataError: The folder is not a layout folder and holds no VOC<year> folders.
    """
    return list(_split_lists(_layout_folders(root)).values())


def _is_flagged(file: Path) -> bool:
    """Whether the first line of a list ends in a flag, as in the lists of one class."""
    try:
        words = read_bytes(file, limit=MAX_LIST_BYTES).partition(b"\n")[0].split()
    except DataError:
        return False
    return len(words) == 2 and words[1] in (b"-1", b"0", b"1")


def _split_lists(folders: dict[str, Path]) -> dict[str, Path]:
    """Returns the list files by split, if the split's name is valid. Names with a _ come last."""
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
    """Returns the names of up to twelve splits as text."""
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
    """Returns the ids in a list. A flag of 0 or 1 after an id is ignored; -1 leaves the id out."""
    try:
        lines = read_bytes(file, limit=MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(
            f"is not UTF-8: {error.reason}",
            kind="list-encoding",
            file=file,
            remedy="Save it as UTF-8",
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
            "lists no images", kind="empty-split", file=file, remedy="Choose another split"
        )
    return ids


def parse_annotation(file: Path) -> Element:
    """Returns the root element of an annotation file.

    Raises:
        DataError: It is not an annotation of VOC, or has a DTD. The entities of a DTD could expand
            without limit or read other files.
    """
    # The parser's default tree builder is pure Python and takes twice as long.
    parser = DefusedXMLParser(target=TreeBuilder(), forbid_dtd=True)
    try:
        parser.feed(read_bytes(file, limit=_MAX_XML_BYTES))
        tree: Element = parser.close()
    except DefusedXmlException as error:
        raise DataError("has a DTD, which is not allowed", kind="xml-dtd", file=file) from error
    except (ParseError, ValueError, LookupError) as error:
        raise DataError(f"is not XML: {error}", kind="xml-malformed", file=file) from error
    if tree.tag != "annotation":
        raise DataError(
            f"its root is {tree.tag[:40]!r}, not 'annotation'", kind="xml-root", file=file
        )
    return tree


def declared_size(tree: Element) -> tuple[int, int]:
    """Returns the (width, height) in an annotation, or zeros if it has no size.

    Raises:
        DataError: The size is malformed. The error names no file.
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
    """Returns an object's position as text: its number, counted from 1, and its class."""
    return f"object {number} ({element.findtext('name')!r})"


def parse_object(element: Element) -> Object:
    """Returns an object as it is written in the annotation.

    Raises:
        DataError: It has no valid name or box. The error names no file.
    """
    bndbox = _child(element, "bndbox")
    flag = (element.findtext("difficult") or "0").strip()
    if flag not in ("0", "1"):
        raise DataError(f"its <difficult> is {flag[:40]!r}, not 0 or 1", kind="difficult-malformed")
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
