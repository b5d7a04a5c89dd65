"""The demo's dataset: scenes of six classes of drawn things, in VOC's layout.

The pictures are produced by this code alone; no other work is part of them. The constants below
set how hard the scenes are; how things and backgrounds look is set in `scenes`. Whoever
changes either bumps `VERSION`.
"""

import json
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Bool
from numpy.random import Generator

from multibox.commands.demo import scenes
from multibox.commands.demo.scenes import Image, Sprite
from multibox.errors import ConfigError, StorageError
from multibox.rng import stream

VERSION, MARKER = 2, "drawn.json"
CLASSES = tuple(scenes.THINGS)
SIDE_PX = (360, 520)
"""An image's width and height."""
OBJECTS, OBJECTS_SKEW = (2, 8), 1.0
"""Objects an image is given, as far as they find a place. Skew above 1: mostly few."""
SIZE_PX, SIZE_SKEW = (80, 220), 0.7
"""The longer side of an object. Skew 1: all scales alike; below: mostly large."""
TINY_PX, TINY = (11, 17), 0.02
"""Longer side and share of the objects too small to be asked for: they are difficult."""
NEIGHBOUR = 0.2
"""Share of objects beside one of the same class and about its size, often overlapping."""
OVERLAP, OVERLAP_MOST, OVERLAPPING = 0.1, 0.6, 0.1
"""How much of the smaller of two boxes is in the other at the most; how much for neighbours and
this share of the rest. At 0.6, NMS at an IoU of 0.45 need not suppress any object."""
CUT, CUT_MOST = 0.15, 0.3
"""Share of objects that the frame may cut; how much of their width and of their height."""
EMPTY = 0.04
"""Share of training images without any object."""
CLUTTER = (1, 5)
"""Lines, arcs, discs, polygons and strokes of no class per image."""
DIFFICULT_BELOW, REMOVED_BELOW = 0.4, 0.1
"""Visible share of an object below which it is difficult, or not drawn at all."""
JPEG_QUALITY = (85, 92)


class Placed(NamedTuple):
    """A sprite whose upper left pixel lies at (x, y), which may be outside the frame."""

    name: str
    sprite: Sprite
    x: int
    y: int
    tiny: bool


class Drawn(NamedTuple):
    """An object of a scene.

    Attributes:
        name: Its class.
        box_px: xmin, ymin, xmax, ymax as VOC's: 1-based pixels, inclusive.
        truncated: Whether the frame cuts it.
        difficult: Whether it is mostly hidden or tiny.
    """

    name: str
    box_px: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


def draw_scene(rng: Generator, *, empty_share: float) -> tuple[Image, list[Drawn]]:
    """Returns an image and its objects from back to front, with some probability of none."""
    width, height = rng.integers(*SIDE_PX, 2, endpoint=True).tolist()
    image = scenes.paint_background(rng, width, height)
    for _ in range(rng.integers(*CLUTTER, endpoint=True)):
        scenes.paint_clutter(rng, image)
    low, high = OBJECTS
    count = low + int((high + 1 - low) * rng.random() ** OBJECTS_SKEW)
    placed: list[Placed] = []
    for _ in range(0 if rng.random() < empty_share else count):
        placed += _place(rng, placed, width, height)
    kept, objects = _visible(placed, width, height)
    for thing in kept:
        _paste(image, thing)
    return scenes.photograph(rng, image), objects


def _place(rng: Generator, others: list[Placed], width: int, height: int) -> list[Placed]:
    """Returns a new thing, or none where a few tries find no place for it."""
    name, tiny = str(rng.choice(CLASSES)), bool(rng.random() < TINY)
    size = SIZE_PX[0] * (SIZE_PX[1] / SIZE_PX[0]) ** (rng.random() ** SIZE_SKEW)
    beside = others[rng.integers(len(others))] if others and rng.random() < NEIGHBOUR else None
    if beside is not None:
        name, tiny = beside.name, beside.tiny
        size = min(max(beside.sprite.coverage.shape) * rng.uniform(0.8, 1.15), 1.0 * SIZE_PX[1])
    elif tiny:
        size = rng.uniform(*TINY_PX)
    sprite = scenes.draw_thing(rng, name, size)
    h, w = sprite.coverage.shape
    out = CUT_MOST if rng.random() < CUT else 0.0
    limit = OVERLAP_MOST if beside is not None or rng.random() < OVERLAPPING else OVERLAP
    for _ in range(12):
        x, y = rng.uniform((-out * w, -out * h), (width - (1 - out) * w, height - (1 - out) * h))
        if beside is not None:
            angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.9)
            x = np.clip(beside.x + np.cos(angle) * distance * w, -out * w, width - (1 - out) * w)
            y = np.clip(beside.y + np.sin(angle) * distance * h, -out * h, height - (1 - out) * h)
        new = Placed(name, sprite, round(x), round(y), tiny)
        if all(_overlap(new, other) <= limit for other in others):
            return [new]
    return []


def _overlap(a: Placed, b: Placed) -> float:
    """The boxes' intersection over the smaller one."""
    (ha, wa), (hb, wb) = a.sprite.coverage.shape, b.sprite.coverage.shape
    width = min(a.x + wa, b.x + wb) - max(a.x, b.x)
    height = min(a.y + ha, b.y + hb) - max(a.y, b.y)
    return float(max(width, 0) * max(height, 0) / min(ha * wa, hb * wb))


