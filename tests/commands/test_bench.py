"""Timing runs through, on tiny work, and its figures hang together."""

import json
from pathlib import Path

import pytest
import torch
from tiny import TINY, tiny_network

from multibox import build
from multibox.cli.main import main
from multibox.commands.bench import bench as parts
from multibox.commands.bench import data as bench_data
from multibox.commands.bench import timing
from multibox.commands.bench.bench import Part, bench, random_batch
from multibox.commands.bench.timing import Figure, Work, timed
from multibox.commands.demo.dataset import draw_dataset
from multibox.config import Config, RunConfig

PARTS: dict[Part, list[str]] = {
    "data": [
        "decode alone",
        "one core",
        "one core, images decoded before",
        "one worker",
        "two workers",
        "two workers and the device",
    ],
    "step": ["network alone", "step", "matching and loss alone"],
    "detect": ["few candidates", "all candidates"],
    "evaluate": ["files to all metrics", "VOC's alone", "COCO's alone"],
    "predict": ["network alone", "predict", "all detections"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setattr(timing, "RUNS", 1)
    monkeypatch.setattr(bench_data, "SAMPLES", 8)
    monkeypatch.setattr(bench_data, "_BATCH", 2)
    monkeypatch.setattr(parts, "_TEST_IMAGES", 20)
    monkeypatch.setattr(parts, "_DETECTIONS", 2_000)


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


def test_a_work_may_say_itself_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run does not count; the figure is the median of the others."""
    monkeypatch.setattr(timing, "RUNS", 3)
    told = iter([99.0, 3.0, 1.0, 2.0])
    (figure,) = timed([Work("work", lambda: next(told), 4)], torch.device("cpu"))
    assert figure == Figure("work", 2.0, 4)


def test_without_data_a_dataset_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_DRAWN", 3)
    figures = bench("data", Config(network="tiny"), data=None, device="cpu")
    assert [figure.name for figure in figures] == PARTS["data"]


def test_the_table_and_the_json_say_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [Figure("alone", 0.25, 4), Figure("all", 0.5, 4, 0.5, "alone")]
    monkeypatch.setattr("multibox.cli.bench.bench", lambda *_, **__: figures)
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


@pytest.mark.parametrize("size", ["0", "1"])
def test_a_batch_that_cannot_be_trained_is_refused(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "step", "--batch-size", size]) == 2
    assert f"batch of {size}" in capsys.readouterr().err.replace("batch_size is", "batch of")


@pytest.mark.parametrize(
    ("part", "option"),
    [
        ("detect", ["--data", "."]),
        ("predict", ["--batch-size", "4"]),
        ("data", ["--compile"]),
        ("evaluate", ["--device", "cpu"]),
    ],
)
def test_an_option_that_a_part_makes_no_use_of_is_refused(
    part: str, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", part, *option]) == 2
    assert f"{option[0]} has no effect with bench {part}" in capsys.readouterr().err


def test_the_random_batch_is_sound() -> None:
    batch = random_batch(3, tiny_network())
    assert batch.images.shape == (3, 3, 64, 64)
    assert (batch.matches.classes > 0).any(dim=1).all()
    boxes = batch.targets.boxes
    assert torch.all(boxes[..., :2] < boxes[..., 2:])
    assert torch.all((boxes >= 0) & (boxes <= 1))
