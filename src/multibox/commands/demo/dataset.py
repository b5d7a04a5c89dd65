"""Drawn datasets in VOC's layout: scenes of things on clouds. The demo's has six classes.

This code alone produces the pictures. A change that alters them increases `VERSION`.
"""

import colorsys
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Float, UInt8
from numpy.random import Generator

from multibox.errors import ConfigError, StorageError
from multibox.rng import stream

VERSION, MARKER = 3, "drawn.json"
# Of an image: its sides, and the numbers of objects and of shapes without a class.
SIDE_PX, OBJECTS, CLUTTER = (360, 520), (2, 8), (1, 5)
# Of an object: its longer side. A skew below 1 makes large objects more frequent.
SIZE_PX, SIZE_SKEW = (75.0, 220.0), 0.7
# Shares of objects near another one, and of objects that the frame may cut.
NEAR, CUT = 0.2, 0.15
# The largest part of a side that is cut, and of the smaller box that another box covers. Two boxes
# that overlap by 0.6 of the smaller one survive NMS at an IoU of 0.45.
CUT_MOST, OVERLAP, OVERLAP_NEAR = 0.3, 0.1, 0.6
# An object is difficult, or is left out, if a smaller share of it is visible.
DIFFICULT_BELOW, REMOVED_BELOW = 0.4, 0.1
# Share of training images without objects.
EMPTY = 0.04

MARGIN = 80  # Pixels painted around the frame, for the parts of objects that it cuts.

Image = UInt8[np.ndarray, "H W 3"]
Points = Float[np.ndarray, "N 2"]
Pair = Float[np.ndarray, "2"]
Colour = tuple[float, ...]


def _polygon(*numbers: float) -> Points:
    return np.array(numbers).reshape(-1, 2)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _polygon(x0, y0, x1, y0, x1, y1, x0, y1)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0) -> Points:
    """From `start` degrees, clockwise from the right, to 360 degrees."""
    angles = np.radians(np.linspace(start, 360, 48))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


_ENVELOPE = _ellipse(0.0, -0.3, 0.7, 0.7)
_ENVELOPE[:, 0] *= 0.9 - 0.35 * _ENVELOPE[:, 1]
_TIPS = np.radians(36 * np.arange(10))
_STAR = np.stack([np.sin(_TIPS), -np.cos(_TIPS)], axis=1) * np.tile([[1], [0.46]], (5, 1))

