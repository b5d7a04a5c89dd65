"""The named tuples of tensors that pass between the parts. Shape letters are ARCHITECTURE.md's.

B batch, K default boxes, M objects of the fullest image, P matched default boxes
of the image with the most, N detections, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MEAN_RGB = (123.0, 117.0, 104.0)
"""Caffe's mean colour (`ssd_pascal.py:177, 204-207`), there in the order blue, green, red."""


class Targets(NamedTuple):
    """The objects of a batch, padded to the fullest image.

    Attributes:
        boxes: float32 (B, M, 4), xyxy in the unit frame; zeros where padded.
        labels: int64 (B, M), 0..C-1; 0 where padded.
        difficult: bool (B, M).
        valid: bool (B, M), False where padded.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    valid: Tensor


class Matches(NamedTuple):
    """What the matched default boxes (positives) of a batch are to predict, padded to the most.

    All other default boxes are to predict the background.

    Attributes:
        boxes: int64 (B, P), 0..K-1, ascending: the places of the matched default boxes; 0 where
            padded.
        classes: int64 (B, P): 1 + the label of the matched object; 0 where padded.
        offsets: float32 (B, P, 4): towards the matched object; zeros where padded.
    """

    boxes: Tensor
    classes: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> "Matches":
        """Returns the same matches on a device."""
        return Matches(*(field.to(device, non_blocking=True) for field in self))


class Batch(NamedTuple):
    """What the pipeline yields for one step.

    Attributes:
        images: uint8 (B, 3, H, W), RGB.
        targets: The objects of these images.
        matches: What the network is to say of these images.
        samples: int64 (B,), the sample numbers.
        indices: int64 (B,), the images' places in the dataset.
    """

    images: Tensor
    targets: Targets
    matches: Matches
    samples: Tensor
    indices: Tensor


class Output(NamedTuple):
    """What a network returns, in training as in evaluation.

    Attributes:
        offsets: float32 (B, K, 4): (dx, dy, dw, dh) over the variances.
        logits: float32 (B, K, C + 1): class 0 is the background.
    """

    offsets: Tensor
    logits: Tensor


class Losses(NamedTuple):
    """The two parts of the multibox loss, divided by the number of positives.

    Attributes:
        confidence: float32 ().
        localization: float32 ().
    """

    confidence: Tensor
    localization: Tensor


class Detections(NamedTuple):
    """The detections of one image, by descending score.

    Attributes:
        boxes: float32 (N, 4), xyxy in the unit frame, not clipped.
        scores: float32 (N,), in 0..1.
        labels: int64 (N,), 0..C-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
