"""What ends one process of a run ends all, and the same command line goes on, in any number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import rank_rig
from rank_rig import LATE, Ranks, Rig, children, free_port, left_behind
from system.conftest import environment
from system.test_resume import digests

from multibox.commands.demo.dataset import draw_dataset
from multibox.rng import stream

pytestmark = pytest.mark.system

STEPS, BATCH = 12, 4


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "data"
    draw_dataset(folder, train_images=24, test_images=2)
    return folder


def line(data: Path, out: Path, workers: int = 0) -> list[object]:
    return ["train", "tiny", "--data", data, "--out", out, "--workers", workers]


def losses(run: Path, kind: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def unbroken(rig: Rig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing interrupted."""
    out = tmp_path_factory.mktemp("unbroken")
    assert rig.start(line(data, out / "run"), out).wait() == [0, 0]
    return out / "run"


@pytest.fixture(scope="module")
def alone(rig: Rig, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ranks]:
    """A run of one process that nothing interrupted, and what it saw."""
    out = tmp_path_factory.mktemp("alone")
    process = rig.start(line(data, out / "run"), out, ranks=1, trace=True)
    assert process.wait() == [0]
    return out / "run", process


def check_ended(ranks: Ranks, victim: int, workers: Sequence[int]) -> bool:
    """One rank was killed: the others say so, once, and nothing stays behind.

    Returns whether it was in time: where the other ended well, the run must be complete.
    """
    statuses = ranks.wait(LATE)
    assert left_behind([*ranks.pids, *workers]) == []
    other = 1 - victim
    if 0 in statuses:
        return False
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[other] == 8
    assert ranks.said(other).count("error:") == 1
    assert f"process {victim} has ended without a word" in ranks.said(other)
    assert "last checkpoint" in ranks.said(other)
    assert "Traceback" not in ranks.said(other)
    return True


def check_kill(rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: int) -> None:
    attempt = 0
    while not was_killed_in_time(rig, data, unbroken, tmp_path / f"{attempt}", (trial, attempt)):
        attempt += 1


def was_killed_in_time(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: tuple[int, int]
) -> bool:
    """Kills a rank at some moment; returns whether the run was not over."""
    rng = stream(trial[0], "kill a rank", trial[1])
    victim, moment = int(rng.integers(2)), int(rng.integers(-1, STEPS - 1))
    command = line(data, tmp_path / "run", workers=trial[0] % 3)
    ranks = rig.start(command, tmp_path / "first", trace=True)
    if moment < 0:
        # Before there is a step; but not before they have met, of which there are other tests.
        while "images with" not in ranks.said(0):
            time.sleep(0.005)
    else:
        ranks.wait_for_step(moment)
    time.sleep(float(rng.exponential(0.1)))
    workers = [child for pid in ranks.pids for child in children(pid)]
    os.kill(ranks.pids[victim], signal.SIGKILL)
    in_time = check_ended(ranks, victim, workers)
    if not in_time:
        # Before another run could complete it.
        assert digests(tmp_path / "run") == digests(unbroken)
    assert rig.start(command, tmp_path / "second").wait() == [0, 0]
    assert digests(tmp_path / "run") == digests(unbroken)
    return in_time


def test_decoding_may_take_longer_than_any_computation(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    command = [*line(data, tmp_path / "run"), "--decoded-cache-gib", "1"]
    limits = {"GROUP_SECONDS": 6, "slow_decoding": 9}
    ranks = rig.start(command, tmp_path / "ranks", **limits)
    assert ranks.wait() == [0, 0], ranks.said(0) + ranks.said(1)
    assert "Decoding 24 of 24 images" in ranks.said(0)
    assert digests(tmp_path / "run") == digests(unbroken)


def test_who_decodes_and_dies_ends_those_that_wait(rig: Rig, data: Path, tmp_path: Path) -> None:
    command = [*line(data, tmp_path / "run"), "--decoded-cache-gib", "1"]
    ranks = rig.start(command, tmp_path / "ranks", slow_decoding=60)
    while not (tmp_path / "run" / "checkpoints" / "step-00000000").is_dir():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(ranks.pids[0], signal.SIGKILL)
    assert check_ended(ranks, 0, [])


@pytest.mark.parametrize("trial", [0, 1])
def test_a_killed_rank_ends_all_and_loses_nothing(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: int
) -> None:
    check_kill(rig, data, unbroken, tmp_path, trial)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(100, 120))
