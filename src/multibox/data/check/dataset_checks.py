"""Everything that can be told of a dataset before a training: it is read whole, and all decoded.

The readers judge what can be used, so that a preflight and a training agree.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from multibox.data.check.annotation_checks import (
    SMALL_SIDE_PX,
    count_objects,
    remarks_of_names,
    remarks_of_split,
    remarks_of_xml,
)
from multibox.data.check.findings import Finding, finding_of
from multibox.data.check.image_metadata import peculiarities
from multibox.data.check.split_checks import remarks_between, shared_images
from multibox.data.dataset import Dataset, Fault
from multibox.data.formats.layouts import known_splits, read_dataset
from multibox.data.formats.voc import MAX_LIST_BYTES, annotation_file, has_layouts, split_lists
from multibox.data.images import (
    MAX_BYTES,
    SUFFIXES,
    decode_image,
    find_images,
    list_folder,
    read_bytes,
)
from multibox.data.reading import NoImagesError
from multibox.errors import DataError

Progress = Callable[[int, int], None]
"""Is told how many of how many images were decoded."""


class CheckedDataset(NamedTuple):
    """What was read of a dataset, and what was found.

    Attributes:
        datasets: What can be used, by split; a split that cannot be read is absent.
        findings: Each once, in the order of splits and files.
    """

    datasets: dict[str, Dataset]
    findings: tuple[Finding, ...]


class _Look(NamedTuple):
    """What came of decoding an image: a digest of its pixels, or none where it failed."""

    pixels: bytes | None
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
        root: A folder in VOC or COCO layout. Nothing in it is written.
        splits: As a training would be told; empty: all that the folder has.
        classes: The only names that objects may have; empty: any.
        workers: Images decoded at a time.
        progress: Is told how far it is.

    Raises:
        DataError: The folder has neither layout, or no split at all.
    """
    chosen = splits or known_splits(root)
    if not chosen:
        raise DataError(
            "has no list of images",
            kind="json-form",
            file=root,
            remedy="Write ImageSets/Main/<split>.txt",
        )
    datasets, found = {}, list[Finding]()
    for split in chosen:
        dataset, findings = _read(root, split, classes)
        found += findings
        if dataset is not None:
            datasets[split] = dataset
    paths = {item.image_path: None for data in datasets.values() for item in data.annotations}
    pixels = {}
    for done, (path, look) in enumerate(_look_at_all(list(paths), workers), start=1):
        found += look.findings
        if look.pixels is not None:
            pixels[path] = look.pixels
        progress(done, len(paths))
    found += _remarks(root, datasets, classes, pixels)
    if has_layouts(root) and not splits:
        found += _unlisted(root)
    # What several splits share is found in each.
    return CheckedDataset(datasets, tuple(dict.fromkeys(found)))


def _read(root: Path, split: str, classes: tuple[str, ...]) -> tuple[Dataset | None, list[Finding]]:
    """Returns what can be used of a split, and the findings of its reader."""
    try:
        dataset = read_dataset(root, split, classes=classes, on_bad="skip")
    except DataError as error:
        file = Path(error.file or root)
        faults = error.faults if isinstance(error, NoImagesError) else ()
        return None, [
            *map(finding_of, (*faults, Fault(error.kind, file, error.position, error.reason)))
        ]
    # VOC's places are found by looking into its files.
    told = {"box-clipped", "size-missing"} if has_layouts(root) else set()
    notes = [
        Finding(note.kind, root, f"split {split}", note.text)
        for note in dataset.notes
        if note.kind not in told
    ]
    return dataset, [*map(finding_of, dataset.faults), *notes]


def _look_at_all(paths: list[Path], workers: int) -> Iterator[tuple[Path, _Look]]:
    # Decoding and hashing free the interpreter's lock.
    pool = ThreadPoolExecutor(workers)
    try:
        yield from zip(paths, pool.map(_look, paths), strict=True)
    finally:
        # Who interrupts does not wait for the rest.
        pool.shutdown(cancel_futures=True)


def _look(path: Path) -> _Look:
    try:
        data = read_bytes(path, limit=MAX_BYTES)
        image = decode_image(data, file=path)
    except DataError as error:
        return _Look(None, [Finding(error.kind, path, None, error.reason)])
    found = [
        Finding(kind, path, None, reason)
        for kind, reason in peculiarities(data, path.suffix).items()
    ]
    height, width, _ = image.shape
    if min(height, width) < SMALL_SIDE_PX:
        found.append(Finding("image-small", path, None, f"has {width} x {height} pixels"))
    if image.min() == image.max():
        found.append(Finding("image-blank", path, None, "all of its pixels are alike"))
    digest = hashlib.sha256(f"{width} x {height}".encode())
    digest.update(image.data)
    return _Look(digest.digest(), found)


def _remarks(
    root: Path,
    datasets: Mapping[str, Dataset],
    classes: tuple[str, ...],
    pixels: Mapping[Path, bytes],
) -> Iterator[Finding]:
    """Yields what the readers accept and is odd nevertheless."""
    seen: set[Path] = set()
    for dataset in datasets.values():
        if not has_layouts(root):
            yield from remarks_of_split(dataset)
            continue
        for item in dataset.annotations:
            if item.image_path not in seen:
                seen.add(item.image_path)
                yield from remarks_of_xml(item, annotation_file(item.image_path))
    yield from remarks_of_names(count_objects(datasets.values()), root)
    yield from remarks_between(datasets, classes, root)
    yield from shared_images(datasets, pixels)


def _unlisted(root: Path) -> Iterator[Finding]:
    """Yields files of layout folders that are in no list, and images that share a name."""
    listed: dict[Path, set[str]] = {}
    for file in split_lists(root).values():
        try:
            lines = read_bytes(file, limit=MAX_LIST_BYTES).decode("utf-8-sig").splitlines()
        except (DataError, UnicodeDecodeError):
            # The reader has said so.
            continue
        names = listed.setdefault(file.parents[2], set())
        names.update(line.strip() for line in lines)
        names.update(line.split()[0] for line in lines if line.strip())
    for folder, names in listed.items():
        try:
            images = find_images(folder / "JPEGImages")
        except DataError:
            continue
        for stem, path in images.items():
            if stem not in names:
                yield Finding("image-unlisted", path, None, "is in no list")
        try:
            annotations = list_folder(folder / "Annotations")
        except DataError as error:
            # Its files may still be read by name.
            annotations = []
            yield Finding(error.kind, folder / "Annotations", None, error.reason)
        for path in annotations:
            if path.suffix == ".xml" and path.stem not in names:
                yield Finding("annotation-unlisted", path, None, "is in no list")
        stems = Counter(
            path.stem
            for path in (folder / "JPEGImages").iterdir()
            if path.suffix.lower() in SUFFIXES
        )
        for stem, count in stems.items():
            if count > 1:
                reason = f"is one of {count} images of that name, and the one that is used"
                yield Finding("ambiguous-image", images[stem], None, reason)
