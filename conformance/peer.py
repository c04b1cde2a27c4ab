"""The server under judgement, seen through DIMSE: an SCU that writes its own PDUs (PS3.8 §9.3) and messages (PS3.7).

It keeps to the standard, or leaves it where a case wants that: no library would send what some devices send.
"""

import socket
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final

from pydicom import config, dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
VERIFICATION: Final = "1.2.840.10008.1.1"
PATIENT_FIND: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
COMMITMENT: Final = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = "1.2.840.10008.1.2.1"

_TIMEOUT_S: Final = 20.0
_ACCEPT, _REJECT, _DATA, _RELEASE_RP, _ABORT = 2, 3, 4, 6, 7


class Broken(Exception):
    """The association ended, or answered what no association answers; the text says how."""


class Rejected(Broken):
    """A-ASSOCIATE-RJ."""

    def __init__(self, result: int, source: int, reason: int) -> None:
        super().__init__(f"the association was rejected: result {result}, source {source}, reason {reason}")
        self.values = (result, source, reason)


@dataclass(frozen=True, slots=True)
class Context:
    """A presentation context as proposed."""

    abstract: str
    syntaxes: tuple[str, ...] = (EXPLICIT, IMPLICIT)


@dataclass(slots=True)
class Message:
    """A DIMSE message: the command's elements by tag, and the data set's bytes."""

    context: int
    command: Mapping[int, bytes]
    data: bytes = b""

    def number(self, tag: int) -> int | None:
        """A US or UL of the command."""
        raw = self.command.get(tag)
        return None if raw is None else int.from_bytes(raw, "little")

    def text(self, tag: int) -> str:
        return self.command.get(tag, b"").rstrip(b"\0 ").decode("ascii", "replace")

    @property
    def status(self) -> int:
        """Raises Broken where the response has none."""
        status = self.number(0x00000900)
        if status is None:
            raise Broken("a response without Status (0000,0900)")
        return status


@dataclass(slots=True)
class Accepted:
    """A-ASSOCIATE-AC."""

    application_context: str = ""
    results: dict[int, int] = field(default_factory=dict)
    """Context id -> result."""
    syntaxes: dict[int, str] = field(default_factory=dict)
    """Context id -> transfer syntax, of those accepted."""
    user: list[tuple[int, bytes]] = field(default_factory=list)
    """The user information: item type, data."""

    def item(self, kind: int) -> bytes | None:
        return next((data for one, data in self.user if one == kind), None)

    @property
    def max_pdu(self) -> int:
        """0: unlimited."""
        return int.from_bytes(self.item(0x51) or b"", "big")


def _item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(data)) + data


