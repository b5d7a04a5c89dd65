import errno
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from multibox.errors import NonFiniteError, StorageError, WeightsError
from multibox.storage import checkpoint, manifest
from multibox.storage.checkpoint import Checkpoint, load, newest, path_of, prune, save, steps
from multibox.training.checkpointing import TrainingState

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
METADATA = {"classes": '["RBC", "größe"]', "licence": "none", "config": "{}", "size": "[300, 300]"}


def example(step: int = 1000) -> Checkpoint:
    values = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2) + step
    return Checkpoint(
        step,
        {
            "conv.weight": values,
            "norm.count": torch.tensor(step),
            "half": values[0].to(torch.bfloat16),
            "mask": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
        },
        {"conv.weight.momentum": values / 3},
        {"loss_sum": 0.1 + step, "best": None, "journal": 12345, "scale": 1e-300, "seen": [1, 2]},
    )


def assert_equal(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    assert (found.step, found.state) == (expected.step, expected.state)
    for group, other in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert group.keys() == other.keys()
        for name, tensor in group.items():
            assert tensor.dtype == other[name].dtype
            assert tensor.is_contiguous()
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)


def tree(folder: Path) -> dict[str, str]:
    """The bytes of all files below a folder, dot-files included, as hashes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path / "run" / "checkpoints", example(), metadata=METADATA)
    assert path.name == "step-00001000"
    assert sorted(entry.name for entry in path.iterdir()) == sorted(FILES)
    assert_equal(load(path), example())
    assert newest(path.parent)[1] == []


def test_weights_file_can_be_opened_on_its_own_by_another_reader(tmp_path: Path) -> None:
    path = save(tmp_path, example(), metadata=METADATA)
    with safe_open(path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == METADATA
        expected = example().model["conv.weight"].numpy()
        assert (file.get_tensor("conv.weight") == expected).all()
    with (path / "model.safetensors").open("rb") as file:
        assert int.from_bytes(file.read(8), "little") % 8 == 0


def test_channels_last_shared_and_tracked_tensors_keep_their_values(tmp_path: Path) -> None:
    weight = torch.arange(96.0).reshape(2, 3, 4, 4)
    flat = torch.arange(10.0)
    model = {
        "weight": weight.to(memory_format=torch.channels_last).requires_grad_(),
        "tied": flat,
        "tied_again": flat,
        "slice": flat[2:5],
    }
    loaded = load(save(tmp_path, Checkpoint(1, model, {}, {}), metadata={})).model
    assert loaded["weight"].is_contiguous()
    assert not loaded["weight"].requires_grad
    assert torch.equal(loaded["weight"], weight)
    assert torch.equal(loaded["tied_again"], flat)
    assert torch.equal(loaded["slice"], flat[2:5])


def test_loaded_tensors_outlive_the_folder_and_can_be_written(tmp_path: Path) -> None:
    path = save(tmp_path, example(), metadata={})
    loaded = load(path)
    shutil.rmtree(path)
    loaded.model["conv.weight"].add_(1)
    assert torch.equal(loaded.model["conv.weight"], example().model["conv.weight"] + 1)


def test_equal_checkpoints_are_equal_bytes(tmp_path: Path) -> None:
    for place, names in (("a", "abcdefgh"), ("b", "hgfedcba")):
        tensors = {name: torch.full((3,), float(ord(name))) for name in names}
        numbers = {name: ord(name) for name in names}
        texts = {name: name for name in names}
        save(tmp_path / place, Checkpoint(7, tensors, tensors, numbers), metadata=texts)
    first = tree(tmp_path / "a")
    assert len(first) == 4
    assert first == tree(tmp_path / "b")


def test_step_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, example(), metadata=METADATA)
    before = tree(tmp_path)
    assert save(tmp_path, example()._replace(state={}), metadata={}).name == "step-00001000"
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, example(), metadata=METADATA) / name
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=name):
            load(path.parent)
    path.write_bytes(content + b" ")
    with pytest.raises(WeightsError, match=name):
        load(path.parent)
    path.unlink()
    with pytest.raises(WeightsError, match=f"{name}: is missing"):
        load(path.parent)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, example(), metadata=METADATA) / name
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            for bit in range(8):
                file.seek(position)
                file.write(bytes([byte ^ 1 << bit]))
                with pytest.raises(WeightsError):
                    load(path.parent)
            file.seek(position)
            file.write(bytes([byte]))
    assert_equal(load(path.parent), example())


def flipped(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "flipped": lambda path, _: path.write_bytes(flipped(path.read_bytes())),
    "cut": lambda path, _: path.write_bytes(path.read_bytes()[:-1]),
    "extended": lambda path, _: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path, _: path.write_bytes(bytes(path.stat().st_size)),
    "swapped": lambda path, other: path.write_bytes((other / path.name).read_bytes()),
    "missing": lambda path, _: path.unlink(),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_set_aside_and_not_used(
    tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1000, 2000):
        save(tmp_path, example(step), metadata=METADATA)
    sound = set(tree(tmp_path).values())
    damaged = path_of(tmp_path, 2000)
    DAMAGES[damage](damaged / name, path_of(tmp_path, 1000))
    before = tree(damaged)
    parsed = []
    parse = safetensors.torch.load

    def recorded(content: bytes) -> dict[str, torch.Tensor]:
        parsed.append(hashlib.sha256(content).hexdigest())
        return parse(content)

    monkeypatch.setattr(safetensors.torch, "load", recorded)
    found, refusals = newest(tmp_path)
    assert_equal(found, example(1000))
    assert len(refusals) == 1
    # Whether a manifest or the file that it speaks of was changed, nobody can tell.
    assert str(damaged if name == "manifest.json" else damaged / name) in refusals[0]
    assert set(parsed) <= sound
    assert tree(damaged.with_name("step-00002000.bad")) == before
    save(tmp_path, example(2000), metadata=METADATA)
    assert_equal(newest(tmp_path)[0], example(2000))


def test_the_files_are_safetensors_own(tmp_path: Path) -> None:
    dtypes = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16)
    dtypes += (torch.int32, torch.float32, torch.float64, torch.int64)
    tensors = {f"{n}.{t}": torch.ones(n, 3).to(t) for n, t in itertools.product(range(3), dtypes)}
    tensors["single"] = torch.tensor(7.0)
    path = save(tmp_path, Checkpoint(1, tensors, {}, {}), metadata={"a": "é"})
    expected = safetensors.torch.save(tensors, metadata={"a": "é"})
    assert safetensors.torch.load((path / FILES[0]).read_bytes()).keys() == tensors.keys()
    ours = (path / FILES[0]).read_bytes()
    start, end = (8 + int.from_bytes(content[:8], "little") for content in (ours, expected))
    assert json.loads(ours[8:start]) == json.loads(expected[8:end])
    assert ours[start:] == expected[end:]


def forge(path: Path, name: str, content: bytes) -> None:
    """Replaces a file and makes the manifest agree with it."""
    (path / name).write_bytes(content)
    value = json.loads((path / "manifest.json").read_bytes())
    value["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_bytes(manifest.encoded(value))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"\x80\x04pickle", "is not a safetensors file"),
        ("model.safetensors", b"\xff" * 8 + b"{}", "is not a safetensors file"),
        (
            "optimizer.safetensors",
            b'\x38\0\0\0\0\0\0\0{"a":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}  \0',
            None,
        ),
        ("state.json", b"[1]", "is not a JSON object"),
        ("state.json", b"[" * 100_000, "is not a JSON object"),
    ],
)
def test_content_that_agrees_with_a_forged_manifest_is_still_checked(
    tmp_path: Path, name: str, content: bytes, reason: str | None
) -> None:
    path = save(tmp_path, example(), metadata={})
    forge(path, name, content)
    with pytest.raises(WeightsError, match=reason):
        load(path)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format", 2, "has format 2, but this version reads 1"),
        ("format", None, "has format None"),
        ("step", 999, "its manifest belongs to step 999"),
        ("step", "1000", "is damaged: it has"),
        ("files", {"../../etc/passwd": {}}, "is damaged: it has"),
        ("files", dict.fromkeys(FILES[:3], 1), "is damaged: it has"),
        (
            "files",
            {key: {"size": 1.0, "sha256": ""} for key in FILES[:3]},
            "is damaged: it has",
        ),
        ("files", {name: {} for name in FILES[:3]}, "is damaged: it has"),
    ],
)
def test_manifests_that_this_version_did_not_write_are_refused(
    tmp_path: Path, field: str, value: object, reason: str
) -> None:
    path = save(tmp_path, example(), metadata={})
    forged = json.loads((path / "manifest.json").read_bytes())
    forged[field] = value
    (path / "manifest.json").write_bytes(manifest.encoded(forged))
    with pytest.raises(WeightsError, match=reason):
        load(path)


def test_newest_falls_back_and_sets_the_damaged_aside(tmp_path: Path) -> None:
    for step in (1000, 2000, 3000, 4000):
        save(tmp_path, example(step), metadata={})
    (tmp_path / "step-00004000" / "state.json").unlink()
    (tmp_path / "step-00003000" / "model.safetensors").write_bytes(b"")
    found, refusals = newest(tmp_path)
    assert_equal(found, example(2000))
    assert ["state.json: is missing" in refusals[0], "has 0 bytes" in refusals[1]] == [True, True]
    assert steps(tmp_path) == [1000, 2000]

    save(tmp_path, example(3000), metadata={})
    (tmp_path / "step-00003000" / "manifest.json").write_bytes(b"{}")
    assert_equal(newest(tmp_path)[0], example(2000))
    aside = ["step-00003000.bad", "step-00003000.bad2", "step-00004000.bad"]
    assert sorted(path.name for path in tmp_path.glob("*.bad*")) == aside


def test_folder_of_damaged_checkpoints_only_does_not_look_new(tmp_path: Path) -> None:
    assert newest(tmp_path / "missing") == (None, [])
    assert newest(tmp_path) == (None, [])
    (save(tmp_path, example(), metadata={}) / "state.json").unlink()
    for _ in range(2):
        with pytest.raises(
            WeightsError, match=r"none of the checkpoints .*state\.json: is missing"
        ):
            newest(tmp_path)
    assert steps(tmp_path) == [1000]
    (tmp_path / "step-00001000").rename(tmp_path / "step-00001000.bad")
    with pytest.raises(WeightsError, match=r"00001000\.bad is damaged"):
        newest(tmp_path)


def test_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, example(), metadata={})
    save(tmp_path, example(2000), metadata={})

    def forbidden(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(StorageError, match="Permission denied"):
        newest(tmp_path)
    assert steps(tmp_path) == [1000, 2000]


def test_files_of_the_first_format_are_read_and_written_alike(tmp_path: Path) -> None:
    """Kept for ever: `checkpoint-format-1` was written by the first version."""
    folder = Path(__file__).with_name("checkpoint-format-1")
    found, refusals = newest(folder)
    assert refusals == []
    weight = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2) / 8
    state = {
        "best": {"mAP": 0.5, "step": 8},
        "journal": 1234,
        "lr": 0.001,
        "lr_scale": 0.5,
        "sums": [1.5, 0.25, 12.0],
        "validation_losses": [3.5, 2.25],
    }
    expected = Checkpoint(
        12,
        {
            "conv.weight": weight,
            "conv.bias": torch.tensor([0.5, -0.5]),
            "norm.num_batches_tracked": torch.tensor(12),
        },
        {
            "optimizer.momentum_buffer.conv.weight": -weight,
            "raw.conv.bias": torch.tensor([1.0, 2.0]),
        },
        state,
    )
    assert_equal(found, expected)
    header = {"format": "multibox-1", "network": "tiny", "classes": '["größe"]'}
    save(tmp_path, expected, metadata=header)
    assert tree(tmp_path) == tree(folder)
    # What the loop makes of it: every later field has a value for runs that had none.
    assert TrainingState(**state).journal == 1234


def test_names_that_are_not_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for name in (".step-00000001.new", "step-1", "step-00000002.bad", "xstep-00000003", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000004").write_text("a file")
    for step in (123_456_789, 5):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert steps(tmp_path) == [5, 123_456_789]


def test_prune_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, example(step), metadata={})
    prune(tmp_path, keep=2, best=2)
    assert steps(tmp_path) == [2, 5, 6]
    prune(tmp_path, keep=2, best=None)
    assert steps(tmp_path) == [5, 6]
    prune(tmp_path, keep=3, best=6)
    assert steps(tmp_path) == [5, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("group", ["model", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_that_is_not_finite_is_written(tmp_path: Path, group: str, value: float) -> None:
    sound = example()
    getattr(sound, group)["spoiled"] = torch.tensor([0.0, value])
    with pytest.raises(NonFiniteError, match=f"spoiled: NaN or infinite values in the {group}"):
        save(tmp_path / "checkpoints", sound, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        save(tmp_path / "file" / "checkpoints", example(), metadata={})


def test_damaged_checkpoint_that_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, example(1000), metadata={})
    (save(tmp_path, example(2000), metadata={}) / "state.json").unlink()

    def read_only(path: Path, target: Path) -> Path:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checkpoint.Path, "rename", read_only)
    with pytest.raises(StorageError, match="damaged and cannot be renamed"):
        newest(tmp_path)
