"""Ends all processes of a run as soon as one of them has ended or hangs.

Collective operations do not notice this by themselves: a process that waits for another one on a
GPU, or that works alone for a while, would wait for half an hour. What starts the processes does
not always help either:

- `torchrun` ends the processes of its own machine when one of them dies, but not those of other
  machines.
- `srun` by default lets the others run on.
- `mpirun` ends all when a process fails. Like the other two, it does not notice one that hangs.
- With each of them, every process prints an error of its own.

So every process keeps a connection to the first one, and a thread listens at both ends. The kernel
closes the connection when a process ends, for whatever reason. A process that ends by an error
sends the reason first. Then the first process prints the error, and all end with one exit status.
"""

import json
import multiprocessing
import os
import secrets
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any

from rich.console import Console

from multibox.errors import MultiboxError, ProcessError

TICK_SECONDS = 2.0
"""How often each process sends a sign of life."""

SILENT_TICKS = 150
"""A process that is silent for this many ticks, five minutes, counts as hanging. No call holds
Python's lock that long. A suspended process counts no ticks, so a whole run can be suspended."""

GONE_SECONDS = 20
"""A machine that acknowledges no data for this long counts as gone (Linux only)."""

SAME_ERROR_SECONDS = 1.0
"""How long the first process waits for its own error before it prints that of another one."""

PARTING_SECONDS = 10.0
"""How long a process that fails waits for the others to end."""

_WELCOME = b"\n"
"""The first process's answer to a process that has sent its token."""

HINT = "See what ended it. The same command line continues a training from its last checkpoint"


