"""Detects in a video of 300 frames made from photographs, beside the network alone.

    python benchmarks/video.py MODEL PHOTOGRAPHS [--rounds 3]

Each frame carries its number in binary digits. It prints JSON: whether each frame is detected once
and in order, the frames per second of decoding, detecting, drawing and writing, and those of the
network alone with the same batches. The two are measured in turns, and the best round counts.
"""

import argparse
import json
import os
import tempfile
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2

# As the command line does, before PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from multibox.commands.predict import Options, predict
from multibox.commands.prediction.items import VideoRef
from multibox.commands.prediction.video import AnnotatedVideo, frames
from multibox.data.images import read_image
from multibox.detector import Detector

FRAMES, BATCH = 300, 8


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--score-threshold", type=float, default=0.9)
    options = parser.parse_args()
    detector = Detector.open(options.model)
    with tempfile.TemporaryDirectory() as name:
        video = make_video(Path(name) / "video.mp4", options.photographs)
        ref = VideoRef(str(video), str(video))
        inputs = [detector.prepare(frame.pixels) for frame in islice(frames(ref), BATCH)]
        rates: dict[str, list[float]] = {"predict": [], "network": []}
        for turn in range(options.rounds):
            started = time.perf_counter()
            for _ in range(FRAMES // BATCH):
                detector.detect_batch(inputs, score_threshold=options.score_threshold)
            rates["network"].append(FRAMES // BATCH * BATCH / (time.perf_counter() - started))
            out = Path(name) / f"out-{turn}"
            settings = Options(options.score_threshold, batch_size=BATCH)
            started = time.perf_counter()
            predict(detector, [video], out=out, options=settings)
            rates["predict"].append(FRAMES / (time.perf_counter() - started))
        lines = [json.loads(line) for line in (out / "video.jsonl").read_text().splitlines()]
        drawn = VideoRef("drawn", str(out / "video.mp4"))
        best = {part: max(found) for part, found in rates.items()}
        result = {
            "frames_once_and_in_order": [line["frame"] for line in lines] == list(range(FRAMES))
            and [number(frame.pixels) for frame in frames(ref)] == list(range(FRAMES)),
            "frames_in_the_drawn_video": sum(1 for _ in frames(drawn)),
            "frames_per_second": {part: round(rate, 1) for part, rate in best.items()},
            "ratio": round(best["predict"] / best["network"], 3),
        }
        print(json.dumps(result, indent=2))


def make_video(path: Path, photographs: Path) -> Path:
    """Writes the video."""
    files = sorted(photographs.iterdir())
    video = AnnotatedVideo(path, Fraction(25))
    for index in range(FRAMES):
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
