"""What Caffe's gradient of L2 normalisation does to training.

python benchmarks/l2norm_gradient.py

A small network learns to find coloured rectangles in noise, twice from the same weights and images:
with the derivative and with Caffe's formula. Its scales start between 10 and 30. Printed are the
mean loss of the last 100 steps, and how far the weights are apart in units of how far they have
moved.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from multibox.config import Config, OptimizerConfig, RunConfig
from multibox.processes.distributed import Processes
from multibox.rng import stream
from multibox.ssd.backbones.vgg import L2Norm, L2NormGradient
from multibox.ssd.default_boxes import Level
from multibox.ssd.matching import match
from multibox.ssd.network import SSD, Traits, initialise
from multibox.structures import Batch, Targets
from multibox.training.train_step import Learner

SIDE, BATCH = 64, 16
LEVELS = (
    Level((16, 16), (4, 4), 10, 20, (1, 2, 1 / 2)),
    Level((8, 8), (8, 8), 20, 36, (1, 2, 0.5)),
)


class Backbone(nn.Module):
    """Four convolutions; the finer of the two maps is normalised, as conv4_3 is."""

    channels = (32, 32)

    def __init__(self, gradient: L2NormGradient) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, 32, 3, stride, 1) for inputs, stride in [(3, 2), (32, 2), (32, 1)]
        )
        self.norm = L2Norm(32, gradient)
        self.last = nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Returns the normalised map and a coarser one."""
        for layer in self.layers:
            x = layer(x).relu()
        return [self.norm(x), self.last(x).relu()]


def draw_batch(seed: int, step: int, boxes: Tensor) -> Batch:
    """Returns noise with one to three rectangles in each image, red or green."""
    rng = stream(seed, "rectangles", step)
    images = rng.integers(0, 160, (BATCH, 3, SIDE, SIDE), dtype=np.uint8)
    targets = Targets(
        torch.zeros(BATCH, 3, 4),
        torch.zeros(BATCH, 3, dtype=torch.int64),
        torch.zeros(BATCH, 3, dtype=torch.bool),
        torch.zeros(BATCH, 3, dtype=torch.bool),
    )
    for image in range(BATCH):
        for place in range(int(rng.integers(1, 4))):
            width, height = rng.integers(8, 32, 2)
            x, y = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
            label = int(rng.integers(2))
            images[image, label, y : y + height, x : x + width] |= 128
            corners = torch.tensor([x, y, x + width, y + height])
            targets.boxes[image, place] = corners / SIDE
            targets.labels[image, place] = label
            targets.valid[image, place] = True
    places = torch.arange(BATCH)
    return Batch(torch.from_numpy(images), targets, match(boxes, targets), places, places)


def train(gradient: L2NormGradient, seed: int, steps: int) -> tuple[list[float], Tensor, Tensor]:
    """Returns the losses, and all weights before and after."""
    network = SSD(
        Backbone(gradient),
        LEVELS,
        image_size_px=(SIDE, SIDE),
        num_classes=2,
        traits=Traits(pixel_scale=1 / 64),
    )
    initialise(network, torch.Generator().manual_seed(seed))
    spread = torch.from_numpy(stream(seed, "scales").uniform(10, 30, 32)).float()
    network.backbone.norm.weight.data.copy_(spread)
    config = Config(
        network="small",
        optimizer=OptimizerConfig(lr=0.001, lr_in_velocity=True, l2norm_gradient=gradient),
        run=RunConfig(batch_size=BATCH, precision="fp32"),
    )
    learner = Learner(network, config, Processes(0, 1, torch.device("cpu")))
    before = nn.utils.parameters_to_vector(network.parameters()).detach().clone()
    losses = []
    for step in range(steps):
        found = learner.step(draw_batch(seed, step, network.default_boxes), lr=0.001, number=step)
        losses.append(found.confidence + found.localization)
    return losses, before, nn.utils.parameters_to_vector(network.parameters()).detach()


def main() -> None:
    """Prints a line per seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for seed in range(options.seeds):
        exact, before, weights = train("exact", seed, options.steps)
        caffe, _, others = train("caffe", seed, options.steps)
        again, _, _ = train("exact", seed + 1000, options.steps)
        apart = (others - weights).norm() / (weights - before).norm()
        print(
            f"seed {seed}: loss {np.mean(exact[:20]):.3f} at first; at the end "
            f"{np.mean(exact[-100:]):.3f} exact, {np.mean(caffe[-100:]):.3f} caffe, "
            f"{np.mean(again[-100:]):.3f} exact with another seed; weights apart by {apart:.0%}"
        )


if __name__ == "__main__":
    main()
