import pytest
from unreliable_server import IMPATIENT, Request, serve

from multibox.download import address
from multibox.download.address import read_address
from multibox.errors import DownloadError


def test_what_an_address_sends_is_returned_and_failures_are_tried_again() -> None:
    def answer(request: Request) -> None:
        if request.number == 1:
            request.send(b"", 503)
        elif request.number == 2:
            request.send(b"hel", Content_Length=5)
        else:
            request.send(b"hello")

    with serve(answer) as server:
        assert read_address(f"{server.address}/a.jpg", policy=IMPATIENT) == b"hello"


def test_endless_data_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_MAX_BYTES", 1 << 16)

    def answer(request: Request) -> None:
        request.start(200)
        while True:
            request.wfile.write(b"x" * 4096)

    with serve(answer) as server, pytest.raises(DownloadError, match="sends more than 65536"):
        read_address(server.address, policy=IMPATIENT)


@pytest.mark.parametrize("text", ["https://[", "ftp://127.0.0.1/x", "http:///x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(DownloadError):
        read_address(text, policy=IMPATIENT)


def test_a_missing_file_and_a_redirect_to_another_plain_host_are_refused() -> None:
    def answer(request: Request) -> None:
        if request.path == "/moved":
            request.send(b"", 302, Location="http://example.invalid/x")
        else:
            request.send(b"", 404)

    with serve(answer) as server:
        for path, reason in (("/moved", "is not https"), ("/missing", "404")):
            with pytest.raises(DownloadError, match=reason):
                read_address(server.address + path, policy=IMPATIENT)
