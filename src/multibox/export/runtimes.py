"""Opens exported files with ONNX Runtime and OpenVINO, on the CPU.

A file may come from anyone. It must be complete in itself, of limited size, and have only operators
of the standard without loops, before the runtime sees it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring
from jaxtyping import UInt8

from multibox.errors import WeightsError
from multibox.export.files import PIXELS, SECTION, SUFFIXES, openvino, require
from multibox.structures import Detections
from multibox.weights.files import FORMAT, NO_LICENCE
from multibox.weights.score_threshold import read_threshold

_MAX_BYTES = 1 << 30
_MAX_XML_BYTES = 1 << 26
_MAX_SIDE_PX = 4096
_LOOPS = {"If", "Loop", "Scan", "SequenceMap", "TensorIterator"}
_EXPORT = "Export the run again with multibox export"

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""Returns boxes (B, N, 4), scores (B, N) and labels (B, N) of images (B, H, W, 3)."""

Use = Literal["one", "batch", "resizing"]
"""What a graph is compiled for: one image of the network's input size, a batch of such images, or
images of any size. Fixed shapes save OpenVINO a seventh of a small network's time."""


class ExportedDetector:
    """A detector in an exported file, on the CPU.

    Attributes:
        classes: Class names in the order of the labels.
        image_size_px: (height, width) of the network's input. Images of this size need no resizing.
        header: The metadata of the file.
        licence: Terms of use.
        score_threshold: The score threshold that the file stores, or None.
    """

    def __init__(self, run: Run, header: Mapping[str, str], file: Path) -> None:
        self.header, self._run, self._file = dict(header), run, file
        self.classes, self.image_size_px = _checked(self.header, file)
        self.licence = self.header.get("licence", NO_LICENCE)
        self.score_threshold = read_threshold(self.header, file)

    def detect(
        self, images: UInt8[np.ndarray, "B H W 3"], *, score_threshold: float = 0.0
    ) -> list[Detections]:
        """Returns the detections in each image, with boxes in the unit frame, clipped to it.

        Args:
            images: RGB images of any size.
            score_threshold: Detections with a lower score are left out.

        Raises:
            WeightsError: The file does not compute detections.
        """
        height, width = images.shape[1:3]
        try:
            boxes, scores, labels = (np.array(each) for each in self._run(images))
        # Each runtime has errors of its own, without a common base.
        except Exception as error:
            raise WeightsError(f"cannot be run ({_first_line(error)})", file=self._file) from error
        rows = (len(images), boxes.shape[1] if boxes.ndim == 3 else -1)
        sound = (
            (boxes.shape, scores.shape, labels.shape) == ((*rows, 4), rows, rows)
            and bool(np.isfinite(boxes).all() and np.isfinite(scores).all())
            and bool((labels < len(self.classes)).all())
        )
        if not sound:
            raise WeightsError("does not return detections", file=self._file, remedy=_EXPORT)
        unit = boxes.astype(np.float32) / np.array([width, height, width, height], np.float32)
        found = []
        for box, score, label in zip(unit, scores.astype(np.float32), labels, strict=True):
            kept = (label >= 0) & (score >= np.float32(score_threshold))
            found.append(
                Detections(
                    *(torch.from_numpy(x[kept]) for x in (box, score, label.astype(np.int64)))
                )
            )
        return found


def is_exported(path: Path) -> bool:
    """Returns whether a path has the suffix of an exported file: .onnx or .xml."""
    return path.suffix.lower() in SUFFIXES.values()


def open_exported(path: Path) -> ExportedDetector:
    """Opens an exported file.

    Args:
        path: An .onnx file, or the .xml of an OpenVINO pair.

    Raises:
        WeightsError: The file does not exist, is damaged, or was not written by `export`.
        ConfigError: The runtime's package is not installed.
    """
    if path.suffix.lower() == ".onnx":
        require("onnx", ["onnx", "onnxruntime"])
        return _open_onnx(path)
    require("openvino", ["openvino"])
    return _open_openvino(path)


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None
    if len(data) > most:
        raise WeightsError(f"has more than {most} bytes, which is the limit", file=path)
    return data


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]


