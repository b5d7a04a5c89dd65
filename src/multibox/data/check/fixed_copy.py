"""Writes a corrected copy of a dataset in VOC layout. The dataset itself is not changed.

Files without faults are copied byte for byte. `fixes.json` lists what was changed or left out.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

from multibox.data.check.fixes import Change, class_names, correct_image, correct_tree, new_tree
from multibox.data.dataset import Annotation, Dataset, Fault
from multibox.data.files import is_file, read_bytes
from multibox.data.formats.layouts import known_splits, open_dataset, read_dataset
from multibox.data.formats.tree import FileTree
from multibox.data.formats.voc import all_lists, has_layouts, split_lists
from multibox.data.formats.voc_files import files_of, find_splits, image_of
from multibox.data.formats.voc_lists import MAX_LIST_BYTES, LayoutFolder, ListLine
from multibox.data.formats.voc_xml import MAX_XML_BYTES, object_elements, parse_annotation
from multibox.data.reading import NoImagesError, Reading
from multibox.data.writing.converted_copy import free_name, plain_name
from multibox.data.writing.new_folder import new_folder
from multibox.data.writing.voc import as_xml, make_layout, write_image, write_list
from multibox.errors import DataError

RECORD = "fixes.json"


class _Copy(NamedTuple):
    """A layout folder that is being written.

    Attributes:
        folder: The path of the new folder.
        classes: The class names that objects may have. If empty, any name is allowed.
        changes: What was changed or left out.
    """

    folder: Path
    classes: tuple[str, ...]
    changes: list[Change]

    def leave_out(
        self,
        error: DataError,
        file: Path,
        position: str | None = None,
        removed: tuple[str, ...] = (),
    ) -> None:
        """Records a file or object that is not copied, with the classes of its objects."""
        file, position = Path(error.file or file), error.position or position
        self.changes.append(Change(file, position, f"left out: {error.reason}", removed))


def write_fixed(root: Path, out: Path, *, classes: tuple[str, ...] = ()) -> list[Change]:
    """Writes a corrected copy of all splits of a dataset and returns what was changed.

    - Faulty objects and exact duplicates are removed, and boxes are clipped to their image.
    - Reversed corners are swapped. Of an object with several boxes, each becomes an object.
    - A wrong image size is corrected if all boxes fit the image.
    - The EXIF orientation is set to 1; no other byte of the file changes.
    - Images with CMYK, 16 bits, transparency or animation become PNGs with the pixels that training
      would see.
    - Images that cannot be used, or lose all of their objects, are left out.
    - Files that are not in any list are not copied.
    - In other formats than VOC's XML, boxes that leave their image by over one pixel are removed.

    Args:
        root: A folder in VOC or COCO layout.
        out: A new folder, or an empty one, outside the dataset. It appears when it is complete.
        classes: Objects of other classes are removed. If empty, none are.

    Raises:
        DataError: The folder has neither layout, or no image can be used.
        ConfigError: One of the two folders would be inside the other.
        StorageError: The new folder is not empty, or cannot be written.
    """
    with new_folder(out, beside=root) as written:
        return _write(root, written, classes)


def _write(root: Path, target: Path, classes: tuple[str, ...]) -> list[Change]:
    changes = list[Change]()
    if has_layouts(root):
        lists, main = all_lists(root), set(split_lists(root).values())
        folders = {file: LayoutFolder.of_list(file).folder for file in lists}
        for folder in dict.fromkeys(folders.values()):
            below = target if folder == root else target / folder.name
            of_folder = [file for file in lists if folders[file] == folder]
            _write_voc(LayoutFolder(folder), of_folder, main, _Copy(below, classes, changes))
    elif open_dataset(root).format == "VOC XML":
        _write_voc_files(FileTree(root), _Copy(target, classes, changes))
    else:
        _write_coco(root, _Copy(target, classes, changes))
    if not any(target.rglob("ImageSets/Main/*.txt")):
        raise DataError(
            "no image can be used",
            kind="no-usable-image",
            file=root,
            remedy="Run check without --fix, and correct the faults that it lists",
        )
    record = {"source": str(root), "changes": [change.as_json() for change in changes]}
    (target / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return changes


def _write_voc(layout: LayoutFolder, lists: list[Path], main: set[Path], copy: _Copy) -> None:
    """Writes a layout folder. Lists that are not in `main` are lists of one class in a split."""
    make_layout(copy.folder)
    layout.require_images()
    kept: dict[str, bool] = {}
    for file in lists:
        try:
            lines = layout.read_list(file)
        except DataError as error:
            copy.leave_out(error, file)
            continue
        left = dict[str, ListLine]()
        for line in lines:
            try:
                image_id = layout.find_id(line.text)
                if image_id in left:
                    raise DataError("is listed already", kind="listed-twice")
            except DataError as error:
                copy.leave_out(error, file, f"line {line.number}")
                continue
            if image_id not in kept:
                kept[image_id] = _write_voc_image(layout, image_id, copy)
            if kept[image_id]:
                left[image_id] = line
        if file in main and all(line.flag == "-1" for line in left.values()):
            copy.leave_out(DataError("lists no usable images", kind="empty-split"), file)
        elif len(left) == len(lines):
            write_list(copy.folder, file.stem, read_bytes(file, limit=MAX_LIST_BYTES))
        else:
            shortened = "".join(f"{line.whole}\n" for line in left.values())
            write_list(copy.folder, file.stem, shortened.encode())


def _write_voc_image(layout: LayoutFolder, image_id: str, copy: _Copy) -> bool:
    """Writes an image and its corrected annotation. Returns False if they cannot be used."""

    def find(_: Element) -> Path:
        if not is_file(layout.image(image_id)):
            raise DataError(f"{image_id!r} has no image file", kind="image-missing")
        return layout.image(image_id)

    return _write_corrected(layout.xml(image_id), find, image_id, copy)


def _write_corrected(
    xml: Path, find_image: Callable[[Element], Path], image_id: str, copy: _Copy
) -> bool:
    names: tuple[str, ...] = ()
    try:
        tree = parse_annotation(xml)
        names = class_names(object_elements(tree))
        image = correct_image(find_image(tree))
        image, found = correct_tree(tree, xml, image, copy.classes)
    except DataError as error:
        copy.leave_out(error, xml, removed=names)
        return False
    copy.changes.extend((*image.changes, *found))
    altered = as_xml(tree) if found else read_bytes(xml, limit=MAX_XML_BYTES)
    write_image(copy.folder, image_id, image.data, image.suffix, altered)
    return True


def _write_voc_files(tree: FileTree, copy: _Copy) -> None:
    """Writes VOC's annotations that lie anywhere in a folder."""
    make_layout(copy.folder)
    taken, ids = set[str](), dict[Path, str | None]()
    used = set[Path]()

    def find(annotation: Element, xml: Path) -> Path:
        image = image_of(annotation, xml, tree)
        if image in used:
            raise DataError(f"its image {image.name!r} has another annotation", kind="listed-twice")
        used.add(image)
        return image

    for split, source in find_splits(tree).items():
        reading = Reading(tree.root, copy.classes, "skip", "check")
        listed = list[str]()
        for xml in files_of(source, tree, reading):
            if xml not in ids:
                name = free_name(xml.stem, split, taken)
                taken.add(name.casefold())
                written = _write_corrected(xml, partial(find, xml=xml), name, copy)
                ids[xml] = name if written else None
            listed += filter(None, [ids[xml]])
        _note_faults(tuple(reading.faults), copy)
        _write_split(split, listed, tree.root, copy)


