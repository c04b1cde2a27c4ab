"""The error tree in the words of the HealthImaging API, and the wire form of its errors (healthimaging.md 14)."""

import orjson

from ..domain import errors

VALIDATION = ("ValidationException", 400)
NOT_FOUND = ("ResourceNotFoundException", 404)
CONFLICT = ("ConflictException", 409)
INTERNAL = ("InternalServerException", 500)
UNKNOWN_OPERATION = ("UnknownOperationException", 404)
# Not modelled for the service; the name is that of the errors common to all AWS APIs, and SDKs retry a 503.
UNAVAILABLE = ("ServiceUnavailable", 503)

TABLE: dict[type[errors.GatewayError], tuple[str, int]] = {
    errors.GatewayError: INTERNAL,
    errors.InvalidInput: VALIDATION,
    errors.UnacceptableUpdate: VALIDATION,
    errors.Denied: ("AccessDeniedException", 403),
    errors.NotFound: NOT_FOUND,
    errors.Gone: NOT_FOUND,
    errors.VersionConflict: NOT_FOUND,
    errors.Conflict: CONFLICT,
    errors.Locked: CONFLICT,
    errors.NotAcceptable: ("NotAcceptableException", 406),
    errors.TooLarge: ("RequestEntityTooLargeException", 413),
    errors.Throttled: ("ThrottlingException", 429),
    errors.QuotaExceeded: ("ServiceQuotaExceededException", 402),
    errors.Unavailable: UNAVAILABLE,
    errors.OutOfStorage: UNAVAILABLE,
    errors.Overloaded: UNAVAILABLE,
    errors.Corrupt: INTERNAL,
}
"""Each kind of error -> (exception name, HTTP status)."""


def name_and_status(error: errors.GatewayError) -> tuple[str, int]:
    """The row of an error, or of the nearest kind above it that has one."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def encode(name: str, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body that tell an exception, without the request id; `name` may also be a signature error's code."""
    body = orjson.dumps({"message": message})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-amzn-errortype", name.encode("ascii")),
    ]
    return headers, body
