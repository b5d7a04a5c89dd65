"""Training runs in several processes that cost a second, to be killed, stopped and signalled.

A process that has imported everything forks the ranks of a run, which call the real command line.
Of the product, only the tables of networks and recipes are added to.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LATE = 30.0
"""Seconds after which a process that should have ended counts as left behind."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """The processes of one run.

    Attributes:
        pids: By rank; each process leads a session of its own, as under torchrun.
        folder: Where `stderr-<rank>` and `trace-<rank>` are.
    """

    def __init__(self, rig: "Rig", pids: list[int], folder: Path) -> None:
        self._rig, self.pids, self.folder = rig, pids, folder

    def wait(self, seconds: float = 120.0) -> list[int | None]:
        """Returns the exit statuses once all have ended; None for who has not."""
        return self._rig.ask({"wait": self.pids, "seconds": seconds})

    def said(self, rank: int) -> str:
        path = self.folder / f"stderr-{rank}"
        return path.read_text() if path.exists() else ""

    def trace(self, rank: int) -> list[tuple[int, list[int], list[int]]]:
        """Number, samples and images of each step that a rank of a traced run has made."""
        try:
            lines = (self.folder / f"trace-{rank}").read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [tuple(json.loads(line)) for line in lines]

    def wait_for_step(self, number: int) -> None:
        """Returns when some rank of a traced run has made a step, or all have ended."""
        while any(alive(pid) for pid in self.pids):
            if any(line[0] >= number for r in range(len(self.pids)) for line in self.trace(r)):
                return
            time.sleep(0.005)


class Rig:
    """Starts runs."""

    def __init__(self) -> None:
        self._mother = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        )

    def start(
        self, arguments: Sequence[object], folder: Path, *, ranks: int = 2, **options: Any
    ) -> Ranks:
        """Starts a run.

        Args:
            arguments: What follows the command's name; a list of lists: by rank.
            folder: For what the processes say.
            ranks: How many.
            options: Attributes of `processes.heartbeat` or `processes.distributed` to set, `trace`,
                `slow_decoding`: seconds that the first process takes longer to decode, or
                `attempts`: torchrun's count of restarts, by rank.
        """
        folder.mkdir(parents=True, exist_ok=True)
        by_rank = arguments if isinstance(arguments[0], list) else [arguments] * ranks
        pids = self.ask(
            {
                "arguments": [[str(a) for a in line] for line in by_rank],
                "folder": str(folder),
                "port": free_port(),
                "options": options,
            }
        )
        return Ranks(self, pids, folder)

    def ask(self, request: dict[str, Any]) -> Any:
        self._mother.stdin.write(json.dumps(request) + "\n")
        self._mother.stdin.flush()
        return json.loads(self._mother.stdout.readline())

    def close(self) -> None:
        self._mother.kill()
        self._mother.communicate()


def left_behind(pids: Sequence[int], *, within: float = LATE) -> list[int]:
    """Returns the processes that are still there after a time."""
    end = time.monotonic() + within
    while found := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > end:
            return found
        time.sleep(0.05)
    return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started, e.g. those that prepare images."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _add_tiny() -> None:
    from functools import partial

    import torch
    from tiny import TINY, TinyBackbone

    from multibox import build, recipes
    from multibox.config import Config, OptimizerConfig, RunConfig, ScheduleConfig

    torch.set_num_threads(1)
    build.NETWORKS["tiny"] = TINY
    build.NETWORKS["tiny-bn"] = TINY._replace(backbone=partial(TinyBackbone, batch_norm=True))

    def tiny() -> Config:
        """Tiny."""
        return Config(
            network="tiny",
            optimizer=OptimizerConfig(lr=0.002, ema_decay=0.9),
            schedule=ScheduleConfig(steps=12, warmup_steps=2),
            run=RunConfig(
                batch_size=4,
                log_every=3,
                validate_every=4,
                evaluate_every=6,
                checkpoint_every=2,
                device="cpu",
                precision="fp32",
            ),
        )

    recipes.RECIPES["tiny"] = tiny


def _prepare(rank: int, request: dict[str, Any]) -> None:
    """Makes a forked process the rank of a run."""
    os.setsid()
    folder, world_size = Path(request["folder"]), len(request["arguments"])
    said = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(0)
    if world_size > 1:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"], "RANK": rank}
        place |= {"LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        os.environ.update({name: str(value) for name, value in place.items()})
    from multibox.processes import distributed, heartbeat
    from multibox.training.train_step import Learner

    options = request["options"]
    if attempts := options.pop("attempts", []):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempts[rank])
    if options.pop("trace", False):
        step = Learner.step

        def traced(self: Learner, batch: Any, **rest: Any) -> Any:
            losses = step(self, batch, **rest)
            entry = [rest["number"], batch.samples.tolist(), batch.indices.tolist()]
            with (folder / f"trace-{rank}").open("a") as file:
                file.write(json.dumps(entry) + "\n")
            return losses

        Learner.step = traced
    slow_decoding = options.pop("slow_decoding", 0)
    if slow_decoding and rank == 0:
        from multibox.training import data_loader

        decode = data_loader.decode_into

        def slowly(*arguments: Any, **rest: Any) -> Any:
            time.sleep(slow_decoding)
            return decode(*arguments, **rest)

        data_loader.decode_into = slowly
    for name, value in options.items():
        for module in (heartbeat, distributed):
            if hasattr(module, name):
                setattr(module, name, value)


def _wait(pids: Sequence[int], seconds: float, ended: dict[int, int]) -> list[int | None]:
    end = time.monotonic() + seconds
    while not set(pids) <= set(ended) and time.monotonic() < end:
        for pid in set(pids) - set(ended):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return [ended.get(pid) for pid in pids]


def _serve() -> None:
    _add_tiny()
    # What optimizers and milestones would import.
    import torch._dynamo  # noqa: F401

    from multibox.cli import main

    def answer(value: object) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer(_wait(request["wait"], request["seconds"], ended))
            continue
        pids = []
        for rank, arguments in enumerate(request["arguments"]):
            pid = os.fork()
            if pid == 0:
                status = 99
                try:
                    _prepare(rank, request)
                    status = main.main(arguments)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            pids.append(pid)
        answer(pids)


if __name__ == "__main__":
    if sys.argv[1:]:  # under torchrun
        _add_tiny()
        from multibox.cli import main

        sys.exit(main.main(sys.argv[1:]))
    _serve()
