"""Archives unpack as with other programs. Harmful archives are refused before unpacking."""

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.download import archives
from multibox.download.archives import merge, unpack
from multibox.errors import DownloadError, StorageError

Change = Callable[[tarfile.TarInfo], None]


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _refused(archive: Path, reason: str) -> None:
    folder = archive.parent / "unpacked"
    with pytest.raises(DownloadError, match=reason) as refusal:
        unpack(archive, folder, advance=lambda _: None)
    assert archive.name in str(refusal.value)
    assert not folder.exists()
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name]


FILES = {
    "VOC/a.xml": b"<a/>",
    "VOC/images/empty.jpg": b"",
    "VOC/images/ä b.jpg": os.urandom(3_000_000),
    f"VOC/{'long' * 25}/{'name' * 20}": b"x" * 600,
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_unpacked_as_by_tarfile(tmp_path: Path, form: int) -> None:
    source = _fill(tmp_path / "source", FILES)
    (source / "VOC" / "nothing").mkdir()
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=form) as opened:
        opened.add(source, arcname=".")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "theirs", filter="data")
    pieces: list[int] = []
    files = unpack(archive, tmp_path / "ours", advance=pieces.append)
    assert _contents(tmp_path / "ours") == _contents(tmp_path / "theirs")
    assert files == {name: len(content) for name, content in FILES.items()}
    assert sum(pieces) == sum(files.values())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_unpacked_as_by_zipfile(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.mkdir("VOC/nothing")
        for name, content in FILES.items():
            opened.writestr(name, content)
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "theirs")
    files = unpack(archive, tmp_path / "ours", advance=lambda _: None)
    assert _contents(tmp_path / "ours") == _contents(tmp_path / "theirs")
    assert files == {name: len(content) for name, content in FILES.items()}


def test_permissions_and_owners_are_ignored(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as opened:
        info = tarfile.TarInfo("folder")
        info.type, info.mode, info.uid = tarfile.DIRTYPE, 0o000, 12345
        opened.addfile(info)
        info = tarfile.TarInfo("folder/file")
        info.size, info.mode, info.uid = 3, 0o6777, 12345
        opened.addfile(info, io.BytesIO(b"abc"))
    unpack(archive, tmp_path / "new", advance=lambda _: None)
    plain = _fill(tmp_path, {"plain/file": b""})
    for ours, usual in (("new/folder", "plain"), ("new/folder/file", "plain/file")):
        found = (tmp_path / ours).stat()
        assert found.st_mode == (plain / usual).stat().st_mode
        assert found.st_uid == os.getuid()


def _named(name: str) -> Change:
    return lambda info: setattr(info, "name", name)


def _of_type(kind: bytes, target: str = "") -> Change:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, target

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_named("../outside"), "outside its folder"),
        (_named("VOC/../../outside"), "outside its folder"),
        (_named("/tmp/outside"), "outside its folder"),
        (_named("VOC\\..\\outside"), "not a plain path"),
        (_named("VOC/a\nb"), "not a plain path"),
        (_named("VOC/\udcff"), "not a plain path"),
        (_named("VOC/first"), "in the archive twice"),
        (_named("./VOC//first"), "in the archive twice"),
        (_named("VOC/first/below"), "lies below a file"),
        (_named("."), "in the archive twice"),
        (_of_type(tarfile.SYMTYPE, "/etc/passwd"), "a link or special file"),
        (_of_type(tarfile.SYMTYPE, "first"), "a link or special file"),
        (_of_type(tarfile.LNKTYPE, "VOC/first"), "a link or special file"),
        (_of_type(tarfile.CHRTYPE), "a link or special file"),
        (_of_type(tarfile.BLKTYPE), "a link or special file"),
        (_of_type(tarfile.FIFOTYPE), "a link or special file"),
        (_of_type(tarfile.GNUTYPE_SPARSE), "a link or special file|is damaged"),
        (lambda info: info.pax_headers.update({"GNU.sparse.size": "1000000000"}), "special file"),
    ],
)
def test_a_harmful_tar_is_refused(tmp_path: Path, change: Change, reason: str) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as opened:
        for name in ("VOC/first", "VOC/second"):
            info = tarfile.TarInfo(name)
            info.size = 3
            if name == "VOC/second":
                change(info)
            opened.addfile(info, io.BytesIO(b"abc"))
    _refused(archive, reason)


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../outside", 0, "outside its folder"),
        ("/tmp/outside", 0, "outside its folder"),
        ("link", stat.S_IFLNK, "a link or special file"),
        ("device", stat.S_IFCHR, "a link or special file"),
        ("first", 0, "in the archive twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_harmful_zip_is_refused(tmp_path: Path, name: str, mode: int, reason: str) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("first", b"abc")
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (mode | 0o644) << 16
        opened.writestr(info, b"/etc/passwd")
    _refused(archive, reason)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros", bytes(5_000_000))
    _refused(archive, "more than an archive of this size")
    archive.unlink()
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 100)
    with tarfile.open(archive.with_suffix(".tar"), "w") as many:
        for number in range(101):
            many.addfile(tarfile.TarInfo(str(number)))
    _refused(archive.with_suffix(".tar"), "more than an archive of this size")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_compressions_other_than_deflate_are_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as opened:
        opened.writestr("file", bytes(100))
    _refused(tmp_path / "a.zip", "compressed by a method other")


