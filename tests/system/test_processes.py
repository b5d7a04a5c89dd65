"""Two processes under torchrun see the samples of one, and end where it ends."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from system.conftest import TINY, Command, environment

pytestmark = pytest.mark.system


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def losses(run: Path, kind: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == kind]


def test_two_processes_are_as_one(multibox: Command, drawn: Path, tmp_path: Path) -> None:
    # The plain VGG has no batch normalisation, whose statistics would differ by process.
    line = ["train", "ssd300-vgg16-voc0712", "--data", drawn, *TINY, "--steps", "2"]
    every = ["--log-every", "1", "--evaluate-every", "2", "--lr", "0.0001"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert multibox(*line, *every, "--out", one).returncode == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "multibox"]
    together = subprocess.run(
        [*command, *map(str, [*line, *every, "--out", two])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert together.returncode == 0, together.stderr
    for kind in ("train", "validation"):
        np.testing.assert_allclose(losses(two, kind), losses(one, kind), rtol=1e-5)
    positives = [
        [json.loads(x).get("positives") for x in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, two)
    ]
    assert positives[0] == positives[1]
