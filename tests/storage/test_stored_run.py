"""A run that an earlier version wrote stays readable by every verb that takes one.

`run-format-1` was written before `config.json` had a format number, and is never rewritten: a run
of `rig.small_dataset(train=4, test=2)`, killed after its second step of four. `tiny.TINY` is part
of it.
"""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import TINY

from multibox import Detector, build
from multibox.cli.main import main
from multibox.commands.evaluate import evaluate_model
from multibox.commands.report import write_report
from multibox.commands.train import Request, train
from multibox.config import FORMAT, Config
from multibox.errors import ConfigError
from multibox.storage.run_folder import read_config

STORED = Path(__file__).with_name("run-format-1")
DATA = STORED / "data"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return shutil.copytree(STORED / "run", tmp_path / "run")


def edit_config(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((run / "config.json").read_text())
    edit(config)
    (run / "config.json").write_text(json.dumps(config))


def evaluate(run: Path) -> dict[str, Any]:
    return evaluate_model(
        run, which="last", data=DATA, split=None, on_bad=None, device="cpu", workers=0
    )


def resume(run: Path) -> None:
    config = read_config(run)
    train(Request("tiny", config, DATA, run, None, "none"), Console(quiet=True))


def test_it_is_evaluated_as_it_was(stored: Path) -> None:
    record = json.loads((stored / "evaluations" / "step-00000002.json").read_text())
    found = evaluate(stored)
    assert found["voc12"]["mAP"] == pytest.approx(record["voc12"]["mAP"], abs=0.005)
    assert found["voc12"]["AP"].keys() == record["voc12"]["AP"].keys()


def test_its_report_is_written(stored: Path) -> None:
    assert "training summary" in write_report(stored).read_text()


def test_it_finds_things(stored: Path) -> None:
    picture = DATA / "JPEGImages" / "000004.jpg"
    detector = Detector.open(stored, device="cpu")
    assert (detector.stored_threshold, detector.score_threshold) == (None, 0.5)
    found = detector(picture, score_threshold=0.0)
    assert {detection.name for detection in found} == {"disc", "square"}


def test_it_is_resumed(stored: Path) -> None:
    before = (stored / "metrics.jsonl").read_text()
    resume(stored)
    after = (stored / "metrics.jsonl").read_text()
    assert after.startswith(before)
    steps = [json.loads(line)["step"] for line in after.splitlines()]
    assert steps == [1, 2, 2, 2, 3, 4, 4, 4]
    assert (stored / "checkpoints" / "step-00000004").is_dir()


def test_a_configuration_that_lacks_fields_is_as_one_with_their_defaults(stored: Path) -> None:
    whole = read_config(stored)

    def shorten(config: dict[str, Any]) -> None:
        del config["augmentation"]
        del config["run"]["compile"]
        del config["optimizer"]["accumulate"]

    edit_config(stored, shorten)
    assert read_config(stored) == whole
    evaluate(stored)
    write_report(stored)
    Detector.open(stored, device="cpu")
    resume(stored)


def test_a_newer_format_is_refused_by_every_verb(
    stored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    config = read_config(stored)
    edit_config(stored, lambda config: config.update(format=FORMAT + 1))
    picture = DATA / "JPEGImages" / "000004.jpg"
    for line in (
        ["evaluate", stored, "--data", DATA],
        ["report", stored],
        ["predict", stored, picture, "--out", stored.parent / "found"],
    ):
        assert main([str(word) for word in line]) == ConfigError.exit_code
        said = capsys.readouterr().err
        assert f"config.json: has format {FORMAT + 1}, but this version reads" in said
    request = Request("tiny", config, DATA, stored, None, "none")
    with pytest.raises(ConfigError, match=f"has format {FORMAT + 1}"):
        train(request, Console(file=io.StringIO()))


def test_what_is_written_now_has_its_format(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(Config(network="tiny").to_json())
    assert json.loads((tmp_path / "config.json").read_text())["format"] == FORMAT
    assert read_config(tmp_path) == Config(network="tiny")
