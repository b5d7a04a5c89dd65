import math

import numpy as np
import pytest
from detection_problems import IMAGES, Arrays, arrays, problems
from hypothesis import given
from oracles.tide import Detection, Object

from multibox.evaluation.bootstrap import bootstrap
from multibox.evaluation.voc import ClassDetections, ClassObjects, evaluate_voc, judge_classes
from multibox.rng import stream


def repeated(problem: Arrays, weights: np.ndarray) -> Arrays:
    """The problem with each image as often as it is drawn, under numbers of its own."""
    starts = np.append(0, weights.cumsum())

    def rows(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = weights[images]
        rank = np.concatenate([np.arange(n) for n in counts]) if len(images) else counts
        return np.repeat(np.arange(len(images)), counts), (
            np.repeat(starts[images], counts) + rank
        ).astype(int)

    detections, objects = {}, {}
    for name in problem[1]:
        found, truth = problem[0][name], problem[1][name]
        chosen, images = rows(found.images)
        detections[name] = ClassDetections(images, found.scores[chosen], found.boxes_px[chosen])
        chosen, images = rows(truth.images)
        objects[name] = ClassObjects(images, truth.boxes_px[chosen], truth.difficult[chosen])
    return detections, objects


@given(problems)
def test_every_resample_is_an_evaluation_of_repeated_images(problem) -> None:
    detections, objects = arrays(*problem)
    spread = bootstrap(judge_classes(detections, objects), objects, IMAGES, seed=3, resamples=6)
    drawn = stream(3, "bootstrap").integers(IMAGES, size=(6, IMAGES))
    for row, images in enumerate(drawn):
        weights = np.bincount(images, minlength=IMAGES)
        for metric in ("voc07", "voc12"):
            mean = evaluate_voc(*repeated((detections, objects), weights), metric).mean
            assert spread.means[metric][row] == pytest.approx(mean, abs=1e-12, nan_ok=True)


TEN = (1.0, 1.0, 10.0, 10.0)


def spread_of_half(images: int, resamples: int, seed: int = 0):
    """Of one object in every image, every second is found."""
    found = [Detection(0, image, 0.5, TEN) for image in range(0, images, 2)]
    detections, objects = arrays(found, [Object(0, image, TEN, False) for image in range(images)])
    verdicts = judge_classes(detections, objects)
    return bootstrap(verdicts, objects, images, seed=seed, resamples=resamples)


def test_the_spread_of_a_share_is_the_binomial_one() -> None:
    spread = spread_of_half(400, 1000)
    expected = math.sqrt(0.25 / 400)
    assert spread.deviation("voc12") == pytest.approx(expected, rel=0.1)
    low, high = spread.interval("voc12")
    assert low == pytest.approx(0.5 - 1.96 * expected, abs=0.01)
    assert high == pytest.approx(0.5 + 1.96 * expected, abs=0.01)


def test_the_seed_decides_and_the_number_only_adds() -> None:
    some, more = spread_of_half(20, 300), spread_of_half(20, 700)
    assert some.means["voc12"].tolist() == more.means["voc12"][:300].tolist()
    assert some.means["voc12"].tolist() != spread_of_half(20, 300, seed=1).means["voc12"].tolist()


def test_without_objects_there_is_no_spread() -> None:
    detections, objects = arrays([], [])
    spread = bootstrap(judge_classes(detections, objects), objects, 3, resamples=5)
    assert np.isnan(spread.means["voc07"]).all()
    assert np.isnan(spread.interval("voc07")).all()
    assert math.isnan(spread.deviation("voc07"))


@given(problems)
def test_the_mean_of_a_resample_is_that_of_its_classes(problem) -> None:
    detections, objects = arrays(*problem)
    spread = bootstrap(judge_classes(detections, objects), objects, IMAGES, resamples=4)
    for metric in ("voc07", "voc12"):
        every = np.stack([*spread.classes[metric].values()])
        for row in range(4):
            known = every[:, row][~np.isnan(every[:, row])]
            expected = known.mean() if len(known) else math.nan
            assert spread.means[metric][row] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_spread_of_a_class_is_the_binomial_one() -> None:
    spread = spread_of_half(400, 1000)
    (name,) = (name for name, each in spread.classes["voc12"].items() if not np.isnan(each).all())
    assert spread.class_deviation("voc12", name) == spread.deviation("voc12")
