from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny import TINY, tiny_network

from multibox.build import NETWORKS
from multibox.detector import Detector
from multibox.storage.checkpoint import Checkpoint, save
from multibox.weights.files import make_header

CLASSES = ("cat", "dog")


@pytest.fixture
def detector() -> Detector:
    return Detector(tiny_network(), CLASSES, torch.float32)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of a tiny network."""
    monkeypatch.setitem(NETWORKS, "tiny", TINY)
    network = tiny_network()
    header = make_header(network, "tiny", CLASSES, "CC0")
    state = {"best": {"step": 1, "mAP": 0.5}}
    checkpoint = Checkpoint(1, network.state_dict(), {}, state)
    save(tmp_path / "run" / "checkpoints", checkpoint, metadata=header)
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with seven images of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (100 + number, 80))
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    return folder
