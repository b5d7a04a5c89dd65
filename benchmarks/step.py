"""How much a training step costs beyond the network's bare forward and backward pass.

python benchmarks/step.py ssd300-vgg16 --batch-size 4
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from multibox.build import new_network
from multibox.config import Config, RunConfig
from multibox.learner import Learner
from multibox.model import in_precision
from multibox.rng import stream
from multibox.runtime.distributed import Processes, pick_device
from multibox.structures import Batch, Targets

OBJECTS = 20


def random_batch(size: int, image_size_px: tuple[int, int]) -> Batch:
    """Noise with 20 objects an image."""
    rng = stream(0, "benchmark")
    low = rng.uniform(0, 0.7, (size, OBJECTS, 2))
    boxes = torch.from_numpy(rng.uniform(0.03, 0.3, (size, OBJECTS, 2)) + low)
    images = torch.from_numpy(rng.integers(0, 256, (size, *image_size_px, 3), dtype="uint8"))
    return Batch(
        images.permute(0, 3, 1, 2),
        Targets(
            torch.cat([torch.from_numpy(low), boxes], dim=2).float(),
            torch.from_numpy(rng.integers(0, 20, (size, OBJECTS))),
            torch.zeros(size, OBJECTS, dtype=torch.bool),
            torch.ones(size, OBJECTS, dtype=torch.bool),
        ),
        torch.arange(size),
        torch.arange(size),
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """One run's time."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Prints medians of interleaved runs, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    config = Config(
        network=options.network,
        run=RunConfig(batch_size=options.batch_size, precision=options.precision),
    )
    device = pick_device("auto")
    learner = Learner(new_network(config, 20), config, Processes(0, 1, device))
    batch = random_batch(options.batch_size, learner.network.image_size_px)
    images = batch.images.to(device)

    def bare() -> None:
        with in_precision(learner.precision, device):
            output = learner.network(images)
        (output.offsets.float().sum() + output.logits.float().sum()).backward()
        learner.network.zero_grad()

    def step() -> None:
        learner.step(batch, lr=1e-6, number=0)

    for work in (bare, step):
        seconds(work, device)
    times = [(seconds(bare, device), seconds(step, device)) for _ in range(options.runs)]
    bare_s, step_s = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"{options.network}, batch {options.batch_size}, {learner.precision}, {device}: "
        f"bare {bare_s:.3f} s, step {step_s:.3f} s, ratio {step_s / bare_s:.3f}, "
        f"{options.batch_size / step_s:.1f} images/s"
    )


if __name__ == "__main__":
    main()
