"""Ablations: tables of changes, folds, results that are kept, and the verdict."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from tiny import TINY

from multibox import build
from multibox.cli.main import main
from multibox.commands import ablate as module
from multibox.commands.ablate import BASE, Results, Run, ablate, read_table
from multibox.commands.demo.dataset import draw_dataset
from multibox.config import Config
from multibox.errors import ConfigError
from multibox.recipes import RECIPES, ssd300_lite

TABLE = """
recipe = "ssd300-lite"
[options]
network = "tiny"
steps = 4
batch-size = 4
precision = "fp32"
workers = 0
device = "cpu"
train-split = "train"
val-split = "val"
[changes.colours]
distort = true
[changes.slow]
lr = 1e-5
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablation") / "VOC2007"
    draw_dataset(folder, train_images=18, test_images=6)
    lists = folder / "ImageSets" / "Main"
    ids = (lists / "trainval.txt").read_text().splitlines()
    (lists / "val.txt").write_text("\n".join(ids[-4:]) + "\n")
    (lists / "train.txt").write_text("\n".join(ids[:-4]) + "\n")
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "table.toml").write_text(TABLE)
    return tmp_path / "table.toml"


def run(table: Path, data: Path, *, seeds: int = 1, folds: int = 0) -> tuple[Results, str]:
    said = io.StringIO()
    console = Console(file=said, width=200)
    out = table.parent / "out"
    return ablate(table, data, out, seeds=seeds, folds=folds, console=console), said.getvalue()


def test_a_table_gives_complete_configurations(table: Path) -> None:
    recipe, configs = read_table(table)
    base = ssd300_lite().override(
        {
            "network": "tiny",
            "steps": 4,
            "batch_size": 4,
            "precision": "fp32",
            "workers": 0,
            "device": "cpu",
            "train_split": "train",
            "val_split": "val",
        }
    )
    assert recipe == "ssd300-lite"
    assert configs == {
        BASE: base,
        "colours": base.override({"distort": True}),
        "slow": base.override({"lr": 1e-5}),
    }
    assert RECIPES["ssd300-lite"]() == ssd300_lite()


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("distort = true", "distrot = true", "unknown option 'distrot'.*'distort'"),
        ("distort = true", "distort = 3", "augmentation.distort.*3 is not of type bool"),
        ("lr = 1e-5", "lr = -1.0", "must be finite and above 0"),
        ('"ssd300-lite"', '"ssd300"', "unknown recipe 'ssd300'"),
        ('recipe = "ssd300-lite"', "", "lacks a recipe or changes"),
        ('recipe = "ssd300-lite"', 'recipe = "ssd300-lite"\nx = 1', "unknown entry 'x'"),
        ("[changes.slow]", '[changes."../slow"]', "a change with the name '../slow'"),
        ("[changes.slow]", "[changes.base]", "a change with the name 'base'"),
        ("[options]", "[options", "is not TOML"),
        ("[changes.colours]\ndistort = true\n[changes.slow]", "[changes]", "are tables"),
    ],
)
def test_a_wrong_table_is_refused(table: Path, before: str, after: str, message: str) -> None:
    assert before in TABLE
    table.write_text(TABLE.replace(before, after))
    with pytest.raises(ConfigError, match=f"(?s)table.toml.*{message}"):
        read_table(table)


