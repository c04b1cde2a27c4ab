"""`/livez`, `/readyz`, `/metrics` and `/queue`: what a machine that watches over the gateway asks; `/openapi.json`."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from .. import __version__, telemetry
from ..domain.errors import GatewayError
from .openapi import description
from .problems import Receive, Refusal, Scope, Send, refuse

_PATIENCE_S: Final = 2.0

Numbers = Mapping[str, Mapping[str, float]]


class Backend(Protocol):
    """What of the backend operations look at."""

    async def ping(self) -> None:
        """Returns when the database answers. Raises Unavailable."""
        ...

    async def work(self) -> Numbers:
        """Kind of work item -> `waiting`, `running`, `oldest_s`; also of instances whose frames await encoding."""
        ...


class Operations:
    """Answers the paths of `problems.OPERATIONS`, to GET and HEAD.

    `processes` is role -> `up`, `restarts`, as the supervisor tells; empty where the web process stands alone.
    `facts` (AE title, addresses, `datastoreId` of the default one) are part of `/readyz`.
    """

    def __init__(
        self,
        backend: Backend,
        data: Path,
        reserve_bytes: int,
        processes: Callable[[], Numbers],
        facts: Mapping[str, Any],
    ) -> None:
        self._backend = backend
        self._data = data
        self._reserve_bytes = reserve_bytes
        self._processes = processes
        self._facts = facts
        self._answers: Mapping[str, Callable[[], Awaitable[tuple[int, str, bytes]]]] = {
            "/livez": self._live,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/queue": self._queue,
            "/openapi.json": self._openapi,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            allow = ((b"allow", b"GET, HEAD"),)
            await refuse(Refusal(405, "method-not-allowed", "", "Only GET and HEAD work here.", allow), scope, send)
            return
        status, kind, body = await self._answers[scope["path"]]()
        headers = [
            (b"content-type", kind.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _live(self) -> tuple[int, str, bytes]:
        return _json(200, {"status": "live", "version": __version__})

    async def _ready(self) -> tuple[int, str, bytes]:
        checks = {"database": await self._database(), "disk": self._disk(), **self._listeners()}
        is_ready = all(text == "ok" for text in checks.values())
        document = {"status": "ready" if is_ready else "not ready", "checks": checks, **self._facts}
        return _json(200 if is_ready else 503, document)

    async def _database(self) -> str:
        try:
            await asyncio.wait_for(self._backend.ping(), _PATIENCE_S)
        except TimeoutError:
            return f"no answer within {_PATIENCE_S:g} s"
        except GatewayError as error:
            return error.detail
        return "ok"

    def _disk(self) -> str:
        free = shutil.disk_usage(self._data).free
        if free < self._reserve_bytes:
            return f"{free >> 20} MiB free, below the reserve of {self._reserve_bytes >> 20} MiB (disk_reserve_mb)"
        return "ok"

    def _listeners(self) -> dict[str, str]:
        states = self._processes()
        return {role: "ok" if states[role]["up"] else "not running" for role in ("dimse",) if role in states}

    async def _metrics(self) -> tuple[int, str, bytes]:
        try:
            work = await asyncio.wait_for(self._backend.work(), _PATIENCE_S)
        except (GatewayError, TimeoutError):
            work = {}  # what the processes counted is still worth having
        text = await asyncio.to_thread(telemetry.exposition, work, self._processes())
        return 200, telemetry.METRICS_TYPE, text

    async def _openapi(self) -> tuple[int, str, bytes]:
        return 200, "application/json", description(self._facts["datastoreId"])

    async def _queue(self) -> tuple[int, str, bytes]:
        try:
            work = await asyncio.wait_for(self._backend.work(), _PATIENCE_S)
        except (GatewayError, TimeoutError):
            return _json(503, {"status": "the database did not answer"})
        return _json(200, {"work": work, "processes": self._processes()})


def _json(status: int, document: Mapping[str, Any]) -> tuple[int, str, bytes]:
    return status, "application/json", orjson.dumps(document)
