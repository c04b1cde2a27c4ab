"""Instances, frames, metadata and bulk data out of the store, in the transfer syntax asked for.

    offers(entry)      the transfer syntaxes that an instance can be had in, the stored one first
    frame, frames      one frame; frames in order, some in flight
    instances          Part 10 files in order, some in flight, in bounded memory
    pixels, bulk       native Pixel Data piece by piece; any other value
"""

import asyncio
import re
import struct
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from ..domain.encapsulation import pack_bits_frames
from ..domain.errors import Corrupt, NotAcceptable, NotFound
from ..domain.header import write_meta
from ..domain.model import Document, Entry, Selected, Selection
from ..domain.pixels import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelFormat
from ..domain.syntaxes import BIG_ENDIAN, EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL, Family, by_uid, decoded
from ..ports import Codec, Instances

T = TypeVar("T")
S = TypeVar("S")

FRAMES_AHEAD: Final = 4
"""Frames of one instance that are read and decoded while an earlier one is sent."""
INSTANCES_AHEAD: Final = 4
"""Instances whose head and first frame are read while an earlier one is sent."""

_UNDECODABLE_WARNINGS: Final = frozenset({0xB100, 0xB120})
MAX_VALUE_LENGTH: Final = 0xFFFFFFFE
"""Bytes of a value of defined length (PS3.5 §7.1.1)."""

_PHOTOMETRIC: Final = 0x00280004
_PLANAR: Final = 0x00280006
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"

DecodeForeign = Callable[[bytes, str, PixelFormat], bytes]


class Wanted(NamedTuple):
    """One instance, and the transfer syntax that it is to be sent in."""

    entry: Entry
    syntax: str
    or_stored: bool = False
    """Where decoding fails, the stored bytes will do (TS-01)."""


@dataclass(slots=True)
class Opened:
    """The start of a Part 10 file, and how to go on."""

    syntax: str
    """The transfer syntax that it is in."""
    start: list[bytes]
    rest: AsyncGenerator[bytes] | None
    length: int | None
    """Of the whole, where it is known."""


