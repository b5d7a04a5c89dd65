"""Runs the application in uvicorn: its socket, connections that stall, signals and log lines."""

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from multibox.errors import ConfigError, one_line
from multibox.processes.signals import CAUGHT

_MAX_CONNECTIONS = 800
# A client that sends its body too slowly should get an answer before the connection is closed.
_GRACE_SECONDS = 5.0


class _Connection(H11Protocol):
    """A connection that is closed if the client stalls, or if there are too many.

    uvicorn limits only the time between two requests.

    Attributes:
        seconds: Time in which a client must send a request, and in which it must take an answer.
    """

    seconds: float

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: Any = None
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        else:
            self._restart()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._restart()

    def _restart(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self.seconds, self._expire)

    def _expire(self) -> None:
        cycle = self.cycle
        working = cycle is not None and not cycle.response_complete and not cycle.more_body
        if working and not self.flow.write_paused:
            # The client waits for the service. The application limits that time.
            self._restart()
        else:
            self.transport.abort()


class _Server(uvicorn.Server):
    """A server that ends after a signal as after any other request to end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles signals. uvicorn would raise them again when all is done."""
        try:
            before = {number: signal.signal(number, self.handle_exit) for number in CAUGHT}
        except ValueError:  # Not the main thread.
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Lines(logging.Handler):
    """Prints each problem as one line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        text = f"{type(error).__name__}: {error}" if error else record.getMessage()
        self._say(one_line(text.strip()))


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        ConfigError: The address or the port cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port {port} does not exist", remedy="Use 0 to 65535")
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used ({error})", remedy="Change --port or --host"
        ) from None


def make_server(
    application: Any, *, timeout: float, say: Callable[[str], None], access_log: bool = False
) -> uvicorn.Server:
    """Returns a server, which `server.run(sockets=[...])` starts.

    Args:
        application: The ASGI application.
        timeout: Seconds that a client may take to send a request. When the server ends, unfinished
            requests have as much time.
        say: Prints a line about a problem.
        access_log: Whether to print a line for each request, too.
    """
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http=type("Connection", (_Connection,), {"seconds": timeout + _GRACE_SECONDS}),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=access_log,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(timeout)),
    )
    for name, level in (
        # Warnings are about requests of clients that are not HTTP.
        ("uvicorn.error", logging.ERROR),
        ("asyncio", logging.ERROR),
        ("uvicorn.access", logging.INFO),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [_Lines(say)] if access_log or "access" not in name else []
        logger.setLevel(level)
        logger.propagate = False
    return _Server(config)
