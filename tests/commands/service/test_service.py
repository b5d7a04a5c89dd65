"""`serve`: the same detections as `Detector`, in batches; refusals; and clients that do harm."""

import contextlib
import io
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import exported
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from served import CLASSES, IMAGES, Held, Served, encoded, serving, tiny_detector
from tiny import TINY

from multibox import Detector, build
from multibox.build import new_network
from multibox.cli import main as command_line
from multibox.commands.service import server as server_module
from multibox.config import Config
from multibox.data.images import decode_image
from multibox.weights.files import make_header

PNG = encoded(IMAGES[0])
OTHERS = [encoded(image) for image in IMAGES[1:]]


def until(holds: Callable[[], bool]) -> None:
    """Returns when a condition holds."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def expected(detector: Detector, data: bytes, threshold: float = 0.1) -> list[dict[str, Any]]:
    found = detector(decode_image(data, file="x"), score_threshold=threshold)
    return [{**detection._asdict(), "box_px": list(detection.box_px)} for detection in found]


def values(served: Served) -> dict[tuple[str, str], float]:
    """Returns the samples of /metrics by name and by the value of the first label."""
    text = served.ask("GET", "/metrics").content.decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(tiny_detector(), max_bytes=300_000) as service:
        yield service
        assert service.lines == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_detections_are_those_of_the_detector(served: Served, suffix: str) -> None:
    data = encoded(IMAGES[1], suffix)
    answer = served.detect(data)
    assert answer.status == 200
    assert answer.json["detections"] == expected(tiny_detector(), data) != []
    assert (answer.json["width"], answer.json["height"]) == (60, 49)
    assert answer.json["threshold"] == 0.1
    assert answer.json["model"] == {"name": "tiny", "sha256": "0" * 64}
    assert set(answer.json["milliseconds"]) == {"decode", "queue", "network", "total"}


def test_a_request_can_state_the_threshold(served: Served) -> None:
    answer = served.detect(PNG, "?threshold=0.4", Content_Type="image/png")
    assert answer.json["detections"] == expected(tiny_detector(), PNG, 0.4)
    assert answer.json["threshold"] == 0.4


def part(content: bytes, name: str = "image", file: str | None = "x.png") -> bytes:
    named = "" if file is None else f'; filename="{file}"'
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{named}\r\n'
    return head.encode() + b"Content-Type: image/png\r\n\r\n" + content + b"\r\n"


def test_a_form_is_read_as_well(served: Served) -> None:
    for quoted in ("XX", '"XX"'):
        kind = f"multipart/form-data; boundary={quoted}"
        answer = served.detect(part(PNG) + b"--XX--\r\n", Content_Type=kind)
        assert answer.json["detections"] == expected(tiny_detector(), PNG)


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


APPLICATION = "application/"
FORM = "multipart/form-data; boundary=XX"
JPEG = encoded(IMAGES[0], ".jpg")
REFUSED: dict[str, tuple[bytes, str, dict[str, str], int, str]] = {
    "text": (b"no image", "", {}, 415, "image-format"),
    "svg": (b"<svg/>", "", {"Content-Type": "image/svg+xml"}, 415, "image-format"),
    "pickle": (pickle.dumps(os.system), "", {}, 415, "image-format"),
    "empty": (b"", "", {}, 400, "image-empty"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], "", {}, 422, "image-damaged"),
    "cut PNG": (PNG[:-20], "", {}, 422, "image-damaged"),
    "header alone": (PNG[:12], "", {}, 422, "image-header"),
    "bomb": (png_of(100_000, 100_000), "", {}, 413, "image-too-large"),
    "large": (bytes(300_001), "", {}, 413, "body-too-large"),
    "form type": (
        PNG,
        "",
        {"Content-Type": "application/x-www-form-urlencoded"},
        415,
        "content-type",
    ),
    "json": (b"{}", "", {"Content-Type": "application/json; charset=utf-8"}, 415, "content-type"),
    "two files": (part(PNG) + part(PNG) + b"--XX--", "", {"Content-Type": FORM}, 400, "multipart"),
    "no file": (part(PNG, file=None) + b"--XX--", "", {"Content-Type": FORM}, 400, "multipart"),
    "cut form": (part(PNG), "", {"Content-Type": FORM}, 400, "multipart"),
    "no boundary": (part(PNG), "", {"Content-Type": "multipart/form-data"}, 400, "multipart"),
    "word": (PNG, "?threshold=high", {}, 400, "query"),
    "nan": (PNG, "?threshold=nan", {}, 400, "query"),
    "above 1": (PNG, "?threshold=1.01", {}, 400, "query"),
    "twice": (PNG, "?threshold=0.1&threshold=0.2", {}, 400, "query"),
    "typing error": (PNG, "?treshold=0.1", {}, 400, "query"),
    "other host": (PNG, "", {"Host": "example.org:8000"}, 403, "host"),
    "other site": (PNG, "", {"Sec-Fetch-Site": "cross-site"}, 403, "cross-site"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_their_reason(served: Served, name: str) -> None:
    body, query, headers, status, kind = REFUSED[name]
    answer = served.ask("POST", f"/detect{query}", body, headers)
    error = answer.json["error"]
    assert (answer.status, error["kind"]) == (status, kind)
    assert len(error["reason"]) > 5
    assert (
        str(status)
        in served.ask("GET", "/openapi.json").json["paths"]["/detect"]["post"]["responses"]
    )
    assert served.detect(PNG).status == 200


def test_routes(served: Served) -> None:
    answer = served.ask("GET", "/detect")
    assert (answer.status, answer.json["error"]["kind"]) == (405, "method")
    assert answer.headers["allow"] == "POST"
    assert served.ask("POST", "/").status == 405
    for path in ("/x", "/detect/", "/../etc/passwd", "/static/x.js"):
        assert served.ask("GET", path).status == 404
    health = served.ask("GET", "/health")
    assert (health.status, health.json["alive"]) == (200, True)
    page = served.ask("GET", "/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; img-src blob:")
    assert "access-control-allow-origin" not in page.headers
    assert b"<b>dog</b>" not in page.content
    # A name of another site that leads here must not let that site read the page.
    assert served.ask("GET", "/", headers={"Host": "example.org"}).status == 403
    assert served.ask("GET", "/", headers={"Host": "localhost:1"}).status == 200


def test_a_body_without_a_length_is_refused(served: Served) -> None:
    for headers in (b"", b"Content-Length: 3\r\n"):
        with socket.create_connection(served.address.split(":"), timeout=60) as client:
            client.sendall(
                b"POST /detect HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                + headers
                + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
            )
            assert client.makefile("rb").readline().split()[1] == b"411"


def test_what_is_not_http_ends_the_connection(served: Served) -> None:
    for data in (
        b"\x16\x03\x01\x02\0",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000,
        b"\0" * 70_000,
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        + b"9" * 9_000
        + b"\r\n\r\n",
        b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(served.address.split(":"), timeout=60) as client:
            client.sendall(data + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert b"200 OK" not in client.makefile("rb").read()
    assert served.detect(PNG).status == 200


def schema_faults(schema: dict[str, Any], value: Any, document: dict[str, Any]) -> list[str]:
    """Returns where a value differs from a schema of the kinds that the description has."""
    if "$ref" in schema:
        found: Any = document
        for name in schema["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return schema_faults(found, value, document)
    kinds: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "number": (int, float),
        "null": type(None),
    }
    wanted = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, kinds[kind]) for kind in wanted):
        return [f"{value!r} is not {wanted}"]
    faults = []
    if isinstance(value, dict) and "properties" in schema:
        assert schema["required"] == list(schema["properties"])
        if set(value) != set(schema["required"]):
            faults.append(f"has {sorted(value)}")
        for name, each in schema["properties"].items():
            faults += schema_faults(each, value.get(name), document)
    for each in value if isinstance(value, list) else []:
        faults += schema_faults(schema["items"], each, document)
    return faults


def test_the_description_is_true(served: Served) -> None:
    document = served.ask("GET", "/openapi.json").json
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {"/", "/detect", "/openapi.json", "/health", "/metrics"}

    def check(answer: Any, path: str, method: str) -> None:
        said = document["paths"][path][method]["responses"][str(answer.status)]["content"]
        ((kind, content),) = said.items()
        assert answer.headers["content-type"].startswith(kind)
        if kind == "application/json":
            assert schema_faults(content["schema"], answer.json, document) == []

    for path in set(document["paths"]) - {"/detect"}:
        check(served.ask("GET", path), path, "get")
    check(served.detect(PNG), "/detect", "post")
    check(served.detect(b"x"), "/detect", "post")
    check(served.ask("GET", "/detect"), "/detect", "post")


def test_metrics_can_be_parsed() -> None:
    with serving(tiny_detector()) as served:
        for body in (PNG, PNG, b"", b"x"):
            served.detect(body)
        found = values(served)
    assert found["multibox_requests_total", "200"] == 2
    assert found["multibox_requests_total", "415"] == 1
    assert found["multibox_refusals_total", "image-empty"] == 1
    assert found["multibox_batch_images_sum", ""] == 2
    assert found["multibox_waiting_images", ""] == 0
    for part_name in ("decode", "queue", "network"):
        assert found[f"multibox_{part_name}_seconds_count", ""] == 2


def test_waiting_images_are_computed_together() -> None:
    detector = Held()
    with serving(detector, batch_size=3) as served, ThreadPoolExecutor(6) as pool:
        first = pool.submit(served.detect, PNG)
        assert detector.begun.wait(60)
        rest = [pool.submit(served.detect, data, "?threshold=0.2") for data in OTHERS]
        until(lambda: len(served.batcher._decoded) == len(OTHERS))
        detector.may.set()
        answers = [future.result() for future in rest]
        assert first.result().json["detections"] == expected(tiny_detector(), PNG)
    assert detector.sizes == [1, 3, 2]
    for answer, data in zip(answers, OTHERS, strict=True):
        found, alone = answer.json["detections"], expected(tiny_detector(), data, 0.2)
        assert [each["name"] for each in found] == [each["name"] for each in alone]
        for one, other in zip(found, alone, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert one["box_px"] == pytest.approx(other["box_px"], abs=1e-2)


def test_a_full_queue_refuses() -> None:
    detector = Held()
    with serving(detector, waiting=2, batch_size=1) as served, ThreadPoolExecutor(2) as pool:
        kept = [pool.submit(served.detect, PNG) for _ in range(2)]
        until(lambda: served.batcher.waiting == 2)
        refused = served.detect(PNG)
        assert (refused.status, refused.json["error"]["kind"]) == (503, "busy")
        assert refused.headers["retry-after"] == "1"
        # An image that needs no place is refused for what it is.
        assert served.detect(b"x").status == 415
        assert values(served)["multibox_waiting_images", ""] == 2
        detector.may.set()
        assert [future.result().status for future in kept] == [200, 200]
        assert served.detect(PNG).status == 200


def test_images_that_take_long_to_decode_have_a_limit_of_their_own() -> None:
    detector = Held()
    black = io.BytesIO()
    Image.new("L", (5_000, 4_500)).save(black, "PNG")
    with serving(detector, waiting=8) as served, ThreadPoolExecutor(1) as pool:
        heavy = pool.submit(served.detect, black.getvalue())
        assert detector.begun.wait(60)
        refused = served.detect(black.getvalue())
        assert (refused.status, refused.json["error"]["kind"]) == (503, "busy")
        light = pool.submit(served.detect, PNG)
        detector.may.set()
        assert (heavy.result().status, light.result().status) == (200, 200)


def test_an_image_that_waits_too_long_is_refused() -> None:
    detector = Held()
    with serving(detector, timeout=0.2, batch_size=1) as served:
        answer = served.detect(PNG)
        assert (answer.status, answer.json["error"]["kind"]) == (503, "timeout")
        late = served.detect(PNG)
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        detector.may.set()
        # The one that only waited is never computed.
        until(lambda: served.batcher.waiting == 0)
        assert len(detector.sizes) <= 1
        until(lambda: served.detect(PNG).status == 200)


def test_slow_clients_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_GRACE_SECONDS", 1.5)
    with serving(tiny_detector(), timeout=0.3) as served:
        place = served.address.split(":")
        clients = [socket.create_connection(place, timeout=60) for _ in range(3)]
        head = b"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
        for client, data in zip(clients, (b"POST /det", head + b"abc", b""), strict=True):
            client.sendall(data)
        until(lambda: served.detect(PNG).status == 200)
        said = []
        for client in clients:
            said.append(client.makefile("rb").readline())
            client.close()
        assert said == [b"", b"HTTP/1.1 408 Request Timeout\r\n", b""]


def test_a_client_that_leaves_gives_up_its_place() -> None:
    detector = Held()
    head = f"POST /detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(PNG)}\r\n\r\n"
    with serving(detector, batch_size=1) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.detect, PNG)
        assert detector.begun.wait(60)
        for sent in (PNG, PNG[:50]):
            with socket.create_connection(served.address.split(":"), timeout=60) as client:
                client.sendall(head.encode() + sent)
                if sent == PNG:
                    until(lambda: served.batcher.waiting == 2)
            until(lambda: served.batcher.waiting == 1)
        until(lambda: values(served).get(("multibox_requests_total", "499")) == 2)
        detector.may.set()
        assert first.result().status == 200
        assert served.detect(PNG).status == 200
    assert detector.sizes == [1, 1]


def test_a_network_that_fails_is_one_line_and_no_end() -> None:
    detector = Held()
    detector.may.set()
    with serving(detector) as served:
        with mock.patch.object(Detector, "detect_batch", side_effect=RuntimeError("no\nmemory")):
            answer = served.detect(PNG)
        assert (answer.status, answer.json["error"]["kind"]) == (500, "internal")
        assert b"memory" not in answer.content
        assert served.detect(PNG).status == 200
        assert served.lines == ["RuntimeError: no\\nmemory"]


def test_classes_can_be_left_out() -> None:
    with serving(tiny_detector(), classes=("cat",)) as served:
        names = {each["name"] for each in served.detect(PNG).json["detections"]}
        assert names == {"cat"}
        assert CLASSES[1].encode() not in served.ask("GET", "/").content


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[Path]:
    with mock.patch.dict(build.NETWORKS, {"tiny": TINY}):
        yield exported.write_weights(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        *(["--timeout", "0"], ["--timeout", "nan"], ["--max-waiting", "0"], ["--batch-size", "-1"]),
        *(["--max-mebibytes", "0"], ["--classes", "cow"], ["--port", "70000"]),
        ["--score-threshold", "2"],
    ],
)
def test_options_out_of_range_are_refused(weights: Path, options: list[str]) -> None:
    assert command_line.main(["serve", str(weights), "--device", "cpu", *options]) == 2


def test_a_port_in_use_and_a_missing_package_are_named(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert command_line.main(["serve", str(weights), "--device", "cpu", "--port", port]) == 2
        assert f"port {port} of 127.0.0.1 cannot be used" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert command_line.main(["serve", str(weights)]) == 2
    assert "pip install 'multibox[serve]'" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_after_all_that_waits(tmp_path: Path, number: signal.Signals) -> None:
    torch.manual_seed(0)
    network = new_network(Config(network="ssd300-lite"), 2)
    header = make_header(network, "ssd300-lite", ("cat", "dog"), "CC0")
    path = tmp_path / "lite.safetensors"
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(state, path, header)
    words = ["serve", path, "--port", "0", "--device", "cpu", "--batch-size", "1"]
    (own := tmp_path / "own").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "multibox", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=own,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(own)},
    )
    assert process.stderr is not None
    with process:
        try:
            lines = iter(process.stderr.readline, "")
            address = next(
                found[1] for line in lines if (found := re.search(r"at (127\.0\.0\.1:\d+)", line))
            )
            served = Served(address, mock.Mock(), [])
            with ThreadPoolExecutor(6) as pool:
                images = [np.full((300, 300, 3), shade, np.uint8) for shade in range(6)]
                asked = [pool.submit(served.detect, encoded(image)) for image in images]

                def all_came() -> bool:
                    found = values(served)
                    done = found.get(("multibox_requests_total", "200"), 0)
                    return done + found["multibox_waiting_images", ""] == 6

                until(all_came)
                process.send_signal(number)
                assert [future.result().status for future in asked] == [200] * 6
            assert process.wait(60) == 0
            assert process.stderr.read() == "Stopped. 6 images answered.\n"
            # Requests leave no file behind.
            assert list(own.iterdir()) == []
        finally:
            process.kill()
