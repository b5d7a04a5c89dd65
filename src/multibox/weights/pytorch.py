"""Reads the parameters from a `.pth` file with PyTorch's restricted unpickler.

The functions and classes that the pickles name are checked first, without calling them.
"""

import mmap
import pickletools
import re
import struct
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from multibox.errors import WeightsError

# Keys under which training scripts store the state dict: lufficc and torchvision; others.
_WRAPPERS = ("model", "state_dict")
# nn.DataParallel prefixes every name with this.
_PARALLEL = "module."
_PICKLE = b"\x80"
# Magic number, version, system information, state dict and storage keys.
_LEGACY_PICKLES = 5
_GLOBALS = {
    "collections.OrderedDict",
    "collections.Counter",  # in the state of a learning rate schedule
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")
    ),
}
# Errors that the standard library raises on damaged bytes.
_DAMAGE = (ValueError, RuntimeError, LookupError, EOFError, struct.error)
_REMEDY = "Save only the model's state_dict(). Only files of tensors are read"
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by name, float32.

    Raises:
        WeightsError: The file contains something other than tensors, or it is damaged.
    """
    _refuse_calls(path)
    try:
        with warnings.catch_warnings():
            # Files from before 2020 cause deprecation warnings about storage types.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged or hostile file can raise any exception. No code in it has run.
        raise WeightsError(
            f"cannot be read as a PyTorch state dict ({_reason(error)})",
            file=path,
            remedy=_REMEDY,
        ) from None
    return _tensors(loaded, path)


def _reason(error: Exception) -> str:
    """Returns the cause from PyTorch's message, without its advice to trust the file."""
    said = r"(?:WeightsUnpickler error: \s*|Trying to load )(.+?)(?:\. |\.?$)"
    culprit = re.search(said, str(error), re.MULTILINE)
    text = culprit[1] if culprit else str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def _refuse_calls(path: Path) -> None:
    """Refuses a file that names functions or classes that a state dict does not need.

    PyTorch's unpickler runs no code from the file. But it lets a small file allocate storages and
    sparse tensors of any size, and prints them in its error messages.
    """
    try:
        with path.open("rb") as file:
            if file.read(1) == _PICKLE:
                # The `read` of a file allocates what a pickle claims; the `read` of a map does not.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    needed = [name for _ in range(_LEGACY_PICKLES) for name in _globals(content)]
            else:
                with zipfile.ZipFile(path) as archive:
                    needed = _archive_globals(archive, path)
    except (OSError, zipfile.BadZipFile, *_DAMAGE) as error:
        raise WeightsError(f"is a damaged archive ({error})", file=path) from None
    others = set(needed).difference(_GLOBALS)
    if others:
        raise WeightsError(
            f"cannot be read as a PyTorch state dict (it needs {min(others)[:100]})",
            file=path,
            remedy=_REMEDY,
        )


def _archive_globals(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """Returns the functions and classes that the pickles in an archive name.

    Raises:
        WeightsError: The members are larger than the archive. PyTorch does not compress them.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError("is compressed; PyTorch does not compress its files", file=path)
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError("is an archive with members that share bytes", file=path)
    # PyTorch ignores the case of member names.
    pickles = [member for member in members if member.filename.lower().endswith("data.pkl")]
    return [name for member in pickles for name in _globals(BytesIO(archive.read(member)))]


def _globals(file: mmap.mmap | BytesIO) -> list[str]:
    """Returns the functions and classes that a pickle names, and leaves the file at its end."""
    with warnings.catch_warnings():
        # Invalid escapes in texts cause deprecation warnings.
        warnings.simplefilter("ignore", DeprecationWarning)
        return [
            str(argument).replace(" ", ".")
            for operation, argument, _ in pickletools.genops(cast(IO[bytes], file))
            if operation.name == "GLOBAL"
        ]


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    # A file can set attributes of an OrderedDict, such as `get` and `items`.
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(dict.get(loaded, wrapper), dict):
            loaded = dict.get(loaded, wrapper)
            break
    if not isinstance(loaded, dict):
        raise WeightsError(
            f"contains {type(loaded).__name__}, not a state dict",
            file=path,
            remedy="Save only the model's state_dict()",
        )
    found = {}
    storages: dict[int, int] = {}
    for name, value in dict.items(loaded):
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"is {type(value).__name__}, not a tensor",
                file=path,
                position=str(name)[:100],
                remedy="Save only the model's state_dict()",
            )
        # A file can set attributes of a tensor too; a detached tensor has none.
        value = Tensor.detach(value)
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.dtype not in _NUMBERS:
            raise WeightsError(
                "is not a dense tensor of numbers on the CPU", file=path, position=name[:100]
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(
                "claims more numbers than its storage has", file=path, position=name[:100]
            )
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        # A storage that is not in the file would be uninitialised memory.
        if sum(storages.values()) > path.stat().st_size:
            raise WeightsError(
                "claims more numbers than the file has", file=path, position=name[:100]
            )
        # A copy, because tensors in a file may share memory, and parameters of a network may not.
        found[name.removeprefix(_PARALLEL)] = value.to(torch.float32, copy=True)
    return found
