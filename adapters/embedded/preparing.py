"""From a staged instance to the rows and extents that a transaction publishes: parsing, pixels, packs. No database."""

import hashlib
import mmap
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson
from isal import isal_zlib

from adapters.embedded.chunks import Chunk, Extent, deflate, pack_extents
from adapters.embedded.frames import digest_of, format_json, frame_id, pack_row, unpack_table
from gateway.domain import header, metadata, syntaxes
from gateway.domain.encapsulation import PixelFault, frame_extents, native_extents, unpack_bits_frames
from gateway.domain.errors import Corrupt, InvalidInput
from gateway.domain.grouping import GroupKey, key_of
from gateway.domain.ids import DatastoreId
from gateway.domain.model import Origin, Outcome
from gateway.domain.pixels import FrameFacts, PixelFormat
from gateway.ports import BlobStore, BlobWriter, Buffer, Codec

CANNOT_UNDERSTAND = 0xC000
DOES_NOT_MATCH = 0xA900
OTHER_STUDY = 0xA901
PROCESSING_FAILURE = 0x0110

_FORGET_BYTES = 32 << 20
_MAX_INFLATED = 2 << 30
_IN_PLACE = frozenset((syntaxes.IMPLICIT_LE, syntaxes.EXPLICIT_LE))


class IngestedFrame(Protocol):
    """A frame as it is to be stored, and what its decoded samples are."""

    @property
    def data(self) -> bytes: ...
    @property
    def facts(self) -> FrameFacts: ...
    @property
    def prefix(self) -> int: ...


class Ingestion(Iterator[IngestedFrame], Protocol):
    """Frames as they are ready."""

    @property
    def digest(self) -> bytes:
        """SHA-256 of the SHA-256 of each decoded frame, once the iteration has ended."""
        ...


class ImportCodec(Codec, Protocol):
    """What import does with native pixels."""

    def facts(self, native: Buffer, format: PixelFormat) -> FrameFacts: ...

    def little_endian(self, value: Buffer, format: PixelFormat, words: bool) -> bytes: ...

    def thumbnail_prefix(self, codestream: Buffer) -> int: ...


class Decoder(Protocol):
    """Decodes what came from outside, in supervised processes."""

    def ingest(
        self,
        path: str,
        base: int,
        extents: Sequence[Sequence[tuple[int, int]]],
        syntax: str,
        format: PixelFormat,
        lossless: str,
    ) -> Ingestion:
        """Frames in the syntax of `syntaxes.stored_as`. Raises PixelFault while iterating."""
        ...

    def decode(self, data: bytes, syntax: str, format: PixelFormat) -> bytes: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class PreparedPixel:
    digest: bytes
    blob: str
    """Name of a blob, or of a spool segment as `spool/...`."""
    offset: int
    length: int
    state: str
    syntax: str
    stored_syntax: str
    format: str | None
    frames: int
    table: bytes


@dataclass(slots=True)
class Prepared:
    """One instance, ready to be published."""

    origin: Origin
    spool: str
    spool_offset: int
    record_id: str
    key: GroupKey
    levels: metadata.Levels
    identity: bytes
    sop_uid: str
    sop_class: str
    syntax: str
    number: int | None
    warning: int | None
    attrs: str
    pixel: PreparedPixel | None
    blob: str
    head: bytes
    json: bytes
    node: bytes


