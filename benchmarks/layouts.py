"""Uses every layout of annotations with every verb, and prints a table.

The layouts are made from the same 30 photographs (tests/layouts.py). Each verb is called as the
command line calls it: `check`, `train` for 3 steps with nothing else named, `evaluate`, `report`,
`predict`, and `convert-data` to VOC.

    python benchmarks/layouts.py ../shared > benchmarks/results/layouts.md
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from layouts import LAYOUTS, photos  # noqa: E402

from multibox.cli.main import main  # noqa: E402


def call(*words: object) -> tuple[int, str]:
    """Runs a command line; returns its exit status and what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = main([str(word) for word in words])
    return status, said.getvalue()


def use(layout: str, folder: Path, shared: Path) -> list[str]:
    """Returns a row of the table."""
    data, run = folder / layout, folder / "run"
    raccoons = photos(shared)
    LAYOUTS[layout](data, raccoons)
    small = ("--steps", 3, "--batch-size", 4, "--workers", 0)
    verbs = {
        "check": ("check", data, "--json"),
        "train": ("train", "--data", data, "--out", run, *small),
        "evaluate": ("evaluate", run, "--json", "--workers", 0),
        "report": ("report", run),
        "predict": ("predict", run, raccoons[0].path, "--out", folder / "found"),
        "convert-data": ("convert-data", data, folder / "voc", "--to", "voc"),
    }
    cells = []
    for verb, words in verbs.items():
        status, said = call(*words)
        # `check` exits with 3 if there is a fault.
        cells.append("yes" if status == 0 else f"no ({status})")
        if status:
            print(f"{layout} {verb}: {said[-2000:]}", file=sys.stderr)
    facts = json.loads((run / "run.json").read_text())["data"]
    splits = [facts[role] for role in ("train", "validation", "test") if role in facts]
    sizes = [str(split["images"]) for split in splits]
    objects = sum(sum(split["objects"].values()) for split in splits)
    return [layout, " + ".join(sizes), str(objects), *cells]


def table() -> None:
    """Prints the table."""
    shared = Path(sys.argv[1]).resolve()
    names = ["layout", "images", "objects", "check", "train", "evaluate", "report", "predict"]
    names.append("convert-data")
    print("# Layouts and verbs\n\nThe same 30 photographs in every layout. `train` was given the")
    print("folder and 3 steps. Layouts without splits had them drawn as 80/10/10.\n")
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            print(f"| {' | '.join(use(layout, Path(folder), shared))} |", flush=True)


if __name__ == "__main__":
    table()
