"""Every parser on inputs that others might have made: a valid result, or one refusal that says why.

What each case is held to is in `guard.py` and at the end of each target.
"""

import contextlib
import logging
import mmap
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.choices import Choices
from fuzz.guard import run_case
from fuzz.sweep import Tally, Target, sweep
from fuzz.targets import TARGETS

from multibox.errors import DataError, MultiboxError

every_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place: a case writes some files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name).resolve()


def _sound(tally: Tally, cases: int) -> None:
    assert not tally.findings
    assert tally.cases == cases
    # What is always refused, or never, shows nothing of the reader.
    assert 0.02 * cases < tally.accepted


@every_target
def test_some_inputs(target: Target, folder: Path) -> None:
    _sound(sweep(target, range(target.quick), folder), target.quick)


@pytest.mark.slow
@every_target
def test_many_inputs(target: Target, folder: Path) -> None:
    _sound(sweep(target, range(target.many), folder), target.many)


def _reads_elsewhere(_: Choices, __: Path) -> None:
    Path("/etc/hostname").read_bytes()


def _connects(_: Choices, __: Path) -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


def _computes(_: Choices, __: Path) -> None:
    end = time.process_time() + 1.1
    while time.process_time() < end:
        pass


def _fills_the_memory(choices: Choices, _: Path) -> None:
    # The sweep's first case, which is not counted, takes more: its peak must not hide this one.
    size = 80 << 20 if choices.bytes(1) else 200 << 20
    # Not of the heap, where the tests before this one may have left that much, free and in place.
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for first in range(0, size, mmap.PAGESIZE):
            pages[first] = 1


def _fails(_: Choices, __: Path) -> None:
    raise KeyError("x")


def _escapes_nothing(_: Choices, __: Path) -> None:
    class UnescapedError(DataError):
        def __str__(self) -> str:
            return "\x1b[31m"

    raise UnescapedError("x", kind="unreadable")


def _says_nothing(_: Choices, __: Path) -> None:
    raise MultiboxError("x")


def _dies(_: Choices, __: Path) -> None:
    import ctypes
    import faulthandler

    # pytest's would print where, in the midst of its own lines.
    faulthandler.disable()
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (_reads_elsewhere, "outside: open /etc/hostname"),
        (_connects, "outside: socket."),
        (_computes, "slow"),
        (_fills_the_memory, "memory"),
        (_fails, "KeyError"),
        (_escapes_nothing, "control characters"),
        (_says_nothing, "without a kind"),
        (_dies, "the process died: SIGSEGV"),
    ],
)
def test_what_must_not_be_is_found(run: object, what: str, folder: Path) -> None:
    """Else the tests above would show nothing."""
    tally = sweep(Target("x", run, quick=1), range(1, 2), folder)
    (finding,) = tally.findings
    assert finding.startswith(what) or what in finding


def test_what_a_library_logs_is_formatted_by_nobody(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on the command line; formatting it may open files."""

    def logs(_: Choices, __: Path) -> None:
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("library").exception("x")

    assert run_case(logs, b"", folder).finding is None
    assert not caplog.records
    logging.getLogger("library").warning("after it")
    assert caplog.messages == ["after it"]


def test_a_case_is_the_same_again(folder: Path) -> None:
    def seen(choices: Choices, _: Path) -> None:
        assert choices.bytes(20) == b"12"
        raise DataError("x", kind="unreadable")

    assert run_case(seen, b"12", folder).finding is None
    assert Choices(b"").below(7) == 0
    assert [Choices(bytes([n])).below(7) for n in (0, 6, 7)] == [0, 6, 0]
