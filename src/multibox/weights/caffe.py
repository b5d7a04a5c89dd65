"""Reads the parameters and the default boxes of each layer from a `.caffemodel` file.

A `.caffemodel` is a `NetParameter` message of `caffe.proto` in the encoding of Protocol Buffers: a
sequence of records. A record has a key (field number and wire type) and a value. This module reads
only the fields that it names, and skips all others by their wire type. It reads both layer messages
(`layer`, and `layers` of old files) and both encodings of repeated numbers (packed, and one record
for each number). Packed blobs are views of the file, so a damaged file cannot claim memory. OpenCV
(`shrinkCaffeModel`) writes some blobs as half-precision numbers.
"""

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from multibox.errors import WeightsError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Numbers of the fields in `caffe.proto` (weiliu89/caffe, branch ssd). `raw_data` and its type are
# fields of NVIDIA's and OpenCV's Caffe only.
_NET_LAYERS_V1, _NET_LAYERS = 2, 100
_V1_NAME, _V1_BLOBS = 4, 6
_NAME, _BLOBS, _BATCH_NORM, _PRIOR_BOX = 1, 7, 139, 203
_DATA, _DIFF, _SHAPE, _DOUBLES, _DOUBLE_DIFF, _RAW_TYPE, _RAW = 5, 6, 7, 8, 9, 10, 12
_HALF = 2
_LEGACY_SHAPE = (1, 2, 3, 4)
_DIM = 1
_EPSILON = 3
_MIN_SIZE, _MAX_SIZE, _RATIO, _FLIP, _CLIP, _VARIANCE, _STEP, _OFFSET = 1, 2, 3, 4, 5, 6, 10, 13

# The detectors have some 120 layers with 2 blobs of 4 dimensions at the most.
_MAX_LAYERS = 10_000
_MAX_BLOBS = 64
_MAX_DIMS = 8
_MAX_SIDE = 1 << 31
_MAX_PARTS = 10_000
_MAX_FLOATS = 100

# Keys of numbers that are not packed: the field, and the size of a number in bytes.
_SINGLE_NUMBERS = {
    **{number << 3 | _FIXED32: (number, 4) for number in (_DATA, _DIFF)},
    **{number << 3 | _FIXED64: (number, 8) for number in (_DOUBLES, _DOUBLE_DIFF)},
}


class PriorBox(NamedTuple):
    """The default boxes of a layer (`PriorBoxParameter`). Lists are empty where it has no entry.

    Attributes:
        min_sizes_px: Scales of the default boxes, at least one.
        max_sizes_px: For each scale, the next one.
        ratios: Ratios of width to height besides 1.
        flip: Whether the inverse ratios are added.
        clip: Whether the default boxes are clipped.
        variances: Variances of the offsets.
        steps_px: Distance of neighbouring centres.
        offsets: Position of the first centre, in steps.
    """

    min_sizes_px: tuple[float, ...]
    max_sizes_px: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    flip: bool = True
    clip: bool = False
    variances: tuple[float, ...] = ()
    steps_px: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()


class CaffeLayer(NamedTuple):
    """Parameters and default boxes of one layer.

    Attributes:
        blobs: Parameters, as views of the file where possible.
        prior: Default boxes; None if the layer makes no boxes.
        epsilon: Added to the variances, if the layer is a batch normalisation.
    """

    blobs: list[Float32[np.ndarray, "..."]]
    prior: PriorBox | None = None
    epsilon: float = 1e-5


class _DamageError(ValueError):
    """The bytes are not a valid message."""


