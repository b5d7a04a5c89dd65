"""Named tuples of tensors: batches, targets, network outputs, losses and detections.

Shapes use these letters: B images in the batch, K default boxes, M objects in the image with the
most, P matched default boxes in the image with the most, N detections, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

MEAN_RGB = (123.0, 117.0, 104.0)
"""Caffe's mean colour (`ssd_pascal.py:177, 204-207`, in the order blue, green, red)."""


class Targets(NamedTuple):
    """The objects of a batch, padded to the image with the most.

    Attributes:
        boxes: float32 (B, M, 4), xyxy in the unit frame; padded with zeros.
        labels: int64 (B, M), 0..C-1; padded with zeros.
        difficult: bool (B, M), True for difficult objects.
        valid: bool (B, M), True for objects, False for padding.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    valid: Tensor


class Matches(NamedTuple):
    """The training targets of the matched default boxes (positives) of a batch.

    They are padded to the image with the most. The target of all other default boxes is the
    background.

    Attributes:
        boxes: int64 (B, P), 0..K-1, ascending: indices of the matched default boxes; padded with
            zeros.
        classes: int64 (B, P), 1..C: 1 + the label of the matched object; padded with zeros.
        offsets: float32 (B, P, 4): offsets from default box to object; padded with zeros.
    """

    boxes: Tensor
    classes: Tensor
    offsets: Tensor

    def to(self, device: torch.device) -> "Matches":
        """Returns the matches on a device."""
        return Matches(*(field.to(device, non_blocking=True) for field in self))


class Batch(NamedTuple):
    """The images and targets of one step.

    Attributes:
        images: uint8 (B, 3, H, W), RGB.
        targets: The objects in the images.
        matches: The training targets of the matched default boxes.
        samples: int64 (B,), the numbers of the samples.
        indices: int64 (B,), the indices of the images in the dataset.
    """

    images: Tensor
    targets: Targets
    matches: Matches
    samples: Tensor
    indices: Tensor


class Output(NamedTuple):
    """The output of a network, in training and in evaluation.

    Attributes:
        offsets: float32 (B, K, 4): (dx, dy, dw, dh), divided by the variances.
        logits: float32 (B, K, C + 1): class 0 is the background.
    """

    offsets: Tensor
    logits: Tensor


class Losses(NamedTuple):
    """The two parts of the multibox loss, divided by the number of positives.

    Attributes:
        confidence: float32 (), the confidence loss.
        localization: float32 (), the localization loss.
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
