"""Whatever a server sends, a file equals the published file byte for byte, or it is refused."""

import hashlib
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress
from unreliable_server import IMPATIENT, Request, make_identity, serve

from multibox.download.catalogue import Published
from multibox.download.fetch import fetch
from multibox.download.https import POLICY, Policy
from multibox.errors import DownloadError, StorageError

BODY = np.random.default_rng(0).bytes(400_000)
OTHER = np.random.default_rng(1).bytes(400_000)
HALF = len(BODY) // 2
Answer = Callable[[Request], None]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "file.tar"


def _fetch(target: Path, *addresses: str, policy: Policy = IMPATIENT) -> None:
    published = Published("file.tar", len(BODY), hashlib.sha256(BODY).hexdigest(), addresses)
    with Progress(console=Console(quiet=True), disable=True) as progress:
        fetch(published, target, progress=progress, task=progress.add_task(""), policy=policy)


def _sound(request: Request) -> None:
    request.send_file(BODY)


def _then_sound(*answers: Answer) -> Answer:
    def answer(request: Request) -> None:
        (answers[request.number - 1] if request.number <= len(answers) else _sound)(request)

    return answer


def _cut(request: Request) -> None:
    request.start(200, Content_Length=len(BODY), ETag='"1"')
    request.wfile.write(BODY[:HALF])


def _cut_other(request: Request) -> None:
    request.start(200, Content_Length=len(OTHER), ETag='"0"')
    request.wfile.write(OTHER[:HALF])


def _cut_with_a_version_that_no_request_can_hold(request: Request) -> None:
    request.start(200, Content_Length=len(BODY), ETag='"\x85\xe9"')
    request.wfile.write(BODY[:HALF])


def _cut_chunked(request: Request) -> None:
    request.start(200, Transfer_Encoding="chunked")
    request.wfile.write(b"%x\r\n%s\r\n" % (HALF, BODY[:HALF]))


def _whole(request: Request) -> None:
    request.send(BODY)


def _until_close(request: Request) -> None:
    request.start(200)
    request.wfile.write(BODY)


def _wrong_begin(request: Request) -> None:
    request.send(BODY[1:], 206, Content_Range=f"bytes 1-{len(BODY) - 1}/{len(BODY)}")


def _wrong_total(request: Request) -> None:
    total = len(BODY) + 1
    request.send(BODY[HALF:], 206, Content_Range=f"bytes {HALF}-{total - 1}/{total}")


def _no_range(request: Request) -> None:
    request.send(BODY[HALF:], 206)


def _ignore_if_range(request: Request) -> None:
    last = len(BODY) - 1
    content_range = f"bytes {HALF}-{last}/{len(BODY)}"
    request.send(BODY[HALF:], 206, ETag='"1"', Content_Range=content_range)


def _cut_or_wrong(request: Request) -> None:
    (_wrong_begin if "Range" in request.headers else _cut)(request)


def _unsatisfiable(request: Request) -> None:
    request.send(b"", 416)


def _status(status: int, **headers: object) -> Answer:
    return lambda request: request.send(b"<html>", status, **headers)


def _drip(request: Request) -> None:
    request.start(200, Content_Length=len(BODY), ETag='"1"')
    for number in range(100):
        request.wfile.write(BODY[number : number + 1])
        time.sleep(0.05)


def _silence(request: Request) -> None:
    request.start(200, Content_Length=len(BODY), ETag='"1"')
    time.sleep(0.6)


def _hang_up(_: Request) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        (_sound, [0]),
        (_until_close, [0]),
        (_then_sound(_cut), [0, HALF]),
        (_then_sound(_cut_chunked), [0, HALF]),
        (_then_sound(_cut_with_a_version_that_no_request_can_hold), [0, HALF]),
        (_then_sound(_cut, _whole), [0, HALF]),
        (_then_sound(_cut, _wrong_begin), [0, HALF, 0]),
        (_then_sound(_cut, _wrong_total), [0, HALF, 0]),
        (_then_sound(_cut, _no_range), [0, HALF, 0]),
        (_then_sound(_cut, _unsatisfiable), [0, HALF, 0]),
        (_then_sound(_cut_other), [0, HALF]),
        (_then_sound(_cut_other, _ignore_if_range), [0, HALF, 0]),
        (_then_sound(_status(500), _status(503, Retry_After="0")), [0, 0, 0]),
        (_then_sound(_status(302, Location="/a"), _status(307, Location="b")), [0, 0, 0]),
        (_then_sound(_drip), [0, None]),
        (_then_sound(_silence), [0, 0]),
        (_then_sound(_hang_up, _hang_up), [0, 0, 0]),
    ],
)
def test_a_transfer_that_succeeds_in_the_end_is_identical(
    target: Path, answer: Answer, begins: list[int | None]
) -> None:
    with serve(answer) as server:
        _fetch(target, f"{server.address}/file.tar")
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    asked = [request.headers.get("Range", "bytes=0-") for request in server.requests]
    for got, begin in zip(asked, begins, strict=True):
        assert begin is None or got == f"bytes={begin}-"


