"""The kinds of findings in a dataset, with their severities and remedies.

An error gets its kind where it is raised (`DataError.kind`). The kinds are public: they stay the
same when a message is reworded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from multibox.data.dataset import Fault

Severity = Literal["fault", "warning", "note"]
"""`fault`: it cannot be used. Training stops, or leaves it out with `--on-bad skip`.
`warning`: it is used, but is probably a mistake. `note`: worth knowing."""


class Kind(NamedTuple):
    """Severity and remedy of all findings of a kind.

    Attributes:
        severity: The severity.
        remedy: What to do, as a clause without a full stop.
    """

    severity: Severity
    remedy: str


def _kinds(severity: Severity, remedies: dict[str, str]) -> dict[str, Kind]:
    return {name: Kind(severity, remedy) for name, remedy in remedies.items()}


_INTACT = "Replace it with an intact copy"
_EXPORT = "Correct the file, or export it again"

FAULTS = _kinds(
    "fault",
    {
        "layout-unknown": "Arrange the folder in one of the layouts in the README",
        "split-missing": "Use a split that exists in the folder",
        "empty-split": "Add images to the split, or remove it",
        "no-usable-image": "Correct the faults of its images",
        "list-encoding": "Save the list as UTF-8",
        "too-few-images": "Add images",
        "image-ambiguous": "Rename one of them, or name it with its folder",
        "archive-compression": "Make the archive again with the method Deflate",
        "archive-damaged": "Download or export it again",
        "archive-encrypted": "Make the archive again without a password",
        "archive-too-large": "Unpack it, and use a part of it",
        "path-unsafe": "Use a file name inside the image folder",
        "listed-twice": "Remove one of the two entries",
        "image-missing": "Add the image, or remove it from the list",
        "images-folder-missing": "Add the folder",
        "image-empty": _INTACT,
        "image-format": "Save it as JPEG, PNG, BMP, WebP or TIFF",
        "image-header": _INTACT,
        "image-damaged": _INTACT,
        "image-too-large": "Scale down the image and its boxes",
        "too-many-scans": "Save the image again",
        "not-a-file": "Replace it with a file",
        "file-too-large": "Check that it is the right file",
        "unreadable": "Check the path and its permissions",
        "annotation-missing": "Add the annotation, or remove the image from the list",
        "xml-malformed": _EXPORT,
        "xml-dtd": "Remove the <!DOCTYPE> declaration",
        "xml-root": "Replace it with an annotation in VOC's format",
        "json-malformed": _EXPORT,
        "yaml-malformed": "Write names, train and val without aliases and tags",
        "yaml-form": "Correct the names and their count",
        "json-form": _EXPORT,
        "field-missing": _EXPORT,
        "field-repeated": "Keep one of them",
        "number-malformed": "Use plain decimal numbers",
        "csv-malformed": "Correct the quotes, or export it again",
        "csv-header": "Name the columns filename, class, xmin, ymin, xmax and ymax",
        "columns-malformed": "Use the columns that the format has",
        "not-a-fraction": "Divide the coordinates by the width and height of the image",
        "bbox-malformed": "Use four numbers: x, y, width and height",
        "outline-malformed": "Use at least two points, each with x and y",
        "text-malformed": "Use printable text that is not empty",
        "name-empty": "Add the name of the object's class",
        "difficult-malformed": "Use 0 or 1",
        "size-differs": "Use the image that was annotated; --fix corrects some sizes",
        "no-size": "Add the size of the image",
        "size-too-large": "Correct the size of the image",
        "duplicate-id": "Use a different id for each of them",
        "image-unknown": "Add the image, or remove the annotation",
        "category-unknown": "Add the category, or remove the annotation",
        "shape-unsupported": "Mark the object with a rectangle or polygon",
        "image-rotated": "Undo the rotation of the image in the annotation tool, and export again",
        "box-fractions": "Export the boxes in pixels",
        "box-outside": "Correct the box; --fix clips or removes it",
        "box-empty": "Draw the box again, or remove the object",
        "class-unknown": "Correct the name, or add it to --classes",
        "class-not-trained": "Correct the name, or add images of the class to the training split",
        "nothing-to-learn": "Annotate objects with the names in --classes",
    },
)

WARNINGS = _kinds(
    "warning",
    {
        "exif-rotation": "Check that the boxes fit the stored pixels, then remove the orientation",
        "cmyk": "Save the image as RGB",
        "sixteen-bit": "Convert the image to 8 bits with a range that keeps its contrast",
        "alpha": "Save the image without transparency, on the background that it should have",
        "animated": "Save the annotated frame as an image",
        "image-blank": "Check that it is the right image",
        "image-small": "Check that it is the right image",
        "ambiguous-image": "Keep one of the files",
        "duplicate-image": "Keep one of them",
        "near-duplicate-image": "Keep one of them, or keep them in one split",
        "leaked-image": "Remove it from one of the splits: it makes the results too optimistic",
        "duplicate-object": "Keep one of them",
        "nearly-duplicate-object": "Keep one of them if both mark the same object",
        "box-of-two-classes": "Keep the object with the right class",
        "box-clipped": "Draw the box inside its image",
        "tiny-box": "Remove the object, or mark it as difficult",
        "class-similar": "Use one spelling if both names mean the same class",
        "class-few-objects": "Add images that show the class",
        "class-background": "Remove its objects: everything outside of boxes is background",
        "class-all-difficult": "Add objects of the class that are not difficult",
        "class-missing-in-split": "Train on a split that contains the class",
        "no-objects": "Check that its annotations are the right ones",
        "difficult-missing": "Add <difficult> to objects that evaluation should ignore",
        "filename-differs": "Check that the annotation belongs to this image",
        "class-names-missing": "Add the names, such as in data.yaml or classes.txt",
        "size-missing": "Add the size of the image",
        "annotated-twice": "Check that the last annotation is the right one",
        "category-twice": "Use one category for each name",
    },
)

NOTES = _kinds(
    "note",
    {
        "grey": "No action needed: grey is converted to RGB",
        "suffix-differs": "No action needed: the format is detected by the content",
        "image-unlisted": "Add it to a list if it should be used",
        "annotation-unlisted": "Add its image to a list if it should be used",
        "class-not-tested": "Add images of the class to the test split to evaluate it",
        "annotation-ids": "No action needed",
        "image-unannotated": "Add an annotation without objects if the image shows none",
        "box-from-outline": "No action needed",
        "box-joined": "No action needed",
        "json-other": "No action needed if they are not annotations",
        "label-missing": "Add label files, empty ones for images without objects",
        "category-idle": "No action needed",
        "box-rotated": "Check that the upright boxes are good enough: only those are learned",
        "shape-without-box": "Mark the objects with boxes if they should be learned",
        "read-otherwise": "No action needed",
        "images-added": "Start a run in another folder to use them",
        "near-duplicates": "No action needed",
        "all-alike": "Draw the splits by scene or by day: give the images folders train, val, test",
    },
)

KINDS = FAULTS | WARNINGS | NOTES


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the verb `check` found.

    Attributes:
        kind: One of `KINDS`. These names are public.
        file: The file or folder concerned.
        position: The place in it: `object 3 ('cat')`, `line 12`. None for the whole file or folder.
        reason: What is wrong, as a clause without a full stop.
    """

    kind: str
    file: Path
    position: str | None
    reason: str

    @property
    def severity(self) -> Severity:
        """The severity of its kind."""
        return KINDS[self.kind].severity

    @property
    def remedy(self) -> str:
        """The remedy of its kind."""
        return KINDS[self.kind].remedy

    def __str__(self) -> str:
        return str(Fault(self.kind, self.file, self.position, self.reason))


def finding_of(fault: Fault) -> Finding:
    """Converts a reader's fault into a finding."""
    return Finding(fault.kind, fault.file, fault.position, fault.reason)
