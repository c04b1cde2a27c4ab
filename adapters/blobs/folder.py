"""Blobs as files of a folder."""

import contextlib
import errno
import fcntl
import os
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from gateway.domain.errors import Corrupt, OutOfStorage
from gateway.ports import Buffer

_OPEN_FILES = 256
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)
_FILE_BYTES = 64 << 20
"""A file that has grown beyond this gets no further blobs."""


class FolderBlobs:
    """A `BlobStore` over `{root}/{kind}/{unique}`. Writers append to files that stay open between them, since a new
    file costs three journal commits and an append one; descriptors are kept open for ranged reads."""

    def __init__(self, root: Path, *, reserve_bytes: int = 0) -> None:
        self.root = root
        self._reserve_bytes = reserve_bytes
        self._prefix = secrets.token_hex(6)
        self._count = 0
        self._lock = threading.Lock()
        self._open: OrderedDict[str, int] = OrderedDict()
        self._spare: dict[str, list[FolderBlobWriter]] = {}

    def create(self, kind: str) -> "FolderBlobWriter":
        require_space(self.root, self._reserve_bytes)
        with self._lock:
            spare = self._spare.setdefault(kind, [])
            if spare:
                return spare.pop()
            self._count += 1
            name = f"{kind}/{self._prefix}-{self._count:06d}"
        try:
            (self.root / kind).mkdir(parents=True, exist_ok=True)
            return FolderBlobWriter(self, name)
        except OSError as fault:
            raise translate(fault) from fault

    def _give_back(self, writer: "FolderBlobWriter") -> None:
        with self._lock:
            self._spare[writer.kind].append(writer)

    def is_growing(self, name: str) -> bool:
        try:
            descriptor = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def read(self, name: str, offset: int, length: int) -> bytes:
        # The lock is held while reading, so that no other thread closes the descriptor: a page-cache read is short.
        with self._lock:
            descriptor = self._descriptor(name)
            data = os.pread(descriptor, length, offset)
            while len(data) < length:
                more = os.pread(descriptor, length - len(data), offset + len(data))
                if not more:
                    raise Corrupt(f"blob {name} ends before offset {offset + length}")
                data += more
        return data

    def read_cached(self, name: str, offset: int, length: int) -> bytes | None:
        if _NO_WAIT is None:
            return None
        data = bytearray(length)
        with self._lock:
            try:
                count = os.preadv(self._descriptor(name), [data], offset, _NO_WAIT)
            except OSError:  # not in the page cache, or a file system that cannot tell
                return None
        return bytes(data) if count == length else None

    def _descriptor(self, name: str) -> int:
        descriptor = self._open.get(name)
        if descriptor is not None:
            self._open.move_to_end(name)
            return descriptor
        if len(self._open) >= _OPEN_FILES or name.startswith("spool/"):
            self._forget_deleted()
        try:
            descriptor = os.open(self.root / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as missing:
            raise Corrupt(f"blob {name} is missing") from missing
        self._open[name] = descriptor
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _forget_deleted(self) -> None:
        """Closes files that another process has deleted: an open descriptor would keep their space."""
        for name in [name for name, descriptor in self._open.items() if os.fstat(descriptor).st_nlink == 0]:
            os.close(self._open.pop(name))

    def delete(self, name: str) -> None:
        with self._lock:
            descriptor = self._open.pop(name, None)
            if descriptor is not None:
                os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / name)

    def close(self) -> None:
        """Closes every file; the store can be used again."""
        with self._lock:
            for spare in self._spare.values():
                while spare:
                    spare.pop()._file.close()
            while self._open:
                os.close(self._open.popitem()[1])


class FolderBlobWriter:
    """Appends to one file, from `start` on; nobody knows of the new bytes before `finish` has synced them.

    The file is locked as long as it may grow, so that no sweeper takes it away.
    """

    def __init__(self, store: FolderBlobs, name: str) -> None:
        self.name = name
        self.kind = name.partition("/")[0]
        self.start = 0
        self.size = 0
        self._store = store
        self._path = store.root / name
        self._file = open(self._path, "xb", buffering=1 << 20)  # noqa: SIM115 - stays open between blobs
        fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)

    def write(self, data: Buffer) -> None:
        try:
            self._file.write(data)
        except OSError as fault:
            raise translate(fault) from fault
        self.size += len(data)

    def finish(self) -> None:
        try:
            self._file.flush()
            os.fdatasync(self._file.fileno())
            if self.start == 0:
                sync_folder(self._path.parent)
        except OSError as fault:
            raise translate(fault) from fault
        self.start = self.size
        if self.size < _FILE_BYTES:
            self._store._give_back(self)
        else:
            self._file.close()

    def abandon(self) -> None:
        """Cuts off what was written since the last `finish`."""
        with contextlib.suppress(OSError):
            self._file.close()
        if self.start == 0:
            self._path.unlink(missing_ok=True)
        else:
            os.truncate(self._path, self.start)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_space(path: Path, reserve_bytes: int) -> None:
    """Raises OutOfStorage when less than `reserve_bytes` is free."""
    if reserve_bytes:
        state = os.statvfs(path)
        if state.f_bavail * state.f_frsize < reserve_bytes:
            raise OutOfStorage(f"less than {reserve_bytes >> 20} MiB is free on the disk of the data folder")


def translate(fault: OSError) -> Exception:
    """A full disk in the words of the error tree; any other fault as it is."""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfStorage("the disk of the data folder is full")
    return fault