@dataclass(slots=True)
class Packs:
    """The blobs that one publication writes: made when first needed, complete after `seal`, durable after `finish`."""

    store: BlobStore
    written: list[BlobWriter] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """By blob name, once sealed."""
    _pack: BlobWriter | None = None
    _frames: BlobWriter | None = None
    _summaries: list[dict[str, Any]] = field(default_factory=list)

    def pack(self) -> BlobWriter:
        if self._pack is None:
            self._pack = self.store.create("pack")
            self.written.append(self._pack)
        return self._pack

    def frames(self) -> BlobWriter:
        if self._frames is None:
            self._frames = self.store.create("frames")
            self.written.append(self._frames)
        return self._frames

    def chunks(self, texts: Iterable[bytes]) -> bytes:
        """Deflates texts into the pack; their packed extents."""
        return self.append(map(deflate, texts))

    def append(self, chunks: Iterable[Chunk]) -> bytes:
        """Writes chunks into the pack; their packed extents."""
        writer = self.pack()
        extents = []
        for chunk in chunks:
            extents.append(Extent(writer.size, len(chunk.data), chunk.plain, chunk.crc))
            writer.write(chunk.data)
        return pack_extents(extents)

    def describe(self, summary: dict[str, Any]) -> None:
        self._summaries.append(summary)

    def seal(self) -> None:
        """Ends the pack with an index of its instances, which outlives a lost database; nothing more is written.

        The index says where this publication began, which is where the index before it ends.
        """
        if self._pack is not None:
            index = deflate(orjson.dumps({"start": self._pack.start, "instances": self._summaries})).data
            self._pack.write(index)
            self._pack.write(len(index).to_bytes(8, "little") + b"ISGPACK1")
        self.sizes = {writer.name: writer.size for writer in self.written}

    def finish(self) -> None:
        """Syncs every blob, once sealed."""
        while self.written:
            self.written[-1].finish()
            self.written.pop()

    def abandon(self) -> None:
        for writer in self.written:
            writer.abandon()


