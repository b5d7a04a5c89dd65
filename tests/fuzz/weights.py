"""Fuzz targets: weights files of every format."""

import argparse
import io
import json
import pickletools
import struct
import warnings
import zipfile
from functools import cache
from pathlib import Path
from unittest import mock

import caffe_detectors as detectors
import h5py
import numpy as np
import safetensors.torch
import torch
from foreign_files import (
    tiny,
    tiny_caffe,
    tiny_keras,
    tiny_mmdetection,
    tiny_mobilenet,
    tiny_ssdlite,
)
from fuzz import values
from fuzz.choices import TEXTS, Choices, damaged
from fuzz.records import mutated_safetensors
from oracles import caffemodel as caffe
from tiny import FITTED, TINY, tiny_network

from multibox import build
from multibox.weights import files
from multibox.weights.foreign import read_foreign
from multibox.weights.keras import read_keras
from multibox.weights.publishers import Foreign

_JSON_KEYS = ("classes", "traits", "image_size")
_SECRET = 1234.5
"""A number in another file, which must not be read."""


def _check(found: Foreign, *, most: int) -> None:
    for name, tensor in found.tensors.items():
        assert tensor.device.type == "cpu", name
        assert torch.isfinite(tensor).all(), name
        assert not (tensor == _SECRET).any(), name
    assert sum(tensor.numel() for tensor in found.tensors.values()) <= most
    assert len(set(found.classes)) == len(found.classes)


@cache
def _own_seed(fitted: bool) -> bytes:
    network = tiny_network(fitted=FITTED if fitted else ())
    header = files.make_header(network, "tiny", ("cat", "dog"), "mine", 0.25)
    return safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, header
    )


def own(choices: Choices, folder: Path) -> None:
    """Reads a multibox weights file and builds its network."""
    path = folder / "files.safetensors"
    data = _own_seed(choices.one_in(2))
    if choices.one_in(4):
        data = mutated_safetensors(data, choices)
    else:
        # The fields of the header are JSON texts inside the JSON text.
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        about = header["__metadata__"]
        key = choices.pick(("classes", "traits", "network", "format", "licence", "image_size"))
        texts = values.text_of(values.mutated(about[key], choices)) if key in _JSON_KEYS else ""
        about[key] = texts or choices.pick((*TEXTS, "ssd300-lite", "vgg16-trunk", about[key]))
        text = json.dumps(header).encode()
        data = struct.pack("<Q", len(text)) + text + data[end:]
    path.write_bytes(data)
    with mock.patch.dict(build.NETWORKS, {"tiny": TINY}):
        weights = files.read_weights(path)
        assert all(isinstance(name, str) and name for name in weights.classes)
        network = files.load_network(weights, torch.device("cpu"))
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


