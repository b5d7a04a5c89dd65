"""Downloads a published file: resumes a partial download, and checks the SHA-256 before use.

Received bytes are written to `<name>.part`. The file gets its final name when its size and SHA-256
match the published ones. `<name>.part.json` records the version of the file that the part belongs
to, so that a server resumes only the same version (RFC 9110, If-Range). Only the SHA-256 decides
whether the file is accepted.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.filesize import decimal
from rich.progress import Progress, TaskID
from urllib3 import BaseHTTPResponse

from multibox.download.catalogue import Published
from multibox.download.https import POLICY, Policy, TransferFailed, chunks, open_address
from multibox.errors import DownloadError, StorageError, one_line

_HEADWAY = 1 << 16
"""Bytes of progress after which a failed attempt does not count as a failure."""
_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")


class _Part:
    """A partial download, and the version of the file that it belongs to."""

    def __init__(self, target: Path) -> None:
        self.file = target.with_name(f"{target.name}.part")
        self._origin = target.with_name(f"{target.name}.part.json")

    def length(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def validator(self, address: str) -> str:
        """Returns the version of the part; empty if it is unknown or came from another address."""
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
    """Downloads a file, and resumes an earlier call. An existing file is only checked.

    Args:
        published: The file and its addresses, which are tried in order.
        target: Path for the file. The folder must exist, and no other process may use it.
        progress: Shows the received bytes and, on its console, why an attempt failed.
        task: The task of `progress` to update.
        policy: Timeouts and retries.

    Raises:
        DownloadError: No address provides the file, or an existing file differs from it.
        StorageError: The file cannot be written.
    """
    if target.exists():
        if _matches(target, published):
            return
        raise DownloadError(
            f"is not the published file (SHA-256 {published.sha256})",
            file=target,
            remedy="Remove it, and run the same command to download it",
        )
    part, refusals = _Part(target), []
    for address in published.addresses:
        try:
            _fetch_from(address, published, part, policy, progress, task)
        except DownloadError as error:
            redirected = "" if error.file == address else f" (redirected to {error.file})"
            refusals.append(f"{address}{redirected}: {error.reason}")
        else:
            part.finish(target)
            return
    raise DownloadError(
        "cannot be downloaded: " + "; ".join(refusals),
        file=published.name,
        remedy=f"Try again later, or download it in another way and save it as {target}",
    )


def _fetch_from(
    address: str,
    published: Published,
    part: _Part,
    policy: Policy,
    progress: Progress,
    task: TaskID,
) -> None:
    """Completes the part from one address, in several attempts if necessary."""
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
            raise TransferFailed("the parts do not make up the published file")
        except TransferFailed as broken:
            # Compared with the furthest position, because restarts would always seem to progress.
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
    """Appends what an address sends to the part. Returns whether it sent the whole file."""
    length, version = part.length(), part.validator(address)
    headers = {"Range": f"bytes={length}-"} if 0 < length < published.size else {}
    if headers and version:
        headers["If-Range"] = version
    with open_address(address, headers, policy) as response:
        begin = _begin(response, address, published, length if headers else 0)
        if response.status == 416 or begin < 0:
            part.discard()
            raise TransferFailed("did not resume where the transfer stopped")
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
            f"sends more than the published {decimal(published.size)}", file=address
        )
    if position < published.size:
        raise TransferFailed(f"ended after {decimal(position)} of {decimal(published.size)}")
    return begin == 0


def _begin(response: BaseHTTPResponse, address: str, published: Published, asked: int) -> int:
    """Returns the position in the file at which a response begins; -1 if it cannot be used."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("sends an encoding that was not requested", file=address)
    if response.status == 206:
        match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        fits = (asked, published.size - 1, published.size)
        return asked if asked and match and tuple(map(int, match.groups())) == fits else -1
    length = response.headers.get("Content-Length")
    if response.status == 200 and length is not None and length != str(published.size):
        raise DownloadError(f"has {length} bytes, not {published.size}", file=address)
    return 0


def _validator(response: BaseHTTPResponse) -> str:
    """Returns an identifier of the file's version. If-Range does not allow a weak ETag."""
    etag = response.headers.get("ETag", "")
    return _sendable(etag if etag.startswith('"') else response.headers.get("Last-Modified", ""))


def _sendable(text: str) -> str:
    """Returns the text if a request header can contain it; otherwise an empty text."""
    return text if text.isascii() and text.isprintable() else ""


def _matches(file: Path, published: Published) -> bool:
    """Returns whether a file has the published size and SHA-256."""
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
            remedy="Check that the folder is writable and that the disk is not full. Run the same "
            "command to resume",
        ) from None
