"""Fuzz targets: exported files, ONNX and OpenVINO."""

import re
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from exported import write_exported
from fuzz import values
from fuzz.choices import TEXTS, Choices, damaged

from multibox.export.runtimes import open_exported

_INTS = (0, 1, 2, 3, -1, 64, 1 << 20, (1 << 31) - 1, -(1 << 31))
_ATTRIBUTES = ("offset", "size", "shape", "type", "value", "element_type", "name")
_OPERATORS = ("Identity", "Loop", "If", "Scan", "Shape", "Concat", "Add", "Gather", "Nonsense")


@cache
def _onnx_seed() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_exported(Path(folder), "onnx").read_bytes()


@cache
def _openvino_seed() -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_exported(Path(folder), "openvino")
        return path.read_text(), path.with_suffix(".bin").read_bytes()


def onnx_file(choices: Choices, folder: Path) -> None:
    """Opens and runs an .onnx file with changed metadata, nodes, tensors and bytes."""
    (folder / "secret").write_bytes(b"secret" * 100)
    data = _onnx_seed()
    if choices.one_in(4):
        data = damaged(data, choices)
    else:
        model = onnx.ModelProto.FromString(data)
        for _ in range(choices.below(3)):
            _change(model, choices)
        data = model.SerializeToString()
    path = folder / "x.onnx"
    path.write_bytes(data)
    _use(path)


def _change(model: onnx.ModelProto, choices: Choices) -> None:
    node = choices.pick(tuple(model.graph.node))
    tensor = choices.pick(tuple(model.graph.initializer))
    match choices.below(8):
        case 0:
            entry = choices.pick(tuple(model.metadata_props))
            is_json = entry.key in ("classes", "image_size", "traits", "score_threshold")
            other = values.text_of(values.mutated(entry.value, choices)) if is_json else ""
            entry.value = (other or choices.pick(TEXTS)).encode("ascii", "replace").decode()
        case 1:
            node.op_type = choices.pick(_OPERATORS)
        case 2 if node.input:
            other = choices.pick(tuple(model.graph.node))
            node.input[choices.below(len(node.input))] = other.output[0]
        case 3 if node.attribute:
            choices.pick(tuple(node.attribute)).i = choices.pick(_INTS)
        case 4:
            location = choices.pick(("secret", "../x", "/etc/hostname"))
            if not tensor.raw_data:
                tensor.raw_data = b"1234"
            onnx.external_data_helper.set_external_data(tensor, location=location)
        case 5 if tensor.raw_data:
            tensor.raw_data = damaged(tensor.raw_data, choices)
        case 6 if tensor.dims:
            tensor.dims[choices.below(len(tensor.dims))] = choices.pick(_INTS)
        case _:
            node.domain = choices.pick(("", "ai.onnx", "com.microsoft", "x"))


def openvino_file(choices: Choices, folder: Path) -> None:
    """Opens and runs a pair of .xml and .bin with changed attributes, metadata and bytes."""
    text, numbers = _openvino_seed()
    data = text.encode()
    if choices.one_in(3):
        data = damaged(data, choices)
    else:
        for _ in range(choices.below(3)):
            name = choices.pick(_ATTRIBUTES)
            places = [*re.finditer(rf' {name}="([^"]*)"'.encode(), data)]
            chosen = choices.pick(tuple(places))
            new = choices.pick((*map(str, _INTS), *_OPERATORS, "64, 4", *TEXTS))
            content = new.encode("ascii", "xmlcharrefreplace").replace(b'"', b"").replace(b"<", b"")
            data = data[: chosen.start(1)] + content + data[chosen.end(1) :]
    if choices.one_in(4):
        numbers = numbers[: choices.below(len(numbers) + 1)]
    path = folder / "x.xml"
    path.write_bytes(data)
    path.with_suffix(".bin").write_bytes(numbers)
    _use(path)


def _use(path: Path) -> None:
    exported = open_exported(path)
    height, width = exported.image_size_px
    (found,) = exported.detect(np.full((1, min(height, 64), min(width, 64), 3), 99, np.uint8))
    assert len(found.boxes) == len(found.scores) == len(found.labels)
    assert found.scores.isfinite().all()
    assert (found.labels < len(exported.classes)).all()
