import math
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from multibox.build import build_network, network_shape
from multibox.config import Config, OptimizerConfig
from multibox.ssd.backbones.vgg import L2Norm
from multibox.ssd.coding import CAFFE_VARIANCES, Variances, decode
from multibox.ssd.default_boxes import (
    SSD7_LEVELS,
    SSD300_MOBILENET,
    SSD300_VOC,
    SSD384_COCO,
    SSD512_VOC,
    SSDLITE320,
    Level,
)
from multibox.ssd.network import CAFFE, SSD, Traits, initialise, parameter_groups
from multibox.structures import Output

# --- shapes; parameters on the meta device have no values


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters", "boxes"),
    [
        ("ssd300-vgg16", 20, 26_285_486, 8_732),
        ("ssd300-vgg16", 80, 34_305_206, 8_732),
        ("ssd512-vgg16", 20, 27_188_676, 24_564),
        ("ssd512-vgg16", 80, 36_038_196, 24_564),
        ("ssdlite320-mobilenetv3", 90, 3_440_060, 3_234),
    ],
)
def test_parameters_and_outputs_are_as_many_as_the_original_s(
    name: str, num_classes: int, parameters: int, boxes: int
) -> None:
    with torch.device("meta"):
        network = build_network(name, num_classes)
        output = network(torch.empty(2, 3, *network.image_size_px, dtype=torch.uint8))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.default_boxes.shape == (boxes, 4)
    assert output.offsets.shape == (2, boxes, 4)
    assert output.logits.shape == (2, boxes, num_classes + 1)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("ssd300-vgg16", SSD300_VOC),
        ("ssd300-vgg16-bn", SSD300_VOC),
        ("ssd512-vgg16", SSD512_VOC),
        ("ssd512-vgg16-bn", SSD512_VOC),
        ("ssd300-lite", SSD300_VOC),
        ("ssd300-efficientnet-lite0", SSD300_VOC),
        ("ssd384-efficientnet-lite0", SSD384_COCO),
        ("ssd300-vgg16-bn-conv4", SSD300_VOC),
        ("ssd300-mobilenetv1", SSD300_MOBILENET),
        ("ssd300-mobilenetv2-lite", SSD300_MOBILENET),
        ("ssdlite320-mobilenetv3", SSDLITE320),
        ("ssd7", SSD7_LEVELS),
    ],
)
def test_feature_maps_fit_the_levels(name: str, levels: tuple[Level, ...]) -> None:
    with torch.device("meta"):
        network = build_network(name, 3)
        maps = network.backbone(torch.empty(2, 3, *network.image_size_px))
    channels = network.backbone.channels
    expected = [(2, c, *level.cells) for c, level in zip(channels, levels, strict=True)]
    assert [tuple(x.shape) for x in maps] == expected


# --- the network around a small backbone


class Planes(nn.Module):
    """Two maps of 4 and 2 cells, straight from the pixels."""

    channels = (3, 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        pool = nn.functional.avg_pool2d
        return [pool(images, 2), pool(images, 4)]


LEVELS = (
    Level((4, 4), (2, 2), 2, 4, (1, 2, 1 / 2)),
    Level((2, 2), (4, 4), 4, 8, (1, 2, 1 / 2, 3, 1 / 3)),
)


def planes(traits: Traits = CAFFE, kernel: int = 1, variances: Variances = CAFFE_VARIANCES) -> SSD:
    network = SSD(
        Planes(),
        LEVELS,
        image_size_px=(8, 8),
        num_classes=2,
        traits=traits,
        variances=variances,
        head=lambda _, inputs, outputs: nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
    )
    initialise(network, torch.Generator().manual_seed(0))
    return network


def test_outputs_are_in_the_order_of_the_default_boxes() -> None:
    """Each head tells the place, the box of the cell and the number that it stands for."""
    network = planes()
    channels = [4 * 4, 6 * 4], [4 * 3, 6 * 3]
    for heads, outputs in zip((network.offset_heads, network.logit_heads), channels, strict=True):
        for head, count in zip(heads, outputs, strict=True):
            nn.init.zeros_(head.weight)
            head.weight.data[:, 0] = 1000
            head.bias.data = torch.arange(count, dtype=torch.float32)
    # Red is the cell's number, so that a prediction is 1000 cell + channel.
    images = torch.zeros(1, 3, 8, 8) + network.mean
    images[0, 0] += torch.arange(16.0).reshape(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    coarse = [2.5, 4.5, 10.5, 12.5]
    for found, width in zip(network(images), (4, 3), strict=True):
        numbers = [1000 * cell + n for cell in range(16) for n in range(4 * width)]
        numbers += [1000 * cell + n for cell in coarse for n in range(6 * width)]
        expected = torch.tensor(numbers, dtype=torch.float32).reshape(1, -1, width)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.01)


def test_pixels_are_bytes_or_floats_in_the_same_range() -> None:
    network = planes(Traits(pixel_scale=1 / 64), kernel=3)
    images = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8) % 256
    of_bytes, of_floats = network(images.to(torch.uint8)), network(images.float())
    assert isinstance(of_bytes, Output)
    assert all(torch.equal(a, b) for a, b in zip(of_bytes, of_floats, strict=True))


