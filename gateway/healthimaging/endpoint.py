"""One ASGI application for the whole API: match, decode, call, encode. Who asks is settled before it is called."""

import os
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote

import orjson
import structlog

from ..awsjson import model, wire
from ..domain.errors import GatewayError, InvalidInput, TooLarge
from ..ports import HealthImaging, History
from . import errors
from .operations import PREVIEWED, SERVED, Operations, refuse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Twice what the longest request that the model allows can come to."""

_log = structlog.get_logger("gateway.healthimaging")


class _Gone(Exception):
    """The client left before its request was complete."""


class HealthImagingApp:
    """The HealthImaging REST API (rest-json) over a backend, on any host name and prefix.

    Of `scope["state"]` it reads `principal` (str, who asks) and `request_id`, both optional, and sets `operation` as
    soon as it is known, for the access log and the metrics. Every answer has `x-amzn-requestid`.

    `region` and `account` make the ARNs. `history` serves `?dryRun=true`, which is ours, of operations in `PREVIEWED`.
    `strict` is for tests: an answer that breaks the model becomes a 500.
    """

    def __init__(
        self,
        backend: HealthImaging,
        region: str,
        account: str,
        *,
        history: History | None = None,
        strict: bool = False,
    ) -> None:
        self._operations = Operations(backend, region, account, history)
        self._model = model.load()
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        state = scope.setdefault("state", {})
        request_id = state.get("request_id") or str(uuid.uuid4())
        try:
            status, headers, body = await self._answer(scope, receive, state)
        except _Gone:
            return
        except GatewayError as error:
            name, status = errors.name_and_status(error)
            headers, body = errors.encode(name, error.detail)
        except Exception as error:
            # Its text may hold anything, a patient's data too: the log gets its kind and place alone.
            _log.error(
                "request_failed",
                error=type(error).__name__,
                at=_place(error),
                operation=state.get("operation"),
                request_id=request_id,
            )
            name, status = errors.INTERNAL
            headers, body = errors.encode(name, "An internal error occurred. Report it with the id of this request.")
        headers.append((b"x-amzn-requestid", request_id.encode("latin-1", "replace")))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(
        self, scope: Scope, receive: Receive, state: dict[str, Any]
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        # The raw path: an ARN travels as one segment with its slashes encoded.
        raw = scope.get("raw_path") or quote(scope["path"]).encode()
        matched = self._model.match(scope["method"], raw.partition(b"?")[0].decode("latin-1"))
        if matched is None:
            return _unknown("The API has no operation with this method and path.")
        operation, labels = matched
        state["operation"] = operation.name
        if operation.name not in SERVED:
            return _unknown(f"{operation.name} is not supported.")
        body = await _read_body(scope, receive)
        try:
            request = wire.decode_request(operation, labels, scope["query_string"].decode("latin-1"), body)
        except wire.Malformed as fault:
            raise InvalidInput(str(fault)) from None
        refuse(operation.name, request)
        if _is_dry_run(scope):
            return await self._preview(operation.name, request, state)
        result = await SERVED[operation.name](self._operations, request, state.get("principal"))
        response = wire.encode_response(operation, result, strict=self._strict)
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        headers.append((b"content-length", str(len(response.body)).encode()))
        return response.status, headers, response.body

    async def _preview(
        self, name: str, request: dict[str, Any], state: dict[str, Any]
    ) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        if name not in PREVIEWED:
            raise InvalidInput(f"dryRun is possible for {', '.join(PREVIEWED)}, and not for {name}.")
        body = orjson.dumps(await PREVIEWED[name](self._operations, request, state.get("principal")))
        return 200, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body


def _is_dry_run(scope: Scope) -> bool:
    """Raises InvalidInput for a value that is neither true nor false: it must not be taken for either."""
    given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get("dryRun", ["false"])
    if given not in (["true"], ["false"]):
        raise InvalidInput("dryRun is true or false.")
    return given == ["true"]


def _unknown(message: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    name, status = errors.UNKNOWN_OPERATION
    return status, *errors.encode(name, message)


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. Raises TooLarge as soon as it is or says it is beyond the limit, _Gone on a disconnect."""
    announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if announced.isdigit() and int(announced[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _too_large()
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large() -> TooLarge:
    return TooLarge(f"The body is longer than {MAX_BODY_BYTES} bytes, more than any operation has a use for.")


def _place(error: BaseException) -> str:
    """Module and line where an exception was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "unknown"
