"""The verb `report`: writes the summary page of a run.

`report/index.html` is self-contained. `report/report.md` refers to pictures in its folder. The
page follows the classic SSD training summary: result, loss, average precision, then the details.
It needs neither torch nor a GPU.
"""

import base64
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from multibox.errors import StorageError, counted
from multibox.reporting import charts, tables, text
from multibox.reporting.axes import DARK, LIGHT, Theme, png
from multibox.reporting.reading import read_record
from multibox.reporting.record import METRICS, Evaluation, Record
from multibox.reporting.reference import Reference, read_reference

MAX_SAMPLES = 16
MEDIA_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class Chart(NamedTuple):
    """A chart as PNG files for the light and the dark scheme, with an alternative text."""

    file: str
    description: str
    light: bytes
    dark: bytes


def write_report(run: Path, *, beside: str | None = None) -> Path:
    """Writes the summary page into the run folder and returns the path of index.html.

    A complete page replaces the earlier one at once.

    Args:
        run: The run folder. Evaluations, samples, timings and environment may be missing.
        beside: Name of a reference to compare the run with.

    Raises:
        ConfigError: The folder is not a run folder, or the reference does not exist.
        StorageError: A file of the run is damaged, or the page cannot be written.
    """
    reference = None if beside is None else read_reference(beside)
    record = read_record(run)
    try:
        with TemporaryDirectory(dir=run, prefix=".report-") as temporary:
            fresh = Path(temporary) / "report"
            fresh.mkdir()
            _write_pages(fresh, record, reference)
            _swap(fresh, run / "report", Path(temporary) / "previous")
    except OSError as error:
        raise StorageError(
            f"the report cannot be written ({error.strerror})",
            file=run,
            remedy="Free some space or allow writing to the folder. The earlier report was kept",
        ) from None
    return run / "report" / "index.html"


def _swap(fresh: Path, place: Path, previous: Path) -> None:
    if place.exists():
        place.rename(previous)
    try:
        fresh.rename(place)
    except OSError:
        if previous.exists():
            previous.rename(place)
        raise


def _write_pages(folder: Path, record: Record, reference: Reference | None) -> None:
    metric = _table_metric(record, reference)
    drawn = _draw(record, metric, reference)
    context = _context(record, metric, reference)
    context["charts"] = drawn
    context["samples"] = []
    for chart in drawn.values():
        (folder / chart.file).write_bytes(chart.light)
    shown = [s for s in record.samples if s.picture.suffix.lower() in MEDIA_TYPES][:MAX_SAMPLES]
    for number, sample in enumerate(shown):
        suffix = sample.picture.suffix.lower()
        content, file = sample.picture.read_bytes(), f"sample-{number}{suffix}"
        (folder / file).write_bytes(content)
        uri = _data_uri(content, MEDIA_TYPES[suffix])
        context["samples"].append({"id": sample.id, "file": file, "uri": uri})
    for template, file in (("report.html.j2", "index.html"), ("report.md.j2", "report.md")):
        page = _environment(template).get_template(template).render(context)
        (folder / file).write_text(page, encoding="utf-8", errors="backslashreplace")


