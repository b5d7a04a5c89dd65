"""The learning rate as a pure function of the step and of past validation losses.

So a resumed run has no schedule to restore. The rate of a step is base * schedule * warm-up. `step`
is the index of the update, from 0.
"""

import math
from collections.abc import Sequence

from multibox.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, base: float, step: int, drops: int = 0) -> float:
    """Returns the learning rate of one update.

    multistep is Caffe's: update i has the lower rate if i >= drop (`sgd_solver.cpp:43-51`). cosine
    is 0.5 * (1 + cos(pi * step / steps)): 1 at step 0, and 0 at `config.steps`, which is one after
    the last update. The warm-up rises from 1 / warmup_steps at step 0 to 1 at step
    warmup_steps - 1.

    Args:
        config: The schedule.
        base: Learning rate without schedule and warm-up.
        step: Index of the update, 0..steps - 1.
        drops: plateau: number of drops so far, from `plateau_drops`.
    """
    factor: float
    match config.schedule:
        case "multistep":
            factor = config.drop_factor ** sum(step >= drop for drop in config.drops)
        case "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * step / config.steps))
        case "plateau":
            factor = config.drop_factor**drops
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    return base * factor * warmup


def plateau_drops(config: ScheduleConfig, losses: Sequence[float]) -> int:
    """Returns the number of drops that a history of validation losses has caused.

    A loss is an improvement if it is lower than the best so far by more than `plateau_threshold`
    times the best. After `plateau_patience` validations in a row without an improvement, the rate
    drops and the count restarts at 0. The best loss remains the best.

    Args:
        config: The schedule.
        losses: The validation losses of the run, oldest first.
    """
    best, waited, drops = math.inf, 0, 0
    for loss in losses:
        if loss < best * (1 - config.plateau_threshold):
            best, waited = loss, 0
            continue
        waited += 1
        if waited >= config.plateau_patience and drops < config.plateau_drops:
            drops, waited = drops + 1, 0
    return drops
