import itertools

import numpy as np
import pytest
import torch
from torch.optim import SGD, lr_scheduler

from multibox.config import ScheduleConfig
from multibox.rng import stream
from multibox.training.schedule import learning_rate, plateau_drops

BASE = 0.003


def optimizer() -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=BASE)


def rates_of(scheduler: lr_scheduler.LRScheduler, count: int) -> list[float]:
    """The rates that torch makes its updates with."""
    rates = []
    for _ in range(count):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def ours(config: ScheduleConfig) -> list[float]:
    return [learning_rate(config, BASE, step) for step in range(config.steps)]


@pytest.mark.parametrize("drops", [(), (0,), (30, 50), (1, 2, 59)])
def test_multistep_is_torch_s(drops: tuple[int, ...]) -> None:
    config = ScheduleConfig(steps=60, drops=drops, drop_factor=0.3, warmup_steps=0)
    torch_s = rates_of(lr_scheduler.MultiStepLR(optimizer(), drops, 0.3), 60)
    assert ours(config) == pytest.approx(torch_s, rel=1e-12)


def test_rate_is_lower_from_the_drop_on() -> None:
    config = ScheduleConfig()
    expected = {79_999: 1e-3, 80_000: 1e-4, 99_999: 1e-4, 100_000: 1e-5, 119_999: 1e-5}
    found = {step: learning_rate(config, 1e-3, step) for step in expected}
    assert found == pytest.approx(expected, rel=1e-12)


def test_cosine_is_torch_s_and_ends_at_zero() -> None:
    config = ScheduleConfig(steps=60, schedule="cosine", warmup_steps=0)
    assert ours(config) == pytest.approx(
        rates_of(lr_scheduler.CosineAnnealingLR(optimizer(), T_max=60), 60), rel=1e-9
    )
    assert learning_rate(config, BASE, 0) == BASE
    assert learning_rate(config, BASE, 60) == 0


@pytest.mark.parametrize("warmup", [2, 7, 40])
@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_warmup_is_torch_s_linear_one_times_the_schedule(schedule: str, warmup: int) -> None:
    config = ScheduleConfig(steps=60, schedule=schedule, drops=(20,), warmup_steps=warmup)
    without = ScheduleConfig(steps=60, schedule=schedule, drops=(20,), warmup_steps=0)
    linear = lr_scheduler.LinearLR(optimizer(), 1 / warmup, 1.0, total_iters=warmup - 1)
    expected = [
        rate / BASE * plain for rate, plain in zip(rates_of(linear, 60), ours(without), strict=True)
    ]
    assert ours(config) == pytest.approx(expected, rel=1e-9)
    assert ours(config)[0] == pytest.approx(BASE / warmup)
    assert ours(config)[warmup - 1 :] == ours(without)[warmup - 1 :]


def test_plateau_multiplies_by_the_drops_taken_and_the_others_do_not() -> None:
    plateau = ScheduleConfig(schedule="plateau", drop_factor=0.25, warmup_steps=4)
    assert learning_rate(plateau, BASE, 90_000, drops=2) == pytest.approx(BASE / 16)
    assert learning_rate(plateau, BASE, 0, drops=1) == pytest.approx(BASE / 16)
    multistep = ScheduleConfig()
    assert learning_rate(multistep, BASE, 9_000, drops=2) == learning_rate(multistep, BASE, 9_000)


@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (3, 0.01), (5, 0.002), (2, 0.2)])
def test_plateau_is_torch_s_up_to_the_last_drop(patience: int, threshold: float) -> None:
    config = ScheduleConfig(
        schedule="plateau", plateau_patience=patience, plateau_threshold=threshold, plateau_drops=9
    )
    for case in range(40):
        noise = stream(0, "test", case).normal(0, 0.05, 60)
        losses = [float(x) for x in 4 + 4 * np.exp(-np.arange(60) / 15) + noise]
        # torch drops when more than `patience` were not better, we at that many.
        scheduler = lr_scheduler.ReduceLROnPlateau(
            optimizer(), factor=0.1, patience=patience - 1, threshold=threshold, eps=0
        )
        for count, loss in enumerate(losses, start=1):
            scheduler.optimizer.step()
            scheduler.step(loss)
            factor = scheduler.get_last_lr()[0] / BASE
            drops = plateau_drops(config, losses[:count])
            assert drops == 9 or factor == pytest.approx(0.1**drops)


def test_patience_starts_anew_and_drops_end() -> None:
    config = ScheduleConfig(schedule="plateau", plateau_patience=3, plateau_drops=2)
    counts = [plateau_drops(config, [4.0] * count) for count in range(12)]
    assert counts == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_nan_is_never_better() -> None:
    config = ScheduleConfig(schedule="plateau", plateau_patience=2)
    assert plateau_drops(config, [4.0, float("nan"), float("nan")]) == 1


# Validation loss of the reference run (ssd_keras' training summary, digitised to +-0.04): it was
# trained at 1e-3 up to 56,000 steps, at 1e-4 up to 76,000 and at 1e-5 from there.
REFERENCE_STEPS = [0, 1, 2, 3, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 56, 60, 70, 76, 80, 90]
REFERENCE_LOSSES = [8.61, 7.61, 7.14, 6.90, 6.46, 5.98, 5.72, 5.50, 5.25, 5.09, 5.00, 4.88, 4.78]
REFERENCE_LOSSES += [4.67, 4.56, 4.42, 4.37, 4.37, 4.34, 4.33, 4.33]


def reference_curve() -> list[float]:
    return [float(x) for x in np.interp(np.arange(91), REFERENCE_STEPS, REFERENCE_LOSSES)]


def test_plateau_waits_while_the_reference_run_still_learns() -> None:
    config = ScheduleConfig(schedule="plateau")
    curve = reference_curve()
    counts = [plateau_drops(config, curve[: count + 1]) for count in range(len(curve))]
    # Falling by 0.3 to 0.5 % per 1,000 steps up to 60,000, and flat from there to 70,000.
    assert 60 < counts.index(1) <= 60 + config.plateau_patience
    assert counts[-1] == 2


def test_plateau_drop_is_not_brought_forward_by_noise() -> None:
    config = ScheduleConfig(schedule="plateau")
    curve = np.array(reference_curve()[:56])
    early = [
        plateau_drops(config, list(curve + stream(1, "test", case).normal(0, 0.02, 56)))
        for case in range(200)
    ]
    assert sum(drops > 0 for drops in early) <= 4


def test_drops_only_grow_with_the_history() -> None:
    config = ScheduleConfig(schedule="plateau", plateau_patience=2, plateau_drops=100)
    losses = list(stream(2, "test").uniform(3, 5, 200))
    counts = [plateau_drops(config, losses[:count]) for count in range(201)]
    assert all(0 <= after - before <= 1 for before, after in itertools.pairwise(counts))
    assert counts[-1] > 10
