"""Runs side by side: differences, whether they exceed the noise, and what differs."""

import dataclasses
import math
import re
from pathlib import Path

import evaluated_runs
import pytest

from multibox.cli import main as command_line
from multibox.commands.report import write_comparison
from multibox.errors import ConfigError
from multibox.reporting.comparison import Difference, compare, difference, read_runs
from multibox.reporting.reading import read_record


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    data = evaluated_runs.write_dataset(root / "data", test=20)
    return [
        evaluated_runs.write_run(root / name, data, seed=seed, shift=shift)
        for name, seed, shift in (("a", 0, 0), ("b", 1, 0), ("c", 0, 60))
    ]


def test_differences_are_those_of_the_results(runs: list[Path]) -> None:
    first, same, worse = read_runs([read_record(run) for run in runs])
    gap = difference(worse, first, "voc07", math.nan)
    assert worse.result is not None
    assert first.result is not None
    assert gap.value == worse.result.mean["voc07"] - first.result.mean["voc07"]
    assert gap.low < gap.value < gap.high < 0
    assert "more than the noise of the images" in gap.verdict()
    equal = difference(same, first, "voc07", math.nan)
    assert (equal.value, equal.low, equal.high) == (0, 0, 0)
    assert equal.verdict() == "within the noise of the images"


def test_noise_of_seeds_is_taken_into_account() -> None:
    assert Difference(0.1, 0.05, 0.15, 0.2).verdict() == "within the noise of the seeds"
    assert Difference(0.1, 0.05, 0.15, 0.05).verdict() == "more than the noise"
    assert Difference(0.1, math.nan, math.nan, 0.05).verdict() == "unknown"


def test_only_settings_that_differ_are_listed(runs: list[Path]) -> None:
    values, data, _ = compare(read_runs([read_record(run) for run in runs]), "voc07")
    assert values["settings"] == [["run.seed", "0", "1", "0"]]
    # Each run has one evaluation, which makes no curve.
    assert data["charts"].keys() == {"training", "validation"}
    names = [series["name"] for series in data["charts"]["training"]["series"]]
    assert names == ["a", "b", "c"]


def test_mean_and_spread_over_seeds_come_first(runs: list[Path]) -> None:
    first, second, third = read_runs([read_record(run) for run in runs])
    assert first.result is not None
    means = {"voc07": 0.8, "voc12": 0.7, "coco": 0.5}
    runs_of_seeds = [
        run._replace(
            result=dataclasses.replace(first.result, mean={k: v + more for k, v in means.items()})
        )
        for run, more in ((first, 0.0), (second, 0.02))
    ]
    values = compare(runs_of_seeds, "voc07").values
    # c has the seed of a, so it is no other seed of the same settings.
    assert values["sentences"][0] == (
        "a, b differ only in the seed. Their AP (11-point) is 0.810 ± 0.014: mean and standard "
        "deviation over 2 seeds, from 0.800 to 0.820."
    )
    assert "more than 0.040 (2√2 standard deviations)" in values["sentences"][1]
    assert len(values["sentences"]) == 2
    assert [cell.text for cell in values["means"][0][1][:3]] == [
        "0.8100 ± 0.0141",
        "0.7100 ± 0.0141",
        "0.5100 ± 0.0141",
    ]
    assert values["header"][3:] == ["Interval", "Steps", "Time"]
    assert values["class_header"] == ["a", "b", "Mean", "Standard deviation"]
    with_third = compare([*runs_of_seeds, third], "voc07").values
    assert any(each.startswith("c is ") for each in with_third["sentences"])


def test_groups_of_seeds_are_compared_by_their_means(runs: list[Path]) -> None:
    first, *_ = read_runs([read_record(run) for run in runs])
    assert first.result is not None
    made = []
    for name, rate, seed, mean in (
        ("a0", 0.1, 0, 0.80),
        ("a1", 0.1, 1, 0.82),
        ("b0", 0.2, 0, 0.90),
        ("b1", 0.2, 1, 0.92),
    ):
        config = {"run": {"seed": seed}, "optimizer": {"lr": rate}}
        record = dataclasses.replace(first.record, config=config)
        result = dataclasses.replace(
            first.result, mean=dict.fromkeys(("voc07", "voc12", "coco"), mean)
        )
        made.append(first._replace(name=name, record=record, result=result))
    sentences = compare(made, "voc07").values["sentences"]
    assert sentences[2] == (
        "The mean of b0, b1 is 0.100 higher than that of a0, a1. Two standard errors of this "
        "difference are 0.028, so it is more than the noise of the seeds."
    )
    assert len(sentences) == 3


def test_page_is_written_by_the_command(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["report", *map(str, runs[:2])]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == runs[0] / "comparison" / "index.html"
    assert "Comparison of 2 runs" in page.read_text(encoding="utf-8")
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert "| Run | AP 11-point |" in text
    assert "| run.seed | 0 | 1 |" in text
    named = set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", text))
    assert named == {path.name for path in page.parent.iterdir()} - {"index.html", "report.md"}
    assert command_line.main(["report", *map(str, runs), "--beside", "ssd-keras-voc0712"]) == 2


def test_a_run_may_be_named_once(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        write_comparison([runs[0], runs[0]])
