"""The benchmark of a GPU runs through without one, on tiny work."""

import importlib
import json
from pathlib import Path

import pytest
from tiny import TINY

from multibox import build
from multibox.config import Config
from multibox.recipes import RECIPES

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_both_pipelines_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    gpu = importlib.import_module("gpu")
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setitem(RECIPES, "tiny", lambda: Config(network="tiny"))
    monkeypatch.setitem(gpu.FORWARD_GFLOP, "tiny", 2.0)
    line = "--recipe tiny --device cpu --images 6 --batches 2 --seconds 0.2 --warmup 1 --workers 0"
    gpu.main([*line.split(), "--peak-tflops", "3", "--parts", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["resident_bytes"] == 6 * 500 * 375 * 3
    assert found["agreement"]["same_bits_as_on_the_cpu"]
    assert found["agreement"]["within_3_levels"] > 0.98
    assert [row["pipeline"] for row in found["training"]] == ["cpu", "cuda"]
    text = path.with_suffix(".md").read_text()
    for row in found["training"]:
        assert 0 < row["data_wait"] < 1
        assert row["utilisation"] == pytest.approx(row["images_per_second"] * 6e9 / 3e12)
        assert f"| {row['images_per_second']:.1f} |" in text
