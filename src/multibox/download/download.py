"""The verb `download`: downloads published datasets and weights, checks them, and unpacks them.

The folder of datasets then contains the datasets; `archives/`, which may be deleted; and
`.downloaded/`, which lists the files of each archive, so that a later call skips archives that are
already unpacked. The folder of weights contains the weights files. Those that came in an archive
have a `.json` with their SHA-256; the archive itself is removed.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from multibox.download.archives import MORE_ROOM, merge, unpack, unpack_member
from multibox.download.catalogue import SOURCES, WEIGHTS, Published, Source, WeightsFile
from multibox.download.fetch import fetch
from multibox.download.https import POLICY, Policy
from multibox.download.stored_datasets import missing_archives, unpacking_record
from multibox.download.stored_weights import digest, is_intact, record_of, weights_folder
from multibox.errors import ConfigError, DownloadError, StorageError
from multibox.storage.disk import require_room
from multibox.storage.lock import RunLock
from multibox.storage.run_folder import new_file, write_json


def download(
    names: Sequence[str],
    out: Path | None,
    console: Console,
    *,
    sources: Mapping[str, Source] = SOURCES,
    policy: Policy = POLICY,
) -> list[Path]:
    """Downloads datasets and weights, and returns the folders to train on and the weights files.

    A second call resumes where the first stopped. It does nothing if everything is complete.

    Args:
        names: Names of datasets (keys of `sources`) and of weights (keys of `WEIGHTS`).
        out: The folder for all of them. It is created if it does not exist. None: the folder of
            downloaded weights, which the other verbs use. Datasets need a folder.
        console: Console for progress and messages.
        sources: The datasets that can be downloaded.
        policy: Timeouts and retries.

    Raises:
        ConfigError: A name is unknown, `names` is empty, or datasets have no folder.
        DownloadError: A file cannot be downloaded, or differs from the published one.
        StorageError: The folder cannot be written, the disk is too full, a file that is already in
            the folder differs from the archive's, or another process uses the folder.
        WeightsError: A weights file that exists cannot be read.
    """
    unknown = [name for name in names if name not in sources and name not in WEIGHTS]
    if unknown or not names:
        reason = f"unknown name {unknown[0]!r}" if unknown else "no name is given"
        raise ConfigError(reason, remedy=f"Choose from {', '.join((*sources, *WEIGHTS))}")
    datasets = [sources[name] for name in dict.fromkeys(names) if name in sources]
    weights = [WEIGHTS[name] for name in dict.fromkeys(names) if name in WEIGHTS]
    if datasets and out is None:
        raise ConfigError("a dataset needs a folder", remedy="Add --out FOLDER")
    paths = _download_datasets(datasets, out, console, policy) if out is not None else []
    return paths + _download_weights(weights, out or weights_folder(), console, policy)


def _download_datasets(
    chosen: list[Source], out: Path, console: Console, policy: Policy
) -> list[Path]:
    missing = [
        (source, published) for source in chosen for published in missing_archives(source, out)
    ]
    if missing:
        with _using(out, console):
            _download_archives(missing, out, console, policy)
    return list(dict.fromkeys(out / source.data for source in chosen))


def _download_archives(
    missing: list[tuple[Source, Published]], out: Path, console: Console, policy: Policy
) -> None:
    archives, unpacked = out / "archives", out / ".unpacking"
    try:
        archives.mkdir(exist_ok=True)
        present = [
            path.stat().st_size
            for _, published in missing
            for path in archives.iterdir()
            if path.name.startswith(published.name)
        ]
    except OSError as error:
        raise StorageError(f"cannot be used ({error.strerror})", file=archives) from None
    # The unpacked files need about as much as the archives.
    needed = 2 * sum(published.size for _, published in missing) - sum(present)
    require_room(out, needed, purpose="archives and unpacked files", remedy=MORE_ROOM)
    with _progress(console) as progress:
        for source, published in missing:
            name = published.name
            _fetch(published, archives / name, progress, policy)
            task = progress.add_task(f"unpacking {name}", total=None)
            try:
                # A process that was killed may have left the folder.
                shutil.rmtree(unpacked, ignore_errors=True)
                files = unpack(archives / name, unpacked, advance=partial(progress.advance, task))
                merge(unpacked, out / source.folder)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
            write_json(
                unpacking_record(out, published), {"sha256": published.sha256, "files": files}
            )
            progress.remove_task(task)
            console.print(f"{name}: checked and unpacked", markup=False, highlight=False)


def _download_weights(
    chosen: list[WeightsFile], folder: Path, console: Console, policy: Policy
) -> list[Path]:
    paths = [folder / weights.stored_name for weights in chosen]
    both = zip(chosen, paths, strict=True)
    missing = [(weights, path) for weights, path in both if not is_intact(weights, path)]
    if missing:
        # An archive, the uncompressed archive and the file in it.
        sizes = [weights.published.size * (3 if weights.member else 1) for weights, _ in missing]
        require_room(folder, sum(sizes), purpose="weights", remedy=MORE_ROOM)
        with _using(folder, console), _progress(console) as progress:
            for weights, path in missing:
                _store(weights, path, progress, policy)
    return paths


def _store(weights: WeightsFile, path: Path, progress: Progress, policy: Policy) -> None:
    published = weights.published
    archive = path.with_name(published.name)
    if path.exists() and weights.member:
        raise DownloadError(
            "is not the published file",
            file=path,
            remedy="Remove it, and run the same command to download it",
        )
    _fetch(published, archive, progress, policy)
    if weights.member:
        task = progress.add_task(f"unpacking {published.name}", total=None)
        with new_file(path) as new:
            advance = partial(progress.advance, task)
            unpack_member(archive, weights.member, new, advance=advance)
            # Written first, because weights without a record are refused.
            record = {"sha256": digest(new), "archive_sha256": published.sha256}
            write_json(record_of(path), record)
        archive.unlink()
    progress.console.print(f"{path.name}: checked", markup=False, highlight=False)


@contextmanager
def _using(folder: Path, console: Console) -> Iterator[None]:
    """Locks a folder. An interruption prints how to resume."""
    with RunLock(folder):
        try:
            yield
        except KeyboardInterrupt:
            console.print("Partial downloads are kept. Run the same command to resume.")
            raise


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _fetch(published: Published, target: Path, progress: Progress, policy: Policy) -> None:
    text = f"{published.name}: {decimal(published.size)}"
    progress.console.print(text, markup=False, highlight=False)
    task = progress.add_task(published.name, total=published.size)
    fetch(published, target, progress=progress, task=task, policy=policy)
    progress.remove_task(task)
