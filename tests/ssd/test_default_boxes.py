import math
from pathlib import Path

import numpy as np
import pytest
import torch

from multibox.boxes import to_cxcywh
from multibox.ssd.default_boxes import (
    MOBILENET_CAFFE_LEVELS,
    RESNET10_LEVELS,
    SSD7_LEVELS,
    SSD300_COCO,
    SSD300_MOBILENET,
    SSD300_VOC,
    SSD384_COCO,
    SSD512_COCO,
    SSD512_VOC,
    Level,
    default_boxes,
)


@pytest.fixture(scope="module")
def ssd300() -> torch.Tensor:
    return default_boxes(SSD300_VOC, (300, 300))


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
    ours = default_boxes(SSD300_VOC, (300, 300), "centre")
    np.testing.assert_allclose(to_cxcywh(ours), theirs, rtol=0, atol=2e-7)
    assert int(((to_cxcywh(ssd300) - theirs).abs() > 1e-5).any(dim=1).sum()) == 134


def test_table_of_ssd300_for_coco_is_torchvision_s(shared: Path) -> None:
    outputs = np.load(shared / "parity/torchvision_ssd300_vgg16_outputs.npz")
    ours = default_boxes(SSD300_COCO, (300, 300), "sides")
    np.testing.assert_allclose(ours, outputs["anchors_xyxy_px"] / 300, rtol=0, atol=1e-6)


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
        (SSD300_VOC, (300, 300), [5776, 2166, 600, 150, 36, 4]),
        (SSD300_COCO, (300, 300), [5776, 2166, 600, 150, 36, 4]),
        (SSD384_COCO, (384, 384), [9216, 3456, 864, 216, 64, 16]),
        (SSD512_VOC, (512, 512), [16384, 6144, 1536, 384, 96, 16, 4]),
        (SSD512_COCO, (512, 512), [16384, 6144, 1536, 384, 96, 16, 4]),
        (SSD300_MOBILENET, (300, 300), [2166, 600, 150, 54, 24, 6]),
        (SSD7_LEVELS, (300, 480), [8880, 2160, 540, 112]),
        (RESNET10_LEVELS, (300, 300), [5776, 2166, 600, 150, 100, 100]),
        (MOBILENET_CAFFE_LEVELS, (300, 300), [1083, 600, 150, 54, 24, 6]),
    ],
)
def test_counts(levels: tuple[Level, ...], size: tuple[int, int], counts: list[int]) -> None:
    assert [math.prod(level.cells) * level.boxes_per_cell for level in levels] == counts
    boxes = default_boxes(levels, size)
    assert boxes.shape == (sum(counts), 4)
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())


@pytest.mark.parametrize(
    ("levels", "sides", "middles"),
    [
        (
            SSD512_VOC,
            [35, 76, 153, 230, 307, 384, 460],
            [51.575, 107.833, 187.590, 265.725, 343.348, 420.286, 497.011],
        ),
        (
            SSD512_COCO,
            [20, 51, 133, 215, 296, 378, 460],
            [31.937, 82.359, 169.101, 252.270, 334.497, 416.989, 499.320],
        ),
    ],
)
def test_sizes_of_ssd512_are_cut_to_whole_pixels(
    levels: tuple[Level, ...], sides: list[int], middles: list[float]
) -> None:
    assert [level.shapes_px(whole_scales=True)[0][0] for level in levels] == sides
    assert [level.shapes_px(whole_scales=True)[1][0] for level in levels] == pytest.approx(
        middles, abs=6e-4
    )


def test_the_second_box_has_the_doubled_ratio_and_follows_the_first() -> None:
    level = Level((1, 1), (50, 50), 16, 36, (2, 1 / 4, 1), doubled=1 / 4)
    shapes = level.shapes_px(whole_scales=True)
    assert [w / h for w, h in shapes] == pytest.approx([2, 1 / 4, 1 / 4, 1])
    assert [(w * h) ** 0.5 for w, h in shapes] == pytest.approx([16, 16, 24, 16])
    assert len(shapes) == level.boxes_per_cell


def test_a_level_without_a_second_size_has_one_box_for_each_ratio() -> None:
    level = Level((1, 1), (300, 300), 60, None, (1, 2, 1 / 2))
    shapes = level.shapes_px(whole_scales=True)
    assert [w / h for w, h in shapes] == pytest.approx([1, 2, 1 / 2])
    assert [(w * h) ** 0.5 for w, h in shapes] == pytest.approx([60, 60, 60])
    assert len(shapes) == level.boxes_per_cell


def test_order_is_rows_then_columns_then_shapes() -> None:
    levels = (
        Level((2, 3), (25, 50), 10, 40, (1, 2, 1 / 2)),
        Level((1, 1), (50, 150), 40, 90, (1, 2, 1 / 2, 3, 1 / 3)),
    )
    boxes = to_cxcywh(default_boxes(levels, (50, 150))) * torch.tensor([150, 50, 150, 50])
    cells = [(25, 12.5), (75, 12.5), (125, 12.5), (25, 37.5), (75, 37.5), (125, 37.5)]
    centres = [cell for cell in cells for _ in range(4)] + [(75, 25)] * 6
    torch.testing.assert_close(boxes[:, :2], torch.tensor(centres, dtype=torch.float32))
    ratios = torch.tensor([*[1, 1, 2, 1 / 2] * 6, 1, 1, 2, 1 / 2, 3, 1 / 3])
    torch.testing.assert_close(boxes[:, 2] / boxes[:, 3], ratios)
    # All shapes but the second have the area of the first.
    areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    assert areas == pytest.approx([100, 400, 100, 100] * 6 + [1600, 3600, *[1600] * 4], rel=1e-5)
