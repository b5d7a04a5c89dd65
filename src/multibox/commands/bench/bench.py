"""The verb `bench`: the time that each part takes here, beside a lower bound."""

import math
import tempfile
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from multibox.build import matcher, new_network
from multibox.commands.bench.data import prepare_images
from multibox.commands.bench.timing import Figure, Work, timed
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.train import check_shares
from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import open_dataset, read_dataset
from multibox.data.geometry import whole_image
from multibox.data.images import read_image
from multibox.data.pixels import render
from multibox.detector import Detector
from multibox.evaluation.coco import evaluate_coco
from multibox.evaluation.results import read_results, write_results
from multibox.evaluation.voc import ClassDetections, ClassObjects, evaluate_voc
from multibox.export.runtimes import open_exported
from multibox.inference import score
from multibox.precision import autocast, cast_convolutions, compute_dtype
from multibox.processes.distributed import Processes, pick_device
from multibox.rng import stream
from multibox.ssd.loss import multibox_loss
from multibox.ssd.network import SSD
from multibox.structures import Batch, Output, Targets
from multibox.training.train_step import Learner

Part = Literal["data", "step", "detect", "evaluate", "predict"]

_OBJECTS = 20
_CLASSES = 20
_CANDIDATES = 160
# Pictures to prepare, unless others are given.
_DRAWN = 48
# For works of milliseconds.
_TIMES = 5
# VOC2007's test split, with the detections that SSD300 makes of it.
_TEST_IMAGES, _DETECTIONS = 4_952, 985_000


def bench(part: Part, config: Config, *, data: Path | None, device: str) -> list[Figure]:
    """Returns the figures of a part.

    Args:
        part: The part.
        config: The recipe: network, augmentation, batch size and precision.
        data: Dataset of pictures to prepare, by default a drawn one; for `data` and `predict`.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        MultiboxError: The data cannot be used, or there is no such device.
    """
    place = pick_device(device)
    if part == "evaluate":
        return _evaluate()
    if part == "detect":
        return timed(_detect(config, place), place, times=_TIMES)
    if part == "step":
        return timed(_step(config, place), place)
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        split = config.data.train_split
        if data is None:
            data, split = Path(folder) / "drawn", "trainval"
            draw_dataset(data, train_images=_DRAWN, test_images=1)
        dataset = read_dataset(data, split, on_bad=config.data.on_bad)
        if part == "predict":
            return timed(_predict(config, dataset, place), place, times=_TIMES)
        network = new_network(config, _CLASSES)
        return timed(prepare_images(config, dataset, network, Path(folder), place), place)


def bench_exported(path: Path, *, data: Path | None) -> list[Figure]:
    """Returns the figures of `predict` for an exported file.

    Args:
        path: The file.
        data: Dataset with its image, by default a drawn one.

    Raises:
        MultiboxError: The file or the data cannot be used.
    """
    exported, detector = open_exported(path), Detector.open(path)
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        if data is None:
            data = Path(folder) / "drawn"
            draw_dataset(data, train_images=1, test_images=1)
        split = next(iter(open_dataset(data).splits))
        pixels = read_image(read_dataset(data, split, on_bad="skip").annotations[0].image_path)
    whole = whole_image(pixels.shape[1], pixels.shape[0])
    resized = render(pixels, whole, None, exported.image_size_px)[None]
    works = [
        Work("file alone", lambda: exported.detect(resized), 1),
        Work("file alone, resizing", lambda: exported.detect(pixels[None]), 1, "file alone"),
        Work("predict", lambda: detector(pixels), 1, "file alone"),
    ]
    return timed(works, torch.device("cpu"), times=_TIMES)


def random_batch(size: int, network: SSD) -> Batch:
    """Returns noise with 20 objects in each image, matched to a network's default boxes."""
    rng = stream(0, "benchmark")
    low = rng.uniform(0, 0.7, (size, _OBJECTS, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.03, 0.3, (size, _OBJECTS, 2))], axis=2)
    images = torch.from_numpy(
        rng.integers(0, 256, (size, *network.image_size_px, 3), dtype="uint8")
    )
    targets = Targets(
        torch.from_numpy(boxes).float(),
        torch.from_numpy(rng.integers(0, _CLASSES, (size, _OBJECTS))),
        torch.zeros(size, _OBJECTS, dtype=torch.bool),
        torch.ones(size, _OBJECTS, dtype=torch.bool),
    )
    return Batch(
        images.permute(0, 3, 1, 2),
        targets,
        matcher(network, difficult=True)(targets),
        torch.arange(size),
        torch.arange(size),
    )


