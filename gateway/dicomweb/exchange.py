"""One HTTP exchange as the handlers see it: thin over ASGI, because frames are a hot path."""

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from starlette.types import Receive, Scope, Send

from ..domain.errors import InvalidInput, TooLarge
from ..domain.ids import DatastoreId
from ..domain.model import ConflictEntry, Page, PageRequest
from ..domain.query import DicomQuery, SearchAnswer
from ..services.removal import Removal
from ..services.render import Render
from ..services.retrieve import DecodeForeign, Retrieve
from ..services.store import Store
from .params import Accepts, Query
from .problems import HttpProblem


class Search(Protocol):
    """What searches: the service, or an index."""

    async def find(self, query: DicomQuery) -> SearchAnswer: ...


class Conflicts(Protocol):
    """What lists the conflicts: the intake."""

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]: ...


@dataclass(frozen=True, slots=True)
class DicomwebServices:
    """What the surface stands on."""

    default_datastore: DatastoreId
    resolve: Callable[[str], Awaitable[DatastoreId]]
    """The data store of that id. Raises NotFound."""
    retrieve: Retrieve
    render: Render
    store: Store
    search: Search
    intake: Conflicts
    removal: Removal
    decode: DecodeForeign
    """Blocking: an image that came from outside, by its transfer syntax or media type."""
    temporary: Path | None = None
    """Where bulk data wait for the end of their request; None: where the system has its temporary files."""
    public_url: str | None = None
    """Scheme, host and any prefix under which clients reach the gateway; None: as each request says."""
    empty_qido_status: int = 200
    """200 with an empty list, or 204 (QIDO-28)."""
    max_results: int = 10_000
    """Of one search (HI-01)."""
    max_body_bytes: int = 64 << 30
    """Of one store request, decoded."""


class ClientGone(Exception):
    """The client left before its request had come in whole."""


_HOST = re.compile(r"[A-Za-z0-9._~-]+(:[0-9]{1,5})?\Z|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?\Z")
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_PORTS: Final = {"http": 80, "https": 443}


