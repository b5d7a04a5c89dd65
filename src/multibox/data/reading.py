"""What the readers of all formats do alike: check sizes and boxes, collect faults, and conclude."""

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
from multibox.data.images import check_image
from multibox.errors import DataError

_NO_SIZE = Note("size-missing", "annotations without a size took the image's own")
_CLIPPED = Note("box-clipped", "boxes that left their image by up to a pixel were clipped")


class NoImagesError(DataError):
    """No image of the splits can be used.

    Attributes:
        faults: Why.
    """

    faults: tuple[Fault, ...] = ()


@dataclass
class Reading:
    """The rules of one read, and what it has come upon so far.

    Attributes:
        root: The dataset's folder.
        classes: The only names that objects may have; empty: any.
        on_bad: Whether faults are raised in the end, or what has them is left out.
        images: Whether to look at each image's header and end, or to be content with the
            annotations.
        faults: What cannot be used.
        notes: How often something was read otherwise than literally.
        places: Where each image was listed.
    """

    root: Path
    classes: tuple[str, ...]
    on_bad: Literal["fail", "skip"]
    images: Literal["check", "ignore"]
    faults: list[Fault] = field(default_factory=list)
    notes: Counter[Note] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)

    def add_fault(self, error: DataError, file: Path, position: str | None = None) -> None:
        """Adds what an error says of a file of its own, or else of this place in this file."""
        if error.file is not None:
            file, position = Path(error.file), error.position
        self.faults.append(Fault(error.kind, file, position, error.reason))

    def list_once(self, image: str, place: str) -> None:
        """Remembers where an image is listed.

        Raises:
            DataError: It was listed before; the reason alone is given.
        """
        if image in self.places:
            raise DataError(
                f"{image!r} is listed already, in {self.places[image]}", kind="listed-twice"
            )
        self.places[image] = place

    def frame(self, declared_px: tuple[int, int], image: Path) -> tuple[int, int]:
        """Returns an image's (width, height), on which annotation and image must agree.

        Args:
            declared_px: Width and height in the annotation; not above 0 where it has none.
            image: The image's file.

        Raises:
            DataError: They disagree, neither has a size, or the image cannot be used.
        """
        stored_px = check_image(image) if self.images == "check" else declared_px
        if min(stored_px) <= 0:
            raise DataError("has no size above 0", kind="no-size")
        if min(declared_px) <= 0:
            self.notes[_NO_SIZE] += 1
        elif declared_px != stored_px:
            written, found = (f"{width} x {height}" for width, height in (declared_px, stored_px))
            raise DataError(f"its size is {written}, its image {found}", kind="size-differs")
        return stored_px

    def fitted(self, found: Object, frame_px: tuple[int, int]) -> Object:
        """Returns an object of a class that is wanted, its box clipped by up to a pixel.

        Raises:
            DataError: Its class or box cannot be used; the reason alone is given.
        """
        if self.classes and found.name not in self.classes:
            raise DataError(f"its class is none of {', '.join(self.classes)}", kind="class-unknown")
        box_px = fit_box(found.box_px, frame_px)
        if box_px == found.box_px:
            return found
        self.notes[_CLIPPED] += 1
        return found._replace(box_px=box_px)

    def conclude(
        self, name: str, scenes: Sequence[Scene], classes: tuple[str, ...], notes: Sequence[Note]
    ) -> Dataset:
        """Returns the dataset of all that was read.

        Args:
            name: The splits.
            scenes: The images.
            classes: Names in the order of the labels, of all objects in the scenes.
            notes: To stand before the reading's own.

        Raises:
            NoImagesError: No image can be used.
            DataError: `on_bad` is "fail" and there are faults.
        """
        if self.on_bad == "fail":
            refuse_faults(self.faults, self.root)
        if not scenes:
            reason = f"no image of {name} can be used"
            refusal = NoImagesError(
                reason, kind="no-usable-image", file=self.root, remedy="Check its files"
            )
            refusal.faults = tuple(self.faults)
            raise refusal
        annotations = tuple(annotate(scene, classes) for scene in scenes)
        counted = (note._replace(text=f"{count} {note.text}") for note, count in self.notes.items())
        return Dataset(name, classes, annotations, tuple(self.faults), (*notes, *counted))
