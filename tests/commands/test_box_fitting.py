"""Default boxes that are fitted to the objects of a training split."""

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles.box_fitting import best_overlaps
from rich.console import Console
from tiny import LEVELS, SIDE, SMALLER
from torch import Tensor

from multibox.build import NETWORKS, default_box_tables
from multibox.commands.box_fitting import Fit, fit_levels, fitted_levels, overlap
from multibox.config import AugmentationConfig, Config, DataConfig
from multibox.data.check.statistics import BoxTable, split_statistics
from multibox.data.dataset import Annotation, Dataset
from multibox.rng import stream
from multibox.ssd.default_boxes import (
    MOBILENET_CAFFE_LEVELS,
    SSD7_LEVELS,
    SSD300_COCO,
    SSD300_VOC,
    Level,
    default_boxes,
)

NONE = torch.zeros(0, 4)
SIZE = (300, 300)
TABLES = [SSD300_VOC, SSD300_COCO]


def drawn(count: int, *, size: float, ratio: float, spread: float = 0.0, seed: int = 0) -> Tensor:
    """Boxes around one size, as a fraction of the image, and one ratio, at random places."""
    rng = stream(seed, "boxes")
    sizes = np.exp(rng.normal(math.log(size), spread, count))
    roots = np.exp(rng.normal(math.log(ratio), spread, count)) ** 0.5
    sides = np.minimum(np.stack([sizes * roots, sizes / roots], axis=1), 0.99)
    low = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    return torch.from_numpy(np.concatenate([low, low + sides], axis=1).astype(np.float32))


