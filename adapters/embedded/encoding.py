"""Native frames become HTJ2K, or JPEG 2000, after they are visible: nothing that a reader sees depends on when.

Raw frames lie in the spool or in a frame blob. Each is encoded, decoded again and compared before the pixel row is
pointed at the new blob; what cannot be encoded is copied as it is, so that no spool segment is kept for it. Pixels that
are damaged stay where they are, and readers are told.
"""

import fcntl
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from adapters.embedded.frames import digest_of, moved, parse_format, unpack_table
from adapters.embedded.preparing import ImportCodec
from adapters.embedded.publishing import store_blob
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Corrupt, GatewayError, NotAcceptable
from gateway.domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL
from gateway.ports import BlobStore, BlobWriter

log = structlog.get_logger("gateway.encoder")

_BATCH_BYTES = 32 << 20
_BATCH_ROWS = 64
_IDLE_S = 1.0
_QUIET_S = 0.3
_LONGEST_PAUSE_S = 5.0


class Encoder:
    """One thread of a worker process; over one data folder one encoder is active at a time."""

    def __init__(self, database: Database, blobs: BlobStore, codec: ImportCodec, lock_path: Path) -> None:
        self._database = database
        self._blobs = blobs
        self._codec = codec
        self._lock_path = lock_path
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._resume_at = 0.0
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something to encode."""
        self._wake.set()

    def stop(self) -> None:
        """Returns when the frame in hand is done; the rest waits for the next start."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        # Encoding yields the processor to everything that answers somebody.
        with suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        descriptor = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not self._stop.is_set():
                self._wake.clear()
                self._let_imports_go_first()
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    while not self._stop.is_set() and self._encode_some():
                        self._let_imports_go_first()
                except BlockingIOError:
                    pass  # another worker encodes
                except GatewayError as fault:
                    log.warning("encoder.failed", code=fault.code, detail=fault.detail)
                except Exception:
                    log.exception("encoder.failed")
                self._wake.wait(_IDLE_S)
        finally:
            os.close(descriptor)

    def stand_back(self) -> None:
        """An import is under way: encoding can wait for a moment in which nobody waits."""
        self._resume_at = time.monotonic() + _QUIET_S

    def _let_imports_go_first(self) -> None:
        """Waits for a lull in the imports, but never so long that the spool grows without end."""
        latest = time.monotonic() + _LONGEST_PAUSE_S
        while (now := time.monotonic()) < min(self._resume_at, latest) and not self._stop.is_set():
            self._stop.wait(min(self._resume_at, latest) - now)

    def _encode_some(self) -> bool:
        """A batch of raw pixel rows into one blob; whether there was any."""
        x = t.pixel
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(x.c.pk, t.blob.c.name, x.c.off, x.c.len, x.c.format, x.c.stored_syntax, x.c.frames)
                .join(t.blob, t.blob.c.pk == x.c.blob_pk)
                .where(x.c.state == "raw")
                .order_by(x.c.pk)
                .limit(_BATCH_ROWS)
            ).all()
        if not rows:
            return False
        writer = self._blobs.create("frames")
        done = []
        damaged = []
        try:
            for row in rows:
                try:
                    start, table, syntax = self._encode(row, writer)
                except Corrupt as fault:
                    log.error("encoder.damaged", pixel=row.pk, detail=fault.detail)
                    damaged.append(row.pk)
                    continue
                if self._stop.is_set() and len(table) != len(row.frames):
                    break
                done.append((row.pk, start, writer.size - start, table, syntax))
                if writer.size - writer.start > _BATCH_BYTES or self._stop.is_set():
                    break
                if time.monotonic() < self._resume_at:
                    break
            size = writer.size
            if done:
                writer.finish()
            else:
                writer.abandon()
        except BaseException:
            writer.abandon()
            raise
        if damaged:  # no longer waits, and would hold up the others
            with self._database.write() as connection:
                connection.execute(sa.update(x).where(x.c.pk.in_(damaged), x.c.state == "raw").values(state="damaged"))
        if not done:
            return bool(damaged)
        with self._database.write() as connection:
            blob_pk = store_blob(connection, writer.name, size, now_ms())
            for pk, offset, length, table, syntax in done:
                connection.execute(
                    sa.update(x)
                    .where(x.c.pk == pk, x.c.state == "raw")
                    .values(
                        blob_pk=blob_pk,
                        off=offset,
                        len=length,
                        frames=table,
                        syntax=syntax,
                        state="kept" if syntax == EXPLICIT_LE else "encoded",
                    )
                )
        return True

    def _encode(self, row: Any, writer: BlobWriter) -> tuple[int, bytes, str]:
        """Where one pixel row now begins, its new frame table and its syntax; a stop in between leaves the table short.

        Raises Corrupt when a raw frame is not what was received.
        """
        try:
            return self._write(row, row.stored_syntax, writer)
        except Corrupt:
            raise
        except GatewayError as fault:
            log.error("encoder.kept_native", pixel=row.pk, detail=fault.detail)
            return self._write(row, EXPLICIT_LE, writer)  # all of its frames: a row has one syntax

    def _write(self, row: Any, syntax: str, writer: BlobWriter) -> tuple[int, bytes, str]:
        format = parse_format(row.format)
        start = writer.size
        table = []
        for frame in unpack_table(row.frames, signed=format.signed):
            if self._stop.is_set():
                break
            native = self._blobs.read(row.name, row.off + frame.offset, frame.length)
            if digest_of(native) != frame.digest:
                raise Corrupt("a raw frame does not have its digest")
            data, prefix = native, 0
            if syntax != EXPLICIT_LE:
                try:
                    data = self._codec.encode(native, format, syntax)
                except Corrupt as fault:  # the codec's fault, not the frame's
                    raise NotAcceptable(fault.detail) from fault
                prefix = self._codec.thumbnail_prefix(data) if syntax == HTJ2K_LOSSLESS_RPCL else 0
            table.append(moved(frame, writer.size - start, data, prefix))
            writer.write(data)
        return start, b"".join(table), syntax
