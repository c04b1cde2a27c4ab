"""The listener: a thread for each association, calling back into the process's event loop."""

import asyncio
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import structlog

from ..domain.ids import DatastoreId
from ..domain.query import SearchAnswer
from ..ports import DicomIndex, Intake, Staging
from .association import Association, DimseMetrics, House
from .settings import DimseSettings, Peer
from .store import Submissions

_log = structlog.get_logger("gateway.dimse")

_BACKLOG = 128
_UNESTABLISHED = 64
"""Connections beyond `max_associations` that may have a thread, to be told that there is no place for them."""


class DimseServer:
    """C-ECHO, C-STORE and C-FIND as SCP (PS3.4 annexes A, B and C)."""

    def __init__(
        self,
        settings: DimseSettings,
        staging: Staging,
        intake: Intake,
        index: DicomIndex,
        default_datastore: DatastoreId,
        metrics: DimseMetrics,
    ) -> None:
        self._settings = settings
        self._staging = staging
        self._intake = intake
        self._index = index
        self._default_datastore = default_datastore
        self._metrics = metrics
        self._draining = threading.Event()
        self._connections: set[socket.socket] = set()
        """Of running threads. Touched on the event loop alone."""
        self._all_ended = asyncio.Event()

    async def start(self, listener: socket.socket | None = None) -> tuple[str, int]:
        """Listens, on a socket given or on one of its own, and returns the bound address; port 0 picks a free one.

        Raises OSError when it is taken.
        """
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._submissions = Submissions(self._intake, loop)
        self._house = House(
            settings=self._settings,
            staging=self._staging,
            index=self._index,
            default_datastore=self._default_datastore,
            metrics=self._metrics,
            intake=self._submissions,
            ask=self._ask,
            draining=self._draining,
            places=threading.Semaphore(self._settings.max_associations),
        )
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        self._listener = listener or socket.create_server(
            (self._settings.host, self._settings.port), family=family, backlog=_BACKLOG
        )
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        host, port = self._listener.getsockname()[:2]
        return host, port

    async def drain(self, timeout_s: float) -> None:
        """Stops accepting, lets each association finish its message, then closes and submits their batches.

        What still runs after `timeout_s` is cut off; what could not be submitted stays in the spool.
        """
        deadline = self._loop.time() + timeout_s
        self._draining.set()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        try:
            await asyncio.wait_for(self._ended(), timeout_s)
        except TimeoutError:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            try:
                await asyncio.wait_for(self._ended(), 1.0)
            except TimeoutError:
                _log.error("associations-cut", count=len(self._connections))
        await self._submissions.settle(max(deadline - self._loop.time(), 0.1))

    async def _ended(self) -> None:
        while self._connections:
            self._all_ended.clear()
            await self._all_ended.wait()

    def _ask(self, question: Coroutine[Any, Any, SearchAnswer]) -> "Future[SearchAnswer]":
        return asyncio.run_coroutine_threadsafe(question, self._loop)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # Out of descriptors, or the peer has gone already; the listener itself lives on.
            _log.warning("accept-failed", fault=type(error).__name__)
            return
        if len(self._connections) >= self._settings.max_associations + _UNESTABLISHED:
            connection.close()
            return
        self._connections.add(connection)
        threading.Thread(
            target=self._serve, args=(connection, address[0]), name=f"dimse-{address[0]}:{address[1]}", daemon=True
        ).start()

    def _serve(self, connection: socket.socket, address: str) -> None:
        try:
            Association(connection, address, self._house).run()
        finally:
            with suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self._leave, connection)

    def _leave(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        self._all_ended.set()


__all__ = ["DimseMetrics", "DimseServer", "DimseSettings", "Peer"]
