"""Seeded cases of a target, in a child process: a crash or a hang of a decoder is a finding too.

Case n of a target is the bytes of the stream (0, "fuzz", target, n), so that each can be repeated.
"""

import contextlib
import hashlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fuzz.guard import MAX_EXTRA_BYTES, Run, run_case

_CASE_BYTES = 400
_HANGS_SECONDS = 60
# Address space, so that what claims to be huge fails at once.
_MOST_BYTES = 4 << 30
_PROGRESS = struct.Struct("<qd")


class Target(NamedTuple):
    """A parser under test.

    Attributes:
        name: For people.
        run: Makes an input from choices, and reads it.
        quick: How many cases the default tests run.
        many: How many the slow ones run.
        extra_bytes: What a case may add to the memory in use.
    """

    name: str
    run: Run
    quick: int
    many: int = 100_000
    extra_bytes: int = MAX_EXTRA_BYTES


class Tally(NamedTuple):
    """What came of many cases.

    Attributes:
        cases: How many there were.
        accepted: How many were taken for valid.
        cpu_seconds: Of all.
        slowest_seconds: Of the slowest.
        largest_bytes: The most that a case added to the memory in use.
        findings: By what must not be, the first case's number.
    """

    cases: int
    accepted: int
    cpu_seconds: float
    slowest_seconds: float
    largest_bytes: int
    findings: dict[str, int]


def case_bytes(name: str, number: int) -> bytes:
    """Returns the bytes of a case. The first one's decisions are all the first: a valid input."""
    if number == 0:
        return b""
    seed = hashlib.sha256(f"{name} {number}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(seed, "little"))).bytes(_CASE_BYTES)


def sweep(target: Target, cases: range, folder: Path, *, seconds: float = 1e9) -> Tally:
    """Returns what came of a target's cases, up to some time on the clock."""
    progress = mmap.mmap(-1, _PROGRESS.size)
    total = Tally(0, 0, 0.0, 0.0, 0, {})
    deadline = time.monotonic() + seconds
    start = cases.start
    while start < cases.stop and time.monotonic() < deadline:
        part, end = _in_child(target, range(start, cases.stop), folder, deadline, progress)
        total = _sum(total, part)
        if end is None:
            break
        # The child died; what it had found before is lost but for its count.
        died, reason = end
        total = _sum(total, Tally(died + 1 - start, 0, 0.0, 0.0, 0, {reason: died}))
        start = died + 1
    return total


def _in_child(
    target: Target, cases: range, folder: Path, deadline: float, progress: mmap.mmap
) -> tuple[Tally, tuple[int, str] | None]:
    """Returns the tally of a child, or the case that it died of."""
    progress[:] = _PROGRESS.pack(cases.start, time.monotonic())
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # PyTorch's idle threads are not needed in the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            os.write(
                writing, json.dumps(_cases(target, cases, folder, deadline, progress)).encode()
            )
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    status = _wait(child, progress)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    if status == 0 and content:
        return Tally(*json.loads(content)), None
    number, _ = _PROGRESS.unpack(progress[:])
    what = signal.Signals(-status).name if status < 0 else f"status {status}"
    return Tally(0, 0, 0.0, 0.0, 0, {}), (number, f"the process died: {what}")


def _wait(child: int, progress: mmap.mmap) -> int:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        _, since = _PROGRESS.unpack(progress[:])
        if time.monotonic() - since > _HANGS_SECONDS:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _cases(
    target: Target, cases: range, folder: Path, deadline: float, progress: mmap.mmap
) -> Tally:
    """Runs in the child."""
    _quiet(folder)
    limit = min(
        _MOST_BYTES + _address_space(), resource.getrlimit(resource.RLIMIT_AS)[1] or 1 << 62
    )
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    # What is loaded late is loaded now.
    run_case(target.run, case_bytes(target.name, 0), folder)
    done, accepted, slowest, largest = 0, 0, 0.0, 0
    findings: dict[str, int] = {}
    started = time.process_time()
    for number in cases:
        now = time.monotonic()
        if now > deadline:
            break
        progress[:] = _PROGRESS.pack(number, now)
        data = case_bytes(target.name, number)
        case = run_case(target.run, data, folder, extra_bytes=target.extra_bytes)
        done += 1
        accepted += case.accepted
        slowest, largest = max(slowest, case.seconds), max(largest, case.extra_bytes)
        if case.finding:
            findings.setdefault(case.finding, number)
    return Tally(done, accepted, time.process_time() - started, slowest, largest, findings)


def _quiet(folder: Path) -> None:
    """Sends what decoders in C print to a file."""
    descriptor = os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    os.dup2(descriptor, 1)


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        one.cases + other.cases,
        one.accepted + other.accepted,
        one.cpu_seconds + other.cpu_seconds,
        max(one.slowest_seconds, other.slowest_seconds),
        max(one.largest_bytes, other.largest_bytes),
        other.findings | one.findings,
    )
