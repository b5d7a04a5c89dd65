"""Reads weights files of other implementations. The content decides the format, not the name."""

import itertools
from pathlib import Path

import torch
from torch import Tensor

from multibox.build import NETWORKS
from multibox.errors import WeightsError
from multibox.ssd.network import Scales, Traits
from multibox.weights import qfgaohao
from multibox.weights.caffe_detectors import read_caffe_detector
from multibox.weights.class_names import count_classes, name_classes
from multibox.weights.efficientnet_lite import (
    EFFICIENTNET_LITE0,
    NETWORK,
    read_efficientnet_lite0,
)
from multibox.weights.keras import read_keras
from multibox.weights.layer_names import SCALE, TRUNK, layers, ssd7_layers
from multibox.weights.mmdetection import read_mmdetection
from multibox.weights.publishers import (
    CAFFE,
    LUFFICC,
    MMDETECTION,
    QFGAOHAO,
    SSD_PYTORCH,
    TORCHVISION,
    VGG,
    Foreign,
    Found,
    Origin,
)
from multibox.weights.pytorch import read_state
from multibox.weights.renaming import rename
from multibox.weights.ssdlite import read_ssdlite
from multibox.weights.state_dicts import (
    count_levels,
    from_caffe,
    from_keras,
    from_pytorch,
    read_caffe,
)
from multibox.weights.vgg_reduction import is_full, reduce_classifier

TRUNK_ONLY = "vgg16-trunk"
TRUNKS = {TRUNK_ONLY: "ssd300-vgg16", EFFICIENTNET_LITE0: NETWORK, **qfgaohao.TRUNKS}
"""Network names of files that contain only a trunk, from which a training can start, each with a
network that has this trunk."""

# Each takes a state dict, the file and the class names, and returns None for other models.
_STATE_DICTS = (read_efficientnet_lite0, qfgaohao.read_qfgaohao, read_ssdlite)

_LEVELS_300 = 6
_NETWORK_BY_LEVELS = {_LEVELS_300: "ssd300-vgg16", 7: "ssd512-vgg16"}
# All of these networks have 4 default boxes in each cell of the finest feature map.
_FIRST_BOXES = 4
# Scale of the finest default boxes: COCO's is 0.07 (SSD512: 0.04), VOC's is 0.1 (SSD512: 0.07).
_LARGEST_COCO_SCALE = {6: 0.085, 7: 0.055}
_NUM_VOC = 20
_NUM_COCO = (80, 90)
_CONVOLUTIONS = TRUNK[:-2]


def is_safetensors(head: bytes) -> bool:
    """Returns whether a file with these first bytes is a safetensors file: a length, then JSON."""
    return head[8:9] == b"{"


