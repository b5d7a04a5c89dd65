"""Exported files beside PyTorch: processor time of an image, in one run on this machine.

    python benchmarks/export.py --out benchmarks/results/export_DATE.md

The networks have random weights and 20 classes. The files are written without the comparison that
`export` makes. Each figure is the median of the processor time of one thread (`time.process_time`),
so that other programs on the machine disturb it less. The runs of all files are interleaved.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch

from multibox.build import new_network
from multibox.commands.bench.bench import _leave_candidates
from multibox.config import Config
from multibox.detector import Detector
from multibox.export import files
from multibox.export.runtimes import ExportedDetector, open_exported
from multibox.precision import autocast, cast_convolutions
from multibox.rng import stream
from multibox.ssd.network import SSD
from multibox.weights.files import make_header

NETWORKS = ("ssd300-lite", "ssd300-efficientnet-lite0", "ssd300-vgg16")
CLASSES = tuple(f"class{number}" for number in range(20))
FILES: tuple[tuple[files.Format, files.Precision], ...] = (
    ("onnx", "fp32"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
)


def network_of(name: str, images: np.ndarray) -> SSD:
    """Returns a network with random weights that finds 160 candidates, as a trained one does."""
    network = new_network(Config(network=name), len(CLASSES)).eval()
    if "vgg" in name:
        # Without batch normalisation, random weights would overflow.
        for head in (*network.offset_heads, *network.logit_heads):
            head.weight.data *= 0.01
    with torch.inference_mode():
        output = network(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))
    _leave_candidates(network, output.logits)
    return network


def pytorch(network: SSD, images: np.ndarray) -> Callable[[], object]:
    """Returns the detection of the first image by PyTorch in bfloat16."""
    cast_convolutions(torch.bfloat16, network)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)

    def run() -> object:
        with torch.inference_mode(), autocast(torch.bfloat16, torch.device("cpu")):
            output = network(batch)
            return network.detect(output)

    return run


def measured(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Returns the median processor time of each work in ms."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(runs + 2):
        for name, work in works.items():
            start = time.process_time()
            work()
            if number > 1:
                found[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in found.items()}


def rows_of(name: str, runs: int, folder: Path) -> list[str]:
    """Returns the table's rows of a network."""
    rng = stream(0, "images")
    noise = rng.integers(0, 256, (12, 12, 16, 3), dtype=np.uint8)
    photographs = [cv2.resize(each, (500, 375), interpolation=cv2.INTER_CUBIC) for each in noise]
    images = np.stack([cv2.resize(each, (300, 300)) for each in photographs])
    opened: dict[str, ExportedDetector] = {}
    for target, precision in FILES:
        network = network_of(name, images)
        path = folder / f"{name}-{precision}{files.SUFFIXES[target]}"
        model = files.build(network, target, precision, images)
        header = make_header(network, name, CLASSES, "")
        files.write(model, path, target, precision, header)
        opened[f"{target} {precision}"] = open_exported(path)
    network = network_of(name, images)
    detector = Detector(cast_convolutions(torch.bfloat16, network), CLASSES, torch.bfloat16)
    one = images[:1]
    alone = {"pytorch bf16": pytorch(network, one)}
    alone |= {key: lambda each=each: each.detect(one) for key, each in opened.items()}
    whole: dict[str, Callable[[], object]] = {
        "pytorch bf16": lambda: detector.detect(photographs[0]),
    }
    for key, each in opened.items():
        both = Detector(each, CLASSES, torch.float32)
        whole[key] = lambda both=both: both.detect(photographs[0])
    inside = {k: lambda each=each: each.detect(photographs[0][None]) for k, each in opened.items()}
    times = [measured(works, runs) for works in (alone, whole, inside)]
    first = times[0]["pytorch bf16"]
    return [
        f"| {name} | {key} | {times[0][key]:.1f} | {first / times[0][key]:.2f} | "
        f"{times[1][key]:.1f} | {f'{times[2][key]:.1f}' if key in times[2] else ''} |"
        for key in alone
    ]


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    names = ("torch", "onnxruntime", "openvino")
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    lines = [
        "# Exported files beside PyTorch",
        "",
        f"{models[0] if models else platform.machine()}, one thread, load "
        f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores at the start; Python "
        f"{platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in names)}.",
        f"`python benchmarks/export.py --runs {arguments.runs}`. Milliseconds of processor time",
        "for one image: the median of interleaved runs. Random weights, 20 classes.",
        "",
        '- "network": an image of the input size, with decoding and suppression.',
        '- "predict": as `Detector` does it, from 500 x 375 pixels: OpenCV resizes before.',
        '- "resized inside": the graph resizes from 500 x 375 pixels.',
        "",
        "| network | runtime | network, ms | times as fast | predict, ms | resized inside, ms |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="multibox-") as folder:
        for name in arguments.networks:
            lines += rows_of(name, arguments.runs, Path(folder))
            print("\n".join(lines[-5:]), flush=True)
    arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
