"""Packs and frame files of which most is no longer needed are written anew, so that their space is given back.

What is still needed moves verbatim, in its order; rows then point at the new file, and the old one, to which none does,
is left to the sweeper. A reader that knows the old place finds the bytes there until the grace is over.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import sqlalchemy as sa
import structlog

from adapters.embedded.chunks import pack_extents, unpack_extents
from adapters.embedded.publishing import store_blob
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Corrupt
from gateway.ports import BlobStore

log = structlog.get_logger("gateway.compactor")

_KINDS: Final = ("pack", "frames")
_LOOKED_AT: Final = 4
"""Files a slice. A full pack has thousands of records, whose places are read while imports wait."""
_PIECE: Final = 4 << 20
_LISTS: Final = ("head", "json", "node")
"""Columns of a record that are lists of extents."""

_Place = tuple[int, int]
"""Offset and length in a file."""


class Compactor:
    """Goes through all files, some at a time, from wherever it happens to begin. Blocking."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database = database
        self._blobs = blobs
        self._after: int | None = None
        """Key of the last file that was looked at; None before the first."""

    def run_some(self, before: int) -> None:
        """Looks at the next files made before a time, in milliseconds, and writes the first anew of which less than
        half is needed, if there is one."""
        for row in self._next(before):
            self._after = row.pk
            if self._blobs.is_growing(row.name):
                continue
            pixels, records = self._needed(row.pk)
            places = sorted(
                {(x.off, x.len) for x in pixels}
                | {(e.offset, e.length) for r in records for name in _LISTS for e in unpack_extents(getattr(r, name))}
            )
            live = sum(length for _, length in places)
            if not places or 2 * live >= row.size:  # without any, its row goes as it is
                continue
            try:
                self._rewrite(row, places, pixels, records)
            except Corrupt as fault:  # for `verify` to tell; it costs the other files nothing
                log.warning("compactor.damaged", blob=row.name, detail=fault.detail)
                continue
            log.info("compactor.rewritten", blob=row.name, bytes=row.size, live=live)
            return

    def _next(self, before: int) -> Sequence[Any]:
        b = t.blob
        old = [b.c.kind.in_(_KINDS), b.c.created_at < before]
        with self._database.read() as connection:
            if self._after is None:
                last = connection.execute(sa.select(sa.func.max(b.c.pk))).scalar() or 0
                self._after = random.randint(0, last)
            some = sa.select(b.c.pk, b.c.name, b.c.size).where(*old).order_by(b.c.pk)
            rows = connection.execute(some.where(b.c.pk > self._after).limit(_LOOKED_AT)).all()
            if len(rows) < _LOOKED_AT:
                first = connection.execute(some.where(b.c.pk <= self._after).limit(_LOOKED_AT - len(rows))).all()
                rows = [*rows, *first]
        return rows

    def _needed(self, blob_pk: int) -> tuple[Sequence[Any], Sequence[Any]]:
        """The rows that point into a file: of pixels and of records."""
        x, r = t.pixel, t.record
        with self._database.read() as connection:
            pixels = connection.execute(sa.select(x.c.pk, x.c.off, x.c.len).where(x.c.blob_pk == blob_pk)).all()
            records = connection.execute(
                sa.select(r.c.pk, r.c.head, r.c.json, r.c.node).where(r.c.blob_pk == blob_pk)
            ).all()
        return pixels, records

    def _rewrite(self, blob: Any, places: Sequence[_Place], pixels: Sequence[Any], records: Sequence[Any]) -> None:
        """Raises Corrupt where the file is shorter than its rows say, and OutOfStorage."""
        moved: dict[_Place, int] = {}
        writer = self._blobs.create(blob.name.partition("/")[0])
        try:
            for offset, length in places:
                moved[offset, length] = writer.size
                for at in range(0, length, _PIECE):
                    writer.write(self._blobs.read(blob.name, offset + at, min(_PIECE, length - at)))
            size = writer.size
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        x, r = t.pixel, t.record
        with self._database.write() as connection:
            blob_pk = store_blob(connection, writer.name, size, now_ms())
            for row in pixels:  # where the encoder was faster, it points elsewhere
                connection.execute(
                    sa.update(x)
                    .where(x.c.pk == row.pk, x.c.blob_pk == blob.pk, x.c.off == row.off)
                    .values(blob_pk=blob_pk, off=moved[row.off, row.len])
                )
            for row in records:
                connection.execute(
                    sa.update(r)
                    .where(r.c.pk == row.pk, r.c.blob_pk == blob.pk)
                    .values(blob_pk=blob_pk, **{name: _moved(getattr(row, name), moved) for name in _LISTS})
                )


def _moved(extents: bytes, moved: Mapping[_Place, int]) -> bytes:
    return pack_extents(replace(e, offset=moved[e.offset, e.length]) for e in unpack_extents(extents))
