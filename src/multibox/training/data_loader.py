"""Yields training batches. Images come from files, decoded copies on disk, or GPU memory."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from multibox.config import Config
from multibox.data.collate import Match
from multibox.data.dataset import Dataset
from multibox.data.decoded import DecodedImages, decode_into, find_decoded
from multibox.data.device.batches import ResidentExamples, load, resident_batches
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.data.workers import OnLoss
from multibox.hardware import usable_cores
from multibox.processes.distributed import Processes, wait_without_limit
from multibox.structures import Batch

MAX_GPU_WORKERS = 8


class BatchLoader:
    """Yields the training batches from any step onwards.

    Args:
        config: The configuration of the run.
        dataset: The training split.
        image_size_px: (height, width) of the network's input, in pixels.
        match: Matches the default boxes to the objects of a batch.
        folder: The run's folder.
        processes: This process among the others.
        console: Prints the messages of the first process.
        decoded_cache_gib: Disk space that decoded images may take, in GiB. With 0, none are stored.

    Attributes:
        workers: Number of worker processes that prepare images, per process of the run.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        image_size_px: tuple[int, int],
        *,
        match: Match,
        folder: Path,
        processes: Processes,
        console: Console,
        decoded_cache_gib: float,
    ) -> None:
        self.workers = worker_count(config.run.workers, processes)
        self._config, self._dataset, self._image_size_px = config, dataset, image_size_px
        self._match = match
        self._folder, self._processes, self._console = folder, processes, console
        self._limit_bytes = int(decoded_cache_gib * 2**30)
        self._resident: ResidentExamples | None = None
        self._examples = self._make_examples(None)

    def prepare(self) -> None:
        """Decodes images before the first batch, if the configuration asks for it.

        Raises:
            ConfigError: The device does not have enough memory.
            DataError: An image cannot be read.
        """
        if self._limit_bytes:
            self._examples = self._make_examples(self._decoded())
        if self._config.run.pipeline == "cuda":
            self._resident = load(
                self._examples,
                self._processes.device,
                batch_size=self._config.run.batch_size // self._processes.world_size,
                workers=self.workers,
                progress=self._print_progress,
            )
            wait_without_limit("loaded", self._processes)

    def batches(self, first_step: int, *, on_loss: OnLoss) -> Iterator[Batch]:
        """Yields this process's share of each batch, from a step to the last step of the run.

        Args:
            first_step: The step of the first batch, from 0.
            on_loss: Called when a worker is replaced (see `OnLoss`).
        """
        processes = self._processes
        numbers = training_numbers(
            range(first_step, self._config.schedule.steps),
            batch_size=self._config.run.batch_size,
            rank=processes.rank,
            world_size=processes.world_size,
        )
        if self._resident:
            return resident_batches(
                self._resident, numbers, workers=self.workers, match=self._match, on_loss=on_loss
            )
        return batches(
            self._examples,
            numbers,
            workers=self.workers,
            pin_memory=processes.device.type == "cuda",
            match=self._match,
            on_loss=on_loss,
        )

    def _make_examples(self, decoded: DecodedImages | None) -> TrainingExamples:
        config = self._config
        return TrainingExamples(
            self._dataset.annotations,
            self._image_size_px,
            config.augmentation,
            config.run.seed,
            decoded,
        )

    def _decoded(self) -> DecodedImages | None:
        """Returns the decoded images on disk, if any. The first process writes them."""
        folder, dataset, limit, found = self._folder, self._dataset, self._limit_bytes, None
        if self._processes.is_first:
            found = decode_into(folder, dataset, limit_bytes=limit, say=self._print)
        wait_without_limit("decoded", self._processes)
        if not self._processes.is_first:
            found = find_decoded(folder, dataset, limit_bytes=limit)
        return found

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _print_progress(self, done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            self._print(f"decoded {done} of {total} images")


def worker_count(workers: int, processes: Processes) -> int:
    """Returns the number of worker processes that prepare images.

    Args:
        workers: The value of `--workers`. -1 stands for at most one worker if the network runs on
            a CPU, and for up to `MAX_GPU_WORKERS` if it runs on a GPU.
        processes: This process among the others.
    """
    if workers >= 0:
        return workers
    cores = usable_cores() // processes.on_this_machine
    if processes.device.type == "cpu":
        return max(0, min(1, cores - 1))
    return max(1, min(MAX_GPU_WORKERS, cores - 1))
