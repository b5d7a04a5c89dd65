"""How much the 11 points of MATLAB and of Octave differ: `python benchmarks/recall_points.py`.

Curves are simulated, for each class of VOC2007's test split with its own number of objects that are
not difficult. A detector is drawn at random: how many objects it finds, and how wrong detections
mix with right ones, ever more of them by descending score. Both averages are of the same curve.
"""

import numpy as np

from multibox.evaluation.voc import (
    OCTAVE_RECALL_THRESHOLDS,
    Curve,
    average_precision_11_point,
)
from multibox.rng import stream

VOC2007_TEST = {
    "aeroplane": 285,
    "bicycle": 337,
    "bird": 459,
    "boat": 263,
    "bottle": 469,
    "bus": 213,
    "car": 1201,
    "cat": 358,
    "chair": 756,
    "cow": 244,
    "diningtable": 206,
    "dog": 489,
    "horse": 348,
    "motorbike": 325,
    "person": 4528,
    "pottedplant": 480,
    "sheep": 242,
    "sofa": 239,
    "train": 282,
    "tvmonitor": 308,
}
"""The objects that are not difficult, as the devkit counts them."""

DETECTORS = 300


def draw_curve(rng: np.random.Generator, objects: int) -> Curve:
    """Returns the curve of a random detector: recall 0.5 to 1, precision falling along it."""
    found = int(objects * rng.uniform(0.5, 1))
    steepness, share = rng.uniform(2, 12), rng.uniform(0.3, 1)
    # Before each right detection, wrong ones: rare at first, many at the end.
    rate = share * np.linspace(0, 1, found) ** steepness * 20
    wrong = rng.poisson(rate)
    places = np.cumsum(wrong + 1) - 1
    right = np.zeros(places[-1] + 1)
    right[places] = 1
    total = np.cumsum(right)
    return Curve(
        recall=total / objects,
        precision=total / np.arange(1, len(total) + 1),
        scores=np.linspace(1, 0, len(total)),
        num_objects=objects,
    )


def main() -> None:
    """Prints the differences by class, and of the means."""
    rng = stream(0, "recall points")
    found = {}
    for name, objects in {**VOC2007_TEST, "ten objects": 10}.items():
        differences = []
        for _ in range(DETECTORS):
            curve = draw_curve(rng, objects)
            octave = average_precision_11_point(curve, OCTAVE_RECALL_THRESHOLDS)
            differences.append(average_precision_11_point(curve) - octave)
        found[name] = np.array(differences)
        print(f"{name:12} {objects:5}  mean {found[name].mean():.5f}  most {found[name].max():.5f}")
    means = np.mean([found[name] for name in VOC2007_TEST], axis=0)
    print(f"mAP, {DETECTORS} detectors: mean {means.mean():.6f}, most {means.max():.6f}")


if __name__ == "__main__":
    main()
