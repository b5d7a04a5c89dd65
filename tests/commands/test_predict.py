import copy
import json
import math
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from multibox import Detector
from multibox.build import build_network, new_network
from multibox.cli.main import main
from multibox.commands.convert import convert
from multibox.commands.predict import Options, predict
from multibox.config import Config, Precision, RunConfig
from multibox.data.array_images import rgb_pixels
from multibox.data.images import read_image
from multibox.drawing import draw_detections, draw_truth, write_picture
from multibox.errors import ConfigError, DataError, StorageError, WeightsError
from multibox.precision import autocast, cast_convolutions
from multibox.ssd.detect import DetectionSettings
from multibox.ssd.network import Traits
from multibox.storage.checkpoint import Checkpoint, save
from multibox.structures import Detections
from multibox.weights.files import Weights, find_weights, load_network, make_header, read_weights

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the checkpoints of an untrained network."""
    run = tmp_path_factory.mktemp("run")
    network = new_network(Config(network="ssd300-lite"), 2)
    metadata = make_header(network, "ssd300-lite", CLASSES, "CC0")
    for step in (4, 8):
        state = {"best": {"step": 4, "mAP": 0.5}}
        checkpoint = Checkpoint(step, network.state_dict(), {}, state)
        save(run / "checkpoints", checkpoint, metadata=metadata)
    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    y, x = np.mgrid[:120, :200]
    write_picture(path, np.stack([x, y, x ^ y], axis=2).astype(np.uint8))
    return path


@pytest.mark.parametrize(("which", "step"), [("last", 8), ("best", 4), ("4", 4)])
def test_a_run_s_checkpoints_are_found(run: Path, which: str, step: int) -> None:
    assert find_weights(run, which).parent.name == f"step-{step:08d}"


def test_a_checkpoint_that_is_not_there_names_those_that_are(run: Path) -> None:
    with pytest.raises(WeightsError, match="4, 8"):
        find_weights(run, "5")


def test_images_in_memory_give_what_files_give(run: Path, tmp_path: Path) -> None:
    detector = Detector.open(run, device="cpu")
    grey = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    rgb = np.stack([grey, grey.T.reshape(60, 80), 255 - grey], axis=2)
    rgba = np.concatenate([rgb, grey[..., None]], axis=2)
    for pixels in (grey, rgb, rgba):
        file = tmp_path / f"{pixels.shape[-1]}.png"
        picture = Image.fromarray(pixels)
        picture.save(file)
        expected = detector(file, score_threshold=0.0)
        assert len(expected) > 10
        assert detector(pixels, score_threshold=0.0) == expected
        assert detector(picture, score_threshold=0.0) == expected
    assert detector(grey[..., None], score_threshold=0.0) == detector(grey, score_threshold=0.0)
    palette = Image.fromarray(rgb).convert("P")
    assert detector(palette) == detector(palette.convert("RGB"))
    assert detector(rgb[::2, ::-1]) == detector(rgb[::2, ::-1].copy())


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4, 3)), "a float64 array of shape (4, 4, 3). Give uint8"),
        (np.zeros((4, 4, 3), np.float32), "a float32 array"),
        (np.zeros((4, 4), np.bool_), "a bool array"),
        (np.zeros((4, 4, 3), np.uint16), "a uint16 array"),
        (np.zeros((4, 4, 3), np.int64), "int64 array"),
        (np.zeros((3, 40, 40), np.uint8), "a uint8 array of shape (3, 40, 40)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "of shape (1, 4, 4, 3)"),
        (np.zeros(12, np.uint8), "of shape (12,)"),
        (np.zeros((0, 4, 3), np.uint8), "has no pixels"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "of type Tensor. Give a path"),
        ([[1, 2, 3]], "of type list"),
        (None, "of type NoneType"),
        (Image.new("I;16", (4, 4)), "the mode 'I;16'"),
        (Image.new("F", (4, 4)), "the mode 'F'"),
    ],
)
def test_what_is_not_an_image_is_refused(run: Path, image: object, reason: str) -> None:
    with pytest.raises(DataError, match=re.escape(reason)):
        rgb_pixels(image)


@pytest.mark.parametrize(
    ("asked", "auto", "computed"),
    [
        ("fp32", "bf16", torch.float32),
        ("bf16", "fp32", torch.bfloat16),
        ("auto", "bf16", torch.bfloat16),
        ("auto", "fp32", torch.float32),
    ],
)
def test_a_run_predicts_in_its_precision(
    asked: Precision,
    auto: Precision,
    computed: torch.dtype,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: auto == "bf16")
    copied = shutil.copytree(run, tmp_path / "run")
    config = Config(network="ssd300-lite", run=RunConfig(precision=asked))
    (copied / "config.json").write_text(config.to_json())
    for path in (copied, find_weights(copied).parent, find_weights(copied)):
        detector = Detector.open(path, device="cpu")
        kernels = {m.weight.dtype for m in detector._network.modules() if isinstance(m, nn.Conv2d)}
        assert (detector._precision, kernels) == (computed, {computed})


def test_weights_alone_are_enough(run: Path, picture: Path, tmp_path: Path) -> None:
    alone = tmp_path / "detector.safetensors"
    alone.write_bytes(find_weights(run).read_bytes())
    detector = Detector.open(alone)
    assert detector.classes == CLASSES
    assert detector(picture, score_threshold=0.0) == Detector.open(run)(
        read_image(picture), score_threshold=0.0
    )


def test_boxes_lie_in_the_picture_by_descending_score(run: Path, picture: Path) -> None:
    found = Detector.open(run)(picture, score_threshold=0.0)
    assert found
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    for detection in found:
        x0, y0, x1, y1 = detection.box_px
        assert 0 <= x0 <= x1 <= 200
        assert 0 <= y0 <= y1 <= 120
        assert detection.name in CLASSES


def test_results_of_equal_names_do_not_overwrite_each_other(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    names = ("1/a.jpg", "2/a.jpg", "3/a-2.jpg", "4/A.jpg", "5/a.jpg")
    images = [tmp_path / name for name in names]
    for image in images:
        image.parent.mkdir()
        image.write_bytes(picture.read_bytes())
    out = tmp_path / "out"
    for _ in range(2):
        # Earlier results are replaced.
        assert predict(Detector.open(run), images, out=out, options=Options(0.5)).refusals == []
        found = {path.stem: json.loads(path.read_text())["image"] for path in out.glob("*.json")}
        stems = ("a", "a-3", "a-2", "A-4", "a-5")
        assert found == dict(zip(stems, map(str, images), strict=True))


@pytest.mark.parametrize("name", ["ab" * 150, "line\nbreak\u202e", "سيارة", "\U0001f600", "\ud800"])
def test_any_name_is_drawn_in_a_label_that_fits(name: str) -> None:
    image = np.zeros((300, 600, 3), np.uint8)
    found = Detections(torch.tensor([[0.1, 0.4, 0.2, 0.6]]), torch.tensor([0.9]), torch.tensor([0]))
    draw_detections(image, found, [name], score_threshold=0.5)
    assert image.any()
    assert not image[:, 500:].any()


def test_a_folder_stands_for_the_images_in_it(run: Path, picture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "c.tiff", "notes.txt", ".DS_Store", "below/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = cv2.imencode(".tiff", read_image(picture))[1].tobytes()
        (folder / name).write_bytes(content if name == "c.tiff" else picture.read_bytes())
    out, other = tmp_path / "out", tmp_path / "b.jpeg"
    other.write_bytes(picture.read_bytes())
    done = predict(Detector.open(run), [folder, other], out=out, options=Options(0.5))
    assert (done.images, done.refusals) == (4, [])
    found = {path.stem: json.loads(path.read_text())["image"] for path in out.glob("*.json")}
    names = {"a": "a.JPG", "b": "b.png", "c": "c.tiff"}
    expected = {stem: str(folder / name) for stem, name in names.items()}
    assert found == expected | {"b-2": str(other)}
    records = [json.loads(path.read_text()) for path in out.glob("*.json")]
    assert done.objects == sum(len(record["detections"]) for record in records)


def test_a_folder_without_images_is_refused(run: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"empty: contains no images\. Use a folder with files of"):
        predict(
            Detector.open(run),
            [picture, tmp_path / "empty"],
            out=tmp_path / "out",
            options=Options(0.5),
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cat.jpg", "cat.json"])
def test_what_is_no_earlier_result_is_not_replaced(
    run: Path, picture: Path, tmp_path: Path, name: str
) -> None:
    photo = tmp_path / "cat.jpg"
    photo.write_bytes(picture.read_bytes())
    out = tmp_path if name == photo.name else tmp_path / "out"
    out.mkdir(exist_ok=True)
    if name == "cat.json":
        (out / name).write_text('{"label": "cat"}')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StorageError, match=rf"{name}: already exists"):
        predict(Detector.open(run), [picture, photo], out=out, options=Options(0.5))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_no_score_has_and_no_image_are_refused(
    run: Path, picture: Path, tmp_path: Path, threshold: float
) -> None:
    detector = Detector.open(run)
    with pytest.raises(ConfigError, match=r"lie in 0\.\.1"):
        predict(detector, [picture], out=tmp_path / "out", options=Options(threshold))
    with pytest.raises(ConfigError, match="no image is given"):
        predict(detector, [], out=tmp_path / "out", options=Options(0.5))


def with_threshold(run: Path, path: Path, text: str | None) -> Path:
    """A file of the run's weights that stores a score threshold."""
    weights = read_weights(find_weights(run))
    header = {} if text is None else {"score_threshold": text}
    return rewritten(path, weights, classes=json.dumps(CLASSES), **header)


