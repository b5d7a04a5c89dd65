"""Copies the metrics of a run to TensorBoard, Weights & Biases or MLflow.

The numbers are those of `metrics.jsonl`. Each package is imported only if it is asked for. Nothing
is sent anywhere by default: TensorBoard and MLflow write to the run's folder, and Weights & Biases
works offline unless the environment variable `WANDB_MODE` says otherwise.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from multibox.errors import ConfigError

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


class Logger(NamedTuple):
    """Something that takes metrics.

    Attributes:
        log: Takes numbers by name, and their step.
        close: Writes what is left.
    """

    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[], None]


class JournalCopy:
    """Copies the lines of a run's `metrics.jsonl` to loggers.

    Args:
        run: The run's folder.
        names: The loggers.
        config: The settings of the run by name.
        on_failure: Is called with a sentence if a logger fails. It gets nothing from then on.

    Raises:
        ConfigError: A package is not installed.
    """

    def __init__(
        self,
        run: Path,
        names: Sequence[LoggerName],
        config: Mapping[str, Any],
        on_failure: Callable[[str], None],
    ) -> None:
        self._journal, self._offset = run / "metrics.jsonl", 0
        self._on_failure = on_failure
        self._loggers = {name: _OPEN[name](run, config) for name in names}

    def advance(self) -> None:
        """Copies the complete lines since the last call."""
        if not self._loggers:
            return
        try:
            with self._journal.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return
        end = content.rfind(b"\n") + 1
        self._offset += end
        for line in content[:end].splitlines():
            value = json.loads(line)
            kind, step = value.pop("kind"), value.pop("step")
            numbers = {
                f"{kind}/{name}": float(number)
                for name, number in value.items()
                if isinstance(number, int | float)
            }
            self._each(lambda logger: logger.log(numbers, step))  # noqa: B023

    def close(self) -> None:
        """Copies the rest and closes the loggers."""
        self.advance()
        self._each(lambda logger: logger.close())

    def _each(self, use: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                use(logger)
            # Training must not end because of any fault of another package.
            except Exception as error:
                del self._loggers[name]
                self._on_failure(f"{name} has failed and gets no more metrics ({error})")


def _absent(package: str, extra: str) -> ConfigError:
    return ConfigError(
        f"the package {package} is not installed", remedy=f"pip install 'multibox[{extra}]'"
    )


def _tensorboard(run: Path, _: Mapping[str, Any]) -> Logger:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise _absent("tensorboardX", "tensorboard") from None
    folder = run / "tensorboard"
    # A resumed run is written again from its journal. TensorBoard would show both.
    shutil.rmtree(folder, ignore_errors=True)
    writer = SummaryWriter(str(folder))

    def log(numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()

    return Logger(log, writer.close)


def _wandb(run: Path, config: Mapping[str, Any]) -> Logger:
    try:
        import wandb
    except ImportError:
        raise _absent("wandb", "wandb") from None
    mode = os.environ.get("WANDB_MODE", "offline")
    session = wandb.init(
        project="multibox", name=run.resolve().name, dir=str(run), config=dict(config), mode=mode
    )
    return Logger(lambda numbers, step: session.log(dict(numbers), step=step), session.finish)


def _mlflow(run: Path, config: Mapping[str, Any]) -> Logger:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise _absent("mlflow", "mlflow") from None
    address = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run.resolve() / 'mlflow.db'}")
    client = MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name("multibox")
    experiment = found.experiment_id if found else client.create_experiment("multibox")
    name = run.resolve().name
    session = client.create_run(experiment, run_name=name).info.run_id
    for setting, value in config.items():
        client.log_param(session, setting, value)

    def log(numbers: Mapping[str, float], step: int) -> None:
        for metric, number in numbers.items():
            client.log_metric(session, metric, number, step=step)

    return Logger(log, lambda: client.set_terminated(session))


_OPEN: dict[LoggerName, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