def test_the_mean_colour_is_subtracted_and_the_rest_scaled() -> None:
    mean = torch.tensor([123.0, 117.0, 104.0]).view(1, 3, 1, 1)
    assert not any(x.any() for x in planes()(mean.expand(1, 3, 8, 8)))
    others = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    other = planes(Traits(mean_rgb=(1.0, 2.0, 3.0)))
    assert not any(x.any() for x in other(others.expand(1, 3, 8, 8)))
    images = mean + torch.ones(1, 3, 8, 8)
    quarter = planes(Traits(pixel_scale=0.25))
    for once, scaled in zip(planes()(images), quarter(images), strict=True):
        torch.testing.assert_close(once * 0.25, scaled)


def test_a_network_detects_by_its_own_traits_and_variances() -> None:
    network = planes(traits=Traits(clip_detections=True), variances=Variances(0.5, 2.0))
    output = Output(
        torch.full((1, 88, 4), -0.3), torch.randn(1, 88, 3, generator=torch.Generator())
    )
    (found,) = network.detect(output)
    boxes = decode(output.offsets[0], network.default_boxes, Variances(0.5, 2.0)).clamp(0, 1)
    assert len(found.boxes) > 10
    assert all((boxes == box).all(dim=1).any() for box in found.boxes)


def test_a_weights_file_holds_parameters_only() -> None:
    network = planes()
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_l2_normalisation_by_hand() -> None:
    norm = L2Norm(2)
    assert norm.weight.tolist() == [20, 20]
    norm.weight.data = torch.tensor([20.0, 10.0])
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    assert norm(x).flatten().tolist() == pytest.approx([12, 8])
    # The constant is inside the root: sqrt(2e-10 + 1e-10).
    tiny = torch.tensor([1e-5, 1e-5]).view(1, 2, 1, 1)
    expected = [20 * 1e-5 / math.sqrt(3e-10), 10 * 1e-5 / math.sqrt(3e-10)]
    assert norm(tiny).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert norm(torch.zeros(1, 2, 1, 1)).flatten().tolist() == [0, 0]


# --- initial values


@pytest.fixture(scope="module")
def lite() -> SSD:
    network = build_network("ssd300-lite", 3)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7)
    initialise(network, torch.Generator().manual_seed(5))
    return network


def test_convolutions_are_uniform_within_caffe_s_bound(lite: SSD) -> None:
    for module in lite.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(3 / module.weight[0].numel())
            found = module.weight.abs().max().item() / bound
            assert found <= 1
            assert found > 1 - 20 / module.weight.numel()
            # The deviation of uniform numbers within 1, to five of its standard errors.
            deviation = (module.weight / bound).square().mean().sqrt().item()
            assert deviation == pytest.approx(
                math.sqrt(1 / 3), abs=1.3 / module.weight.numel() ** 0.5
            )