@pytest.mark.parametrize("version", ["\u2028", "a\nb: c", "\ud800"])
def test_a_version_that_no_header_can_contain_is_ignored(target: Path, version: str) -> None:
    target.with_name("file.tar.part").write_bytes(BODY[:HALF])
    with serve(_sound) as server:
        note = json.dumps({"address": server.address, "validator": version})
        target.with_name("file.tar.part.json").write_text(note)
        _fetch(target, server.address)
    assert target.read_bytes() == BODY
    assert [request.headers["Range"] for request in server.requests] == [f"bytes={HALF}-"]


def test_texts_of_a_server_are_escaped_in_the_terminal(target: Path) -> None:
    def answer(request: Request) -> None:
        request.send_response(503, "\x1b[31mred")
        request.end_headers()

    said = io.StringIO()
    published = Published("file.tar", len(BODY), hashlib.sha256(BODY).hexdigest(), ())
    with (
        serve(_then_sound(answer)) as server,
        Progress(console=Console(file=said, width=200), disable=True) as progress,
    ):
        there = published._replace(addresses=(server.address,))
        fetch(there, target, progress=progress, task=progress.add_task(""), policy=IMPATIENT)
    assert r"responds with 503 \x1b[31mred" in said.getvalue()


def test_a_transfer_that_makes_progress_may_fail_any_number_of_times(target: Path) -> None:
    def answer(request: Request) -> None:
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1])
        last = len(BODY) - 1
        content_range = {"Content_Range": f"bytes {begin}-{last}/{len(BODY)}"} if begin else {}
        request.start(206 if begin else 200, Content_Length=len(BODY) - begin, **content_range)
        request.wfile.write(BODY[begin : begin + 70_000])

    with serve(answer) as server:
        _fetch(target, server.address, policy=replace(IMPATIENT, attempts=2))
    assert target.read_bytes() == BODY
    assert len(server.requests) == 6


def test_a_page_instead_of_the_file_is_refused(target: Path) -> None:
    """Half comes from one address and the rest from the next. The SHA-256 decides."""
    with serve(_then_sound(_cut_other, _status(404))) as server:
        _fetch(target, f"{server.address}/a", f"{server.address}/b")
    assert target.read_bytes() == BODY
    # The second address resumes the part of the first. The SHA-256 is wrong, so it restarts.
    assert [request.path for request in server.requests] == ["/a", "/a", "/b", "/b"]


@pytest.mark.parametrize("length", [0, 1, HALF, len(BODY) - 1, len(BODY), len(BODY) + 1])
@pytest.mark.parametrize("junk", [False, True])
def test_any_part_is_resumed_or_replaced(target: Path, length: int, junk: bool) -> None:
    part = target.with_name("file.tar.part")
    part.write_bytes((OTHER + b"!" if junk else BODY + b"!")[:length])
    with serve(_sound) as server:
        _fetch(target, server.address)
    assert target.read_bytes() == BODY
    if not junk and length == len(BODY):
        assert server.requests == []


def _endless(request: Request) -> None:
    request.start(200, Transfer_Encoding="chunked")
    while True:
        request.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (_status(404), "responds with 404 Not Found", 1),
        (_status(403), "responds with 403", 1),
        (_status(500), "responds with 500 .*, 3 times", 3),
        (_status(302, Location="/again"), "redirects more than 5 times", 6),
        (
            _status(302, Location="http://localhost/file.tar"),
            r"to http://localhost.* not https",
            1,
        ),
        (_status(302, Location="file:///etc/passwd"), "passwd.*not https", 1),
        (_status(302, Location="https://[/"), "not a valid address", 1),
        (_status(302), "responds with 302", 1),
        (_status(200), f"has 6 bytes, not {len(BODY)}", 1),
        (lambda request: request.send(OTHER), "its SHA-256 is not", 1),
        (lambda request: request.send(BODY, Content_Encoding="gzip"), "encoding", 1),
        (_endless, "sends more than the published 400.0 kB", 1),
        (_silence, "sent nothing for 0.3 s, 3 times", 3),
        (_hang_up, "the connection was cut, 3 times", 3),
        (_wrong_begin, "did not resume", 3),
        (_cut_or_wrong, r"ended|was cut", 3),
    ],
)
def test_what_is_wrong_is_refused(target: Path, answer: Answer, reason: str, requests: int) -> None:
    with serve(answer) as server, pytest.raises(DownloadError, match=reason) as refusal:
        _fetch(target, f"{server.address}/file.tar")
    assert f"{server.address}/file.tar" in str(refusal.value)
    assert refusal.value.remedy
    assert not target.exists()
    assert len(server.requests) == requests


