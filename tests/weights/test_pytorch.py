"""State dicts as training scripts save them: with wrappers, prefixes and objects beside them."""

import argparse
import collections
import datetime
import pathlib
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_files import tiny
from torch import Tensor

from multibox.errors import WeightsError
from multibox.weights.foreign import read_foreign
from multibox.weights.pytorch import read_state

STATE = {"vgg.0.weight": torch.arange(6.0).view(2, 3), "vgg.0.bias": torch.ones(2)}
WRITERS = [pytest.param(True, id="archive"), pytest.param(False, id="legacy")]


def saved(folder: Path, value: object, *, zipped: bool = True) -> Path:
    path = folder / "x.pth"
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("zipped", WRITERS)
def test_torchvision_s_training_checkpoint_is_read(tmp_path: Path, zipped: bool) -> None:
    """As `references/detection/train.py` saves it, with the arguments of its command line."""
    args = argparse.Namespace(
        data_path="/datasets/coco", lr=0.002, lr_steps=[80, 110], device="cuda", sync_bn=False
    )
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[80, 110])
    checkpoint = {
        "model": tiny("torchvision", classes=90),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": args,
        "epoch": 3,
        "scaler": {"scale": 65536.0},
    }
    found = read_foreign(saved(tmp_path, checkpoint, zipped=zipped))
    assert (found.origin.title, len(found.classes)) == ("torchvision", 90)


class Settings(dict):  # type: ignore[type-arg]
    """A configuration, such as EasyDict, yacs's CfgNode and mmcv's ConfigDict."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.frozen = True


class Slotted:
    __slots__ = ("kept",)

    def __init__(self) -> None:
        self.kept = 1


class History:
    """Like mmengine's HistoryBuffer, which stores its methods."""

    def __init__(self) -> None:
        self.history = np.arange(3.0)
        self.methods = {"mean": History.mean}

    def mean(self) -> float:
        return 0.0


OBJECTS = {
    "argparse": argparse.Namespace(lr=0.1, size=(300, 300), nested=argparse.Namespace(a=[1])),
    "namespace": types.SimpleNamespace(lr=0.1),
    "path": pathlib.PurePosixPath("/data/voc"),
    "own path": Path("runs"),
    "numpy scalar": np.float64(0.77),
    "numpy scalars": [np.float32(1.5), np.int64(3), np.bool_(True), np.float64(2.5)],
    "numpy array": np.arange(12.0).reshape(3, 4),
    "numpy state": np.random.RandomState(0).get_state(),
    "settings": Settings(model="ssd300", size=300),
    "slots": Slotted(),
    "history": History(),
    "default": collections.defaultdict(list, a=[1]),
    "time": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    "types": [torch.float16, torch.device("cuda"), torch.Size([3]), {1, 2}, int],
    "bytes": b"\x00\xff",
}


@pytest.mark.parametrize("zipped", WRITERS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights_are_left_out(tmp_path: Path, name: str, zipped: bool) -> None:
    path = saved(tmp_path, {"best": OBJECTS[name], "state_dict": STATE, "again": OBJECTS[name]})
    assert_same(read_state(path))


def test_all_of_them_together(tmp_path: Path) -> None:
    assert_same(read_state(saved(tmp_path, {"model": STATE, **OBJECTS})))


def test_classes_are_not_imported_and_nothing_is_called(tmp_path: Path) -> None:
    """The module of the class exists only while the file is written."""
    module = types.ModuleType("their_training")
    source = """
class Settings:
    def __init__(self, lr): raise SystemExit("called")
    def __new__(cls, *args): return object.__new__(cls)
    def __reduce__(self): return Settings, (0.1,), {"lr": 0.1}
    def __setstate__(self, state): raise SystemExit("called")
"""
    exec(source, module.__dict__)
    sys.modules["their_training"] = module
    try:
        path = saved(tmp_path, {"net": STATE, "settings": module.Settings.__new__(module.Settings)})
    finally:
        del sys.modules["their_training"]
    assert_same(read_state(path))
    assert "their_training" not in sys.modules


@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "net", "network", "model_ema", "ema"]
)
def test_the_usual_keys_are_found(tmp_path: Path, key: str) -> None:
    assert_same(read_state(saved(tmp_path, {"epoch": 3, key: STATE})))
    nested = {key: {"state_dict": {"model": STATE}, "epoch": 3}}
    assert_same(read_state(saved(tmp_path, nested)))