class Request:
    """A request, its parts parsed when they are asked for."""

    __slots__ = ("_headers", "_query", "_receive", "_scope", "base", "datastore", "method", "services")

    def __init__(self, services: DicomwebServices, scope: Scope, receive: Receive) -> None:
        self.services = services
        self.datastore = services.default_datastore
        self.base = "/dicomweb"
        self.method: str = scope["method"]
        self._scope = scope
        self._receive = receive
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._query: Query | None = None

    def header(self, name: bytes) -> str | None:
        """The header's value, several joined by commas; `name` in lower case."""
        found = [value for key, value in self._headers if key == name]
        return b", ".join(found).decode("latin-1") if found else None

    @property
    def query(self) -> Query:
        """Raises InvalidInput."""
        if self._query is None:
            self._query = Query(self._scope["query_string"])
        return self._query

    @property
    def accepts(self) -> Accepts:
        return Accepts(self.query.accept, self.header(b"accept"))

    @property
    def host(self) -> str:
        """Host and port as the client named them. Raises InvalidInput."""
        address, port = self._scope.get("server") or ("localhost", None)
        named = self.header(b"host") or address
        if not _HOST.match(named):
            raise InvalidInput("The Host header is not a host.")
        # dicomweb-client leaves the port out; behind a proxy the name is another one than ours.
        ours = named == address or (named == "localhost" and address in _LOOPBACK)
        if ours and port not in (None, _PORTS.get(self._scope["scheme"])):
            return f"{named}:{port}"
        return named

    @property
    def root(self) -> str:
        """The absolute URL before `/studies`, for payloads (ROOT-08)."""
        public = self.services.public_url
        return (public.rstrip("/") if public else f"{self._scope['scheme']}://{self.host}") + self.base

    @property
    def principal(self) -> str | None:
        """Who authentication found the caller to be."""
        found = self._scope.get("state", {}).get("principal")
        return None if found is None else str(found)

    @property
    def wants_gzip(self) -> bool:
        """Whether JSON may go out compressed (COMP-01)."""
        for coding in (self.header(b"accept-encoding") or "").lower().split(","):
            name, _, q = coding.partition(";")
            if name.strip() in ("gzip", "*"):
                return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", q)
        return False

    def unchanged(self, etag: str) -> bool:
        """Whether the client has this representation already (CACHE-01); `etag` with its quotes."""
        known = self.header(b"if-none-match")
        if known is None:
            return False
        return known.strip() == "*" or any(tag.strip().removeprefix("W/") == etag for tag in known.split(","))

    async def body(self) -> AsyncIterator[bytes]:
        """The decoded body as it arrives (COMP-02). Raises TooLarge, ClientGone, InvalidInput, HttpProblem 415."""
        limit = self.services.max_body_bytes
        declared = self.header(b"content-length") or ""
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        codings = [coding.strip().lower() for coding in (self.header(b"content-encoding") or "").split(",")]
        chunks = self._received()
        framed = (self.header(b"x-amz-content-sha256") or "").startswith("STREAMING-")
        if framed or "aws-chunked" in codings:
            chunks = _without_aws_framing(chunks)
        for coding in codings:
            if coding in ("gzip", "x-gzip"):
                chunks = _gunzip(chunks)
            elif coding not in ("", "identity", "aws-chunked"):
                raise HttpProblem(415, "The only Content-Encoding is gzip.", {b"accept-encoding": b"gzip"})
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            yield chunk

    async def _received(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            if chunk := message.get("body", b""):
                yield chunk
            if not message.get("more_body", False):
                return


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is longer than {limit} bytes; send the instances in several requests.")


_GUNZIP_STEP: Final = 1 << 20


async def _gunzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What gzip holds, in bounded steps, so that the limit of the body stops a bomb."""
    stream = zlib.decompressobj(wbits=31)
    try:
        async for chunk in chunks:
            while chunk:
                if stream.eof:
                    stream = zlib.decompressobj(wbits=31)
                if data := stream.decompress(chunk, _GUNZIP_STEP):
                    yield data
                chunk = stream.unconsumed_tail or stream.unused_data
                if len(data) == _GUNZIP_STEP:
                    await asyncio.sleep(0)
    except zlib.error:
        raise InvalidInput("The body is not valid gzip.") from None
    if not stream.eof:
        raise InvalidInput("The gzip body ends too early.")


_AWS_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(;chunk-signature=[0-9A-Fa-f]*)?\Z")
_MAX_AWS_LINE: Final = 200


async def _without_aws_framing(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The payload of aws-chunked framing; a body that only says so and is plain passes (healthimaging.md 11.1)."""
    held = b""
    left = -1  # bytes left of the current chunk; -1: its line comes next
    begun = False
    async for chunk in chunks:
        held += chunk
        while held:
            if left > 0:
                yield held[:left]
                held, left = held[left:], max(0, left - len(held))
            elif left == 0:  # the CRLF behind a chunk
                if len(held) < 2:
                    break
                held, left = held[2:], -1
            else:
                line, end, rest = held.partition(b"\r\n")
                match = _AWS_LINE.match(line) if end else None
                if match is None and (end or len(held) > _MAX_AWS_LINE):
                    if begun:
                        raise InvalidInput("The aws-chunked framing of the body is broken.")
                    yield held
                    async for plain in chunks:
                        yield plain
                    return
                if match is None:
                    break
                begun, held, left = True, rest, int(match[1], 16)
                if left == 0:  # the last chunk; trailers may follow
                    async for _ in chunks:
                        pass
                    return
    if begun:
        raise InvalidInput("The aws-chunked framing of the body ends too early.")
    if held:
        yield held


@dataclass(slots=True)
class Response:
    """What goes back; `length` is that of a streamed body, where it is known."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None

    async def send(self, send: Send, receive: Receive, *, head: bool) -> None:
        """Sends it; for a HEAD request without its body."""
        if isinstance(self.body, bytes):
            headers = self.headers
            if self.status not in (204, 304):
                headers = [*headers, (b"content-length", b"%d" % len(self.body))]
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if head else self.body})
            return
        headers = self.headers if self.length is None else [*self.headers, (b"content-length", b"%d" % self.length)]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        if head:
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            async for chunk in self.body:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()
            if isinstance(self.body, AsyncGenerator):
                await self.body.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