def _changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"), [(b"n\xc3\xa4me", b"n\xff\xffme"), (b"empty", b"")], ids=["utf-8", "empty"]
)
def test_invalid_zip_names_are_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("n\xe4me", b"abc")
        opened.writestr(zipfile.ZipInfo("empty"), b"")
    archive.write_bytes(_changed(archive.read_bytes(), old, new))
    with pytest.raises(DownloadError):
        unpack(archive, tmp_path / "new", advance=lambda _: None)


def _with_header(size: bytes, kind: bytes = b"0") -> bytes:
    """Returns a tar of one file with this size in its header."""
    info = tarfile.TarInfo("file")
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block) + bytes(10_240)


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K"])
@pytest.mark.parametrize(
    "size",
    [b"\xff" * 10 + b"\xf8\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"7" * 11 + b"\0"],
    ids=["back", "-1", "huge", "8 GiB"],
)
def test_impossible_sizes_are_refused(tmp_path: Path, size: bytes, kind: bytes) -> None:
    """A negative size leads back to its own header. A huge size claims as much memory."""
    archive = tmp_path / "a.tar"
    archive.write_bytes(_with_header(size, kind))
    with pytest.raises(DownloadError):
        unpack(archive, tmp_path / "new", advance=lambda _: None)


@pytest.mark.parametrize("value", ["", "a/b", "0x1p3", "-5", "9" * 30])
def test_invalid_numbers_in_pax_headers_are_refused(tmp_path: Path, value: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as opened:
        info = tarfile.TarInfo("file")
        info.pax_headers = {"GNU.sparse.map": value, "GNU.sparse.size": value}
        opened.addfile(info)
    with pytest.raises(DownloadError):
        unpack(tmp_path / "a.tar", tmp_path / "new", advance=lambda _: None)


def test_a_zip_with_a_wrong_size_is_refused(tmp_path: Path) -> None:
    """The directory states 10 bytes, but the file has 100,000."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("file", bytes(100_000))
    content = archive.read_bytes()
    size, true = struct.pack("<I", 10), struct.pack("<I", 100_000)
    archive.write_bytes(content.replace(true, size))
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(archive, tmp_path / "new", advance=lambda _: None)
    assert sum(path.stat().st_size for path in (tmp_path / "new").iterdir()) <= 10


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_damage_is_an_error(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    archive.write_bytes(b"<html>" * 1000)
    _refused(archive, "is damaged")
    # A compressed tar could unpack to any size.
    archive.write_bytes(zlib.compress(bytes(10_000), wbits=31))
    _refused(archive, "is damaged")


def test_a_tar_that_ends_early_is_an_error(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as opened:
        info = tarfile.TarInfo("file")
        info.size = 100_000
        opened.addfile(info, io.BytesIO(bytes(100_000)))
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(DownloadError, match=r"damaged|not of the size"):
        unpack(archive, tmp_path / "new", advance=lambda _: None)


def test_merging_adds_files_and_changes_none(tmp_path: Path) -> None:
    target = _fill(tmp_path / "target", {"VOC/a": b"1", "VOC/mine": b"2"})
    _fill(tmp_path / "new", {"VOC/a": b"1", "VOC/b": b"3", "other/c": b"4"})
    merge(tmp_path / "new", target)
    files = {name: content for name, content in _contents(target).items() if content is not None}
    assert files == {"VOC/a": b"1", "VOC/mine": b"2", "VOC/b": b"3", "other/c": b"4"}


@pytest.mark.parametrize("there", [{"VOC/b": b"4"}, {"VOC": b""}, {"VOC/b/c": b"3"}])
def test_merging_refuses_to_overwrite(tmp_path: Path, there: dict[str, bytes]) -> None:
    target = _fill(tmp_path / "target", there)
    before = _contents(target)
    _fill(tmp_path / "new", {"VOC/a": b"1", "VOC/b": b"3"})
    with pytest.raises(StorageError, match="not overwritten"):
        merge(tmp_path / "new", target)
    assert _contents(target) == before


def test_a_dangling_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(tmp_path / "elsewhere")
    _fill(tmp_path / "new", {"a": b"1"})
    with pytest.raises(StorageError, match="not overwritten"):
        merge(tmp_path / "new", target)
    assert not (tmp_path / "elsewhere").exists()


def test_the_lists_of_splits_come_last(tmp_path: Path) -> None:
    """An interrupted merge must not leave a split without its images."""
    target = _fill(tmp_path / "target", {"VOC/ImageSets/Main/trainval.txt": b"1"})
    new = {"VOC/ImageSets/Main/test.txt": b"2", "VOC/JPEGImages/2": b"", "VOC/Zuletzt/2": b""}
    _fill(tmp_path / "new", new)
    moves = [place.name for _, place in archives._moves(tmp_path / "new", target)]
    assert moves == ["JPEGImages", "Zuletzt", "test.txt"]
