import cv2
import numpy as np
import pytest

from multibox.data.geometry import Geometry
from multibox.data.pixels import render

TOLERANCES = {"LINEAR": 0, "AREA": 0, "NEAREST": 0, "CUBIC": 1, "LANCZOS4": 1}
"""In levels of 255."""


@pytest.mark.parametrize("mode", TOLERANCES)
def test_images_are_resized_as_in_caffe(recorded, compare, mode: str) -> None:
    archive = recorded("resize")
    image = np.ascontiguousarray(archive["image_bgr"][..., ::-1])
    height, width = image.shape[:2]
    geometry = Geometry((0, 0, width, height), getattr(cv2, f"INTER_{mode}"), mirror=False)
    for name, theirs in archive.items():
        kind, _, size = name.partition("_")
        if kind == mode:
            rows, columns = map(int, size.split("x"))
            ours = render(image, geometry, None, (rows, columns))[..., ::-1].transpose(2, 0, 1)
            compare(f"levels, {mode}", ours, theirs, tolerance=TOLERANCES[mode])
