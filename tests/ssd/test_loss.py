import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import loss as oracle

from multibox.rng import stream
from multibox.ssd.loss import hard_negatives, multibox_loss
from multibox.structures import Losses, Matches, Output


def normals(purpose: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(stream(0, purpose).standard_normal(shape)).float()


def compact(classes: torch.Tensor, offsets: torch.Tensor) -> Matches:
    """The matches that have these classes (B, K) and offsets (B, K, 4) where a class is not 0."""
    most = int((classes > 0).sum(dim=1).max())
    # Stable: the matched boxes of each image in order, then others.
    boxes = (classes == 0).int().argsort(dim=1, stable=True)[:, :most]
    kept = classes.gather(1, boxes)
    boxes = boxes * (kept > 0)
    there = offsets.gather(1, boxes.unsqueeze(2).expand(-1, -1, 4)) * (kept > 0).unsqueeze(2)
    return Matches(boxes, kept, there)


def batch(classes: list[list[int]], num_classes: int = 4) -> tuple[Output, Matches]:
    """Random outputs and targets for the classes of each image's default boxes."""
    labels = torch.tensor(classes)
    output = Output(2 * normals("offsets", *labels.shape, 4), normals("logits", *labels.shape, 5))
    output = output._replace(logits=2 * output.logits[..., : num_classes + 1])
    return output, compact(labels, normals("targets", *labels.shape, 4))


def num_positives(matches: Matches) -> torch.Tensor:
    return (matches.classes > 0).sum().clamp(min=1).float()


def by_oracle(output: Output, matches: Matches) -> tuple[float, float]:
    classes = torch.zeros(output.logits.shape[:2], dtype=torch.int64)
    targets = torch.zeros(*classes.shape, 4)
    for image, found in enumerate(matches.classes > 0):
        classes[image, matches.boxes[image, found]] = matches.classes[image, found]
        targets[image, matches.boxes[image, found]] = matches.offsets[image, found]
    return oracle.multibox_loss(
        output.logits.tolist(), output.offsets.tolist(), classes.tolist(), targets.tolist()
    )


MIXED = [
    [0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [4, 1, 0, 3, 0, 2, 0, 0, 1, 1, 0, 0],  # fewer negatives than three per positive
    [1, 1, 2, 3, 4, 4, 3, 2, 1, 1, 2, 2],
]


@pytest.mark.parametrize("classes", [MIXED, MIXED[:1], MIXED[1:2], MIXED[2:]])
def test_loss_is_the_oracle_s(classes: list[list[int]]) -> None:
    output, matches = batch(classes)
    found = multibox_loss(output, matches, num_positives(matches))
    assert [x.item() for x in found] == pytest.approx(by_oracle(output, matches), rel=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4]), min_size=20, max_size=20),
        min_size=1,
        max_size=4,
    )
)
def test_loss_of_any_matches_is_the_oracle_s(classes: list[list[int]]) -> None:
    output, matches = batch(classes)
    found = multibox_loss(output, matches, num_positives(matches))
    assert [x.item() for x in found] == pytest.approx(by_oracle(output, matches), rel=1e-5)


def test_loss_by_hand() -> None:
    """One positive whose offsets are off by 0.5 and 3; all logits are equal."""
    output = Output(torch.tensor([[[0.5, 0.0, -3.0, 0.0]] + [[9.0] * 4] * 5]), torch.zeros(1, 6, 3))
    matches = compact(torch.tensor([[1, 0, 0, 0, 0, 0]]), torch.zeros(1, 6, 4))
    confidence, localization = multibox_loss(output, matches, torch.tensor(1.0))
    assert confidence.item() == pytest.approx(4 * math.log(3), rel=1e-6)
    assert localization.item() == pytest.approx(0.125 + 2.5, rel=1e-6)


def test_gradient_is_the_oracle_s_slope() -> None:
    output, matches = batch(MIXED)
    output = Output(*(x.requires_grad_() for x in output))
    found = multibox_loss(output, matches, num_positives(matches))
    (found.confidence + found.localization).backward()
    step = 1e-4
    for place, part in enumerate(output):
        slopes = torch.zeros_like(part).flatten()
        for index in range(slopes.numel()):
            moved = part.detach().double().flatten().repeat(2, 1)
            moved[:, index] += torch.tensor([step, -step])
            above, below = (
                sum(by_oracle(output._replace(**{output._fields[place]: m}), matches))
                for m in moved.reshape(2, *part.shape)
            )
            slopes[index] = (above - below) / (2 * step)
        torch.testing.assert_close(part.grad.flatten(), slopes, rtol=1e-4, atol=1e-6)


