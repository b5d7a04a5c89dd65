"""Opens addresses over https: redirects, proxies, timeouts, and what went wrong in plain words.

The only module that opens a connection.
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
    """How much patience a transfer has, and with whom."""

    connect_s: float = 20.0
    """How long a server may take to answer a connection."""
    read_s: float = 60.0
    """How long it may send nothing, and over how long its rate is measured."""
    slowest: float = 1024.0
    """Bytes per second below which a transfer is given up."""
    attempts: int = 5
    """How often an address may fail in a row."""
    backoff_s: float = 1.0
    """The wait after the first failure; doubled after each further one."""
    http_hosts: frozenset[str] = frozenset()
    """Hosts that need no encryption; for tests."""


POLICY = Policy()


class Broken(Exception):  # noqa: N818  # the transfer goes on
    """An attempt that failed in a way that another one need not."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@contextmanager
def open_address(
    address: str, headers: dict[str, str], policy: Policy
) -> Iterator[BaseHTTPResponse]:
    """Yields the answer to a GET, after redirects; its status is 200, 206 or 416.

    Raises:
        DownloadError: The address leads to no file, or not by https with a trusted certificate.
        Broken: It did not work this time.
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
            raise DownloadError(f"redirects to {location[:100]!r}", file=address) from None
    raise DownloadError(f"redirects more than {_MAX_REDIRECTS} times", file=start)


def _connections(address: str, policy: Policy) -> urllib3.PoolManager:
    """Returns what connects to an address, through the environment's proxy where it names one.

    The certificates trusted are OpenSSL's own, which SSL_CERT_FILE replaces.
    """
    try:
        parts = urlsplit(address)
        host, place = parts.hostname or "", parts.netloc
    except ValueError:
        raise DownloadError("is not an address", file=address) from None
    if parts.scheme != "https" and not (parts.scheme == "http" and host in policy.http_hosts):
        raise DownloadError("is not https, so it is not followed", file=address)
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
        # The address of a proxy may hold a password.
        raise DownloadError(
            "the proxy that the environment names is of no use", file=address
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
        raise Broken(reason) from None


def _check_status(response: BaseHTTPResponse, address: str) -> None:
    if response.status in (200, 206, 416):
        return
    reason = f"answers {response.status} {response.reason or ''}".strip()
    if response.status not in _TRANSIENT:
        raise DownloadError(reason, file=address)
    after = response.headers.get("Retry-After", "")
    raise Broken(reason, min(float(after), _MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0)


def _reason(error: Exception, policy: Policy) -> str:
    """Returns what a library's error means to a person."""
    match error:
        case exceptions.NameResolutionError():
            return "its host is not known"
        case exceptions.NewConnectionError():
            return "cannot be connected to"
        case exceptions.ConnectTimeoutError():
            return f"did not answer within {policy.connect_s:g} s"
        case exceptions.ReadTimeoutError():
            return f"sent nothing for {policy.read_s:g} s"
        case exceptions.ProxyError():
            return "the proxy does not let through to it"
        case exceptions.SSLError():
            return f"its encryption is not trusted ({error})"
        case exceptions.ProtocolError() | OSError():
            return "the connection was cut"
    return f"cannot be read ({error})"


def chunks(response: BaseHTTPResponse, policy: Policy) -> Iterator[bytes]:
    """Yields a body as it comes, as long as it comes fast enough."""
    since, arrived = time.monotonic(), 0
    while True:
        try:
            # `read` would wait for a full chunk, however slowly it comes.
            chunk = response.read1(_CHUNK, decode_content=False)
        except (exceptions.HTTPError, OSError) as error:
            raise Broken(_reason(error, policy)) from None
        if not chunk:
            return
        yield chunk
        arrived += len(chunk)
        seconds = time.monotonic() - since
        if seconds >= policy.read_s:
            if arrived < policy.slowest * seconds:
                raise Broken(f"sent {decimal(arrived)} in {seconds:.0f} s")
            since, arrived = time.monotonic(), 0
