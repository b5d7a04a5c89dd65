"""Opens addresses over https, with redirects, proxies, timeouts and plain error messages.

No other module opens a network connection.
"""

import contextlib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from rich.filesize import decimal
from urllib3 import BaseHTTPResponse, exceptions

from multibox.errors import DownloadError

_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER_S = 120
_CHUNK = 1 << 20
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Timeouts and retries of a transfer."""

    connect_s: float = 20.0
    """Timeout for connecting to a server, in seconds."""
    read_s: float = 60.0
    """Timeout for receiving data, and the period over which the rate is measured, in seconds."""
    slowest: float = 1024.0
    """Minimum rate in bytes per second. A slower transfer is stopped."""
    attempts: int = 5
    """Maximum number of failures in a row for an address."""
    backoff_s: float = 1.0
    """Wait after the first failure in seconds. It doubles after each further failure."""
    http_hosts: frozenset[str] = frozenset()
    """Hosts that may be used without encryption, for tests."""


POLICY = Policy()


class TransferFailed(Exception):  # noqa: N818  # the transfer is tried again
    """An attempt failed, but another attempt may succeed."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@contextmanager
def open_address(
    address: str, headers: dict[str, str], policy: Policy
) -> Iterator[BaseHTTPResponse]:
    """Yields the response to a GET request after redirects. Its status is 200, 206 or 416.

    Raises:
        DownloadError: There is no file at the address, or the connection is not https with a
            trusted certificate.
        TransferFailed: The request failed, but another attempt may succeed.
    """
    start = address
    for _ in range(_MAX_REDIRECTS + 1):
        with _connections(address, policy) as connections:
            response = _get(connections, address, headers, policy)
            with contextlib.closing(response):
                location = response.get_redirect_location()
                if not location:
                    _check_status(response, address)
                    yield response
                    return
        try:
            address = urljoin(address, location)
        except ValueError:
            raise DownloadError(
                f"redirects to {location[:100]!r}, which is not a valid address", file=address
            ) from None
    raise DownloadError(f"redirects more than {_MAX_REDIRECTS} times", file=start)


def _connections(address: str, policy: Policy) -> urllib3.PoolManager:
    """Returns connections to an address, through the proxy that the environment names, if any.

    The trusted certificates are OpenSSL's. SSL_CERT_FILE replaces them.
    """
    try:
        parts = urlsplit(address)
        host, place = parts.hostname or "", parts.netloc
    except ValueError:
        raise DownloadError("is not a valid address", file=address) from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in policy.http_hosts):
        raise DownloadError("is not https; other addresses are not opened", file=address)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(place):
        return urllib3.PoolManager()
    try:
        known = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        login = (
            f"{unquote(known.username)}:{unquote(known.password or '')}" if known.username else ""
        )
        own = urllib3.make_headers(proxy_basic_auth=login) if login else None
        return urllib3.ProxyManager(known.geturl(), proxy_headers=own)
    except (ValueError, exceptions.HTTPError):
        # The address of a proxy may contain a password.
        raise DownloadError(
            "the address of the proxy in the environment is not valid", file=address
        ) from None


def _get(
    connections: urllib3.PoolManager, address: str, headers: dict[str, str], policy: Policy
) -> BaseHTTPResponse:
    try:
        return connections.request(
            "GET",
            address,
            headers={"User-Agent": "multibox", "Accept-Encoding": "identity", **headers},
            timeout=urllib3.Timeout(connect=policy.connect_s, read=policy.read_s),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
    except exceptions.HTTPError as error:
        reason = _reason(error, policy)
        cause = error.args[0] if error.args else None
        if isinstance(cause, ssl.SSLCertVerificationError) or isinstance(error, ValueError):
            raise DownloadError(reason, file=address) from None
        raise TransferFailed(reason) from None


def _check_status(response: BaseHTTPResponse, address: str) -> None:
    if response.status in (200, 206, 416):
        return
    reason = f"responds with {response.status} {response.reason or ''}".strip()
    if response.status not in _TRANSIENT:
        raise DownloadError(reason, file=address)
    after = response.headers.get("Retry-After", "")
    raise TransferFailed(
        reason, min(float(after), _MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0
    )


def _reason(error: Exception, policy: Policy) -> str:
    """Returns a plain description of an error of urllib3."""
    match error:
        case exceptions.NameResolutionError():
            return "the host name cannot be resolved"
        case exceptions.NewConnectionError():
            return "cannot connect"
        case exceptions.ConnectTimeoutError():
            return f"did not answer within {policy.connect_s:g} s"
        case exceptions.ReadTimeoutError():
            return f"sent nothing for {policy.read_s:g} s"
        case exceptions.ProxyError():
            return "the proxy refuses the connection"
        case exceptions.SSLError():
            return f"has no trusted encryption ({error})"
        case exceptions.ProtocolError() | OSError():
            return "the connection was cut"
    return f"cannot be read ({error})"


def chunks(response: BaseHTTPResponse, policy: Policy) -> Iterator[bytes]:
    """Yields the body of a response as it arrives.

    Raises:
        TransferFailed: The connection was cut or is too slow.
    """
    since, arrived = time.monotonic(), 0
    while True:
        try:
            # `read` would wait until the chunk is full.
            chunk = response.read1(_CHUNK, decode_content=False)
        except (exceptions.HTTPError, OSError) as error:
            raise TransferFailed(_reason(error, policy)) from None
        if not chunk:
            return
        yield chunk
        arrived += len(chunk)
        seconds = time.monotonic() - since
        if seconds >= policy.read_s:
            if arrived < policy.slowest * seconds:
                raise TransferFailed(f"sent {decimal(arrived)} in {seconds:.0f} s")
            since, arrived = time.monotonic(), 0
