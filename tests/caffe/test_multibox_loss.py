import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from multibox.ssd.loss import multibox_loss
from multibox.ssd.matching import match
from multibox.structures import Matches, Output, Targets

CAP = -math.log(np.finfo(np.float32).tiny)
"""Caffe's largest loss of a box in mining and in the sum, 87.34: probabilities are not below
FLT_MIN. Ours is not capped."""


CAPPED = 25
"""The problem in which losses reach it: which negatives are taken is up to an unstable sort."""


class Problem(NamedTuple):
    output: Output
    boxes: torch.Tensor
    matches: Matches


def symmetric(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return ((rng.random(shape) + rng.random(shape) - 1) * scale).astype(np.float32)


def objects_of(rows: np.ndarray, batch: int, *, difficult: bool) -> Targets:
    """From the rows of Caffe's label blob: image, class, 0, corners, difficult."""
    rows = rows[rows[:, 0] >= 0]
    most = max(1, *(int((rows[:, 0] == image).sum()) for image in range(batch)), 1)
    targets = Targets(
        torch.zeros(batch, most, 4),
        torch.zeros(batch, most, dtype=torch.int64),
        torch.zeros(batch, most, dtype=torch.bool),
        torch.zeros(batch, most, dtype=torch.bool),
    )
    for image in range(batch):
        for place, row in enumerate(rows[rows[:, 0] == image]):
            targets.boxes[image, place] = torch.from_numpy(row[3:7])
            targets.labels[image, place] = int(row[1]) - 1
            targets.valid[image, place] = bool(difficult or not row[7])
    return targets


def problem(archive: Mapping[str, np.ndarray], table: np.ndarray, number: int) -> Problem:
    """A problem by the recorded formula; `table` are the default boxes of the build that ran."""
    prefix = f"{number:02d}_"
    batch = int(archive[f"{prefix}batch"])
    cs, ls = archive[f"{prefix}scales"].tolist()
    rng = np.random.Generator(np.random.Philox(key=int(archive[f"{prefix}seed"])))
    boxes = torch.from_numpy(archive.get(f"{prefix}priors", table))
    conf = torch.from_numpy(symmetric(rng, (batch, len(boxes), 21), cs))
    loc = torch.from_numpy(symmetric(rng, (batch, len(boxes), 4), ls))
    targets = objects_of(
        archive[f"{prefix}gt"], batch, difficult=bool(archive[f"{prefix}use_difficult"])
    )
    return Problem(Output(loc, conf), boxes, match(boxes, targets))


def rows_of(matches: Matches) -> np.ndarray:
    """Image and default box of each match, in order."""
    image, place = (matches.classes > 0).nonzero(as_tuple=True)
    return torch.stack([image, matches.boxes[image, place]], dim=1).numpy()


@pytest.mark.parametrize("number", range(47))
def test_matches_losses_and_gradients_are_caffes(recorded, compare, number: int) -> None:
    archive, prefix = recorded("multibox_loss"), f"{number:02d}_"
    figures = {k.removeprefix(prefix): v for k, v in archive.items() if k.startswith(prefix)}
    output, _, matches = problem(archive, recorded("prior_box")["ssd300_voc"], number)
    loc, conf = output.offsets.requires_grad_(), output.logits.requires_grad_()
    total, of_loc, of_conf, count, _ = figures["loss"].astype(np.float64).tolist()

    mine = rows_of(matches)
    matched = figures["matched"].astype(np.int64)
    order = np.lexsort((matched[:, 1], matched[:, 0]))
    compare("matches", mine, matched[order, :2], tolerance=0)
    compare("number of matches", len(mine), count, tolerance=0)

    losses = multibox_loss(output, matches, torch.tensor(float(max(count, 1))))
    (losses.localization + losses.confidence).backward()
    size = max(abs(of_loc), 1)
    compare(
        "localisation loss",
        losses.localization.item() * max(count, 1) / size,
        of_loc / size,
        tolerance=1e-6,
    )
    d_loc = loc.grad[matched[:, 0], matched[:, 1]]
    compare("gradient of offsets", d_loc, figures["d_loc"], tolerance=1e-5, relative=True)
    rest = loc.grad.clone()
    rest[matched[:, 0], matched[:, 1]] = 0
    assert not rest.any()
    if number == CAPPED:
        # The capped losses of our choice are those of Caffe's, whichever boxes it took.
        counted = conf.grad.abs().amax(dim=2) > 0
        classes = torch.zeros(counted.shape, dtype=torch.int64)
        image, place = (matches.classes > 0).nonzero(as_tuple=True)
        classes[image, matches.boxes[image, place]] = matches.classes[image, place]
        each = F.cross_entropy(conf.detach()[counted], classes[counted], reduction="none")
        capped = each.double().clamp(max=CAP).sum().item()
        compare("confidence loss, capped", capped / of_conf, 1.0, tolerance=1e-6)
        return
    if not figures["exact"]:
        return
    size = max(abs(of_conf), 1)
    compare(
        "confidence loss",
        losses.confidence.item() * max(count, 1) / size,
        of_conf / size,
        tolerance=1e-6,
    )
    sums = losses.confidence + losses.localization
    compare("total loss", sums.item(), total, tolerance=1e-6 * max(abs(total), 1))
    rows = figures["d_conf_rows"].astype(np.int64)
    counted = (conf.grad.abs().amax(dim=2) > 0).nonzero()
    compare("default boxes that count", counted, rows[np.lexsort(rows.T[::-1])], tolerance=0)
    negatives = figures["negatives"].astype(np.int64)
    compare("hard negatives", len(counted) - len(mine), len(negatives), tolerance=0)
    compare(
        "gradient of logits",
        conf.grad[rows[:, 0], rows[:, 1]],
        figures["d_conf"],
        tolerance=1e-5,
        relative=True,
    )
