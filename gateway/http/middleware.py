"""The edge of every request: its id, its limits, cross-origin headers, one log line, its place in the metrics."""

import random
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Final

import structlog

from .. import telemetry
from .problems import Asgi, Message, Receive, Refusal, Scope, Send, refuse

MAX_TARGET_BYTES: Final = 65_536
"""Of path and query together: long enough for a UID list of a thousand."""
_MAX_ROUTES: Final = 200

_DICOM_WORDS = {"studies", "series", "instances", "metadata", "frames", "bulkdata", "conflicts", "changes"}
_DICOM_WORDS |= {"reject", "undelete"}
_API_WORDS = {"datastore", "imageSet", "searchImageSets", "startDICOMImportJob", "getDICOMImportJob"}
_API_WORDS |= {f"{verb}ImageSet" for verb in ("get", "copy", "delete")} | {"getImageSetMetadata", "getImageFrame"}
_API_WORDS |= {"updateImageSetMetadata", "listImageSetVersions", "listDICOMImportJobs", "tags", "diff"}
_OUR_WORDS = {"dicomweb", "livez", "readyz", "metrics", "queue", "quarantine", "openapi.json"}
_WORDS = frozenset(_OUR_WORDS | _DICOM_WORDS | _API_WORDS)

_TOO_LONG = Refusal(
    414, "uri-too-long", "ValidationException", f"The request's path and query exceed {MAX_TARGET_BYTES} bytes."
)
_BUSY = Refusal(
    503,
    "throttled",
    "ThrottlingException",
    "Too many requests are being served (http.max_requests). Try again in a moment.",
    ((b"retry-after", b"1"),),
)
_BROKEN = Refusal(
    500, "internal", "InternalServerException", "An internal error occurred. Report it with the id of this request."
)

_log = structlog.get_logger("gateway.http")


def template_of(path: str) -> str:
    """The path with every segment that is not a word of ours as `*`: no UID or name reaches a log or a metric."""
    return "/".join([part if part in _WORDS or not part else "*" for part in path.split("/")])


class Edge:
    """Wraps the whole application. Each answer has `x-amzn-RequestId`; `scope["state"]["request_id"]` tells it."""

    def __init__(
        self, app: Asgi, *, origins: Sequence[str], max_requests: int, access_log: Callable[..., None]
    ) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any_origin = b"*" in self._origins
        self._max_requests = max_requests
        self._access_log = access_log
        self._running = 0
        # The shape that AWS clients expect, unique without asking the system for randomness each time.
        bits = f"{random.SystemRandom().getrandbits(80):020x}"
        self._prefix = f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-"
        self._numbers = count()
        self._routes: dict[str, Any] = {}
        self._answers: dict[tuple[str, str, int], Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _other_protocol(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = f"{self._prefix}{next(self._numbers):012x}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        cors = self._cors(scope)
        status = 0
        size = 0

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *cors]
                if not any(name.lower() == b"x-amzn-requestid" for name, _ in headers):
                    headers.append((b"x-amzn-requestid", request_id.encode()))
                message["headers"] = headers
            else:
                size += len(message.get("body", b""))
            await send(message)

        self._running += 1
        try:
            if self._running > self._max_requests and scope["path"] not in ("/livez", "/readyz"):
                await refuse(_BUSY, scope, answer)
            elif len(scope["query_string"]) + len(scope["path"]) > MAX_TARGET_BYTES:
                await refuse(_TOO_LONG, scope, answer)
            elif _is_preflight(scope):
                await _allow(scope, answer, allowed=bool(cors))
            else:
                await self._app(scope, receive, answer)
        except Exception as error:
            _log.error("request_failed", exc_info=error, request_id=request_id)
            if status:
                raise  # the answer has begun: only a broken connection tells the client that it is not whole
            await refuse(_BROKEN, scope, answer)
        finally:
            self._running -= 1
            self._account(scope, state, status, size, time.perf_counter() - began)

    def _account(self, scope: Scope, state: dict[str, Any], status: int, size: int, seconds: float) -> None:
        method: str = scope["method"] if scope["method"] in _METHODS else "OTHER"
        route = template_of(scope["path"])
        if route not in self._routes and len(self._routes) >= _MAX_ROUTES:
            route = "other"  # paths that a scanner makes up do not fill the memory
        seconds_of = self._routes.get(route)
        if seconds_of is None:
            seconds_of = self._routes[route] = telemetry.HTTP_SECONDS.labels(route)
        answered = self._answers.get((method, route, status))
        if answered is None:
            answered = self._answers[method, route, status] = telemetry.HTTP_REQUESTS.labels(method, route, str(status))
        answered.inc()
        seconds_of.observe(seconds)
        client = scope.get("client")
        self._access_log(
            method=method,
            route=route,
            status=status,
            bytes=size,
            ms=round(seconds * 1000, 2),
            request_id=state["request_id"],
            client=client[0] if client else None,
            operation=state.get("operation"),
            principal=state.get("principal"),
        )

    def _cors(self, scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
        if self._any_origin:
            return _CORS_ANY
        if not self._origins:
            return ()
        origin = _header(scope, b"origin")
        if origin in self._origins:
            return ((b"access-control-allow-origin", origin or b""), *_CORS_COMMON, (b"vary", b"Origin"))
        return ((b"vary", b"Origin"),)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
# What a script of another origin may read (CORS-03); a page that is isolated may load it too (CORS-04).
_EXPOSED = (
    *("Accept-Ranges", "Content-Length", "Content-Location", "Content-Range", "ETag", "Location", "Retry-After"),
    *("Warning", "x-amzn-RequestId", "x-amzn-ErrorType"),
)
_CORS_COMMON = (
    (b"access-control-expose-headers", ", ".join(_EXPOSED).encode()),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
_CORS_ANY = ((b"access-control-allow-origin", b"*"), *_CORS_COMMON)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method") is not None


async def _allow(scope: Scope, send: Send, *, allowed: bool) -> None:
    """Answers a preflight (Fetch §3.2.2). Headers are echoed: a `*` would not cover Authorization."""
    headers: list[tuple[bytes, bytes]] = []
    if allowed:
        headers = [
            (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, DELETE, OPTIONS"),
            (b"access-control-allow-headers", _header(scope, b"access-control-request-headers") or b"*"),
            (b"access-control-max-age", b"7200"),
            (b"vary", b"Access-Control-Request-Headers"),
        ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _other_protocol(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close"})
