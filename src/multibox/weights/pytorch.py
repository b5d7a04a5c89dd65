"""Reads the parameters in a `.pth` file, with the unpickler that knows tensors only.

What its pickles call is looked at before, without calling it.
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

# What training scripts wrap a state in: lufficc and torchvision's references; others.
_WRAPPERS = ("model", "state_dict")
# nn.DataParallel puts this before every name.
_PARALLEL = "module."
_PICKLE = b"\x80"
# Magic number, version, system, state and the storages' keys.
_LEGACY_PICKLES = 5
_GLOBALS = {
    "collections.OrderedDict",
    "collections.Counter",  # in the state of a schedule
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")
    ),
}
# What the standard library lets through of bytes that say nonsense.
_DAMAGE = (ValueError, RuntimeError, LookupError, EOFError, struct.error)
_REMEDY = "Only files of tensors are opened; save the model's state_dict() alone"
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by name, float32.

    Raises:
        WeightsError: It holds something else than tensors, or is damaged.
    """
    _refuse_calls(path)
    try:
        with warnings.catch_warnings():
            # Of files of before 2020, about types of storage that are no concern here.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Anything may go wrong in a damaged or hostile file; no code in it has run.
        raise WeightsError(
            f"cannot be read as a PyTorch state dict ({_reason(error)})",
            file=path,
            remedy=_REMEDY,
        ) from None
    return _tensors(loaded, path)


def _reason(error: Exception) -> str:
    """Returns what went wrong, of a message that is mostly advice to trust the file."""
    said = r"(?:WeightsUnpickler error: \s*|Trying to load )(.+?)(?:\. |\.?$)"
    culprit = re.search(said, str(error), re.MULTILINE)
    text = culprit[1] if culprit else str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def _refuse_calls(path: Path) -> None:
    """Refuses a file that calls more than states need, before PyTorch's unpickler sees it.

    That one runs no code, but lets a small file make storages and sparse tensors of any size, and
    prints them where it complains.
    """
    try:
        with path.open("rb") as file:
            if file.read(1) == _PICKLE:
                # Unlike the file's own, its `read` makes no room for more than there is.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    needed = [name for _ in range(_LEGACY_PICKLES) for name in _globals(content)]
            else:
                with zipfile.ZipFile(path) as archive:
                    needed = _archived(archive, path)
    except (OSError, zipfile.BadZipFile, *_DAMAGE) as error:
        raise WeightsError(f"is a damaged archive ({error})", file=path) from None
    others = set(needed).difference(_GLOBALS)
    if others:
        raise WeightsError(
            f"cannot be read as a PyTorch state dict (it needs {min(others)[:100]})",
            file=path,
            remedy=_REMEDY,
        )


def _archived(archive: zipfile.ZipFile, path: Path) -> list[str]:
    """Returns what the pickles in an archive call.

    Raises:
        WeightsError: It unpacks to more than it is: PyTorch stores without compression.
    """
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError("is compressed, which PyTorch's files are not", file=path)
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise WeightsError("is an archive whose members share their bytes", file=path)
    # PyTorch's reader takes any case.
    pickles = [member for member in members if member.filename.lower().endswith("data.pkl")]
    return [name for member in pickles for name in _globals(BytesIO(archive.read(member)))]


def _globals(file: mmap.mmap | BytesIO) -> list[str]:
    """Returns the functions and classes that a pickle names; the next one begins behind it."""
    with warnings.catch_warnings():
        # Of escapes in texts, which nobody is to read.
        warnings.simplefilter("ignore", DeprecationWarning)
        return [
            str(argument).replace(" ", ".")
            for operation, argument, _ in pickletools.genops(cast(IO[bytes], file))
            if operation.name == "GLOBAL"
        ]


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    # The file may have given an OrderedDict attributes of its own, `get` or `items` among them.
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(dict.get(loaded, wrapper), dict):
            loaded = dict.get(loaded, wrapper)
            break
    if not isinstance(loaded, dict):
        raise WeightsError(
            f"holds {type(loaded).__name__}, not a state dict",
            file=path,
            remedy="Save the model's state_dict() alone",
        )
    found = {}
    storages: dict[int, int] = {}
    for name, value in dict.items(loaded):
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"holds {type(value).__name__}, not a tensor",
                file=path,
                position=str(name)[:100],
                remedy="Save the model's state_dict() alone",
            )
        # Without attributes of its own, for the same reason.
        value = Tensor.detach(value)
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.dtype not in _NUMBERS:
            raise WeightsError("is no plain tensor of numbers", file=path, position=name[:100])
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError("claims more numbers than it has", file=path, position=name[:100])
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        # Storage that is not in the file is whatever was in that memory before.
        if sum(storages.values()) > path.stat().st_size:
            raise WeightsError("claims more than its file has", file=path, position=name[:100])
        # A copy, because tensors of one file may share their numbers, which ours may not.
        found[name.removeprefix(_PARALLEL)] = value.to(torch.float32, copy=True)
    return found
