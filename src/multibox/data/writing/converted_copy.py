"""Writes a copy of a dataset in another format. The dataset itself is not changed."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Dataset
from multibox.data.files import SUFFIXES, read_bytes
from multibox.data.formats.layouts import open_dataset
from multibox.data.formats.tree import UNSPLIT
from multibox.data.images import MAX_BYTES
from multibox.data.splits.draw import pool, take
from multibox.data.writing import voc
from multibox.data.writing.new_folder import new_folder
from multibox.data.writing.tables import (
    NamedImage,
    coco_json,
    csv_classes,
    csv_table,
    write_text,
    yolo_description,
    yolo_label,
)
from multibox.errors import DataError

DataFormat = Literal["voc", "coco", "yolo", "csv"]
# File names of CSV tables tell these splits.
_TOLD_BY_NAME = re.compile(r"(?:trainval|train|valid|validation|val|test)[0-9]*")


class ConvertedCopy(NamedTuple):
    """A dataset that was written.

    Attributes:
        source: The format of the dataset that was read.
        splits: The splits, in the order in which they were read.
        losses: What the new format cannot hold, as text.
    """

    source: str
    splits: dict[str, Dataset]
    losses: tuple[str, ...]


def write_converted(
    root: Path,
    out: Path,
    target: DataFormat,
    *,
    on_bad: Literal["fail", "skip"] = "fail",
    drawn: Mapping[str, Sequence[str]] | None = None,
) -> ConvertedCopy:
    """Writes all splits of a dataset in another format.

    Images are copied byte for byte, and boxes keep their float32 values. Classes keep their order;
    classes without objects are left out, as everywhere. File names keep letters, digits and `.-_`.

    Args:
        root: A folder or .zip archive in any format that can be read.
        out: A new folder, or an empty one, outside the dataset. It appears when it is complete.
        target: The new format.
        on_bad: Whether to raise all faults as one error ("fail"), or to leave out the faulty images
            and objects ("skip").
        drawn: The image ids of drawn splits, by split. None: the splits are the dataset's own.

    Raises:
        DataError: The dataset cannot be read, lacks an image of a drawn split, or the format
            cannot hold the name of a class.
        ConfigError: One of the two folders would be inside the other.
        StorageError: The new folder is not empty, or cannot be written.
    """
    with new_folder(out, beside=root) as folder:
        found = open_dataset(root)
        if drawn:
            everything = found.read(pool(found.splits), on_bad=on_bad)
            splits = {name: take(everything, ids, name) for name, ids in drawn.items()}
        else:
            # Labels are the same in all splits. An image in two splits would be a fault here.
            everything = found.read("+".join(found.splits), on_bad="skip", images="ignore")
            splits = {
                name: found.read(name, classes=everything.classes, on_bad=on_bad)
                for name in found.splits
            }
        classes = everything.classes
        _check_names(classes, root)
        _write(folder, splits, classes, target)
    return ConvertedCopy(found.format, splits, tuple(_losses(splits, target)))


def _check_names(classes: Sequence[str], root: Path) -> None:
    for name in classes:
        if not name.isprintable():
            raise DataError(
                f"the class name {name!r} has a line break or another control character",
                kind="text-malformed",
                file=root,
                remedy="Rename the class in the annotations",
            )


def _write(
    folder: Path, splits: dict[str, Dataset], classes: tuple[str, ...], target: DataFormat
) -> None:
    if target == "voc":
        voc.make_layout(folder)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    parts: dict[str, str] = {}
    uses = Counter(item.image_path for dataset in splits.values() for item in dataset.annotations)
    for split, dataset in splits.items():
        part = free_name(split, "", set(map(str.casefold, parts.values())))
        parts[split] = part
        images = []
        for item in dataset.annotations:
            path = item.image_path
            if path not in names:
                names[path] = free_name(path.stem, part, taken)
                taken.add(names[path].casefold())
            suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".jpg"
            # With its folder, which of several copies is meant is clear.
            above = f"{part}/" if uses[path] > 1 and target in ("coco", "csv") else ""
            images.append(NamedImage(f"{above}{names[path]}{suffix}", item))
        _write_split(folder, split, part, images, classes, target)
    if target == "yolo":
        folders = {split: f"images/{part}" for split, part in parts.items()}
        write_text(folder / "data.yaml", yolo_description(folders, classes))
    elif target == "csv":
        write_text(folder / "classes.csv", csv_classes(classes))


def _write_split(
    folder: Path,
    split: str,
    part: str,
    images: Sequence[NamedImage],
    classes: tuple[str, ...],
    target: DataFormat,
) -> None:
    """Writes the images and annotations of a split. `part` is its name in paths."""
    if target != "voc":
        (folder / "images" / part).mkdir(parents=True)
    for name, item in images:
        data = read_bytes(item.image_path, limit=MAX_BYTES)
        stem, _, suffix = name.rpartition(".")
        if target == "voc":
            xml = voc.as_xml(voc.annotation_tree(item, classes, filename=name))
            voc.write_image(folder, stem, data, f".{suffix}", xml)
        else:
            (folder / "images" / part / Path(name).name).write_bytes(data)
        if target == "yolo":
            write_text(folder / "labels" / part / f"{stem}.txt", yolo_label(item))
    if target == "voc":
        lines = "".join(f"{name.rpartition('.')[0]}\n" for name, _ in images)
        voc.write_list(folder, part, lines.encode())
    elif target == "coco":
        write_text(folder / "annotations" / f"instances_{part}.json", coco_json(images, classes))
    elif target == "csv":
        told = split == part and (split == UNSPLIT or _TOLD_BY_NAME.fullmatch(split))
        table = csv_table(images, classes, split=None if told else split)
        write_text(folder / f"{part}_labels.csv", table)


def free_name(name: str, prefix: str, taken: set[str]) -> str:
    """Returns a plain name that is not taken, even on a file system that ignores case.

    Args:
        name: The name that is wanted, such as the stem of an image.
        prefix: What is put before it if it is taken.
        taken: Names in lower case.
    """
    found = plain = plain_name(name)
    number = 1
    while found.casefold() in taken:
        found = f"{plain_name(prefix)}_{plain}" if number == 1 and prefix else f"{plain}_{number}"
        number += 1
    return found


def plain_name(text: str) -> str:
    """Returns a name that is valid in a list: no spaces, separators or consecutive dots."""
    return re.sub(r"[^\w.-]|\.(?=\.)|^\W", "_", text)


def _losses(splits: dict[str, Dataset], target: DataFormat) -> list[str]:
    """Returns what the format cannot hold."""
    difficult = sum(int(item.difficult.sum()) for d in splits.values() for item in d.annotations)
    losses = []
    if difficult and target == "coco":
        losses.append(f"{difficult} difficult objects became crowds (iscrowd)")
    elif difficult and target != "voc":
        losses.append(f"{difficult} difficult objects are not marked any more")
    areas = any(item.areas_px2 is not None for d in splits.values() for item in d.annotations)
    if areas and target != "coco":
        losses.append("the areas of the objects' outlines are lost: those of the boxes are used")
    renamed = [name for name in splits if plain_name(name) != name]
    if renamed and target in ("voc", "coco"):
        pairs = ", ".join(f"{name} is {plain_name(name)}" for name in renamed)
        losses.append(f"splits have other names: {pairs}")
    stems = {item.image_path.stem for d in splits.values() for item in d.annotations}
    changed = sum(plain_name(stem) != stem for stem in stems)
    if changed:
        losses.append(f"{changed} images have other names")
    return losses
