"""Reads VOC's XML files that lie anywhere in a folder, one for each image.

The XML may lie beside its image or in a folder of its own, and each split may have its own folders.
If the folders name no split, lists such as `train.txt` do, if there are any. LabelImg, Roboflow,
Label Studio and others write such folders.
"""

import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from xml.etree.ElementTree import Element

from multibox.data.dataset import Note, Scene
from multibox.data.files import SUFFIXES, is_folder
from multibox.data.formats.tree import UNSPLIT, FileTree, image_parts
from multibox.data.formats.voc_lists import read_lines
from multibox.data.formats.voc_xml import ROOT, declared_size, parse_annotation, read_objects
from multibox.data.formats.xml_files import first_tags, folders_of_xml
from multibox.data.reading import Reading
from multibox.errors import DataError

UNANNOTATED = Note("image-unannotated", "images without an annotation were left out")
_STRAY = Note("read-otherwise", "XML files that are not annotations were ignored")
_LIST = re.compile(r"(trainval|train|valid|val|test)(ing|ation)?[0-9]*(_list)?", re.IGNORECASE)
_TRIED_LINES = 20


class Source(NamedTuple):
    """The annotations of a split.

    Attributes:
        files: Its annotation files. If there is a list, those of all splits.
        list_file: The list of its images, or None.
    """

    files: tuple[Path, ...]
    list_file: Path | None = None


def find_splits(tree: FileTree) -> dict[str, Source]:
    """Returns the annotation files of each split: none if no file is an annotation of VOC."""
    files = [file for folder in folders_of_xml(tree, ROOT) for file in folder]
    splits = defaultdict[str, list[Path]](list)
    of_images = _splits_of_images(tree)
    for file in files:
        split = tree.split_of(file)
        splits[of_images.get(file.stem, UNSPLIT) if split == UNSPLIT else split].append(file)
    if splits.keys() <= {UNSPLIT}:
        lists = _find_lists(tree, files)
        if lists:
            return {name: Source(tuple(files), file) for name, file in sorted(lists.items())}
    return {name: Source(tuple(found)) for name, found in sorted(splits.items())}


def read_split(source: Source, tree: FileTree, reading: Reading) -> list[Scene]:
    """Returns the images of a split that can be used."""
    scenes, used = list[Scene](), list[Path]()
    for file in files_of(source, tree, reading):
        try:
            tree_ = parse_annotation(file)
            image = image_of(tree_, file, tree, required=reading.images == "check")
            used.append(image)
            _use_once(image, file, tree, reading)
            size_px = reading.frame(declared_size(tree_), image)
            objects = read_objects(tree_, file, size_px, reading)
            scenes.append(Scene(str(tree.relative(image)), image, size_px, objects))
        except DataError as error:
            if error.kind == "xml-root" and file.stem not in {path.stem for path in tree.images}:
                reading.notes[_STRAY] += 1
            else:
                reading.add_fault(error, file)
    if source.list_file is None:
        stems = {file.stem for file in tree.with_suffix(".xml")}
        reading.notes[UNANNOTATED] += tree.count_others(used, stems)
    return scenes


def is_list(source: Source) -> bool:
    """Whether a list names the images of a split."""
    return source.list_file is not None


def files_of(source: Source, tree: FileTree, reading: Reading) -> list[Path]:
    """Returns the annotation files of a split. The faults of its list become faults."""
    if source.list_file is None:
        return list(source.files)
    return _listed(source.list_file, list(source.files), tree, reading)


def what_is_missing(tree: FileTree) -> str | None:
    """Returns why a folder that no reader recognises has no annotations of VOC, as a clause.

    None if it has nothing of VOC.
    """
    xml = tree.with_suffix(".xml")
    if xml:
        tags = first_tags(xml[0])
        found = f"has the root element {tags[0][:40]!r}, not {ROOT!r}" if tags else "is not XML"
        return f"the first of its {len(xml)} .xml files, {tree.relative(xml[0])}, {found}"
    if any(path.parts[-3:-1] == ("ImageSets", "Main") for path in tree.files):
        return "ImageSets/Main exists, but Annotations does not exist"
    if is_folder(tree.root / "Annotations"):
        return "Annotations exists, but holds no .xml file"
    return None


def annotation_files(tree: FileTree) -> dict[Path, Path]:
    """Returns the annotation file of each image that has one."""
    files = [file for folder in folders_of_xml(tree, ROOT) for file in folder]
    found = dict[Path, Path]()
    for file in reversed(files):
        with suppress(DataError):
            found[image_of(parse_annotation(file), file, tree)] = file
    return found


