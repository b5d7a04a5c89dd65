from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multibox.config import Config, OptimizerConfig, RunConfig
from multibox.processes.distributed import Processes
from multibox.ssd.backbones.vgg import L2Norm
from multibox.ssd.default_boxes import Level
from multibox.ssd.matching import match
from multibox.ssd.network import SSD, Traits
from multibox.structures import Batch, Targets
from multibox.training.train_step import Learner

ALONE = Processes(0, 1, torch.device("cpu"))
LEVEL = Level((8, 8), (2.0, 2.0), 5.0, 8.0, (1, 2, 1 / 2))
NAMES = {
    "conv1.weight": "backbone.conv1.weight",
    "conv1.bias": "backbone.conv1.bias",
    "conv1_norm.scale": "backbone.norm.weight",
    "loc.weight": "offset_heads.0.weight",
    "loc.bias": "offset_heads.0.bias",
    "conf.weight": "logit_heads.0.weight",
    "conf.bias": "logit_heads.0.bias",
}


class Backbone(nn.Module):
    channels = (8,)

    def __init__(self, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = L2Norm(8, "caffe") if norm else nn.Identity()

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.norm(self.conv1(images).relu())]


def network(kind: str, initial: Mapping[str, np.ndarray]) -> SSD:
    made = SSD(
        Backbone(norm=kind == "norm"),
        (LEVEL,),
        image_size_px=(16, 16),
        num_classes=3,
        traits=Traits(mean_rgb=(128.0, 128.0, 128.0), pixel_scale=1 / 64),
    )
    made.load_state_dict({NAMES[name]: torch.from_numpy(value) for name, value in initial.items()})
    return made


def batch(images: np.ndarray, rows: np.ndarray, boxes: Tensor) -> Batch:
    """Some images and the rows of Caffe's label blob: image, class, 0, corners, difficult."""
    most = max(1, *(int((rows[:, 0] == image).sum()) for image in range(len(images))))
    targets = Targets(
        torch.zeros(len(images), most, 4),
        torch.zeros(len(images), most, dtype=torch.int64),
        torch.zeros(len(images), most, dtype=torch.bool),
        torch.zeros(len(images), most, dtype=torch.bool),
    )
    for image in range(len(images)):
        for place, row in enumerate(rows[rows[:, 0] == image]):
            targets.boxes[image, place] = torch.from_numpy(row[3:7])
            targets.labels[image, place] = int(row[1]) - 1
            targets.valid[image, place] = True
    places = torch.arange(len(images))
    return Batch(torch.from_numpy(images), targets, match(boxes, targets), places, places)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_steps_are_those_of_caffes_solver(recorded, compare, kind: str, parts: int) -> None:
    archive = recorded("sgd_solver")
    start = f"{kind}.initial."
    initial = {k.removeprefix(start): v for k, v in archive.items() if k.startswith(start)}
    config = Config(
        network="recorded",
        optimizer=OptimizerConfig(
            lr=0.002, lr_in_velocity=True, accumulate=parts, accumulate_normaliser="part"
        ),
        run=RunConfig(batch_size=2 * parts, precision="fp32"),
    )
    learner = Learner(network(kind, initial), config, ALONE)
    images, rows = archive[f"images.{parts}"], archive[f"gt.{parts}"]
    # Part n of a batch of ours are its images n, n + parts, ...
    order = [part * 2 + image for image in range(2) for part in range(parts)]
    for step in range(20):
        pixels, objects = [], []
        for part in range(parts):
            number = step * parts + part
            pixels.append(images[number])
            # A row of -1 stands for a batch without objects.
            some = rows[(rows[:, 0] == number) & (rows[:, 1] >= 0), 1:]
            some[:, 0] += 2 * part
            objects.append(some)
        objects = np.concatenate(objects)
        objects[:, 0] = [order.index(int(image)) for image in objects[:, 0]]
        made = batch(np.concatenate(pixels)[order], objects, learner.network.default_boxes)
        losses = learner.step(made, lr=0.002 if step < 10 else 0.0002, number=step)
        theirs = archive[f"{kind}.{parts}.loss"][step]
        compare(
            "loss", losses.confidence + losses.localization, theirs, tolerance=1e-6, relative=True
        )
        state = learner.model()
        for name in initial:
            recorded_weights = archive[f"{kind}.{parts}.{name}"][step]
            compare("weights", state[NAMES[name]], recorded_weights, tolerance=5e-6, relative=True)
    velocity = learner.optimizer()
    for name in initial:
        # Caffe's history is the velocity, ours the velocity over the learning rate.
        rate = 0.0002 * (2 if name.endswith("bias") else 1)
        ours = velocity[f"optimizer.momentum_buffer.{NAMES[name]}"] * rate
        theirs = archive[f"{kind}.{parts}.momentum.{name}"]
        compare("momentum", ours, theirs, tolerance=5e-6, relative=True)
