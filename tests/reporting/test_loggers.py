"""Metrics are copied to other packages as they are in the journal, without any network."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs

from multibox.reporting.loggers import JournalCopy, LoggerName


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return synthetic_runs.write_run(tmp_path / "run", synthetic_runs.TINY)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses connections to other machines."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a connection to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def copy(run: Path, *names: LoggerName) -> JournalCopy:
    return JournalCopy(run, names, {"lr": 0.001, "network": "ssd300-lite"}, pytest.fail)


@pytest.mark.usefixtures("alone")
def test_tensorboard_has_the_numbers_of_the_journal(run: Path) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  # the format read below

    for _ in range(2):  # A resumed run replaces the files.
        copied = copy(run, "tensorboard")
        copied.close()
    (file,) = (run / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    found = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    expected = {
        (f"{line['kind']}/{name}", line["step"]): value
        for line in lines(run)
        for name, value in line.items()
        if name not in ("kind", "step")
    }
    assert found == pytest.approx(expected)


@pytest.mark.usefixtures("alone")
def test_wandb_works_offline(run: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    copied = copy(run, "wandb")
    copied.close()
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    assert b"validation/loss" in file.read_bytes()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_writes_to_the_run(run: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed")
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    copied = copy(run, "mlflow")
    copied.close()
    client = tracking.MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (session,) = client.search_runs([client.get_experiment_by_name("multibox").experiment_id])
    history = client.get_metric_history(session.info.run_id, "train/loss")
    expected = {line["step"]: line["loss"] for line in lines(run) if line["kind"] == "train"}
    assert {metric.step: metric.value for metric in history} == expected
    assert session.data.params["network"] == "ssd300-lite"


def test_only_complete_new_lines_are_copied(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multibox.reporting import loggers

    got: list[int] = []
    fake = loggers.Logger(lambda _, step: got.append(step), lambda: None)
    monkeypatch.setitem(loggers._OPEN, "tensorboard", lambda *_: fake)
    journal = run / "metrics.jsonl"
    journal.write_text('{"kind":"train","step":1,"loss":2.0}\n{"kind":"train","st')
    copied = copy(run, "tensorboard")
    copied.advance()
    assert got == [1]
    journal.write_text('{"kind":"train","step":1,"loss":2.0}\n{"kind":"train","step":2,"loss":1}\n')
    copied.advance()
    copied.advance()
    assert got == [1, 2]


def test_failing_logger_does_not_end_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multibox.reporting import loggers

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setitem(loggers._OPEN, "wandb", lambda *_: loggers.Logger(fail, fail))
    said: list[str] = []
    copied = JournalCopy(run, ("wandb",), {}, said.append)
    copied.advance()
    copied.close()
    assert said == ["wandb has failed and gets no more metrics (the disk is full)"]