def test_the_next_address_is_tried(target: Path) -> None:
    with serve(_status(404)) as gone, serve(_sound) as server:
        _fetch(target, "http://127.0.0.1:1/", gone.address, server.address)
    assert target.read_bytes() == BODY
    with pytest.raises(DownloadError, match=r"127.0.0.1:1/: cannot connect"):
        _fetch(target.with_name("other"), "http://127.0.0.1:1/")


def test_an_existing_file_is_checked_and_never_replaced(target: Path) -> None:
    target.write_bytes(BODY)
    _fetch(target)
    target.write_bytes(OTHER)
    with pytest.raises(DownloadError, match="not the published file"):
        _fetch(target)
    assert target.read_bytes() == OTHER


_DOWNLOAD = """if True:
    import dataclasses, sys
    from pathlib import Path
    from rich.console import Console
    from rich.progress import Progress
    from multibox.download.catalogue import Published
    from multibox.download.fetch import fetch
    from multibox.download.https import POLICY
    address, size, digest, target = sys.argv[1:]
    policy = dataclasses.replace(POLICY, http_hosts=frozenset({"127.0.0.1"}))
    published = Published("file.tar", int(size), digest, (address,))
    with Progress(console=Console(quiet=True), disable=True) as progress:
        task = progress.add_task("")
        fetch(published, Path(target), progress=progress, task=task, policy=policy)
"""


def test_an_interruption_keeps_the_received_bytes(target: Path) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupt(request: Request) -> None:
        request.start(200, Content_Length=len(BODY), ETag='"1"')
        request.wfile.write(BODY[:HALF])
        time.sleep(0.2)
        started[0].send_signal(signal.SIGINT)
        started[0].wait()

    with serve(_then_sound(interrupt)) as server:
        facts = (server.address, str(len(BODY)), hashlib.sha256(BODY).hexdigest(), str(target))
        # Not in this process: pytest gives handlers a stack of their own, which a library that
        # another test loaded can spoil. Then the signal ends the process.
        command = [sys.executable, "-c", _DOWNLOAD, *facts]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        assert started[0].wait() == -signal.SIGINT
        assert not target.exists()
        _fetch(target, server.address)
    assert target.read_bytes() == BODY
    assert server.requests[1].headers["Range"] == f"bytes={HALF}-"
    assert server.requests[1].headers["If-Range"] == '"1"'


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limits files to 100 kB, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_reported_and_the_received_bytes_are_kept(target: Path) -> None:
    with serve(_sound) as server, pytest.raises(StorageError, match=r"part: cannot be written"):
        _fetch(target, server.address)
    part = target.with_name("file.tar.part").read_bytes()
    assert part == BODY[: len(part)]
    assert len(part) == 100_000


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl's command")
def test_only_https_with_trusted_certificates_is_used(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = make_identity(target.parent)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with serve(_sound) as plain:
        answer = _then_sound(_status(301, Location=plain.address))
        with serve(answer, identity=identity) as server:
            with pytest.raises(DownloadError, match="no trusted encryption"):
                _fetch(target, server.address, policy=POLICY)
            monkeypatch.setenv("SSL_CERT_FILE", str(target.parent / "certificate.pem"))
            with pytest.raises(DownloadError, match="not https"):
                _fetch(target, server.address, policy=POLICY)
            _fetch(target, server.address, policy=POLICY)
        assert plain.requests == []
    assert target.read_bytes() == BODY


def test_the_environment_s_proxy_is_used_and_its_password_is_not_printed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(_then_sound(_status(404))) as proxy:
        place = proxy.address.removeprefix("http://")
        monkeypatch.setenv("http_proxy", f"http://me:pass%21word@{place}")
        with pytest.raises(DownloadError) as refusal:
            _fetch(target, "http://voc.invalid/file.tar")
        assert "pass" not in str(refusal.value)
        _fetch(target, "http://voc.invalid/file.tar")
        monkeypatch.setenv("no_proxy", "voc.invalid")
        with pytest.raises(DownloadError, match="the host name cannot be resolved"):
            _fetch(target.with_name("other"), "http://voc.invalid/file.tar")
    assert target.read_bytes() == BODY
    assert [request.path for request in proxy.requests] == ["http://voc.invalid/file.tar"] * 2
    login = proxy.requests[0].headers["Proxy-Authorization"]
    assert login == f"Basic {b64encode(b'me:pass!word').decode()}"
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks5://me:password@localhost:1")
    with pytest.raises(DownloadError, match="proxy") as refusal:
        _fetch(target.with_name("other"), "http://voc.invalid/file.tar")
    assert "password" not in str(refusal.value)