def test_twenty_of_twenty_killed_ranks(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: int
) -> None:
    check_kill(rig, data, unbroken, tmp_path, trial)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_three_ranks_add_in_the_order_of_an_unbroken_run(
    rig: Rig, data: Path, tmp_path: Path, victim: int
) -> None:
    for out in ("unbroken", "run"):
        command = [*line(data, tmp_path / out), "--batch-size", 6]
        ranks = rig.start(command, tmp_path / f"said-{out}", ranks=3, trace=True)
        if out == "run":
            ranks.wait_for_step(4 + victim)
            os.kill(ranks.pids[victim], signal.SIGKILL)
            assert ranks.wait(LATE) == [-9 if rank == victim else 8 for rank in range(3)]
            ranks = rig.start(command, tmp_path / "again", ranks=3)
        assert ranks.wait() == [0, 0, 0]
    assert digests(tmp_path / "run") == digests(tmp_path / "unbroken")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_hangs_ends_all(rig: Rig, data: Path, tmp_path: Path, victim: int) -> None:
    command = line(data, tmp_path / "run")
    ranks = rig.start(command, tmp_path, trace=True, TICK_SECONDS=0.1, SILENT_TICKS=40)
    ranks.wait_for_step(2)
    os.kill(ranks.pids[victim], signal.SIGSTOP)
    try:
        assert left_behind([ranks.pids[1 - victim]], within=LATE) == []
    finally:
        os.kill(ranks.pids[victim], signal.SIGCONT)
    assert ranks.wait(LATE) == [8, 8]
    assert f"process {victim} hangs" in ranks.said(1 - victim)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_does_not_come(rig: Rig, data: Path, tmp_path: Path, missing: int) -> None:
    lines: list[object] = [line(data, tmp_path / "run")] * 2
    ranks = rig.start(lines, tmp_path, MEETING_SECONDS=1.0)
    os.kill(ranks.pids[missing], signal.SIGKILL)
    assert ranks.wait(LATE)[1 - missing] == 8
    assert "do not find each other" in " ".join(ranks.said(1 - missing).split())
    assert not (tmp_path / "run").exists()


