"""SSD300 whole: the nets that Caffe's own `ssd_pascal.py` writes, with weights from a formula."""

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from multibox.build import new_network
from multibox.config import Config, OptimizerConfig, RunConfig
from multibox.processes.distributed import Processes
from multibox.ssd.matching import match
from multibox.ssd.network import SSD
from multibox.structures import Batch, Targets
from multibox.training.train_step import Learner
from multibox.weights.layer_names import layers

ALONE = Processes(0, 1, torch.device("cpu"))
CLASSES = 20
SPREADS = {"spread0": 0.0, "spread10": 10.0}


def philox(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def formula(name: str, shape: tuple[int, ...], spread: float) -> np.ndarray:
    """The value of a blob of Caffe's, by its name."""
    u = 2 * philox(zlib.crc32(name.encode())).random(shape) - 1
    if len(shape) == 4:
        factor = 3 if "norm_mbox" in name else 0.3 if "mbox" in name else 6
        value = u * np.sqrt(factor / np.prod(shape[1:]))
        return (value / 64 if name == "conv1_1.weight" else value).astype(np.float32)
    return (20 + spread * u if name.startswith("conv4_3_norm.") else 0.1 * u).astype(np.float32)


def our_names(names: list[str]) -> dict[str, str]:
    """Ours by Caffe's."""
    ours = {layer.caffe: layer.ours for layer in layers(6)}
    found = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        found[name] = f"{ours[layer]}.{'bias' if kind == 'bias' else 'weight'}"
    return found


def images(seed: int, count: int) -> Tensor:
    """Random RGB images; the formula's are B, G, R."""
    g = philox(seed)
    coarse = g.random((count, 3, 10, 10)).repeat(30, 2).repeat(30, 3)
    x = ((coarse * 0.7 + g.random((count, 3, 300, 300)) * 0.3) * 256).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(x[:, ::-1]))


def objects(seed: int) -> Targets:
    g = philox(seed)
    found = Targets(
        torch.zeros(2, 8, 4),
        torch.zeros(2, 8, dtype=torch.int64),
        torch.zeros(2, 8, dtype=torch.bool),
        torch.zeros(2, 8, dtype=torch.bool),
    )
    for image in range(2):
        for place in range(2 + int(g.random() * 6)):
            w, h = 0.03 + 0.5 * g.random(2) ** 2
            x, y = g.random() * (1 - w), g.random() * (1 - h)
            found.boxes[image, place] = torch.tensor([x, y, x + w, y + h])
            found.labels[image, place] = int(g.random() * 20)
            found.valid[image, place] = True
    return found


def network(
    archive: Mapping[str, np.ndarray], run: str, config: Config, names: dict[str, str]
) -> SSD:
    made = new_network(config, CLASSES)
    state = made.state_dict()
    with torch.no_grad():
        for theirs, ours in names.items():
            shape = tuple(state[ours].shape)
            value = torch.from_numpy(formula(theirs, shape, SPREADS[run]))
            # Caffe's first convolution reads B, G, R.
            state[ours].copy_(value.flip(1) if theirs == "conv1_1.weight" else value)
    return made


def picked(network: SSD, names: dict[str, str]) -> Iterator[np.ndarray]:
    """The recorded elements of each parameter, in Caffe's layout."""
    pick = philox(1).random(64)
    state = network.state_dict()
    for theirs, ours in names.items():
        value = state[ours].flip(1) if theirs == "conv1_1.weight" else state[ours]
        flat = value.reshape(-1)
        yield flat[torch.from_numpy((pick * flat.numel()).astype(np.int64))].numpy()


def config_of(gradient: str = "caffe") -> Config:
    return Config(
        network="ssd300-vgg16",
        optimizer=OptimizerConfig(lr=2e-5, lr_in_velocity=True, l2norm_gradient=gradient),
        run=RunConfig(batch_size=2, precision="fp32"),
    )


@pytest.mark.parametrize("run", SPREADS)
def test_outputs_and_detections_are_caffes(recorded, compare, run: str) -> None:
    archive = recorded("ssd300")
    names = our_names(archive["names"].tolist())
    made = network(archive, run, config_of(), names).eval()
    initial = np.stack(list(picked(made, names)))
    compare("initial weights", initial, archive[f"{run}.weights_initial"], tolerance=0)
    maps: dict[str, Tensor] = {}
    blocks = made.backbone
    for name, block in (
        ("conv4_3", blocks.trunk["conv4_3"]),
        ("conv4_3_norm", blocks.conv4_3_norm),
        ("fc7", blocks.trunk["fc7"]),
        ("conv6_2", blocks.extra["conv6_2"]),
        ("conv9_2", blocks.extra["conv9_2"]),
    ):
        block.register_forward_hook(
            lambda _, __, y, name=name: maps.__setitem__(name, y.detach().clone())
        )
    # The recorded build took its own default boxes.
    made.default_boxes.copy_(torch.from_numpy(recorded("prior_box")["ssd300_voc"]))
    with torch.no_grad():
        output = made(images(6200, 1))
    for name, value in maps.items():
        found = torch.stack([value.mean(), value.std(correction=0)])
        theirs = archive[f"{run}.mean_std.{name}"]
        compare("mean and deviation of maps", found, theirs, tolerance=1e-5, relative=True)
    compare("offsets", output.offsets[0, ::9], archive[f"{run}.mbox_loc"], tolerance=1e-4)
    compare("logits", output.logits[0, ::9], archive[f"{run}.mbox_conf"], tolerance=1e-4)
    (found,) = made.detect(output)
    theirs = archive[f"{run}.detections"]
    mine = np.column_stack([found.labels + 1, found.scores, found.boxes])
    order, other = by_score(mine), by_score(theirs[:, 1:])
    compare("classes of detections", mine[order, 0], theirs[other, 1], tolerance=0)
    compare("scores", mine[order, 1], theirs[other, 2], tolerance=1e-5)
    compare("corners", mine[order, 2:], theirs[other, 3:], tolerance=1e-4)


def by_score(rows: np.ndarray) -> np.ndarray:
    """The order of detections by class, and by score within one."""
    return np.lexsort((-rows[:, 1], rows[:, 0]))


@pytest.mark.slow
def test_five_steps_are_caffes(recorded, compare) -> None:
    archive = recorded("ssd300")
    names = our_names(archive["names"].tolist())
    learner = Learner(network(archive, "spread10", config_of(), names), config_of(), ALONE)
    boxes = torch.from_numpy(recorded("prior_box")["ssd300_voc"])
    before = archive["spread10.weights_initial"].astype(np.float64)
    for step in range(5):
        targets = objects(6100 + step)
        places = torch.arange(2)
        made = Batch(images(6000 + step, 2), targets, match(boxes, targets), places, places)
        losses = learner.step(made, lr=2e-5 if step < 3 else 2e-6, number=step)
        loss = losses.confidence + losses.localization
        compare("loss", loss, archive["spread10.loss"][step], tolerance=2e-5, relative=True)
        after = archive[f"spread10.weights_after_{step + 1}"].astype(np.float64)
        mine = np.stack(list(picked(learner.network, names)))
        compare("weights", mine, after, tolerance=2e-5)
        # Of each parameter: the difference in units of how far it has moved since the start.
        moved = np.sqrt(np.square(after - before).mean(axis=1))
        apart = np.sqrt(np.square(mine - after).mean(axis=1))
        share = (apart - 1e-7).clip(0) / moved.clip(1e-12)
        compare("difference over movement", share, np.zeros(71), tolerance=0.02)
