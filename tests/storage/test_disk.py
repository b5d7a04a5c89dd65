"""A disk that is full or fails, a folder that is read only: one typed error, and nothing lost."""

import errno
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import NEEDS_ROOM, Disk, Fault, tree_of
from synthetic_runs import STOPPED, write_run

from multibox.commands.report import write_report
from multibox.config import Config
from multibox.drawing import write_picture
from multibox.errors import DataError, StorageError, WeightsError
from multibox.evaluation.results import read_results, write_results
from multibox.evaluation.voc import NO_DETECTIONS
from multibox.reporting.reading import read_record
from multibox.storage import disk
from multibox.storage.checkpoint import Checkpoint, load, newest, path_of, prune, save
from multibox.storage.disk import make_folder, require_room, sync_files
from multibox.storage.jsonl import Journal
from multibox.storage.lock import RunLock
from multibox.storage.run_folder import claim, new_file, write_json

CODES = (errno.ENOSPC, errno.EIO)


def checkpoint(step: int, count: int = 100) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.full((count,), float(step))}, {}, {"journal": 0})


def faults_of(folder: Path, act: Callable[[], object]) -> Iterator[Fault]:
    """One for each call that can fail."""
    with Disk(folder) as watched:
        act()
    for number, (kind, _) in enumerate(watched.calls, start=1):
        for code in CODES:
            if code != errno.ENOSPC or kind in NEEDS_ROOM:
                yield Fault(number, code)


def prepared(folder: Path, steps: Sequence[int]) -> Path:
    folder.mkdir()
    for step in steps:
        save(folder, checkpoint(step), metadata={})
    return folder


def save_third(folder: Path) -> None:
    save(folder, checkpoint(3), metadata={})
    prune(folder, keep=2, best=None)


