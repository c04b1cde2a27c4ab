"""Takes away what nothing refers to: purged image sets, blobs without rows, rows without use, and the room that they
took in files (datamodel.md 6)."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import structlog

from adapters.embedded.compacting import Compactor
from adapters.embedded.purging import purge
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.ports import BlobStore, DerivedFrames

log = structlog.get_logger("gateway.sweeper")

_SLICE = 1000


@dataclass(frozen=True, slots=True)
class SweepTimes:
    """How often to sweep, and what is old enough."""

    every_s: float = 60.0
    grace_s: float = 3600.0
    """Longer than any read or publication: a blob younger than this, or put into the trash since, is left alone."""
    retention_s: float = 30 * 86400.0
    """Of what a deleted image set needs to be restored."""


class Sweeper:
    """Small slices of cleaning, now and then. Blocking."""

    def __init__(
        self, database: Database, blobs: BlobStore, derived: DerivedFrames, root: Path, times: SweepTimes
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._derived = derived
        self._root = root
        self._compactor = Compactor(database, blobs)
        self._every_s = times.every_s
        self._grace_ms = int(times.grace_s * 1000)
        self._retention_ms = int(times.retention_s * 1000)
        self._last = time.monotonic()

    def run_one(self) -> None:
        if time.monotonic() - self._last < self._every_s:
            return
        self._last = time.monotonic()
        self.sweep()

    def sweep(self) -> None:
        """One slice of each kind of rubbish."""
        purge(self._database, now_ms() - self._retention_ms)
        self._drop_unused()
        self._empty_trash()
        self._drop_orphans()
        self._derived.sweep(self._living)
        self._compactor.run_some(now_ms() - self._grace_ms)

    def _drop_unused(self) -> None:
        """Pixels without record, then blobs without either: as rows first, their names into the trash."""
        r, x, b = t.record, t.pixel, t.blob
        with self._database.write() as connection:
            unused = sa.select(x.c.pk).where(~sa.exists().where(r.c.pixel_pk == x.c.pk)).limit(_SLICE)
            gone = sa.delete(x).where(x.c.pk.in_(unused.scalar_subquery())).returning(x.c.digest)
            digests = [bytes(digest).hex() for (digest,) in connection.execute(gone)]
            blobs = connection.execute(
                sa.select(b.c.pk, b.c.name)
                .where(b.c.created_at < now_ms() - self._grace_ms)
                .where(~sa.exists().where(x.c.blob_pk == b.c.pk), ~sa.exists().where(r.c.blob_pk == b.c.pk))
                .limit(_SLICE)
            ).all()
            for pk, name in blobs:
                if self._blobs.is_growing(name):  # who writes it may be about to name it again
                    continue
                dropped = connection.execute(sa.delete(b).where(b.c.pk == pk)).rowcount == 1
                if dropped and not name.startswith("spool/"):  # segments are removed by whoever recovers them
                    connection.execute(sa.insert(t.trash), {"name": name, "delete_after": now_ms() + self._grace_ms})
        # Another data store may have the same pixels: there, they are derived again.
        self._derived.forget(digests)
        if blobs:
            log.info("sweeper.blobs", dropped=len(blobs))

    def _living(self, digests: Sequence[str]) -> set[str]:
        """Those that are of pixel data in any data store."""
        x = t.pixel
        stores = sa.select(t.datastore.c.pk).scalar_subquery()  # what the index begins with
        with self._database.read() as connection:
            found = connection.execute(
                sa.select(x.c.digest).where(x.c.datastore_pk.in_(stores), x.c.digest.in_(map(bytes.fromhex, digests)))
            )
            return {bytes(digest).hex() for (digest,) in found}

    def _empty_trash(self) -> None:
        with self._database.read() as connection:
            names = [
                name
                for (name,) in connection.execute(
                    sa.select(t.trash.c.name).where(t.trash.c.delete_after < now_ms()).limit(_SLICE)
                )
            ]
        for name in names:
            self._blobs.delete(name)
        if names:
            with self._database.write() as connection:
                connection.execute(sa.delete(t.trash).where(t.trash.c.name.in_(names)))

    def _drop_orphans(self) -> None:
        """Files that a killed process wrote and no row names."""
        limit = time.time() - self._grace_ms / 1000
        old = []
        for kind in ("pack", "frames"):
            folder = self._root / kind
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):  # another worker sweeps too
                            if entry.stat().st_mtime < limit:
                                old.append(f"{kind}/{entry.name}")
        for start in range(0, len(old), _SLICE):
            some = old[start : start + _SLICE]
            with self._database.read() as connection:
                known = {n for (n,) in connection.execute(sa.select(t.blob.c.name).where(t.blob.c.name.in_(some)))}
                known |= {n for (n,) in connection.execute(sa.select(t.trash.c.name).where(t.trash.c.name.in_(some)))}
            for name in some:
                if name not in known and not self._blobs.is_growing(name):
                    self._blobs.delete(name)
