"""Shows the page of a report in a browser on the same machine.

The server answers only this machine, and only with this one file.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from multibox.errors import ConfigError

LOOPBACK = "127.0.0.1"


class _OnePage(BaseHTTPRequestHandler):
    """Answers requests for `/` with a file, which is read again for each of them."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, page: Path) -> None:
        self._page = page
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answers a request."""
        host = self.headers.get("Host", "").rpartition(":")[0]
        if host not in (LOOPBACK, "localhost"):
            # A name of another site that leads here would let that site read the page.
            return self.send_error(HTTPStatus.FORBIDDEN)
        if self.path != "/":
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            content = self._page.read_bytes()
        except OSError:
            # The page is being replaced.
            return self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@contextmanager
def serving(page: Path, port: int) -> Iterator[str]:
    """Serves one page on the loopback interface, as a context manager.

    Args:
        page: The file.
        port: The port. 0: any free one.

    Yields:
        The address of the page.

    Raises:
        ConfigError: The port cannot be used.
    """
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(_OnePage, page=page))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"port {port} cannot be used ({error})", remedy="Change --port") from None
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"{LOOPBACK}:{server.server_address[1]}"
        finally:
            server.shutdown()
