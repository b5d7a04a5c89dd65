"""Reads the images of a run again, with the detections that its last evaluation wrote.

The detections are read from the devkit's results files, in which boxes are rounded to whole pixels.
"""

from pathlib import Path
from typing import NamedTuple

from multibox.data.dataset import Dataset
from multibox.data.formats.layouts import DatasetFolder, open_dataset
from multibox.data.splits.draw import pool, take
from multibox.errors import DataError, MultiboxError
from multibox.evaluation.analysis import Analysis, analyse
from multibox.evaluation.results import file_split, read_results
from multibox.evaluation.voc import ClassDetections, ClassObjects
from multibox.inference import objects_by_class, sizes_px
from multibox.reporting.record import Evaluation, Record
from multibox.storage.run_folder import read_split


class EvaluatedSplit(NamedTuple):
    """The split of a result, and what the network detects in it.

    Attributes:
        dataset: The split.
        detections: The detections by class, with boxes in whole pixels.
        objects: The objects by class.
        analysis: The strengths and weaknesses of the detector.
    """

    dataset: Dataset
    detections: dict[str, ClassDetections]
    objects: dict[str, ClassObjects]
    analysis: Analysis


class RunData(NamedTuple):
    """The images of a run, as far as they can be read on this machine.

    Attributes:
        train: The training split, or None.
        evaluated: The split of the result with its detections, or None.
        absent: Sentences on what could not be read, and why.
    """

    train: Dataset | None
    evaluated: EvaluatedSplit | None
    absent: tuple[str, ...]


def read_run_data(record: Record, result: Evaluation | None) -> RunData:
    """Returns the training split of a run, and the split and the detections of its result.

    If the dataset is not on this machine or has changed, the sentences in `absent` say so.

    Args:
        record: The run.
        result: The evaluation that is the result so far.
    """
    try:
        splits = _Splits(record)
        train = splits.read("train")
    except (MultiboxError, ValueError) as error:
        return RunData(None, None, (f"The images of the run cannot be read: {error}.",))
    if result is None:
        return RunData(train, None, ())
    try:
        return RunData(train, _evaluated(record, result, splits), ())
    except (MultiboxError, ValueError) as error:
        return RunData(train, None, (f"The detections cannot be analysed: {error}.",))


def _evaluated(record: Record, result: Evaluation, splits: "_Splits") -> EvaluatedSplit:
    dataset = splits.read("test" if result is record.test else "validation")
    name = "test" if result is record.test else f"step-{result.step:08d}"
    read = read_results(
        record.folder / "evaluations" / name,
        split=file_split(result.split),
        classes=dataset.classes,
        image_ids=[annotation.image_id for annotation in dataset.annotations],
    )
    objects = objects_by_class(dataset)
    return EvaluatedSplit(
        dataset,
        read.detections,
        objects,
        analyse(read.detections, objects, sizes_px(dataset)),
    )


class _Splits:
    """Reads the splits of a run by their role, and checks that they have not changed."""

    def __init__(self, record: Record) -> None:
        facts = record.facts
        root = facts.get("data_root")
        if not isinstance(root, str):
            raise ValueError("run.json does not name the dataset")
        self._record = record
        self._folder = open_dataset(Path(root))
        self._drawn = read_split(record.folder) or {}
        roles = ["train", "test", *(["validation"] if "validation" in facts["data"] else [])]
        digests = dict(zip(roles, str(facts.get("data_digest")).split("-"), strict=True))
        # Without a validation split, the test split has both roles.
        self._digests = {"validation": digests["test"], **digests}
        self._pooled: Dataset | None = None

    def read(self, role: str) -> Dataset:
        """Returns the split with a role: `train`, `validation` or `test`."""
        record = self._record
        about, data = record.about, record.config["data"]
        split = {"train": about.train, "validation": about.validation, "test": about.test}[role]
        if split.name in self._drawn:
            if self._pooled is None:
                self._pooled = _read(self._folder, pool(self._folder.splits), record)
            dataset = take(self._pooled, self._drawn[split.name], split.name)
        else:
            options = {"train": "train_split", "validation": "val_split", "test": "test_split"}
            names = data[options[role]] or data["test_split"]
            dataset = _read(self._folder, names, record)
        if dataset.digest != self._digests[role]:
            raise DataError(
                f"the images or annotations of {split.name} have changed since the run began",
                kind="images-added",
                file=record.facts["data_root"],
            )
        return dataset


def _read(folder: DatasetFolder, splits: str, record: Record) -> Dataset:
    on_bad = record.config["data"]["on_bad"]
    return folder.read(splits, classes=tuple(record.about.classes), on_bad=on_bad)
