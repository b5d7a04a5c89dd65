"""Wrong input ends in one clear message, the right exit status and no traceback."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from system.conftest import TINY, Command

from multibox.cli.main import main

pytestmark = pytest.mark.system


def refused(result: object, status: int, *words: str) -> None:
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.split())
    for word in words:
        assert word in message


def copied(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "copy"))


def test_missing_folder(called: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = tmp_path / "nowhere"
    result = called("train", "ssd300-lite", "--data", data, "--out", out)
    refused(result, 3, "nowhere", "does not exist")
    assert not out.exists()


def test_empty_split(called: Command, drawn: Path, tmp_path: Path) -> None:
    data = copied(drawn, tmp_path)
    (data / "ImageSets" / "Main" / "trainval.txt").write_text("")
    refused(called("train", "ssd300-lite", "--data", data, "--out", tmp_path / "r"), 3, "trainval")


def test_class_that_no_object_has(called: Command, drawn: Path, tmp_path: Path) -> None:
    line = ["train", "ssd300-lite", "--data", drawn, "--out", tmp_path / "r", "--on-bad", "skip"]
    refused(called(*line, "--classes", "fish", "unicorn"), 3, "'unicorn'")


def test_truncated_jpeg(called: Command, drawn: Path, tmp_path: Path) -> None:
    data = copied(drawn, tmp_path)
    victim = sorted((data / "JPEGImages").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-2000])
    result = called("train", "ssd300-lite", "--data", data, "--out", tmp_path / "r", *TINY)
    refused(result, 3, victim.name)


def test_jpeg_that_rots_during_the_run(called: Command, drawn: Path, tmp_path: Path) -> None:
    data = copied(drawn, tmp_path)
    for victim in (data / "JPEGImages").iterdir():
        content = bytearray(victim.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 400] = b"\xff\xd8" * 200
        victim.write_bytes(content)
    result = called("train", "ssd300-lite", "--data", data, "--out", tmp_path / "r", *TINY)
    refused(result, 3, ".jpg")


def test_unknown_recipe(called: Command) -> None:
    refused(called("train", "ssd300-light", "--data", "x", "--out", "y"), 2, "ssd300-lite")


@pytest.mark.parametrize(("flag", "value"), [("--lr", "-1"), ("--lr", "fast"), ("--steps", "0")])
def test_bad_value(called: Command, tmp_path: Path, flag: str, value: str) -> None:
    line = ["train", "ssd300-lite", "--data", tmp_path, "--out", tmp_path / "r", flag, value]
    refused(called(*line), 2, flag.lstrip("-"))


def test_run_of_another_configuration(called: Command, drawn: Path, tmp_path: Path) -> None:
    line = ["train", "ssd300-lite", "--data", drawn, "--out", tmp_path / "r", *TINY]
    assert called(*line, "--steps", "1").returncode == 0
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    refused(called(*line, "--steps", "1", "--lr", "0.5"), 2, "--lr: 0.002, now 0.5")
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before


def test_folder_of_something_else(called: Command, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    refused(called("train", "ssd300-lite", "--data", drawn, "--out", tmp_path), 2, "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    file = tmp_path / "thesis.tex"
    refused(called("train", "ssd300-lite", "--data", drawn, "--out", file), 5, "Not a directory")


@pytest.mark.parametrize("below", [".", "runs/a"])
def test_run_in_its_own_dataset(called: Command, drawn: Path, tmp_path: Path, below: str) -> None:
    data = copied(drawn, tmp_path)
    before = sorted(data.rglob("*"))
    result = called("train", "ssd300-lite", "--data", data, "--out", data / below)
    refused(result, 2, "folder is inside the dataset")
    assert sorted(data.rglob("*")) == before


def test_ctrl_c_while_everything_is_loaded() -> None:
    """It ends the process without a word, and without what Python was loading."""
    line = [sys.executable, "-X", "importtime", "-m", "multibox", "report", "nowhere"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stderr is not None
        for shown in process.stderr:
            if "torch" in shown:
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in rest


def test_predict_goes_on_after_a_bad_file(called: Command, drawn: Path, tmp_path: Path) -> None:
    line = ["train", "ssd300-lite", "--data", drawn, "--out", tmp_path / "r", *TINY]
    assert called(*line, "--steps", "1").returncode == 0
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    good = sorted((drawn / "JPEGImages").iterdir())[0]
    out = tmp_path / "found"
    result = called("predict", tmp_path / "r", tmp_path / "broken.jpg", good, "--out", out)
    refused(result, 3, "broken.jpg")
    record = json.loads((out / f"{good.stem}.json").read_text())
    assert record["image"] == str(good)
    assert (out / f"{good.stem}.jpg").stat().st_size > 0


def test_options_that_results_files_make_no_use_of(
    called: Command, drawn: Path, tmp_path: Path
) -> None:
    line = ["evaluate", "--results", tmp_path, "--data", drawn]
    for option in (["--which", "best"], ["--device", "cpu"], ["--on-bad", "skip"]):
        refused(called(*line, *option), 2, f"{option[0]} has no effect with --results")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_result_that_cannot_be_written(
    drawn: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    with Path("/dev/full").open("w") as full, contextlib.redirect_stderr(said):
        monkeypatch.setattr("sys.stdout", full)
        assert main(["check", str(drawn), *options]) == 5
    words = " ".join(said.getvalue().split())
    assert words.startswith("error: standard output: the result cannot be written (No space ")


def test_a_closed_standard_output_is_the_user_s_wish(
    drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["check", str(drawn)]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names there are text")
def test_paths_that_are_no_text(called: Command, drawn: Path, tmp_path: Path) -> None:
    data, run = (tmp_path / os.fsdecode(name) for name in (b"d\xff", b"r\xff"))
    shutil.copytree(drawn, data)
    line = ["train", "ssd300-lite", "--data", data, "--out", run, *TINY, "--steps", "2"]
    for _ in range(2):  # its own folder is known again
        result = called(*line)
        assert result.returncode == 0, result.stderr
    assert Path(json.loads((run / "run.json").read_text())["data_root"]) == data
    page = subprocess.run(
        [sys.executable, "-m", "multibox", "report", run], stdout=subprocess.PIPE, check=True
    )
    assert Path(os.fsdecode(page.stdout.rstrip(b"\n"))).is_file()


@pytest.mark.parametrize("verb", ["evaluate", "report", "predict"])
def test_no_run(called: Command, tmp_path: Path, verb: str) -> None:
    images = [tmp_path / "a.jpg", "--out", tmp_path / "o"] if verb == "predict" else []
    result = called(verb, tmp_path / "none", *images)
    assert result.returncode in (2, 4, 5)
    refused(result, result.returncode, "none")
