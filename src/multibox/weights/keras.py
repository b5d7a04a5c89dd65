"""Reads the parameters in Keras's `.h5` files: weights alone, or whole saved models.

Nothing but numbers is taken from the file: no link is followed out of it, no compression but
HDF5's own is undone, and a model's configuration is read as text, never built.
"""

import json
import math
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from multibox.errors import WeightsError

MAX_NUMBERS = 1 << 28
"""Of all tensors together; SSD512 has 2^25, a full VGG-16 2^27."""

_SPARE_BYTES = 1 << 20
_MAX_RATIO = 25
"""Bytes of numbers out of a file's byte, besides the spare ones: weights hardly shrink, and what
was never written is zeros without end."""
_CONFIGURATION = "model_config"
_MAX_OBJECTS = 10_000
_MAX_DEPTH = 8
_KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# Keras numbers the names of what was built twice: `kernel_1:0`.
_VARIABLE = re.compile(rf"(?:.*_(?=gamma))?({'|'.join(_KINDS)})(?:_\d+)?(?::\d+)?")
_SCANNED_BYTES = 1 << 20
_OWN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


class KerasFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: `<layer>.<kind>` in PyTorch's kinds and order of axes, float32.
        first_scale: The scale of the finest default boxes as a fraction of the image's side, if
            the file holds the model's configuration.
        clip: Whether that configuration clips the default boxes.
    """

    tensors: dict[str, Tensor]
    first_scale: float | None
    clip: bool


def read_keras(path: Path) -> KerasFile:
    """Returns a file's parameters.

    Raises:
        WeightsError: It is damaged, or holds links, foreign filters or anything but numbers.
    """
    try:
        _refuse_virtual(path)
        with h5py.File(path, "r") as file:
            root = _group(file, "model_weights", path) if "model_weights" in file else file
            tensors = _tensors(root, path)
            config = _configuration(file, path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"cannot be read as HDF5 ({error})", file=path) from None
    if not tensors:
        raise WeightsError(
            "holds no layers with kernels and biases",
            file=path,
            remedy="Save it as Keras 2 does: model.save_weights('weights.h5')",
        )
    boxes = _anchor_boxes(config)
    scales = [layer.get("this_scale") for layer in boxes]
    return KerasFile(
        tensors,
        min((scale for scale in scales if isinstance(scale, float)), default=None),
        any(layer.get("clip_boxes") is True for layer in boxes),
    )


def _tensors(root: h5py.Group, path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    numbers = 0
    most = min(MAX_NUMBERS, (_SPARE_BYTES + _MAX_RATIO * path.stat().st_size) // 4)
    for layer, name, dataset in _datasets(root, path):
        variable = _VARIABLE.fullmatch(name.rpartition("/")[2])
        if variable is None:
            continue
        key = f"{layer}.{_KINDS[variable[1]]}"
        if key in tensors:
            raise WeightsError(
                "is a second tensor of its layer",
                file=path,
                position=name,
                remedy="Of a model within a model (multi_gpu_model), save the inner one's weights",
            )
        # Of what is stored in chunks, a whole one is unpacked at a time.
        numbers += max(math.prod(dataset.shape or ()), math.prod(dataset.chunks or ()))
        if numbers > most:
            raise WeightsError("claims too many numbers", file=path, position=name)
        tensors[key] = _tensor(dataset)
    return tensors


def _tensor(dataset: h5py.Dataset) -> Tensor:
    with np.errstate(all="ignore"):  # infinity is refused later, by name
        values = np.asarray(dataset[()], dtype=np.float32)
    if values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values))


def _datasets(root: h5py.Group, path: Path) -> Iterator[tuple[str, str, h5py.Dataset]]:
    """Yields (layer, name, dataset) of all floating-point datasets; the layer is the first group.

    Walks by itself, because HDF5's own visitors follow links.
    """
    open_groups = [(root, "", 0)]
    seen = 0
    while open_groups:
        group, prefix, depth = open_groups.pop()
        for key in group:
            seen += 1
            if seen > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise WeightsError("holds too many objects", file=path)
            name = f"{prefix}{key}"
            kind = group.get(key, getclass=True, getlink=True)
            if kind is not h5py.HardLink:
                raise WeightsError("is a link, which is not followed", file=path, position=name)
            kind = group.get(key, getclass=True)
            if kind is h5py.Group:
                open_groups.append((_group(group, key, path), f"{name}/", depth + 1))
            elif kind is h5py.Dataset:
                dataset = group[key]
                _check_storage(dataset, path, name)
                if dataset.dtype.kind == "f" and "/" in name:
                    yield name.partition("/")[0], name, dataset


def _group(parent: h5py.Group, key: str, path: Path) -> h5py.Group:
    if parent.get(key, getclass=True, getlink=True) is not h5py.HardLink:
        raise WeightsError("is a link, which is not followed", file=path, position=key)
    group = parent[key]
    if not isinstance(group, h5py.Group):
        raise WeightsError("is no group", file=path, position=key)
    return group


def _check_storage(dataset: h5py.Dataset, path: Path, name: str) -> None:
    """Refuses numbers that lie in other files or need other people's code to unpack."""
    if dataset.external or dataset.is_virtual:
        raise WeightsError("its numbers lie in another file", file=path, position=name)
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _OWN_FILTERS:
        raise WeightsError("is compressed by a foreign filter", file=path, position=name)


