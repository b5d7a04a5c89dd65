"""Detects in a video of 300 frames made from photographs, beside the network alone.

    python benchmarks/video.py PHOTOGRAPHS [--networks ssd300-lite] [--models RUN] [--rounds 3]

Each frame carries its number in binary digits. For each network it prints a line of JSON:

- whether each frame is detected once and in order;
- frames per second of `predict` with JSON lines (decoding, resizing, detecting, writing), and with
  the annotated video too (drawing, encoding);
- frames per second of the network alone, with batches of the same frames, resized before. "threads
  of one batch" is `Detector.detect_batch` as a program would call it: all threads compute one
  batch. "a batch for each thread" is how `predict` computes on a CPU. `ratio` divides by the faster
  one.

Networks have random weights that leave as many candidates as trained ones. All works are measured
in turns, and the best round of each counts. Run it on a machine without other work.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

# As the command line does, before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from multibox.build import new_network
from multibox.commands.bench.bench import _leave_candidates
from multibox.commands.predict import Options, Save, no_addresses, predict
from multibox.commands.prediction.items import VideoRef
from multibox.commands.prediction.pipeline import How, Loaded, detect_batches
from multibox.commands.prediction.selection import choose
from multibox.commands.prediction.video import AnnotatedVideo, frames
from multibox.config import Config
from multibox.data.images import read_image
from multibox.detector import Detector
from multibox.precision import cast_convolutions, compute_dtype

FRAMES, BATCH = 300, 8
NETWORKS = ("ssd300-lite", "ssd300-efficientnet-lite0", "ssd300-vgg16")
CLASSES = tuple(f"class{number}" for number in range(20))
THRESHOLD = 0.5


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--models", nargs="*", default=(), help="runs or weights files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=FRAMES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        video = make_video(Path(name) / "video.mp4", options.photographs, options.frames)
        inputs = first_frames(video)
        for network in options.networks:
            detector = untrained(network, np.stack(inputs))
            print(json.dumps({"network": network} | measure(detector, video, options)), flush=True)
        for model in options.models:
            found = measure(Detector.open(model), video, options)
            print(json.dumps({"network": model} | found), flush=True)


def first_frames(video: Path) -> list[np.ndarray]:
    """Returns the first batch of frames, as the input of a network of 300 x 300 pixels."""
    whole = islice(frames(VideoRef(str(video), str(video))), BATCH)
    return [cv2.resize(frame.pixels, (300, 300)) for frame in whole]


def untrained(name: str, images: np.ndarray) -> Detector:
    """Returns a detector that leaves 160 candidates of an image, as a trained one does."""
    network = new_network(Config(network=name), len(CLASSES)).eval()
    if "vgg" in name:
        # Without batch normalisation, random weights would overflow.
        for head in (*network.offset_heads, *network.logit_heads):
            head.weight.data *= 0.01
    with torch.inference_mode():
        output = network(torch.from_numpy(images[:1]).permute(0, 3, 1, 2))
    _leave_candidates(network, output.logits)
    precision = compute_dtype("auto", torch.device("cpu"))
    return Detector(cast_convolutions(precision, network), CLASSES, precision)


def measure(detector: Detector, video: Path, options: argparse.Namespace) -> dict[str, object]:
    """Returns the frames per second of one network, and what was checked."""
    ref = VideoRef(str(video), str(video))
    inputs = [detector.prepare(frame.pixels) for frame in islice(frames(ref), BATCH)]
    batches = options.frames // BATCH
    works: dict[str, Callable[[], Path | None]] = {
        "network, threads of one batch": lambda: together(detector, inputs, batches),
        "network, a batch for each thread": lambda: apart(detector, inputs, batches),
        "predict, json": lambda: run(detector, video, ("json",)),
        "predict, json and drawn video": lambda: run(detector, video, ("json", "images")),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            count = options.frames if name.startswith("predict") else batches * BATCH
            started = time.perf_counter()
            out = work()
            rates[name].append(count / (time.perf_counter() - started))
            if out is not None:
                last = out
                lines = (out / "video.jsonl").read_text().splitlines()
                assert [json.loads(line)["frame"] for line in lines] == list(range(options.frames))
    best = {name: max(found) for name, found in rates.items()}
    alone = max(rate for name, rate in best.items() if name.startswith("network"))
    usual = best["network, threads of one batch"]
    drawn = VideoRef("drawn", str(last / "video.mp4"))
    return {
        "frames_once_and_in_order": [number(frame.pixels) for frame in frames(ref)]
        == list(range(options.frames)),
        "frames_in_the_drawn_video": sum(1 for _ in frames(drawn)),
        "frames_per_second": {name: round(rate, 1) for name, rate in best.items()},
        "ratio": {
            name: round(rate / alone, 3) for name, rate in best.items() if name.startswith("p")
        },
        "ratio_to_threads_of_one_batch": {
            name: round(rate / usual, 3) for name, rate in best.items() if name.startswith("p")
        },
    }


def run(detector: Detector, video: Path, save: tuple[Save, ...]) -> Path:
    """Detects in the video, and returns the folder of the results."""
    out = video.parent / "-".join(("out", *save))
    predict(detector, [video], out=out, options=Options(THRESHOLD, batch_size=BATCH, save=save))
    return out


def together(detector: Detector, inputs: list[np.ndarray], batches: int) -> None:
    """Computes batches one after the other."""
    for _ in range(batches):
        detector.detect_batch(inputs, score_threshold=THRESHOLD)


def apart(detector: Detector, inputs: list[np.ndarray], batches: int) -> None:
    """Computes several batches at once, as `predict` does."""
    loaded = [Loaded(VideoRef("v", "v"), "v", pixels[:0], pixels, 640, 480) for pixels in inputs]
    selection = choose(detector.classes, THRESHOLD, only=(), by_class=None)
    how = How(selection, BATCH, flip=False, fetch=no_addresses)
    for _ in detect_batches(detector, iter([loaded] * batches), how):
        pass


def make_video(path: Path, photographs: Path, count: int) -> Path:
    """Writes the video."""
    files = sorted(photographs.iterdir())
    video = AnnotatedVideo(path, Fraction(25))
    for index in range(count):
        pixels = cv2.resize(read_image(files[index % len(files)]), (640, 480))
        for digit in range(9):
            pixels[:32, digit * 32 : digit * 32 + 32] = 255 if index >> digit & 1 else 0
        video.write(pixels)
    video.close()
    return path


def number(pixels: "cv2.typing.MatLike") -> int:
    """Returns the number that a frame carries."""
    return sum(int(pixels[16, digit * 32 + 16, 1] > 128) << digit for digit in range(9))


if __name__ == "__main__":
    main()