def sub_item(uid: str, data: bytes) -> bytes:
    """What role selection and extended negotiation begin with."""
    return struct.pack(">H", len(uid)) + uid.encode() + data


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        kind, _, length = struct.unpack_from(">BBH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def _uid(data: bytes) -> str:
    return data.rstrip(b"\0 ").decode("ascii", "replace")


def encode(made: Dataset, syntax: str) -> bytes:
    """A data set without File Meta."""
    target = DicomBytesIO()
    target.is_little_endian, target.is_implicit_VR = True, syntax == IMPLICIT
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(target, made)
    return target.getvalue()


def decode(data: bytes, syntax: str) -> Dataset:
    """A data set without File Meta. Raises Broken."""
    try:
        with config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meta = _meta(syntax)
            made = dcmread(BytesIO(meta + data))
            for _ in made.iterall():
                pass
    except Exception as fault:
        raise Broken(f"an identifier cannot be read ({type(fault).__name__})") from None
    return made


def _meta(syntax: str) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element


def body_of(part10: bytes) -> bytes:
    """The data set of a PS3.10 file, as it stands behind its File Meta."""
    (length,) = struct.unpack_from("<I", part10, 140)
    return part10[144 + length :]


class Association:
    """One association; its methods raise Broken."""

    def __init__(self, connection: socket.socket, contexts: Sequence[Context]) -> None:
        self._socket = connection
        self._contexts = contexts
        self._message_id = 0
        self.accepted = Accepted()
        self.longest_pdu = 0
        """Of P-DATA-TF received: bytes behind its length."""

    # PDUs

    def send_pdu(self, kind: int, data: bytes) -> None:
        try:
            self._socket.sendall(struct.pack(">BBI", kind, 0, len(data)) + data)
        except OSError as fault:
            raise Broken(f"the connection is gone ({type(fault).__name__})") from None

    def receive_pdu(self) -> tuple[int, bytes]:
        head = self._read(6)
        kind, _, length = struct.unpack(">BBI", head)
        if length > 1 << 26:
            raise Broken(f"a PDU of {length} bytes")
        return kind, self._read(length)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self._socket.recv(min(1 << 16, size - len(data)))
            except OSError as fault:
                raise Broken(f"no answer ({type(fault).__name__})") from None
            if not piece:
                raise Broken("the connection was closed")
            data += piece
        return data

    def take_accept(self) -> Accepted:
        """The answer to A-ASSOCIATE-RQ. Raises Rejected."""
        kind, data = self.receive_pdu()
        if kind == _REJECT:
            raise Rejected(data[1], data[2], data[3])
        if kind != _ACCEPT:
            raise Broken(f"a PDU of type {kind} answers A-ASSOCIATE-RQ")
        for item, content in _items(data[68:]):
            if item == 0x10:
                self.accepted.application_context = _uid(content)
            elif item == 0x21:
                self.accepted.results[content[0]] = content[2]
                syntax = next((_uid(one) for sub, one in _items(content[4:]) if sub == 0x40), "")
                if content[2] == 0:
                    self.accepted.syntaxes[content[0]] = syntax
            elif item == 0x50:
                self.accepted.user = list(_items(content))
        return self.accepted

    def release(self) -> None:
        """A-RELEASE; raises Broken unless it is answered."""
        self.send_pdu(5, bytes(4))
        while True:
            kind, _ = self.receive_pdu()
            if kind == _RELEASE_RP:
                return
            if kind != _DATA:
                raise Broken(f"a PDU of type {kind} answers A-RELEASE-RQ")

    def abort(self) -> None:
        self.send_pdu(_ABORT, bytes(4))

    # messages

    def context(self, abstract: str, syntax: str | None = None) -> int | None:
        """The id of the accepted context of an abstract syntax, and of a transfer syntax if named."""
        for number, proposed in enumerate(self._contexts):
            found = self.accepted.syntaxes.get(2 * number + 1)
            if proposed.abstract == abstract and found is not None and syntax in (None, found):
                return 2 * number + 1
        return None

    def syntax(self, context: int) -> str:
        return self.accepted.syntaxes[context]

    def send(self, context: int, command: Mapping[int, int | str], data: bytes | None = None, piece: int = 0) -> int:
        """A message, numbers as US; returns its Message ID. `piece`: the longest fragment, where not as negotiated."""
        self._message_id += 1
        elements: dict[int, bytes] = {0x00000110: struct.pack("<H", self._message_id)}
        elements[0x00000800] = struct.pack("<H", 0x0101 if data is None else 0x0001)
        for tag, value in command.items():
            if isinstance(value, int):
                elements[tag] = struct.pack("<H", value)
            else:
                elements[tag] = value.encode() + b"\0" * (len(value) % 2)
        body = b"".join(
            struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(raw)) + raw for tag, raw in sorted(elements.items())
        )
        whole = struct.pack("<HHII", 0, 0, 4, len(body)) + body
        limit = piece or min((self.accepted.max_pdu or 65536) - 6, 65530)
        for content, flag in ((whole, 1), (data, 0)):
            if content is None:
                continue
            for at in range(0, max(1, len(content)), limit):
                cut = content[at : at + limit]
                last = 2 if at + limit >= len(content) else 0
                self.send_pdu(_DATA, struct.pack(">IBB", len(cut) + 2, context, flag | last) + cut)
        return self._message_id

    def receive(self) -> Message:
        """The next message."""
        command, data, context = b"", b"", 0
        wanted = True
        while True:
            kind, pdu = self.receive_pdu()
            if kind == _ABORT:
                raise Broken(f"A-ABORT, source {pdu[2]}, reason {pdu[3]}")
            if kind != _DATA:
                raise Broken(f"a PDU of type {kind} where a message belongs")
            self.longest_pdu = max(self.longest_pdu, len(pdu))
            at = 0
            while at < len(pdu):
                length, context, flags = struct.unpack_from(">IBB", pdu, at)
                content = pdu[at + 6 : at + 4 + length]
                at += 4 + length
                if flags & 1:
                    command += content
                else:
                    data += content
                if flags & 1 and flags & 2:
                    wanted = _command(command).get(0x00000800) != b"\x01\x01"
                if flags & 2 and (not wanted or not flags & 1):
                    return Message(context, _command(command), data)

    # services

    def echo(self) -> int:
        """The status of C-ECHO."""
        context = self.context(VERIFICATION)
        if context is None:
            raise Broken("no context of Verification was accepted")
        self.send(context, {0x00000002: VERIFICATION, 0x00000100: 0x0030})
        return self.receive().status

    def store(self, sop_class: str, sop: str, data: bytes, context: int | None = None, piece: int = 0) -> Message:
        """The response to C-STORE."""
        found = self.context(sop_class) if context is None else context
        if found is None:
            raise Broken(f"no context of {sop_class} was accepted")
        command: dict[int, int | str] = {0x00000002: sop_class, 0x00000100: 0x0001, 0x00000700: 0, 0x00001000: sop}
        self.send(found, command, data, piece)
        return self.receive()

    def find(self, identifier: Dataset, model: str = STUDY_FIND) -> "Found":
        """All responses to C-FIND."""
        context = self.context(model)
        if context is None:
            raise Broken(f"no context of {model} was accepted")
        syntax = self.syntax(context)
        self.send(context, {0x00000002: model, 0x00000100: 0x0020, 0x00000700: 0}, encode(identifier, syntax))
        found = Found()
        while True:
            message = self.receive()
            found.statuses.append(message.status)
            if message.status not in (0xFF00, 0xFF01):
                found.last = message
                return found
            found.rows.append(decode(message.data, syntax))


