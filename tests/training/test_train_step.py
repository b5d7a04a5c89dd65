import shutil
from dataclasses import replace
from typing import Any

import jaxtyping
import pytest
import torch
from tiny import batch, tiny_network

from multibox.build import build_loss, matcher
from multibox.config import Config, LossConfig, OptimizerConfig, RunConfig
from multibox.errors import ConfigError
from multibox.processes.distributed import Processes
from multibox.ssd.loss import multibox_loss
from multibox.ssd.loss_variants import Variant, variant_loss
from multibox.ssd.matching import match
from multibox.ssd.network import SSD
from multibox.structures import Batch
from multibox.training.train_step import Learner, NonFinite

ALONE = Processes(0, 1, torch.device("cpu"))
PLAIN = OptimizerConfig(lr=0.01)


def learner(optimizer: OptimizerConfig = PLAIN, network: SSD | None = None) -> Learner:
    config = Config(
        network="tiny", optimizer=optimizer, run=RunConfig(batch_size=8, precision="fp32")
    )
    return Learner(network or tiny_network(), config, ALONE)


def gradients(network: SSD, examples: Batch) -> dict[str, torch.Tensor]:
    """The gradient of the multibox loss, by autograd alone."""
    matches = examples.matches
    positives = (matches.classes > 0).sum().float().clamp(min=1)
    losses = multibox_loss(network(examples.images), matches, positives)
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(losses.confidence + losses.localization, parameters)
    return dict(zip(names, found, strict=True))


def test_steps_are_caffe_s_with_the_rate_inside_the_velocity() -> None:
    network, twin = tiny_network(), tiny_network()
    taught = learner(replace(PLAIN, lr_in_velocity=True), network)
    velocity = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for number, lr in enumerate([0.001, 0.01, 0.01, 0.001, 0.001]):
        examples = batch(8, seed=number)
        taught.step(examples, lr=lr, number=number)
        found = gradients(twin, examples)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                bias = name.endswith("bias")
                decayed = found[name] + (0 if bias else 0.0005) * parameter
                velocity[name] = 0.9 * velocity[name] + lr * (2 if bias else 1) * decayed
                parameter -= velocity[name]
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter, dict(twin.named_parameters())[name])


@pytest.mark.parametrize(
    "optimizer",
    [
        replace(PLAIN, optimizer="adam"),
        replace(PLAIN, optimizer="adamw"),
        replace(PLAIN, momentum=0.0),
    ],
)
def test_the_rate_inside_the_velocity_changes_nothing_without_a_velocity(
    optimizer: OptimizerConfig,
) -> None:
    plain, other = learner(optimizer), learner(replace(optimizer, lr_in_velocity=True))
    for number, lr in enumerate([0.01, 0.01, 0.001, 0.0]):
        for each in (plain, other):
            each.step(batch(8, seed=number), lr=lr, number=number)
    found = other.model() | other.optimizer()
    for name, tensor in (plain.model() | plain.optimizer()).items():
        assert torch.equal(found[name], tensor), name


def test_a_rate_of_zero_keeps_the_velocity_finite() -> None:
    taught = learner(replace(PLAIN, lr_in_velocity=True))
    for number, lr in enumerate([0.01, 0.0, 0.01]):
        taught.step(batch(8, seed=number), lr=lr, number=number)
    taught.require_finite()


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(parts: int) -> None:
    whole, divided = learner(), learner(replace(PLAIN, accumulate=parts))
    # One image has no object, so that parts differ in their positives.
    examples = batch(8, objects=[0, 3, 1, 2, 3, 3, 1, 1])
    one = whole.step(examples, lr=0.01, number=0)
    other = divided.step(examples, lr=0.01, number=0)
    assert other == pytest.approx(one, rel=1e-5)
    for name, tensor in whole.model().items():
        torch.testing.assert_close(divided.model()[name], tensor)


@pytest.mark.parametrize("difficult", [True, False])
def test_difficult_objects_are_matched_or_left_out(difficult: bool) -> None:
    network, targets = tiny_network(), batch(8).targets
    marked = targets._replace(difficult=targets.valid & (targets.labels == 1))
    alike = {True: targets, False: targets._replace(valid=targets.valid & (targets.labels == 0))}
    found = matcher(network, difficult=difficult)(marked)
    for kept, wanted in alike.items():
        expected = match(network.default_boxes, wanted, network.variances)
        assert all(map(torch.equal, found, expected)) == (kept == difficult)