def test_the_weights_threshold_is_used_unless_another_is_given(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    old = Detector.open(with_threshold(run, tmp_path / "old", None), device="cpu")
    every = old(picture, score_threshold=0.0)
    stored = every[len(every) // 2].score
    new = Detector.open(with_threshold(run, tmp_path / "new", json.dumps(stored)), device="cpu")
    assert (old.stored_threshold, old.score_threshold) == (None, 0.5)
    assert new.score_threshold == new.stored_threshold == stored
    assert old(picture) == [found for found in every if found.score >= 0.5]
    assert new(picture) == [found for found in every if found.score >= stored]
    assert new(picture, score_threshold=0.0) == every
    # The detection with the stored score itself remains.
    assert stored in {found.score for found in new(picture)}
    for detector, given, sentence, count in (
        (old, None, "score threshold 0.5, because the weights do not store one", len(old(picture))),
        (new, None, f"score threshold {stored:.4g}, the best F1 on the validation split", None),
        (new, 0.0, "score threshold 0, as given", len(every)),
    ):
        done = predict(detector, [picture], out=tmp_path / "out", options=Options(given))
        assert done.score_threshold == sentence
        assert done.objects == (len(new(picture)) if count is None else count)


def test_the_command_line_says_which_threshold_is_used(
    run: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_threshold(run, tmp_path / "model", "0.25")
    line = ["predict", str(model), str(picture), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(line) == 0
    assert "score threshold 0.25, the best F1 on the validation split" in capsys.readouterr().err
    assert main([*line, "--score-threshold", "0.1"]) == 0
    assert "score threshold 0.1, as given" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "high", "-0.1", "1.5", "NaN", "null", "true", "[" * 9999])
def test_a_threshold_that_no_score_has_is_refused(run: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(WeightsError, match=r"score threshold '.*', but scores lie in 0\.\.1"):
        read_weights(with_threshold(run, tmp_path / "weights", text))


def test_a_threshold_stays_with_converted_weights(run: Path, tmp_path: Path) -> None:
    source = with_threshold(run, tmp_path / "source", "0.25")
    assert "score threshold: 0.25" in convert(source, tmp_path / "out", target="multibox")
    assert read_weights(tmp_path / "out").score_threshold == 0.25


def test_a_checkpoint_of_a_file_is_not_asked_for(run: Path) -> None:
    alone = find_weights(run)
    for path in (alone, alone.parent):
        assert find_weights(path) == alone
        with pytest.raises(ConfigError, match=r"is not a run\. Leave out --which best"):
            find_weights(path, "best")


def test_foreign_and_damaged_files_are_refused(run: Path, tmp_path: Path) -> None:
    content = find_weights(run).read_bytes()
    for name, wrong in (("cut", content[:-9]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(wrong)
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / name)


def rewritten(path: Path, weights: Weights, **header: str) -> Path:
    """A file of the same weights under another header."""
    header = {"format": "multibox-1", "network": weights.network, "classes": "[]"} | header
    safetensors.torch.save_file(weights.tensors, path, metadata=header)
    return path


def test_traits_are_kept_with_the_weights(tmp_path: Path) -> None:
    traits = Traits((1.5, 2.0, 3.0), 0.25, "voc", "sides", False, True, (), 0.002, 7, 0.3, 5)
    network = build_network("ssd300-lite", 2, traits)
    path = tmp_path / "traits.safetensors"
    header = make_header(network, "ssd300-lite", CLASSES, "CC0")
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata=header)
    weights = read_weights(path)
    assert weights.traits == traits
    found = load_network(weights, torch.device("cpu"))
    assert found.traits == traits
    assert torch.equal(found.default_boxes, network.default_boxes)
    assert found.mean.flatten().tolist() == [1.5, 2.0, 3.0]
    assert found.traits.detection == DetectionSettings(0.002, 7, 0.3, 5, clip=True)


def test_a_header_lists_only_traits_that_older_versions_know_or_that_differ() -> None:
    first = {*("mean_rgb", "pixel_scale", "scales", "clip", "whole_scales", "clip_detections")}
    for changed in ({}, {"per_image": 300}):
        network = build_network("ssd300-lite", 2, Traits(**changed))
        header = make_header(network, "ssd300-lite", CLASSES, "CC0")
        assert json.loads(header["traits"]).keys() == first | changed.keys()


def test_files_without_traits_have_the_architecture_s_own(run: Path, tmp_path: Path) -> None:
    weights = read_weights(find_weights(run))
    mean = json.dumps({"order": "RGB", "mean": [123.0, 117.0, 104.0], "scale": 1 / 64})
    old = rewritten(tmp_path / "old", weights, image_size="300", normalisation=mean)
    assert read_weights(old).traits == weights.traits == Traits(pixel_scale=1 / 64, scales="coco")


@pytest.mark.parametrize(
    "edit",
    [
        {"mean_rgb": [1, 2]},
        {"mean_rgb": "abc"},
        {"mean_rgb": [1, 2, math.nan]},
        {"pixel_scale": 0},
        {"pixel_scale": True},
        {"pixel_scale": 10**400},
        {"scales": "kitti"},
        {"scales": []},
        {"clip": "all"},
        {"clip_detections": 1},
        {"whole_scales": 1},
        {"flip": True},
        {"score_threshold": 1},
        {"score_threshold": math.nan},
        {"iou_threshold": -0.1},
        {"iou_threshold": True},
        {"per_class": 0},
        {"per_class": 1_001},
        {"per_image": 2.0},
        {"per_image": None},
    ],
)
def test_damaged_traits_are_refused(run: Path, tmp_path: Path, edit: dict[str, object]) -> None:
    weights = read_weights(find_weights(run))
    text = json.dumps(Traits()._asdict() | edit)
    with pytest.raises(WeightsError, match="traits"):
        read_weights(rewritten(tmp_path / "file", weights, traits=text))


@pytest.mark.parametrize("text", ["", "5", "[]", "{}", "null", "[" * 100_000])
def test_traits_that_are_no_object_are_refused(run: Path, tmp_path: Path, text: str) -> None:
    weights = read_weights(find_weights(run))
    with pytest.raises(WeightsError, match="traits"):
        read_weights(rewritten(tmp_path / "file", weights, traits=text))


@pytest.mark.parametrize(
    "text", ["", "5", "null", '"cat"', '["cat", 3]', '[""]', '["cat", "cat"]', "[" * 100_000]
)
def test_classes_that_are_no_names_are_refused(run: Path, tmp_path: Path, text: str) -> None:
    weights = read_weights(find_weights(run))
    with pytest.raises(WeightsError, match=r"header|classes"):
        read_weights(rewritten(tmp_path / "file", weights, classes=text))


def test_values_that_are_no_numbers_are_refused(run: Path, tmp_path: Path) -> None:
    weights = read_weights(find_weights(run))
    weights.tensors["offset_heads.0.bias"][0] = math.nan
    with pytest.raises(WeightsError, match=r"offset_heads\.0\.bias: contains NaN"):
        read_weights(rewritten(tmp_path / "file", weights))


def test_classes_without_outputs_are_refused_before_they_fill_the_memory(run: Path) -> None:
    """A network of so many would take terabytes."""
    weights = read_weights(find_weights(run))
    many = weights._replace(classes=tuple(map(str, range(2_000_000))))
    with pytest.raises(WeightsError, match="no outputs for the 2000000 classes"):
        load_network(many, torch.device("cpu"))


@pytest.mark.parametrize("best", [3, "x", [], {"AP": 1}, {"step": 2.0}, True])
def test_a_checkpoint_that_does_not_say_what_is_best_is_refused(
    tmp_path: Path, best: object
) -> None:
    tensors = {"a": torch.zeros(1)}
    state = {"best": best} if best != [] else {}
    folder = tmp_path / "checkpoints"
    save(folder, Checkpoint(3, tensors, tensors, state), metadata={})
    with pytest.raises(WeightsError, match="does not record which"):
        find_weights(tmp_path, "best")


def test_weights_that_do_not_fit_are_refused(run: Path) -> None:
    weights = read_weights(find_weights(run))
    fewer = dict(list(weights.tensors.items())[1:])
    with pytest.raises(WeightsError, match="does not fit"):
        load_network(weights._replace(tensors=fewer), torch.device("cpu"))


def test_what_is_drawn_is_where_the_box_is() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    found = Detections(
        torch.tensor([[0.25, 0.5, 0.75, 0.9], [0.0, 0.0, 0.1, 0.1]]),
        torch.tensor([0.9, 0.2]),
        torch.tensor([0, 1]),
    )
    draw_detections(image, found, CLASSES, score_threshold=0.5)
    rows, columns = np.nonzero(image.any(axis=2))
    assert columns.min() >= 48
    assert columns.max() <= 152
    assert abs(rows.max() - 90) <= 2
    before = image.copy()
    draw_truth(image, np.array([[1.0, 1.0, 30.0, 30.0]]), np.array([1]))
    changed = np.nonzero((image != before).any(axis=2))
    assert changed[0].max() <= 33


def test_a_threshold_leaves_the_better_detections_as_they_are(run: Path, picture: Path) -> None:
    detector, pixels = Detector.open(run), read_image(picture)
    everything = detector.detect(pixels)
    scores = everything.scores
    # One that is a score itself: "at least" includes it.
    for threshold in (0.0, 0.005, 0.02, float(scores[len(scores) // 2]), float(scores[0]), 1.0):
        found = detector.detect(pixels, score_threshold=threshold)
        kept = scores >= threshold
        for field, whole in zip(found, everything, strict=True):
            assert torch.equal(field, whole[kept])


@pytest.mark.parametrize(
    "name", ["ssd300-lite", "ssd300-vgg16", "ssd300-vgg16-bn", "ssdlite320-mobilenetv3", "ssd7"]
)
def test_kernels_kept_in_bf16_give_the_same_bits(name: str) -> None:
    network = new_network(Config(network=name), 2).eval()
    height, width = network.image_size_px
    image = torch.arange(3 * height * width).remainder(251).view(1, 3, height, width).byte()
    kept = cast_convolutions(torch.bfloat16, copy.deepcopy(network))
    with torch.inference_mode(), autocast(torch.bfloat16, torch.device("cpu")):
        assert all(map(torch.equal, kept(image), network(image)))
