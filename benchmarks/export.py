r"""Exported files beside PyTorch: agreement and average precision on BCCD, and speed, in one table.

    python benchmarks/export.py BCCD --work FOLDER --out benchmarks/results/export_DATE.md \
        [--runs ssd300-efficientnet-lite0=RUN ...]

For each network, `multibox export` writes four files of a run and compares each with PyTorch on the
test split. Then all of them are timed in turns. The run of a network is one of `--runs`, or that in
FOLDER, or it is trained there for a few steps first. What is in FOLDER is used again, so a repeated
command measures only the times.

"ms" is the median time on the clock of an image of the input size with all threads, with decoding
and suppression. "ms of one core" is the processor time (`time.process_time`), which other programs
disturb less. PyTorch computes in bfloat16.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from multibox.data.formats.layouts import read_dataset
from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.export import files
from multibox.export.runtimes import open_exported

NETWORKS = (
    "ssd300-lite",
    "ssd300-efficientnet-lite0",
    "ssd384-efficientnet-lite0",
    "ssd300-vgg16",
)
FILES: tuple[tuple[files.Format, files.Precision], ...] = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
)


# Recipe, and options of the training, for networks without a run.
TRAINING = {
    "ssd300-lite": ("ssd300-lite", ["--steps", "150"]),
    "ssd300-efficientnet-lite0": ("ssd300-efficientnet-lite0", ["--steps", "150"]),
    "ssd384-efficientnet-lite0": ("ssd384-efficientnet-lite0", ["--steps", "150"]),
    "ssd300-vgg16": (
        "ssd300-vgg16-voc0712",
        [
            *("--steps", "60", "--batch-size", "4", "--optimizer", "adamw", "--lr", "0.0003"),
            *("--schedule", "cosine", "--warmup-steps", "10"),
            *("--train-split", "trainval", "--test-split", "test"),
        ],
    ),
}


def run_of(name: str, given: dict[str, Path], options: argparse.Namespace) -> Path:
    """Returns the folder of a run of a network, which is trained if there is none."""
    run = given.get(name, options.work / f"run-{name}")
    if not (run / "checkpoints").is_dir() or name not in given:
        recipe, extra = TRAINING[name]
        words = ["train", recipe, "--data", str(options.data), "--out", str(run)]
        words += ["--on-bad", "skip", *extra]
        # A finished run ends at once.
        command([*words])
    return run


def command(words: list[str]) -> None:
    """Runs multibox, and ends if it fails."""
    done = subprocess.run([sys.executable, "-m", "multibox", *words], check=False)
    if done.returncode:
        raise SystemExit(f"multibox {' '.join(words)} failed with {done.returncode}")


def export(run: Path, name: str, options: argparse.Namespace) -> dict[str, Path]:
    """Returns the exported files of a run, and writes those that do not exist."""
    found = {}
    for target, precision in FILES:
        path = options.work / f"{name}-{precision}{files.SUFFIXES[target]}"
        if not path.with_name(f"{path.name}.json").exists():
            words = ["export", str(run), "--out", str(path), "--format", target]
            words += ["--precision", precision, "--data", str(options.data), "--split", "test"]
            words += ["--on-bad", "skip", "--max-loss", "1"]
            command(words)
        found[f"{target} {precision}"] = path
    return found


def measured(works: dict[str, Callable[[], object]], runs: int) -> dict[str, tuple[float, float]]:
    """Returns the median time on the clock and of the processor of each work in ms."""
    clock: dict[str, list[float]] = {name: [] for name in works}
    cores: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 2):
        for name, work in works.items():
            # A second image at once, because the first one finds another runtime's threads awake
            # and another work's data in the caches.
            work()
            started, start = time.perf_counter(), time.process_time()
            work()
            if number > 1:
                clock[name].append(1000 * (time.perf_counter() - started))
                cores[name].append(1000 * (time.process_time() - start))
    return {name: tuple(statistics.median(t[name]) for t in (clock, cores)) for name in works}


def rows_of(name: str, given: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Returns the table's rows of a network."""
    run = run_of(name, given, options)
    paths = export(run, name, options)
    dataset = read_dataset(options.data, "test", on_bad="skip")
    image = read_image(dataset.annotations[0].image_path)
    pytorch = Detector.open(run, device="cpu")
    inputs = pytorch.prepare(image)
    works: dict[str, Callable[[], object]] = {"pytorch bf16": lambda: pytorch.detect(inputs)}
    for key, path in paths.items():
        exported = open_exported(path)
        works[key] = lambda exported=exported: exported.detect(inputs[None])
    times = measured(works, options.repeats)
    first = times["pytorch bf16"][0]
    rows = []
    for key in works:
        cells = [name, key, "", "", "", "", ""]
        if key in paths:
            text = paths[key].with_name(f"{paths[key].name}.json").read_text(encoding="utf-8")
            record = json.loads(text)["agreement"]
            original, found = record["AP"]["original"], record["AP"]["exported"]
            if key.endswith("fp32"):
                cells[2:5] = f"{record['box_px']:.1g}", f"{record['score']:.1g}", record["alone"]
            cells[5:7] = f"{found:.4f}", f"{found - original:+.4f}"
        clock, core = times[key]
        cells += [f"{clock:.1f}", f"{core:.1f}", f"{first / clock:.2f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of BCCD")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="*", default=(), help="NETWORK=RUN")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pairs = [word.partition("=") for word in options.runs]
    given = {name: Path(run) for name, _, run in pairs}
    names = ("torch", "onnxruntime", "openvino")
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    started = time.monotonic()
    lines = [
        "# Exported files beside PyTorch",
        "",
        f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores at the start; Python "
        f"{platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}.",
        "`python benchmarks/export.py`. BCCD, the test split, each image in its own size. AP is",
        "the area under the curve (VOC2012). The largest differences are those of float32 files.",
        "",
        "| network | runtime | box, pixels | score | without a counterpart | AP | to PyTorch | ms "
        "| ms of one core | times as fast |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in options.networks:
        lines += rows_of(name, given, options)
        print("\n".join(lines[-5:]), flush=True)
    print(f"{time.monotonic() - started:.0f} s in all")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