class Preparer:
    """Prepares staged instances; thread-safe, one `Packs` a publication."""

    def __init__(
        self, codec: ImportCodec, decoder: Decoder, spool_path: str, lossless: Callable[[DatastoreId], str]
    ) -> None:
        """`lossless` tells the syntax of a data store's losslessStorageFormat."""
        self._lossless = lossless
        self._codec = codec
        self._decoder = decoder
        self._spool_path = spool_path

    def prepare(
        self,
        origin: Origin,
        segment: str,
        offset: int,
        body: Buffer,
        body_at: int,
        packs: Packs,
        *,
        record_id: str | None = None,
    ) -> "Prepared | Outcome":
        """The instance whose bytes are `body`, at `body_at` of its segment; its failure as an Outcome if it has one.

        `record_id` is that of an instance that is prepared once more; a new one gets its own.
        """
        try:
            return self._prepare(origin, segment, offset, body, body_at, packs, record_id or secrets.token_hex(12))
        except InvalidInput as fault:
            return _failed(origin, CANNOT_UNDERSTAND, fault.detail)
        except Corrupt as fault:
            return _failed(origin, PROCESSING_FAILURE, fault.detail)

    def _prepare(
        self, origin: Origin, segment: str, offset: int, body: Buffer, body_at: int, packs: Packs, record_id: str
    ) -> "Prepared | Outcome":
        meta: dict[str, Any] = {}
        if origin.part10:
            part10 = header.read_part10(body)
            meta, syntax, start = part10.meta, part10.syntax, part10.offset
        else:
            assert origin.syntax is not None
            syntax, start = origin.syntax, 0
            meta = {
                "MediaStorageSOPClassUID": origin.sop_class,
                "MediaStorageSOPInstanceUID": origin.sop_uid,
                "TransferSyntaxUID": syntax,
            }
            if origin.calling_ae:
                meta["SourceApplicationEntityTitle"] = origin.calling_ae
        received = header.read(
            memoryview(body)[start:],
            syntax,
            meta,
            defaults=(origin.sop_class, origin.sop_uid),
            max_inflated=_MAX_INFLATED,
        )
        told = Outcome(received.sop_class, received.sop_uid, received.study_uid, received.series_uid)
        if origin.study_uid is not None and received.study_uid != origin.study_uid:
            return replace(told, failure=OTHER_STUDY, message="The instance belongs to another study than the URL.")
        if not origin.part10 and (received.sop_uid, received.sop_class) != (origin.sop_uid, origin.sop_class):
            return replace(told, failure=DOES_NOT_MATCH, message="The SOP UIDs of the command and the data set differ.")

        warning = received.warnings[0] if received.warnings else None
        pixel: PreparedPixel | None = None
        if received.pixel is not None:
            in_spool = (f"spool/{segment}", body_at + start) if syntax != syntaxes.DEFLATED else None
            pixel, fault = self._pixel(received, in_spool, packs, self._lossless(origin.datastore))
            if fault is not None:
                warning = fault.code
        pieces, attrs = received.json_pieces, received.index
        if pixel is not None and pixel.state != "opaque" and pixel.format is not None:
            pieces, attrs = _as_decoded(received, pixel, pieces, attrs)
        if warning is not None:
            attrs = {**attrs, "00081196": {"vr": "US", "Value": [warning]}}
        node = b"".join((orjson.dumps(received.sop_uid), b":{", received.node, _node_frames(record_id, pixel), b"}"))
        head = orjson.dumps(received.head_pixel_at) + b"\n" + received.head
        packs_head = packs.chunks([head])
        packs_json = packs.chunks(pieces)
        packs_node = packs.chunks([node])
        packs.describe(
            {
                "record": record_id,
                "study": received.study_uid,
                "series": received.series_uid,
                "sop": received.sop_uid,
                "head": packs_head.hex(),
            }
        )
        return Prepared(
            origin=origin,
            spool=segment,
            spool_offset=offset,
            record_id=record_id,
            key=key_of(received.levels),
            levels=received.levels,
            identity=hashlib.sha256(received.identity + (pixel.digest if pixel else b"")).digest(),
            sop_uid=received.sop_uid,
            sop_class=received.sop_class,
            syntax=syntax,
            number=received.number,
            warning=warning,
            attrs=orjson.dumps(attrs).decode(),
            pixel=pixel,
            blob=packs.pack().name,
            head=packs_head,
            json=packs_json,
            node=packs_node,
        )

    def _pixel(
        self, received: header.Received, in_spool: tuple[str, int] | None, packs: Packs, lossless: str
    ) -> tuple[PreparedPixel, PixelFault | None]:
        """The pixels as they are to be stored; with the fault that made them be kept as received."""
        assert received.pixel is not None
        try:
            if received.pixel.format is None:
                raise PixelFault(0xB110, "The Image Pixel attributes do not describe the Pixel Data.")
            stored = syntaxes.stored_as(received.syntax, received.pixel.format, lossless)
            if stored is None:
                raise PixelFault(0xB120, "The transfer syntax is not supported.")
            if not received.pixel.encapsulated:
                return self._native(received, in_spool, stored, packs), None
            if stored == received.syntax and stored in syntaxes.KEPT_AS_IS:
                return self._kept(received, packs), None
            return self._transcoded(received, in_spool, stored, packs, lossless), None
        except PixelFault as fault:
            return self._opaque(received, packs), fault

    def _native(
        self, received: header.Received, in_spool: tuple[str, int] | None, stored: str, packs: Packs
    ) -> PreparedPixel:
        element = received.pixel
        assert element is not None
        assert element.format is not None
        format = element.format
        value = memoryview(received.data)[element.offset : element.offset + element.length]
        native_extents(format, 0, len(value))
        decoded = replace(syntaxes.decoded(format, received.syntax), frames=max(format.frames, 1))
        aligned = decoded.frame_bits % 8 == 0
        planar = format.samples > 1 and bool(format.planar)
        in_place = received.syntax in _IN_PLACE and in_spool is not None and aligned and not planar
        if in_place:
            assert in_spool is not None
            blob, at = in_spool[0], in_spool[1] + element.offset
        else:
            writer = packs.frames()
            blob, at = writer.name, writer.size
        if received.syntax == syntaxes.BIG_ENDIAN:
            value = memoryview(self._codec.little_endian(value, format, element.vr == "OW"))
        frames: Iterable[Buffer]
        if aligned:
            size = decoded.frame_bytes
            frames = (value[k * size : (k + 1) * size] for k in range(decoded.frames))
            if planar:
                frames = (self._codec.encode(frame, format, syntaxes.EXPLICIT_LE) for frame in frames)
        else:
            frames = unpack_bits_frames(value, decoded)
        digest = hashlib.sha256()
        passing = _Passing(value)
        rows = []
        offset = 0
        for frame in frames:
            sha = hashlib.sha256(frame).digest()
            digest.update(sha)
            rows.append(pack_row(offset, len(frame), 0, self._codec.facts(frame, decoded), sha[:12]))
            passing(len(frame))
            offset += len(frame)
            if not in_place:
                writer.write(frame)
        return PreparedPixel(
            digest=hashlib.sha256(_signature(decoded) + digest.digest()).digest(),
            blob=blob,
            offset=at,
            length=offset,
            state="raw" if in_place or stored != syntaxes.EXPLICIT_LE else "kept",
            syntax=syntaxes.EXPLICIT_LE,
            stored_syntax=stored,
            format=format_json(decoded),
            frames=decoded.frames,
            table=b"".join(rows),
        )

    def _kept(self, received: header.Received, packs: Packs) -> PreparedPixel:
        """Codestreams that the model keeps as they are (healthimaging.md 6.4)."""
        element = received.pixel
        assert element is not None
        assert element.format is not None
        view = memoryview(received.data)
        writer = packs.frames()
        at = writer.size
        digest = hashlib.sha256(received.syntax.encode())
        passing = _Passing(view)
        rows = []
        for fragments in _extents(received):
            data = b"".join(view[start : start + size] for start, size in fragments)
            digest.update(data)
            facts = FrameFacts(isal_zlib.crc32(data), None, None, len(data))
            rows.append(pack_row(writer.size - at, len(data), 0, facts, digest_of(data)))
            writer.write(data)
            passing(len(data))
        return PreparedPixel(
            digest=digest.digest(),
            blob=writer.name,
            offset=at,
            length=writer.size - at,
            state="kept",
            syntax=received.syntax,
            stored_syntax=received.syntax,
            format=format_json(element.format),
            frames=len(rows),
            table=b"".join(rows),
        )

    def _transcoded(
        self, received: header.Received, in_spool: tuple[str, int] | None, stored: str, packs: Packs, lossless: str
    ) -> PreparedPixel:
        """Decoded by a supervised process and stored as `lossless` (bits: native); what was received is not kept."""
        element = received.pixel
        assert element is not None
        assert element.format is not None
        if in_spool is None:
            raise PixelFault(0xB100, "The pixel data cannot be handed to a decoder.")
        extents = _extents(received)
        decoded = replace(syntaxes.decoded(element.format, received.syntax), frames=len(extents))
        path = f"{self._spool_path}/{in_spool[0].removeprefix('spool/')}"
        ingest = self._decoder.ingest(path, in_spool[1], extents, received.syntax, element.format, lossless)
        writer = packs.frames()
        at = writer.size
        rows = []
        for frame in ingest:
            rows.append(pack_row(writer.size - at, len(frame.data), frame.prefix, frame.facts, digest_of(frame.data)))
            writer.write(frame.data)
        return PreparedPixel(
            digest=hashlib.sha256(_signature(decoded) + ingest.digest).digest(),
            blob=writer.name,
            offset=at,
            length=writer.size - at,
            state="kept" if stored == syntaxes.EXPLICIT_LE else "encoded",
            syntax=stored,
            stored_syntax=stored,
            format=format_json(decoded),
            frames=len(rows),
            table=b"".join(rows),
        )

    def _opaque(self, received: header.Received, packs: Packs) -> PreparedPixel:
        """The value as received, whole: it cannot be cut into frames or not be decoded."""
        element = received.pixel
        assert element is not None
        value = memoryview(received.data)[element.offset : element.offset + element.length]
        writer = packs.frames()
        at = writer.size
        digest = hashlib.sha256(b"opaque" + received.syntax.encode())
        passing = _Passing(value)
        for start in range(0, len(value), 1 << 20):
            piece = value[start : start + (1 << 20)]
            writer.write(piece)
            digest.update(piece)
            passing(len(piece))
        return PreparedPixel(
            digest=digest.digest(),
            blob=writer.name,
            offset=at,
            length=len(value),
            state="opaque",
            syntax=received.syntax,
            stored_syntax=received.syntax,
            format=None,
            frames=0,
            table=b"",
        )


