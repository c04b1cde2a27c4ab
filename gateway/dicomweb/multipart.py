"""multipart/related, streaming both ways (PS3.18 §8.6.1.2, RFC 2046, MP-01..07)."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

from ..domain.errors import InvalidInput

MAX_HEADERS_BYTES: Final = 16384
"""Of the headers of one part."""
MAX_PADDING: Final = 256
"""Of white space after a boundary."""

Headers = Mapping[str, str]
"""Of a part: names in lower case."""


class Reader:
    """Takes a multipart body apart as it arrives: feed it chunks, then `close` it.

    Tolerates a preamble, an epilogue, padding after a boundary, parts without headers, header names in any case, and
    anything in a payload. Each event is the headers of a new part, or the next bytes of the current one.
    Raises InvalidInput (MP-05).
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._held = b"\r\n"  # so that a boundary at the very start is one too
        self._state = _PREAMBLE

    def feed(self, data: bytes) -> Iterator[Headers | memoryview]:
        """The events in the next chunk of the body."""
        data = self._held + data if self._held else data
        self._held = b""
        at = 0
        while self._state is not _EPILOGUE:
            if self._state is _HEADERS:
                bare = data.startswith(b"\r\n", at)
                end = at if bare else data.find(b"\r\n\r\n", at)
                if end < 0:
                    if len(data) - at > MAX_HEADERS_BYTES:
                        raise InvalidInput(f"The headers of a part are longer than {MAX_HEADERS_BYTES} bytes.")
                    self._held = data[at:]
                    return
                self._state = _PAYLOAD
                yield _parse_headers(data[at:end])
                at = end + (2 if bare else 4)
                continue
            found = data.find(self._delimiter, at)
            end = found if found >= 0 else self._tail(data, at)
            after = found + len(self._delimiter)
            line = data[after : after + MAX_PADDING].lstrip(b" \t") if found >= 0 else b""
            closes = found >= 0 and data.startswith(b"--", after)
            opens = line.startswith(b"\r\n")
            short = len(data) - after < MAX_PADDING
            waits = found < 0 or (short and line in (b"", b"\r")) or data[after : after + 2] == b"-"
            if not (closes or opens or waits):
                end = after  # bytes that only look like a boundary
            if self._state is _PAYLOAD and end > at:
                yield memoryview(data)[at:end]
            if closes:
                self._state = _EPILOGUE
            elif opens:
                self._state = _HEADERS
                at = data.index(b"\r\n", after) + 2
            elif waits:
                self._held = data[end:]
                return
            else:
                at = after

    def close(self) -> None:
        """The body has ended. Raises InvalidInput when its closing boundary has not come."""
        if self._state is _PREAMBLE:
            raise InvalidInput("No part begins with the boundary that the Content-Type names.")
        if self._state is not _EPILOGUE:
            raise InvalidInput("The multipart body ends before its closing boundary.")

    def _tail(self, data: bytes, at: int) -> int:
        """Where a boundary may have begun that the next chunk completes."""
        start = max(at, len(data) - len(self._delimiter))
        while (start := data.find(b"\r", start)) >= 0:
            if self._delimiter.startswith(data[start:]):
                return start
            start += 1
        return len(data)


_PREAMBLE, _HEADERS, _PAYLOAD, _EPILOGUE = "preamble", "headers", "payload", "epilogue"


def _parse_headers(block: bytes) -> Headers:
    headers = {}
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if line and not colon:
            raise InvalidInput("A header of a part has no colon.")
        headers[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    headers.pop("", None)
    return headers


def boundary_for(identity: str) -> str:
    """A boundary of 128 bits that is the same for the same representation (MP-04, BULK-03)."""
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def content_type(media_type: str, boundary: str) -> str:
    """The Content-Type of the whole (MP-01)."""
    return f'multipart/related; type="{media_type}"; boundary={boundary}'


def part_head(boundary: str, media_type: str, location: str, length: int | None, *, first: bool) -> bytes:
    """What stands before a part's payload (MP-02, MP-03).

    `media_type` with its parameters; `length` in bytes where it is known.
    """
    size = "" if length is None else f"Content-Length: {length}\r\n"
    lead = "" if first else "\r\n"
    head = f"{lead}--{boundary}\r\nContent-Type: {media_type}\r\n{size}Content-Location: {location}\r\n\r\n"
    return head.encode("latin-1")


def closing(boundary: str) -> bytes:
    """What stands after the last part's payload."""
    return f"\r\n--{boundary}--".encode("latin-1")
