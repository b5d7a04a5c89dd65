"""Checks a whole dataset before training: reads all annotations and decodes all images.

The format readers decide what can be used, so the checks always agree with training.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from multibox.data.check.annotation_checks import (
    SMALL_SIDE_PX,
    check_names,
    check_split,
    check_xml,
    count_objects,
)
from multibox.data.check.findings import Finding, finding_of
from multibox.data.check.split_checks import Picture, compare_classes, shared_images
from multibox.data.dataset import Dataset, Fault
from multibox.data.files import SUFFIXES, list_folder, read_bytes
from multibox.data.formats.layouts import DatasetFolder, open_dataset
from multibox.data.formats.tree import FileTree
from multibox.data.formats.voc import split_lists
from multibox.data.formats.voc_files import annotation_files
from multibox.data.formats.voc_lists import LayoutFolder
from multibox.data.image_metadata import unusual_properties
from multibox.data.images import MAX_BYTES, decode_image, find_images
from multibox.data.reading import NoImagesError
from multibox.data.splits.near_duplicates import thumbnail
from multibox.errors import DataError

_XML_FORMATS = ("PASCAL VOC", "VOC XML")

Progress = Callable[[int, int], None]
"""Called with the number of images that were checked so far, and the number of all images."""


class CheckedDataset(NamedTuple):
    """The usable part of a dataset, and the findings.

    Attributes:
        datasets: The usable images and objects, by split. Splits that cannot be read are absent.
        findings: The findings without repetitions, in the order of splits and files.
    """

    datasets: dict[str, Dataset]
    findings: tuple[Finding, ...]


class _CheckedImage(NamedTuple):
    """The result of decoding an image file.

    Attributes:
        picture: What it shows; None if decoding failed.
        findings: The findings about the file.
    """

    picture: Picture | None
    findings: list[Finding]


def check_dataset(
    root: Path,
    splits: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    workers: int,
    progress: Progress,
) -> CheckedDataset:
    """Reads splits and decodes all of their images.

    Args:
        root: A folder in VOC or COCO layout. Nothing in it is changed.
        splits: The splits, named as for training. If empty, all splits of the folder.
        classes: The class names that objects may have. If empty, any name is allowed.
        workers: The number of images to decode at the same time.
        progress: Is called after each image.

    Raises:
        DataError: The folder has neither layout, or has no splits.
    """
    folder = open_dataset(root)
    chosen = splits or folder.splits
    if not chosen:
        raise DataError(
            "has no list of images",
            kind="json-form",
            file=root,
            remedy="Add ImageSets/Main/<split>.txt",
        )
    datasets, found = {}, list[Finding]()
    for split in chosen:
        dataset, findings = _read(folder, split, classes)
        found += findings
        if dataset is not None:
            datasets[split] = dataset
    paths = {item.image_path: None for data in datasets.values() for item in data.annotations}
    pictures = {}
    for done, (path, checked) in enumerate(_check_images(list(paths), workers), start=1):
        found += checked.findings
        if checked.picture is not None:
            pictures[path] = checked.picture
        progress(done, len(paths))
    found += _check_annotations(folder, datasets, classes, pictures)
    if folder.format == "PASCAL VOC" and not splits:
        found += _check_files(root)
    # An image in several splits has the same findings in each. Keep them once.
    return CheckedDataset(datasets, tuple(dict.fromkeys(found)))


def _read(
    folder: DatasetFolder, split: str, classes: tuple[str, ...]
) -> tuple[Dataset | None, list[Finding]]:
    """Returns the usable part of a split, or None, and the reader's findings."""
    try:
        dataset = folder.read(split, classes=classes, on_bad="skip")
    except DataError as error:
        file = Path(error.file or folder.root)
        faults = error.faults if isinstance(error, NoImagesError) else ()
        return None, [
            *map(finding_of, (*faults, Fault(error.kind, file, error.position, error.reason)))
        ]
    # `_check_image` reports this with the file, and `check_xml` those with their positions.
    reported = {"sixteen-bit"}
    if folder.format in _XML_FORMATS:
        reported |= {"box-clipped", "size-missing"}
    notes = [
        Finding(note.kind, folder.root, f"split {split}", note.text)
        for note in dataset.notes
        if note.kind not in reported
    ]
    return dataset, [*map(finding_of, dataset.faults), *notes]


