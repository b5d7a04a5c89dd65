"""The verb `convert-data`: writes a dataset in another format."""

from pathlib import Path
from typing import Literal

from multibox.data.writing.converted_copy import DataFormat, write_converted
from multibox.errors import ConfigError
from multibox.storage.run_folder import read_split


def convert_data(
    root: Path,
    out: Path,
    *,
    target: DataFormat,
    on_bad: Literal["fail", "skip"] = "fail",
    split_of: Path | None = None,
) -> list[str]:
    """Writes a dataset in another format and returns the lines to print.

    Args:
        root: A folder or .zip archive in any format that can be read.
        out: The new folder. It must not exist, or be empty.
        target: The new format.
        on_bad: What to do with invalid objects and images: "fail" or "skip".
        split_of: Folder of a run. Its drawn splits are written instead of the dataset's own.

    Raises:
        DataError: The dataset cannot be read, or the format cannot hold the name of a class.
        ConfigError: One of the two folders would be inside the other, or `split_of` is not a run
            with drawn splits.
        StorageError: The new folder is not empty, or cannot be written.
    """
    drawn = None if split_of is None else read_split(split_of)
    if split_of is not None and drawn is None:
        raise ConfigError(
            "has no drawn splits", file=split_of, remedy="Use a run that was trained with --split"
        )
    copy = write_converted(root, out, target, on_bad=on_bad, drawn=drawn)
    lines = [f"format: {copy.source}"]
    notes: dict[str, None] = {}
    for name, dataset in copy.splits.items():
        count = sum(dataset.objects_per_class.values())
        lines.append(f"{name}: {len(dataset)} images, {count} objects")
        lines += [f"left out: {fault}" for fault in dataset.faults]
        notes |= dict.fromkeys(note.text for note in dataset.notes)
    return [*lines, *(f"note: {text}" for text in (*notes, *copy.losses))]
