"""How long the analysis of a large evaluation takes: `python benchmarks/analysis.py`.

The problem has the size of VOC2007's test split: 4,952 images, 20 classes, 14,976 objects and
985,000 detections. Each object has some detections near it, a few of them of another class. The
other detections lie anywhere and have low scores.
"""

import time

import numpy as np

from multibox.evaluation.bootstrap import bootstrap
from multibox.evaluation.confidence import threshold_curve
from multibox.evaluation.confusion import confusion_matrix
from multibox.evaluation.errors import find_errors
from multibox.evaluation.found_objects import group_objects
from multibox.evaluation.voc import ClassDetections, ClassObjects, judge_classes
from multibox.rng import stream

IMAGES, CLASSES, OBJECTS, DETECTIONS = 4952, 20, 14_976, 985_000
PER_OBJECT = 4
SIZE_PX = (375, 500)


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns random boxes in an image."""
    height, width = SIZE_PX
    size = rng.uniform(0.05, 0.8, (count, 2)) * [width, height]
    corner = rng.uniform(0, 1, (count, 2)) * ([width, height] - size)
    return np.concatenate([corner, corner + size], axis=1)


def problem() -> tuple[dict[str, ClassDetections], dict[str, ClassObjects]]:
    """Returns detections and objects by class."""
    rng = stream(0, "problem")
    labels, images = rng.integers(CLASSES, size=OBJECTS), rng.integers(IMAGES, size=OBJECTS)
    truth, difficult = boxes(rng, OBJECTS), rng.random(OBJECTS) < 0.2
    near = np.repeat(np.arange(OBJECTS), PER_OBJECT)
    sides = np.tile(truth[near, 2:] - truth[near, :2], 2)
    rest = DETECTIONS - len(near)
    found = np.concatenate(
        [truth[near] + rng.normal(0, 0.15, sides.shape) * sides, boxes(rng, rest)]
    )
    other = rng.random(len(near)) < 0.1
    found_labels = np.where(other, rng.integers(CLASSES, size=len(near)), labels[near])
    found_labels = np.concatenate([found_labels, rng.integers(CLASSES, size=rest)])
    found_images = np.concatenate([images[near], rng.integers(IMAGES, size=rest)])
    scores = np.concatenate([rng.beta(2, 2, len(near)), rng.beta(0.4, 12, rest)])
    detections, objects = {}, {}
    for label in range(CLASSES):
        mine, those = found_labels == label, labels == label
        detections[f"class {label}"] = ClassDetections(
            found_images[mine], scores[mine], found[mine]
        )
        objects[f"class {label}"] = ClassObjects(images[those], truth[those], difficult[those])
    return detections, objects


def main() -> None:
    """Prints the seconds of each part, and those of the processor."""
    detections, objects = problem()
    sizes_px = np.tile(SIZE_PX, (IMAGES, 1))
    verdicts = judge_classes(detections, objects)
    parts = {
        "verdicts": lambda: judge_classes(detections, objects),
        "thresholds by class": lambda: [threshold_curve([each]) for each in verdicts.values()],
        "thresholds of all classes": lambda: threshold_curve([*verdicts.values()]),
        "errors": lambda: find_errors(detections, objects),
        "confusion matrix": lambda: confusion_matrix(detections, objects, score_threshold=0.3),
        "bootstrap, 1,000 resamples": lambda: bootstrap(verdicts, objects, IMAGES),
        "found objects": lambda: group_objects(verdicts, objects, sizes_px),
    }
    print(f"{'part':28}{'s':>8}{'CPU s':>8}")
    totals = np.zeros(2)
    for name, work in parts.items():
        start = np.array([time.perf_counter(), time.process_time()])
        work()
        seconds = np.array([time.perf_counter(), time.process_time()]) - start
        totals += seconds
        print(f"{name:28}{seconds[0]:8.2f}{seconds[1]:8.2f}")
    print(f"{'all':28}{totals[0]:8.2f}{totals[1]:8.2f}")


if __name__ == "__main__":
    main()
