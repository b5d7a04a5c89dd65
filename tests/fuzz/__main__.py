"""Runs targets for some seconds each, and prints what came of it; see `make fuzz`."""

import argparse
import sys
import tempfile
from pathlib import Path

from fuzz.sweep import sweep
from fuzz.targets import TARGETS

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    a = parser.parse_args()
    for target in TARGETS:
        if a.names and target.name not in a.names:
            continue
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            t = sweep(target, range(a.start, a.start + a.cases), Path(folder), seconds=a.seconds)
        print(f"{target.name:12} cases {t.cases} accepted {t.accepted} cpu {t.cpu_seconds:.1f}s slowest {t.slowest_seconds:.3f}s mem {t.largest_bytes/2**20:.1f} MiB", flush=True)
        for what, n in t.findings.items():
            print("    ", n, what, flush=True)
