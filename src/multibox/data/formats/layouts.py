"""Recognises the format of a dataset's folder by its files, and calls the reader of the format."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from multibox.data.dataset import Dataset, Fault, Scene
from multibox.data.files import is_file, is_folder
from multibox.data.formats import coco, csv_tables, cvat, label_studio, labelme, voc_files, yolo
from multibox.data.formats.tree import FileTree
from multibox.data.formats.voc import has_layouts, read_voc, split_lists
from multibox.data.reading import Reading
from multibox.errors import DataError


class Format(NamedTuple):
    """A format of annotations that may lie anywhere in a folder.

    Attributes:
        name: The name of the format, for messages.
        find_splits: Returns what the format's reader needs for each split, by split. The result is
            empty if the files are not in this format.
        read_split: Reads the images and objects of a split. It adds faults and notes to the
            reading. The id of a scene is its path from the root.
        is_list: Whether a split is a list of images. Lists keep their order. The images of other
            splits are sorted by path.
    """

    name: str
    find_splits: Callable[[FileTree], Mapping[str, Any]]
    read_split: Callable[[Any, FileTree, Reading], list[Scene]]
    is_list: Callable[[Any], bool] = lambda _: False


FORMATS = (
    Format("COCO JSON", coco.find_splits, coco.read_split),
    Format("Label Studio", label_studio.find_splits, label_studio.read_split),
    Format("LabelMe", labelme.find_splits, labelme.read_split),
    Format("CVAT XML", cvat.find_splits, cvat.read_split),
    Format("VOC XML", voc_files.find_splits, voc_files.read_split, voc_files.is_list),
    Format("YOLO", yolo.find_splits, yolo.read_split),
    Format("CSV", csv_tables.find_splits, csv_tables.read_split),
)
"""The formats, in the order in which they are tried. The first one that finds files is used."""


class DatasetFolder(NamedTuple):
    """A folder in a known format.

    Attributes:
        root: The folder or .zip archive.
        format: The name of the format.
        splits: The names of its splits.
        read: Reads one or more splits, joined by `+`, with the arguments of `read_dataset`.
        tree: The files of the folder. None for VOC's own layout, where they are not all listed.
    """

    root: Path
    format: str
    splits: tuple[str, ...]
    read: Callable[..., Dataset]
    tree: FileTree | None = None


def open_dataset(root: Path) -> DatasetFolder:
    """Recognises the format of a folder. Its annotations are not read yet.

    Raises:
        DataError: The folder does not exist, or its files are in no known format.
    """
    if not is_folder(root):
        raise _not_a_folder(root)
    if has_layouts(root):
        return DatasetFolder(root, "PASCAL VOC", tuple(split_lists(root)), _reader(read_voc, root))
    tree = FileTree(root)
    for each in FORMATS:
        sources = each.find_splits(tree)
        if sources:
            read = _reader(_read_splits, each, sources, tree)
            return DatasetFolder(root, each.name, tuple(sources), read, tree)
    raise _unknown(tree)


def unread_formats(folder: DatasetFolder) -> tuple[str, ...]:
    """Returns the names of further formats in a folder, which are not read."""
    if folder.tree is None:
        return ()
    found = list[str]()
    for each in FORMATS:
        with suppress(DataError):  # `check` and the reader say what is wrong with a file.
            if each.name != folder.format and each.find_splits(folder.tree):
                found.append(each.name)
    return tuple(found)


def read_dataset(
    root: Path,
    splits: str,
    *,
    classes: tuple[str, ...] = (),
    on_bad: Literal["fail", "skip"] = "fail",
    images: Literal["check", "ignore"] = "check",
) -> Dataset:
    """Reads the annotated images of a folder or .zip archive.

    The format is recognised by the files in it (see `open_dataset`).

    Args:
        root: The folder or archive.
        splits: One or more splits, joined by `+` (for years of VOC, see `read_voc`).
        classes: Class names in label order. If empty, the names that are found.
        on_bad: Whether to raise all faults as one error ("fail"), or to leave out the faulty images
            and objects ("skip").
        images: Whether to check each image's header and end ("check"), or to read the annotations
            only ("ignore").

    Raises:
        DataError: The format is unknown, or the reader rejects the dataset.
    """
    return open_dataset(root).read(splits, classes=classes, on_bad=on_bad, images=images)


def known_splits(root: Path) -> tuple[str, ...]:
    """Returns the splits of a folder or .zip archive.

    Raises:
        DataError: The format is unknown.
    """
    return open_dataset(root).splits


def _reader(read: Callable[..., Dataset], *first: object) -> Callable[..., Dataset]:
    def call(splits: str, **options: Any) -> Dataset:
        return read(*first, splits, **options)

    return call


def _read_splits(
    format_: Format,
    sources: Mapping[str, Any],
    tree: FileTree,
    splits: str,
    *,
    classes: tuple[str, ...] = (),
    on_bad: Literal["fail", "skip"] = "fail",
    images: Literal["check", "ignore"] = "check",
) -> Dataset:
    reading = Reading(tree.root, classes, on_bad, images)
    chosen = tuple(dict.fromkeys(splits.split("+")))
    for name in chosen:
        if name not in sources:
            raise DataError(
                f"has no split {name!r}",
                kind="split-missing",
                file=tree.root,
                remedy=f"Choose from {', '.join(sources)}",
            )
    found = list[Scene]()
    for name in chosen:
        known = len(reading.faults)
        scenes = format_.read_split(sources[name], tree, reading)
        if not scenes:
            _refuse_missing(reading.faults[known:], name, tree)
        if not format_.is_list(sources[name]):
            scenes.sort(key=lambda scene: scene.path)
        found += scenes
    return reading.conclude("+".join(chosen), _shortly_named(found))


def _refuse_missing(faults: Sequence[Fault], split: str, tree: FileTree) -> None:
    """Raises one error if a split has no images because most of them do not exist."""
    missing = [fault for fault in faults if fault.kind == "image-missing"]
    if 2 * len(missing) <= len(faults):
        return
    folders = Counter(str(tree.relative(path).parent) for path in tree.images)
    listed = ", ".join(f"{count} in {folder}" for folder, count in folders.most_common(6))
    raise DataError(
        f"none of the {len(missing)} images of the split {split!r} exists in {tree.root}, which "
        f"has {f'other images: {listed}' if folders else 'no images'}. For example, "
        f"{missing[0].reason}",
        kind="images-folder-missing",
        file=missing[0].file,
        remedy="Add the images to the folder, or choose the folder that holds both",
    )


def _shortly_named(scenes: Sequence[Scene]) -> list[Scene]:
    """Shortens each image's id to its file's stem if no other image has that stem."""
    stems = Counter(scene.path.stem for scene in scenes)
    return [
        scene._replace(image_id=scene.path.stem) if stems[scene.path.stem] == 1 else scene
        for scene in scenes
    ]


def _not_a_folder(root: Path) -> DataError:
    if is_file(root):
        return DataError(
            "is a file",
            kind="layout-unknown",
            file=root,
            remedy="Use the folder that holds the images and the annotations, such as "
            f"{root.parent}, or a .zip of it",
        )
    return DataError("does not exist", kind="layout-unknown", file=root, remedy="Check the path")


def _unknown(tree: FileTree) -> DataError:
    """Returns the error for a folder in no known format. It says what is in the folder."""
    suffixes = Counter(path.suffix.lower() or "no suffix" for path in tree.files)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(6))
    found = f"{len(tree.images)} images" if tree.images else "no images"
    nearest = voc_files.what_is_missing(tree)
    archives = tree.with_suffix(".zip")
    if archives and not tree.images:
        nearest = f"to read an archive, name it: {archives[0]}"
        if not tree.root.is_dir():
            nearest = "to read the archives in it, unpack it"
    return DataError(
        f"has no annotations in a known format. It holds {found}"
        + (f" (files: {listed})" if listed else "")
        + (f"; {nearest}" if nearest else ""),
        kind="layout-unknown",
        file=tree.root,
        remedy="Add annotations in VOC's XML, COCO's JSON, YOLO's text files, CSV, or the format "
        "of LabelMe, CVAT or Label Studio; see the README",
    )
