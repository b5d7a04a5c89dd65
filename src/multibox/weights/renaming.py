"""Gives the tensors of a foreign file our names, and refuses a file that has other tensors."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multibox.errors import WeightsError


def rename(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], path: Path
) -> dict[str, Tensor]:
    """Returns the tensors by our names.

    Args:
        tensors: The tensors of the file, by its own names.
        names: Our names, by those of the file.
        path: The file, for messages.

    Raises:
        WeightsError: A tensor is missing, or there are unknown tensors.
    """
    missing = [name for name in names if name not in tensors]
    unknown = sorted(tensors.keys() - names.keys())
    if missing or unknown:
        words = (("lacks", missing), ("has unknown", unknown))
        raise WeightsError(
            "; ".join(f"{verb} {first_names(these)}" for verb, these in words if these),
            file=path,
            remedy="Use the published architectures, which docs/weights.md lists",
        )
    return {ours: tensors[theirs].contiguous() for theirs, ours in names.items()}


def first_names(names: list[str]) -> str:
    """Returns the first four names as text, and the number of others."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def rename_layers(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Returns a state dict with renamed layers. Layers that are not in `names` keep their names."""
    renamed = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{names.get(layer, layer)}.{kind}"] = tensor
    return renamed
