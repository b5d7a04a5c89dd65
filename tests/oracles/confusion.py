"""The confusion matrix, one detection at a time. Slow and without NumPy on purpose."""

from oracles.tide import Detection, Object
from oracles.voc_ap import overlap


def matrix(
    detections: list[Detection], objects: list[Object], classes: int, threshold: float
) -> list[list[int]]:
    """Rows are annotated, columns detected; the last of both is the background.

    Detections and objects are sorted by class.
    """
    counts = [[0] * (classes + 1) for _ in range(classes + 1)]
    taken = set[int]()
    for d in sorted(detections, key=lambda d: -d.score):
        if d.score < threshold:
            continue
        best, value = None, 0.0
        for number, item in enumerate(objects):
            if item.image == d.image and number not in taken:
                shared = overlap(d.box, item.box)
                if shared >= 0.5 and shared > value:
                    best, value = number, shared
        if best is None:
            counts[classes][d.label] += 1
        elif not objects[best].difficult:
            taken.add(best)
            counts[objects[best].label][d.label] += 1
    for number, item in enumerate(objects):
        if number not in taken and not item.difficult:
            counts[item.label][classes] += 1
    return counts
