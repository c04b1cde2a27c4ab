"""A bounded folder of derived frames (`DerivedFrames`): one file a frame, shared by any number of processes.

A file is written under a name of its own and renamed, so that no reader sees half of one; it is never synced, and its
CRC-32 says after a loss of power whether it is whole. Nothing here is ever missed: the folder may be emptied, or
deleted, while gateways run.
"""

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import structlog
from isal import isal_zlib

log = structlog.get_logger("gateway.cache")

_HEAD = struct.Struct("<4sI")
_MAGIC = b"IGD1"
_SHARDS = 256
_SHARDS_A_SWEEP = 16
_LEAST_BYTES = 16 << 10
"""What a file counts as at least: so 4 GiB are never more than 262,144 files."""
_WAITING_BYTES = 32 << 20
"""Of frames that wait to be written; what comes on top is not kept."""
_STEPS = 16
"""A process looks at the whole folder each time it has written this part of the limit."""
_USED_S = 600
"""How exactly the time of the last use is kept: writing it down at each read would cost more than the read."""
_ABANDONED_S = 3600
_AT_ONCE_BYTES = 1 << 20
_NO_WAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class DerivedFolder:
    """`{root}/{shard}/{pixels}_{form}_{index}` up to `limit_bytes` together, 0: nothing; least recently used go first.

    Before less than twice `reserve_bytes` is free on its disk, nothing more is kept: what is received comes first.
    """

    def __init__(self, root: Path, limit_bytes: int, *, reserve_bytes: int = 0) -> None:
        self._root = root
        self._folder = os.fspath(root)
        self._limit = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._numbers = count()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._waiting_bytes = 0
        self._change = threading.Condition()
        self._writer: threading.Thread | None = None
        self._closed = False
        self._unseen_bytes = limit_bytes  # what may have come since the last look: all of it, at the start
        self._next_shard = 0

    def get(self, pixels: str, form: str, index: int, *, wait: bool = True) -> bytes | None:
        if not self._limit:
            return None
        name = _name(pixels, form, index)
        path = f"{self._folder}/{name[:2]}/{name}"  # text: a Path for each frame of a series costs more than opening it
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            state = os.fstat(descriptor)
            read = _read if wait else _read_cached
            found = read(descriptor, state.st_size)
            if found is None:
                return None
            head, data = found
            if head != _head_of(name, data):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                log.warning("cache.damaged")
                return None
            if time.time() - state.st_mtime > _USED_S:
                os.utime(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return data

    def put(self, pixels: str, form: str, index: int, data: bytes) -> None:
        if not self._limit or len(data) > self._limit // _STEPS:
            return
        with self._change:
            if self._closed or self._waiting_bytes + len(data) > _WAITING_BYTES:
                return
            self._waiting.append((_name(pixels, form, index), data))
            self._waiting_bytes += len(data)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="derived-frames", daemon=True)
                self._writer.start()
            self._change.notify_all()

    def forget(self, pixels: Iterable[str]) -> None:
        gone: dict[str, set[str]] = {}
        for each in pixels:
            gone.setdefault(each[:2], set()).add(each)
        for shard, names in gone.items():
            for file in _files(self._root / shard):
                if file.name.partition("_")[0] in names:
                    _remove(file)

    def sweep(self, living: Callable[[Sequence[str]], set[str]]) -> None:
        if not self._limit or self._is_disk_full(0):
            self._trim(0)
            return
        for _ in range(_SHARDS_A_SWEEP):
            files = list(_files(self._root / f"{self._next_shard:02x}"))
            self._next_shard = (self._next_shard + 1) % _SHARDS
            for start in range(0, len(files), 500):
                some = files[start : start + 500]
                named = {file.name.partition("_")[0] for file in some} - {""}
                alive = living(sorted(named)) if named else set()
                for file in some:
                    if file.name.partition("_")[0] not in alive and not _may_be_in_use(file):
                        _remove(file)

    def close(self) -> None:
        """Returns when everything that waits is written; nothing is kept any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._writer is not None:
            self._writer.join()

    def _write_all(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    if self._closed:
                        return
                    self._change.wait()
                name, data = self._waiting[0]
            try:
                self._write(name, data)
            except OSError as fault:  # a full disk, a folder that somebody is deleting
                log.warning("cache.not_written", fault=type(fault).__name__)
            with self._change:
                self._waiting.popleft()
                self._waiting_bytes -= len(data)

    def _write(self, name: str, data: bytes) -> None:
        if self._is_disk_full(len(data)):
            return
        path = self._root / name[:2] / name
        part = path.with_name(f"_{os.getpid()}-{next(self._numbers)}")
        try:
            file = part.open("xb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("xb", buffering=0)
        try:
            with file:
                if os.writev(file.fileno(), (_head_of(name, data), data)) != _HEAD.size + len(data):
                    raise OSError("the file was not written whole")
            part.rename(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._unseen_bytes += max(len(data), _LEAST_BYTES)
        if self._unseen_bytes >= self._limit // _STEPS:
            self._unseen_bytes = 0
            # Two processes that write at once still stay below the limit between two looks.
            self._trim(self._limit - 2 * (self._limit // _STEPS))

    def _is_disk_full(self, size: int) -> bool:
        if not self._reserve_bytes or not self._root.is_dir():
            return False
        state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize < 2 * self._reserve_bytes + size

    def _trim(self, limit: int) -> None:
        """Removes the least recently used beyond `limit` bytes, unless another process is at it."""
        if not self._root.is_dir():
            return
        with (self._root / "lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            found = []
            total = 0
            for number in range(_SHARDS):
                for file in _files(self._root / f"{number:02x}"):
                    with contextlib.suppress(FileNotFoundError):
                        state = file.stat()
                        found.append((state.st_mtime, max(state.st_size, _LEAST_BYTES), file))
                        total += found[-1][1]
            found.sort(key=lambda each: each[0], reverse=True)
            while total > limit:
                _, size, file = found.pop()
                if limit == 0 or not _may_be_in_use(file):
                    _remove(file)
                total -= size


def _name(pixels: str, form: str, index: int) -> str:
    return f"{pixels}_{form}_{index}"


def _head_of(name: str, data: bytes) -> bytes:
    """The CRC is of the name too: a file that was moved is none of ours."""
    return _HEAD.pack(_MAGIC, isal_zlib.crc32(data, isal_zlib.crc32(name.encode())))


def _read(descriptor: int, size: int) -> tuple[bytes, bytes]:
    return os.pread(descriptor, _HEAD.size, 0), os.pread(descriptor, size, _HEAD.size)


def _read_cached(descriptor: int, size: int) -> tuple[bytes, bytes] | None:
    """The same, if it need not wait for a disk."""
    if _NO_WAIT is None or not _HEAD.size < size <= _AT_ONCE_BYTES:
        return None
    head, data = bytearray(_HEAD.size), bytearray(size - _HEAD.size)
    if os.preadv(descriptor, [head, data], 0, _NO_WAIT) != size:
        return None
    return bytes(head), bytes(data)


def _files(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _may_be_in_use(file: "os.DirEntry[str]") -> bool:
    """Whether it is a part that a living process may still write."""
    if not file.name.startswith("_"):
        return False
    with contextlib.suppress(FileNotFoundError):
        return time.time() - file.stat().st_mtime < _ABANDONED_S
    return False


def _remove(file: "os.DirEntry[str]") -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file.path)


__all__ = ["DerivedFolder"]
