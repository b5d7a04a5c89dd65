"""Records what OpenCV 4 computes from a `.caffemodel` and the published prototxt.

This is not a test. It needs OpenCV 4 (`pip install opencv-python-headless==4.12.0.88`), because
OpenCV 5 does not read Caffe's files. First write a file, then record it with OpenCV 4:

    python record_opencv.py write face face.caffemodel
    python record_opencv.py record face deploy.prototxt face.caffemodel opencv_face.npz

The networks are `face` (`samples/dnn/face_detector/deploy.prototxt` of OpenCV 4), and, of
chuanqi305/MobileNet-SSD, `mobilenet` (`deploy.prototxt`) and `merged`
(`voc/MobileNetSSD_deploy.prototxt`).
"""

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import caffe_detectors as detectors
from oracles.caffemodel import caffemodel
from oracles.formula import image

# Mean and scale of the pixels, in the order of the file: blue, green, red.
_PIXELS = {
    "face": ((104, 177, 123), 1.0),
    "mobilenet": ((127.5, 127.5, 127.5), 0.007843),
    "merged": ((127.5, 127.5, 127.5), 0.007843),
}


def write(network: str, path: str) -> None:
    layers = detectors.face() if network == "face" else detectors.mobilenet()
    if network == "merged":
        layers = detectors.merged(layers)
    Path(path).write_bytes(caffemodel(layers))


def record(network: str, prototxt: str, path: str, out: str) -> None:
    mean, scale = _PIXELS[network]
    net = cv2.dnn.readNetFromCaffe(prototxt, path)
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.enableFusion(False)
    pixels = np.ascontiguousarray(image()[:, :, ::-1])
    net.setInput(cv2.dnn.blobFromImage(pixels, scale, (300, 300), mean))
    names = ["mbox_loc", "mbox_conf", "mbox_priorbox", "detection_out"]
    offsets, logits, priors, detections = net.forward(names)
    np.savez_compressed(
        out,
        offsets=offsets.reshape(-1, 4),
        logits=logits.reshape(len(offsets[0]) // 4, -1),
        default_boxes=priors[0, 0].reshape(-1, 4),
        # Class (0 is the background), score and box of each detection.
        detections=detections[0, 0, :, 1:],
    )


if __name__ == "__main__":
    {"write": write, "record": record}[sys.argv[1]](*sys.argv[2:])
