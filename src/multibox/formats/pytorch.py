"""Reads the parameters in a `.pth` file, with the unpickler that knows tensors only."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from multibox.errors import WeightsError

# What training scripts wrap a state in: lufficc and torchvision's references; others.
_WRAPPERS = ("model", "state_dict")
# nn.DataParallel puts this before every name.
_PARALLEL = "module."


def read_state(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by name, float32.

    Raises:
        WeightsError: It holds something else than tensors, or is damaged.
    """
    _refuse_compressed(path)
    try:
        with warnings.catch_warnings():
            # Of files of before 2020, about types of storage that are no concern here.
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Anything may go wrong in a damaged or hostile file; no code in it has run.
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"cannot be read as a PyTorch state dict ({reason[0] if reason else type(error)})",
            file=path,
            remedy="Only files of tensors are opened; save the model's state_dict() alone",
        ) from None
    return _tensors(loaded, path)


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores without compression; a compressed file may be of any size in memory."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise WeightsError(f"is a damaged archive ({error})", file=path) from None
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise WeightsError("is compressed, which PyTorch's files are not", file=path)


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping):
        raise WeightsError(
            f"holds {type(loaded).__name__}, not a state dict",
            file=path,
            remedy="Save the model's state_dict() alone",
        )
    found = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"holds {type(value).__name__}, not a tensor", file=path, position=str(name)[:100]
            )
        if value.layout != torch.strided or value.dtype.is_complex or value.is_quantized:
            raise WeightsError("is no plain tensor", file=path, position=name[:100])
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError("claims more numbers than it has", file=path, position=name[:100])
        found[name.removeprefix(_PARALLEL)] = value.detach().to(torch.float32)
    return found
