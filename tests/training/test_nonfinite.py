"""NaN and infinity, wherever they come in, reach neither the weights of a step nor the disk."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rig import LINES, digests, journal, small_dataset, tiny_config
from safetensors.torch import load_file
from tiny import TINY, batch, tiny_network
from torch import Tensor

from multibox import build
from multibox.commands.train import Request, train
from multibox.config import Config
from multibox.errors import NonFiniteError
from multibox.inference import ValidationLoss
from multibox.processes.distributed import Processes
from multibox.rng import stream
from multibox.structures import Batch
from multibox.training import loop
from multibox.training.train_step import Learner, NonFinite, StepLosses

ALONE = Processes(0, 1, torch.device("cpu"))
VALUES = (math.nan, math.inf, -math.inf)
PLACES = 20

Plant = Callable[[Learner, float, int], Any]


@contextmanager
def in_loss(taught: Learner, value: float, place: int) -> Iterator[None]:
    original = taught._loss
    name = ("confidence", "localization")[place % 2]

    def spoiled(*arguments: Any) -> Any:
        losses = original(*arguments)
        return losses._replace(**{name: getattr(losses, name) * value})

    taught._loss = spoiled
    try:
        yield
    finally:
        taught._loss = original


@contextmanager
def in_gradient(taught: Learner, value: float, place: int) -> Iterator[None]:
    parameters = list(taught.network.parameters())

    def spoiled(gradient: Tensor) -> Tensor:
        return one_of([gradient.clone()], value, place)[0]

    handle = parameters[place % len(parameters)].register_hook(spoiled)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def in_pixel(taught: Learner, value: float, place: int) -> Iterator[None]:
    """After normalisation: before, a pixel is a byte."""

    def spoiled(_: Any, images: tuple[Tensor]) -> tuple[Tensor]:
        pixels = images[0].clone()
        # The tiny network does not look at the last three rows and columns.
        one_of([pixels[:, :, :-3, :-3]], value, place)
        return (pixels,)

    handle = taught.network.backbone.register_forward_pre_hook(spoiled)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def in_weight(taught: Learner, value: float, place: int) -> Iterator[None]:
    one_of([p.data for p in taught.network.parameters()], value, place)
    yield


@contextmanager
def in_average(taught: Learner, value: float, place: int) -> Iterator[None]:
    one_of(list(taught._average.values()), value, place)
    yield


def one_of(tensors: list[Tensor], value: float, place: int) -> list[Tensor]:
    """Spoils one number in place, and returns the tensors."""
    tensor = tensors[place % len(tensors)]
    # Interleaved tensors have no flat view.
    where = stream(place, "where").integers(tensor.numel())
    tensor[torch.unravel_index(torch.tensor(int(where)), tensor.shape)] = value
    return tensors


def content(taught: Learner) -> dict[str, bytes]:
    """The bits of weights, average and optimizer."""
    tensors = taught.model() | taught.optimizer()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("plant", [in_loss, in_gradient, in_pixel, in_weight, in_average])
def test_sixty_in_each_place_are_found_before_anything_is_saved(plant: Plant) -> None:
    taught = Learner(tiny_network(), tiny_config(), ALONE)
    taught.step(batch(4), lr=0.01, number=0)
    taught.require_finite()
    model, optimizer = (
        {n: t.clone() for n, t in f(taught).items()} for f in (Learner.model, Learner.optimizer)
    )
    by_step = 0
    for value in VALUES:
        for place in range(PLACES):
            with plant(taught, value, place):
                before = content(taught)
                try:
                    taught.step(batch(4, seed=place + 1), lr=0.01, number=1)
                except NonFinite:
                    by_step += 1
                    assert content(taught) == before
                else:
                    assert plant in (in_weight, in_average)
                    with pytest.raises(NonFinite, match="has NaN or infinite values"):
                        taught.require_finite()
            taught.restore(model, optimizer, 0.01)
    # An average bears on no loss, and a weight of minus infinity may be hidden by a rectifier.
    found = {in_weight: range(50, 61), in_average: range(1)}.get(plant, range(60, 61))
    assert by_step in found
    print(f"{plant.__name__}: 60 of 60, {by_step} by the step itself")  # noqa: T201


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("nonfinite") / "data")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(build.NETWORKS, "tiny", TINY)


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.NETWORKS, "tiny", TINY)
        run(data, out := tmp_path_factory.mktemp("unbroken") / "run", tiny_config())
    return out


def run(data: Path, out: Path, config: Config) -> str:
    """Trains and returns what was said."""
    said = io.StringIO()
    train(Request("tiny", config, data, out, None, "none"), Console(file=said, width=1000))
    return said.getvalue()


def plant_once(
    monkeypatch: pytest.MonkeyPatch, plant: Plant, value: float, place: int, *, step: int
) -> list[str]:
    """Plants a number in one step of a run; returns where the step's images will be."""
    original, seen = Learner.step, list[str]()

    def step_once(self: Learner, examples: Batch, *, lr: float, number: int) -> StepLosses:
        if number + 1 != step or seen:
            return original(self, examples, lr=lr, number=number)
        seen.extend(f"{index:06d}.jpg" for index in examples.indices.tolist())
        with plant(self, value, place):
            return original(self, examples, lr=lr, number=number)

    monkeypatch.setattr(Learner, "step", step_once)
    return seen


def assert_finite(out: Path) -> None:
    """Looks at every number of all checkpoints, and at the journal."""
    for path in out.glob("checkpoints/*/*.safetensors"):
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all(), f"{path} {name}"
    assert not any(word in (out / "metrics.jsonl").read_text() for word in ("NaN", "Infinity"))


@pytest.mark.parametrize("policy", ["stop", "rollback"])
@pytest.mark.parametrize(
    ("plant", "value"),
    [
        (in_loss, math.inf),
        (in_gradient, math.nan),
        (in_pixel, -math.inf),
        (in_weight, -math.inf),
        (in_average, math.nan),
    ],
)
def test_a_run_stops_or_goes_back(
    plant: Plant,
    value: float,
    policy: str,
    data: Path,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, out = tiny_config(), tmp_path / "run"
    config = replace(config, run=replace(config.run, on_nonfinite=policy))
    with monkeypatch.context() as patch:
        images = plant_once(patch, plant, value, 0, step=7)
        if policy == "rollback":
            said = run(data, out, config)
            assert "Back to step 6, with the learning rate times 0.5" in said
            assert journal(out) == LINES | {"rollback": [7 if plant is not in_average else 8]}
        else:
            with pytest.raises(NonFiniteError, match="NaN or infinite") as refusal:
                run(data, out, config)
            assert_finite(out)
            if plant is not in_average:
                assert all(name in str(refusal.value) for name in images)
    if policy == "stop":
        run(data, out, config)
        assert digests(out) == digests(unbroken)
    assert_finite(out)


def test_a_validation_loss_that_is_not_finite_is_no_line_of_the_journal(
    data: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validation_loss", lambda *_: ValidationLoss(math.inf, 0.0))
        with pytest.raises(NonFiniteError, match="step 4: the validation loss is NaN or infinite"):
            run(data, out, tiny_config())
    assert_finite(out)
    run(data, out, tiny_config())
    assert digests(out) == digests(unbroken)
