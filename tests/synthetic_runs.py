"""Writes run folders as `train` leaves them, without training anything."""

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np

from multibox.config import Config, DataConfig, RunConfig, ScheduleConfig

VOC = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
CELLS = ["RBC", "WBC", "Platelets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Story:
    """What is to have happened in a run."""

    classes: list[str]
    planned: int
    every: int
    milestones: list[int]
    reached: int
    drops: dict[int, float] = dataclasses.field(default_factory=dict)
    metric: str = "voc07"


LIKE_THE_REFERENCE = Story(
    classes=VOC,
    planned=120_000,
    every=1_000,
    milestones=[20_000, 40_000, 60_000, 80_000, 100_000, 120_000],
    reached=120_000,
    drops={80_000: 1e-4, 100_000: 1e-5},
)
TINY = Story(classes=CELLS, planned=600, every=20, milestones=[200, 400, 600], reached=600)
STOPPED = Story(classes=CELLS, planned=20_000, every=100, milestones=[], reached=1_300)


def write_run(folder: Path, story: Story) -> Path:
    """Writes a run and returns its folder."""
    folder.mkdir(parents=True)
    config = Config(
        network="ssd300-vgg16",
        data=DataConfig(train_split="2007:trainval+2012:trainval", test_split="2007:test"),
        schedule=ScheduleConfig(steps=story.planned, drops=tuple(story.drops)),
        run=RunConfig(log_every=story.every, validate_every=story.every),
    )
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    draw = np.random.default_rng(7)
    counts = {name: int(draw.integers(200, 5_000)) for name in story.classes}
    split = {"name": "VOC 2007+2012 trainval", "images": 16_551, "objects": counts, "skipped": 2}
    about = {
        "recipe": "ssd300-vgg16-voc",
        "multibox": "0.1.0",
        "data": {"train": split, "test": split | {"name": "VOC 2007 test", "images": 4_952}},
        "classes": story.classes,
        "parameters": 26_285_486,
        "default_boxes": 8_732,
    }
    write_json(folder / "run.json", about)
    _write_journal(folder, story, draw)
    return folder


def add_environment(folder: Path) -> None:
    values = {"python": "3.12.3", "torch": "2.11.0", "device": "NVIDIA H100", "cores": 16}
    write_json(folder / "environment.json", values)


def add_evaluations(folder: Path, story: Story) -> None:
    draw = np.random.default_rng(8)
    base = {name: draw.uniform(0.4, 0.9) for name in story.classes}
    (folder / "evaluations").mkdir()
    for number, step in enumerate(story.milestones):
        grown = {n: min(0.99, b * (0.86 + 0.03 * number)) for n, b in base.items()}
        aps = {name: round(float(ap + draw.normal(0, 0.01)), 6) for name, ap in grown.items()}
        write_json(
            folder / "evaluations" / f"step-{step:08d}.json", evaluation(step, aps, story.metric)
        )


def evaluation(step: int, aps: dict[str, float], metric: str = "voc07") -> dict:
    mean = sum(aps.values()) / len(aps)
    area = {name: ap + 0.02 for name, ap in aps.items()}
    return {
        "step": step,
        "split": "test",
        "images": 4_952,
        "objects": 12_032,
        "metric": metric,
        "voc07": {"mAP": mean, "AP": aps},
        "voc12": {"mAP": mean + 0.02, "AP": area},
        "coco": {
            "AP": mean * 0.6,
            "AP50": mean + 0.01,
            "AP75": mean * 0.62,
            "AP_small": None,
            "AP_medium": mean * 0.4,
            "AP_large": mean * 0.7,
        },
        "curves": {name: _curve(ap) for name, ap in aps.items()},
    }


def add_samples(folder: Path, story: Story, count: int = 6) -> None:
    (folder / "samples").mkdir()
    draw = np.random.default_rng(9)
    rows = []
    for number in range(count):
        pixels = draw.integers(0, 255, (8, 10, 3), dtype=np.uint8)
        pixels = cv2.resize(pixels, (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.rectangle(pixels, (60, 80), (300, 310), (0, 255, 0), 3)
        picture = f"samples/step-{story.reached:08d}-{number}.jpg"
        cv2.imwrite(str(folder / picture), pixels)
        rows.append(
            {"image": f"/elsewhere/{number}.jpg", "picture": picture, "id": f"00000{number}"}
        )
    write_json(folder / "samples" / f"step-{story.reached:08d}.json", rows)


def add_timings(folder: Path, story: Story) -> None:
    lines: list[dict] = []
    for step in range(story.every, story.reached + 1, story.every):
        seconds = story.every * 0.08
        interval = {"step": step, "seconds": seconds, "images_per_second": 400.0, "data_wait": 0.03}
        lines += [interval, {"kind": "validation", "step": step, "seconds": 9.5}]
        if step in story.milestones:
            lines.append({"kind": "evaluation", "step": step, "seconds": 62.25})
    write_lines(folder / "timings.jsonl", lines)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _curve(ap: float) -> dict:
    recall = np.linspace(0, min(1.0, ap + 0.08), 120)
    precision = np.clip(1 - (recall / (ap + 0.1)) ** 6, 0.02, 1)
    return {
        "recall": recall.tolist(),
        "precision": precision.tolist(),
        "scores": np.linspace(0.99, 0.01, 120).tolist(),
    }


def _write_journal(folder: Path, story: Story, draw: np.random.Generator) -> None:
    lines: list[dict] = []
    for step in range(story.every, story.reached + 1, story.every):
        done = step / story.planned
        level = 1.6 + 5.5 * math.exp(-6 * done) - 0.35 * sum(step > drop for drop in story.drops)
        l2 = 1.2 + 1.3 * math.exp(-2 * done)
        for kind, more in (("train", 0.0), ("validation", 0.4 * done)):
            loss = float(level + more + draw.normal(0, 0.03))
            line = {"kind": kind, "step": step, "loss": loss, "l2": l2}
            line |= {"confidence": loss * 0.6, "localization": loss * 0.4}
            lines.append(line | ({"lr": 1e-3, "positives": 412.3} if kind == "train" else {}))
        if step in story.drops:
            lines.append({"kind": "drop", "step": step, "lr": story.drops[step]})
    write_lines(folder / "metrics.jsonl", lines)
