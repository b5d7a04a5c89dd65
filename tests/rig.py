"""Training runs that cost a fraction of a second each, to be killed, signalled and starved.

A process that has imported everything forks a child per run, which calls the real command line
with real arguments. Of the product, only the tables of networks and recipes are added to: a tiny
detector, on 48 small images.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

CLASSES = ("disc", "square")


def small_dataset(folder: Path, *, train: int = 48, test: int = 4) -> Path:
    """Writes a dataset in VOC layout: noise of 64 x 48 pixels with a square or a disc in it."""
    rng = np.random.Generator(np.random.Philox(7))
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for number in range(train + test):
        image = rng.integers(0, 90, (48, 64, 3), dtype="uint8")
        x, y, side, label = (int(rng.integers(*span)) for span in ((1, 32), (1, 20), (12, 28), (0, 2)))
        if label:
            cv2.rectangle(image, (x, y), (x + side, y + side), (40, 200, 250), cv2.FILLED)
        else:
            middle = (x + side // 2, y + side // 2)
            cv2.circle(image, middle, side // 2, (240, 80, 40), cv2.FILLED)
        cv2.imwrite(str(folder / "JPEGImages" / f"{number:06d}.jpg"), image)
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + side, y + side), strict=True)
        box = "".join(f"<{name}>{value}</{name}>" for name, value in corners)
        (folder / "Annotations" / f"{number:06d}.xml").write_text(
            "<annotation><size><width>64</width><height>48</height><depth>3</depth></size>"
            f"<object><name>{CLASSES[label]}</name><bndbox>{box}</bndbox></object></annotation>"
        )
    for split, first, last in (("trainval", 0, train), ("test", train, train + test)):
        lines = "".join(f"{number:06d}\n" for number in range(first, last))
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(lines)
    return folder


class Run:
    """A training run in a process of its own, and of its own group.

    Attributes:
        pid: Its number, and its group's.
    """

    def __init__(self, rig: "Rig", pid: int) -> None:
        self._rig, self.pid = rig, pid

    def workers(self) -> list[int]:
        """The processes that it has started and that have not ended."""
        tasks = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in tasks.read_text().split()]

    def wait(self) -> int:
        """Returns its exit status, as `subprocess` has it, once it has ended."""
        return int(self._rig.ask({"wait": self.pid}))


class Rig:
    """The process that starts the runs."""

    def __init__(self) -> None:
        self._zygote = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )
        assert self._zygote.stdout.readline() == "ready\n"

    def start(self, arguments, *, folder: Path) -> Run:
        request = {"arguments": [str(a) for a in arguments], "folder": str(folder)}
        return Run(self, int(self.ask(request)))

    def ask(self, request: dict[str, Any]) -> str:
        self._zygote.stdin.write(json.dumps(request) + "\n")
        self._zygote.stdin.flush()
        return self._zygote.stdout.readline()

    def close(self) -> None:
        self._zygote.stdin.close()
        self._zygote.wait()


def _serve() -> None:
    from tiny import TINY
    import torch
    from multibox import build, recipes
    from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig
    torch.set_num_threads(1)
    build.NETWORKS["tiny"] = TINY

    def tiny():
        """Tiny.
        """
        return Config(network="tiny", optimizer=OptimizerConfig(optimizer="adamw",lr=0.002, ema_decay=0.9, clip_norm=10.0),
            schedule=ScheduleConfig(steps=12, schedule="cosine", warmup_steps=2),
            run=RunConfig(batch_size=4, precision="fp32", log_every=3, validate_every=4, evaluate_every=6, checkpoint_every=2, device="cpu"))
    recipes.RECIPES.clear()
    recipes.RECIPES["tiny"] = tiny
    from multibox import cli, arguments, learner
    from multibox.learner import Learner
    for name in ("faster_coco_eval", ):
        __import__(name)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        os.setsid()
        folder = Path(request["folder"])
        err = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(err, 1); os.dup2(err, 2)
        os.close(0)
        status = 99
        try:
            t=time.perf_counter()
            if os.environ.get("PROF"):
                import cProfile
                p = cProfile.Profile(); status = p.runcall(cli.main, request["arguments"]); p.dump_stats("/tmp/h/r3-prof")
            else:
                status = cli.main(request["arguments"])
            sys.stderr.write(f"{time.perf_counter()-t}\n")
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

if __name__ == "__main__":
    _serve()
