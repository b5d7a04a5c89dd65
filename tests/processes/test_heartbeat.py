import queue
import socket
import threading

import pytest

from multibox.processes.heartbeat import Heartbeat


def first_of(world_size: int, seconds: float) -> tuple[threading.Thread, str, list[object]]:
    """Listens in a thread, which returns what it makes or raises; and the address."""
    addresses, found = queue.Queue[str](), list[object]()

    def listen() -> None:
        try:
            found.append(Heartbeat.listen("localhost", world_size, seconds, addresses.put))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    return thread, addresses.get(timeout=10), found


@pytest.mark.parametrize("words", [b"1 wrong\n", b"\xff \xe4\n", b"no end" * 99, b""])
def test_strangers_are_not_taken_for_a_process(words: bytes) -> None:
    thread, address, found = first_of(2, seconds=30.0)
    with socket.create_connection(("127.0.0.1", int(address.split()[0]))) as stranger:
        stranger.sendall(words)
    other = Heartbeat.connect("localhost", address, 1)
    thread.join(timeout=10)
    (first,) = found
    assert isinstance(first, Heartbeat)
    for heartbeat in (first, other):
        heartbeat.leave()
    for heartbeat in (first, other):
        heartbeat._thread.join(timeout=10)
        assert not heartbeat._thread.is_alive()


@pytest.mark.parametrize("words", [b"[" * 100_000, b"{", b"[]", b'{"code": "x"}', b"\xff"])
def test_a_damaged_message_is_a_lost_connection(
    words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = queue.Queue[tuple[int, str]]()
    monkeypatch.setattr(Heartbeat, "_end", lambda _, code, message: ended.put((code, message)))
    thread, address, found = first_of(2, seconds=30.0)
    port, token = address.split()
    with socket.create_connection(("127.0.0.1", int(port))) as peer:
        peer.sendall(f"1 {token}\n".encode() + words + b"\n")
        code, message = ended.get(timeout=10)
    assert code == 8
    assert "process 1 has ended without a word" in message
    thread.join(timeout=10)
    assert isinstance(found[0], Heartbeat)
    found[0]._thread.join(timeout=10)
    assert not found[0]._thread.is_alive()


def test_a_process_that_does_not_connect_is_not_waited_for_for_ever() -> None:
    thread, _, found = first_of(2, seconds=0.2)
    thread.join(timeout=10)
    assert isinstance(found[0], TimeoutError)


def test_the_address_of_an_earlier_attempt_is_refused() -> None:
    """torchrun keeps the store, and with it an address whose port another run may have by now."""
    thread, address, found = first_of(2, seconds=30.0)
    port, token = address.split()
    with pytest.raises(OSError, match="did not accept"):
        Heartbeat.connect("localhost", f"{port} {token[::-1]}", 1)
    other = Heartbeat.connect("localhost", address, 1)
    thread.join(timeout=10)
    (first,) = found
    assert isinstance(first, Heartbeat)
    assert first.token == other.token == token
    for heartbeat in (first, other):
        heartbeat.leave()
    for heartbeat in (first, other):
        heartbeat._thread.join(timeout=10)
