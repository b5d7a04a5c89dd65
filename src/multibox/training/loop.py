"""The training loop: steps, journal, validation, milestones, checkpoints, and the way back.

What a run computes is a function of its configuration, data and step. All that the loop remembers
between two steps is in `TrainingState` and in the learner, and both are in every checkpoint.
"""

import copy
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.errors import NonFiniteError
from multibox.inference import EvaluationSettings, validation_loss
from multibox.processes.distributed import Processes, agree, from_first, gather, wait_for_all
from multibox.processes.signals import Interrupted, Signals
from multibox.ssd.network import SSD
from multibox.training.checkpointing import Checkpointer, TrainingState
from multibox.training.data_loader import BatchLoader
from multibox.training.metrics_log import MetricsLog
from multibox.training.periodic_evaluation import evaluate_periodically
from multibox.training.progress import ProgressDisplay
from multibox.training.schedule import learning_rate, plateau_drops
from multibox.training.train_step import Learner, NonFinite

MAX_ROLLBACKS = 10
"""How often a run goes back to one checkpoint before it gives up."""


class RunContext(NamedTuple):
    """What a run is given besides its configuration.

    Attributes:
        folder: The run's, claimed and locked.
        train_set: The training split.
        test_set: The split it is judged on.
        processes: This process among the others.
        console: For the first process's messages.
        feed: Makes the batches.
        metadata: Goes into every file of weights.
    """

    folder: Path
    train_set: Dataset
    test_set: Dataset
    processes: Processes
    console: Console
    feed: BatchLoader
    metadata: dict[str, str]


class _Fault(NamedTuple):
    """Why a run cannot go on from where it is.

    Attributes:
        step: The step that showed it.
        what: What is NaN or infinite.
        files: The images of that step.
    """

    step: int
    what: str
    files: list[str]


