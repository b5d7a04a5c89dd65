"""What of some weights a training on other classes starts from."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.errors import WeightsError
from multibox.ssd.network import SSD
from multibox.weights.class_names import COCO_OF_VOC
from multibox.weights.files import Weights

_LOGITS = "logit_heads."


class Transfer(NamedTuple):
    """What a network was given, and what it was not.

    Attributes:
        kept: The classes whose outputs were taken, by the name that they have there.
        random: The tensors that begin at random, wholly or for some classes.
        notes: What is to be known, a clause each.
    """

    kept: dict[str, str]
    random: tuple[str, ...]
    notes: tuple[str, ...]


def initialise_from(network: SSD, classes: tuple[str, ...], weights: Weights) -> Transfer:
    """Fills a network with what fits of other weights.

    Tensors of equal name and shape are taken. Of the heads of the scores, the background's outputs
    and those of classes that both know are taken, and the others stay as they are.

    Args:
        network: With its initial values.
        classes: What it is to find.
        weights: Of any network.

    Raises:
        WeightsError: Nothing fits.
    """
    state = network.state_dict()
    kept = _common(classes, weights.classes)
    random = []
    taken = []
    for name, own in state.items():
        given = weights.tensors.get(name)
        if given is None or given.ndim != own.ndim:
            random.append(name)
            continue
        if name.startswith(_LOGITS) and classes != weights.classes:
            given = _by_class(own, given, classes, weights.classes, kept)
            if len(kept) < len(classes):
                random.append(name)
        if given is None or given.shape != own.shape:
            random.append(name)
            continue
        state[name] = given
        taken.append(name)
    if not taken:
        raise WeightsError(
            f"holds {weights.network}, of which nothing fits this network", file=weights.path
        )
    network.load_state_dict(state)
    if not any(name.startswith(_LOGITS) for name in taken):
        kept = {}
    return Transfer(kept, tuple(dict.fromkeys(random)), _notes(network, weights))


def _common(classes: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Returns the classes that both know: by name, VOC's and COCO's words for the same, case."""
    by_word = {_word(name): name for name in reversed(theirs)}
    found = {}
    for name in classes:
        match = name if name in theirs else by_word.get(_word(name))
        if match is not None:
            found[name] = match
    return found


def _word(name: str) -> str:
    return COCO_OF_VOC.get(name.casefold(), name.casefold())


def _by_class(
    own: Tensor,
    given: Tensor,
    classes: tuple[str, ...],
    theirs: tuple[str, ...],
    kept: dict[str, str],
) -> Tensor | None:
    """Returns our outputs with those of common classes replaced; None if the layers differ.

    An output channel is a default box of the cell and a class, the background first.
    """
    if given.shape[0] % (len(theirs) + 1):
        return None
    ours = own.clone().view(-1, len(classes) + 1, *own.shape[1:])
    given = given.reshape(-1, len(theirs) + 1, *given.shape[1:])
    if ours.shape[0] != given.shape[0] or ours.shape[2:] != given.shape[2:]:
        return None
    places = [(0, 0)]
    places += [(classes.index(a) + 1, theirs.index(b) + 1) for a, b in kept.items()]
    to, source = torch.tensor(places).unbind(dim=1)
    ours[:, to] = given[:, source].to(ours)
    return ours.view_as(own)


def _notes(network: SSD, weights: Weights) -> tuple[str, ...]:
    """Returns where the network differs from the one that learnt the weights."""
    own, theirs = network.traits, weights.traits
    if not any(name.startswith(_LOGITS) for name in weights.tensors) or own == theirs:
        return ()
    notes = []
    if own.scales != theirs.scales:
        notes.append(
            f"they were trained with {theirs.scales}'s default boxes, this run has {own.scales}'s: "
            f"--default-boxes {theirs.scales} keeps theirs"
        )
    if own.clip != theirs.clip:
        notes.append(f"their default boxes were clipped: {theirs.clip}; this run's: {own.clip}")
    if own.whole_scales != theirs.whole_scales:
        cut = "were" if theirs.whole_scales else "were not"
        notes.append(f"their scales {cut} cut to whole pixels, unlike this run's")
    return tuple(notes)
