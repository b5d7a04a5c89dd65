"""Reads the SSD300 and SSD512 of mmdetection, from version 2.15 on.

Lines are those of mmdetection 2.28.2. The layers are in `ssd_vgg.py:67-78`, `ssd_neck.py:57-91` and
`ssd_head.py:125-194`. The default boxes are Caffe's, in Caffe's order, with whole scales and not
clipped (`anchor_generator.py:507-590`). The offsets have Caffe's variances, and boxes are clipped
before suppression (`delta_xywh_bbox_coder.py:256`). The background is the last class
(`base_dense_head.py:195`). One rule is not followed here: a box is at most 62.5 times as wide or as
high as its default box (`wh_ratio_clip`).
"""

import itertools
from pathlib import Path

from torch import Tensor

from multibox.errors import WeightsError
from multibox.weights.layer_names import layers, trunk_names
from multibox.weights.publishers import MMDETECTION, Found
from multibox.weights.renaming import rename_layers
from multibox.weights.state_dicts import require_heads

_HEADS = "bbox_head.cls_convs"
_MARK = "backbone.features.0.weight"
_PARTS = ("backbone", "neck", "bbox_head")
_MOST_LEVELS = 8


def read_mmdetection(state: dict[str, Tensor], path: Path) -> Found | None:
    """Returns the content of a state dict of mmdetection's SSD; None if it is another model.

    Raises:
        WeightsError: The state dict has an older layout, or the shapes of its heads do not fit.
    """
    if _MARK not in state or not any(name.startswith(_HEADS) for name in state):
        return None
    if f"{_HEADS}.0.weight" in state:
        raise WeightsError(
            "is a detector of mmdetection before 2.15, which orders layers differently",
            file=path,
            remedy="Convert it with mmdetection's tools/model_converters/upgrade_ssd_version.py",
        )
    state, levels = dict(state), 0
    while levels < _MOST_LEVELS and f"{_HEADS}.{levels}.0.weight" in state:
        offsets = state.get(f"bbox_head.reg_convs.{levels}.0.weight")
        boxes = offsets.shape[0] // 4 if offsets is not None and offsets.ndim else 0
        for name in (f"{_HEADS}.{levels}.0.weight", f"{_HEADS}.{levels}.0.bias"):
            if name in state:
                state[name] = _background_first(state[name], boxes, path, name)
        levels += 1
    require_heads(levels, state, _PARTS, path)
    names = zip(_layers(levels), (layer.caffe for layer in layers(levels)), strict=True)
    return Found(MMDETECTION, rename_layers(state, dict(names)))


def _background_first(tensor: Tensor, boxes: int, path: Path, name: str) -> Tensor:
    """Returns a parameter of a head with the last class of each default box as the first one."""
    outputs = tensor.shape[0] if tensor.ndim else 0
    if not boxes or not outputs or outputs % boxes:
        reason = "does not have the number of outputs of an SSD"
        raise WeightsError(reason, file=path, position=name)
    rest = tensor.shape[1:]
    return tensor.reshape(boxes, outputs // boxes, *rest).roll(1, dims=1).reshape(tensor.shape)


def _layers(levels: int) -> list[str]:
    """Returns mmdetection's names of `layers(levels)`, in the same order."""
    pairs = itertools.product(range(levels - 2), (0, 1))
    heads = itertools.product(("reg", "cls"), range(levels))
    return [
        *trunk_names("backbone.features."),
        *(f"neck.extra_layers.{block}.{place}.conv" for block, place in pairs),
        *(f"bbox_head.{kind}_convs.{level}.0" for kind, level in heads),
        "neck.l2_norm",
    ]
