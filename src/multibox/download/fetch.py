"""Fetches a published file: resumed where it was cut, and checked before it is used.

What arrives goes to `<name>.part`; the file gets its name when its size and its SHA-256 are the
published ones. `<name>.part.json` notes which version of the file the part is of, so that a server
continues it only if it still has that version (RFC 9110, If-Range). Whatever a server claims, the
SHA-256 decides.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.progress import Progress, TaskID
from urllib3 import BaseHTTPResponse

from multibox.download.https import POLICY, Broken, Policy, chunks, open_address
from multibox.errors import DownloadError, StorageError, one_line

_HEADWAY = 1 << 16
"""Bytes that make a broken attempt a useful one, so that it does not count."""
_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


class Published(NamedTuple):
    """A file as it was published.

    Attributes:
        name: Of the file.
        size: In bytes.
        sha256: Of its content, in hexadecimal.
        addresses: Where it is to be had, the best first.
    """

    name: str
    size: int
    sha256: str
    addresses: tuple[str, ...]


class _Part:
    """What has arrived of a file, and the version that it is of."""

    def __init__(self, target: Path) -> None:
        self.file = target.with_name(f"{target.name}.part")
        self._origin = target.with_name(f"{target.name}.part.json")

    def length(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def validator(self, address: str) -> str:
        """Returns the version; empty if it is unknown or another address's."""
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
            return _sendable(str(origin["validator"])) if origin["address"] == address else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def note(self, address: str, validator: str) -> None:
        text = json.dumps({"address": address, "validator": validator})
        self._origin.write_text(text, encoding="utf-8")

    def discard(self) -> None:
        with _writing(self.file):
            self.file.unlink(missing_ok=True)
            self._origin.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        with _writing(target):
            self.file.replace(target)
            self._origin.unlink(missing_ok=True)


def fetch(
    published: Published,
    target: Path,
    *,
    progress: Progress,
    task: TaskID,
    policy: Policy = POLICY,
) -> None:
    """Fetches a file, from where an earlier call stopped; one that is there is only checked.

    Args:
        published: The file and its addresses, which are tried in turn.
        target: Its path, in a folder that exists and that no other process works in.
        progress: Shows the bytes, and on its console why an attempt failed.
        task: The bar of `progress` to move.
        policy: The transfer's patience.

    Raises:
        DownloadError: No address gives it, or the file that is there is another one.
        StorageError: It cannot be written.
    """
    if target.exists():
        if _matches(target, published):
            return
        raise DownloadError(
            f"is not the published file (SHA-256 {published.sha256})",
            file=target,
            remedy="Remove it; the same line again downloads it",
        )
    part, refusals = _Part(target), []
    for address in published.addresses:
        try:
            _fetch_from(address, published, part, policy, progress, task)
        except DownloadError as error:
            leads = "" if error.file == address else f"leads to {error.file}, which "
            refusals.append(f"{address} {leads}{error.reason}")
        else:
            part.finish(target)
            return
    raise DownloadError(
        "cannot be downloaded: " + "; ".join(refusals),
        file=published.name,
        remedy=f"Try again later, or get it by other means and put it at {target}",
    )


def _fetch_from(
    address: str,
    published: Published,
    part: _Part,
    policy: Policy,
    progress: Progress,
    task: TaskID,
) -> None:
    """Completes the part from one address, in as many attempts as that takes."""
    failures, was_wrong, furthest = 0, False, part.length()
    while True:
        try:
            whole = part.length() != published.size and _transfer(
                address, published, part, policy, progress, task
            )
            progress.update(task, description=f"checking {published.name}")
            if _matches(part.file, published):
                return
            part.discard()
            if whole or was_wrong:
                raise DownloadError(f"its SHA-256 is not {published.sha256}", file=address)
            was_wrong = True
            raise Broken("what was put together is not the published file")
        except Broken as broken:
            # Against the furthest, lest a part that is begun anew counts as progress for ever.
            failures = 1 if part.length() - furthest >= _HEADWAY else failures + 1
            furthest = max(furthest, part.length())
            if failures >= policy.attempts:
                raise DownloadError(f"{broken}, {failures} times", file=address) from None
            wait_s = max(broken.wait_s, policy.backoff_s * 2 ** (failures - 1))
            text = f"{published.name}: {broken}; next attempt in {wait_s:.0f} s"
            progress.console.print(one_line(text), markup=False, highlight=False)
            time.sleep(wait_s)


def _transfer(
    address: str,
    published: Published,
    part: _Part,
    policy: Policy,
    progress: Progress,
    task: TaskID,
) -> bool:
    """Adds what an address sends to the part; returns whether the part is of one piece."""
    length, version = part.length(), part.validator(address)
    headers = {"Range": f"bytes={length}-"} if 0 < length < published.size else {}
    if headers and version:
        headers["If-Range"] = version
    with open_address(address, headers, policy) as response:
        begin = _begin(response, address, published, length if headers else 0)
        if response.status == 416 or begin < 0:
            part.discard()
            raise Broken("did not continue where the transfer stopped")
        position = begin
        with _writing(part.file), part.file.open("ab") as file:
            file.truncate(begin)
            part.note(address, _validator(response))
            progress.reset(task, completed=begin, description=published.name)
            for chunk in chunks(response, policy):
                position += len(chunk)
                if position > published.size:
                    break
                file.write(chunk)
                progress.advance(task, len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if position > published.size:
        part.discard()
        raise DownloadError(
            f"sends more than the {decimal(published.size)} published", file=address
        )
    if position < published.size:
        raise Broken(f"ended after {decimal(position)} of {decimal(published.size)}")
    return begin == 0


def _begin(response: BaseHTTPResponse, address: str, published: Published, asked: int) -> int:
    """Returns at which byte of the file an answer begins; below 0 if it is of no use."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("sends an encoding that was not asked for", file=address)
    if response.status == 206:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        fits = (asked, published.size - 1, published.size)
        return asked if asked and match and tuple(map(int, match.groups())) == fits else -1
    length = response.headers.get("Content-Length")
    if response.status == 200 and length is not None and length != str(published.size):
        raise DownloadError(f"has {length} bytes, not {published.size}", file=address)
    return 0


def _validator(response: BaseHTTPResponse) -> str:
    """Returns what tells one version of a file from another; If-Range takes no weak ETag."""
    etag = response.headers.get("ETag", "")
    return _sendable(etag if etag.startswith('"') else response.headers.get("Last-Modified", ""))


def _sendable(text: str) -> str:
    """Returns what a request's header can hold; else nothing: the SHA-256 decides."""
    return text if text.isascii() and text.isprintable() else ""


def _matches(file: Path, published: Published) -> bool:
    """Whether a file is the published one."""
    try:
        if file.stat().st_size != published.size:
            return False
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == published.sha256
    except OSError as error:
        raise StorageError(f"cannot be read ({error.strerror})", file=file) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot be written ({error.strerror})",
            file=path,
            remedy="See that the folder is writable and the disk not full; the same line again "
            "goes on where this one stopped",
        ) from None