class Retrieve:
    """Reads through the port; decodes trusted frames in the threads of `executor`, and foreign ones supervised.

    `decode_foreign` is blocking and raises NotAcceptable for what it cannot decode. `missing` names the transfer
    syntaxes that no codec at hand decodes.
    """

    def __init__(
        self,
        instances: Instances,
        codec: Codec,
        decode_foreign: DecodeForeign,
        executor: Executor,
        missing: frozenset[str] = frozenset(),
    ) -> None:
        self._instances = instances
        self._codec = codec
        self._decode_foreign = decode_foreign
        self._executor = executor
        self._missing = missing

    async def select(self, selection: Selection) -> Selected:
        """The instances meant. Raises NotFound, Gone, InvalidInput."""
        return await self._instances.select(selection)

    async def metadata(self, selected: Selected, base_url: str, *, gzip: bool) -> Document:
        """One DICOM JSON array (PS3.18 §10.4.1.1.2); `base_url` ends before `/studies`."""
        return await self._instances.metadata(selected.entries, base_url, gzip=gzip)

    async def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        """VR and value of an attribute other than Pixel Data. Raises NotFound."""
        return await self._instances.bulk(entry, path)

    async def document_type(self, entry: Entry) -> str | None:
        """MIME Type of Encapsulated Document (0042,0012), if it looks like one."""
        before, after = await self._instances.head(entry)
        value = b""
        for part in (before, after):
            for tag, start, end in elements(part):
                if tag == 0x00420012:
                    value = part[start + 8 : end]
        text = value.rstrip(b" \x00").decode("latin-1")
        return text if re.fullmatch(r"[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+", text) else None

    def offers(self, entry: Entry) -> tuple[str, ...]:
        """The transfer syntaxes that an instance can be had in, the stored one first (TS-01..05)."""
        stored = entry.stored_syntax
        if stored is None:
            return (EXPLICIT_LE,)
        row = by_uid(stored)
        if row is None:
            return (stored,)
        if not row.encapsulated:
            return (EXPLICIT_LE,)
        if (
            entry.format is None
            or not entry.frames
            or entry.warning in _UNDECODABLE_WARNINGS
            or row.family in (Family.VIDEO, Family.REFERENCED, Family.DEFLATE)
            or stored in self._missing
        ):
            return (stored,)
        if entry.format.frame_bytes * entry.frames > MAX_VALUE_LENGTH:
            return (stored,)
        return (stored, EXPLICIT_LE)

    async def frame(self, entry: Entry, index: int, target: str) -> bytes:
        """Frame `index`, from 0, in one of its `offers`. Raises NotFound, NotAcceptable, Corrupt."""
        frame = await self._instances.frame(entry, index)
        if frame.syntax == target:
            return frame.data
        if entry.format is None:
            raise NotAcceptable(f"The frames are stored as {frame.syntax}; ask for transfer-syntax=*.")
        loop = asyncio.get_running_loop()
        if frame.syntax == EXPLICIT_LE and target == entry.stored_syntax:  # still waits for its encoding
            return await loop.run_in_executor(self._executor, self._codec.encode, frame.data, entry.format, target)
        if target != EXPLICIT_LE:
            raise NotAcceptable(f"The frames are stored as {frame.syntax}; ask for transfer-syntax=*.")
        decode = self._codec.decode if frame.syntax == HTJ2K_LOSSLESS_RPCL else self._decode_foreign
        return await loop.run_in_executor(self._executor, decode, frame.data, frame.syntax, entry.format)

    def frames(self, entry: Entry, indexes: Iterable[int], target: str) -> AsyncGenerator[bytes]:
        """Frames in the order of `indexes`, some in flight."""
        return in_order(indexes, lambda index: self.frame(entry, index, target), FRAMES_AHEAD)

    async def pixels(self, entry: Entry) -> AsyncGenerator[bytes]:
        """The value of native Pixel Data, piece by piece: frames joined, those of single bits packed (WADO-07)."""
        async with aclosing(self.frames(entry, range(entry.frames), EXPLICIT_LE)) as frames:
            if entry.format is not None and entry.format.frame_bits % 8:
                yield pack_bits_frames([frame async for frame in frames], entry.format)
                return
            async for frame in frames:
                yield frame

    async def received_pixels(self, entry: Entry) -> tuple[str, bytes]:
        """Transfer syntax and value of Pixel Data that cannot be cut into frames, as received."""
        value = await self._instances.pixel_data(entry)
        return value.syntax, value.data

    def instances(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Opened]:
        """Part 10 files in order (WADO-02). Each is to be read to its end before the next is asked for.

        Raises NotAcceptable, Corrupt.
        """
        return in_order(wanted, self._open, INSTANCES_AHEAD)

    async def _open(self, wanted: Wanted) -> Opened:
        entry, target, or_stored = wanted
        before, after = await self._instances.head(entry)
        if entry.stored_syntax is None:
            return _whole(entry, EXPLICIT_LE, before, after)
        if entry.format is None or not entry.frames:
            return await self._open_unframed(entry, before, after)
        try:
            first = await self.frame(entry, 0, target)
        except NotAcceptable:
            if not or_stored:
                raise
            target = entry.stored_syntax
            first = await self.frame(entry, 0, target)
        before = patched(before, _adjustments(entry, target, first))
        if target != EXPLICIT_LE:
            # An empty Basic Offset Table: it would need the length of every frame before the first is sent.
            start = [before, _element_head(PIXEL_DATA, "OB", None), _item(b""), _item(first)]
            end = _SEQUENCE_END + after
            if entry.frames == 1:
                return _whole(entry, target, *start, end)
            start.insert(0, _meta(entry, target))
            return Opened(target, start, self._encapsulated_rest(entry, target, end), None)
        tag, vr = _native_element(entry.format)
        if entry.frames == 1:
            pad = len(first) % 2
            return _whole(entry, target, before, _element_head(tag, vr, len(first) + pad), first, b"\0" * pad, after)
        shared = entry.format.frame_bits % 8  # frames of single bits share bytes
        length = (entry.format.frame_bits * entry.frames + 7) // 8 if shared else len(first) * entry.frames
        if length > MAX_VALUE_LENGTH:
            raise NotAcceptable("The pixel data is too long for Explicit VR Little Endian; ask for transfer-syntax=*.")
        pad = length % 2
        head = b"".join((_meta(entry, target), before, _element_head(tag, vr, length + pad)))
        end = b"\0" * pad + after
        return Opened(target, [head], self._native_rest(entry, end), len(head) + length + len(end))

    async def _open_unframed(self, entry: Entry, before: bytes, after: bytes) -> Opened:
        """The value as received: native as a value of known length, encapsulated as it stands."""
        syntax, value = await self.received_pixels(entry)
        row = by_uid(syntax)
        if row is not None and not row.encapsulated:
            pad = len(value) % 2
            words = _bits_allocated(before) > 8
            if words and syntax == BIG_ENDIAN and not pad:
                swapped = array("H", value)
                swapped.byteswap()
                value = swapped.tobytes()
            head = _element_head(PIXEL_DATA, "OW" if words else "OB", len(value) + pad)
            return _whole(entry, EXPLICIT_LE, before, head, value, b"\0" * pad, after)
        end = b"" if value.endswith(_SEQUENCE_END) else _SEQUENCE_END
        return _whole(entry, syntax, before, _element_head(PIXEL_DATA, "OB", None), value, end, after)

    async def _encapsulated_rest(self, entry: Entry, target: str, end: bytes) -> AsyncGenerator[bytes]:
        async with aclosing(self.frames(entry, range(1, entry.frames), target)) as frames:
            async for frame in frames:
                yield _item(frame)
        yield end

    async def _native_rest(self, entry: Entry, end: bytes) -> AsyncGenerator[bytes]:
        async with aclosing(self.pixels(entry)) as pieces:
            async for piece in pieces:
                yield piece
        yield end


