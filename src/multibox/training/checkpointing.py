"""Saves and restores the training state."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import Tensor

from multibox.processes.distributed import Processes, agree, from_first
from multibox.storage import checkpoint as checkpoints
from multibox.storage.checkpoint import Checkpoint
from multibox.training.train_step import Learner
from multibox.weights.score_threshold import threshold_header


@dataclass
class TrainingState:
    """The part of a checkpoint that is not tensors.

    Attributes:
        lr: Learning rate of the last step.
        sums: Sums of confidence loss, localization loss and positives since the last `train` line
            of `metrics.jsonl`.
        validation_losses: All validation losses so far, oldest first, for the plateau schedule.
        best: `step` and `mAP` (VOC 2007) of the best evaluation; None before the first.
        evaluations_since_best: Number of evaluations after the best one.
        lr_scale: Factor of the learning rate; each rollback halves it.
        journal: Length of `metrics.jsonl` when the checkpoint was saved, in bytes.
        score_threshold: The score with the best F1 in the last evaluation on the validation split;
            None before the first, or if no detection was right.
    """

    lr: float
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    validation_losses: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    evaluations_since_best: int = 0
    lr_scale: float = 1.0
    journal: int = 0
    score_threshold: float | None = None


class Checkpointer:
    """Saves the state of a run and restores the newest saved state.

    The first process saves; all processes restore.

    Args:
        folder: The folder of all checkpoints.
        keep: Number of newest checkpoints to keep, besides the best.
        learner: The learner to save and restore.
        processes: This process among the others.
        console: Prints the messages of the first process.
        metadata: Texts by name, stored in the header of every `model.safetensors`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        learner: Learner,
        processes: Processes,
        console: Console,
        metadata: Mapping[str, str],
    ) -> None:
        self._folder, self._keep, self._learner = folder, keep, learner
        self._processes, self._console, self._metadata = processes, console, metadata

    def save(self, step: int, state: TrainingState) -> None:
        """Saves the state after a step, and removes checkpoints that are no longer needed.

        Raises:
            NonFiniteError: A tensor has NaN or infinite values. Nothing is written.
            StorageError: The disk is full or fails. Earlier checkpoints are unchanged.
        """
        learner, numbers = self._learner, dataclasses.asdict(state)
        checkpoint = Checkpoint(step, learner.model(), learner.optimizer(), numbers)
        metadata = {**self._metadata, **threshold_header(state.score_threshold)}
        checkpoints.save(self._folder, checkpoint, metadata=metadata)
        self._prune(state)

    def resume(self) -> tuple[int, TrainingState] | None:
        """Restores the learner from the newest intact checkpoint.

        All processes must call it.

        Returns:
            The step and the state of the checkpoint; None if there is no checkpoint.

        Raises:
            WeightsError: There are checkpoints, but all are damaged.
            StorageError: A checkpoint cannot be read, renamed or removed.
        """
        found = None
        if self._processes.is_first:
            found, refusals = checkpoints.newest(self._folder)
            for refusal in refusals:
                self._console.print(
                    f"Skipped a damaged checkpoint: {refusal}", highlight=False, markup=False
                )
        step = agree(found.step if found else -1, self._processes)
        if step < 0:
            return None
        if found is None:
            found = checkpoints.load(checkpoints.path_of(self._folder, step))
        state = TrainingState(**cast(dict[str, Any], found.state))
        self._learner.restore(found.model, found.optimizer, state.lr)
        if self._processes.is_first:
            # A run that was killed right after saving has not removed the old checkpoints.
            self._prune(state)
        return step, state

    def model(self, step: int) -> dict[str, Tensor]:
        """Returns the tensors of the network in a saved checkpoint.

        All processes must call it.

        Raises:
            WeightsError: The checkpoint is damaged.
        """
        own = self._learner.model()
        if self._processes.is_first:
            own = checkpoints.load(checkpoints.path_of(self._folder, step)).model
        return from_first(own, self._processes)

    def _prune(self, state: TrainingState) -> None:
        best = state.best["step"] if state.best else None
        checkpoints.prune(self._folder, keep=self._keep, best=best)
