"""The spool: where received instances wait, durable, for their import.

A segment is an append-only file of frames. A frame is `magic, header length, body length, CRC-32`, a JSON header (where
its bytes came from) and the body as received. One process writes a segment and holds its `flock` while any of its
frames has not been handed to an import job: a segment that can be locked belongs to nobody alive, and `abandoned` tells
what lies in it. A frame that was torn by a crash has no valid header or CRC and ends the segment.
"""

import fcntl
import json
import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from isal import isal_zlib

from adapters.blobs.folder import require_space, sync_folder, translate
from gateway.domain.errors import Corrupt
from gateway.domain.ids import new_id
from gateway.domain.model import Origin, Staged
from gateway.ports import Buffer

_FRAME = struct.Struct("<4sIQI")
_MAGIC = b"ISG1"
_GIVEN_UP = b"ISGX"
"""Magic of a whole frame that its sender took back before anything was acknowledged."""
_SHARED_LIMIT = 16 << 20
"""A larger instance is written straight into a segment of its own."""
_SEGMENT_BYTES = 256 << 20
_WRITEV_MAX = 1000
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class _Segment:
    name: str
    descriptor: int
    size: int = 0
    unsubmitted: int = 0
    sealed: bool = False


@dataclass(slots=True)
class _Progress:
    """Group commit: how many frames were closed, and how many of them are on the disk."""

    closed: int = 0
    synced: int = 0
    syncing: bool = False
    dirty: set[int] = field(default_factory=set)
    in_sync: set[int] = field(default_factory=set)
    """Descriptors that are being synced: not to be closed meanwhile."""
    failed: list[tuple[int, int, OSError]] = field(default_factory=list)
    """Frames after the first number, up to the second, whose sync failed."""


