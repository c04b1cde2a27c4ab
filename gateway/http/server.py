"""The HTTP server: uvicorn over a socket that is already bound."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Final

import uvicorn

from ..settings import HttpSettings
from .problems import Asgi

KEEP_ALIVE_S: Final = 75
"""Longer than the idle time of the usual proxies in front, which else would send into a closing connection."""


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
        http="httptools",
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
    server = _Server(config, on_listening)

    async def end() -> None:
        await stop.wait()
        server.should_exit = True

    ending = asyncio.create_task(end())
    try:
        await server.serve(sockets=[listener])
    finally:
        ending.cancel()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the process's business, not the server's."""
        yield
