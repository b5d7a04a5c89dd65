"""Fuzz targets: archives with random headers."""

import gzip
import io
import re
import stat
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

from fuzz.choices import TEXTS, Choices, damaged

from multibox.download.archives import unpack, unpack_member

_NAMES = (
    *("VOC/a.xml", "VOC/b.xml", "VOC", "VOC/", "./VOC/c", "VOC//a.xml", "../out", "/tmp/out"),
    *("VOC/../../out", "VOC/a.xml/below", "VOC\\a", "x" * 300, "d/" * 500 + "f", ".", "", "A", "a"),
)
_TYPES = (*b"01234567gxLKSVDN", 0)
_NUMBERS = (
    b"0" * 11 + b"\0",
    b"7" * 12,
    b"-1",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\xff" * 10 + b"\xf8\0",
    b"9x",
    b" " * 12,
)
_MODES = (0, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR, stat.S_IFREG | 0o4777)


def _members(choices: Choices) -> list[tuple[str, bytes]]:
    members = [("VOC/a.xml", b"<a/>"), ("VOC/images/empty.jpg", b""), ("VOC/b", bytes(700))]
    for _ in range(choices.below(4)):
        name = choices.pick((*_NAMES, *TEXTS))
        content = choices.pick((b"", b"abc", bytes(100), choices.bytes(16) * 64))
        members.insert(choices.below(len(members) + 1), (name, content))
    return members


def tar(choices: Choices, members: list[tuple[str, bytes]]) -> bytes:
    """Returns a tar file, in which some headers may be changed."""
    stream = io.BytesIO()
    form = choices.pick((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogatepass") as opened:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if choices.one_in(12):
                info.type = bytes([choices.pick(_TYPES)])
                info.linkname = choices.pick(_NAMES)
            if choices.one_in(12):
                key = choices.pick(("path", "size", "GNU.sparse.size", "GNU.sparse.map", "mtime"))
                info.pax_headers = {key: choices.pick((*TEXTS, "1,2,3", "-5", "99999999999"))}
            try:
                opened.addfile(info, io.BytesIO(content))
            except (ValueError, OSError):
                continue  # a name that this tar format cannot store
    data = bytearray(stream.getvalue())
    for _ in range(choices.below(4)):
        _change_header(data, choices)
    return bytes(data)


def _tar(choices: Choices) -> bytes:
    return tar(choices, _members(choices))


def _change_header(data: bytearray, choices: Choices) -> None:
    """Changes a field of a block that may be a header, and corrects its checksum."""
    start = 512 * choices.below(max(1, len(data) // 512))
    field, length = choices.pick(((0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100)))
    value = choices.pick((*_NUMBERS, bytes([choices.pick(_TYPES)]), b"../out\0", b"\xff\xfe\0"))
    data[start + field : start + field + length] = value[:length].ljust(length, b"\0")
    block = data[start : start + 512]
    checksum = sum(block[:148]) + sum(block[156:]) + 8 * 32
    data[start + 148 : start + 156] = b"%06o\0 " % checksum


def _zip(choices: Choices) -> bytes:
    stream = io.BytesIO()
    methods = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(stream, "w", choices.pick(methods)) as opened:
        for name, content in _members(choices):
            info = zipfile.ZipInfo(name or "n")
            info.compress_type = opened.compression
            info.create_system = choices.pick((3, 0))
            info.external_attr = (choices.pick(_MODES) if choices.one_in(8) else 0o644) << 16
            if choices.one_in(16):
                info.extra = choices.pick(
                    (b"\x01\0\x08\0" + b"\xff" * 8, b"up\x03\0abc", b"\x01\0")
                )
            try:
                opened.writestr(info, content)
            except (ValueError, UnicodeEncodeError):
                continue
    data = bytearray(stream.getvalue())
    for _ in range(choices.below(4)):
        change_record(data, choices)
    return bytes(data)


def change_record(data: bytearray, choices: Choices) -> None:
    """Changes a number in a local header, in the directory, or in its end record."""
    signature = choices.pick((b"PK\1\2", b"PK\3\4", b"PK\5\6"))
    places = [found.start() for found in re.finditer(re.escape(signature), data)]
    if not places:
        return
    place = choices.pick(places) + 4 + choices.below(44)
    value = choices.pick((0, 1, 8, 0x800, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF))
    if choices.one_in(2):
        data[place : place + 4] = struct.pack("<I", value)
    else:
        data[place : place + 2] = struct.pack("<H", value & 0xFFFF)


def _clear(folder: Path) -> None:
    """Removes a folder without opening it, because the guard records files that are opened."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _clear(path)
        else:
            path.unlink()
    folder.rmdir()


def archive(choices: Choices, folder: Path) -> None:
    """Unpacks an archive. Nothing may be written outside, and only a limited size inside."""
    inside, outside = folder / "arena" / "unpacked", folder / "arena"
    if outside.exists():
        _clear(outside)
    outside.mkdir()
    kind, build = choices.pick((("tar", _tar), ("zip", _zip)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        data = build(choices)
    data = damaged(data, choices) if choices.one_in(16) else data
    file = outside / f"a.{kind}"
    file.write_bytes(data)
    pieces: list[int] = []
    try:
        files = unpack(file, inside, advance=pieces.append)
    finally:
        assert {path.name for path in outside.iterdir()} <= {file.name, inside.name}
        assert {path.name for path in folder.iterdir()} <= {"arena", "stderr.txt"}
        below = list(inside.rglob("*"))
        assert not any(path.is_symlink() for path in below)
        assert all(path.is_dir() or path.is_file() for path in below)
        written = sum(path.stat().st_size for path in below if path.is_file())
        assert written <= 20 * len(data)
    assert written == sum(files.values()) == sum(pieces)
    assert {str(path.relative_to(inside)) for path in below if path.is_file()} == set(files)


def archive_member(choices: Choices, folder: Path) -> None:
    """Unpacks one file of a .tar.gz. No other file may be written, and only a limited size."""
    outside = folder / "arena"
    if outside.exists():
        _clear(outside)
    outside.mkdir()
    level = choices.pick((0, 1, 9))
    data = gzip.compress(_tar(choices), level)
    data = damaged(data, choices) if choices.one_in(8) else data
    file, target = outside / "a.tar.gz", outside / "a"
    file.write_bytes(data)
    pieces: list[int] = []
    try:
        unpack_member(
            file, choices.pick(("a", "b", "a.xml", "empty.jpg")), target, advance=pieces.append
        )
    finally:
        assert {path.name for path in outside.iterdir()} <= {file.name, target.name}
        assert {path.name for path in folder.iterdir()} <= {"arena", "stderr.txt"}
        assert not target.exists() or target.stat().st_size <= 20 * len(data)
    assert not target.is_symlink()
    assert target.stat().st_size == sum(pieces)
