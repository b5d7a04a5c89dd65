"""Finds archives that `multibox download` unpacked. Opens no connections."""

import json
from pathlib import Path

from multibox.download.catalogue import Published, Source


def missing_archives(source: Source, out: Path) -> list[Published]:
    """Returns the archives of a dataset that are not completely unpacked below a folder.

    Args:
        source: The dataset.
        out: The folder of all datasets.
    """
    return [published for published in source.archives if not is_unpacked(out, source, published)]


def is_unpacked(out: Path, source: Source, published: Published) -> bool:
    """Returns whether an archive was unpacked here and all of its files have the right size."""
    try:
        record = json.loads(unpacking_record(out, published).read_text(encoding="utf-8"))
        return record["sha256"] == published.sha256 and all(
            (out / source.folder / path).stat().st_size == size
            for path, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def unpacking_record(out: Path, published: Published) -> Path:
    """Returns the file that lists the content of an archive that was unpacked."""
    return out / ".downloaded" / f"{published.name}.json"
