"""Refusals of the HTTP edge itself, in the words of the face that was asked.

DICOMweb and operations answer `application/problem+json`, the HealthImaging API `x-amzn-ErrorType` and `{"message"}`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from enum import Enum
from typing import Any, Final, NamedTuple

from ..dicomweb.problems import problem
from ..healthimaging.errors import encode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Face(Enum):
    """Who answers a path."""

    DICOMWEB = "dicomweb"
    OPERATIONS = "operations"
    HISTORY = "history"
    QUARANTINE = "quarantine"
    API = "api"


OPERATIONS: Final = frozenset({"/livez", "/readyz", "/metrics", "/queue", "/openapi.json"})
_RESOURCES: Final = frozenset({"studies", "series", "instances", "conflicts"})
"""What DICOMweb has under a data store; all other names there are the API's."""


def face_of(path: str) -> Face:
    """The face that answers a path; unknown paths are the API's, which has an operation for none of them."""
    if path in OPERATIONS:
        return Face.OPERATIONS
    if path == "/quarantine" or path.startswith("/quarantine/"):
        return Face.QUARANTINE
    if path.startswith("/dicomweb/") or path == "/dicomweb":
        return Face.DICOMWEB
    if path == "/changes":
        return Face.HISTORY
    if path.startswith("/datastore/"):
        resource = path.split("/")[3:]
        if resource == ["changes"] or (len(resource) == 3 and resource[0] == "imageSet" and resource[2] == "diff"):
            return Face.HISTORY
        # The base itself has a slash at its end here: without one it is the API's data store.
        return Face.DICOMWEB if resource == [""] or (resource and resource[0] in _RESOURCES) else Face.API
    return Face.API


class Refusal(NamedTuple):
    """An answer without a resource: `code` is the problem's stable code, `name` the API's exception."""

    status: int
    code: str
    name: str
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Sends a refusal and ends the answer."""
    if face_of(scope["path"]) is Face.API:
        headers, body = encode(refusal.name, refusal.detail)
    else:
        body = problem(refusal.status, refusal.code, refusal.detail)
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    headers += refusal.headers
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