def _step(config: Config, device: torch.device) -> list[Work]:
    """A training step beside the network's forward and backward pass, and parts of the rest.

    The step does not include matching, which is done where batches are made.
    """
    alone, fresh = Processes(0, 1, device), new_network(config, _CLASSES)
    check_shares(config, fresh, alone)
    learner = Learner(fresh, config, alone)
    network, size = learner.network, config.run.batch_size
    batch = random_batch(size, network)
    images, match = batch.images.to(device), matcher(network, difficult=True)
    boxes = network.default_boxes.shape[0]
    rng = stream(0, "outputs")
    offsets, logits = (
        torch.from_numpy(rng.standard_normal((size, boxes, width), np.float32)).to(device)
        for width in (4, _CLASSES + 1)
    )

    def bare() -> None:
        with autocast(learner.precision, device):
            output = network(images)
        torch.autograd.backward(output.offsets.float().sum() + output.logits.float().sum())
        network.zero_grad()

    def loss() -> None:
        output = Output(offsets.requires_grad_(), logits.requires_grad_())
        matches = match(batch.targets).to(device)
        losses = multibox_loss(output, matches, (matches.classes > 0).sum().float())
        torch.autograd.backward(losses.confidence + losses.localization)
        offsets.grad = logits.grad = None

    return [
        Work("network alone", bare, size),
        Work("step", lambda: learner.step(batch, lr=1e-9, number=0), size, "network alone"),
        Work("matching and loss alone", loss, size),
    ]


def _detect(config: Config, device: torch.device) -> list[Work]:
    """Decoding and suppression of 4 images, with about 160 candidates each and with nearly all."""
    network = new_network(config, _CLASSES).to(device)
    boxes, images = network.default_boxes.shape[0], 4
    rng = stream(0, "outputs")
    offsets = rng.standard_normal((images, boxes, 4), np.float32)
    logits = rng.standard_normal((images, boxes, _CLASSES + 1), np.float32)
    # This background leaves 160 candidates among 8,732 * 20 outputs.
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
            score(read.detections, objects)

        works = [
            Work("files to all metrics", whole, _TEST_IMAGES),
            Work("VOC's alone", lambda: evaluate_voc(detections, objects, "voc07"), _TEST_IMAGES),
            Work("COCO's alone", lambda: evaluate_coco(detections, objects), _TEST_IMAGES),
        ]
        return timed(works, torch.device("cpu"))


def _predict(config: Config, dataset: Dataset, device: torch.device) -> list[Work]:
    """One picture at a time, from its pixels to detections, beside the bare network."""
    precision = compute_dtype(config.run.precision, device)
    network = cast_convolutions(precision, new_network(config, _CLASSES).to(device).eval())
    pixels = read_image(dataset.annotations[0].image_path)
    image = random_batch(1, network).images.to(device)

    def bare() -> Output:
        with torch.inference_mode(), autocast(precision, device):
            return cast(Output, network(image))

    _leave_candidates(network, bare().logits)
    names = [str(number) for number in range(_CLASSES)]
    detector = Detector(network, names, precision)
    return [
        Work("network alone", bare, 1),
        Work("predict", lambda: detector(pixels), 1, "network alone"),
        Work("all detections", lambda: detector.detect(pixels), 1, "network alone"),
    ]


def _leave_candidates(network: SSD, logits: Tensor) -> None:
    """Shifts the background of an untrained network so that 160 scores exceed 0.01, as usual."""
    margins = (logits[..., 1:] - logits[..., :1]).float().flatten()
    shift = margins.topk(_CANDIDATES).values[-1].item() - math.log(0.01)
    for layer in network.class_layers().values():
        cast(Tensor, layer.bias).data[:: network.num_classes + 1] += shift
