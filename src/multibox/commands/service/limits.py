"""Why a request is refused, and how its body is read within limits."""

from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus

from multibox.errors import DataError

_TYPES = "Send the bytes of an image as image/jpeg, or one file as multipart/form-data"
_DATA_STATUS = {
    "image-empty": HTTPStatus.BAD_REQUEST,
    "image-format": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "image-too-large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
_MEBIBYTE = 1 << 20


class Refusal(Exception):  # noqa: N818  # not an error of the service
    """A request that is answered with an error.

    Args:
        status: Status of the answer.
        kind: Kind of the refusal. Programs rely on it.
        reason: What is wrong, as a clause without a full stop.
        remedy: What the client can do, as a clause without a full stop.
        headers: Further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        reason: str,
        remedy: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(reason)
        self.status, self.kind, self.reason = int(status), kind, reason
        self.remedy, self.headers = remedy, headers or {}


class Busy(Refusal):
    """The service has too much work now."""

    def __init__(self, kind: str = "busy", reason: str = "too many images wait") -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE
        super().__init__(status, kind, reason, "Try again later", {"Retry-After": "1"})


def refusal_of(error: DataError) -> Refusal:
    """Returns the answer to an image that cannot be decoded."""
    status = _DATA_STATUS.get(error.kind, HTTPStatus.UNPROCESSABLE_ENTITY)
    reason = error.reason
    if reason.startswith(("is ", "has ")):
        reason = f"the image {reason}"
    return Refusal(status, error.kind, reason, error.remedy)


class Bodies:
    """Reads the bodies of requests.

    Args:
        most: Maximum size of a body in bytes.
        total: Maximum size of all bodies that are held at one time, in bytes.
    """

    def __init__(self, most: int, total: int) -> None:
        self.most, self._total, self._held = most, total, 0

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuses a body by its headers.

        Raises:
            Refusal: The length is absent or too large, or the type is not one of an image.
        """
        length, content_type = headers.get("content-length"), headers.get("content-type", "")
        essence = content_type.partition(";")[0].strip().lower()
        known = ("", "application/octet-stream", "multipart/form-data")
        if essence not in known and not essence.startswith("image/"):
            reason = f"the content type {essence[:80]} is not one of an image"
            status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            raise Refusal(status, "content-type", reason, _TYPES)
        if length is None or "transfer-encoding" in headers:
            reason = "the request does not state the length of its body"
            remedy = "Send the header Content-Length, not a chunked body"
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "length-required", reason, remedy)
        if int(length) > self.most:
            raise Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "body-too-large",
                f"the body has {int(length)} bytes, but the limit is {self.most}",
                f"Send at most {self.most / _MEBIBYTE:g} MiB, or start the service with a higher "
                "--max-mebibytes",
            )

    async def read(self, chunks: AsyncIterator[bytes], body: bytearray) -> None:
        """Appends the chunks of a body. `release` has to follow, also after an error.

        Raises:
            Busy: The bodies that are held are too large together.
        """
        async for chunk in chunks:
            if self._held + len(chunk) > self._total:
                raise Busy(reason="too many bytes wait")
            self._held += len(chunk)
            body += chunk

    def release(self, body: bytearray) -> None:
        """Gives up a body."""
        self._held -= len(body)


def only_file(body: bytes, content_type: str) -> bytes:
    """Returns the content of the only part of a multipart body.

    Written here, because the usual parsers copy large files to the disk.

    Raises:
        Refusal: The body is not multipart/form-data with one file.
    """
    words = [word.strip() for word in content_type.split(";")[1:]]
    boundary = next((w[9:].strip('"') for w in words if w.lower().startswith("boundary=")), "")
    # Not more than three pieces, however often the boundary occurs.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"), 2)
    head, gap, content = pieces[1].partition(b"\r\n\r\n") if len(pieces) == 3 else (b"",) * 3
    if not 1 <= len(boundary) <= 70 or not gap or not pieces[2].startswith(b"--"):
        reason = "the body is not multipart/form-data with exactly one file"
        raise Refusal(HTTPStatus.BAD_REQUEST, "multipart", reason, _TYPES)
    if b"filename" not in head.lower():
        reason = "the part of the body is not a file"
        raise Refusal(HTTPStatus.BAD_REQUEST, "multipart", reason, "Send it with a file name")
    return content
