"""The Python API for detecting objects in images with a trained network.

from multibox import Detector

detector = Detector.open("runs/bccd")
detections = detector("photo.jpg")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8

from multibox.config import Precision
from multibox.data.geometry import whole_image
from multibox.data.images import read_image
from multibox.data.pixels import render
from multibox.errors import ConfigError, DataError
from multibox.export.runtimes import ExportedDetector, is_exported, open_exported
from multibox.precision import autocast, cast_convolutions, compute_dtype
from multibox.processes.distributed import pick_device
from multibox.ssd.network import SSD
from multibox.storage.run_folder import read_config
from multibox.structures import Detections
from multibox.weights.files import find_weights, load_network, read_weights

DEFAULT_SCORE_THRESHOLD = 0.5
"""Lowest score of detections if the weights do not store a threshold."""


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        name: Name of its class.
        score: Score, in 0..1.
        box_px: (x0, y0, x1, y1) in pixels, clipped to the image.
    """

    name: str
    score: float
    box_px: tuple[float, float, float, float]


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that `Detector` uses."""

    mode: str

    def convert(self, mode: str) -> Any:
        """Returns a copy in another mode."""
        ...


class Detector:
    """A trained network that detects objects in images of any size.

    Args:
        network: The network, in evaluation mode and on its device, or an exported detector.
        classes: Class names in the order of the network's labels.
        precision: The dtype in which the network computes.
        notes: What was changed or guessed when the weights were read, a clause each.
        stored_threshold: The score threshold that the weights store: the one with the best F1 on
            the validation split. None: they do not store one.

    Attributes:
        classes: Class names in the order of the network's labels.
        notes: What was changed or guessed when the weights were read, a clause each.
        stored_threshold: The score threshold that the weights store, or None.
    """

    def __init__(
        self,
        network: SSD | ExportedDetector,
        classes: Sequence[str],
        precision: torch.dtype,
        notes: Sequence[str] = (),
        stored_threshold: float | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.notes = tuple(notes)
        self.stored_threshold = stored_threshold
        self._network, self._precision = network, precision

    @classmethod
    def open(cls, path: Path | str, *, which: str = "last", device: str = "auto") -> "Detector":
        """Opens a run, a checkpoint, a weights file or an exported file.

        The network of a run computes in the run's `--precision`. Other networks compute in bfloat16
        if the hardware supports it, else in float32. ONNX Runtime runs .onnx files, and OpenVINO
        runs .xml files, on the CPU.

        Args:
            path: Folder of a run or of a checkpoint, a weights file, a file that `export` wrote, or
                the name of downloaded weights.
            which: Checkpoint of a run: `last`, `best` or a step.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            WeightsError: The weights do not exist, are damaged or have an unknown format.
            ConfigError: `device` is `cuda` but there is no GPU, or the run's `config.json` is
                damaged or of a newer format.
        """
        if is_exported(Path(path)):
            require_cpu(Path(path), which=which, device=device)
            exported = open_exported(Path(path))
            threshold = exported.score_threshold
            return cls(exported, exported.classes, torch.float32, stored_threshold=threshold)
        file = find_weights(Path(path), which)
        weights = read_weights(file)
        place = pick_device(device)
        precision = compute_dtype(_precision_of(file), place)
        network = cast_convolutions(precision, load_network(weights, place))
        return cls(network, weights.classes, precision, weights.notes, weights.score_threshold)

    @property
    def score_threshold(self) -> float:
        """The threshold that is used by default: the stored one, or `DEFAULT_SCORE_THRESHOLD`."""
        stored = self.stored_threshold
        return DEFAULT_SCORE_THRESHOLD if stored is None else stored

    def __call__(
        self,
        image: Path | str | np.ndarray | PillowImage,
        *,
        score_threshold: float | None = None,
    ) -> list[Detection]:
        """Returns the objects in an image, by descending score.

        Args:
            image: An image file, a Pillow image, or pixels as a uint8 array of shape (H, W),
                (H, W, 1), (H, W, 3) or (H, W, 4): grey, RGB or RGBA. Transparency is ignored, as
                in files.
            score_threshold: Detections with a lower score are left out, 0..1. None: the attribute
                `score_threshold`.

        Raises:
            DataError: The file does not exist, is damaged or is not an image, or the object is
                neither of these images.
        """
        pixels = read_image(Path(image)) if isinstance(image, Path | str) else rgb_pixels(image)
        threshold = self.score_threshold if score_threshold is None else score_threshold
        return self.name(self.detect(pixels, score_threshold=threshold), pixels)

    def name(self, detections: Detections, pixels: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Returns detections with class names and with boxes in the pixels of their image."""
        height, width = pixels.shape[:2]
        boxes_px = detections.boxes.clamp(0, 1) * torch.tensor([width, height, width, height])
        return [
            Detection(self.classes[label], score, (x0, y0, x1, y1))
            for (x0, y0, x1, y1), score, label in zip(
                boxes_px.tolist(),
                detections.scores.tolist(),
                detections.labels.tolist(),
                strict=True,
            )
        ]

    @torch.inference_mode()
    def detect(
        self, pixels: UInt8[np.ndarray, "H W 3"], *, score_threshold: float = 0.0
    ) -> Detections:
        """Returns the detections in an image, on the CPU and with boxes in the unit frame.

        Args:
            pixels: RGB pixels, uint8 (H, W, 3).
            score_threshold: Detections with a lower score are left out, which also saves time.
        """
        network = self._network
        height, width = pixels.shape[:2]
        resized = render(pixels, whole_image(width, height), None, network.image_size_px)
        if isinstance(network, ExportedDetector):
            return network.detect(resized[None], score_threshold=score_threshold)[0]
        device = network.default_boxes.device
        images = torch.from_numpy(resized).permute(2, 0, 1).unsqueeze(0).to(device)
        with autocast(self._precision, device):
            output = network(images)
        (found,) = network.detect(output, score_threshold=score_threshold)
        return Detections(*(field.cpu() for field in found))


