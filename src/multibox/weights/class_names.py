"""Class names of the datasets that published weights were trained on, in output order."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from multibox.errors import WeightsError

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
"""The 20 classes of VOC (`labelmap_voc.prototxt`)."""

COCO = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)
"""The 80 categories of COCO that have boxes, by ascending id."""

# COCO's ids go up to 90. The categories with these ids have no boxes.
_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})


def _by_id() -> tuple[str, ...]:
    names = iter(COCO)
    return tuple(
        f"unused {number}" if number in _UNUSED_IDS else next(names) for number in range(1, 91)
    )


COCO_BY_ID = _by_id()
"""One name for each COCO id from 1 to 90, as torchvision's outputs are ordered."""

BY_COUNT = {len(names): names for names in (VOC, COCO, COCO_BY_ID)}

_LARGEST_FILE = 1 << 20

COCO_OF_VOC = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""COCO's names of the VOC classes that it calls differently (`coco_voc_map.txt`)."""


def count_classes(tensors: Mapping[str, Tensor], boxes: int, path: Path) -> int:
    """Returns the number of classes of a detector, without the background.

    Args:
        tensors: The tensors by our names.
        boxes: Number of default boxes of a cell of the first feature map.
        path: The file, for messages.

    Raises:
        WeightsError: The head does not have the number of outputs of an SSD.
    """
    head = tensors["logit_heads.0.weight"]
    outputs, rest = divmod(head.shape[0] if head.ndim else 0, boxes)
    if rest or outputs < 2:
        raise WeightsError(
            "does not have the number of outputs of an SSD", file=path, position="logit_heads.0"
        )
    return outputs - 1


def read_class_names(given: tuple[str, ...]) -> tuple[str, ...]:
    """Returns class names as they are given, or from the only one if it is a `.txt` file.

    Such a file has one name a line. A first name BACKGROUND is left out, which pytorch-ssd writes
    (`store_labels` in `vision/utils/misc.py`).

    Raises:
        WeightsError: The file cannot be read, is not a text, or has no names.
    """
    if len(given) != 1 or not given[0].lower().endswith(".txt"):
        return given
    path = Path(given[0])
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE).decode("utf-8-sig")
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", file=path) from None
    except UnicodeDecodeError as error:
        raise WeightsError(
            "is not a text in UTF-8", file=path, position=f"byte {error.start}"
        ) from None
    names = [name for line in text.splitlines() if (name := line.strip())]
    if names[:1] == ["BACKGROUND"]:
        del names[0]
    if not names:
        raise WeightsError("has no class names", file=path, remedy="Write one name on each line")
    return tuple(names)


def name_classes(
    count: int, classes: tuple[str, ...], path: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the class names in the order of the outputs, and a note if they are made up."""
    if classes and len(classes) != count:
        raise WeightsError(
            f"has {count} classes, but {len(classes)} names were given",
            file=path,
            remedy="Give --classes one name for each class, in output order, without background",
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise WeightsError(f"cannot have two classes with the name {twice!r}", file=path)
    if classes:
        return classes, ()
    if count in BY_COUNT:
        return BY_COUNT[count], ()
    numbered = tuple(f"class {number}" for number in range(1, count + 1))
    return numbered, (
        f"the file does not record the names of its {count} classes; name them with multibox "
        "convert --classes",
    )
