"""Each runtime computes the same from an exported file as PyTorch from the weights."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import CLASSES, write_exported
from oracles import detection
from tiny import FITTED, tiny_network

from multibox.errors import ConfigError
from multibox.export import files, network, runtimes
from multibox.export.files import Format
from multibox.export.runtimes import ExportedDetector, open_exported
from multibox.rng import stream
from multibox.structures import Detections

FORMATS: tuple[Format, ...] = ("onnx", "openvino")
SIZES = ((64, 64), (64, 65), (63, 64), (32, 128), (128, 128), (2, 300), (301, 7), (97, 201))


@pytest.fixture(scope="module", params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported(tmp_path_factory.mktemp("exported"), request.param)


@pytest.fixture(scope="module")
def exported(path: Path) -> ExportedDetector:
    return open_exported(path)


def images(count: int, height: int, width: int) -> np.ndarray:
    return stream(height * 1000 + width, "images").integers(
        0, 256, (count, height, width, 3), dtype=np.uint8
    )


def by_pytorch(batch: np.ndarray) -> list[Detections]:
    """The detections of images that OpenCV resized."""
    model = tiny_network(fitted=FITTED).eval()
    resized = np.stack([cv2.resize(image, (64, 64)) for image in batch])
    with torch.inference_mode():
        return model.detect(model(torch.from_numpy(resized).permute(0, 3, 1, 2)))


def same(found: Detections, expected: Detections) -> None:
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes.clamp(0, 1), atol=1e-5)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert found.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_of_any_size(exported: ExportedDetector, height: int, width: int) -> None:
    batch = images(1, height, width)
    same(exported.detect(batch)[0], by_pytorch(batch)[0])


@pytest.mark.parametrize("size", [(64, 64), (50, 90)])
@pytest.mark.parametrize("count", [2, 5])
def test_batches(exported: ExportedDetector, count: int, size: tuple[int, int]) -> None:
    batch = images(count, *size)
    for found, expected in zip(exported.detect(batch), by_pytorch(batch), strict=True):
        same(found, expected)


def test_a_threshold_leaves_out_lower_scores(exported: ExportedDetector) -> None:
    batch = images(1, 64, 64)
    (everything,) = exported.detect(batch)
    middle = everything.scores[5].item()
    (found,) = exported.detect(batch, score_threshold=middle)
    assert found.scores.tolist() == everything.scores[:6].tolist()


def test_the_graph_resizes_like_opencv(tmp_path: Path) -> None:
    """Bit by bit, for many sizes."""
    model = onnx.load(write_exported(tmp_path, "onnx"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("pixels", 2, None))
    model = onnx.utils.Extractor(model).extract_model(["images"], ["pixels"])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    sizes = stream(0, "sizes").integers(1, 700, (40, 2)).tolist()
    for height, width in ((1, 1), *SIZES, *sizes):
        (image,) = images(1, height, width)
        (pixels,) = session.run(None, {"images": image[None]})
        np.testing.assert_array_equal(pixels[0], cv2.resize(image, (64, 64)), f"{height} {width}")


def test_the_suppression_is_that_of_a_separate_implementation(tmp_path: Path) -> None:
    """With ties, with boxes that reach beyond the image, and with more candidates than may be."""
    from multibox.export.graph import detector_graph
    from multibox.ssd.detect import DetectionSettings

    settings = DetectionSettings(per_class=30, per_image=25, score_threshold=0.3)
    rng = stream(0, "detections")
    low = rng.uniform(-0.2, 0.8, (2, 50, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.01, 0.6, (2, 50, 2))], 2).astype(np.float32)
    scores = rng.integers(0, 8, (2, 50, 3)).astype(np.float32) / 8
    model = detector_graph(constant_network(boxes, scores), (4, 4), (50, 3), settings)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"images": np.zeros((2, 4, 4, 3), np.uint8)})
    for box, score, got_boxes, got_scores, got_labels in zip(boxes, scores, *found, strict=True):
        expected = detection.detect(score, box, 0.3, 30, settings.iou_threshold, 25)
        count = len(expected)
        assert got_labels.tolist() == [one.label for one in expected] + [-1] * (25 - count)
        np.testing.assert_array_equal(got_scores[:count], [one.score for one in expected])
        places = [one.box for one in expected]
        np.testing.assert_allclose(got_boxes[:count], 4 * box[places].clip(0, 1), atol=1e-6)
        assert not got_boxes[count:].any()
        assert not got_scores[count:].any()


def constant_network(boxes: np.ndarray, scores: np.ndarray) -> onnx.ModelProto:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    network (uint8[B, 4, 4, 3] pixels) => (float[B, 50, 4] unit_boxes, float[B, 50, 3] class_scores)
    { unit_boxes = Identity(b)  class_scores = Identity(s) }"""
    model = onnx.parser.parse_model(text)
    for name, value in (("b", boxes), ("s", scores)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return model


def test_images_of_the_network_s_size_skip_the_resizing(tmp_path: Path) -> None:
    data = write_exported(tmp_path, "onnx").read_bytes()
    short = onnx.ModelProto.FromString(runtimes._without_resizing(data))
    operators = {node.op_type for node in short.graph.node}
    assert "Floor" not in operators
    assert "Floor" in {node.op_type for node in onnx.ModelProto.FromString(data).graph.node}


def test_the_metadata_are_those_of_the_weights(exported: ExportedDetector) -> None:
    assert (exported.classes, exported.licence) == (CLASSES, "CC0")
    assert (exported.image_size_px, exported.score_threshold) == ((64, 64), 0.25)
    assert len(json.loads(exported.header["traits"])["fitted"]) == len(FITTED)


def test_opencv_reads_the_file(tmp_path: Path) -> None:
    if int(cv2.__version__.partition(".")[0]) < 5:
        pytest.skip("OpenCV 4 lacks operators")
    reader = cv2.dnn.readNetFromONNX(str(write_exported(tmp_path, "onnx")))
    batch = images(1, 90, 120)
    reader.setInput(batch)
    boxes, scores, _ = reader.forward(["boxes", "scores", "labels"])
    (expected,) = by_pytorch(batch)
    count = len(expected.scores)
    np.testing.assert_allclose(scores[0, :count], expected.scores, atol=1e-5)
    unit = boxes[0, :count] / [120, 90, 120, 90]
    np.testing.assert_allclose(unit, expected.boxes.clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize(("precision", "most"), [("fp16", 2e-3), ("int8", 0.1)])
def test_narrow_formats_are_close(
    tmp_path: Path, target: Format, precision: files.Precision, most: float
) -> None:
    exported = open_exported(write_exported(tmp_path, target, precision))
    batch = images(3, 64, 64)
    for found, expected in zip(exported.detect(batch), by_pytorch(batch), strict=True):
        assert len(found.scores) > 0
        assert abs(found.scores[:10] - expected.scores[:10]).max() < most


def test_int8_convolutions_are_narrow_and_the_heads_are_not_rounded(tmp_path: Path) -> None:
    model = onnx.load(write_exported(tmp_path, "onnx", "int8"))
    producers = {name: node for node in model.graph.node for name in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 6
    assert all(producers[node.input[0]].op_type == "DequantizeLinear" for node in convolutions)
    rounded = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert sum(node.output[0] in rounded for node in convolutions) <= 2


def test_without_its_packages_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.PACKAGES, "onnx", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"no_such_package is not .*pip install 'multibox\[onnx"):
        files.build(tiny_network(), "onnx", "fp32", ())


def test_an_exporter_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(ConfigError, match=r"\(no such operator\)"):
        network.network_graph(tiny_network())
