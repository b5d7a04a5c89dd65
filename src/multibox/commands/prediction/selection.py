"""Which detections are kept: by score, by class, and by score for single classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from multibox.errors import ConfigError
from multibox.structures import Detections


class Selection(NamedTuple):
    """Which detections are kept.

    Attributes:
        thresholds: The lowest score of each class in the order of the labels, 0..1. None: no
            detection of the class is kept.
    """

    thresholds: tuple[float | None, ...]

    @property
    def lowest(self) -> float:
        """The lowest threshold of a class."""
        return min(t for t in self.thresholds if t is not None)

    def select(self, found: Detections) -> Detections:
        """Returns the detections that are kept."""
        limits = [torch.inf if t is None else t for t in self.thresholds]
        # In float32 like the scores, so that a score as given is not below itself.
        kept = found.scores >= torch.tensor(limits)[found.labels]
        return Detections(found.boxes[kept], found.scores[kept], found.labels[kept])


def choose(
    classes: Sequence[str],
    threshold: float,
    *,
    only: Sequence[str] = (),
    by_class: Mapping[str, float] | None = None,
) -> Selection:
    """Returns a selection.

    Args:
        classes: Class names in the order of the network's labels.
        threshold: Lowest score, 0..1.
        only: Names of the classes to keep. Empty: all.
        by_class: Lowest score for single classes.

    Raises:
        ConfigError: A name is unknown, or a threshold is out of range.
    """
    special = dict(by_class or {})
    for name in (*only, *special):
        if name not in classes:
            raise ConfigError(
                f"the network has no class {name!r}",
                remedy=f"Use one of {', '.join(classes)}",
            )
    for value in (threshold, *special.values()):
        if not 0 <= value <= 1:
            raise ConfigError(f"score_threshold is {value}, but scores lie in 0..1")
    thresholds = [
        special.get(name, threshold) if not only or name in only else None for name in classes
    ]
    return Selection(tuple(thresholds))


def parse_thresholds(words: Sequence[str]) -> dict[str, float]:
    """Returns the thresholds of words such as `cat=0.3`.

    Raises:
        ConfigError: A word has another form, or a class is named twice.
    """
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            name = ""
        if not name or name in found:
            raise ConfigError(
                f"cannot read the class threshold {word!r}",
                remedy="Use each class once, such as --class-thresholds cat=0.3 dog=0.6",
            )
        found[name] = value
    return found
