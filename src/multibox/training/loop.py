"""The training loop: steps, metrics, validation, evaluation, checkpoints and rollbacks.

The result of a run depends only on its configuration, its data and the step. The loop keeps all of
its state between two steps in `TrainingState` and in the learner. Every checkpoint contains both.
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
"""Largest number of rollbacks to the same checkpoint; then the run stops."""


class RunContext(NamedTuple):
    """Everything that a run needs besides its configuration and the learner.

    Attributes:
        folder: The run's folder, claimed and locked.
        train_set: The training split.
        validation_set: The split for validation and evaluation during training.
        test_set: The split that is evaluated once, at the end. None if it is the validation split,
            or if there is none.
        processes: This process among the others.
        console: Prints the messages of the first process.
        batch_loader: Yields the training batches.
        metadata: Stored in every weights file.
    """

    folder: Path
    train_set: Dataset
    validation_set: Dataset
    test_set: Dataset | None
    processes: Processes
    console: Console
    batch_loader: BatchLoader
    metadata: dict[str, str]


class _Fault(NamedTuple):
    """A step in which a number became NaN or infinite.

    Attributes:
        step: The number of the step, from 1.
        reason: What is NaN or infinite, as a clause.
        files: The image files of that step, from all processes.
    """

    step: int
    reason: str
    files: list[str]


class Loop:
    """Trains a network to the last step.

    Args:
        config: The configuration of the run.
        learner: The network to train, with its initial weights.
        context: Everything else that the run needs.
    """

    def __init__(self, config: Config, learner: Learner, context: RunContext) -> None:
        self._config, self._learner, self._context = config, learner, context
        self._processes = context.processes
        self._checkpointer = Checkpointer(
            context.folder / "checkpoints",
            keep=config.run.keep_checkpoints,
            learner=learner,
            processes=context.processes,
            console=context.console,
            metadata=context.metadata,
        )
        self._network_to_evaluate = copy.deepcopy(learner.network)
        self._step = 0
        self._state = TrainingState(lr=config.optimizer.lr)
        self._rollbacks: list[dict[str, Any]] = []

    def run(self) -> None:
        """Trains from the newest checkpoint to the last step.

        Raises:
            Interrupted: A signal stopped the run; its state is saved.
            NonFiniteError: A loss, gradient or weight was NaN or infinite.
            MultiboxError: An image cannot be read, or the disk is full.
        """
        self._resume()
        run, steps = self._config.run, self._config.schedule.steps
        first = self._processes.is_first
        with ExitStack() as stack:
            self._signals = stack.enter_context(Signals(repeated=self._processes.world_size > 1))
            metrics_log = MetricsLog(self._context.folder, self._state.journal, silent=not first)
            self._metrics_log = stack.enter_context(metrics_log)
            if self._step == 0:
                self._save()
            self._display = stack.enter_context(
                ProgressDisplay(
                    self._context.console,
                    total=steps,
                    done=self._step,
                    images_per_step=run.batch_size,
                    every=run.log_every,
                )
            )
            if not self._finished():
                with self._display.busy("decoding"):
                    self._context.batch_loader.prepare()
                # Decoding may have taken minutes, in which a signal may have arrived.
                if stop := agree(self._signals.received, self._processes):
                    raise Interrupted(stop, self._step)
            while not self._finished():
                fault = self._train()
                if fault:
                    self._roll_back(fault)

    def _finished(self) -> bool:
        patience = self._config.run.patience
        out_of_patience = 0 < patience <= self._state.evaluations_since_best
        return self._step >= self._config.schedule.steps or out_of_patience

    def _train(self) -> _Fault | None:
        """Trains until the run is finished, or a step has NaN or infinite values."""
        state, annotations = self._state, self._context.train_set.annotations
        batches = self._context.batch_loader.batches(self._step, on_loss=self._note_worker_loss)
        for batch, waited in _timed(batches):
            lr, number = self._next_lr(), self._step
            try:
                losses = self._learner.step(batch, lr=lr, number=number)
                self._step += 1
                state.lr = lr
                state.sums = [a + b for a, b in zip(state.sums, losses, strict=True)]
                self._display.update(self._step, losses[0], losses[1], lr=lr, waited=waited)
                self._after_step()
                if self._finished():
                    break
            except NonFinite as found:
                indices = gather(batch.indices.to(self._processes.device), self._processes)
                files = [str(annotations[index].image_path) for index in indices.tolist()]
                return _Fault(number + 1, found.reason, files)
        return None

    def _next_lr(self) -> float:
        """Returns the learning rate of the next step."""
        config, state = self._config, self._state
        drops = plateau_drops(config.schedule, state.validation_losses)
        rate = learning_rate(config.schedule, config.optimizer.lr, self._step, drops)
        return rate * state.lr_scale

    def _note_worker_loss(self, reason: str, seconds: float) -> None:
        self._metrics_log.time("workers", self._step, seconds=seconds, reason=reason)
        self._context.console.print(
            f"step {self._step}: {reason}; a new one takes over", highlight=False
        )

    def _after_step(self) -> None:
        """Logs, validates, evaluates and saves where this step is due for it.

        The checkpoint comes last, because it records the length of `metrics.jsonl`.
        """
        run, schedule, step = self._config.run, self._config.schedule, self._step
        last = step == schedule.steps
        periods = run.log_every, run.validate_every, run.evaluate_every, run.checkpoint_every
        log, validate, evaluate, save = (last or step % period == 0 for period in periods)
        due = log or validate or evaluate or save
        if due:
            self._require_finite()
        if log:
            self._log()
        if schedule.schedule == "multistep" and step in schedule.drops:
            self._metrics_log.write("drop", step, lr=self._next_lr())
        if validate:
            self._validate()
        if evaluate:
            self._evaluate()
        if self._finished():
            self._test()
        stop = agree(self._signals.received, self._processes)
        if stop and not due:
            self._require_finite()
        if evaluate or save or stop:
            self._save()
        if stop:
            raise Interrupted(stop, step)

    def _require_finite(self) -> None:
        """Raises an error if a weight is NaN or infinite, so that nothing is written of it.

        The statistics of batch normalisation differ between processes, so all processes raise if
        one of them has to.
        """
        reason = ""
        try:
            self._learner.require_finite()
        except NonFinite as found:
            reason = found.reason
        if agree(len(reason), self._processes):
            raise NonFinite(
                reason or "the batch normalisation of another process has NaN or infinite values"
            )

    def _log(self) -> None:
        state = self._state
        count = self._step % self._config.run.log_every or self._config.run.log_every
        confidence, localization, positives = (value / count for value in state.sums)
        state.sums = [0.0, 0.0, 0.0]
        self._metrics_log.write(
            "train",
            self._step,
            loss=confidence + localization,
            confidence=confidence,
            localization=localization,
            l2=_finite(self._learner.l2(), "sum of the squared weights"),
            lr=state.lr,
            positives=positives,
        )
        self._metrics_log.time("train", self._step, **self._display.interval(self._step)._asdict())

    def _validate(self) -> None:
        with self._display.busy("validation loss") as clock:
            loss = validation_loss(
                self._evaluated_network(), self._context.validation_set, self._evaluation_settings()
            )
        self._metrics_log.write(
            "validation",
            self._step,
            loss=_finite(loss.confidence + loss.localization, "validation loss"),
            **loss._asdict(),
            l2=self._learner.l2(),
        )
        self._metrics_log.time("validation", self._step, seconds=clock())
        schedule, losses = self._config.schedule, self._state.validation_losses
        before = plateau_drops(schedule, losses)
        losses.append(loss.confidence + loss.localization)
        if schedule.schedule == "plateau" and plateau_drops(schedule, losses) > before:
            self._metrics_log.write("drop", self._step, lr=self._next_lr())

    def _evaluate(self) -> None:
        context, step = self._context, self._step
        with self._display.busy("average precision") as clock:
            means, self._state.score_threshold = evaluate_periodically(
                self._evaluated_network(),
                context.validation_set,
                self._evaluation_settings(),
                folder=context.folder,
                name=f"step-{step:08d}",
                step=step,
            )
        self._metrics_log.write("evaluation", step, **means)
        self._metrics_log.time("evaluation", step, seconds=clock())
        best, mean = self._state.best, means["voc07"]
        if mean is not None and (best is None or mean > best["mAP"]):
            self._state.best = {"step": step, "mAP": mean}
            self._state.evaluations_since_best = 0
        else:
            self._state.evaluations_since_best += 1
        self._print_means(f"step {step}", means)

    def _test(self) -> None:
        """Evaluates the declared weights on the test split, once."""
        context, step, best = self._context, self._step, self._state.best
        if step < self._config.schedule.steps:
            context.console.print(
                f"Stopped early at step {step}, after --patience {self._config.run.patience}: no "
                "later evaluation has raised the best average precision",
                highlight=False,
            )
        if context.test_set is None:
            return
        network = self._evaluated_network()
        if self._config.run.test_weights == "best" and best and best["step"] != step:
            step = best["step"]
            network.load_state_dict(self._checkpointer.model(step))
        with self._display.busy("average precision on the test split") as clock:
            # The score threshold comes from the validation split only.
            means, _ = evaluate_periodically(
                network,
                context.test_set,
                self._evaluation_settings(),
                folder=context.folder,
                name="test",
                step=step,
            )
        self._metrics_log.write("test", self._step, weights=step, **means)
        self._metrics_log.time("evaluation", self._step, seconds=clock())
        self._print_means(f"{context.test_set.name}, weights of step {step}", means)

    def _print_means(self, what: str, means: dict[str, float | None]) -> None:
        shown = ", ".join(f"{n} {'none' if v is None else f'{v:.4f}'}" for n, v in means.items())
        self._context.console.print(f"{what}: mAP {shown}", highlight=False, markup=False)

    def _evaluated_network(self) -> SSD:
        """Returns the network to evaluate, with the average of the weights if there is one.

        The statistics of batch normalisation differ between processes. The first process's are
        evaluated, because they are the ones that are saved.
        """
        self._network_to_evaluate.load_state_dict(
            from_first(self._learner.model(), self._processes)
        )
        return self._network_to_evaluate

    def _evaluation_settings(self) -> EvaluationSettings:
        size = max(1, self._config.run.batch_size // self._processes.world_size)
        return EvaluationSettings(
            size,
            self._context.batch_loader.workers,
            self._learner.precision,
            self._processes,
            self._note_worker_loss,
        )

    def _save(self) -> None:
        if self._processes.is_first:
            start = time.monotonic()
            self._state.journal = self._metrics_log.commit()
            self._checkpointer.save(self._step, self._state)
            self._metrics_log.time("checkpoint", self._step, seconds=time.monotonic() - start)
        self._rollbacks.clear()
        wait_for_all(self._processes)

    def _resume(self) -> None:
        """Restores the newest intact checkpoint, if there is one."""
        found = self._checkpointer.resume()
        if found:
            self._step, self._state = found

    def _roll_back(self, fault: _Fault) -> None:
        """Restores the last checkpoint and halves the learning rate, or ends the run."""
        tries = len(self._rollbacks)
        if self._config.run.on_nonfinite == "stop" or tries == MAX_ROLLBACKS:
            raise NonFiniteError(
                f"{fault.reason}, after {tries} rollbacks. This step was not saved. Its images "
                f"are {', '.join(fault.files)}",
                file=self._context.folder,
                position=f"step {fault.step}",
                remedy="Look at these images; resume with --on-nonfinite rollback, or start a new "
                "run with a lower --lr",
            )
        rollbacks, scale = self._rollbacks, self._state.lr_scale / 2
        self._resume()
        self._state.lr_scale = scale
        self._metrics_log.cut(self._state.journal)
        self._display.restart(self._step)
        rollbacks.append(
            {"step": fault.step, "to": self._step, "lr_scale": scale, "images": fault.files}
        )
        for rollback in rollbacks:
            self._metrics_log.write("rollback", **rollback)
        self._context.console.print(
            f"Step {fault.step}: {fault.reason}. Back to step {self._step}, with the learning "
            f"rate times {scale:g}",
            highlight=False,
        )


def _finite(value: float, name: str) -> float:
    """Returns the number, unless it is NaN or infinite: JSON has no such numbers."""
    if not math.isfinite(value):
        raise NonFinite(f"the {name} is NaN or infinite")
    return value


def _timed(items: Iterator[Any]) -> Iterator[tuple[Any, float]]:
    """Yields each item with the seconds that it took to arrive."""
    while True:
        start = time.monotonic()
        try:
            item = next(items)
        except StopIteration:
            return
        yield item, time.monotonic() - start