def _environment(template: str) -> jinja2.Environment:
    is_html = template.endswith(".html.j2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("multibox"),
        autoescape=is_html,
        finalize=text.html_value if is_html else text.markdown_value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["decimals"] = text.decimals
    environment.globals["table"] = text.markdown_table
    environment.globals["aligned"] = tables.aligned
    environment.globals["data_uri"] = _data_uri
    return environment


def _data_uri(content: bytes, media_type: str) -> Markup:
    return Markup(f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}")


def _table_metric(record: Record, reference: Reference | None) -> str:
    """Returns the metric of the table by class: the reference's, or else the configured one."""
    if reference is not None:
        return reference.metric
    declared = record.evaluations[-1].metric if record.evaluations else "voc07"
    return "voc07" if declared == "coco" else declared


def _draw(record: Record, metric: str, reference: Reference | None) -> dict[str, Chart]:
    drawn = {}
    if record.training or record.validation:
        drawn["loss"] = _chart(
            "loss.png",
            "Training and validation loss over steps, without and with the L2 term",
            lambda theme: charts.loss_chart(record, reference, theme),
        )
    if record.evaluations:
        drawn["average_precision"] = _chart(
            "average-precision.png",
            "Mean average precision over steps",
            lambda theme: charts.average_precision_chart(record, reference, theme),
        )
    result = _result(record)
    if result and result.curves:
        drawn["curves"] = _chart(
            "precision-recall.png",
            "Precision over recall of every class",
            lambda theme: charts.precision_recall_chart(result, metric, theme),
        )
    return drawn


def _chart(file: str, description: str, draw: Callable[[Theme], Figure]) -> Chart:
    return Chart(file, description, png(draw(LIGHT)), png(draw(DARK)))


def _context(record: Record, metric: str, reference: Reference | None) -> dict[str, Any]:
    every, result = record.evaluations, _result(record)
    images_per_second, data_wait = tables.speed(record)
    return {
        "about": record.about,
        "run_name": record.folder.resolve().name,
        "evaluation": result,
        "last_step": record.last_step,
        "title": _title(record),
        "summary": _summary(record),
        "data": _data(record),
        "result_role": "Test" if _has_test_split(record) else "Validation",
        "metric_names": METRICS,
        "metric": metric,
        "precision": tables.precision_table(record, metric, reference) if every else None,
        "coco_rows": tables.coco_rows(result) if result else [],
        "reference": reference,
        "loss_rows": tables.loss_rows(record, reference) if reference else [],
        "drops": tables.drop_rows(record),
        "rollbacks": tables.rollback_rows(record),
        "object_rows": tables.object_rows(record),
        "config_rows": tables.config_rows(record),
        "environment_rows": tables.environment_rows(record),
        "time_rows": tables.time_rows(record) if record.timings else [],
        "images_per_second": images_per_second,
        "data_wait": data_wait,
    }


def _result(record: Record) -> Evaluation | None:
    """Returns the evaluation that is the result so far: of the test split, or else the last one."""
    return record.test or (record.evaluations[-1] if record.evaluations else None)


def _summary(record: Record) -> list[str]:
    """Returns sentences on the run and its result, which is never the best of several."""
    about, every = record.about, record.evaluations
    done = f"{record.last_step:,} of {about.planned_steps:,} steps"
    classes = f"{len(about.classes)} class{'' if len(about.classes) == 1 else 'es'}"
    trained = (
        f"{about.network}, trained on {about.train.name} "
        f"({counted(about.train.images, 'image')}, {classes}) for {done}"
    )
    if not every:
        return [f"{trained}, has not been evaluated yet."]
    if record.test:
        return [f"{trained}.", *_test_summary(record, record.test)]
    last = every[-1]
    best = tables.best_evaluation(every, last.metric)
    found = (
        f"{trained}, reaches {_named_mean(last)} on {about.validation.name} "
        f"({_contents(last)}) at step {last.step:,}."
    )
    stopped = 0 < record.config["run"].get("patience", 0) <= sum(e.step > best.step for e in every)
    if last.step < about.planned_steps and not stopped:
        status = "The run is not complete; this is its latest evaluation."
    elif not _has_test_split(record):
        status = (
            "There is no test split, so this result is optimistic: decisions were made on the same "
            "images."
        )
    else:
        status = "These are the weights of the last step; nothing was chosen on the test images."
    if stopped:
        status = f"The run was stopped early by its patience. {status}"
    if record.config["schedule"]["schedule"] == "plateau":
        status += " Only the learning rate was lowered by their loss."
    if len(every) == 1:
        return [found, status]
    if best.step == last.step:
        return [found, status, "No earlier evaluation was better."]
    picked = (
        f"The best evaluation was at step {best.step:,} with {_named_mean(best)}; it was "
        "chosen on these images, so it is not reported as the result."
    )
    return [found, status, picked]


def _test_summary(record: Record, test: Evaluation) -> list[str]:
    about, weights = record.about, record.config["run"]["test_weights"]
    found = (
        f"It reaches {_named_mean(test)} on {about.test.name} ({_contents(test)}), "
        f"with the weights of step {test.step:,}."
    )
    honest = (
        f"These images were evaluated once, with the {weights} weights, as declared before "
        f"training. Everything else was decided on {about.validation.name} "
        f"({counted(about.validation.images, 'image')})."
    )
    if record.last_step < about.planned_steps:
        return [found, "The run was stopped early by its patience.", honest]
    return [found, honest]


def _contents(evaluation: Evaluation) -> str:
    return f"{counted(evaluation.images, 'image')}, {counted(evaluation.objects, 'object')}"


def _has_test_split(record: Record) -> bool:
    """Whether there are images for the result alone, or a test split with both roles."""
    data = record.config["data"]
    drawn = data.get("split", "").split("/")
    return len(drawn) > 2 if drawn != [""] else bool(data["test_split"])


def _title(record: Record) -> str:
    """Returns the recipe, or the run's name if no recipe was chosen."""
    recipe = record.about.recipe
    return record.folder.resolve().name if recipe == "auto" else recipe


def _data(record: Record) -> list[str]:
    """Returns a sentence for each split of the run."""
    about = record.about
    splits = {"Training": about.train}
    if _has_test_split(record):
        splits |= {"Validation": about.validation} if about.validation != about.test else {}
        splits["Test"] = about.test
    else:
        splits["Validation"] = about.validation
    sentences = [
        f"{role} on {split.name}: {counted(split.images, 'image')}, "
        f"{counted(split.skipped, 'fault')} skipped."
        for role, split in splits.items()
    ]
    notes = dict.fromkeys(note for split in splits.values() for note in split.notes)
    return [*sentences, *(f"Note: {note}." for note in notes)]


def _named_mean(evaluation: Evaluation) -> str:
    kind = "COCO AP" if evaluation.metric == "coco" else f"mAP ({METRICS[evaluation.metric]})"
    return f"{text.decimals(evaluation.mean[evaluation.metric])} {kind}"
