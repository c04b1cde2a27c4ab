"""Servers that are wrong on purpose: a proxy that spoils what a gateway answers, and peers that know no DICOM."""

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@dataclass
class Exchange:
    """A request on its way in, and its answer on the way out."""

    method: str
    path: str
    query: str
    asked: dict[str, str]
    """Headers of the request, names in lower case."""
    sent: bytes
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def is_json(self) -> bool:
        return "json" in self.headers.get("content-type", "")

    @property
    def is_multipart(self) -> bool:
        return self.headers.get("content-type", "").startswith("multipart/related")

    def replace(self, pattern: bytes, by: bytes) -> None:
        self.body = re.sub(pattern, by, self.body)


Spoil = Callable[[Exchange], None]


def _nothing(exchange: Exchange) -> None: ...


class WrongServer:
    """A proxy before `upstream`: `before` may change a request, `after` its answer; without upstream it is alone."""

    def __init__(self, upstream: str = "") -> None:
        self.upstream = upstream
        self.before: Spoil = _nothing
        self.after: Spoil = _nothing
        self._client = httpx.Client(timeout=60)
        methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=methods)])
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._client.close()
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        scope = request.scope
        exchange = Exchange(
            request.method,
            (scope.get("raw_path") or scope["path"].encode()).decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
            await request.body(),
        )
        self.before(exchange)
        if self.upstream:
            self._pass_on(exchange)
        self.after(exchange)
        headers = {k: v for k, v in exchange.headers.items() if k not in ("content-length", "transfer-encoding")}
        return Response(exchange.body, exchange.status, headers)

    def _pass_on(self, exchange: Exchange) -> None:
        dropped = ("content-length", "transfer-encoding", "connection", "accept-encoding")
        headers = {name: value for name, value in exchange.asked.items() if name not in dropped}
        url = f"{self.upstream}{exchange.path}" + (f"?{exchange.query}" if exchange.query else "")
        request = self._client.build_request(exchange.method, url, headers=headers, content=exchange.sent or None)
        for added in ("accept", "user-agent"):
            if added not in headers:
                request.headers.pop(added, None)
        request.headers["accept-encoding"] = "identity"
        answer = self._client.send(request)
        exchange.status, exchange.body = answer.status_code, answer.content
        exchange.headers = {name.lower(): value for name, value in answer.headers.items()}


@contextmanager
def deaf_peer() -> Iterator[int]:
    """The port of a peer that hangs up on everybody."""
    with _listening(lambda connection: None) as port:
        yield port


@contextmanager
def agreeable_peer() -> Iterator[int]:
    """The port of a peer that accepts every association and context, and has a success for every message."""
    with _listening(_agree) as port:
        yield port


@contextmanager
def _listening(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    threads: list[threading.Thread] = []

    def one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            talk(connection)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=one, args=(connection,), daemon=True)
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=serve, daemon=True)
    acceptor.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    acceptor.join()
    for thread in threads:
        thread.join(10)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise OSError
        data += piece
    return data


def _agree(connection: socket.socket) -> None:
    while True:
        kind, _, length = struct.unpack(">BBI", _exactly(connection, 6))
        pdu = _exactly(connection, length)
        if kind == 1:
            _send(connection, 2, pdu[:68] + _accepted(pdu[68:]))
        elif kind == 4:
            _answer_message(connection, pdu)
        elif kind == 5:
            _send(connection, 6, bytes(4))
        else:
            return


def _send(connection: socket.socket, kind: int, data: bytes) -> None:
    connection.sendall(struct.pack(">BBI", kind, 0, len(data)) + data)


def _accepted(items: bytes) -> bytes:
    out = b""
    at = 0
    while at < len(items):
        kind, _, length = struct.unpack_from(">BBH", items, at)
        content = items[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 0x20:
            first = content.index(b"\x40\x00", 4)
            (size,) = struct.unpack_from(">H", content, first + 2)
            content = content[:4] + content[first : first + 4 + size]
            kind = 0x21
        out += struct.pack(">BBH", kind, 0, len(content)) + content
    return out


def _answer_message(connection: socket.socket, pdu: bytes) -> None:
    at = 0
    while at < len(pdu):
        length, context, flags = struct.unpack_from(">IBB", pdu, at)
        content = pdu[at + 6 : at + 4 + length]
        at += 4 + length
        if flags & 1:
            command = _elements(content)
            field_ = int.from_bytes(command[0x0100], "little")
            if field_ == 0x0FFF:
                continue
            answer = {
                0x0002: command.get(0x0002, b""),
                0x0100: struct.pack("<H", field_ | 0x8000),
                0x0120: command[0x0110],
                0x0800: b"\x01\x01",
                0x0900: b"\0\0",
            }
            body = b"".join(struct.pack("<HHI", 0, tag, len(raw)) + raw for tag, raw in answer.items())
            whole = struct.pack("<HHII", 0, 0, 4, len(body)) + body
            _send(connection, 4, struct.pack(">IBB", len(whole) + 2, context, 3) + whole)


def _elements(data: bytes) -> Mapping[int, bytes]:
    found, at = {}, 0
    while at < len(data):
        _, tag, length = struct.unpack_from("<HHI", data, at)
        found[tag] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return found