def _check_images(paths: list[Path], workers: int) -> Iterator[tuple[Path, _CheckedImage]]:
    # Decoding and hashing release the GIL.
    pool = ThreadPoolExecutor(workers)
    try:
        yield from zip(paths, pool.map(_check_image, paths), strict=True)
    finally:
        # After an interrupt, do not wait for the remaining images.
        pool.shutdown(cancel_futures=True)


def _check_image(path: Path) -> _CheckedImage:
    try:
        data = read_bytes(path, limit=MAX_BYTES)
        image = decode_image(data, file=path)
    except DataError as error:
        return _CheckedImage(None, [Finding(error.kind, path, None, error.reason)])
    found = [
        Finding(kind, path, None, reason)
        for kind, reason in unusual_properties(data, path.suffix).items()
    ]
    height, width, _ = image.shape
    if min(height, width) < SMALL_SIDE_PX:
        found.append(Finding("image-small", path, None, f"has {width} x {height} pixels"))
    if image.min() == image.max():
        found.append(Finding("image-blank", path, None, "all of its pixels have the same value"))
    digest = hashlib.sha256(f"{width} x {height}".encode())
    digest.update(image.data)
    return _CheckedImage(Picture(digest.digest(), thumbnail(image)), found)


def _check_annotations(
    folder: DatasetFolder,
    datasets: Mapping[str, Dataset],
    classes: tuple[str, ...],
    pictures: Mapping[Path, Picture],
) -> Iterator[Finding]:
    """Yields findings about annotations that the readers accept."""
    root, seen = folder.root, set[Path]()
    loose = annotation_files(FileTree(root)) if folder.format == "VOC XML" else {}
    for dataset in datasets.values():
        if folder.format not in _XML_FORMATS:
            yield from check_split(dataset)
            continue
        for item in dataset.annotations:
            if item.image_path not in seen:
                seen.add(item.image_path)
                yield from check_xml(item, loose.get(item.image_path) or _xml(item.image_path))
    yield from check_names(count_objects(datasets.values()), root)
    yield from compare_classes(datasets, classes, root)
    yield from shared_images(datasets, pictures)


def _xml(image: Path) -> Path:
    """Returns the annotation file of an image in VOC's layout."""
    layout = LayoutFolder.of_image(image)
    return layout.xml(layout.id_of(image))


def _check_files(root: Path) -> Iterator[Finding]:
    """Yields findings for VOC files that no list names, and for images that share a name."""
    listed: dict[Path, tuple[LayoutFolder, set[str]]] = {}
    for file in split_lists(root).values():
        layout = LayoutFolder.of_list(file)
        layout, names = listed.setdefault(layout.folder, (layout, set()))
        try:
            names |= layout.ids_in(file)
        except DataError:
            # The reader has reported it.
            continue
    for folder, (layout, names) in listed.items():
        try:
            images = find_images(layout.images)
        except DataError:
            continue
        for stem, path in images.items():
            if stem not in names:
                yield Finding("image-unlisted", path, None, "is not in any list")
        try:
            annotations = list_folder(folder / "Annotations")
        except DataError as error:
            # The folder cannot be listed, but its files may still be readable by name.
            annotations = []
            yield Finding(error.kind, folder / "Annotations", None, error.reason)
        for path in annotations:
            if path.suffix.lower() == ".xml" and path.stem not in names:
                yield Finding("annotation-unlisted", path, None, "is not in any list")
        stems = Counter(
            path.stem for path in list_folder(layout.images) if path.suffix.lower() in SUFFIXES
        )
        for stem, count in stems.items():
            if count > 1:
                reason = f"is one of {count} images of that name, and the one that is used"
                yield Finding("ambiguous-image", images[stem], None, reason)
