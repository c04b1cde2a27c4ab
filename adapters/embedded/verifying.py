"""Scrubs a store: every rule between rows, every chunk, frame and document against its checksum; and mends what it can.

Works beside a gateway that serves, and at rest. Nothing is read under a lock: what looks damaged is looked up again,
for it may just have moved. A repair writes a new blob and points the row at it, as the encoder does; bytes in place
are never touched.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import sqlalchemy as sa

from adapters.embedded import docs
from adapters.embedded.chunks import Chunk, Extent, inflate, unpack_extents
from adapters.embedded.frames import FrameRow, parse_format, unpack_table
from adapters.embedded.holding import Holding
from adapters.embedded.jobs import unpack_places
from adapters.embedded.preparing import Packs, Prepared, Preparer
from adapters.embedded.publishing import store_blob
from adapters.embedded.rebuilding import rebuild
from adapters.sql import rules
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Corrupt, NotFound
from gateway.domain.model import JobStatus
from gateway.ports import BlobReader, BlobStore, Quarantine, SpoolStaging

_SLICE: Final = 500
_PIECE_BYTES: Final = 4 << 20
_CHUNKS: Final = ("head", "json", "node")

Progress = Callable[[int, int], None]
"""Told the bytes that were read so far, and of how many."""


@dataclass(slots=True)
class Fault:
    """Something that is not as it was written. Holds no patient's data."""

    kind: Literal["rule", "record", "pixel", "document", "staged", "quarantined"]
    subject: str
    """The rule, the record's id, or the key of the row."""
    detail: str
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """What a verification found."""

    rules: int = 0
    records: int = 0
    frames: int = 0
    documents: int = 0
    staged: int = 0
    quarantined: int = 0
    read_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Nothing is wrong, or nothing any more."""
        return all(fault.repaired for fault in self.faults)


class Verifier:
    """One pass over a store. Blocking.

    `backup` is a copy of the same store's blobs; what is damaged here and whole there can be repaired from it, and
    what still lies in the spool as it was received, from that.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        spool: SpoolStaging,
        quarantine: Quarantine,
        preparer: Preparer,
        holding: Holding,
        *,
        repair: bool = False,
        backup: BlobReader | None = None,
        progress: Progress = lambda done, total: None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._spool = spool
        self._quarantine = quarantine
        self._preparer = preparer
        self._holding = holding
        self._repair = repair
        self._backup = backup
        self._progress = progress
        self._report = Report()
        self._total = 0

    def run(self) -> Report:
        """Raises Unavailable when the database cannot be reached."""
        with self._database.read() as connection:
            packs = sa.select(sa.func.coalesce(sa.func.sum(t.blob.c.size), 0)).where(t.blob.c.kind == "pack")
            pixels = sa.select(sa.func.coalesce(sa.func.sum(t.pixel.c.len), 0))
            self._total = int(connection.execute(packs).scalar_one()) + int(connection.execute(pixels).scalar_one())
        self._rules()
        self._staged()
        self._documents()
        for row in self._slices(_RECORDS):
            self._record(row)
        for row in self._slices(_PIXELS):
            self._pixel(row)
        self._progress(self._total, self._total)
        return self._report

    def _slices(self, query: "sa.Select[Any]") -> Iterator[Any]:
        """Rows in order of their key, read a slice at a time."""
        last = 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query, {"last": last}).all()
            yield from rows
            if len(rows) < _SLICE:
                return
            last = rows[-1].pk

    def _read(self, count: int) -> None:
        self._report.read_bytes += count
        self._progress(min(self._report.read_bytes, self._total), self._total)

    def _fault(self, kind: Any, subject: str, detail: str, repaired: bool = False) -> None:
        self._report.faults.append(Fault(kind, subject, detail, repaired))

    # ------------------------------------------------------------ rows

    def _rules(self) -> None:
        with self._database.snapshot() as connection:
            found = list(rules.broken(connection))
        self._report.rules = len(found)
        wrong = [one for one in found if one is not None]
        mended = False
        if self._repair and any(one.derived for one in wrong):
            rebuild(self._database)
            mended = True
        for one in wrong:
            detail = f"broken {one.times} times, for example by {one.example}"
            self._fault("rule", one.rule, detail, repaired=mended and one.derived)

    def _documents(self) -> None:
        for row in self._slices(_DOCS):
            self._report.documents += 1
            if not docs.is_whole(bytes(row.digest), bytes(row.body), row.plain, row.crc):
                self._fault("document", f"doc {row.pk}", "its content does not have its digest")
        for row in self._slices(_OVERLAYS):
            self._report.documents += 1
            try:
                text = Chunk(bytes(row.node), row.plain, row.crc).text()
            except Corrupt as fault:
                self._fault("document", f"overlay {row.pk}", fault.detail)
                continue
            if hashlib.sha256(row.changes.encode() + b"\0" + text).digest() != bytes(row.digest):
                self._fault("document", f"overlay {row.pk}", "its content does not have its digest")

    # ------------------------------------------------------------ the spool

    def _staged(self) -> None:
        """What waits for its import, or is kept because it could not be imported."""
        for job in self._slices(_JOBS):
            for segment, offset, length in unpack_places(bytes(job.staged)):
                self._report.staged += 1
                try:
                    self._spool.check(segment, offset, length)
                except Corrupt as fault:
                    if self._waits(job.pk):
                        self._fault("staged", f"job {job.id}", fault.detail)

        for id in self._quarantine.ids():
            self._report.quarantined += 1
            try:
                for _ in self._quarantine.pieces(id):
                    pass
            except NotFound:  # dropped just now
                pass
            except Corrupt as fault:
                self._fault("quarantined", id, fault.detail)

    def _waits(self, job_pk: int) -> bool:
        with self._database.read() as connection:
            return connection.execute(_WAITS.where(t.job.c.pk == job_pk)).first() is not None

    # ------------------------------------------------------------ records

    def _record(self, row: Any, again: bool = False) -> None:
        chunks, damaged = self._chunks_of(row, self._blobs)
        if not again:
            self._report.records += 1
            self._read(sum(len(chunk.data) for some in chunks.values() for chunk in some if chunk is not None))
        if not damaged:
            return
        if not again:  # it may have been swept, or moved
            for now in self._again(_RECORD, row.pk):
                self._record(now, again=True)
            return
        repaired = False
        if self._repair:
            with self._holding.hold():
                repaired = self._record_from_backup(row, chunks) or self._record_from_original(row)
        self._fault("record", row.id, f"{', '.join(damaged)}: cannot be read from {row.name}", repaired)

    def _chunks_of(self, row: Any, blobs: BlobReader) -> tuple[dict[str, list[Chunk | None]], list[str]]:
        """The chunks of a record, None for one that is damaged; and the names of those that have such."""
        chunks: dict[str, list[Chunk | None]] = {}
        for name in _CHUNKS:
            chunks[name] = [_chunk(blobs, row.name, extent) for extent in unpack_extents(getattr(row, name))]
        return chunks, [name for name, some in chunks.items() if None in some]

    def _record_from_backup(self, row: Any, chunks: dict[str, list[Chunk | None]]) -> bool:
        if self._backup is None:
            return False
        copies, _ = self._chunks_of(row, self._backup)
        packs = Packs(self._blobs)
        extents: dict[str, bytes] = {}
        for name in _CHUNKS:
            whole = [mine or theirs for mine, theirs in zip(chunks[name], copies[name], strict=True)]
            if None in whole:
                packs.abandon()
                return False
            extents[name] = packs.append([chunk for chunk in whole if chunk is not None])
        packs.describe({"record": row.id, "sop": row.sop_uid, "head": extents["head"].hex()})
        return self._point_record(row, packs, extents)

    def _record_from_original(self, row: Any) -> bool:
        prepared, packs = self._prepared(row)
        if prepared is None or any(
            [(e.plain, e.crc) for e in unpack_extents(getattr(row, name))]
            != [(e.plain, e.crc) for e in unpack_extents(getattr(prepared, name))]
            for name in _CHUNKS
        ):
            packs.abandon()
            return False
        return self._point_record(row, packs, {name: getattr(prepared, name) for name in _CHUNKS})

    def _point_record(self, row: Any, packs: Packs, extents: dict[str, bytes]) -> bool:
        name = packs.pack().name
        packs.seal()
        packs.finish()
        r = t.record
        with self._database.write() as connection:
            blob_pk = store_blob(connection, name, packs.sizes[name], now_ms())
            update = sa.update(r).where(r.c.pk == row.pk, r.c.blob_pk == row.blob_pk, r.c.head == row.head)
            return connection.execute(update.values(blob_pk=blob_pk, **extents)).rowcount == 1

    def _prepared(self, row: Any) -> tuple[Prepared | None, Packs]:
        """A record prepared once more, from what was received, where the spool still has it."""
        packs = Packs(self._blobs)
        with self._database.read() as connection:
            staged = connection.execute(sa.select(t.job.c.staged).where(t.job.c.pk == row.job_pk)).scalar()
        for segment, offset, length in unpack_places(bytes(staged)) if staged else ():
            if (segment, offset) == (row.spool, row.spool_off):
                with suppress(Corrupt):
                    origin, body, body_at = self._spool.read(segment, offset, length)
                    found = self._preparer.prepare(origin, segment, offset, body, body_at, packs, record_id=row.id)
                    return (found if isinstance(found, Prepared) else None), packs
        return None, packs

    # ------------------------------------------------------------ pixels

    def _pixel(self, row: Any, again: bool = False) -> None:
        signed = row.format is not None and parse_format(row.format).signed
        table = unpack_table(bytes(row.frames), signed=signed)
        damaged = self._damaged_frames(row, table, self._blobs)
        if not again:
            self._report.frames += row.n_frames
            self._read(row.len)
        if not damaged and row.state != "damaged":
            return
        if not again:  # the encoder may have moved it
            for now in self._again(_PIXEL, row.pk):
                self._pixel(now, again=True)
            return
        detail = f"{len(damaged)} of {max(row.n_frames, 1)} frames cannot be read from {row.name}"
        repaired = False
        if self._repair:
            with self._holding.hold():
                repaired = self._mend_pixel(row, table, damaged)
        self._fault("pixel", f"pixel {row.pk}", detail, repaired)

    def _damaged_frames(self, row: Any, table: Sequence[FrameRow], blobs: BlobReader) -> list[int]:
        """Indexes of frames without their digest; [-1] for a value as a whole, or a table that does not fit."""
        if not table:
            head = b"opaque" + row.syntax.encode()
            return [] if _digest(blobs, row.name, row.off, row.len, head) == bytes(row.digest) else [-1]
        if len(table) != row.n_frames or any(frame.offset + frame.length > row.len for frame in table):
            return [-1]
        return [index for index, frame in enumerate(table) if not _is_whole(blobs, row, frame)]

    def _mend_pixel(self, row: Any, table: Sequence[FrameRow], damaged: Sequence[int]) -> bool:
        if not damaged:  # the encoder met a fault that has gone since
            with self._database.write() as connection:
                x = t.pixel
                return connection.execute(sa.update(x).where(x.c.pk == row.pk).values(state="raw")).rowcount == 1
        return self._pixel_from_backup(row, table, damaged) or self._pixel_from_original(row)

    def _pixel_from_backup(self, row: Any, table: Sequence[FrameRow], damaged: Sequence[int]) -> bool:
        backup = self._backup
        if backup is None or set(self._damaged_frames(row, table, backup)) & set(damaged):
            return False
        writer = self._blobs.create("frames")
        start = writer.size
        try:
            if not table:
                for offset, length in _pieces(row.off, row.len):
                    writer.write(backup.read(row.name, offset, length))
            for index, frame in enumerate(table):
                writer.write(bytes(start + frame.offset - writer.size))  # frames lie where their table says
                source = backup if index in damaged else self._blobs
                for offset, length in _pieces(row.off + frame.offset, frame.length):
                    writer.write(source.read(row.name, offset, length))
            size = writer.size
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        state = "raw" if row.state == "damaged" else row.state
        place = {"off": start, "len": size - start, "state": state}
        return self._point_pixel(row, writer.name, size, place)

    def _pixel_from_original(self, row: Any) -> bool:
        with self._database.read() as connection:
            records = connection.execute(_RECORDS_OF_PIXEL, {"pixel_pk": row.pk}).all()
        for record in records:
            prepared, packs = self._prepared(record)
            pixel = prepared.pixel if prepared is not None else None
            if pixel is None or pixel.digest != bytes(row.digest):
                packs.abandon()
                continue
            packs.seal()
            packs.finish()
            place = {"off": pixel.offset, "len": pixel.length, "state": pixel.state}
            place |= {"syntax": pixel.syntax, "frames": pixel.table}
            return self._point_pixel(row, pixel.blob, packs.sizes.get(pixel.blob, 0), place)
        return False

    def _point_pixel(self, row: Any, name: str, size: int, place: dict[str, Any]) -> bool:
        x = t.pixel
        with self._database.write() as connection:
            blob_pk = store_blob(connection, name, size, now_ms())
            update = sa.update(x).where(x.c.pk == row.pk, x.c.blob_pk == row.blob_pk, x.c.off == row.off)
            return connection.execute(update.values(blob_pk=blob_pk, **place)).rowcount == 1

    def _again(self, query: "sa.Select[Any]", pk: int) -> Sequence[Any]:
        """The row as it is now; none if it has gone."""
        with self._database.read() as connection:
            return connection.execute(query, {"one": pk}).all()


