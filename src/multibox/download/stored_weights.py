"""Finds weights that `multibox download` stored. Opens no connections."""

import hashlib
import json
import os
from pathlib import Path

from multibox.download.catalogue import WEIGHTS, WeightsFile
from multibox.errors import ConfigError, WeightsError


def weights_folder() -> Path:
    """Returns the folder for downloaded weights: `multibox/weights` in the user's cache folder.

    The cache folder is XDG_CACHE_HOME, or ~/.cache.

    Raises:
        ConfigError: The user has no home folder.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The XDG Base Directory Specification says that relative paths are ignored.
        cache = cache if cache.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise ConfigError(
            "this user has no home folder for downloaded weights",
            remedy="Set the environment variable XDG_CACHE_HOME to a folder",
        ) from None
    return cache / "multibox" / "weights"


def find_stored(name: str) -> Path:
    """Returns the file of downloaded weights.

    Args:
        name: A key of `WEIGHTS`.

    Raises:
        WeightsError: The weights were not downloaded, or the file is damaged.
        ConfigError: The user has no home folder.
    """
    weights = WEIGHTS[name]
    path = weights_folder() / weights.stored_name
    if not path.exists():
        raise WeightsError("is not downloaded", file=name, remedy=f"Run multibox download {name}")
    if not is_intact(weights, path):
        raise WeightsError(
            "is not the published file",
            file=path,
            remedy=f"Remove it, and run multibox download {name}",
        )
    return path


def is_intact(weights: WeightsFile, path: Path) -> bool:
    """Returns whether a file has the SHA-256 of the published weights.

    Raises:
        WeightsError: The file cannot be read.
    """
    expected = weights.published.sha256
    try:
        if weights.member:
            record = json.loads(record_of(path).read_text(encoding="utf-8"))
            expected = record["sha256"] if record["archive_sha256"] == expected else ""
        return digest(path) == expected
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None
    except (ValueError, KeyError, TypeError):
        return False


def record_of(path: Path) -> Path:
    """Returns the file with the SHA-256 of weights that were unpacked from an archive.

    Only the archive has a published SHA-256.
    """
    return path.with_name(f"{path.name}.json")


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
