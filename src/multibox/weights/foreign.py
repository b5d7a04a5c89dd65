"""Opens the weights of other implementations, whatever their files are called."""

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.build import NETWORKS
from multibox.errors import WeightsError
from multibox.ssd.network import Scales, Traits
from multibox.weights.class_names import BY_COUNT
from multibox.weights.keras import read_keras
from multibox.weights.layer_names import SCALE, TRUNK, layers, ssd7_layers
from multibox.weights.publishers import CAFFE, LUFFICC, SSD_PYTORCH, TORCHVISION, Found, Origin
from multibox.weights.pytorch import read_state
from multibox.weights.state_dicts import count_levels, from_caffe, from_keras, from_pytorch
from multibox.weights.vgg_reduction import is_full, reduced

TRUNK_ONLY = "vgg16-trunk"
"""The "network" of a file that holds no detector, only what one starts from."""

_LEVELS_300 = 6
_NETWORKS = {_LEVELS_300: "ssd300-vgg16", 7: "ssd512-vgg16"}
# All of these networks have 4 default boxes in a cell of the finest level.
_FIRST_BOXES = 4
# COCO's finest default boxes are 0.07 of the image's side (0.04 for 512), VOC's 0.1 (0.07).
_LARGEST_COCO_SCALE = {6: 0.085, 7: 0.055}
_NUM_VOC = 20
_NUM_COCO = (80, 90)
_CONVOLUTIONS = TRUNK[:-2]


class Foreign(NamedTuple):
    """What a foreign file holds, in the terms of our network.

    Attributes:
        origin: Whose it is.
        network: One of our architectures, or `TRUNK_ONLY`.
        classes: Names in the order of the outputs; none for a trunk.
        tensors: float32, by our names.
        traits: How its network sees pixels and what its default boxes are.
        notes: What was altered or guessed, a clause each.
    """

    origin: Origin
    network: str
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]
    traits: Traits
    notes: tuple[str, ...]


def is_ours(head: bytes) -> bool:
    """Returns whether a file that begins so is in safetensors' format: a length, then JSON."""
    return head[8:9] == b"{"