def _window(placed: Placed, width: int, height: int) -> tuple[slice, slice, tuple[slice, slice]]:
    """The frame's rows and columns under the sprite, and the sprite's part in the frame."""
    x, y, (h, w) = placed.x, placed.y, placed.sprite.coverage.shape
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return slice(y0, y1), slice(x0, x1), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _paste(image: Image, placed: Placed) -> None:
    ys, xs, inside = _window(placed, image.shape[1], image.shape[0])
    through = 255 - placed.sprite.coverage[inside][..., None].astype(np.uint16)
    behind = (image[ys, xs] * through + 127) // 255
    image[ys, xs] = behind.astype(np.uint8) + placed.sprite.colour[inside]


def _visible(placed: list[Placed], width: int, height: int) -> tuple[list[Placed], list[Drawn]]:
    """Returns the things not nearly hidden, and what they cover of the frame, back to front."""
    covered: Bool[np.ndarray, "H W"] = np.zeros((height, width), dtype=bool)
    kept, objects = [], []
    # From front to back, so that a thing left out hides nothing.
    for thing in reversed(placed):
        ys, xs, inside = _window(thing, width, height)
        whole = thing.sprite.coverage >= 128
        mask = whole[inside]
        seen = np.count_nonzero(mask & ~covered[ys, xs]) / np.count_nonzero(whole)
        if seen < REMOVED_BELOW:
            continue
        covered[ys, xs] |= mask
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        (x0, x1), (y0, y1) = (columns + xs.start + 1)[[0, -1]], (rows + ys.start + 1)[[0, -1]]
        box_px = (int(x0), int(y0), int(x1), int(y1))
        truncated = bool(np.count_nonzero(mask) < np.count_nonzero(whole))
        difficult = thing.tiny or bool(seen < DIFFICULT_BELOW)
        kept.append(thing)
        objects.append(Drawn(thing.name, box_px, truncated, difficult))
    return kept[::-1], objects[::-1]


def draw_dataset(
    folder: Path, *, train_images: int = 300, test_images: int = 100, seed: int = 0
) -> None:
    """Draws the dataset below a folder: JPEGImages, Annotations and ImageSets/Main.

    The same arguments give the same bytes, and the images 1..`train_images` are those of the
    split trainval. A folder that has exactly this dataset already is left as it is. The folder
    appears when it is complete, and not at all where drawing is interrupted.

    Raises:
        ConfigError: A split would have no image.
        StorageError: The folder has something else in it, or cannot be written.
    """
    if min(train_images, test_images) < 1:
        raise ConfigError("a split needs an image", remedy="Ask for at least one image in each")
    marker = {"version": VERSION, "seed": seed, "train": train_images, "test": test_images}
    folder = folder.absolute()
    try:
        if _is_free(folder, marker):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder.parent) as staging:
                # One level down, because a temporary folder itself is closed to other users.
                drawn = Path(staging) / folder.name
                _write(drawn, marker)
                if folder.exists():
                    folder.rmdir()
                drawn.rename(folder)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})", file=folder, remedy="Choose another folder"
        ) from None


def _is_free(folder: Path, marker: dict[str, int]) -> bool:
    """Whether the dataset has yet to be drawn; raises StorageError where it cannot be."""
    if not folder.exists() or not any(folder.iterdir()):
        return True
    try:
        found = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        found = None
    drawn = [len(list((folder / part).glob("*"))) for part in ("JPEGImages", "Annotations")]
    if found == marker and drawn == [marker["train"] + marker["test"]] * 2:
        return False
    raise StorageError(
        "has files already, which are not exactly the dataset asked for",
        file=folder,
        remedy="Choose a new folder, or remove this one",
    )


def _write(folder: Path, marker: dict[str, int]) -> None:
    """Writes the whole dataset into a new folder, the marker last."""
    sets = folder / "ImageSets" / "Main"
    for part in (folder / "JPEGImages", folder / "Annotations", sets):
        part.mkdir(parents=True)
    numbers, train = range(1, marker["train"] + marker["test"] + 1), marker["train"]
    for number in numbers:
        rng = stream(marker["seed"], "drawn", number)
        image, objects = draw_scene(rng, empty_share=EMPTY if number <= train else 0.0)
        quality = int(rng.integers(*JPEG_QUALITY, endpoint=True))
        jpeg = simplejpeg.encode_jpeg(image, quality, colorsubsampling="420")
        (folder / "JPEGImages" / f"{number:06d}.jpg").write_bytes(jpeg)
        xml = _annotation(number, image, objects)
        (folder / "Annotations" / f"{number:06d}.xml").write_bytes(xml)
    for split, chosen in (("trainval", numbers[:train]), ("test", numbers[train:])):
        (sets / f"{split}.txt").write_text("".join(f"{n:06d}\n" for n in chosen), newline="\n")
    (folder / MARKER).write_text(json.dumps(marker) + "\n", newline="\n")


def _annotation(number: int, image: Image, objects: list[Drawn]) -> bytes:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{number:06d}.jpg"
    size = ET.SubElement(root, "size")
    for name, side in zip(("height", "width", "depth"), image.shape, strict=True):
        ET.SubElement(size, name).text = str(side)
    for drawn in objects:
        thing = ET.SubElement(root, "object")
        ET.SubElement(thing, "name").text = drawn.name
        for flag in ("truncated", "difficult"):
            ET.SubElement(thing, flag).text = str(int(getattr(drawn, flag)))
        box = ET.SubElement(thing, "bndbox")
        for name, edge in zip(("xmin", "ymin", "xmax", "ymax"), drawn.box_px, strict=True):
            ET.SubElement(box, name).text = str(edge)
    ET.indent(root)
    return ET.tostring(root) + b"\n"
