"""The Python API for detecting objects in images with a trained network.

from multibox import Detector

detector = Detector.open("runs/bccd")
detections = detector("photo.jpg")
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from jaxtyping import UInt8

from multibox.config import Precision
from multibox.data.array_images import PillowImage, rgb_pixels
from multibox.data.geometry import whole_image
from multibox.data.images import read_image
from multibox.data.pixels import render
from multibox.errors import ConfigError
from multibox.export.runtimes import ExportedDetector, is_exported, open_exported
from multibox.precision import autocast, cast_convolutions, compute_dtype
from multibox.processes.distributed import pick_device
from multibox.ssd.detect import DetectionSettings, non_maximum_suppression
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


class DetectionList(list[Detection]):
    """The objects in one image, by descending score: a list of `Detection`.

    Args:
        detections: The objects.
        classes: Class names in the order of the network's labels.
    """

    def __init__(self, detections: Iterable[Detection], classes: Sequence[str]) -> None:
        super().__init__(detections)
        self.classes = tuple(classes)

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with the columns name, score, x0, y0, x1 and y1.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise _not_installed("pandas") from None
        columns = ("name", "score", "x0", "y0", "x1", "y1")
        return pandas.DataFrame([(d.name, d.score, *d.box_px) for d in self], columns=columns)

    def to_supervision(self) -> Any:
        """Returns `supervision.Detections`, which trackers and annotators take.

        `class_id` is the network's label, and `data["class_name"]` the name of the class.

        Raises:
            ConfigError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise _not_installed("supervision") from None
        labels = {name: label for label, name in enumerate(self.classes)}
        return supervision.Detections(
            xyxy=np.array([d.box_px for d in self], np.float32).reshape(-1, 4),
            confidence=np.array([d.score for d in self], np.float32),
            class_id=np.array([labels[d.name] for d in self], np.int64),
            data={"class_name": np.array([d.name for d in self], dtype=np.str_)},
        )


