"""Reads: instances for DICOM services, documents and frames for HealthImaging. All blocking, all by version."""

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import orjson
import sqlalchemy as sa

from adapters.embedded import docs
from adapters.embedded.chunks import Chunk, Extent, deflate, gzip_stream, literal, unpack_extents
from adapters.embedded.frames import ROW_BYTES, FrameRow, digest_of, parse_format, unpack_row
from adapters.sql import tables as t
from adapters.sql.database import Database, Statement
from gateway.domain import header, metadata
from gateway.domain.edits import Changes, Overlay
from gateway.domain.errors import Conflict, Corrupt, Gone, InvalidInput, NotAcceptable, NotFound
from gateway.domain.ids import DatastoreId, FrameId, ImageSetId
from gateway.domain.model import (
    Document,
    Entry,
    Frame,
    ImageSetRef,
    ImageSetState,
    Selected,
    Selection,
)
from gateway.domain.pixels import PixelFormat
from gateway.domain.syntaxes import LOSSLESS
from gateway.ports import BlobStore, Codec

# Stored, not compressed: the bytes of an old version's document must not depend on a compressor's version.
_COMMA = literal(b",")
_OPEN = literal(b"[")
_CLOSE = literal(b"]")
_TAIL = literal(metadata.TAIL)
_ACTIVE = Statement(
    sa.select(t.datastore.c.pk).where(t.datastore.c.id == sa.bindparam("id"), t.datastore.c.status != "DELETED")
)
_FRAME_ID = re.compile(r"[0-9a-f]{32}")
_SELECTED_ENTRIES = 50_000
"""Of all selections that are remembered, together."""
_PLACES = 100_000
_AT_ONCE_BYTES = 1 << 20
"""What a frame may have to be read and checked between two events of the loop."""
_INCONSISTENT = "Requested ImageSet metadata is not consistent yet. Please retry after a few seconds."


@dataclass(frozen=True, slots=True)
class StoredEntry(Entry):
    """An entry with the places of its bytes."""

    blob: str = ""
    head: bytes = b""
    json: bytes = b""
    node: bytes = b""
    pixel: int | None = None


