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


def journalled(run: Path, kind: str, name: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["kind"] == kind]


def together(line: list[object], out: Path) -> None:
    """Runs two processes as torchrun does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "multibox"]
    found = subprocess.run(
        [*command, *map(str, [*line, "--out", out])],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_torchrun_s_processes_have_the_samples_of_one(
    called: Command, drawn: Path, tmp_path: Path
) -> None:
    line = ["train", "ssd300-lite", "--data", drawn, *TINY, "--steps", "2", "--log-every", "1"]
    line += ["--batch-size", "4"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert called(*line, "--out", one).returncode == 0
    together(line, two)
    assert journalled(two, "train", "positives") == journalled(one, "train", "positives")
    assert journalled(two, "train", "positives")


@pytest.mark.slow
def test_two_processes_are_as_one(multibox: Command, drawn: Path, tmp_path: Path) -> None:
    # The plain VGG has no batch normalisation, whose statistics would differ by process.
    line = ["train", "ssd300-vgg16-voc0712", "--data", drawn, *TINY, "--steps", "2"]
    line += ["--log-every", "1", "--evaluate-every", "2", "--lr", "0.0001"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert multibox(*line, "--out", one).returncode == 0
    together(line, two)
    for kind in ("train", "validation"):
        np.testing.assert_allclose(
            journalled(two, kind, "loss"), journalled(one, kind, "loss"), rtol=1e-5
        )
    assert journalled(two, "train", "positives") == journalled(one, "train", "positives")
