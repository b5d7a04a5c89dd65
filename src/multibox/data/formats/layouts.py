"""The one place that knows in which formats a dataset may lie on disk."""

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
    """Returns the annotated images of a folder in VOC or COCO layout, told by what it holds.

    A folder with both is read as VOC.

    Args:
        root: The folder.
        splits: As `read_voc` or `read_coco` has it, and so the other arguments.
        classes: Names in the order of the labels; empty: those found.
        on_bad: Whether to raise all that cannot be used as one error, or to leave it out.
        images: Whether to look at each image's header and end.

    Raises:
        DataError: If the folder has neither layout, or as the reader has it.
    """
    if has_layouts(root):
        return read_voc(root, splits, classes=classes, on_bad=on_bad, images=images)
    if annotation_files(root):
        return read_coco(root, splits, classes=classes, on_bad=on_bad, images=images)
    raise _unknown(root)


def known_splits(root: Path) -> tuple[str, ...]:
    """Returns the splits that a folder in VOC or COCO layout has.

    Raises:
        DataError: If the folder has neither layout.
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
        remedy="It has to hold ImageSets/Main and Annotations, or VOC<year> folders with these; or "
        "annotations/instances_<split>.json; or <split>/_annotations.coco.json",
    )
