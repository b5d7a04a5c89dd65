"""Caffe's augmentation as its sources have it: one stage after the other, in loops, on full images.

Sources are those of weiliu89/caffe, branch ssd; every function names its own. Two departures: the
stages do not re-encode the image as JPEG, and images are RGB. Random numbers are drawn in the
order of the sources, but from a NumPy generator.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

MEAN_RGB = (123, 117, 104)
INTERPOLATIONS = ("LINEAR", "AREA", "NEAREST", "CUBIC", "LANCZOS4")

# ssd_pascal.py:89-174: (sampler, smallest and largest IoU or None, trials)
SAMPLERS = [
    ("whole", None, None, 1),
    ("random", 0.1, None, 50),
    ("random", 0.3, None, 50),
    ("random", 0.5, None, 50),
    ("random", 0.7, None, 50),
    ("random", 0.9, None, 50),
    ("random", None, 1.0, 50),
]


class Sample(NamedTuple):
    canvas: tuple  # width, height
    offset: tuple  # of the image in the canvas: left, top
    crop: tuple  # x0, y0, width, height in the canvas
    whole: bool  # the crop is the whole canvas
    interpolation: int
    mirror: bool
    boxes: list
    kept: list


# --- what is drawn


class Dice:
    """caffe_rng_uniform, drawn in blocks because these loops ask for hundreds a time."""

    def __init__(self, rng):
        self.rng, self.block = rng, []

    def uniform(self, low, high):
        if not self.block:
            self.block = self.rng.random(4096).tolist()
        return low + (high - low) * self.block.pop()


def draw(dice, boxes, width, height, expand_probability=0.5, max_ratio=4.0, crop=True):
    """annotated_data_layer.cpp:147-229."""
    objects = [(index, tuple(map(float, box))) for index, box in enumerate(boxes)]
    canvas, offset = (width, height), (0, 0)
    if not dice.uniform(0, 1) > expand_probability:
        canvas, offset, frame = expand(dice, width, height, max_ratio)
        objects = transform_annotation(objects, frame)
    patch = (0.0, 0.0, 1.0, 1.0)
    if crop:
        patches = generate_batch_samples(dice, [box for _, box in objects])
        patch = patches[int(dice.uniform(0, len(patches)))]
        objects = transform_annotation(objects, patch)
    objects = transform_annotation(objects, (0.0, 0.0, 1.0, 1.0))
    interpolation = getattr(cv2, "INTER_" + INTERPOLATIONS[int(dice.uniform(0, 5))])
    mirror = int(dice.uniform(0, 2)) == 1
    if mirror:
        objects = [(i, (1 - x1, y0, 1 - x0, y1)) for i, (x0, y0, x1, y1) in objects]
    return Sample(
        canvas,
        offset,
        crop_rectangle(patch, *canvas),
        patch == (0.0, 0.0, 1.0, 1.0),
        interpolation,
        mirror,
        [box for _, box in objects],
        [index for index, _ in objects],
    )


def expand(dice, img_width, img_height, max_ratio):
    """data_transformer.cpp:823-842."""
    ratio = dice.uniform(1.0, max_ratio)
    height, width = int(img_height * ratio), int(img_width * ratio)
    h_off = math.floor(dice.uniform(0.0, height - img_height))
    w_off = math.floor(dice.uniform(0.0, width - img_width))
    frame = (
        -w_off / img_width,
        -h_off / img_height,
        (width - w_off) / img_width,
        (height - h_off) / img_height,
    )
    return (width, height), (w_off, h_off), frame


def generate_batch_samples(dice, object_bboxes):
    """sampler.cpp:119-165."""
    sampled = []
    for kind, smallest, largest, trials in SAMPLERS:
        for _ in range(trials):
            bbox = (0.0, 0.0, 1.0, 1.0) if kind == "whole" else sample_bbox(dice)
            if satisfies(bbox, object_bboxes, smallest, largest):
                sampled.append(bbox)
                break
    return sampled


def sample_bbox(dice):
    """sampler.cpp:86-118; the sides are float32, so that some patches span the canvas."""
    scale = dice.uniform(0.3, 1.0)
    aspect_ratio = dice.uniform(0.5, 2.0)
    aspect_ratio = max(aspect_ratio, scale**2)
    aspect_ratio = min(aspect_ratio, 1 / scale**2)
    width = float(np.float32(scale * math.sqrt(aspect_ratio)))
    height = float(np.float32(scale / math.sqrt(aspect_ratio)))
    w_off = dice.uniform(0.0, 1 - width)
    h_off = dice.uniform(0.0, 1 - height)
    return (w_off, h_off, w_off + width, h_off + height)


def satisfies(sampled_bbox, object_bboxes, smallest, largest):
    """sampler.cpp:21-84."""
    if smallest is None and largest is None:
        return True
    for object_bbox in object_bboxes:
        overlap = jaccard_overlap(sampled_bbox, object_bbox)
        if smallest is not None and overlap < smallest:
            continue
        if largest is not None and overlap > largest:
            continue
        return True
    return False


def jaccard_overlap(a, b):
    """bbox_util.cpp:274-294."""
    if b[0] > a[2] or b[2] < a[0] or b[1] > a[3] or b[3] < a[1]:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    sizes = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (sizes - width * height)


def transform_annotation(objects, frame):
    """data_transformer.cpp:284-341, bbox_util.cpp:227-246, 333-345."""
    kept = []
    for index, (x0, y0, x1, y1) in objects:
        x_center, y_center = (x0 + x1) / 2, (y0 + y1) / 2
        if not (frame[0] <= x_center <= frame[2] and frame[1] <= y_center <= frame[3]):
            continue
        if x0 >= frame[2] or x1 <= frame[0] or y0 >= frame[3] or y1 <= frame[1]:
            continue
        width, height = frame[2] - frame[0], frame[3] - frame[1]
        box = (
            min(max((x0 - frame[0]) / width, 0.0), 1.0),
            min(max((y0 - frame[1]) / height, 0.0), 1.0),
            min(max((x1 - frame[0]) / width, 0.0), 1.0),
            min(max((y1 - frame[1]) / height, 0.0), 1.0),
        )
        if (box[2] - box[0]) * (box[3] - box[1]) > 0:
            kept.append((index, box))
    return kept


def crop_rectangle(patch, img_width, img_height):
    """data_transformer.cpp:801-821."""
    x0, y0 = patch[0] * img_width, patch[1] * img_height
    x1, y1 = patch[2] * img_width, patch[3] * img_height
    return (int(x0), int(y0), int(x1 - x0), int(y1 - y0))


# --- what is done to the pixels


def render(image, crop_px, interpolation, mirror, colour, size):
    """Distorts, expands, crops, resizes, mirrors.

    Args:
        crop_px: x0, y0, x1, y1 in the frame of the image. The canvas is as large as it takes.
        colour: (brightness, contrast, saturation, hue, contrast_last) or None.
        size: (height, width).
    """
    image = image if colour is None else distort(image, *colour)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = crop_px
    left, top = max(0, -x0), max(0, -y0)
    canvas = np.empty((top + max(height, y1), left + max(width, x1), 3), np.uint8)
    canvas[:] = MEAN_RGB
    canvas[top : top + height, left : left + width] = image
    cropped = canvas[top + y0 : top + y1, left + x0 : left + x1].copy()
    resized = cv2.resize(cropped, size[::-1], interpolation=interpolation)
    return resized[:, ::-1] if mirror else resized


def distort(image, brightness, contrast, saturation, hue, contrast_last):
    """im_transforms.cpp:551-730."""
    image = convert_to(image, 1, brightness)
    if not contrast_last:
        image = convert_to(image, contrast, 0)
    if saturation != 1:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert_to(hsv[..., 1], saturation, 0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue != 0:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = convert_to(hsv[..., 0], 1, hue)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast_last:
        image = convert_to(image, contrast, 0)
    return image


def convert_to(values, alpha, beta):
    """cv::Mat::convertTo(-1, alpha, beta) of uint8: rounds half to even and saturates."""
    scaled = values.astype(np.float32) * np.float32(alpha) + np.float32(beta)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
