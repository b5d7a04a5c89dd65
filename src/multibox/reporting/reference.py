"""Published results to compare a run with: one JSON file for each in `references/`."""

import json
from dataclasses import dataclass
from importlib import resources

from multibox.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The numbers of one publication, with notes.

    Attributes:
        title: A short name for legends and columns.
        source: Where the numbers are from.
        notes: Facts without which they would be misread.
        test: The images that the AP was measured on.
        metric: Its kind: voc07 or voc12.
        steps: The milestones of `mAP` and of each class's `AP`.
        loss_steps: The steps of the curves in `loss`.
        loss: `training` and `validation`, multibox and L2 term together.
    """

    title: str
    source: str
    notes: list[str]
    test: str
    metric: str
    steps: list[int]
    mAP: list[float]  # noqa: N815  # as everybody writes it
    AP: dict[str, list[float]]
    loss_steps: list[int]
    loss: dict[str, list[float]]


def read_reference(name: str) -> Reference:
    """Returns a reference by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    folder = resources.files("multibox").joinpath("references")
    files = {entry.name.removesuffix(".json"): entry for entry in folder.iterdir()}
    if name not in files:
        known = ", ".join(sorted(files))
        raise ConfigError(f"there is no reference {name!r}", remedy=f"There are: {known}")
    return Reference(**json.loads(files[name].read_text(encoding="utf-8")))