def _write_split(split: str, ids: list[str], root: Path, copy: _Copy) -> None:
    if ids:
        listed = "".join(f"{name}\n" for name in ids)
        write_list(copy.folder, plain_name(split), listed.encode())
    else:
        error = DataError("lists no usable images", kind="empty-split")
        copy.leave_out(error, root, f"split {split}")


def _write_coco(root: Path, copy: _Copy) -> None:
    make_layout(copy.folder)
    taken: set[str] = set()
    for split in known_splits(root):
        try:
            dataset = read_dataset(root, split, classes=copy.classes, on_bad="skip")
        except NoImagesError as error:
            copy.leave_out(error, root, f"split {split}")
            _note_faults(error.faults, copy)
            continue
        except DataError as error:
            copy.leave_out(error, root, f"split {split}")
            continue
        _note_faults(dataset.faults, copy)
        ids = []
        for item in dataset.annotations:
            image_id = free_name(item.image_id, split, taken)
            taken.add(image_id.casefold())
            if _write_coco_image(item, dataset, image_id, copy):
                ids.append(image_id)
        _write_split(split, ids, root, copy)


def _note_faults(faults: tuple[Fault, ...], copy: _Copy) -> None:
    for fault in faults:
        copy.leave_out(DataError(fault.reason, kind=fault.kind), fault.file, fault.position)


def _write_coco_image(item: Annotation, dataset: Dataset, image_id: str, copy: _Copy) -> bool:
    try:
        image = correct_image(item.image_path)
    except DataError as error:
        names = tuple(dataset.classes[label] for label in item.labels)
        copy.leave_out(error, item.image_path, removed=names)
        return False
    tree, found = new_tree(item, dataset.classes)
    copy.changes.extend((*image.changes, *found))
    write_image(copy.folder, image_id, image.data, image.suffix, as_xml(tree))
    return True
