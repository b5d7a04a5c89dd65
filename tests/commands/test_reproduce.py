"""`reproduce` on a drawn look-alike of VOC with a tiny network: seconds instead of days."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from rig import digests
from tiny import TINY

from multibox import build
from multibox.cli import main as command_line
from multibox.commands import reproduce as verb
from multibox.commands.reproduce import reproduce
from multibox.commands.reproduction import look_alike
from multibox.commands.reproduction import plan as planning
from multibox.commands.reproduction.look_alike import IMAGES, OBJECTS, draw_look_alike, scaled
from multibox.commands.reproduction.plan import Times, measure_stages, plan
from multibox.commands.reproduction.state import Download, Place, draw, missing
from multibox.commands.reproduction.targets import TARGETS, Target
from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig
from multibox.data.formats.layouts import open_dataset
from multibox.errors import ConfigError, DataError
from multibox.recipes import RECIPES, VOC_0712
from multibox.reporting.reference import read_reference

SCALE = 1_000
VOC_STYLE = look_alike.STYLE
CONSOLE = Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # So few images cannot show all of 20 classes.
    few = VOC_STYLE._replace(name=lambda rng: str(rng.choice(["car", "dog", "person"])))
    monkeypatch.setattr(look_alike, "STYLE", few)


def _config() -> Config:
    return Config(
        network="tiny",
        data=VOC_0712,
        optimizer=OptimizerConfig(lr=0.01),
        schedule=ScheduleConfig(steps=4, drops=(3,), warmup_steps=1),
        run=RunConfig(
            batch_size=4,
            log_every=1,
            validate_every=2,
            evaluate_every=2,
            checkpoint_every=1,
            workers=0,
        ),
    )


def _target(name: str = "rehearsal") -> Target:
    return TARGETS[name]._replace(config=_config, images=scaled(SCALE))


def _nothing(*_: object) -> None:
    raise AssertionError("nothing has to be downloaded")


def _rehearse(place: Place) -> Path:
    return reproduce(_target(), place, CONSOLE, fetch=_nothing, confirm=_nothing, scale=SCALE)


def _place(folder: Path, *seeds: int) -> Place:
    return Place(folder / "out" / "data", folder / "out", seeds or (0,), workers=0)


def test_a_rehearsal_ends_in_the_page_with_the_verdicts(tmp_path: Path) -> None:
    page = _rehearse(_place(tmp_path)).read_text()
    assert "cannot be compared" in page
    assert "published 0.771 to 0.782" in page
    for name in OBJECTS:
        assert f">{name}</th>" in page
    figures = json.loads((tmp_path / "out" / "summary" / "summary.json").read_text())
    assert not figures["comparable"]
    assert [each["name"] for each in figures["classes"]] == list(OBJECTS)
    assert list(figures["runs"][0]["milestones"]) == ["2", "4"]
    assert figures["mean"]["verdict"] == "below"


def test_a_broken_reproduction_is_resumed_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = _place(tmp_path / "whole", 0, 1), _place(tmp_path / "broken", 0, 1)
    _rehearse(whole)
    seeds = []
    train = verb.train

    def interrupted(request: Any, console: Console) -> None:
        seeds.append(request.config.run.seed)
        if len(seeds) == 2:
            raise KeyboardInterrupt
        train(request, console)

    monkeypatch.setattr(verb, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _rehearse(broken)
    assert not (broken.out / "summary").exists()
    _rehearse(broken)
    # The first seed is finished and not trained again.
    assert seeds == [0, 1, 1]
    for seed in (0, 1):
        assert digests(broken.run(seed)) == digests(whole.run(seed))
    summaries = [place.out / "summary" / "summary.json" for place in (whole, broken)]
    assert summaries[0].read_bytes() == summaries[1].read_bytes()
    assert (broken.run(0) / "comparison" / "index.html").exists()


def test_other_options_for_a_finished_run_are_refused(tmp_path: Path) -> None:
    place = _place(tmp_path)
    _rehearse(place)
    other = _target()._replace(config=lambda: _config().override({"lr": 0.02}))
    with pytest.raises(ConfigError, match="lr"):
        reproduce(other, place, CONSOLE, fetch=_nothing, confirm=_nothing, scale=SCALE)


def test_what_is_missing_is_asked_for_and_downloaded_once(tmp_path: Path) -> None:
    target = _target("ssd300-voc0712")._replace(weights="")
    place = Place(tmp_path / "data", tmp_path / "out", workers=0)
    asked, fetched = [], []

    def fetch(names: Sequence[str], folder: Path) -> None:
        fetched.append(list(names))
        draw(_target(), folder, scale=SCALE)

    def confirm(downloads: list[Download]) -> None:
        asked.append([(each.name, each.size) for each in downloads])

    page = reproduce(target, place, CONSOLE, fetch=fetch, confirm=confirm)
    assert asked == [[("voc2007", 911_052_800), ("voc2012", 1_999_639_040)]]
    assert fetched == [["voc2007", "voc2012"]]
    assert "rehearsal" not in page.read_text().lower()
    reproduce(target, place, CONSOLE, fetch=_nothing, confirm=_nothing)


def test_weights_are_needed_until_every_run_has_a_checkpoint(tmp_path: Path) -> None:
    target, place = _target("ssd300-voc0712"), _place(tmp_path)
    draw(_target(), place.data, scale=SCALE)
    assert [each.name for each in missing(target, place)] == ["vgg16-caffe-imagenet"]
    (place.data / "VGG_ILSVRC_16_layers.caffemodel").write_bytes(b"")
    assert missing(target, place) == []


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    target = _target("ssd300-voc0712")._replace(weights="", images=IMAGES)
    place = _place(tmp_path)
    draw_look_alike(place.data / "VOCdevkit", scale=SCALE)
    with pytest.raises(ConfigError, match="has 5 images, but the published dataset has 5,011"):
        reproduce(target, place, CONSOLE, fetch=_nothing, confirm=_nothing)
    assert not place.out.joinpath("seed-0").exists()


def test_a_fault_is_refused_before_the_training(tmp_path: Path) -> None:
    target, place = _target("ssd300-voc0712")._replace(weights=""), _place(tmp_path)
    draw_look_alike(place.data / "VOCdevkit", scale=SCALE)
    (place.data / "VOCdevkit/VOC2007/JPEGImages/000001.jpg").unlink()
    with pytest.raises(DataError, match="000001"):
        reproduce(target, place, CONSOLE, fetch=_nothing, confirm=_nothing)
    assert not place.out.joinpath("seed-0").exists()


@pytest.mark.parametrize("seeds", [(), (1, 1), (-1,), tuple(range(13))])
def test_seeds_that_cannot_be_used_are_refused(seeds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        _rehearse(Place(tmp_path / "data", tmp_path / "out", seeds))


def test_nothing_is_downloaded_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reproduce", "ssd300-voc0712", "--data", str(tmp_path / "data")]
    words += ["--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert command_line.main(words) == 2
    said = capsys.readouterr().err
    assert "Add --yes, or run multibox download voc2007 voc2012" in said
    assert "voc2007: 911.1 MB. Licence: images: Flickr's terms" in said

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    monkeypatch.setattr(Console, "input", lambda *_, **__: "n")
    assert command_line.main(words) == 2
    assert "was declined" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "out").exists()


TIMES = Times(0.01, (0.1, 0.1), 0.01, 0.02)


def _texts(lines: list[tuple[str, str]], subject: str) -> list[str]:
    return [text for name, text in lines if name == subject]


@pytest.mark.parametrize("name", TARGETS)
def test_the_plan_of_an_empty_machine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_stages", lambda *_: TIMES)
    place = Place(tmp_path / "data", tmp_path / "out", (0, 1, 2))
    lines = plan(TARGETS[name], place, CONSOLE)
    downloads = ["coco2017"] if name == "ssd300-coco" else ["voc2007", "voc2012"]
    if name == "rehearsal":
        assert _texts(lines, "fetch") == [f"{tmp_path}/data/VOCdevkit: will be drawn"]
    else:
        fetched = [text.partition(":")[0] for text in _texts(lines, "fetch")]
        assert fetched == [*downloads, "vgg16-caffe-imagenet"]
    assert len(_texts(lines, "disk")) == 2
    steps = TARGETS[name].config().schedule.steps
    for seed in range(3):
        assert f"{steps:,} steps with" in _texts(lines, f"seed {seed}")[0]
    assert list(tmp_path.iterdir()) == []


def test_the_times_of_the_plan_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measure_stages", lambda *_: TIMES)
    lines = plan(TARGETS["ssd300-voc0712"], Place(tmp_path / "a", tmp_path / "b"), CONSOLE)
    # 120,000 steps, 120 validation losses and 6 evaluations of 4,952 images each.
    seconds = 12_000 + 120 * 49.52 + 6 * 99.04
    assert f"about {seconds / 3_600:.1f} hours" in _texts(lines, "seed 0")[0]
    assert _texts(lines, "check") == ["21,503 images: about 3.6 minutes"]


def test_the_plan_names_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory = "Imaginary GPU", 80 * 2**30

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(planning, "measure_stages", lambda *_: TIMES)
    lines = plan(TARGETS["ssd512-voc0712"], Place(tmp_path / "a", tmp_path / "b"), CONSOLE)
    assert _texts(lines, "device") == ["Imaginary GPU with 80 GiB"]


def test_the_plan_of_a_begun_and_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_stages", lambda *_: TIMES)
    place = _place(tmp_path)
    _rehearse(place)
    lines = plan(_target(), place._replace(seeds=(0, 1)), CONSOLE)
    assert "has finished its 4 steps" in _texts(lines, "seed 0")[0]
    assert "4 steps with 4 images" in _texts(lines, "seed 1")[0]
    assert _texts(lines, "check") == ["done: a run has begun"]
    assert "is there" in _texts(lines, "fetch")[0]


@pytest.mark.parametrize("metric", ["voc07", "coco"])
def test_the_speed_is_measured_without_data(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_DRAWN_SCALE", 3_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    target = _target()
    target = target._replace(published=target.published._replace(metric=metric))
    times = measure_stages(target, Place(tmp_path / "data", tmp_path / "out"), CONSOLE)
    assert min(times.checked_image, *times.step, times.evaluated_image) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_look_alike_has_the_layout_and_the_classes_of_voc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_alike, "STYLE", VOC_STYLE)
    draw_look_alike(tmp_path / "VOCdevkit", scale=SCALE)
    folder = open_dataset(tmp_path / "VOCdevkit")
    assert set(folder.splits) == set(IMAGES)
    everything = folder.read("2007:trainval+2012:trainval")
    assert len(everything) == 17
    assert set(everything.classes) <= set(OBJECTS)
    assert [len(folder.read(name)) for name in IMAGES] == [5, 12, 5]
    xml = (tmp_path / "VOCdevkit/VOC2012/Annotations/2012_000006.xml").read_text()
    assert all(f"<{tag}>" in xml for tag in ("difficult", "truncated", "xmin", "depth"))
    shares = np.array(
        [
            (box[2] - box[0]) * (box[3] - box[1]) / (item.width_px * item.height_px)
            for item in everything.annotations
            for box in item.boxes_px
        ]
    )
    assert 0.1 < shares.mean() < 0.4
    assert tuple(OBJECTS) == tuple(read_reference("ssd-keras-voc0712").AP)


def test_targets_are_recipes_with_milestones_every_20_000_steps() -> None:
    for name, target in TARGETS.items():
        if name != "rehearsal":
            given, recipe = target.config(), RECIPES[target.recipe]()
            assert replace(given, data=recipe.data) == recipe
            assert given.run.evaluate_every == 20_000
            assert sum(target.images.values()) in (21_503, 123_287)
