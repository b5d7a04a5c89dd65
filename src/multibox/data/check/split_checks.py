"""Findings between the splits of a dataset: classes that only one has, images that both have."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from multibox.data.check.annotation_checks import FEW_OBJECTS, count_objects
from multibox.data.check.findings import Finding
from multibox.data.dataset import Dataset

_ROLES = {"trainval": ("train", "val"), "train": ("train",), "val": ("val",), "test": ("test",)}


def roles(split: str) -> set[str]:
    """Returns which of train, val and test a split's name says it is for.

    `trainval`, VOC's union of two, is for both; `minival2014` for val. What has none of these
    words in its name is for none.
    """
    found = set[str]()
    for word, meant in _ROLES.items():
        if word in split:
            found.update(meant)
            split = split.replace(word, " ")
    return found


def remarks_between(
    datasets: Mapping[str, Dataset], classes: tuple[str, ...], root: Path
) -> list[Finding]:
    """Returns what is odd about the classes of splits that are used together.

    Training refuses a test split in which there are classes that the training split has not,
    and a training split without objects of a class that was asked for.

    Args:
        datasets: By split.
        classes: Those asked for; empty: those found.
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
        found += _of_pair(split, data, training, root)
    return found


def _of_pair(
    split: str, data: Dataset, training: Mapping[str, Dataset], root: Path
) -> list[Finding]:
    """Returns what the classes of one split for val or test have against those for training."""
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
            reason = f"has {count} objects, and none in {', '.join(training)}"
            found.append(Finding("class-not-trained", root, position, reason))
        elif count and lacking:
            reason = f"has {count} objects, and none in {', '.join(lacking)}"
            found.append(Finding("class-missing-in-split", root, position, reason))
        counted = sum(
            int((~item.difficult[item.labels == label]).sum()) for item in data.annotations
        )
        if count and not counted:
            reason = f"all of its {count} objects are difficult"
            found.append(Finding("class-all-difficult", root, position, reason))
    for name in sorted(set(learned) - {n for n, count in data.objects_per_class.items() if count}):
        position = f"split {split}, class {name!r}"
        found.append(Finding("class-not-tested", root, position, "has no object"))
    return found


def shared_images(datasets: Mapping[str, Dataset], pixels: Mapping[Path, bytes]) -> list[Finding]:
    """Returns images that a split has twice, or that two for different purposes have.

    Args:
        datasets: By split.
        pixels: A digest of each image's pixels by its file.
    """
    found: dict[Finding, None] = {}
    by_pixels = {}
    for split, data in datasets.items():
        first = by_pixels[split] = dict[bytes, Path]()
        for path in (item.image_path for item in data.annotations):
            if path not in pixels:
                continue
            other = first.setdefault(pixels[path], path)
            if other != path:
                reason = f"has the pixels of {other.name}"
                found[Finding("duplicate-image", path, None, reason)] = None
    # The splits for training first, so that the other's image is named.
    for one, two in combinations(sorted(by_pixels, key=lambda name: "train" not in roles(name)), 2):
        if not roles(one) or not roles(two) or roles(one) & roles(two):
            continue
        for digest, path in by_pixels[two].items():
            if digest in by_pixels[one]:
                other = by_pixels[one][digest]
                reason = f"is in {two}, and in {one}" + (
                    f" as {other.name}" if other != path else ""
                )
                found[Finding("leaked-image", path, None, reason)] = None
    return list(found)
