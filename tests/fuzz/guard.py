"""What every case of every fuzz target is held to, besides the target's own claims."""

import contextlib
import logging
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fuzz.choices import Choices

from multibox.errors import MultiboxError

Run = Callable[[Choices, Path], None]
MAX_SECONDS = 1.0
"""Of the processor, for one case."""
MAX_EXTRA_BYTES = 64 << 20
"""That one case may add to the memory that was in use before it."""
_MAX_MESSAGE = 16_000
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")

_seen: list[str] | None = None
_listening = False


class Case(NamedTuple):
    """What came of a case.

    Attributes:
        accepted: Whether the target took the input for valid.
        seconds: Of the processor.
        extra_bytes: What it added to the memory in use, at its most.
        finding: What must not be; none if all is well.
    """

    accepted: bool
    seconds: float
    extra_bytes: int
    finding: str | None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is None:
        return
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = arguments[0]
        _seen.append(f"open {path if isinstance(path, str) else path.decode('utf-8', 'replace')}")
    elif event.startswith("socket.") or event.startswith(_STARTS):
        _seen.append(event)


def run_case(run: Run, data: bytes, folder: Path, *, extra_bytes: int = MAX_EXTRA_BYTES) -> Case:
    """Runs a target on a case: what it opens, starts, takes and raises.

    Args:
        run: The target.
        data: What its decisions are drawn from.
        folder: The only place where it may open files.
        extra_bytes: What it may add to the memory in use.
    """
    global _seen, _listening
    if not _listening:
        # A hook stays for good; this one does nothing while no case runs.
        sys.addaudithook(_listen)
        _listening = True
    _forget_peak()
    before, started = _peak_bytes(), time.process_time()
    accepted, finding = False, None
    # The command line has no handler for what libraries log. pytest has one that formats
    # tracebacks. Python 3.13 compiles the lines of a traceback; if a line alone is no valid syntax,
    # the compiler tries to open a file named "<unknown>".
    logging.disable()
    _seen = seen = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(Choices(data), folder)
        accepted = True
    except MultiboxError as error:
        finding = _misspoken(error)
    except Exception as error:
        finding = f"{type(error).__name__}: {str(error)[:200]} {_place(error)}"
    finally:
        _seen = None
        logging.disable(logging.NOTSET)
    seconds, extra = time.process_time() - started, _peak_bytes() - before
    elsewhere = [event for event in seen if not _may_be_opened(event, folder)]
    if finding:
        pass
    elif elsewhere:
        finding = f"outside: {elsewhere[0][:200]}"
    elif seconds > MAX_SECONDS:
        finding = f"slow: {seconds:.1f} s"
    elif extra > extra_bytes:
        finding = f"memory: {extra >> 20} MiB"
    return Case(accepted, seconds, extra, finding)


def _forget_peak() -> None:
    """Makes the peak what is in use now: an earlier peak would hide the case's own.

    Linux does (proc(5), clear_refs). Elsewhere the peak stays that of all cases.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _may_be_opened(event: str, folder: Path) -> bool:
    """Whether an event is the opening of a file of the case, or of code that is loaded late."""
    verb, _, path = event.partition(" ")
    code = (*filter(None, sys.path), sys.prefix, sys.base_prefix)
    return verb == "open" and (path.startswith((f"{folder}/", *code)) or path == "/dev/null")


def _misspoken(error: MultiboxError) -> str | None:
    """Returns what is wrong with a refusal: each says what is wrong where, on a page at most."""
    text = str(error)
    if type(error) is MultiboxError or not error.reason:
        return f"refusal without a kind or reason: {text[:200]!r}"
    if len(text) > _MAX_MESSAGE:
        return f"long refusal: {len(text)} characters {_place(error)}"
    if not text.replace("\n", "").isprintable():
        return f"refusal with control characters: {text[:300]!r} {_place(error)}"
    return None


def _place(error: BaseException) -> str:
    """Returns the innermost line of the product that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/multibox/" in frame.filename] or frames
    return f"at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
