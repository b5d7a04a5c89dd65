"""State dicts of qfgaohao/pytorch-ssd, against results of the original code.

The values come from commit 7a839cb of github.com/qfgaohao/pytorch-ssd. Its networks had the
parameters of `parameter` below, and its `Predictor` got the image of `fill.py` in 300 x 300 pixels.
`vgg16-ssd-l2` is `vgg16-ssd` with the `ScaledL2Norm` of its commit af2e79b. The modules `cv2` and
`torchvision` were replaced by empty ones, and `cv2.resize` by a function that returns the image.

For each detector there are two files:

- `.json`: the shapes of the state dict by name.
- `.npz`: the logits and offsets before the softmax and decoding, the default boxes
  (`config.priors`), and all detections, of which the tests compare the best 200. `gain` is a factor
  of the weights, which keeps the logits small. The original adds 1e-5 to the union of two boxes.
  With these gains, no IoU is so close to the threshold that this matters.
"""

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from foreign_files import load_fill
from torch import Tensor

from multibox.boxes import to_cxcywh
from multibox.build import build_network
from multibox.cli.main import main
from multibox.commands.convert import convert
from multibox.errors import WeightsError
from multibox.rng import torch_generator
from multibox.ssd.network import initialise
from multibox.training.initial_weights import initialise_from
from multibox.weights.class_names import VOC, read_class_names
from multibox.weights.files import load_network, read_weights
from multibox.weights.foreign import read_foreign

STORED = Path(__file__).with_name("qfgaohao")
NETWORKS = {
    "mb1-ssd": "ssd300-mobilenetv1",
    "mb2-ssd-lite": "ssd300-mobilenetv2-lite",
    "vgg16-ssd": "ssd300-vgg16-bn-conv4",
    "vgg16-ssd-l2": "ssd300-vgg16",
}


def parameter(fill: ModuleType, name: str, shape: list[int], gain: float) -> Tensor:
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.tensor(3)
    noise = fill.noise(name, shape)
    if len(shape) == 4:
        return (gain * math.sqrt(6 / math.prod(shape[1:])) * noise).float()
    start, width = {"scale": (20, 1), "weight": (1, 1 / 4), "running_var": (1, 1 / 4)}.get(
        kind, (0, 1 / 10)
    )
    return (start + width * noise).float()


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fill(shared: Path) -> ModuleType:
    return load_fill(shared)


@pytest.fixture(scope="module")
def state(name: str, fill: ModuleType) -> dict[str, Tensor]:
    shapes = json.loads((STORED / f"{name}.json").read_text())
    gain = float(np.load(STORED / f"{name}.npz")["gain"])
    return {key: parameter(fill, key, shape, gain) for key, shape in shapes.items()}


