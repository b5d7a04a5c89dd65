"""Doubtful labels: what trained networks and annotations disagree on."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from multibox.cli import main as command_line
from multibox.commands import check_labels as module
from multibox.commands.check_labels import check_labels, compare
from multibox.commands.evaluate import Evaluated
from multibox.data.dataset import Annotation, Dataset
from multibox.errors import ConfigError
from multibox.structures import Detections

CLASSES = ("cat", "dog", "fox")


def annotation(
    *objects: tuple[str, tuple[int, int, int, int]], path: Path = Path("a.jpg"), difficult: int = 0
) -> Annotation:
    return Annotation(
        path.stem,
        path,
        200,
        100,
        np.array([box for _, box in objects], np.float32).reshape(-1, 4),
        np.array([CLASSES.index(name) for name, _ in objects], np.int64),
        np.full(len(objects), bool(difficult)),
    )


def detections(*found: tuple[str, tuple[int, int, int, int], float]) -> Detections:
    frame = torch.tensor([200, 100, 200, 100])
    boxes = torch.tensor([box for _, box, _ in found], dtype=torch.float32).view(-1, 4) / frame
    scores = torch.tensor([score for *_, score in found], dtype=torch.float32)
    labels = torch.tensor([CLASSES.index(name) for name, *_ in found], dtype=torch.int64)
    return Detections(boxes, scores, labels)


LEFT, RIGHT, SHIFTED = (10, 10, 60, 60), (120, 10, 180, 80), (15, 12, 64, 62)


def kinds(image: Annotation, *runs: Detections) -> list[tuple[str, str | None, str | None]]:
    return [(d.kind, d.annotated, d.detected) for d in compare(image, runs, CLASSES)]


def test_agreement_is_not_reported() -> None:
    image = annotation(("cat", LEFT), ("dog", RIGHT))
    assert kinds(image, detections(("cat", SHIFTED, 0.9), ("dog", RIGHT, 0.2))) == []
    # Faint detections of nothing are no contradiction, nor is a second class at a found object.
    assert (
        kinds(image, detections(("cat", LEFT, 0.9), ("dog", RIGHT, 0.9), ("fox", LEFT, 0.6))) == []
    )
    assert kinds(annotation(), detections(("cat", LEFT, 0.4))) == []


def test_missing_labels() -> None:
    image = annotation(("cat", LEFT))
    found = detections(("cat", LEFT, 0.9), ("dog", RIGHT, 0.8), ("fox", RIGHT, 0.7))
    assert kinds(image, found) == [("missing-label", None, "dog")]
    doubt = next(compare(image, [found], CLASSES))
    assert doubt.box_px == pytest.approx(RIGHT)
    assert doubt.describe() == "'dog' (0.80) is not annotated"
    assert kinds(annotation(), detections(("cat", LEFT, 0.6))) == [("missing-label", None, "cat")]


def test_other_classes() -> None:
    image = annotation(("cat", LEFT))
    assert kinds(image, detections(("dog", SHIFTED, 0.9))) == [("other-class", "cat", "dog")]
    both = detections(("dog", SHIFTED, 0.9), ("cat", LEFT, 0.3))
    assert kinds(image, both) == []


def test_objects_that_are_not_found() -> None:
    image = annotation(("cat", LEFT), ("dog", RIGHT))
    assert kinds(image, detections(("dog", RIGHT, 0.9))) == [("not-found", "cat", None)]
    assert kinds(image, detections(("dog", RIGHT, 0.9), ("cat", LEFT, 0.11))) == []
    hidden = annotation(("cat", LEFT), difficult=1)
    assert kinds(hidden, detections()) == []


def test_all_runs_must_agree() -> None:
    image = annotation(("cat", LEFT))
    one = detections(("dog", RIGHT, 0.9))
    two = detections(("cat", LEFT, 0.8), ("dog", RIGHT, 0.6))
    assert kinds(image, one) == [("missing-label", None, "dog"), ("not-found", "cat", None)]
    assert kinds(image, one, two) == [("missing-label", None, "dog")]
    assert next(compare(image, [one, two], CLASSES)).score == pytest.approx(0.6)
    assert kinds(image, one, detections(("cat", LEFT, 0.8))) == []


@pytest.fixture
def pictured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on one image with a missing label, a wrong class and an object that is not found."""
    photograph = tmp_path / "<a> & 'b'.jpg"
    assert cv2.imwrite(str(photograph), np.full((100, 200, 3), 90, np.uint8))
    objects = (("cat", LEFT), ("fox", (80, 70, 90, 90)))
    dataset = Dataset("train", CLASSES, (annotation(*objects, path=photograph),))
    found = detections(("dog", SHIFTED, 0.9), ("fox", RIGHT, 0.7))
    monkeypatch.setattr(module, "_detect", lambda *_: Evaluated(dataset, [found]))
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "run.json"):
        (run / name).write_text("{}")
    return run


def test_pictures_and_page(pictured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["check", str(pictured)]) == 0
    said = capsys.readouterr()
    assert "'cat' looks like 'dog' (0.90)" in " ".join(said.out.split())
    assert str(pictured / "labels" / "index.html") in said.out.replace("\n", "")
    listed = json.loads((pictured / "labels" / "labels.json").read_text())
    assert [item["kind"] for item in listed] == ["missing-label", "not-found", "other-class"]
    page = (pictured / "labels" / "index.html").read_text()
    assert "&lt;a&gt; &amp; &#39;b&#39;.jpg" in page
    for item in listed:
        picture = cv2.imread(str(pictured / "labels" / f"{item['kind']}-000.jpg"))
        assert max(picture.shape[:2]) == 480
        # The red frame of the box in question.
        assert ((picture[..., 2] > 180) & (picture[..., 1] < 90)).any()


def test_runs_on_other_data_are_refused(pictured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = module._detect(pictured, "cpu")
    other = Evaluated(Dataset("train", ("cat",), ()), [])
    answers = iter([one, other])
    monkeypatch.setattr(module, "_detect", lambda *_: next(answers))
    with pytest.raises(ConfigError, match="was trained on other images or classes"):
        check_labels([pictured, pictured.with_name("other")])


@pytest.mark.parametrize("option", [["--splits", "train"], ["--strict"], ["--fix", "x"]])
def test_options_for_datasets_are_refused(
    pictured: Path, option: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["check", str(pictured), *option]) == 2
    assert f"{option[0]} has no effect with a run" in capsys.readouterr().err
