"""Caffe's detectors that are not on VGG-16: OpenCV's face detector and MobileNet-SSD.

The expected values were computed by OpenCV 4.12.0 from the published prototxt files and the
parameters and the image of `oracles/formula.py` (`record_opencv.py`).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from caffe_detectors import (
    FACE_MAPS,
    FACE_PRIORS,
    MOBILENET_MAPS,
    MOBILENET_PRIORS,
    Layers,
    Prior,
    face,
    merged,
    mobilenet,
    priors,
)
from oracles import caffemodel as caffe
from oracles.caffemodel import HALVES, NEW, blob, caffemodel, message
from oracles.formula import image

from multibox import build
from multibox.commands.convert import convert
from multibox.errors import WeightsError
from multibox.export.network import network_graph
from multibox.ssd.network import SSD
from multibox.structures import Output
from multibox.training.initial_weights import initialise_from
from multibox.weights.class_names import VOC
from multibox.weights.files import Weights, load_network, read_weights

CPU = torch.device("cpu")
PRIORS = {
    "face": priors(FACE_MAPS, FACE_PRIORS),
    "mobilenet": priors(MOBILENET_MAPS, MOBILENET_PRIORS),
}


def layers_of(name: str) -> Layers:
    if name == "face":
        return face()
    return merged(mobilenet()) if name == "merged" else mobilenet()


def write(folder: Path, name: str, boxes: bytes | None = None) -> Path:
    path = folder / f"{name}.caffemodel"
    own = PRIORS["face" if name == "face" else "mobilenet"]
    path.write_bytes(caffemodel(layers_of(name)) + (own if boxes is None else boxes))
    return path


def outputs(network: SSD) -> Output:
    pixels = torch.from_numpy(image()).permute(2, 0, 1).unsqueeze(0)
    with torch.inference_mode():
        found: Output = network(pixels)
    return found


@pytest.mark.parametrize(
    ("name", "network", "classes", "recorded"),
    [
        ("face", "ssd300-resnet10", ("face",), "face"),
        ("mobilenet", "ssd300-mobilenetv1-caffe-bn", VOC, "mobilenet"),
        ("merged", "ssd300-mobilenetv1-caffe", VOC, "mobilenet"),
    ],
)
def test_outputs_and_detections_equal_those_of_opencv(
    tmp_path: Path, name: str, network: str, classes: tuple[str, ...], recorded: str
) -> None:
    weights = read_weights(write(tmp_path, name))
    assert (weights.network, weights.classes, weights.notes) == (network, classes, ())
    stored = np.load(Path(__file__).with_name(f"opencv_{recorded}.npz"))
    ours = load_network(weights, CPU)
    np.testing.assert_allclose(ours.default_boxes, stored["default_boxes"], rtol=0, atol=1e-6)
    found = outputs(ours)
    np.testing.assert_allclose(found.offsets[0], stored["offsets"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.logits[0], stored["logits"], rtol=0, atol=1e-4)
    expected = stored["detections"]
    detections = ours.detect(found)[0]
    best = detections.scores.argsort(descending=True, stable=True)[: len(expected)]
    np.testing.assert_allclose(detections.scores[best], expected[:, 1], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(detections.labels[best] + 1, expected[:, 0])
    np.testing.assert_allclose(detections.boxes[best], expected[:, 2:], rtol=0, atol=1e-4)


def test_half_precision_numbers_of_opencv_are_read(tmp_path: Path) -> None:
    """Only convolutions have them (`caffe_shrinker.cpp`)."""
    layers = face()
    convolutions = {name: blobs for name, blobs in layers.items() if blobs[0].ndim == 4}
    others = {name: blobs for name, blobs in layers.items() if name not in convolutions}
    path = tmp_path / "half.caffemodel"
    path.write_bytes(caffemodel(convolutions, HALVES) + caffemodel(others) + PRIORS["face"])
    tensors = read_weights(path).tensors
    np.testing.assert_array_equal(
        tensors["backbone.block64.conv2.weight"],
        layers["layer_64_1_conv2_h"][0].astype(np.float16).astype(np.float32),
    )
    np.testing.assert_array_equal(tensors["backbone.norm1.bias"], layers["conv1_scale_h"][1])


def test_statistics_are_divided_by_their_factor_and_get_the_epsilon_of_the_file(
    tmp_path: Path,
) -> None:
    layers = face()
    mean, variance, factor = layers["last_bn_h"]
    with_epsilon = message(
        100,
        message(1, b"last_bn_h")
        + b"".join(message(7, blob(values, NEW)) for values in (mean, variance, factor))
        + message(139, struct.pack("<Bf", 3 << 3 | 5, 1e-3)),
    )
    del layers["last_bn_h"]
    path = tmp_path / "epsilon.caffemodel"
    path.write_bytes(caffemodel(layers) + with_epsilon + PRIORS["face"])
    tensors = read_weights(path).tensors
    found = tensors["backbone.last_norm.running_mean"], tensors["backbone.last_norm.running_var"]
    np.testing.assert_allclose(found[0], mean / factor, rtol=1e-6)
    np.testing.assert_allclose(found[1] + 1e-5, variance / factor + 1e-3, rtol=1e-6)


def read_with_priors(folder: Path, maps: Sequence[str], boxes: Sequence[Prior]) -> Weights:
    name = "mobilenet" if maps == MOBILENET_MAPS else "face"
    return read_weights(write(folder, name, priors(maps, boxes)))


def test_other_sizes_and_ratios_are_taken_from_the_file(tmp_path: Path) -> None:
    boxes = [*MOBILENET_PRIORS]
    boxes[0] = boxes[0]._replace(min_px=45)
    boxes[2] = boxes[2]._replace(min_px=120.5, max_px=180, ratios=(2.5, 4))
    weights = read_with_priors(tmp_path, MOBILENET_MAPS, boxes)
    (note,) = weights.notes
    assert "differ from the published ones" in note
    fitted = weights.traits.fitted
    assert (fitted[0].min_size_px, fitted[0].max_size_px) == (45, None)
    assert fitted[2].ratios == (1, 2.5, 1 / 2.5, 4, 1 / 4)
    convert(tmp_path / "mobilenet.caffemodel", tmp_path / "ours", target="multibox")
    assert read_weights(tmp_path / "ours").traits == weights.traits
    ours = load_network(weights, CPU)
    # Caffe truncates the size to 120 pixels.
    left, top, right, bottom = ours.default_boxes[19 * 19 * 3 + 600].tolist()
    assert ((right - left) * 300, (bottom - top) * 300) == pytest.approx((120, 120))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ratios": (2, 3)}, "6 default boxes in a cell, not 4"),
        ({"max_px": None}, "3 default boxes in a cell, not 4"),
        ({"min_px": 90.0}, "impossible sizes"),
        ({"min_px": -1.0}, "impossible sizes"),
        ({"ratios": (0.0,)}, "3 default boxes|impossible sizes or ratios"),
        ({"step_px": 16}, "distance of 16 pixels, not 8"),
    ],
)
def test_default_boxes_that_the_network_cannot_have_are_refused(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    boxes = [FACE_PRIORS[0]._replace(**change), *FACE_PRIORS[1:]]
    with pytest.raises(WeightsError, match=rf"conv4_3_norm_mbox_priorbox: .*({reason})"):
        read_with_priors(tmp_path, FACE_MAPS, boxes)


def test_sizes_that_our_own_files_cannot_hold_are_refused(tmp_path: Path) -> None:
    boxes = [*FACE_PRIORS[:-1], FACE_PRIORS[-1]._replace(max_px=16 * 300 + 1)]
    with pytest.raises(WeightsError, match=r"conv9_2_mbox_priorbox: .*impossible sizes"):
        read_with_priors(tmp_path, FACE_MAPS, boxes)


def test_other_variances_are_refused(tmp_path: Path) -> None:
    one = caffe.prior_box("conv4_3_norm_mbox_priorbox", 30, max_size=60, ratios=(2,), step=8)
    with pytest.raises(WeightsError, match="has the variances"):
        read_weights(write(tmp_path, "face", one + priors(FACE_MAPS[1:], FACE_PRIORS[1:])))


def test_a_map_without_default_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="conv9_2_mbox_priorbox: has no default boxes"):
        read_with_priors(tmp_path, FACE_MAPS[:-1], FACE_PRIORS[:-1])


def test_a_file_without_default_boxes_has_the_published_ones_and_says_so(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, "face", b""))
    assert weights.traits == build.NETWORKS["ssd300-resnet10"].traits
    (note,) = weights.notes
    assert "does not record its default boxes" in note


def test_clipped_default_boxes_are_clipped(tmp_path: Path) -> None:
    clipped = caffe.prior_box(
        "conv4_3_norm_mbox_priorbox",
        30,
        max_size=60,
        ratios=(2,),
        clip=True,
        variances=(0.1, 0.1, 0.2, 0.2),
        step=8,
    )
    data = clipped + priors(FACE_MAPS[1:], FACE_PRIORS[1:])
    assert read_weights(write(tmp_path, "face", data)).traits.clip == "corners"


def test_a_detector_of_other_classes_takes_names(tmp_path: Path) -> None:
    path = tmp_path / "faces.caffemodel"
    path.write_bytes(caffemodel(face(classes=2)) + PRIORS["face"])
    found = read_weights(path)
    assert found.classes == ("class 1", "class 2")
    assert "does not record the names" in found.notes[0]
    assert read_weights(path, classes=("face", "mask")).classes == ("face", "mask")


@pytest.mark.parametrize("name", ["face", "mobilenet", "merged"])
def test_missing_and_unknown_layers_are_named(tmp_path: Path, name: str) -> None:
    layers = layers_of(name)
    lost, *_ = [key for key in layers if key.endswith(("conv6_2_h", "conv14_2"))]
    layers["extra"] = layers.pop(lost)
    path = tmp_path / "x.caffemodel"
    path.write_bytes(caffemodel(layers))
    with pytest.raises(WeightsError, match=rf"lacks {lost}\.weight.*has unknown extra\."):
        read_weights(path)


def test_a_training_keeps_all_of_the_face_detector(tmp_path: Path) -> None:
    weights = read_weights(write(tmp_path, "face"))
    network = build.build_network("ssd300-resnet10", 1)
    transfer = initialise_from(network, ("face",), weights)
    assert (transfer.random, transfer.notes) == ((), ())


@pytest.mark.parametrize("name", ["face", "merged"])
def test_onnx_and_multibox_files_detect_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, name)
    expected = outputs(load_network(read_weights(path), CPU))
    convert(path, tmp_path / "ours", target="multibox")
    found = outputs(load_network(read_weights(tmp_path / "ours"), CPU))
    np.testing.assert_array_equal(found.logits, expected.logits)
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    # Shape checks compare sizes, and the exporter would then treat the sizes as constants.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    graph = network_graph(load_network(read_weights(path), CPU))
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    _, scores = session.run(None, {"pixels": image()[None]})
    ours = expected.logits.softmax(dim=2)[..., 1:]
    np.testing.assert_allclose(scores, ours, rtol=0, atol=1e-5)
