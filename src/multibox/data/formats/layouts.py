"""Detects the format of a dataset's folder and calls its reader."""

from pathlib import Path
from typing import Literal

from multibox.data.dataset import Dataset
from multibox.data.formats.coco import annotation_files, read_coco
from multibox.data.formats.voc import has_layouts, read_voc, split_lists
from multibox.errors import DataError


def read_dataset(
    root: Path,
    splits: str,
    *,
    classes: tuple[str, ...] = (),
    on_bad: Literal["fail", "skip"] = "fail",
    images: Literal["check", "ignore"] = "check",
) -> Dataset:
    """Reads the annotated images of a folder in VOC or COCO layout.

    The layout is detected by the files in the folder. A folder with both is read as VOC.

    Args:
        root: The folder.
        splits: One or more splits, joined by `+` (see `read_voc` and `read_coco`).
        classes: Class names in label order. If empty, the names that are found.
        on_bad: Whether to raise all faults as one error ("fail"), or to leave out the faulty images
            and objects ("skip").
        images: Whether to check each image's header and end ("check"), or to read the annotations
            only ("ignore").

    Raises:
        DataError: The folder has neither layout, or the reader rejects the dataset.
    """
    if has_layouts(root):
        return read_voc(root, splits, classes=classes, on_bad=on_bad, images=images)
    if annotation_files(root):
        return read_coco(root, splits, classes=classes, on_bad=on_bad, images=images)
    raise _unknown(root)


def known_splits(root: Path) -> tuple[str, ...]:
    """Returns the splits of a folder in VOC or COCO layout.

    Raises:
        DataError: The folder has neither layout.
    """
    names = split_lists(root) if has_layouts(root) else sorted(annotation_files(root))
    if not names and not has_layouts(root):
        raise _unknown(root)
    return tuple(names)


def _unknown(root: Path) -> DataError:
    return DataError(
        "is not a folder in VOC or COCO layout",
        kind="layout-unknown",
        file=root,
        remedy="Use a folder that holds ImageSets/Main and Annotations, or VOC<year> folders with "
        "these, or annotations/instances_<split>.json, or <split>/_annotations.coco.json",
    )