@cache
def _caffe_seeds() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Returns files of a few layers in every style, and files of whole detectors."""
    rng = np.random.default_rng(0)
    layers = {
        "conv1_1": [rng.standard_normal((4, 3, 3, 3), np.float32), np.arange(4, dtype=np.float32)],
        "conv4_3_norm": [np.full(5, 20, np.float32)],
        "relu": [],
    }
    styles = (*caffe.STYLES, caffe.HALVES)
    trained = detectors.mobilenet(classes=1)
    wholes = (
        caffe.caffemodel(tiny_caffe()),
        caffe.caffemodel(detectors.tiny(detectors.face()))
        + detectors.priors(detectors.FACE_MAPS, detectors.FACE_PRIORS),
        *(
            caffe.caffemodel(detectors.tiny(found), caffe.HALVES)
            + detectors.priors(detectors.MOBILENET_MAPS, detectors.MOBILENET_PRIORS)
            for found in (trained, detectors.merged(trained))
        ),
    )
    return tuple(caffe.caffemodel(layers, style) for style in styles), wholes


_VARINTS = (0, 1, 2, 127, 128, 1 << 31, (1 << 32) - 1, 1 << 62, (1 << 64) - 1)
_FIELDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 100, 139, 203, 0, 15, 1 << 28)


def caffemodel(choices: Choices, folder: Path) -> None:
    """Reads a `.caffemodel` with changed fields, lengths and numbers."""
    parts, wholes = _caffe_seeds()
    data = bytearray(choices.pick(wholes) if choices.one_in(2) else choices.pick(parts))
    for _ in range(choices.below(4)):
        place = choices.below(len(data))
        match choices.below(5):
            case 0:
                data[place:place] = caffe.number(choices.pick(_FIELDS), choices.pick(_VARINTS))
            case 1:
                body = choices.pick((b"", b"\xff" * 4, caffe.number(1, 3), b"\0" * 400))
                data[place:place] = caffe.message(choices.pick(_FIELDS), body)
            case 2:
                size = 1 + choices.below(3)
                data[place : place + size] = caffe.varint(choices.pick(_VARINTS))
            case 3:
                data[place:place] = caffe.message(100, caffe.message(7, choices.bytes(20)))
            case _:
                data = bytearray(damaged(bytes(data), choices)) or bytearray(b"x")
    path = folder / "x.caffemodel"
    path.write_bytes(data)
    found = read_foreign(path)
    _check(found, most=len(data))
    for level in found.traits.fitted:
        assert level.is_plausible(300)


@cache
def _states() -> tuple[bytes, ...]:
    """Returns PyTorch files in the new and old format, with tensors of several kinds."""
    names = ("ssd-pytorch", "lufficc", "torchvision")
    wholes: list[object] = [*(tiny(name) for name in names), tiny_ssdlite()]
    wholes[1] = {"model": wholes[1], "iteration": 3}
    wholes.append(tiny_mobilenet())
    side = {"args": argparse.Namespace(lr=0.1, out=Path("runs")), "best": np.float64(0.7)}
    wholes.append({"state_dict": tiny_mmdetection(), "meta": {"CLASSES": ("cat",)}, **side})
    shared = torch.arange(12.0)
    few = {
        "0.weight": shared.view(3, 4).t(),
        "0.bias": shared[2:5],
        "2.weight": torch.nn.Parameter(torch.ones(2, dtype=torch.float16)),
        "n": torch.tensor(3),
    }
    beside = {"model": few, **side, "more": np.arange(3.0)}
    found = []
    files = ((few, True), (few, False), (beside, True), (beside, False))
    for value, zipped in (*files, *((whole, True) for whole in wholes)):
        stream = io.BytesIO()
        torch.save(value, stream, _use_new_zipfile_serialization=zipped)
        found.append(stream.getvalue())
    return tuple(found)


_GLOBALS = (
    *("torch FloatTensor", "torch FloatStorage", "torch.storage UntypedStorage", "torch Size"),
    *("torch.nn.parameter Parameter", "torch._utils _rebuild_parameter", "builtins bytearray"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_sparse_tensor", "builtins set"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_qtensor"),
    *("torch._utils _rebuild_nested_tensor", "torch._utils _rebuild_wrapper_subclass"),
    *("torch._tensor _rebuild_from_type_v2", "collections OrderedDict", "collections Counter"),
    *("os system", "builtins eval", "torch load", "_codecs encode", "torch device", "torch Tensor"),
    *("argparse Namespace", "numpy.core.multiarray scalar", "numpy dtype", "theirs Settings"),
)
_INTS = (0, 1, 2, 3, 255, 65_535, 1 << 20, (1 << 31) - 1, -1, -(1 << 31))
_ATTRIBUTES = ("get", "items", "numel", "to", "detach", "device", "layout", "_metadata")


def _inserted(choices: Choices) -> bytes:
    """Returns one or more pickle operations."""
    match choices.below(8):
        case 0:
            module, name = choices.pick(_GLOBALS).split()
            return f"c{module}\n{name}\n".encode()
        case 1:
            module, name = choices.pick(_GLOBALS).split()
            count = struct.pack("<i", choices.pick(_INTS))
            return f"c{module}\n{name}\n".encode() + b"J" + count + b"\x85R"
        case 2:
            return b"J" + struct.pack("<i", choices.pick(_INTS))
        case 3:
            text = choices.pick(TEXTS).encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case 4:
            name = choices.pick(_ATTRIBUTES).encode()
            return b"}X" + struct.pack("<I", len(name)) + name + b"K\x01sb"
        case 5:
            return choices.pick(
                (b"(", b"t", b"]", b"}", b")", b"\x85", b"\x86", b"\x87", b"0", b"2")
            )
        case 6:
            return choices.pick((b"R", b"b", b"s", b"u", b"a", b"e", b"Q", b".", b"N", b"\x88"))
        case _:
            return b"h" + bytes([choices.below(40)]) + choices.pick((b"", b"Q", b"b", b"R"))


def mutated_pickle(data: bytes, choices: Choices) -> bytes:
    """Returns a pickle with operations changed, removed, doubled or inserted."""
    places = [place for _, _, place in pickletools.genops(data) if place is not None]
    operations = [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
    for _ in range(choices.below(4)):
        place = choices.below(len(operations))
        match choices.below(6):
            case 0:
                operations.insert(place, _inserted(choices))
            case 1:
                operations[place] = _inserted(choices)
            case 2 if len(operations) > 1:
                del operations[place]
            case 3:
                operations.insert(choices.below(len(operations)), operations[place])
            case 4:
                kinds = {b"K": "<B", b"M": "<H", b"J": "<i"}
                numbers = [n for n, op in enumerate(operations) if op[:1] in kinds]
                if numbers:
                    chosen = choices.pick(numbers)
                    operations[chosen] = b"J" + struct.pack("<i", choices.pick(_INTS))
            case _:
                operations[place] = damaged(operations[place], choices)
    return b"".join(operations)


def pytorch(choices: Choices, folder: Path) -> None:
    """Reads a `.pth` file, new or old, with changes in its pickles or its archive."""
    data = choices.pick(_states())
    if data.startswith(b"PK"):
        data = _mutated_archive(data, choices)
    elif not choices.one_in(4):
        # Magic number, version, system, state dict, keys; then the numbers.
        stream, pickles = io.BytesIO(data), []
        for _ in range(5):
            start = stream.tell()
            for _ in pickletools.genops(stream):
                pass
            pickles.append(data[start : stream.tell()])
        chosen = choices.pick((3, 3, 3, 4, 2, 1, 0))
        pickles[chosen] = mutated_pickle(pickles[chosen], choices)
        data = b"".join(pickles) + data[stream.tell() :]
    if choices.one_in(8):
        data = damaged(data, choices)
    path = folder / "x.pth"
    path.write_bytes(data)
    _check(read_foreign(path), most=len(data))


def _mutated_archive(data: bytes, choices: Choices) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        members = [(info.filename, opened.read(info)) for info in opened.infolist()]
    places = {name.partition("/")[2]: place for place, (name, _) in enumerate(members)}
    if not choices.one_in(4):
        name, content = members[places["data.pkl"]]
        members[places["data.pkl"]] = name, mutated_pickle(content, choices)
    for _ in range(choices.below(3)):
        place = choices.below(len(members))
        name, content = members[place]
        match choices.below(5):
            case 0:
                members[place] = name, damaged(content, choices)
            case 1 if len(members) > 1:
                del members[place]
            case 2:
                members[place] = name + "x", content
            case 3:
                added = choices.pick(
                    ("byteorder", "version", "data/99", ".data/x", "constants.pkl")
                )
                members.append((f"archive/{added}", choices.pick((b"big", b"little", b"9", b""))))
            case _:
                members[place] = name, content[: choices.below(len(content) + 1)]
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as opened:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for name, content in members:
            opened.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


@cache
def _keras_seed() -> tuple[tuple[str, np.ndarray], ...]:
    parameters = tiny_keras().items()
    return tuple((f"{n.split('/')[0]}/{n}", np.asarray(value)) for n, value in parameters)


_SHAPES = ((0,), (1,), (64,), (), (1 << 20,), (1 << 27,), (1 << 28,), (1 << 40,), (1, 1, 3, 2))


def keras(choices: Choices, folder: Path) -> None:
    """Reads a Keras `.h5` file with links, unusual datasets and changed bytes."""
    path, elsewhere = folder / "x.h5", folder / "elsewhere.h5"
    if not elsewhere.exists():
        with h5py.File(elsewhere, "w") as file:
            file["secret"] = np.full(64, _SECRET, np.float32)
    whole = choices.one_in(10)
    members = list(_keras_seed()) if whole else list(_keras_seed()[:2])
    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        root = file
        if choices.one_in(4):
            root = file.create_group("model_weights")
            config = (
                '{"config":{"layers":[{"class_name":"AnchorBoxes","config":{"this_scale":0.1}}]}}'
            )
            file.attrs["model_config"] = values.text_of(values.mutated(config, choices))[:60_000]
        for name, value in members:
            root[name] = value
        for _ in range(choices.below(4)):
            _change_h5(root, choices, elsewhere)
        file.flush()
        data = file.id.get_file_image()
    if choices.one_in(4):
        data = damaged(data, choices)
    path.write_bytes(data)
    if whole:
        _check(read_foreign(path), most=1 << 24)
    else:
        found = read_keras(path).tensors
        assert not any((tensor == _SECRET).any() for tensor in found.values())
        assert sum(tensor.numel() for tensor in found.values()) <= 1 << 24


def _change_h5(root: h5py.Group, choices: Choices, elsewhere: Path) -> None:
    name = choices.pick(("conv1_1/conv1_1/kernel:0", "conv1_1/x", "new/new/bias:0", "y", "a/b/c/d"))
    if name in root:
        del root[name]
    match choices.below(9):
        case 0:
            root[name] = h5py.ExternalLink(str(elsewhere), "/secret")
        case 1:
            root[name] = h5py.SoftLink(choices.pick(("/", "/nowhere", "/conv1_1", ".")))
        case 2:
            root.create_dataset(name, (64,), "f4", external=[(str(elsewhere), 0, 256)])
        case 3:
            layout = h5py.VirtualLayout((64,), "f4")
            layout[:] = h5py.VirtualSource(str(elsewhere), "secret", shape=(64,))
            root.create_virtual_dataset(name, layout)
        case 4:
            shape = choices.pick(_SHAPES)
            kind, chunk = choices.pick(("f4", "f8", "f2")), choices.pick((1 << 20, 1 << 26, 8))
            most = (None,) * len(shape)
            chunks = (chunk,) + (1,) * (len(shape) - 1) if shape else None
            root.create_dataset(name, shape, kind, chunks=chunks, maxshape=most if shape else None)
        case 5:
            kind = choices.pick(("i8", "S5", "f2", "f8", "c8", "bool", ">f4"))
            root.create_dataset(name, data=np.zeros(8, kind))
        case 6:
            zipped = choices.pick(("gzip", "lzf"))
            root.create_dataset(name, data=np.zeros(1 << 16, np.float32), compression=zipped)
        case 7:
            group = root.require_group("z/z")
            group.pop("loop", None)
            group["loop"] = root
        case _:
            root.create_dataset(name, data=choices.pick((np.nan, np.inf, 1e300)))
