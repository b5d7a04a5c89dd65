"""Fitted default boxes in the headers of weights files."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from tiny import FITTED, TINY, tiny_network

from multibox import build
from multibox.build import build_network
from multibox.commands.convert import convert
from multibox.errors import WeightsError
from multibox.ssd.network import SSD
from multibox.weights.files import load_network, make_header, read_weights


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


def saved(path: Path, network: SSD, name: str = "tiny", **header: str) -> Path:
    tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    header = make_header(network, name, ("cat", "dog"), "CC0") | header
    safetensors.torch.save_file(tensors, path, metadata=header)
    return path


def header_of(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def test_they_are_read_back_and_used(tmp_path: Path) -> None:
    network = tiny_network(fitted=FITTED)
    weights = read_weights(saved(tmp_path / "a", network))
    assert weights.traits == network.traits
    found = load_network(weights, torch.device("cpu"))
    assert torch.equal(found.default_boxes, network.default_boxes)
    assert not torch.equal(found.default_boxes, tiny_network().default_boxes)


def test_a_file_without_them_is_as_before(tmp_path: Path) -> None:
    """A multibox from before they existed can read it."""
    path = saved(tmp_path / "a", tiny_network())
    assert "fitted" not in json.loads(header_of(path)["traits"])
    assert read_weights(path).traits == TINY.traits


def test_they_are_converted_to_multibox_s_own_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", tiny_network(fitted=FITTED))
    lines = convert(path, tmp_path / "b", target="multibox")
    assert "default boxes: fitted to the training data" in lines
    assert header_of(tmp_path / "b") == header_of(path)


@pytest.mark.parametrize(("name", "target"), [("ssd300-vgg16", "torchvision"), ("ssd7", "keras")])
def test_for_another_program_they_are_listed(tmp_path: Path, name: str, target: Any) -> None:
    own = build.NETWORKS[name]
    levels = own.tables["voc"]
    fitted = tuple(
        level._replace(ratios=(0.4, *level.ratios[1:]), doubled=0.4, min_size_px=17.0)
        for level in levels
    )
    network = build_network(name, 2, own.traits._replace(fitted=fitted))
    path = saved(tmp_path / "a", network, name)
    lines = convert(path, tmp_path / "b", target=target)
    place = next(n for n, line in enumerate(lines) if "give" in line and "these default" in line)
    listed = lines[place + 1 : place + 1 + len(fitted)]
    middle = math.sqrt(17 * levels[0].max_size_px)
    rows, columns = levels[0].cells
    assert re.match(rf"  {rows} x {columns} cells: 17 pixels at ratios 0\.4, ", listed[0])
    assert listed[0].endswith(f"{middle:.1f} pixels at ratio 0.4")
    assert not [line for line in lines if "default boxes for" in line]


LEVEL = {"min_size_px": 9.0, "max_size_px": 20.0, "ratios": [0.8, 1.7, 0.45], "doubled": 0.8}


@pytest.mark.parametrize(
    "fitted",
    [
        5,
        "ab",
        None,
        {},
        [LEVEL],
        [LEVEL] * 3,
        [LEVEL, 5],
        [LEVEL, []],
        [LEVEL, "ab"],
        [LEVEL, {}],
        [LEVEL, LEVEL | {"cells": [1, 1]}],
        [LEVEL, {name: LEVEL[name] for name in ("min_size_px", "max_size_px", "ratios")}],
        *(
            [LEVEL, LEVEL | edit]
            for edit in (
                {"min_size_px": 0},
                {"min_size_px": 0.99},
                {"min_size_px": -9},
                {"min_size_px": math.nan},
                {"min_size_px": True},
                {"min_size_px": "9"},
                {"min_size_px": [9]},
                {"min_size_px": 21},
                {"max_size_px": math.inf},
                {"max_size_px": 1e9},
                {"max_size_px": 10**400},
                {"ratios": [0.8, 1.7]},
                {"ratios": [0.8, 1.7, 0.45, 3.0]},
                {"ratios": [0.8, 1.7, 0.8]},
                {"ratios": [0.8, 1.7, 0.0]},
                {"ratios": [0.8, 1.7, -1.0]},
                {"ratios": [0.8, 1.7, math.nan]},
                {"ratios": [0.8, 1.7, 1e300]},
                {"ratios": [0.8, 1.7, None]},
                {"ratios": [0.8, 1.7, [1]]},
                {"ratios": {"0": 0.8}},
                {"ratios": "0.8"},
                {"ratios": 0.8},
                {"doubled": 2.0},
                {"doubled": "0.8"},
                {"doubled": [0.8]},
                {"doubled": None},
            )
        ),
    ],
)
def test_hostile_values_are_refused(tmp_path: Path, fitted: object) -> None:
    network = tiny_network(fitted=FITTED)
    traits = json.loads(make_header(network, "tiny", ("cat", "dog"), "CC0")["traits"])
    path = saved(tmp_path / "a", network, traits=json.dumps(traits | {"fitted": fitted}))
    with pytest.raises(WeightsError, match="has invalid traits for tiny"):
        read_weights(path)
