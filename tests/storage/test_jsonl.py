import json
import os
import resource
from pathlib import Path

import pytest

from multibox.errors import StorageError
from multibox.storage.jsonl import Journal

RECORDS = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "name": "größe\n", "none": None, "on": True}]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path, 0) as journal:
        for record in RECORDS:
            journal.write(record)
            assert journal.length == path.stat().st_size
        journal.sync()
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS
    assert path.read_text().splitlines()[0] == '{"step":1,"loss":0.30000000000000004}'


def test_each_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = os.write

    def recorded(descriptor: int, line: bytes) -> int:
        written.append(line)
        return write(descriptor, line)

    with Journal(tmp_path / "metrics.jsonl", 0) as journal:
        monkeypatch.setattr(os, "write", recorded)
        for record in RECORDS:
            journal.write(record)
    assert [json.loads(line) for line in written] == RECORDS


def test_resuming_cuts_the_file_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path, 0) as journal:
        journal.write(RECORDS[0])
        length = journal.length
        journal.write(RECORDS[1])
    unbroken = path.read_bytes()
    path.write_bytes(unbroken + b'{"step":3,"lo')
    with Journal(path, length) as journal:
        assert journal.length == length
        journal.write(RECORDS[1])
    assert path.read_bytes() == unbroken
    with Journal(path, 0):
        assert path.read_bytes() == b""


@pytest.mark.parametrize("tail", [b"", b'{"a":1', b'{"a":1}'])
def test_without_a_length_every_whole_line_stays(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "timings.jsonl"
    path.write_bytes(b'{"a":0}\n' + tail)
    with Journal(path, None) as journal:
        journal.write({"a": 2})
        assert journal.length == path.stat().st_size
    assert path.read_bytes() == b'{"a":0}\n{"a":2}\n'


def test_file_that_is_not_the_checkpoint_s_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a":0}\n{"a":1}\n')
    with pytest.raises(StorageError, match="has 16 bytes, but the checkpoint was saved when"):
        Journal(path, 17)
    with pytest.raises(StorageError, match="byte 10: was changed: no line ends here"):
        Journal(path, 10)
    assert path.read_bytes() == b'{"a":0}\n{"a":1}\n'


def test_refused_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(StorageError):
            Journal(path, 5)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        Journal(tmp_path / "missing" / "metrics.jsonl", 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_refused(tmp_path: Path, value: float) -> None:
    with Journal(tmp_path / "metrics.jsonl", 0) as journal:
        with pytest.raises(ValueError, match="not JSON compliant"):
            journal.write({"loss": value})
        assert journal.length == 0


@pytest.mark.parametrize("room", [0, 5])
def test_line_that_finds_no_room_leaves_no_part(tmp_path: Path, room: int) -> None:
    path = tmp_path / "metrics.jsonl"
    with Journal(path, 0) as journal:
        journal.write(RECORDS[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.length + room, hard))
        try:
            with pytest.raises(StorageError, match=r"metrics\.jsonl"):
                journal.write(RECORDS[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.stat().st_size == journal.length
        journal.write(RECORDS[1])
    assert [json.loads(line) for line in path.read_text().splitlines()] == RECORDS
