"""Writes exported files: ONNX, and OpenVINO's pair of .xml and .bin."""

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from multibox.errors import ConfigError
from multibox.ssd.network import SSD

if TYPE_CHECKING:
    from onnx import ModelProto

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "fp16", "int8"]

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}
PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxruntime", "onnxscript", "openvino"),
}
"""Packages that a format needs: `pip install 'multibox[onnx]'` or `'multibox[openvino]'`."""

PIXELS = "pixels"
"""Name of the tensor with the resized images in the graph."""

SECTION = "multibox"
"""Name of the metadata in an OpenVINO file (`rt_info`)."""


def require(format_: Format, packages: Iterable[str] | None = None) -> None:
    """Checks that packages are installed.

    Args:
        format_: The format.
        packages: Names of modules. None: `PACKAGES` of the format.

    Raises:
        ConfigError: One of them is not installed.
    """
    names = PACKAGES[format_] if packages is None else packages
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            remedy=f"Run pip install 'multibox[{format_}]'",
        )


def openvino() -> ModuleType:
    """Returns the package `openvino`, which cannot send telemetry.

    The package reports each import and each conversion through the package `openvino_telemetry`,
    unless it is not installed. Here it is hidden, for the whole process.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's convention
    import openvino

    module: ModuleType = openvino
    return module


def build(
    network: SSD,
    format_: Format,
    precision: Precision,
    images: Iterable[UInt8[np.ndarray, "H W 3"]],
) -> "ModelProto":
    """Returns the whole ONNX graph of a detector.

    Args:
        network: A network in evaluation mode, on the CPU.
        format_: The format that the graph is for.
        precision: The number format of the layers. OpenVINO halves the numbers when it saves.
        images: Images to measure the ranges for int8 on, in the size of the network's input.

    Raises:
        ConfigError: A package is not installed or does not work.
    """
    require(format_)
    from multibox.export.graph import detector_graph
    from multibox.export.int8 import quantised
    from multibox.export.network import halved, network_graph

    half = precision == "fp16" and format_ == "onnx"
    inner = network_graph(halved(network) if half else network)
    if precision == "int8":
        inner = quantised(inner, images)
    return detector_graph(
        inner,
        network.image_size_px,
        (len(network.default_boxes), network.num_classes),
        network.traits.detection,
    )


def write(
    model: "ModelProto",
    path: Path,
    format_: Format,
    precision: Precision,
    header: Mapping[str, str],
) -> None:
    """Writes a graph with its metadata. OpenVINO's .bin comes to lie beside the .xml.

    Args:
        model: The graph that `build` returns.
        path: The new file.
        format_: Its format.
        precision: `fp16` halves the numbers of an OpenVINO file.
        header: The metadata.
    """
    if format_ == "onnx":
        del model.metadata_props[:]
        for key, value in header.items():
            model.metadata_props.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
        return
    package = openvino()
    converted = package.Core().read_model(model.SerializeToString())
    for key, value in header.items():
        converted.set_rt_info(value, [SECTION, key])
    package.save_model(converted, path, compress_to_fp16=precision == "fp16")
