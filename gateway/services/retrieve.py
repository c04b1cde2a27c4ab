"""Instances, frames, metadata and bulk data out of the store, in the transfer syntax asked for.

    offers(entry)      the transfer syntaxes that an instance can be had in, the stored one first
    frame, frames      one frame; frames in order, some in flight
    measured           how long each of several Part 10 files will be, before their frames are read
    instances          Part 10 files in order, neighbours read together, in bounded memory
    pixels, bulk       native Pixel Data piece by piece; any other value
"""

import asyncio
import re
import struct
import zlib
from array import array
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, TypeVar

from ..domain.dictionary import LONG, SHORT
from ..domain.encapsulation import pack_bits_frames
from ..domain.errors import Corrupt, InvalidInput, NotAcceptable, NotFound
from ..domain.header import spans, write_meta
from ..domain.model import Document, Entry, Frame, Selected, Selection
from ..domain.pixels import DOUBLE_FLOAT_PIXEL_DATA, FLOAT_PIXEL_DATA, PIXEL_DATA, PixelFormat
from ..domain.syntaxes import (
    BIG_ENDIAN,
    EXPLICIT_LE,
    HTJ2K_LOSSLESS,
    HTJ2K_LOSSLESS_RPCL,
    JPEG_2000_LOSSLESS,
    LOSSLESS,
    LOSSLESS_OUT,
    Family,
    by_uid,
    decoded,
    encoded,
    holds,
)
from ..ports import Codec, DerivedFrames, Instances

T = TypeVar("T")
S = TypeVar("S")

FRAMES_AHEAD: Final = 4
"""Frames of one instance that are read and decoded while an earlier one is sent."""
BATCH_INSTANCES: Final = 16
BATCH_BYTES: Final = 2 << 20
"""About so much is read at once for the instances of one batch."""
BATCHES_AHEAD: Final = 2
"""Batches under way: one is read, and what has to be decoded is, while the one before is sent."""
MEASURED_INSTANCES: Final = 1000
MEASURED_BYTES: Final = 16 << 20
"""Of headers that are held while an answer whose length is known is sent."""
_HEADER_BYTES: Final = 8 << 10
"""What a header is taken to have before it is read."""

_UNDECODABLE_WARNINGS: Final = frozenset({0xB100, 0xB120})
MAX_VALUE_LENGTH: Final = 0xFFFFFFFE
"""Bytes of a value of defined length (PS3.5 §7.1.1)."""

_PHOTOMETRIC: Final = 0x00280004
_PLANAR: Final = 0x00280006
_SEQUENCE_END: Final = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"

DecodeForeign = Callable[[bytes, str, PixelFormat], bytes]


class Envelope(NamedTuple):
    """A Part 10 file but for its one frame, whose length is known; without pixel data, the whole of it."""

    before: bytes
    frame_bytes: int
    after: bytes

    @property
    def length(self) -> int:
        """Of the whole file."""
        return len(self.before) + self.frame_bytes + len(self.after)


