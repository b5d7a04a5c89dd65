"""Quantises the graph of a network to 8 bits, with ranges measured on images."""

import logging
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import UInt8
from onnx import ModelProto, NodeProto

# Layers of the backbone and the heads. Normalisation, decoding and softmax stay float32.
_LAYERS = ["Conv", "Relu", "Clip", "Add", "MaxPool", "Resize"]


def quantised(network: ModelProto, images: Iterable[UInt8[np.ndarray, "H W 3"]]) -> ModelProto:
    """Returns the graph with 8-bit weights and activations in its convolutions.

    Weights have a scale for each channel. Outputs of the heads stay float32, because their range is
    too wide for 8 bits.

    Args:
        network: The graph that `network_graph` returns.
        images: The images whose activations give the ranges, in the size of the network's input.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self._images, None)
            return None if image is None else {"pixels": image[None]}

    heads = _heads(network)
    after = _downstream(network, heads)
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        path = Path(folder) / "int8.onnx"
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)
        try:
            quantize_static(
                network,
                path,
                Reader(),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=_LAYERS,
                nodes_to_exclude=[node.name for node in after],
            )
        finally:
            logging.root.setLevel(level)
        model = onnx.load(path)
    _restore_outputs(model, {node.output[0] for node in heads})
    return model


def _heads(network: ModelProto) -> list[NodeProto]:
    """Returns the convolutions that no other convolution depends on."""
    nodes = network.graph.node
    inner = {name for node in nodes if node.op_type == "Conv" for name in node.input}
    for node in reversed(nodes):
        if inner.intersection(node.output):
            inner.update(node.input)
    return [node for node in nodes if node.op_type == "Conv" and node.output[0] not in inner]


def _downstream(network: ModelProto, heads: list[NodeProto]) -> list[NodeProto]:
    """Returns the nodes that depend on the heads."""
    reached = {node.output[0] for node in heads}
    found = []
    for node in network.graph.node:
        if reached.intersection(node.input):
            reached.update(node.output)
            found.append(node)
    return found


def _restore_outputs(model: ModelProto, outputs: set[str]) -> None:
    """Removes the quantisation of some tensors."""
    nodes = model.graph.node
    narrow = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "QuantizeLinear" and node.input[0] in outputs
    }
    wide = {
        node.output[0]: narrow[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in narrow
    }
    kept = [node for node in nodes if not ({*narrow, *wide} & {*node.output})]
    for node in kept:
        for place, name in enumerate(node.input):
            node.input[place] = wide.get(name, name)
    del nodes[:]
    nodes.extend(kept)
