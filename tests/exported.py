"""A tiny detector as a weights file, and exported files of it, for tests."""

from pathlib import Path
from unittest import mock

import jaxtyping
import safetensors.torch
import torch
from tiny import FITTED, TINY, tiny_network

from multibox import build
from multibox.export import files
from multibox.export.files import Format, Precision
from multibox.weights.files import checked_header, make_header, read_weights

CLASSES = ("cat", "dog")


def write_weights(path: Path) -> Path:
    network = tiny_network(fitted=FITTED)
    header = make_header(network, "tiny", CLASSES, "CC0", 0.25)
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, path, header)
    return path


def write_exported(folder: Path, target: Format, precision: Precision = "fp32") -> Path:
    """Writes an exported file without the comparison."""
    path = folder / f"tiny-{precision}{files.SUFFIXES[target]}"
    rng = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (64, 64, 3), generator=rng, dtype=torch.uint8).numpy()
        for _ in range(4)
    ]
    # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
    with (
        mock.patch.dict(build.NETWORKS, {"tiny": TINY}),
        mock.patch.object(jaxtyping.config, "jaxtyping_disable", True),
    ):
        model = files.build(tiny_network(fitted=FITTED).eval(), target, precision, images)
        header = checked_header(read_weights(write_weights(folder / "weights.safetensors")))
        files.write(model, path, target, precision, header)
    return path
