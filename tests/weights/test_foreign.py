"""Files of every publisher, converted by the command, against results of the original code."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from foreign_files import (
    ORIGINALS,
    load_fill,
    tiny,
    tiny_caffe,
    tiny_keras,
    tiny_trunk,
    write_caffe,
    write_h5,
    write_original,
)
from oracles.caffemodel import OLD, STYLES, Style, caffemodel, prior_box
from torch import Tensor

from multibox.build import build_network
from multibox.cli.main import main
from multibox.commands.convert import convert
from multibox.errors import WeightsError
from multibox.weights.class_names import COCO, COCO_BY_ID, VOC
from multibox.weights.files import Weights, load_network, read_weights
from multibox.weights.foreign import TRUNK_ONLY, read_foreign
from multibox.weights.layer_names import TRUNK, PyTorchFormat, trunk_names

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def fill(shared: Path) -> ModuleType:
    return load_fill(shared)


def converted(source: Path, folder: Path, *more: str) -> Weights:
    out = folder / "converted.safetensors"
    assert main(["convert", str(source), str(out), *more]) == 0
    return read_weights(out)


@pytest.mark.parametrize("original", ORIGINALS)
def test_converted_file_computes_what_the_original_did(
    shared: Path, fill: ModuleType, tmp_path: Path, original: str
) -> None:
    source = tmp_path / "a file of any name"
    write_original(source, original, fill.parameters(original))
    weights = converted(source, tmp_path)
    assert weights.network == "ssd300-vgg16"
    assert weights.classes == VOC
    network = load_network(weights, CPU)
    with torch.inference_mode():
        output = network(fill.image().unsqueeze(0) * 255)
        (found,) = network.detect(output)
    stored = np.load(shared / f"parity/{original}_outputs.npz")
    offsets, logits = output.offsets[0], output.logits[0]
    if original == "ssd_keras_ssd300":
        expected = stored["y_pred"][:, 21:25], stored["y_pred"][:, :21]
        logits = logits.softmax(dim=1)
    elif original == "torchvision_ssd300_vgg16":
        expected = stored["bbox_regression"], stored["cls_logits"]
        np.testing.assert_array_equal(found.labels + 1, stored["det_labels"])
        np.testing.assert_allclose(found.scores, stored["det_scores"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes * 300, stored["det_boxes"], rtol=0, atol=1e-2)
    else:
        expected = stored["loc"], stored["conf"]
    np.testing.assert_allclose(offsets, expected[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(logits, expected[1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("style", STYLES[:2], ids=["new", "old"])
def test_caffe_s_file_is_ssd_keras_s(fill: ModuleType, tmp_path: Path, style: Style) -> None:
    parameters = fill.parameters("ssd_keras_ssd300")
    write_h5(tmp_path / "keras", parameters)
    write_caffe(tmp_path / "caffe", parameters, style)
    keras, caffe = (read_weights(tmp_path / name) for name in ("keras", "caffe"))
    assert keras.tensors.keys() == caffe.tensors.keys()
    for name, tensor in keras.tensors.items():
        assert torch.equal(tensor, caffe.tensors[name]), name
    assert (keras.classes, keras.traits) == (caffe.classes, caffe.traits)
    load_network(caffe, CPU)


def state_file(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("classes", "levels", "names", "scales"),
    [(20, 6, VOC, "voc"), (80, 6, COCO, "coco"), (20, 7, VOC, "voc"), (80, 7, COCO, "coco")],
)
def test_counts_decide_network_classes_and_default_boxes(
    tmp_path: Path, classes: int, levels: int, names: tuple[str, ...], scales: str
) -> None:
    network = {6: "ssd300-vgg16", 7: "ssd512-vgg16"}[levels]
    for format, clip in (("ssd-pytorch", "centre"), ("lufficc", "centre")):
        state = tiny(format, levels=levels, classes=classes)
        found = read_foreign(state_file(tmp_path / format, state))
        assert (found.network, found.classes, found.traits.scales) == (network, names, scales)
        assert found.traits.clip == clip
        assert found.traits.whole_scales == (levels == 6)
    path = tmp_path / "caffe"
    path.write_bytes(caffemodel(tiny_caffe(levels=levels, classes=classes), OLD))
    found = read_foreign(path)
    assert (found.network, found.classes, found.traits.scales) == (network, names, scales)
    assert found.traits.clip == "none"


def test_a_guess_of_the_default_boxes_is_noted(tmp_path: Path) -> None:
    """ssd.pytorch uses VOC's for 21 outputs only; ssd_keras published both for VOC's classes."""
    found = read_foreign(state_file(tmp_path / "x", tiny("ssd-pytorch", classes=4)))
    assert found.traits.scales == "coco"
    assert not any("default boxes" in note for note in found.notes)
    for classes in (4, 20):
        write_h5(tmp_path / "x", tiny_keras(classes=classes))
        found = read_foreign(tmp_path / "x")
        assert found.traits.scales == "voc"
        assert any("--default-boxes" in note for note in found.notes)
        found = read_foreign(tmp_path / "x", scales="coco")
        assert found.traits.scales == "coco"
        assert not any("--default-boxes" in note for note in found.notes)


def test_a_training_checkpoint_of_another_implementation_is_read(tmp_path: Path) -> None:
    """lufficc/SSD and torchvision store more than the model; DataParallel prefixes the names."""
    state = {f"module.{name}": x.double() for name, x in tiny("lufficc").items()}
    state["module.backbone.l2_norm.weight"] = state["module.backbone.vgg.33.weight"]
    parameters = [torch.nn.Parameter(torch.ones(2))]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    checkpoint = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 5,
    }
    torch.save(checkpoint, tmp_path / "x")
    found = read_foreign(tmp_path / "x")
    assert found.origin.title == "lufficc/SSD"
    tensors = list(found.tensors.values())
    assert {x.dtype for x in tensors} == {torch.float32}
    assert len({x.untyped_storage().data_ptr() for x in tensors}) == len(tensors)


def test_torchvision_s_features_are_a_trunk_for_caffe_s_pixels(tmp_path: Path) -> None:
    """`IMAGENET1K_FEATURES` in its real sizes; the classifier is NaN."""
    shapes = dict(build_network("ssd300-vgg16", 1).state_dict())
    state = {
        f"{theirs}.{kind}": torch.full_like(shapes[f"backbone.trunk.{ours}.conv.{kind}"], 0.5)
        for theirs, ours in zip(trunk_names("features."), TRUNK[:-2], strict=False)
        for kind in ("weight", "bias")
    }
    state["classifier.0.weight"] = torch.full((2, 2), torch.nan)
    weights = converted(state_file(tmp_path / "x", state), tmp_path)
    assert (weights.network, weights.classes) == (TRUNK_ONLY, ())
    assert len(weights.tensors) == 26
    assert all((x == 0.5).all() for x in weights.tensors.values())


def test_torchvision_has_coco_s_boxes_and_a_class_for_every_id(tmp_path: Path) -> None:
    found = read_foreign(state_file(tmp_path / "x", tiny("torchvision", classes=90)))
    assert found.classes == COCO_BY_ID
    assert found.traits.scales == "coco"
    found = read_foreign(state_file(tmp_path / "x", tiny("torchvision", classes=20)))
    assert (found.classes, found.traits.scales) == (VOC, "coco")


def test_default_boxes_in_the_file_override_the_number_of_classes(tmp_path: Path) -> None:
    layers = tiny_caffe(classes=2)
    boxes = prior_box("a", 21.0), prior_box("b", 45.0, clip=True)
    path = tmp_path / "caffe"
    path.write_bytes(caffemodel(layers) + b"".join(boxes))
    found = read_foreign(path)
    assert (found.traits.scales, found.traits.clip) == ("coco", "corners")
    assert found.classes == ("class 1", "class 2")
    assert any("--classes" in note for note in found.notes)
    assert read_foreign(path, classes=("cat", "dog")).classes == ("cat", "dog")
    with pytest.raises(WeightsError, match="two classes with the name 'cat'"):
        read_foreign(path, classes=("cat", "cat"))
    with pytest.raises(WeightsError, match="2 classes, but 3 names"):
        read_foreign(path, classes=("a", "b", "c"))


def test_a_trunk_of_ssd_pytorch_starts_a_training(tmp_path: Path) -> None:
    caffe_names = tiny_trunk(full=False)
    path = tmp_path / "vgg16_reducedfc.pth"
    names = dict(zip(TRUNK, trunk_names(""), strict=True))
    state = {
        f"{names[name.split('.')[0]]}.{name.split('.')[1]}": x for name, x in caffe_names.items()
    }
    found = read_foreign(state_file(path, state))
    assert found.network == TRUNK_ONLY
    assert found.classes == ()
    assert found.tensors.keys() == {
        f"backbone.trunk.{name}.conv.{kind}" for name in TRUNK for kind in ("weight", "bias")
    }
    with pytest.raises(WeightsError, match="not a detector"):
        load_network(read_weights(path), CPU)
    with pytest.raises(WeightsError, match="not belong to vgg16-trunk"):
        convert(path, tmp_path / "out", target="multibox")
    with pytest.raises(WeightsError, match="takes no --classes"):
        read_foreign(path, classes=("cat",))
    with pytest.raises(WeightsError, match="neither SSD300"):
        read_foreign(path, scales="coco")


VGG_BN = (0, 1, 3, 4, 7, 8, 10, 11)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"features.{place}" for place in VGG_BN], "unknown features.1"),
        (["features.0", "classifier.0"], "lacks conv1_2"),
    ],
)
def test_other_vggs_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    state = {f"{name}.weight": torch.zeros(2, 3, 1, 1) for name in names}
    state |= {f"{name}.bias": torch.zeros(2) for name in names}
    with pytest.raises(WeightsError, match=reason):
        read_foreign(state_file(tmp_path / "x", state))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"conv1": (96, 3), "fc6": (4096, 9216)}, "not contain a VGG-16"),
        ({"conv1_2": (2, 3), "fc6": (2, 3)}, "lacks conv1_1"),
        ({"conv1_1": (2, 3), "fc6": (4096, 1), "fc7": (4096, 1)}, "fc6 and fc7"),
    ],
)
def test_other_networks_of_caffe_are_refused(
    tmp_path: Path, layers: dict[str, tuple[int, int]], reason: str
) -> None:
    blobs = {
        name: [np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)]
        for name, shape in layers.items()
    }
    path = tmp_path / "x"
    path.write_bytes(caffemodel(blobs))
    with pytest.raises(WeightsError, match=reason):
        read_foreign(path)


def test_a_full_vgg_is_subsampled(tmp_path: Path) -> None:
    """`tiny_trunk` fills fc6 with output + tap / 64, and fc7 with output and input."""
    full = tiny_trunk(full=True)
    path = tmp_path / "VGG_ILSVRC_16_layers.caffemodel"
    layers = {
        name: [full[f"{name}.weight"].numpy(), full[f"{name}.bias"].numpy()] for name in TRUNK
    }
    layers["fc8"] = [np.zeros((10, 4096), np.float32), np.zeros(10, np.float32)]
    path.write_bytes(caffemodel(layers, OLD))
    found = read_foreign(path)
    assert any("every fourth output" in note for note in found.notes)
    assert found.origin.licence.startswith("CC BY 4.0")
    six = found.tensors["backbone.trunk.fc6.conv.weight"]
    seven = found.tensors["backbone.trunk.fc7.conv.weight"]
    assert (six.shape, seven.shape) == ((1024, 2, 3, 3), (1024, 1024, 1, 1))
    for output, row, column in ((0, 0, 0), (1, 0, 2), (1023, 2, 1)):
        expected = 4 * output + (7 * 3 * row + 3 * column) / 64
        assert float(six[output, 1, row, column]) == expected
    assert float(seven[5, 7]) == 4 * 5 * 4096 + 4 * 7
    assert found.tensors["backbone.trunk.fc6.conv.bias"][3] == 12


def test_torchvision_s_classifier_computes_the_same_in_caffe_s_range(tmp_path: Path) -> None:
    full = tiny_trunk(full=True)
    generator = torch.Generator().manual_seed(0)
    full["conv1_1.weight"] = torch.randn(4, 3, 3, 3, generator=generator)
    full["conv1_1.bias"] = torch.randn(4, generator=generator)
    names = [*trunk_names("features.")[:-2], "classifier.0", "classifier.3"]
    state = {
        f"{name}.{kind}": full[f"{caffe}.{kind}"]
        for caffe, name in zip(TRUNK, names, strict=True)
        for kind in ("weight", "bias")
    }
    found = read_foreign(state_file(tmp_path / "vgg16.pth", state))
    pixels = torch.rand(1, 3, 8, 8, generator=generator) * 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    theirs = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    ours = pixels - torch.tensor(found.traits.mean_rgb).view(3, 1, 1)
    first = "backbone.trunk.conv1_1.conv"
    expected = F.conv2d(theirs, full["conv1_1.weight"], full["conv1_1.bias"])
    given = F.conv2d(ours, found.tensors[f"{first}.weight"], found.tensors[f"{first}.bias"])
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-3)


def broken(change: str) -> dict[str, Tensor]:
    state = tiny("ssd-pytorch")
    match change:
        case "lacks":
            del state["vgg.5.bias"]
        case "unknown":
            state["bn.weight"] = torch.zeros(2)
        case "nan":
            state["loc.3.bias"][1] = torch.nan
        case "five levels":
            state = {name: x for name, x in state.items() if not name.startswith("loc.5")}
        case "meta":
            state["vgg.5.bias"] = torch.zeros(2, device="meta")
        case "scalar":
            state["conf.0.weight"] = torch.tensor(1.0)
        case "heads":
            state["conf.0.weight"] = torch.zeros(7, 3, 1, 1)
        case "other":
            state = {"layer1.0.conv1.weight": torch.zeros(2)}
        case _:
            state = {}
    return state


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("lacks", "lacks conv2_1.bias"),
        ("unknown", "unknown bn.weight"),
        ("nan", "conv7_2_mbox_loc.bias: contains NaN"),
        ("five levels", "5 feature maps"),
        ("heads", "number of outputs"),
        ("scalar", "number of outputs"),
        ("meta", "_rebuild_meta_tensor_no_storage"),
        ("other", r"unknown model \(layer1"),
        ("empty", "unknown model"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: str, reason: str) -> None:
    path = state_file(tmp_path / "x.pth", broken(change))
    with pytest.raises(WeightsError, match=reason):
        read_foreign(path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        # luuuyi/RefineDet.PyTorch.
        (
            [
                *("vgg.0", "vgg.33", "conv4_3_L2Norm", "extras.0", "arm_loc.0", "arm_conf.0"),
                *("odm_loc.0", "odm_conf.0", "tcb0.0", "tcb1.0", "tcb2.0"),
            ],
            "heads of 0 feature maps, and the unknown parts arm_conf, arm_loc, conv4_3_L2Norm, "
            "odm_conf and 4 more",
        ),
        # torchvision's Faster R-CNN on a VGG-16.
        (
            ["backbone.features.0", "rpn.head.conv", "roi_heads.box_head.fc6"],
            "parts roi_heads, rpn",
        ),
        (["backbone.vgg.0", "neck.0"], "heads of 0 feature maps, and the unknown parts neck"),
        (["vgg.0"], "heads of 0 feature maps. Use the published"),
        (["vgg.0", "loc.0", "conf.0"], "heads of 1 feature map. Use"),
        (["vgg.0", *(f"loc.{level}" for level in range(9))], "heads of 8 feature maps. Use"),
    ],
)
def test_other_detectors_with_a_vgg_are_refused(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    path = state_file(tmp_path / "x.pth", {f"{name}.weight": torch.zeros(2) for name in names})
    with pytest.raises(WeightsError, match=f"is neither SSD300 nor SSD512: it has the .*{reason}"):
        read_foreign(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"made by": "somebody"}])
@pytest.mark.parametrize("format", ["ssd-pytorch", "lufficc", "torchvision"])
def test_state_dicts_in_safetensors_are_read(
    tmp_path: Path, format: PyTorchFormat, metadata: dict[str, str] | None
) -> None:
    state, path = tiny(format, classes=2), tmp_path / "model.safetensors"
    safetensors.torch.save_file(state, path, metadata)
    found = read_weights(path, classes=("cat", "dog"), scales="voc")
    expected = read_foreign(state_file(tmp_path / "x.pth", state), classes=("cat", "dog"))
    assert (found.origin, found.classes) == (expected.origin.title, ("cat", "dog"))
    assert found.licence == expected.origin.licence
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(found.tensors[name], expected.tensors[name]) for name in found.tensors)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"layer1.0.conv1.weight": torch.zeros(2)}, "is a state dict of an unknown model"),
        ({"0.weight": torch.zeros(2, dtype=torch.uint8)}, "0.weight: is not a dense tensor of num"),
        ({**tiny("ssd-pytorch"), "loc.3.bias": torch.tensor([torch.nan, 0])}, "contains NaN"),
        ({"backbone.trunk.conv1_1.conv.weight": torch.zeros(2)}, "unknown model"),
        ({}, "unknown model"),
    ],
)
def test_other_safetensors_are_refused(
    tmp_path: Path, state: dict[str, Tensor], reason: str
) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(state, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=reason):
        read_weights(path, classes=("cat",) * 20)


def test_a_newer_file_of_ours_is_not_taken_for_a_foreign_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tiny("ssd-pytorch"), path, {"format": "multibox-2"})
    with pytest.raises(WeightsError, match="has the format 'multibox-2', not 'multibox-1'"):
        read_weights(path)
    with pytest.raises(WeightsError, match="is a multibox file"):
        read_weights(path, classes=("cat",))


@pytest.mark.parametrize("content", [b"", b"\x00", b"GIF89a", b"{}", b"\x0a\x03abc"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        read_foreign(path)
