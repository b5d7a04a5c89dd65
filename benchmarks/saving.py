"""Seconds that a checkpoint of SSD300 stalls training, its peak of memory, and its share of time.

python benchmarks/saving.py --out runs/saving
"""

import argparse
import resource
import shutil
import statistics
import time
from pathlib import Path

import torch

from multibox.build import build_network
from multibox.storage.checkpoint import Checkpoint, load, path_of, prune, save

INTERVAL = 300
"""Seconds between checkpoints that the share is of."""


def main() -> None:
    """Prints a line without and one with a moving average."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="ssd300-vgg16")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--saves", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    network = build_network(options.network, options.classes).to(options.device)
    model = network.state_dict()
    momentum = {f"momentum.{n}": torch.zeros_like(p) for n, p in network.named_parameters()}
    raw = {f"raw.{n}": t.clone() for n, t in model.items() if t.is_floating_point()}
    for title, optimizer in (("momentum", momentum), ("momentum and average", momentum | raw)):
        before, seconds = _peak(), []
        for step in range(options.saves):
            start = time.monotonic()
            save(options.out, Checkpoint(step, model, optimizer, {}), metadata={})
            prune(options.out, keep=2, best=None)
            seconds.append(time.monotonic() - start)
        above, start = _peak() - before, time.monotonic()
        load(path_of(options.out, options.saves - 1))
        loading = time.monotonic() - start
        shutil.rmtree(options.out)
        size = sum(tensor.nbytes for tensor in (*model.values(), *optimizer.values()))
        usual, worst = statistics.median(seconds), max(seconds)
        print(
            f"{options.network}, weights and {title}: {size / 2**20:.0f} MiB; save and prune "
            f"{usual:.2f} s (worst {worst:.2f} s), {usual / INTERVAL:.2%} (worst "
            f"{worst / INTERVAL:.2%}) of {INTERVAL} s; {above:.0f} MiB of memory more; "
            f"load {loading:.2f} s",
            flush=True,
        )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
