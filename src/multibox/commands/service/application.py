"""The HTTP application: a page for people, and detections as JSON for programs."""

import asyncio
import contextlib
import hashlib
import ipaddress
import json
import math
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from multibox.commands.prediction.selection import choose
from multibox.commands.service.batching import Batcher, Found
from multibox.commands.service.limits import Bodies, Busy, Refusal, only_file, refusal_of
from multibox.commands.service.metrics import Metrics
from multibox.data.images import image_size
from multibox.detector import Detector
from multibox.drawing import colour_of
from multibox.errors import ConfigError, DataError
from multibox.reporting.page import policy, render

_STYLES, _SCRIPTS = ("base.css", "report.css", "serve.css"), ("theme.js", "serve.js")
_ALLOWED = "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'"
_HELD_BODIES, _HELD_BYTES = 4, 1 << 28
_CLIENT_LEFT = 499
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Model(NamedTuple):
    """What is served.

    Attributes:
        name: Name of the run or of the file.
        sha256: SHA-256 of the weights.
    """

    name: str
    sha256: str


class Settings(NamedTuple):
    """How requests are answered.

    Attributes:
        model: What is served.
        host: Address that the server listens on. On a loopback address, requests with the names of
            other hosts are refused.
        threshold: Lowest score of detections, 0..1, if a request does not state it.
        classes: Names of the classes to keep. Empty: all.
        max_bytes: Maximum size of a body.
        timeout: Seconds in which a body must arrive, and in which it must be answered.
    """

    model: Model
    host: str
    threshold: float
    classes: tuple[str, ...]
    max_bytes: int
    timeout: float


