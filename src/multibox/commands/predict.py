"""The verb `predict`: detects objects in images and videos, and writes the results."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from multibox.commands.prediction.chunks import (
    ChunkFiles,
    Done,
    MissingChunks,
    detect_chunk,
    parse_shard,
)
from multibox.commands.prediction.items import Fetch, VideoRef, name_results
from multibox.commands.prediction.out_folder import OutFolder
from multibox.commands.prediction.pipeline import (
    How,
    Refused,
    Result,
    WriterThread,
    detect_sources,
)
from multibox.commands.prediction.ray_engine import Work, detect_with_ray, load_ray
from multibox.commands.prediction.selection import Selection, choose
from multibox.commands.prediction.sources import Listing, find_sources, refuse_inside
from multibox.commands.prediction.table_writers import CocoWriter, CsvWriter, VocWriter
from multibox.commands.prediction.video import load_av
from multibox.commands.prediction.writers import (
    CropWriter,
    JsonWriter,
    PictureWriter,
    Sources,
    Writer,
    YoloWriter,
)
from multibox.detector import Detector
from multibox.errors import ConfigError, DataError, MultiboxError, StorageError, counted
from multibox.weights.files import find_weights

Save = Literal["images", "json", "csv", "coco", "yolo", "voc", "crops", "parquet", "none"]

_QUIET = Console(quiet=True)
_MAX_REFUSALS = 1000


class Options(NamedTuple):
    """How `predict` detects and what it writes.

    Attributes:
        score_threshold: Detections with a lower score are left out, 0..1. None: the one that the
            weights store, or else `DEFAULT_SCORE_THRESHOLD`.
        classes: Names of the classes to keep. Empty: all.
        class_thresholds: Lowest score for single classes, 0..1.
        save: What is written.
        batch_size: Number of images that the network computes at once.
        flip: Whether the mirror image is used as well.
        max_frames: Maximum number of frames of each video. None: all.
    """

    score_threshold: float | None = None
    classes: tuple[str, ...] = ()
    class_thresholds: dict[str, float] | None = None
    save: tuple[Save, ...] = ("json", "images")
    batch_size: int = 8
    flip: bool = False
    max_frames: int | None = None


class Predicted(NamedTuple):
    """What was detected.

    Attributes:
        images: Number of images and frames.
        objects: Number of objects that were detected in them.
        refusals: The errors of images and videos that cannot be read, at most the first 1000.
        refused: Number of images and videos that cannot be read.
        score_threshold: The threshold that was used, and where it is from, as a sentence without a
            full stop.
    """

    images: int
    objects: int
    refusals: list[MultiboxError]
    refused: int
    score_threshold: str


def no_addresses(address: str) -> bytes:
    """Refuses an http(s) address, for callers that may not use the network."""
    raise ConfigError(f"{address} is an address, and this call may not open connections")


def predict(
    detector: Detector,
    sources: Sequence[str | Path] | Listing,
    *,
    out: Path | None,
    options: Options = Options(),  # noqa: B008  # immutable
    fetch: Fetch = no_addresses,
    console: Console = _QUIET,
) -> Predicted:
    """Detects the objects in images and videos, and writes the results.

    If an image cannot be read, the others are still processed.

    Args:
        detector: Detects the objects.
        sources: Files, folders, patterns, archives, addresses and cameras (see `find_sources`).
        out: Folder to write to; created if it does not exist. None: nothing is written.
        options: How to detect and what to write.
        fetch: Reads http(s) addresses.
        console: Shows the progress.

    Raises:
        ConfigError: `sources` is empty, or an option is out of range.
        DataError: A folder has no images, or cannot be listed.
        StorageError: The folder cannot be written, or it has a file of the same name that `predict`
            did not write.
    """
    listing = sources if isinstance(sources, Listing) else Listing([str(word) for word in sources])
    selection, described = choose_detections(detector, options)
    if not listing.words:
        raise ConfigError("no image is given", remedy="Name at least one image file or folder")
    if out is not None:
        refuse_inside(out, listing.words)
    refs = list(find_sources(listing))
    if any(isinstance(ref, VideoRef) for ref in refs):
        load_av()
    named = list(zip(refs, name_results(refs), strict=True))
    writers = _make_writers(detector.classes, named, out, options.save)
    how = How(selection, options.batch_size, options.flip, fetch, options.max_frames)
    counts, refusals = [0, 0, 0], list[MultiboxError]()

    def write(batch: list[Result | Refused]) -> None:
        for result in batch:
            if isinstance(result, Refused):
                counts[2] += 1
                refusals.extend([result.error][: _MAX_REFUSALS - len(refusals)])
                continue
            counts[0] += 1
            counts[1] += len(result.named)
            for writer in writers:
                writer.write(result)

    with progress_bar(console) as progress, ExitStack() as closing:
        for writer in writers:
            closing.callback(writer.close)
        videos = any(isinstance(ref, VideoRef) for ref in refs)
        task = progress.add_task("images", total=None if videos else len(refs))
        with WriterThread(write) as thread:
            for batch in detect_sources(detector, named, how):
                thread.put(batch)
                progress.advance(task, len(batch))
    return Predicted(counts[0], counts[1], refusals, counts[2], described)


class Many(NamedTuple):
    """How many images are shared out.

    Attributes:
        model: Folder of a run or of a checkpoint, a weights file, or the name of downloaded
            weights.
        which: Checkpoint of a run.
        shard: The share of this command, such as `1/4`.
        device: Device of the workers' networks: `auto`, `cpu` or `cuda`.
        chunk_size: Number of images in each file.
        engine: Whether the workers of Ray Data detect, or this process.
    """

    model: Path
    which: str = "last"
    device: str = "auto"
    shard: str = "1/1"
    chunk_size: int = 512
    engine: Literal["local", "ray"] = "local"


def predict_many(
    detector: Detector,
    listing: Listing,
    many: Many,
    *,
    out: Path,
    options: Options,
    fetch: Fetch = no_addresses,
    console: Console = _QUIET,
) -> Predicted:
    """Detects the objects in many images, and writes Parquet files (see `chunks.py`).

    A command that was stopped is resumed by repeating it. Memory does not grow with the number of
    images.

    Args:
        detector: The network of `many`.
        listing: The images.
        many: How the images are shared out.
        out: Folder for the files.
        options: How to detect.
        fetch: Reads http(s) addresses.
        console: Shows the progress.

    Returns:
        What was detected, by this command and by earlier ones in the files of its share.

    Raises:
        ConfigError: An option is out of range, a source is a video, or a package is missing.
        DataError: The images cannot be listed.
        StorageError: A file cannot be written, or is of other images or settings.
        ProcessError: A worker of Ray failed.
    """
    selection, described = choose_detections(detector, options)
    shard = parse_shard(many.shard)
    if many.chunk_size < 1:
        raise ConfigError(f"the size of a chunk is {many.chunk_size}", remedy="Use 1 or more")
    refuse_inside(out, listing.words)
    weights = find_weights(many.model, many.which)
    settings: dict[str, Any] = {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "thresholds": list(selection.thresholds),
        "flip": options.flip,
        "batch_size": options.batch_size,
    }
    files = ChunkFiles(out, settings)
    how = How(selection, options.batch_size, options.flip, fetch)
    chunks = MissingChunks(find_sources(listing), many.chunk_size, shard, files)
    if many.engine == "ray":
        load_ray()
        model, folder = str(weights.absolute()), str(out.absolute())
        work = Work(model, many.device, how, folder, settings)
        done = detect_with_ray(chunks, work, shard)
    else:
        done = (detect_chunk(detector, chunk, how, files) for chunk in chunks)
    total = Done()
    with progress_bar(console) as progress:
        task = progress.add_task("images", total=None)
        for part in done:
            total = total.plus(part)
            progress.advance(task, part.images + part.refused)
    if chunks.found.images:
        images = counted(chunks.found.images, "image")
        console.print(f"{images} of earlier commands in {out}", highlight=False, markup=False)
    total = chunks.found.plus(total)
    refusals: list[MultiboxError] = [DataError(text, kind="unreadable") for text in total.examples]
    return Predicted(total.images, total.objects, refusals, total.refused, described)


def choose_detections(detector: Detector, options: Options) -> tuple[Selection, str]:
    """Returns which detections are kept, and a text about the threshold.

    Raises:
        ConfigError: An option is out of range.
    """
    given, stored = options.score_threshold, detector.stored_threshold
    threshold = detector.score_threshold if given is None else given
    if options.batch_size < 1:
        raise ConfigError(f"the batch size is {options.batch_size}", remedy="Use 1 or more")
    selection = choose(
        detector.classes, threshold, only=options.classes, by_class=options.class_thresholds
    )
    source = "the best F1 on the validation split"
    if given is not None:
        source = "as given"
    elif stored is None:
        source = "because the weights do not store one"
    return selection, f"score threshold {threshold:.4g}, {source}"


def _make_writers(
    classes: Sequence[str], sources: Sources, out: Path | None, save: Sequence[Save]
) -> list[Writer]:
    """Returns the writers, after checking that they overwrite nothing."""
    wanted = set(save)
    if "parquet" in wanted:
        raise ConfigError("parquet cannot be combined with other formats", remedy="Use it alone")
    if "none" in wanted:
        if len(wanted) > 1:
            raise ConfigError("--save none excludes other formats", remedy="Use one of them")
        return []
    if out is None:
        raise ConfigError("there is no folder for the results", remedy="Add --out or --save none")
    folder = OutFolder(out)
    # Pictures come last, because they draw on the pixels.
    makers: dict[Save, Callable[[], Writer]] = {
        "json": lambda: JsonWriter(folder),
        "csv": lambda: CsvWriter(folder),
        "coco": lambda: CocoWriter(folder, classes, sources),
        "yolo": lambda: YoloWriter(folder, classes),
        "voc": lambda: VocWriter(folder, classes),
        "crops": lambda: CropWriter(folder, classes),
        "images": lambda: PictureWriter(folder, classes),
    }
    chosen = [make() for name, make in makers.items() if name in wanted]
    for writer in chosen:
        folder.require_replaceable(writer.names(sources))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot be created ({error.strerror})", file=out) from None
    return chosen


def progress_bar(console: Console) -> Progress:
    """Returns a bar with the number of images, which is shown in terminals only."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
