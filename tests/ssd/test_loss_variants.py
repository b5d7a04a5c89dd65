import math
from typing import Any

import pytest
import torch
from oracles import loss as plain_oracle
from oracles import loss_variants as oracle

from multibox.boxes import to_xyxy
from multibox.build import new_network
from multibox.config import Config, LossConfig
from multibox.rng import stream
from multibox.ssd.coding import CAFFE_VARIANCES, decode, encode
from multibox.ssd.loss import multibox_loss
from multibox.ssd.loss_variants import Variant, box_losses, importance, variant_loss
from multibox.structures import Matches, Output

CLASSES = 3
BOXES = 40


def uniform(purpose: str, low: float, high: float, *shape: int) -> torch.Tensor:
    return torch.from_numpy(stream(0, purpose).uniform(low, high, shape)).float()


def some_boxes(purpose: str, *shape: int) -> torch.Tensor:
    centre, size = (
        uniform(f"{purpose} {name}", low, high, *shape, 2)
        for name, low, high in (("centre", 0.3, 0.7), ("size", 0.1, 0.5))
    )
    return to_xyxy(torch.cat([centre, size], dim=-1))


DEFAULT_BOXES = some_boxes("default", BOXES)
# The objects of three images: the matched default boxes of each, and its class. The second image
# has none.
OBJECTS = [[([0, 3, 4, 9], 1), ([1, 2, 30], 2), ([5, 6], 1)], [], [([7, 39, 20], 1), ([8], 3)]]


def problem(dtype: torch.dtype = torch.float32) -> tuple[Output, Matches, list[list[int]]]:
    """Outputs and matches, and the number of the object of each match."""
    objects = some_boxes("objects", 5)
    rows, numbers = [], []
    number = 0
    for image in OBJECTS:
        found = []
        for boxes, label in image:
            found += [(box, label, number) for box in boxes]
            number += 1
        rows.append(sorted(found))
        numbers.append([item for *_, item in sorted(found)])
    most = max(map(len, rows))
    boxes, classes = torch.zeros(2, 3, most, dtype=torch.int64)
    offsets = torch.zeros(3, most, 4)
    for image, found in enumerate(rows):
        for place, (box, label, item) in enumerate(found):
            boxes[image, place], classes[image, place] = box, label
            offsets[image, place] = encode(objects[item : item + 1], DEFAULT_BOXES[box : box + 1])[
                0
            ]
    predicted = uniform("offsets", -1, 1, 3, BOXES, 4)
    # Predictions that are near their targets, as in training.
    for image, found in enumerate(rows):
        for place, (box, *_) in enumerate(found):
            predicted[image, box] = offsets[image, place] + predicted[image, box] / 2
    logits = uniform("logits", -2, 2, 3, BOXES, CLASSES + 1)
    return Output(predicted.to(dtype), logits.to(dtype)), Matches(boxes, classes, offsets), numbers


def variant(**options: Any) -> Variant:
    return Variant(DEFAULT_BOXES, CAFFE_VARIANCES, **options)


