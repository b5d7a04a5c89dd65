"""Where a run's batches come from: files, decoded images on the disk, or a device's memory."""

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
    """Makes the training batches from any step on.

    Args:
        config: The run's.
        dataset: The training split.
        image_size_px: (height, width) of the network's input.
        match: Finds what the network is to say of a batch.
        folder: The run's.
        processes: This process among the others.
        console: For the first process's messages.
        decoded_cache_gib: How much of the disk decoded images may take, in GiB.

    Attributes:
        workers: Processes that prepare images, for each process of the run.
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
        self._examples = self._line(None)

    def prepare(self) -> None:
        """Decodes what is to be decoded before the first batch, if anything.

        Raises:
            ConfigError: The device has not enough memory.
            DataError: An image cannot be read.
        """
        if self._limit_bytes:
            self._examples = self._line(self._decoded())
        if self._config.run.pipeline == "cuda":
            self._resident = load(
                self._examples,
                self._processes.device,
                batch_size=self._config.run.batch_size // self._processes.world_size,
                workers=self.workers,
                progress=self._say_how_far,
            )
            wait_without_limit("loaded", self._processes)

    def batches(self, first_step: int, *, on_loss: OnLoss) -> Iterator[Batch]:
        """Yields this process's share of the batches that are left.

        Args:
            first_step: Of the batches that are wanted.
            on_loss: Is told why workers are replaced.
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

    def _line(self, decoded: DecodedImages | None) -> TrainingExamples:
        config = self._config
        return TrainingExamples(
            self._dataset.annotations,
            self._image_size_px,
            config.augmentation,
            config.run.seed,
            decoded,
        )

    def _decoded(self) -> DecodedImages | None:
        """Returns the images that need not be decoded; the first process writes, others read."""
        folder, dataset, limit, found = self._folder, self._dataset, self._limit_bytes, None
        if self._processes.is_first:
            found = decode_into(folder, dataset, limit_bytes=limit, say=self._say)
        wait_without_limit("decoded", self._processes)
        if not self._processes.is_first:
            found = find_decoded(folder, dataset, limit_bytes=limit)
        return found

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _say_how_far(self, done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            self._say(f"decoded {done} of {total} images")


def worker_count(asked: int, processes: Processes) -> int:
    """Returns how many processes prepare images: one beside a CPU's network, many for a GPU.

    Args:
        asked: `--workers`; -1: by the hardware.
        processes: This process among the others.
    """
    if asked >= 0:
        return asked
    cores = usable_cores() // processes.on_this_machine
    if processes.device.type == "cpu":
        return max(0, min(1, cores - 1))
    return max(1, min(MAX_GPU_WORKERS, cores - 1))