def mined(losses: torch.Tensor, classes: torch.Tensor) -> list[list[int]]:
    """1 where a default box counts as a hard negative."""
    places, hard = hard_negatives(losses, compact(classes, torch.zeros(*classes.shape, 4)))
    found = torch.zeros_like(classes)
    for image, (row, counts) in enumerate(zip(places, hard, strict=True)):
        found[image, row[counts]] = 1
    return found.tolist()


def test_negatives_are_the_least_background_like_of_each_image() -> None:
    losses = [[9.0, 3.0, 1.0, 2.0, 8.0, 4.0], [1.0, 1.0, 9.0, 1.0, 1.0, 1.0], [5.0] * 6, [5.0] * 6]
    classes = [[7, 0, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0], [0] * 6, [1, 0, 0, 2, 0, 3]]
    assert mined(torch.tensor(losses), torch.tensor(classes)) == [
        [0, 1, 0, 0, 1, 1],
        [1, 1, 0, 1, 0, 0],  # ties go to the first
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 0],  # fewer than three per positive
    ]


FEW = (0.0, -0.0, 1e-45, 1.0, 1.0000001, math.inf, math.nan, -math.nan)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(FEW), st.sampled_from([0, 0, 0, 1])), min_size=9, max_size=9
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_losses_are_mined_as_by_a_stable_sort(images: list[list[tuple[float, int]]]) -> None:
    expected = []
    for content in images:
        # NaN comes first, and no order between numbers without one but that of their places.
        ranked = sorted(
            (-math.inf if math.isnan(loss) else -loss, not math.isnan(loss), place)
            for place, (loss, label) in enumerate(content)
            if not label
        )
        count = 3 * sum(label for _, label in content)
        chosen = {place for *_, place in ranked[:count]}
        expected.append([int(place in chosen) for place in range(len(content))])
    losses, classes = (torch.tensor([[item[i] for item in row] for row in images]) for i in (0, 1))
    assert mined(losses, classes) == expected


def test_an_image_without_objects_contributes_nothing() -> None:
    output, matches = batch(MIXED[:2])
    output = Output(*(x.requires_grad_() for x in output))
    both = multibox_loss(output, matches, torch.tensor(2.0))
    first = multibox_loss(
        Output(*(x[:1] for x in output)), Matches(*(x[:1] for x in matches)), torch.tensor(2.0)
    )
    assert both == first
    (both.confidence + both.localization).backward()
    for part in output:
        assert not part.grad[1].any()
        assert part.grad[0].any()


def test_a_batch_without_positives_has_no_loss_but_a_graph() -> None:
    output, matches = batch(MIXED[1:2])
    output = Output(*(x.requires_grad_() for x in output))
    losses = multibox_loss(output, matches, num_positives(matches))
    assert [x.item() for x in losses] == [0, 0]
    (losses.confidence + losses.localization).backward()
    for part in output:
        assert torch.equal(part.grad, torch.zeros_like(part))


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    output, matches = batch(MIXED)
    whole_output = Output(*(x.clone().requires_grad_() for x in output))
    parts_output = Output(*(x.clone().requires_grad_() for x in output))
    loss = partial(multibox_loss, num_positives=num_positives(matches))
    whole = loss(whole_output, matches)
    sum(whole).backward()
    sums = [0.0, 0.0]
    for start in (0, 1, 3):
        end = {0: 1, 1: 3, 3: 4}[start]
        part = loss(
            Output(*(x[start:end] for x in parts_output)), Matches(*(x[start:end] for x in matches))
        )
        sum(part).backward()
        sums = [total + x.item() for total, x in zip(sums, part, strict=True)]
    assert sums == pytest.approx([x.item() for x in whole], rel=1e-6)
    for a, b in zip(whole_output, parts_output, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-8)


def test_half_precision_outputs_are_summed_in_float32() -> None:
    output, matches = batch(MIXED)
    halved = Output(*(x.bfloat16() for x in output))
    found = multibox_loss(halved, matches, num_positives(matches))
    expected = multibox_loss(Output(*(x.float() for x in halved)), matches, num_positives(matches))
    assert isinstance(found, Losses)
    assert found == expected
    assert found.confidence.dtype == torch.float32