def test_the_test_split_is_never_read(
    table: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = module.train
    monkeypatch.setattr(
        module, "train", lambda request, console: (seen.append(request), original(request, console))
    )
    found, said = run(table, data)
    assert [request.datasets[1].name for request in seen] == ["2007:val"] * 3
    assert all(request.datasets.test is None for request in seen)
    assert not list((table.parent / "out").rglob("test-*"))
    assert list(found.metrics) == [Run(name, 0, 0) for name in (BASE, "colours", "slow")]
    assert "3 of 3  slow, seed 0: voc07 0." in said


def test_results_are_kept_and_other_options_refused(
    table: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, said = run(table, data)
    out = table.parent / "out"
    lines = (out / "results.jsonl").read_text()
    # As if a fourth line had been cut off by a kill.
    (out / "results.jsonl").write_text(lines + '{"change": "slow", "se')
    with monkeypatch.context() as patched:
        patched.setattr(module, "train", lambda *_: pytest.fail("a run was repeated"))
        assert run(table, data) == (found, said)
    assert (out / "results.jsonl").read_text() == lines
    assert not list(out.glob("*/checkpoints"))
    more, _ = run(table, data, seeds=2)
    assert len(more.metrics) == 6
    assert more.metrics[Run(BASE, 0, 0)] == found.metrics[Run(BASE, 0, 0)]
    table.write_text(TABLE.replace("1e-5", "1e-6"))
    with pytest.raises(ConfigError, match="options of 'slow' have changed"):
        run(table, data)


def test_every_image_is_in_one_fold(
    table: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", lambda *_: None)
    config = read_table(table)[1][BASE]
    splits = list(module._splits(config, data, 3))
    train = {item.image_id for item in build.read_datasets(config, data).train.annotations}
    held_out = [{item.image_id for item in used.validation.annotations} for _, used in splits]
    assert [number for number, _ in splits] == [1, 2, 3]
    assert set().union(*held_out) == train
    assert sum(map(len, held_out)) == len(train)
    for _, used in splits:
        assert {item.image_id for item in used.train.annotations}.isdisjoint(
            item.image_id for item in used.validation.annotations
        )
    with pytest.raises(ConfigError, match="cannot be divided into 15 folds"):
        list(module._splits(config, data, 15))


def test_without_a_validation_split_folds_are_needed(table: Path, data: Path) -> None:
    table.write_text(TABLE.replace('val-split = "val"', 'val-split = ""'))
    with pytest.raises(ConfigError, match=r"does not use the test split.*--folds 5"):
        run(table, data)
    found, said = run(table, data, folds=2)
    assert len(found.metrics) == 6
    assert "slow, seed 0, fold 2 of 2" in said


@pytest.mark.parametrize(("seeds", "folds"), [(0, 0), (1, 1), (1, -1)])
def test_numbers_out_of_range_are_refused(table: Path, data: Path, seeds: int, folds: int) -> None:
    with pytest.raises(ConfigError, match="must be"):
        run(table, data, seeds=seeds, folds=folds)


def test_the_verdict_follows_from_pairs() -> None:
    values = {BASE: (0.5, 0.6, 0.7), "up": (0.6, 0.71, 0.79), "noise": (0.6, 0.5, 0.75)}
    metrics = {
        Run(change, seed, 0): {"voc07": value}
        for change, of_change in values.items()
        for seed, value in enumerate(of_change)
    }
    base, up, noise = Results(metrics).effects("voc07")
    assert (base.verdict, base.difference) == ("", 0)
    assert up.difference == pytest.approx(0.1)
    assert up.error == pytest.approx(0.01 / math.sqrt(3))
    assert (up.verdict, noise.verdict) == ("better", "within the noise")
    (_, down) = Results(
        {Run(BASE, 0, 0): {"voc07": 0.5}, Run("one", 0, 0): {"voc07": 0.1}}
    ).effects("voc07")
    assert down.verdict == "within the noise"  # One pair says nothing.
    turned = Results({run: {"voc07": -found["voc07"]} for run, found in metrics.items()})
    assert turned.effects("voc07")[1].verdict == "worse"


def test_the_command_prints_a_table(
    table: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ablate", str(table), "--data", str(data), "--out", str(table.parent / "out")]
    assert main([*words, "--seeds", "1"]) == 0
    printed = capsys.readouterr().out
    assert "colours" in printed
    assert "within the noise" in " ".join(printed.split())
    stored = json.loads((table.parent / "out" / "results.jsonl").read_text().splitlines()[0])
    assert Config.from_value(stored["config"]) == read_table(table)[1][BASE]


def test_every_row_of_the_table_of_options_trains(data: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "options.toml").read_text()
    assert read_table(Path(__file__).parents[2] / "benchmarks" / "options.toml")
    small = """
network = "tiny"
frozen-stages = 0
batch-size = 4
precision = "fp32"
workers = 0
device = "cpu"
train-split = "train"
val-split = "val"
"""
    text = text.replace("steps = 300", f"steps = 3{small}").replace(
        "swa-from = 200", "swa-from = 2"
    )
    (tmp_path / "table.toml").write_text(text)
    results, said = run(tmp_path / "table.toml", data)
    assert said.count("seed 0: voc07") == len(results.metrics) == 13