def test_a_machine_that_came_back_counts_fewer_restarts(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    command = line(data, tmp_path / "run")
    ranks = rig.start(command, tmp_path / "said", attempts=[1, 0], MEETING_SECONDS=20.0)
    assert ranks.wait() == [0, 0], ranks.said(0) + ranks.said(1)
    assert digests(tmp_path / "run") == digests(unbroken)


def check_signal(rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: int) -> None:
    rng = stream(trial, "signal to ranks")
    number = (signal.SIGTERM, signal.SIGINT)[trial % 2]
    command = line(data, tmp_path / "run", workers=trial // 2 % 2)
    ranks = rig.start(command, tmp_path / "first", trace=True)
    ranks.wait_for_step(int(rng.integers(0, STEPS - 2)))
    time.sleep(float(rng.exponential(0.05)))
    whom = int(rng.integers(4))
    if whom < 2:
        os.kill(ranks.pids[whom], number)
    else:
        # As torchrun does, with all that they have started; for 3 twice, as under a scheduler.
        for pid in ranks.pids * (whom - 1):
            os.killpg(pid, number)
    assert ranks.wait(LATE) == [128 + number] * 2
    assert [ranks.said(rank).count("Stopped and saved") for rank in (0, 1)] == [1, 0]
    assert "Traceback" not in ranks.said(0) + ranks.said(1)
    steps = [{line[0] for line in ranks.trace(rank)} for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{max(steps[0]) + 1:08d}").is_dir()
    assert rig.start(command, tmp_path / "second").wait() == [0, 0]
    # Those of the steps between differ: one more was saved.
    kept = ("metrics.jsonl", f"checkpoints/step-{STEPS:08d}", "evaluations", "samples")
    ends = [
        {name: digest for name, digest in digests(run).items() if name.startswith(kept)}
        for run in (tmp_path / "run", unbroken)
    ]
    assert ends[0] == ends[1]


def test_a_signal_to_any_rank_saves_the_same_step(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path
) -> None:
    check_signal(rig, data, unbroken, tmp_path, trial=2)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(100, 120))
def test_twenty_of_twenty_signals(
    rig: Rig, data: Path, unbroken: Path, tmp_path: Path, trial: int
) -> None:
    check_signal(rig, data, unbroken, tmp_path, trial)


def check_elastic(
    rig: Rig,
    data: Path,
    alone: tuple[Path, Ranks],
    tmp_path: Path,
    *,
    ranks: int,
    workers: int,
    kills_per_epoch: int,
) -> None:
    """Kills a run several times per epoch, and goes on in another number of processes."""
    rng = stream(workers, "elastic", ranks)
    command = line(data, tmp_path / "run", workers)
    epoch = 24 // BATCH
    moments = [
        int(first + step)
        for first in range(0, STEPS, epoch)
        for step in np.sort(rng.choice(epoch - 1, kills_per_epoch, replace=False))
    ]
    samples: dict[int, list[int]] = {}
    images: dict[int, list[int]] = {}
    for attempt, moment in enumerate([*moments, STEPS]):
        count = 1 + (ranks + attempt + 1) % 2
        run = rig.start(command, tmp_path / str(attempt), ranks=count, trace=True)
        run.wait_for_step(moment)
        if moment < STEPS:
            os.kill(run.pids[int(rng.integers(count))], signal.SIGKILL)
        statuses = run.wait(LATE)
        assert moment < STEPS or statuses == [0] * count, run.said(0)
        if attempt and (tmp_path / "run" / "checkpoints").is_dir() and 0 in statuses:
            assert f"resuming with {count} process" in run.said(0)
        # A step that the next attempt repeats does not count; it repeats all that some rank lacks.
        made = [{number: seen for number, *seen in run.trace(rank)} for rank in range(count)]
        for number in made[0]:
            shares = [by_number.get(number, ([], [])) for by_number in made]
            samples[number] = [sample for share in shares for sample in share[0]]
            images[number] = [image for share in shares for image in share[1]]
    assert [s for step in range(STEPS) for s in samples[step]] == list(range(STEPS * BATCH))
    seen = [image for step in range(STEPS) for image in images[step]]
    assert [sorted(seen[at : at + 24]) for at in range(0, len(seen), 24)] == [list(range(24))] * 2
    unbroken, process = alone
    assert seen == [image for _, _, share in process.trace(0) for image in share]
    for kind in ("train", "validation"):
        np.testing.assert_allclose(
            losses(tmp_path / "run", kind), losses(unbroken, kind), rtol=1e-5
        )


def test_each_sample_once_in_another_number_of_processes(
    rig: Rig, data: Path, alone: tuple[Path, Ranks], tmp_path: Path
) -> None:
    check_elastic(rig, data, alone, tmp_path, ranks=2, workers=1, kills_per_epoch=1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2])
def test_each_sample_once_after_three_kills_per_epoch(
    rig: Rig, data: Path, alone: tuple[Path, Ranks], tmp_path: Path, ranks: int, workers: int
) -> None:
    check_elastic(rig, data, alone, tmp_path, ranks=ranks, workers=workers, kills_per_epoch=3)


def test_batch_norm_over_all_processes_is_that_of_one(rig: Rig, data: Path, tmp_path: Path) -> None:
    runs = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}"
        command = [*line(data, out), "--network", "tiny-bn", "--sync-batch-norm"]
        assert rig.start(command, tmp_path / f"said-{ranks}", ranks=ranks).wait() == [0] * ranks
        runs.append(out)
    for kind in ("train", "validation"):
        np.testing.assert_allclose(losses(runs[1], kind), losses(runs[0], kind), rtol=1e-4)


def test_detections_are_the_same_bytes_in_any_number_of_processes(
    rig: Rig, data: Path, tmp_path: Path
) -> None:
    """Five images, which neither two nor three processes can share equally."""
    larger = tmp_path / "data"
    draw_dataset(larger, train_images=6, test_images=5)
    found = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}"
        # One step that does not change the weights.
        command = [*line(larger, out), "--steps", 1, "--lr", 1e-30, "--batch-size", 6]
        started = rig.start(command, tmp_path / f"said-{ranks}", ranks=ranks)
        assert started.wait() == [0] * ranks, started.said(0)
        evaluated = [path for path in sorted((out / "evaluations").rglob("*")) if path.is_file()]
        found.append({str(path.relative_to(out)): path.read_bytes() for path in evaluated})
    assert any(name.endswith(".txt") and content for name, content in found[0].items())
    assert found[1] == found[0]
    assert found[2] == found[0]


