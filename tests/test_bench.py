"""Timing runs through, on tiny work, and its figures hang together."""

import json
from pathlib import Path

import pytest
import torch
from tiny import TINY

from multibox import bench as timing
from multibox import build
from multibox.bench import Figure, Part, bench, random_batch
from multibox.cli import main
from multibox.config import Config, RunConfig
from multibox.data.drawn import draw_dataset

PARTS: dict[Part, list[str]] = {
    "data": [
        "decode alone",
        "one core",
        "one worker",
        "two workers",
        "two workers and the device",
    ],
    "step": ["network alone", "step", "matching and loss alone"],
    "detect": ["few candidates", "all candidates"],
    "evaluate": ["files to average precision", "average precision alone"],
    "predict": ["network alone", "predict"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setattr(timing, "RUNS", 1)
    monkeypatch.setattr(timing, "_SAMPLES", 32)
    monkeypatch.setattr(timing, "_TEST_IMAGES", 20)
    monkeypatch.setattr(timing, "_DETECTIONS", 2_000)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_timed(tmp_path: Path, part: Part) -> None:
    data = tmp_path / "data"
    draw_dataset(data, train_images=2, test_images=1)
    config = Config(network="tiny", run=RunConfig(batch_size=2))
    figures = bench(part, config, data=data, device="cpu")
    assert [figure.name for figure in figures] == PARTS[part]
    by_name = {figure.name: figure for figure in figures}
    for figure in figures:
        assert figure.seconds > 0
        if figure.beside is not None:
            expected = figure.per_second / by_name[figure.beside].per_second
            assert figure.ratio == pytest.approx(expected)


def test_the_table_and_the_json_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("alone", 0.25, 4), Figure("all", 0.5, 4, 0.5, "alone")]
    monkeypatch.setattr("multibox.cli.bench", lambda *_, **__: figures)
    assert main(["bench", "step"]) == 0
    table = capsys.readouterr().out
    assert main(["bench", "step", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [figure["images_per_second"] for figure in record["figures"]] == [16, 8]
    for text in ("alone", "250.0", "16.0", "0.50 of alone"):
        assert text in table


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "step", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_the_random_batch_is_sound() -> None:
    batch = random_batch(3, (30, 40))
    assert batch.images.shape == (3, 3, 30, 40)
    boxes = batch.targets.boxes
    assert torch.all(boxes[..., :2] < boxes[..., 2:])
    assert torch.all((boxes >= 0) & (boxes <= 1))
