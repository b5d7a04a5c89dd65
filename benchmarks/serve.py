"""Asks `multibox serve` from many clients at once, with hostile uploads among them.

    python benchmarks/serve.py [MODEL] [--seconds 60] [--clients 200] [--photographs FOLDER]

It starts the service in a process of its own and prints JSON: the rate beside that of the network
alone, times of answers, refusals by kind, and the memory of the service at the start, after 10
seconds and at the end. Clients that are refused because the queue is full ask again after a second.
The exit status is 1 if a good request is lost, or if a hostile one is not refused.

Without a model, it makes an untrained ssd300-lite.
"""

import argparse
import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import safetensors.torch

from multibox import Detector
from multibox.build import new_network
from multibox.config import Config
from multibox.weights.files import make_header

PAGE = os.sysconf("SC_PAGE_SIZE")
HOSTILE_EVERY = 20


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--photographs", type=Path, help="folder; by default drawn images")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), options)
    print(json.dumps(found, indent=2))
    raise SystemExit(0 if not found["lost"] and not found["hostile_not_refused"] else 1)


def measure(work: Path, options: argparse.Namespace) -> dict[str, object]:
    """Returns what was found."""
    model = options.model or make_model(work / "lite.safetensors")
    images = read_images(options.photographs)
    rates = alone(model, options.device, images)
    command = [sys.executable, "-m", "multibox", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", options.device], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        lines = iter(process.stderr.readline, "")
        address = next(m[1] for line in lines if (m := re.search(r"at (\S+:\d+)\.", line)))
        crowd = Crowd(address, images, time.monotonic() + options.seconds)
        memory = [memory_mib(process.pid)]
        threads = [
            threading.Thread(target=crowd.act, args=(number,)) for number in range(options.clients)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(min(10, options.seconds / 2))
        memory.append(memory_mib(process.pid))
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
        memory.append(memory_mib(process.pid))
        metrics = crowd.metrics()
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    finally:
        process.kill()
    times = sorted(crowd.times)
    batches = metrics["multibox_batch_images_count"]
    return {
        "clients": options.clients,
        "seconds": round(seconds, 1),
        "answered": len(times),
        "lost": crowd.lost,
        "refused_because_busy": crowd.busy,
        "hostile": dict(sorted(crowd.hostile.items())),
        "hostile_not_refused": crowd.passed,
        "images_per_second": round(len(times) / seconds, 1),
        "images_per_second_detector": rates,
        "ms_p50_p99": [
            round(1000 * statistics.quantiles(times, n=100)[place], 1) for place in (49, 98)
        ],
        "mean_batch": round(metrics["multibox_batch_images_sum"] / batches, 2),
        "mib_at_start_after_10_s_at_end": memory,
        "exit_status": status,
    }


class Crowd:
    """Clients that ask until a time is over.

    Args:
        address: The service.
        images: Encoded images.
        end: When they stop, as a time of the monotonic clock.
    """

    def __init__(self, address: str, images: list[bytes], end: float) -> None:
        self._address, self._images, self._end = address, images, end
        self._lock = threading.Lock()
        self.times: list[float] = []
        self.hostile: Counter[str] = Counter()
        self.lost: list[str] = []
        self.busy = self.passed = 0

    def act(self, number: int) -> None:
        """Asks for one image after the other, with a hostile request now and then."""
        asked, connection = number, self._connect()
        while time.monotonic() < self._end:
            if asked % HOSTILE_EVERY == 0:
                self._harm(asked // HOSTILE_EVERY)
            asked += 1
            begun = time.monotonic()
            while True:
                try:
                    status, _ = self._ask(connection, self._images[asked % len(self._images)])
                except (OSError, http.client.HTTPException) as error:
                    status = 0
                    connection.close()
                    connection = self._connect()
                    with self._lock:
                        self.lost.append(f"{type(error).__name__}: {error}"[:100])
                    break
                if status != 503:
                    break
                with self._lock:
                    self.busy += 1
                time.sleep(1)
            with self._lock:
                if status == 200:
                    self.times.append(time.monotonic() - begun)
                elif status:
                    self.lost.append(f"status {status}")
        connection.close()

    def metrics(self) -> dict[str, float]:
        """Returns the metrics without labels."""
        connection = self._connect()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        return {n: float(v) for n, v in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=120)

    def _ask(
        self, connection: http.client.HTTPConnection, body: bytes, kind: str = "image/jpeg"
    ) -> tuple[int, bytes]:
        connection.request("POST", "/detect", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _harm(self, number: int) -> None:
        """Sends something that the service must refuse, or leaves in the middle."""
        image = self._images[0]
        bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\1\0\0" * 2 + b"\x08\2\0\0\0" + bytes(99)
        bodies = {
            "text": b"no image" * 1000,
            "cut": image[: len(image) // 2],
            "bomb": bomb,
            "too large": b"\xff\xd8\xff" + bytes(33 << 20),
            "empty": b"",
            "leaves": b"",
            "slow": b"",
        }
        name = [*bodies][number % len(bodies)]
        try:
            if name in ("leaves", "slow"):
                host, _, port = self._address.rpartition(":")
                with socket.create_connection((host, int(port)), timeout=120) as client:
                    head = f"POST /detect HTTP/1.1\r\nHost: {self._address}\r\n"
                    client.sendall(f"{head}Content-Length: {len(image)}\r\n\r\n".encode())
                    client.sendall(image if name == "leaves" else image[:9])
                    if name == "slow":
                        time.sleep(2)
                outcome = name
            else:
                connection = self._connect()
                status, _ = self._ask(connection, bodies[name])
                connection.close()
                outcome = f"{name}: {status}"
                with self._lock:
                    self.passed += status < 400
        except OSError as error:
            outcome = f"{name}: {type(error).__name__}"
        with self._lock:
            self.hostile[outcome] += 1


def alone(model: Path, device: str, images: list[bytes]) -> dict[str, float]:
    """Returns images per second of `Detector` for decoded images, in batches of 1 and 4."""
    detector = Detector.open(model, device=device)
    pixels = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data in images]
    rates = {}
    for size in (1, 4):
        detector(pixels[:size], batch_size=size)
        begun, done = time.monotonic(), 0
        while time.monotonic() - begun < 3:
            done += len(detector(pixels[:8], batch_size=size))
        rates[f"batches of {size}"] = round(done / (time.monotonic() - begun), 1)
    return rates


def read_images(folder: Path | None) -> list[bytes]:
    """Returns encoded images."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:64]]
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (32, 9, 12, 3), np.uint8)
    shown = [cv2.resize(each, (640, 480), interpolation=cv2.INTER_CUBIC) for each in small]
    return [cv2.imencode(".jpg", each)[1].tobytes() for each in shown]


def make_model(path: Path) -> Path:
    """Writes an untrained network."""
    network = new_network(Config(network="ssd300-lite"), 2)
    header = make_header(network, "ssd300-lite", ("cat", "dog"), "CC0")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, path, header)
    return path


def memory_mib(pid: int) -> int:
    """Returns the resident memory of a process in MiB."""
    return round(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20)


if __name__ == "__main__":
    main()
