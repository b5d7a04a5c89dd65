"""Training runs of a second, to be killed, signalled and robbed of their workers.

A process that has imported everything forks a child for each run. The child calls the real command
line with real arguments, in a session of its own; a tiny detector and its recipe are all that is
added to the product. As a script, this file is that process.
"""

import atexit
import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import torch

from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig

STEPS = 12
LINES = {"train": [3, 6, 9, 12], "validation": [4, 8, 12], "evaluation": [6, 12]}
"""The journal of a run: kinds and steps."""

# What must not differ. `timings.jsonl` may, and the pictures follow from the evaluations.
PROMISED = ("metrics.jsonl", "checkpoints/**/*", "evaluations/**/*", "samples/*")


class Run:
    """A training run in a process of its own.

    Attributes:
        pid: Its number, which is also that of its group and session.
    """

    def __init__(self, rig: "Rig", pid: int, folder: Path) -> None:
        self._rig, self.pid, self._folder = rig, pid, folder

    def workers(self) -> list[int]:
        """The processes that it has started and that have not ended."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in children.split()]

    def send(self, number: int, *, group: bool = False) -> None:
        """Sends a signal; the process is there, if only as a zombie, until `wait`."""
        (os.killpg if group else os.kill)(self.pid, number)

    def usage(self) -> tuple[int, int, int]:
        """Its resident bytes, its open files, and the processes that it has started."""
        status = Path(f"/proc/{self.pid}/statm").read_text().split()
        files = len(list(Path(f"/proc/{self.pid}/fd").iterdir()))
        return int(status[1]) * os.sysconf("SC_PAGE_SIZE"), files, len(self.workers())

    def wait(self) -> int:
        """Returns the exit status, as `subprocess` has it, once it has ended."""
        return self._rig.ask({"wait": self.pid})

    def said(self) -> str:
        """What it printed."""
        path = self._folder / "said"
        # A run may end before it could say anything.
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def steps(self) -> list[int]:
        """The steps that the runs with this folder completed, in order."""
        path = self._folder / "steps"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


class Rig:
    """Starts runs; a context manager that ends their mother.

    Args:
        folder: For the dataset and anything else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = small_dataset(folder / "data")
        self._sessions: set[int] = set()

    def __enter__(self) -> "Rig":
        self._mother = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        )
        self.ask({"ready": True})
        return self

    def __exit__(self, *_: object) -> None:
        # It has nothing to lose, and its own end would take a second.
        self._mother.kill()
        self._mother.communicate()

    def start(
        self, out: Path, *, workers: int, options: Sequence[str] = (), **faults: object
    ) -> Run:
        """Begins a run, or goes on with it.

        Args:
            out: The run's folder; what it says is beside it.
            workers: Processes that prepare images.
            options: Of the command line.
            faults: See `_plant`.
        """
        folder = out.parent / f"{out.name}.rig"
        folder.mkdir(exist_ok=True)
        line = ["train", "tiny", "--data", self.data, "--out", out, "--workers", workers]
        line += options
        request = {"line": [str(word) for word in line], "folder": str(folder), "faults": faults}
        run = Run(self, self.ask(request), folder)
        self._sessions.add(run.pid)
        return run

    def timed(self, out: Path, *, workers: int) -> float:
        """Returns the seconds that a run takes which nothing interrupts."""
        start = time.monotonic()
        assert self.start(out, workers=workers).wait() == 0
        return time.monotonic() - start

    def ask(self, request: dict[str, Any]) -> int:
        """Returns the mother's answer."""
        self._mother.stdin.write(json.dumps(request) + "\n")
        self._mother.stdin.flush()
        return int(self._mother.stdout.readline())

    def orphans(self, seconds: float = 12) -> list[int]:
        """The processes of all runs that are still there after some seconds."""
        end = time.monotonic() + seconds
        while True:
            alive = [pid for pid in _processes() if _session(pid) in self._sessions]
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.1)


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of all files that must be the same however often a run was interrupted."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in PROMISED
        for path in sorted(run.glob(pattern))
        if path.is_file()
    }


def journal(run: Path) -> dict[str, list[int]]:
    """The steps of a run's journal by kind; every line must be whole."""
    steps: dict[str, list[int]] = {}
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    for line in text.splitlines():
        record = json.loads(line)
        steps.setdefault(record["kind"], []).append(record["step"])
    return steps


