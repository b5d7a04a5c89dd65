"""Geometric augmentation: expansion, random crop, resize and mirror, drawn without any pixels.

Caffe expands the image, crops it with one of seven batch samplers, resizes it and mirrors it (SSD
sections 2.2 and 3.6, `annotated_data_layer.cpp:147-229`). The random decisions depend only on the
image's size and its boxes. Here they are drawn first and combined into one rectangle, and
`pixels.render` then reads that rectangle once. The distribution is the same as Caffe's; the
sequence of random numbers is not.

A *patch* is a rectangle in fractions of the canvas. The canvas is the image or, after an expansion,
the image with a margin of the mean colour.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int

from multibox.config import AugmentationConfig

# `ssd_pascal.py:89-174`. The first of the seven samplers takes the whole canvas, always succeeds
# and is not listed. The last one asks for an IoU of at most 1. That is always true, so it is
# listed here with a minimum of 0.
SAMPLER_MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)
SAMPLER_TRIALS = 50
_MIN_IOUS = np.array(SAMPLER_MIN_IOUS)[:, None]
PATCH_SCALES = (0.3, 1.0)
PATCH_RATIOS = (0.5, 2.0)

# `ssd_pascal.py:178-190`, all equally likely.
INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
)

# Caffe does not expand if the maximum ratio is this close to 1 (`data_transformer.cpp:503-536`).
_RATIO_TOLERANCE = 0.01

_WHOLE = (0.0, 0.0, 1.0, 1.0)

_Box = tuple[float, float, float, float]


class Geometry(NamedTuple):
    """The crop, interpolation and mirroring that turn an image into a network input.

    Attributes:
        crop_px: (x0, y0, x1, y1) in whole pixels of the original image; x1 and y1 are exclusive.
            The crop may reach beyond the image, where it has the mean colour.
        interpolation: The `cv2.INTER_*` that resizes the crop to the output.
        mirror: Whether to swap left and right after the resize.
    """

    crop_px: tuple[int, int, int, int]
    interpolation: int
    mirror: bool


def whole_image(width_px: int, height_px: int) -> Geometry:
    """Returns the geometry for evaluation: the whole image with linear interpolation."""
    return Geometry((0, 0, width_px, height_px), cv2.INTER_LINEAR, mirror=False)


def draw_geometry(
    rng: np.random.Generator,
    boxes: Float32[np.ndarray, "M 4"],
    width_px: int,
    height_px: int,
    config: AugmentationConfig,
) -> tuple[Geometry, Float32[np.ndarray, "N 4"], Int[np.ndarray, " N"]]:
    """Returns a random geometry, the boxes that remain after it, and their indices.

    Args:
        rng: The random stream of the sample.
        boxes: xyxy as fractions of the original image; M may be 0.
        width_px: Width of the original image.
        height_px: Height of the original image.
        config: The stages of the augmentation and their probabilities.

    Returns:
        The geometry; the remaining boxes, xyxy as fractions of the output, clipped to it and not
        empty; and their indices in `boxes`, ascending. N may be 0 even if M is not.
    """
    # Plain floats are several times faster than arrays for the few objects of an image.
    objects: list[tuple[int, _Box]] = list(enumerate(map(tuple, boxes.tolist())))
    canvas_px = _draw_canvas(rng, width_px, height_px, config)
    if canvas_px != (0, 0, width_px, height_px):
        left, top, right, bottom = canvas_px
        frame = (left / width_px, top / height_px, right / width_px, bottom / height_px)
        objects = _project(objects, frame)
    patch = _WHOLE
    if config.crop and objects:
        patch = _draw_patch(rng, np.array([box for _, box in objects]))
    objects = _project(objects, patch)
    geometry = Geometry(
        _crop_px(patch, canvas_px),
        INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))],
        mirror=bool(rng.random() < config.mirror_probability),
    )
    exact = [box for _, box in objects]
    if geometry.mirror:
        exact = [(1 - x1, y0, 1 - x0, y1) for x0, y0, x1, y1 in exact]
    kept = np.array([place for place, _ in objects], np.int64)
    # A very thin box may become empty when its sides are rounded to float32.
    mapped = np.array(exact, np.float32).reshape(-1, 4)
    solid = (mapped[:, 2:] > mapped[:, :2]).all(axis=1)
    return geometry, mapped[solid], kept[solid]


def _draw_canvas(
    rng: np.random.Generator, width_px: int, height_px: int, config: AugmentationConfig
) -> tuple[int, int, int, int]:
    """Returns the canvas in pixels of the image (`data_transformer.cpp:503-536, 823-886`)."""
    largest = config.expand_max_ratio
    if rng.random() >= config.expand_probability or abs(largest - 1) < _RATIO_TOLERANCE:
        return 0, 0, width_px, height_px
    ratio = rng.uniform(1, largest)
    canvas_width, canvas_height = int(width_px * ratio), int(height_px * ratio)
    top = int(rng.uniform(0, canvas_height - height_px))
    left = int(rng.uniform(0, canvas_width - width_px))
    return -left, -top, canvas_width - left, canvas_height - top


def _draw_patch(rng: np.random.Generator, boxes: Float[np.ndarray, "M 4"]) -> _Box:
    """Returns one of the patches that the seven samplers found (`sampler.cpp:21-84, 141-165`).

    A sampler keeps its first success in 50 trials. Here all trials of all samplers are drawn at
    once. The trials after a success are independent of it, so the distribution is the same. M is
    at least 1.
    """
    patches = _draw_candidates(rng, len(SAMPLER_MIN_IOUS) * SAMPLER_TRIALS)
    ious = _largest_iou(patches, boxes).reshape(len(SAMPLER_MIN_IOUS), SAMPLER_TRIALS)
    success = ious >= _MIN_IOUS
    firsts = success.argmax(axis=1).tolist()
    successful = [pair for pair in enumerate(firsts) if success[pair]]
    choice = int(rng.integers(1 + len(successful)))
    if choice == len(successful):
        return _WHOLE
    sampler, trial = successful[choice]
    x0, y0, x1, y1 = patches[:, sampler * SAMPLER_TRIALS + trial].tolist()
    return x0, y0, x1, y1


def _draw_candidates(rng: np.random.Generator, count: int) -> Float[np.ndarray, "4 count"]:
    """Returns random patches, one (x0, y0, x1, y1) per column (`sampler.cpp:86-118`).

    The area of a patch is scale^2. Its aspect ratio is that of the fractions, not of pixels. The
    ratio is clipped to the range in which the patch fits into the canvas.

    A patch with a clipped ratio has the full width or height of the canvas. Sides are rounded to
    float32 as in Caffe, because float64 can give 0.99999... of the canvas, which would be truncated
    to one pixel less.
    """
    drawn = rng.random((4, count))
    scale, ratio = (
        low + (high - low) * row
        for (low, high), row in zip((PATCH_SCALES, PATCH_RATIOS), drawn, strict=False)
    )
    area = scale**2
    root = np.sqrt(np.minimum(np.maximum(ratio, area), 1 / area))
    size = np.array((scale * root, scale / root), np.float32).astype(np.float64)
    patches = np.empty((4, count))
    np.multiply(drawn[2:], 1 - size, out=patches[:2])
    np.add(patches[:2], size, out=patches[2:])
    return patches


def _largest_iou(
    patches: Float[np.ndarray, "4 T"], boxes: Float[np.ndarray, "M 4"]
) -> Float[np.ndarray, " T"]:
    """Returns each patch's largest IoU with an object. M is at least 1.

    It equals `boxes.pairwise_iou` in float32. NumPy is faster for few boxes.
    """
    # The dimensions of these arrays are: x and y, boxes, patches.
    low, high = patches.astype(np.float32).reshape(2, 2, 1, -1)
    box_low, box_high = boxes.T.astype(np.float32, order="C").reshape(2, 2, -1, 1)
    shared = np.maximum(np.minimum(high, box_high) - np.maximum(low, box_low), 0)
    intersection = shared[0] * shared[1]
    size, box_size = high - low, box_high - box_low
    union = size[0] * size[1] + box_size[0] * box_size[1] - intersection
    best: Float[np.ndarray, " T"] = (intersection / union).max(axis=0)
    return best


def _project(objects: list[tuple[int, _Box]], frame: _Box) -> list[tuple[int, _Box]]:
    """Returns the boxes that remain in a frame, as fractions of it, each with its index.

    A box remains if its centre is inside the frame or on its border and its area is above 0 after
    clipping (`bbox_util.cpp:227-246, 333-345`, `data_transformer.cpp:284-341`).
    """
    left, top, right, bottom = frame
    width, height = right - left, bottom - top
    kept = []
    for place, (x0, y0, x1, y1) in objects:
        if not (left <= (x0 + x1) / 2 <= right and top <= (y0 + y1) / 2 <= bottom):
            continue
        low_x, high_x = max((x0 - left) / width, 0.0), min((x1 - left) / width, 1.0)
        low_y, high_y = max((y0 - top) / height, 0.0), min((y1 - top) / height, 1.0)
        if low_x < high_x and low_y < high_y:
            kept.append((place, (low_x, low_y, high_x, high_y)))
    return kept


def _crop_px(patch: _Box, canvas_px: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Returns the patch in pixels of the image, truncated (`data_transformer.cpp:801-821`).

    As in Caffe, the boxes are projected without this rounding, so they are off by up to one pixel.
    The result is at least one pixel wide and high.
    """
    left, top, right, bottom = canvas_px
    width, height = right - left, bottom - top
    px0, py0, px1, py1 = patch[0] * width, patch[1] * height, patch[2] * width, patch[3] * height
    x0, y0 = left + int(px0), top + int(py0)
    return x0, y0, x0 + max(1, int(px1 - px0)), y0 + max(1, int(py1 - py0))