def poison_pixel(taught: Learner, value: float) -> Batch:
    examples = batch(8)
    images = examples.images.float()
    images[3, 1, 20, 20] = value
    return examples._replace(images=images)


def poison_weight(taught: Learner, value: float) -> Batch:
    with torch.no_grad():
        taught.network.offset_heads[0].weight.view(-1)[7] = value
    return batch(8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("poison", [poison_pixel, poison_weight])
def test_nothing_is_updated_by_a_step_that_is_not_finite(poison: object, value: float) -> None:
    taught = learner(replace(PLAIN, ema_decay=0.9))
    taught.step(batch(8, seed=1), lr=0.01, number=0)
    examples = poison(taught, value)
    before = {n: t.clone() for n, t in (taught.model() | taught.optimizer()).items()}
    with pytest.raises(NonFinite):
        taught.step(examples, lr=0.01, number=1)
    for name, tensor in (taught.model() | taught.optimizer()).items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is() -> None:
    taught = learner()
    weight = taught.network.logit_heads[0].weight
    weight.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), float("inf")))
    before = weight.detach().clone()
    with pytest.raises(NonFinite):
        taught.step(batch(8), lr=0.01, number=0)
    assert torch.equal(weight, before)


def test_a_batch_without_objects_only_decays() -> None:
    taught = learner()
    bias = taught.network.logit_heads[0].bias.detach().clone()
    losses = taught.step(batch(8, objects=[0] * 8), lr=0.01, number=0)
    assert losses == (0, 0, 0)
    assert torch.equal(taught.network.logit_heads[0].bias, bias)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("average", [{}, {"ema_decay": 0.9}, {"swa_from": 2}, {"swa_from": 4}])
def test_a_restored_learner_goes_on_alike(name: str, average: dict[str, Any]) -> None:
    optimizer = replace(PLAIN, optimizer=name, lr_in_velocity=name == "sgd", **average)
    taught = learner(optimizer)
    for number in range(3):
        taught.step(batch(8, seed=number), lr=0.01, number=number)
    model = {n: t.clone() for n, t in taught.model().items()}
    state = {n: t.clone() for n, t in taught.optimizer().items()}
    other = learner(optimizer, tiny_network(seed=5))
    other.restore(model, state, 0.01)
    for each in (taught, other):
        each.step(batch(8, seed=9), lr=0.005, number=3)
    for tensors in (Learner.model, Learner.optimizer):
        expected, found = tensors(taught), tensors(other)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[n], t) for n, t in expected.items())


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_restored_optimizer_is_where_its_weights_are(name: str) -> None:
    """Fused optimizers want all of it there. Without a GPU, no device at all serves as well."""
    optimizer = replace(PLAIN, optimizer=name)
    taught, other = learner(optimizer), learner(optimizer)
    taught.step(batch(8), lr=0.01, number=0)
    other.network.to("meta")
    other.restore(taught.model(), taught.optimizer(), 0.01)
    assert {tensor.device.type for tensor in other.optimizer().values()} == {"meta"}


def test_the_average_follows_the_weights() -> None:
    taught = learner(replace(PLAIN, ema_decay=0.5))
    start = taught.network.logit_heads[0].weight.detach().clone()
    taught.step(batch(8), lr=0.01, number=100)
    now = taught.network.logit_heads[0].weight.detach()
    torch.testing.assert_close(taught.model()["logit_heads.0.weight"], (start + now) / 2)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_plain_average_is_that_of_all_later_weights(ema_decay: float) -> None:
    taught, kept = learner(replace(PLAIN, swa_from=3, ema_decay=ema_decay)), []
    for number in range(6):
        taught.step(batch(8, seed=number), lr=0.01, number=number)
        now = taught.network.logit_heads[0].weight.detach().clone()
        # After three updates there is one value: the average is that.
        kept = [now] if number < 3 else [*kept, now]
        expected = torch.stack(kept).mean(dim=0)
        torch.testing.assert_close(taught.model()["logit_heads.0.weight"], expected)
    assert len(kept) == 4


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "options", [{"box_loss": "ciou"}, {"class_loss": "focal"}, {"label_smoothing": 0.1}]
)
def test_other_losses_are_used_and_do_not_depend_on_the_parts(
    options: dict[str, Any], parts: int
) -> None:
    examples, run = batch(8), RunConfig(batch_size=8, precision="fp32")
    config = Config(
        network="tiny",
        loss=LossConfig(**options),
        optimizer=replace(PLAIN, accumulate=parts),
        run=run,
    )
    network = tiny_network()
    taught = Learner(network, config, ALONE)
    positives = (examples.matches.classes > 0).sum().float()
    variant = Variant(network.default_boxes, network.variances, **options)
    wanted = variant_loss(network(examples.images), examples.matches, positives, variant)
    found = taught.step(examples, lr=0.01, number=0)
    assert found[:2] == pytest.approx([loss.item() for loss in wanted], rel=1e-5)


