"""Compares the published face detector in multibox with OpenCV 4, on one photograph.

It needs OpenCV 4 instead of 5 (`pip install opencv-python-headless==4.12.0.88`), the
`.caffemodel` and the prototxt:

    python benchmarks/opencv_caffe.py MODEL PROTOTXT PHOTO
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from multibox.weights.files import load_network, read_weights


def main(model: str, prototxt: str, photo: str) -> None:
    """Prints the largest differences of the detections.

    Args:
        model: The `.caffemodel` file.
        prototxt: OpenCV's `deploy.prototxt`.
        photo: An image.
    """
    image = cv2.imread(photo)
    small = cv2.resize(image, (300, 300))
    net = cv2.dnn.readNetFromCaffe(prototxt, model)
    net.setInput(cv2.dnn.blobFromImage(small, 1.0, (300, 300), (104, 177, 123)))
    theirs = net.forward()[0, 0]
    network = load_network(read_weights(Path(model)), torch.device("cpu"))
    pixels = torch.from_numpy(small[:, :, ::-1].copy()).permute(2, 0, 1).unsqueeze(0)
    with torch.inference_mode():
        ours = network.detect(network(pixels))[0]
    best = ours.scores.argsort(descending=True, stable=True)
    scores, boxes = ours.scores[best].numpy(), ours.boxes[best].numpy()
    height, width = image.shape[:2]
    for least in (0.01, 0.1, 0.5):
        kept, found = theirs[theirs[:, 2] > least], scores > least
        if len(kept) != found.sum():
            print(f"above {least}: OpenCV has {len(kept)}, multibox {found.sum()}")
            continue
        away = np.abs(kept[:, 3:7] - boxes[found]) * [width, height, width, height]
        apart = np.abs(kept[:, 2] - scores[found]).max()
        print(
            f"above {least}: {len(kept)} detections, boxes within {away.max():.5f} pixels of the "
            f"photograph, scores within {apart:.1e}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