async def in_order(items: Iterable[S], make: Callable[[S], Awaitable[T]], ahead: int) -> AsyncGenerator[T]:
    """`make(item)` for each item, in order, with up to `ahead` of them under way; what is not taken is cancelled."""
    source = iter(items)
    under_way: deque[asyncio.Future[T]] = deque()
    try:
        first = next(source, None)
        if first is None:
            return
        second = next(source, None)
        if second is None:  # no task for the common case of one
            yield await make(first)
            return
        under_way.extend(asyncio.ensure_future(make(item)) for item in (first, second))
        while under_way:
            while len(under_way) < ahead and (item := next(source, None)) is not None:
                under_way.append(asyncio.ensure_future(make(item)))
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _whole(entry: Entry, syntax: str, *data_set: bytes) -> Opened:
    file = b"".join((_meta(entry, syntax), *data_set))
    return Opened(syntax, [file], None, len(file))


def _meta(entry: Entry, syntax: str) -> bytes:
    return write_meta(entry.sop_class, entry.sop_uid, syntax)


def _item(frame: bytes) -> bytes:
    pad = len(frame) % 2
    return b"".join((struct.pack("<HHL", 0xFFFE, 0xE000, len(frame) + pad), frame, b"\0" * pad))


def _element_head(tag: int, vr: str, length: int | None) -> bytes:
    """Tag, VR and length of a long-form element in Explicit VR LE; None is an undefined length."""
    return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, vr.encode(), 0xFFFFFFFF if length is None else length)


def _native_element(format: PixelFormat) -> tuple[int, str]:
    """Tag and VR of native pixel data in Explicit VR LE (PS3.5 A.2)."""
    if format.floating:
        return (FLOAT_PIXEL_DATA, "OF") if format.bits_allocated == 32 else (DOUBLE_FLOAT_PIXEL_DATA, "OD")
    return PIXEL_DATA, "OW" if format.bits_allocated > 8 else "OB"


def _adjustments(entry: Entry, target: str, first: bytes) -> Mapping[int, bytes | None]:
    """What the header must say of the pixels that go out with it (TS-11): tag -> value, None to leave it out."""
    if entry.format is None or entry.format.samples == 1:
        return {}
    if target == entry.stored_syntax and target not in (EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL):
        return {}  # as received
    native = decoded(entry.format, entry.received_syntax)
    photometric = native.photometric
    if target == HTJ2K_LOSSLESS_RPCL and photometric == "RGB" and component_transform(first):
        photometric = "YBR_RCT"
    return {
        _PHOTOMETRIC: photometric.encode() + b" " * (len(photometric) % 2),
        _PLANAR: struct.pack("<H", native.planar),
    }


def component_transform(codestream: bytes) -> bool:
    """Whether a JPEG 2000 codestream uses the component transform: the fourth byte of SGcod (ISO/IEC 15444-1 A.6.1)."""
    at = 2
    while at + 4 <= len(codestream):
        marker, length = struct.unpack_from(">HH", codestream, at)
        if marker == 0xFF52:
            return codestream[at + 8 : at + 9] == b"\x01"
        if marker == 0xFF90:
            break
        at += 2 + length
    return False


