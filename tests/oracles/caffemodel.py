"""A writer of `.caffemodel` files: `NetParameter` of `caffe.proto`, field by field.

Both layer messages and both ways to write repeated numbers, so that the reader can be shown what
Caffe of every age has written.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Style(NamedTuple):
    """How a file is written."""

    v1: bool
    packed: bool
    legacy_shape: bool
    doubles: bool = False
    gradients: bool = False
    halves: bool = False


NEW = Style(v1=False, packed=True, legacy_shape=False)
OLD = Style(v1=True, packed=True, legacy_shape=True)
STYLES = (
    NEW,
    OLD,
    Style(v1=False, packed=False, legacy_shape=False),
    Style(v1=True, packed=False, legacy_shape=True),
    Style(v1=False, packed=True, legacy_shape=False, doubles=True),
    Style(v1=True, packed=False, legacy_shape=True, doubles=True, gradients=True),
    Style(v1=False, packed=True, legacy_shape=False, gradients=True),
)
HALVES = Style(v1=False, packed=True, legacy_shape=False, halves=True)
"""As OpenCV's `shrinkCaffeModel` writes convolutions."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def blob(values: np.ndarray, style: Style) -> bytes:
    if style.legacy_shape:
        sides = (1,) * (4 - values.ndim) + values.shape
        shape = b"".join(number(field, side) for field, side in enumerate(sides, start=1))
    else:
        shape = message(7, message(1, b"".join(map(varint, values.shape))))
    if style.halves:
        return shape + number(10, 2) + message(12, values.astype("<f2").tobytes())
    found = numbers(8 if style.doubles else 5, values, style)
    if style.gradients:
        found += numbers(9 if style.doubles else 6, values + 1, style)
    return shape + found


def numbers(field: int, values: np.ndarray, style: Style) -> bytes:
    kind, wire = ("<f8", 1) if style.doubles else ("<f4", 5)
    data = values.astype(kind).tobytes()
    if style.packed:
        return message(field, data)
    size = np.dtype(kind).itemsize
    key = varint(field << 3 | wire)
    return b"".join(key + data[i : i + size] for i in range(0, len(data), size))


def layer(name: str, blobs: Sequence[np.ndarray], style: Style) -> bytes:
    if style.v1:
        body = message(2, b"below") + message(3, name.encode()) + message(4, name.encode())
        body += number(5, 4) + b"".join(message(6, blob(values, style)) for values in blobs)
        return message(2, body)
    body = message(1, name.encode()) + message(2, b"Convolution") + number(10, 0)
    return message(100, body + b"".join(message(7, blob(values, style)) for values in blobs))


def prior_box(
    name: str,
    min_size: float,
    *,
    max_size: float | None = None,
    ratios: Sequence[float] = (),
    clip: bool = False,
    variances: Sequence[float] = (),
    step: float | None = None,
) -> bytes:
    fields = [(1, [min_size]), (2, [max_size]), (3, ratios), (6, variances), (10, [step])]
    parameters = number(4, 1) + number(5, int(clip))
    for field, values in fields:
        for value in values:
            if value is not None:
                parameters += struct.pack("<Bf", field << 3 | 5, value)
    return message(100, message(1, name.encode()) + message(203, parameters))


def caffemodel(layers: Mapping[str, Sequence[np.ndarray]], style: Style = NEW) -> bytes:
    parts = [layer(name, blobs, style) for name, blobs in layers.items()]
    return message(1, b"a network") + b"".join(parts)
