"""Writes the results of single images: JSON, pictures, YOLO's text files and crops.

For a video, the JSON is one file with a line for each frame, and the picture is an annotated video.
"""

import json
from collections.abc import Sequence
from typing import IO, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8

from multibox.commands.prediction.items import ImageRef, VideoRef
from multibox.commands.prediction.out_folder import OutFolder, unwritable
from multibox.commands.prediction.pipeline import Result
from multibox.commands.prediction.video import LIVE_RATE, AnnotatedVideo, frame_rate
from multibox.data.writing.converted_copy import free_name
from multibox.data.writing.tables import write_text
from multibox.data.writing.voc import plain_number
from multibox.drawing import draw_detections

Sources = Sequence[tuple[ImageRef | VideoRef, str]]
"""Images and videos, each with the name of its results."""


@runtime_checkable
class Writer(Protocol):
    """Writes results in one format."""

    def names(self, sources: Sources) -> list[str]:
        """Returns the names of the files that are known before anything is detected."""
        ...

    def write(self, result: Result) -> None:
        """Writes the result of an image or frame. Those of a video come one after the other."""
        ...

    def close(self) -> None:
        """Completes all files."""
        ...


def key_of_frame(result: Result) -> str:
    """Returns the name of the results of an image, or of a single frame of a video."""
    frame = result.image.frame
    return result.image.key if frame is None else f"{result.image.key}_{frame:06d}"


class JsonWriter:
    """Writes `<image>.json`, or `<video>.jsonl` with a line for each frame."""

    def __init__(self, out: OutFolder) -> None:
        self._out, self._key = out, ""
        self._lines: IO[bytes] | None = None

    def names(self, sources: Sources) -> list[str]:
        """Returns a file for each image and video."""
        return [f"{key}.json{'l' * isinstance(source, VideoRef)}" for source, key in sources]

    def write(self, result: Result) -> None:
        """Writes the record of an image, or appends that of a frame."""
        image = result.image
        record = {"image": image.source.name, "width": image.width, "height": image.height}
        found = [detection._asdict() for detection in result.named]
        if image.frame is None:
            text = json.dumps(record | {"detections": found}, indent=2, ensure_ascii=False)
            content = f"{text}\n".encode("utf-8", "backslashreplace")
            self._out.write(f"{image.key}.json", content)
            return
        record |= {"frame": image.frame, "time_s": round(image.time_s or 0, 6)}
        text = json.dumps(record | {"detections": found}, ensure_ascii=False)
        if image.key != self._key or self._lines is None:
            self.close()
            self._key, path = image.key, self._out.claim(f"{image.key}.jsonl")
            try:
                self._lines = path.open("wb")
            except OSError as error:
                raise unwritable(path, error) from None
        try:
            self._lines.write(f"{text}\n".encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise unwritable(self._out.folder / f"{image.key}.jsonl", error) from None

    def close(self) -> None:
        """Closes the file of the last video."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None


class PictureWriter:
    """Writes `<image>.jpg` with the boxes drawn, or an annotated `<video>.mp4`."""

    def __init__(self, out: OutFolder, classes: Sequence[str]) -> None:
        self._out, self._classes, self._key = out, classes, ""
        self._video: AnnotatedVideo | None = None

    def names(self, sources: Sources) -> list[str]:
        """Returns a file for each image and video."""
        return [f"{k}.mp4" if isinstance(s, VideoRef) else f"{k}.jpg" for s, k in sources]

    def write(self, result: Result) -> None:
        """Draws on the pixels, and writes them."""
        image = result.image
        draw_detections(image.pixels, result.found, self._classes, score_threshold=0.0)
        if not isinstance(image.source, VideoRef):
            self._out.write(f"{image.key}.jpg", _jpeg(image.pixels))
            return
        if image.key != self._key or self._video is None:
            self.close()
            self._key, path = image.key, self._out.claim(f"{image.key}.mp4")
            # A camera cannot be opened twice.
            rate = LIVE_RATE if image.source.live else frame_rate(image.source)
            self._video = AnnotatedVideo(path, rate)
        self._video.write(image.pixels)

    def close(self) -> None:
        """Completes the last video."""
        if self._video is not None:
            video, self._video = self._video, None
            video.close()


class YoloWriter:
    """Writes `labels/<image>.txt` in YOLO's format with scores, and `labels/classes.txt`."""

    def __init__(self, out: OutFolder, classes: Sequence[str]) -> None:
        self._out, self._classes = out, classes

    def names(self, sources: Sources) -> list[str]:
        """Returns a file for each image, and that of the classes."""
        named = [f"labels/{key}.txt" for source, key in sources if isinstance(source, ImageRef)]
        return [*named, "labels/classes.txt"]

    def write(self, result: Result) -> None:
        """Writes label, centre, width, height and score of each object."""
        lines = []
        boxes = result.found.boxes.clamp(0, 1).numpy()
        columns = result.found.labels.tolist(), boxes, result.found.scores.numpy()
        for label, (x0, y0, x1, y1), score in zip(*columns, strict=True):
            numbers = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, score)
            lines.append(f"{label} {' '.join(map(plain_number, numbers))}\n")
        self._out.write(f"labels/{key_of_frame(result)}.txt", "".join(lines).encode())

    def close(self) -> None:
        """Writes the names of the classes in the order of the labels."""
        write_text(self._out.claim("labels/classes.txt"), "".join(f"{c}\n" for c in self._classes))


class CropWriter:
    """Writes the pixels of each object: `crops/<class>/<image>-<number>.jpg`."""

    def __init__(self, out: OutFolder, classes: Sequence[str]) -> None:
        self._out, taken, self._folders = out, set[str](), dict[str, str]()
        for name in classes:
            self._folders[name] = free_name(name, "class", taken)
            taken.add(self._folders[name].casefold())

    def names(self, sources: Sources) -> list[str]:
        """Returns nothing, because the objects are not known yet."""
        del sources
        return []

    def write(self, result: Result) -> None:
        """Writes each object that has pixels. Numbers are those of the objects by score."""
        pixels = result.image.pixels
        for number, detection in enumerate(result.named):
            x0, y0, x1, y1 = (round(side) for side in detection.box_px)
            crop = pixels[y0:y1, x0:x1]
            if crop.size:
                folder = self._folders[detection.name]
                name = f"crops/{folder}/{key_of_frame(result)}-{number}.jpg"
                self._out.write(name, _jpeg(crop))

    def close(self) -> None:
        """Does nothing: each file is complete."""


def _jpeg(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return encoded.tobytes() if done else b""