class _Peer:
    """The process at the other end of a connection.

    Attributes:
        connection: The socket.
        rank: The number of the process.
        rest: The beginning of a line that has not arrived completely.
        silence: Ticks since it last sent something.
        parted: Whether it has said that it ends.
    """

    def __init__(self, connection: socket.socket, rank: int) -> None:
        connection.settimeout(PARTING_SECONDS)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_SECONDS * 1000)
        self.connection, self.rank = connection, rank
        self.rest, self.silence, self.parted = b"", 0, False

    def say(self, message: dict[str, Any]) -> None:
        """Sends a message. If the peer is gone, the thread notices it."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Heartbeat:
    """The connections of this process: from the first process to all others, or to the first one.

    Use `listen` or `connect` to make one. Forked processes close their copies of the connections at
    once, so a worker that outlives its process does not keep them open.

    Attributes:
        token: A secret that all processes share. It differs after a restart.
    """

    def __init__(self, rank: int, token: str, peers: Iterable[_Peer]) -> None:
        self._rank, self.token = rank, token
        self._peers = list(peers)
        self._left = threading.Event()
        self._failing = False
        # Whoever holds this lock decides how this process ends: the thread with `_end`, or the main
        # thread with an error of its own.
        self._last_word = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._close)

    @classmethod
    def listen(
        cls, host: str, world_size: int, seconds: float, publish: Callable[[str], None]
    ) -> "Heartbeat":
        """Waits until all other processes have connected to this one, the first.

        Args:
            host: The name by which the others reach this process.
            world_size: The number of processes.
            seconds: The time limit.
            publish: Called with the address (port and secret token), to pass it to the others.

        Raises:
            OSError: This process cannot be connected to, or some processes did not connect.
        """
        local = host in ("localhost", "127.0.0.1")
        both = not local and socket.has_dualstack_ipv6()
        server = socket.create_server(
            ("127.0.0.1" if local else "", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
        token, end = secrets.token_hex(16), time.monotonic() + seconds
        peers: dict[int, _Peer] = {}
        with server:
            publish(f"{server.getsockname()[1]} {token}")
            while missing := set(range(1, world_size)) - peers.keys():
                server.settimeout(max(0.01, end - time.monotonic()))
                connection, _ = server.accept()
                rank = _introduced(connection, token)
                if rank in missing:
                    peers[rank] = _Peer(connection, rank)
                    connection.sendall(_WELCOME)
                else:
                    connection.close()
        return cls(0, token, peers.values())

    @classmethod
    def connect(cls, host: str, address: str, rank: int) -> "Heartbeat":
        """Connects this process to the first one.

        Args:
            host: The name of the first process's machine.
            address: The address that the first process has published (port and secret token).
            rank: The number of this process.

        Raises:
            OSError: The first process cannot be reached, or the address is that of an earlier run.
        """
        port, token = address.split()
        connection = socket.create_connection((host, int(port)), timeout=GONE_SECONDS)
        try:
            connection.sendall(f"{rank} {token}\n".encode())
            if connection.recv(len(_WELCOME)) != _WELCOME:
                raise ConnectionRefusedError("the first process did not accept the connection")
        except OSError:
            connection.close()
            raise
        return cls(rank, token, [_Peer(connection, 0)])

    def leave(self) -> None:
        """Tells the others that this process is done. From now on they may end without it."""
        self._left.set()
        self._tell({"code": 0})

    def fail(self, error: BaseException) -> None:
        """Ends the others with this process, which ends by an error.

        Returns when this process may raise its error. If another process failed first, this
        process ends here.
        """
        if isinstance(error, RuntimeError | ProcessError):
            # A collective fails when another process dies. The thread is about to notice that.
            self._thread.join(PARTING_SECONDS)
        code, reason = _last_words(error)
        self._failing = True
        if self._rank == 0:
            self._last_word.acquire()
            self._left.set()
        elif code == 1:
            # A bug: only this process knows the place, and the first process prints no traceback.
            traceback.print_exception(error)
        self._tell({"code": code, "reason": reason})
        self._thread.join(PARTING_SECONDS)
        # The exit itself can hang, in code that waits for a GPU.
        signal.alarm(int(PARTING_SECONDS))

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in list(self._peers):
            peer.say(message)
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Listens until all peers have closed their connections."""
        beat = time.monotonic() + TICK_SECONDS
        while self._peers:
            connections = [peer.connection for peer in self._peers]
            ready = wait(connections, max(0.0, beat - time.monotonic()))
            for peer in list(self._peers):
                if peer.connection in ready:
                    self._read(peer)
            if time.monotonic() >= beat:
                beat = time.monotonic() + TICK_SECONDS
                for peer in list(self._peers):
                    peer.say({})
                    peer.silence += 1
                    if peer.silence > SILENT_TICKS:
                        seconds = SILENT_TICKS * TICK_SECONDS
                        self._judge(peer, f"hangs: no sign of life for {seconds:g} seconds")

    def _read(self, peer: _Peer) -> None:
        try:
            received = peer.connection.recv(65536)
        except OSError:
            received = b""
        peer.silence = 0
        *lines, peer.rest = (peer.rest + received).split(b"\n")
        try:
            messages = [_parsed(line) for line in lines]
        except (ValueError, RecursionError):
            # A damaged message means that the connection cannot be used any more.
            messages, received = [], b""
        for message in messages:
            if "code" in message:
                peer.parted = True
            if message.get("code") and self._rank == 0:
                # If all processes find the same error, the first one prints its own.
                self._left.wait(SAME_ERROR_SECONDS)
                self._end(message["code"], f"process {peer.rank}: {message.get('reason')}")
            elif message.get("code"):
                self._end(message["code"], "")
        if not received:
            self._peers.remove(peer)
            peer.connection.close()
            if not peer.parted and not self._failing:
                self._judge(peer, "has ended without a word")

    def _judge(self, peer: _Peer, finding: str) -> None:
        error = ProcessError(f"process {peer.rank} {finding}", remedy=HINT)
        self._end(error.exit_code, str(error))

    def _end(self, code: int, message: str) -> None:
        """Prints a message and ends this process, whatever the main thread is doing.

        The first process ends the others, too. If this process is ending already, nothing happens.
        """
        if self._left.is_set() or not self._last_word.acquire(blocking=False):
            return
        if message:
            console = Console(stderr=True)
            console.show_cursor()
            console.print("[bold red]error:[/]", end=" ")
            console.print(message, markup=False, highlight=False, soft_wrap=True)
        if self._rank == 0:
            self._tell({"code": code, "reason": message})
            # A socket that closes with unread data drops what it has not sent yet.
            for peer in self._peers:
                peer.connection.settimeout(SAME_ERROR_SECONDS)
                with suppress(OSError):
                    while peer.connection.recv(65536):
                        pass
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(code)

    def _close(self) -> None:
        for peer in self._peers:
            peer.connection.close()


def _introduced(connection: socket.socket, token: str) -> int | None:
    """Returns the rank of a process that has just connected; None if it has not sent the token."""
    connection.settimeout(GONE_SECONDS)
    with suppress(OSError, ValueError), connection.makefile("rb", buffering=0) as line:
        rank, word = line.readline(100).split()
        if secrets.compare_digest(word, token.encode()):
            return int(rank)
    return None


def _last_words(error: BaseException) -> tuple[int, str]:
    """Returns the exit status, and the reason to send to the other processes."""
    if isinstance(error, MultiboxError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "was interrupted."
    return 1, f"{type(error).__name__}: {error}"


def _parsed(line: bytes) -> dict[str, Any]:
    """Returns a message: an object that may have an integer `code`.

    Raises:
        ValueError: It is not such an object.
        RecursionError: It is nested too deeply.
    """
    message = json.loads(line)
    if not isinstance(message, dict) or type(message.get("code", 0)) is not int:
        raise ValueError
    return message