def expected(options: dict[str, Any]) -> tuple[float, float]:
    """Both parts of the loss, by the oracles alone."""
    output, matches, numbers = problem()
    confidence, box_loss = 0.0, []
    losses, labels, objects, overlaps, scores = [], [], [], [], []
    for image, found in enumerate(numbers):
        logits = output.logits[image].tolist()
        pairs = zip(matches.boxes[image].tolist(), matches.classes[image].tolist(), strict=True)
        matched = {box: label for box, label in pairs if label}
        classes = [matched.get(box, 0) for box in range(BOXES)]
        epsilon = options.get("label_smoothing", 0.0)

        def class_loss(
            box: int,
            logits: list[list[float]] = logits,
            classes: list[int] = classes,
            epsilon: float = epsilon,
        ) -> float:
            if options.get("class_loss") == "focal":
                return oracle.focal(logits[box], classes[box])
            return oracle.smoothed(logits[box], classes[box], epsilon)

        negatives = plain_oracle.hard_negatives(logits, classes)
        if options.get("class_loss") == "focal":
            negatives = [box for box in range(BOXES) if not classes[box]]
        confidence += sum(map(class_loss, negatives))
        for place, number in enumerate(found):
            box = int(matches.boxes[image, place])
            losses.append(class_loss(box))
            labels.append(classes[box])
            objects.append(number)
            scores.append(math.exp(-plain_oracle.cross_entropy(logits[box], classes[box])))
            offsets = output.offsets[image, box], matches.offsets[image, place]
            pair = [decode(each, DEFAULT_BOXES[box]).tolist() for each in offsets]
            overlaps.append(oracle.iou(*pair))
            match options.get("box_loss", "smooth_l1"):
                case "smooth_l1":
                    distances = (offsets[0] - offsets[1]).tolist()
                    box_loss.append(sum(map(plain_oracle.smooth_l1, distances)))
                case kind:
                    box_loss.append(1 - getattr(oracle, kind)(*pair))
    localization = sum(box_loss)
    if options.get("pisa"):
        weights = oracle.isr_p(overlaps, labels, objects, losses)
        confidence += sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        localization += oracle.carl(scores, box_loss)
    else:
        confidence += sum(losses)
    count = len(losses)
    return confidence / count, options.get("box_weight", 1.0) * localization / count


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"box_loss": "giou"},
        {"box_loss": "ciou"},
        {"box_loss": "giou", "box_weight": 5.0},
        {"class_loss": "focal"},
        {"label_smoothing": 0.1},
        {"pisa": True},
        {"pisa": True, "class_loss": "focal", "box_loss": "ciou", "box_weight": 2.0},
        {"pisa": True, "label_smoothing": 0.2, "box_loss": "giou"},
    ],
)
def test_variants_are_the_oracle_s(options: dict[str, Any]) -> None:
    output, matches, numbers = problem()
    count = torch.tensor(float(sum(map(len, numbers))))
    found = variant_loss(output, matches, count, variant(**options))
    assert [x.item() for x in found] == pytest.approx(expected(options), rel=2e-5)


def test_without_options_it_is_ssd_s_loss() -> None:
    output, matches, _ = problem()
    found = variant_loss(output, matches, torch.tensor(13.0), variant())
    plain = multibox_loss(output, matches, torch.tensor(13.0))
    torch.testing.assert_close(tuple(found), tuple(plain), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["iou", "giou", "ciou"])
def test_measures_of_boxes_by_hand(kind: str) -> None:
    """Equal boxes; halves; apart by their width; one inside the other with other sides."""
    a = [[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 4, 2]]
    b = [[0, 0, 2, 2], [0, 0, 1, 2], [2, 0, 3, 1], [1, 0, 2, 2]]
    angles = math.atan(2) - math.atan(0.5)
    v = 4 / math.pi**2 * angles**2
    halves = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    wanted = {
        "iou": [0, 0.5, 1, 0.75],
        "giou": [0, 0.5, 1 + 1 / 3, 0.75],
        "ciou": [
            0,
            0.5 + 0.25 / 8 + halves * halves / (0.5 + halves),
            1 + 4 / 10,
            0.75 + 0.25 / 20 + v * v / (0.75 + v),
        ],
    }[kind]
    found = box_losses(torch.tensor(a).float(), torch.tensor(b).float(), kind)
    assert found.tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", ["giou", "ciou"])
def test_the_gradient_is_the_slope(kind: str) -> None:
    a, b = some_boxes("a", 20).double().requires_grad_(), some_boxes("b", 20).double()
    if kind == "giou":
        assert torch.autograd.gradcheck(lambda x: box_losses(x, b, kind), a)
        return
    # CIoU's trade-off is a constant for the gradient.
    (found,) = torch.autograd.grad(box_losses(a, b, kind).sum(), a)
    size = a.detach()[:, 2:] - a.detach()[:, :2], b[:, 2:] - b[:, :2]
    angles = [torch.atan(each[:, 0] / each[:, 1]) for each in size]
    v = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    alpha = v / (box_losses(a.detach(), b, "iou") + v)

    def with_constant(x: torch.Tensor) -> torch.Tensor:
        around = torch.maximum(x[:, 2:], b[:, 2:]) - torch.minimum(x[:, :2], b[:, :2])
        shift = ((x[:, :2] + x[:, 2:] - b[:, :2] - b[:, 2:]) / 2).square().sum(1)
        angle = torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1]))
        ratio = 4 / math.pi**2 * (angle - angles[1]) ** 2
        return box_losses(x, b, "iou") + shift / around.square().sum(1) + alpha * ratio

    (wanted,) = torch.autograd.grad(with_constant(a).sum(), a)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pisa", [False, True])