def read_foreign(
    path: Path, *, classes: tuple[str, ...] = (), scales: Scales | None = None
) -> Foreign:
    """Returns the weights in a file of Caffe, ssd_keras, ssd.pytorch, lufficc/SSD or torchvision.

    Args:
        path: The file.
        classes: Names in the order of the outputs, for a file that was trained on other classes
            than VOC's or COCO's.
        scales: Whose default boxes it was trained with, for a file that does not say so itself.

    Raises:
        WeightsError: It is none of these, is damaged, holds anything but parameters, or `classes`
            are not as many as it has or one of them is there twice.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None
    if head == b"\x89HDF\r\n\x1a\n":
        found = from_keras(read_keras(path))
    # A zip archive, or the pickles of PyTorch before 1.6.
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        found = from_pytorch(read_state(path), path)
    else:
        found = from_caffe(path)
    for name, tensor in found.tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError("holds NaN or infinity", file=path, position=name)
    if count_levels(found.tensors):
        return _detector(found, path, classes, scales)
    if scales is not None:
        raise WeightsError("is no SSD300 or SSD512, which alone have a choice of boxes", file=path)
    if "boxes4.weight" in found.tensors:
        return _ssd7(found, path, classes)
    if classes:
        raise WeightsError("is no detector, so that it has no classes to name", file=path)
    return _trunk(found, path)


def _detector(found: Found, path: Path, classes: tuple[str, ...], asked: Scales | None) -> Foreign:
    levels = count_levels(found.tensors)
    if levels not in _NETWORKS:
        raise WeightsError(
            f"is a detector with {levels} feature maps; SSD300 has 6 and SSD512 has 7", file=path
        )
    tensors = _ours(found, dict(layers(levels)), path)
    num_classes = _outputs(tensors, path) - 1
    names, notes = _named(num_classes, classes, path)
    scales, guesses = (asked, ()) if asked else _scales(found, levels, num_classes)
    traits = Traits(
        mean_rgb=found.origin.mean_rgb,
        scales=scales,
        clip="corners" if found.clipped else found.origin.clip,
        # Caffe alone cuts them, which SSD300 does not feel.
        whole_scales=found.origin is CAFFE or levels == _LEVELS_300,
        clip_detections=found.origin.clip_detections,
    )
    notes = (*found.notes, *notes, *guesses)
    return Foreign(found.origin, _NETWORKS[levels], names, tensors, traits, notes)


def _ssd7(found: Found, path: Path, classes: tuple[str, ...]) -> Foreign:
    tensors = _ours(found._replace(bgr=False), dict(ssd7_layers()), path)
    for name in list(tensors):
        if name.endswith("running_mean"):
            # PyTorch counts batches, which matters to nothing here.
            tensors[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    names, notes = _named(_outputs(tensors, path) - 1, classes, path)
    traits = NETWORKS["ssd7"].traits
    return Foreign(found.origin, "ssd7", names, tensors, traits, (*found.notes, *notes))


def _outputs(tensors: dict[str, Tensor], path: Path) -> int:
    """Returns how many classes a detector has, with the background."""
    head = tensors["logit_heads.0.weight"]
    outputs, rest = divmod(head.shape[0] if head.ndim else 0, _FIRST_BOXES)
    if rest or outputs < 2:
        raise WeightsError("has no SSD's count of outputs", file=path, position="logit_heads.0")
    return outputs


def usual_scales(origin: Origin, num_classes: int) -> Scales:
    """Returns the table of default boxes that a publisher's own code has for so many classes.

    Torchvision's is COCO's whatever it is trained on, and ssd.pytorch's for all but VOC's 20
    (`ssd.py:32`). The others' is set by whoever trains; COCO's for COCO.
    """
    if origin is TORCHVISION or (origin is SSD_PYTORCH and num_classes != _NUM_VOC):
        return "coco"
    return "coco" if num_classes in _NUM_COCO else "voc"


def _scales(found: Found, levels: int, num_classes: int) -> tuple[Scales, tuple[str, ...]]:
    """Returns which table of default boxes the weights were trained with, and whether by guess."""
    if found.first_scale is not None:
        return "coco" if found.first_scale < _LARGEST_COCO_SCALE[levels] else "voc", ()
    scales = usual_scales(found.origin, num_classes)
    # Of ssd_keras's weights for VOC, those that had learnt from COCO before have COCO's boxes.
    known = found.origin in (TORCHVISION, SSD_PYTORCH) or num_classes in _NUM_COCO
    if known or (found.origin is LUFFICC and num_classes == _NUM_VOC):
        return scales, ()
    return scales, (
        f"the file does not say whether its default boxes are VOC's or COCO's; {scales}'s are "
        "taken, others are given by multibox convert --default-boxes (coco, if its training "
        "began with COCO)",
    )


def _named(
    count: int, classes: tuple[str, ...], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the names of the outputs, and what is to be said of them."""
    if classes and len(classes) != count:
        raise WeightsError(
            f"has {count} classes, but {len(classes)} names were given",
            file=path,
            remedy="Give --classes as many names, without the background, in the outputs' order",
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise WeightsError(f"cannot have two classes {twice!r}", file=path)
    if classes:
        return classes, ()
    if count in BY_COUNT:
        return BY_COUNT[count], ()
    numbered = tuple(f"class {number}" for number in range(1, count + 1))
    return numbered, (
        f"the file does not say what its {count} classes are; name them: multibox convert "
        "--classes",
    )


def _trunk(found: Found, path: Path) -> Foreign:
    notes = found.notes
    if not any(f"{name}.weight" in found.tensors for name in _CONVOLUTIONS):
        some = ", ".join(itertools.islice(found.tensors, 3))
        raise WeightsError(f"holds no VGG-16 (but {some[:150]})", file=path)
    # What classifies is left behind; other convolutions are another network's.
    kept = ("conv", "features.", "fc6.", "fc7.")
    trunk = {name: x for name, x in found.tensors.items() if name.startswith(kept)}
    if is_full(trunk):
        trunk = reduced(trunk, path)
        notes = (*notes, "fc6 and fc7 are every fourth output and third tap of the classifier's")
    classifier = [name for name in TRUNK[-2:] if f"{name}.weight" in trunk]
    names = {name: f"backbone.trunk.{name}.conv" for name in (*_CONVOLUTIONS, *classifier)}
    tensors = _ours(found._replace(tensors=trunk), names, path)
    traits = Traits(mean_rgb=found.origin.mean_rgb)
    return Foreign(found.origin, TRUNK_ONLY, (), tensors, traits, notes)


def _ours(found: Found, names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """Returns the tensors by our names, conv1_1 taking red first.

    Raises:
        WeightsError: One is missing, or there are others.
    """
    left = dict(found.tensors)
    ours: dict[str, Tensor] = {}
    missing = []
    for theirs, name in names.items():
        for kind in _kinds(theirs):
            tensor = left.pop(f"{theirs}.{kind}", None)
            if tensor is None:
                missing.append(f"{theirs}.{kind}")
            else:
                ours[f"{name}.{kind}"] = tensor.contiguous()
    if missing or left:
        words = (("lacks", missing), ("has unknown", sorted(left)))
        raise WeightsError(
            "; ".join(f"{verb} {_some(these)}" for verb, these in words if these),
            file=path,
            remedy="Only the published SSD300, SSD512 and VGG-16 are known",
        )
    if found.bgr:
        first = "backbone.trunk.conv1_1.conv.weight"
        if ours[first].ndim != 4:
            raise WeightsError("is no convolution", file=path, position="conv1_1.weight")
        ours[first] = ours[first].flip(1)
    return ours


def _kinds(layer: str) -> tuple[str, ...]:
    if layer == SCALE:
        return ("weight",)
    if layer.startswith("bn"):
        return ("weight", "bias", "running_mean", "running_var")
    return ("weight", "bias")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
