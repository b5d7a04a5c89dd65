"""The kinds of findings in a dataset, with their severities and remedies.

An error has its kind from where it is raised (`DataError.kind`). The kinds are public: they stay
the same when a message is reworded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Fault

Severity = Literal["fault", "warning", "note"]
"""`fault`: training refuses it, or leaves it out with `--on-bad skip`. `warning`: it is used, and
something is probably wrong. `note`: worth knowing."""


class Kind(NamedTuple):
    """What all findings of a kind share.

    Attributes:
        severity: How grave it is.
        remedy: What to do about it, as a clause without a final full stop.
    """

    severity: Severity
    remedy: str


def _kinds(severity: Severity, remedies: dict[str, str]) -> dict[str, Kind]:
    return {name: Kind(severity, remedy) for name, remedy in remedies.items()}


_INTACT = "Replace it by an intact copy"
_EXPORT = "Correct the file, or export it again"

FAULTS = _kinds(
    "fault",
    {
        "layout-unknown": "Arrange the folder in one of the layouts that the README describes",
        "split-missing": "Say a split that the folder has",
        "empty-split": "List images in it, or remove it",
        "no-usable-image": "Correct the faults that its images have",
        "list-encoding": "Save the list as UTF-8",
        "path-unsafe": "Name images by names below their folder",
        "listed-twice": "Remove one of the two",
        "image-missing": "Put the image there, or remove it from the list",
        "images-folder-missing": "Put the folder there",
        "image-empty": _INTACT,
        "image-format": "Save it as JPEG, PNG, BMP or WebP",
        "image-header": _INTACT,
        "image-damaged": _INTACT,
        "image-too-large": "Scale it down, and its boxes alike",
        "too-many-scans": "Save the image anew",
        "not-a-file": "Put a file in its place",
        "file-too-large": "Check that it is the right file",
        "unreadable": "Check the path and its permissions",
        "annotation-missing": "Put the annotation there, or remove the image from the list",
        "xml-malformed": _EXPORT,
        "xml-dtd": "Remove the document type",
        "xml-root": "Put VOC's annotation there",
        "json-malformed": _EXPORT,
        "json-form": "Give a file of instances in COCO's form",
        "field-missing": _EXPORT,
        "field-repeated": "Keep one of them",
        "number-malformed": "Write plain decimal numbers",
        "bbox-malformed": "Write x, y, width and height",
        "text-malformed": "Write a plain text",
        "name-empty": "Name the object's class",
        "difficult-malformed": "Write 0 or 1",
        "size-differs": "Take the image that was annotated; --fix corrects what is safe",
        "no-size": "Write the image's size",
        "size-too-large": "Write the image's size",
        "duplicate-id": "Give each its own id",
        "image-unknown": "Add the image, or remove the annotation",
        "category-unknown": "Add the category, or remove the annotation",
        "box-outside": "Correct the box; --fix clips or removes it",
        "box-empty": "Remove the object, or draw its box anew",
        "class-unknown": "Correct the name, or add it to --classes",
        "class-not-trained": "Correct the name, or add images of it to training",
        "nothing-to-learn": "Annotate objects, and name them as --classes does",
    },
)

WARNINGS = _kinds(
    "warning",
    {
        "exif-rotation": "See whether boxes fit the stored pixels, then remove the orientation",
        "cmyk": "Save it as RGB",
        "sixteen-bit": "Reduce it to 8 bits as its contrast needs",
        "alpha": "Save it without transparency, on the background that it is meant to have",
        "animated": "Save the one picture that is annotated",
        "image-blank": "See whether it is the right image",
        "image-small": "See whether it is the right image",
        "ambiguous-image": "Keep one of the files",
        "duplicate-image": "Keep one of them",
        "leaked-image": "Remove it from one of the splits: it makes results too good",
        "duplicate-object": "Remove one of them",
        "nearly-duplicate-object": "Keep one of them, if they are one object",
        "box-of-two-classes": "Keep the right one",
        "box-clipped": "Draw the box inside its image",
        "tiny-box": "Remove it, or mark it as difficult",
        "class-similar": "Write the name as elsewhere, if the same is meant",
        "class-few-objects": "Add images that show it",
        "class-background": "Remove it: whatever has no box is background already",
        "class-all-difficult": "Its average precision has nothing to count",
        "class-missing-in-split": "Train on a split that has it",
        "no-objects": "See whether its annotations are the right ones",
        "difficult-missing": "Write it, or know that every object counts in evaluation",
        "filename-differs": "See whether the annotation is this image's",
        "size-missing": "Write the image's size",
        "category-twice": "Give one name one category",
    },
)

NOTES = _kinds(
    "note",
    {
        "grey": "None is needed: grey becomes RGB",
        "suffix-differs": "None is needed: the content decides",
        "image-unlisted": "List it, if it should be used",
        "annotation-unlisted": "List its image, if it should be used",
        "class-not-tested": "Add images of it to the test split, to measure it",
        "category-idle": "None is needed",
        "read-otherwise": "None is needed",
    },
)

KINDS = FAULTS | WARNINGS | NOTES


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a preflight found.

    Attributes:
        kind: One of `KINDS`; these names stay.
        file: The file or folder concerned.
        position: The place inside it: `object 3 ('cat')`, `line 12`; None for all of it.
        reason: What is wrong, as a clause without a final full stop.
    """

    kind: str
    file: Path
    position: str | None
    reason: str

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return KINDS[self.kind].severity

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return KINDS[self.kind].remedy

    def __str__(self) -> str:
        return str(Fault(self.kind, self.file, self.position, self.reason))


def finding_of(fault: Fault) -> Finding:
    """Returns the finding of a reader's fault."""
    return Finding(fault.kind, fault.file, fault.position, fault.reason)