def identify(model: Path, file: Path) -> Model:
    """Returns the name of a model and the SHA-256 of its file, with that of OpenVINO's .bin."""
    digest = hashlib.sha256()
    for part in (file, *([file.with_suffix(".bin")] if file.suffix.lower() == ".xml" else [])):
        digest.update(part.read_bytes())
    return Model(model.resolve().name, digest.hexdigest())


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Service:
    """Answers requests.

    Args:
        detector: Detects the objects.
        batcher: Decodes and detects.
        settings: How requests are answered.
        metrics: Counts requests.

    Attributes:
        application: The ASGI application.
        answered: Number of images that were detected.
    """

    def __init__(
        self, detector: Detector, batcher: Batcher, settings: Settings, metrics: Metrics
    ) -> None:
        self._detector, self._batcher = detector, batcher
        self._settings, self._metrics = settings, metrics
        total = max(_HELD_BYTES, _HELD_BODIES * settings.max_bytes)
        self._bodies, self.answered = Bodies(settings.max_bytes, total), 0
        loopback = {"localhost", "127.0.0.1", "[::1]", settings.host}
        self._hosts = loopback if is_loopback(settings.host) else None
        metrics.watch(lambda: batcher.waiting)
        self._page, page_policy = self._render_page()
        self._page_headers = _HEADERS | {"Content-Security-Policy": page_policy}
        self._description = json.loads(
            resources.files("multibox").joinpath("templates/openapi.json").read_text("utf-8")
        )
        self._description["info"]["version"] = version("multibox")
        routes = {
            "/": self._get_page,
            "/detect": self._answer_detect,
            "/openapi.json": self._get_description,
            "/health": self._get_health,
            "/metrics": self._get_metrics,
        }
        self.application = Starlette(
            routes=[
                Route(path, self._guarded(answer), methods=["POST" if "detect" in path else "GET"])
                for path, answer in routes.items()
            ],
            exception_handlers={HTTPException: _no_route, Exception: _failed},
        )
        self.application.router.redirect_slashes = False

    def _guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Returns a function that refuses requests of other sites, and that turns refusals to JSON.

        Another site can let its own name lead to this machine, and then read the answers. Its pages
        can also send pictures here, although they cannot read the answers.
        """

        async def checked(request: Request) -> Response:
            try:
                host = request.headers.get("host", "")
                name = host if host.endswith("]") else host.rpartition(":")[0] or host
                if self._hosts is not None and name.lower() not in self._hosts:
                    reason = "the request is for another host"
                    remedy = "Use the address that multibox serve printed"
                    raise Refusal(HTTPStatus.FORBIDDEN, "host", reason, remedy)
                site = request.headers.get("sec-fetch-site", "none")
                if request.method == "POST" and site not in ("same-origin", "none"):
                    reason = "the request comes from a page of another site"
                    raise Refusal(HTTPStatus.FORBIDDEN, "cross-site", reason)
                return await answer(request)
            except Refusal as refusal:
                self._metrics.refusals.labels(refusal.kind).inc()
                return _refuse(refusal)

        return checked

    async def _get_page(self, _: Request) -> Response:
        return Response(self._page, media_type="text/html", headers=self._page_headers)

    async def _get_description(self, _: Request) -> Response:
        return JSONResponse(self._description, headers=_HEADERS)

    async def _get_health(self, _: Request) -> Response:
        alive = self._batcher.alive
        status = HTTPStatus.OK if alive else HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse({"alive": alive, "model": self._settings.model._asdict()}, status)

    async def _get_metrics(self, _: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._metrics.text(), headers=_HEADERS | {"Content-Type": kind})

    async def _answer_detect(self, request: Request) -> Response:
        status = _CLIENT_LEFT
        try:
            response = await self._detect(request)
            status = response.status_code
        except Refusal as refusal:
            status = refusal.status
            raise
        except ClientDisconnect:
            response = Response(status_code=HTTPStatus.BAD_REQUEST)
        except Exception:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise
        finally:
            self._metrics.requests.labels(str(int(status))).inc()
        return response

    async def _detect(self, request: Request) -> Response:
        begun, headers = time.perf_counter(), request.headers
        threshold = _threshold(request, self._settings.threshold)
        selection = choose(self._detector.classes, threshold, only=self._settings.classes)
        content_type = headers.get("content-type", "")
        self._bodies.check(headers)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.timeout):
                await self._bodies.read(request.stream(), body)
            data = bytes(body)
            if content_type.lower().startswith("multipart/"):
                data = only_file(data, content_type)
            size = image_size(data, file="the image")
            future = self._batcher.submit(data, size, selection)
            found = await self._wait_for(asyncio.wrap_future(future), request)
        except TimeoutError:
            reason = f"the body did not arrive within {self._settings.timeout:g} seconds"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, "body-slow", reason) from None
        except DataError as error:
            raise refusal_of(error) from None
        finally:
            self._bodies.release(body)
        self.answered += 1
        return self._found(found, threshold, time.perf_counter() - begun)

    async def _wait_for(self, found: "asyncio.Future[Found]", request: Request) -> Found:
        """Returns what was found, unless it takes too long or the client leaves."""
        # Nothing comes after the body, except that the client leaves.
        left = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait(
                (found, left), timeout=self._settings.timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if found.done():
                return found.result()
            if left.done():
                raise ClientDisconnect
            reason = f"there was no answer within {self._settings.timeout:g} seconds"
            raise Busy("timeout", reason)
        finally:
            # Cancels the image, too, if it still waits.
            found.cancel()
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await left

    def _found(self, found: Found, threshold: float, seconds: float) -> Response:
        parts = {**found.seconds, "total": seconds}
        content = {
            "width": found.width,
            "height": found.height,
            "threshold": threshold,
            "detections": [detection._asdict() for detection in found.detections],
            "model": self._settings.model._asdict(),
            "milliseconds": {name: round(1000 * part, 3) for name, part in parts.items()},
        }
        return JSONResponse(content, headers=_HEADERS)

    def _render_page(self) -> tuple[str, str]:
        """Returns the page and its policy."""
        settings = self._settings
        classes = [
            {"name": name, "colour": f"rgb{colour_of(label)}", "text": _text_on(colour_of(label))}
            for label, name in enumerate(self._detector.classes)
            if not settings.classes or name in settings.classes
        ]
        data = {
            "classes": classes,
            "threshold": settings.threshold,
            "maxBytes": settings.max_bytes,
        }
        values = {"name": settings.model.name, "names": [each["name"] for each in classes]}
        page = render(
            "serve.html.j2", values, styles=_STYLES, scripts=_SCRIPTS, data=data, allowed=_ALLOWED
        )
        # Browsers ignore this part in the page itself.
        return page, f"{policy(_SCRIPTS, _ALLOWED)}; frame-ancestors 'none'"


def _text_on(colour: tuple[int, int, int]) -> str:
    """Returns the colour of text with the better contrast on a background (WCAG 2)."""
    linear = [(part / 255) ** 2.2 for part in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.18 else "#fff"


def _threshold(request: Request, default: float) -> float:
    """Returns the threshold that a query states, or the default."""
    remedy = "Use the query threshold=0.5 or another number in 0..1"
    values = request.query_params.getlist("threshold")
    if set(request.query_params) - {"threshold"} or len(values) > 1:
        reason = "the query has other fields than one threshold"
        raise Refusal(HTTPStatus.BAD_REQUEST, "query", reason, remedy)
    try:
        threshold = float(values[0]) if values else default
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= 1:
        reason = "the threshold is not a number in 0..1"
        raise Refusal(HTTPStatus.BAD_REQUEST, "query", reason, remedy)
    return threshold


def _refuse(refusal: Refusal) -> Response:
    error = {"kind": refusal.kind, "reason": refusal.reason, "remedy": refusal.remedy}
    return JSONResponse({"error": error}, refusal.status, headers=_HEADERS | refusal.headers)


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "not-found", 405: "method"}.get(error.status_code, "request")
    reason = {
        404: "there is nothing at this path",
        405: "this path does not have this method",
    }.get(error.status_code, error.detail)
    remedy = "Send a picture with POST to /detect, or read /openapi.json"
    return _refuse(Refusal(error.status_code, kind, reason, remedy, dict(error.headers or {})))


async def _failed(_: Request, __: Exception) -> Response:
    reason = "the service failed"
    return _refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", reason))


def check_settings(settings: Settings, waiting: int, batch_size: int) -> None:
    """Refuses options that are out of range.

    Raises:
        ConfigError: One of them is.
    """
    for option, value in (
        ("--timeout", settings.timeout),
        ("--max-mebibytes", settings.max_bytes),
        ("--max-waiting", waiting),
        ("--batch-size", batch_size),
    ):
        if not value > 0 or not math.isfinite(value):
            raise ConfigError(f"{option} is {value:g}", remedy="Use a number above 0")