class _Passing:
    """Told how much of a value has been read. Where it lies in a mapped file, that is given back to the system now and
    then: it would count as this process's memory."""

    def __init__(self, value: memoryview) -> None:
        self._mapped = value.obj if isinstance(value.obj, mmap.mmap) else None
        self._bytes = 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        if self._mapped is not None and self._bytes >= _FORGET_BYTES:
            self._bytes = 0
            self._mapped.madvise(mmap.MADV_DONTNEED)


def _extents(received: header.Received) -> list[list[tuple[int, int]]]:
    element = received.pixel
    assert element is not None
    assert element.format is not None
    return frame_extents(
        received.data,
        element.offset,
        element.length,
        received.syntax,
        max(element.format.frames, 1),
        element.frame_offsets,
        element.frame_lengths,
    )


def _signature(format: PixelFormat) -> bytes:
    """What makes equal samples different pixels."""
    return format_json(replace(format, planar=0)).encode()


def _node_frames(record_id: str, pixel: PreparedPixel | None) -> bytes:
    if pixel is None or pixel.format is None:
        return metadata.node_frames(pixel.stored_syntax if pixel else None, "ORIGINAL" if pixel else "DECOMPRESSED", ())
    format = orjson.loads(pixel.format)
    kept = pixel.stored_syntax in syntaxes.KEPT_AS_IS and pixel.stored_syntax != syntaxes.EXPLICIT_LE
    frames = []
    size = (format["rows"] * format["columns"] * format["samples"] * format["bits_allocated"] + 7) // 8
    for index, row in enumerate(unpack_table(pixel.table, signed=format["signed"])):
        facts = FrameFacts(row.crc32, row.minimum, row.maximum, row.length if kept or pixel.state == "kept" else size)
        frames.append((frame_id(record_id, index), format["columns"], format["rows"], facts))
    return metadata.node_frames(pixel.stored_syntax, "ORIGINAL" if kept else "DECOMPRESSED", frames)