def parse_caffemodel(data: memoryview, *, file: Path) -> dict[str, CaffeLayer]:
    """Returns the layers that have parameters or default boxes, by name.

    Args:
        data: The content of the file.
        file: Path of the file, for error messages.

    Raises:
        WeightsError: The file is not a `.caffemodel`, or it is damaged or truncated.
    """
    found: dict[str, CaffeLayer] = {}
    name = ""
    try:
        for number, value in _records(data):
            if number not in (_NET_LAYERS, _NET_LAYERS_V1):
                continue
            name, layer = _layer(_message(value), v1=number == _NET_LAYERS_V1)
            if not layer.blobs and layer.prior is None:
                continue
            # Caffe's training and test phases may both have a layer with this name. They share
            # the blobs.
            if name in found and found[name].blobs:
                continue
            found[name] = layer
            if len(found) > _MAX_LAYERS:
                raise _DamageError(f"it has more than {_MAX_LAYERS} layers")
    except _DamageError as error:
        known = name or file.suffix == ".caffemodel"
        damage = "is damaged" if known else "has an unknown format; as a .caffemodel, it is damaged"
        raise WeightsError(
            f"{damage} ({error})",
            file=file,
            position=f"after layer {name!r}" if name else None,
            remedy="Download it again, and compare its size with the publisher's"
            if known
            else "Use a multibox weights file, or a .caffemodel, .h5, .pth or .pt file",
        ) from None
    return found


def _layer(message: memoryview, *, v1: bool) -> tuple[str, CaffeLayer]:
    name = ""
    blobs: list[np.ndarray] = []
    prior, epsilon = None, 1e-5
    name_number, blobs_number = (_V1_NAME, _V1_BLOBS) if v1 else (_NAME, _BLOBS)
    for number, value in _records(message):
        if number == name_number:
            name = bytes(_message(value)[:200]).decode("utf-8", errors="replace")
        elif number == blobs_number:
            if len(blobs) == _MAX_BLOBS:
                raise _DamageError(f"a layer has more than {_MAX_BLOBS} blobs")
            blobs.append(_blob(_message(value)))
        elif number == _PRIOR_BOX and not v1:
            prior = _prior_box(_message(value))
        elif number == _BATCH_NORM and not v1:
            epsilon = (_fields(_message(value), {_EPSILON})[_EPSILON] or [epsilon])[-1]
    return name, CaffeLayer(blobs, prior, epsilon)


def _prior_box(message: memoryview) -> PriorBox | None:
    """Returns the default boxes of a layer; None if they have no size."""
    lists = {_MIN_SIZE, _MAX_SIZE, _RATIO, _VARIANCE, _STEP, _OFFSET}
    floats = {number: tuple(values) for number, values in _fields(message, lists).items()}
    flags = {_FLIP: True, _CLIP: False}
    flags |= {number: bool(value) for number, value in _records(message) if number in flags}
    if not floats[_MIN_SIZE]:
        return None
    return PriorBox(
        floats[_MIN_SIZE],
        floats[_MAX_SIZE],
        floats[_RATIO],
        flags[_FLIP],
        flags[_CLIP],
        floats[_VARIANCE],
        floats[_STEP],
        floats[_OFFSET],
    )


def _fields(message: memoryview, numbers: set[int]) -> dict[int, list[float]]:
    """Returns the float32 numbers of some fields, single or packed.

    Raises:
        _DamageError: There are more numbers than any layer has, or one is NaN or infinite.
    """
    found: dict[int, list[float]] = {number: [] for number in numbers}
    for number, value in _records(message):
        if number not in numbers:
            continue
        # Packed numbers are bytes; a single number is an integer of its bits.
        data = (
            value.to_bytes(8, "little")[:4]
            if isinstance(value, int)
            else bytes(value[: 4 * _MAX_FLOATS + 4])
        )
        if len(data) % 4:
            raise _DamageError("a list of numbers is truncated")
        found[number] += struct.unpack(f"<{len(data) // 4}f", data)
        if len(found[number]) > _MAX_FLOATS:
            raise _DamageError(f"a layer has more than {_MAX_FLOATS} numbers in a list")
        if not all(map(math.isfinite, found[number])):
            raise _DamageError("the parameters of a layer contain NaN or infinity")
    return found


