import math
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.boxes import to_cxcywh
from multibox.ssd.default_boxes import (
    SSD300_COCO,
    SSD300_VOC,
    SSD512_VOC,
    Level,
    default_boxes,
)


@pytest.fixture(scope="module")
def ssd300() -> torch.Tensor:
    return default_boxes(SSD300_VOC, 300)


def test_table_of_ssd300_is_ssd_keras_s(shared: Path, ssd300: torch.Tensor) -> None:
    theirs = np.load(shared / "parity/ssd_keras_matching.npz")["default_boxes_cxcywh"]
    assert ssd300.dtype == torch.float32
    np.testing.assert_allclose(to_cxcywh(ssd300), theirs, rtol=0, atol=2e-7)
    prediction = np.load(shared / "parity/ssd_keras_ssd300_outputs.npz")["y_pred"]
    np.testing.assert_allclose(to_cxcywh(ssd300), prediction[:, 25:29], rtol=0, atol=2e-7)


@pytest.mark.parametrize("port", ["ssd_pytorch_ssd300", "lufficc_ssd300"])
def test_ports_that_clamp_differ_in_134_boxes(
    shared: Path, ssd300: torch.Tensor, port: str
) -> None:
    theirs = torch.from_numpy(np.load(shared / f"parity/{port}_outputs.npz")["priors_cxcywh"])
    ours = to_cxcywh(ssd300)
    np.testing.assert_allclose(ours.clamp(0, 1), theirs, rtol=0, atol=2e-7)
    assert int(((ours - theirs).abs() > 1e-5).any(dim=1).sum()) == 134


def test_table_of_ssd300_for_coco_is_torchvision_s(shared: Path) -> None:
    outputs = np.load(shared / "parity/torchvision_ssd300_vgg16_outputs.npz")
    theirs = to_cxcywh(torch.from_numpy(outputs["anchors_xyxy_px"]) / 300)
    ours = to_cxcywh(default_boxes(SSD300_COCO, 300))
    ours[:, 2:].clamp_(max=1)  # as theirs, whose centres are not clamped
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_first_cell_of_ssd300(ssd300: torch.Tensor) -> None:
    # Centre (4, 4); sides 30, sqrt(30 * 60) and 30 sqrt(2) by 30 / sqrt(2).
    middle, wide, narrow = math.sqrt(1800), 30 * math.sqrt(2), 30 / math.sqrt(2)
    sides = torch.tensor([(30, 30), (middle, middle), (wide, narrow), (narrow, wide)])
    expected = torch.cat([4 - sides / 2, 4 + sides / 2], dim=1) / 300
    torch.testing.assert_close(ssd300[:4], expected, rtol=0, atol=1e-7)


def test_boxes_of_ssd300_reach_beyond_the_image(ssd300: torch.Tensor) -> None:
    crossing = ((ssd300 < 0) | (ssd300 > 1)).any(dim=1)
    assert int(crossing.sum()) == 2869
    # conv6_2's last centres, 9.5 steps of 32 pixels, are outside altogether.
    assert to_cxcywh(ssd300)[:, :2].max() == pytest.approx(304 / 300)


@pytest.mark.parametrize(
    ("levels", "size", "counts"),
    [
        (SSD300_VOC, 300, [5776, 2166, 600, 150, 36, 4]),
        (SSD300_COCO, 300, [5776, 2166, 600, 150, 36, 4]),
        (SSD512_VOC, 512, [16384, 6144, 1536, 384, 96, 16, 4]),
    ],
)
def test_counts(levels: tuple[Level, ...], size: int, counts: list[int]) -> None:
    assert [level.cells**2 * level.boxes_per_cell for level in levels] == counts
    boxes = default_boxes(levels, size)
    assert boxes.shape == (sum(counts), 4)
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


def test_sizes_of_ssd512_are_cut_to_whole_pixels() -> None:
    sides = [level.shapes_px()[0][0] for level in SSD512_VOC]
    middles = [level.shapes_px()[1][0] for level in SSD512_VOC]
    assert sides == [35, 76, 153, 230, 307, 384, 460]
    expected = [51.575, 107.833, 187.590, 265.725, 343.348, 420.286, 497.011]
    assert middles == pytest.approx(expected, abs=6e-4)


def test_order_is_rows_then_columns_then_shapes() -> None:
    levels = (Level(2, 50, 10, 40, (2,)), Level(1, 100, 40, 90, (2, 3)))
    boxes = to_cxcywh(default_boxes(levels, 100)) * 100
    centres = [(25, 25)] * 4 + [(75, 25)] * 4 + [(25, 75)] * 4 + [(75, 75)] * 4 + [(50, 50)] * 6
    torch.testing.assert_close(boxes[:, :2], torch.tensor(centres, dtype=torch.float32))
    ratios = torch.tensor([*[1, 1, 2, 1 / 2] * 4, 1, 1, 2, 1 / 2, 3, 1 / 3])
    torch.testing.assert_close(boxes[:, 2] / boxes[:, 3], ratios)
    # All shapes but the second have the area of the first.
    areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    assert areas == pytest.approx([100, 400, 100, 100] * 4 + [1600, 3600, *[1600] * 4], rel=1e-5)
