"""Files that try to run code, read other files or exhaust the memory when they are opened."""

import base64
import builtins
import copy
import functools
import io
import json
import marshal
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from multibox.errors import WeightsError
from multibox.weights import keras
from multibox.weights.foreign import read_foreign

SENTINEL = "CODE_RAN"


class Call:
    """An object that pickles as a function call."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def calls(sentinel: Path) -> dict[str, object]:
    """Objects that would create the sentinel file if an unrestricted unpickler loaded them."""
    touch = f"touch {sentinel}"
    code = f"open({str(sentinel)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, touch),
        "os.popen": Call(os.popen, touch),
        "subprocess": Call(subprocess.check_call, ["touch", str(sentinel)]),
        "popen": Call(subprocess.Popen, ["touch", str(sentinel)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(sentinel), "w"),
        "io.open": Call(io.open, str(sentinel), "w"),
        "import": Call(builtins.__import__, "antigravity"),
        "pathlib": Call(Path.touch, sentinel),
        "partial": Call(functools.partial(os.system, touch)),
        "reduce": Call(functools.reduce, os.system, [touch]),
        "getattr": Call(getattr, Call(builtins.__import__, "os"), "system"),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "torch.load": Call(torch.load, str(sentinel)),
        "torch.save": Call(torch.save, {}, str(sentinel)),
        "numpy": Call(np.save, str(sentinel), np.zeros(1)),
    }


def legacy(value: object) -> bytes:
    """Writes like PyTorch before 1.6: a sequence of pickles. The first one is a magic number."""
    stream = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, value, []):
        pickle.dump(part, stream, protocol=2)
    return stream.getvalue()


def archive(value: object) -> bytes:
    """Writes like PyTorch since 1.6: a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return stream.getvalue()


NAMES = list(calls(Path("x")))


@pytest.mark.parametrize("container", [legacy, archive])
@pytest.mark.parametrize("name", NAMES)
def test_no_code_runs_from_a_pickle(
    tmp_path: Path, name: str, container: Callable[[object], bytes]
) -> None:
    sentinel = tmp_path / SENTINEL
    path = tmp_path / "weights.pth"
    for value in (calls(sentinel)[name], {"conv.weight": calls(sentinel)[name]}):
        data = container(value)
        path.write_bytes(data)
        with pytest.raises(WeightsError):
            read_foreign(path)
        assert not sentinel.exists()


