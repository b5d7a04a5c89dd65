"""Notices when another process of a run has ended, and ends this one too.

Collectives do not: who waits on a GPU, or works alone for a while, learns of a dead process after
minutes or never. So every process keeps a connection to the first one, at which a thread listens.
The kernel closes it when a process ends, however that happens. A process that ends of itself says
why beforehand; the first one tells the user, and all end with the same exit status.
"""

import json
import multiprocessing
import os
import secrets
import selectors
import signal
import socket
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

from rich.console import Console

from multibox.errors import MultiboxError, ProcessError

TICK_SECONDS = 2.0
"""How often each process says that it is there."""

SILENT_TICKS = 150
"""After so many without a word, five minutes, a process counts as hanging. No call holds the
interpreter for that long; a suspended process counts no ticks, so a run may be suspended whole."""

GONE_SECONDS = 20
"""After so long without an answer of its kernel, a machine counts as gone."""

CHORUS_SECONDS = 1.0
"""How long the first process waits whether it has the same to say as another."""

PARTING_SECONDS = 10.0
"""How long a process that ends waits for the others to hear it."""

_LONGEST = 1 << 20
"""Bytes of a line; nothing of ours is as long."""

HINT = "See what ended it; the same command line continues a training from its last checkpoint"


class _Peer:
    """The other end of a connection.

    Attributes:
        connection: To it.
        rank: Its number; None until it has said so.
        rest: The beginning of a line.
        silence: Ticks since its last word.
        parted: Whether it has taken its leave.
    """

    def __init__(self, connection: socket.socket, rank: int | None) -> None:
        connection.settimeout(PARTING_SECONDS)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_SECONDS * 1000)
        self.connection, self.rank = connection, rank
        self.rest, self.silence, self.parted = b"", 0, False

    def say(self, message: dict[str, Any]) -> None:
        """Sends a message; a peer that is gone is noticed by who listens."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Liveness:
    """This process's connections: of the first process to all others, of the others to it.

    Made by `listen` or `connect`. Forked processes let go of them at once, so that a loader worker
    that outlives its rank does not make it look alive.
    """

    def __init__(self, rank: int, world_size: int, server: socket.socket | None) -> None:
        self._rank, self._world_size, self._server = rank, world_size, server
        self._token = secrets.token_hex(16)
        self._peers: list[_Peer] = []
        self._selector = selectors.DefaultSelector()
        self._complete = threading.Event()
        self._left = threading.Event()
        self._failing = False
        # Whoever holds it has the last word in this process: the thread, or a failed main thread.
        self._last_word = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)
        os.register_at_fork(after_in_child=self._let_go)

    @classmethod
    def listen(cls, host: str, world_size: int) -> "Liveness":
        """Returns the first process's, which awaits the others at `address`.

        Raises:
            OSError: No connection can be awaited.
        """
        if host in ("localhost", "127.0.0.1"):
            server = socket.create_server(("127.0.0.1", 0))
        elif socket.has_dualstack_ipv6():
            server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", 0))
        liveness = cls(0, world_size, server)
        liveness._selector.register(liveness._listening(), selectors.EVENT_READ, None)
        liveness._thread.start()
        return liveness

    @classmethod
    def connect(cls, host: str, address: str, rank: int, world_size: int) -> "Liveness":
        """Returns another process's.

        Args:
            host: The first process's.
            address: Its `address`.
            rank: This process's.
            world_size: How many there are.

        Raises:
            OSError: The first process cannot be reached.
        """
        port, token = address.split()
        liveness = cls(rank, world_size, None)
        connection = socket.create_connection((host, int(port)), timeout=GONE_SECONDS)
        first = _Peer(connection, 0)
        first.say({"rank": rank, "token": token})
        liveness._meet(first)
        liveness._complete.set()
        liveness._thread.start()
        return liveness

    @property
    def address(self) -> str:
        """What the others need to connect besides the host: a port, and a word that admits."""
        return f"{self._listening().getsockname()[1]} {self._token}"

    def wait_for_all(self, seconds: float) -> None:
        """Returns when all are connected.

        Raises:
            ProcessError: Some do not come.
        """
        if not self._complete.wait(seconds):
            here = {0} | {peer.rank for peer in self._peers}
            missing = sorted(set(range(self._world_size)) - here)
            raise ProcessError(
                f"no word of process {', '.join(map(str, missing))} for {seconds:g} seconds",
                remedy="Start all processes of a run at once",
            )

    def leave(self) -> None:
        """Takes leave of the others: from now on they may end without this one."""
        self._left.set()
        self._tell({"code": 0})

    def fail(self, error: BaseException) -> None:
        """Lets the others end with this process, which ends by an error.

        Returns when this process may raise its error; ends it here where another one's was first.
        """
        if isinstance(error, RuntimeError | ProcessError):
            # A collective fails by the death of another process, of which the thread hears now.
            self._thread.join(PARTING_SECONDS)
        code, reason = _last_words(error)
        self._failing = True
        if self._rank == 0:
            self._last_word.acquire()
            self._left.set()
        elif code == 1:
            # A fault of the program, whose place only this process knows.
            traceback.print_exception(error)
        self._tell({"code": code, "reason": reason})
        self._thread.join(PARTING_SECONDS)
        # Should the exit itself hang, in what still waits for a GPU.
        signal.alarm(int(PARTING_SECONDS))

    def _listening(self) -> socket.socket:
        assert self._server is not None
        return self._server

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in list(self._peers):
            peer.say(message)
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Listens until all others have gone their way."""
        beat = time.monotonic() + TICK_SECONDS
        while self._peers or not self._complete.is_set():
            for key, _ in self._selector.select(max(0.0, beat - time.monotonic())):
                if key.data is None:
                    # It may have been closed by the last of those that were awaited.
                    with suppress(OSError):
                        self._meet(_Peer(self._listening().accept()[0], None))
                else:
                    self._read(key.data)
            if time.monotonic() >= beat:
                beat = time.monotonic() + TICK_SECONDS
                self._beat()

    def _beat(self) -> None:
        for peer in list(self._peers):
            peer.say({})
            peer.silence += 1
            if peer.rank is None and peer.silence > 1:
                self._drop(peer)
            elif peer.silence > SILENT_TICKS:
                self._judge(peer, f"hangs: no word for {SILENT_TICKS * TICK_SECONDS:g} seconds")

    def _meet(self, peer: _Peer) -> None:
        self._peers.append(peer)
        self._selector.register(peer.connection, selectors.EVENT_READ, peer)

    def _drop(self, peer: _Peer) -> None:
        self._peers.remove(peer)
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.connection.recv(65536)
        except OSError:
            received = b""
        peer.silence = 0
        *lines, peer.rest = (peer.rest + received).split(b"\n")
        try:
            for line in lines:
                self._hear(peer, json.loads(line))
        except (ValueError, KeyError, TypeError):
            received = b""
        if not received or len(peer.rest) > _LONGEST:
            self._drop(peer)
            if peer.rank is not None and not peer.parted and not self._failing:
                self._judge(peer, "has ended without a word")

    def _hear(self, peer: _Peer, message: dict[str, Any]) -> None:
        if peer.rank is None:
            if not secrets.compare_digest(message["token"], self._token):
                raise ValueError
            peer.rank = int(message["rank"])
            if len({known.rank for known in self._peers} - {None}) == self._world_size - 1:
                self._complete.set()
                self._selector.unregister(self._listening())
                self._listening().close()
        elif "code" in message:
            peer.parted = True
            if message["code"] and self._rank == 0:
                # Where all find the same fault, the first one speaks for itself.
                self._left.wait(CHORUS_SECONDS)
                self._end(message["code"], f"process {peer.rank}: {message['reason']}")
            elif message["code"]:
                self._end(message["code"], "")

    def _judge(self, peer: _Peer, finding: str) -> None:
        error = ProcessError(f"process {peer.rank} {finding}", remedy=HINT)
        self._end(error.exit_code, str(error))

    def _end(self, code: int, message: str) -> None:
        """Ends this process, which may be anywhere, and the others; the first one says why."""
        if self._left.is_set() or not self._last_word.acquire(blocking=False):
            return
        if message:
            console = Console(stderr=True)
            console.show_cursor()
            console.print("[bold red]error:[/]", end=" ")
            console.print(message, markup=False, highlight=False, soft_wrap=True)
        if self._rank == 0:
            self._tell({"code": code, "reason": message})
            # An end that leaves something unread would take back what is still on its way.
            for peer in self._peers:
                peer.connection.settimeout(CHORUS_SECONDS)
                with suppress(OSError):
                    while peer.connection.recv(65536):
                        pass
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(code)

    def _let_go(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in self._peers:
            peer.connection.close()


def _last_words(error: BaseException) -> tuple[int, str]:
    """Returns the exit status and what the others are told."""
    if isinstance(error, MultiboxError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "was interrupted."
    return 1, f"{type(error).__name__}: {error}"
