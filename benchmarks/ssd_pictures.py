"""Makes the pictures of docs/how-ssd-works.md: `python benchmarks/ssd_pictures.py`.

All pictures show what multibox's own functions return, on images that the demo draws. For the hard
negatives and the suppression, a small network is trained on a few of these images first.
"""

import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from multibox import boxes as bx
from multibox.build import build_network, build_optimizer
from multibox.commands.demo.dataset import CLASSES, draw_scene
from multibox.config import AugmentationConfig
from multibox.data.geometry import draw_geometry, whole_image
from multibox.data.pixels import draw_colour, render
from multibox.evaluation.voc import (
    RECALL_THRESHOLDS,
    ClassDetections,
    ClassObjects,
    average_precision_11_point,
    average_precision_area,
    precision_recall,
)
from multibox.recipes import ssd300_lite
from multibox.rng import stream, torch_generator
from multibox.ssd.coding import decode, encode
from multibox.ssd.default_boxes import SSD300_VOC, default_boxes
from multibox.ssd.detect import DetectionSettings, detect
from multibox.ssd.loss import hard_negatives, multibox_loss
from multibox.ssd.matching import match, match_boxes
from multibox.ssd.network import SSD, Traits, initialise
from multibox.structures import MEAN_RGB, Output, Targets

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIDE = 300
SCENE = 38
"""The drawn image that the pictures show: four objects of different sizes."""
OTHERS = (16, 24, 29, 31, 36)
"""The drawn images that the network sees as well."""
STEPS = 15
"""Number of training steps. After more of them, the network knows these few images by heart."""
AUGMENTED = (1, 3, 6, 10, 11)
"""Numbers of the augmented samples."""

# A white background, also where the page is dark.
TEXT, BLUE, ORANGE, GREEN, PINK = "#1b1f24", "#0072b2", "#d55e00", "#009e73", "#cc79a7"
COLOURS = (BLUE, ORANGE, GREEN, PINK, "#e69f00", "#56b4e9")


class Scene(NamedTuple):
    """A drawn image. Boxes are fractions of it.

    Attributes:
        pixels: RGB, as drawn.
        network_input: RGB, of 300 x 300 pixels.
        boxes: xyxy in the unit frame.
        labels: Labels of the objects.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    network_input: UInt8[np.ndarray, "300 300 3"]
    boxes: Float[Tensor, "M 4"]
    labels: list[int]


def draw(number: int) -> Scene:
    """Returns a scene of the demo's dataset."""
    pixels, objects = draw_scene(stream(0, "drawn", number), empty_share=0.0)
    height, width = pixels.shape[:2]
    network_input = render(pixels, whole_image(width, height), None, (SIDE, SIDE))
    boxes = torch.tensor([drawn.box_px for drawn in objects], dtype=torch.float32)
    boxes /= torch.tensor([width, height, width, height])
    return Scene(pixels, network_input, boxes, [CLASSES.index(drawn.name) for drawn in objects])


def targets_of(scenes: Sequence[Scene]) -> Targets:
    """Returns the objects of some scenes, padded."""
    most = max(len(scene.labels) for scene in scenes)
    boxes, labels = torch.zeros(len(scenes), most, 4), torch.zeros(len(scenes), most).long()
    valid = torch.zeros(len(scenes), most, dtype=torch.bool)
    for place, scene in enumerate(scenes):
        count = len(scene.labels)
        boxes[place, :count], labels[place, :count] = scene.boxes, torch.tensor(scene.labels)
        valid[place, :count] = True
    return Targets(boxes, labels, torch.zeros_like(valid), valid)


def train(steps: int) -> tuple[SSD, Output, Output]:
    """Trains a small network on few images.

    Returns:
        The network, and its outputs for the scene before and after the training.
    """
    config = ssd300_lite()
    traits = Traits(pixel_scale=1 / 64)
    network = build_network(config.network, len(CLASSES), traits)
    initialise(network, torch_generator(0, "initialise"))
    optimizer = build_optimizer(network, config.optimizer)
    scenes = [draw(number) for number in (SCENE, *OTHERS)]
    pixels = np.stack([scene.network_input for scene in scenes])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    matches = match(network.default_boxes, targets_of(scenes))
    count = (matches.classes > 0).sum().float()
    before = None
    for _ in range(steps):
        output = network(images)
        if before is None:
            before = Output(*(field[:1].detach() for field in output))
        optimizer.zero_grad()
        sum(multibox_loss(output, matches, count)).backward()
        optimizer.step()
    # Few steps do not settle the running statistics, so the batch's own are used.
    with torch.no_grad():
        after = network(images)
    assert before is not None
    return network, before, Output(*(field[:1] for field in after))


