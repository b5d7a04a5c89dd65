"""SSD7 against a transcription of ssd_keras's."""

import numpy as np
import torch
from oracles import ssd7 as oracle
from torch import nn

from multibox.boxes import to_cxcywh
from multibox.build import build_network
from multibox.rng import stream
from multibox.ssd.coding import Variances

SIZES = ((37, 60), (18, 30), (9, 15), (4, 7))
CHANNELS = (3, 32, 48, 64, 64, 48, 48, 32)
NUM_CLASSES = 5
KINDS = {
    "kernel": "weight",
    "gamma": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def test_default_boxes_are_ssd_keras_s() -> None:
    network = build_network("ssd7", NUM_CLASSES)
    scales = zip(oracle.SCALES[:-1], oracle.SCALES[1:], strict=True)
    expected = [oracle.anchor_boxes(*size, *s) for size, s in zip(SIZES, scales, strict=True)]
    assert network.default_boxes.shape == (11_692, 4)
    found = to_cxcywh(network.default_boxes)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=3e-7)
    assert network.variances == Variances(1.0, 1.0)
    assert network.image_size_px == (300, 480)


def weights_of_keras() -> dict[str, np.ndarray]:
    rng = stream(0, "ssd7")
    shapes = {}
    for block in range(1, 8):
        inputs, outputs, side = CHANNELS[block - 1], CHANNELS[block], 5 if block == 1 else 3
        shapes[f"conv{block}/kernel"] = (side, side, inputs, outputs)
        shapes[f"conv{block}/bias"] = (outputs,)
        for kind in ("gamma", "beta", "moving_mean", "moving_variance"):
            shapes[f"bn{block}/{kind}"] = (outputs,)
        for head, width in (("classes", 4 * (NUM_CLASSES + 1)), ("boxes", 4 * 4)):
            if block >= 4:
                shapes[f"{head}{block}/kernel"] = (3, 3, outputs, width)
                shapes[f"{head}{block}/bias"] = (width,)
    found = {name: rng.uniform(-1, 1, shape).astype("float32") for name, shape in shapes.items()}
    for name, value in found.items():
        if name.endswith("kernel"):
            value /= np.float32(np.sqrt(np.prod(value.shape[:3]) / 3))
        elif name.endswith(("gamma", "variance")):
            value += np.float32(1.2)
    return found


def in_our_names(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in weights.items():
        layer, kind = name.split("/")
        for head, ours in (("classes", "logit_heads"), ("boxes", "offset_heads")):
            if layer.startswith(head):
                layer = f"{ours}.{int(layer.removeprefix(head)) - 4}"
        layer = layer if "heads" in layer else f"backbone.{layer}"
        tensor = torch.from_numpy(value)
        state[f"{layer}.{KINDS[kind]}"] = tensor.permute(3, 2, 0, 1) if value.ndim == 4 else tensor
    return state


def test_forward_is_ssd_keras_s() -> None:
    weights = weights_of_keras()
    network = build_network("ssd7", NUM_CLASSES).eval()
    missing, unknown = network.load_state_dict(in_our_names(weights), strict=False)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)
    pixels = stream(1, "ssd7").integers(0, 256, (300, 480, 3), dtype="uint8")
    with torch.inference_mode():
        output = network(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0))
    offsets, logits = oracle.forward(weights, pixels.astype("float32"))
    assert offsets.std() > 0.1
    np.testing.assert_allclose(output.offsets[0], offsets, rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.logits[0], logits, rtol=0, atol=1e-4)


def test_running_statistics_move_by_a_hundredth() -> None:
    norms = [m for m in build_network("ssd7", 1).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 7
    for norm in norms:
        norm(torch.full((2, norm.num_features, 2, 2), 50.0))
        torch.testing.assert_close(norm.running_mean, torch.full_like(norm.running_mean, 0.5))