def read_foreign(
    path: Path, *, classes: tuple[str, ...] = (), scales: Scales | None = None
) -> Foreign:
    """Returns the weights in a file of another implementation.

    Args:
        path: The weights file.
        classes: Class names in the order of the outputs, for a detector that was not trained on the
            classes of VOC or COCO.
        scales: Default boxes of a file that does not record them.

    Raises:
        WeightsError: The file has an unknown format, is damaged or contains something other than
            parameters; or `classes` has the wrong length or contains a name twice.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None
    if head == b"\x89HDF\r\n\x1a\n":
        found = from_keras(read_keras(path))
    # A zip archive, or pickles of PyTorch before 1.6.
    elif head.startswith((b"PK\x03\x04", b"\x80")):
        return read_state_dict(read_state(path), path, classes=classes, scales=scales)
    else:
        content = read_caffe(path)
        if (foreign := read_caffe_detector(content, path, classes)) is not None:
            return _checked(foreign, classes, scales, path)
        found = from_caffe(content, path)
    return _converted(found, path, classes, scales)


def read_state_dict(
    state: dict[str, Tensor],
    path: Path,
    *,
    classes: tuple[str, ...] = (),
    scales: Scales | None = None,
) -> Foreign:
    """Returns the weights in a state dict of another implementation.

    Args:
        state: The tensors by name, float32.
        path: The file that they are from, for messages.
        classes: As in `read_foreign`.
        scales: As in `read_foreign`.

    Raises:
        WeightsError: As in `read_foreign`.
    """
    for read in _STATE_DICTS:
        if (foreign := read(state, path, classes)) is not None:
            return _checked(foreign, classes, scales, path)
    found = read_mmdetection(state, path) or from_pytorch(state, path)
    return _converted(found, path, classes, scales)


def _converted(
    found: Found, path: Path, classes: tuple[str, ...], scales: Scales | None
) -> Foreign:
    _require_finite(found.tensors, path)
    if count_levels(found.tensors):
        return _detector(found, path, classes, scales)
    if scales is not None:
        raise WeightsError(
            "is neither SSD300 nor SSD512; only these take --default-boxes", file=path
        )
    if "boxes4.weight" in found.tensors:
        return _ssd7(found, path, classes)
    if classes:
        raise WeightsError("is not a detector, so it takes no --classes", file=path)
    return _trunk(found, path)


def _require_finite(tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError("contains NaN or infinity", file=path, position=name)


def _checked(
    foreign: Foreign, classes: tuple[str, ...], scales: Scales | None, path: Path
) -> Foreign:
    """Refuses numbers that are not finite, and options that the file does not take."""
    _require_finite(foreign.tensors, path)
    if scales is not None:
        reason, remedy = "has no default boxes to choose from", "Leave out --default-boxes"
        raise WeightsError(reason, file=path, remedy=remedy)
    if classes and not foreign.classes:
        raise WeightsError("is not a detector, so it takes no --classes", file=path)
    return foreign


def _detector(found: Found, path: Path, classes: tuple[str, ...], asked: Scales | None) -> Foreign:
    levels = count_levels(found.tensors)
    if levels not in _NETWORK_BY_LEVELS:
        raise WeightsError(f"has {levels} feature maps; SSD300 has 6 and SSD512 has 7", file=path)
    tensors = _ours(found, dict(layers(levels)), path)
    num_classes = count_classes(tensors, _FIRST_BOXES, path)
    names, notes = name_classes(num_classes, classes, path)
    scales, guesses = (asked, ()) if asked else _scales(found, levels, num_classes)
    traits = Traits(
        mean_rgb=found.origin.mean_rgb,
        scales=scales,
        clip="corners" if found.clipped else found.origin.clip,
        # The others do not truncate scales to whole pixels. It makes no difference for SSD300.
        whole_scales=found.origin in (CAFFE, MMDETECTION) or levels == _LEVELS_300,
        clip_detections=found.origin.clip_detections,
    )
    notes = (*found.notes, *notes, *guesses)
    return Foreign(found.origin, _NETWORK_BY_LEVELS[levels], names, tensors, traits, notes)


def _ssd7(found: Found, path: Path, classes: tuple[str, ...]) -> Foreign:
    tensors = _ours(found._replace(bgr=False), dict(ssd7_layers()), path)
    for name in list(tensors):
        if name.endswith("running_mean"):
            # PyTorch's batch normalisation counts batches; the count has no effect here.
            tensors[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    names, notes = name_classes(count_classes(tensors, _FIRST_BOXES, path), classes, path)
    traits = NETWORKS["ssd7"].traits
    return Foreign(found.origin, "ssd7", names, tensors, traits, (*found.notes, *notes))


def usual_scales(origin: Origin, num_classes: int) -> Scales:
    """Returns the default boxes that a publisher's code uses for a number of classes.

    Torchvision always uses COCO's default boxes. So do ssd.pytorch (`ssd.py:32`) and the base
    configuration of mmdetection (`_base_/models/ssd300.py`), except for VOC's 20 classes.
    qfgaohao/pytorch-ssd always uses VOC's. In the other implementations, the user chooses; COCO's
    are usual for COCO.
    """
    if origin is QFGAOHAO:
        return "voc"
    coco = origin in (SSD_PYTORCH, MMDETECTION) and num_classes != _NUM_VOC
    if origin is TORCHVISION or coco:
        return "coco"
    return "coco" if num_classes in _NUM_COCO else "voc"


def _scales(found: Found, levels: int, num_classes: int) -> tuple[Scales, tuple[str, ...]]:
    """Returns the default boxes of the training, and a note if they are a guess."""
    if found.first_scale is not None:
        return "coco" if found.first_scale < _LARGEST_COCO_SCALE[levels] else "voc", ()
    scales = usual_scales(found.origin, num_classes)
    # ssd_keras's weights for VOC that were pretrained on COCO have COCO's default boxes.
    known = found.origin in (TORCHVISION, SSD_PYTORCH) or num_classes in _NUM_COCO
    if known or (found.origin in (LUFFICC, MMDETECTION) and num_classes == _NUM_VOC):
        return scales, ()
    return scales, (
        f"the file does not record whether its default boxes are VOC's or COCO's; {scales} is "
        "assumed. To change it, use multibox convert --default-boxes (coco, if the detector was "
        "pretrained on COCO)",
    )


def _trunk(found: Found, path: Path) -> Foreign:
    notes = found.notes
    if not any(f"{name}.weight" in found.tensors for name in _CONVOLUTIONS):
        some = ", ".join(itertools.islice(found.tensors, 3))
        raise WeightsError(f"does not contain a VGG-16 (it contains {some[:150]})", file=path)
    # The classifier's last layer is dropped. Other convolutions are kept and then refused.
    kept = ("conv", "features.", "fc6.", "fc7.")
    trunk = {name: x for name, x in found.tensors.items() if name.startswith(kept)}
    origin = found.origin
    if is_full(trunk):
        # Its authors published the full VGG-16 for Caffe, and stated a licence.
        origin = VGG if origin is CAFFE else origin
        trunk = reduce_classifier(trunk, path)
        notes = (
            *notes,
            "fc6 and fc7 were subsampled: every fourth output and every third tap",
        )
    classifier = [name for name in TRUNK[-2:] if f"{name}.weight" in trunk]
    names = {name: f"backbone.trunk.{name}.conv" for name in (*_CONVOLUTIONS, *classifier)}
    tensors = _ours(found._replace(tensors=trunk), names, path)
    traits = Traits(mean_rgb=origin.mean_rgb)
    return Foreign(origin, TRUNK_ONLY, (), tensors, traits, notes)


def _ours(found: Found, names: dict[str, str], path: Path) -> dict[str, Tensor]:
    """Returns the tensors by our names, with RGB input channels of conv1_1.

    Raises:
        WeightsError: A tensor is missing, or there are unknown tensors.
    """
    kinds = {
        f"{theirs}.{k}": f"{ours}.{k}" for theirs, ours in names.items() for k in _kinds(theirs)
    }
    ours = rename(found.tensors, kinds, path)
    if found.bgr:
        first = "backbone.trunk.conv1_1.conv.weight"
        if ours[first].ndim != 4:
            raise WeightsError("is not a convolution", file=path, position="conv1_1.weight")
        ours[first] = ours[first].flip(1)
    return ours


def _kinds(layer: str) -> tuple[str, ...]:
    if layer == SCALE:
        return ("weight",)
    if layer.startswith("bn"):
        return ("weight", "bias", "running_mean", "running_var")
    return ("weight", "bias")