def test_ssd_s_own_loss_is_not_computed_by_the_variants() -> None:
    """So that its bits stay."""
    assert build_loss(tiny_network(), LossConfig()) is multibox_loss


def test_l2_is_that_of_the_convolution_kernels() -> None:
    taught = learner()
    kernels = [p for n, p in taught.network.named_parameters() if n.endswith("weight")]
    expected = 0.0005 * sum(kernel.detach().square().sum().item() for kernel in kernels)
    assert taught.l2() == pytest.approx(expected)


def test_gradients_are_clipped_to_the_norm() -> None:
    network, twin = tiny_network(), tiny_network()
    optimizer = OptimizerConfig(lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    learner(optimizer, network).step(batch(8), lr=1.0, number=0)
    moved = [
        (a - b) / (2 if name.endswith("bias") else 1)
        for (name, a), b in zip(
            network.state_dict().items(), twin.state_dict().values(), strict=True
        )
    ]
    norm = torch.cat([part.flatten() for part in moved]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


def compiled(optimizer: OptimizerConfig = PLAIN) -> Learner:
    run = RunConfig(batch_size=8, precision="fp32", compile=True)
    return Learner(tiny_network(), Config(network="tiny", optimizer=optimizer, run=run), ALONE)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves shapes unchecked: PyTorch's compiler cannot follow what checks them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# What PyTorch itself does.
own_warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.slow
@own_warnings
@pytest.mark.usefixtures("unchecked")
@pytest.mark.skipif(not shutil.which("g++"), reason="PyTorch's compiler needs a C++ compiler")
def test_a_compiled_network_learns_the_same() -> None:
    plain, other = learner(replace(PLAIN, accumulate=2)), compiled(replace(PLAIN, accumulate=2))
    for number in range(3):
        examples = batch(8, seed=number)
        expected = plain.step(examples, lr=0.01, number=number)
        assert other.step(examples, lr=0.01, number=number) == pytest.approx(expected, rel=1e-5)
    found = other.model()
    for name, tensor in plain.model().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@own_warnings
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"cannot be compiled here .*compiler.* --compile"):
        compiled().step(batch(8), lr=0.01, number=0)


def test_parts_may_be_divided_by_their_own_matches_as_in_caffe() -> None:
    examples = batch(8, objects=[1, 3, 1, 3, 1, 3, 1, 3])
    network, twin = tiny_network(), tiny_network()
    optimizer = replace(PLAIN, momentum=0.0, weight_decay=0.0, accumulate=2)
    taught = learner(replace(optimizer, accumulate_normaliser="part"), network)
    taught.step(examples, lr=0.01, number=0)
    halves = [
        gradients(twin, Batch(*(rows(field, part) for field in examples))) for part in range(2)
    ]
    for name, parameter in network.named_parameters():
        mean = (halves[0][name] + halves[1][name]) / 2
        rate = 0.02 if name.endswith("bias") else 0.01
        before = dict(twin.named_parameters())[name]
        torch.testing.assert_close(parameter, before - rate * mean)


def rows(field: torch.Tensor | tuple, part: int) -> torch.Tensor | tuple:
    """Every second image, from the first or the second on."""
    if isinstance(field, torch.Tensor):
        return field[part::2]
    return type(field)(*(tensor[part::2] for tensor in field))