def labels(folder: Path) -> Tensor:
    """The boxes of VOC annotations, without a look at the images."""
    boxes = []
    for path in sorted(folder.glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")] * 2
        for item in root.iter("bndbox"):
            corners = [float(item.findtext(n) or 0) for n in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append([corner / side for corner, side in zip(corners, size, strict=True)])
    found = torch.tensor(boxes)
    return found[(found[:, 2:] > found[:, :2]).all(dim=1)]


def fit(objects: Tensor, tables: list[tuple[Level, ...]] = TABLES) -> Fit:
    found = fit_levels(objects, NONE, tables, SIZE)
    assert found.overlap == overlap(objects, found.levels, SIZE)
    assert found.before == overlap(objects, tables[0], SIZE)
    assert found.overlap.share >= found.before.share
    assert found.overlap.mean >= found.before.mean
    return found


@pytest.mark.parametrize("levels", [LEVELS, (LEVELS[0], LEVELS[1]._replace(doubled=2))])
def test_the_overlap_is_that_of_a_plain_loop(levels: tuple[Level, ...]) -> None:
    objects = torch.cat([drawn(40, size=size, ratio=1, spread=0.4) for size in (0.2, 0.6)])
    best = best_overlaps(objects.tolist(), levels, (SIDE, SIDE))
    found = overlap(objects, levels, (SIDE, SIDE))
    assert found.mean == pytest.approx(sum(best) / len(best), rel=1e-5)
    assert found.share == sum(value >= 0.5 for value in best) / len(best)
    assert 0 < found.share < 1


def test_fitted_levels_overlap_as_much_as_a_plain_loop_counts() -> None:
    objects = drawn(60, size=0.2, ratio=0.5, spread=0.3)
    found = fit_levels(objects, NONE, [LEVELS, SMALLER], (SIDE, SIDE))
    best = best_overlaps(objects.tolist(), found.levels, (SIDE, SIDE))
    assert found.overlap.mean == pytest.approx(sum(best) / len(best), rel=1e-5)
    before = best_overlaps(objects.tolist(), LEVELS, (SIDE, SIDE))
    assert sum(best) > sum(before)
    assert sum(b >= 0.5 for b in best) > sum(b >= 0.5 for b in before)


def test_check_prints_the_same_share() -> None:
    dataset = dataset_of(drawn(300, size=0.08, ratio=0.6, spread=0.5))
    for scales, boxes in default_box_tables("ssd300-vgg16").items():
        (reach,) = split_statistics(dataset, [BoxTable("ssd300-vgg16", scales, SIZE, boxes)]).reach
        levels = NETWORKS["ssd300-vgg16"].tables[scales]
        objects = torch.from_numpy(dataset.annotations[0].boxes)
        assert overlap(objects, levels, SIZE).share == pytest.approx(1 - reach.forced)


@pytest.mark.parametrize(
    ("size", "ratio", "gain"), [(0.1, 0.4, 0.1), (0.04, 1.0, 0.3), (0.3, 4.0, 0.1)]
)
def test_a_fit_improves_other_objects_of_the_same_kind(
    size: float, ratio: float, gain: float
) -> None:
    seen, unseen = (drawn(400, size=size, ratio=ratio, spread=0.3, seed=seed) for seed in (0, 1))
    found = fit(seen)
    before = max(overlap(unseen, table, SIZE).share for table in TABLES)
    assert overlap(unseen, found.levels, SIZE).share > before + gain


def test_a_fit_improves_blood_cells(shared: Path) -> None:
    cells = labels(shared / "data/bccd/VOCdevkit/BCCD/Annotations")
    found = fit(cells[::2])
    assert found.overlap.share > 0.99 > found.before.share
    for table in TABLES:
        assert overlap(cells[1::2], found.levels, SIZE).mean > (
            overlap(cells[1::2], table, SIZE).mean + 0.02
        )


def test_a_fit_improves_raccoons(shared: Path) -> None:
    raccoons = labels(shared / "data/raccoon/annotations")
    found = fit(raccoons[::2])
    unseen = overlap(raccoons[1::2], found.levels, SIZE)
    assert unseen.share == 1
    assert unseen.mean > overlap(raccoons[1::2], SSD300_VOC, SIZE).mean + 0.05


def test_a_fit_is_not_worse_on_labels_like_those_of_voc(shared: Path) -> None:
    objects = labels(shared / "data/voc-devkit-goldens/VOC2007/Annotations")
    found = fit(objects[::2])
    unseen, before = (overlap(objects[1::2], x, SIZE) for x in (found.levels, SSD300_VOC))
    assert unseen.share >= before.share
    assert unseen.mean >= before.mean


@pytest.mark.parametrize("count", [1, 30])
def test_few_objects_of_one_size_leave_boxes_for_other_sizes(count: int) -> None:
    found = fit(drawn(count, size=0.2, ratio=1.5))
    # One level may serve the objects. All others are near the sizes that they had.
    for size in (0.08, 0.15, 0.3, 0.5, 0.8):
        others = drawn(200, size=size, ratio=1, spread=0.1, seed=3)
        share = overlap(others, found.levels, SIZE).share
        assert share > 0.9 * max(overlap(others, table, SIZE).share for table in TABLES), size


def test_boxes_that_fit_already_are_kept() -> None:
    """Objects that are the default boxes themselves cannot be overlapped better."""
    boxes = default_boxes(SSD300_VOC, SIZE)
    inside = boxes[(boxes >= 0).all(dim=1) & (boxes <= 1).all(dim=1)]
    found = fit(inside)
    assert found.levels == SSD300_VOC
    assert found.overlap.mean == pytest.approx(1)


@pytest.mark.parametrize("tables", [TABLES, TABLES[::-1]])
def test_the_search_also_starts_from_the_other_tables(
    tables: list[tuple[Level, ...]],
) -> None:
    boxes = default_boxes(tables[1], SIZE)
    found = fit(boxes[(boxes >= 0).all(dim=1) & (boxes <= 1).all(dim=1)][::5], tables)
    assert found.overlap.mean > 0.95 > found.before.mean


def test_a_fit_keeps_the_shapes_of_the_heads() -> None:
    for own, size in (
        (SSD300_COCO, SIZE),
        (SSD7_LEVELS, (300, 480)),
        (MOBILENET_CAFFE_LEVELS, SIZE),
    ):
        found = fit_levels(drawn(50, size=0.1, ratio=0.5, spread=0.5), NONE, [own], size).levels
        for level, before in zip(found, own, strict=True):
            assert (level.cells, level.step_px) == (before.cells, before.step_px)
            assert level.boxes_per_cell == before.boxes_per_cell
            assert len(level.shapes_px(whole_scales=True)) == level.boxes_per_cell
            assert level.ratios.index(level.doubled) == before.ratios.index(before.doubled)
            assert level.min_size_px == int(level.min_size_px)
            assert (level.max_size_px is None) == (before.max_size_px is None)
            assert level.max_size_px is None or level.max_size_px > level.min_size_px
        assert len({level.doubled for level in found}) == 1


def test_neither_order_nor_threads_decide() -> None:
    objects = drawn(500, size=0.1, ratio=0.5, spread=0.5)
    found, threads = fit_levels(objects, objects, TABLES, SIZE), torch.get_num_threads()
    try:
        torch.set_num_threads(1 + threads % 2)
        assert fit_levels(objects.flip(0), objects.flip(0), TABLES, SIZE) == found
    finally:
        torch.set_num_threads(threads)


def dataset_of(objects: Tensor, difficult: bool = False) -> Dataset:
    one = Annotation(
        "1",
        Path("1.jpg"),
        400,
        200,
        objects.numpy() * np.array([400, 200, 400, 200], np.float32),
        np.zeros(len(objects), np.int64),
        np.full(len(objects), difficult),
    )
    return Dataset("train", ("a",), (one,))


CONFIG = Config(network="ssd300-lite", fit_boxes=True)


def fitted(config: Config, dataset: Dataset) -> tuple[tuple[Level, ...], str]:
    said = io.StringIO()
    return fitted_levels(config, dataset, Console(file=said, width=80)), said.getvalue()


def test_the_overlap_before_and_after_is_printed() -> None:
    objects = drawn(200, size=0.1, ratio=0.4, spread=0.3)
    levels, said = fitted(CONFIG, dataset_of(objects))
    after, before = (overlap(objects, found, SIZE) for found in (levels, SSD300_COCO))
    assert said.startswith(
        f"Default boxes fitted to 200 objects: {100 * after.share:.1f} % have a default box at an "
        f"IoU of 0.5 (own boxes: {100 * before.share:.1f} %), mean best IoU {after.mean:.2f} "
        f"({before.mean:.2f})\n"
    )
    assert re.search(rf"38 x 38 +│ {levels[0].min_size_px:.0f}, \d+ ", said)
    assert f"{levels[0].doubled} (both sizes)" in said


def test_nothing_is_fitted_unless_asked_for() -> None:
    dataset = dataset_of(drawn(200, size=0.1, ratio=0.4))
    assert fitted(replace(CONFIG, fit_boxes=False), dataset) == ((), "")


def test_the_seed_has_no_effect_but_the_augmentation_has() -> None:
    dataset = dataset_of(drawn(50, size=0.1, ratio=0.4, spread=0.3))
    found = fitted(CONFIG, dataset)[0]
    assert fitted(replace(CONFIG, run=replace(CONFIG.run, seed=5)), dataset)[0] == found
    plain = AugmentationConfig(crop=False, expand_probability=0.0)
    assert fitted(replace(CONFIG, augmentation=plain), dataset)[0] != found


def test_difficult_objects_count_if_they_are_trained_on() -> None:
    dataset = dataset_of(drawn(50, size=0.1, ratio=0.4, spread=0.3), difficult=True)
    assert fitted(CONFIG, dataset)[0]
    easy = replace(CONFIG, data=DataConfig(train_difficult=False))
    assert fitted(easy, dataset) == (
        (),
        "note: all objects are difficult, so no default boxes are fitted\n",
    )
