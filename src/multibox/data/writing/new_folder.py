"""Makes a folder that appears only when it is complete."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from multibox.errors import ConfigError, StorageError


@contextmanager
def new_folder(out: Path, *, beside: Path) -> Iterator[Path]:
    """Writes a new folder completely or not at all, as a context manager.

    Args:
        out: The folder. It must not exist, or be empty.
        beside: The dataset that is copied. Neither folder may be inside the other.

    Yields:
        A temporary folder to write into, empty. It has the name of the new one.

    Raises:
        ConfigError: One of the two folders would be inside the other.
        StorageError: The new folder is not empty, or cannot be written.
    """
    source, target = beside.resolve(), out.resolve()
    if source.is_relative_to(target) or target.is_relative_to(source):
        remedy = "Choose a folder that is neither above nor below it"
        raise ConfigError(f"the copy {out} and the dataset would overlap", remedy=remedy)
    try:
        if out.exists() and any(out.iterdir()):
            remedy = "Choose a new folder, or remove this one"
            raise StorageError("is not empty", file=out, remedy=remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=target.parent) as staging:
            # In a subfolder, because other users have no access to a temporary folder itself.
            written = Path(staging) / target.name
            written.mkdir()
            yield written
            if out.exists():
                target.rmdir()
            written.rename(target)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise StorageError(reason, file=out, remedy="Choose another folder") from None
