"""The verb `demo`: from drawn images to the summary page in a few minutes."""

import dataclasses
from pathlib import Path

from rich.console import Console

from multibox.commands.demo.dataset import draw_dataset
from multibox.commands.report import write_report
from multibox.commands.train import Request, train
from multibox.recipes import ssd300_lite

STEPS = 650
LICENCE = "Apache-2.0; trained on images that multibox draws"


def demo(out: Path, console: Console) -> Path:
    """Draws a dataset, trains `ssd300-lite` on it, evaluates it, and returns the summary page.

    Args:
        out: The folder for the data and the run. A second call resumes the run.
        console: Prints messages.

    Raises:
        MultiboxError: The folder contains something else, or cannot be written.
    """
    console.print(f"Drawing a dataset in {out / 'data'}", highlight=False, markup=False)
    draw_dataset(out / "data")
    recipe = ssd300_lite()
    config = dataclasses.replace(
        recipe,
        schedule=dataclasses.replace(recipe.schedule, steps=STEPS),
        run=dataclasses.replace(
            recipe.run, log_every=25, validate_every=50, evaluate_every=325, checkpoint_every=325
        ),
    )
    request = Request("ssd300-lite", config, out / "data", out / "run", None, LICENCE)
    train(request, console)
    return write_report(out / "run")