def timings(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind in a run's second journal."""
    lines = map(json.loads, (run / "timings.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def small_dataset(folder: Path, *, train: int = 48, test: int = 4) -> Path:
    """Writes a dataset in VOC layout: noise of 64 x 48 pixels with a square or a disc in it."""
    rng = np.random.Generator(np.random.Philox(7))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number in range(train + test):
        image = rng.integers(0, 90, (48, 64, 3), dtype="uint8")
        x, y, side = (int(rng.integers(low, high)) for low, high in ((1, 32), (1, 20), (12, 28)))
        if number % 2:
            name = "square"
            cv2.rectangle(image, (x, y), (x + side, y + side), (40, 200, 250), cv2.FILLED)
        else:
            name = "disc"
            middle = (x + side // 2, y + side // 2)
            cv2.circle(image, middle, side // 2, (240, 80, 40), cv2.FILLED)
        cv2.imwrite(str(folder / "JPEGImages" / f"{number:06d}.jpg"), image)
        (folder / "Annotations" / f"{number:06d}.xml").write_text(
            "<annotation><size><width>64</width><height>48</height><depth>3</depth></size>"
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + side}</xmax><ymax>{y + side}</ymax></bndbox></object></annotation>"
        )
    for split, first, last in (("trainval", 0, train), ("test", train, train + test)):
        lines = "".join(f"{number:06d}\n" for number in range(first, last))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return folder


def tiny_config() -> Config:
    """A run of a second: every part of a long one happens in it."""
    return Config(
        network="tiny",
        optimizer=OptimizerConfig(optimizer="adamw", lr=0.002, ema_decay=0.9, clip_norm=10.0),
        schedule=ScheduleConfig(steps=STEPS, schedule="cosine", warmup_steps=2),
        run=RunConfig(
            batch_size=4,
            precision="fp32",
            log_every=3,
            validate_every=4,
            evaluate_every=6,
            checkpoint_every=2,
            device="cpu",
        ),
    )


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _session(pid: int) -> int:
    """The session of a process; 0 if it has ended."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return 0
    return 0 if state == "Z" else int(session)


def _prepare() -> None:
    """Imports all that a run does and adds a tiny recipe."""
    from tiny import SIDE, TINY

    from multibox import build, recipes

    torch.set_num_threads(1)
    build.NETWORKS["tiny"] = TINY
    recipes.RECIPES.clear()
    recipes.RECIPES["tiny"] = tiny_config

    import multibox.cli.main  # noqa: F401

    # The first optimizer imports a great deal, and the first convolutions prepare themselves.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    with torch.inference_mode():
        build.new_network(tiny_config(), 2)(torch.zeros(4, 3, SIDE, SIDE))
    # What is never collected need not be copied in every child.
    gc.collect()
    gc.freeze()


def _plant(
    folder: Path,
    *,
    stuck_seconds: float = 0,
    deadly: str = "",
    slow_step: int = 0,
    broken_step: int = 0,
    nohup: bool = False,
) -> None:
    """Notes completed steps in a file, and plants faults.

    Args:
        folder: Of that file.
        stuck_seconds: When a worker is taken to hang.
        deadly: The name of an image that kills the worker that reads it.
        slow_step: A step that takes half a minute.
        broken_step: A step that ends in an error that nobody foresees.
        nohup: Hangups are ignored.
    """
    from multibox.data import pipeline, workers
    from multibox.training.train_step import Learner

    steps = os.open(folder / "steps", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    step, read = Learner.step, pipeline.read_pixels

    def noted(self: Learner, batch: Any, *, lr: float, number: int) -> Any:
        if number + 1 == slow_step:
            time.sleep(30)
        if number + 1 == broken_step:
            raise ZeroDivisionError("planted")
        losses = step(self, batch, lr=lr, number=number)
        os.write(steps, f"{number + 1}\n".encode())
        return losses

    def checked(annotation: Any) -> Any:
        if annotation.image_path.name == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(annotation)

    Learner.step = noted
    pipeline.read_pixels = checked
    if nohup:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if stuck_seconds:
        workers.STUCK_SECONDS = stuck_seconds


def _serve() -> None:
    """Answers requests."""
    _prepare()
    for line in sys.stdin:
        request = json.loads(line)
        answer = 0
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        elif "line" in request:
            answer = os.fork()
            if answer == 0:
                _train(request)
            while os.getpgid(answer) != answer:
                time.sleep(0.001)
        print(answer, flush=True)  # noqa: T201  # to the tests


def _train(request: dict[str, Any]) -> NoReturn:
    """Is a run, and ends with its exit status."""
    os.setsid()
    folder = Path(request["folder"])
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(said, number)
    os.close(0)
    status = 1
    try:
        _plant(folder, **request["faults"])
        status = sys.modules["multibox.cli.main"].main(request["line"])
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        # Python's own end, without the second that it takes to free every module.
        atexit._run_exitfuncs()
        os._exit(status)


if __name__ == "__main__":
    _serve()
