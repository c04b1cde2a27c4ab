"""The upper layer's PDUs (PS3.8 §9.3) and the command set (PS3.7 §6.3, E), as bytes and back.

Written here and not taken from pynetdicom, whose decoder refuses what deployed peers send (blank or non-ASCII titles,
unknown sub-items, over-long UIDs: AET-03, NET-06, WILD-01) and takes 45 ms for 128 presentation contexts.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..domain.header import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION
from ..ports import Buffer

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
UNSPECIFIED, UNRECOGNISED_PDU, UNEXPECTED_PDU = 0, 1, 2
UNEXPECTED_PARAMETER, INVALID_PARAMETER = 5, 6

C_STORE_RQ, C_FIND_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0020, 0x0030, 0x0FFF
NO_DATA_SET: Final = 0x0101

_LARGEST_SENT = 1 << 18
_PDU_HEADER = struct.Struct(">BxI")
_ITEM_HEADER = struct.Struct(">BxH")
_ELEMENT = struct.Struct("<HHI")
_PDV = struct.Struct(">BxIIBB")


class ProtocolError(Exception):
    """The peer broke the protocol: the association ends with an A-ABORT of `reason` (PS3.8 table 9-26)."""

    def __init__(self, reason: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as the requestor proposes it."""

    id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """A presentation context as answered: result 0 accepted, 1 user, 2 no reason, 3 abstract, 4 transfer syntaxes."""

    id: int
    result: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """An A-ASSOCIATE-RQ. Titles are trimmed; `reserved` are the bytes that the answer repeats."""

    version: int
    called: str
    calling: str
    reserved: bytes
    application_context: str
    contexts: tuple[ProposedContext, ...]
    max_pdu: int
    """The longest P-DATA-TF that the requestor takes; 0: any."""
    implementation_uid: str
    implementation_version: str
    roles: Mapping[str, tuple[bool, bool]]
    """SOP class -> (SCU, SCP) as proposed for the requestor."""
    extended: Mapping[str, bytes]
    """SOP class -> service class application information."""


def _text(value: Buffer) -> str:
    return bytes(value).decode("latin-1").strip("\0 ")


def _items(data: Buffer) -> Iterator[tuple[int, memoryview]]:
    view, at = memoryview(data), 0
    while at < len(view):
        if len(view) - at < 4:
            raise ProtocolError(INVALID_PARAMETER, "an item is cut short")
        kind, length = _ITEM_HEADER.unpack_from(view, at)
        at += 4
        if length > len(view) - at:
            raise ProtocolError(INVALID_PARAMETER, "an item is longer than what holds it")
        yield kind, view[at : at + length]
        at += length


def _counted(value: memoryview) -> tuple[str, memoryview]:
    """A UID behind its 16-bit length, and what follows."""
    if len(value) < 2 or (length := int.from_bytes(value[:2], "big")) > len(value) - 2:
        raise ProtocolError(INVALID_PARAMETER, "a sub-item is cut short")
    return _text(value[2 : 2 + length]), value[2 + length :]


def decode_associate_request(body: Buffer) -> AssociateRequest:
    """The request in an A-ASSOCIATE-RQ's body, which starts at the protocol version (PS3.8 §9.3.2).

    Unknown items are ignored (NET-06), titles may be blank or of any character (AET-03). Raises ProtocolError.
    """
    if len(body) < 68:
        raise ProtocolError(INVALID_PARAMETER, "the association request is cut short")
    view = memoryview(body)
    application_context, max_pdu, implementation, version_name = "", 0, "", ""
    contexts: list[ProposedContext] = []
    roles: dict[str, tuple[bool, bool]] = {}
    extended: dict[str, bytes] = {}
    for kind, value in _items(view[68:]):
        if kind == 0x10:
            application_context = _text(value)
        elif kind == 0x20:
            if len(value) < 4:
                raise ProtocolError(INVALID_PARAMETER, "a presentation context is cut short")
            syntaxes = [(part, _text(uid)) for part, uid in _items(value[4:])]
            abstract = next((uid for part, uid in syntaxes if part == 0x30), "")
            contexts.append(ProposedContext(value[0], abstract, tuple(uid for part, uid in syntaxes if part == 0x40)))
        elif kind == 0x50:
            for part, item in _items(value):
                if part == 0x51 and len(item) == 4:
                    max_pdu = int.from_bytes(item, "big")
                elif part == 0x52:
                    implementation = _text(item)
                elif part == 0x55:
                    version_name = _text(item)
                elif part == 0x54:
                    uid, rest = _counted(item)
                    if len(rest) < 2:
                        raise ProtocolError(INVALID_PARAMETER, "a role selection is cut short")
                    roles[uid] = (rest[0] == 1, rest[1] == 1)
                elif part == 0x56:
                    uid, rest = _counted(item)
                    extended[uid] = bytes(rest)
    return AssociateRequest(
        version=int.from_bytes(view[:2], "big"),
        called=_text(view[4:20]),
        calling=_text(view[20:36]),
        reserved=bytes(view[4:68]),
        application_context=application_context,
        contexts=tuple(contexts),
        max_pdu=max_pdu,
        implementation_uid=implementation,
        implementation_version=version_name,
        roles=roles,
        extended=extended,
    )


def _item(kind: int, value: bytes) -> bytes:
    return _ITEM_HEADER.pack(kind, len(value)) + value


def _uid_counted(uid: str) -> bytes:
    text = uid.encode("latin-1")
    return len(text).to_bytes(2, "big") + text


