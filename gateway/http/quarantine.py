"""`/quarantine`: what was acknowledged and could not be imported.

GET    /quarantine?limit=N&after=ID   the list, oldest first
GET    /quarantine/ID                 the instance as received, a DICOM file
POST   /quarantine/ID                 imports it once more
DELETE /quarantine/ID                 forgets it
"""

from contextlib import aclosing
from typing import Any, Final
from urllib.parse import parse_qs

import orjson
import structlog

from ..dicomweb.problems import RETRY_AFTER_S, status_of
from ..domain.errors import Corrupt, GatewayError, InvalidInput
from ..services.quarantine import Quarantines, Retried, as_json
from .problems import Receive, Refusal, Scope, Send, refuse

_ROOT: Final = "/quarantine"
_LIMIT: Final = 100
_MOST: Final = 1000


class QuarantineApp:
    """The ASGI application for `/quarantine` and what is below it."""

    def __init__(self, quarantines: Quarantines) -> None:
        self._quarantines = quarantines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        id = scope["path"].removeprefix(_ROOT).strip("/")
        methods = ("GET", "HEAD", "POST", "DELETE") if id else ("GET", "HEAD")
        if scope["method"] not in methods:
            allow = ((b"allow", ", ".join(methods).encode()),)
            await refuse(Refusal(405, "method-not-allowed", "", "This is not possible here.", allow), scope, send)
            return
        try:
            await self._answer(id, scope, send)
        except GatewayError as error:
            status = status_of(error)
            again = ((b"retry-after", b"%d" % RETRY_AFTER_S),) if status == 503 else ()
            await refuse(Refusal(status, error.code, "", error.detail, again), scope, send)

    async def _answer(self, id: str, scope: Scope, send: Send) -> None:
        method = scope["method"]
        if method == "DELETE":
            await self._quarantines.drop(id)
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif method == "POST":
            retried = await self._quarantines.retry(id)
            await _send_json(scope, send, _retried(retried), 202 if retried.outcome is None else 200)
        elif id:
            await self._send_instance(id, scope, send)
        else:
            limit, after = _page(scope)
            items, more = await self._quarantines.list(after, limit)
            document = {"quarantine": [as_json(item) for item in items], **({"next": more} if more else {})}
            await _send_json(scope, send, document)

    async def _send_instance(self, id: str, scope: Scope, send: Send) -> None:
        length, pieces = await self._quarantines.open(id)
        headers = [
            (b"content-type", b"application/dicom"),
            (b"content-length", b"%d" % length),
            (b"content-disposition", f'attachment; filename="{id}.dcm"'.encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with aclosing(pieces):
            if scope["method"] == "GET":
                try:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                except Corrupt as error:  # too late for a status: the connection ends before the promised length
                    structlog.get_logger("gateway.http").error("quarantine-damaged", detail=error.detail)
                    return
        await send({"type": "http.response.body", "body": b""})


def _page(scope: Scope) -> tuple[int, str]:
    """Limit and last id. Raises InvalidInput."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    limit = query.get("limit", [str(_LIMIT)])[-1]
    if not limit.isascii() or not limit.isdecimal() or len(limit) > 6 or not 1 <= int(limit) <= _MOST:
        raise InvalidInput(f"limit must be a number from 1 to {_MOST}.")
    return int(limit), query.get("after", [""])[-1]


def _retried(retried: Retried) -> dict[str, Any]:
    outcome = retried.outcome
    document: dict[str, Any] = {"stored": outcome is not None and outcome.failure is None}
    if outcome is not None and outcome.failure is not None:
        document |= {"reason": f"{outcome.failure:04X}", "message": outcome.message}
    return document


async def _send_json(scope: Scope, send: Send, document: Any, status: int = 200) -> None:
    body = orjson.dumps(document)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
