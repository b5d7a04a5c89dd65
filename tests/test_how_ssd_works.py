"""docs/how-ssd-works.md: its examples run, its tables are true, and its pictures can be made."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
import torch

from multibox.ssd.default_boxes import SSD300_VOC, default_boxes
from multibox.ssd.matching import match_boxes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-ssd-works.md"
TEXT = PAGE.read_text(encoding="utf-8")
PICTURES = dict(re.findall(r"!\[(.*?)\]\(images/(.*?)\)", TEXT))
MOST_BYTES = 400_000


def test_the_examples_print_what_the_page_shows() -> None:
    blocks = re.findall(r"^```pycon\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    example = doctest.DocTestParser().get_doctest("".join(blocks), {}, PAGE.name, str(PAGE), 0)
    assert len(example.examples) > 20
    result = doctest.DocTestRunner().run(example)
    assert result.failed == 0


def test_the_code_of_the_network_is_that_of_the_page() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    source = (ROOT / "src/multibox/ssd/network.py").read_text(encoding="utf-8")
    body = block.splitlines()[1:]
    assert len(body) == 5
    for line in body:
        assert f"\n    {line}\n" in source, line


def test_the_lines_of_the_modules_are_those_of_the_table() -> None:
    rows = re.findall(r"\| `([\w/]+\.py)` \| (\d+) \|", TEXT)
    assert len(rows) == 14
    for module, lines in rows:
        path = ROOT / "src" / "multibox" / module
        count = len(path.read_text(encoding="utf-8").splitlines())
        assert abs(count - int(lines)) <= 10, f"{module} has {count} lines: change the table"


def test_the_table_of_levels_is_that_of_ssd300() -> None:
    pattern = r"^\| `\w+` \| (\d+) × \d+ \| (\d+) px \| (\d+) px \| .* \| ([\d,]+) \|"  # noqa: RUF001
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    for row, level in zip(rows, SSD300_VOC, strict=True):
        cells, step, scale, boxes = (int(number.replace(",", "")) for number in row)
        assert (cells, cells) == level.cells
        assert (step, step) == level.step_px
        assert scale == level.min_size_px
        assert boxes == cells**2 * level.boxes_per_cell


def test_the_script_makes_the_pictures_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pictures = importlib.import_module("ssd_pictures")
    made = pictures.main(tmp_path, steps=2)
    shown = [Path(name).stem for name in PICTURES.values()]
    assert list(made) == shown
    assert all(len(description) > 50 for description in PICTURES)
    stored = [(ROOT / "docs" / "images" / name) for name in PICTURES.values()]
    assert sum(path.stat().st_size for path in stored) < MOST_BYTES
    assert sum(made.values()) < MOST_BYTES


def test_the_descriptions_name_what_was_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pictures = importlib.import_module("ssd_pictures")
    scene = pictures.draw(pictures.SCENE)
    table = default_boxes(SSD300_VOC, (pictures.SIDE, pictures.SIDE))
    _, item = match_boxes(table, scene.boxes, torch.zeros(len(scene.labels), dtype=torch.int64))
    counts = torch.bincount(item).tolist()
    (description,) = (text for text, name in PICTURES.items() if name == "ssd-matching.webp")
    assert re.findall(r"\d+", description) == [str(count) for count in counts]
