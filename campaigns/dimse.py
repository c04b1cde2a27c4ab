"""A small C-STORE user over a socket: it costs next to nothing, so that a campaign loads the gateway, not itself."""

import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final

from campaigns.instances import SYNTAXES, Instance

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
_APPLICATION = b"1.2.840.10008.3.1.1.1"
_IMPLEMENTATION = b"1.2.826.0.1.3680043.10.511.1"
_ACCEPT, _DATA, _RELEASE, _RELEASED = 2, 4, 5, 6


class Lost(Exception):
    """The association ended before the answer came."""


class Association:
    """An association with one presentation context for each transfer syntax (PS3.8 §9.3). Raises Lost, OSError."""

    def __init__(
        self,
        address: tuple[str, int],
        called: str,
        syntaxes: Sequence[str] = SYNTAXES,
        timeout_s: float = 30.0,
        sop_class: str = CT,
    ) -> None:
        self._class = sop_class.encode()
        self._socket = socket.create_connection(address, timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._messages = 0
        self._contexts = {syntax: 2 * place + 1 for place, syntax in enumerate(syntaxes)}
        try:
            self._request(called)
        except BaseException:
            self.close()
            raise

    def store(self, instance: Instance) -> int:
        """Sends one instance; the status of the answer (PS3.7 §9.1.1)."""
        return self.store_pieces(instance.sop, instance.syntax, [instance.data_set])

    def store_pieces(self, sop: str, syntax: str, pieces: Iterable[bytes]) -> int:
        """The same for a data set that comes piece by piece, and may be larger than memory."""
        context = self._contexts[syntax]
        self._messages = self._messages % 0xFFFF + 1
        command = b"".join(
            (
                _element(0x0002, self._class),
                _element(0x0100, struct.pack("<H", 0x0001)),
                _element(0x0110, struct.pack("<H", self._messages)),
                _element(0x0700, struct.pack("<H", 0)),
                _element(0x0800, struct.pack("<H", 0)),
                _element(0x1000, sop.encode()),
            )
        )
        held = _pdu(context, 3, _element(0x0000, struct.pack("<I", len(command))) + command)
        last = b""
        for piece in pieces:
            for start in range(0, len(piece), self._fragment):
                if last:
                    held += _pdu(context, 0, last)
                if len(held) > 1 << 20:
                    self._socket.sendall(held)
                    held = b""
                last = piece[start : start + self._fragment]
        self._socket.sendall(held + _pdu(context, 2, last))
        return self._status()

    def takes(self, syntax: str) -> bool:
        """Whether instances in this transfer syntax may be sent."""
        return syntax in self._contexts

    def release(self) -> None:
        """Ends the association in order; returns when the peer agrees."""
        try:
            self._socket.sendall(struct.pack(">BBII", _RELEASE, 0, 4, 0))
            self._receive(_RELEASED)
        finally:
            self.close()

    def close(self) -> None:
        """Drops the connection."""
        self._socket.close()

    def _request(self, called: str) -> None:
        body = struct.pack(">HH", 1, 0) + called.encode().ljust(16) + b"CAMPAIGN".ljust(16) + bytes(32)
        body += _item(0x10, _APPLICATION)
        for syntax, context in self._contexts.items():
            names = _item(0x30, self._class) + _item(0x40, syntax.encode())
            body += _item(0x20, bytes((context, 0, 0, 0)) + names)
        body += _item(0x50, _item(0x51, struct.pack(">I", 0)) + _item(0x52, _IMPLEMENTATION))
        self._socket.sendall(struct.pack(">BBI", 1, 0, len(body)) + body)
        answer = self._receive(_ACCEPT)
        most = answer.find(b"\x51\x00\x00\x04", 68)
        (limit,) = struct.unpack_from(">I", answer, most + 4) if most >= 0 else (0,)
        self._fragment = (limit or 1 << 20) - 6
        at = 68
        while at + 4 <= len(answer):
            kind, _, length = struct.unpack_from(">BBH", answer, at)
            if kind == 0x21 and answer[at + 6]:  # a presentation context that was not accepted
                self._contexts = {name: id for name, id in self._contexts.items() if id != answer[at + 4]}
            at += 4 + length

    def _status(self) -> int:
        body = self._receive(_DATA)
        at = 6
        while at + 8 <= len(body):
            _, element, length = struct.unpack_from("<HHI", body, at)
            if element == 0x0900:
                (status,) = struct.unpack_from("<H", body, at + 8)
                return int(status)
            at += 8 + length
        raise Lost("an answer without a status")

    def _receive(self, expected: int) -> bytes:
        kind, _, length = struct.unpack(">BBI", self._exactly(6))
        body = self._exactly(length)
        if kind != expected:
            raise Lost(f"PDU of type {kind} instead of {expected}")
        return body

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            if not more:
                raise Lost("closed by the gateway")
            data += more
        return data


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _element(element: int, value: bytes) -> bytes:
    """Of the command group, in Implicit VR Little Endian."""
    value += bytes(len(value) % 2)
    return struct.pack("<HHI", 0, element, len(value)) + value


def _pdu(context: int, flags: int, data: bytes) -> bytes:
    return struct.pack(">BBIIBB", _DATA, 0, len(data) + 6, len(data) + 2, context, flags) + data
