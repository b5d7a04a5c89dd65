"""Images per second of training with either pipeline, and what bounds them, on one device.

python benchmarks/gpu.py --out benchmarks/results      # or benchmarks/gpu.sh, which says more
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import torch
from photographs import CLASSES, HEIGHT_PX, WIDTH_PX, draw_photographs

from multibox.build import matcher, new_network
from multibox.commands.bench.bench import Part, bench
from multibox.config import Config
from multibox.data.collate import Match
from multibox.data.device.batches import ResidentExamples, load, resident_batches
from multibox.data.device.plan import join_plans, plan
from multibox.data.device.render import render
from multibox.data.formats.layouts import read_dataset
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.errors import ConfigError
from multibox.processes.distributed import Processes, pick_device
from multibox.recipes import RECIPES
from multibox.structures import Batch
from multibox.training.train_step import Learner

FORWARD_GFLOP = {"ssd300-vgg16": 62.7}
"""Of an image, with multiplication and addition counted as two; a step takes three times that."""
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362}
"""Of dense bf16 by the makers' data sheets; the first name that is part of the device's counts."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and writes `<device>_<date>.json` and `.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="ssd300-vgg16-voc0712")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts")
    parser.add_argument("--compile", action="store_true", help="train a compiled network, too")
    parser.add_argument("--parts", nargs="*", default=["data", "step", "detect", "predict"])
    parser.add_argument("--workers", type=int, default=max(1, min(8, _cores() - 1)))
    parser.add_argument("--peak-tflops", type=float, help="of the device, in bf16")
    parser.add_argument("--work", type=Path, help="folder for the photographs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, options.work or Path(folder) / "data")
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in found["device"].lower())
    path = options.out / f"{name}_{found['date']}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(found))
    print(table(found), flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Returns all figures."""
    device = pick_device(options.device)
    recipe = RECIPES[options.recipe]()
    config = replace(recipe, data=replace(recipe.data, train_split="trainval"))
    start = time.monotonic()
    draw_photographs(folder, options.images)
    _say(f"{options.images} photographs drawn", start)
    photographs = read_dataset(folder, "trainval")
    size_px = new_network(config, CLASSES).image_size_px
    examples = TrainingExamples(photographs.annotations, size_px, config.augmentation, 0)
    start = time.monotonic()
    resident = load(
        examples,
        device,
        batch_size=max([1, *options.batches]),
        workers=options.workers,
        progress=lambda *_: None,
    )
    loading = time.monotonic() - start
    _say("decoded into the device's memory", start)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    peak = options.peak_tflops or next((v for k, v in PEAK_TFLOPS.items() if k in name), None)
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": name or "cpu",
        "cores": _cores(),
        "workers": options.workers,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "recipe": options.recipe,
        "images": options.images,
        "stored_bytes": sum(item.image_path.stat().st_size for item in photographs.annotations),
        "resident_bytes": resident.pixels.numel(),
        "loading_seconds": loading,
        "peak_bf16_tflops": peak,
        "agreement": agreement(resident),
        "training": [],
    }
    trials = [("cpu", False), ("cuda", False), *([("cuda", True)] if options.compile else [])]
    for size in options.batches:
        for pipeline, compiled in trials:
            start = time.monotonic()
            run = replace(config.run, batch_size=size, compile=compiled)
            batch_config = replace(config, run=run)
            what = f"training, batches of {size}, pipeline {pipeline}{', compiled' * compiled}"
            try:
                found["training"].append(train(batch_config, pipeline, resident, options, peak))
            except ConfigError as error:
                what = f"{what}: {error}"
            _say(what, start)
    found["parts"] = {part: _part(part, config, folder, device) for part in options.parts}
    return found


def train(
    config: Config,
    pipeline: str,
    resident: ResidentExamples,
    options: argparse.Namespace,
    peak_tflops: float | None,
) -> dict[str, Any]:
    """Returns the figures of training on augmented images, at a rate that moves nothing."""
    device, size = resident.pixels.device, config.run.batch_size
    network = new_network(config, CLASSES)
    match = matcher(network, difficult=config.data.train_difficult)
    learner = Learner(network, config, Processes(0, 1, device))
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    steps, waited, start = 0, 0.0, 0.0
    with closing(_batches(pipeline, resident, match, size, options.workers)) as line:
        for number in range(1 << 30):
            if number == options.warmup:
                start, steps, waited = time.monotonic(), 0, 0.0
            elif number > options.warmup and time.monotonic() - start >= options.seconds:
                break
            before = time.monotonic()
            batch = next(line)
            waited += time.monotonic() - before
            # It ends by reading the losses, so that the device is done, too.
            learner.step(batch, lr=1e-12, number=number)
            steps += 1
        seconds = time.monotonic() - start
    rate = steps * size / seconds
    gflop = FORWARD_GFLOP.get(config.network)
    busy = rate * 3 * gflop / (1000 * peak_tflops) if gflop and peak_tflops else None
    return {
        "batch_size": size,
        "pipeline": pipeline,
        "compiled": config.run.compile,
        "precision": str(learner.precision).removeprefix("torch."),
        "images_per_second": rate,
        "data_wait": waited / seconds,
        "utilisation": busy,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "steps": steps,
    }


def _batches(
    pipeline: str, resident: ResidentExamples, match: Match, size: int, workers: int
) -> Iterator[Batch]:
    numbers = training_numbers(range(1 << 30), batch_size=size, rank=0, world_size=1)
    if pipeline == "cuda":
        return resident_batches(resident, numbers, workers=workers, match=match)
    pin = resident.pixels.device.type == "cuda"
    return batches(resident.examples, numbers, workers=workers, pin_memory=pin, match=match)


def agreement(resident: ResidentExamples, count: int = 16) -> dict[str, Any]:
    """Returns how the device's pixels compare with the same code's on the CPU, and with OpenCV's.

    On a GPU it also shows that rendering nowhere waits for it: PyTorch would raise.
    """
    examples, device = resident.examples, resident.pixels.device
    decided = [examples.decide(sample) for sample in range(count)]
    stored, plans, first = [], [], 0
    for each in decided:
        item, begin = examples.annotations[each.place], int(resident.firsts[each.place])
        pixels = resident.pixels[begin : begin + item.height_px * item.width_px].cpu()
        size_px = (item.height_px, item.width_px)
        plans.append(plan(each.geometry, each.colour, size_px, examples.image_size_px, first))
        stored.append(pixels)
        first += len(pixels)
    joined, pixels = join_plans(plans, examples.image_size_px), torch.cat(stored)
    tables = resident.tables and type(resident.tables)(*(t.cpu() for t in resident.tables))
    here = render(pixels, joined, tables, examples.image_size_px)
    there, given = pixels.to(device), joined.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    found = render(there, given, resident.tables, examples.image_size_px)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    (expected,) = batches(examples, [list(range(count))], workers=0, pin_memory=False)
    difference = (found.cpu().int() - expected.images.int()).abs()
    return {
        "same_bits_as_on_the_cpu": torch.equal(found.cpu(), here),
        "mean_difference_from_pipeline_cpu": difference.float().mean().item(),
        "within_3_levels": (difference <= 3).float().mean().item(),
    }


def _part(part: Part, config: Config, folder: Path, device: torch.device) -> list[dict[str, Any]]:
    start = time.monotonic()
    figures = bench(part, config, data=folder, device=device.type)
    _say(f"bench {part}", start)
    return [figure._asdict() | {"images_per_second": figure.per_second} for figure in figures]


def table(found: dict[str, Any]) -> str:
    """Returns the figures as Markdown."""
    gib, same = 1 << 30, found["agreement"]
    lines = [
        f"# {found['device']}, {found['cores']} cores, {found['date']}",
        "",
        f"Python {found['python']}, torch {found['torch']}, OpenCV {found['opencv']}. Training "
        f"`{found['recipe']}` with augmentation, {found['workers']} workers, {found['images']} "
        f"drawn photographs of {WIDTH_PX} x {HEIGHT_PX}. For `--pipeline cuda` they were decoded "
        f"in {found['loading_seconds']:.1f} s to {found['resident_bytes'] / gib:.2f} GiB. "
        f"Its pixels have the same bits as on the CPU: {same['same_bits_as_on_the_cpu']}; they "
        f"differ from `--pipeline cpu` by {same['mean_difference_from_pipeline_cpu']:.2f} levels "
        f"on average, {same['within_3_levels']:.2%} by at most 3. Utilisation is three forward "
        f"passes' operations over {found['peak_bf16_tflops']} TFLOP/s.",
        "",
        "| batch | pipeline | network | arithmetic | images/s | waits for data | utilisation "
        "| peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["training"]:
        busy, peak = row["utilisation"], row["peak_bytes"]
        lines.append(
            f"| {row['batch_size']} | {row['pipeline']} "
            f"| {'compiled' if row['compiled'] else 'eager'} | {row['precision']} "
            f"| {row['images_per_second']:.1f} | {row['data_wait']:.1%} "
            f"| {'' if busy is None else f'{busy:.1%}'} "
            f"| {'' if peak is None else f'{peak / gib:.1f}'} |"
        )
    lines += ["", "| part | work | ms | images/s |", "|---|---|---|---|"]
    for part, figures in found["parts"].items():
        for row in figures:
            ms, rate = f"{1000 * row['seconds']:.1f}", f"{row['images_per_second']:.1f}"
            lines.append(f"| {part} | {row['name']} | {ms} | {rate} |")
    return "\n".join(lines) + "\n"


def _say(what: str, start: float) -> None:
    print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
