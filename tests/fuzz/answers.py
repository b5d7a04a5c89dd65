"""Fuzz target: the responses of a server to a download."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz.choices import TEXTS, Choices, damaged
from rich.console import Console
from rich.progress import Progress
from urllib3.exceptions import NewConnectionError

from multibox.download.catalogue import Published
from multibox.download.fetch import fetch
from multibox.download.https import Policy
from multibox.errors import DownloadError

_HOST = "published.invalid"
_CONTENT = bytes(range(256)) * 4
_FILE = Published(
    "file.tar",
    len(_CONTENT),
    hashlib.sha256(_CONTENT).hexdigest(),
    (f"http://{_HOST}/1/file.tar", f"http://{_HOST}/2/file.tar"),
)
_POLICY = Policy(attempts=3, backoff_s=0.0, http_hosts=frozenset({_HOST}))
_STATUSES = (
    *(b"200 OK", b"206 Partial Content", b"301 Moved", b"302", b"308 ", b"416 No", b"503 Busy"),
    *(b"100 Continue", b"101 Switch", b"204 None", b"304 Same", b"404 \x1b[31m", b"429 \xe9"),
    *(
        b"000 x",
        b"999 x",
        b"-20 x",
        b"+200 x",
        b"2_0 x",
        b"20 x",
        b"x",
        b"",
        b"200 " + b"x" * 70_000,
    ),
)
_FIELDS = (
    *("Content-Length", "Content-Range", "Content-Encoding", "Transfer-Encoding", "Location"),
    *("ETag", "Last-Modified", "Retry-After", "Connection", "Content-Type"),
)
_VALUES = (
    *("0", "1023", "1024", "1025", "-1", "+1024", "1_024", "1024, 1024", "9" * 30, "\xb2"),
    *("bytes 0-1023/1024", "bytes 512-1023/1024", "bytes 512-600/1024", "bytes */1024"),
    *("chunked", "gzip", "identity", "gzip, chunked", '"1"', 'W/"1"', '""', "close"),
    *(
        "/2/file.tar",
        "//published.invalid/x",
        "https://published.invalid/",
        "http://other.invalid/",
    ),
    *("http://[::1", "http://published.invalid:99999/", "file:///etc/passwd", "http://a@b:c@d/"),
    *("Sun, 06 Nov 1994 08:49:37 GMT", "120", "1e9", "99999999999"),
)
_SIZES = (b"-1", b"ffffffffffffffff", b"1_0", b"0x10", b"", b"zz", b"1;" + b"x" * 200, b"9" * 5_000)


class _Answer(io.RawIOBase):
    """A response that arrives in pieces and may end with an error."""

    def __init__(self, data: bytes, at_a_time: int, end: Exception | None) -> None:
        self._stream, self._at_a_time, self._end = io.BytesIO(data), at_a_time, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._stream.read(min(len(buffer), self._at_a_time))
        if not part and self._end:
            raise self._end
        buffer[: len(part)] = part
        return len(part)


class _Wire:
    """A socket that responds to the request that was sent."""

    def __init__(self, choices: Choices) -> None:
        self._choices, self._request = choices, b""

    def sendall(self, data: bytes) -> None:
        self._request += bytes(data)

    def makefile(self, *_: object, **__: object) -> io.BufferedReader:
        choices = self._choices
        data = _answer(choices, self._request)
        ends = (None, None, ConnectionResetError("reset"), TimeoutError("timed out"))
        return io.BufferedReader(_Answer(data, choices.pick((1 << 16, 700, 7)), choices.pick(ends)))

    def settimeout(self, _: object) -> None:
        pass

    def shutdown(self, _: object) -> None:
        pass

    def close(self) -> None:
        pass


def _answer(choices: Choices, request: bytes) -> bytes:
    """Returns the correct response to a request with random changes."""
    begin = 512 if b"Range: bytes=512-" in request else 0
    body, status = _CONTENT[begin:], b"206 Partial Content" if begin else b"200 OK"
    fields = {"Content-Length": str(len(body)), "ETag": '"1"'}
    if begin:
        fields["Content-Range"] = f"bytes {begin}-1023/1024"
    if choices.one_in(4):
        body = choices.pick((body[:300], body + b"x", body[::-1], b"", body * 200))
    if choices.one_in(4):
        sizes = (b"%x" % len(body), *_SIZES)
        body = choices.pick(sizes) + b"\r\n" + body + b"\r\n" + choices.pick((b"0", *_SIZES))
        body += b"\r\n" + choices.pick((b"", b"\r\n", b"A: b\r\n\r\n", b"x" * 70_000))
        fields = {"Transfer-Encoding": "chunked", "ETag": '"1"'}
    if choices.one_in(4):
        status = choices.pick(_STATUSES)
    lines = [b"HTTP/1.1 " + status]
    for _ in range(choices.below(4)):
        fields[choices.pick(_FIELDS)] = choices.pick((*_VALUES, *TEXTS))
    lines += [f"{name}: {value}".encode("utf-8", "surrogatepass") for name, value in fields.items()]
    if choices.one_in(12):
        lines[0] = choices.pick((b"HTTP/0.9 200", b"HTTP/2 200 OK", b"ICY 200", b"<html>", b""))
    if choices.one_in(12):
        lines *= choices.pick((2, 60))
    head = b"\r\n".join(lines)
    return (damaged(head, choices) if choices.one_in(4) else head) + b"\r\n\r\n" + body


@contextlib.contextmanager
def _network(choices: Choices) -> Iterator[None]:
    """Provides one host without https, and a clock that does not wait."""

    def connect(address: tuple[str, int], *_: object, **__: object) -> _Wire:
        if address[0] != _HOST or choices.one_in(16):
            raise ConnectionRefusedError("refused")
        return _Wire(choices)

    def refuse(connection: Any) -> None:
        raise NewConnectionError(connection, "refused")

    with ExitStack() as stack:
        for name, value in {
            "urllib3.util.connection.create_connection": connect,
            "urllib3.connection.HTTPSConnection.connect": refuse,
            "multibox.download.https.getproxies": dict,
            "time.sleep": lambda _: None,
        }.items():
            stack.enter_context(mock.patch(name, value))
        yield


def download(choices: Choices, folder: Path) -> None:
    """Downloads a file, which must equal the published file or be refused."""
    target, part = folder / _FILE.name, folder / f"{_FILE.name}.part"
    for path in (target, part):
        path.unlink(missing_ok=True)
    if choices.one_in(3):
        part.write_bytes(choices.pick((_CONTENT[:512], _CONTENT[:512], b"x" * 512, _CONTENT * 2)))
        origin = {"address": _FILE.addresses[0], "validator": choices.pick(('"1"', "", *TEXTS))}
        text = json.dumps(origin).encode()
        (folder / f"{part.name}.json").write_bytes(
            damaged(text, choices) if choices.one_in(4) else text
        )
    most = max(_FILE.size, part.stat().st_size if part.exists() else 0)
    output = io.StringIO()
    console = Console(file=output, width=200)
    with _network(choices), Progress(console=console, disable=True) as progress:
        try:
            fetch(_FILE, target, progress=progress, task=progress.add_task(""), policy=_POLICY)
        except DownloadError:
            assert not target.exists()
            assert not part.exists() or part.stat().st_size <= most
            raise
        finally:
            assert output.getvalue().replace("\n", "").isprintable()
    assert target.read_bytes() == _CONTENT
    assert not part.exists()