class Loop:
    """Trains a network to its last step.

    Args:
        config: The run's.
        learner: With the weights that the run starts from.
        around: The run's surroundings.
    """

    def __init__(self, config: Config, learner: Learner, around: RunContext) -> None:
        self._config, self._learner, self._around = config, learner, around
        self._processes = around.processes
        self._keeper = Checkpointer(
            around.folder / "checkpoints",
            keep=config.run.keep_checkpoints,
            learner=learner,
            processes=around.processes,
            console=around.console,
            metadata=around.metadata,
        )
        self._network_to_evaluate = copy.deepcopy(learner.network)
        self._step = 0
        self._state = TrainingState(lr=config.optimizer.lr)
        self._rollbacks: list[dict[str, Any]] = []

    def run(self) -> None:
        """Makes all steps that are left.

        Raises:
            Interrupted: A signal asked the run to stop; it is saved.
            NonFiniteError: A loss, gradient or weight was NaN or infinite.
            MultiboxError: An image cannot be read, or the disk is full.
        """
        self._resume()
        run, steps = self._config.run, self._config.schedule.steps
        first = self._processes.is_first
        with ExitStack() as stack:
            self._signals = stack.enter_context(Signals(repeated=self._processes.world_size > 1))
            logbook = MetricsLog(self._around.folder, self._state.journal, silent=not first)
            self._logbook = stack.enter_context(logbook)
            if self._step == 0:
                self._save()
            self._display = stack.enter_context(
                ProgressDisplay(
                    self._around.console,
                    total=steps,
                    done=self._step,
                    images_per_step=run.batch_size,
                    every=run.log_every,
                )
            )
            if self._step < steps:
                with self._display.busy("decoding"):
                    self._around.feed.prepare()
                # Decoding may have taken minutes.
                if stop := agree(self._signals.received, self._processes):
                    raise Interrupted(stop, self._step)
            while self._step < steps:
                fault = self._train()
                if fault:
                    self._go_back(fault)

    def _train(self) -> _Fault | None:
        """Trains to the last step; returns early at one that is not finite."""
        state, annotations = self._state, self._around.train_set.annotations
        batches = self._around.feed.batches(self._step, on_loss=self._note_loss)
        for batch, waited in _timed(batches):
            lr, number = self._rate(), self._step
            try:
                losses = self._learner.step(batch, lr=lr, number=number)
                self._step += 1
                state.lr = lr
                state.sums = [a + b for a, b in zip(state.sums, losses, strict=True)]
                self._display.update(self._step, losses[0], losses[1], lr=lr, waited=waited)
                self._after_step()
            except NonFinite as found:
                indices = gather(batch.indices.to(self._processes.device), self._processes)
                files = [str(annotations[index].image_path) for index in indices.tolist()]
                return _Fault(number + 1, found.what, files)
        return None

    def _rate(self) -> float:
        """Returns the learning rate of the next step."""
        config, state = self._config, self._state
        drops = plateau_drops(config.schedule, state.validation_losses)
        rate = learning_rate(config.schedule, config.optimizer.lr, self._step, drops)
        return rate * state.lr_scale

    def _note_loss(self, reason: str, seconds: float) -> None:
        self._logbook.time("workers", self._step, seconds=seconds, reason=reason)
        self._around.console.print(
            f"step {self._step}: {reason}; a new one takes over", highlight=False
        )

    def _after_step(self) -> None:
        """Does what is due after a step; all that writes the journal precedes the checkpoint."""
        run, schedule, step = self._config.run, self._config.schedule, self._step
        last = step == schedule.steps
        periods = run.log_every, run.validate_every, run.evaluate_every, run.checkpoint_every
        log, validate, milestone, save = (last or step % period == 0 for period in periods)
        due = log or validate or milestone or save
        if due:
            self._require_finite()
        if log:
            self._log()
        if schedule.schedule == "multistep" and step in schedule.drops:
            self._logbook.write("drop", step, lr=self._rate())
        if validate:
            self._validate()
        if milestone:
            self._evaluate()
        stop = agree(self._signals.received, self._processes)
        if stop and not due:
            self._require_finite()
        if milestone or save or stop:
            self._save()
        if stop:
            raise Interrupted(stop, step)

    def _require_finite(self) -> None:
        """Lets nothing be written of weights that are not.

        Processes differ in the statistics of batch normalisation, and stop together.
        """
        what = ""
        try:
            self._learner.require_finite()
        except NonFinite as found:
            what = found.what
        if agree(len(what), self._processes):
            raise NonFinite(what or "another process's batch normalisation is NaN or infinite")

    def _log(self) -> None:
        state = self._state
        count = self._step % self._config.run.log_every or self._config.run.log_every
        confidence, localization, positives = (value / count for value in state.sums)
        state.sums = [0.0, 0.0, 0.0]
        self._logbook.write(
            "train",
            self._step,
            loss=confidence + localization,
            confidence=confidence,
            localization=localization,
            l2=_finite(self._learner.l2(), "sum of the squared weights"),
            lr=state.lr,
            positives=positives,
        )
        self._logbook.time("train", self._step, **self._display.interval(self._step)._asdict())

    def _validate(self) -> None:
        with self._display.busy("validation loss") as clock:
            loss = validation_loss(
                self._evaluated_network(), self._around.test_set, self._setting()
            )
        self._logbook.write(
            "validation",
            self._step,
            loss=_finite(loss.confidence + loss.localization, "validation loss"),
            **loss._asdict(),
            l2=self._learner.l2(),
        )
        self._logbook.time("validation", self._step, seconds=clock())
        schedule, losses = self._config.schedule, self._state.validation_losses
        before = plateau_drops(schedule, losses)
        losses.append(loss.confidence + loss.localization)
        if schedule.schedule == "plateau" and plateau_drops(schedule, losses) > before:
            self._logbook.write("drop", self._step, lr=self._rate())

    def _evaluate(self) -> None:
        around, step = self._around, self._step
        with self._display.busy("average precision") as clock:
            means = evaluate_periodically(
                self._evaluated_network(),
                around.test_set,
                self._setting(),
                folder=around.folder,
                step=step,
            )
        self._logbook.write("evaluation", step, **means)
        self._logbook.time("evaluation", step, seconds=clock())
        best, mean = self._state.best, means["voc07"]
        if mean is not None and (best is None or mean > best["mAP"]):
            self._state.best = {"step": step, "mAP": mean}
        shown = ", ".join(f"{n} {'none' if v is None else f'{v:.4f}'}" for n, v in means.items())
        around.console.print(f"step {step}: mAP {shown}", highlight=False)

    def _evaluated_network(self) -> SSD:
        """Returns the network that is judged, with the moving average where there is one.

        Processes differ in the statistics of their batch normalisation: the first's are saved.
        """
        self._network_to_evaluate.load_state_dict(
            from_first(self._learner.model(), self._processes)
        )
        return self._network_to_evaluate

    def _setting(self) -> EvaluationSettings:
        size = max(1, self._config.run.batch_size // self._processes.world_size)
        return EvaluationSettings(
            size,
            self._around.feed.workers,
            self._learner.precision,
            self._processes,
            self._note_loss,
        )

    def _save(self) -> None:
        if self._processes.is_first:
            start = time.monotonic()
            self._state.journal = self._logbook.commit()
            self._keeper.save(self._step, self._state)
            self._logbook.time("checkpoint", self._step, seconds=time.monotonic() - start)
        self._rollbacks.clear()
        wait_for_all(self._processes)

    def _resume(self) -> None:
        """Goes to the newest sound checkpoint, if there is any."""
        found = self._keeper.resume()
        if found:
            self._step, self._state = found

    def _go_back(self, fault: _Fault) -> None:
        """Returns to the last checkpoint with half the rate, or ends the run."""
        tries = len(self._rollbacks)
        if self._config.run.on_nonfinite == "stop" or tries == MAX_ROLLBACKS:
            raise NonFiniteError(
                f"{fault.what}, after {tries} rollbacks. Nothing of it was saved. The images of "
                f"this step were {', '.join(fault.files)}",
                file=self._around.folder,
                position=f"step {fault.step}",
                remedy="Look at these images; continue with --on-nonfinite rollback, or begin "
                "anew with a lower --lr",
            )
        rollbacks, scale = self._rollbacks, self._state.lr_scale / 2
        self._resume()
        self._state.lr_scale = scale
        self._logbook.cut(self._state.journal)
        self._display.restart(self._step)
        rollbacks.append(
            {"step": fault.step, "to": self._step, "lr_scale": scale, "images": fault.files}
        )
        for rollback in rollbacks:
            self._logbook.write("rollback", **rollback)
        self._around.console.print(
            f"Step {fault.step}: {fault.what}. Back to step {self._step}, the learning rate times "
            f"{scale:g}",
            highlight=False,
        )


def _finite(value: float, what: str) -> float:
    """Returns a number that the journal can hold."""
    if not math.isfinite(value):
        raise NonFinite(f"the {what} is NaN or infinite")
    return value


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Yields each item with the seconds it was waited for."""
    while True:
        start = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.monotonic() - start
