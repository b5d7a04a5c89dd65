"""Compares the default boxes in a `.caffemodel` with those of our architecture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from multibox.build import Architecture
from multibox.errors import WeightsError
from multibox.ssd.coding import CAFFE_VARIANCES
from multibox.ssd.default_boxes import Level
from multibox.ssd.network import Traits
from multibox.weights.caffe import CaffeLayer, PriorBox

_SUFFIX = "_mbox_priorbox"


def file_traits(
    layers: Mapping[str, CaffeLayer],
    sources: Sequence[str],
    architecture: Architecture,
    path: Path,
) -> tuple[Traits, tuple[str, ...]]:
    """Returns the traits of a detector, with the default boxes of the file, and notes.

    Args:
        layers: The layers of the file.
        sources: Names of the feature maps, finest first.
        architecture: Our architecture. It has one table of default boxes.
        path: The file, for messages.

    Raises:
        WeightsError: The file has default boxes for some maps only, or default boxes that our
            architecture cannot have.
    """
    (own,), traits = architecture.tables.values(), architecture.traits
    side = max(architecture.image_size_px)
    names = [source + _SUFFIX for source in sources]
    priors = [layers[name].prior if name in layers else None for name in names]
    if priors == [None] * len(names):
        note = "the file does not record its default boxes; the published ones are assumed"
        return traits, (note,)
    levels = []
    for name, prior, level in zip(names, priors, own, strict=True):
        if prior is None:
            raise WeightsError("has no default boxes", file=path, position=name)
        if reason := _difference(prior, level, side):
            raise WeightsError(
                reason,
                file=path,
                position=name,
                remedy="Use the published architectures, which docs/weights.md lists",
            )
        levels.append(_level(prior, level))
    if any(prior.clip for prior in priors if prior is not None):
        traits = traits._replace(clip="corners")
    if levels == [*own]:
        return traits, ()
    note = "the sizes and ratios of the default boxes differ from the published ones"
    return traits._replace(fitted=tuple(levels)), (note,)


def _difference(prior: PriorBox, level: Level, side_px: int) -> str | None:
    """Returns why a level of our architecture cannot have some default boxes; None if it can."""
    step = prior.steps_px or level.step_px[:1]
    variances = (CAFFE_VARIANCES.centre,) * 2 + (CAFFE_VARIANCES.size,) * 2
    if len(prior.min_sizes_px) != 1 or len(prior.max_sizes_px) > 1:
        return "has several sizes of default boxes"
    made = _level(prior, level)
    if made.boxes_per_cell != level.boxes_per_cell:
        return f"has {made.boxes_per_cell} default boxes in a cell, not {level.boxes_per_cell}"
    if not made.is_plausible(side_px):
        return "has default boxes of impossible sizes or ratios"
    if len(step) != 1 or not math.isclose(step[0], level.step_px[0], rel_tol=1e-4):
        return f"has default boxes at a distance of {step[0]:g} pixels, not {level.step_px[0]:g}"
    if prior.offsets not in ((), (0.5,)):
        return "has default boxes away from the centres of the cells"
    if len(prior.variances) != 4 or not all(
        math.isclose(a, b, rel_tol=1e-4) for a, b in zip(prior.variances, variances, strict=True)
    ):
        return f"has the variances {prior.variances}, not {variances}"
    return None


def _level(prior: PriorBox, level: Level) -> Level:
    """Returns a level with the sizes and ratios of a file (`prior_box_layer.cpp:9-45`)."""
    ratios = [1.0]
    for ratio in prior.ratios:
        if not any(abs(ratio - known) < 1e-6 for known in ratios):
            ratios += [ratio, 1 / ratio] if prior.flip and ratio else [ratio]
    maximum = prior.max_sizes_px[0] if prior.max_sizes_px else None
    return level._replace(
        min_size_px=prior.min_sizes_px[0], max_size_px=maximum, ratios=tuple(ratios), doubled=1.0
    )
