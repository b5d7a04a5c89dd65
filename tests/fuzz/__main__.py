"""`make fuzz`: each target for some seconds, and a table of what came of it.

With atheris the cases are guided by the code that they reach; without it they are the seeded ones
of the tests, from a number on that the clock chooses. Exits with 1 where there is a finding.
"""

import argparse
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from fuzz.guard import run_case
from fuzz.sweep import Target, sweep
from fuzz.targets import TARGETS


class Row(NamedTuple):
    """A target's line in the table."""

    cases: int
    seconds: float
    findings: list[str]


def _guided(target: Target, seconds: int, kept: Path, folder: Path) -> Row:
    corpus, findings = kept / "corpus" / target.name, kept / "findings" / target.name
    for place in (corpus, findings):
        place.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in findings.iterdir()}
    started = time.monotonic()
    command = [sys.executable, "-m", "fuzz.guided", target.name, str(seconds)]
    command += map(str, (corpus.resolve(), findings.resolve(), folder))
    with (kept / f"{target.name}.log").open("wb") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, check=False)
    cases = findings / "cases"
    new = [path for path in sorted(findings.iterdir()) if path.name not in before and path != cases]
    found = [f"{path.name}: {path.read_text().strip()}" for path in new if path.suffix == ".txt"]
    found += [path.name for path in new if path.suffix == ""]
    if ended.returncode and not found:
        found.append(f"ended with status {ended.returncode}, see {log.name}")
    count = int(cases.read_text()) if cases.exists() else 0
    return Row(count, time.monotonic() - started, found)


def _seeded(target: Target, seconds: int, folder: Path) -> Row:
    started = time.monotonic()
    first = int(time.time()) * 1000
    tally = sweep(target, range(first, first + 10**9), folder, seconds=seconds)
    found = [f"case {number}: {what}" for what, number in tally.findings.items()]
    return Row(tally.cases, time.monotonic() - started, found)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", type=Path, default=Path(".fuzz"), help="corpora and findings")
    parser.add_argument("--case", type=Path, help="only this file of a finding, of the one target")
    given = parser.parse_args()
    chosen = [target for target in TARGETS if not given.targets or target.name in given.targets]
    guided = importlib.util.find_spec("atheris") is not None
    failed = False
    if not given.case:
        print("guided by atheris" if guided else "seeded; atheris is not installed")
        print(f"{'target':14}{'cases':>10}{'seconds':>9}  findings")
    for target in chosen:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            if given.case:
                print(run_case(target.run, given.case.read_bytes(), folder))
                continue
            if guided:
                row = _guided(target, given.seconds, given.keep, folder)
            else:
                row = _seeded(target, given.seconds, folder)
        print(f"{target.name:14}{row.cases:10}{row.seconds:9.1f}  {len(row.findings)}", flush=True)
        for finding in row.findings:
            print(f"    {finding}")
        failed |= bool(row.findings)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
