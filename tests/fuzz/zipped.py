"""Fuzz target: a dataset in a .zip archive, with changes of its members and its bytes."""

import hashlib
import io
import stat
import warnings
import zipfile
from pathlib import Path

from fuzz import annotations
from fuzz.choices import TEXTS, Choices, damaged
from fuzz.packed import change_record

_METHODS = (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_NAMES = (
    *("/etc/passwd.xml", "../out.xml", "images/../../out.jpg", "images/../a.xml", "./d.xml"),
    *(
        "images",
        "images/",
        "images/a.jpg/below.jpg",
        "xml/a.xml/b.xml",
        "images\\d.jpg",
        "C:/d.xml",
    ),
    *("d/" * 500 + "d.xml", "x" * 300 + ".xml", ".hidden/d.xml", "__MACOSX/._a.xml", "//d.xml"),
    *(
        "xml//d.xml",
        "d.xml\0.jpg",
        "xml/A.XML",
        "inner.zip",
        "inner.zip/d.xml",
        ".xml",
        "train.txt",
    ),
    *(
        "train/d.xml",
        "ImageSets/Main/train.txt",
        "Annotations/a.xml",
        "data.yaml",
        "d.csv",
        "d.json",
    ),
)
_MODES = (stat.S_IFLNK | 0o777, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFREG)
_CHUNK = bytes(1 << 20)


def _members(choices: Choices) -> list[tuple[str, bytes]]:
    members = [(f"images/{name}.jpg", annotations.image()) for name in annotations.IDS]
    members += [(f"xml/{name}.xml", annotations.xml(Choices(b""))) for name in annotations.IDS]
    for _ in range(choices.below(5)):
        place = choices.below(len(members))
        name, content = members[place]
        match choices.below(6):
            case 0:
                members[place] = choices.pick((*_NAMES, *TEXTS)) or "n", content
            case 1:
                members.insert(place, (choices.pick((*_NAMES, *TEXTS)) or "n", content))
            case 2:
                members.append((name, annotations.xml(choices)))
            case 3:
                members.append((choices.pick(members)[0], content))
            case 4:
                members[place] = name, damaged(content, choices)
            case _:
                members[place] = f"{choices.pick(('a', 'a/b', 'train', '..', ''))}/{name}", content
    return members


def _zip(choices: Choices) -> bytes:
    stream = io.BytesIO()
    usual = choices.pick(_METHODS[:2])
    with zipfile.ZipFile(stream, "w") as opened:
        for name, content in _members(choices):
            info = zipfile.ZipInfo(name)
            info.compress_type = choices.pick(_METHODS) if choices.one_in(12) else usual
            info.external_attr = (choices.pick(_MODES) if choices.one_in(16) else 0o644) << 16
            try:
                with opened.open(info, "w") as member:
                    member.write(content)
                    if choices.one_in(250) and info.compress_type == 8 and name.endswith(".xml"):
                        # It compresses to almost nothing, and must not be held in memory.
                        for _ in range(80):
                            member.write(_CHUNK)
            except (ValueError, UnicodeEncodeError):
                continue
    data = bytearray(stream.getvalue())
    for _ in range(choices.below(4)):
        change_record(data, choices)
    return damaged(bytes(data), choices) if choices.one_in(12) else bytes(data)


def dataset(choices: Choices, folder: Path) -> None:
    """Reads all splits of an archive, which nothing unpacks."""
    root = folder / "zipped"
    root.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        data = _zip(choices)
    # An archive that is open already is known by its name, size and time.
    file = root / f"{hashlib.sha256(data).hexdigest()[:16]}.zip"
    file.write_bytes(data)
    try:
        annotations.read_all(file, choices)
    finally:
        file.unlink()
        assert not list(root.iterdir())
