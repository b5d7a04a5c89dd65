from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import detection as oracle

from multibox.boxes import to_xyxy
from multibox.rng import stream
from multibox.ssd.coding import decode
from multibox.ssd.detect import DetectionSettings, detect, non_maximum_suppression
from multibox.structures import Detections, Output


def scores_of(output: Output) -> torch.Tensor:
    return output.logits.softmax(dim=2)[..., 1:]


def same_as_oracle(
    output: Output, default_boxes: torch.Tensor, settings: DetectionSettings
) -> list[Detections]:
    """The detections, after asserting for each image that they are the oracle's."""
    found = detect(output, default_boxes, settings)
    boxes = decode(output.offsets, default_boxes)
    assert len(found) == len(boxes)
    for image, detections in enumerate(found):
        scores = scores_of(output)[image].numpy()
        expected = oracle.detect(scores, boxes[image].numpy(), *settings[:4])
        assert detections.labels.tolist() == [item.label for item in expected]
        assert detections.scores.tolist() == [item.score for item in expected]
        places = [item.box for item in expected]
        torch.testing.assert_close(detections.boxes, boxes[image, places], rtol=0, atol=1e-6)
    return found


def only_scores(scores: torch.Tensor) -> torch.Tensor:
    """Logits whose softmax has these scores for C classes, of K boxes."""
    return torch.cat([1 - scores.sum(dim=-1, keepdim=True), scores], dim=-1).log()


def at_rest(boxes: torch.Tensor, scores: torch.Tensor) -> tuple[Output, torch.Tensor]:
    """An output of one image whose boxes are the default boxes themselves."""
    return Output(torch.zeros(1, len(boxes), 4), only_scores(scores)[None]), boxes


def row_of_squares(count: int) -> torch.Tensor:
    """Boxes side by side that do not overlap."""
    left = torch.arange(count, dtype=torch.float32) / count
    bottom = torch.full((count,), 1 / count)
    return torch.stack([left, torch.zeros(count), left + 0.9 / count, bottom], dim=1)


# --- against the oracle


@pytest.mark.parametrize("seed", range(3))
def test_random_outputs(seed: int) -> None:
    rng = stream(seed, "detect")
    centres, sides = rng.uniform(0, 1, (150, 2)), rng.uniform(0.1, 0.5, (150, 2))
    defaults = to_xyxy(torch.from_numpy(np.concatenate([centres, sides], axis=1)).float())
    output = Output(
        torch.from_numpy(rng.standard_normal((2, 150, 4))).float(),
        torch.from_numpy(2 * rng.standard_normal((2, 150, 4))).float(),
    )
    found = same_as_oracle(output, defaults, DetectionSettings())
    assert all(10 < len(item.scores) < 450 for item in found)  # some suppressed, some not
    same_as_oracle(output, defaults, DetectionSettings(0.2, 20, 0.3, 15))


eighths = st.integers(0, 8).map(lambda n: n / 8)
grid_boxes = st.tuples(eighths, eighths, st.sampled_from([0.125, 0.25, 0.5]))
rows = st.tuples(grid_boxes, st.tuples(*[st.integers(-1, 2)] * 3))


@settings(deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=40),
    st.sampled_from([1, 5, 400]),
    st.sampled_from([0.2, 0.45, 0.5, 1.0]),
    st.sampled_from([1, 7, 200]),
)
def test_ties_of_scores_and_overlaps(
    drawn: list[tuple[tuple[float, float, float], tuple[int, ...]]],
    per_class: int,
    iou_threshold: float,
    per_image: int,
) -> None:
    defaults = torch.tensor([(x, y, x + side, y + side) for (x, y, side), _ in drawn])
    logits = torch.tensor([[logit for _, logit in drawn]], dtype=torch.float32)
    output = Output(torch.zeros(1, len(drawn), 4), logits)
    chosen = DetectionSettings(0.1, per_class, iou_threshold, per_image)
    same_as_oracle(output, defaults, chosen)


def test_a_dense_crowd() -> None:
    """400 boxes of which each overlaps a dozen others, so that suppression goes back and forth."""
    rng = stream(0, "crowd")
    centres = 0.5 + 0.2 * rng.standard_normal((400, 2))
    defaults = to_xyxy(
        torch.from_numpy(np.concatenate([centres, np.full((400, 2), 0.2)], axis=1)).float()
    )
    output = Output(
        torch.zeros(1, 400, 4), torch.from_numpy(rng.standard_normal((1, 400, 2))).float()
    )
    (found,) = same_as_oracle(output, defaults, DetectionSettings())
    assert 20 < len(found.scores) < 100


@pytest.mark.parametrize("per_image", [5, 60, 200])
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_more_candidates_than_are_worked_on_at_first(per_image: int, spread: float) -> None:
    """Above 400 of each class; crowded, so that few remain of many, or spread over the image."""
    rng = stream(0, "many", per_image)
    centres = 0.5 + spread * rng.standard_normal((600, 2))
    defaults = to_xyxy(
        torch.from_numpy(np.concatenate([centres, np.full((600, 2), 0.1)], axis=1)).float()
    )
    logits = torch.from_numpy(rng.standard_normal((2, 600, 4))).float()
    logits[1, :, 0] += 4  # the second image has few
    output = Output(torch.zeros(2, 600, 4), logits)
    same_as_oracle(output, defaults, DetectionSettings(per_image=per_image))


