"""Files for other implementations are read back bit by bit. Networks they lack are refused."""

from pathlib import Path

import h5py
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from multibox.build import build_network
from multibox.cli.main import main
from multibox.commands.convert import convert
from multibox.errors import StorageError, WeightsError
from multibox.rng import torch_generator
from multibox.ssd.network import initialise
from multibox.storage.run_folder import new_file
from multibox.weights.files import make_header, read_weights
from multibox.weights.layer_names import pytorch_names
from multibox.weights.publishers import SSD_KERAS

PYTORCH = ("torchvision", "ssd-pytorch", "lufficc")


def our_file(
    path: Path, name: str, classes: tuple[str, ...], threshold: float | None = None
) -> Path:
    network = build_network(name, len(classes))
    generator = torch_generator(0, "test")
    initialise(network, generator)
    for buffer in (*network.parameters(), *network.buffers()):
        if buffer.ndim == 1:
            buffer.data.uniform_(0.5, 1.5, generator=generator)
    header = make_header(network, name, classes, "CC0", threshold)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    safetensors.torch.save_file(state, path, metadata=header)
    return path


@pytest.mark.parametrize(
    ("network", "target"),
    [
        *(("ssd300-vgg16", target) for target in (*PYTORCH, "keras")),
        ("ssd512-vgg16", "lufficc"),
        ("ssd512-vgg16", "keras"),
        ("ssd7", "keras"),
        ("ssdlite320-mobilenetv3", "torchvision"),
    ],
)
def test_there_and_back_is_bit_equal(tmp_path: Path, network: str, target: str) -> None:
    classes = ("cat", "dog", "cow")
    ours = our_file(tmp_path / "ours.safetensors", network, classes)
    there, back = tmp_path / "theirs", tmp_path / "back.safetensors"
    assert main(["convert", str(ours), str(there), "--to", target]) == 0
    assert main(["convert", str(there), str(back), "--classes", *classes]) == 0
    before, after = read_weights(ours), read_weights(back)
    assert (before.network, before.classes) == (after.network, after.classes)
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        assert torch.equal(tensor, after.tensors[name]), name


def test_a_threshold_that_a_file_cannot_hold_is_printed(tmp_path: Path) -> None:
    ours = our_file(tmp_path / "ours.safetensors", "ssd7", ("cat", "dog"), 0.25)
    lines = convert(ours, tmp_path / "theirs", target="keras")
    note = f"give {SSD_KERAS.title} the score threshold, which its file cannot hold: 0.25"
    assert lines[-1] == f"note: {note}"


@pytest.fixture(scope="module")
def ssd300(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return our_file(tmp_path_factory.mktemp("ours") / "ours", "ssd300-vgg16", ("cat",))


def test_pytorch_s_files_have_exactly_their_own_names(tmp_path: Path, ssd300: Path) -> None:
    for target in PYTORCH:
        convert(ssd300, tmp_path / target, target=target)
        state = torch.load(tmp_path / target, weights_only=True)
        state = state["model"] if target == "lufficc" else state
        layers = {name.rpartition(".")[0] for name in state}
        expected = {name for name in pytorch_names(target, 6) if not name.endswith("scale")}
        assert layers - {"backbone"} == expected


def test_keras_finds_layers_by_the_attributes_it_reads(tmp_path: Path, ssd300: Path) -> None:
    """`load_weights(by_name=True)` uses these attributes (`keras/engine/saving.py`)."""
    convert(ssd300, tmp_path / "keras", target="keras")
    with h5py.File(tmp_path / "keras") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert "fc7_mbox_conf" in names
        for layer in names:
            for variable in file[layer].attrs["weight_names"]:
                assert file[layer][variable.decode()].dtype == "float32"


def test_differences_of_the_other_implementation_are_printed(tmp_path: Path, ssd300: Path) -> None:
    lines = "\n".join(convert(ssd300, tmp_path / "a", target="torchvision"))
    assert "clips boxes before suppression" in lines
    assert "default boxes for voc" in lines
    assert "licence: CC0" in lines
    assert "note" not in "\n".join(convert(ssd300, tmp_path / "b", target="keras"))


def test_networks_that_they_do_not_have_are_refused(tmp_path: Path) -> None:
    ours = our_file(tmp_path / "ours", "ssd300-lite", ("cat",))
    for target in (*PYTORCH, "keras"):
        with pytest.raises(WeightsError, match="ssd300-lite"):
            convert(ours, tmp_path / "out", target=target)
        assert not (tmp_path / "out").exists()


def test_our_own_files_take_no_class_names(tmp_path: Path) -> None:
    ours = our_file(tmp_path / "ours", "ssd300-lite", ("cat",))
    for asked in ({"classes": ("dog",)}, {"scales": "voc"}):
        with pytest.raises(WeightsError, match="records its classes"):
            convert(ours, tmp_path / "out", target="multibox", **asked)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("no\nmore"), None])
def test_a_full_disk_leaves_nothing(tmp_path: Path, error: Exception | None) -> None:
    """The writers of PyTorch and safetensors raise their own errors."""
    with (
        pytest.raises(StorageError, match=r"cannot be written \(.*(No space left|no|full)\)"),
        new_file(tmp_path / "out"),
    ):
        raise error or SafetensorError("full")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_never_replaced(tmp_path: Path) -> None:
    ours = our_file(tmp_path / "ours", "ssd300-lite", ("cat",))
    before = ours.read_bytes()
    with pytest.raises(StorageError, match="exists"):
        convert(ours, ours, target="multibox")
    assert ours.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]
