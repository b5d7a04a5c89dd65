"""The tables, against texts written by hand and against the publication they imitate."""

import itertools
import json
import re
from pathlib import Path

import pytest
import synthetic_runs

from multibox.reporting.reading import read_record
from multibox.reporting.record import Record
from multibox.reporting.reference import read_reference
from multibox.reporting.tables import aligned, loss_rows, milestones, precision_table

MARKDOWN = """\
|                    | Steps |  20k     |  20500   |
|--------------------|-------|----------|----------|
|RBC                 |  AP   |  0.5000  |  0.7500  |
|blood\\_platelets    |  AP   |  0.2500  |  –       |
|                    |**mAP**|**0.3750**|**0.7500**|
|(area under curve)  |  mAP  |  0.3950  |  0.7700  |
|(COCO)              |  AP   |  0.2250  |  0.4500  |"""  # noqa: RUF001


def run_with(folder: Path, classes: list[str], aps: dict[int, dict[str, float | None]]) -> Record:
    story = synthetic_runs.Story(
        classes=classes, planned=100_000, every=50_000, milestones=[], reached=100_000
    )
    run = synthetic_runs.write_run(folder / "run", story)
    (run / "evaluations").mkdir()
    for step, by_class in aps.items():
        known = {name: ap for name, ap in by_class.items() if ap is not None}
        found = synthetic_runs.evaluation(step, known)
        found["voc07"]["AP"] = by_class
        synthetic_runs.write_json(run / "evaluations" / f"step-{step:08d}.json", found)
    return read_record(run)


def test_markdown_has_the_form_of_the_classic_summary(tmp_path: Path) -> None:
    aps = {
        20_000: {"RBC": 0.5, "blood_platelets": 0.25},
        20_510: {"RBC": 0.75, "blood_platelets": None},
    }
    record = run_with(tmp_path, ["RBC", "blood_platelets"], aps)
    expected = MARKDOWN.replace("20500", "20510")
    assert aligned(precision_table(record, "voc07", None)) == expected


def test_reference_holds_the_published_table(shared: Path) -> None:
    text = (shared / "reference" / "training-summary.md").read_text(encoding="utf-8")
    reference = read_reference("ssd-keras-voc0712")
    rows = re.findall(r"^\|(\w+) *\|  AP   \|(.*)\|$", text, re.MULTILINE)
    assert {name: [float(cell) for cell in cells.split("|")] for name, cells in rows} == (
        reference.AP
    )
    (means,) = re.findall(r"^\| +\|\*\*mAP\*\*\|(.*)\|$", text, re.MULTILINE)
    assert [float(cell.strip(" *")) for cell in means.split("|")] == reference.mAP
    (steps,) = re.findall(r"\| Steps \|(.*)\|", text)
    assert [int(cell.strip(" k")) * 1000 for cell in steps.split("|")] == reference.steps


def test_reference_holds_the_digitised_curve_at_the_ends_of_its_intervals(shared: Path) -> None:
    text = (shared / "reference" / "ssd-reference.md").read_text(encoding="utf-8")
    reference = read_reference("ssd-keras-voc0712")
    for label, name in (("train", "training"), ("val", "validation")):
        (cells,) = re.findall(rf"^\| {label} \| ([\d. |]+) \|$", text, re.MULTILINE)
        assert [float(cell) for cell in cells.split("|")] == reference.loss[name]
    (cells,) = re.findall(r"^\| steps/1000 \| ([\d |]+) \|$", text, re.MULTILINE)
    assert [1000 * (int(cell) + 1) for cell in cells.split("|")] == reference.loss_steps


def test_many_milestones_are_spread_with_the_best_and_the_last(tmp_path: Path) -> None:
    aps = {step: {"RBC": 0.9 if step == 13 else 0.5} for step in range(1, 41)}
    chosen = [e.step for e in milestones(run_with(tmp_path, ["RBC"], aps), "voc07")]
    assert len(chosen) == 8
    assert chosen == sorted(chosen)
    assert {1, 13, 40} <= set(chosen)
    assert max(b - a for a, b in itertools.pairwise(chosen)) <= 7


def test_eight_milestones_are_all_shown(tmp_path: Path) -> None:
    record = run_with(tmp_path, ["RBC"], {step: {"RBC": 0.5} for step in range(1, 9)})
    assert len(milestones(record, "voc07")) == 8


def test_beside_a_reference_other_classes_have_no_difference(tmp_path: Path) -> None:
    record = run_with(tmp_path, ["bus", "RBC"], {102_000: {"bus": 0.8, "RBC": 0.5}})
    rows = precision_table(record, "voc07", read_reference("ssd-keras-voc0712")).rows
    cells = {row.name: row.cells for row in rows}
    assert cells["bus"] == ["0.8000", "0.8554", "−0.0554"]  # noqa: RUF001
    assert cells["RBC"] == ["0.5000", "–", "–"]  # noqa: RUF001
    assert cells[""] == ["0.6500", "0.7711", "−0.1211"]  # noqa: RUF001
    assert cells["(reference)"][0] == "0.7711"
    assert cells["(difference)"][0] == "−0.1211"  # noqa: RUF001


def test_losses_are_compared_with_the_l2_term_at_common_steps(tmp_path: Path) -> None:
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)
    lines = [
        {"kind": "train", "step": 1_000, "loss": 8.0, "l2": 2.0},
        {"kind": "validation", "step": 1_000, "loss": 7.0, "l2": 2.0},
        {"kind": "train", "step": 1_500, "loss": 7.5, "l2": 2.0},
    ]
    synthetic_runs.write_lines(run / "metrics.jsonl", lines)
    assert loss_rows(read_record(run), read_reference("ssd-keras-voc0712")) == [
        ["1,000", "10.00", "9.94", "+0.06", "9.00", "8.61", "+0.39"]
    ]


@pytest.mark.parametrize("name", ["ssd-keras-voc0712"])
def test_reference_is_complete(name: str) -> None:
    reference = read_reference(name)
    assert all(len(aps) == len(reference.steps) for aps in reference.AP.values())
    assert {len(values) for values in reference.loss.values()} == {len(reference.loss_steps)}
    assert "://" not in json.dumps([reference.source, reference.notes])
