"""The verb `report`: writes the summary page of a run.

`report/index.html` is self-contained. `report/report.md` refers to pictures in its folder. The
page follows the classic SSD training summary: result, loss, average precision, then the details.
It needs no GPU.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from multibox.errors import ConfigError, StorageError
from multibox.reporting import charts, summary
from multibox.reporting.axes import LIGHT, png
from multibox.reporting.comparison import compare, read_runs
from multibox.reporting.context import build_context
from multibox.reporting.page import render
from multibox.reporting.pictures import webp
from multibox.reporting.reading import read_record
from multibox.reporting.record import Record
from multibox.reporting.reference import Reference, read_reference

MAX_SAMPLES = 16
SAMPLE_SIDE_PX = 420
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Still(NamedTuple):
    """A chart as a PNG file, for report.md and for browsers without scripts."""

    file: str
    description: str
    png: bytes


def write_report(run: Path, *, beside: str | None = None, refresh: int = 0) -> Path:
    """Writes the summary page into the run folder and returns the path of index.html.

    A complete page replaces the earlier one at once.

    Args:
        run: The run folder. Evaluations, samples, timings and environment may be missing.
        beside: Name of a reference to compare the run with.
        refresh: Number of seconds after which browsers load the page again. 0: they do not.

    Raises:
        ConfigError: The folder is not a run folder, or the reference does not exist.
        StorageError: A file of the run is damaged, or the page cannot be written.
    """
    reference = None if beside is None else read_reference(beside)
    record = read_record(run)

    def write(folder: Path) -> None:
        _write_pages(folder, record, reference, refresh)

    return replace_folder(run, "report", write)


def write_comparison(runs: Sequence[Path], *, refresh: int = 0) -> Path:
    """Writes a page that compares runs to `comparison/` in the folder of the first.

    Args:
        runs: The run folders, at least two. The others are compared with the first.
        refresh: Number of seconds after which browsers load the page again. 0: they do not.

    Returns:
        The path of index.html.

    Raises:
        ConfigError: A folder is not a run folder, is named twice, or there are too many.
        StorageError: A file of a run is damaged, or the page cannot be written.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is named twice", remedy="Name each run once")
    records = [read_record(run) for run in runs]
    compared = read_runs(records)
    metric = compared[0].result.metric if compared[0].result else "voc07"

    def write(folder: Path) -> None:
        values, data = compare(compared, metric)
        values["refresh"] = refresh
        page = render("comparison.html.j2", values, data=data)
        (folder / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")

    return replace_folder(runs[0], "comparison", write)


def is_finished(run: Path) -> bool:
    """Whether a run has completed all of its steps."""
    record = read_record(run)
    return record.last_step >= record.about.planned_steps


def keep_renewing(renew: Callable[[], bool], seconds: int) -> None:
    """Calls a function every some seconds, until it returns that there will be nothing new."""
    while renew():
        time.sleep(seconds)


def wait_for_interrupt() -> None:
    """Waits until the user ends the program."""
    while True:
        time.sleep(3600)


def replace_folder(run: Path, name: str, write: Callable[[Path], None]) -> Path:
    """Replaces a folder of a run, and returns the path of its page.

    Args:
        run: The folder that contains it.
        name: Name of the folder.
        write: Writes the content into a new folder.

    Raises:
        StorageError: The folder cannot be written. The earlier one is kept.
    """
    try:
        with TemporaryDirectory(dir=run, prefix=".report-") as temporary:
            fresh = Path(temporary) / name
            fresh.mkdir()
            write(fresh)
            _swap(fresh, run / name, Path(temporary) / "previous")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written ({error.strerror})",
            file=run,
            remedy="Free some space or allow writing to the folder. The earlier report was kept",
        ) from None
    return run / name / "index.html"


def _swap(fresh: Path, place: Path, previous: Path) -> None:
    if place.exists():
        place.rename(previous)
    try:
        fresh.rename(place)
    except OSError:
        if previous.exists():
            previous.rename(place)
        raise


def _write_pages(folder: Path, record: Record, reference: Reference | None, refresh: int) -> None:
    metric = _table_metric(record, reference)
    context = build_context(record, metric, reference)
    values = context.values
    values["stills"] = stills = _draw(record, metric, reference)
    values["samples"] = []
    values["refresh"] = refresh
    for still in stills.values():
        (folder / still.file).write_bytes(still.png)
    shown = [s for s in record.samples if s.picture.suffix.lower() in SUFFIXES][:MAX_SAMPLES]
    for number, sample in enumerate(shown):
        content = sample.picture.read_bytes()
        file = f"sample-{number}{sample.picture.suffix.lower()}"
        (folder / file).write_bytes(content)
        values["samples"].append({"id": sample.id, "file": file, "uri": _small(content)})
    for template, file in (("report.html.j2", "index.html"), ("report.md.j2", "report.md")):
        page = render(template, values, data=context.data)
        (folder / file).write_text(page, encoding="utf-8", errors="backslashreplace")


def _small(content: bytes) -> Markup:
    """Returns a smaller copy of a picture as a data URI; nothing if it cannot be read."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        return Markup("")
    height, width = pixels.shape[:2]
    scale = min(1.0, SAMPLE_SIDE_PX / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return Markup(f"data:image/webp;base64,{webp(small)}")


def _table_metric(record: Record, reference: Reference | None) -> str:
    """Returns the metric of the table by class: the reference's, or else the configured one."""
    if reference is not None:
        return reference.metric
    declared = record.evaluations[-1].metric if record.evaluations else "voc07"
    return "voc07" if declared == "coco" else declared


def _draw(record: Record, metric: str, reference: Reference | None) -> dict[str, Still]:
    drawn = {}
    if record.training or record.validation:
        drawn["loss"] = Still(
            "loss.png",
            "Training and validation loss over steps, without and with the L2 term",
            png(charts.loss_chart(record, reference, LIGHT)),
        )
    if record.evaluations:
        drawn["average_precision"] = Still(
            "average-precision.png",
            "Mean average precision over steps",
            png(charts.average_precision_chart(record, reference, LIGHT)),
        )
    result = summary.result(record)
    if result and result.curves:
        drawn["curves"] = Still(
            "precision-recall.png",
            "Precision over recall of every class",
            png(charts.precision_recall_chart(result, metric, LIGHT)),
        )
    return drawn