def test_the_network_comes_before_its_average(tmp_path: Path) -> None:
    average = {name: tensor + 1 for name, tensor in STATE.items()}
    assert_same(read_state(saved(tmp_path, {"model_ema": average, "model": STATE})))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_all_names_are_removed(tmp_path: Path, prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    assert_same(read_state(saved(tmp_path, state)))


def test_a_prefix_of_some_names_is_kept(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_same(read_state(saved(tmp_path, state)), state)


def test_a_moving_average_of_torchvision_is_read(tmp_path: Path) -> None:
    """`ExponentialMovingAverage` of `references/classification/utils.py`."""
    average = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    path = saved(tmp_path, {"model_ema": average.state_dict()})
    assert read_state(path).keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (argparse.Namespace(a=1), "contains an object, not a state dict"),
        (np.float64(1), "contains an object, not a state dict"),
        ({"model": Settings(a=1)}, "contains an object, not a state dict"),
        ({"vgg.0.weight": np.ones(3)}, "vgg.0.weight: is an object, not a tensor"),
        ({"vgg.0.weight": Path("x")}, "vgg.0.weight: is an object, not a tensor"),
        ({"model": torch.nn.Linear(2, 2)}, "it needs torch.nn"),
        ({"epoch": 1, "vgg.0.weight": torch.ones(1)}, "epoch: is int, not a tensor"),
    ],
)
def test_objects_instead_of_weights_are_refused(tmp_path: Path, value: object, reason: str) -> None:
    with pytest.raises(WeightsError, match=f"{reason}.*Save only the model's state_dict"):
        read_state(saved(tmp_path, value))


def with_pickle(path: Path, operations: bytes) -> Path:
    """Replaces the pickle of an archive."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02" + operations + b".")
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return path


ENCODE = b"c_codecs\nencode\n"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


@pytest.mark.parametrize(
    "operations",
    [
        # Each call with this encoding doubles the text.
        ENCODE + text("a") + text("hex") + b"\x86R",
        ENCODE + ENCODE + text("a") + text("latin1") + b"\x86R" + text("hex") + b"\x86R",
        ENCODE + b"(" + text("a") + text("hex") + b"tR",
        ENCODE + b"q\x00" + text("a") + text("latin1") + b"\x86Rq\x01h\x00h\x01h\x01\x86R",
        ENCODE + b"q\x00(" + text("a") + b"t0h\x00",
        text("hex") + b"q\x00" + ENCODE + text("a") + b"h\x00\x86R",
        text("latin1") + b"q\x00" + text("hex") + b"q\x00" + ENCODE + text("a") + b"h\x00\x86R",
        ENCODE + b"\x85R",
        ENCODE,
    ],
)
def test_texts_are_only_encoded_as_numpy_does(tmp_path: Path, operations: bytes) -> None:
    path = with_pickle(tmp_path / "x.pth", operations)
    with pytest.raises(WeightsError):
        read_state(path)
    if operations != ENCODE:
        with pytest.raises(WeightsError, match=r"calls _codecs\.encode with other arguments"):
            read_state(path)


def test_functions_of_python_and_pytorch_are_still_refused(tmp_path: Path) -> None:
    for name in ("subprocess Popen", "builtins eval", "__builtin__ eval", "torch load"):
        operations = b"}" + text("model") + b"}s" + text("x")
        operations += b"c" + name.replace(" ", "\n").encode() + b"\n" + text("true") + b"\x85Rs"
        with pytest.raises(WeightsError, match="it needs"):
            read_state(with_pickle(tmp_path / "x.pth", operations))


def test_a_file_may_not_name_thousands_of_classes(tmp_path: Path) -> None:
    names = b"".join(f"ca\nb{number}\n".encode() for number in range(5_000))
    path = with_pickle(tmp_path / "x.pth", names)
    with pytest.raises(WeightsError, match=r"contains objects of 5,000 classes"):
        read_state(path)
