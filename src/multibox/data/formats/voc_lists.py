"""The lists of images in VOC's layout, and the files that their lines name.

A line is the id of an image, and in the lists of one class a flag follows: 1, 0 or -1. Ids may have
spaces, and some tools write the file's name or its path instead of the id.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from multibox.data.files import SUFFIXES, is_file, is_folder, list_folder, read_bytes
from multibox.data.formats.plain_text import read_text
from multibox.data.formats.tree import IMAGE_FOLDERS
from multibox.data.images import find_images
from multibox.errors import DataError

MAX_LIST_BYTES = 1 << 28
_ANNOTATIONS, _IMAGES = "Annotations", "JPEGImages"
_FLAGS = ("-1", "0", "1")
_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_FOLDERS = 8


class ListLine(NamedTuple):
    """A line of a list that is not blank.

    Attributes:
        number: Its number, counted from 1.
        text: The image's id, file name or path.
        flag: 1, 0 or -1 in the lists of one class, or an empty text.
        whole: The whole line.
    """

    number: int
    text: str
    flag: str
    whole: str


def read_lines(file: Path, exists: Callable[[str], bool]) -> list[ListLine]:
    """Returns the lines of a list.

    The last word of a line is a flag only if every line of the list ends in one, and the whole line
    is not the name of an image.

    Args:
        file: The list.
        exists: Returns whether a text is the name of an image.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    text = read_text(file, limit=MAX_LIST_BYTES)
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not all(_has_flag(line) for _, line in lines):
        return [ListLine(number, line.strip(), "", line) for number, line in lines]
    found = []
    for number, line in lines:
        name, flag = (line.strip(), "") if exists(line.strip()) else line.rsplit(maxsplit=1)
        found.append(ListLine(number, name.strip(), flag, line))
    return found


def is_layout(folder: Path) -> bool:
    """Returns whether a folder has the layout of VOC: lists of images and annotations."""
    try:
        if not is_folder(folder / _ANNOTATIONS) or not is_folder(folder / "ImageSets"):
            return False
        main = folder / "ImageSets" / "Main"
        return is_folder(main) or any(p.suffix == ".txt" for p in list_folder(main.parent))
    except (DataError, PermissionError):
        # The user may not enter the folder, such as lost+found.
        return False


def lists_folder(folder: Path) -> Path:
    """Returns the folder with the lists of a layout folder."""
    main = folder / "ImageSets" / "Main"
    return main if is_folder(main) else main.parent


