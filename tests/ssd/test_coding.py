import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import detection as oracle
from oracles import matching

from multibox.boxes import to_xyxy
from multibox.ssd.coding import Variances, decode, encode

coordinates = st.floats(-1, 2, width=32)
sides = st.floats(2**-10, 2, width=32)
boxes = st.tuples(coordinates, coordinates, sides, sides)


def corners(items: list[tuple[float, ...]]) -> torch.Tensor:
    return to_xyxy(torch.tensor(items, dtype=torch.float32))


@pytest.mark.parametrize("variances", [Variances(0.1, 0.2), Variances(1.0, 1.0)])
def test_offsets_by_hand(variances: Variances) -> None:
    default = torch.tensor([[0.25, 0.25, 0.75, 0.5]])  # centre (0.5, 0.375), 0.5 by 0.25
    box = torch.tensor([[0.5, 0.25, 0.75, 0.75]])  # centre (0.625, 0.5), 0.25 by 0.5
    centre = [0.125 / 0.5 / variances.centre, 0.125 / 0.25 / variances.centre]
    expected = [*centre, -math.log(2) / variances.size, math.log(2) / variances.size]
    assert encode(box, default, variances)[0].tolist() == pytest.approx(expected, rel=1e-6)
    found = decode(torch.tensor([expected]), default, variances)
    assert found[0].tolist() == pytest.approx(box[0].tolist(), rel=1e-6)


def test_a_box_against_itself_has_no_offsets() -> None:
    table = corners([(0.5, 0.5, 0.1, 0.3), (1.0133, 0.2, 0.7, 0.01)])
    assert torch.equal(encode(table, table), torch.zeros(2, 4))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(boxes, boxes), min_size=1, max_size=20))
def test_decode_undoes_encode(pairs: list[tuple[tuple[float, ...], tuple[float, ...]]]) -> None:
    box, default = (corners(list(items)) for items in zip(*pairs, strict=True))
    torch.testing.assert_close(decode(encode(box, default), default), box, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(boxes, boxes)
def test_both_ways_are_the_oracles(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    box, default = corners([first]), corners([second])
    offsets = matching.encode(tuple(box[0].tolist()), tuple(default[0].tolist()))
    assert encode(box, default)[0].tolist() == pytest.approx(offsets, rel=1e-3, abs=1e-3)
    there = oracle.decode(list(offsets), default[0].tolist())
    found = decode(torch.tensor([offsets]), default)[0].tolist()
    assert found == pytest.approx(there, rel=1e-4, abs=1e-5)


def test_batches_share_the_default_boxes() -> None:
    default = corners([(0.2, 0.3, 0.2, 0.1), (0.7, 0.5, 0.4, 0.6)])
    batch = torch.stack([default + 0.05, default * 0.5])
    offsets = encode(batch, default)
    for image in range(2):
        assert torch.equal(offsets[image], encode(batch[image], default))
        assert torch.equal(decode(offsets, default)[image], decode(offsets[image], default))