def require_cpu(path: Path, *, which: str, device: str) -> None:
    """Refuses options that an exported file does not have.

    Raises:
        ConfigError: `which` is not `last`, or `device` is `cuda`.
    """
    if which != "last":
        raise ConfigError("is not a run", file=path, remedy=f"Leave out --which {which}")
    if device == "cuda":
        raise ConfigError("is an exported file, which runs on the CPU", file=path)


def rgb_pixels(image: object) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the RGB pixels of an image in memory.

    Args:
        image: A Pillow image or an array, as `Detector` takes them.

    Raises:
        DataError: It is neither, or its type or shape is not that of an image with 8 bits.
    """
    if isinstance(image, PillowImage):
        if image.mode.startswith(("I", "F")):
            raise DataError(
                f"the image has the mode {image.mode!r}, which does not have 8 bits",
                kind="image-format",
                remedy="Scale it to 0..255 and convert it to mode 'L' or 'RGB'",
            )
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"the image is of type {type(image).__name__}",
            kind="image-format",
            remedy="Give a path, a NumPy array or a Pillow image",
        )
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise DataError(
            f"the image is a {image.dtype} array of shape {image.shape}",
            kind="image-format",
            remedy="Give uint8 pixels, 0..255, of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)",
        )
    if not pixels.size:
        raise DataError("the image has no pixels", kind="image-empty", remedy="Give another image")
    return pixels.repeat(3, axis=2) if pixels.shape[2] == 1 else pixels[..., :3]


def _precision_of(file: Path) -> Precision:
    """Returns the `--precision` of the run that a checkpoint's weights belong to, or `auto`."""
    checkpoints = file.absolute().parent.parent
    if checkpoints.name == "checkpoints" and (checkpoints.parent / "config.json").exists():
        return read_config(checkpoints.parent).run.precision
    return "auto"
