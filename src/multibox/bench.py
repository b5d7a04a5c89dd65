"""The verb `bench`: what each part costs on this machine, beside what bounds it from below.

All figures are medians of interleaved runs in one process, after one run that is not counted.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch

from multibox.build import new_network
from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.drawn import draw_dataset
from multibox.data.images import read_image
from multibox.data.layouts import read_dataset
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.data.resident import load, resident_batches
from multibox.errors import DataError
from multibox.evaluation.results import read_results, write_results
from multibox.evaluation.voc import ClassDetections, ClassObjects, evaluate_voc
from multibox.learner import Learner
from multibox.model import arithmetic, in_precision
from multibox.predict import Detector
from multibox.rng import stream
from multibox.runtime.distributed import Processes, pick_device
from multibox.ssd.loss import multibox_loss
from multibox.ssd.matching import match
from multibox.structures import Batch, Output, Targets

Part = Literal["data", "step", "detect", "evaluate", "predict"]

RUNS = 5
_OBJECTS = 20
_CLASSES = 20
_SAMPLES = 192
# VOC2007's test split, with the detections that SSD300 makes of it.
_TEST_IMAGES, _DETECTIONS = 4_952, 985_000


class Figure(NamedTuple):
    """What some work took.

    Attributes:
        name: The work.
        seconds: The median.
        images: How many it was done for.
        ratio: Its rate over that of the figure which it is to be compared with.
        beside: The name of that figure.
    """

    name: str
    seconds: float
    images: int
    ratio: float | None = None
    beside: str | None = None

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Work(NamedTuple):
    """Something to be timed.

    Attributes:
        name: For people.
        run: Does it.
        images: How many it is done for.
        beside: The name of the work to compare it with.
    """

    name: str
    run: Callable[[], object]
    images: int
    beside: str | None = None


def bench(part: Part, config: Config, *, data: Path | None, device: str) -> list[Figure]:
    """Returns the figures of a part.

    Args:
        part: Which one.
        config: Of the recipe: network, augmentation, batch size, precision.
        data: Photographs to prepare; by default drawn ones. For `data` and `predict` alone.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        MultiboxError: The data cannot be used, or there is no such device.
    """
    place = pick_device(device)
    if part == "evaluate":
        return _evaluate()
    if part == "detect":
        return _timed(_detect(config, place), place)
    if part == "step":
        return _timed(_step(config, place), place)
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        photographs = _photographs(config, data, Path(folder))
        if not len(photographs):
            raise DataError("has no image to prepare", file=data)
        works = (
            _data(config, photographs, place)
            if part == "data"
            else _predict(config, photographs, place)
        )
        return _timed(works, place)


def _timed(works: Sequence[Work], device: torch.device) -> list[Figure]:
    """Runs all works in turn, again and again."""
    times: dict[str, list[float]] = {work.name: [] for work in works}
    for run in range(RUNS + 1):
        for work in works:
            start = time.perf_counter()
            work.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if run:
                times[work.name].append(time.perf_counter() - start)
    rates = {work.name: work.images / statistics.median(times[work.name]) for work in works}
    return [
        Figure(
            work.name,
            statistics.median(times[work.name]),
            work.images,
            rates[work.name] / rates[work.beside] if work.beside else None,
            work.beside,
        )
        for work in works
    ]


def _photographs(config: Config, data: Path | None, folder: Path) -> Dataset:
    if data is not None:
        return read_dataset(data, config.data.train_split, on_bad=config.data.on_bad)
    draw_dataset(folder / "drawn", train_images=48, test_images=1)
    return read_dataset(folder / "drawn", "trainval")


def _data(config: Config, photographs: Dataset, device: torch.device) -> list[Work]:
    """JPEG to augmented input: on one core, beside decoding alone; in workers; on the device."""
    cv2.setNumThreads(1)
    size = new_network(config, _CLASSES).image_size_px
    examples = TrainingExamples(photographs.annotations, size, config.augmentation, 0)
    paths = [annotation.image_path for annotation in photographs.annotations]
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]

    def decode() -> None:
        for number in range(_SAMPLES):
            cv2.imdecode(encoded[number % len(encoded)], cv2.IMREAD_COLOR)

    def prepare() -> None:
        for number in range(_SAMPLES):
            examples[number]

    def numbers(samples: int) -> Iterator[list[int]]:
        return training_numbers(range(samples // 16), batch_size=16, rank=0, world_size=1)

    def in_workers(workers: int) -> Callable[[], None]:
        def work() -> None:
            for _ in batches(examples, numbers(_SAMPLES), workers=workers, pin_memory=False):
                pass

        return work

    resident = load(examples, device, batch_size=16, workers=2, progress=lambda *_: None)

    # A CPU is slow at this, and has another pipeline.
    rendered = _SAMPLES if device.type == "cuda" else 16

    def on_device() -> None:
        for _ in resident_batches(resident, numbers(rendered), workers=2):
            pass

    return [
        Work("decode alone", decode, _SAMPLES),
        Work("one core", prepare, _SAMPLES, "decode alone"),
        Work("one worker", in_workers(1), _SAMPLES),
        Work("two workers", in_workers(2), _SAMPLES, "one worker"),
        Work("two workers and the device", on_device, rendered, "two workers"),
    ]


def random_batch(size: int, image_size_px: tuple[int, int]) -> Batch:
    """Returns noise with 20 objects an image."""
    rng = stream(0, "benchmark")
    low = rng.uniform(0, 0.7, (size, _OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.03, 0.3, (size, _OBJECTS, 2))], axis=2)
    images = torch.from_numpy(rng.integers(0, 256, (size, *image_size_px, 3), dtype="uint8"))
    return Batch(
        images.permute(0, 3, 1, 2),
        Targets(
            torch.from_numpy(boxes).float(),
            torch.from_numpy(rng.integers(0, _CLASSES, (size, _OBJECTS))),
            torch.zeros(size, _OBJECTS, dtype=torch.bool),
            torch.ones(size, _OBJECTS, dtype=torch.bool),
        ),
        torch.arange(size),
        torch.arange(size),
    )


def _step(config: Config, device: torch.device) -> list[Work]:
    """A training step beside the network's bare forward and backward pass, and the loss alone."""
    learner = Learner(new_network(config, _CLASSES), config, Processes(0, 1, device))
    network, size = learner.network, config.run.batch_size
    batch = random_batch(size, network.image_size_px)
    images, targets = batch.images.to(device), batch.targets.to(device)
    boxes = network.default_boxes.shape[0]
    rng = stream(0, "outputs")
    offsets, logits = (
        torch.from_numpy(rng.standard_normal((size, boxes, width), np.float32)).to(device)
        for width in (4, _CLASSES + 1)
    )

    def bare() -> None:
        with in_precision(learner.precision, device):
            output = network(images)
        torch.autograd.backward(output.offsets.float().sum() + output.logits.float().sum())
        network.zero_grad()

    def loss() -> None:
        output = Output(offsets.requires_grad_(), logits.requires_grad_())
        matches = match(network.default_boxes, targets, network.variances)
        losses = multibox_loss(output, matches, (matches.classes > 0).sum().float())
        torch.autograd.backward(losses.confidence + losses.localization)
        offsets.grad = logits.grad = None

    return [
        Work("network alone", bare, size),
        Work("step", lambda: learner.step(batch, lr=1e-9, number=0), size, "network alone"),
        Work("matching and loss alone", loss, size),
    ]