class Spool:
    """`Staging` in a folder. One object a process; any thread may use it."""

    def __init__(
        self,
        root: Path,
        role: str,
        *,
        reserve_bytes: int = 0,
        memory_bytes: int = 256 << 20,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = root / "spool"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer = f"{role}-{new_id()[:12]}"
        self._reserve_bytes = reserve_bytes
        self._admit = admit
        self._memory = _Memory(memory_bytes)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._count = 0
        self._segments: dict[str, _Segment] = {}
        self._current: _Segment | None = None
        self._progress = _Progress()

    # ------------------------------------------------------------ writing

    def admit(self) -> None:
        require_space(self.folder, self._reserve_bytes)
        self._admit()

    def open(self, origin: Origin) -> "SpoolSink":
        require_space(self.folder, self._reserve_bytes)
        return SpoolSink(self, origin)

    def sync(self) -> None:
        progress = self._progress
        with self._changed:
            target = progress.closed
            while progress.synced < target:
                if progress.syncing:
                    self._changed.wait()
                    continue
                progress.syncing = True
                reached, dirty = progress.closed, progress.dirty
                progress.dirty, progress.in_sync = set(), dirty
                self._lock.release()
                fault: OSError | None = None
                try:
                    for descriptor in dirty:
                        os.fdatasync(descriptor)
                except OSError as error:
                    fault = error
                finally:
                    self._lock.acquire()
                progress.syncing = False
                progress.in_sync = set()
                if fault is not None:
                    # The kernel may have dropped what it could not write, and would report success the next time:
                    # what was in this sync is never promised, and nothing more is written behind it.
                    progress.failed.append((progress.synced, reached, fault))
                    if self._current is not None:
                        self._current.sealed = True
                        self._current = None
                progress.synced = reached
                for segment in list(self._segments.values()):
                    self._let_go(segment)
                self._changed.notify_all()
            for low, high, fault in progress.failed:
                if low < target <= high:
                    raise translate(fault) from fault

    def settle(self, segments: Iterable[str]) -> None:
        try:
            for name in segments:
                try:
                    descriptor = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue  # whoever reads it will say so
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as fault:
            raise translate(fault) from fault

    def submitted(self, items: Sequence[Staged]) -> None:
        """These are named by a committed import job (or were given up): a restart need not look for them."""
        with self._lock:
            for item in items:
                segment = self._segments.get(item.segment)
                if segment is not None:
                    segment.unsubmitted -= 1
                    self._let_go(segment)

    def close(self) -> None:
        """Ends writing; locks are dropped, so that another process looks after what was not submitted."""
        with self._lock:
            for segment in list(self._segments.values()):
                os.close(segment.descriptor)
            self._segments.clear()
            self._current = None

    def _let_go(self, segment: _Segment) -> None:
        unsynced = self._progress.dirty | self._progress.in_sync
        if segment.sealed and segment.unsubmitted == 0 and segment.descriptor not in unsynced:
            os.close(segment.descriptor)
            del self._segments[segment.name]

    def _new_segment(self) -> _Segment:
        """With the lock held. Raises OutOfStorage."""
        self._count += 1
        name = f"{self._writer}-{self._count:06d}"
        # Locked before it gets its name: nobody can take a segment in the making for an abandoned one.
        hidden = self.folder / f".{name}"
        try:
            descriptor = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            hidden.rename(self.folder / name)
            sync_folder(self.folder)
        except OSError as fault:
            raise translate(fault) from fault
        segment = self._segments[name] = _Segment(name, descriptor)
        return segment

    def _append(self, origin: Origin, chunks: list[bytes], length: int) -> Staged:
        header = _header_bytes(origin)
        crc = isal_zlib.crc32(header)
        for chunk in chunks:
            crc = isal_zlib.crc32(chunk, crc)
        vector = [_FRAME.pack(_MAGIC, len(header), length, crc), header, *chunks]
        total = _FRAME.size + len(header) + length
        with self._lock:
            segment = self._current
            if segment is None or segment.size + total > _SEGMENT_BYTES:
                if segment is not None:
                    self._current = None  # also if there is no room for another
                    segment.sealed = True
                    self._let_go(segment)
                segment = self._current = self._new_segment()
            offset = segment.size
            try:
                _write_at(segment.descriptor, vector, offset)
            except OSError as fault:
                os.ftruncate(segment.descriptor, offset)
                raise translate(fault) from fault
            segment.size += total
            self._closed(segment)
        return Staged(segment.name, offset, total, origin)

    def _closed(self, segment: _Segment) -> None:
        """With the lock held."""
        segment.unsubmitted += 1
        self._progress.closed += 1
        self._progress.dirty.add(segment.descriptor)

    def _private(self) -> _Segment:
        with self._lock:
            return self._new_segment()

    def _finish_private(self, segment: _Segment, origin: Origin, header_length: int, length: int, crc: int) -> Staged:
        try:
            _write_at(segment.descriptor, [_FRAME.pack(_MAGIC, header_length, length, crc)], 0)
        except OSError as fault:
            self._drop(segment)
            raise translate(fault) from fault
        with self._lock:
            segment.size = _FRAME.size + header_length + length
            segment.sealed = True
            self._closed(segment)
        return Staged(segment.name, 0, segment.size, origin)

    def _give_up(self, item: Staged) -> None:
        with self._lock:
            segment = self._segments.get(item.segment)
            if segment is not None:
                os.pwrite(segment.descriptor, _GIVEN_UP, item.offset)
        self.submitted([item])

    def _drop(self, segment: _Segment) -> None:
        with self._lock:
            if self._segments.pop(segment.name, None) is not None:
                (self.folder / segment.name).unlink(missing_ok=True)
                os.close(segment.descriptor)

    # ------------------------------------------------------------ reading

    def read(self, segment: str, offset: int, length: int) -> tuple[Origin, bytes | memoryview, int]:
        """A frame's origin, its body, and where in the segment the body begins. Raises Corrupt.

        A large body is a view of the mapped file: never copied whole.
        """
        descriptor = self._open(segment)
        try:
            if length > _SHARED_LIMIT:
                header_length, body_length = _checked(descriptor, segment, offset, length)
                data: bytes | memoryview = _map(descriptor, offset, length)
            else:
                data = os.pread(descriptor, length, offset)
                frame = _parse(data)
                if frame is None:
                    raise _damaged(segment, offset)
                header_length, body_length = frame
        finally:
            os.close(descriptor)
        start = _FRAME.size + header_length
        origin = Origin(**json.loads(bytes(data[_FRAME.size : start])))
        return origin, data[start : start + body_length], offset + start

    def check(self, segment: str, offset: int, length: int) -> None:
        """Reads a frame in pieces. Raises Corrupt."""
        descriptor = self._open(segment)
        try:
            _checked(descriptor, segment, offset, length)
        finally:
            os.close(descriptor)

    def _open(self, segment: str) -> int:
        try:
            return os.open(self.folder / segment, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as missing:
            raise Corrupt(f"spool segment {segment} is missing") from missing

    def segments(self) -> list[str]:
        """Every segment there is, own ones included."""
        return sorted(entry.name for entry in os.scandir(self.folder) if not entry.name.startswith("."))

    def abandoned(self, segment: str) -> "AbandonedSegment | None":
        """Takes hold of a segment that no living process holds; None when one does, or when it is gone."""
        with self._lock:
            if segment in self._segments:
                return None
        try:
            descriptor = os.open(self.folder / segment, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return AbandonedSegment(self.folder / segment, descriptor)


class _Memory:
    """How many bytes the instances of a process that are still coming in hold in memory together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bool:
        """Whether there is room; the bytes count in any case, until they are given back."""
        with self._lock:
            self._held += count
            return self._held <= self._limit

    def give_back(self, count: int) -> None:
        with self._lock:
            self._held -= count


class SpoolSink:
    """Takes one instance's bytes; small ones wait in memory for a single write, large ones go to their own segment,
    and so do small ones that come so slowly, or with so many others, that together they would fill the memory."""

    def __init__(self, spool: Spool, origin: Origin) -> None:
        self._spool = spool
        self._origin = origin
        self._chunks: list[bytes] = []
        self._length = 0
        self._segment: _Segment | None = None
        self._header = b""
        self._crc = 0
        self._staged: Staged | None = None

    def write(self, data: Buffer) -> None:
        chunk = bytes(data)
        if self._segment is None:
            self._chunks.append(chunk)
            self._length += len(chunk)
            if not self._spool._memory.take(len(chunk)) or self._length > _SHARED_LIMIT:
                self._spill()
        else:
            self._crc = isal_zlib.crc32(chunk, self._crc)
            self._to_segment(self._segment, chunk)
            self._length += len(chunk)

    def _spill(self) -> None:
        self._header = _header_bytes(self._origin)
        self._crc = isal_zlib.crc32(self._header)
        segment = self._segment = self._spool._private()
        chunks = self._forget()
        self._length = 0
        self._to_segment(segment, bytes(_FRAME.size) + self._header)
        for chunk in chunks:
            self._crc = isal_zlib.crc32(chunk, self._crc)
            self._to_segment(segment, chunk)
            self._length += len(chunk)

    def _to_segment(self, segment: _Segment, chunk: bytes) -> None:
        try:
            _write_at(segment.descriptor, [chunk], segment.size)
        except OSError as fault:
            self.abort()
            raise translate(fault) from fault
        segment.size += len(chunk)

    def close(self) -> Staged:
        if self._segment is None:
            try:
                self._staged = self._spool._append(self._origin, self._chunks, self._length)
            finally:
                self._forget()
        else:
            self._staged = self._spool._finish_private(
                self._segment, self._origin, len(self._header), self._length, self._crc
            )
        return self._staged

    def _forget(self) -> list[bytes]:
        """What was held in memory, which now is somebody else's."""
        chunks, self._chunks = self._chunks, []
        self._spool._memory.give_back(sum(map(len, chunks)))
        return chunks

    def abort(self) -> None:
        self._forget()
        if self._staged is not None:
            self._spool._give_up(self._staged)
        elif self._segment is not None:
            segment, self._segment = self._segment, None
            self._spool._drop(segment)


class AbandonedSegment:
    """A segment whose writer is gone, held while somebody looks after it."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.name = path.name
        self._path = path
        self._descriptor = descriptor

    def frames(self) -> Iterator[Staged]:
        """Its whole frames, in order. A torn one at the end was never acknowledged; a damaged one costs no other."""
        size = os.fstat(self._descriptor).st_size
        offset = 0
        while offset + _FRAME.size <= size:
            magic, header_length, body_length, _ = _FRAME.unpack(os.pread(self._descriptor, _FRAME.size, offset))
            total = _FRAME.size + header_length + body_length
            if magic not in (_MAGIC, _GIVEN_UP) or offset + total > size:
                break
            if magic == _GIVEN_UP:
                offset += total
                continue
            with suppress(Corrupt):
                _checked(self._descriptor, self.name, offset, total)
                header = os.pread(self._descriptor, header_length, offset + _FRAME.size)
                yield Staged(self.name, offset, total, Origin(**json.loads(header)))
            offset += total

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)

    def release(self) -> None:
        os.close(self._descriptor)


def _header_bytes(origin: Origin) -> bytes:
    return json.dumps({key: value for key, value in asdict(origin).items() if value is not None}).encode()


def _parse(data: bytes | memoryview) -> tuple[int, int] | None:
    """Lengths of header and body, None when the frame is not whole."""
    if len(data) < _FRAME.size:
        return None
    magic, header_length, body_length, crc = _FRAME.unpack_from(data)
    if magic != _MAGIC or _FRAME.size + header_length + body_length != len(data):
        return None
    if isal_zlib.crc32(data[_FRAME.size :]) != crc:
        return None
    return header_length, body_length


def _checked(descriptor: int, segment: str, offset: int, length: int) -> tuple[int, int]:
    """Lengths of header and body of a whole frame, read in pieces: mapping it would count as this process's memory.

    Raises Corrupt.
    """
    head = os.pread(descriptor, _FRAME.size, offset)
    if len(head) == _FRAME.size:
        magic, header_length, body_length, expected = _FRAME.unpack(head)
        if magic == _MAGIC and _FRAME.size + header_length + body_length == length:
            crc = 0
            at, end = offset + _FRAME.size, offset + length
            while at < end and (piece := os.pread(descriptor, min(_PIECE_BYTES, end - at), at)):
                crc = isal_zlib.crc32(piece, crc)
                at += len(piece)
            if at == end and crc == expected:
                return header_length, body_length
    raise _damaged(segment, offset)


def _damaged(segment: str, offset: int) -> Corrupt:
    return Corrupt(f"spool segment {segment}: the frame at {offset} is damaged")


def _write_at(descriptor: int, vector: Sequence[bytes], offset: int) -> None:
    for start in range(0, len(vector), _WRITEV_MAX):
        pending = [memoryview(chunk) for chunk in vector[start : start + _WRITEV_MAX] if chunk]
        while pending:
            written = os.pwritev(descriptor, pending, offset)
            offset += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if pending and written:
                pending[0] = pending[0][written:]


def _map(descriptor: int, offset: int, length: int) -> memoryview:
    page = offset - offset % mmap.ALLOCATIONGRANULARITY
    mapped = mmap.mmap(descriptor, length + offset - page, prot=mmap.PROT_READ, offset=page)
    return memoryview(mapped)[offset - page :]
