import numpy as np
import torch

from multibox.ssd.detect import detect
from multibox.structures import Output

UNDEFINED = "all_equal"
"""There all scores are equal, and an unstable sort decides which 200 of them remain."""


def symmetric(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    return ((rng.random(shape) + rng.random(shape) - 1) * scale).astype(np.float32)


def outputs(archive: dict, number: int) -> Output:
    """The offsets and logits of a problem, by the recorded formula."""
    batch, cs, ls, background, quantum, offset_quantum, _ = archive["settings"][number].tolist()
    seed = int(archive[f"{number:02d}_seed"])
    rng = np.random.Generator(np.random.Philox(key=seed))
    conf = symmetric(rng, (int(batch), 8732, 21), cs)
    loc = symmetric(rng, (int(batch), 8732, 4), ls)
    conf[..., 0] += np.float32(background)
    for image, runs in enumerate(archive.get(f"{number:02d}_runs", ())):
        for start, label in runs.tolist():
            conf[image, start : start + 24, label] += np.float32(10)
    if quantum:
        conf = np.round(conf / np.float32(quantum)) * np.float32(quantum)
    if offset_quantum:
        loc = np.round(loc / np.float32(offset_quantum)) * np.float32(offset_quantum)
    return Output(torch.from_numpy(loc), torch.from_numpy(conf))


def by_box(rows: np.ndarray) -> np.ndarray:
    """The order of detections by class and corners; equal scores may come in any."""
    return np.lexsort((*np.round(rows[:, 2:], 4).T, rows[:, 0]))


def test_detections_are_caffes(recorded, compare) -> None:
    archive = recorded("detection_output")
    boxes = torch.from_numpy(recorded("prior_box")["ssd300_voc"])
    for number, name in enumerate(archive["names"].tolist()):
        rows = archive[f"{number:02d}_rows"]
        found = detect(outputs(archive, number), boxes)
        for image, ours in enumerate(found):
            theirs = rows[(rows[:, 0] == image) & (rows[:, 1] >= 0)]
            compare("detections of an image", len(ours.scores), len(theirs), tolerance=0)
            compare("scores", ours.scores, np.sort(theirs[:, 2])[::-1], tolerance=1e-6)
            if name == UNDEFINED:
                continue
            mine = np.column_stack([ours.labels + 1, ours.scores, ours.boxes])
            order, other = (by_box(row) for row in (mine, theirs[:, 1:]))
            compare("classes", mine[order, 0], theirs[other, 1], tolerance=0)
            compare("scores, by box", mine[order, 1], theirs[other, 2], tolerance=1e-6)
            corners, others = mine[order, 2:], theirs[other, 3:]
            size = np.maximum(np.abs(others).max(axis=1, keepdims=True), 1)
            compare("corners, of the box's own size", corners / size, others / size, tolerance=2e-6)
