"""The verb `bench`: what each part costs on this machine, beside what bounds it from below."""

import importlib.util
import math
import tempfile
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from multibox.build import matcher, new_network
from multibox.commands.bench.data import find_photographs, prepare_images
from multibox.commands.bench.timing import Figure, Work, timed
from multibox.commands.train import check_shares
from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.evaluation.coco import evaluate_coco
from multibox.evaluation.results import read_results, write_results
from multibox.evaluation.voc import ClassDetections, ClassObjects, evaluate_voc
from multibox.inference import score
from multibox.precision import arithmetic, in_precision, stored_in
from multibox.processes.distributed import Processes, pick_device
from multibox.rng import stream
from multibox.ssd.loss import multibox_loss
from multibox.ssd.network import SSD
from multibox.structures import Batch, Output, Targets
from multibox.training.train_step import Learner
from multibox.weights.onnx import PACKAGES, write_onnx

Part = Literal["data", "step", "detect", "evaluate", "predict"]

_OBJECTS = 20
_CLASSES = 20
_CANDIDATES = 160
# For works of milliseconds.
_TIMES = 5
# VOC2007's test split, with the detections that SSD300 makes of it.
_TEST_IMAGES, _DETECTIONS = 4_952, 985_000


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
        return timed(_detect(config, place), place, times=_TIMES)
    if part == "step":
        return timed(_step(config, place), place)
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        photographs = find_photographs(config, data, Path(folder))
        if part == "predict":
            return timed(_predict(config, photographs, place), place, times=_TIMES)
        network = new_network(config, _CLASSES)
        return timed(prepare_images(config, photographs, network, Path(folder), place), place)


def random_batch(size: int, network: SSD) -> Batch:
    """Returns noise with 20 objects an image, matched to a network's default boxes."""
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
    """A training step beside the network's bare forward and backward pass, and parts of the rest.

    Matching is not in the step: it is done where batches are made.
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
        with in_precision(learner.precision, device):
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
            score(read.detections, objects)

        works = [
            Work("files to all metrics", whole, _TEST_IMAGES),
            Work("VOC's alone", lambda: evaluate_voc(detections, objects, "voc07"), _TEST_IMAGES),
            Work("COCO's alone", lambda: evaluate_coco(detections, objects), _TEST_IMAGES),
        ]
        return timed(works, torch.device("cpu"))


def _predict(config: Config, photographs: Dataset, device: torch.device) -> list[Work]:
    """One photograph at a time, from its pixels to detections, beside the bare network."""
    precision = arithmetic(config.run.precision, device)
    network = stored_in(precision, new_network(config, _CLASSES).to(device).eval())
    pixels = read_image(photographs.annotations[0].image_path)
    image = random_batch(1, network).images.to(device)

    def bare() -> Output:
        with torch.inference_mode(), in_precision(precision, device):
            return cast(Output, network(image))

    _leave_candidates(network, bare().logits)
    names = [str(number) for number in range(_CLASSES)]
    detector = Detector(network, names, precision)
    return [
        Work("network alone", bare, 1),
        Work("predict", lambda: detector(pixels), 1, "network alone"),
        Work("all detections", lambda: detector.detect(pixels), 1, "network alone"),
        *_exported(config, image),
    ]


def _exported(config: Config, image: Tensor) -> list[Work]:
    """The network and its decoding in ONNX Runtime, which has no bf16 on a CPU; if installed."""
    if any(importlib.util.find_spec(name) is None for name in (*PACKAGES, "onnxruntime")):
        return []
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        path = Path(folder) / "network.onnx"
        write_onnx(path, new_network(config, _CLASSES).eval(), {})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Else its threads keep the cores busy while the next work is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    pixels = image.permute(0, 2, 3, 1).cpu().numpy()
    name = "ONNX Runtime on the CPU, fp32"
    return [Work(name, lambda: session.run(None, {"images": pixels}), 1, "network alone")]


def _leave_candidates(network: SSD, logits: Tensor) -> None:
    """Makes an untrained network as sure of the background as a trained one.

    Some 160 scores of an image are above 0.01.
    """
    margins = (logits[..., 1:] - logits[..., :1]).float().flatten()
    shift = margins.topk(_CANDIDATES).values[-1].item() - math.log(0.01)
    for head in network.logit_heads:
        cast(Tensor, head.bias).data[:: network.num_classes + 1] += shift
