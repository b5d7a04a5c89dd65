"""Files on the disk and in archives are read by the same functions."""

import multiprocessing
import os
import struct
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from multibox.data.files import (
    file_facts,
    is_file,
    is_folder,
    list_folder,
    read_bytes,
    read_ends,
    walk,
)
from multibox.errors import DataError

FILES = {
    "images/a.jpg": b"a" * 5000,
    "images/deep/b.jpg": b"b",
    "labels.csv": b"x,y\n",
    "images/.hidden": b"h",
    ".git/config": b"g",
    "__MACOSX/images/._a.jpg": b"m",
}
VISIBLE = ["images/a.jpg", "images/deep/b.jpg", "labels.csv"]


@pytest.fixture(params=["folder", "data.zip", "DATA.ZIP"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place: Path = tmp_path / request.param
    if request.param == "folder":
        for name, content in FILES.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    else:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
    return place


def test_files_are_listed_and_read(root: Path) -> None:
    assert [str(path.relative_to(root)) for path in walk(root)] == VISIBLE
    for name in VISIBLE:
        assert read_bytes(root / name, limit=5000) == FILES[name]
        assert is_file(root / name)
        assert not is_folder(root / name)
    assert [path.name for path in list_folder(root / "images") if path.suffix] == ["a.jpg"]
    assert is_folder(root)
    assert is_folder(root / "images" / "deep")
    assert not is_file(root / "images")
    assert read_ends(root / "images" / "a.jpg", head=3, tail=2, limit=5000) == (b"aaa", b"aa")
    assert read_ends(root / "labels.csv", head=99, tail=99, limit=5000) == (b"x,y\n", b"x,y\n")
    assert file_facts(root / "images" / "a.jpg", limit=5000).size == 5000


def test_missing_and_large_files_are_refused(root: Path) -> None:
    for name in ("images/c.jpg", "none/a.jpg", "labels.csv/a"):
        assert not is_file(root / name)
        with pytest.raises(DataError, match="does not exist"):
            read_bytes(root / name, limit=10)
    with pytest.raises(DataError, match="has 5000 bytes, but the limit is 4999"):
        read_bytes(root / "images" / "a.jpg", limit=4999)
    assert list_folder(root / "none") == []
    with pytest.raises(DataError, match="does not exist"):
        list_folder(root / "none", missing_ok=False)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_paths_that_lead_out_of_an_archive_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("../secret", "/etc/passwd", "a/../../secret", "good"):
            file.writestr(name, b"x")
    assert [member.name for member in walk(path)] == ["good"]
    assert not is_file(path / ".." / "secret.zip")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", name=b"content" * 100)
    whole = path.read_bytes()
    (tmp_path / "b.zip").write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"is not a \.zip archive that can be read"):
        list(walk(tmp_path / "b.zip"))
    (tmp_path / "c.zip").write_bytes(whole.replace(b"contentcontent", b"contentKontent", 1))
    with pytest.raises(DataError, match="is damaged") as raised:
        read_bytes(tmp_path / "c.zip" / "name", limit=1000)
    assert raised.value.file == tmp_path / "c.zip" / "name"


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", name=b"content")
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is encrypted"):
        read_bytes(path / "name", limit=100)


def test_a_file_that_unpacks_to_more_than_it_declares_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("name", b"\0" * 1_000_000)
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    # The checksum is of the whole content.
    with suppress(DataError):
        assert len(read_bytes(path / "name", limit=100)) <= 10


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_may_fill_the_memory_are_refused(tmp_path: Path, method: int) -> None:
    """A few KiB of bzip2 may hold gigabytes, and `zipfile` decompresses them at once."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("name", b"content")
    with pytest.raises(DataError, match=f"is compressed with method {method}") as raised:
        read_bytes(path / "name", limit=100)
    assert raised.value.kind == "archive-compression"


def test_the_ends_of_a_large_file_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("name", "w") as member:
        for _ in range(32):
            member.write(bytes(1 << 20))
        member.write(b"end")
    read_ends(path / "name", head=1, tail=1, limit=1 << 30)
    tracemalloc.start()
    try:
        assert read_ends(path / "name", head=2, tail=4, limit=1 << 30) == (b"\0\0", b"\0end")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_member_without_a_name_is_ignored(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", name=b"content", n=b"x")
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    # The name becomes part of the comment.
    data[place + 28 : place + 34] = struct.pack("<HHH", 0, 0, 1)
    path.write_bytes(data)
    assert walk(path) == [path / "name"]


def test_a_member_before_the_start_of_the_archive_is_damaged(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", name=b"content")
    data = bytearray(path.read_bytes())
    # The offset of the directory is too large, so the members seem to begin before the file.
    place = data.index(b"PK\x05\x06") + 16
    (offset,) = struct.unpack_from("<I", data, place)
    struct.pack_into("<I", data, place, offset + 1000)
    path.write_bytes(data)
    with pytest.raises(DataError) as raised:
        read_bytes(path / "name", limit=100)
    assert raised.value.kind == "archive-damaged"


def test_a_changed_archive_is_opened_again(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", name=b"one")
    assert read_bytes(path / "name", limit=10) == b"one"
    archive(path, name=b"another")
    os.utime(path, ns=(1, 1))
    assert read_bytes(path / "name", limit=10) == b"another"


def _read_often(path: Path, name: str) -> bool:
    return all(read_bytes(path / name, limit=10**6) == name.encode() * 1000 for _ in range(50))


def test_threads_and_processes_may_read_at_the_same_time(tmp_path: Path) -> None:
    names = [f"file{number}" for number in range(8)]
    path = archive(tmp_path / "a.zip", **{name: name.encode() * 1000 for name in names})
    assert _read_often(path, names[0])
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(_read_often, [path] * 8, names))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.starmap(_read_often, [(path, name) for name in names]))


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert [str(path.relative_to(tmp_path)) for path in walk(tmp_path)] == ["a/file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DataError, match="cannot be read"):
        list(walk(tmp_path))
