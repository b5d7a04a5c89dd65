"""The table of `docs/evaluation.md`: every figure in it is computed from the toys beside it."""

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from oracles import other_evaluators as others
from oracles import voc_ap

from multibox.evaluation.voc import ClassDetections, ClassObjects, evaluate_voc

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
COLUMNS = ["evaluator", "source", "rule", "toy", "metric", "devkit", "theirs"]
METRICS = {"11 points": "voc07", "area": "voc12"}

# By the name in the table; where a program has several rules with a toy of their own, one function
# has them all.
EVALUATORS: dict[str, others.Evaluator] = {
    "the devkit in Octave": others.octave,
    "py-faster-rcnn": others.py_faster_rcnn,
    "ssd.pytorch": others.ssd_pytorch,
    "Caffe, while training": others.caffe,
    "chainercv": others.chainercv,
    "lufficc": others.chainercv,
    "ssd_keras": others.ssd_keras,
    "ssd_keras, verbose=False": others.ssd_keras_quiet,
    "pycocotools, AP50": others.pycocotools,
    "torchmetrics, map_50": others.torchmetrics,
    "Cartucho, 2018": others.cartucho_2018,
    "Cartucho": others.cartucho,
    "rafaelpadilla": others.rafaelpadilla,
}


class Toy(NamedTuple):
    """By class."""

    detections: dict[str, list[voc_ap.Detection]]
    objects: dict[str, list[voc_ap.Object]]


def read_table() -> list[dict[str, str]]:
    _, _, table = PAGE.partition(f"| {' | '.join(COLUMNS)} |\n")
    rows = [line.strip("|").split("|") for line in table.partition("\n\n")[0].splitlines()[1:]]
    return [dict(zip(COLUMNS, map(str.strip, row), strict=True)) for row in rows]


def read_toys() -> dict[str, Toy]:
    blocks = re.findall(
        r"^#### ([^\n]+)\n\n[^`]+\n\n```\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
    return {name: read_toy(text) for name, text in blocks}


def read_toy(text: str) -> Toy:
    toy = Toy({}, {})
    for line in text.splitlines():
        kind, images, name, *words = line.split()
        difficult = words[-1] == "difficult"
        *score, x0, y0, x1, y1 = map(float, words[:-1] if difficult else words)
        first, _, last = images.partition("-")
        toy.detections.setdefault(name, [])
        for image in range(int(first), int(last or first) + 1):
            if kind == "object":
                item = voc_ap.Object(image, (x0, y0, x1, y1), difficult)
                toy.objects.setdefault(name, []).append(item)
            else:
                assert kind == "detection"
                toy.detections[name].append(voc_ap.Detection(image, *score, (x0, y0, x1, y1)))
    return toy


ROWS, TOYS = read_table(), read_toys()


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def ours(toy: Toy, metric: str) -> float:
    detections = {
        name: ClassDetections(
            images=np.array([item.image for item in items], dtype=np.int64),
            scores=np.array([item.score for item in items], dtype=np.float64),
            boxes_px=np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4),
        )
        for name, items in toy.detections.items()
    }
    objects = {
        name: ClassObjects(
            images=np.array([item.image for item in items]),
            boxes_px=np.array([item.box for item in items]),
            difficult=np.array([item.difficult for item in items]),
        )
        for name, items in toy.objects.items()
    }
    return evaluate_voc(detections, objects, METRICS[metric]).mean


def devkits(detections: list[voc_ap.Detection], objects: list[voc_ap.Object], metric: str) -> float:
    recall, precision = voc_ap.curve(detections, objects)
    if metric == "area":
        return voc_ap.average_precision_area(recall, precision)
    return voc_ap.average_precision_11_point(recall, precision)


def by_evaluator(evaluator: others.Evaluator, toy: Toy, metric: str) -> float:
    return mean(
        [evaluator(toy.detections[name], toy.objects[name], metric) for name in toy.objects]
    )


def test_the_page_has_every_evaluator_and_uses_every_toy() -> None:
    assert {row["evaluator"] for row in ROWS} == set(EVALUATORS)
    assert {row["toy"] for row in ROWS} == set(TOYS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['evaluator']}-{row['toy']}")
def test_the_devkit_and_we_say_what_the_page_says_and_the_other_does_not(row: dict) -> None:
    toy, metric, evaluator = TOYS[row["toy"]], row["metric"], EVALUATORS[row["evaluator"]]
    devkit = float(Fraction(row["devkit"]))
    assert by_evaluator(devkits, toy, metric) == pytest.approx(devkit, abs=1e-12)
    assert ours(toy, metric) == pytest.approx(devkit, abs=1e-12)

    assert row["theirs"] != row["devkit"]
    if row["theirs"] == "ZeroDivisionError":
        with pytest.raises(ZeroDivisionError):
            by_evaluator(evaluator, toy, metric)
    elif row["theirs"] == "nan":
        assert math.isnan(by_evaluator(evaluator, toy, metric))
    else:
        theirs = float(Fraction(row["theirs"]))
        assert by_evaluator(evaluator, toy, metric) == pytest.approx(theirs, abs=1e-12)
