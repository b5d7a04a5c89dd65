"""Converts named tensors to the bytes of a safetensors file, and back."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from multibox.errors import WeightsError

DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of the dtypes in safetensors, in the order in which it stores them."""


def serialized(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """Yields the header of a safetensors file, and then the data of each tensor.

    safetensors itself (0.8) would copy all tensors at once, and the order of the metadata would
    differ between processes.

    Args:
        tensors: The tensors by name, on any device and in any memory format. They may share memory.
        metadata: Stored in the header.
    """
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(tensors[name].dtype), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        values = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield values.view(torch.uint8).numpy().data


def parsed(path: Path, content: bytes) -> dict[str, Tensor]:
    """Returns the tensors in the content of a safetensors file, on the CPU.

    Args:
        path: The file, for error messages.
        content: Its bytes.

    Raises:
        WeightsError: The content is not in the safetensors format.
    """
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:
        raise WeightsError(f"is not a safetensors file ({error})", file=path) from None
