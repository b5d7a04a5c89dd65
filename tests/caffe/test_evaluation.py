"""Caffe's evaluation while training: DetectionEvaluate, ComputeAP and the mean that it prints."""

from collections.abc import Mapping

import numpy as np

from multibox.evaluation.voc import (
    ClassDetections,
    ClassObjects,
    Curve,
    average_precision_11_point,
    average_precision_area,
    precision_recall,
)

CAFFE_RECALL_THRESHOLDS = np.arange(11) / 10


def image_sizes(problem: Mapping[str, np.ndarray]) -> np.ndarray:
    """The (W, H, W, H) by which Caffe scales the boxes of each image.

    Its list of sizes moves on at images that have a detection, and at no others
    (`detection_evaluate_layer.cpp:140-141, 237-243`): the image after one without detections gets
    that one's size.
    """
    sizes = problem["sizes_hw"][:, [1, 0, 1, 0]].astype(np.float32)
    images = np.unique(problem["det"][:, 0]).astype(int)
    sizes[images] = sizes[: len(images)].copy()
    return sizes


def curve_of(problem: Mapping[str, np.ndarray], label: int) -> Curve:
    sizes, det, gt = image_sizes(problem), problem["det"], problem["gt"]
    mine, objects = det[det[:, 1] == label], gt[gt[:, 1] == label]

    def pixels(images: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return (boxes.clip(0, 1) * sizes[images]).astype(np.float64)

    places, owners = mine[:, 0].astype(int), objects[:, 0].astype(int)
    return precision_recall(
        ClassDetections(places, mine[:, 2].astype(np.float64), pixels(places, mine[:, 3:])),
        ClassObjects(owners, pixels(owners, objects[:, 2:6]), objects[:, 6] == 1),
    )


def test_average_precisions_are_caffes(recorded, compare) -> None:
    archive = recorded("evaluation")
    for name in archive["names"].tolist():
        prefix = f"{name}."
        problem = {k.removeprefix(prefix): v for k, v in archive.items() if k.startswith(prefix)}
        areas, points = np.zeros(20), np.zeros(20)
        for label in range(1, 21):
            curve = curve_of(problem, label)
            compare("objects", curve.num_objects, problem["npos"][label - 1], tolerance=0)
            if not curve.num_objects:
                continue
            areas[label - 1] = average_precision_area(curve)
            # Recall is float32, so that 3/10 and 6/10 reach their points and 7/10 does not.
            rounded = curve._replace(recall=curve.recall.astype(np.float32).astype(np.float64))
            points[label - 1] = average_precision_11_point(rounded, CAFFE_RECALL_THRESHOLDS)
        compare(f"area, {name}", areas, problem["MaxIntegral"], tolerance=1e-7)
        compare(f"11 points, {name}", points, problem["11point"], tolerance=1e-7)
        # Over all classes, those without objects as 0; six digits are printed.
        compare("mean area", areas.mean(), problem["MaxIntegral.map_printed"], tolerance=1e-6)
        compare("mean of 11 points", points.mean(), problem["11point.map_printed"], tolerance=1e-6)