def _as_decoded(
    received: header.Received, pixel: PreparedPixel, pieces: list[bytes], attrs: dict[str, Any]
) -> tuple[list[bytes], dict[str, Any]]:
    """DICOM JSON that agrees with the frames that decoding gives (WADO-10): photometric interpretation and planes."""
    assert received.pixel is not None
    assert received.pixel.format is not None
    assert pixel.format is not None
    row = syntaxes.by_uid(received.syntax)
    if row is not None and row.video:
        return pieces, attrs
    was = received.pixel.format
    # A codestream that is kept goes out decoded, too, to whoever asks for that.
    now = syntaxes.decoded(PixelFormat(**orjson.loads(pixel.format)), received.syntax)
    if was.samples < 2 or (was.photometric, was.planar) == (now.photometric, now.planar):
        return pieces, attrs
    told = {
        "00280004": {"vr": "CS", "Value": [now.photometric]},
        "00280006": {"vr": "US", "Value": [now.planar]},
    }
    cut = secrets.token_hex(8).encode()
    document = orjson.loads(cut.join(pieces))
    document.update({tag: element for tag, element in told.items() if tag in document})
    text = orjson.dumps(dict(sorted(document.items())))
    return text.split(cut), {tag: told.get(tag, element) for tag, element in attrs.items()}


def _failed(origin: Origin, code: int, message: str) -> Outcome:
    return Outcome(origin.sop_class, origin.sop_uid, None, None, failure=code, message=message)
