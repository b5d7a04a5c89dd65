"""torchvision's SSDlite320: read and written files, and what its own code computed from them.

`torchvision_ssdlite320_outputs.npz` was recorded from torchvision's own code: problem 2 with
torchvision 0.26.0, problems 0 and 1 with the Python code of torchvision 0.28.0, where a literal
loop replaced its operator for non-maximum suppression. All have the weights of
`foreign_files.ssdlite` and the images that are below. It contains the outputs of every fifth
default box.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import SSDLITE_KEYS, hash_noise, ssdlite, tiny_ssdlite
from torch import Tensor

from multibox.cli.main import main
from multibox.commands.convert import convert
from multibox.errors import WeightsError
from multibox.weights import files
from multibox.weights.class_names import COCO_BY_ID, VOC
from multibox.weights.files import load_network, read_weights
from multibox.weights.foreign import read_foreign

NAME = "ssdlite320-mobilenetv3"
CPU = torch.device("cpu")
LAST = "backbone.features.1.3.0.weight"
FIRST_LOGITS = "head.classification_head.module_list.0.1.bias"


def images() -> Tensor:
    """(3, 3, 320, 320) RGB: rounded waves, tiles of random colours, and waves."""
    y, x = torch.meshgrid(*[torch.arange(320, dtype=torch.float64)] * 2, indexing="ij")
    waves = [
        0.5 + 0.5 * torch.sin(x / (9 + 3 * k) + k) * torch.cos(y / (13 - 2 * k) - k)
        for k in range(3)
    ]
    tiles = (hash_noise("tiles", [3, 20, 20]) + 1) / 2
    tiles = tiles.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    of_bytes = [(image * 255).round() for image in (torch.stack(waves), tiles)]
    return torch.stack([*of_bytes, torch.stack(waves) * 255]).float()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ssdlite") / "theirs.pth"
    torch.save(ssdlite(0), path)
    return path


@pytest.mark.parametrize("problem", [0, 1, 2])
def test_converted_file_computes_what_torchvision_did(tmp_path: Path, problem: int) -> None:
    stored = np.load(Path(__file__).with_name("torchvision_ssdlite320_outputs.npz"))
    torch.save(ssdlite(problem), tmp_path / "theirs.pth")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(tmp_path / "theirs.pth"), str(out)]) == 0
    weights = read_weights(out)
    assert (weights.network, weights.classes) == (NAME, VOC)
    network = load_network(weights, CPU)
    image = images()[problem].unsqueeze(0)
    with torch.inference_mode():
        pixels = (image - network.mean) * network.traits.pixel_scale
        means = [x.mean() for x in network.backbone(pixels)]
        output = network(image)
        (found,) = network.detect(output)
    np.testing.assert_allclose(network.default_boxes * 320, stored["anchors"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(means, stored[f"feature_means_{problem}"], rtol=1e-4)
    # The logits go up to 20.
    for ours, theirs in ((output.logits, "cls_logits"), (output.offsets, "bbox_regression")):
        expected = stored[f"{theirs}_{problem}"]
        np.testing.assert_allclose(ours[0, ::5], expected, rtol=0, atol=2e-4)
    scores, boxes, labels = (stored[f"{kind}_{problem}"] for kind in ("scores", "boxes", "labels"))
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=5e-5)
    # Detections with almost the same score may change places.
    apart = np.abs(found.boxes.numpy()[:, None] * 320 - boxes).max(axis=2)
    apart[found.labels.numpy()[:, None] + 1 != labels] = np.inf
    place = apart.argmin(axis=1)
    assert sorted(place) == list(range(len(scores)))
    assert apart.min(axis=1).max() < 1e-2
    np.testing.assert_allclose(found.scores, scores[place], rtol=0, atol=5e-5)


def test_a_written_file_is_torchvision_s_bit_by_bit(tmp_path: Path, file: Path) -> None:
    """Names, their order, shapes, types and values, also of the counts of batches."""
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    convert(file, ours, target="multibox")
    lines = convert(ours, theirs, target="torchvision")
    assert not any("note" in line for line in lines)
    expected, found = (torch.load(path, weights_only=True) for path in (file, theirs))
    assert list(found) == list(expected) == list(SSDLITE_KEYS)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_other_implementations_do_not_have_it(tmp_path: Path, file: Path) -> None:
    for target in ("ssd-pytorch", "lufficc", "keras"):
        with pytest.raises(WeightsError, match=f"is a {NAME}, which {target} does not have"):
            convert(file, tmp_path / "out", target=target)


@pytest.mark.parametrize(
    ("outputs", "names", "expected"),
    [(91, (), COCO_BY_ID), (21, (), VOC), (3, ("a", "b"), ("a", "b")), (2, (), ("class 1",))],
)
def test_outputs_have_names(
    tmp_path: Path, outputs: int, names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    torch.save(tiny_ssdlite() | {FIRST_LOGITS: torch.zeros(6 * outputs)}, tmp_path / "x")
    assert read_foreign(tmp_path / "x", classes=names).classes == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.extra.3.2.1.bias": None}, r"lacks backbone\.extra\.3\.2\.1\.bias"),
        ({"backbone.extra.4.0.0.weight": torch.zeros(1)}, "has unknown backbone.extra.4.0.0"),
        ({FIRST_LOGITS: torch.zeros(125)}, "number of outputs"),
        ({FIRST_LOGITS: torch.zeros(6)}, "number of outputs"),
        ({FIRST_LOGITS: torch.zeros(())}, "number of outputs"),
        (dict.fromkeys((LAST, FIRST_LOGITS), torch.zeros(())), "number of outputs"),
        ({FIRST_LOGITS: torch.tensor([torch.nan] * 126)}, "NaN"),
        ({LAST: torch.zeros(960, 160, 1, 1)}, "twice the channels"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    state = {name: x for name, x in (tiny_ssdlite() | change).items() if x is not None}
    torch.save(state, tmp_path / "x")
    with pytest.raises(WeightsError, match=message):
        read_foreign(tmp_path / "x")


def test_options_that_do_not_fit_are_refused(file: Path) -> None:
    with pytest.raises(WeightsError, match="Leave out --default-boxes"):
        read_foreign(file, scales="coco")
    with pytest.raises(WeightsError, match="has 20 classes, but 1 names"):
        read_foreign(file, classes=("cat",))


def test_many_classes_need_as_many_outputs(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setattr(files, "_MANY_CLASSES", 10)
    weights = read_weights(file)
    load_network(weights, CPU)
    with pytest.raises(WeightsError, match="no outputs for the 19 classes"):
        load_network(weights._replace(classes=VOC[1:]), CPU)