def axes(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """Returns the places for several images in one picture."""
    found = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for place in found:
        place.set_xticks([])
        place.set_yticks([])
        for spine in place.spines.values():
            spine.set_visible(False)
    return list(found)


def show(place: Axes, pixels: UInt8[np.ndarray, "H W 3"], title: str, faded: float = 0.0) -> None:
    """Shows an image, in part white so that boxes stand out."""
    white = pixels.astype(np.float32) * (1 - faded) + 255 * faded
    height, width = pixels.shape[:2]
    place.imshow(white.astype(np.uint8), extent=(0, width, height, 0))
    place.set_title(title, fontsize=9, color=TEXT)


def outline(
    place: Axes,
    box: Sequence[float],
    colour: str,
    *,
    width: float = 1.2,
    style: str = "-",
    alpha: float = 1.0,
    beyond: bool = True,
    scale: tuple[float, float] = (SIDE, SIDE),
) -> None:
    """Draws a box that is given in fractions of an image.

    Args:
        place: Where to draw.
        box: xyxy in the unit frame.
        colour: Colour of the line.
        width: Width of the line in points.
        style: Style of the line.
        alpha: Opacity of the line.
        beyond: Whether parts outside of the image are drawn.
        scale: (width, height) of the image.
    """
    x0, y0, x1, y1 = (c * scale[i % 2] for i, c in enumerate(box))
    place.add_patch(
        Rectangle(
            (x0, y0),
            x1 - x0,
            y1 - y0,
            fill=False,
            edgecolor=colour,
            linewidth=width,
            linestyle=style,
            alpha=alpha,
            clip_on=not beyond,
        )
    )


def show_levels(figure: Figure, scene: Scene) -> None:
    """The cells of each level, and the default boxes of one cell."""
    table, first = default_boxes(SSD300_VOC, (SIDE, SIDE)), 0
    for place, level in zip(axes(figure, 2, 3), SSD300_VOC, strict=True):
        rows, columns = level.cells
        count = level.boxes_per_cell
        show(place, scene.network_input, f"{rows} x {columns} cells, {count} boxes each", 0.45)
        boxes = table[first : first + rows * columns * count].view(rows, columns, count, 4)
        first += rows * columns * count
        centres = bx.to_cxcywh(boxes[:, :, 0])[..., :2].reshape(-1, 2) * SIDE
        place.plot(*centres.T, ".", color=TEXT, markersize=1.5 if rows > 10 else 3, alpha=0.6)
        for box, colour in zip(boxes[rows // 2, columns // 2].tolist(), COLOURS, strict=False):
            outline(place, box, colour)
        margin = 60
        place.set_xlim(-margin, SIDE + margin)
        place.set_ylim(SIDE + margin, -margin)


def show_matching(figure: Figure, scene: Scene) -> None:
    """The default boxes that each object matched."""
    table = default_boxes(SSD300_VOC, (SIDE, SIDE))
    box, item = match_boxes(table, scene.boxes, torch.zeros(len(scene.labels), dtype=torch.int64))
    overlaps = bx.pairwise_iou(scene.boxes, table)
    for number, place in enumerate(axes(figure, 2, 2)):
        mine = box[item == number]
        own = overlaps[number, mine]
        title = f"{CLASSES[scene.labels[number]]}: {len(mine)} matched, IoU up to {own.max():.2f}"
        show(place, scene.network_input, title, 0.35)
        for one in mine.tolist():
            outline(place, table[one].tolist(), BLUE, width=0.8, alpha=0.8)
        outline(place, table[mine[own.argmax()]].tolist(), ORANGE, width=1.8)
        outline(place, scene.boxes[number].tolist(), "white", width=2.6)
        outline(place, scene.boxes[number].tolist(), TEXT, width=1.4)


def show_offsets(figure: Figure, scene: Scene) -> None:
    """A default box, moved and resized by the offsets of an object."""
    table = default_boxes(SSD300_VOC, (SIDE, SIDE))
    number = int((bx.area(scene.boxes)).argmax())
    goal = scene.boxes[number]
    overlap = bx.pairwise_iou(goal[None], table)[0]
    # A box that is matched, but not the best, so that there is something to see.
    near = (overlap >= 0.5).nonzero().squeeze(1)
    default = table[near[overlap[near].argmin()]][None]
    offsets = encode(goal[None], default)
    dx, dy, dw, dh = offsets[0].tolist()
    moved = offsets * torch.tensor([1.0, 1, 0, 0])
    steps = (
        ("default box", torch.zeros(1, 4)),
        (f"centre moved: dx {dx:.2f}, dy {dy:.2f}", moved),
        (f"sides scaled: dw {dw:.2f}, dh {dh:.2f}", offsets),
    )
    for place, (title, some) in zip(axes(figure, 1, 3), steps, strict=True):
        now = decode(some, default)
        iou = bx.pairwise_iou(goal[None], now).item()
        show(place, scene.network_input, f"{title}\nIoU {iou:.2f}", 0.35)
        outline(place, goal.tolist(), TEXT, width=2.4, alpha=0.5)
        outline(place, default[0].tolist(), BLUE, style="--")
        shown = [(default, BLUE)]
        if bool(some.any()):
            outline(place, now[0].tolist(), ORANGE, width=1.8)
            shown.append((now, ORANGE))
        for one, colour in shown:
            place.plot(*(bx.to_cxcywh(one)[0, :2] * SIDE).tolist(), "o", color=colour, markersize=4)


def show_negatives(figure: Figure, scene: Scene, outputs: Sequence[Output], steps: int) -> None:
    """Positives and hard negatives, before and after some steps of training."""
    table = default_boxes(SSD300_VOC, (SIDE, SIDE))
    matches = match(table, targets_of([scene]))
    titles = ("random weights", f"after {steps} steps")
    for place, output, title in zip(axes(figure, 1, 2), outputs, titles, strict=True):
        losses = -output.logits.log_softmax(dim=2)[..., 0]
        places, hard = hard_negatives(losses, matches)
        near = bx.pairwise_iou(scene.boxes, table[places[hard]]).amax(dim=0).median()
        counts = f"{matches.boxes.shape[1]} positives, {int(hard.sum())} hard negatives"
        counts += f" (median IoU {near:.2f})"
        show(place, scene.network_input, f"{title}\n{counts}", 0.35)
        for one in places[hard].tolist():
            outline(place, table[one].tolist(), ORANGE, width=0.7, alpha=0.7, beyond=False)
        for one in matches.boxes[0].tolist():
            outline(place, table[one].tolist(), BLUE, width=0.9, beyond=False)


def show_augmentation(figure: Figure, scene: Scene) -> None:
    """What some samples read from an image, and the network input that becomes of it."""
    config = AugmentationConfig()
    height, width = scene.pixels.shape[:2]
    places = axes(figure, 2, len(AUGMENTED))
    for sample, above, below in zip(
        AUGMENTED, places[: len(AUGMENTED)], places[len(AUGMENTED) :], strict=True
    ):
        rng = stream(0, "augment", sample)
        geometry, boxes, kept = draw_geometry(rng, scene.boxes.numpy(), width, height, config)
        x0, y0, x1, y1 = geometry.crop_px
        show(above, scene.pixels, f"{len(kept)} of {len(scene.labels)} objects")
        for number, box in enumerate(scene.boxes.tolist()):
            colour = "white" if number in kept.tolist() else ORANGE
            outline(above, box, colour, width=1, scale=(width, height))
        above.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=BLUE, linewidth=2)
        )
        above.set_xlim(min(0, x0) - 5, max(width, x1) + 5)
        above.set_ylim(max(height, y1) + 5, min(0, y0) - 5)
        above.set_facecolor([level / 255 for level in MEAN_RGB])
        made = render(scene.pixels, geometry, draw_colour(rng, config), (SIDE, SIDE))
        show(below, made, "mirrored" if geometry.mirror else "")
        for box in boxes.tolist():
            outline(below, box, "white", width=1)


def show_suppression(figure: Figure, scene: Scene, network: SSD, output: Output) -> None:
    """Detections before and after the suppression."""
    everything = DetectionSettings(score_threshold=0.3, iou_threshold=1.0)
    titles = "{} boxes with a score above 0.3", "{} after suppression"
    settings = everything, everything._replace(iou_threshold=0.45)
    for place, setting, title in zip(axes(figure, 1, 2), settings, titles, strict=True):
        (found,) = detect(output, network.default_boxes, setting)
        show(place, scene.network_input, title.format(len(found.scores)), 0.35)
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        for box, score, label in rows:
            outline(place, box, COLOURS[label], width=1.2, alpha=0.3 + 0.7 * score)
            if setting.iou_threshold < 1:
                name = f"{CLASSES[label]} {score:.2f}"
                x, y = max(box[0], 0) * SIDE, max(box[1], 0.05) * SIDE
                style = {"facecolor": COLOURS[label], "edgecolor": "none", "pad": 1}
                place.text(x, y, name, fontsize=7, color="white", va="bottom", bbox=style)


def show_precision(figure: Figure) -> None:
    """A curve of precision over recall, with the 11 points and the area."""
    rng = stream(0, "detections")
    boxes = np.tile([20.0, 20, 60, 60], (20, 1))
    objects = ClassObjects(np.arange(20), boxes, np.zeros(20, bool))
    # The lower the score, the farther the box may lie from the object. Two objects have no box.
    scores = rng.uniform(0, 1, 30)
    images = np.arange(30) % 18
    shift = rng.normal(0, 13, (30, 1)) * (1.2 - scores[:, None])
    detections = ClassDetections(images, scores, boxes[images] + shift)
    curve = precision_recall(detections, objects)
    place = figure.subplots()
    recall, precision = curve.recall, curve.precision
    best = np.maximum.accumulate(precision[::-1])[::-1]
    area = average_precision_area(curve)
    steps = np.concatenate([[0], recall]), np.concatenate([best, best[-1:]])
    label = f"area: {area:.3f}"
    place.fill_between(*steps, step="post", color=BLUE, alpha=0.15, label=label)
    place.plot(recall, precision, "-", color=BLUE, label="after each detection")
    first = np.searchsorted(recall, RECALL_THRESHOLDS)
    points = np.append(best, 0.0)[first]
    label = f"11 points: {average_precision_11_point(curve):.3f}"
    place.plot(RECALL_THRESHOLDS, points, "o", color=ORANGE, label=label, clip_on=False, zorder=3)
    place.set_xlim(0, 1)
    place.set_ylim(0, 1.05)
    place.set_xlabel("recall", fontsize=9)
    place.set_ylabel("precision", fontsize=9)
    place.tick_params(labelsize=8)
    place.legend(fontsize=8, loc="lower left", frameon=False)


def save(folder: Path, name: str, size: tuple[float, float], fill: Callable[[Figure], None]) -> int:
    """Writes a picture as a WebP file and returns its size in bytes."""
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.1)
    fill(figure)
    png = BytesIO()
    figure.savefig(png, format="png")
    path = folder / f"{name}.webp"
    folder.mkdir(parents=True, exist_ok=True)
    Image.open(png).convert("RGB").save(path, quality=70, method=4)
    return path.stat().st_size