def test_a_save_that_fails_anywhere_keeps_the_one_before(tmp_path: Path) -> None:
    points = 0
    for before in ((), (2,), (1, 2)):
        counted = prepared(tmp_path / f"{before}", before)
        for fault in faults_of(counted, lambda folder=counted: save_third(folder)):
            points += 1
            folder = prepared(tmp_path / f"{points}", before)
            with Disk(folder, fault), pytest.raises(StorageError) as caught:
                save_third(folder)
            message = str(caught.value)
            assert os.strerror(fault.code) in message
            assert re.search(r"Provide 1 MiB \(\d+ MiB are free\)|an old .* be removed", message)
            if before:
                assert load(path_of(folder, 2)).step == 2
            hidden = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            # An old one is only deleted once its new name is on the disk.
            assert hidden in ([], [".step-00000001.old"])
            assert not hidden or "cannot be removed" in message
            save_third(folder)
            assert tree_of(folder) == tree_of(counted)
    assert points > 100


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses all bytes of a file beyond a size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 100, 4_096, 65_536, 100_000, 1_200_000])
def test_a_file_that_may_not_grow(tmp_path: Path, size: int) -> None:
    save(tmp_path, checkpoint(2), metadata={})
    before = tree_of(tmp_path)
    with largest_file(size), pytest.raises(StorageError, match=r"step-00000003: .*Provide 2 MiB"):
        save(tmp_path, checkpoint(3, count=300_000), metadata={})
    assert tree_of(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disk_that_is_full(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    save(folder, checkpoint(1, count=200_000), metadata={})
    save(folder, checkpoint(2, count=200_000), metadata={})
    before = tree_of(folder)
    with pytest.raises(StorageError, match=r"No space left.*Provide 1 MiB \(1 MiB are free\)"):
        save(folder, checkpoint(3, count=200_000), metadata={})
    assert tree_of(folder) == before
    with pytest.raises(StorageError, match="9 MiB are needed for all of it, and 1 MiB are free"):
        require_room(folder, 9 * 2**20, purpose="all of it", remedy="Make room")
    with Journal(small_disk / "metrics.jsonl", 0) as journal:
        with pytest.raises(StorageError, match="disk"):
            write_until_full(journal)
        length = journal.length
    assert (small_disk / "metrics.jsonl").stat().st_size == length
    with pytest.raises(StorageError, match=r"run\.json: cannot be written"):
        write_json(small_disk / "run.json", "x" * 2**20)
    assert not list(small_disk.glob("*run.json*"))


def write_until_full(lines: Journal) -> None:
    while True:
        lines.write({"text": "x" * 5_000})


def picture(folder: Path) -> None:
    write_picture(folder / "samples" / "a.png", np.zeros((64, 64, 3), np.uint8))


def results(folder: Path) -> None:
    write_results(folder / "results", {"cat": NO_DETECTIONS, "dog": NO_DETECTIONS}, [], split="t")


def begin(folder: Path) -> None:
    with RunLock(folder):
        claim(folder, Config(network="tiny"), {"recipe": "tiny"})


def converted(folder: Path) -> None:
    with new_file(folder / "weights") as temporary:
        temporary.write_bytes(b"0123456789")


def journal(folder: Path) -> None:
    with Journal(folder / "metrics.jsonl", 0) as lines:
        for step in range(2):
            lines.write({"step": step})
        lines.sync()


def synced(folder: Path) -> None:
    sync_files(folder.parent, [folder])


@pytest.mark.parametrize("act", [picture, results, begin, converted, journal, synced])
def test_other_files_on_a_disk_that_fails(tmp_path: Path, act: Callable[[Path], None]) -> None:
    def new(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    counted, errors = new("counted"), 0
    for number, fault in enumerate(faults_of(counted, lambda: act(counted))):
        whole, folder, complete = files_of(counted), new(str(number)), True
        with Disk(folder, fault):
            try:
                act(folder)
            except StorageError:
                errors, complete = errors + 1, False
        # Some calls may fail: a folder cannot be made where it is already.
        assert not complete or files_of(folder) == whole
        for name, content in files_of(folder).items():
            if name == "metrics.jsonl":
                assert whole[name].startswith(content)
                assert content[-1:] in (b"", b"\n")
            else:
                assert content == whole[name]
    assert errors > 1


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the lock, whose text is a process's."""
    return {n: c for n, c in tree_of(folder).items() if c is not None and n != ".lock"}


def test_a_report_on_a_disk_that_fails(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", STOPPED)
    write_report(run)
    before = files_of(run)
    faults = list(faults_of(run, lambda: write_report(run)))
    for fault in faults[:: len(faults) // 3]:
        with Disk(run, fault), suppress(StorageError):
            write_report(run)
        # What cannot be removed stays, under a name that is hidden.
        assert {n: c for n, c in files_of(run).items() if not n.startswith(".report-")} == before


def test_a_folder_that_only_others_may_write(tmp_path: Path) -> None:
    """As another user, because permissions do not stop root."""
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3):
        save(checkpoints, checkpoint(step), metadata={})
    (path_of(checkpoints, 3) / "state.json").write_bytes(b"damaged")
    before = tree_of(tmp_path)
    for path in (*tmp_path.parents, tmp_path, *tmp_path.rglob("*")):
        if path.is_relative_to(tmp_path):
            path.chmod(0o555 if path.is_dir() else 0o444)
    with another_user(tmp_path):
        assert load(path_of(checkpoints, 2)).step == 2
        for act in (
            lambda: RunLock(tmp_path / "run").__enter__(),
            lambda: RunLock(tmp_path / "run" / "new").__enter__(),
            lambda: require_room(tmp_path / "run" / "new", 0, purpose="", remedy=""),
            lambda: save(checkpoints, checkpoint(4), metadata={}),
            lambda: prune(checkpoints, keep=1, best=None),
            lambda: newest(checkpoints),
            lambda: Journal(tmp_path / "run" / "metrics.jsonl", 0),
            lambda: write_json(tmp_path / "run" / "run.json", {}),
        ):
            with pytest.raises(StorageError, match=f"{tmp_path}.*Permission denied"):
                act()
    for path in (tmp_path, *tmp_path.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    assert tree_of(tmp_path) == before


@contextmanager
def another_user(tmp_path: Path) -> Iterator[None]:
    """Acts as a user who is not root, if this one is."""
    if os.geteuid() != 0:
        yield
        return
    # Others do not pass through the folders of pytest.
    opened = [path for path in tmp_path.parents if not path.stat().st_mode & 0o001]
    modes = [path.stat().st_mode for path in opened]
    for path in opened:
        path.chmod(0o711)
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
        for path, mode in zip(opened, modes, strict=True):
            path.chmod(mode)


def lists(folder: Path) -> object:
    return newest(folder / "checkpoints")


def reads_a_run(folder: Path) -> object:
    return read_record(folder)


def reads_results(folder: Path) -> object:
    return read_results(folder, split="t", classes=["cat"], image_ids=["1"])


@pytest.mark.parametrize("act", [lists, reads_a_run, reads_results])
def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, act: Callable[[Path], object]
) -> None:
    run = write_run(tmp_path / "run", STOPPED)
    for name in ("evaluations", "samples", "checkpoints/step-00000001.bad"):
        (run / name).mkdir(parents=True, exist_ok=True)
    write_results(run / "results", {"cat": NO_DETECTIONS}, [], split="t")
    with Disk(run) as watched, suppress(WeightsError):
        act(run)
    numbers = [n for n, (kind, _) in enumerate(watched.calls, start=1) if kind == "list"]
    for number in numbers:
        refused = pytest.raises((StorageError, DataError), match="cannot be listed")
        with Disk(run, Fault(number, errno.EIO)), refused:
            act(run)
    assert len(numbers) > 1


def test_room_is_asked_for_where_the_folder_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "a"
    require_room(out, 1, purpose="it", remedy="Make room")
    with pytest.raises(
        StorageError, match=r"runs/a: too little room: 1099511627776 MiB are needed"
    ):
        require_room(out, 2**60, purpose="it", remedy="Make room")

    def unknown(path: Path) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(disk.shutil, "disk_usage", unknown)
    require_room(out, 2**60, purpose="it", remedy="Make room")
    assert not list(tmp_path.iterdir())


def test_folders_are_made_where_their_parents_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "home" / "me").mkdir(parents=True)
    (tmp_path / "home" / "me").chmod(0o777)
    (tmp_path / "home").chmod(0o711)
    tmp_path.chmod(0o711)
    with another_user(tmp_path):
        make_folder(tmp_path / "home" / "me")
        make_folder(tmp_path / "home" / "me" / "runs" / "a")
    assert (tmp_path / "home" / "me" / "runs" / "a").is_dir()
