"""Draws boxes, names and scores on a picture."""

import colorsys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, Int64, UInt8

from multibox.errors import StorageError, one_line
from multibox.structures import Detections

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_MAX_NAME_CHARACTERS = 40


def colour_of(label: int) -> tuple[int, int, int]:
    """Returns the RGB colour of a class. Consecutive labels have very different hues."""
    hue = (0.58 + label * 0.618034) % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45, 0.9)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_truth(
    image: UInt8[np.ndarray, "H W 3"],
    boxes_px: Float[np.ndarray, "M 4"],
    labels: Int64[np.ndarray, " M"],
) -> None:
    """Draws the boxes of annotated objects in place: thin lines with a white border, no names."""
    for box, label in zip(boxes_px, labels.tolist(), strict=True):
        corners = [round(side) for side in box.tolist()]
        cv2.rectangle(image, corners[:2], corners[2:], (255, 255, 255), 3, cv2.LINE_AA)
        cv2.rectangle(image, corners[:2], corners[2:], colour_of(label), 1, cv2.LINE_AA)


def draw_detections(
    image: UInt8[np.ndarray, "H W 3"],
    detections: Detections,
    classes: Sequence[str],
    *,
    score_threshold: float,
) -> None:
    """Draws the detections above a score threshold in place, the best on top.

    Long class names are cut. OpenCV draws `?` for a character that its font lacks; before version 5
    it draws ASCII only.
    """
    height, width = image.shape[:2]
    line = max(1, round(max(height, width) / 300))
    scale = max(0.35, max(height, width) / 1400)
    for box, score, label in reversed(list(zip(*detections, strict=True))):
        if score < score_threshold:
            continue
        sides = (box.clamp(0, 1) * box.new_tensor([width, height, width, height])).round()
        x0, y0, x1, y1 = (int(side) for side in sides.tolist())
        colour = colour_of(int(label))
        cv2.rectangle(image, (x0, y0), (x1, y1), colour, line, cv2.LINE_AA)
        name = one_line(classes[int(label)])
        if len(name) > _MAX_NAME_CHARACTERS:
            name = f"{name[: _MAX_NAME_CHARACTERS - 3]}..."
        text = f"{name} {float(score):.2f}"
        (text_width, text_height), base = cv2.getTextSize(text, _FONT, scale, 1)
        top = max(0, y0 - text_height - base - 1)
        left = min(x0, max(0, width - text_width - 2))
        bottom = top + text_height + base + 1
        cv2.rectangle(image, (left, top), (left + text_width + 2, bottom), colour, cv2.FILLED)
        origin = (left + 1, bottom - base)
        cv2.putText(image, text, origin, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)


def write_picture(path: Path, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB image in the format of the path's suffix. Creates the folder if it is absent.

    Raises:
        StorageError: The file cannot be written.
    """
    done, encoded = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded.tobytes() if done else b"")
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise StorageError(f"cannot be written ({error.strerror})", file=path) from None
