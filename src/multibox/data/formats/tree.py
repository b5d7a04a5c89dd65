"""The files of a dataset's folder, listed once and found by the names that annotations use.

Annotation tools write image names in many ways: with the folders of another machine, with
backslashes, as addresses. Only the files that were listed are ever found, so no name leads out of
the dataset's folder.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from multibox.data.files import SUFFIXES, walk
from multibox.errors import DataError

IMAGE_FOLDERS = ("jpegimages", "images", "jpgimages", "image", "imgs", "img")
"""Names of folders for images, in lower case. The first one that exists is used."""
UNSPLIT = "all"
"""The split of files that belong to no split."""

_SPLIT = re.compile(
    r"(?<![a-z])((?:trainval|train|valid|val|test)(?:ing|ation)?[0-9]*)(?![a-z])", re.IGNORECASE
)
# Label Studio puts 8 hexadecimal digits in front of the names of uploaded files.
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")
_DRIVE = re.compile(r"[A-Za-z]:")
_LISTED = 3

_Key = TypeVar("_Key")


class FileTree:
    """The files below a dataset's folder.

    Args:
        root: The folder or .zip archive.

    Attributes:
        root: The folder or .zip archive.
        files: All files except hidden ones, in sorted order.

    Raises:
        DataError: A folder cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = tuple(walk(root))

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Returns the files with one of these suffixes. Upper and lower case are the same."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def relative(self, file: Path) -> PurePosixPath:
        """Returns a file's path from the root."""
        return PurePosixPath(file.relative_to(self.root))

    @cached_property
    def images(self) -> tuple[Path, ...]:
        """The files with a suffix of an image."""
        return tuple(self.with_suffix(*SUFFIXES))

    @cached_property
    def file_set(self) -> frozenset[Path]:
        """All files, to find out whether one exists."""
        return frozenset(self.files)

    @cached_property
    def folders_of_images(self) -> frozenset[Path]:
        """The folders with images, directly or further below."""
        parents = {image.parent for image in self.images}
        return frozenset(parents.union(*(parent.parents for parent in parents)))

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        return _grouped((plain_key(path.name), path) for path in self.files)

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        return _grouped((plain_key(path.stem), path) for path in self.images)

    @cached_property
    def _by_folder(self) -> dict[tuple[Path, str], list[Path]]:
        return _grouped(((path.parent, path.stem.casefold()), path) for path in self.images)

    @cached_property
    def _image_folders(self) -> frozenset[str]:
        return frozenset(path.parent.name for path in self.images)

    @cached_property
    def usual_folders(self) -> list[str]:
        """The names of folders of images that are usual for such folders, such as `JPEGImages`."""
        return sorted(name for name in self._image_folders if name.lower() in IMAGE_FOLDERS)

    def image_in(self, folder: Path, stem: str) -> Path | None:
        """Returns the image with a name in a folder. A JPEG is preferred (see `SUFFIXES`)."""
        found = self._by_folder.get((folder, stem.casefold()), [])
        return max(found, key=lambda path: SUFFIXES[path.suffix.lower()], default=None)

    def split_of(self, file: Path) -> str:
        """Returns the split in a file's path, or `UNSPLIT`.

        A folder called `train`, `valid` or `test2017` names it. So does an annotation file, such as
        `train_labels.csv`, but not an image, because `train_12.jpg` may show a train. Neither does
        an .xml file, which usually has its image's name. The innermost folder wins.
        """
        relative = self.relative(file)
        own_name = () if file.suffix.lower() in (*SUFFIXES, ".xml") else (relative.stem,)
        for part in (*reversed(relative.parent.parts), *own_name):
            found = _SPLIT.search(part)
            if found:
                return found[1]
        return UNSPLIT

    def count_others(self, used: Collection[Path], stems: Collection[str]) -> int:
        """Returns how many images in the folders of some images have no annotation.

        Args:
            used: Images with an annotation.
            stems: File names without suffix of all images with an annotation, in any split.
        """
        folders = {path.parent for path in used}
        others = set(self.images).difference(used)
        return sum(path.parent in folders and path.stem not in stems for path in others)

    def find_image(self, name: str, *, beside: Path, required: bool) -> Path:
        """Returns the image that an annotation names.

        The image with this file name is looked up in the whole tree. If there are several, the one
        that shares most folders with the name wins, then the one closest to the annotation. An
        image in a folder of another split is never used.

        Args:
            name: A file name, a path of any machine, or an address. It may lack the suffix.
            beside: The annotation file.
            required: Whether the image must exist. Otherwise the path where it would be is
                returned.

        Raises:
            DataError: There is no such image, or there are several. The error names no file.
        """
        wanted = image_parts(name)
        if not wanted:
            raise DataError(f"its image name {name[:80]!r} names no file", kind="text-malformed")
        last = plain_key(wanted[-1])
        named = self._by_name.get(last) or self._by_name.get(_UPLOADED.sub("", last), [])
        if not named and PurePosixPath(last).suffix not in SUFFIXES:
            named = self._by_stem.get(last, [])
        split = self.split_of(beside)

        def closeness(path: Path) -> tuple[int, ...]:
            return (
                _shared_start(path.parts[::-1], wanted[::-1]),
                int(path.name == wanted[-1]),
                int(path.parent == beside.parent),
                _shared_start(path.parts, beside.parent.parts),
                SUFFIXES.get(path.suffix.lower(), 0),
            )

        found = [path for path in named if self._may_belong(path, wanted, split)]
        ranked = sorted(found, key=closeness, reverse=True)
        if not ranked and required:
            raise self._missing(name, wanted[-1])
        if not ranked:
            return self.root.joinpath(*wanted)
        if len(ranked) > 1 and closeness(ranked[0]) == closeness(ranked[1]):
            both = " or ".join(str(self.relative(path)) for path in ranked[:2])
            raise DataError(
                f"its image {name[:80]!r} may be {both}",
                kind="image-ambiguous",
                remedy="Rename one of them, or name it with its folder",
            )
        return ranked[0]

    def _may_belong(self, path: Path, wanted: tuple[str, ...], split: str) -> bool:
        own = self.split_of(path)
        if UNSPLIT not in (own, split) and not _agree(own, split):
            return False
        # A folder that exists here was meant. Others are folders of another machine.
        folder = wanted[-2] if len(wanted) > 1 else ""
        return folder not in self._image_folders or path.parent.name == folder

    def _missing(self, name: str, last: str) -> DataError:
        stem = plain_key(PurePosixPath(last).stem)
        similar = [*self._by_name.get(plain_key(last), []), *self._by_stem.get(stem, [])]
        shown = dict.fromkeys(str(self.relative(path)) for path in similar)
        hint = f"Did you mean {' or '.join(list(shown)[:_LISTED])}?" if shown else None
        return DataError(
            f"its image {name[:80]!r} does not exist" + (f". {hint[:-1]}" if hint else ""),
            kind="image-missing",
            remedy="Add the image, or remove the annotation",
        )