class Wanted(NamedTuple):
    """One instance, and the transfer syntax that it is to be sent in."""

    entry: Entry
    syntax: str
    or_stored: bool = False
    """Where decoding fails, the stored bytes will do (TS-01)."""
    envelope: Envelope | None = None
    """What it was `measured` to be."""


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
    syntaxes that no codec at hand decodes; `derived` keeps what was decoded.
    """

    def __init__(
        self,
        instances: Instances,
        codec: Codec,
        decode_foreign: DecodeForeign,
        executor: Executor,
        missing: frozenset[str] = frozenset(),
        derived: DerivedFrames | None = None,
    ) -> None:
        self._instances = instances
        self._codec = codec
        self._decode_foreign = decode_foreign
        self._executor = executor
        self._missing = missing
        self._derived = derived

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
        native = () if entry.format.frame_bytes * entry.frames > MAX_VALUE_LENGTH else (EXPLICIT_LE,)
        return (stored, *native, *_lossless_offers(entry))

    async def frame(self, entry: Entry, index: int, target: str) -> bytes:
        """Frame `index`, from 0, in one of its `offers`. Raises NotFound, NotAcceptable, Corrupt."""
        kept = self._kept(entry, index, target, wait=False)
        if kept is not None:
            return kept
        frame = await self._instances.frame(entry, index)
        if _is_already(frame, target):
            return frame.data
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._convert, entry, index, frame, target)

    def _convert(self, entry: Entry, index: int, frame: Frame, target: str) -> bytes:
        """A stored frame in another syntax, kept for the next who asks. *Blocking.*"""
        format = entry.format
        if format is not None and frame.syntax == EXPLICIT_LE and target in (entry.stored_syntax, HTJ2K_LOSSLESS):
            return self._codec.encode(frame.data, format, target)  # still waits for its encoding
        if format is None or target not in (EXPLICIT_LE, *_lossless_offers(entry)):
            raise NotAcceptable(f"The frames are stored as {frame.syntax}; ask for transfer-syntax=*.")
        kept = self._kept(entry, index, target)  # perhaps by now, or not in memory before
        if kept is not None:
            return kept
        decode = self._codec.decode if frame.syntax in _TRUSTED else self._decode_foreign
        made = decode(frame.data, frame.syntax, format)
        if target != EXPLICIT_LE:
            made = self._codec.encode(made, format, target)
        if self._derived is not None:
            self._derived.put(*_derived_name(entry, index, target), made)
        return made

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

    async def measured(self, wanted: Sequence[Wanted]) -> Sequence[Wanted] | None:
        """The same, each with its envelope; None where one cannot be known, or their headers are too many to hold.

        Nothing is known beforehand of many frames, of single bits, of frames that cannot be told apart or that still
        wait for their encoding, nor of those that may come as stored for want of a decoder. Raises Corrupt.
        """
        if len(wanted) > MEASURED_INSTANCES or not all(map(_is_measurable, wanted)):
            return None
        return await asyncio.get_running_loop().run_in_executor(None, self._measure, wanted)

    def _measure(self, wanted: Sequence[Wanted]) -> Sequence[Wanted] | None:
        """*Blocking.*"""
        as_they_are = [each.entry for each in wanted if each.entry.frames and not _is_decoded(each)]
        stored = iter(self._instances.first_lengths(as_they_are) if as_they_are else ())
        lengths = []
        for each in wanted:
            if not each.entry.frames:
                lengths.append(0)
            elif _is_decoded(each):
                lengths.append(_decoded_bytes(each.entry))
            else:
                syntax, length = next(stored)
                if syntax != each.syntax:
                    return None
                lengths.append(length)
        measured: list[Wanted] = []
        left = MEASURED_BYTES
        for start in range(0, len(wanted), BATCH_INSTANCES):
            some = wanted[start : start + BATCH_INSTANCES]
            for each, (before, after) in zip(some, self._instances.heads([each.entry for each in some]), strict=True):
                envelope = _envelope(each.entry, each.syntax, lengths[len(measured)], b"", before, after)
                left -= len(before) + len(after)
                if left < 0:
                    return None
                measured.append(each._replace(envelope=envelope))
        return measured

    def instances(self, wanted: Sequence[Wanted]) -> AsyncGenerator[Sequence[Opened]]:
        """Part 10 files in order (WADO-02), neighbours that were read together at once.

        Each is to be read to its end before the next batch is asked for. Raises NotAcceptable, and Corrupt also for
        a file that is not what it was measured to be.
        """
        return in_order(_batches(wanted), self._open_batch, BATCHES_AHEAD)

    async def _open_batch(self, batch: Sequence[Wanted]) -> Sequence[Opened]:
        if len(batch) == 1 and not _fits_a_batch(batch[0].entry):
            return [await self._open(batch[0])]
        return await asyncio.get_running_loop().run_in_executor(None, self._read_batch, batch)

    def _read_batch(self, batch: Sequence[Wanted]) -> Sequence[Opened]:
        """Whole files of instances with one frame at most. *Blocking.*

        One thread does all but the decoding: tasks and hand-overs for each instance cost more than its bytes.
        """
        heads = iter(self._instances.heads([wanted.entry for wanted in batch if wanted.envelope is None]))
        frames = self._only_frames([wanted for wanted in batch if wanted.entry.frames])
        files = []
        for wanted in batch:
            syntax, frame = next(frames) if wanted.entry.frames else (wanted.syntax, b"")
            envelope = wanted.envelope
            if envelope is None:
                envelope = _envelope(wanted.entry, syntax, len(frame), frame, *next(heads))
            elif (syntax, len(frame)) != (wanted.syntax, envelope.frame_bytes):
                raise Corrupt("A frame does not have the length that its format or its frame table tells.")
            files.append(Opened(syntax, [envelope.before, frame, envelope.after], None, envelope.length))
        return files

    def _only_frames(self, batch: Sequence[Wanted]) -> Iterator[tuple[str, bytes]]:
        """The frame of each, and the syntax that it came to be in. *Blocking.*"""
        kept = [self._kept(wanted.entry, 0, wanted.syntax) for wanted in batch]
        missed = [wanted for wanted, data in zip(batch, kept, strict=True) if data is None]
        stored = self._instances.first_frames([wanted.entry for wanted in missed])
        converting = [
            None if _is_already(frame, target) else self._executor.submit(self._convert, entry, 0, frame, target)
            for (entry, target, *_), frame in zip(missed, stored, strict=True)
        ]
        read = zip(missed, stored, converting, strict=True)
        for wanted, data in zip(batch, kept, strict=True):
            if data is not None:
                yield wanted.syntax, data
                continue
            (entry, target, or_stored, _), frame, conversion = next(read)
            try:
                yield target, frame.data if conversion is None else conversion.result()
            except NotAcceptable:
                if not or_stored or entry.stored_syntax is None:
                    raise
                is_ready = frame.syntax == entry.stored_syntax
                data = frame.data if is_ready else self._convert(entry, 0, frame, entry.stored_syntax)
                yield entry.stored_syntax, data

    def _kept(self, entry: Entry, index: int, target: str, *, wait: bool = True) -> bytes | None:
        """A frame that was converted before. *Blocking* for the time of a disk, unless told not to `wait`."""
        if self._derived is None or target in (entry.stored_syntax, HTJ2K_LOSSLESS):
            return None
        return self._derived.get(*_derived_name(entry, index, target), wait=wait)

    async def _open(self, wanted: Wanted) -> Opened:
        """An instance of many frames, of one large one, or whose frames cannot be told apart."""
        entry, target, or_stored, _ = wanted
        before, after = await self._instances.head(entry)
        if entry.format is None or not entry.frames:
            return await self._open_unframed(entry, before, after)
        try:
            first = await self.frame(entry, 0, target)
        except NotAcceptable:
            if not or_stored or entry.stored_syntax is None:
                raise
            target = entry.stored_syntax
            first = await self.frame(entry, 0, target)
        if entry.frames == 1:
            envelope = _envelope(entry, target, len(first), first, before, after)
            return Opened(target, [envelope.before, first, envelope.after], None, envelope.length)
        before = patched(before, _adjustments(entry, target, first))
        if target != EXPLICIT_LE:
            # An empty Basic Offset Table: it would need the length of every frame before the first is sent.
            start = [_meta(entry, target), before, _element_head(PIXEL_DATA, "OB", None), _item(b""), _item(first)]
            return Opened(target, start, self._encapsulated_rest(entry, target, _SEQUENCE_END + after), None)
        tag, vr = _native_element(entry.format)
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


def _fits_a_batch(entry: Entry) -> bool:
    """Whether it is one piece of bounded size: without pixel data, or of one frame."""
    if entry.stored_syntax is None:
        return True
    return entry.frames == 1 and entry.format is not None and entry.format.frame_bytes <= BATCH_BYTES


def _is_measurable(wanted: Wanted) -> bool:
    """Whether its length can be known before its frame is read: neither header nor syntax depends on that."""
    entry = wanted.entry
    if entry.stored_syntax is None:
        return True
    if not _fits_a_batch(entry) or entry.format is None:
        return False
    if wanted.syntax in _TRANSFORMING and entry.format.samples > 1:
        return False  # the header says what the codestream does
    is_ours = entry.stored_syntax == HTJ2K_LOSSLESS_RPCL != entry.received_syntax
    return entry.format.bits_allocated % 8 == 0 and (is_ours or not wanted.or_stored)


def _is_decoded(wanted: Wanted) -> bool:
    return wanted.syntax == EXPLICIT_LE != wanted.entry.stored_syntax


def _decoded_bytes(entry: Entry) -> int:
    """Of one frame in Explicit VR LE."""
    assert entry.format is not None
    return decoded(entry.format, entry.received_syntax).frame_bytes


def _batches(wanted: Iterable[Wanted]) -> Iterator[Sequence[Wanted]]:
    """Neighbours to be read together; an instance that does not fit is alone."""
    batch: list[Wanted] = []
    size = 0
    for each in wanted:
        fits = _fits_a_batch(each.entry)
        length = _HEADER_BYTES
        if fits and each.entry.format is not None:
            # Lossless compression is about 3 to 1; nothing depends on it but the size of a batch.
            length += each.entry.format.frame_bytes // (1 if each.syntax == EXPLICIT_LE else 3)
        if batch and (not fits or size >= BATCH_BYTES or len(batch) == BATCH_INSTANCES):
            yield batch
            batch, size = [], 0
        if fits:
            batch.append(each)
            size += length
        else:
            yield [each]
    if batch:
        yield batch


def _derived_name(entry: Entry, index: int, target: str) -> tuple[str, str, int]:
    """What a derived frame is kept under: where frames are kept as they came, the format says what they decode to."""
    return entry.digest, _form(entry.format, target), index


@lru_cache(maxsize=4096)
def _form(format: PixelFormat | None, target: str) -> str:
    return f"{target}-{zlib.crc32(repr(format).encode()):08x}"


def _whole(entry: Entry, syntax: str, *data_set: bytes) -> Opened:
    pieces = [_meta(entry, syntax), *data_set]
    return Opened(syntax, pieces, None, sum(map(len, pieces)))


def _envelope(entry: Entry, target: str, frame_bytes: int, frame: bytes, before: bytes, after: bytes) -> Envelope:
    """What goes around one frame, or none; of `frame` itself only the codestream of colour in HTJ2K is looked at."""
    if not entry.frames:
        return Envelope(b"".join((_meta(entry, target), before, after)), 0, b"")
    assert entry.format is not None
    pad = b"\0" * (frame_bytes % 2)
    size = frame_bytes + len(pad)
    if target == EXPLICIT_LE:
        head, end = _element_head(*_native_element(entry.format), size), b""
    else:
        head, end = _element_head(PIXEL_DATA, "OB", None) + _item(b"") + _item_head(size), _SEQUENCE_END
    before = b"".join((_meta(entry, target), patched(before, _adjustments(entry, target, frame)), head))
    return Envelope(before, frame_bytes, pad + end + after)


def _meta(entry: Entry, syntax: str) -> bytes:
    return write_meta(entry.sop_class, entry.sop_uid, syntax)


def _item_head(length: int) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, length)


def _item(frame: bytes) -> bytes:
    pad = len(frame) % 2
    return b"".join((_item_head(len(frame) + pad), frame, b"\0" * pad))


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
    if target == entry.stored_syntax and target not in (EXPLICIT_LE, *LOSSLESS.values()):
        return {}  # as received
    sent = decoded(entry.format, entry.received_syntax)
    if target in _TRANSFORMING and sent.photometric == "RGB" and component_transform(first):
        sent = encoded(sent, target)
    return {
        _PHOTOMETRIC: sent.photometric.encode() + b" " * (len(sent.photometric) % 2),
        _PLANAR: struct.pack("<H", sent.planar),
    }


_TRUSTED: Final = frozenset({EXPLICIT_LE, *LOSSLESS.values()})
"""What frames are in that the import has checked or made."""
_TRANSFORMING: Final = (HTJ2K_LOSSLESS_RPCL, HTJ2K_LOSSLESS, JPEG_2000_LOSSLESS)


def _is_already(frame: Frame, target: str) -> bool:
    """Whether a stored frame can go out as it is: HTJ2K with RPCL options is HTJ2K, too (PS3.5 §10.18)."""
    return frame.syntax == target or (frame.syntax, target) == (HTJ2K_LOSSLESS_RPCL, HTJ2K_LOSSLESS)


def _lossless_offers(entry: Entry) -> tuple[str, ...]:
    """The compressed syntaxes that frames stored without loss are encoded to; a lossy codestream never is (TS-05)."""
    format = entry.format
    if format is None or entry.stored_syntax not in LOSSLESS.values():
        return ()
    return tuple(syntax for syntax in LOSSLESS_OUT if syntax != entry.stored_syntax and holds(format, syntax))


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
    # One byte is found many times faster than several, and most headers lack even that one.
    if b"\x7f" in before and any(mark in before for mark in _TABLE_MARKS):
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


_MAX_DEPTH: Final = 64


def elements(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, start and end of each top-level element of a data set in Explicit VR LE. Raises Corrupt."""
    at = 0
    while at < len(data):
        try:
            tag, end = _element(data, at, implicit=False, depth=0)
        except Corrupt:  # what the import has borne: read on with its patience, which costs more
            try:
                yield from spans(data, at)
            except InvalidInput:
                raise _malformed() from None
            return
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
        elif vr in LONG:
            start = at + 12
            (length,) = struct.unpack_from("<L", data, at + 8)
        elif vr in SHORT or data[at : at + 2] == b"\xfe\xff":
            start = at + 8
            (length,) = struct.unpack_from("<H", data, at + 6)
        else:
            raise _malformed()
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