def _chunk(blobs: BlobReader, name: str, extent: Extent) -> Chunk | None:
    try:
        data = blobs.read(name, extent.offset, extent.length)
        inflate(data, extent.plain, extent.crc)
    except Corrupt:
        return None
    return Chunk(data, extent.plain, extent.crc)


def _is_whole(blobs: BlobReader, row: Any, frame: FrameRow) -> bool:
    found = _digest(blobs, row.name, row.off + frame.offset, frame.length)
    return found is not None and found[:12] == frame.digest


def _digest(blobs: BlobReader, name: str, offset: int, length: int, head: bytes = b"") -> bytes | None:
    """SHA-256 of a range of a blob, read piece by piece; None where it cannot be read."""
    digest = hashlib.sha256(head)
    try:
        for at, size in _pieces(offset, length):
            digest.update(blobs.read(name, at, size))
    except Corrupt:
        return None
    return digest.digest()


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + length, _PIECE_BYTES):
        yield at, min(_PIECE_BYTES, offset + length - at)


def _paged(query: "sa.Select[Any]", key: "sa.Column[int]") -> "sa.Select[Any]":
    return query.where(key > sa.bindparam("last")).order_by(key).limit(_SLICE)


_r, _x, _b, _j = t.record.c, t.pixel.c, t.blob.c, t.job.c
_ANY_RECORD = sa.select(
    *(_r.pk, _r.id, _r.sop_uid, _r.blob_pk, _r.head, _r.json, _r.node, _r.job_pk, _r.spool, _r.spool_off, _b.name)
).join(t.blob, _b.pk == _r.blob_pk)
_RECORDS = _paged(_ANY_RECORD, _r.pk)
_RECORD = _ANY_RECORD.where(_r.pk == sa.bindparam("one"))
_RECORDS_OF_PIXEL = _ANY_RECORD.where(_r.pixel_pk == sa.bindparam("pixel_pk"))
_ANY_PIXEL = sa.select(
    *(_x.pk, _x.digest, _x.blob_pk, _x.off, _x.len, _x.state, _x.syntax, _x.format, _x.n_frames, _x.frames, _b.name)
).join(t.blob, _b.pk == _x.blob_pk)
_PIXELS = _paged(_ANY_PIXEL, _x.pk)
_PIXEL = _ANY_PIXEL.where(_x.pk == sa.bindparam("one"))
_DOCS = _paged(sa.select(t.doc), t.doc.c.pk)
_OVERLAYS = _paged(sa.select(t.overlay), t.overlay.c.pk)
_WAITS = sa.select(_j.pk, _j.id, _j.staged).where(
    _j.staged.is_not(None), sa.or_(_j.status.in_((JobStatus.SUBMITTED, JobStatus.IN_PROGRESS)), _j.keeps_spool)
)
_JOBS = _paged(_WAITS, _j.pk)
