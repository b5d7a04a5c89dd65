"""Draws splits by seed. Near-duplicate images always come into the same split.

A split depends on the seed and on the names of the images only, so an image keeps its split when
others are added. It may change if a near-duplicate of it is added.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from multibox.data.dataset import Dataset, Note
from multibox.data.splits.near_duplicates import SAME_PICTURE, group_similar
from multibox.errors import ConfigError, DataError

PARTS = ("train", "val", "test")
"""Names of the drawn splits."""

# Images of a fixed camera are all alike. Then only those that are even more alike stay together.
_STRICTER = (0.97, 0.99, 0.999)
_EQUAL = 0.99999
_LARGEST_SHARE = 4


class Drawn(NamedTuple):
    """Drawn splits.

    Attributes:
        ids: The ids of the images, by split.
        notes: How near-duplicates were kept together.
    """

    ids: dict[str, tuple[str, ...]]
    notes: tuple[Note, ...]


def parse_shares(text: str) -> dict[str, float]:
    """Returns the share of each split, from 0 to 1.

    Args:
        text: The shares of train, val and test, such as `80/10/10`, or of train and val: `80/20`.

    Raises:
        ConfigError: The text has another form.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if not 2 <= len(numbers) <= len(PARTS) or not all(0 < number < 1e6 for number in numbers):
        raise ConfigError(
            f"split is {text!r}, but it must be two or three numbers above 0",
            remedy="Use for example --split 80/10/10",
        )
    return {part: number / sum(numbers) for part, number in zip(PARTS, numbers, strict=False)}


def draw(
    dataset: Dataset,
    thumbnails: Float32[np.ndarray, "N P"],
    shares: dict[str, float],
    seed: int,
) -> Drawn:
    """Draws the split of each image.

    If no image of the training split shows a class, the first group with this class is moved there.
    A split without images then gets a group that its own split can spare.

    Args:
        dataset: All images.
        thumbnails: A thumbnail of each image, from `near_duplicates.thumbnails`.
        shares: The share of each split.
        seed: The seed.

    Raises:
        DataError: There are too few groups of images for all splits, or for all classes.
    """
    groups, correlation = _group(thumbnails)
    fractions = np.array([_fraction(seed, item.image_path.name) for item in dataset.annotations])
    # A group is drawn by the lowest fraction of its images.
    names = np.unique(groups)
    lowest = {name: float(fractions[groups == name].min()) for name in names.tolist()}
    ordered = sorted(lowest, key=lambda name: (lowest[name], name))
    limits = np.cumsum(list(shares.values()))[:-1]
    places = np.searchsorted(limits, [lowest[name] for name in ordered], side="right").tolist()
    part = {name: PARTS[place] for name, place in zip(ordered, places, strict=True)}
    labels = {name: set[int]() for name in ordered}
    for item, name in zip(dataset.annotations, groups.tolist(), strict=True):
        labels[name].update(item.labels.tolist())
    _cover_classes(labels, part)
    if not _fill_empty(labels, part, tuple(shares)):
        raise DataError(
            f"has too few images that differ ({len(ordered)}): each of the {len(shares)} splits "
            "needs one, and those of the training split must show every class",
            kind="too-few-images",
            file=dataset.annotations[0].image_path.parent,
            remedy="Add images",
        )
    ids: dict[str, list[str]] = {name: [] for name in shares}
    for item, name in zip(dataset.annotations, groups.tolist(), strict=True):
        ids[part[name]].append(item.image_id)
    return Drawn({name: tuple(listed) for name, listed in ids.items()}, _notes(groups, correlation))


def _notes(groups: Int64[np.ndarray, " N"], correlation: float) -> tuple[Note, ...]:
    sizes = np.unique(groups, return_counts=True)[1]
    several = sizes[sizes > 1]
    notes = []
    if several.size:
        kept = f"{several.sum()} near-duplicate images in {several.size} groups were kept together"
        notes.append(Note("near-duplicates", kept))
    if correlation > SAME_PICTURE:
        reason = (
            "many images resemble each other, as those of a fixed camera do, so only images with a "
            f"correlation of {correlation:g} were kept together"
        )
        notes.append(Note("all-alike", reason))
    return tuple(notes)


def _group(thumbnails: Float32[np.ndarray, "N P"]) -> tuple[Int64[np.ndarray, " N"], float]:
    """Returns the groups of near-duplicates, and the correlation above which they count as such."""
    for least in (SAME_PICTURE, *_STRICTER, _EQUAL):
        groups = group_similar(thumbnails, least)
        largest = np.unique(groups, return_counts=True)[1].max()
        if largest <= max(2, len(thumbnails) // _LARGEST_SHARE):
            break
    return groups, least


def _fraction(seed: int, name: str) -> float:
    """Returns a number in [0, 1) that depends on the seed and the name only."""
    digest = hashlib.sha256(f"{seed}/split/{name}".encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _cover_classes(labels: Mapping[int, set[int]], part: dict[int, str]) -> None:
    """Moves groups to the training split until it shows every class.

    Args:
        labels: The labels of the objects in each group, in the order of the groups.
        part: The split of each group. It is changed.
    """
    for label in sorted(set[int]().union(*labels.values())):
        shown = [name for name in labels if label in labels[name]]
        if not any(part[name] == "train" for name in shown):
            part[shown[0]] = "train"


def _fill_empty(
    labels: Mapping[int, set[int]], part: dict[int, str], splits: Sequence[str]
) -> bool:
    """Moves a group to each split without images. Returns whether this was possible."""

    def can_be_spared(name: int) -> bool:
        others = [each for each in labels if part[each] == part[name] and each != name]
        shown = set[int]().union(*(labels[each] for each in others))
        return bool(others) and (part[name] != "train" or labels[name] <= shown)

    for wanted in splits:
        if wanted in part.values():
            continue
        spare = next((name for name in reversed(list(labels)) if can_be_spared(name)), None)
        if spare is None:
            return False
        part[spare] = wanted
    return True


def pool(splits: Sequence[str]) -> str:
    """Returns the names of splits that together hold all images of a folder, joined by `+`.

    VOC's `train` and `val` are left out if there is `trainval`, which holds their images.
    """
    whole = {split.removesuffix("trainval") for split in splits if split.endswith("trainval")}
    parts = {f"{before}{part}" for before in whole for part in ("train", "val")}
    return "+".join(split for split in splits if split not in parts)


def take(dataset: Dataset, ids: Sequence[str], name: str) -> Dataset:
    """Returns the images of a drawn split, in the order of the dataset, without faults and notes.

    Raises:
        DataError: The dataset lacks an image.
    """
    wanted = set(ids)
    missing = sorted(wanted - {item.image_id for item in dataset.annotations})
    if missing:
        raise DataError(
            f"lacks the image {missing[0]!r} of the split {name!r}"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else ""),
            kind="image-missing",
            file=dataset.annotations[0].image_path.parent,
            remedy="Restore the images, or start a run in another folder",
        )
    chosen = tuple(item for item in dataset.annotations if item.image_id in wanted)
    return replace(dataset, name=name, annotations=chosen, faults=(), notes=())