def test_a_long_chain_of_suppression() -> None:
    """Each box overlaps the next by 0.6 and the one after it by 0.33: every other one remains."""
    left = torch.arange(300, dtype=torch.float32) * 0.25
    boxes = torch.stack([left, torch.zeros(300), left + 1, torch.ones(300)], dim=1)
    scores = torch.linspace(0.9, 0.1, 300).unsqueeze(1)
    (found,) = detect(*at_rest(boxes, scores))
    torch.testing.assert_close(found.boxes, boxes[::2])
    torch.testing.assert_close(found.scores, scores[::2, 0])


# --- torchvision, from the same raw output


def test_torchvision_detects_the_same(shared: Path) -> None:
    stored = np.load(shared / "parity/torchvision_ssd300_vgg16_outputs.npz")
    raw = {name: torch.from_numpy(stored[name]) for name in stored}
    output = Output(raw["bbox_regression"][None], raw["cls_logits"][None])
    (found,) = detect(output, raw["anchors_xyxy_px"] / 300, DetectionSettings(clip=True))
    assert torch.equal(found.labels + 1, raw["det_labels"])
    torch.testing.assert_close(found.scores, raw["det_scores"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.boxes * 300, raw["det_boxes"], rtol=0, atol=1e-3)


# --- the limits


def test_nothing_above_the_threshold() -> None:
    boxes = row_of_squares(5)
    output = Output(torch.zeros(2, 5, 4), only_scores(torch.full((2, 5, 3), 0.009)))
    for found in detect(output, boxes):
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
        assert found.labels.shape == (0,)
        assert found.labels.dtype == torch.int64


def test_a_score_must_exceed_the_threshold() -> None:
    boxes, logits = row_of_squares(3), torch.tensor([[[0.0, 0.0], [0.0, 0.1], [0.0, -0.1]]])
    output = Output(torch.zeros(1, 3, 4), logits)
    (found,) = detect(output, boxes, DetectionSettings(score_threshold=0.5))
    torch.testing.assert_close(found.boxes, boxes[1:2])


def test_the_400_best_of_a_class_are_taken_before_suppression() -> None:
    # 400 times the same box, and 50 worse ones elsewhere, which therefore are not looked at.
    squares = row_of_squares(51)
    boxes = torch.cat([squares[1:], squares[:1].expand(400, 4)])
    scores = torch.cat([torch.linspace(0.2, 0.3, 50), torch.linspace(0.5, 0.6, 400)])
    (found,) = detect(*at_rest(boxes, scores.unsqueeze(1)))
    assert found.scores.tolist() == pytest.approx([0.6])
    (found,) = detect(*at_rest(boxes, scores.unsqueeze(1)), DetectionSettings(per_class=401))
    assert found.scores.tolist() == pytest.approx([0.6, 0.3])


def test_the_200_best_of_an_image_are_kept_over_all_classes() -> None:
    squares = row_of_squares(150)
    scores = torch.from_numpy(stream(0, "scores").uniform(0.02, 0.3, (150, 3))).float()
    output, _ = at_rest(squares, scores)
    (found,) = detect(output, squares)
    best = scores_of(output)[0].flatten().sort(descending=True).values[:200]
    assert torch.equal(found.scores, best)
    assert set(found.labels.tolist()) == {0, 1, 2}


def test_classes_do_not_suppress_each_other() -> None:
    boxes = row_of_squares(1)
    (found,) = detect(*at_rest(boxes, torch.tensor([[0.2, 0.5, 0.1]])))
    assert found.labels.tolist() == [1, 0, 2]
    assert found.scores.tolist() == pytest.approx([0.5, 0.2, 0.1])


def test_equal_scores_come_in_order_of_class_then_box() -> None:
    boxes = row_of_squares(2)
    (found,) = detect(Output(torch.zeros(1, 2, 4), torch.zeros(1, 2, 3)), boxes)
    assert found.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.boxes, boxes.repeat(2, 1))


def test_boxes_are_not_clipped() -> None:
    # Clipped, the two would be one and the same.
    boxes = torch.tensor([[-0.9, 0.0, 0.1, 1.0], [0.0, 0.0, 0.1, 1.0]])
    (found,) = detect(*at_rest(boxes, torch.tensor([[0.9], [0.8]])))
    torch.testing.assert_close(found.boxes, boxes)


# --- batches


def test_an_image_s_detections_do_not_depend_on_its_batch() -> None:
    rng = stream(0, "batch")
    squares = row_of_squares(60)
    output = Output(
        torch.from_numpy(4 * rng.standard_normal((4, 60, 4))).float(),
        torch.from_numpy(3 * rng.standard_normal((4, 60, 5))).float(),
    )
    output.logits[1, :, 0] = 50  # nothing but background
    together = detect(output, squares)
    assert len(together[1].scores) == 0
    for image, found in enumerate(together):
        (alone,) = detect(Output(*(x[image : image + 1] for x in output)), squares)
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


groups = st.lists(st.lists(grid_boxes, min_size=1, max_size=12), min_size=1, max_size=5)


@settings(deadline=None)
@given(groups, st.sampled_from([0.1, 0.25, 0.5]))
def test_groups_are_suppressed_apart(
    drawn: list[list[tuple[float, float, float]]], threshold: float
) -> None:
    tables = [torch.tensor([(x, y, x + s, y + s) for x, y, s in group]) for group in drawn]
    # The numbers of the groups ascend, with gaps.
    group = torch.cat([torch.full((len(t),), 3 * n + 1) for n, t in enumerate(tables)])
    kept = non_maximum_suppression(torch.cat(tables), group, threshold)
    expected = []
    for table in tables:
        remaining = oracle.suppress(table.numpy(), list(range(len(table))), threshold)
        expected += [place in remaining for place in range(len(table))]
    assert kept.tolist() == expected
