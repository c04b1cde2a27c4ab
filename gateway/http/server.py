"""The HTTP server: uvicorn over a socket that is already bound, and without patience for clients that dawdle."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Generator
from http import HTTPStatus
from typing import Final

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..dicomweb.problems import code_of, problem
from ..settings import HttpSettings
from .problems import Asgi

_log = structlog.get_logger("gateway.http")

KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the usual proxies in front, which else would send into a closing connection."""
MAX_HEAD_BYTES: Final = 256 << 10
"""Of a request's first line and headers: well beyond the longest path and query that is answered
(`middleware.MAX_TARGET_BYTES`)."""
_TURN_S: Final = 0.001
_OPENING_S: Final = 1.0


async def serve(
    app: Asgi,
    settings: HttpSettings,
    listener: socket.socket,
    stop: asyncio.Event,
    *,
    on_listening: Callable[[], None],
    drain_s: int,
) -> None:
    """Serves until `stop` is set and the requests that run then have ended, or `drain_s` has passed.

    Raises ValueError or OSError when certificate and key cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    server = _Server(config, on_listening, takes_turns=settings.processes > 1)

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    async def watch() -> None:
        while True:
            await asyncio.sleep(min(1.0, settings.patience_s / 4))
            for connection in tuple(server.server_state.connections):
                if isinstance(connection, _Connection):
                    connection.look(settings.patience_s, settings.min_bytes_per_s)

    helpers = [asyncio.create_task(end()), asyncio.create_task(watch())]
    try:
        await server.serve(sockets=[listener])
    finally:
        for helper in helpers:
            helper.cancel()


class _Connection(HttpToolsProtocol):
    """A connection that knows since when it waits for its client.

    Three things are waited for: the head of a request, which has to come whole; its body, at some least speed; and that
    the client takes what it asked for, some of it now and then. What waits longer than that is closed, so that it holds
    neither memory nor a place among the requests served at once. So is what sends a head without end, which the parser
    would gather, and copy, for each piece that comes.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_since = self._body_since = self._taken_at = self.loop.time()
        self._body_bytes = 0
        self._unsent = 0
        self._is_in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:  # the first bytes of the next request
            self._head_since = self.loop.time()
        self._body_bytes += len(data)
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                _log.warning("head-too-long")
                self._refuse(431, f"The first line and the headers of the request exceed {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def resume_writing(self) -> None:
        self._taken_at = self.loop.time()
        super().resume_writing()

    def look(self, patience_s: float, min_bytes_per_s: int) -> None:
        """Closes the connection if its client has dawdled for `patience_s`."""
        now = self.loop.time()
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent:
            self._taken_at = now
        self._unsent = unsent
        if now - self._taken_at >= patience_s:
            _log.warning("client-too-slow", waited_for="answer to be taken")
            self.transport.abort()
            return
        if not self._owes_body():
            self._body_since, self._body_bytes = now, 0
        elif now - self._body_since >= patience_s:
            if self._body_bytes < min_bytes_per_s * (now - self._body_since):
                self._give_up("body", f"The body comes at less than {min_bytes_per_s} bytes/s (http.min_bytes_per_s).")
                return
            self._body_since, self._body_bytes = now, 0
        if self._owes_head() and now - self._head_since >= patience_s:
            self._give_up("head", f"The request did not come whole within {patience_s:g} s (http.patience_s).")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _owes_body(self) -> bool:
        """Whether the next thing to happen is that the client sends."""
        return (
            self._is_answering()
            and self.cycle.more_body
            and not self.flow.read_paused
            and not self.cycle.waiting_for_100_continue
        )

    def _owes_head(self) -> bool:
        """Uvicorn itself watches over the time between an answer and the next request, but not over a request that has
        begun, nor over a client that never asks for anything."""
        return not self._is_answering() and self.timeout_keep_alive_task is None and not self.transport.is_closing()

    def _give_up(self, what: str, detail: str) -> None:
        _log.warning("client-too-slow", waited_for=what)
        self._refuse(408, detail)

    def _refuse(self, status: int, detail: str) -> None:
        """Answers, unless another answer is on its way, and closes."""
        if self.cycle is None or not (self.cycle.response_started and self.cycle.more_body):
            phrase = HTTPStatus(status).phrase
            body = problem(status, code_of(status), detail)
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/problem+json\r\n"
            head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()


class _Turns:
    """Accepts on a listener that several processes share: who has just taken a connection leaves the next ones to the
    others for a moment. Else the first to wake takes all that have come, and keeps them as long as they live."""

    def __init__(
        self, listener: socket.socket, connection: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._connection = connection
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._resuming: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._resume()

    async def close(self) -> None:
        """Accepts no more; what was accepted last becomes a connection, or is given up in the midst of TLS."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        if self._opening:
            _, late = await asyncio.wait(self._opening, timeout=_OPENING_S)
            for task in late:
                task.cancel()

    def _resume(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            taken, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another process was faster, or the caller has left
            return
        except OSError as fault:  # no descriptors, no memory: it waits in the queue
            _log.error("cannot-accept", exc_info=fault)
            self._pause(1.0)
            return
        self._pause(_TURN_S)
        taken.setblocking(False)
        task = self._loop.create_task(self._open(taken))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(seconds, self._resume)

    async def _open(self, taken: socket.socket) -> None:
        with contextlib.suppress(OSError):  # TLS that is none, a caller who has left
            await self._loop.connect_accepted_socket(self._connection, taken, ssl=self._tls)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None], *, takes_turns: bool) -> None:
        super().__init__(config)
        self._on_listening = on_listening
        self._takes_turns = takes_turns
        self._turns: list[_Turns] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if not self._takes_turns:
            await super().startup(sockets)
        else:
            await super().startup([])
            self._turns = [_Turns(listener, self._connection, self.config.ssl) for listener in sockets or ()]
        self._on_listening()

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self.config, self.server_state, self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for turns in self._turns:
            await turns.close()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the process's business, not the server's."""
        yield
