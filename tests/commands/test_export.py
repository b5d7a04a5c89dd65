"""`export` leaves a file that agrees with the network, or none; the file is used like a run."""

import json
import shutil
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import onnx
import pytest
from exported import write_weights
from tiny import TINY, tiny_network

from multibox import Detector, build
from multibox.cli.main import main
from multibox.commands import export as module
from multibox.commands.bench import timing
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.evaluate import evaluate_model
from multibox.commands.export import Checks, export
from multibox.config import Config, DataConfig, RunConfig
from multibox.data.formats.layouts import read_dataset
from multibox.errors import ConfigError, DataError, StorageError, WeightsError
from multibox.export.files import Format, Precision
from multibox.export.runtimes import open_exported
from multibox.storage.checkpoint import Checkpoint, save
from multibox.weights.files import make_header

SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of an untrained network on a drawn dataset."""
    folder = tmp_path_factory.mktemp("run")
    draw_dataset(folder / "data", train_images=6, test_images=3)
    classes = read_dataset(folder / "data", "trainval").classes
    network = tiny_network(num_classes=len(classes))
    run = folder / "run"
    header = make_header(network, "tiny", classes, "CC0", 0.3)
    save(run / "checkpoints", Checkpoint(4, network.state_dict(), {}, {}), metadata=header)
    config = Config(
        network="tiny", data=DataConfig(), run=RunConfig(batch_size=2, precision="fp32")
    )
    (run / "config.json").write_text(config.to_json())
    (run / "run.json").write_text(json.dumps({"data_root": str(folder / "data"), "data": {}}))
    return run


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def target(request: pytest.FixtureRequest) -> Format:
    return request.param


def test_the_file_is_used_like_the_run(
    run: Path, tmp_path: Path, target: Format, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / f"a.b{SUFFIXES[target]}"
    assert main(["export", str(run), "--format", target, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(out)
    assert "3 images of test" in printed.err
    numbers = ["a.b.bin"] if target == "openvino" else []
    names = sorted([out.name, *numbers, f"{out.name}.json", f"{out.name}.md"])
    assert sorted(path.name for path in out.parent.iterdir()) == names

    options: dict[str, Any] = {
        "which": "last",
        "split": "test",
        "on_bad": None,
        "device": "cpu",
        "workers": 0,
    }
    ours = evaluate_model(run, data=None, **options)
    theirs = evaluate_model(out, data=run.parent / "data", **options)
    assert theirs["voc12"]["mAP"] == pytest.approx(ours["voc12"]["mAP"], abs=1e-4)

    picture = next((run.parent / "data" / "JPEGImages").iterdir())
    for name, model in (("ours", run), ("theirs", out)):
        words = [str(model), str(picture), "--out", str(tmp_path / name)]
        assert main(["predict", *words, "--score-threshold", "0.05", "--device", "cpu"]) == 0
    files = [tmp_path / name / f"{picture.stem}.json" for name in ("ours", "theirs")]
    first, second = (json.loads(file.read_text())["detections"] for file in files)
    assert [one["name"] for one in first] == [one["name"] for one in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one["box_px"], other["box_px"], atol=0.01)
    assert Detector.open(out).score_threshold == 0.3


def test_the_figures_are_printed_and_stored(run: Path, tmp_path: Path, target: Format) -> None:
    out = tmp_path / f"a{SUFFIXES[target]}"
    lines = export(run, out, target=target)
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    agreement = record["agreement"]
    assert (record["precision"], record["licence"], agreement["images"]) == ("fp32", "CC0", 3)
    assert agreement["box_px"] <= 0.01
    assert agreement["score"] <= 1e-4
    assert agreement["AP"]["exported"] == pytest.approx(agreement["AP"]["original"], abs=1e-4)
    assert agreement["compared"] > 100
    assert any(f"{agreement['AP']['exported']:.4f}" in line for line in lines)
    header = open_exported(out).header
    assert json.loads(header["agreement"]) == agreement
    assert json.loads(header["suppression"])["iou_threshold"] == 0.45
    assert header["multibox"] == record["versions"]["multibox"]
    card = out.with_name(f"{out.name}.md").read_text()
    assert record["runtime"] in card
    assert "| licence | CC0 |" in card
    assert "from 0.3 on" in card


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_narrow_formats(run: Path, tmp_path: Path, target: Format, precision: Precision) -> None:
    out = tmp_path / f"a{SUFFIXES[target]}"
    export(run, out, target=target, precision=precision, checks=Checks(max_loss=1.0))
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert record["precision"] == precision
    assert record["agreement"]["compared"] > 0


def test_a_file_that_differs_is_not_left_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = module.build

    def changed(*arguments: Any) -> onnx.ModelProto:
        model = whole(*arguments)
        (threshold,) = [x for x in model.graph.initializer if x.name == "iou_threshold"]
        threshold.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.2), "iou_threshold"))
        return model

    monkeypatch.setattr(module, "build", changed)
    with pytest.raises(WeightsError, match=r"differs from the network .* have no counterpart"):
        export(run, tmp_path / "new" / "a.onnx", target="onnx")
    assert not list((tmp_path / "new").iterdir())


def test_int8_that_loses_too_much_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = iter([0.8, 0.78] * 2)
    monkeypatch.setattr(module, "_mean", lambda *_: next(means))
    out = tmp_path / "a.onnx"
    with pytest.raises(WeightsError, match=r"int8 loses 0\.0200 .* more than 0\.01.*--max-loss"):
        export(run, out, target="onnx", precision="int8")
    assert not list(tmp_path.iterdir())
    export(run, out, target="onnx", precision="int8", checks=Checks(max_loss=0.03))
    assert out.exists()


def test_a_dataset_with_faults_is_refused_or_its_faults_are_left_out(
    run: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(run.parent / "data", data)
    for split in ("trainval", "test"):
        name = (data / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[0]
        (data / "JPEGImages" / f"{name}.jpg").write_bytes(b"not an image")
    out = tmp_path / "a.onnx"
    words = ["export", str(run), "--data", str(data), "--out", str(out), "--precision", "int8"]
    words += ["--max-loss", "1"]
    assert main(words) == DataError.exit_code
    assert main([*words, "--on-bad", "skip"]) == 0
    assert json.loads((tmp_path / "a.onnx.json").read_text())["agreement"]["images"] == 2


def test_weights_without_a_run_are_compared_on_drawn_pictures(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "a.safetensors")
    lines = export(weights, tmp_path / "a.onnx", target="onnx", licence="CC-BY-4.0")
    assert any("drawn pictures; use --data" in line for line in lines)
    record = json.loads((tmp_path / "a.onnx.json").read_text())
    assert record["agreement"]["AP"] == {"original": None, "exported": None}
    assert open_exported(tmp_path / "a.onnx").licence == record["licence"] == "CC-BY-4.0"
    with pytest.raises(ConfigError, match=r"training images are unknown.*--calibration-split"):
        export(weights, tmp_path / "b.onnx", target="onnx", precision="int8")


def test_what_exists_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.onnx.md").write_text("mine")
    with pytest.raises(StorageError, match=r"a\.onnx\.md: already exists"):
        export(run, tmp_path / "a.onnx", target="onnx")
    with pytest.raises(ConfigError, match=r"openvino files end in \.xml"):
        export(run, tmp_path / "b.onnx", target="openvino")
    with pytest.raises(ConfigError, match="there are no images"):
        export(run, tmp_path / "b.onnx", target="onnx", checks=Checks(images=0))


def test_options_without_effect_on_an_exported_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(ConfigError, match="Leave out --which best"):
        Detector.open(path, which="best")
    with pytest.raises(ConfigError, match="runs on the CPU"):
        Detector.open(path, device="cuda")


def test_bench_times_an_exported_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "RUNS", 1)
    out = tmp_path / "a.onnx"
    export(run, out, target="onnx")
    assert main(["bench", "predict", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [one["name"] for one in figures] == ["file alone", "file alone, resizing", "predict"]
    assert main(["bench", "step", str(out)]) == ConfigError.exit_code
