"""The charts' contents, through matplotlib's objects, and that odd input can be drawn."""

import itertools
from pathlib import Path

import pytest
import synthetic_runs
from matplotlib.text import Annotation

from multibox.reporting.axes import DARK, LIGHT, Line, draw_lines, name_ends, new_figure, png
from multibox.reporting.charts import average_precision_chart, loss_chart, precision_recall_chart
from multibox.reporting.reading import read_record
from multibox.reporting.record import Record
from multibox.reporting.reference import read_reference


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    run = synthetic_runs.write_run(
        tmp_path_factory.mktemp("runs") / "run", synthetic_runs.LIKE_THE_REFERENCE
    )
    synthetic_runs.add_evaluations(run, synthetic_runs.LIKE_THE_REFERENCE)
    return read_record(run)


def test_loss_chart_has_the_journals_numbers_and_the_drops(record: Record) -> None:
    upper, lower = loss_chart(record, None, LIGHT).axes
    training, validation, *marks = upper.lines
    assert list(training.get_xdata()) == [loss.step for loss in record.training]
    assert list(training.get_ydata()) == [loss.multibox for loss in record.training]
    assert list(validation.get_ydata()) == [loss.multibox for loss in record.validation]
    assert list(lower.lines[0].get_ydata()) == [l.multibox + l.l2 for l in record.training]  # noqa: E741
    assert [mark.get_xdata()[0] for mark in marks] == [80_000, 100_000]
    assert {"lr 0.0001", "lr 0.00001"} <= {text.get_text() for text in upper.texts}


def test_reference_curve_is_only_beside_the_loss_with_the_l2_term(record: Record) -> None:
    reference = read_reference("ssd-keras-voc0712")
    bare, beside = loss_chart(record, None, LIGHT), loss_chart(record, reference, LIGHT)
    assert len(beside.axes[0].lines) == len(bare.axes[0].lines)
    assert len(beside.axes[1].lines) == len(bare.axes[1].lines) + 2
    assert list(beside.axes[1].lines[2].get_ydata()) == reference.loss["training"]


def test_average_precision_chart_has_every_metric(record: Record) -> None:
    (axes,) = average_precision_chart(record, read_reference("ssd-keras-voc0712"), LIGHT).axes
    means = [[e.mean[metric] for e in record.evaluations] for metric in ("voc07", "voc12", "coco")]
    assert [list(line.get_ydata()) for line in axes.lines[:3]] == means
    assert axes.lines[3].get_ydata()[-1] == 0.7711


def test_many_classes_have_a_panel_each_by_falling_precision(record: Record) -> None:
    evaluation = record.evaluations[-1]
    figure = precision_recall_chart(evaluation, "voc07", DARK)
    titles = [axes.get_title(loc="left").split("\n") for axes in figure.axes if axes.get_visible()]
    assert sorted(name for name, _ in titles) == sorted(synthetic_runs.VOC)
    shown = [float(ap) for _, ap in titles]
    assert shown == sorted(shown, reverse=True)
    for name, ap in titles:
        assert ap == f"{evaluation.classes['voc07'][name]:.4f}"


@pytest.mark.parametrize("count", [3, 9])
def test_odd_names_and_classes_without_objects_can_be_drawn(tmp_path: Path, count: int) -> None:
    names = ["$\\frac{", "_hidden", "漢字\n\ud800"] + [f"class {n}" for n in range(3, count)]
    run = synthetic_runs.write_run(tmp_path / "run", synthetic_runs.STOPPED)
    (run / "evaluations").mkdir()
    found = synthetic_runs.evaluation(5, dict.fromkeys(names, 0.5))
    found["voc07"]["AP"][names[0]] = None
    found["curves"][names[0]] = {"recall": [], "precision": [], "scores": []}
    synthetic_runs.write_json(run / "evaluations" / "step-00000005.json", found)
    figure = precision_recall_chart(read_record(run).evaluations[-1], "voc07", LIGHT)
    assert png(figure).startswith(b"\x89PNG")
    if count == 3:
        assert len(figure.legends[0].get_texts()) == 3


def test_names_at_the_ends_of_lines_keep_apart() -> None:
    figure = new_figure(3.0, LIGHT)
    axes = figure.subplots()
    lines = [Line(str(n), [0, 10], [1.0, 1.0 + n / 1000], "black") for n in range(4)]
    draw_lines(axes, lines)
    name_ends(axes, lines)
    figure.draw_without_rendering()
    names = [child for child in axes.texts if isinstance(child, Annotation)]
    boxes = sorted((name.get_window_extent() for name in names), key=lambda box: box.y0)
    assert len(boxes) == 4
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


def test_loss_that_falls_far_is_drawn_over_a_logarithmic_axis() -> None:
    for values, scale in (([16.0, 2.0], "linear"), ([1e6, 2.0], "log")):
        axes = new_figure(3.0, LIGHT).subplots()
        draw_lines(axes, [Line("training", [0, 10], values, "black")])
        assert axes.get_yscale() == scale
