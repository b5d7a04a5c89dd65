"""A web server on this machine that does what a test tells it to, and otherwise what it should."""

import re
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer

from multibox.download.https import Policy

IMPATIENT = Policy(
    connect_s=5.0,
    read_s=0.3,
    slowest=1e5,
    attempts=3,
    backoff_s=0.0,
    http_hosts=frozenset({"127.0.0.1", "voc.invalid"}),
)


class Request(BaseHTTPRequestHandler):
    """One request; `number` counts from 1."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.requests.append(self)
        self.number = len(self.server.requests)
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        pass

    def start(self, status: int, **headers: object) -> None:
        """Sends status and headers; `Content_Length=3` is `Content-Length: 3`."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send(self, body: bytes, status: int = 200, **headers: object) -> None:
        self.start(status, **{"Content_Length": len(body)} | headers)
        self.wfile.write(body)

    def send_file(self, body: bytes, *, etag: str = '"1"') -> None:
        """Sends a file as RFC 9110 wants it."""
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted is None or self.headers.get("If-Range", etag) != etag:
            self.send(body, ETag=etag)
        elif (begin := int(wanted[1])) >= len(body):
            self.send(b"", 416, Content_Range=f"bytes */{len(body)}")
        else:
            size = len(body)
            self.send(
                body[begin:], 206, ETag=etag, Content_Range=f"bytes {begin}-{size - 1}/{size}"
            )


class Server(ThreadingHTTPServer):
    """Answers with a function and keeps the requests."""

    def __init__(self, answer: Callable[[Request], None]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answer = answer
        self.requests: list[Request] = []
        self.address = f"http://127.0.0.1:{self.server_port}"

    def server_bind(self) -> None:
        """Without http.server's look-up of this machine's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what many tests want."""


@contextmanager
def serve(answer: Callable[[Request], None], *, identity: Path | None = None) -> Iterator[Server]:
    """Yields a running server; with the file of a certificate and its key, one over https."""
    with Server(answer) as server:
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.address = f"https://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def make_identity(folder: Path) -> Path:
    """Returns a file with a key and a certificate for 127.0.0.1 that nobody else has signed."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out"]
    subprocess.run([*command.split(), *names, str(certificate)], check=True, capture_output=True)
    identity = folder / "identity.pem"
    identity.write_bytes(key.read_bytes() + certificate.read_bytes())
    return identity
