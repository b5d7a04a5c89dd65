"""What the page says about a result follows from its figures, and from nothing else."""

import math

import pytest

from multibox.reporting.advice import Confused, Facts, Found, how_good, what_is_wrong, what_next

DONE = Facts("runs/a", last_step=100, planned_steps=100)
COSTS = {
    "classification": 0.0,
    "localization": 0.0,
    "both": 0.0,
    "duplicate": 0.0,
    "background": 0.0,
    "missed": 0.0,
}
NOTHING = "None of the report's rules for advice applies to this run."


def test_result_is_told_with_its_spread() -> None:
    assert how_good(DONE) == "There is no result yet."
    known = DONE._replace(metric="mAP (11-point)", mean=0.8376, images=72)
    assert how_good(known) == "The mAP (11-point) is 0.838 on 72 images."
    spread = known._replace(interval=(0.8041, 0.8629))
    assert "0.804 to 0.863 in 95 of 100 cases" in how_good(spread)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("classification", "found with the wrong class"),
        ("localization", "not accurate enough"),
        ("both", "a wrong class and an inaccurate box"),
        ("duplicate", "second detections"),
        ("background", "where nothing is annotated"),
        ("missed", "not found"),
    ],
)
def test_costliest_kind_of_error_is_named(kind: str, words: str) -> None:
    facts = DONE._replace(costs=COSTS | {kind: 0.083})
    assert words in what_is_wrong(facts)
    assert "0.083 higher" in what_is_wrong(facts)
    (advice,) = what_next(facts)
    assert advice != NOTHING


def test_cheap_errors_are_not_named() -> None:
    facts = DONE._replace(costs=COSTS | {"missed": 0.0099})
    assert what_is_wrong(facts) == "No kind of error costs 0.01 AP or more."
    assert what_next(facts) == [NOTHING]
    assert what_is_wrong(DONE) == "The errors are not known."


def test_confused_classes_are_named_if_they_cost_most() -> None:
    facts = DONE._replace(costs=COSTS | {"classification": 0.02}, confused=Confused("a", "b", 7))
    assert "most often a is taken for b (7 times)" in what_is_wrong(facts)
    assert "taken" not in what_is_wrong(facts._replace(costs=COSTS | {"missed": 0.03}))


def test_small_objects_are_named_if_they_are_missed_more_often() -> None:
    facts = DONE._replace(costs=COSTS, small=Found(3, 9), larger=Found(90, 10))
    assert "25% of the objects below 32 pixels, and 90% of the others" in what_is_wrong(facts)
    assert what_next(facts)[0].startswith("Small objects are missed")
    for small in (Found(9, 3), Found(1, 8)):
        assert what_next(facts._replace(small=small)) == [NOTHING]


def test_unfinished_run_comes_first() -> None:
    facts = Facts("runs/a", last_step=50, planned_steps=100, forced=0.5)
    assert [sentence.split()[0] for sentence in what_next(facts)] == ["Let", "Fit"]
    assert "50 of 100 steps" in what_next(facts)[0]
    assert what_next(facts._replace(stopped_early=True))[0].startswith("Fit the default boxes")


def test_many_unannotated_detections_lead_to_check() -> None:
    facts = DONE._replace(unannotated=20, objects=1000)
    assert "`multibox check runs/a`" in what_next(facts)[0]
    assert what_next(facts._replace(unannotated=19)) == [NOTHING]
    assert what_next(facts._replace(unannotated=4, objects=10)) == [NOTHING]


def test_overfitting_needs_a_gap_and_a_rise() -> None:
    facts = DONE._replace(training_loss=1.0, validation_losses=(2.0, 1.5, 1.8))
    assert "1.8 times the training loss and 20% above its minimum" in what_next(facts)[0]
    for losses in ((2.0, 1.8), (1.2, 1.0, 1.3), (), (math.nan,)):
        assert what_next(facts._replace(validation_losses=losses)) == [NOTHING]


def test_longer_training_needs_a_last_rise() -> None:
    facts = DONE._replace(means=(0.6, 0.7, 0.75))
    assert "risen by 0.050" in what_next(facts)[0]
    for means in ((0.75,), (0.6, 0.75, 0.755), (0.8, 0.6, 0.7)):
        assert what_next(facts._replace(means=means)) == [NOTHING]
    assert what_next(facts._replace(deviation=0.3)) == [NOTHING]
    assert what_next(facts._replace(stopped_early=True)) == [NOTHING]


def test_default_boxes_are_named_unless_they_were_fitted() -> None:
    facts = DONE._replace(forced=0.2)
    assert "none of them overlaps 20%" in what_next(facts)[0]
    assert what_next(facts._replace(fitted=True)) == [NOTHING]
    assert what_next(facts._replace(forced=0.19)) == [NOTHING]


def test_rare_class_is_named() -> None:
    facts = DONE._replace(rarest=("fox", 49))
    assert "more objects of fox: there are only 49 training objects" in what_next(facts)[0]
    assert what_next(facts._replace(rarest=("fox", 50))) == [NOTHING]
