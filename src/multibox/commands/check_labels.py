"""The verb `check` on a run: annotations that the trained network disagrees with.

Several runs on the same data with other seeds can be combined. Then only what all of them agree on
is reported.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.commands.evaluate import Evaluated, detect_split
from multibox.data.images import read_image
from multibox.drawing import draw_truth, write_picture
from multibox.errors import ConfigError
from multibox.reporting.doubtful_labels import DoubtfulLabel, compare, urgency
from multibox.reporting.page import render
from multibox.reporting.pictures import region_around, scaled_part
from multibox.storage.run_folder import read_config, read_split, write_json, write_text

FOLDER = "labels"
"""The folder of the pictures, in the run's folder."""

_PICTURES = 60
_SHOWN_SIDE_PX = 480
_MARGIN = 1.0


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, not a dataset's."""
    return (folder / "config.json").is_file() and (folder / "run.json").is_file()


def check_labels(runs: Sequence[Path], *, device: str = "auto") -> list[DoubtfulLabel]:
    """Compares the training images' annotations with what trained networks detect in them.

    It writes pictures and a page of them to the folder `labels` of the first run.

    Args:
        runs: The folders of runs on the same data.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: A folder is not a run, or the runs have other images.
        MultiboxError: The weights or the data cannot be used.
    """
    evaluated = [_detect(run, device) for run in runs]
    first = evaluated[0].dataset
    for run, other in zip(runs, evaluated, strict=True):
        if other.dataset.digest != first.digest:
            raise ConfigError(
                f"was trained on other images or classes than {runs[0]}",
                file=run,
                remedy="Use runs with the same data and the same --split and --seed of the split",
            )
    found = [
        doubt
        for place, image in enumerate(first.annotations)
        for doubt in compare(image, [each.detections[place] for each in evaluated], first.classes)
    ]
    found.sort(key=urgency)
    _write_pictures(runs[0], found)
    return found


def _detect(run: Path, device: str) -> Evaluated:
    split = "train" if read_split(run) else read_config(run).data.train_split
    return detect_split(
        run, which="last", data=None, split=split, on_bad=None, device=device, workers=-1
    )


def _write_pictures(run: Path, found: Sequence[DoubtfulLabel]) -> None:
    folder = run / FOLDER
    shown: dict[str, list[dict[str, str]]] = {}
    for doubt in found:
        of_kind = shown.setdefault(doubt.kind, [])
        if len(of_kind) < _PICTURES:
            file = f"{doubt.kind}-{len(of_kind):03}.jpg"
            folder.mkdir(exist_ok=True)
            write_picture(folder / file, _picture(doubt))
            of_kind.append(
                {"file": file, "text": doubt.describe(), "image": doubt.image.image_path.name}
            )
    write_json(folder / "labels.json", [doubt.as_json() for doubt in found])
    counts = {kind: sum(doubt.kind == kind for doubt in found) for kind in shown}
    values = {"shown": shown, "counts": counts, "run": run.name}
    page = render("labels.html.j2", values, styles=("base.css",), scripts=("theme.js",))
    write_text(folder / "index.html", page)


def _picture(doubt: DoubtfulLabel) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the part of the image around the box. The box is thick, annotated ones are thin."""
    pixels = read_image(doubt.image.image_path)
    draw_truth(pixels, doubt.image.boxes_px, doubt.image.labels)
    x0, y0, x1, y1 = doubt.box_px
    line = max(2, round(max(x1 - x0, y1 - y0) / 60))
    corners = [round(side) for side in doubt.box_px]
    cv2.rectangle(pixels, corners[:2], corners[2:], (255, 255, 255), line + 2, cv2.LINE_AA)
    cv2.rectangle(pixels, corners[:2], corners[2:], (230, 30, 30), line, cv2.LINE_AA)
    region = region_around([doubt.box_px], (pixels.shape[1], pixels.shape[0]), margin=_MARGIN)
    return scaled_part(pixels, region, _SHOWN_SIDE_PX)
