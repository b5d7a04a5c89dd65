"""One target under atheris, which looks for bytes that reach code not reached before.

Runs until its time is up, and never returns: libFuzzer ends the process. What came of it is in the
folder of findings: `cases`, and a file of bytes and one of words for each finding.
"""

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["multibox", "tarfile", "zipfile"]):
    from fuzz.guard import run_case
    from fuzz.targets import TARGETS

_CASE_BYTES = 600
_SAVED_EVERY = 100


def main(name: str, seconds: str, corpus: Path, findings: Path, folder: Path) -> None:
    """Fuzzes a target.

    Args:
        name: Of the target.
        seconds: How long.
        corpus: What was found worth keeping, also of earlier runs.
        findings: Where to write what must not be.
        folder: Where the cases put their files.
    """
    (target,) = (target for target in TARGETS if target.name == name)
    count, known = 0, set[str]()
    run_case(target.run, b"", folder)  # what is loaded late is loaded now

    def one(data: bytes) -> None:
        nonlocal count
        case = run_case(target.run, data, folder, extra_bytes=target.extra_bytes)
        count += 1
        if count % _SAVED_EVERY == 0:
            (findings / "cases").write_text(str(count))
        if case.finding and case.finding not in known:
            known.add(case.finding)
            stem = hashlib.sha256(data).hexdigest()[:12]
            (findings / f"{stem}.bin").write_bytes(data)
            (findings / f"{stem}.txt").write_text(f"{case.finding}\n")

    limits = [f"-max_total_time={seconds}", f"-max_len={_CASE_BYTES}", "-rss_limit_mb=4096"]
    options = ["-timeout=20", f"-artifact_prefix={findings}/", "-verbosity=0", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(Path, sys.argv[3:6]))
