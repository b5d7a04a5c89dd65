"""Writes the network of a detector as an ONNX graph, with PyTorch's exporter.

    pixels (B, H, W, 3) uint8 RGB  ->  unit_boxes (B, K, 4), class_scores (B, K, C)

The graph normalises the pixels and decodes the boxes, which are xyxy in the unit frame. The scores
are the softmax over the classes, without the background.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, UInt8
from onnx import ModelProto
from torch import Tensor, nn

from multibox.errors import ConfigError
from multibox.ssd.coding import decode
from multibox.ssd.network import SSD


class _Exported(nn.Module):
    def __init__(self, network: SSD) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, pixels: UInt8[Tensor, "B H W 3"]
    ) -> tuple[Float[Tensor, "B K 4"], Float[Tensor, "B K C"]]:
        network = self.network
        output = network(pixels.permute(0, 3, 1, 2))
        boxes = decode(output.offsets.float(), network.default_boxes, network.variances)
        if network.traits.clip_detections:
            boxes = boxes.clamp(0, 1)
        return boxes, output.logits.float().softmax(dim=2)[..., 1:]


class _HalfBackbone(nn.Module):
    """A backbone that computes in float16, with its input as float32."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone.half()

    def forward(self, images: Tensor) -> list[Tensor]:
        return cast(list[Tensor], self.backbone(images.half()))


def halved(network: SSD) -> SSD:
    """Returns a copy with layers in float16. Pixels, boxes and scores stay in float32."""
    copied = copy.deepcopy(network)
    copied.offset_heads.half()
    copied.logit_heads.half()
    copied.backbone = _HalfBackbone(copied.backbone)
    return copied


@contextmanager
def _silence() -> Iterator[None]:
    """Hides the exporter's own warnings, e.g. that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def network_graph(network: SSD) -> ModelProto:
    """Returns the ONNX graph of a network with its default boxes, for any batch size.

    Args:
        network: A network in evaluation mode, on the CPU.

    Raises:
        ConfigError: The exporter does not work with these versions of PyTorch and ONNX.
    """
    height, width = network.image_size_px
    # Two images, because the exporter treats a batch size of 1 as a constant.
    pixels = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    try:
        with _silence():
            program = torch.onnx.export(
                _Exported(network),
                (pixels,),
                dynamo=True,
                verbose=False,
                input_names=["pixels"],
                output_names=["unit_boxes", "class_scores"],
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"PyTorch's exporter fails ({reason})",
            remedy="Install the versions of torch, onnx and onnxscript in constraints.txt",
        ) from error
    model: Any = program.model_proto  # type: ignore[union-attr]  # not None with dynamo=True
    return cast(ModelProto, model)