@pytest.mark.parametrize("class_loss", ["softmax", "focal"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou", "ciou"])
def test_images_without_objects_have_a_finite_loss_and_gradient(
    box_loss: Any, class_loss: Any, pisa: bool
) -> None:
    output, matches, _ = problem()
    output = Output(*(part[1:2].clone().requires_grad_() for part in output))
    matches = Matches(*(part[1:2] for part in matches))
    chosen = variant(box_loss=box_loss, class_loss=class_loss, pisa=pisa)
    losses = variant_loss(output, matches, torch.tensor(1.0), chosen)
    (losses.confidence + losses.localization).backward()
    assert losses.localization == 0
    assert (losses.confidence > 0) == (class_loss == "focal")
    assert all(part.grad.isfinite().all() for part in output)


@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
def test_a_perfect_prediction_has_no_box_loss_and_a_finite_gradient(box_loss: Any) -> None:
    output, matches, _ = problem()
    offsets = output.offsets.clone()
    for image in range(3):
        there = matches.classes[image] > 0
        offsets[image, matches.boxes[image, there]] = matches.offsets[image, there]
    offsets.requires_grad_()
    losses = variant_loss(
        output._replace(offsets=offsets), matches, torch.tensor(1.0), variant(box_loss=box_loss)
    )
    losses.localization.backward()
    assert losses.localization.item() == pytest.approx(0, abs=1e-4)
    assert offsets.grad.isfinite().all()


def test_half_precision_outputs_are_computed_in_float32() -> None:
    output, matches, _ = problem(torch.bfloat16)
    chosen = variant(box_loss="ciou", class_loss="focal", pisa=True)
    found = variant_loss(output, matches, torch.tensor(13.0), chosen)
    wide = Output(*(part.float() for part in output))
    torch.testing.assert_close(
        tuple(found),
        tuple(variant_loss(wide, matches, torch.tensor(13.0), chosen)),
        rtol=1e-6,
        atol=0,
    )
    assert found.confidence.dtype == found.localization.dtype == torch.float32


def test_importance_leaves_the_sum_and_prefers_the_best_box_of_each_object() -> None:
    output, matches, numbers = problem()
    losses = uniform("losses", 0.1, 3, *matches.classes.shape)
    own = DEFAULT_BOXES[matches.boxes]
    found = decode(output.offsets.gather(1, matches.boxes.unsqueeze(2).expand(-1, -1, 4)), own)
    wanted = decode(matches.offsets, own)
    distances = box_losses(found, wanted, "iou")
    weights = importance(distances, wanted, matches, losses)
    positive = matches.classes > 0
    torch.testing.assert_close((weights * losses)[positive].sum(), losses[positive].sum())
    best: dict[int, tuple[float, float]] = {}
    lower: dict[int, float] = {}
    for image, items in enumerate(numbers):
        for place, item in enumerate(items):
            entry = (float(distances[image, place]), float(weights[image, place]))
            best[item] = min(best.get(item, entry), entry)
            lower[item] = min(lower.get(item, math.inf), entry[1])
    assert all(best[item][1] >= lower[item] for item in best)
    assert len(best) == 5


def test_a_new_network_for_the_focal_loss_expects_the_background() -> None:
    config = Config(network="ssd300-lite", loss=LossConfig(class_loss="focal"))
    other = new_network(Config(network="ssd300-lite"), CLASSES).state_dict()
    network = new_network(config, CLASSES)
    for layer in network.class_layers().values():
        probability = layer.bias.detach().view(-1, CLASSES + 1).softmax(dim=1)
        torch.testing.assert_close(probability[:, 0], torch.full((len(probability),), 0.99))
    # All else is as for the other losses.
    biases = {f"{name}.bias" for name in network.class_layers()}
    for name, tensor in network.state_dict().items():
        assert name in biases or torch.equal(tensor, other[name])