def _detect(config: Config, device: torch.device) -> list[Work]:
    """Decoding and suppression of 4 images: some 160 candidates an image, and nearly all boxes."""
    network = new_network(config, _CLASSES).to(device)
    boxes, images = network.default_boxes.shape[0], 4
    rng = stream(0, "outputs")
    offsets = rng.standard_normal((images, boxes, 4), np.float32)
    logits = rng.standard_normal((images, boxes, _CLASSES + 1), np.float32)
    # A background that leaves a candidate of one class in 8,732 * 20 / 160 outputs.
    sparse, dense = logits.copy(), logits.copy()
    sparse[..., 0] += 10.3
    dense[..., 0] -= 4
    given = torch.from_numpy(offsets).to(device)
    outputs = [Output(given, torch.from_numpy(x).to(device)) for x in (sparse, dense)]
    return [
        Work(name, lambda output=output: network.detect(output), images)  # type: ignore[misc]
        for name, output in zip(("few candidates", "all candidates"), outputs, strict=True)
    ]


def _evaluate() -> list[Figure]:
    """VOC2007's test split: 4,952 images and 985,000 detections."""
    rng = stream(0, "evaluation")
    names = [f"class{number}" for number in range(_CLASSES)]
    ids = [f"{number:06d}" for number in range(_TEST_IMAGES)]

    def boxes(count: int) -> np.ndarray:
        low = rng.integers(1, 300, (count, 2))
        return np.concatenate([low, low + rng.integers(10, 150, (count, 2))], 1).astype(np.float64)

    detections, objects = {}, {}
    for name in names:
        count, known = _DETECTIONS // _CLASSES, 12_032 // _CLASSES
        detections[name] = ClassDetections(
            rng.integers(0, _TEST_IMAGES, count), rng.random(count).round(6), boxes(count)
        )
        objects[name] = ClassObjects(
            rng.integers(0, _TEST_IMAGES, known), boxes(known), rng.random(known) < 0.1
        )
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        write_results(Path(folder), detections, ids, split="test")

        def whole() -> None:
            read = read_results(Path(folder), split="test", classes=names, image_ids=ids)
            evaluate_voc(read.detections, objects, "voc07")

        works = [
            Work("files to average precision", whole, _TEST_IMAGES),
            Work(
                "average precision alone",
                lambda: evaluate_voc(detections, objects, "voc07"),
                _TEST_IMAGES,
            ),
        ]
        return _timed(works, torch.device("cpu"))


def _predict(config: Config, photographs: Dataset, device: torch.device) -> list[Work]:
    """One photograph at a time, from its pixels to detections, beside the bare network."""
    network = new_network(config, _CLASSES).to(device).eval()
    precision = arithmetic(config.run.precision, device)
    detector = Detector(network, [str(number) for number in range(_CLASSES)], precision)
    pixels = read_image(photographs.annotations[0].image_path)
    image = random_batch(1, network.image_size_px).images.to(device)

    def bare() -> None:
        with torch.inference_mode(), in_precision(precision, device):
            network(image)

    return [
        Work("network alone", bare, 1),
        Work("predict", lambda: detector.detect(pixels), 1, "network alone"),
    ]
