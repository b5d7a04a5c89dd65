"""Detects the chunks of many images with Ray Data, on this machine or on a cluster.

The driver lists the images. Each worker opens the network once, detects whole chunks with the same
function as without Ray, and writes their Parquet files to a folder that all machines share.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from multibox.commands.prediction.chunks import Chunk, ChunkFiles, Done, Shard, detect_chunk
from multibox.commands.prediction.items import ImageRef
from multibox.commands.prediction.out_folder import unwritable
from multibox.commands.prediction.pipeline import How
from multibox.detector import Detector
from multibox.errors import ConfigError, ProcessError, one_line

_CHUNKS_PER_LIST = 4


class Work(NamedTuple):
    """What a worker needs to detect chunks. It is sent to the worker.

    Attributes:
        weights: The weights file.
        device: `auto`, `cpu` or `cuda`.
        how: Settings.
        out: Folder of the Parquet files.
        settings: Settings that the files store.
    """

    weights: str
    device: str
    how: How
    out: str
    settings: dict[str, Any]


class DetectChunks:
    """A worker."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._detector = Detector.open(work.weights, device=work.device)
        self._files = ChunkFiles(Path(work.out), work.settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Detects a chunk, and returns its counts."""
        number, images = json.loads(row["text"])
        chunk = Chunk(number, tuple(ImageRef(*image) for image in images))
        done = detect_chunk(self._detector, chunk, self._work.how, self._files)
        return {"done": json.dumps(done)}


def load_ray() -> Any:
    """Returns Ray, without its usage statistics, which are sent over the network.

    Raises:
        ConfigError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError(
            "--engine ray needs Ray Data, which is not installed",
            remedy="Install it with pip install 'multibox[ray]'",
        ) from None
    return ray


def detect_with_ray(chunks: Iterable[Chunk], work: Work, shard: Shard) -> Iterator[Done]:
    """Detects chunks, and yields the counts of each.

    Ray runs on the cluster that the environment variable RAY_ADDRESS names, or on this machine.

    Args:
        chunks: The chunks without files.
        work: What the workers need.
        shard: The share of this command.

    Raises:
        ConfigError: Ray is not installed.
        ProcessError: A worker failed.
    """
    ray = load_ray()
    folder = Path(work.out) / f".lists-{shard.number + 1}-of-{shard.shards}"
    # A command that was killed left it.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise unwritable(folder, error) from None
    try:
        lists = _write_lists(chunks, folder)
        if not lists:
            return
        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        resources = ray.cluster_resources()
        gpu = work.device != "cpu" and resources.get("GPU", 0) >= 1
        most = int(resources.get("GPU" if gpu else "CPU", 1))
        found = ray.data.read_text(lists, override_num_blocks=len(lists)).map(
            DetectChunks,
            fn_constructor_args=(work,),
            # One core reads the lists.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, most - (not gpu))),
            num_gpus=1 if gpu else 0,
        )
        try:
            for row in found.iter_rows():
                images, objects, refused, examples = json.loads(row["done"])
                yield Done(images, objects, refused, tuple(examples))
        except ray.exceptions.RayError as error:
            last = str(error).strip().rpartition("\n")[2]
            raise ProcessError(
                f"a worker of Ray failed: {one_line(last)}",
                remedy="Correct the cause, and repeat the command to resume",
            ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_lists(chunks: Iterable[Chunk], folder: Path) -> list[str]:
    """Writes text files with a chunk on each line, and returns their paths."""
    iterator, lists = iter(chunks), list[str]()
    while part := list(islice(iterator, _CHUNKS_PER_LIST)):
        path = folder / f"chunks-{len(lists):06d}.txt"
        lines = (json.dumps([chunk.number, chunk.images]) + "\n" for chunk in part)
        path.write_text("".join(lines), encoding="utf-8")
        lists.append(str(path.absolute()))
    return lists
