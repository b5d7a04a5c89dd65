"""Reads the parameters in Keras's `.h5` files: weights alone, or whole saved models.

Nothing but numbers is taken from the file: no link is followed out of it, no compression but
HDF5's own is undone, and a model's configuration is read as text, never built.
"""

import math
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
# A virtual dataset's layout message: version 4 or 5, class 3, the address of a global heap (HDF5
# File Format Specification, IV.A.2.i and III.E). No file is as long as 2^40 bytes. The search is
# fast because it begins with a single byte.
_VIRTUAL_LAYOUT = re.compile(rb"\x03(?<=[\x04\x05]\x03)(?=(.{5}\0{3}))", re.DOTALL)
# Entries of the configuration of ssd_keras's `AnchorBoxes` layers.
_ANCHOR_BOXES = re.compile(rb'"(?:this_scale": *(0\.\d{1,30})|clip_boxes": *(true))')
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
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            _refuse_virtual(content, path)
            first_scale, clip = _default_boxes(content)
        with h5py.File(path, "r") as file:
            # Layout messages of other sizes escape `_refuse_virtual`.
            if file.id.get_create_plist().get_sizes() != (8, 8):
                raise WeightsError("does not store addresses in 8 bytes, as Keras does", file=path)
            root = _group(file, "model_weights", path) if "model_weights" in file else file
            tensors = _tensors(root, path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"cannot be read as HDF5 ({error})", file=path) from None
    if not tensors:
        raise WeightsError(
            "holds no layers with kernels and biases",
            file=path,
            remedy="Save it as Keras 2 does: model.save_weights('weights.h5')",
        )
    return KerasFile(tensors, first_scale, clip)


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


def _refuse_virtual(content: mmap.mmap, path: Path) -> None:
    """Refuses virtual datasets before HDF5 opens one, because HDF5 2.0 crashes on damaged ones."""
    for layout in _VIRTUAL_LAYOUT.finditer(content):
        address = int.from_bytes(layout[1], "little")
        if content[address : address + 4] == b"GCOL":
            raise WeightsError("its numbers lie in another file", file=path)


def _default_boxes(content: mmap.mmap) -> tuple[float | None, bool]:
    """Returns the finest scale that a model's configuration gives, and whether it clips.

    The configuration is JSON in an attribute. It is searched for in the bytes of the file, because
    HDF5 allocates as much memory for a text as the file claims before it reads the text.
    """
    found = [match.groups() for match in _ANCHOR_BOXES.finditer(content)]
    scales = [float(scale) for scale, _ in found if scale]
    return min(scales, default=None), any(clip for _, clip in found)
