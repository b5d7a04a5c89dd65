"""Finds images and videos: files, folders, patterns, archives, addresses, cameras and streams."""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from multibox.commands.prediction.items import ImageRef, VideoRef, scheme_of
from multibox.commands.prediction.remote import list_remote
from multibox.commands.prediction.tar_shards import list_tar
from multibox.data.files import SUFFIXES, is_folder, list_folder, walk
from multibox.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
    | {".wmv", ".flv", ".ogv", ".3gp", ".mjpeg"}
)
_STREAMS = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "mms"})
_BRACES = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_MAX_NUMBERED = 1_000_000
_MAGIC = frozenset("*?[")
STANDARD_INPUT = "-"


class Listing(NamedTuple):
    """What to list.

    Attributes:
        words: Files, folders, patterns, archives, addresses and cameras, or `-`.
        recursive: Whether a folder stands for the images in all folders below it, too.
        lines: The lines of standard input, for `-`.
    """

    words: Sequence[str]
    recursive: bool = False
    lines: Iterable[str] = ()


def find_sources(listing: Listing) -> Iterator[ImageRef | VideoRef]:
    """Yields the images and videos in a fixed order. Large folders are not held in memory.

    Raises:
        DataError: A folder has no images, a pattern has no match, or they cannot be listed.
    """
    for word in listing.words:
        if word == STANDARD_INPUT:
            for line in listing.lines:
                if line.rstrip("\r\n"):
                    yield from _expand(line.rstrip("\r\n"), listing.recursive)
        else:
            yield from _expand(word, listing.recursive)


def refuse_inside(out: Path, words: Sequence[str]) -> None:
    """Checks that the results are not written into a folder that images are read from.

    Otherwise the next run would take the drawn images for photographs.

    Raises:
        ConfigError: They are.
    """
    target = out.resolve()
    for word in words:
        if scheme_of(word) or word == STANDARD_INPUT:
            continue
        path = Path(word)
        inside = path.is_dir() and target.is_relative_to(path.resolve())
        if _is_pattern(word):
            inside = any(target == Path(match).parent.resolve() for match in _matches(word))
        if inside:
            raise ConfigError(
                f"the results would be written to {out}, in a folder with images of {word}",
                remedy="Choose a folder outside of it for --out",
            )


def _expand(word: str, recursive: bool) -> Iterator[ImageRef | VideoRef]:
    """Yields what one word stands for."""
    if numbered := _BRACES.search(word):
        yield from _numbered(word, numbered, recursive)
    elif scheme := scheme_of(word):
        yield from _at_address(word, scheme, recursive)
    elif word.isascii() and word.isdecimal() and not Path(word).exists():
        yield VideoRef(f"camera-{word}", word, live=True)
    elif is_folder(Path(word)):
        yield from _in_folder(Path(word), recursive)
    elif _is_pattern(word):
        matches = sorted(_matches(word))
        if not matches:
            raise _nothing(word, "matches no image")
        for match in matches:
            yield from _file(match)
    else:
        yield from _file(word)


def _is_pattern(word: str) -> bool:
    return bool(_MAGIC & set(word)) and not Path(word).exists()


def _matches(pattern: str) -> list[str]:
    """Returns the images, videos and archives that a pattern matches."""
    suffixes = (*SUFFIXES, *VIDEO_SUFFIXES, ".tar", ".zip")
    # Unlike `Path.glob`, it takes absolute patterns.
    found = glob.iglob(pattern, recursive=True)  # noqa: PTH207
    return [match for match in found if Path(match).suffix.lower() in suffixes]


def _numbered(word: str, found: re.Match[str], recursive: bool) -> Iterator[ImageRef | VideoRef]:
    """Yields what a word with a range such as `{000..012}` stands for, as webdataset writes it."""
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < _MAX_NUMBERED:
        raise ConfigError(f"the range {found[0]} is empty or too long", remedy="Correct the range")
    for number in range(first, last + 1):
        text = f"{number:0{len(found[1])}d}"
        yield from _expand(word[: found.start()] + text + word[found.end() :], recursive)


def _at_address(word: str, scheme: str, recursive: bool) -> Iterator[ImageRef | VideoRef]:
    if scheme in _STREAMS:
        yield VideoRef(word, word, live=True)
    elif scheme in ("http", "https"):
        yield from _file(word)
    else:
        found = list_remote(word, recursive=recursive)
        if found is None:
            yield from _file(word)
            return
        empty = True
        for address in found:
            suffix = PurePosixPath(address).suffix.lower()
            if suffix in SUFFIXES or suffix == ".tar":
                empty = False
                yield from _file(address)
        if empty:
            raise _nothing(word, "contains no images")


def _file(word: str) -> Iterator[ImageRef | VideoRef]:
    """Yields the images in a file, by its suffix."""
    path = word
    if scheme_of(word) in ("http", "https"):
        try:
            path = urlsplit(word).path
        except ValueError:
            path = ""
    suffix = PurePosixPath(path).suffix.lower()
    if suffix == ".tar" and scheme_of(word) not in ("http", "https"):
        yield from list_tar(word)
    elif suffix in VIDEO_SUFFIXES:
        yield VideoRef(word, word)
    elif suffix == ".m3u8" and scheme_of(word):
        yield VideoRef(word, word, live=True)
    elif suffix == ".zip" and not scheme_of(word):
        yield from _in_folder(Path(word), recursive=False)
    else:
        yield ImageRef(word, word)


def _in_folder(folder: Path, recursive: bool) -> Iterator[ImageRef | VideoRef]:
    """Yields the images and videos in a folder, or in a .zip archive."""
    archive = folder.suffix.lower() == ".zip" and folder.is_file()
    paths = iter(walk(folder)) if archive else _walk(folder, recursive, set())
    empty = True
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            empty = False
            yield ImageRef(str(path), str(path))
        elif suffix in VIDEO_SUFFIXES and not archive:
            empty = False
            yield VideoRef(str(path), str(path))
    if empty:
        raise _nothing(str(folder), "contains no images")


def _walk(folder: Path, recursive: bool, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """Yields the files of a folder, then those of the folders in it. No folder is listed twice."""
    if not recursive:
        yield from list_folder(folder, missing_ok=False)
        return
    status = folder.stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    visible = [path for path in list_folder(folder) if not path.name.startswith(".")]
    below = [path for path in visible if path.is_dir()]
    yield from sorted(set(visible) - set(below))
    for path in below:
        yield from _walk(path, recursive, entered)


def _nothing(place: str, reason: str) -> DataError:
    return DataError(
        reason,
        kind="image-missing",
        file=place,
        remedy=f"Use a folder with files of these types: {', '.join(sorted(SUFFIXES))}",
    )
