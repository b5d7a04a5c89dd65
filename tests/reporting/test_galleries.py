"""The galleries hold exactly what the numbers of the page count."""

from pathlib import Path

import evaluated_runs
import numpy as np
import pytest

from multibox.commands.report import write_report
from multibox.reporting import gallery_pictures
from multibox.reporting.context import build_context
from multibox.reporting.evaluated import EvaluatedSplit, read_run_data
from multibox.reporting.galleries import galleries
from multibox.reporting.gallery_pictures import embed
from multibox.reporting.reading import read_record


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("galleries")
    return evaluated_runs.write_run(root / "run", evaluated_runs.write_dataset(root / "data"))


@pytest.fixture(scope="module")
def split(run: Path) -> EvaluatedSplit:
    record = read_record(run)
    found = read_run_data(record, record.evaluations[-1])
    assert found.absent == ()
    assert found.train is not None
    assert found.evaluated is not None
    return found.evaluated


def test_cells_are_those_of_the_matrix(split: EvaluatedSplit) -> None:
    found = galleries(split)
    counts = split.analysis.confusion.counts
    for (row, column), count in np.ndenumerate(counts):
        key = f"cell-{row}-{column}"
        assert (found[key].total if key in found else 0) == count
        assert len(found[key].incidents if key in found else []) == min(count, 12)
    (incident,) = found["cell-1-0"].incidents
    assert (incident.image, incident.caption) == (0, "cat 0.95 on dog")
    (incident,) = found["cell-2-3"].incidents
    assert (incident.image, incident.caption) == (1, f"{evaluated_runs.HOSTILE} is missed")


def test_kinds_count_errors_above_the_threshold(split: EvaluatedSplit) -> None:
    assert 0.4 < split.analysis.score_threshold <= 0.85
    found = {key: gallery.total for key, gallery in galleries(split).items() if "kind" in key}
    assert found == {
        "kind-classification": 1,
        "kind-localization": 0,
        "kind-both": 0,
        # Its score is 0.4.
        "kind-duplicate": 0,
        "kind-background": 1,
        "kind-missed": 1,
    }


def test_classes_and_groups_count_alike(split: EvaluatedSplit) -> None:
    found = galleries(split)
    for label, name in enumerate(split.objects):
        best = split.analysis.thresholds[name].best()
        assert best is not None
        totals = [found[f"class-{label}-{word}"].total for word in ("right", "wrong", "missed")]
        assert totals == [best.right, best.wrong, best.missed]
    groups = split.analysis.found_objects
    for key, missed in (("size", groups.sizes.missed), ("aspect", groups.aspects.missed)):
        totals = [found[f"{key}-{place}"].total for place in range(missed.shape[1])]
        assert totals == missed.sum(axis=0).tolist()
    for (row, column), missed in np.ndenumerate(groups.missed_at.sum(axis=0)):
        assert found[f"position-{row}-{column}"].total == missed


def test_doubtful_annotations_are_found(split: EvaluatedSplit) -> None:
    found = galleries(split)
    (incident,) = found["doubt-missing-label"].incidents
    assert (incident.image, incident.caption) == (3, "'dog' (0.85) is not annotated")
    assert [i.image for i in found["doubt-other-class"].incidents] == [0]
    assert [i.image for i in found["doubt-not-found"].incidents] == [1]
    assert found["worst"].incidents[0].caption in ("1 wrong, 0 missed", "0 wrong, 1 missed")


def test_pictures_stay_within_the_limit(
    split: EvaluatedSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = galleries(split)
    whole = embed(split, found)
    sizes = [len(each["image"]) for each in whole["pictures"]]
    assert all(entry[0] >= 0 for entry in whole["galleries"]["cell-1-0"]["entries"])
    monkeypatch.setattr(gallery_pictures, "MAX_BYTES", sum(sizes) // 2)
    half = embed(split, found)
    assert 0 < len(half["pictures"]) < len(sizes)
    assert half["galleries"].keys() == whole["galleries"].keys()
    entries = [entry for each in half["galleries"].values() for entry in each["entries"]]
    assert {entry[0] for entry in entries} >= {-1, 0}


def test_unreadable_image_has_no_picture(run: Path, split: EvaluatedSplit, tmp_path: Path) -> None:
    image = split.dataset.annotations[0].image_path
    kept = image.read_bytes()
    try:
        image.write_bytes(b"")
        entries = embed(split, galleries(split))["galleries"]["cell-1-0"]["entries"]
    finally:
        image.write_bytes(kept)
    assert entries == [[-1, "test-0", "cat 0.95 on dog"]]


def test_page_says_why_the_images_are_absent(run: Path) -> None:
    record = read_record(run)
    data = Path(record.facts["data_root"])
    moved = data.rename(data.with_name("elsewhere"))
    try:
        page = write_report(run).read_text(encoding="utf-8")
    finally:
        moved.rename(data)
    assert "The images of the run cannot be read" in page
    assert str(data) in page


def test_changed_annotations_are_not_analysed(run: Path) -> None:
    record = read_record(run)
    file = Path(record.facts["data_root"]) / "Annotations" / "test-0.xml"
    kept = file.read_text()
    try:
        file.write_text(kept.replace("<xmin>20<", "<xmin>21<"))
        values = build_context(record, "voc07", None).values
    finally:
        file.write_text(kept)
    assert values["split"] is None
    assert "have changed since the run began" in values["absent"][0]
    assert values["seen"] is not None
