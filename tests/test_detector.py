import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_network

from multibox import Detector
from multibox.errors import ConfigError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (40 + n, 60, 3), np.uint8) for n in range(5)]


@pytest.fixture
def detector() -> Detector:
    return Detector(tiny_network(), ("cat", "dog"), torch.float32)


def test_lists_and_iterators_give_what_single_images_give(detector: Detector) -> None:
    expected = [detector(image, score_threshold=0.1) for image in IMAGES]
    assert any(expected)
    pictures = [Image.fromarray(image) for image in IMAGES]
    several = detector(pictures, score_threshold=0.1, batch_size=1)
    assert several == expected
    lazily = iter(IMAGES)
    found = detector(lazily, score_threshold=0.1, batch_size=2)
    first = next(found)
    # Only one batch is read ahead.
    assert len(list(lazily)) == 3
    for one, other in zip(first, expected[0], strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
    assert detector([]) == []


def test_images_of_the_input_s_size_are_not_changed(detector: Detector) -> None:
    for image in IMAGES:
        resized = detector.prepare(image)
        assert resized.shape == (64, 64, 3)
        for one, other in zip(detector.detect(image), detector.detect(resized), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("package", "method"), [("pandas", "to_pandas"), ("supervision", "to_supervision")]
)
def test_a_package_that_is_not_installed_is_named(
    detector: Detector, package: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        getattr(detector(IMAGES[0]), method)()


def test_detections_become_a_table(detector: Detector) -> None:
    pytest.importorskip("pandas")
    found = detector(IMAGES[0], score_threshold=0.1)
    table = found.to_pandas()
    assert list(table.columns) == ["name", "score", "x0", "y0", "x1", "y1"]
    assert [tuple(row) for row in table.itertuples(index=False)] == [
        (d.name, d.score, *d.box_px) for d in found
    ]


def test_detections_become_those_of_supervision(detector: Detector) -> None:
    pytest.importorskip("supervision")
    for threshold in (0.1, 1.0):
        found = detector(IMAGES[0], score_threshold=threshold)
        other = found.to_supervision()
        assert len(other) == len(found)
        assert other.xyxy.shape == (len(found), 4)
        assert other.data["class_name"].tolist() == [d.name for d in found]
        assert [detector.classes[label] for label in other.class_id] == [d.name for d in found]
