"""A validation split decides, the test split is evaluated once: early stopping, best weights."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from multibox import Detector, build
from multibox.commands.convert_data import convert_data
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.evaluate import evaluate_model
from multibox.commands.report import write_report
from multibox.commands.train import Request, train
from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig
from multibox.data.formats.layouts import open_dataset
from multibox.errors import ConfigError, DataError
from multibox.inference import detect_all
from multibox.processes.signals import Interrupted
from multibox.training import periodic_evaluation
from multibox.weights.files import read_weights

CONFIG = Config(
    network="tiny",
    optimizer=OptimizerConfig(lr=0.005, ema_decay=0.9),
    schedule=ScheduleConfig(steps=12, schedule="cosine", warmup_steps=2),
    run=RunConfig(
        batch_size=4,
        precision="fp32",
        log_every=6,
        validate_every=6,
        evaluate_every=2,
        checkpoint_every=6,
        device="cpu",
        workers=0,
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits") / "VOC2007"
    draw_dataset(folder, train_images=24, test_images=6)
    lists = folder / "ImageSets" / "Main"
    ids = (lists / "trainval.txt").read_text().splitlines()
    (lists / "val.txt").write_text("\n".join(ids[-5:]) + "\n")
    (lists / "train.txt").write_text("\n".join(ids[:-5]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


def configured(**values: Any) -> Config:
    return CONFIG.override({"train_split": "train", "val_split": "val", **values})


def run(data: Path, out: Path, config: Config) -> str:
    said = io.StringIO()
    train(Request("tiny", config, data, out, None, "none"), Console(file=said, width=200))
    return said.getvalue()


def lines(out: Path, kind: str) -> list[dict[str, Any]]:
    journal = (out / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, journal) if line["kind"] == kind]


def test_the_test_split_is_evaluated_once_at_the_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(network: Any, dataset: Any, settings: Any) -> Any:
        seen.append(dataset.name)
        return detect_all(network, dataset, settings)

    monkeypatch.setattr(periodic_evaluation, "detect_all", spy)
    said = run(data, tmp_path / "a", configured())
    assert seen == ["2007:val"] * 6 + ["2007:test"]
    assert [line["step"] for line in lines(tmp_path / "a", "test")] == [12]
    assert "2007:test, weights of step 12: mAP voc07" in said
    stored = json.loads((tmp_path / "a" / "evaluations" / "test.json").read_text())
    again = evaluate_model(
        tmp_path / "a", which="last", data=None, split=None, on_bad=None, device="cpu", workers=0
    )
    assert stored["split"] == "2007:test"
    assert again["voc07"] == stored["voc07"]
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "These images were evaluated once, with the last weights" in page
    # A finished run is not tested again.
    run(data, tmp_path / "a", configured())
    assert len(seen) == 7


def test_best_weights_are_chosen_on_the_validation_split(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([0.1, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6])
    faked = lambda *_: {  # noqa: E731
        "voc07": {"mAP": next(means), "AP": {}},
        "voc12": {"mAP": 0.0, "AP": {}},
        "coco": {"AP": 0.0},
        "best_f1": None,
    }
    monkeypatch.setattr(periodic_evaluation, "score", faked)
    loaded: list[Any] = []
    monkeypatch.setattr(
        periodic_evaluation,
        "detect_all",
        lambda network, dataset, settings: (
            loaded.append({k: v.clone() for k, v in network.state_dict().items()}),
            detect_all(network, dataset, settings),
        )[1],
    )
    run(data, tmp_path / "a", configured(test_weights="best"))
    assert lines(tmp_path / "a", "test")[0]["weights"] == 6
    # The seventh network is that of the third evaluation.
    assert all((loaded[6][name] == loaded[2][name]).all() for name in loaded[2])
    assert any((loaded[6][name] != loaded[5][name]).any() for name in loaded[5])


def thresholds(out: Path) -> dict[str, float | None]:
    """The score threshold in the weights of each checkpoint."""
    steps = sorted((out / "checkpoints").iterdir())
    return {path.name: read_weights(path / "model.safetensors").score_threshold for path in steps}


def test_the_weights_store_the_threshold_of_the_last_evaluation_on_the_validation_split(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.2, 0.3, None, 0.9])
    faked = lambda *_: {  # noqa: E731
        "voc07": {"mAP": 0.1, "AP": {}},
        "voc12": {"mAP": 0.0, "AP": {}},
        "coco": {"AP": 0.0},
        "best_f1": (value := next(values)) and {"threshold": value},
    }
    monkeypatch.setattr(periodic_evaluation, "score", faked)
    config = configured(evaluate_every=4, checkpoint_every=3, keep_checkpoints=9)
    run(data, tmp_path / "a", config)
    # The value of the test split, 0.9, is not stored.
    assert thresholds(tmp_path / "a") == {
        "step-00000000": None,
        "step-00000003": None,
        "step-00000004": 0.2,
        "step-00000006": 0.2,
        "step-00000008": 0.3,
        "step-00000009": 0.3,
        "step-00000012": None,
    }


def test_the_threshold_is_the_best_of_the_evaluation_also_after_a_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(lr=0.02, evaluate_every=6, checkpoint_every=4, keep_checkpoints=9)
    run(data, tmp_path / "whole", config)
    found = thresholds(tmp_path / "whole")
    for step in (6, 12):
        file = tmp_path / "whole" / "evaluations" / f"step-{step:08d}.json"
        assert found[f"step-{step:08d}"] == json.loads(file.read_text())["best_f1"]["threshold"]
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000012")
    run(data, tmp_path / "resumed", config)
    assert thresholds(tmp_path / "resumed") == found
    assert Detector.open(tmp_path / "whole").score_threshold == found["step-00000012"]


def test_patience_stops_early_and_stays_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([0.3, 0.2, 0.2, 0.7])
    faked = lambda *_: {  # noqa: E731
        "voc07": {"mAP": next(means), "AP": {}},
        "voc12": {"mAP": 0.0, "AP": {}},
        "coco": {"AP": 0.0},
        "best_f1": None,
    }
    monkeypatch.setattr(periodic_evaluation, "score", faked)
    said = run(data, tmp_path / "a", configured(patience=2))
    assert "Stopped early at step 6, after --patience 2" in said
    assert [line["step"] for line in lines(tmp_path / "a", "evaluation")] == [2, 4, 6]
    assert [line["step"] for line in lines(tmp_path / "a", "test")] == [6]
    before = {path: path.read_bytes() for path in (tmp_path / "a").glob("metrics.jsonl")}
    run(data, tmp_path / "a", configured(patience=2))
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").glob("metrics.jsonl")}
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "The run was stopped early by its patience." in page


def test_without_a_validation_split_everything_is_on_the_test_split(
    data: Path, tmp_path: Path
) -> None:
    run(data, tmp_path / "a", configured(val_split=""))
    assert lines(tmp_path / "a", "test") == []
    assert not (tmp_path / "a" / "evaluations" / "test.json").exists()
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "nothing was chosen on the test images" in page


def test_without_a_test_split_the_page_says_so(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", configured(test_split=""))
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "There is no test split, so this result is optimistic" in page
    assert "2007:train: 19 images, 0 faults skipped. Validation on 2007:val: 5 images" in page
    assert "| Objects | Training | Validation |" in page
    assert "\n## Images of 2007:val\n" in page


def test_patience_without_a_test_split(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", configured(test_split="", patience=1, steps=40))
    assert lines(tmp_path / "a", "evaluation")[-1]["step"] < 40
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "The run was stopped early by its patience." in page
    assert "not complete" not in page


def test_a_drawn_validation_split_is_not_called_a_test_split(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", configured(split="80/20"))
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "There is no test split, so this result is optimistic" in page
    assert "test images" not in page


def test_the_page_says_that_images_are_in_two_splits(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "a", configured(val_split="train"))
    page = write_report(tmp_path / "a").with_name("report.md").read_text()
    assert "19 images of 2007:train also in 2007:train: the result is too good" in page


def test_drawn_splits_are_kept_by_the_run(data: Path, tmp_path: Path) -> None:
    config = CONFIG.override({"split": "60/20/20"})
    folder = tmp_path / "VOC2007"
    shutil.copytree(data, folder)
    said = run(folder, tmp_path / "a", config)
    split = json.loads((tmp_path / "a" / "split.json").read_text())
    assert list(split) == ["train", "val", "test"]
    assert sum(map(len, split.values())) == 30
    assert f"train: {len(split['train'])} images" in said
    stored = json.loads((tmp_path / "a" / "evaluations" / "test.json").read_text())
    assert stored["images"] == len(split["test"])
    again = evaluate_model(
        tmp_path / "a", which="last", data=None, split=None, on_bad=None, device="cpu", workers=0
    )
    assert again["voc07"] == stored["voc07"]
    # The splits can be exported, in any format.
    convert_data(folder, tmp_path / "yolo", target="yolo", split_of=tmp_path / "a")
    copied = open_dataset(tmp_path / "yolo")
    for name, images in split.items():
        assert [item.image_id for item in copied.read(name).annotations] == sorted(images)
    with pytest.raises(ConfigError, match="has no drawn splits"):
        convert_data(folder, tmp_path / "b", target="yolo", split_of=tmp_path)
    # Another image joins the dataset: the run leaves it out. Then one is missing.
    listed = folder / "ImageSets" / "Main" / "trainval.txt"
    names = listed.read_text().splitlines()
    add_image(folder, names[0])
    assert "1 image added after the splits were drawn" in run(folder, tmp_path / "a", config)
    listed.write_text("\n".join(names[2:]) + "\n")
    with pytest.raises(DataError, match=r"lacks the image .* and 1 more"):
        run(folder, tmp_path / "a", config)


def add_image(folder: Path, name: str) -> None:
    """Adds a copy of an image to the split trainval."""
    for kind, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        shutil.copy(folder / kind / f"{name}{suffix}", folder / kind / f"999999{suffix}")
    with (folder / "ImageSets" / "Main" / "trainval.txt").open("a") as file:
        file.write("999999\n")


def test_a_run_says_that_its_images_have_changed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "VOC2007"
    shutil.copytree(data, folder)
    run(folder, tmp_path / "a", CONFIG)
    names = (folder / "ImageSets" / "Main" / "trainval.txt").read_text().splitlines()
    add_image(folder, names[0])
    with pytest.raises(ConfigError, match="have changed since the run began: 30 images then, 31"):
        run(folder, tmp_path / "a", CONFIG)


def test_an_interrupted_run_ends_like_one_that_was_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(patience=3)
    run(data, tmp_path / "whole", config)
    from multibox.training.loop import Loop

    original = Loop._after_step

    def interrupted(self: Loop) -> None:
        original(self)
        if self._step == 6:
            raise Interrupted(15, 6)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_after_step", interrupted)
        with pytest.raises(Interrupted):
            run(data, tmp_path / "cut", config)
    run(data, tmp_path / "cut", config)
    for name in ("metrics.jsonl", "evaluations/test.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
