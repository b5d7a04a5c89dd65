"""The verdicts on runs beside published results."""

import math

import pytest

from multibox.reporting.reproduction import Publication, judge, judge_classes, judge_mean

FINALS = (Publication(0.771, "one"), Publication(0.782, "other"))


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (0.7704, "below"),
        (0.7706, "within"),
        (0.776, "within"),
        (0.7824, "within"),
        (0.7826, "above"),
        (math.nan, "unknown"),
    ],
)
def test_the_mean_is_rounded_as_the_published_ones(value: float, verdict: str) -> None:
    assert judge_mean([value], FINALS, 3).judgement == verdict


def test_the_mean_of_the_seeds_counts() -> None:
    assert judge_mean([0.76, 0.79], FINALS, 3).judgement == "within"
    assert judge_mean([], FINALS, 3).judgement == "unknown"


def test_one_seed_has_the_tolerance_of_the_images() -> None:
    (verdict,) = judge_classes({"cat": [0.85]}, {"cat": [0.01]}, {"cat": 0.87})
    assert verdict.tolerance == pytest.approx(0.02)
    assert verdict.judgement == "within"
    (verdict,) = judge_classes({"cat": [0.849]}, {"cat": [0.01]}, {"cat": 0.87})
    assert verdict.judgement == "below"
    (verdict,) = judge_classes({"cat": [0.9]}, {"cat": [0.01]}, {"cat": 0.87})
    assert verdict.judgement == "above"


def test_several_seeds_add_their_spread_over_all_classes() -> None:
    ours = {"cat": [0.80, 0.84], "dog": [0.70, 0.70]}
    published = {"cat": 0.87, "dog": 0.75}
    verdicts = judge_classes(ours, {"cat": [0.01, 0.01], "dog": [0.01, 0.01]}, published)
    # The variances over the seeds are 0.0008 and 0.
    expected = 2 * math.sqrt(0.01**2 + 1.5 * 0.0004)
    assert [each.tolerance for each in verdicts] == pytest.approx([expected] * 2)
    assert verdicts[0].ours == pytest.approx(0.82)


@pytest.mark.parametrize(
    ("ours", "deviations"),
    [({}, {}), ({"cat": [math.nan]}, {"cat": [0.01]}), ({"cat": [0.8]}, {})],
)
def test_without_a_value_or_a_spread_there_is_no_verdict(ours, deviations) -> None:
    (verdict,) = judge_classes(ours, deviations, {"cat": 0.87})
    assert verdict.judgement == "unknown"


def test_the_limits_are_within() -> None:
    assert judge(0.665, 0.665, 0.696) == "within"
    assert judge(0.5, math.nan, math.nan) == "unknown"