def plain_key(name: str) -> str:
    """Returns a name in one form of Unicode and of case, for comparisons.

    macOS decomposes accented letters in file names, but annotations keep them composed.
    """
    return unicodedata.normalize("NFC", name).casefold()


def image_parts(name: str) -> tuple[str, ...]:
    """Returns the folders and the file name in an image name, path or address.

    Of an address such as `/data/local-files/?d=photos/1.jpg`, the path in its query is returned.
    """
    text = name.strip().replace("\\", "/")
    if "://" in text or text.startswith("/data/"):
        try:
            address = urlsplit(text)
        except ValueError:
            return ()
        inner = parse_qs(address.query).get("d", [""])[0]
        text = (inner or unquote(address.path)).replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    return tuple(part for part in parts if not _DRIVE.fullmatch(part))


def _agree(one: str, two: str) -> bool:
    """Whether two names of splits may mean the same: `val` and `valid`, `train` and `train2017`.

    The images of `trainval` may be in the folders of `train` and `val`.
    """
    (word, year), (other, other_year) = map(_word_and_year, (one, two))
    alike = word == other or {word, other} in ({"trainval", "train"}, {"trainval", "val"})
    return alike and (year == other_year or not year or not other_year)


def _word_and_year(split: str) -> tuple[str, str]:
    word = split.lower().rstrip("0123456789")
    plain = re.sub("(?:ing|(?:id)?(?:ation)?)$", "", word)
    return plain, split[len(word) :]


def _grouped(pairs: Iterable[tuple[_Key, Path]]) -> dict[_Key, list[Path]]:
    groups: dict[_Key, list[Path]] = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return dict(groups)


def _shared_start(one: tuple[str, ...], two: tuple[str, ...]) -> int:
    """Returns how many first parts two paths share."""
    for count, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return count
    return min(len(one), len(two))
