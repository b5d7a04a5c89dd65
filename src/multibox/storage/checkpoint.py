"""The state of a run after a step, as a folder that is there whole or not at all.

    checkpoints/step-00001000/
        model.safetensors      weights and buffers; the header says how to use them on their own
        optimizer.safetensors  the optimizer's tensors
        state.json             plain numbers
        manifest.json          format, step, and the size and SHA-256 of the other three

The folder is filled under a name that starts with a dot, brought to the disk and renamed: the
rename is the commit. Equal checkpoints are equal bytes, so that two runs can be compared by their
files. Nothing here is pickled. Only the process that holds the run's lock saves and prunes.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.errors import NonFiniteError, StorageError, WeightsError
from multibox.storage import manifest
from multibox.storage.disk import free_bytes, make_folder, mebibytes, sync_folder
from multibox.storage.jsonl import JSON
from multibox.storage.safetensors_io import parsed, serialized

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_NAME = re.compile(r"step-([0-9]{8,})")
_BAD = re.compile(r"step-.*\.bad")


class Checkpoint(NamedTuple):
    """Everything that a run goes on from.

    Attributes:
        step: Updates made so far.
        model: The network's weights and buffers by name, of any dtype.
        optimizer: The optimizer's tensors by name.
        state: The plain numbers, e.g. sums of losses and the journal's length.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, JSON]


def save(folder: Path, checkpoint: Checkpoint, *, metadata: Mapping[str, str]) -> Path:
    """Returns the folder of the new checkpoint, once it is on the disk.

    A step that is there already is left as it is. Tensors are stored on their own and contiguous
    (`channels_last` is the reader's to restore). What interrupted saves left is removed.

    Args:
        folder: The folder of all checkpoints; made where it is missing.
        checkpoint: What to save. Its tensors may be on any device and share memory.
        metadata: Goes into the header of `model.safetensors`.

    Raises:
        NonFiniteError: A tensor has NaN or infinite values; nothing is written.
        StorageError: The disk is full or fails, or the folder is not writable. The checkpoints
            before are as they were.
        ValueError: A number of the state is NaN or infinite.
    """
    _refuse_nonfinite(checkpoint)
    target = path_of(folder, checkpoint.step)
    temporary = folder / f".{target.name}.new"
    try:
        make_folder(folder)
        _remove_leftovers(folder)
        if target.exists():
            return target
        temporary.mkdir()
        manifest.write(temporary, checkpoint.step, _contents(checkpoint, metadata))
        temporary.rename(target)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(t.nbytes for t in (*checkpoint.model.values(), *checkpoint.optimizer.values()))
        free = free_bytes(folder)
        room = "" if free is None else f" ({mebibytes(free)} are free)"
        raise StorageError(
            f"cannot be written ({error.strerror})",
            file=target,
            remedy=f"It needs {mebibytes(size)}{room} and a writable folder; the checkpoints "
            "before it are untouched, and the same command goes on from there",
        ) from error
    return target


def load(path: Path) -> Checkpoint:
    """Returns a checkpoint, its tensors contiguous and on the CPU.

    Every file is compared with the manifest before it is parsed, and from the same reading.

    Args:
        path: The folder of one checkpoint.

    Raises:
        WeightsError: A file is missing, damaged or of an unknown format.
        StorageError: A file may not be read.
    """
    step, files = manifest.read(path, {_MODEL, _OPTIMIZER, _STATE})
    named = _NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise WeightsError(f"its manifest is of step {step}", file=path)
    model, optimizer = (
        parsed(path / name, manifest.verified(path / name, files[name]))
        for name in (_MODEL, _OPTIMIZER)
    )
    state = manifest.decoded(path / _STATE, manifest.verified(path / _STATE, files[_STATE]))
    return Checkpoint(step, model, optimizer, state)


