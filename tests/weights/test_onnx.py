"""ONNX Runtime computes the same from the file as PyTorch from the weights."""

import json
from pathlib import Path

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from oracles import detection
from tiny import FITTED, TINY, batch, tiny_network

from multibox import build
from multibox.commands.convert import convert
from multibox.errors import ConfigError, StorageError
from multibox.storage.run_folder import new_file
from multibox.weights import onnx
from multibox.weights.files import make_header


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "tiny", TINY)
        network = tiny_network(fitted=FITTED)
        header = make_header(network, "tiny", ("cat", "dog"), "CC0", 0.25)
        safetensors.torch.save_file(network.state_dict(), folder / "a.safetensors", header)
        # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        convert(folder / "a.safetensors", folder / "a.onnx", target="onnx")
        with pytest.raises(StorageError, match="exists"):
            convert(folder / "a.safetensors", folder / "a.onnx", target="onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["a.onnx", "a.safetensors"]
    return folder / "a.onnx"


@pytest.mark.parametrize("size", [1, 5])
def test_the_runtime_detects_the_same_as_the_network(exported: Path, size: int) -> None:
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    images, network = batch(size).images, tiny_network(fitted=FITTED).eval()
    found = session.run(["boxes", "scores"], {"images": images.permute(0, 2, 3, 1).numpy()})
    with torch.inference_mode():
        detections = network.detect(network(images))
    metadata = session.get_modelmeta().custom_metadata_map
    settings = json.loads(metadata["suppression"])
    assert json.loads(metadata["classes"]) == ["cat", "dog"]
    assert metadata["licence"] == "CC0"
    assert metadata["score_threshold"] == "0.25"
    assert len(json.loads(metadata["traits"])["fitted"]) == len(FITTED)
    for boxes, scores, expected in zip(*found, detections, strict=True):
        assert scores.shape == (len(network.default_boxes), 2)
        kept = detection.detect(
            scores,
            boxes,
            settings["score_threshold"],
            settings["per_class"],
            settings["iou_threshold"],
            settings["per_image"],
        )
        assert len(kept) == len(expected.scores) > 0
        places = [found.box for found in kept]
        np.testing.assert_allclose(boxes[places], expected.boxes.numpy(), atol=1e-5)
        np.testing.assert_allclose([f.score for f in kept], expected.scores.numpy(), atol=1e-6)
        assert [found.label for found in kept] == expected.labels.tolist()


def test_without_its_packages_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx, "PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"pip install 'multibox\[onnx\]'"):
        onnx.write_onnx(tmp_path / "a.onnx", tiny_network(), {})


def test_an_exporter_that_fails_is_not_taken_for_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def export(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", export)
    path = tmp_path / "a.onnx"
    with pytest.raises(ConfigError, match=r"\(no such operator\)"), new_file(path) as new:
        onnx.write_onnx(new, tiny_network(), {})
    assert not list(tmp_path.iterdir())
