"""Reads the parameters from a `.pth` file with PyTorch's restricted unpickler.

The functions and classes that the pickles name are checked first, without calling them. Training
scripts save objects beside the weights, such as the arguments of the command line. Objects that do
nothing take their place: no class or function of theirs is imported or called.
"""

import mmap
import pickletools
import re
import struct
import sys
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from multibox.errors import WeightsError

# Keys under which training scripts store the state dict: lufficc and torchvision; others. Moving
# averages come last.
_WRAPPERS = (
    *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights"),
    *("model_ema", "ema", "ema_state_dict"),
)
_MOST_WRAPPERS = 3
# Prefixes of every name: nn.DataParallel and AveragedModel; torch.compile; Lightning and others.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
# A counter that AveragedModel stores beside the parameters.
_AVERAGED = "n_averaged"
_PICKLE = b"\x80"
# Magic number, version, system information, state dict and storage keys.
_LEGACY_PICKLES = 5
_ENCODE = "_codecs.encode"
_GLOBALS = {
    "collections.OrderedDict",
    "collections.Counter",  # in the state of a learning rate schedule
    "builtins.set",
    _ENCODE,
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    *(
        f"torch.{kind}Storage"
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool", "Byte")
    ),
    *(f"torch.{kind}" for kind in ("float32", "float16", "bfloat16", "float64", "int64", "uint8")),
}
# What training scripts store beside the weights from the standard library. mmengine stores methods,
# which `getattr` would find. An object may take the place of all of it.
_STORED = {
    *("argparse.Namespace", "types.SimpleNamespace", "collections.defaultdict"),
    *(f"datetime.{kind}" for kind in ("date", "datetime", "timedelta", "timezone")),
    # Python 3.13 calls the module `pathlib._local`.
    *(
        f"{module}.{kind}Path"
        for module in ("pathlib", "pathlib._local")
        for kind in ("", "Posix", "Windows", "PurePosix", "PureWindows")
    ),
    *(f"builtins.{kind}" for kind in ("list", "dict", "tuple", "int", "float", "str", "bytes")),
    *("builtins.object", "builtins.getattr", "copyreg._reconstructor"),
}
_MOST_OTHERS = 100
"""Maximum number of other functions and classes that a file may name."""
# What follows `_codecs.encode` in a pickle of a NumPy scalar or array. PyTorch calls this function,
# and with other encodings each call could double a text.
_NUMPY_BYTES = (("a text", "latin1"), ("latin1",), ("TUPLE2",), ("REDUCE",))
# Errors that the standard library raises on damaged bytes.
_DAMAGE = (ValueError, RuntimeError, LookupError, EOFError, struct.error)
_REMEDY = "Save only the model's state_dict(). Only files of tensors are read"
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


class _Object:
    """Stands for an object that is not needed. It takes any arguments and any state."""

    def __new__(cls, *_: object) -> "_Object":
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


class _Mapping(_Object):
    """Stands for the class of an object that may be a dictionary, such as a configuration.

    Its objects are counters, because PyTorch's unpickler adds items only to its own classes.
    """

    def __new__(cls, *_: object) -> Counter:  # type: ignore[misc, type-arg]
        return Counter()


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by name, float32.

    Raises:
        WeightsError: The file contains no state dict, or it is damaged.
    """
    others = _check_globals(path)
    # An array has a state that a counter cannot take.
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Object if name.startswith("numpy.") else _Mapping, name) for name in others
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
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
    return plain_tensors(loaded, path)


def _reason(error: Exception) -> str:
    """Returns the cause from PyTorch's message, without its advice to trust the file."""
    said = r"(?:WeightsUnpickler error: \s*|Trying to load )(.+?)(?:\. |\.?$)"
    culprit = re.search(said, str(error), re.MULTILINE)
    text = culprit[1] if culprit else str(error).strip().partition("\n")[0]
    return text or type(error).__name__


