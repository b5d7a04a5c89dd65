"""TIDE's rules, one detection at a time, with difficult objects.

Slow and without NumPy on purpose: it is read beside `tidecv/quantify.py`, not run on a dataset.
"""

from typing import NamedTuple

Box = tuple[float, float, float, float]


class Detection(NamedTuple):
    label: int
    image: int
    score: float
    box: Box


class Object(NamedTuple):
    label: int
    image: int
    box: Box
    difficult: bool


class Verdict(NamedTuple):
    """`kind` is right, ignored or a kind of error; `item` is an index of the objects or None."""

    kind: str
    item: int | None


def overlap(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if both > 0 else 0.0


def best(detection: Detection, objects: list[Object], chosen: list[int]) -> tuple[float, int]:
    """The largest overlap with some objects and the first of these; (0, -1) without any."""
    result = (0.0, -1)
    for number in chosen:
        value = overlap(detection.box, objects[number].box)
        if value > result[0]:
            result = (value, number)
    return result


def verdicts(detections: list[Detection], objects: list[Object]) -> list[Verdict]:
    """The verdict on every detection. They are sorted by class."""
    taken, result = dict[int, int](), dict[int, Verdict]()
    order = sorted(range(len(detections)), key=lambda n: -detections[n].score)
    for number in order:
        d = detections[number]
        free = [
            k
            for k, o in enumerate(objects)
            if (o.image, o.label) == (d.image, d.label) and not o.difficult and k not in taken
        ]
        value, item = best(d, objects, free)
        if value >= 0.5:
            taken[item] = number
            result[number] = Verdict("right", item)
    for number, d in enumerate(detections):
        if number not in result:
            result[number] = _wrong(d, objects, set(taken))
    return [result[number] for number in range(len(detections))]


def _wrong(d: Detection, objects: list[Object], taken: set[int]) -> Verdict:
    there = [k for k, o in enumerate(objects) if o.image == d.image]
    difficult = [k for k in there if objects[k].difficult and objects[k].label == d.label]
    if best(d, objects, difficult)[0] >= 0.5:
        return Verdict("ignored", None)
    there = [k for k in there if not objects[k].difficult]
    own = [k for k in there if objects[k].label == d.label]
    other = [k for k in there if objects[k].label != d.label]
    value, item = best(d, objects, own)
    if 0.1 <= value <= 0.5:
        return Verdict("localization", item)
    value, item = best(d, objects, other)
    if value >= 0.5:
        return Verdict("classification", item)
    value, item = best(d, objects, [k for k in own if k in taken])
    if value >= 0.5:
        return Verdict("duplicate", item)
    if best(d, objects, there)[0] <= 0.1:
        return Verdict("background", None)
    return Verdict("both", None)


def missed(judged: list[Verdict], objects: list[Object]) -> list[int]:
    kinds = ("right", "localization", "classification")
    covered = {verdict.item for verdict in judged if verdict.kind in kinds}
    return [k for k, o in enumerate(objects) if not o.difficult and k not in covered]


class Point(NamedTuple):
    """A detection in the average precision; `early` sorts errors first, where some are mended."""

    label: int
    score: float
    right: bool
    early: bool
    number: int


def mean_average_precision(points: list[Point], counts: dict[int, int], known: set[int]) -> float:
    """Percent / 100 over the classes that have objects at first, and something left."""
    values = []
    for label in sorted(known):
        mine = [p for p in points if p.label == label]
        if mine or counts[label]:
            values.append(_average_precision(mine, counts[label]))
    return sum(values) / len(values) if values else float("nan")


def _average_precision(points: list[Point], count: int) -> float:
    if count == 0:
        return 0.0
    curve, right = list[tuple[float, float]](), 0
    for seen, p in enumerate(sorted(points, key=lambda p: (-p.score, not p.early, p.number)), 1):
        right += p.right
        curve.append((right / count, right / seen))
    levels = [n / 100 for n in range(101)]
    return sum(max((p for r, p in curve if r >= level), default=0.0) for level in levels) / 101


def costs(detections: list[Detection], objects: list[Object]) -> dict[str, float]:
    """`before`, and the mean average precision after each kind of error is mended."""
    judged = verdicts(detections, objects)
    numbers = sorted(
        range(len(detections)), key=lambda n: (detections[n].image, -detections[n].score)
    )
    rank = {number: place for place, number in enumerate(numbers)}
    counts = dict.fromkeys({o.label for o in objects} | {d.label for d in detections}, 0)
    for o in objects:
        counts[o.label] += not o.difficult
    known = {label for label, count in counts.items() if count}
    taken = {v.item for v in judged if v.kind == "right"}
    heirs = dict[int, int]()
    for number in numbers:
        kind, item = judged[number]
        if kind in ("localization", "classification") and item not in taken:
            heirs.setdefault(item, number)

    def points(mended: str | None) -> list[Point]:
        result = []
        for number, (d, (kind, item)) in enumerate(zip(detections, judged, strict=True)):
            if kind == "ignored":
                continue
            label, right = d.label, kind == "right"
            if kind == mended:
                if heirs.get(item) != number:
                    continue
                label, right = objects[item].label, True
            early = mended is not None and kind != "right"
            result.append(Point(label, d.score, right, early, rank[number]))
        return result

    def after(mended: str) -> float:
        return mean_average_precision(points(mended), counts, known)

    kinds = ("classification", "localization", "both", "duplicate", "background")
    result = {kind: after(kind) for kind in kinds}
    result["before"] = mean_average_precision(points(None), counts, known)
    unfound = {k for k, o in enumerate(objects) if not o.difficult and k not in taken}
    for name, gone in (("missed", missed(judged, objects)), ("false_negatives", unfound)):
        fewer = dict(counts)
        for item in gone:
            fewer[objects[item].label] -= 1
        result[name] = mean_average_precision(points("nothing"), fewer, known)
    perfect = [p for p in points("nothing") if p.right]
    result["false_positives"] = mean_average_precision(perfect, counts, known)
    return result