def encode_associate_accept(
    reserved: bytes,
    contexts: Iterable[ContextResult],
    max_pdu: int,
    roles: Mapping[str, tuple[bool, bool]],
    extended: Mapping[str, bytes],
) -> bytes:
    """A whole A-ASSOCIATE-AC (PS3.8 §9.3.3); the asynchronous window is left out, which means 1/1 (NET-06)."""
    parts = [b"\0\1\0\0", reserved, _item(0x10, APPLICATION_CONTEXT.encode())]
    for context in contexts:
        syntax = _item(0x40, context.transfer_syntax.encode("latin-1"))
        parts.append(_item(0x21, bytes((context.id, 0, context.result, 0)) + syntax))
    user = [
        _item(0x51, max_pdu.to_bytes(4, "big")),
        _item(0x52, IMPLEMENTATION_CLASS_UID.encode()),
        *(_item(0x54, _uid_counted(uid) + bytes(role)) for uid, role in roles.items()),
        _item(0x55, IMPLEMENTATION_VERSION.encode()),
        *(_item(0x56, _uid_counted(uid) + information) for uid, information in extended.items()),
    ]
    parts.append(_item(0x50, b"".join(user)))
    body = b"".join(parts)
    return _PDU_HEADER.pack(ASSOCIATE_AC, len(body)) + body


def encode_associate_reject(result: int, source: int, reason: int) -> bytes:
    """A whole A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return _PDU_HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, result, source, reason))


def encode_release_response() -> bytes:
    """A whole A-RELEASE-RP."""
    return _PDU_HEADER.pack(RELEASE_RP, 4) + bytes(4)


def encode_abort(reason: int) -> bytes:
    """A whole A-ABORT by the service provider."""
    return _PDU_HEADER.pack(ABORT, 4) + bytes((0, 0, 2, reason))


def encode_p_data(context: int, message: bytes, *, command: bool, max_pdu: int) -> bytes:
    """`message`, a command set or a data set, as P-DATA-TF PDUs no longer than the peer's `max_pdu` (0: any).

    Fragments have even lengths (PS3.8 annex E).
    """
    kind = 1 if command else 0
    # A limit too small for any fragment is taken for the smallest that can hold one.
    size = max(min(max_pdu or _LARGEST_SENT, _LARGEST_SENT) - 6, 2) & ~1
    if len(message) <= size:
        return _PDV.pack(P_DATA, len(message) + 6, len(message) + 2, context, kind | 2) + message
    parts: list[bytes] = []
    for at in range(0, len(message), size):
        piece = message[at : at + size]
        last = 2 if at + size >= len(message) else 0
        parts += (_PDV.pack(P_DATA, len(piece) + 6, len(piece) + 2, context, kind | last), piece)
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Command:
    """The command set of a message, as far as the services here need it."""

    field: int
    message_id: int
    responding_to: int
    """Message ID Being Responded To: of a C-CANCEL."""
    sop_class: str
    sop_uid: str
    has_data: bool


def decode_command(data: Buffer) -> Command:
    """A command set in Implicit VR Little Endian (PS3.7 §6.3.1). Raises ProtocolError."""
    elements: dict[int, bytes] = {}
    view, at = memoryview(data), 0
    while at < len(view):
        if len(view) - at < 8:
            raise ProtocolError(INVALID_PARAMETER, "the command set is cut short")
        group, element, length = _ELEMENT.unpack_from(view, at)
        at += 8
        if group or length > len(view) - at:
            raise ProtocolError(INVALID_PARAMETER, "the command set cannot be read")
        elements[element] = bytes(view[at : at + length])
        at += length

    def number(element: int, default: int | None = None) -> int:
        value = elements.get(element, b"")
        if len(value) >= 2:
            return int.from_bytes(value[:2], "little")
        if default is None:
            raise ProtocolError(INVALID_PARAMETER, f"the command set lacks (0000,{element:04X})")
        return default

    field = number(0x0100)
    # A C-CANCEL and every response name the message that they respond to, and need no id of their own.
    names_another = field == C_CANCEL_RQ or field & 0x8000
    return Command(
        field=field,
        message_id=number(0x0110, 0 if names_another else None),
        responding_to=number(0x0120, 0),
        sop_class=_text(elements.get(0x0002) or elements.get(0x0003, b"")),
        sop_uid=_text(elements.get(0x1000) or elements.get(0x1001, b"")),
        has_data=number(0x0800, NO_DATA_SET) != NO_DATA_SET,
    )


def _element(number: int, value: bytes) -> bytes:
    return _ELEMENT.pack(0, number, len(value)) + value


def _us(number: int, value: int) -> bytes:
    return _element(number, value.to_bytes(2, "little"))


def encode_response(
    request: Command, status: int, comment: str = "", offending: Sequence[int] = (), *, has_data: bool = False
) -> bytes:
    """The command set of the response to `request` (PS3.7 §9.3, annex C).

    `comment` is cut to 64 characters of ASCII (CSTORE-08); `offending` are tags.
    """

    def uid(number: int, value: str) -> bytes:
        text = value.encode("latin-1")
        return _element(number, text + b"\0" * (len(text) & 1)) if text else b""

    parts = [
        uid(0x0002, request.sop_class),
        _us(0x0100, request.field | 0x8000),
        _us(0x0120, request.message_id),
        _us(0x0800, 1 if has_data else NO_DATA_SET),
        _us(0x0900, status),
    ]
    if offending:
        parts.append(_element(0x0901, b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in offending)))
    if comment:
        text = comment.encode("ascii", "replace").replace(b"\\", b"/")[:64]
        parts.append(_element(0x0902, text + b" " * (len(text) & 1)))
    parts.append(uid(0x1000, request.sop_uid))
    body = b"".join(parts)
    return _element(0, len(body).to_bytes(4, "little")) + body
