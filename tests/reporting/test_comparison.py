"""Runs side by side: differences, whether they exceed the noise, and what differs."""

import math
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
    values, data = compare(read_runs([read_record(run) for run in runs]), "voc07")
    assert values["settings"] == [["run.seed", "0", "1", "0"]]
    # c has the seed of a.
    assert values["sentences"][-1].startswith("a, b differ only in the seed")
    assert data["charts"].keys() == {"training", "validation", "average_precision"}
    names = [series["name"] for series in data["charts"]["training"]["series"]]
    assert names == ["a", "b", "c"]


def test_page_is_written_by_the_command(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["report", *map(str, runs[:2])]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == runs[0] / "comparison" / "index.html"
    assert "Comparison of 2 runs" in page.read_text(encoding="utf-8")
    assert command_line.main(["report", *map(str, runs), "--beside", "ssd-keras-voc0712"]) == 2


def test_a_run_may_be_named_once(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="named twice"):
        write_comparison([runs[0], runs[0]])
