"""What the network saw: counted from the dataset, drawn through the product's own pipeline."""

import base64
from pathlib import Path

import cv2
import evaluated_runs
import numpy as np
import pytest

from multibox.config import Config
from multibox.data.formats.layouts import read_dataset
from multibox.data.pipeline import TrainingExamples
from multibox.recipes import ssd300_lite
from multibox.reporting.training_data import MATCHED, TrainingData, describe_training_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated_runs.write_dataset(tmp_path_factory.mktemp("seen") / "data")


@pytest.fixture(scope="module")
def config() -> Config:
    return ssd300_lite()


@pytest.fixture(scope="module")
def seen(data: Path, config: Config) -> TrainingData:
    return describe_training_data(read_dataset(data, "trainval"), config, None)


def test_objects_are_counted(seen: TrainingData) -> None:
    # 80 x 100, 110 x 120 and 20 x 20 of 320 x 240 pixels, six times.
    assert {bar.name: bar.number for bar in seen.sizes if bar.number} == {
        "16 to 24 px": 6,  # 20 * 300 / sqrt(320 * 240) = 21.7
        "96 to 128 px": 12,
    }
    assert {bar.name: bar.number for bar in seen.aspects if bar.number} == {"0.75 to 1.33": 18}
    assert {bar.name: bar.number for bar in seen.per_image if bar.number} == {"3 to 4": 6}
    assert seen.together.tolist() == [[6] * 3] * 3
    assert seen.positions.sum() == 18
    assert seen.positions[1, 0] == seen.positions[1, 3] == seen.positions[3, 2] == 6


def test_samples_are_those_of_the_run(seen: TrainingData, data: Path, config: Config) -> None:
    dataset = read_dataset(data, "trainval")
    examples = TrainingExamples(dataset.annotations, (300, 300), config.augmentation, 0)
    for number in (0, 5):
        example, shown = examples[number], seen.samples[number]
        image = cv2.imdecode(
            np.frombuffer(base64.b64decode(shown["image"]), np.uint8), cv2.IMREAD_COLOR_RGB
        )
        expected = cv2.resize(example.image, (220, 220), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(int) - expected).mean() < 6
        boxes = np.array([box[:4] for box in shown["boxes"]]).reshape(-1, 4)
        assert boxes == pytest.approx(example.boxes * 220, abs=0.06)


def test_matches_are_counted_by_shape(seen: TrainingData) -> None:
    assert sum(shape.share for shape in seen.shapes) == pytest.approx(1)
    assert len(seen.shapes) == 4 + 6 + 6 + 6 + 4 + 4
    # Each object has at least one match.
    assert sum(shape.matches for shape in seen.shapes) * MATCHED >= MATCHED
    assert 0 <= seen.forced <= 1


def test_it_is_the_same_each_time(seen: TrainingData, data: Path, config: Config) -> None:
    again = describe_training_data(read_dataset(data, "trainval"), config, None)
    assert again.samples == seen.samples
    assert again.shapes == seen.shapes
