"""mmdetection's SSD300 and SSD512 against results of the original code."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from foreign_files import load_fill, mmdetection_shapes, tiny_mmdetection
from torch import Tensor

from multibox.errors import WeightsError
from multibox.ssd.coding import decode
from multibox.ssd.detect import DetectionSettings, detect
from multibox.weights.class_names import COCO, VOC
from multibox.weights.files import load_network, read_weights
from multibox.weights.foreign import read_foreign

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fill(shared: Path) -> ModuleType:
    return load_fill(shared)


def parameters(fill: ModuleType, side: int) -> dict[str, Tensor]:
    state = {}
    for name, shape in mmdetection_shapes(side).items():
        state[name] = fill.parameter(name, shape)
        if name == "neck.l2_norm.weight":
            state[name] = (20 + 0.1 * fill.noise(name, shape)).to(torch.float32)
    return state


def image(side: int) -> Tensor:
    """The formula of `fill.image`, for any size; RGB in 0..255."""
    line = torch.arange(side, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    waves = [torch.sin(x / (9 + 3 * k) + k) * torch.cos(y / (13 - 2 * k) - k) for k in range(3)]
    return (0.5 + 0.5 * torch.stack(waves)).to(torch.float32) * 255


@pytest.mark.parametrize(("side", "step"), [(300, 37), (512, 101)])
def test_it_computes_what_mmdetection_did(
    fill: ModuleType, tmp_path: Path, side: int, step: int
) -> None:
    """`mmdetection_outputs.npz` was computed by mmdetection 2.28.2 with mmcv 1.7.2 on a CPU.

    The network was built from `configs/ssd/ssd*_coco.py` and filled with `parameters`. It contains
    every `step`-th row of the outputs, the default boxes and decoded boxes in pixels, and the
    detections above 0.3. mmcv's compiled suppression was replaced by a greedy loop over all boxes.
    """
    stored = np.load(Path(__file__).with_name("mmdetection_outputs.npz"))
    path = tmp_path / "ssd.pth"
    torch.save({"meta": {"CLASSES": COCO}, "state_dict": parameters(fill, side)}, path)
    weights = read_weights(path)
    assert (weights.network, weights.classes) == (f"ssd{side}-vgg16", COCO)
    assert weights.notes == ()
    network = load_network(weights, CPU)
    with torch.inference_mode():
        output = network(image(side).unsqueeze(0))
    rows = slice(None, None, step)
    boxes = network.default_boxes[rows] * side
    np.testing.assert_allclose(boxes, stored[f"default_boxes_{side}"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        output.offsets[0, rows], stored[f"offsets_{side}"], rtol=0, atol=1e-4
    )
    # The original's last class is the background.
    logits = np.roll(stored[f"logits_{side}"], 1, axis=1)
    np.testing.assert_allclose(output.logits[0, rows], logits, rtol=0, atol=1e-4)
    decoded = decode(output.offsets[0, rows], network.default_boxes[rows], network.variances)
    decoded = decoded.clamp(0, 1) * side
    np.testing.assert_allclose(decoded, stored[f"boxes_{side}"], rtol=0, atol=1e-2)
    assert network.traits.clip_detections
    settings = DetectionSettings(score_threshold=0.3, clip=True)
    (found,) = detect(output, network.default_boxes, settings, network.variances)
    expected = stored[f"detections_{side}"]
    np.testing.assert_array_equal(found.labels, stored[f"labels_{side}"])
    np.testing.assert_allclose(found.scores, expected[:, 4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.boxes * side, expected[:, :4], rtol=0, atol=1e-2)


def saved(folder: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"state_dict": state}, folder / "ssd.pth")
    return folder / "ssd.pth"


@pytest.mark.parametrize(
    ("side", "classes", "scales", "guessed"),
    [
        (300, 80, "coco", False),
        (512, 80, "coco", False),
        (300, 20, "voc", False),
        (512, 20, "voc", False),
        (300, 3, "coco", True),
    ],
)
def test_the_number_of_classes_decides_the_default_boxes(
    tmp_path: Path, side: int, classes: int, scales: str, guessed: bool
) -> None:
    names = VOC if classes == 20 else COCO[:classes]
    given = names if classes == 3 else ()
    found = read_foreign(saved(tmp_path, tiny_mmdetection(side, classes)), classes=given)
    assert (found.network, found.classes) == (f"ssd{side}-vgg16", names)
    assert (found.traits.scales, found.traits.whole_scales) == (scales, True)
    assert any(f"{scales} is assumed" in note for note in found.notes) == guessed


def test_the_last_output_of_each_box_becomes_the_first(tmp_path: Path) -> None:
    state = tiny_mmdetection(classes=2)
    state["bbox_head.cls_convs.0.0.bias"] = torch.arange(12.0)
    found = read_foreign(saved(tmp_path, state), classes=("cat", "dog"))
    bias = found.tensors["logit_heads.0.bias"]
    assert bias.tolist() == [2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10]


def test_a_state_dict_before_version_2_15_is_refused(tmp_path: Path) -> None:
    state = tiny_mmdetection()
    old = {name.replace("convs.0.0.", "convs.0."): tensor for name, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"before 2\.15.*upgrade_ssd_version\.py"):
        read_foreign(saved(tmp_path, old))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("bbox_head.cls_convs.1.0.weight", torch.ones(125, 1), "number of outputs of an SSD"),
        ("bbox_head.cls_convs.1.0.bias", torch.tensor(1.0), "number of outputs of an SSD"),
        ("bbox_head.cls_convs.1.0.bias", torch.ones(0), "number of outputs of an SSD"),
        ("bbox_head.reg_convs.2.0.weight", torch.tensor(1.0), "number of outputs of an SSD"),
        ("bbox_head.reg_convs.2.0.weight", None, "number of outputs of an SSD"),
        ("bbox_head.cls_convs.2.0.weight", None, "heads of 2 feature maps"),
        ("bbox_head.cls_convs.0.0.weight", None, "heads of 0 feature maps"),
        ("neck.l2_norm.weight", None, "lacks conv4_3_norm"),
        ("neck.bottom_up.weight", torch.ones(1), "has unknown neck.bottom_up.weight"),
        ("rpn_head.rpn_cls.weight", torch.ones(1), "has unknown rpn_head.rpn_cls.weight"),
    ],
)
def test_other_models_are_refused(
    tmp_path: Path, name: str, value: Tensor | None, reason: str
) -> None:
    state = {**tiny_mmdetection(), name: value}
    path = saved(tmp_path, {key: tensor for key, tensor in state.items() if tensor is not None})
    with pytest.raises(WeightsError, match=reason):
        read_foreign(path)
