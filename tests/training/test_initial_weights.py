"""Starting from weights of other classes: which outputs are taken, and that it helps."""

from pathlib import Path

import pytest
import torch
from torch import nn

from multibox import build
from multibox.build import NETWORKS, build_network
from multibox.errors import WeightsError
from multibox.rng import torch_generator
from multibox.ssd.default_boxes import SSD300_VOC
from multibox.ssd.network import SSD, initialise
from multibox.training.initial_weights import initialise_from
from multibox.weights.class_names import COCO, VOC
from multibox.weights.files import Weights


def new(classes: tuple[str, ...], seed: int) -> SSD:
    network = build_network("ssd300-lite", len(classes))
    initialise(network, torch_generator(seed, "test"))
    return network


def weights_of(network: SSD, classes: tuple[str, ...]) -> Weights:
    tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return Weights("ssd300-lite", classes, tensors, Path("weights"), network.traits)


def outputs(network: SSD, classes: tuple[str, ...], name: str, level: int) -> torch.Tensor:
    """All parameters that make the logit of a class (or the background) at a level."""
    head = network.logit_heads[level]
    place = 0 if name == "background" else classes.index(name) + 1
    step = len(classes) + 1
    return torch.cat([head.weight[place::step].flatten(), head.bias[place::step]])


def test_outputs_go_by_name_and_the_rest_stays() -> None:
    ours, theirs = ("Person", "blood cell", "sofa"), COCO
    network, source = new(ours, 1), new(theirs, 2)
    before = new(ours, 1)
    transfer = initialise_from(network, ours, weights_of(source, theirs))
    assert transfer.kept == {"Person": "person", "sofa": "couch"}
    for level in range(6):
        for name, other in (*transfer.kept.items(), ("background", "background")):
            given = outputs(network, ours, name, level)
            assert torch.equal(given, outputs(source, theirs, other, level))
        own = outputs(network, ours, "blood cell", level)
        assert torch.equal(own, outputs(before, ours, "blood cell", level))
    assert set(transfer.random) == {
        f"logit_heads.{level}.{kind}" for level in range(6) for kind in ("weight", "bias")
    }
    for name, tensor in network.state_dict().items():
        if not name.startswith("logit_heads"):
            assert torch.equal(tensor, source.state_dict()[name])


def test_only_the_last_layer_of_a_head_has_outputs_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first layer, of as many channels as outputs, is taken whole."""

    def head(_: int, inputs: int, outputs: int) -> nn.Module:
        first = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        return nn.Sequential(first, nn.ReLU(), nn.Conv2d(inputs, outputs, 1))

    lite = NETWORKS["ssd300-lite"]
    monkeypatch.setitem(build.NETWORKS, "ssd300-lite", lite._replace(head=head))
    ours, theirs = ("a", "b"), ("b", "c", "d")
    network, source, before = new(ours, 1), new(theirs, 2), new(ours, 1)
    assert [*network.class_layers()] == [f"logit_heads.{level}.2" for level in range(6)]
    transfer = initialise_from(network, ours, weights_of(source, theirs))
    assert transfer.kept == {"b": "b"}
    for level in range(6):
        (found, _, last), (given, _, other), (_, _, old) = (
            x.logit_heads[level] for x in (network, source, before)
        )
        assert torch.equal(found.weight, given.weight)
        assert torch.equal(last.weight[2::3], other.weight[1::4])
        assert torch.equal(last.weight[1::3], old.weight[1::3])


def test_all_of_voc_is_known_to_coco() -> None:
    network = new(VOC, 1)
    transfer = initialise_from(network, VOC, weights_of(new(COCO, 2), COCO))
    assert transfer.kept.keys() == set(VOC)
    assert transfer.random == ()


def test_equal_classes_take_everything() -> None:
    classes = ("b", "a")
    network, source = new(classes, 1), new(classes, 2)
    transfer = initialise_from(network, classes, weights_of(source, classes))
    assert transfer.random == ()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name])


def test_the_same_classes_in_another_order_go_by_name() -> None:
    network, source = new(("a", "b"), 1), new(("b", "a"), 2)
    initialise_from(network, ("a", "b"), weights_of(source, ("b", "a")))
    for name in ("a", "b", "background"):
        given = outputs(network, ("a", "b"), name, 0)
        assert torch.equal(given, outputs(source, ("b", "a"), name, 0))


def test_nothing_is_kept_of_heads_of_another_shape() -> None:
    network = new(("a", "b"), 1)
    weights = weights_of(new(("a",), 2), ("a",))
    heads = {name: torch.zeros(()) for name in weights.tensors if name.startswith("logit_heads")}
    weights = weights._replace(tensors={**weights.tensors, **heads})
    transfer = initialise_from(network, ("a", "b"), weights)
    assert transfer.kept == {}
    assert set(transfer.random) == heads.keys()


def test_names_that_differ_in_case_only_are_told_apart_where_they_can_be() -> None:
    ours, theirs = ("cat", "CAT", "Cat"), ("Cat", "cat")
    transfer = initialise_from(new(ours, 1), ours, weights_of(new(theirs, 2), theirs))
    assert transfer.kept == {"cat": "cat", "CAT": "Cat", "Cat": "Cat"}


def test_what_was_learnt_otherwise_is_said() -> None:
    network = new(("a",), 1)
    weights = weights_of(new(("a",), 2), ("a",))
    traits = network.traits._replace(scales="voc", clip="sides", whole_scales=False)
    transfer = initialise_from(network, ("a",), weights._replace(traits=traits))
    assert [word in " ".join(transfer.notes) for word in ("voc", "sides", "whole pixels")] == [
        True,
        True,
        True,
    ]


def test_fitted_default_boxes_are_told_from_a_table() -> None:
    network, fitted = new(("a",), 1), SSD300_VOC
    weights = weights_of(new(("a",), 2), ("a",))
    traits = network.traits._replace(fitted=fitted)
    (note,) = initialise_from(network, ("a",), weights._replace(traits=traits)).notes
    assert "boxes fitted to data, but this run has those for coco" in note
    assert "--default-boxes" not in note
    network.traits = traits
    (note,) = initialise_from(network, ("a",), weights).notes
    assert "boxes for coco, but this run has those fitted to data" in note
    # The table that a fit started from has no effect on the boxes.
    same = weights._replace(traits=traits._replace(scales="voc"))
    assert initialise_from(network, ("a",), same).notes == ()


def test_what_fits_nothing_is_refused() -> None:
    source = weights_of(new(("a",), 1), ("a",))
    strange = source._replace(tensors={"x": torch.zeros(2)})
    with pytest.raises(WeightsError, match="no tensor fits"):
        initialise_from(new(("a",), 1), ("a",), strange)