HUES = {"balloon": 0.0, "boat": 0.58, "fish": 0.47, "house": 0.1, "mushroom": 0.85, "star": 0.18}
CLASSES = tuple(HUES)
# The colours of a thing: saturation and value. Details are as pale, and may be missing.
MAIN, SECOND, PALE, DARK, DETAIL = (0.7, 0.75), (0.68, 0.75), (0.1, 0.95), (0.5, 0.25), (0.1, 0.9)
# Each part of a thing, from back to front, in [-1, 1]^2 with y down.
PARTS = [
    ("balloon", DARK, _polygon(-0.2, 0.2, -0.28, 0.2, -0.14, 0.75, -0.08, 0.75)),
    ("balloon", DARK, _polygon(0.2, 0.2, 0.28, 0.2, 0.14, 0.75, 0.08, 0.75)),
    ("balloon", MAIN, _ENVELOPE),
    ("balloon", SECOND, _ENVELOPE * [0.65, 1]),
    ("balloon", DETAIL, _ENVELOPE * [0.25, 1]),
    ("balloon", DARK, _rectangle(-0.15, 0.7, 0.15, 1.0)),
    ("boat", DARK, _rectangle(-0.04, -1.0, 0.04, 0.45)),
    ("boat", PALE, _polygon(0.08, -0.9, 0.85, 0.37, 0.08, 0.37)),
    ("boat", DETAIL, _polygon(-0.08, -0.7, -0.75, 0.37, -0.08, 0.37)),
    ("boat", MAIN, _polygon(-0.95, 0.45, 0.95, 0.45, 0.65, 0.95, -0.65, 0.95)),
    ("boat", SECOND, _rectangle(-0.93, 0.45, 0.93, 0.57)),
    ("fish", SECOND, _polygon(0.3, 0.0, 0.98, -0.5, 0.82, 0.0, 0.98, 0.5)),
    ("fish", SECOND, _polygon(-0.35, -0.33, 0.1, -0.73, 0.35, -0.24)),
    ("fish", MAIN, _ellipse(-0.2, 0.0, 0.78, 0.48)),
    ("fish", DETAIL, _ellipse(0.1, 0.0, 0.06, 0.36)),
    ("fish", SECOND, _polygon(-0.25, 0.1, 0.15, 0.0, 0.15, 0.3)),
    ("fish", PALE, _ellipse(-0.62, -0.12, 0.14, 0.14)),
    ("fish", DARK, _ellipse(-0.62, -0.12, 0.07, 0.07)),
    ("house", DARK, _rectangle(0.45, -0.8, 0.68, -0.1)),
    ("house", MAIN, _rectangle(-0.75, -0.1, 0.75, 0.95)),
    ("house", SECOND, _polygon(-0.98, -0.1, -0.25, -0.95, 0.25, -0.95, 0.98, -0.1)),
    ("house", DARK, _rectangle(-0.15, 0.4, 0.15, 0.95)),
    ("house", DETAIL, _rectangle(-0.6, 0.05, -0.3, 0.35)),
    ("house", DETAIL, _rectangle(0.3, 0.05, 0.6, 0.35)),
    ("mushroom", PALE, _polygon(-0.24, 0.07, 0.24, 0.07, 0.32, 0.95, -0.32, 0.95)),
    ("mushroom", MAIN, _ellipse(0.0, 0.07, 0.95, 0.92, 180.0)),
    ("mushroom", SECOND, _ellipse(0.0, 0.07, 0.95, 0.14)),
    ("mushroom", DETAIL, _ellipse(-0.5, -0.28, 0.15, 0.15)),
    ("mushroom", DETAIL, _ellipse(0.1, -0.53, 0.17, 0.17)),
    ("star", MAIN, _STAR),
    ("star", DETAIL, _STAR * 0.5),
]


class Style(NamedTuple):
    """What the scenes of a dataset show.

    Attributes:
        looks: The shape of each class, one of `HUES`, and its hue in [0, 1].
        frame_px: Draws the width and height of an image.
        count: Draws the number of objects of an image.
        name: Draws the class of an object.
        side_px: Draws the longer side of an object. It must fit into every frame.
        longest_px: The longest side that is drawn.
        overlap: The largest part of the smaller of two boxes that the other one covers, except for
            objects that are placed near another one.
    """

    looks: Mapping[str, tuple[str, float]]
    frame_px: Callable[[Generator], tuple[int, int]]
    count: Callable[[Generator], int]
    name: Callable[[Generator], str]
    side_px: Callable[[Generator], float]
    longest_px: float
    overlap: float = OVERLAP


def _any_frame(rng: Generator) -> tuple[int, int]:
    width, height = rng.integers(*SIDE_PX, 2, endpoint=True).tolist()
    return width, height


DEMO = Style(
    {name: (name, hue) for name, hue in HUES.items()},
    _any_frame,
    lambda rng: int(rng.integers(*OBJECTS, endpoint=True)),
    lambda rng: str(rng.choice(CLASSES)),
    lambda rng: SIZE_PX[0] * (SIZE_PX[1] / SIZE_PX[0]) ** (rng.random() ** SIZE_SKEW),
    SIZE_PX[1],
)


class Thing(NamedTuple):
    """A thing that may leave the frame; pixels. The first of the `colours` is the outline's."""

    name: str
    corner: Pair
    extent: Pair
    outline: int
    polygons: list[Points]
    colours: list[Colour]

    def paint(self, canvas: UInt8[np.ndarray, "H W *_"], colours: list[Colour]) -> None:
        """Paints it on a frame with margins."""
        # OpenCV's fixed-point numbers have four fractional bits here.
        polygons = [
            np.rint((p + self.corner + MARGIN) * 16).astype(np.int32) for p in self.polygons
        ]
        if self.outline:
            cv2.polylines(canvas, polygons, True, colours[0], self.outline, cv2.LINE_AA, 4)
        for polygon, colour in zip(polygons, colours[1:], strict=True):
            cv2.fillPoly(canvas, [polygon], colour, cv2.LINE_AA, 4)


