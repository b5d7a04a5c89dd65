"""How well fitted default boxes overlap the objects of the test split, and the time of the fit.

python benchmarks/box_fitting.py FOLDER --recipe ssd300-lite --train trainval --test test
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from multibox.boxes import best_iou
from multibox.build import NETWORKS, levels_to_choose
from multibox.commands.box_fitting import fitted_levels
from multibox.data.formats.layouts import read_dataset
from multibox.recipes import RECIPES
from multibox.ssd.default_boxes import default_boxes


def main() -> None:
    """Prints the fit, its time, and a line for the network's own and for the fitted boxes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="ssd300-lite")
    parser.add_argument("--train", default="trainval")
    parser.add_argument("--test", default="test")
    options = parser.parse_args()
    config = replace(RECIPES[options.recipe](), fit_boxes=True)
    train, test = (
        read_dataset(options.data, split, on_bad="skip") for split in (options.train, options.test)
    )
    start = time.process_time()
    levels = fitted_levels(config, train, Console())
    print(f"{time.process_time() - start:.2f} s of CPU time")
    own, size = levels_to_choose(config)[0], NETWORKS[config.network].image_size_px
    for name, found in (("own", own), ("fitted", levels or own)):
        table = default_boxes(found, size)
        for label, class_name in enumerate(test.classes):
            boxes = [item.boxes[item.labels == label] for item in test.annotations]
            best = best_iou(torch.from_numpy(np.concatenate(boxes)), table)
            share, mean = (best >= 0.5).float().mean().item(), best.mean().item()
            print(f"test, {name}, {class_name}: share {share:.4f}, mean best IoU {mean:.4f}")


if __name__ == "__main__":
    main()