_Pixel = tuple[int, str]
"""Pixel data: its row's key, and its digest in hexadecimal. SQLite gives the key of a row that was deleted anew."""
_Place = tuple[str, int, str, FrameRow]
"""Of a frame: its blob, where its extent begins, its syntax, its row of the frame table."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """One image set at one version."""

    pk: int
    id: ImageSetId
    version: int
    content: int
    study_uid: str
    series_uid: str
    overlay: int | None
    head: int | None


class Reader:
    """The read side of the embedded store."""

    def __init__(self, database: Database, blobs: BlobStore, codec: Codec) -> None:
        self._database = database
        self._blobs = blobs
        self._codec = codec
        self._keys: dict[DatastoreId, int] = {}
        self._lossless: dict[DatastoreId, str] = {}
        self._lock = threading.Lock()
        self._selected: dict[Selection, Selected] = {}
        self._selected_size = 0
        self._selected_at: int | None = None
        self._places: dict[tuple[_Pixel, int], _Place] = {}
        self._overlay = lru_cache(maxsize=1024)(self._read_overlay)
        self._changes = lru_cache(maxsize=8192)(self._read_changes)

    # ------------------------------------------------------------ data stores

    def known_key(self, datastore: DatastoreId) -> int | None:
        """What `key_of` gives, if it has been asked for before. Does not block."""
        return self._keys.get(datastore)

    def key_of(self, datastore: DatastoreId) -> int:
        """The key of a data store, which never changes: for those who go on to something in it, or to a job, neither
        of which is there once it has been deleted. Raises NotFound."""
        pk = self._keys.get(datastore)
        if pk is None:
            pk = self._keys[datastore] = self.active(datastore)
        return pk

    def active(self, datastore: DatastoreId) -> int:
        """The same for a data store that is not deleted, asked anew each time: any process deletes. Raises NotFound."""
        with self._database.read() as connection:
            pk = _ACTIVE.scalar(connection, {"id": datastore})
        if pk is None:
            raise NotFound("There is no data store with this id.")
        return int(pk)

    def lossless(self, datastore: DatastoreId) -> str:
        """The transfer syntax of a data store's losslessStorageFormat, which never changes. Raises NotFound."""
        syntax = self._lossless.get(datastore)
        if syntax is None:
            d = t.datastore
            with self._database.read() as connection:
                format = connection.execute(sa.select(d.c.storage_format).where(d.c.id == datastore)).scalar()
            if format is None:
                raise NotFound("There is no data store with this id.")
            syntax = self._lossless[datastore] = LOSSLESS[format]
        return syntax

    # ------------------------------------------------------------ selection

    def selected(self, selection: Selection) -> Selected | None:
        """The answer of `select`, if it was given before and nothing has been committed since. Does not block."""
        changes = self._database.changes()
        if changes is None:
            return None
        with self._lock:
            if changes != self._selected_at:
                self._selected.clear()
                self._selected_size = 0
                self._selected_at = changes
            return self._selected.get(selection)

    def select(self, selection: Selection) -> Selected:
        changes = self._database.changes()
        found = self._select(selection)
        with self._lock:
            size = len(found.entries)
            if changes is not None and changes == self._selected_at and size <= _SELECTED_ENTRIES // 4:
                self._selected_size += size
                if self._selected_size > _SELECTED_ENTRIES:
                    self._selected.clear()
                    self._selected_size = size
                self._selected[selection] = found
        return found

    def _select(self, selection: Selection) -> Selected:
        datastore_pk = self.key_of(selection.datastore)
        with self._database.read() as connection:
            shown = self._shown(connection, datastore_pk, selection)
            entries = [entry for one in shown for entry in self._members(connection, one, selection.sop)]
            if shown and not entries and selection.sop is not None and self._had(connection, shown, selection.sop):
                raise Gone("It was deleted.")
        if not entries:
            raise NotFound("There is no such instance in this data store.")
        tag = hashlib.sha256(f"{selection.study}/{selection.series}/{selection.sop}".encode())
        for one in shown:
            tag.update(f"{one.id}:{one.content}".encode())
        return Selected(entries, tag.hexdigest()[:32])

    def _shown(self, connection: sa.Connection, datastore_pk: int, selection: Selection) -> list[_Shown]:
        if selection.version is not None and selection.as_of is not None:
            raise InvalidInput("`version` and `asOf` cannot be given together.")
        if selection.version is not None and selection.series is None:
            raise InvalidInput("`version` needs a series: at study level there is no one version.")
        s, v = t.image_set, t.version
        sets = sa.select(s.c.pk, s.c.id, s.c.state, s.c.visible).where(s.c.datastore_pk == datastore_pk)
        if selection.image_set is not None:
            sets = sets.where(s.c.id == selection.image_set)
        else:
            sets = sets.where(s.c.is_primary, s.c.study_uid == selection.study)
            if selection.series is not None:
                sets = sets.where(s.c.series_uid == selection.series)
        rows = connection.execute(sets.order_by(s.c.pk)).all()
        living = [row for row in rows if row.state != ImageSetState.DELETED]
        if not living:
            if rows:
                raise Gone("It was deleted.")
            raise NotFound("There is no such study or series in this data store.")
        shown = []
        for row in living:
            versions = sa.select(
                v.c.version, v.c.content, v.c.study_uid, v.c.series_uid, v.c.overlay_doc, v.c.head_doc
            ).where(v.c.image_set_pk == row.pk)
            if selection.as_of is not None:
                at = int(selection.as_of.timestamp() * 1000)
                versions = versions.where(v.c.at <= at, v.c.seq.is_not(None)).order_by(v.c.version.desc()).limit(1)
            else:
                number = row.visible if selection.version is None else selection.version
                versions = versions.where(v.c.version == min(number, t.MAX_VERSION))
            version = connection.execute(versions).first()
            if version is None:
                continue
            if version.content is None:
                raise Conflict(_INCONSISTENT)
            if version.content != version.version:
                version = connection.execute(
                    sa.select(
                        v.c.version, v.c.content, v.c.study_uid, v.c.series_uid, v.c.overlay_doc, v.c.head_doc
                    ).where(v.c.image_set_pk == row.pk, v.c.version == version.content)
                ).one()
            if version.study_uid == selection.study and selection.series in (None, version.series_uid):
                shown.append(
                    _Shown(
                        row.pk,
                        ImageSetId(row.id),
                        selection.version or version.version,
                        version.content,
                        version.study_uid,
                        version.series_uid,
                        version.overlay_doc,
                        version.head_doc,
                    )
                )
        if not shown:
            raise NotFound("There is no such version, or the image set is of another study or series.")
        return shown

    def _had(self, connection: sa.Connection, shown: Sequence[_Shown], sop: str) -> bool:
        """Whether an earlier version has an instance."""
        m = t.member
        earlier = [sa.and_(m.c.image_set_pk == one.pk, m.c.v_from <= one.content) for one in shown]
        query = sa.select(m.c.pk).where(m.c.sop_uid == sop, sa.or_(*earlier)).limit(1)
        return connection.execute(query).first() is not None

    def _members(self, connection: sa.Connection, shown: _Shown, sop: str | None) -> list[StoredEntry]:
        m, r, x, b = t.member, t.record, t.pixel, t.blob
        query = (
            sa.select(
                m.c.record_pk,
                m.c.overlay_pk,
                m.c.sop_uid,
                m.c.sop_class,
                r.c.syntax,
                x.c.stored_syntax,
                x.c.format,
                x.c.n_frames,
                r.c.warning,
                x.c.digest,
                b.c.name,
                r.c.head,
                r.c.json,
                r.c.node,
                r.c.pixel_pk,
            )
            .join(r, r.c.pk == m.c.record_pk)
            .join(b, b.c.pk == r.c.blob_pk)
            .outerjoin(x, x.c.pk == r.c.pixel_pk)
            .where(m.c.image_set_pk == shown.pk, m.c.v_from <= shown.content, m.c.v_to > shown.content)
        )
        if sop is not None:
            query = query.where(m.c.sop_uid == sop)
        # Instances without a number come last on both engines.
        query = query.order_by(m.c.number.is_(None), m.c.number, m.c.sop_uid)
        return [
            StoredEntry(
                row[0],
                row[1],
                shown.overlay,
                shown.id,
                shown.version,
                shown.study_uid,
                shown.series_uid,
                row[2],
                row[3],
                row[4],
                row[5],
                _format(row[6]) if row[6] else None,
                row[7] or 0,
                row[8],
                bytes(row[9]).hex() if row[9] else "",
                row[10],
                row[11],
                row[12],
                row[13],
                row[14],
            )
            for row in connection.execute(query)
        ]

    # ------------------------------------------------------------ DICOM JSON

    def metadata(self, entries: Sequence[Entry], base_url: str, *, gzip: bool) -> Document:
        chunks = [_OPEN]
        if any(entry.overlay is not None or entry.level_overlay is not None for entry in entries):
            texts = [self._edited_json(entry, base_url) for entry in _stored(entries)]
            chunks.append(deflate(b",".join(texts)))
        else:
            for number, (entry, pieces) in enumerate(self._pieces(_stored(entries))):
                if number:
                    chunks.append(_COMMA)
                url = literal(_instance_url(base_url, entry)) if len(pieces) > 1 else None
                for place, piece in enumerate(pieces):
                    if place and url is not None:
                        chunks.append(url)
                    chunks.append(piece)
        chunks.append(_CLOSE)
        if gzip:
            return Document(gzip_stream(chunks), True)
        return Document(b"".join(chunk.text() for chunk in chunks), False)

    def _edited_json(self, entry: StoredEntry, base_url: str) -> bytes:
        pieces = [piece.text() for _, some in self._pieces([entry]) for piece in some]
        text = _instance_url(base_url, entry).join(pieces)
        return header.edited_json(text, self._all_changes(entry))

    def json_of(self, members: Sequence[tuple[int, int | None]]) -> Iterator[dict[str, Any]]:
        """The DICOM JSON of (record, overlay) pairs, for searches that the index cannot answer."""
        for some in _slices(members):
            r, b = t.record, t.blob
            with self._database.read() as connection:
                places = {
                    row.pk: (row.name, unpack_extents(row.json))
                    for row in connection.execute(
                        sa.select(r.c.pk, b.c.name, r.c.json)
                        .join(b, b.c.pk == r.c.blob_pk)
                        .where(r.c.pk.in_([record for record, _ in some]))
                    )
                }
            for record, overlay in some:
                blob, extents = places[record]
                first, last = extents[0], extents[-1]
                data = self._blobs.read(blob, first.offset, last.offset + last.length - first.offset)
                text = b"".join(_cut(data, extent, first.offset).text() for extent in extents)
                if overlay is not None:
                    text = header.edited_json(text, [self._changes(overlay)])
                document: dict[str, Any] = orjson.loads(text)
                yield document

    def _pieces(self, entries: Iterable[StoredEntry]) -> Iterable[tuple[StoredEntry, list[Chunk]]]:
        """The JSON chunks of each entry, with one read for each run of neighbours in a pack."""
        located = [(entry, unpack_extents(entry.json)) for entry in entries]
        for run in _runs([(entry.blob, extents) for entry, extents in located]):
            first, last = located[run.start][1][0], located[run.stop - 1][1][-1]
            data = self._blobs.read(located[run.start][0].blob, first.offset, last.offset + last.length - first.offset)
            for entry, extents in located[run.start : run.stop]:
                yield entry, [_cut(data, extent, first.offset) for extent in extents]

    def _all_changes(self, entry: Entry) -> list[Changes]:
        changes: list[Changes] = []
        if entry.overlay is not None:  # first: what a forced copy has fixed of the levels above can be edited there
            changes.append(self._changes(entry.overlay))
        if entry.level_overlay is not None:
            overlay = self._overlay(entry.level_overlay)
            changes += [overlay.patient, overlay.study, overlay.series]
        return [some for some in changes if some]

    def _read_overlay(self, pk: int) -> Overlay:
        with self._database.read() as connection:
            body = docs.get_json(connection, pk)
        assert body is not None
        return Overlay.from_json(body)

    def _read_changes(self, pk: int) -> Changes:
        with self._database.read() as connection:
            text = connection.execute(sa.select(t.overlay.c.changes).where(t.overlay.c.pk == pk)).scalar_one()
        return Changes.from_json(text.encode())

    # ------------------------------------------------------------ data sets, pixels

    def received_head(self, entry: Entry) -> tuple[bytes, int]:
        """The data set as received without its Pixel Data, and where that stood."""
        return next(self._received_heads([_stored_one(entry)]))

    def _received_heads(self, entries: Sequence[StoredEntry]) -> Iterator[tuple[bytes, int]]:
        """In order, with one read for each run of neighbours in a pack."""
        located = [(entry.blob, unpack_extents(entry.head)) for entry in entries]
        for run in _runs(located):
            blob, (first, *_) = located[run.start]
            last = located[run.stop - 1][1][0]
            data = self._blobs.read(blob, first.offset, last.offset + last.length - first.offset)
            for _, (extent, *_) in located[run.start : run.stop]:
                at, _, head = _cut(data, extent, first.offset).text().partition(b"\n")
                yield head, int(at)

    def heads(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        stored = _stored(entries)
        return [
            header.to_explicit(head, at, entry.received_syntax, self._all_changes(entry))
            for entry, (head, at) in zip(stored, self._received_heads(stored), strict=True)
        ]

    def frame(self, entry: Entry, index: int) -> Frame:
        pixel = _pixel(entry)
        if pixel is None or not 0 <= index < entry.frames:
            raise NotFound(f"The instance has no frame {index + 1}.")
        return self._frame(pixel, index, None)

    def first_frames(self, entries: Sequence[Entry]) -> list[Frame]:
        self._first_places(entries)
        return [self.frame(entry, 0) for entry in entries]

    def first_lengths(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        return [(syntax, row.length) for _, _, syntax, row in self._first_places(entries)]

    def _first_places(self, entries: Sequence[Entry]) -> list[_Place]:
        """In order, with one query for all that are not known; what will stay there is remembered."""
        pixels: list[_Pixel] = []
        for entry in entries:
            pixel = _pixel(entry)
            if pixel is None or not entry.frames:
                raise NotFound("The instance has no frame 1.")
            pixels.append(pixel)
        places = {pixel: place for pixel in pixels if (place := self._places.get((pixel, 0)))}
        for some in _slices([pixel for pixel in pixels if pixel not in places]):
            places |= self._locate(some, 0)
        if not places.keys() >= set(pixels):
            raise Corrupt("A stored frame is missing.")
        return [places[pixel] for pixel in pixels]

    def frame_at_hand(self, entry: Entry, index: int) -> Frame | None:
        """The frame, if it can be had without waiting for a disk or a database; small ones only. Does not block."""
        pixel = _pixel(entry)
        place = None if pixel is None else self._places.get((pixel, index))
        if place is None or place[3].length > _AT_ONCE_BYTES:
            return None
        blob, offset, syntax, row = place
        try:
            data = self._blobs.read_cached(blob, offset + row.offset, row.length)
        except Corrupt:
            return None
        if data is None or digest_of(data) != row.digest:
            return None
        return Frame(None, syntax, data, row.crc32)

    def frame_start(self, entry: Entry, index: int) -> Frame | None:
        """The thumbnail prefix of a frame: one range. None where it has none, or waits for its encoding."""
        pixel = _pixel(entry)
        if pixel is None or not 0 <= index < entry.frames:
            raise NotFound(f"The instance has no frame {index + 1}.")
        blob, offset, syntax, row = self._places.get((pixel, index)) or self._place(pixel, index)
        if not row.prefix:
            return None
        try:
            return Frame(None, syntax, self._blobs.read(blob, offset + row.offset, row.prefix), row.crc32)
        except Corrupt:  # moved meanwhile, or gone: the whole frame tells
            return None

    def _frame(self, pixel: _Pixel, index: int, frame_id: FrameId | None) -> Frame:
        for _ in range(2):
            place = self._places.get((pixel, index)) or self._place(pixel, index)
            blob, offset, syntax, row = place
            try:
                data = self._blobs.read(blob, offset + row.offset, row.length)
            except Corrupt:
                data = b""
            if digest_of(data) == row.digest:
                return Frame(frame_id, syntax, data, row.crc32)
            self._places.pop((pixel, index), None)  # the encoder may have moved it: look again
        raise Corrupt("A stored frame is missing or does not have its digest.")

    def _place(self, pixel: _Pixel, index: int) -> _Place:
        place = self._locate([pixel], index).get(pixel)
        if place is None:
            raise Corrupt("A stored frame is missing.")
        return place

    def _locate(self, pixels: Sequence[_Pixel], index: int) -> dict[_Pixel, _Place]:
        """Where a frame of each of these pixel rows lies; what will stay there is remembered."""
        x = t.pixel
        row_bytes = sa.func.substr(x.c.frames, index * ROW_BYTES + 1, ROW_BYTES)
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(x.c.pk, x.c.digest, t.blob.c.name, x.c.off, x.c.state, x.c.syntax, x.c.format, row_bytes)
                .join(t.blob, t.blob.c.pk == x.c.blob_pk)
                .where(x.c.pk.in_([pk for pk, _ in pixels]))
            ).all()
        places: dict[_Pixel, _Place] = {}
        for pk, digest, blob, offset, state, syntax, format_text, table in rows:
            row = unpack_row(bytes(table), signed=_format(format_text).signed)
            pixel = pk, bytes(digest).hex()
            places[pixel] = place = (blob, offset, syntax, row)
            if state != "raw":  # a raw frame is about to move
                if len(self._places) >= _PLACES:
                    self._places.clear()
                self._places[pixel, index] = place
        return places

    def pixel_data(self, entry: Entry) -> Frame:
        pixel = _stored_one(entry).pixel
        if pixel is None:
            raise NotFound("The instance has no pixel data.")
        with self._database.read() as connection:
            blob, offset, length, syntax = connection.execute(
                sa.select(t.blob.c.name, t.pixel.c.off, t.pixel.c.len, t.pixel.c.syntax)
                .join(t.blob, t.blob.c.pk == t.pixel.c.blob_pk)
                .where(t.pixel.c.pk == pixel)
            ).one()
        return Frame(None, syntax, self._blobs.read(blob, offset, length), 0)

    def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        head, at = self.received_head(entry)
        return header.bulk(head, at, entry.received_syntax, path)

    # ------------------------------------------------------------ HealthImaging

    def document(self, ref: ImageSetRef) -> Document:
        """The metadata document of a version (API: GetImageSetMetadata), always as one gzip stream."""
        datastore_pk = self.key_of(ref.datastore)
        with self._database.read() as connection:
            shown = self.shown_set(connection, datastore_pk, ref)
            entries = self._members(connection, shown, None)
            assert shown.head is not None
            head = docs.get_chunk(connection, shown.head)
            overlays = {
                row.pk: Chunk(bytes(row.node), row.plain, row.crc)
                for some in _slices([entry.overlay for entry in entries if entry.overlay is not None])
                for row in connection.execute(
                    sa.select(t.overlay.c.pk, t.overlay.c.node, t.overlay.c.plain, t.overlay.c.crc).where(
                        t.overlay.c.pk.in_(some)
                    )
                )
            }
        chunks = [head]
        located = [(entry, unpack_extents(entry.node)) for entry in entries]
        nodes: list[Chunk] = []
        for run in _runs([(entry.blob, extents) for entry, extents in located]):
            first, last = located[run.start][1][0], located[run.stop - 1][1][-1]
            data = self._blobs.read(located[run.start][0].blob, first.offset, last.offset + last.length - first.offset)
            for entry, extents in located[run.start : run.stop]:
                edited = overlays.get(entry.overlay) if entry.overlay is not None else None
                nodes.append(edited or _cut(data, extents[0], first.offset))
        for number, node in enumerate(nodes):
            if number:
                chunks.append(_COMMA)
            chunks.append(node)
        chunks.append(_TAIL)
        return Document(gzip_stream(chunks), True)

    def shown_set(self, connection: sa.Connection, datastore_pk: int, ref: ImageSetRef) -> _Shown:
        """A version of an image set whose metadata can be read. Raises NotFound, Conflict."""
        s, v = t.image_set, t.version
        row = connection.execute(
            sa.select(s.c.pk, s.c.id, s.c.state, s.c.latest).where(
                s.c.datastore_pk == datastore_pk, s.c.id == ref.image_set
            )
        ).first()
        if row is None or row.state == ImageSetState.DELETED:
            raise NotFound("There is no image set with this id.")
        number = row.latest if ref.version is None else ref.version
        columns = (v.c.version, v.c.content, v.c.study_uid, v.c.series_uid, v.c.overlay_doc, v.c.head_doc)
        versions = sa.select(*columns).where(v.c.image_set_pk == row.pk)
        version = connection.execute(versions.where(v.c.version == min(number, t.MAX_VERSION))).first()
        if version is None:
            raise NotFound("The image set has no such version.")
        if version.content is None:
            raise Conflict(_INCONSISTENT)
        if version.content != number:
            version = connection.execute(
                sa.select(*columns).where(v.c.image_set_pk == row.pk, v.c.version == version.content)
            ).one()
        return _Shown(
            row.pk,
            ImageSetId(row.id),
            number,
            version.content,
            version.study_uid,
            version.series_uid,
            version.overlay_doc,
            version.head_doc,
        )

    def frame_by_id(self, ref: ImageSetRef, frame: FrameId) -> Frame:
        """A frame that the image set shows or has shown (API: GetImageFrame), in its stored syntax."""
        datastore_pk = self.key_of(ref.datastore)
        if _FRAME_ID.fullmatch(frame) is None:
            raise NotFound("The image set has no frame with this id.")
        record_id, index = frame[:24], int(frame[24:], 16)
        s, m, r, x = t.image_set, t.member, t.record, t.pixel
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(r.c.pixel_pk, x.c.digest, x.c.n_frames, x.c.stored_syntax, x.c.format)
                .join(m, m.c.record_pk == r.c.pk)
                .join(s, s.c.pk == m.c.image_set_pk)
                .join(x, x.c.pk == r.c.pixel_pk)
                .where(
                    r.c.id == record_id,
                    s.c.datastore_pk == datastore_pk,
                    s.c.id == ref.image_set,
                    s.c.state != ImageSetState.DELETED,
                )
                .limit(1)
            ).first()
        if row is None or index >= row.n_frames:
            raise NotFound("The image set has no frame with this id.")
        found = self._frame((row.pixel_pk, bytes(row.digest).hex()), index, frame)
        if found.syntax != row.stored_syntax:  # still waiting for its encoding, or never to be encoded
            with suppress(NotAcceptable):
                data = self._codec.encode(found.data, _format(row.format), row.stored_syntax)
                return replace(found, syntax=row.stored_syntax, data=data)
        return found


