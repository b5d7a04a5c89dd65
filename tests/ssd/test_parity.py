"""The originals' forward passes, with the weights and the image that parity/fill.py computes."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from multibox.build import build_network
from multibox.ssd.network import Traits

TRUNK = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7"),
)
EXTRA = tuple(f"conv{block}_{place}" for block in (6, 7, 8, 9) for place in (1, 2))
SOURCES = ("conv4_3_norm", "fc7", "conv6_2", "conv7_2", "conv8_2", "conv9_2")
VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)


def numbered(prefix: str, numbers: Iterable[object] = range(6)) -> list[str]:
    return [f"{prefix}.{number}" for number in numbers]


# The same layers in the same order: trunk, extra, offset heads, logit heads, L2 normalisation.
OURS = [
    *(f"backbone.trunk.{name}.conv" for name in TRUNK),
    *(f"backbone.extra.{name}.conv" for name in EXTRA),
    *numbered("offset_heads"),
    *numbered("logit_heads"),
    "backbone.conv4_3_norm",
]
THEIRS = {
    "ssd_pytorch_ssd300": [
        *numbered("vgg", VGG),
        *numbered("extras", range(8)),
        *numbered("loc"),
        *numbered("conf"),
        "L2Norm",
    ],
    "lufficc_ssd300": [
        *numbered("backbone.vgg", VGG),
        *numbered("backbone.extras", range(8)),
        *numbered("box_head.predictor.reg_headers"),
        *numbered("box_head.predictor.cls_headers"),
        "backbone.l2_norm",
    ],
    "torchvision_ssd300_vgg16": [
        *numbered("backbone.features", VGG[:10]),
        *numbered("backbone.extra.0", ("1", "3", "5", "7.1", "7.3")),
        *numbered(
            "backbone.extra", (f"{block}.{place}" for block in range(1, 5) for place in (0, 2))
        ),
        *numbered("head.regression_head.module_list"),
        *numbered("head.classification_head.module_list"),
        "backbone.scale",
    ],
    "ssd_keras_ssd300": [
        *TRUNK,
        *EXTRA,
        *(f"{source}_mbox_loc" for source in SOURCES),
        *(f"{source}_mbox_conf" for source in SOURCES),
        "conv4_3_norm",
    ],
}
NAMES = {
    "backbone.scale_weight": "backbone.scale.weight",
    "conv4_3_norm/conv4_3_norm_gamma:0": "conv4_3_norm.weight",
}
TRAITS = {
    "ssd_pytorch_ssd300": Traits(clip="centre"),
    "lufficc_ssd300": Traits(clip="centre"),
    # The mean of pixels in 0..1 (`GeneralizedRCNNTransform`), here of 0..255.
    "torchvision_ssd300_vgg16": Traits(
        mean_rgb=(0.48235 * 255, 0.45882 * 255, 0.40784 * 255),
        scales="coco",
        clip="sides",
        clip_detections=True,
    ),
    "ssd_keras_ssd300": Traits(),
}


def in_our_names(original: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """An original's parameters as a state of our network."""
    found = {}
    for name, value in parameters.items():
        if value.ndim == 4 and name.endswith("/kernel:0"):
            value = value.permute(3, 2, 0, 1)
            if name.startswith("conv1_1/"):
                value = value.flip(1)  # from blue, green, red
        name = NAMES.get(name, name).replace("/kernel:0", ".weight").replace("/bias:0", ".bias")
        prefix, _, kind = name.rpartition(".")
        found[f"{OURS[THEIRS[original].index(prefix)]}.{kind}"] = value
    return found


@pytest.fixture(scope="module")
def fill(shared: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", shared / "parity/fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("original", THEIRS)
def test_forward_is_the_original_s(shared: Path, fill: ModuleType, original: str) -> None:
    network = build_network("ssd300-vgg16", 20, TRAITS[original])
    network.load_state_dict(in_our_names(original, fill.parameters(original)), strict=True)
    with torch.inference_mode():
        output = network(fill.image().unsqueeze(0) * 255)
        (found,) = network.detect(output)
    stored = np.load(shared / f"parity/{original}_outputs.npz")
    offsets, logits = output.offsets[0], output.logits[0]
    if original == "ssd_keras_ssd300":
        expected = stored["y_pred"][:, 21:25], stored["y_pred"][:, :21]
        logits = logits.softmax(dim=1)
    elif original == "torchvision_ssd300_vgg16":
        expected = stored["bbox_regression"], stored["cls_logits"]
        np.testing.assert_array_equal(found.labels + 1, stored["det_labels"])
        np.testing.assert_allclose(found.scores, stored["det_scores"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes * 300, stored["det_boxes"], rtol=0, atol=1e-2)
    else:
        expected = stored["loc"], stored["conf"]
    np.testing.assert_allclose(offsets, expected[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, expected[1], rtol=0, atol=1e-4)