class LayoutFolder:
    """A folder in the layout of VOC. It finds the files that its lists name.

    Args:
        folder: The folder.

    Attributes:
        folder: The folder.
        images: The folder of its images.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / _IMAGES
        if not is_folder(self.images):
            named = {path.name.lower(): path for path in reversed(list_folder(folder))}
            self.images = next((named[x] for x in IMAGE_FOLDERS if x in named), self.images)
        self._images_below = lru_cache(maxsize=None)(_images_in)
        self._annotations_below = lru_cache(maxsize=None)(_annotations_in)

    @classmethod
    def of_list(cls, file: Path) -> "LayoutFolder":
        """Returns the layout folder of a list."""
        parent = file.parent
        return cls(parent.parent if parent.name == "ImageSets" else parent.parent.parent)

    @classmethod
    def of_image(cls, image: Path) -> "LayoutFolder":
        """Returns the layout folder of an image."""
        above = (folder for folder in image.parents if is_folder(folder / _ANNOTATIONS))
        return cls(next(above, image.parent.parent))

    def require_images(self) -> None:
        """Checks that there is a folder of images.

        Raises:
            DataError: It does not exist or cannot be listed.
        """
        list_folder(self.images, missing_ok=False)

    def read_list(self, file: Path) -> list[ListLine]:
        """Returns the lines of a list.

        Raises:
            DataError: The file cannot be read, or is not UTF-8.
        """
        return read_lines(file, self._exists)

    def ids_in(self, file: Path) -> set[str]:
        """Returns the ids in a list, without the lines that name no image of the folder.

        Raises:
            DataError: The list cannot be read, or is not UTF-8.
        """
        ids = set()
        for line in self.read_list(file):
            with suppress(DataError):
                ids.add(self.find_id(line.text))
        return ids

    def has_flags(self, file: Path) -> bool:
        """Returns whether the first line of a list ends in a flag, as in the lists of one class."""
        try:
            first = read_bytes(file, limit=MAX_LIST_BYTES).partition(b"\n")[0]
        except DataError:
            return False
        text = first.decode("utf-8-sig", "replace").strip()
        return _has_flag(text) and not self._exists(text)

    def find_id(self, text: str) -> str:
        """Returns the image id that a line of a list means.

        That is the text itself, or without the suffix of an image, or without its first folders,
        if an annotation or an image has this name. Otherwise, it is the text.

        Raises:
            DataError: It is the path of a file that may be outside of the folder. The error names
                no file.
        """
        path = _path_in(text)
        found = self._found(path)
        if found is not None:
            return found
        is_name = path.suffix.lower() in SUFFIXES
        return str(path.with_suffix("")) if is_name else str(path)

    def _exists(self, text: str) -> bool:
        try:
            return self._found(_path_in(text)) is not None
        except DataError:
            return False

    def _found(self, path: PurePosixPath) -> str | None:
        count = len(path.parts)
        for start in (0, *range(max(1, count - _MAX_FOLDERS), count)):
            below = PurePosixPath(*path.parts[start:])
            names = [below]
            if below.suffix.lower() in SUFFIXES:
                names.append(below.with_suffix(""))
            for name in names:
                if self._xml(name) or self._image(name):
                    return str(name)
        return None

    def id_of(self, image: Path) -> str:
        """Returns the id of an image file."""
        return str(PurePosixPath(image.relative_to(self.images).with_suffix("")))

    def xml(self, image_id: str) -> Path:
        """Returns the annotation file of an image."""
        return self._xml(PurePosixPath(image_id)) or self.folder / _ANNOTATIONS / f"{image_id}.xml"

    def image(self, image_id: str) -> Path:
        """Returns the file of an image, or the path where it should be."""
        return self._image(PurePosixPath(image_id)) or self.images / f"{image_id}.jpg"

    def _xml(self, name: PurePosixPath) -> Path | None:
        file = self.folder / _ANNOTATIONS / f"{name}.xml"
        try:
            if is_file(file):
                return file
        except OSError:
            # The name is too long, or the user may not enter the folder.
            return None
        return self._annotations_below(file.parent).get(name.name)

    def _image(self, name: PurePosixPath) -> Path | None:
        return self._images_below(self.images / name.parent).get(name.name)


def _has_flag(line: str) -> bool:
    words = line.rsplit(maxsplit=1)
    return len(words) == 2 and words[1] in _FLAGS


def _images_in(folder: Path) -> dict[str, Path]:
    try:
        return find_images(folder)
    except DataError:
        return {}


def _annotations_in(folder: Path) -> dict[str, Path]:
    """Returns the annotation files of a folder by stem. Their suffix may be in upper case."""
    try:
        files = reversed(list_folder(folder))
    except DataError:
        return {}
    return {path.stem: path for path in files if path.suffix.lower() == ".xml"}


def _path_in(text: str) -> PurePosixPath:
    """Returns the path in a line of a list.

    Raises:
        DataError: It may lead out of the folder, or is not text. The error names no file.
    """
    path = PurePosixPath(text.replace("\\", "/"))
    if not text.isprintable() or not path.parts:
        raise DataError(f"{text[:200]!r} is not printable text", kind="path-unsafe")
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(text):
        raise DataError(
            f"{text[:200]!r} may lead out of the folder: it is not an image id", kind="path-unsafe"
        )
    return path
