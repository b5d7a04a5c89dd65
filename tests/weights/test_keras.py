"""Keras's files: the names of variables, whole models, and files that are refused."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from foreign_files import tiny_keras, write_h5

from multibox.errors import WeightsError
from multibox.weights.foreign import read_foreign
from multibox.weights.keras import read_keras

KERAS_NAMES = {
    "tf.keras, built twice": "{layer}/{layer}_1/{name}:0",
    "variables numbered": "{layer}/{layer}_1/{name}_2:0",
    "Keras 3's .h5": "{layer}/{layer}/{name}",
    "no scope": "{layer}/{name}:0",
}


@pytest.mark.parametrize("form", KERAS_NAMES.values(), ids=KERAS_NAMES)
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8"])
def test_keras_names_variables_in_many_ways(tmp_path: Path, form: str, dtype: str) -> None:
    with h5py.File(tmp_path / "x", "w") as file:
        for name, values in tiny_keras().items():
            layer, variable = name.split("/")
            place = form.format(layer=layer, name=variable.removesuffix(":0"))
            file[place] = values.numpy().astype(dtype)
        file.create_group("dropout_1")
        file["note"] = "a string"
    found = read_foreign(tmp_path / "x")
    write_h5(tmp_path / "y", tiny_keras())
    expected = read_foreign(tmp_path / "y")
    assert found.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(x, expected.tensors[name]) for name, x in found.tensors.items())


def h5_of(path: Path, changed: str, values: object) -> Path:
    write_h5(path, tiny_keras())
    with h5py.File(path, "a") as file:
        del file[changed]
        file[changed] = values
    return path


@pytest.mark.parametrize(
    ("changed", "values", "reason"),
    [
        ("fc7/fc7/bias:0", np.array([1e300]), r"fc7.bias: contains NaN"),
        ("fc7/fc7/bias:0", h5py.Empty("f4"), "cannot be read"),
        ("fc7/fc7/bias:0", "text", "lacks fc7.bias"),
        ("conv1_1/conv1_1/kernel:0", np.float32(1), "not a convolution"),
        ("conv1_1", np.float32(1), "lacks conv1_1"),
    ],
)
def test_what_is_wrong_in_keras_s_file_is_named(
    tmp_path: Path, changed: str, values: object, reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        read_foreign(h5_of(tmp_path / "x", changed, values))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("model_1/{layer}/{name}", "inner one"),
        ("layers/{layer}/vars/0", "no layers with kernels"),
    ],
)
def test_keras_files_of_another_layout_are_refused(tmp_path: Path, form: str, reason: str) -> None:
    with h5py.File(tmp_path / "x", "w") as file:
        for layer in ("conv1_1", "conv1_2"):
            file[form.format(layer=layer, name="bias:0")] = np.zeros(2, np.float32)
    with pytest.raises(WeightsError, match=reason):
        read_foreign(tmp_path / "x")


@pytest.mark.parametrize("version", ["earliest", "latest"])
@pytest.mark.parametrize("others", [0, 20])
def test_a_whole_keras_model_says_which_boxes_it_has(
    tmp_path: Path, version: str, others: int
) -> None:
    """HDF5 stores one attribute and many attributes, short texts and long texts differently."""
    layers: list[dict[str, object]] = [
        {"class_name": "AnchorBoxes", "config": {"this_scale": scale, "clip_boxes": others == 0}}
        for scale in (0.15, 0.07, 10**400)
    ]
    layers.append({"class_name": "Lambda", "config": {"function": ["4wEAAAA=" * 9_000, None]}})
    config = {"config": {"layers": layers}}
    path = tmp_path / "model.h5"
    with h5py.File(path, "w", libver=version) as file:
        for number in range(others):
            file.attrs[f"other {number}"] = number
        file.attrs["model_config"] = json.dumps(config)
        for name, value in tiny_keras(classes=3).items():
            file[f"model_weights/{name.split('/')[0]}/{name}"] = value.numpy()
    found = read_foreign(path)
    assert (found.traits.scales, found.traits.clip) == ("coco", "none" if others else "corners")
    assert found.tensors["logit_heads.0.weight"].shape == (16, 3, 1, 1)


def test_a_configuration_that_claims_more_than_its_file_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HDF5 allocates as much as the text claims to be long before it reads the text."""
    path, text = tmp_path / "model.h5", "a" * 70_001
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = text
        file["conv1_1/conv1_1/bias:0"] = np.ones(64, np.float32)
    content, length = path.read_bytes(), len(text).to_bytes(4, "little")
    # The length before the position of the text; another length is where the text is.
    place = content.index(length, content.index(b"model_config\0"))
    path.write_bytes(content[:place] + (1 << 31).to_bytes(4, "little") + content[place + 4 :])
    monkeypatch.setattr(h5py.AttributeManager, "__getitem__", None)
    found = read_keras(path)
    assert torch.equal(found.tensors["conv1_1.bias"], torch.ones(64))
    assert (found.first_scale, found.clip) == (None, False)
