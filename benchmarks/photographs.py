"""Images of VOC's size that cost a decoder what photographs cost it, with annotations."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from multibox.rng import stream

CLASSES = 20
WIDTH_PX, HEIGHT_PX = 500, 375


def draw_photographs(folder: Path, count: int) -> None:
    """Draws a dataset in VOC's layout: light and texture at all scales, and some objects."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(_draw_photograph, folder), range(count), chunksize=16))
    names = "".join(f"{number:06d}\n" for number in range(count))
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text(names)


def _draw_photograph(folder: Path, number: int) -> None:
    rng = stream(0, "photographs", number)
    size, image = (WIDTH_PX, HEIGHT_PX), np.full((HEIGHT_PX, WIDTH_PX, 3), 110, np.float32)
    for cells in (2, 4, 8, 16, 32, 64, 128, 256):
        noise = rng.standard_normal((cells, cells, 3), np.float32)
        # Half the contrast at twice the detail, and mostly without a colour, as in photographs.
        noise = noise.mean(axis=2, keepdims=True) * 1.5 + noise * 0.5
        image += 60 / np.sqrt(cells) * cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    objects = []
    for _ in range(int(rng.integers(1, 5))):
        width, height = (int(side) for side in rng.integers(40, 300, 2))
        left, top = int(rng.integers(1, WIDTH_PX - width)), int(rng.integers(1, HEIGHT_PX - height))
        name, colour = f"class{rng.integers(CLASSES)}", rng.uniform(-70, 70, 3)
        image[top : top + height, left : left + width] += colour.astype(np.float32)
        objects.append(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{left}</xmin><ymin>{top}</ymin>"
            f"<xmax>{left + width}</xmax><ymax>{top + height}</ymax></bndbox></object>"
        )
    jpeg = simplejpeg.encode_jpeg(np.clip(image, 0, 255).astype(np.uint8), 92)
    (folder / "JPEGImages" / f"{number:06d}.jpg").write_bytes(jpeg)
    (folder / "Annotations" / f"{number:06d}.xml").write_text(
        f"<annotation><size><width>{WIDTH_PX}</width><height>{HEIGHT_PX}</height>"
        f"<depth>3</depth></size>{''.join(objects)}</annotation>"
    )