def test_the_error_names_what_would_have_been_called(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(archive(Call(os.system, "true")))
    with pytest.raises(WeightsError, match=r"dict \([^()]*posix\.system"):
        read_foreign(path)


def test_the_calls_would_run_if_they_could(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    sentinel = tmp_path / SENTINEL
    pickle.loads(pickle.dumps(calls(sentinel)["os.system"]))
    assert sentinel.exists()


def test_raw_pickles_are_refused(tmp_path: Path) -> None:
    sentinel = tmp_path / SENTINEL
    path = tmp_path / "weights.pth"
    value = calls(sentinel)["os.system"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(value, protocol=protocol))
        with pytest.raises(WeightsError):
            read_foreign(path)
    assert not sentinel.exists()


def test_a_script_in_an_archive_is_not_run(tmp_path: Path) -> None:
    """TorchScript is code. Only the tensors of an archive are read."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    path = tmp_path / "script.pth"
    try:
        torch.jit.save(torch.jit.trace(Model(), torch.zeros(1)), path)
    except (RuntimeError, DeprecationWarning):
        pytest.skip("this PyTorch writes no TorchScript")
    with pytest.raises(WeightsError):
        read_foreign(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
        file.writestr("archive/data/0", bytes(1 << 24))
    with pytest.raises(WeightsError, match="compressed"):
        read_foreign(path)


def test_a_tensor_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    torch.save({"vgg.0.weight": torch.zeros(1).expand(1 << 20, 1 << 12)}, path)
    with pytest.raises(WeightsError, match="claims more numbers"):
        read_foreign(path)


def _operations(*parts: str | bytes) -> bytes:
    """Builds a pickle from operations. A str is pushed on the stack."""
    found = b"\x80\x02"
    for part in parts:
        if isinstance(part, str):
            part = b"X" + len(part).to_bytes(4, "little") + part.encode()
        found += part
    return found + b"."


def test_attributes_in_a_file_do_not_replace_methods(tmp_path: Path) -> None:
    """The unpickler lets a file set any attribute of an OrderedDict, and of a tensor."""
    path = tmp_path / "weights.pth"
    ordered = b"ccollections\nOrderedDict\n)R"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        state = _operations(ordered, b"}", "get", b"K\x01s", "items", b"K\x01sb")
        file.writestr("archive/data.pkl", state)
        file.writestr("archive/version", "3\n")
    path.write_bytes(stream.getvalue())
    with pytest.raises(WeightsError, match="unknown model"):
        read_foreign(path)


@pytest.mark.parametrize("name", ["torch.storage UntypedStorage", "torch FloatTensor"])
def test_what_a_state_does_not_need_is_not_called(tmp_path: Path, name: str) -> None:
    """PyTorch would allocate the storage and print its numbers in an error message."""
    path = tmp_path / "weights.pth"
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    large = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nJ\x00\x00\x00\x40\x85R."
    path.write_bytes(magic + large + 3 * pickle.dumps({}, protocol=2))
    with pytest.raises(WeightsError, match=name.replace(" ", r"\.")):
        read_foreign(path)


def test_numbers_that_are_not_in_an_old_file_are_refused(tmp_path: Path) -> None:
    """They would be uninitialised memory."""
    path = tmp_path / "weights.pth"
    torch.save({"0.weight": torch.ones(4096)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    keys = data.rindex(b"\x80\x02]")
    path.write_bytes(data[:keys] + b"\x80\x02].")
    with pytest.raises(WeightsError, match=r"0\.weight: claims more numbers than the file has"):
        read_foreign(path)


def test_names_of_members_may_be_of_any_case(tmp_path: Path) -> None:
    """PyTorch ignores the case."""
    path, content = tmp_path / "weights.pth", tmp_path / "plain.pth"
    torch.save({"0.weight": torch.ones(4)}, content)
    with zipfile.ZipFile(content) as plain, zipfile.ZipFile(path, "w") as file:
        for member in plain.infolist():
            name = member.filename.replace("data.pkl", "DATA.PKL")
            data = plain.read(member).replace(b"FloatStorage", b"HalfTensor")
            file.writestr(name, data)
    with pytest.raises(WeightsError, match=r"it needs torch\.HalfTensor"):
        read_foreign(path)


def test_bytes_that_an_old_file_only_claims_need_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"\x80\x05\x96" + (1 << 60).to_bytes(8, "little") + b"abc.")
    with pytest.raises(WeightsError, match=r"is a damaged archive .*only 4 remain"):
        read_foreign(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """Many members with the same bytes would unpack to more than the file has."""
    path = tmp_path / "weights.pth"
    torch.save({"0.weight": torch.ones(1 << 16)}, path)
    with zipfile.ZipFile(path) as file:
        (member,) = (info for info in file.infolist() if info.file_size >= 1 << 18)
    with zipfile.ZipFile(path, "a") as file:
        for number in range(9):
            double = copy.copy(member)
            double.filename = member.filename + str(number)
            file.filelist.append(double)
        file._didModify = True
    with pytest.raises(WeightsError, match="share bytes"):
        read_foreign(path)


def h5_external_link(file: h5py.File, elsewhere: Path) -> None:
    file["conv1_1"] = h5py.ExternalLink(str(elsewhere), "/secret")


def h5_deep_external_link(file: h5py.File, elsewhere: Path) -> None:
    file.create_group("conv1_1/conv1_1")["kernel:0"] = h5py.ExternalLink(str(elsewhere), "/secret")


def h5_external_root(file: h5py.File, elsewhere: Path) -> None:
    file["model_weights"] = h5py.ExternalLink(str(elsewhere), "/")


def h5_soft_link(file: h5py.File, elsewhere: Path) -> None:
    file["conv1_1"] = h5py.SoftLink("/nowhere")


def h5_external_storage(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset(
        "conv1_1/conv1_1/bias:0", (64,), "f4", external=[(str(elsewhere), 0, 64 * 4)]
    )


def h5_virtual(file: h5py.File, elsewhere: Path) -> None:
    layout = h5py.VirtualLayout((64,), "f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "secret", shape=(64,))
    file.create_virtual_dataset("conv1_1/conv1_1/bias:0", layout)


def h5_huge(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("conv1_1/conv1_1/bias:0", (1 << 40,), "f4", chunks=(1 << 20,))


def h5_foreign_filter(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("conv1_1/conv1_1/bias:0", data=np.zeros(64, np.float32), compression="lzf")


def h5_loop(file: h5py.File, elsewhere: Path) -> None:
    group = file.create_group("conv1_1")
    group["again"] = group


def h5_many(file: h5py.File, elsewhere: Path) -> None:
    for number in range(10_001):
        file.create_group(f"layer{number}")


def h5_never_written(file: h5py.File, elsewhere: Path) -> None:
    file.create_dataset("conv1_1/conv1_1/bias:0", (1 << 27,), "f4", chunks=(1 << 20,))


def h5_large_chunk(file: h5py.File, elsewhere: Path) -> None:
    options = {"chunks": (1 << 26,), "maxshape": (None,), "compression": "gzip"}
    file.create_dataset("conv1_1/conv1_1/bias:0", (64,), "f4", **options)


H5 = [
    h5_external_link,
    h5_deep_external_link,
    h5_external_root,
    h5_soft_link,
    h5_external_storage,
    h5_virtual,
    h5_huge,
    h5_never_written,
    h5_large_chunk,
    h5_foreign_filter,
    h5_loop,
    h5_many,
]


@pytest.mark.parametrize("build", H5)
def test_hdf5_does_not_open_other_files_or_claim_memory(
    tmp_path: Path, build: Callable[[h5py.File, Path], None]
) -> None:
    elsewhere = tmp_path / "elsewhere.h5"
    with h5py.File(elsewhere, "w") as file:
        file["secret"] = np.ones(64, np.float32)
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        build(file, elsewhere)
    with pytest.raises(WeightsError):
        read_foreign(path)


@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_virtual_datasets_are_refused_before_hdf5_opens_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str
) -> None:
    """HDF5 2.0 crashes on damage in the list of source files, which it reads first."""
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w", libver=version) as file:
        file.attrs["backend"] = "tensorflow"  # also in a global heap
        h5_virtual(file, tmp_path / "elsewhere.h5")
    monkeypatch.setattr(h5py, "File", None)
    with pytest.raises(WeightsError, match="in another file"):
        keras.read_keras(path)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_hdf5_with_addresses_of_other_sizes_is_refused(tmp_path: Path, size: int) -> None:
    """The search for virtual datasets expects addresses of 8 bytes, as h5py writes them."""
    path = tmp_path / "weights.h5"
    properties = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    properties.set_sizes(size, size)
    with h5py.File(h5py.h5f.create(os.fsencode(path), fcpl=properties)) as file:
        file["conv1_1/conv1_1/bias:0"] = np.zeros(64, np.float32)
    with pytest.raises(WeightsError, match="addresses"):
        keras.read_keras(path)


def test_a_saved_model_s_functions_are_not_run(tmp_path: Path) -> None:
    """Keras stores lambdas as marshalled code, and its own loader runs them."""
    sentinel = tmp_path / SENTINEL
    code = compile(f"open({str(sentinel)!r}, 'w').close()", "x", "exec")
    body = base64.b64encode(marshal.dumps(code)).decode()
    layers = [{"class_name": "Lambda", "config": {"function": [body, None, None]}}]
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": layers}})
        file["model_weights/conv1_1/conv1_1/bias:0"] = np.zeros(64, np.float32)
    with pytest.raises(WeightsError, match="not contain a VGG-16"):
        read_foreign(path)
    assert not sentinel.exists()


def test_damaged_containers_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    torch.save({"vgg.0.weight": torch.arange(64.0)}, good)
    path = tmp_path / "bad.pth"
    data = good.read_bytes()
    for length in range(4, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            read_foreign(path)
    with h5py.File(good, "w") as file:
        file["conv1_1/conv1_1/bias:0"] = np.zeros(64, np.float32)
    data = good.read_bytes()
    for length in range(8, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(WeightsError):
            read_foreign(path)
