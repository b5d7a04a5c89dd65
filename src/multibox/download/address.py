"""Reads an image at an http or https address that the user names."""

import time
from dataclasses import replace
from urllib.parse import urlsplit

from multibox.download.https import POLICY, Policy, TransferFailed, chunks, open_address
from multibox.errors import DownloadError

_ATTEMPTS = 3
_MAX_BYTES = 1 << 28


def read_address(address: str, *, policy: Policy = POLICY) -> bytes:
    """Returns the file at an address.

    Without encryption, only the host that the address names is used. A server at an https address
    cannot redirect to http.

    Args:
        address: An http or https address.
        policy: Timeouts and retries.

    Raises:
        DownloadError: The file cannot be read, or has more than 256 MiB.
    """
    failures = 0
    while True:
        try:
            return _read(address, policy)
        except TransferFailed as broken:
            failures += 1
            if failures >= min(_ATTEMPTS, policy.attempts):
                raise DownloadError(f"{broken}, {failures} times", file=address) from None
            time.sleep(max(broken.wait_s, policy.backoff_s * 2 ** (failures - 1)))


def _read(address: str, policy: Policy) -> bytes:
    try:
        parts = urlsplit(address)
    except ValueError:
        raise DownloadError("is not a valid address", file=address) from None
    if parts.scheme.lower() == "http" and parts.hostname:
        policy = replace(policy, http_hosts=policy.http_hosts | {parts.hostname})
    content, deadline = bytearray(), time.monotonic() + 10 * policy.read_s
    with open_address(address, {}, policy) as response:
        if response.status != 200:
            raise DownloadError(f"responds with {response.status}", file=address)
        for chunk in chunks(response, policy):
            content += chunk
            if len(content) > _MAX_BYTES:
                raise DownloadError(f"sends more than {_MAX_BYTES} bytes", file=address)
            if time.monotonic() > deadline:
                raise TransferFailed(f"took more than {10 * policy.read_s:.0f} s")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) != len(content):
        raise TransferFailed(f"ended after {len(content)} of {length} bytes")
    return bytes(content)
