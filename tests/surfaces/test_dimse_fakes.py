"""Ports in memory, a DIMSE server on them, and a raw requestor that can misbehave: for the other DIMSE tests."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.dimse.server import DimseServer, DimseSettings
from gateway.domain.ids import DatastoreId, JobId
from gateway.domain.model import Origin, Staged
from gateway.domain.query import DicomQuery, SearchAnswer

DEFAULT = DatastoreId("d" * 32)
VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
WAIT_S = 10.0


class Spool:
    """A Staging in memory. `trouble(step)` may raise, with step `open`, `write`, `close` or `sync`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.closed: list[tuple[Origin, bytes]] = []
        self.durable = 0
        self.aborted = 0
        self.trouble: Callable[[str], None] = lambda step: None

    def admit(self) -> None:
        self.trouble("admit")

    def open(self, origin: Origin) -> "SpoolSink":
        self.trouble("open")
        return SpoolSink(self, origin)

    def sync(self) -> None:
        self.trouble("sync")
        with self.lock:
            self.durable = len(self.closed)


class SpoolSink:
    def __init__(self, spool: Spool, origin: Origin) -> None:
        self.spool, self.origin, self.data = spool, origin, bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.spool.trouble("write")
        self.data += data

    def close(self) -> Staged:
        self.spool.trouble("close")
        with self.spool.lock:
            self.spool.closed.append((self.origin, bytes(self.data)))
            return Staged("segment", len(self.spool.closed), len(self.data), self.origin)

    def abort(self) -> None:
        self.spool.aborted += 1