def _refuse_virtual(path: Path) -> None:
    """Refuses numbers of other files before HDF5 looks where they lie.

    It does so as soon as it opens a dataset, and damage there brings it down. Layouts are found by
    their version, 4 or 5, their class, 3, and the address after them, which is a global heap's
    (HDF5 File Format Specification, IV.A.2.i and III.E).
    """
    content = np.memmap(path, np.uint8, "r")
    for first in range(0, content.size, _SCANNED_BYTES):
        # A message may begin in this part and end in the next.
        part = content[first : first + _SCANNED_BYTES + 9]
        places = np.flatnonzero((part[1:-8] == 3) & ((part[:-9] | 1) == 5))
        addresses = part[places[:, None] + np.arange(2, 10)].view("<u8")[:, 0]
        addresses = addresses[addresses <= content.size - 4].astype(np.int64)
        heads = content[addresses[:, None] + np.arange(4)]
        if (heads == np.frombuffer(b"GCOL", np.uint8)).all(axis=1).any():
            raise WeightsError("its numbers lie in another file", file=path)


def _configuration(file: h5py.File, path: Path) -> object:
    """Returns the text of the model's configuration, if there is one."""
    if _CONFIGURATION not in file.attrs:
        return None
    attribute = file.attrs.get_id(_CONFIGURATION)
    kind = attribute.get_type()
    if not isinstance(kind, h5py.h5t.TypeStringID) or attribute.shape != ():
        return None
    claimed = _claimed_bytes(path) if kind.is_variable_str() else attribute.get_storage_size()
    if claimed > path.stat().st_size:
        raise WeightsError("is longer than its file", file=path, position=_CONFIGURATION)
    return file.attrs[_CONFIGURATION]


def _claimed_bytes(path: Path) -> int:
    """Returns how long the configuration is by the file, which HDF5 believes: it makes room first.

    An attribute is its version, a byte, the sizes of its name, type and space, since version 3 the
    encoding, then these three, up to version 1 each filled up to 8 bytes, and its value; that of a
    text of any length begins with the length (HDF5 File Format Specification, IV.A.2.m). What
    only looks like it counts, too.
    """
    name, longest, place = _CONFIGURATION.encode() + b"\0", 0, -1
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        while (place := content.find(name, place + 1)) >= 0:
            for version, ahead, unit in ((1, 8, 8), (2, 8, 1), (3, 9, 1)):
                head = place - ahead
                if head >= 0 and content[head] == version:
                    sizes = struct.unpack_from("<HHH", content, head + 2)
                    value = place + sum(-(-size // unit) * unit for size in sizes)
                    longest = max(longest, int.from_bytes(content[value : value + 4], "little"))
    return longest


def _anchor_boxes(config: object) -> list[dict[str, Any]]:
    """Returns the configurations of the `AnchorBoxes` layers."""
    text = config.decode("utf-8", "replace") if isinstance(config, bytes) else config
    try:
        layers = json.loads(text)["config"]["layers"] if isinstance(text, str) else []
        found = [layer["config"] for layer in layers if layer["class_name"] == "AnchorBoxes"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return [layer for layer in found if isinstance(layer, dict)]
