"""A detector of 20 classes, in another's format, starts a training on real photographs."""

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from multibox.commands.demo.dataset import draw_dataset
from multibox.weights.class_names import VOC

Command = Callable[..., subprocess.CompletedProcess[str]]

BRIEF = ("--warmup-steps", "0", "--batch-size", "8", "--evaluate-every", "1000")


def give_voc_names(folder: Path) -> None:
    """Calls the drawn things by VOC's names, one after the other, so that all 20 are there."""
    names = itertools.cycle(VOC)
    for path in sorted((folder / "Annotations").iterdir()):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"<name>[^<]*</name>", lambda _: f"<name>{next(names)}</name>", text)
        path.write_text(text, encoding="utf-8")


def first_loss(run: Path) -> float:
    """The loss of the first step, before any update."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(float(line["loss"]) for line in lines if line["kind"] == "train")


@pytest.mark.system
@pytest.mark.slow
def test_other_classes_start_below_random_heads(
    shared: Path, tmp_path: Path, multibox: Command
) -> None:
    data = tmp_path / "data"
    draw_dataset(data, train_images=120, test_images=8)
    give_voc_names(data)
    assert (
        multibox(
            *("train", "ssd7", "--data", data, "--out", tmp_path / "voc", "--steps", 120, *BRIEF)
        ).returncode
        == 0
    )
    published = tmp_path / "weights.h5"
    assert multibox("convert", tmp_path / "voc", published, "--to", "keras").returncode == 0
    bccd = ("--data", shared / "data/bccd/VOCdevkit/BCCD", "--on-bad", "skip")
    once = ("--steps", 1, "--log-every", 1, *BRIEF)
    tuned = multibox(
        *("train", "ssd7", *bccd, *once, "--out", tmp_path / "tuned", "--init", published)
    )
    assert tuned.returncode == 0
    assert "tensors start from random values, in full or in part: logit_heads.0" in tuned.stderr
    random = multibox("train", "ssd7", *bccd, *once, "--out", tmp_path / "random")
    assert random.returncode == 0
    assert first_loss(tmp_path / "tuned") < 0.8 * first_loss(tmp_path / "random")
