"""Messages between the gateway and its decode processes: a JSON head and a payload, over a socket pair.

No pickle: what a decode process says is not trusted.
"""

import json
import socket
import struct
import time
from typing import Any

_LENGTHS = struct.Struct(">IQ")
_MAX_HEAD = 1 << 26


class Lost(Exception):
    """The other side is gone, or does not speak this protocol."""


def send(connection: socket.socket, head: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Sends one message. Raises Lost; TimeoutError by the socket's own timeout."""
    words = json.dumps(head).encode()
    try:
        connection.sendall(_LENGTHS.pack(len(words), len(payload)) + words)
        if payload:  # to send nothing can fail: the other side may have answered the head and gone
            connection.sendall(payload)
    except TimeoutError:
        raise
    except OSError as error:
        raise Lost from error


def receive(
    connection: socket.socket, max_payload: int, timeout_s: float | None = None
) -> tuple[dict[str, Any], bytes]:
    """The next message. Raises Lost, and TimeoutError when it is not there entirely after `timeout_s`."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    head_size, size = _LENGTHS.unpack(_read(connection, _LENGTHS.size, deadline))
    if head_size > _MAX_HEAD or size > max_payload:
        raise Lost
    try:
        head = json.loads(_read(connection, head_size, deadline))
    except ValueError as error:
        raise Lost from error
    if not isinstance(head, dict):
        raise Lost
    return head, bytes(_read(connection, size, deadline))


def _read(connection: socket.socket, size: int, deadline: float | None) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            count = connection.recv_into(view)
        except TimeoutError:
            raise
        except OSError as error:
            raise Lost from error
        if not count:
            raise Lost
        view = view[count:]
    return data
