"""Problems of several classes for the tests of analyses, drawn by Hypothesis."""

import numpy as np
from hypothesis import strategies as st
from oracles import tide

from multibox.evaluation.voc import ClassDetections, ClassObjects

CLASSES, IMAGES = 3, 4

# Few distinct corners and scores, so that equal scores and equal overlaps are common.
_coordinates = st.integers(1, 9)
_boxes = st.tuples(_coordinates, _coordinates, st.integers(1, 5), st.integers(1, 5)).map(
    lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
)
_labels, _images = st.integers(0, CLASSES - 1), st.integers(0, IMAGES - 1)
_scores = st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])
_detections = st.builds(tide.Detection, _labels, _images, _scores, _boxes)
_objects = st.builds(tide.Object, _labels, _images, _boxes, st.booleans())

problems = st.tuples(
    st.lists(_detections, max_size=30).map(lambda items: sorted(items, key=lambda d: d.label)),
    st.lists(_objects, max_size=12).map(lambda items: sorted(items, key=lambda o: o.label)),
)

Arrays = tuple[dict[str, ClassDetections], dict[str, ClassObjects]]


def arrays(detections: list[tide.Detection], objects: list[tide.Object]) -> Arrays:
    """The problem by class: "0", "1" and "2"."""
    found, truth = {}, {}
    for label in range(CLASSES):
        mine = [d for d in detections if d.label == label]
        those = [o for o in objects if o.label == label]
        found[str(label)] = ClassDetections(
            np.array([d.image for d in mine], np.int64),
            np.array([d.score for d in mine], np.float64),
            np.array([d.box for d in mine], np.float64).reshape(-1, 4),
        )
        truth[str(label)] = ClassObjects(
            np.array([o.image for o in those], np.int64),
            np.array([o.box for o in those], np.float64).reshape(-1, 4),
            np.array([o.difficult for o in those], bool),
        )
    return found, truth