_OFFSET_TABLES = (0x7FE00001, 0x7FE00002, 0x7FE00003)
_TABLE_MARKS = tuple(struct.pack("<HH", tag >> 16, tag & 0xFFFF) + b"OV" for tag in _OFFSET_TABLES[:2])
_VRS = {_PHOTOMETRIC: b"CS", _PLANAR: b"US"}


def patched(before: bytes, changes: Mapping[int, bytes | None]) -> bytes:
    """The part of a data set before Pixel Data with some short top-level values replaced, in Explicit VR LE.

    The Extended Offset Table goes too: it speaks of fragments as they were received (PS3.3 C.7.6.3.1.8).
    Raises Corrupt for bytes that are no data set.
    """
    changes = dict(changes)
    if any(mark in before for mark in _TABLE_MARKS):
        changes |= dict.fromkeys(_OFFSET_TABLES)
    if not changes:
        return before
    pieces: list[bytes] = []
    copied = 0
    waiting = sorted(changes)
    for tag, start, end in elements(before):
        while waiting and waiting[0] <= tag:
            pieces += before[copied:start], _short(waiting[0], changes[waiting[0]])
            copied = end if waiting.pop(0) == tag else start
        if not waiting:
            break
    pieces.append(before[copied:])
    pieces += (_short(tag, changes[tag]) for tag in waiting)
    return b"".join(pieces)


def _short(tag: int, value: bytes | None) -> bytes:
    return b"" if value is None else struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, _VRS[tag], len(value)) + value


def _bits_allocated(before: bytes) -> int:
    for tag, start, end in elements(before):
        if tag == 0x00280100 and end - start == 10:
            return int.from_bytes(before[start + 8 : end], "little")
        if tag > 0x00280100:
            break
    return 16


_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_MAX_DEPTH: Final = 64


def elements(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, start and end of each top-level element of a data set in Explicit VR LE. Raises Corrupt."""
    at = 0
    while at < len(data):
        tag, end = _element(data, at, implicit=False, depth=0)
        yield tag, at, end
        at = end


def _element(data: bytes, at: int, *, implicit: bool, depth: int) -> tuple[int, int]:
    """Tag and end of the element at `at`."""
    try:
        group, number = struct.unpack_from("<HH", data, at)
        vr = data[at + 4 : at + 6]
        if implicit:
            start = at + 8
            (length,) = struct.unpack_from("<L", data, at + 4)
        elif vr in _LONG_VRS:
            start = at + 12
            (length,) = struct.unpack_from("<L", data, at + 8)
        else:
            start = at + 8
            (length,) = struct.unpack_from("<H", data, at + 6)
    except struct.error:
        raise _malformed() from None
    if length == 0xFFFFFFFF:
        end = _items(data, start, implicit=implicit or vr == b"UN", depth=depth + 1)
    else:
        end = start + length
    if end > len(data):
        raise _malformed()
    return group << 16 | number, end


def _items(data: bytes, at: int, *, implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose first item is at `at` (PS3.5 §7.5)."""
    if depth > _MAX_DEPTH:
        raise _malformed()
    while True:
        mark = data[at : at + 4]
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8
        if mark == b"\xfe\xff\xdd\xe0":
            return at
        if mark != b"\xfe\xff\x00\xe0":
            raise _malformed()
        if length != 0xFFFFFFFF:
            at += length
            continue
        while data[at : at + 4] != b"\xfe\xff\x0d\xe0":
            _, at = _element(data, at, implicit=implicit, depth=depth)
        at += 8


def _malformed() -> Corrupt:
    return Corrupt("The stored header cannot be read as Explicit VR Little Endian.")


def frame_indexes(entry: Entry, numbers: Sequence[int]) -> list[int]:
    """Frame numbers from 1 as indexes from 0. Raises NotFound, NotAcceptable (WADO-05, TS-09)."""
    row = by_uid(entry.stored_syntax) if entry.stored_syntax else None
    if row is not None and row.video:
        raise NotAcceptable("The pixel data is one video stream: ask for its bulk data or for the instance.")
    if not entry.frames:
        raise NotFound("The instance has no frames that can be told apart.")
    if max(numbers) > entry.frames:
        raise NotFound(f"The instance has {entry.frames} frame{'s' * (entry.frames > 1)}.")
    return [number - 1 for number in numbers]