def _blob(message: memoryview) -> Float32[np.ndarray, "..."]:
    """Returns the values of a blob (`BlobProto`) in its shape."""
    # A snapshot may contain gradients too. Collecting them skips them as fast as the values.
    kinds = (_DATA, _DIFF, _DOUBLES, _DOUBLE_DIFF, _RAW)
    parts: dict[int, list[memoryview]] = {kind: [] for kind in kinds}
    raw_type = None
    legacy = dict.fromkeys(_LEGACY_SHAPE, 0)
    shape: list[int] | None = None
    position = 0
    while position < len(message):
        if message[position] in _SINGLE_NUMBERS:
            number, size = _SINGLE_NUMBERS[message[position]]
            numbers, position = _run(message, position, size)
            parts[number].append(numbers)
        else:
            number, value, position = _record(message, position)
            if number in parts:
                parts[number].append(_message(value))
            elif number == _SHAPE:
                shape = _dims(_message(value))
            elif number == _RAW_TYPE:
                raw_type = value
            elif number in legacy and isinstance(value, int):
                legacy[number] = value
        if sum(map(len, parts.values())) > _MAX_PARTS:
            raise _DamageError(f"a blob has more than {_MAX_PARTS} parts")
    values = _numbers(parts[_DATA], "<f4")
    if parts[_RAW]:
        if raw_type != _HALF:
            raise _DamageError("a blob has raw numbers of another kind than half precision")
        values = _numbers(parts[_RAW], "<f2").astype(np.float32)
    elif not len(values):
        with np.errstate(
            all="ignore"
        ):  # NaN and infinity are refused later, with the tensor's name
            values = _numbers(parts[_DOUBLES], "<f8").astype(np.float32)
    sides = list(legacy.values()) if shape is None else shape
    if math.prod(sides) != len(values) or max(sides, default=0) > _MAX_SIDE:
        raise _DamageError(f"a blob of shape {sides} has {len(values)} numbers")
    return values.reshape(sides)


def _run(message: memoryview, start: int, size: int) -> tuple[memoryview, int]:
    """Returns the numbers of all records with the key at `start`, and the end of these records.

    There may be millions of records. Each has a key of 1 byte and a number of `size` bytes.
    """
    key = re.escape(bytes(message[start : start + 1]))
    records = re.compile(b"(?:%b.{%d})++" % (key, size), re.DOTALL).match(message, start)
    if records is None:
        raise _DamageError("it is truncated")
    numbers = np.frombuffer(records[0], np.uint8).reshape(-1, 1 + size)[:, 1:]
    return memoryview(numbers.tobytes()), records.end()


def _dims(message: memoryview) -> list[int]:
    dims: list[int] = []
    for number, value in _records(message):
        if number != _DIM:
            continue
        if isinstance(value, int):
            dims.append(value)
        else:
            position = 0
            while position < len(value) and len(dims) <= _MAX_DIMS:
                dim, position = _varint(value, position)
                dims.append(dim)
        if len(dims) > _MAX_DIMS:
            raise _DamageError(f"a blob has more than {_MAX_DIMS} dimensions")
    return dims


def _numbers(parts: list[memoryview], kind: str) -> np.ndarray:
    """Returns the numbers of some records. One record alone is not copied."""
    if any(len(part) % np.dtype(kind).itemsize for part in parts):
        raise _DamageError("a list of numbers is truncated")
    arrays = [np.frombuffer(part, kind) for part in parts]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, kind)


def _message(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise _DamageError("a number stands where a message belongs")
    return value


def _records(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yields the number of each field and its value: bytes, or an integer of the value's bits."""
    position = 0
    while position < len(message):
        number, value, position = _record(message, position)
        yield number, value


def _record(message: memoryview, position: int) -> tuple[int, memoryview | int, int]:
    """Returns the number of a field, its value, and the position of the next field."""
    key, position = _varint(message, position)
    number, kind = key >> 3, key & 7
    if number == 0:
        raise _DamageError("a field has no number")
    if kind == _VARINT:
        value, position = _varint(message, position)
        return number, value, position
    if kind == _BYTES:
        length, position = _varint(message, position)
        end = position + length
    elif kind in (_FIXED32, _FIXED64):
        end = position + (4 if kind == _FIXED32 else 8)
    else:
        raise _DamageError(f"a field has the unknown wire type {kind}")
    if end > len(message):
        raise _DamageError("it is truncated")
    if kind == _BYTES:
        return number, message[position:end], end
    form = "<I" if kind == _FIXED32 else "<Q"
    return number, struct.unpack_from(form, message, position)[0], end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns an integer of up to 64 bits (groups of 7 bits, least first) and its end."""
    value = 0
    for shift in range(0, 70, 7):
        if position == len(message):
            raise _DamageError("it is truncated")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise _DamageError("a number has more than 10 bytes")
