"""What a run keeps of itself in its checkpoints, and how it finds it again."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from multibox.processes.distributed import Processes, agree
from multibox.storage import checkpoint as checkpoints
from multibox.storage.checkpoint import Checkpoint
from multibox.training.train_step import Learner


@dataclass
class TrainingState:
    """The plain numbers of a checkpoint.

    Attributes:
        sums: Confidence loss, localization loss and positives since the last journal line.
        validation_losses: All of them, for the plateau.
        best: Step and mAP of the best milestone.
        lr: The rate of the step before.
        lr_scale: Halved by each rollback.
        journal: Length of `metrics.jsonl`.
    """

    lr: float
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    validation_losses: list[float] = field(default_factory=list)
    best: dict[str, Any] | None = None
    lr_scale: float = 1.0
    journal: int = 0


class Checkpointer:
    """Saves a run and finds its newest state. The first process saves; all resume.

    Args:
        folder: Of the checkpoints.
        keep: How many of the newest stay, beside the best.
        learner: What is saved and restored.
        processes: This process among the others.
        console: For the first process's messages.
        metadata: Goes into every file of weights.
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
        """Saves the state after a step, and removes the checkpoints that need not stay.

        Raises:
            StorageError: The disk is full or fails; the checkpoints before are as they were.
        """
        learner, numbers = self._learner, dataclasses.asdict(state)
        found = Checkpoint(step, learner.model(), learner.optimizer(), numbers)
        checkpoints.save(self._folder, found, metadata=self._metadata)
        self._prune(state)

    def resume(self) -> tuple[int, TrainingState] | None:
        """Restores the learner from the newest sound checkpoint, and returns its step and state.

        None without any. All processes call it.

        Raises:
            WeightsError: There are checkpoints, but none is sound.
        """
        found = None
        if self._processes.is_first:
            found, refusals = checkpoints.newest(self._folder)
            for refusal in refusals:
                self._console.print(f"Set aside: {refusal}", highlight=False)
        step = agree(found.step if found else -1, self._processes)
        if step < 0:
            return None
        if found is None:
            found = checkpoints.load(checkpoints.path_of(self._folder, step))
        state = TrainingState(**cast(dict[str, Any], found.state))
        self._learner.restore(found.model, found.optimizer, state.lr)
        if self._processes.is_first:
            # A run that was killed in between has not come to it.
            self._prune(state)
        return step, state

    def _prune(self, state: TrainingState) -> None:
        best = state.best["step"] if state.best else None
        checkpoints.prune(self._folder, keep=self._keep, best=best)