class Jobs:
    """An Intake that notes the batches; the first `failures` submissions fail, those in `held` wait for their event."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.batches: list[tuple[DatastoreId, list[Staged]]] = []
        self.failures = 0
        self.held: list[threading.Event] = []
        self.announced: dict[JobId, list[Staged]] = {}
        self.jobs: list[JobId] = []

    def announce(self, job: JobId, items: Sequence[Staged]) -> None:
        with self.changed:
            self.announced.setdefault(job, []).extend(items)

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged], job: JobId | None = None) -> JobId:
        assert job is not None
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the database is away")
        if self.held:
            await asyncio.to_thread(self.held.pop().wait, WAIT_S)
        with self.changed:
            self.batches.append((datastore, list(items)))
            self.jobs.append(job)
            self.changed.notify_all()
        return job

    def wait_for(self, count: int) -> list[tuple[DatastoreId, list[Staged]]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.batches) >= count, WAIT_S), self.batches
            return self.batches


class Rows:
    """A DicomIndex with fixed rows, paged as asked; `before` is awaited ahead of each answer."""

    def __init__(self, rows: Sequence[dict[str, Any]] = ()) -> None:
        self.rows = list(rows)
        self.queries: list[DicomQuery] = []
        self.before: Callable[[], Any] | None = None

    async def find(self, query: DicomQuery) -> SearchAnswer:
        self.queries.append(query)
        if self.before is not None:
            await self.before()
        end = len(self.rows) if query.limit is None else query.offset + query.limit
        return SearchAnswer(self.rows[query.offset : end], max(len(self.rows) - end, 0))


class Counts:
    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.outcomes: list[str] = []
        self.messages: list[tuple[str, int]] = []

    def association(self, outcome: str) -> None:
        with self.changed:
            self.outcomes.append(outcome)
            self.changed.notify_all()

    def message(self, service: str, status: int, seconds: float, size_bytes: int) -> None:
        self.messages.append((service, status))

    def wait_for(self, count: int) -> list[str]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= count, WAIT_S), self.outcomes
            return self.outcomes


@dataclass
class Running:
    """A server on a free port of the loopback, its event loop in a thread."""

    spool: Spool = field(default_factory=Spool)
    jobs: Jobs = field(default_factory=Jobs)
    index: Rows = field(default_factory=Rows)
    counts: Counts = field(default_factory=Counts)
    port: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    server: Any = None

    def drain(self, timeout_s: float = 5.0) -> "Any":
        return asyncio.run_coroutine_threadsafe(self.server.drain(timeout_s), self.loop)


@contextmanager
def running(index: Rows | None = None, **settings: Any) -> Iterator[Running]:
    """Runs a server; at the end drains it, and fails when one of its threads is left."""
    here = Running(index=index or Rows())
    here.server = DimseServer(
        DimseSettings(port=0, **settings), here.spool, here.jobs, here.index, DEFAULT, here.counts
    )
    thread = threading.Thread(target=here.loop.run_forever, name="loop")
    thread.start()
    try:
        host, here.port = asyncio.run_coroutine_threadsafe(here.server.start(), here.loop).result(WAIT_S)
        assert host == "127.0.0.1"
        assert here.port
        try:
            yield here
        finally:
            if not here.server._draining.is_set():
                here.drain().result(WAIT_S)
    finally:
        here.loop.call_soon_threadsafe(here.loop.stop)
        thread.join()
        here.loop.close()
    for left in threading.enumerate():
        if left.name.startswith("dimse-"):
            left.join(WAIT_S)
            assert not left.is_alive(), left


def item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(value)) + value


def request(
    contexts: Sequence[tuple[int, str, Sequence[str]]],
    *,
    called: bytes = b"GATEWAY",
    calling: bytes = b"TEST",
    version: int = 1,
    application: bytes = b"1.2.840.10008.3.1.1.1",
    max_pdu: int = 16384,
    user: bytes = b"",
) -> bytes:
    """An A-ASSOCIATE-RQ."""
    body = struct.pack(">HH", version, 0) + called.ljust(16) + calling.ljust(16) + bytes(32) + item(0x10, application)
    for number, abstract, syntaxes in contexts:
        parts = item(0x30, abstract.encode()) + b"".join(item(0x40, syntax.encode()) for syntax in syntaxes)
        body += item(0x20, bytes((number, 0, 0, 0)) + parts)
    body += item(0x50, item(0x51, max_pdu.to_bytes(4, "big")) + item(0x52, b"1.2.3.4") + user)
    return struct.pack(">BBI", 1, 0, len(body)) + body


def command(**elements: int | str) -> bytes:
    """A command set from keywords `e0100=1`; UIDs are strings."""
    body = b""
    for name, value in sorted(elements.items()):
        data = value.encode() if isinstance(value, str) else value.to_bytes(2, "little")
        data += b"\0" * (len(data) & 1)
        body += struct.pack("<HHI", 0, int(name[1:], 16), len(data)) + data
    return struct.pack("<HHII", 0, 0, 4, len(body)) + body


def store_command(sop: str = "1.2.3", sop_class: str = CT, message_id: int = 7) -> bytes:
    return command(e0002=sop_class, e0100=1, e0110=message_id, e0700=0, e0800=1, e1000=sop)


def echo_command(message_id: int = 1) -> bytes:
    return command(e0002=VERIFICATION, e0100=0x30, e0110=message_id, e0800=0x101)


def find_command(message_id: int = 5, root: str = STUDY_FIND) -> bytes:
    return command(e0002=root, e0100=0x20, e0110=message_id, e0700=0, e0800=1)


def cancel_command(message_id: int = 5) -> bytes:
    return command(e0100=0xFFF, e0120=message_id, e0800=0x101)


def pdv(context: int, data: bytes, *, is_command: bool, is_last: bool = True) -> bytes:
    return struct.pack(">IBB", len(data) + 2, context, (1 if is_command else 0) | (2 if is_last else 0)) + data


def p_data(*pdvs: bytes) -> bytes:
    body = b"".join(pdvs)
    return struct.pack(">BBI", 4, 0, len(body)) + body


def message(context: int, command_set: bytes, data: bytes | None = None, fragment: int = 16000) -> bytes:
    """A message with each fragment in a PDU of its own."""
    out = b""
    for body, is_command in ((command_set, True), (data, False)):
        for at in range(0, len(body or b""), fragment):
            assert body is not None
            piece = body[at : at + fragment]
            out += p_data(pdv(context, piece, is_command=is_command, is_last=at + fragment >= len(body)))
    return out


@dataclass
class Response:
    elements: dict[int, bytes]
    data: bytes
    pdus: list[int]
    """Lengths of the PDUs that it came in."""

    @property
    def status(self) -> int:
        return int.from_bytes(self.elements[0x0900], "little")

    @property
    def comment(self) -> str:
        return self.elements.get(0x0902, b"").decode().rstrip()


class Raw:
    """A requestor that sends what it is told."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError(data)
            data += more
        return data

    def pdu(self) -> tuple[int, bytes]:
        kind, _, length = struct.unpack(">BBI", self.receive(6))
        return kind, self.receive(length)

    def is_closed(self) -> bool:
        """Waits for the end of the connection."""
        with suppress(ConnectionError):
            return not self.socket.recv(1)
        return True

    def associate(self, contexts: Sequence[tuple[int, str, Sequence[str]]], **more: Any) -> dict[int, tuple[int, str]]:
        """Context id -> (result, transfer syntax)."""
        self.send(request(contexts, **more))
        kind, body = self.pdu()
        assert kind == 2, (kind, body)
        return {number: (result, syntax) for number, result, syntax in _results(body)}

    def response(self) -> Response:
        commands, data, pdus, has_data = b"", b"", [], None
        while True:
            kind, body = self.pdu()
            assert kind == 4, (kind, body)
            pdus.append(len(body))
            at = 0
            while at < len(body):
                length, _, control = struct.unpack_from(">IBB", body, at)
                piece = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    commands += piece
                    if control & 2:
                        elements = _elements(commands)
                        has_data = elements[0x0800] != b"\1\1"
                        if not has_data:
                            return Response(elements, b"", pdus)
                else:
                    data += piece
                    if control & 2:
                        return Response(elements, data, pdus)

    def store(self, context: int, data: bytes, fragment: int = 16000, **of_command: Any) -> Response:
        self.send(message(context, store_command(**of_command), data, fragment))
        return self.response()

    def echo(self, context: int) -> int:
        self.send(message(context, echo_command()))
        return self.response().status

    def release(self) -> None:
        self.send(struct.pack(">BBII", 5, 0, 4, 0))
        assert self.pdu() == (6, bytes(4))


