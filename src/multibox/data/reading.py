"""Code that the format readers share: it checks boxes, collects faults and makes the dataset."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from multibox.data.dataset import (
    Dataset,
    Fault,
    Note,
    Object,
    Scene,
    annotate,
    fit_box,
    refuse_faults,
)
from multibox.data.image_metadata import has_rotated_orientation, has_sixteen_bits
from multibox.data.images import check_image
from multibox.errors import DataError

_NO_SIZE = Note("size-missing", "annotations without a size: the image's size is used")
_LISTED_CLASSES = 12
_SIXTEEN_BITS = Note(
    "sixteen-bit", "images have 16 bits per channel: the upper 8 are used, see check"
)
_CLIPPED = Note("box-clipped", "boxes that left their image by up to a pixel were clipped")


class NoImagesError(DataError):
    """No image of the splits can be used.

    Attributes:
        faults: What is wrong with the images.
    """

    faults: tuple[Fault, ...] = ()


@dataclass
class Reading:
    """Settings of a reader, and the faults and notes that it has collected so far.

    Attributes:
        root: The dataset's folder.
        classes: The class names that objects may have. If empty, any name is allowed.
        on_bad: Whether to raise the faults at the end ("fail"), or to leave out the faulty images
            and objects ("skip").
        images: Whether to check each image's header and end ("check"), or to read the annotations
            only ("ignore").
        faults: The images and objects that cannot be used.
        notes: How many annotations or boxes each note applies to.
        places: Where each image is listed (as text for a message), by its id (VOC) or path (COCO).
        order: Numbers of classes, for files that number them. Labels follow these numbers. Names
            without a number come last, in alphabetical order.
    """

    root: Path
    classes: tuple[str, ...]
    on_bad: Literal["fail", "skip"]
    images: Literal["check", "ignore"]
    faults: list[Fault] = field(default_factory=list)
    notes: Counter[Note] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)
    order: dict[str, float] = field(default_factory=dict)

    def add_fault(self, error: DataError, file: Path, position: str | None = None) -> None:
        """Adds an error's fault. If the error names no file, this file and position are used."""
        if error.file is not None:
            file, position = Path(error.file), error.position
        self.faults.append(Fault(error.kind, file, position, error.reason))

    def list_once(self, image: str, place: str) -> None:
        """Remembers where an image is listed.

        Args:
            image: The image's id (VOC) or path (COCO).
            place: The file and the position in it, as text for a message.

        Raises:
            DataError: It was listed before. The error names no file.
        """
        if image in self.places:
            raise DataError(
                f"{image!r} is listed already, in {self.places[image]}", kind="listed-twice"
            )
        self.places[image] = place

    def frame(self, declared_px: tuple[int, int], image: Path) -> tuple[int, int]:
        """Returns an image's (width, height). The annotation and the image must agree on it.

        Args:
            declared_px: Width and height in the annotation, or zeros if it has none.
            image: The image file.

        Raises:
            DataError: They disagree, neither has a size, or the image cannot be used.
        """
        stored_px = check_image(image) if self.images == "check" else declared_px
        may_have_16 = image.suffix.lower() in (".png", ".tif", ".tiff")
        if self.images == "check" and may_have_16 and has_sixteen_bits(image):
            self.notes[_SIXTEEN_BITS] += 1
        if min(stored_px) <= 0:
            raise DataError("has no size above 0", kind="no-size")
        if min(declared_px) <= 0:
            self.notes[_NO_SIZE] += 1
        elif declared_px != stored_px:
            written, found = (f"{width} x {height}" for width, height in (declared_px, stored_px))
            if declared_px == stored_px[::-1] and has_rotated_orientation(image):
                found += ": its EXIF orientation, which is not applied, swaps the sides"
            raise DataError(f"its size is {written}, but its image is {found}", kind="size-differs")
        return stored_px

    def fitted(self, found: Object, frame_px: tuple[int, int]) -> Object:
        """Returns an object with its box clipped by up to one pixel.

        Raises:
            DataError: Its class or box cannot be used. The error names no file.
        """
        if self.classes and found.name not in self.classes:
            raise DataError(
                f"its class is not one of {', '.join(self.classes)}", kind="class-unknown"
            )
        box_px = fit_box(found.box_px, frame_px)
        if box_px == found.box_px:
            return found
        self.notes[_CLIPPED] += 1
        return found._replace(box_px=box_px)

    def conclude(self, name: str, scenes: Sequence[Scene], notes: Sequence[Note] = ()) -> Dataset:
        """Returns the dataset.

        Args:
            name: The names of the splits, joined by `+`.
            scenes: The images that can be used.
            notes: Further notes. They come before the collected ones.

        Raises:
            NoImagesError: No image can be used.
            DataError: `on_bad` is "fail" and there are faults.
        """
        if self.on_bad == "fail":
            some_left = any(scene.objects for scene in scenes)
            refuse_faults(self.faults, self.root, some_left=some_left)
        if not scenes:
            reason = f"no image of {name} can be used"
            error = NoImagesError(
                reason, kind="no-usable-image", file=self.root, remedy="Check its files"
            )
            error.faults = tuple(self.faults)
            raise error
        used = {item.name for scene in scenes for item in scene.objects}
        numbered = sorted(used, key=lambda name: (self.order.get(name, math.inf), name))
        classes = self.classes or tuple(numbered)
        unused = [] if self.classes else sorted(self.order.keys() - used)
        if unused:
            shown = ", ".join(map(repr, unused[:_LISTED_CLASSES]))
            left_out = f"{len(unused)} classes without objects were left out, including {shown}"
            notes = [*notes, Note("category-idle", left_out)]
        annotations = tuple(annotate(scene, classes) for scene in scenes)
        counted = (
            note._replace(text=f"{count} {note.text}") for note, count in (+self.notes).items()
        )
        return Dataset(name, classes, annotations, tuple(self.faults), (*notes, *counted))
