"""What drawn scenes are painted of: six classes of things, backgrounds, clutter and light.

Every thing is a list of polygons in a frame of its own, [-1, 1]^2 with y down, in the colours of
a palette that is drawn anew for each, around the hue of its class.
"""

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.random import Generator

HUE_SPREAD = 0.09
"""How far, of the whole circle, a thing's hue may be from its class's. Neighbouring classes share
hues, and clutter has any."""
OUTLINED = 0.8
"""Share of things with an outline; the others differ from what is behind by colour only."""
TEXTURE_DEPTH = 0.2
"""How much a thing's stripes, spots or shading darken it at the most."""
BACKGROUND_SATURATION = 0.3
"""Saturation of backgrounds at the most; things and clutter have 0.4 to 0.95."""
BACKGROUND_DEPTH = 20
"""Amplitude of a background's pattern at the most, in 0..255."""
LIGHT = (0.65, 1.15)
"""Brightness in the corners of an image, smooth in between."""
BLUR_PX, NOISE = 0.8, 5.0
"""Standard deviations of blur, in pixels, and of noise, in 0..255, at the most."""

SUPERSAMPLING = 4  # Per axis: a pixel's coverage is a multiple of 1/16.
MAIN, SECOND, PALE, DARK = range(4)  # The colours of a palette.

Image = UInt8[np.ndarray, "H W 3"]
Plane = Float32[np.ndarray, "H W"]
Points = Float[np.ndarray, "N 2"]
Part = tuple[Points, int]
Range = tuple[float, float]


class Sprite(NamedTuple):
    """A thing on a transparent ground.

    Attributes:
        colour: uint8 (h, w, 3), RGB, already multiplied by the coverage.
        coverage: uint8 (h, w), 255 where the thing covers the whole pixel.
    """

    colour: UInt8[np.ndarray, "h w 3"]
    coverage: UInt8[np.ndarray, "h w"]


def _polygon(*corners: tuple[float, float]) -> Points:
    return np.array(corners, dtype=np.float64)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0) -> Points:
    """From `start` degrees, clockwise from the right, to 360; a part is closed by its chord."""
    angles = np.radians(np.linspace(start, 360, 48))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def _balloon(rng: Generator) -> list[Part]:
    angles, taper = np.linspace(0, 2 * np.pi, 64), rng.uniform(0.3, 0.5)
    across = np.sin(angles) * (1 - taper * (1 - np.cos(angles)) / 2)
    down = -0.3 - 0.7 * np.cos(angles)
    half, rim = rng.uniform(0.1, 0.17), rng.uniform(0.7, 0.78)
    ropes = [(_polygon((s / 4, 0.2), (s / 3, 0.2), (s * half, rim)), DARK) for s in (1, -1)]
    gores = [(0.78, MAIN), (0.5, SECOND), (0.22, PALE)][: rng.integers(2, 4)]
    envelope = [(np.stack([w * across, down], axis=1), colour) for w, colour in gores]
    return [*ropes, *envelope, (_rectangle(-half, rim, half, 1.0), DARK)]


def _boat(rng: Generator) -> list[Part]:
    mast, deck = rng.uniform(-0.15, 0.15), rng.uniform(0.4, 0.5)
    foot, bow, stern = deck - 0.08, rng.uniform(0.55, 0.75), rng.uniform(-0.75, -0.55)
    jib = [(_polygon((mast - 0.08, -0.7), (-0.75, foot), (mast - 0.08, foot)), SECOND)]
    return [
        (_rectangle(mast - 0.04, -1.0, mast + 0.04, deck), DARK),
        (_polygon((mast + 0.08, -0.9), (0.85, foot), (mast + 0.08, foot)), PALE),
        *jib[: rng.integers(2)],
        (_polygon((-0.95, deck), (0.95, deck), (bow, 0.95), (stern, 0.95)), MAIN),
        (_rectangle(-0.93, deck, 0.93, deck + 0.12), SECOND),
    ]


def _fish(rng: Generator) -> list[Part]:
    belly = rng.uniform(0.38, 0.6)
    eye, stripes = (-0.62, -belly * 0.25), np.linspace(-0.1, 0.25, rng.integers(0, 4))
    return [
        (_polygon((0.3, 0.0), (0.98, -0.5), (0.82, 0.0), (0.98, 0.5)), SECOND),
        (_polygon((-0.35, -belly * 0.7), (0.1, -belly - 0.25), (0.35, -belly * 0.5)), SECOND),
        (_ellipse(-0.2, 0.0, 0.78, belly), MAIN),
        *((_ellipse(x, 0.0, 0.06, belly * 0.75), PALE) for x in stripes),
        (_polygon((-0.25, 0.1), (0.15, 0.0), (0.15, 0.3)), SECOND),
        (_ellipse(*eye, 0.14, 0.14), PALE),
        (_ellipse(*eye, 0.07, 0.07), DARK),
    ]


