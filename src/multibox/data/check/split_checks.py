"""Compares the splits of a dataset: classes that one split lacks, images that several contain."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from multibox.data.check.annotation_checks import FEW_OBJECTS, count_objects
from multibox.data.check.findings import Finding
from multibox.data.dataset import Dataset
from multibox.data.splits.near_duplicates import group_similar

_ROLES = {"trainval": ("train", "val"), "train": ("train",), "val": ("val",), "test": ("test",)}


def roles(split: str) -> set[str]:
    """Returns the roles in a split's name: some of `train`, `val` and `test`.

    `trainval`, VOC's union of two splits, has both roles, and `minival2014` has the role `val`. A
    name without any of these words has no role. Upper and lower case are the same.
    """
    found, split = set[str](), split.lower()
    for word, meant in _ROLES.items():
        if word in split:
            found.update(meant)
            split = split.replace(word, " ")
    return found


def compare_classes(
    datasets: Mapping[str, Dataset], classes: tuple[str, ...], root: Path
) -> list[Finding]:
    """Compares the classes of training splits with those of validation and test splits.

    Training rejects a test split with classes that the training split lacks, and a training split
    without objects of a class in `classes`.

    Args:
        datasets: The datasets by split.
        classes: The class names to train. If empty, the names that are found.
        root: The dataset's folder.
    """
    training = {name: data for name, data in datasets.items() if "train" in roles(name)}
    testing = {name: data for name, data in datasets.items() if name not in training}
    testing = {name: data for name, data in testing.items() if roles(name)}
    learned = count_objects(training.values())
    found = [
        Finding("no-objects", root, f"split {name}", "none of its images has an object")
        for name, data in datasets.items()
        if not data.objects_per_class or not any(data.objects_per_class.values())
    ]
    if not training:
        return found
    lacking = ", ".join(repr(name) for name in classes if not learned[name])
    if lacking or not learned:
        reason = f"no image of {', '.join(training)} shows an object of {lacking or 'any class'}"
        found.append(Finding("nothing-to-learn", root, None, reason))
    for name, count in sorted(learned.items()):
        if count < FEW_OBJECTS:
            reason = f"has {count} objects in {', '.join(training)}"
            found.append(Finding("class-few-objects", root, f"class {name!r}", reason))
    for split, data in testing.items():
        found += _compare_pair(split, data, training, root)
    return found


def _compare_pair(
    split: str, data: Dataset, training: Mapping[str, Dataset], root: Path
) -> list[Finding]:
    """Compares the classes of one validation or test split with those of the training splits."""
    found, learned = [], count_objects(training.values())
    by_split = {name: count_objects([other]) for name, other in training.items()}
    for label, (name, count) in enumerate(data.objects_per_class.items()):
        position = f"split {split}, class {name!r}"
        lacking = [
            other
            for other, counts in by_split.items()
            if not counts[name] and not roles(other) & roles(split)
        ]
        if count and not learned[name]:
            reason = f"has {count} objects, but none in {', '.join(training)}"
            found.append(Finding("class-not-trained", root, position, reason))
        elif count and lacking:
            reason = f"has {count} objects, but none in {', '.join(lacking)}"
            found.append(Finding("class-missing-in-split", root, position, reason))
        counted = sum(
            int((~item.difficult[item.labels == label]).sum()) for item in data.annotations
        )
        if count and not counted:
            reason = f"all of its {count} objects are difficult"
            found.append(Finding("class-all-difficult", root, position, reason))
    for name in sorted(set(learned) - {n for n, count in data.objects_per_class.items() if count}):
        position = f"split {split}, class {name!r}"
        found.append(Finding("class-not-tested", root, position, "has no objects"))
    return found


class Picture(NamedTuple):
    """What an image shows, for comparisons.

    Attributes:
        pixels: A hash of its size and pixels.
        thumbnail: Its thumbnail, from `near_duplicates.thumbnail`.
    """

    pixels: bytes
    thumbnail: Float32[np.ndarray, " P"]


def shared_images(
    datasets: Mapping[str, Dataset], pictures: Mapping[Path, Picture]
) -> list[Finding]:
    """Finds pictures that are twice in a split, or in two splits with different roles.

    Near-duplicates count, too: another size, quality or colour of a picture, and a mirrored one.

    Args:
        datasets: The datasets by split.
        pictures: What the images show, by image file.
    """
    found: dict[Finding, None] = {}
    shown = _groups(pictures)
    by_group = {}
    for split, data in datasets.items():
        first = by_group[split] = dict[int, Path]()
        for path in (item.image_path for item in data.annotations):
            if path not in shown:
                continue
            other = first.setdefault(shown[path], path)
            if other == path:
                continue
            if pictures[path].pixels == pictures[other].pixels:
                reason = f"has the same pixels as {other.name}"
                found[Finding("duplicate-image", path, None, reason)] = None
            else:
                reason = f"shows the same picture as {other.name}"
                found[Finding("near-duplicate-image", path, None, reason)] = None
    # Training splits come first, so that the finding names the image of the other split.
    for one, two in combinations(sorted(by_group, key=lambda name: "train" not in roles(name)), 2):
        if not roles(one) or not roles(two) or roles(one) & roles(two):
            continue
        for group, path in by_group[two].items():
            if group not in by_group[one]:
                continue
            other = by_group[one][group]
            known = "" if other == path else f" as {other.name}"
            reason = f"is in {two} and in {one}{known}"
            if pictures[path].pixels != pictures[other].pixels:
                reason = f"is in {two}, and {other.name} in {one} shows the same picture"
            found[Finding("leaked-image", path, None, reason)] = None
    return list(found)


def _groups(pictures: Mapping[Path, Picture]) -> dict[Path, int]:
    """Returns the group of near-duplicates of each image, as a number."""
    if not pictures:
        return {}
    vectors = np.stack([picture.thumbnail for picture in pictures.values()])
    return dict(zip(pictures, group_similar(vectors).tolist(), strict=True))