class Drawn(NamedTuple):
    """An object of a scene. Its box is xmin, ymin, xmax, ymax as in VOC: 1-based and inclusive."""

    name: str
    box_px: tuple[int, int, int, int]
    truncated: bool
    difficult: bool


def _colour(rng: Generator, hue: float, saturation: float, value: float) -> Colour:
    """Returns a colour near the given one. All numbers lie in [0, 1]."""
    near = np.array([saturation, value]) + rng.uniform(-0.25, 0.25, 2)
    rgb = colorsys.hsv_to_rgb((hue + rng.uniform(-0.09, 0.09)) % 1, *near.clip(0, 1))
    return tuple(255 * channel for channel in rgb)


def paint_background(rng: Generator, width: int, height: int) -> Image:
    """Returns clouds of one muted colour on another, at all scales as in photographs."""
    detail, noise = rng.uniform(0.3, 0.8), np.zeros((height, width), np.float32)
    for scale in range(7):
        cells = rng.standard_normal((2 << scale, 2 << scale), np.float32)
        noise += detail**scale * cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    share = 1 / (1 + np.exp(noise * (-rng.uniform(0.5, 4) / noise.std())))[..., None]
    muted = [_colour(rng, rng.random(), 0.1, rng.uniform(0.3, 0.9)) for _ in range(2)]
    here, there = np.array(muted, np.float32)
    return np.asarray((here + share * (there - here)).astype(np.uint8))


def paint_clutter(rng: Generator, image: Image) -> None:
    """Paints a polygon, a disc or a stroke of any colour in place."""
    turns = np.sort(rng.uniform(0, 2 * np.pi, rng.choice([2, 3, 4, 5, 40])))
    points = np.stack([np.cos(turns), np.sin(turns)], axis=1) * rng.uniform(8, 50)
    polygon = np.rint(points + rng.uniform(0, image.shape[1::-1])).astype(np.int32)
    colour = _colour(rng, rng.random(), 0.6, 0.6)
    if rng.random() < 0.5:
        cv2.fillPoly(image, [polygon], colour, cv2.LINE_AA)
    else:
        cv2.polylines(image, [polygon], False, colour, int(rng.integers(1, 7)), cv2.LINE_AA)


