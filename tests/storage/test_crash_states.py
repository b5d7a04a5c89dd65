"""What a kill or a power cut leaves of a save is the checkpoint before it or the new one, whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults import Disk, plant, tree_of

from multibox.storage.checkpoint import Checkpoint, load, newest, path_of, prune, save, steps
from multibox.storage.disk import sync_files
from multibox.storage.jsonl import Journal
from multibox.storage.run_folder import new_file, write_json
from multibox.training.metrics_log import MetricsLog

PREPARED = 20
"""The step up to which folders are prepared; older checkpoints are every ten."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs the real disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def checkpoint(step: int, journal: int) -> Checkpoint:
    weight = torch.arange(6.0) + step
    return Checkpoint(step, {"weight": weight}, {"momentum": -weight}, {"journal": journal})


def go_on(run: Path, last: int, *, best: int | None = None, rollback: bool = False) -> None:
    """What the loop does with a run's folder, ten steps at a time from the newest checkpoint on."""
    found, _ = newest(run / "checkpoints")
    step = found.step if found else 0
    state = found.state if found else {"journal": 0}
    assert isinstance(state, dict)
    with MetricsLog(run, state["journal"], silent=False) as logbook:
        while step < last:
            step += 10
            logbook.write("train", step - 5, loss=1 / step)
            if rollback and step == PREPARED + 10:
                logbook.write("train", step - 3, loss=1e9)
                logbook.cut(state["journal"])
                logbook.write("rollback", step - 2, to=step - 10)
                logbook.write("train", step - 5, loss=2 / step)
            save(run / "checkpoints", checkpoint(step, logbook.commit()), metadata={"a": "b"})
            prune(run / "checkpoints", keep=2, best=best)


def damage(run: Path) -> None:
    path = path_of(run / "checkpoints", PREPARED) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def interrupted(run: Path) -> None:
    """As a kill in the middle of a save and of a prune leaves it."""
    for name in (".step-00000030.new", ".step-00000000.old"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "model.safetensors").write_bytes(b"half")


# What is there before, and how the watched part of the run goes.
SAVES: dict[str, tuple[int, Callable[[Path], None], dict[str, object]]] = {
    "first": (0, lambda _: None, {}),
    "second": (10, lambda _: None, {}),
    "with prune": (PREPARED, lambda _: None, {}),
    "that keeps the best": (PREPARED, lambda _: None, {"best": 10}),
    "after a rollback": (PREPARED, lambda _: None, {"rollback": True}),
    "after an interrupted one": (PREPARED, interrupted, {}),
    "after a damaged one": (PREPARED, damage, {}),
}


@pytest.mark.parametrize("name", SAVES)
def test_every_state_of_a_save_has_a_sound_newest_and_goes_on(tmp_path: Path, name: str) -> None:
    prepared, prepare, manner = SAVES[name]
    runs = tmp_path / "runs"
    for run in (runs / "run", tmp_path / "unbroken"):
        run.mkdir(parents=True)
        if prepared:
            go_on(run, prepared, **manner)
            prepare(run)
    with Disk(runs) as disk:
        go_on(runs / "run", prepared + 10, **manner)
    assert disk.final() == tree_of(runs)
    go_on(tmp_path / "unbroken", prepared + 20, **manner)
    expected = tree_of(tmp_path / "unbroken")

    outcomes, number = set(), 0
    for number, state in enumerate(disk.states(), start=1):
        run = plant(state, tmp_path / f"state-{number}") / "run"
        found, _ = newest(run / "checkpoints")
        outcomes.add(found.step if found else 0)
        for step in steps(run / "checkpoints"):
            load(path_of(run / "checkpoints", step))
        if found:
            sound = checkpoint(found.step, found.state["journal"])
            assert torch.equal(found.model["weight"], sound.model["weight"])
            assert torch.equal(found.optimizer["momentum"], sound.optimizer["momentum"])
        go_on(run, prepared + 20, **manner)
        assert tree_of(run) == expected
    # Once it is saved, nothing takes it away.
    for place, state in enumerate(disk.states(len(disk.events))):
        run = plant(state, tmp_path / f"saved-{place}") / "run"
        assert steps(run / "checkpoints")[-1] == prepared + 10
    damaged = {prepared - 10} if name == "after a damaged one" else set()
    assert outcomes == {prepared, prepared + 10} | damaged
    assert number > 80


def test_times_stay_legible_although_nobody_waits_for_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with Disk(folder) as disk, Journal(folder / "timings.jsonl", None) as journal:
        for step in range(4):
            journal.write({"step": step})
    lines = (folder / "timings.jsonl").read_text().splitlines()
    for number, state in enumerate(disk.states()):
        path = plant(state, tmp_path / f"state-{number}") / "timings.jsonl"
        with Journal(path, None) as journal:
            journal.write({"step": "more"})
        *before, more = path.read_text().splitlines()
        assert before == lines[: len(before)]
        assert more == '{"step":"more"}'
    assert number > 10


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """One new, one replaced, one below a new folder, one that must not exist."""
    old, new = {"a": [1, 2, 3]}, {"b": list(range(50))}

    def write(folder: Path) -> None:
        write_json(folder / "new.json", new)
        write_json(folder / "old.json", new)
        write_json(folder / "evaluations" / "deep.json", new)
        with new_file(folder / "model.json") as temporary:
            temporary.write_text(json.dumps(new))

    folder = tmp_path / "folder"
    write_json(folder / "old.json", old)
    with Disk(folder) as disk:
        write(folder)
    assert disk.final() == tree_of(folder)
    for number, state in enumerate(disk.states()):
        place = plant(state, tmp_path / f"state-{number}")
        for path in place.rglob("*.json"):
            if not path.name.startswith("."):
                assert json.loads(path.read_text()) in (old, new)
        assert (place / "old.json").exists()
        (place / "model.json").unlink(missing_ok=True)
        write(place)
        assert tree_of(place) == tree_of(folder)
    assert number > 30


def test_what_was_synced_is_there(tmp_path: Path) -> None:
    """Files of other writers, which nobody syncs, as a milestone's pictures are."""
    run = tmp_path / "run"
    run.mkdir()
    with Disk(run) as disk:
        (run / "samples").mkdir()
        for name in ("a.jpg", "b.jpg"):
            (run / "samples" / name).write_bytes(b"picture")
        sync_files(run, [run / "samples" / "a.jpg", run / "samples" / "b.jpg"])
        (run / "after").mkdir()
    states = list(disk.states())
    assert {"samples": None, "samples/a.jpg": b"", "samples/b.jpg": b""} in states
    # After it, only the name of a later folder may be missing.
    done = tree_of(run)
    assert list(disk.states(len(disk.events))) == [
        {name: content for name, content in done.items() if name != "after"},
        done,
    ]
