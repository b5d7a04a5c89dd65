"""Opens the weights of other implementations, whatever their files are called."""

import itertools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from multibox.errors import WeightsError
from multibox.formats.keras import read_keras
from multibox.formats.layers import SCALE, TRUNK, layers, ssd7_layers
from multibox.formats.names import BY_COUNT
from multibox.formats.origins import CAFFE, TORCHVISION, Found, Origin
from multibox.formats.pytorch import read_state
from multibox.formats.sources import count_levels, from_caffe, from_keras, from_pytorch
from multibox.formats.trunk import is_full, reduced
from multibox.ssd.network import Scales, Traits

TRUNK_ONLY = "vgg16-trunk"
"""The "network" of a file that holds no detector, only what one starts from."""

_LEVELS_300 = 6
_NETWORKS = {_LEVELS_300: "ssd300-vgg16", 7: "ssd512-vgg16"}
# Pixels in -1..1 (`ssd7_training.ipynb`).
SSD7_TRAITS = Traits(mean_rgb=(127.5, 127.5, 127.5), pixel_scale=1 / 127.5)
# All of these networks have 4 default boxes in a cell of the finest level.
_FIRST_BOXES = 4
# COCO's finest default boxes are 0.07 of the image's side (0.04 for 512), VOC's 0.1 (0.07).
_LARGEST_COCO_SCALE = {6: 0.085, 7: 0.055}
_NUM_COCO = (80, 90)


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


def read_foreign(path: Path, *, classes: tuple[str, ...] = ()) -> Foreign:
    """Returns the weights in a file of Caffe, ssd_keras, ssd.pytorch, lufficc/SSD or torchvision.

    Args:
        path: The file.
        classes: Names in the order of the outputs, for a file that was trained on other classes
            than VOC's or COCO's.

    Raises:
        WeightsError: It is none of these, is damaged, holds anything but parameters, or `classes`
            are not as many as it has.
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
    if "boxes4.weight" in found.tensors:
        return _ssd7(found, path, classes)
    if count_levels(found.tensors):
        return _detector(found, path, classes)
    return _trunk(found, path)


def _detector(found: Found, path: Path, classes: tuple[str, ...]) -> Foreign:
    levels = count_levels(found.tensors)
    if levels not in _NETWORKS:
        raise WeightsError(
            f"is a detector with {levels} feature maps; SSD300 has 6 and SSD512 has 7", file=path
        )
    tensors = _ours(found, dict(layers(levels)), path)
    num_classes = _outputs(tensors, path) - 1
    names, notes = _named(num_classes, classes, path)
    traits = Traits(
        mean_rgb=found.origin.mean_rgb,
        scales=_scales(found, levels, num_classes),
        clip="corners" if found.clipped else found.origin.clip,
        # Caffe alone cuts them, which SSD300 does not feel.
        whole_scales=found.origin is CAFFE or levels == _LEVELS_300,
        clip_detections=found.origin.clip_detections,
    )
    notes = (*found.notes, *notes)
    return Foreign(found.origin, _NETWORKS[levels], names, tensors, traits, notes)


def _ssd7(found: Found, path: Path, classes: tuple[str, ...]) -> Foreign:
    tensors = _ours(found._replace(bgr=False), dict(ssd7_layers()), path)
    for name in list(tensors):
        if name.endswith("running_mean"):
            # PyTorch counts batches, which matters to nothing here.
            tensors[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    names, notes = _named(_outputs(tensors, path) - 1, classes, path)
    return Foreign(found.origin, "ssd7", names, tensors, SSD7_TRAITS, (*found.notes, *notes))


def _outputs(tensors: dict[str, Tensor], path: Path) -> int:
    """Returns how many classes a detector has, with the background."""
    outputs, rest = divmod(tensors["logit_heads.0.weight"].shape[0], _FIRST_BOXES)
    if rest or outputs < 2:
        raise WeightsError("has no SSD's count of outputs", file=path, position="logit_heads.0")
    return outputs


def _scales(found: Found, levels: int, num_classes: int) -> Scales:
    """Returns which table of default boxes the weights were trained with."""
    if found.first_scale is not None:
        return "coco" if found.first_scale < _LARGEST_COCO_SCALE[levels] else "voc"
    # Torchvision has COCO's whatever it is trained on.
    return "coco" if found.origin is TORCHVISION or num_classes in _NUM_COCO else "voc"


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
    if classes:
        return classes, ()
    if count in BY_COUNT:
        return BY_COUNT[count], ()
    numbered = tuple(f"class {number}" for number in range(1, count + 1))
    return numbered, (f"the file does not say what its {count} classes are; name them: --classes",)


def _trunk(found: Found, path: Path) -> Foreign:
    notes = found.notes
    trunk = found.tensors
    # What classifies is left behind.
    trunk = {name: x for name, x in trunk.items() if name.partition(".")[0] in TRUNK}
    if is_full(trunk):
        trunk = reduced(trunk)
        notes = (*notes, "fc6 and fc7 are every fourth output and third tap of the classifier's")
    present = [name for name in TRUNK if f"{name}.weight" in trunk]
    if not present:
        some = ", ".join(itertools.islice(found.tensors, 3))
        raise WeightsError(f"holds no VGG-16 (but {some[:150]})", file=path)
    names = {name: f"backbone.trunk.{name}.conv" for name in present}
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
