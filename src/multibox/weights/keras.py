"""Reads parameters from Keras's `.h5` files: weights alone, or whole saved models.

Files are untrusted. The reader follows no links, opens no other files, and uses no compression
filters except HDF5's own. It searches a model's configuration as text and never builds the model.
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
"""Maximum of all tensors together; SSD512 has 2^25, a full VGG-16 2^27."""

_SPARE_BYTES = 1 << 20
_MAX_RATIO = 25
"""Maximum bytes of numbers for each byte of the file, plus `_SPARE_BYTES`. Trained weights hardly
compress, but a dataset that was never written reads as any number of zeros."""
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
# Keras numbers the variables of a layer that was built twice: `kernel_1:0`.
_VARIABLE = re.compile(rf"(?:.*_(?=gamma))?({'|'.join(_KINDS)})(?:_\d+)?(?::\d+)?")
# A virtual dataset's layout message: version 4 or 5, class 3, the address of a global heap (HDF5
# File Format Specification, IV.A.2.i and III.E). No file is as long as 2^40 bytes. The search is
# fast because it begins with a single byte.
_VIRTUAL_LAYOUT = re.compile(rb"\x03(?<=[\x04\x05]\x03)(?=(.{5}\0{3}))", re.DOTALL)
# Entries of the configuration of ssd_keras's `AnchorBoxes` layers.
_ANCHOR_BOXES = re.compile(rb'"(?:this_scale": *(0\.\d{1,30})|clip_boxes": *(true))')
_OWN_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


class KerasFile(NamedTuple):
    """The content of a Keras file.

    Attributes:
        tensors: Parameters by `<layer>.<kind>`, with PyTorch's kinds and order of axes, float32.
        first_scale: Scale of the finest default boxes as a fraction of the image side; None if the
            file has no model configuration.
        clip: Whether the model configuration clips the default boxes.
    """

    tensors: dict[str, Tensor]
    first_scale: float | None
    clip: bool


def read_keras(path: Path) -> KerasFile:
    """Returns the parameters in a file.

    Raises:
        WeightsError: The file is damaged, contains links or foreign filters, or has no parameters.
    """
    try:
        with (
            path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            _refuse_virtual(content, path)
            first_scale, clip = _default_boxes(content)
        with h5py.File(path, "r") as file:
            # `_refuse_virtual` does not find layout messages with addresses of other sizes.
            if file.id.get_create_plist().get_sizes() != (8, 8):
                raise WeightsError("does not store addresses in 8 bytes, as Keras does", file=path)
            root = _group(file, "model_weights", path) if "model_weights" in file else file
            tensors = _tensors(root, path)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"cannot be read as HDF5 ({error})", file=path) from None
    if not tensors:
        raise WeightsError(
            "has no layers with kernels and biases",
            file=path,
            remedy="Save it in the layout of Keras 2: model.save_weights('weights.h5')",
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
                "is the second tensor of this kind in its layer",
                file=path,
                position=name,
                remedy="For a model inside another (multi_gpu_model), save the inner one's weights",
            )
        # HDF5 unpacks a whole chunk at a time.
        numbers += max(math.prod(dataset.shape or ()), math.prod(dataset.chunks or ()))
        if numbers > most:
            raise WeightsError(
                "has too many numbers for a file of this size", file=path, position=name
            )
        tensors[key] = _tensor(dataset)
    return tensors


def _tensor(dataset: h5py.Dataset) -> Tensor:
    with np.errstate(all="ignore"):  # infinity is refused later, with the tensor's name
        values = np.asarray(dataset[()], dtype=np.float32)
    if values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values))


def _datasets(root: h5py.Group, path: Path) -> Iterator[tuple[str, str, h5py.Dataset]]:
    """Yields (layer, name, dataset) for each floating-point dataset. The layer is the first group.

    HDF5's own visitors are not used, because they follow links.
    """
    open_groups = [(root, "", 0)]
    seen = 0
    while open_groups:
        group, prefix, depth = open_groups.pop()
        for key in group:
            seen += 1
            if seen > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise WeightsError("has too many objects", file=path)
            name = f"{prefix}{key}"
            kind = group.get(key, getclass=True, getlink=True)
            if kind is not h5py.HardLink:
                raise WeightsError("is a link; links are not followed", file=path, position=name)
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
        raise WeightsError("is a link; links are not followed", file=path, position=key)
    group = parent[key]
    if not isinstance(group, h5py.Group):
        raise WeightsError("is not a group", file=path, position=key)
    return group


def _check_storage(dataset: h5py.Dataset, path: Path, name: str) -> None:
    """Refuses datasets that are stored in other files or need a plugin to unpack."""
    if dataset.external or dataset.is_virtual:
        raise WeightsError(
            "stores numbers in another file; other files are not opened", file=path, position=name
        )
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _OWN_FILTERS:
        raise WeightsError(
            "is compressed by a filter that is not part of HDF5", file=path, position=name
        )


def _refuse_virtual(content: mmap.mmap, path: Path) -> None:
    """Refuses virtual datasets. HDF5 2.0 crashes when it opens a damaged one."""
    for layout in _VIRTUAL_LAYOUT.finditer(content):
        address = int.from_bytes(layout[1], "little")
        if content[address : address + 4] == b"GCOL":
            raise WeightsError(
                "stores numbers in another file; other files are not opened", file=path
            )


def _default_boxes(content: mmap.mmap) -> tuple[float | None, bool]:
    """Returns the smallest scale in the model configuration, and whether default boxes are clipped.

    The configuration is JSON in an attribute. HDF5 would allocate the length that the file claims
    before it reads the attribute, so the bytes of the file are searched instead.
    """
    found = [match.groups() for match in _ANCHOR_BOXES.finditer(content)]
    scales = [float(scale) for scale, _ in found if scale]
    return min(scales, default=None), any(clip for _, clip in found)