def photograph(rng: Generator, image: Image) -> Image:
    """Returns the image with some blur, uneven light and noise."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.1, 0.8))
    light = cv2.resize(rng.uniform(0.65, 1.15, (2, 2)).astype(np.float32), (width, height))
    noise = rng.uniform(0, 5) * rng.standard_normal((height, width), np.float32)
    return (blurred * light[..., None] + noise[..., None]).clip(0, 255).astype(np.uint8)


def make_thing(rng: Generator, name: str, size_px: float, style: Style = DEMO) -> Thing:
    """Returns a thing at (0, 0): turned, sheared, bent, and scaled to its longer side."""
    shape, hue = style.looks[name]
    turn = np.diag([rng.choice([-1.0, 1.0]), 1.0]) + rng.uniform(-0.3, 0.3, (2, 2))
    bend = rng.uniform(-0.1, 0.1, (3, 2))
    palette = {c: _colour(rng, hue, *c) for c in (MAIN, SECOND, PALE, DARK, DETAIL)}
    shade: Colour = (float(rng.choice([15, 15, 245])),) * 3
    posed, colours = list[Points](), [shade]
    for _, colour, points in (part for part in PARTS if part[0] == shape):
        if colour != DETAIL or rng.random() < 0.75:
            x, y = points.T
            posed.append(points @ turn + np.stack([x * x, x * y, y * y], axis=1) @ bend)
            colours.append(palette[colour])
    outline = max(1, round(size_px * rng.uniform(0.02, 0.05))) if rng.random() < 0.8 else 0
    low, high = (bound(np.concatenate(posed), axis=0) for bound in (np.min, np.max))
    scale = (size_px - outline) / (high - low).max()
    polygons = [(points - low) * scale + outline / 2 for points in posed]
    return Thing(name, np.zeros(2), (high - low) * scale + outline, outline, polygons, colours)


def place_thing(
    rng: Generator, others: list[Thing], width: int, height: int, style: Style
) -> Thing | None:
    """Returns a new thing, or None if a few tries find no place for it."""
    near = others[rng.integers(len(others))] if others and rng.random() < NEAR else None
    size = style.side_px(rng)
    thing = make_thing(rng, style.name(rng), size, style)
    if near and rng.random() < 0.7:
        # NMS is hardest for two objects of the same class and about the same size.
        size = min(near.extent.max() * rng.uniform(0.8, 1.15), style.longest_px)
        thing = make_thing(rng, near.name, size, style)
    extent = thing.extent
    outside = extent * CUT_MOST * (rng.random() < CUT)
    limit = OVERLAP_NEAR if near else style.overlap
    for _ in range(12):
        corner = rng.uniform(-outside, (width, height) - extent + outside)
        if near:
            corner = near.corner + rng.uniform(-0.9, 0.9, 2) * extent
            corner = corner.clip(-outside, (width, height) - extent + outside)
        thing = thing._replace(corner=corner)
        if all(_overlap(thing, other) <= limit for other in others):
            return thing
    return None


def _overlap(a: Thing, b: Thing) -> float:
    """Returns the intersection of two boxes over the smaller one."""
    ends = np.minimum(a.corner + a.extent, b.corner + b.extent)
    sides = (ends - np.maximum(a.corner, b.corner)).clip(0)
    return float(np.prod(sides) / min(np.prod(a.extent), np.prod(b.extent)))


def draw_scene(
    rng: Generator, *, empty_share: float, style: Style = DEMO
) -> tuple[Image, list[Drawn]]:
    """Returns an image and its objects; it has none with the probability `empty_share`."""
    width, height = style.frame_px(rng)
    canvas = paint_background(rng, width + 2 * MARGIN, height + 2 * MARGIN)
    for _ in range(rng.integers(*CLUTTER, endpoint=True)):
        paint_clutter(rng, canvas)
    frame = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    things, objects = list[Thing](), list[Drawn]()
    hidden = np.zeros((height, width), bool)
    count = style.count(rng)
    # From front to back, so that it is known how much of each is visible.
    for _ in range(0 if rng.random() < empty_share else count):
        thing = place_thing(rng, things, width, height, style)
        if thing is None:
            continue
        mask = np.zeros(canvas.shape[:2], np.uint8)
        thing.paint(mask, [(255.0,)] * len(thing.colours))
        covered, total = mask[frame] >= 128, np.count_nonzero(mask >= 128)
        visible = float(np.count_nonzero(covered & ~hidden) / total)
        if visible < REMOVED_BELOW:
            continue
        things.append(thing)
        hidden |= covered
        (x0, x1), (y0, y1) = (np.flatnonzero(covered.any(axis))[[0, -1]] + 1 for axis in (0, 1))
        box_px = (int(x0), int(y0), int(x1), int(y1))
        truncated = bool(np.count_nonzero(covered) < total)
        objects.append(Drawn(thing.name, box_px, truncated, visible < DIFFICULT_BELOW))
    for thing in reversed(things):
        thing.paint(canvas, thing.colours)
    return photograph(rng, canvas[frame]), objects


def draw_dataset(
    folder: Path, *, train_images: int = 300, test_images: int = 100, seed: int = 0
) -> None:
    """Draws the dataset below a folder: JPEGImages, Annotations and ImageSets/Main.

    The same arguments give the same bytes. The images 1 to `train_images` are the split trainval.
    A folder that already contains exactly this dataset is left as it is. The folder appears when
    it is complete, and not at all if drawing is interrupted.

    Raises:
        ConfigError: A split would have no image.
        StorageError: The folder contains something else, or cannot be written.
    """
    if min(train_images, test_images) < 1:
        raise ConfigError("a split needs an image", remedy="Ask for at least one image in each")
    marker = {"version": VERSION, "seed": seed, "train": train_images, "test": test_images}

    def write(drawn: Path) -> None:
        train = range(1, train_images + 1)
        write_split(drawn, "trainval", train, seed=seed, empty_share=EMPTY)
        test = range(train_images + 1, train_images + test_images + 1)
        write_split(drawn, "test", test, seed=seed)

    draw_folder(folder, marker, train_images + test_images, write)


def draw_folder(
    folder: Path, marker: Mapping[str, int], images: int, write: Callable[[Path], None]
) -> None:
    """Draws a folder that appears when it is complete.

    A folder that already contains exactly this dataset is left as it is.

    Args:
        folder: The new folder.
        marker: What decides the content. It is written to `MARKER`.
        images: Number of images in all layouts below the folder.
        write: Writes the content into a new folder.

    Raises:
        StorageError: The folder contains something else, or cannot be written.
    """
    folder = folder.absolute()
    try:
        if _is_drawn(folder, marker, images):
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".drawing-", dir=folder.parent) as staging:
            # One level down, because other users cannot open a temporary folder itself.
            drawn = Path(staging) / folder.name
            drawn.mkdir()
            write(drawn)
            (drawn / MARKER).write_text(json.dumps(marker) + "\n", newline="\n")
            if folder.exists():
                folder.rmdir()
            drawn.rename(folder)
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})", file=folder, remedy="Choose another folder"
        ) from None


def _is_drawn(folder: Path, marker: Mapping[str, int], images: int) -> bool:
    """Returns whether the folder has the dataset; raises StorageError if it has something else."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, ValueError):
        found = None
    drawn = [len(list(folder.glob(f"**/{part}/*"))) for part in ("JPEGImages", "Annotations")]
    if found != marker or drawn != [images] * 2:
        reason = "has files already, which are not exactly the dataset asked for"
        remedy = "Choose a new folder, or remove this one"
        raise StorageError(reason, file=folder, remedy=remedy)
    return True


