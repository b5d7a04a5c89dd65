"""Layer names of the VGG-16 detectors and SSD7 in each format.

The published files contain the same layers under different names: trunk, extra layers, heads, and
the scale of the L2 normalisation (SSD reference: Caffe `model_libs.py:308-448`; ssd.pytorch
`ssd.py:126-195`; lufficc `backbone/vgg.py:68-87`; torchvision `detection/ssd.py`).
"""

import itertools
from collections.abc import Iterable
from typing import Literal, NamedTuple

PyTorchFormat = Literal["ssd-pytorch", "lufficc", "torchvision"]

TRUNK = (
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3", "fc6", "fc7"),
)
SCALE = "conv4_3_norm"

# Indices of the trunk's convolutions among all modules of VGG-16, with ReLUs and pooling.
_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)


class Layer(NamedTuple):
    """A layer with parameters.

    Attributes:
        caffe: Name in Caffe and in ssd_keras.
        ours: Name in the state dict of our network.
    """

    caffe: str
    ours: str


def layers(levels: int) -> list[Layer]:
    """Returns all layers of a detector: trunk, extra, offset heads, logit heads, scale.

    Args:
        levels: Number of feature maps.
    """
    extra = [f"conv{block}_{place}" for block in range(6, levels + 4) for place in (1, 2)]
    sources = [SCALE, "fc7", *extra[1::2]]
    heads = [("loc", "offset_heads"), ("conf", "logit_heads")]
    return [
        *(Layer(name, f"backbone.trunk.{name}.conv") for name in TRUNK),
        *(Layer(name, f"backbone.extra.{name}.conv") for name in extra),
        *(
            Layer(f"{source}_mbox_{theirs}", f"{ours}.{level}")
            for theirs, ours in heads
            for level, source in enumerate(sources)
        ),
        Layer(SCALE, f"backbone.{SCALE}"),
    ]


def ssd7_layers() -> list[Layer]:
    """Returns all layers of SSD7 (ssd_keras, `models/keras_ssd7.py:277-346`)."""
    blocks = range(1, 8)
    return [
        *(Layer(f"conv{block}", f"backbone.conv{block}") for block in blocks),
        *(Layer(f"bn{block}", f"backbone.bn{block}") for block in blocks),
        *(Layer(f"boxes{block}", f"offset_heads.{block - 4}") for block in blocks[3:]),
        *(Layer(f"classes{block}", f"logit_heads.{block - 4}") for block in blocks[3:]),
    ]


def pytorch_names(format: PyTorchFormat, levels: int) -> list[str]:
    """Returns a PyTorch implementation's names of `layers(levels)`, in the same order."""
    extra = 2 * (levels - 2)
    if format == "ssd-pytorch":
        names = [
            _numbered("vgg", _INDICES),
            _numbered("extras", range(extra)),
            _numbered("loc", range(levels)),
            _numbered("conf", range(levels)),
            ["L2Norm"],
        ]
    elif format == "lufficc":
        names = [
            _numbered("backbone.vgg", _INDICES),
            _numbered("backbone.extras", range(extra)),
            _numbered("box_head.predictor.reg_headers", range(levels)),
            _numbered("box_head.predictor.cls_headers", range(levels)),
            ["backbone.l2_norm"],
        ]
    else:
        pairs = itertools.product(range(1, levels - 1), (0, 2))
        names = [
            _numbered("backbone.features", _INDICES[:10]),
            _numbered("backbone.extra.0", ("1", "3", "5", "7.1", "7.3")),
            _numbered("backbone.extra", (f"{block}.{place}" for block, place in pairs)),
            _numbered("head.regression_head.module_list", range(levels)),
            _numbered("head.classification_head.module_list", range(levels)),
            ["backbone.scale"],
        ]
    return list(itertools.chain.from_iterable(names))


def trunk_names(prefix: str) -> list[str]:
    """Returns the names of the trunk's layers by module index, e.g. `vgg.0`."""
    return [f"{prefix}{index}" for index in _INDICES]


def _numbered(prefix: str, numbers: Iterable[object]) -> list[str]:
    return [f"{prefix}.{number}" for number in numbers]