def test_biases_are_zero_and_normalisations_the_identity(lite: SSD) -> None:
    kinds = Counter()
    for module in lite.modules():
        kinds[type(module)] += 1
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all())
            assert not module.bias.any()
            assert not module.running_mean.any()
    assert kinds[nn.BatchNorm2d] > 10


def test_the_scale_of_the_l2_normalisation_is_20() -> None:
    norm = L2Norm(8)
    nn.init.zeros_(norm.weight)
    initialise(norm, torch.Generator())
    assert norm.weight.tolist() == [20] * 8


def test_initial_values_are_the_generator_s_alone(lite: SSD) -> None:
    other = build_network("ssd300-lite", 3)
    initialise(other, torch.Generator().manual_seed(5))
    for a, b in zip(lite.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    initialise(other, torch.Generator().manual_seed(6))
    assert not torch.equal(lite.offset_heads[0].weight, other.offset_heads[0].weight)


# --- parameter groups


def names_by_rule(network: SSD) -> dict[tuple[float, float], set[str]]:
    """The names of the parameters by their learning rate and decay."""
    groups = parameter_groups(network, lr=0.001, weight_decay=0.0005)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = Counter(names[id(p)] for group in groups for p in group["params"])
    assert found == Counter(names.values())
    for group in groups:
        assert group["lr"] == 0.001 * group["lr_multiplier"]
    return {
        (group["lr_multiplier"], group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in groups
    }


def test_groups_of_the_original() -> None:
    with torch.device("meta"):
        network = build_network("ssd300-vgg16", 20)
    rules = names_by_rule(network)
    assert set(rules) == {(1, 0.0005), (2, 0)}
    assert rules[2, 0] == {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert "backbone.conv4_3_norm.weight" in rules[1, 0.0005]


def test_batch_normalisation_is_a_group_of_its_own() -> None:
    with torch.device("meta"):
        network = build_network("ssd300-vgg16-bn", 20)
    rules = names_by_rule(network)
    assert set(rules) == {(1, 0.0005), (2, 0), (1, 0)}
    norms = {name for name, _ in network.named_parameters() if ".norm." in name}
    assert rules[1, 0] == norms
    assert rules[2, 0] == {
        f"{kind}_heads.{n}.bias" for kind in ("offset", "logit") for n in range(6)
    }
    assert "backbone.conv4_3_norm.weight" in rules[1, 0.0005]


def test_groups_drive_an_optimizer() -> None:
    network = planes()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.SGD(parameter_groups(network, lr=0.1, weight_decay=0.5), lr=0.1)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for old, (name, new) in zip(before, network.named_parameters(), strict=True):
        expected = old - 0.2 if name.endswith("bias") else old - 0.1 * (1 + 0.5 * old)
        torch.testing.assert_close(new.detach(), expected)


def test_l2_normalisation_with_caffes_gradient_has_the_same_output_and_another_gradient() -> None:
    """`tests/caffe/test_normalize.py` compares both with Caffe's own figures."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 3, 3, generator=rng)
    found = []
    for gradient in ("exact", "caffe"):
        layer = L2Norm(6, gradient)
        layer.weight.data.copy_(torch.arange(1, 7))
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.square().sum().mul(torch.tensor(0.5)).backward()
        found.append((y.detach(), inputs.grad, layer.weight.grad))
    (y, exact, exact_scale), (same, caffe, caffe_scale) = found
    assert torch.equal(y, same)
    torch.testing.assert_close(exact_scale, caffe_scale)
    length = x.square().sum(dim=1, keepdim=True).sqrt()
    scale = torch.arange(1, 7).view(1, -1, 1, 1)
    along = (x * y).sum(dim=1, keepdim=True) / length**2
    torch.testing.assert_close(caffe, scale / length * (y - x * along))
    assert not torch.allclose(exact, caffe, rtol=0.01)


def test_the_configuration_chooses_the_gradient() -> None:
    for gradient in ("exact", "caffe"):
        config = Config(network="ssd300-vgg16", optimizer=OptimizerConfig(l2norm_gradient=gradient))
        norms = [m for m in network_shape(config, 3).modules() if isinstance(m, L2Norm)]
        assert [norm.gradient for norm in norms] == [gradient]