def main(folder: Path = IMAGES, steps: int = STEPS) -> dict[str, int]:
    """Makes all pictures and returns their sizes in bytes by name.

    Args:
        folder: Where to write them.
        steps: Number of steps that the network is trained for.
    """
    scene = draw(SCENE)
    network, before, after = train(steps)
    pictures: dict[str, tuple[tuple[float, float], Callable[[Figure], None]]] = {
        "ssd-default-boxes": ((7.2, 5.1), lambda f: show_levels(f, scene)),
        "ssd-matching": ((6.4, 6.4), lambda f: show_matching(f, scene)),
        "ssd-offsets": ((7.2, 2.8), lambda f: show_offsets(f, scene)),
        "ssd-hard-negatives": (
            (7.2, 3.9),
            lambda f: show_negatives(f, scene, (before, after), steps),
        ),
        "ssd-augmentation": ((9.0, 3.9), lambda f: show_augmentation(f, scene)),
        "ssd-suppression": (
            (7.2, 3.8),
            lambda f: show_suppression(f, scene, network, after),
        ),
        "ssd-precision-recall": ((4.5, 3.0), show_precision),
    }
    return {name: save(folder, name, *picture) for name, picture in pictures.items()}


if __name__ == "__main__":
    for name, size in main(*map(Path, sys.argv[1:])).items():
        print(f"{name}.webp: {size / 1000:.0f} kB")