def _check_globals(path: Path) -> set[str]:
    """Returns the functions and classes in a file that only objects beside the weights need.

    PyTorch's unpickler runs no code from the file. But it lets a small file allocate storages and
    sparse tensors of any size, and prints them in its error messages.

    Raises:
        WeightsError: The file needs other parts of PyTorch or of the standard library.
    """
    try:
        with path.open("rb") as file:
            if file.read(1) == _PICKLE:
                # The `read` of a file allocates what a pickle claims; the `read` of a map does not.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    needed = {name for _ in range(_LEGACY_PICKLES) for name in _globals(content)}
            else:
                with zipfile.ZipFile(path) as archive:
                    needed = _archive_globals(archive, path)
    except (OSError, zipfile.BadZipFile, *_DAMAGE) as error:
        raise WeightsError(f"is a damaged archive ({error})", file=path) from None
    others = needed.difference(_GLOBALS)
    refused = {name for name in others if _is_refused(name)}
    if refused:
        raise WeightsError(
            f"cannot be read as a PyTorch state dict (it needs {min(refused)[:100]})",
            file=path,
            remedy=_REMEDY,
        )
    if len(others) > _MOST_OTHERS:
        raise WeightsError(
            f"contains objects of {len(others):,} classes", file=path, remedy=_REMEDY
        )
    return others


def _is_refused(name: str) -> bool:
    """Returns whether a function or class is PyTorch's or Python's own, and not known as data."""
    package = name.partition(".")[0]
    return (package == "torch" or package in sys.stdlib_module_names) and name not in _STORED


def _archive_globals(archive: zipfile.ZipFile, path: Path) -> set[str]:
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
    return {name for member in pickles for name in _globals(BytesIO(archive.read(member)))}


def _globals(file: mmap.mmap | BytesIO) -> set[str]:
    """Returns the functions and classes that a pickle names, and leaves the file at its end.

    Names of Python 2 are replaced, as PyTorch does.

    Raises:
        ValueError: It calls `_codecs.encode` in another way than NumPy does.
    """
    found: set[str] = set()
    # What was pushed last, in total and by number: a function or class, a text, or an operation.
    last, memo = "", dict[int, str]()
    expected: list[tuple[str, ...]] = []
    with warnings.catch_warnings():
        # Invalid escapes in texts cause deprecation warnings.
        warnings.simplefilter("ignore", DeprecationWarning)
        for operation, value, _ in pickletools.genops(cast(IO[bytes], file)):
            argument: Any = value
            match operation.name:
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = last
                    continue
                case "GLOBAL":
                    module, _, name = argument.partition(" ")
                    modern = IMPORT_MAPPING.get(module, module), name
                    last = ".".join(NAME_MAPPING.get((module, name), modern)).replace(" ", ".")
                    found.add(last)
                case "BINGET" | "LONG_BINGET":
                    last = memo.get(argument, "")
                case "BINUNICODE":
                    last = "latin1" if argument == "latin1" else "a text"
                case name:
                    last = name
            if expected and last not in expected.pop(0):
                raise ValueError(f"it calls {_ENCODE} with other arguments than NumPy")
            if last == _ENCODE:
                expected = list(_NUMPY_BYTES)
    return found


def plain_tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a loaded state dict by name, float32, without wrappers and prefixes.

    Raises:
        WeightsError: It is not a state dict, or it claims more numbers than the file has.
    """
    # A file can set attributes of an OrderedDict, such as `get` and `items`.
    for _ in range(_MOST_WRAPPERS):
        inside = [dict.get(loaded, key) for key in _WRAPPERS] if isinstance(loaded, dict) else []
        loaded = next((one for one in inside if isinstance(one, dict)), loaded)
    if not isinstance(loaded, dict) or isinstance(loaded, Counter):
        raise WeightsError(
            f"contains {_kind(loaded)}, not a state dict",
            file=path,
            remedy="Save only the model's state_dict()",
        )
    found = {}
    storages: dict[int, int] = {}
    for name, value in dict.items(loaded):
        if name == _AVERAGED:
            continue
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"is {_kind(value)}, not a tensor",
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
        found[name] = value.to(torch.float32, copy=True)
    return _without_prefixes(found)


def _kind(value: object) -> str:
    return "an object" if isinstance(value, _Object | Counter) else type(value).__name__


def _without_prefixes(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes that wrappers of a network put before every name."""
    for prefix in [*_PREFIXES, *_PREFIXES]:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found
