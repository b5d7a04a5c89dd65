"""The verb `convert-data`: writes a dataset in another format."""

from pathlib import Path
from typing import Literal

from multibox.data.writing.converted_copy import DataFormat, write_converted


def convert_data(
    root: Path, out: Path, *, target: DataFormat, on_bad: Literal["fail", "skip"] = "fail"
) -> list[str]:
    """Writes a dataset in another format and returns the lines to print.

    Args:
        root: A folder or .zip archive in any format that can be read.
        out: The new folder. It must not exist, or be empty.
        target: The new format.
        on_bad: What to do with invalid objects and images: "fail" or "skip".

    Raises:
        DataError: The dataset cannot be read, or the format cannot hold the name of a class.
        ConfigError: One of the two folders would be inside the other.
        StorageError: The new folder is not empty, or cannot be written.
    """
    copy = write_converted(root, out, target, on_bad=on_bad)
    lines = [f"format: {copy.source}"]
    notes: dict[str, None] = {}
    for name, dataset in copy.splits.items():
        count = sum(dataset.objects_per_class.values())
        lines.append(f"{name}: {len(dataset)} images, {count} objects")
        lines += [f"left out: {fault}" for fault in dataset.faults]
        notes |= dict.fromkeys(note.text for note in dataset.notes)
    return [*lines, *(f"note: {text}" for text in (*notes, *copy.losses))]