def spoilt(data: Path, copy: Path, kind: str) -> Path:
    """A copy of the dataset, as another machine might have it."""
    shutil.copytree(data, copy)
    victim = sorted((copy / "Annotations").iterdir())[3]
    image = copy / "JPEGImages" / f"{victim.stem}.jpg"
    if kind == "missing":
        image.unlink()
    elif kind == "rotten":
        for path in image.parent.iterdir():
            content = bytearray(path.read_bytes())
            middle = len(content) // 2
            content[middle : middle + 400] = b"\xff\xd8" * 200
            path.write_bytes(content)
    else:
        text = victim.read_text()
        victim.write_text(text.replace("<difficult>0", "<difficult>1", 1))
        assert victim.read_text() != text
    return copy


@pytest.mark.parametrize(
    ("kind", "where", "status", "words"),
    [
        ("missing", 0, 3, ".jpg"),
        ("missing", 1, 3, ".jpg"),
        ("rotten", 1, 3, ".jpg"),
        ("altered", 1, 2, "process 1 differs from the first process (data_digest"),
        ("--lr", 0, 2, "process 1 differs from the first process (lr:"),
        ("--batch-size", 0, 2, "cannot be shared equally by 2 processes"),
        ("foreign", 0, 2, "notes.txt"),
    ],
)
def test_what_one_rank_cannot_use_ends_all_with_one_message(
    rig: Rig, data: Path, tmp_path: Path, kind: str, where: int, status: int, words: str
) -> None:
    out = tmp_path / "run"
    lines = [line(data, out), line(data, out)]
    if kind == "--lr":
        lines[where] += [kind, "0.5"]
    elif kind == "--batch-size":
        # Before anything is read.
        lines = [[*line(tmp_path / "nowhere", out), kind, 5]] * 2
    elif kind == "foreign":
        out.mkdir()
        (out / "notes.txt").touch()
    else:
        lines[where] = line(spoilt(data, tmp_path / "copy", kind), out)
    ranks = rig.start(lines, tmp_path / "said")
    assert ranks.wait(LATE) == [status, status]
    everything = " ".join((ranks.said(0) + ranks.said(1)).split())
    assert everything.count("error:") == 1
    assert words in everything
    assert "Traceback" not in everything
    assert ("process 1: " in everything) == (where == 1 and kind in ("missing", "rotten"))


def start(arguments: Sequence[object], processes: int) -> subprocess.Popen[str]:
    """Starts a run as a user does, with torchrun if it has several processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--master-port", str(free_port())]
    command += [rank_rig.__file__, *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("first", "then"), [(2, 2), (1, 2), (2, 1)])
def test_under_torchrun(
    data: Path,
    unbroken: Path,
    alone: tuple[Path, Ranks],
    tmp_path: Path,
    number: int,
    first: int,
    then: int,
) -> None:
    out = tmp_path / "run"
    command = line(data, out, workers=1)
    agent = start(command, first)
    while agent.poll() is None and not (out / "checkpoints" / "step-00000002").is_dir():
        time.sleep(0.005)
    ranks = children(agent.pid) if first > 1 else [agent.pid]
    workers = [child for pid in ranks for child in children(pid)]
    assert len(ranks) == first
    # A rank is killed; the agent passes on what it is told.
    os.kill(ranks[-1] if number == signal.SIGKILL else agent.pid, number)
    _, said = agent.communicate(timeout=2 * LATE)
    assert left_behind([*ranks, *workers]) == []
    assert said.count("Stopped and saved") == (number != signal.SIGKILL)
    assert said.count("has ended without a word") <= 1
    again = start(command, then)
    _, said = again.communicate(timeout=4 * LATE)
    assert again.returncode == 0, said
    assert said.count("note: resuming with") == (first != then)
    if first == then:
        assert digests(out)["metrics.jsonl"] == digests(unbroken)["metrics.jsonl"]
    for kind in ("train", "validation"):
        np.testing.assert_allclose(losses(out, kind), losses(alone[0], kind), rtol=1e-5)
