"""Whole runs of a tiny network and their disk: power cuts, room, resumes one after another."""

import io
import itertools
import json
import os
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import Disk, Tree, plant, tree_of
from rich.console import Console
from tiny import TINY, tiny_network

from multibox import build
from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.train import Request, _checkpoint_bytes, train
from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig
from multibox.errors import DataError, StorageError, WeightsError
from multibox.rng import stream
from multibox.storage import disk
from multibox.storage.checkpoint import load, path_of
from multibox.structures import Batch
from multibox.training.train_step import Learner, StepLosses
from multibox.weights.files import find_weights, read_weights

CONFIG = Config(
    network="tiny",
    optimizer=OptimizerConfig(lr=0.005, ema_decay=0.9),
    schedule=ScheduleConfig(steps=6, drops=(), warmup_steps=2),
    run=RunConfig(
        batch_size=2,
        precision="fp32",
        log_every=1,
        validate_every=3,
        evaluate_every=4,
        checkpoint_every=2,
        workers=0,
        device="cpu",
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving") / "VOC2007"
    draw_dataset(folder, train_images=6, test_images=2)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def run(data: Path, out: Path, config: Config = CONFIG) -> None:
    console = Console(file=io.StringIO(), width=80)
    train(Request("tiny", config, data, out, None, "none"), console)


def promised(out: Path) -> Tree:
    """All but clocks and the lock's text."""
    passed_over = ("timings.jsonl", ".lock", "environment.json")
    return {n: content for n, content in tree_of(out).items() if n not in passed_over}


def cut_the_power(data: Path, tmp_path: Path, times: int) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with Disk(runs) as watched:
        run(data, runs / "run")
    assert watched.final() == tree_of(runs)
    expected, rng = promised(runs / "run"), stream(0, "power cut")
    count = len(watched.events)
    ends = {*np.linspace(1, count, times).astype(int).tolist(), *range(count - 10, count + 1)}
    for number, end in enumerate(sorted(ends)):
        states = list(watched.states_after(end))
        place = plant(states[rng.integers(len(states))], tmp_path / f"state-{number}")
        run(data, place / "run")
        assert promised(place / "run") == expected


def test_a_run_goes_on_after_a_power_cut_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    cut_the_power(data, tmp_path, times=6)


@pytest.mark.slow
def test_a_run_goes_on_after_each_of_many_power_cuts(data: Path, tmp_path: Path) -> None:
    cut_the_power(data, tmp_path, times=400)


class PowerCutError(Exception):
    """Ends a run between two steps."""


def test_resumes_one_after_another_without_a_step_between(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, tmp_path / "unbroken")
    original = Learner.step
    for left in (3, 0, 0):
        made = itertools.count()

        def step(
            self: Learner,
            batch: Batch,
            *,
            lr: float,
            number: int,
            left: int = left,
            made: "itertools.count[int]" = made,
        ) -> StepLosses:
            if next(made) == left:
                raise PowerCutError
            return original(self, batch, lr=lr, number=number)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "step", step)
            with pytest.raises(PowerCutError):
                run(data, tmp_path / "run")
    for _ in range(2):
        run(data, tmp_path / "run")
        assert promised(tmp_path / "run") == promised(tmp_path / "unbroken")


def test_a_disk_without_room_is_refused_before_the_data_are_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "a"
    size = _checkpoint_bytes(tiny_network(num_classes=1), CONFIG.optimizer)
    usage = namedtuple("usage", "free")

    def free(count: int) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(count))

    free(4 * size - 1)
    with pytest.raises(StorageError, match=r"too little room: .* for 4 checkpoints of 1 MiB"):
        run(tmp_path / "missing", out)
    # Enough for a network of one class, which is what is known before.
    free(10 * size)
    with pytest.raises(DataError, match="missing"):
        run(tmp_path / "missing", out)
    with pytest.raises(StorageError, match="lower --keep-checkpoints"):
        run(data, out)
    assert not out.exists()

    free(2**40)
    run(data, out, replace(CONFIG, run=replace(CONFIG.run, checkpoint_every=3)))
    free(0)
    # A run that is at its end needs no room.
    run(data, out)


def test_weights_that_were_damaged_are_not_evaluated(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "run")
    path = find_weights(tmp_path / "run")
    content = path.read_bytes()
    alone = tmp_path / "model.safetensors"
    for flipped in range(len(content) - 200, len(content), 20):
        changed = content[:flipped] + bytes([content[flipped] ^ 1]) + content[flipped + 1 :]
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match="SHA-256"):
            read_weights(path)
    # Nobody vouches for a file alone.
    alone.write_bytes(changed)
    assert read_weights(alone).network == "tiny"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize(("momentum", "ema_decay"), [(0.9, 0.0), (0.0, 0.99)])
def test_the_size_of_a_checkpoint_is_foreseen(
    data: Path, tmp_path: Path, optimizer: str, momentum: float, ema_decay: float
) -> None:
    config = OptimizerConfig(optimizer=optimizer, momentum=momentum, ema_decay=ema_decay)
    steps = replace(CONFIG.schedule, steps=1)
    run(data, tmp_path / "run", replace(CONFIG, optimizer=config, schedule=steps))
    found = load(path_of(tmp_path / "run" / "checkpoints", 1))
    size = sum(tensor.nbytes for tensor in (*found.model.values(), *found.optimizer.values()))
    # Adam counts its steps, too, in one number for each tensor.
    counts = sum(t.nbytes for n, t in found.optimizer.items() if n.startswith("optimizer.step."))
    classes = json.loads((tmp_path / "run" / "run.json").read_text())["classes"]
    network = tiny_network(num_classes=len(classes))
    assert size == _checkpoint_bytes(network, config) + counts
