"""The verb `reproduce`: from an empty machine to a page beside the published results.

It calls the other verbs one after the other: `download`, `check`, `train` and `report`. What is
finished is found on the disk, so the same command resumes at every point:

- data: the dataset's folder has all splits, and the file of weights exists;
- check: a run exists, because the first one begins after the check;
- each seed: the run resumes from its last checkpoint;
- pages: they are written again.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from multibox.commands.check import check, print_check
from multibox.commands.report import replace_folder, write_comparison, write_report
from multibox.commands.reproduction.look_alike import SCALE
from multibox.commands.reproduction.state import (
    Download,
    Place,
    draw,
    has_begun,
    has_splits,
    initial_weights,
    is_finished,
    missing,
)
from multibox.commands.reproduction.targets import Target
from multibox.commands.train import Request, require_apart, train
from multibox.errors import ConfigError, DataError
from multibox.processes.distributed import is_one_of_several
from multibox.reporting import reproduction
from multibox.reporting.comparison import MOST_RUNS, read_runs
from multibox.reporting.page import render
from multibox.reporting.reading import read_record
from multibox.reporting.reference import read_reference
from multibox.weights.files import NO_LICENCE

Fetch = Callable[[Sequence[str], Path], object]
"""Downloads datasets and weights into a folder."""


def reproduce(
    target: Target,
    place: Place,
    console: Console,
    *,
    fetch: Fetch,
    confirm: Callable[[list[Download]], None],
    scale: int = SCALE,
) -> Path:
    """Reproduces a published training, and returns the page that compares it.

    A second call resumes where the first stopped.

    Args:
        target: The training.
        place: The folders and options.
        console: Prints messages.
        fetch: Downloads what is missing.
        confirm: Asks the user for permission to download. It raises an error without permission.
        scale: For a rehearsal: divisor of VOC's numbers of images.

    Raises:
        MultiboxError: An option, the data or an existing run cannot be used.
        Interrupted: A signal stopped a run; its state is saved.
    """
    require_options(place)
    _fetch_missing(target, place, console, fetch=fetch, confirm=confirm, scale=scale)
    if not has_begun(place):
        _check(target, place.data / target.data, console)
    for seed in place.seeds:
        _train(target, place, seed, console)
    return _summarise(target, place)


def require_options(place: Place) -> None:
    """Checks the options.

    Raises:
        ConfigError: The seeds cannot be used, a folder contains the other one, or this is one of
            several processes.
    """
    if not place.seeds or len(set(place.seeds)) < len(place.seeds) or min(place.seeds) < 0:
        raise ConfigError(
            f"seeds are {list(place.seeds)}, but they must be different and not negative",
            remedy="Change --seeds",
        )
    if len(place.seeds) > MOST_RUNS:
        raise ConfigError(f"a page has room for {MOST_RUNS} seeds", remedy="Change --seeds")
    if is_one_of_several():
        raise ConfigError(
            "reproduce works with one process only", remedy="Use torchrun with multibox train"
        )


def _fetch_missing(
    target: Target,
    place: Place,
    console: Console,
    *,
    fetch: Fetch,
    confirm: Callable[[list[Download]], None],
    scale: int,
) -> None:
    require_apart(place.out, place.data / target.data)
    if not target.datasets:
        _say(f"Drawing a dataset in {place.data / target.data}", console)
        draw(target, place.data, scale=scale)
    elif downloads := missing(target, place):
        confirm(downloads)
        fetch([each.name for each in downloads], place.data)
    if not has_splits(target, place.data):
        raise DataError(
            f"does not have the splits {', '.join(target.images)}",
            kind="split-missing",
            file=place.data / target.data,
            remedy="Remove the folder, or choose another one for --data",
        )


def _check(target: Target, data: Path, console: Console) -> None:
    """Checks the splits that are used, and that they have the published numbers of images."""
    _say(f"Checking {data}", console)
    found = check(data, console, splits=tuple(target.images))
    faults = [finding for finding in found.findings if finding.severity == "fault"]
    if faults:
        print_check(found, console, examples=3)
    if faults and target.config().data.on_bad == "fail":
        raise DataError(
            f"{len(faults)} faults, such as: {faults[0].reason}",
            kind=faults[0].kind,
            file=faults[0].file,
            position=faults[0].position,
            remedy="Remove the folder, and run the same command to download it again",
        )
    for split, images in target.images.items():
        read = found.census[split].images if split in found.census else 0
        if read != images:
            raise ConfigError(
                f"{split} has {read:,} images, but the published dataset has {images:,}",
                file=data,
                remedy="Choose another folder for --data",
            )


def _train(target: Target, place: Place, seed: int, console: Console) -> None:
    """Trains or resumes a run, and writes its page."""
    run, config = place.run(seed), place.config(target, seed)
    page, journal = run / "report" / "index.html", run / "metrics.jsonl"
    if is_finished(run, config):
        _say(f"Seed {seed}: finished", console)
        if page.exists() and page.stat().st_mtime_ns >= journal.stat().st_mtime_ns:
            return
    else:
        _say(f"Seed {seed}: {run}", console)
        data, init = place.data / target.data, initial_weights(target, place.data)
        train(Request(target.recipe, config, data, run, init, NO_LICENCE), console)
    write_report(run, beside=target.published.reference or None)


def _summarise(target: Target, place: Place) -> Path:
    """Writes the summary page and its figures, and returns the page."""
    folders = [place.run(seed) for seed in place.seeds]
    if len(folders) > 1:
        write_comparison(folders)
    published = target.published
    reference = read_reference(published.reference) if published.reference else None
    runs = read_runs([read_record(folder) for folder in folders])
    found = reproduction.compare_with_published(runs, published, reference)
    values, data = reproduction.page_values(found)
    title = f"Rehearsal: {target.title}" if target.warning else f"Reproduction: {target.title}"
    values |= {"title": title, "warning": target.warning}

    def write(folder: Path) -> None:
        page = render("reproduction.html.j2", values, data=data)
        (folder / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        figures = {"target": title, "comparable": not target.warning}
        text = json.dumps(figures | reproduction.as_json(found), indent=2, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")

    return replace_folder(place.out, "summary", write)


def _say(text: str, console: Console) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
