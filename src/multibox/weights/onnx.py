"""Writes a detector as one ONNX file, for runtimes other than PyTorch.

    images (B, H, W, 3) uint8 RGB  ->  boxes (B, K, 4), scores (B, K, C)

The ONNX network normalises the pixels and decodes the boxes. Boxes are xyxy in the unit frame of
the input. Scores are the softmax over the classes, without the background. The user applies
non-maximum suppression. Its thresholds are in the metadata, with the class names, the licence and
the other fields of a weights file's header.
"""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from multibox.errors import ConfigError
from multibox.ssd.coding import decode
from multibox.ssd.network import SSD

PACKAGES = ("onnx", "onnxscript")
"""Packages needed to write ONNX: `pip install 'multibox[onnx]'`."""


class _Exported(nn.Module):
    def __init__(self, network: SSD) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, images: UInt8[Tensor, "B H W 3"]
    ) -> tuple[Float[Tensor, "B K 4"], Float[Tensor, "B K C"]]:
        network = self.network
        output = network(images.permute(0, 3, 1, 2))
        boxes = decode(output.offsets, network.default_boxes, network.variances)
        if network.traits.clip_detections:
            boxes = boxes.clamp(0, 1)
        return boxes, output.logits.softmax(dim=2)[..., 1:]


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


def write_onnx(path: Path, network: SSD, header: Mapping[str, str]) -> None:
    """Writes a network with its default boxes, for any batch size.

    Args:
        path: The new file.
        network: A network in evaluation mode, on the CPU.
        header: Header of the weights file, which becomes the metadata.

    Raises:
        ConfigError: `PACKAGES` are not installed, or do not work with this version of PyTorch.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"writing ONNX needs {' and '.join(missing)}, which are not installed",
            remedy="Run pip install 'multibox[onnx]'",
        )
    height, width = network.image_size_px
    # Two images, because the exporter treats a batch size of 1 as a constant.
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    try:
        with _silence():
            program = torch.onnx.export(
                _Exported(network),
                (images,),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["boxes", "scores"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"PyTorch's exporter fails ({reason})",
            remedy="Install the versions of torch, onnx and onnxscript in constraints.txt",
        ) from error
    assert program is not None  # with dynamo=True
    model = program.model_proto
    settings = network.traits.detection
    for key, value in {**header, "suppression": json.dumps(settings._asdict())}.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
