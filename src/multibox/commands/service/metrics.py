"""What the service counts, for Prometheus."""

from collections.abc import Callable

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one service.

    Attributes:
        requests: Answers of /detect by status. 499: the client left before the answer.
        refusals: Refused requests by kind.
        decode: Seconds of decoding and resizing an image.
        queue: Seconds between the decoding of an image and the begin of its batch.
        network: Seconds of a batch in the network, with decoding and suppression of boxes.
        batch: Number of images in a batch. The sum is the number of all images.
    """

    def __init__(self) -> None:
        # They would double the number of lines.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "multibox_requests", "Answers of /detect by status", ["status"], registry=registry
        )
        self.refusals = Counter(
            "multibox_refusals", "Refused requests by kind", ["kind"], registry=registry
        )
        self.decode, self.queue, self.network = (
            Histogram(f"multibox_{name}_seconds", text, buckets=_SECONDS, registry=registry)
            for name, text in (
                ("decode", "Decoding and resizing of an image"),
                ("queue", "Waiting of a decoded image for its batch"),
                ("network", "Detection in a batch"),
            )
        )
        self.batch = Histogram(
            "multibox_batch_images", "Images in a batch", buckets=_IMAGES, registry=registry
        )
        ProcessCollector(registry=registry)

    def watch(self, waiting: Callable[[], int]) -> None:
        """Adds the number of images that wait, which is asked for at each look."""
        gauge = Gauge("multibox_waiting_images", "Images that wait", registry=self._registry)
        gauge.set_function(waiting)

    def text(self) -> bytes:
        """Returns all values in the text format of Prometheus."""
        return prometheus_client.generate_latest(self._registry)
