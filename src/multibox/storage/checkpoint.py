"""Saves and loads checkpoints. A checkpoint is a folder that exists completely or not at all.

    checkpoints/step-00001000/
        model.safetensors      weights and buffers; the header describes the network
        optimizer.safetensors  the optimizer's tensors
        state.json             other numbers
        manifest.json          format, step, and the size and SHA-256 of the other three

The folder is written under a name that starts with a dot, synced to the disk and then renamed.
Equal checkpoints have equal bytes, so two runs can be compared by their files. Nothing is pickled.
Only the process that holds the run's lock saves and prunes.
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
    """The complete state of a run after a step.

    Attributes:
        step: Number of completed steps.
        model: The network's weights and buffers by name, of any dtype.
        optimizer: The optimizer's tensors by name.
        state: Other values by name, in JSON, e.g. sums of losses and the length of `metrics.jsonl`.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, JSON]


def save(folder: Path, checkpoint: Checkpoint, *, metadata: Mapping[str, str]) -> Path:
    """Saves a checkpoint, waits until it is on the disk, and returns its folder.

    If the step already has a checkpoint, that one is kept. Tensors are stored contiguously, and
    tensors that share memory are stored separately. So whoever loads them has to restore the memory
    format `channels_last`. The remains of interrupted saves are removed.

    Args:
        folder: The folder of all checkpoints; created if it does not exist.
        checkpoint: The state to save. Its tensors may be on any device and share memory.
        metadata: Stored in the header of `model.safetensors`.

    Raises:
        NonFiniteError: A tensor has NaN or infinite values. Nothing is written.
        StorageError: The disk is full or fails, or the folder is not writable. Earlier checkpoints
            are unchanged.
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
            remedy=f"Provide {mebibytes(size)}{room} in a writable folder, and run the same "
            "command to resume from the checkpoint before it",
        ) from error
    return target


def load(path: Path) -> Checkpoint:
    """Loads a checkpoint, with contiguous tensors on the CPU.

    Each file is read once. Its bytes are compared with the manifest before they are parsed.

    Args:
        path: The folder of one checkpoint.

    Raises:
        WeightsError: A file is missing, damaged or of an unknown format.
        StorageError: This user may not read a file.
    """
    step, files = manifest.read(path, {_MODEL, _OPTIMIZER, _STATE})
    named = _NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise WeightsError(f"its manifest belongs to step {step}", file=path)
    model, optimizer = (
        parsed(path / name, manifest.verified(path / name, files[name]))
        for name in (_MODEL, _OPTIMIZER)
    )
    state = manifest.decoded(path / _STATE, manifest.verified(path / _STATE, files[_STATE]))
    return Checkpoint(step, model, optimizer, state)


def check_weights(path: Path) -> None:
    """Compares the weights file of a checkpoint with the checkpoint's manifest.

    A file outside of a checkpoint has no manifest, so it is not checked.

    Args:
        path: The weights file.

    Raises:
        WeightsError: The weights or the manifest are damaged.
        StorageError: This user may not read a file.
    """
    beside = [path.with_name(name) for name in (_OPTIMIZER, _STATE, manifest.NAME)]
    if path.name == _MODEL and all(file.exists() for file in beside):
        files = manifest.read(path.parent, {_MODEL, _OPTIMIZER, _STATE}).files
        manifest.verified(path, files[_MODEL])


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Loads the newest intact checkpoint, and renames damaged newer ones.

    A damaged checkpoint is renamed to, e.g., `step-00001000.bad`, if an older one is intact.

    Args:
        folder: The folder of all checkpoints.

    Returns:
        The checkpoint, or None if there are no checkpoints; and a message for each damaged newer
        checkpoint.

    Raises:
        WeightsError: All checkpoints are damaged. Nothing is renamed. This is an error because
            a restart from the first step would hide the damage.
        StorageError: The folder cannot be listed, a file cannot be read because of its permissions,
            or a folder cannot be renamed.
    """
    refused: list[tuple[Path, str]] = []
    for step in reversed(steps(folder)):
        path = path_of(folder, step)
        try:
            checkpoint = load(path)
        except WeightsError as error:
            # This process may be reading, e.g. for `predict`, while the run of another process
            # removes old checkpoints. One that is gone is not damaged.
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
            remedy="Restore one from a copy, or start a new run in another folder",
        )
    return None, []


def steps(folder: Path) -> list[int]:
    """Returns the steps that have a checkpoint, ascending. It does not read the checkpoints.

    Raises:
        StorageError: The folder cannot be listed.
    """
    return _steps(_listed(folder))


def prune(folder: Path, *, keep: int, best: int | None) -> None:
    """Removes all checkpoints except the newest ones and the best one.

    Each is renamed, and the new name is synced to the disk, before it is deleted. So a checkpoint
    with its own name is always complete.

    Args:
        folder: The folder of all checkpoints.
        keep: Number of newest checkpoints to keep, at least 1.
        best: Step of the best checkpoint, which is kept too; None if there is none yet.

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
        remedy = "Remove it, and run the same command to resume"
        raise StorageError(reason, file=folder, remedy=remedy) from error


def path_of(folder: Path, step: int) -> Path:
    """Returns the folder of a step's checkpoint. It may not exist."""
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
    """Returns the files and folders in a folder, sorted by name; none if it does not exist.

    `Path.glob` would treat a folder that cannot be listed as an empty one.

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
                    remedy="No checkpoint was written. Start a new run with a lower --lr",
                )


def _remove_leftovers(folder: Path) -> None:
    for leftover in _entries(folder):
        if not leftover.name.startswith(".step-"):
            continue
        try:
            shutil.rmtree(leftover)
        except OSError:
            # Remove as much as possible, but report the error.
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
            # The new name must be on the disk before `metrics.jsonl` is cut. Otherwise the old name
            # could reappear after a power failure, without its lines of `metrics.jsonl`.
            sync_folder(path.parent)
        except OSError as error:
            reason = f"is damaged and cannot be renamed ({error.strerror})"
            raise StorageError(
                reason, file=path, remedy="Choose a folder that this user can write"
            ) from error