def _splits_of_images(tree: FileTree) -> dict[str, str]:
    """Returns the splits that folders of images name, by the image's stem if it is in one only."""
    splits = defaultdict[str, set[str]](set)
    for path in tree.images:
        splits[path.stem].add(tree.split_of(path))
    return {stem: next(iter(found)) for stem, found in splits.items() if len(found) == 1}


def _find_lists(tree: FileTree, files: list[Path]) -> dict[str, Path]:
    """Returns the lists of images by split."""
    by_stem = _by_stem(files)
    lists: dict[str, Path] = {}
    for file in tree.with_suffix(".txt"):
        if not _LIST.fullmatch(file.stem):
            continue
        try:
            lines = read_lines(file, lambda text: bool(_find(text, by_stem)))[:_TRIED_LINES]
        except DataError:
            continue
        if any(_find(line.text, by_stem) for line in lines):
            lists.setdefault(file.stem.lower().removesuffix("_list"), file)
    return lists


def _listed(file: Path, files: list[Path], tree: FileTree, reading: Reading) -> list[Path]:
    """Returns the annotation files that a list names, in its order."""
    by_stem = _by_stem(files)
    found = dict[Path, str]()
    for line in read_lines(file, lambda text: bool(_find(text, by_stem))):
        place = f"line {line.number}"
        if line.flag == "-1":
            continue
        try:
            named = _find(line.text, by_stem)
            if not named:
                raise DataError(
                    f"no annotation file has the name {line.text[:200]!r}",
                    kind="annotation-missing",
                )
            if len(named) > 1:
                both = " or ".join(str(tree.relative(path)) for path in named[:2])
                raise DataError(
                    f"{line.text[:200]!r} may be {both}",
                    kind="image-ambiguous",
                )
            if named[0] in found:
                raise DataError(
                    f"{line.text[:200]!r} is listed already, in {found[named[0]]}",
                    kind="listed-twice",
                )
            found[named[0]] = place
        except DataError as error:
            reading.add_fault(error, file, place)
    return list(found)


def _by_stem(files: list[Path]) -> dict[str, list[Path]]:
    found = defaultdict[str, list[Path]](list)
    for file in files:
        found[file.stem.casefold()].append(file)
    return dict(found)


def _find(text: str, by_stem: dict[str, list[Path]]) -> list[Path]:
    """Returns the annotation files that a line of a list may mean.

    A line holds an id, a file name or a path. PaddleDetection writes the paths of the image and of
    its annotation.
    """
    words = text.split()
    if words and words[-1].lower().endswith(".xml"):
        text = words[-1]
    parts = image_parts(text)
    if not parts:
        return []
    name = PurePosixPath(parts[-1])
    is_file_name = name.suffix.lower() in (*SUFFIXES, ".xml")
    files = by_stem.get(parts[-1].casefold(), [])
    files = files or (by_stem.get(name.stem.casefold(), []) if is_file_name else [])
    in_folder = [file for file in files if len(parts) > 1 and file.parent.name == parts[-2]]
    return in_folder or files


def image_of(annotation: Element, file: Path, tree: FileTree, *, required: bool = True) -> Path:
    """Returns the image of an annotation: the one with its name, else the one that it names.

    Args:
        annotation: The root element of the annotation.
        file: The annotation file.
        tree: The dataset's files.
        required: Whether the image must exist. Otherwise the path where it would be is returned.

    Raises:
        DataError: There is no such image, or there are several. The error names no file.
    """
    own = tree.relative(file).with_suffix("")
    near = _near_image(file, tree)
    if near is not None:
        return near
    written = PureWindowsPath((annotation.findtext("filename") or "").strip()).name
    path = PureWindowsPath((annotation.findtext("path") or "").strip()).name
    errors = list[DataError]()
    for name in (str(own), own.name, written, path):
        try:
            if name:
                return tree.find_image(name, beside=file, required=True)
        except DataError as error:
            errors.append(error)
    if not required:
        return tree.root / own.parent / (written or f"{own.name}.jpg")
    ambiguous = [error for error in errors if error.kind == "image-ambiguous"]
    raise (ambiguous or errors[2:] or errors)[0]


def _near_image(file: Path, tree: FileTree) -> Path | None:
    """Returns the image with an annotation's name beside it, or in a folder for images nearby.

    Elsewhere may be masks or thumbnails with the same name.
    """
    above = list(file.parents)[1:3]
    usual = [parent / name for parent in above for name in tree.usual_folders]
    for folder in (file.parent, *usual):
        image = tree.image_in(folder, file.stem)
        if image is not None:
            return image
    return None


def _use_once(image: Path, file: Path, tree: FileTree, reading: Reading) -> None:
    if str(image) in reading.places:
        name, other = tree.relative(image), reading.places[str(image)]
        raise DataError(
            f"its image {str(name)!r} has another annotation, {other}", kind="listed-twice"
        )
    reading.list_once(str(image), str(file))
