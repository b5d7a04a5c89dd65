"""The service with a tiny network, in a thread of the tests, and a client."""

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from tiny import tiny_network

from multibox import Detector
from multibox.commands.service.application import Model, Service, Settings
from multibox.commands.service.batching import Batcher, Limits
from multibox.commands.service.metrics import Metrics
from multibox.commands.service.server import listen, make_server
from multibox.structures import Detections

CLASSES = ("cat", "<b>dog</b>")
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (40 + 9 * n, 60, 3), np.uint8) for n in range(6)]


def encoded(image: np.ndarray, suffix: str = ".png") -> bytes:
    done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


class Held(Detector):
    """A detector that computes a batch only after it may, and that records the sizes of batches."""

    def __init__(self) -> None:
        super().__init__(tiny_network(), CLASSES, torch.float32)
        self.sizes: list[int] = []
        self.begun, self.may = Event(), Event()

    def detect_batch(
        self, images: Sequence[np.ndarray], *, score_threshold: float = 0.0
    ) -> list[Detections]:
        self.sizes.append(len(images))
        self.begun.set()
        assert self.may.wait(60)
        return super().detect_batch(images, score_threshold=score_threshold)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Served(NamedTuple):
    address: str
    batcher: Batcher
    lines: list[str]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())
        finally:
            connection.close()

    def detect(self, body: bytes, query: str = "", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", f"/detect{query}", body, named)


def tiny_detector() -> Detector:
    return Detector(tiny_network(), CLASSES, torch.float32)


@contextmanager
def serving(
    detector: Detector,
    *,
    batch_size: int = 4,
    waiting: int = 128,
    timeout: float = 60.0,
    max_bytes: int = 1 << 20,
    classes: tuple[str, ...] = (),
) -> Iterator[Served]:
    metrics, lines = Metrics(), list[str]()
    batcher = Batcher(detector, Limits(batch_size, waiting), metrics)
    model = Model("tiny", "0" * 64)
    settings = Settings(model, "127.0.0.1", 0.1, classes, max_bytes, timeout)
    service = Service(detector, batcher, settings, metrics)
    server = make_server(service.application, timeout=timeout, say=lines.append)
    with listen("127.0.0.1", 0) as listening:
        thread = Thread(target=lambda: server.run(sockets=[listening]))
        thread.start()
        try:
            yield Served(f"127.0.0.1:{listening.getsockname()[1]}", batcher, lines)
        finally:
            server.should_exit = True
            thread.join()
            batcher.close()