def _open_onnx(path: Path) -> ExportedDetector:
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    data = _read(path, _MAX_BYTES)
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise WeightsError(f"is not an ONNX file ({error})", file=path) from None
    header = {prop.key: prop.value for prop in model.metadata_props}
    _checked(header, path)
    if model.functions:
        raise WeightsError("has functions, which export does not write", file=path, remedy=_EXPORT)
    _check_nodes(model.graph, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4

    # Fixed shapes do not make ONNX Runtime faster.
    @cache
    def start(resizing: bool) -> Run:
        content = data if resizing else _without_resizing(data)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        return lambda images: session.run(None, {given.name: images})

    return _opened(lambda use: start(use == "resizing"), header, path)


def _without_resizing(data: bytes) -> bytes:
    """Returns a model for images of the network's input size."""
    import onnx

    model = onnx.ModelProto.FromString(data)
    images = model.graph.input[0].name
    for node in model.graph.node:
        if PIXELS in node.output:
            node.CopyFrom(onnx.helper.make_node("Identity", [images], [PIXELS]))
    # The runtime would compute the resizing although nothing uses it.
    used = {output.name for output in model.graph.output}
    for node in reversed([*model.graph.node]):
        if used.isdisjoint(node.output):
            model.graph.node.remove(node)
        else:
            used.update(node.input)
    content: bytes = model.SerializeToString()
    return content


def _opened(start: Callable[[Use], Run], header: Mapping[str, str], path: Path) -> ExportedDetector:
    """Returns a detector. Images of the network's input size skip the resizing in the graph.

    Args:
        start: Compiles the graph.
        header: The metadata.
        path: The file.
    """
    size = _checked(header, path)[1]
    start = cache(start)
    try:
        start("one")
    except Exception as error:
        raise WeightsError(f"cannot be opened ({_first_line(error)})", file=path) from error

    def run(images: np.ndarray) -> Sequence[np.ndarray]:
        if images.shape[1:3] != size:
            return start("resizing")(images)
        return start("one" if len(images) == 1 else "batch")(images)

    return ExportedDetector(run, header, path)


def _check_nodes(graph: Any, file: Path) -> None:
    """Checks the nodes and tensors of a graph.

    Raises:
        WeightsError: A tensor refers to another file, or a node has an operator that `export` does
            not write.
    """
    tensors = [*graph.initializer]
    for node in graph.node:
        graphs = any(each.HasField("g") or each.graphs for each in node.attribute)
        if node.domain not in ("", "ai.onnx") or node.op_type in _LOOPS or graphs:
            raise WeightsError(
                f"has the operator {node.domain}:{node.op_type}, which is not allowed",
                file=file,
                position=node.name or None,
                remedy=_EXPORT,
            )
        tensors += [t for each in node.attribute for t in (each.t, *each.tensors)]
        if any(each.HasField("sparse_tensor") for each in node.attribute):
            raise WeightsError("has a sparse tensor", file=file, remedy=_EXPORT)
    if graph.sparse_initializer:
        raise WeightsError("has a sparse tensor", file=file, remedy=_EXPORT)
    for tensor in tensors:
        if tensor.external_data or tensor.data_location:
            raise WeightsError(
                "refers to another file, which is not allowed",
                file=file,
                position=f"tensor {tensor.name}",
                remedy=_EXPORT,
            )


def _open_openvino(path: Path) -> ExportedDetector:
    data, numbers = _read(path, _MAX_XML_BYTES), path.with_suffix(".bin")
    try:
        most = numbers.stat().st_size
    except OSError as error:
        raise WeightsError(
            f"cannot be read ({error.strerror})",
            file=numbers,
            remedy="Keep the .bin file beside the .xml file",
        ) from None
    if most > _MAX_BYTES:
        raise WeightsError(f"has more than {_MAX_BYTES} bytes, which is the limit", file=numbers)
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException:
        raise WeightsError("has a DTD, which is not allowed", file=path) from None
    except (ParseError, ValueError, LookupError) as error:
        raise WeightsError(f"is not XML ({error})", file=path) from None
    section = root.find(f"rt_info/{SECTION}")
    header = {} if section is None else {each.tag: each.get("value", "") for each in section}
    size = _checked(header, path)[1]
    for layer in root.iter("layer"):
        position = f"layer {layer.get('name')}"
        if layer.get("type") in _LOOPS:
            raise WeightsError("has a loop or a branch", file=path, position=position)
        for constant in layer.findall("data[@offset]"):
            ends = [constant.get(key, "") for key in ("offset", "size")]
            if (
                not all(re.fullmatch(r"\d{1,12}", end) for end in ends)
                or sum(map(int, ends)) > most
            ):
                raise WeightsError("refers beyond the .bin file", file=path, position=position)
    package = openvino()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if header.get("precision") != "fp16":
        # By default, OpenVINO computes in bfloat16 or float16 if the processor can.
        options["INFERENCE_PRECISION_HINT"] = "f32"

    def start(use: Use) -> Run:
        core = package.Core()
        model = core.read_model(path)
        if use != "resizing":
            model = _cut(model, size)
        if use == "one":
            model.reshape([1, *size, 3])
        compiled = core.compile_model(model, "CPU", options)
        return lambda images: [*compiled([images]).values()]

    return _opened(start, header, path)


def _cut(model: Any, size: tuple[int, int]) -> Any:
    """Returns a model for images of the network's input size, which need no resizing."""
    package = openvino()
    (images,) = model.get_parameters()
    pixels = next(node for node in model.get_ops() if node.get_friendly_name() == PIXELS)
    shape = package.PartialShape([-1, *size, 3])
    given = package.opset13.parameter(shape, np.uint8)
    for node in (images, pixels):
        for target in node.output(0).get_target_inputs():
            target.replace_source_output(given.output(0))
    return package.Model(model.get_results(), [given], "detector")


def _checked(header: Mapping[str, str], file: Path) -> tuple[tuple[str, ...], tuple[int, int]]:
    """Returns the class names and the input size, (height, width), in the metadata of a file."""
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"has metadata of the format {header.get('format')!r}, not {FORMAT!r}",
            file=file,
            remedy="Use a file that multibox export wrote",
        )
    try:
        classes, size = json.loads(header["classes"]), json.loads(header["image_size"])
        sound = (
            isinstance(classes, list)
            and all(isinstance(name, str) and name for name in classes)
            and len(set(classes)) == len(classes) > 0
            and isinstance(size, list)
            and len(size) == 2
            and all(type(side) is int and 1 <= side <= _MAX_SIDE_PX for side in size)
        )
    except (KeyError, ValueError, RecursionError):
        sound = False
    if not sound:
        raise WeightsError("has damaged metadata", file=file, remedy=_EXPORT)
    return tuple(classes), (size[0], size[1])