def _elements(data: bytes) -> dict[int, bytes]:
    elements, at = {}, 0
    while at < len(data):
        _, number, length = struct.unpack_from("<HHI", data, at)
        elements[number] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return elements


def _results(body: bytes) -> Iterator[tuple[int, int, str]]:
    at = 68
    while at < len(body):
        kind, _, length = struct.unpack_from(">BBH", body, at)
        value = body[at + 4 : at + 4 + length]
        at += 4 + length
        if kind == 0x21:
            yield value[0], value[2], value[8:].decode()


def user_items(body: bytes) -> dict[int, list[bytes]]:
    """Of an A-ASSOCIATE-AC: sub-item type -> values."""
    found: dict[int, list[bytes]] = {}
    at = body.index(b"\x50\0", 68)
    end = at + 4 + int.from_bytes(body[at + 2 : at + 4], "big")
    at += 4
    while at < end:
        kind, _, length = struct.unpack_from(">BBH", body, at)
        found.setdefault(kind, []).append(body[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def explicit(tag: int, vr: str, value: bytes | str, order: str = "<") -> bytes:
    """One element in Explicit VR."""
    data = value.encode() if isinstance(value, str) else value
    data += (b"\0" if vr in ("UI", "OB") else b" ") * (len(data) & 1)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    if vr in ("SQ", "UN", "OB", "OW", "UT"):
        return head + struct.pack(order + "HI", 0, len(data)) + data
    return head + struct.pack(order + "H", len(data)) + data


def implicit(tag: int, value: bytes | str) -> bytes:
    """One element in Implicit VR."""
    data = value.encode() if isinstance(value, str) else value
    data += b"\0" * (len(data) & 1)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(data)) + data


def data_set(
    sop: str = "1.2.3", sop_class: str = CT, study: str = "1.2", series: str = "1.2.1", order: str = "<"
) -> bytes:
    """A small data set in Explicit VR; an empty argument leaves its element out."""
    parts = ((0x00080016, sop_class), (0x00080018, sop), (0x0020000D, study), (0x0020000E, series))
    body = b"".join(explicit(tag, "UI", value, order) for tag, value in parts if value)
    return body + explicit(0x00280010, "US", struct.pack(order + "H", 4), order)
