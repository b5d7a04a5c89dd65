"""What a preflight can find in a dataset: its kinds, how grave each is, and what to do about it.

The readers refuse in words. Here their words are told apart, so that a person can count and
filter; `tests/data/test_findings.py` holds that none of them is forgotten.
"""

import re
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
        "unusable": _EXPORT,
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

# In this order: the first that fits.
_REASONS = (
    (r"its class is none of ", "class-unknown"),
    (r"its <difficult> is |its iscrowd is ", "difficult-malformed"),
    (r"its <name> is empty", "name-empty"),
    (r"its box .* leaves the image", "box-outside"),
    (r"its box .* is empty", "box-empty"),
    (r"its bbox is ", "bbox-malformed"),
    (r"its size is ", "size-differs"),
    (r"has no size above 0", "no-size"),
    (r"its pixels are damaged", "image-damaged"),
    (r"its \w+ header is damaged", "image-header"),
    (r"its header declares ", "image-too-large"),
    (r"its image_id is .* no image has", "image-unknown"),
    (r"its category_id is .* no category has", "category-unknown"),
    (r".*, not a (plain|whole) number$", "number-malformed"),
    (r".*, not a plain text$", "text-malformed"),
    (r".*, beyond any image$", "size-too-large"),
    (r"has no split ", "split-missing"),
    (r"has no list |is not an object of JSON", "json-form"),
    (r"has no <", "field-missing"),
    (r"has \d+ <", "field-repeated"),
    (r"has \d+ bytes, the limit ", "file-too-large"),
    (r"has \d+ scans, the limit ", "too-many-scans"),
    (r"has the id of another ", "duplicate-id"),
    (r"has a DTD", "xml-dtd"),
    (r"is not XML", "xml-malformed"),
    (r"is not JSON", "json-malformed"),
    (r"is not UTF-8", "list-encoding"),
    (r"is not a regular file", "not-a-file"),
    (r"is neither JPEG", "image-format"),
    (r"is empty", "image-empty"),
    (r"is a .*, not an 'annotation'", "xml-root"),
    (r"cannot be read", "unreadable"),
    (r"lists no image", "empty-split"),
    (r"no image of .* can be used", "no-usable-image"),
    (r"no image of .* shows an object", "nothing-to-learn"),
    (r"the images of .* are neither ", "images-folder-missing"),
    (r".* is listed already, in ", "listed-twice"),
    (r".* is a path, not an image id|its file_name .* is no path below", "path-unsafe"),
    # Notes.
    (r"\d+ boxes that left their image ", "box-clipped"),
    (r"\d+ annotations without a size ", "size-missing"),
    (r"\d+ categories without an object ", "category-idle"),
    (r"\d+ categories whose name ", "category-twice"),
    (r".* was read as ", "read-otherwise"),
)


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
        return str(Fault(self.file, self.position, self.reason))


def kind_of(reason: str, file: Path) -> str:
    """Returns the kind of what a reader said: `unusable` where its words are new."""
    if reason == "does not exist":
        return "annotation-missing" if file.suffix == ".xml" else "image-missing"
    fitting = (kind for pattern, kind in _REASONS if re.match(pattern, reason, re.DOTALL))
    return next(fitting, "unusable")


def finding_of(fault: Fault) -> Finding:
    """Returns a reader's fault with its kind."""
    return Finding(kind_of(fault.reason, fault.file), fault.file, fault.position, fault.reason)
