"""Faults as `application/problem+json` (RFC 9457): the HTTP table of the error tree (ERR-01)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import orjson

from ..domain.errors import (
    Conflict,
    Corrupt,
    Denied,
    GatewayError,
    Gone,
    InvalidInput,
    NotAcceptable,
    NotFound,
    OutOfStorage,
    QuotaExceeded,
    Throttled,
    TooLarge,
    Unavailable,
    VersionConflict,
)

RETRY_AFTER_S: Final = 5

STATUS: Final[Mapping[type[GatewayError], int]] = {
    InvalidInput: 400,
    Denied: 403,
    NotFound: 404,
    Gone: 410,
    VersionConflict: 412,
    Conflict: 409,
    NotAcceptable: 406,
    TooLarge: 413,
    Throttled: 429,
    QuotaExceeded: 429,
    Unavailable: 503,
    OutOfStorage: 507,
    Corrupt: 500,
}
"""A class that is not listed takes the row of the nearest class above it."""


class HttpProblem(Exception):
    """A refusal that only HTTP knows: unknown path, method, media type of the request, byte range."""

    def __init__(self, status: int, detail: str, headers: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers or {}


def status_of(error: GatewayError) -> int:
    """The HTTP status of a fault."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem(status: int, code: str, detail: str) -> bytes:
    """The body: `message` repeats `detail` for clients of HealthImaging. Holds no patient's data."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code,
            "message": detail,
        }
    )


def code_of(status: int) -> str:
    """The stable code of an `HttpProblem`."""
    return HTTPStatus(status).phrase.lower().replace(" ", "-")
