"""Caffe's files in every encoding that Caffe has written, and damaged files."""

import resource
from pathlib import Path

import numpy as np
import pytest
from foreign_files import tiny_caffe
from oracles import caffemodel as oracle
from oracles.caffemodel import STYLES, Style, caffemodel

from multibox.errors import WeightsError
from multibox.rng import stream
from multibox.weights.caffe import CaffeLayer, PriorBox, parse_caffemodel
from multibox.weights.foreign import read_foreign

FILE = Path("some.caffemodel")
MAX_EXTRA_BYTES = 64 << 20


def small_layers() -> dict[str, list[np.ndarray]]:
    rng = stream(0, "caffemodel", 0)
    return {
        "conv1_1": [rng.standard_normal((4, 3, 3, 3), np.float32), np.arange(4, dtype=np.float32)],
        "fc6": [rng.standard_normal((6, 20), np.float32), rng.standard_normal(6, np.float32)],
        "conv4_3_norm": [np.full(5, 20, np.float32)],
        "relu": [],
    }


def parse(data: bytes) -> dict[str, CaffeLayer]:
    return parse_caffemodel(memoryview(data), file=FILE)


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_all_styles_are_read(style: Style) -> None:
    layers = small_layers()
    found = parse(caffemodel(layers, style))
    assert list(found) == ["conv1_1", "fc6", "conv4_3_norm"]
    for name, layer in found.items():
        for blob, expected in zip(layer.blobs, layers[name], strict=True):
            sides = (1,) * (4 - expected.ndim) + expected.shape
            assert blob.shape == (sides if style.legacy_shape else expected.shape)
            np.testing.assert_array_equal(blob.reshape(expected.shape), expected)
            assert blob.dtype == np.float32


def test_default_boxes_of_a_layer_are_found() -> None:
    data = caffemodel(small_layers()) + oracle.prior_box("prior", 21.0, clip=True)
    assert parse(data)["prior"] == CaffeLayer([], PriorBox((21.0,), clip=True))


def test_every_cut_is_refused_or_ends_between_layers() -> None:
    """A truncated file is an error, except where the rest is a complete message."""
    layers = small_layers()
    data = caffemodel(layers)
    ends = {len(caffemodel(dict(list(layers.items())[:count]))) for count in range(len(layers))}
    for length in range(1, len(data)):
        if length in ends:
            parse(data[:length])
        else:
            with pytest.raises(WeightsError, match="caffemodel"):
                parse(data[:length])


def one_blob(body: bytes) -> bytes:
    return oracle.message(100, oracle.message(1, b"x") + oracle.message(7, body))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0b", "wire type"),
        (b"\x00", "has no number"),
        (b"\xff" * 11, "more than 10 bytes"),
        (b"\xa2\x06\xff\xff\xff\xff\x0f", "truncated"),
        (oracle.number(100, 3), "where a message belongs"),
        (
            caffemodel({"x": [np.zeros(3)]}).replace(
                b"\x3a\x03\x0a\x01\x03", b"\x3a\x03\x0a\x01\x04"
            ),
            "shape",
        ),
        (one_blob(oracle.number(1, 1 << 63)), "shape"),
        (one_blob(b"\x2d0000\x08\x00" * 10_001), "more than 10000 parts"),
    ],
)
def test_damage_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        parse(data)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes bytes; removes, doubles or moves a part; or makes a length huge."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        start, length = int(rng.integers(len(out))), int(rng.integers(1, 40))
        part = out[start : start + length]
        match int(rng.integers(6)):
            case 0:
                out[start] = int(rng.integers(256))
            case 1:
                del out[start : start + length]
            case 2:
                out[start:start] = part
            case 3:
                other = int(rng.integers(len(out)))
                out[other:other] = part
            case 4:
                out[start:start] = oracle.varint(int(rng.integers(1 << 62)))
            case _:
                out[start:start] = rng.bytes(length)
        if not out:
            return b""
    return bytes(out)


def check_mutations(count: int) -> int:
    """Reads mutated files, and returns the number that was refused."""
    files = [caffemodel(small_layers(), style) for style in STYLES]
    files.append(files[0] + oracle.prior_box("prior", 30.0))
    rng = stream(0, "mutations", 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(count):
        data = mutated(files[number % len(files)], rng)
        try:
            found = parse(data)
        except WeightsError:
            refused += 1
        else:
            assert sum(blob.nbytes for layer in found.values() for blob in layer.blobs) <= 2 * len(
                data
            )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * 1024 <= MAX_EXTRA_BYTES
    return refused


def test_mutated_files_end_in_layers_or_an_error() -> None:
    refused = check_mutations(4_000)
    assert 0.2 * 4_000 < refused < 4_000


def check_mutated_detectors(count: int, folder: Path) -> None:
    """Reads mutated files of a whole detector, up to the model."""
    data = caffemodel(tiny_caffe())
    path = folder / "x"
    rng = stream(0, "mutations", 1)
    for number in range(count):
        path.write_bytes(mutated(data, rng))
        try:
            found = read_foreign(path)
        except WeightsError:
            continue
        assert found.tensors, number


def test_mutated_detectors_end_in_a_model_or_an_error(tmp_path: Path) -> None:
    check_mutated_detectors(300, tmp_path)


@pytest.mark.slow
def test_3_000_mutated_detectors_end_in_a_model_or_an_error(tmp_path: Path) -> None:
    check_mutated_detectors(3_000, tmp_path)


@pytest.mark.slow
def test_100_000_mutated_files_end_in_layers_or_an_error() -> None:
    refused = check_mutations(100_000)
    assert 0.2 * 100_000 < refused < 100_000
