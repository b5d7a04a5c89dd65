"""The verb `export`: writes a detector for another runtime, and checks the file on images."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import numpy as np
import torch
from jaxtyping import UInt8

from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.evaluate import open_split
from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import read_dataset
from multibox.data.geometry import whole_image
from multibox.data.images import read_image
from multibox.data.pixels import render
from multibox.detector import DEFAULT_SCORE_THRESHOLD, Detector
from multibox.errors import ConfigError, StorageError, WeightsError, one_line
from multibox.export.agreement import Difference, compare, largest
from multibox.export.files import SUFFIXES, Format, Precision, build, require, write
from multibox.export.runtimes import ExportedDetector, open_exported
from multibox.inference import detections_by_class, objects_by_class, score
from multibox.storage.run_folder import read_config, read_run
from multibox.structures import Detections
from multibox.weights.files import Weights, checked_header, find_weights, load_network, read_weights

RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "openvino": "openvino"}

_DRAWN_IMAGES = 8
# Images that are also compared after they were resized before.
_RESIZED = 8
# Largest differences of a file in float32. Boxes of a large image differ by more pixels.
_MAX_BOX_PX, _SIDE_PX = 0.01, 1000
_MAX_SCORE = 1e-4
# IoU of counterparts.
_SAME_BOX, _SAME_OBJECT = 0.98, 0.5
_MAX_AP_DIFFERENCE = 1e-4
# Of the detections. An IoU within rounding of the threshold suppresses one and not the other.
_MAX_ALONE = 1e-3
_MARGIN = 1e-3


class Agreement(NamedTuple):
    """How an exported file compares with the network.

    Attributes:
        difference: The largest differences over all images.
        side_px: Length of the longest side of an image.
        original: Average precision of the network by the rule of VOC2012. None: it is not known.
        exported: Average precision of the file.
    """

    difference: Difference
    side_px: int
    original: float | None
    exported: float | None


class Images(NamedTuple):
    """The images that a file is compared on.

    Attributes:
        dataset: The images, with annotations.
        source: What they are, for people.
        annotated: Whether the detector was made for them, so that it has an average precision.
    """

    dataset: Dataset
    source: str
    annotated: bool


class Checks(NamedTuple):
    """The images that an exported file is made and compared with.

    Attributes:
        data: Folder of the dataset. None: the run's.
        split: The split to compare on. None: the run's test split, or its validation split.
        on_bad: What to do with invalid objects and images. None: the run's setting, or `fail`; the
            calibration then leaves them out.
        calibration_split: The split to calibrate int8 on. None: the run's training split.
        images: Maximum number of images to compare on, evenly spaced.
        calibration_images: Maximum number of images to calibrate on, evenly spaced.
        max_loss: Largest loss of average precision for `fp16` and `int8`.
    """

    data: Path | None = None
    split: str | None = None
    on_bad: Literal["fail", "skip"] | None = None
    calibration_split: str | None = None
    images: int = 200
    calibration_images: int = 100
    max_loss: float = 0.01


def export(
    source: Path,
    out: Path,
    *,
    target: Format,
    precision: Precision = "fp32",
    which: str = "last",
    licence: str | None = None,
    checks: Checks = Checks(),  # noqa: B008  # immutable
) -> list[str]:
    """Writes a detector in another format, and returns the lines to print.

    Beside the file, it writes the figures (`<out>.json`) and a model card (`<out>.md`).

    Args:
        source: Folder of a run or of a checkpoint, or a weights file.
        out: The new file.
        target: Its format.
        precision: Number format of the layers. `int8` is calibrated on training images.
        which: For a run: `last`, `best` or a step.
        licence: Licence of the weights; by default that of the source.
        checks: The images for the calibration and the comparison.

    Raises:
        ConfigError: A package is not installed, the suffix of `out` is wrong, or a number is out of
            range.
        WeightsError: The source cannot be used, or the new file does not agree with it.
        StorageError: A new file exists, or cannot be written.
        DataError: The data cannot be used.
    """
    require(target)
    _require_new(out, target)
    if min(checks.images, checks.calibration_images) < 1:
        raise ConfigError("there are no images", remedy="Use numbers of images of at least 1")
    weights = read_weights(find_weights(source, which))
    if licence is not None:
        weights = weights._replace(licence=licence)
    network = load_network(weights, torch.device("cpu"))
    detector = Detector(network, weights.classes, torch.float32)
    with tempfile.TemporaryDirectory(prefix="multibox-") as drawn:
        test = _test_images(source, weights, checks, Path(drawn))
        calibration: Iterator[UInt8[np.ndarray, "H W 3"]] = iter(())
        if precision == "int8":
            name = checks.calibration_split or _training_split(source)
            bad = checks.on_bad or "skip"
            train, _ = open_split(source, weights.classes, data=checks.data, split=name, on_bad=bad)
            some = _some(train, checks.calibration_images)
            calibration = _inputs(some, network.image_size_px)
        model = build(network, target, precision, calibration)
        header = _header(weights, network.traits.detection._asdict(), precision)
        with _staging(out) as folder:
            trial, fresh = folder / f"trial{out.suffix}", folder / "final" / out.name
            write(model, trial, target, precision, header)
            same = _SAME_BOX if precision == "fp32" else _SAME_OBJECT
            agreement = _compare(detector, open_exported(trial), test, same)
            _require_agreement(agreement, out, precision, checks.max_loss)
            record = _record(weights, network.image_size_px, target, precision, agreement, test)
            record["training"] = _training_data(source)
            stored = {"agreement": json.dumps(record["agreement"]), "runtime": record["runtime"]}
            write(model, fresh, target, precision, header | stored)
            record["bytes"] = sum(file.stat().st_size for file in fresh.parent.iterdir())
            text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
            figures, page = _beside(fresh)
            figures.write_text(text + "\n", encoding="utf-8")
            card = _card(record, out.name, weights.score_threshold)
            page.write_text(card, encoding="utf-8")
    return [*(f"note: {note}" for note in weights.notes), *_lines(record)]


def _names(out: Path, target: Format) -> list[Path]:
    """Returns the new files."""
    numbers = [out.with_suffix(".bin")] if target == "openvino" else []
    return [out, *numbers, *_beside(out)]


def _beside(out: Path) -> tuple[Path, Path]:
    """Returns the paths of the figures and of the model card."""
    return out.with_name(f"{out.name}.json"), out.with_name(f"{out.name}.md")


def _require_new(out: Path, target: Format) -> None:
    if out.suffix != SUFFIXES[target]:
        raise ConfigError(
            f"{target} files end in {SUFFIXES[target]}", file=out, remedy="Choose another --out"
        )
    for path in _names(out, target):
        if path.exists():
            raise StorageError(
                "already exists, so it is not overwritten",
                file=path,
                remedy="Choose another name, or remove the file",
            )


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yields a temporary folder. At the end, the files in its folder `final` get their place.

    If an error is raised, no file remains.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as name:
            final = Path(name) / "final"
            final.mkdir()
            yield Path(name)
            for file in sorted(final.iterdir()):
                file.rename(out.parent / file.name)
    except OSError as error:
        raise StorageError(f"cannot be written ({error.strerror})", file=out) from None


def _training_split(source: Path) -> str:
    if not (source / "config.json").exists():
        raise ConfigError(
            "is not a run, so the training images are unknown",
            file=source,
            remedy="Use --data and --calibration-split",
        )
    data = read_config(source).data
    return "train" if data.split else data.train_split


def _training_data(source: Path) -> dict[str, Any] | None:
    """Returns what `run.json` records of the training data. None: the source is not a run."""
    if not (source / "config.json").exists():
        return None
    _, facts = read_run(source)
    root, splits = facts.get("data_root"), facts.get("data")
    return {
        "data": Path(root).name if isinstance(root, str) else None,
        "splits": splits if isinstance(splits, dict) else {},
    }


def _test_images(source: Path, weights: Weights, checks: Checks, drawn: Path) -> Images:
    if checks.data is None and not (source / "config.json").exists():
        draw_dataset(drawn / "data", train_images=1, test_images=_DRAWN_IMAGES)
        dataset = read_dataset(drawn / "data", "test")
        return Images(dataset, "drawn pictures; use --data and --split for others", annotated=False)
    dataset, _ = open_split(
        source, weights.classes, data=checks.data, split=checks.split, on_bad=checks.on_bad
    )
    some = _some(dataset, checks.images)
    of = "" if len(some) == len(dataset) else f" of {len(dataset)}"
    return Images(some, f"{len(some)}{of} images of {dataset.name}", annotated=True)


def _some(dataset: Dataset, count: int) -> Dataset:
    """Returns at most `count` images of a split, evenly spaced."""
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return replace(dataset, annotations=tuple(dataset.annotations[n] for n in chosen))


def _inputs(dataset: Dataset, size: tuple[int, int]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    for annotation in dataset.annotations:
        yield _input(read_image(annotation.image_path), size)


def _input(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    return render(pixels, whole_image(pixels.shape[1], pixels.shape[0]), None, size)


def _compare(
    detector: Detector, exported: ExportedDetector, images: Images, min_iou: float
) -> Agreement:
    """Runs both on images.

    The exported detector resizes all of them itself. A few are also resized before, as `predict`
    does it.
    """
    ours, theirs, differences, longest = [], [], [], 0
    for number, annotation in enumerate(images.dataset.annotations):
        pixels = read_image(annotation.image_path)
        size = (pixels.shape[0], pixels.shape[1])
        longest = max(longest, *size)
        ours.append(detector.detect(pixels))
        theirs.append(exported.detect(pixels[None])[0])
        found = [theirs[-1]]
        if number < _RESIZED:
            found += exported.detect(_input(pixels, exported.image_size_px)[None])
        differences += [
            compare(ours[-1], each, size, margin=_MARGIN, min_iou=min_iou) for each in found
        ]
    means: list[float | None] = [None, None]
    if images.annotated:
        means = [_mean(images.dataset, each) for each in (ours, theirs)]
    return Agreement(largest(differences), longest, *means)


def _mean(dataset: Dataset, found: list[Detections]) -> float | None:
    metrics = score(detections_by_class(dataset, found), objects_by_class(dataset))
    mean: float | None = metrics["voc12"]["mAP"]
    return mean


def _require_agreement(
    agreement: Agreement, out: Path, precision: Precision, max_loss: float
) -> None:
    """Checks that an exported file computes the same as the network.

    float32 agrees in each box and score. Other formats may lose some average precision.

    Raises:
        WeightsError: It does not.
    """
    found, ours, theirs = agreement.difference, agreement.original, agreement.exported
    loss = 0.0 if ours is None or theirs is None else ours - theirs
    if precision != "fp32":
        if loss > max_loss:
            raise WeightsError(
                f"{precision} loses {loss:.4f} of the average precision {ours:.4f}, which is more "
                f"than {max_loss:g}",
                file=out,
                remedy="Use fp32 or fp16, more --calibration-images, or a larger --max-loss",
            )
        return
    box_px = _MAX_BOX_PX * max(1.0, agreement.side_px / _SIDE_PX)
    sound = (
        found.box_px <= box_px
        and found.score <= _MAX_SCORE
        and found.alone <= _MAX_ALONE * found.compared
        and abs(loss) <= _MAX_AP_DIFFERENCE
    )
    if not sound:
        raise WeightsError(
            f"differs from the network by {found.box_px:.2g} pixels in a box, {found.score:.2g} in "
            f"a score and {loss:.2g} in the average precision, and {found.alone} of "
            f"{found.compared} detections have no counterpart",
            file=out,
            remedy="Install the versions of torch, onnx and the runtime in constraints.txt",
        )


def _header(weights: Weights, settings: dict[str, Any], precision: Precision) -> dict[str, str]:
    return {
        **checked_header(weights),
        "suppression": json.dumps(settings),
        "precision": precision,
        "multibox": version("multibox"),
    }


def _record(
    weights: Weights,
    size: tuple[int, int],
    target: Format,
    precision: Precision,
    agreement: Agreement,
    images: Images,
) -> dict[str, Any]:
    runtime = RUNTIMES[target]
    found = agreement.difference
    return {
        "format": target,
        "precision": precision,
        "network": weights.network,
        "classes": list(weights.classes),
        "licence": weights.licence,
        "input": list(size),
        "score_threshold": weights.score_threshold,
        "runtime": f"{runtime} {version(runtime)}",
        "versions": {name: version(name) for name in ("multibox", "torch", "onnx")},
        "agreement": {
            "images": len(images.dataset),
            "source": images.source,
            **found._asdict(),
            "AP": {"original": agreement.original, "exported": agreement.exported},
        },
    }


def _card(record: dict[str, Any], name: str, threshold: float | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("multibox"),
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: one_line(value) if isinstance(value, str) else value,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    chosen = DEFAULT_SCORE_THRESHOLD if threshold is None else threshold
    page = environment.get_template("model_card.md.j2")
    return page.render(record | {"file": name, "threshold": f"{chosen:.3g}"})


def _lines(record: dict[str, Any]) -> list[str]:
    found = record["agreement"]
    means = found["AP"]
    lines = [
        f"format: {record['format']}, {record['precision']}, {record['bytes']:,} bytes",
        f"checked: {record['runtime']} on {found['source']}",
        f"largest difference: {found['box_px']:.2g} pixels, {found['score']:.2g} in a score",
        f"detections: {found['compared']} compared, {found['alone']} without a counterpart",
    ]
    if means["original"] is not None:
        lines.append(f"AP (voc12): {means['exported']:.4f}, and {means['original']:.4f} in PyTorch")
    return lines
