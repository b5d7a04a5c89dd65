"""How long the page of a large run takes, and its size: `python benchmarks/report_page.py`.

The run has the size of VOC2007's test split: 4,952 images of 500 x 375 pixels for training and as
many for evaluation, 20 classes, 14,976 objects and 985,000 detections (`analysis.py`). The drawn
images are in a temporary folder.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from analysis import IMAGES, SIZE_PX, problem  # noqa: E402
from evaluated_runs import annotate, make_folders, write_run_of  # noqa: E402

from multibox.commands.report import write_report  # noqa: E402
from multibox.evaluation.voc import ClassObjects  # noqa: E402
from multibox.rng import stream  # noqa: E402

PHOTOGRAPHS = 40
"""Number of different images. The others are links to them."""


def write_dataset(root: Path, objects: dict[str, ClassObjects]) -> None:
    """Writes the dataset in VOC layout. Both splits have the same objects."""
    make_folders(root)
    rng, (height, width) = stream(0, "images"), SIZE_PX
    rows: list[list[tuple[str, list[float]]]] = [[] for _ in range(IMAGES)]
    for name, of_class in objects.items():
        for image, box in zip(of_class.images.tolist(), of_class.boxes_px.tolist(), strict=True):
            rows[image].append((name, [round(side, 2) for side in box]))
    for split in ("trainval", "test"):
        names = [f"{split}-{number:05}" for number in range(IMAGES)]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for number, name in enumerate(names):
            path = root / f"JPEGImages/{name}.jpg"
            if number < PHOTOGRAPHS:
                coarse = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
                noise = rng.normal(0, 12, pixels.shape)
                cv2.imwrite(str(path), (pixels + noise).clip(0, 255).astype(np.uint8))
            else:
                os.link(root / f"JPEGImages/{names[number % PHOTOGRAPHS]}.jpg", path)
            annotate(root, name, (width, height), rows[number])


def main() -> None:
    """Prints the seconds and the size."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        detections, objects = problem()
        write_dataset(folder / "data", objects)
        run = write_run_of(folder / "run", folder / "data", detections)
        for _ in range(2):
            wall, work = time.perf_counter(), time.process_time()
            page = write_report(run)
            wall, work = time.perf_counter() - wall, time.process_time() - work
            size = page.stat().st_size / 1e6
            print(f"{wall:.1f} s ({work:.1f} s of processor time), {size:.2f} MB")


if __name__ == "__main__":
    main()