_Image: TypeAlias = Path | str | np.ndarray | PillowImage
_Several: TypeAlias = list[Any] | tuple[Any, ...]


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

    @property
    def uses_cpu_threads(self) -> bool:
        """Whether PyTorch computes the network on the CPU, so that several threads can call it."""
        network = self._network
        return isinstance(network, SSD) and network.default_boxes.device.type == "cpu"

    @overload
    def __call__(
        self, images: _Image, *, score_threshold: float | None = None, batch_size: int = 8
    ) -> DetectionList: ...

    @overload
    def __call__(
        self, images: _Several, *, score_threshold: float | None = None, batch_size: int = 8
    ) -> list[DetectionList]: ...

    @overload
    def __call__(
        self, images: Iterator[_Image], *, score_threshold: float | None = None, batch_size: int = 8
    ) -> Iterator[DetectionList]: ...

    def __call__(
        self,
        images: _Image | _Several | Iterator[_Image],
        *,
        score_threshold: float | None = None,
        batch_size: int = 8,
    ) -> DetectionList | list[DetectionList] | Iterator[DetectionList]:
        """Returns the objects in an image, by descending score, or those of several images.

        Args:
            images: An image file, a Pillow image, or pixels as a uint8 array of shape (H, W),
                (H, W, 1), (H, W, 3) or (H, W, 4): grey, RGB or RGBA. Transparency is ignored, as
                in files. A list or tuple of such images gives a list of results. An iterator gives
                an iterator of results, and is read in batches.
            score_threshold: Detections with a lower score are left out, 0..1. None: the attribute
                `score_threshold`.
            batch_size: Number of images that the network computes at once.

        Raises:
            DataError: A file does not exist, is damaged or is not an image, or an object is
                not such an image.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        if isinstance(images, list | tuple):
            return list(self._in_batches(iter(images), threshold, batch_size))
        if isinstance(images, Iterator):
            return self._in_batches(images, threshold, batch_size)
        return next(self._in_batches(iter((images,)), threshold, 1))

    def _in_batches(
        self, images: Iterator[Any], threshold: float, batch_size: int
    ) -> Iterator[DetectionList]:
        while batch := [
            read_image(Path(image)) if isinstance(image, Path | str) else rgb_pixels(image)
            for image in islice(images, batch_size)
        ]:
            found = self.detect_batch(batch, score_threshold=threshold)
            yield from map(self.name, found, batch)

    def name(self, detections: Detections, pixels: UInt8[np.ndarray, "H W 3"]) -> DetectionList:
        """Returns detections with class names and with boxes in the pixels of their image."""
        height, width = pixels.shape[:2]
        return self.name_in(detections, width, height)

    def name_in(self, detections: Detections, width: int, height: int) -> DetectionList:
        """Returns detections with class names and with boxes in pixels.

        Args:
            detections: The detections of one image.
            width: Width of the image in pixels.
            height: Height of the image in pixels.
        """
        boxes_px = detections.boxes.clamp(0, 1) * torch.tensor([width, height, width, height])
        columns = boxes_px.tolist(), detections.scores.tolist(), detections.labels.tolist()
        named = (
            Detection(self.classes[label], score, (x0, y0, x1, y1))
            for (x0, y0, x1, y1), score, label in zip(*columns, strict=True)
        )
        return DetectionList(named, self.classes)

    def detect(
        self, pixels: UInt8[np.ndarray, "H W 3"], *, score_threshold: float = 0.0
    ) -> Detections:
        """Returns the detections in an image, on the CPU and with boxes in the unit frame.

        Args:
            pixels: RGB pixels, uint8 (H, W, 3).
            score_threshold: Detections with a lower score are left out, which also saves time.
        """
        return self.detect_batch([pixels], score_threshold=score_threshold)[0]

    def detect_flipped(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, score_threshold: float = 0.0
    ) -> list[Detections]:
        """Returns the detections in images and in their mirror images, joined by suppression.

        Args:
            images: RGB pixels, as for `detect_batch`.
            score_threshold: Detections with a lower score are left out.
        """
        mirrored = [np.ascontiguousarray(pixels[:, ::-1]) for pixels in images]
        found = self.detect_batch(images, score_threshold=score_threshold)
        flipped = self.detect_batch(mirrored, score_threshold=score_threshold)
        return list(map(_join_flipped, found, flipped))

    def prepare(self, pixels: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image in the size of the network's input.

        `detect_batch` gives the same result for both. Other threads can resize with this method.
        """
        size = self._network.image_size_px
        if pixels.shape[:2] == size:
            return pixels
        return render(pixels, whole_image(pixels.shape[1], pixels.shape[0]), None, size)

    @torch.inference_mode()
    def detect_batch(
        self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, score_threshold: float = 0.0
    ) -> list[Detections]:
        """Returns the detections in each image, on the CPU and with boxes in the unit frame.

        Args:
            images: RGB pixels, uint8 (H, W, 3). Their sizes may differ.
            score_threshold: Detections with a lower score are left out, which also saves time.
        """
        network = self._network
        if isinstance(network, ExportedDetector):
            resized = np.stack([self.prepare(pixels) for pixels in images])
            return network.detect(resized, score_threshold=score_threshold)
        device = network.default_boxes.device
        inputs = torch.from_numpy(np.stack([self.prepare(pixels) for pixels in images]))
        with autocast(self._precision, device):
            output = network(inputs.permute(0, 3, 1, 2).to(device))
        found = network.detect(output, score_threshold=score_threshold)
        return [Detections(*(field.cpu() for field in each)) for each in found]


def require_cpu(path: Path, *, which: str, device: str) -> None:
    """Refuses options that an exported file does not have.

    Raises:
        ConfigError: `which` is not `last`, or `device` is `cuda`.
    """
    if which != "last":
        raise ConfigError("is not a run", file=path, remedy=f"Leave out --which {which}")
    if device == "cuda":
        raise ConfigError("is an exported file, which runs on the CPU", file=path)


def _join_flipped(found: Detections, flipped: Detections) -> Detections:
    """Returns the detections of an image and of its mirror image, suppressed as in each of them."""
    settings = DetectionSettings()
    x0, y0, x1, y1 = flipped.boxes.unbind(dim=1)
    boxes = torch.cat([found.boxes, torch.stack([1 - x1, y0, 1 - x0, y1], dim=1)])
    scores = torch.cat([found.scores, flipped.scores])
    labels = torch.cat([found.labels, flipped.labels])
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    kept = order[non_maximum_suppression(boxes[order], labels[order], settings.iou_threshold)]
    best = kept[scores[kept].argsort(descending=True, stable=True)][: settings.per_image]
    return Detections(boxes[best], scores[best], labels[best])


def _not_installed(package: str) -> ConfigError:
    return ConfigError(
        f"{package} is not installed", remedy=f"Install it with pip install {package}"
    )


def _precision_of(file: Path) -> Precision:
    """Returns the `--precision` of the run that a checkpoint's weights belong to, or `auto`."""
    checkpoints = file.absolute().parent.parent
    if checkpoints.name == "checkpoints" and (checkpoints.parent / "config.json").exists():
        return read_config(checkpoints.parent).run.precision
    return "auto"