def _cut(data: bytes, extent: Extent, base: int) -> Chunk:
    start = extent.offset - base
    return Chunk(data[start : start + extent.length], extent.plain, extent.crc)


def _runs(places: Sequence[tuple[str, list[Extent]]], gap: int = 16384) -> Iterable[range]:
    """Neighbours in one blob with no more than `gap` bytes between them, in rising order: one read each."""
    start = 0
    for at in range(1, len(places) + 1):
        if at < len(places):
            (blob, before), (next_blob, after) = places[at - 1], places[at]
            end = before[-1].offset + before[-1].length
            if blob == next_blob and 0 <= after[0].offset - end <= gap:
                continue
        yield range(start, at)
        start = at


def _instance_url(base_url: str, entry: Entry) -> bytes:
    study, series, sop = (quote(uid, safe="") for uid in (entry.study_uid, entry.series_uid, entry.sop_uid))
    return f"{base_url}/studies/{study}/series/{series}/instances/{sop}".encode()


@lru_cache(maxsize=4096)
def _format(text: str) -> PixelFormat:
    return parse_format(text)


def _stored(entries: Iterable[Entry]) -> list[StoredEntry]:
    return [_stored_one(entry) for entry in entries]


def _stored_one(entry: Entry) -> StoredEntry:
    assert isinstance(entry, StoredEntry), "an entry of another backend"
    return entry


def _pixel(entry: Entry) -> _Pixel | None:
    key = _stored_one(entry).pixel
    return None if key is None else (key, entry.digest)


def _slices(values: Sequence[Any], size: int = 500) -> Iterable[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