def check_weights(path: Path) -> None:
    """Compares the weights in a checkpoint's folder with its manifest; a file alone has none.

    Raises:
        WeightsError: They are damaged, or the manifest is.
        StorageError: A file may not be read.
    """
    beside = [path.with_name(name) for name in (_OPTIMIZER, _STATE, manifest.NAME)]
    if path.name == _MODEL and all(file.exists() for file in beside):
        files = manifest.read(path.parent, {_MODEL, _OPTIMIZER, _STATE}).files
        manifest.verified(path, files[_MODEL])


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest sound checkpoint and why newer ones were refused; None if there is none.

    The refused are renamed to `step-00001000.bad` when an older one takes their place.

    Args:
        folder: The folder of all checkpoints.

    Raises:
        WeightsError: There are checkpoints, but none is sound: starting again from the first
            step would bury the damage. Nothing is renamed.
        StorageError: The folder cannot be listed, a file may not be read, or a folder not be
            renamed.
    """
    refused: list[tuple[Path, str]] = []
    for step in reversed(steps(folder)):
        path = path_of(folder, step)
        try:
            checkpoint = load(path)
        except WeightsError as error:
            # A reader beside the run may see one vanish, because the run prunes it.
            if path.exists():
                refused.append((path, str(error)))
            continue
        _set_aside([damaged for damaged, _ in refused])
        return checkpoint, [message for _, message in refused]
    reasons = [message for _, message in refused]
    reasons += [f"{path} is damaged" for path in _listed(folder) if _BAD.match(path.name)]
    if reasons:
        raise WeightsError(
            f"none of the checkpoints here can be used: {reasons[0].rstrip('.')}",
            file=folder,
            remedy="Put back a copy of one, or start a new run in another folder",
        )
    return None, []


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending, without looking inside.

    Raises:
        StorageError: The folder cannot be listed.
    """
    return _steps(_listed(folder))


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Removes all checkpoints but the newest and the best.

    Each is renamed before it is deleted, and that on the disk: none is ever half there under its
    own name.

    Args:
        folder: The folder of all checkpoints.
        keep: How many of the newest stay, at least 1.
        best: The step of the best one, which stays too.

    Raises:
        StorageError: A checkpoint cannot be removed.
    """
    try:
        superfluous = [step for step in _steps(_entries(folder))[:-keep] if step != best]
        for step in superfluous:
            path = path_of(folder, step)
            path.rename(folder / f".{path.name}.old")
        if superfluous:
            sync_folder(folder)
        _remove_leftovers(folder)
    except OSError as error:
        reason = f"an old checkpoint cannot be removed ({error.strerror})"
        raise StorageError(reason, file=folder, remedy="Remove it, and go on") from error


def path_of(folder: Path, step: int) -> Path:
    """Returns where a step's checkpoint is, or would be."""
    return folder / f"step-{step:08d}"


def _steps(entries: Iterable[Path]) -> list[int]:
    names = (_NAME.fullmatch(path.name) for path in entries if path.is_dir())
    return sorted(int(name[1]) for name in names if name)


def _listed(folder: Path) -> list[Path]:
    try:
        return _entries(folder)
    except OSError as error:
        raise StorageError(
            f"cannot be listed ({error.strerror})",
            file=folder,
            remedy="Check the disk and the permissions of the folder",
        ) from error


def _entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted by name; nothing if there is no such folder.

    `Path.glob` would take a folder that cannot be listed for an empty one.

    Raises:
        OSError: The folder cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _refuse_nonfinite(checkpoint: Checkpoint) -> None:
    for kind, tensors in (("model", checkpoint.model), ("optimizer", checkpoint.optimizer)):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFiniteError(
                    f"NaN or infinite values in the {kind} after step {checkpoint.step}",
                    position=name,
                    remedy="No checkpoint was written; go on from the last with a lower --lr",
                )


def _remove_leftovers(folder: Path) -> None:
    for leftover in _entries(folder):
        if not leftover.name.startswith(".step-"):
            continue
        try:
            shutil.rmtree(leftover)
        except OSError:
            # What fails once may not fail twice; the reason is told all the same.
            shutil.rmtree(leftover, ignore_errors=True)
            raise


def _contents(
    checkpoint: Checkpoint, metadata: Mapping[str, str]
) -> Iterator[tuple[str, Iterable[bytes | memoryview]]]:
    yield _MODEL, serialized(checkpoint.model, metadata)
    yield _OPTIMIZER, serialized(checkpoint.optimizer, {})
    yield _STATE, [manifest.encoded(checkpoint.state)]


def _set_aside(damaged: Sequence[Path]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again."""
    for path in damaged:
        aside, number = path.with_name(f"{path.name}.bad"), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"{path.name}.bad{number}")
        try:
            path.rename(aside)
            # On the disk before the journal is cut: it may not come back without its lines.
            sync_folder(path.parent)
        except OSError as error:
            reason = f"is damaged and cannot be renamed ({error.strerror})"
            raise StorageError(
                reason, file=path, remedy="Choose a folder that this user can write"
            ) from error
