import os
from pathlib import Path

import pytest

from multibox.build import new_network
from multibox.commands.predict import Many, Options, predict_many
from multibox.commands.prediction.ray_engine import load_ray
from multibox.commands.prediction.sources import Listing
from multibox.config import Config
from multibox.detector import Detector
from multibox.errors import ConfigError
from multibox.storage.checkpoint import Checkpoint, save
from multibox.weights.files import make_header


def test_ray_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'multibox[ray]'")
    network = new_network(Config(network="ssd300-lite"), 2)
    header = make_header(network, "ssd300-lite", ("cat", "dog"), "CC0")
    state = {"best": {"step": 1, "mAP": 0.5}}
    checkpoint = Checkpoint(1, network.state_dict(), {}, state)
    save(tmp_path / "run" / "checkpoints", checkpoint, metadata=header)
    (photos / "5.png").write_bytes(b"hello")
    detector = Detector.open(tmp_path / "run", device="cpu")
    options = Options(0.3, save=("parquet",), batch_size=2)
    found = []
    for engine in ("local", "ray"):
        many = Many(tmp_path / "run", device="cpu", chunk_size=3, engine=engine)
        out = tmp_path / engine
        done = predict_many(detector, Listing([str(photos)]), many, out=out, options=options)
        assert (done.images, done.refused) == (6, 1)
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]


def test_ray_sends_no_usage_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    try:
        load_ray()
    except ConfigError as error:
        assert "pip install" in str(error)  # noqa: PT017
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