@dataclass(slots=True)
class Found:
    """What a C-FIND answered."""

    statuses: list[int] = field(default_factory=list)
    rows: list[Dataset] = field(default_factory=list)
    last: Message | None = None

    @property
    def status(self) -> int:
        """The final one."""
        return self.statuses[-1]


def _command(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        found[group << 16 | element] = data[at + 8 : at + 8 + length]
        at += 8 + length
    return found


class Peer:
    """An application entity at an address."""

    def __init__(self, host: str, port: int, title: str, calling: str = "CONFORMANCE") -> None:
        self.host, self.port, self.title, self.calling = host, port, title, calling

    @contextmanager
    def connected(self, contexts: Iterable[Context] = ()) -> Iterator[Association]:
        """A TCP connection without an association."""
        try:
            connection = socket.create_connection((self.host, self.port), timeout=_TIMEOUT_S)
        except OSError as fault:
            raise Broken(f"no connection to {self.host}:{self.port} ({type(fault).__name__})") from None
        with connection:
            yield Association(connection, [*contexts])

    def request(
        self,
        contexts: Sequence[Context],
        *,
        application_context: str = APPLICATION_CONTEXT,
        protocol: int = 1,
        called: str | None = None,
        calling: str | None = None,
        max_pdu: int = 65536,
        user: bytes = b"",
    ) -> bytes:
        """What A-ASSOCIATE-RQ says; `user` are further items of user information."""
        proposed = b""
        for number, one in enumerate(contexts):
            inner = _item(0x30, one.abstract.encode()) + b"".join(_item(0x40, s.encode()) for s in one.syntaxes)
            proposed += _item(0x20, struct.pack(">BBBB", 2 * number + 1, 0, 0, 0) + inner)
        information = _item(0x51, struct.pack(">I", max_pdu)) + _item(0x52, b"1.2.826.0.1.3680043.10.511.3") + user
        head = struct.pack(">HH", protocol, 0)
        head += (self.title if called is None else called).encode().ljust(16)
        head += (self.calling if calling is None else calling).encode().ljust(16)
        return head + bytes(32) + _item(0x10, application_context.encode()) + proposed + _item(0x50, information)

    @contextmanager
    def association(self, *contexts: Context, **more: object) -> Iterator[Association]:
        """An association, released at the end; see `request`. Raises Rejected, Broken."""
        with self.connected(contexts) as association:
            association.send_pdu(1, self.request(contexts, **more))  # type: ignore[arg-type]
            association.take_accept()
            yield association
            association.release()
