"""The content of a run folder as typed records. What a run has not written yet is empty."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

# The average precisions of an evaluation, as its file calls them, and their names on the page.
METRICS = {"voc07": "11-point", "voc12": "area under curve", "coco": "COCO"}


class Loss(NamedTuple):
    """A line of the journal: the mean loss since the line before.

    Attributes:
        step: The last of these steps.
        multibox: Confidence + localization.
        l2: 0.0005 times the sum of the squared convolution kernels, whatever the weight decay.
        confidence: The first part of `multibox`; NaN if it was not recorded.
        localization: The second part; NaN if it was not recorded.
        lr: The learning rate of this step; NaN for a validation.
    """

    step: int
    multibox: float
    l2: float
    confidence: float = math.nan
    localization: float = math.nan
    lr: float = math.nan

    @property
    def total(self) -> float:
        """The multibox loss and the L2 term together, as Keras reports them."""
        return self.multibox + self.l2


class Drop(NamedTuple):
    """A drop of the learning rate to `lr` at `step`; `lr` is NaN if it was not recorded."""

    step: int
    lr: float


class Rollback(NamedTuple):
    """A non-finite loss or gradient at `step`, after which the run returned to step `to`.

    `reason` is what was noted of it: a sentence or the images of that step.
    """

    step: int
    to: int
    lr_scale: float
    reason: str


class Timing(NamedTuple):
    """Wall-clock time of a training interval, a validation, an evaluation or a checkpoint.

    Attributes:
        kind: Which of these: `train` for training.
        seconds: How long it took.
        images_per_second: Of training; NaN for the others.
        data_wait: Share of the seconds, 0..1, in which the network waited for images.
    """

    kind: str
    seconds: float
    images_per_second: float
    data_wait: float


class Curve(NamedTuple):
    """Precision over recall of one class, by descending score."""

    recall: list[float]
    precision: list[float]


class Split(NamedTuple):
    """A split of the data.

    Attributes:
        name: The name.
        images: Number of images.
        objects: Number of objects of each class.
        skipped: Number of faults that were left out.
        notes: How it was read, in sentences without a full stop.
    """

    name: str
    images: int
    objects: dict[str, int]
    skipped: int
    notes: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A test image: its id and the picture of its detections and ground truth."""

    id: str
    picture: Path


class About(NamedTuple):
    """The description of a run.

    Attributes:
        validation: The split of the evaluations during training.
        test: The split of the result; the same one if the run has no validation split.
        planned_steps: The configured number of steps.
    """

    recipe: str
    version: str
    network: str
    classes: list[str]
    train: Split
    validation: Split
    test: Split
    parameters: int
    default_boxes: int
    planned_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The average precision at one milestone; NaN if there was nothing to measure.

    Attributes:
        metric: The declared one of METRICS.
        mean: The mean over the classes by metric.
        classes: The AP per class by metric.
        coco: COCO's AP by IoU and by size.
    """

    step: int
    split: str
    images: int
    objects: int
    metric: str
    mean: dict[str, float]
    classes: dict[str, dict[str, float]]
    coco: dict[str, float]
    curves: dict[str, Curve]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The whole run folder. Lists are sorted by step.

    Attributes:
        facts: The content of run.json.
        test: The evaluation on the test split, if the run has a validation split and is finished.
    """

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    about: About
    environment: dict[str, Any]
    training: list[Loss]
    validation: list[Loss]
    drops: list[Drop]
    rollbacks: list[Rollback]
    timings: list[Timing]
    evaluations: list[Evaluation]
    test: Evaluation | None
    samples: list[Sample]
    last_step: int
