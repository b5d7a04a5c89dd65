"""ssd_keras's SSD7, by loops over cells and kernel places, in NumPy and Keras's own layouts.

`models/keras_ssd7.py:277-346`, `keras_layers/keras_layer_AnchorBoxes.py:150-248` and the settings
of `ssd7_training.ipynb`. Slow and literal on purpose.
"""

import math

import numpy as np

HEIGHT, WIDTH = 300, 480
SCALES = (0.08, 0.16, 0.32, 0.64, 0.96)
RATIOS = (0.5, 1.0, 2.0)


def anchor_boxes(rows: int, columns: int, this_scale: float, next_scale: float) -> np.ndarray:
    """A map's boxes (cx, cy, w, h), divided by the image's size: (rows * columns * 4, 4)."""
    side = min(HEIGHT, WIDTH)
    shapes = []
    for ratio in RATIOS:
        if ratio == 1:
            shapes.append((this_scale * side, this_scale * side))
            between = math.sqrt(this_scale * next_scale) * side
            shapes.append((between, between))
        else:
            shapes.append(
                (this_scale * side * math.sqrt(ratio), this_scale * side / math.sqrt(ratio))
            )
    step_y, step_x = HEIGHT / rows, WIDTH / columns
    boxes = []
    for cy in np.linspace(0.5 * step_y, (0.5 + rows - 1) * step_y, rows):
        for cx in np.linspace(0.5 * step_x, (0.5 + columns - 1) * step_x, columns):
            for w, h in shapes:
                boxes.append((cx / WIDTH, cy / HEIGHT, w / WIDTH, h / HEIGHT))
    return np.array(boxes)


def forward(weights: dict[str, np.ndarray], pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (K, 4) and logits (K, C + 1) of one image, (H, W, 3) in 0..255.

    `weights` has Keras's names and layouts: `conv1/kernel` is (h, w, in, out).
    """
    x = (pixels - 127.5) / 127.5
    offsets, logits = [], []
    for block in range(1, 8):
        x = convolve(x, weights, f"conv{block}")
        x = normalise(x, weights, f"bn{block}")
        x = np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)
        if block >= 4:
            offsets.append(convolve(x, weights, f"boxes{block}").reshape(-1, 4))
            classes = weights[f"classes{block}/bias"].size // 4
            logits.append(convolve(x, weights, f"classes{block}").reshape(-1, classes))
        if block < 7:
            x = pool(x)
    return np.concatenate(offsets), np.concatenate(logits)


def convolve(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Stride 1, padding 'same': as many zeros around as keep the size."""
    kernel = weights[f"{name}/kernel"]
    margin = kernel.shape[0] // 2
    padded = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
    total = weights[f"{name}/bias"]
    for dy in range(kernel.shape[0]):
        for dx in range(kernel.shape[1]):
            seen = padded[dy : dy + x.shape[0], dx : dx + x.shape[1]]
            total = total + seen @ kernel[dy, dx]
    return total


def normalise(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Batch normalisation by the running statistics, with Keras's default constant."""
    gamma, beta, mean, variance = (
        weights[f"{name}/{kind}"] for kind in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (x - mean) / np.sqrt(variance + 0.001) + beta


def pool(x: np.ndarray) -> np.ndarray:
    """The largest of each 2 x 2 cells; a last odd row or column is left out."""
    rows, columns = x.shape[0] // 2, x.shape[1] // 2
    cells = x[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1)
    return cells.max(axis=(1, 3))