def _house(rng: Generator) -> list[Part]:
    eaves, wall, door = rng.uniform(-0.25, 0), rng.uniform(0.68, 0.82), rng.uniform(-0.25, 0)
    ridge, chimney = rng.uniform(0, 0.45), rng.uniform(-0.98, -0.5)
    windows = [(-wall + 0.1, eaves + 0.14), (wall - 0.4, eaves + 0.14)][: rng.integers(1, 3)]
    return [
        (_rectangle(0.45, chimney, 0.68, eaves), DARK),
        (_rectangle(-wall, eaves, wall, 0.95), MAIN),
        (_polygon((-0.98, eaves), (-ridge, -0.95), (ridge, -0.95), (0.98, eaves)), SECOND),
        (_rectangle(door, 0.4, door + 0.3, 0.95), DARK),
        *((_rectangle(x, y, x + 0.3, y + 0.28), PALE) for x, y in windows),
    ]


def _mushroom(rng: Generator) -> list[Part]:
    rim, half = rng.uniform(0, 0.15), rng.uniform(0.18, 0.3)
    foot, height = half * rng.uniform(1.1, 1.5), rng.uniform(0.75, 0.95)
    spots = [(-0.5, -0.35, 0.15), (0.1, -0.6, 0.17), (0.5, -0.25, 0.13), (-0.1, -0.2, 0.1)]
    return [
        (_polygon((-half, rim), (half, rim), (foot, 0.95), (-foot, 0.95)), PALE),
        (_ellipse(0.0, rim, 0.95, height + rim, 180.0), MAIN),
        (_ellipse(0.0, rim, 0.95, 0.14), SECOND),
        *((_ellipse(x, rim + y, r, r), PALE) for x, y, r in spots[: rng.integers(2, 5)]),
    ]


def _star(rng: Generator) -> list[Part]:
    angles = np.radians(np.arange(10) * 36)
    radii = np.where(np.arange(10) % 2 == 0, 1, rng.uniform(0.4, 0.52))
    points = np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)
    inner = (points * rng.uniform(0.4, 0.7), int(rng.choice([SECOND, PALE])))
    return [(points, MAIN), inner][: rng.integers(1, 3)]


THINGS: dict[str, tuple[Callable[[Generator], list[Part]], float, float]] = {
    "balloon": (_balloon, 18.0, 0.0),
    "boat": (_boat, 18.0, 0.58),
    "fish": (_fish, 30.0, 0.47),
    "house": (_house, 12.0, 0.1),
    "mushroom": (_mushroom, 20.0, 0.85),
    "star": (_star, 20.0, 0.18),
}
"""How each class is drawn, the degrees it is turned by at the most, and its usual hue."""


def _colour(
    rng: Generator, saturation: Range, value: Range, hue: float | None = None
) -> tuple[float, ...]:
    """A random colour, of any hue or of one near a given hue."""
    turn = rng.random() if hue is None else hue + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    rgb = colorsys.hsv_to_rgb(turn % 1, rng.uniform(*saturation), rng.uniform(*value))
    return tuple(255 * channel for channel in rgb)


def _pose(rng: Generator, degrees: float) -> Float[np.ndarray, "2 2"]:
    """Mirrored or not, sheared, stretched and turned."""
    stretch, shear = np.exp(rng.uniform(-0.22, 0.22)), rng.uniform(-0.12, 0.12)
    angle = np.radians(rng.uniform(-degrees, degrees))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.asarray(turn @ [[rng.choice([-1, 1]) * stretch, shear], [0, 1 / stretch]])


