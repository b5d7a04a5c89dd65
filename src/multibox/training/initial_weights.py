"""Initialises a network from pretrained weights, possibly of other classes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.errors import WeightsError
from multibox.ssd.network import SSD
from multibox.weights.class_names import COCO_OF_VOC
from multibox.weights.files import Weights

_LOGITS = "logit_heads."
_KINDS = ("weight", "bias")


class Transfer(NamedTuple):
    """Which parts of a network were initialised from other weights.

    Attributes:
        kept: Classes with copied outputs: the name in this network to the name in the weights.
        random: Names of the tensors that keep random values, in full or for some classes.
        notes: Differences that the user should know about, a clause each.
    """

    kept: dict[str, str]
    random: tuple[str, ...]
    notes: tuple[str, ...]


def initialise_from(network: SSD, classes: tuple[str, ...], weights: Weights) -> Transfer:
    """Copies the tensors that fit from other weights into a network.

    A tensor fits if it has the same name and shape. In the heads for the logits, the outputs of the
    background and of the classes that both networks have are copied. All other outputs keep their
    values.

    Args:
        network: The network, with its random values.
        classes: Class names of the network.
        weights: Weights of any network.

    Raises:
        WeightsError: No tensor fits.
    """
    state = network.state_dict()
    kept = _common(classes, weights.classes)
    by_class = {f"{layer}.{kind}" for layer in network.class_layers() for kind in _KINDS}
    random = []
    taken = []
    for name, own in state.items():
        given = weights.tensors.get(name)
        if given is None or given.ndim != own.ndim:
            random.append(name)
            continue
        if name in by_class and classes != weights.classes:
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
            f"contains weights of {weights.network}, and no tensor fits this network",
            file=weights.path,
        )
    network.load_state_dict(state)
    if by_class.isdisjoint(taken):
        kept = {}
    return Transfer(kept, tuple(dict.fromkeys(random)), _notes(network, weights))


def _common(classes: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Returns the classes that both have, as our name to their name.

    Names match if they are equal except for case, or if VOC and COCO use them for the same class.
    """
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
    """Returns our tensor with the outputs of common classes replaced; None if the layers differ.

    Each output channel belongs to one default box of the cell and one class; class 0 is the
    background.
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
    """Returns the differences between this network and the one that was trained."""
    own, theirs = network.traits, weights.traits
    if not any(name.startswith(_LOGITS) for name in weights.tensors) or own == theirs:
        return ()
    notes = []
    if own.fitted != theirs.fitted or (own.scales != theirs.scales and not own.fitted):
        there, here = ("fitted to data" if t.fitted else f"for {t.scales}" for t in (theirs, own))
        keep = f": use --default-boxes {theirs.scales} to keep them"
        notes.append(
            f"the weights were trained with the default boxes {there}, but this run has those "
            f"{here}{'' if own.fitted or theirs.fitted else keep}"
        )
    if own.clip != theirs.clip:
        notes.append(
            f"the weights were trained with default boxes that clip {theirs.clip}, but those of "
            f"this run clip {own.clip}"
        )
    if own.whole_scales != theirs.whole_scales:
        cut = "were" if theirs.whole_scales else "were not"
        notes.append(
            f"the sizes of the default boxes {cut} cut to whole pixels when the weights were "
            "trained, unlike in this run"
        )
    return tuple(notes)