@pytest.fixture
def file(state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "theirs.pth"
    torch.save(state, path)
    return path


def test_a_converted_file_computes_what_the_original_did(
    name: str, file: Path, fill: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(file), str(out)]) == 0
    weights = read_weights(out)
    stored = np.load(STORED / f"{name}.npz")
    assert weights.network == NETWORKS[name]
    assert weights.classes == (VOC if "mb" in name else ("class 1", "class 2", "class 3"))
    network = load_network(weights, torch.device("cpu"))
    boxes = to_cxcywh(network.default_boxes)
    np.testing.assert_allclose(boxes, stored["priors_cxcywh"], rtol=0, atol=2e-7)
    with torch.inference_mode():
        output = network(fill.image().unsqueeze(0) * 255)
        (found,) = network.detect(output)
    np.testing.assert_allclose(output.logits[0], stored["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(output.offsets[0], stored["offsets"], rtol=0, atol=1e-4)
    # Scores that are almost equal may come in either order.
    best = stored["det_scores"].argsort()[-200:]
    ours = np.lexsort((found.boxes[:, 0], found.labels))
    theirs = best[np.lexsort((stored["det_boxes_px"][best, 0], stored["det_labels"][best]))]
    for mine, key, tolerance in (
        (found.labels + 1, "det_labels", 0),
        (found.scores, "det_scores", 1e-5),
        (found.boxes * 300, "det_boxes_px", 0.01),
    ):
        np.testing.assert_allclose(mine[ours], stored[key][theirs], rtol=0, atol=tolerance)


def test_there_and_back_is_bit_equal(name: str, file: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there.safetensors", tmp_path / "back.pth"
    convert(file, there, target="multibox")
    lines = convert(there, back, target="qfgaohao")
    assert ("note: only" in "\n".join(lines)) == (name == "vgg16-ssd-l2")
    before, after = read_weights(there), read_weights(back)
    assert (before.network, before.traits) == (after.network, after.traits)
    assert before.tensors.keys() == after.tensors.keys()
    for key, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[key]), key
    original, written = (torch.load(path, weights_only=True) for path in (file, back))
    assert {key: (x.shape, x.dtype) for key, x in original.items()} == {
        key: (x.shape, x.dtype) for key, x in written.items()
    }


def test_files_of_pytorch_0_4_0_do_not_count_batches(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    older = {key: x for key, x in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "older.pth")
    load_network(read_weights(tmp_path / "older.pth"), torch.device("cpu"))


@pytest.mark.parametrize("name", ["mb1-ssd", "mb2-ssd-lite"], indirect=True)
def test_a_trunk_starts_a_training(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    """The option --base_net of `train_ssd.py` loads such a file."""
    trunk = {
        key.removeprefix("base_net."): x for key, x in state.items() if key.startswith("base_net")
    }
    torch.save(trunk, tmp_path / "trunk.pth")
    convert(tmp_path / "trunk.pth", tmp_path / "ours", target="multibox")
    weights = read_weights(tmp_path / "ours")
    assert weights.classes == ()
    network = build_network(NETWORKS[name], 2)
    initialise(network, torch_generator(0, "test"))
    transfer = initialise_from(network, ("cat", "dog"), weights)
    stages = {f"backbone.stages.{key}" for key in network.backbone.stages.state_dict()}
    assert weights.tensors.keys() == stages
    assert stages.isdisjoint(transfer.random)


def changed(state: dict[str, Tensor], change: str) -> dict[str, Tensor]:
    state = dict(state)
    match change:
        case "lacks":
            del state["extras.2.conv.4.running_var"]
        case "unknown":
            state["extras.4.conv.0.weight"] = torch.zeros(1)
        case "nan":
            state["base_net.3.conv.1.bias"] = torch.full((144,), torch.nan)
        case "bias":
            state["classification_headers.0.0.bias"] = torch.zeros(1)
        case "outputs":
            state["classification_headers.5.bias"] = torch.zeros(7)
        case _:
            state["base_net.0.0.weight"] = torch.zeros(24, 3, 3, 3)
    return state


@pytest.mark.parametrize("name", ["mb2-ssd-lite"], indirect=True)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("lacks", r"lacks extras\.2\.conv\.4\.running_var"),
        ("unknown", r"unknown extras\.4"),
        ("nan", "contains NaN"),
        ("bias", r"logit_heads\.0\.0\.conv\.bias: does not have the shape"),
        ("outputs", r"classification_headers\.5\.bias: does not have the number of outputs"),
        ("width", "does not fit ssd300-mobilenetv2-lite"),
    ],
)
def test_damaged_files_are_refused(
    state: dict[str, Tensor], tmp_path: Path, change: str, reason: str
) -> None:
    torch.save(changed(state, change), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=reason):
        load_network(read_weights(tmp_path / "x.pth"), torch.device("cpu"))


@pytest.mark.parametrize("name", ["vgg16-ssd"], indirect=True)
def test_a_labels_file_names_the_classes(file: Path, tmp_path: Path) -> None:
    labels, out = tmp_path / "labels.txt", tmp_path / "ours.safetensors"
    labels.write_text("BACKGROUND\ntraffic light\ncat\r\nräuber\n", encoding="utf-8")
    assert main(["convert", str(file), str(out), "--classes", str(labels)]) == 0
    assert read_weights(out).classes == ("traffic light", "cat", "räuber")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"BACKGROUND\n", "labels.txt: has no class names. Write one name"),
        (b"a\nb\xff", "labels.txt, byte 3: is not a text"),
        (None, "labels.txt: cannot be read"),
    ],
)
def test_labels_files_without_names_are_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_class_names((str(labels),))


def test_other_class_names_are_taken_as_they_are() -> None:
    assert read_class_names(("cat",)) == ("cat",)
    assert read_class_names(("cat", "b.txt")) == ("cat", "b.txt")


@pytest.mark.parametrize("name", ["mb1-ssd"], indirect=True)
def test_they_take_no_default_boxes(file: Path) -> None:
    with pytest.raises(WeightsError, match="default-boxes"):
        read_foreign(file, scales="coco")
    assert read_foreign(file).traits.scales == "voc"