def _pattern(rng: Generator, width: int, height: int) -> Plane:
    """A pattern in -1..1: a gradient, stripes, squares, soft spots or grain."""
    kind, angle, turns = rng.integers(5), rng.uniform(0, 2 * np.pi), 2 * np.pi / rng.uniform(8, 60)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    along = float(np.cos(angle)) * x + float(np.sin(angle)) * y
    across = float(np.cos(angle)) * y - float(np.sin(angle)) * x
    if kind == 0:
        pattern = (along - along.mean()) / max(width, height)
    elif kind == 1:
        pattern = 2 * np.sin(along * turns)
    elif kind == 2:
        pattern = 3 * np.sin(along * turns) * np.sin(across * turns)
    else:
        cells = (7, 7) if kind == 3 else (height // 3 + 1, width // 3 + 1)
        values = rng.uniform(-1, 1, cells).astype(np.float32)
        pattern = cv2.resize(values, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(pattern.clip(-1, 1))


def draw_thing(rng: Generator, name: str, size_px: float) -> Sprite:
    """Returns a thing of the class whose longer side is `size_px`, to a pixel."""
    draw, degrees, hue = THINGS[name]
    parts, pose = draw(rng), _pose(rng, degrees)
    outline = max(1.0, size_px * rng.uniform(0.01, 0.025)) if rng.random() < OUTLINED else 0.0
    shade = rng.choice([15.0, 15.0, 245.0])
    palette = [_colour(rng, (0.4, 0.95), (0.45, 1.0), hue) for _ in (MAIN, SECOND)]
    palette += [_colour(rng, (0.0, 0.25), (0.85, 1.0)), _colour(rng, (0.2, 0.8), (0.12, 0.4))]
    posed = [points @ pose.T for points, _ in parts]
    low, extent = np.concatenate(posed).min(axis=0), np.ptp(np.concatenate(posed), axis=0)
    scale = (size_px - 2 * outline) / extent.max()
    width, height = (int(side) for side in np.ceil(extent * scale + 2 * outline) + 1)
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 4), dtype=np.uint8)
    # OpenCV's fixed-point coordinates: four fractional bits.
    fixed = [((points - low) * scale + outline + 0.5) * SUPERSAMPLING * 16 for points in posed]
    polygons = [np.round(points).astype(np.int32) for points in fixed]
    if outline:
        thickness = round(2 * outline * SUPERSAMPLING)
        cv2.polylines(canvas, polygons, True, (shade, shade, shade, 255), thickness, shift=4)
    for (_, colour), polygon in zip(parts, polygons, strict=True):
        cv2.fillPoly(canvas, [polygon], (*palette[colour], 255), shift=4)
    drawn = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    dark = rng.uniform(0, TEXTURE_DEPTH) * (1 + _pattern(rng, width, height)[..., None]) / 2
    return Sprite((drawn[..., :3] * (1 - dark)).astype(np.uint8), drawn[..., 3].copy())


def paint_background(rng: Generator, width: int, height: int) -> Image:
    """Returns blobs on a gradient of muted colours, under a pattern."""
    muted = [_colour(rng, (0.03, BACKGROUND_SATURATION), (0.3, 0.98)) for _ in range(3)]
    corners, cells = rng.random((2, 2), np.float32), rng.random((5, 5), np.float32)
    blobs = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    share = ((blobs - 0.55) * rng.uniform(1, 15)).clip(0, rng.uniform(0, 0.6))
    pattern = rng.uniform(0, BACKGROUND_DEPTH) * _pattern(rng, width, height)
    planes = []
    for here, there, blob in zip(*muted, strict=True):
        plane = cv2.resize(here + corners * (there - here), (width, height))
        planes.append(plane + share * (blob - plane) + pattern)
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)


def paint_clutter(rng: Generator, image: Image) -> None:
    """Paints one line, arc, disc, ring, quadrangle, triangle or letter-like stroke in place."""
    kind, size = rng.integers(5), rng.uniform(0.03, 0.22) * min(image.shape[:2])
    centre = rng.uniform((0, 0), image.shape[1::-1])
    colour = _colour(rng, (0.1, 0.95), (0.1, 1.0))
    thickness = max(1, round(size * rng.uniform(0.03, 0.15)))
    if kind == 0:
        points = rng.uniform(-2, 2, (2, 2))
    elif kind < 3:
        rx, ry = rng.uniform(0.4, 0.5, 2)
        points = _ellipse(0.0, 0.0, rx, ry, rng.choice([0, rng.uniform(0, 270)]))
    else:
        corners = int(rng.integers(3, 7))
        turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
        points = np.stack([np.cos(turns), np.sin(turns)], axis=1) / 2
        points = points if kind == 3 else rng.permutation(points)
    polygon = np.round(points * size + centre).astype(np.int32)
    if kind % 2:
        cv2.fillPoly(image, [polygon], colour, cv2.LINE_AA)
    else:
        cv2.polylines(image, [polygon], False, colour, thickness, cv2.LINE_AA)


def photograph(rng: Generator, image: Image) -> Image:
    """Returns the image blurred, lit unevenly and with noise, each more or less."""
    height, width = image.shape[:2]
    blurred = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.1, BLUR_PX))
    light = cv2.resize(rng.uniform(*LIGHT, (2, 2)).astype(np.float32), (width, height))
    noise = rng.uniform(0, NOISE) * rng.standard_normal((height, width), np.float32)
    planes = [plane * light + noise for plane in cv2.split(blurred)]
    return np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