def write_split(
    folder: Path,
    split: str,
    numbers: Iterable[int],
    *,
    seed: int,
    empty_share: float = 0.0,
    style: Style = DEMO,
    prefix: str = "",
) -> None:
    """Draws the images of a split into a folder in VOC's layout.

    Args:
        folder: The folder. It may contain other splits.
        split: Name of the split.
        numbers: The number of each image. An image depends on the seed and its number only.
        seed: Seed of the drawing.
        empty_share: Share of images without objects.
        style: What the scenes show.
        prefix: What the ids of the images begin with.
    """
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    ids = []
    for number in numbers:
        name = f"{prefix}{number:06d}"
        ids.append(f"{name}\n")
        rng = stream(seed, "drawn", number)
        image, objects = draw_scene(rng, empty_share=empty_share, style=style)
        jpeg = simplejpeg.encode_jpeg(image, int(rng.integers(85, 93)), colorsubsampling="420")
        (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg)
        height, width, _ = image.shape
        size = f"<height>{height}</height><width>{width}</width><depth>3</depth>"
        lines = [f"<filename>{name}.jpg</filename>", f"<size>{size}</size>"]
        for thing, (x0, y0, x1, y1), truncated, difficult in objects:
            flags = f"<truncated>{truncated:d}</truncated><difficult>{difficult:d}</difficult>"
            box = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
            box = f"<bndbox>{box}</bndbox>"
            lines.append(f"<object><name>{thing}</name>{flags}{box}</object>")
        xml = "\n".join(["<annotation>", *lines, "</annotation>", ""])
        (folder / "Annotations" / f"{name}.xml").write_text(xml, newline="\n")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(ids), newline="\n")
