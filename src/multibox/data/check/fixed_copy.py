"""Writes a corrected copy of a dataset in VOC layout. The dataset itself is not changed.

Files without faults are copied byte for byte. `fixes.json` lists what was changed or left out.
"""

import json
import re
import tempfile
import xml.etree.ElementTree as ET
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
from multibox.errors import ConfigError, DataError, StorageError

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

    def make(self) -> None:
        """Makes the folder and its subfolders."""
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)

    def write(self, image_id: str, image: bytes, suffix: str, xml: bytes) -> None:
        """Adds an image and its annotation."""
        for part, name, data in (
            ("JPEGImages", f"{image_id}{suffix}", image),
            ("Annotations", f"{image_id}.xml", xml),
        ):
            path = self.folder / part / name
            # Ids may contain folders.
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(data)

    def write_list(self, split: str, content: bytes) -> None:
        """Adds a list of images."""
        (self.folder / "ImageSets" / "Main" / f"{split}.txt").write_bytes(content)

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
    source, target = root.resolve(), out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        remedy = "Choose a folder that is neither above nor below it"
        raise ConfigError(f"the copy {out} and the dataset would overlap", remedy=remedy)
    try:
        if out.exists() and any(out.iterdir()):
            remedy = "Choose a new folder, or remove this one"
            raise StorageError("is not empty", file=out, remedy=remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fixing-", dir=target.parent) as staging:
            # In a subfolder, because other users have no access to a temporary folder itself.
            written = Path(staging) / target.name
            changes = _write(root, written, classes)
            if out.exists():
                target.rmdir()
            written.rename(target)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise StorageError(reason, file=out, remedy="Choose another folder") from None
    return changes


def _write(root: Path, target: Path, classes: tuple[str, ...]) -> list[Change]:
    target.mkdir()
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
    copy.make()
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
            copy.write_list(file.stem, read_bytes(file, limit=MAX_LIST_BYTES))
        else:
            copy.write_list(
                file.stem, "".join(f"{line.whole}\n" for line in left.values()).encode()
            )


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
    altered = ET.tostring(tree, encoding="utf-8", xml_declaration=True) + b"\n"
    same = read_bytes(xml, limit=MAX_XML_BYTES)
    copy.write(image_id, image.data, image.suffix, altered if found else same)
    return True


def _write_voc_files(tree: FileTree, copy: _Copy) -> None:
    """Writes VOC's annotations that lie anywhere in a folder."""
    copy.make()
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
                name = _free_name(xml.stem, split, taken)
                written = _write_corrected(xml, partial(find, xml=xml), name, copy)
                ids[xml] = name if written else None
            listed += filter(None, [ids[xml]])
        _note_faults(tuple(reading.faults), copy)
        _write_split(split, listed, tree.root, copy)


def _write_split(split: str, ids: list[str], root: Path, copy: _Copy) -> None:
    if ids:
        copy.write_list(_plain_name(split), "".join(f"{name}\n" for name in ids).encode())
    else:
        error = DataError("lists no usable images", kind="empty-split")
        copy.leave_out(error, root, f"split {split}")


def _write_coco(root: Path, copy: _Copy) -> None:
    copy.make()
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
            image_id = _free_name(item.image_id, split, taken)
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
    xml = ET.tostring(tree, encoding="utf-8", xml_declaration=True) + b"\n"
    copy.write(image_id, image.data, image.suffix, xml)
    return True


def _free_name(image_id: str, split: str, taken: set[str]) -> str:
    """Returns a unique id for VOC's lists. Ids differ even on a case-insensitive file system."""
    name = plain = _plain_name(image_id)
    number = 1
    while name.casefold() in taken:
        name = f"{_plain_name(split)}_{plain}" if number == 1 else f"{plain}_{number}"
        number += 1
    taken.add(name.casefold())
    return name


def _plain_name(text: str) -> str:
    """Returns a name that is valid in a list: no spaces, separators or consecutive dots."""
    return re.sub(r"[^\w.-]|\.(?=\.)|^\W", "_", text)
