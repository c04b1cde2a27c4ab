"""The spool: what was acknowledged survives, what was torn does not come back, and a full disk is told and outlived."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.blobs import spool as spool_module
from adapters.blobs.folder import FolderBlobs
from adapters.blobs.spool import Spool
from gateway.domain.errors import Corrupt, OutOfStorage
from gateway.domain.ids import DatastoreId
from gateway.domain.model import Origin, Staged

ORIGIN = Origin(DatastoreId("d" * 32), "stow", name="1")
Body = bytes


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path, "web")
    yield made
    made.close()


def write(spool: Spool, body: bytes, origin: Origin = ORIGIN, piece: int = 1 << 20) -> Staged:
    sink = spool.open(origin)
    for start in range(0, len(body), piece):
        sink.write(memoryview(body)[start : start + piece])
    return sink.close()


def read(spool: Spool, item: Staged) -> bytes:
    origin, body, at = spool.read(item.segment, item.offset, item.length)
    assert origin == item.origin
    with open(spool.folder / item.segment, "rb") as file:
        file.seek(at)
        assert file.read(len(body)) == body
    return bytes(body)


def left_behind(spool: Spool, segment: str) -> list[Staged]:
    """What another process finds in a segment."""
    held = spool.abandoned(segment)
    assert held is not None
    try:
        return list(held.frames())
    finally:
        held.release()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes the disk full from now on, after half of what is written."""

    def pwritev(descriptor: int, buffers: Sequence[Any], offset: int) -> int:
        os.pwrite(descriptor, bytes(buffers[0])[: max(1, len(buffers[0]) // 2)], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "pwritev", pwritev)


# ---------------------------------------------------------------- writing and reading


@pytest.mark.parametrize("body", [b"", b"x", bytes(range(256)) * 1000])
def test_what_is_written_is_read(spool: Spool, body: bytes) -> None:
    items = [write(spool, body + bytes([n]), piece=999) for n in range(3)]
    spool.sync()
    assert [read(spool, item) for item in items] == [body + bytes([n]) for n in range(3)]
    assert len({item.segment for item in items}) == 1


def test_every_origin_comes_back(spool: Spool) -> None:
    origin = Origin(ORIGIN.datastore, "dimse", False, "1.2", "1.2.3", "1.2.4", None, "GW", "MOD\\é", "alice", "7")
    item = write(spool, b"x", origin)
    assert spool.read(item.segment, item.offset, item.length)[0] == origin


def test_a_large_instance_has_a_segment_of_its_own(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SHARED_LIMIT", 1000)
    small, large, after = (write(spool, body, piece=300) for body in (b"s" * 1000, b"l" * 5000, b"a" * 1000))
    spool.sync()
    assert small.segment == after.segment != large.segment
    assert [read(spool, item)[:1] for item in (small, large, after)] == [b"s", b"l", b"a"]
    assert len(read(spool, large)) == 5000
    assert spool.abandoned(large.segment) is None
    spool.submitted([large])
    assert left_behind(spool, large.segment) == [replace(large)]
    assert spool.abandoned(small.segment) is None


def test_a_full_segment_is_followed_by_another(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 3000)
    items = [write(spool, bytes([n]) * 1000) for n in range(5)]
    spool.sync()
    segments = sorted({item.segment for item in items})
    assert len(segments) == 3
    assert spool.segments() == segments
    assert [read(spool, item) for item in items] == [bytes([n]) * 1000 for n in range(5)]
    assert all(spool.abandoned(segment) is None for segment in segments)
    spool.submitted(items)
    assert [spool.abandoned(s) is None for s in segments[2:]] == [True]  # still being written
    assert left_behind(spool, segments[0]) == items[:2]


def test_a_segment_is_held_until_all_of_it_is_submitted(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 1)
    one = write(spool, b"1")
    write(spool, b"2")
    assert spool.abandoned(one.segment) is None
    spool.sync()
    assert spool.abandoned(one.segment) is None
    spool.submitted([one])
    assert len(left_behind(spool, one.segment)) == 1


def test_what_was_aborted_is_not_found(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SHARED_LIMIT", 1000)
    kept = write(spool, b"kept")
    for body in (b"before close", b"l" * 5000):
        sink = spool.open(ORIGIN)
        sink.write(body)
        sink.abort()
    closed = spool.open(ORIGIN)
    closed.write(b"after close")
    closed.close()
    closed.abort()
    large = spool.open(ORIGIN)
    large.write(b"L" * 5000)
    own = large.close()
    large.abort()
    last = write(spool, b"last")
    spool.sync()
    assert left_behind(spool, own.segment) == []
    spool.close()
    assert left_behind(spool, kept.segment) == [kept, last]


# ---------------------------------------------------------------- group commit


def test_one_sync_serves_all_who_wait(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one sync is under way, the others gather; the next one serves them all."""
    began, go_on = threading.Event(), threading.Event()
    calls: list[int] = []
    fdatasync = os.fdatasync

    def counted(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            began.set()
            assert go_on.wait(10)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    written = threading.Barrier(9)

    def first() -> None:
        write(spool, b"first")
        spool.sync()

    def other() -> None:
        write(spool, b"other")
        written.wait(10)
        spool.sync()

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert began.wait(10)
    threads += [threading.Thread(target=other) for _ in range(8)]
    for thread in threads[1:]:
        thread.start()
    written.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(calls) == 2


def test_sync_returns_after_what_was_closed_before_it(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    item = write(spool, b"x" * 100)
    spool.sync()
    assert synced == [item.offset + item.length]
    spool.sync()
    assert len(synced) == 1  # nothing new: nothing to do


def test_many_threads_write_and_sync(spool: Spool) -> None:
    items: list[tuple[bytes, Staged]] = []
    lock = threading.Lock()

    def many(name: int) -> None:
        for n in range(20):
            body = b"%d-%d" % (name, n) * 50
            item = write(spool, body, replace(ORIGIN, name=f"{name}-{n}"))
            spool.sync()
            with lock:
                items.append((body, item))

    threads = [threading.Thread(target=many, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(items) == 160
    assert all(read(spool, item) == body for body, item in items)
    spool.close()
    found = {item for segment in spool.segments() for item in left_behind(spool, segment)}
    assert found == {item for _, item in items}


def test_giving_up_while_another_syncs_closes_nothing_under_it(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_SHARED_LIMIT", 10)
    sink = spool.open(ORIGIN)
    sink.write(b"l" * 100)
    sink.close()
    fdatasync = os.fdatasync

    def aborted_meanwhile(descriptor: int) -> None:
        sink.abort()
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", aborted_meanwhile)
    spool.sync()
    monkeypatch.undo()
    item = write(spool, b"next")
    spool.sync()
    assert read(spool, item) == b"next"


def test_a_failed_sync_acknowledges_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = write(spool, b"x")
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", fails)
        with pytest.raises(OutOfStorage):
            spool.sync()
    with pytest.raises(OutOfStorage):  # the kernel may have dropped it: a second sync would prove nothing
        spool.sync()
    after = write(spool, b"y")
    spool.sync()
    assert after.segment != before.segment
    assert read(spool, after) == b"y"


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_is_told_and_outlived(
    spool: Spool, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write(spool, b"before" * 100)
    full()
    with pytest.raises(OutOfStorage):
        write(spool, b"too much" * 100)
    monkeypatch.undo()
    after = write(spool, b"after" * 100)
    spool.sync()
    assert (read(spool, before), read(spool, after)) == (b"before" * 100, b"after" * 100)
    spool.close()
    assert left_behind(spool, before.segment) == [before, after]


def test_a_disk_that_fills_under_a_large_instance(
    spool: Spool, full: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "_SHARED_LIMIT", 1000)
    sink = spool.open(ORIGIN)
    sink.write(b"l" * 2000)
    pwritev = os.pwritev
    full()
    with pytest.raises(OutOfStorage):
        sink.write(b"l" * 2000)
    sink.abort()
    assert spool.segments() == []
    os.pwritev = pwritev
    sink = spool.open(ORIGIN)
    sink.write(b"l" * 2000)
    full()
    with pytest.raises(OutOfStorage):
        sink.close()
    sink.abort()
    assert spool.segments() == []
    os.pwritev = pwritev
    item = write(spool, b"next")
    spool.sync()
    assert read(spool, item) == b"next"


def test_no_room_for_another_segment(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 1000)
    one = write(spool, b"1" * 800)
    spool.sync()
    spool.submitted([one])
    real = os.open

    def none_left(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *rest, **more)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", none_left)
        for body in (b"2" * 800, b"3"):
            with pytest.raises(OutOfStorage):
                write(spool, body)
        monkeypatch.setattr(spool_module, "_SHARED_LIMIT", 10)
        with pytest.raises(OutOfStorage):
            write(spool, b"l" * 100)
    item = write(spool, b"4")
    spool.sync()
    assert read(spool, item) == b"4"


def test_less_than_the_reserve_is_told_before_anything_is_taken(tmp_path: Path) -> None:
    with pytest.raises(OutOfStorage):
        Spool(tmp_path, "web", reserve_bytes=1 << 60).open(ORIGIN)


def test_a_blob_for_which_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", none_left)
    with pytest.raises(OutOfStorage):
        FolderBlobs(tmp_path).create("pack")


# ---------------------------------------------------------------- after a crash


def _bodies(spool: Spool, items: list[Staged]) -> list[bytes]:
    return [read(spool, item) for item in items]


@pytest.mark.parametrize("kept", [0, 1, 15, 30, 60, -1])
def test_a_torn_tail_costs_nothing_before_it(spool: Spool, kept: int) -> None:
    items = [write(spool, b"whole" * 20), write(spool, b"torn" * 20)]
    spool.sync()
    spool.close()
    path = spool.folder / items[0].segment
    size = path.stat().st_size
    os.truncate(path, size - 1 if kept == -1 else items[1].offset + kept)
    assert left_behind(spool, items[0].segment) == items[:1]
    assert left_behind(spool, items[0].segment) == items[:1]  # looking changes nothing
    with pytest.raises(Corrupt):
        spool.read(items[1].segment, items[1].offset, items[1].length)


def test_a_damaged_frame_costs_no_other(spool: Spool) -> None:
    """Nor is anything cut off: pixels of what was imported long ago may lie behind it."""
    items = [write(spool, bytes([n]) * 100) for n in range(3)]
    spool.sync()
    spool.close()
    path = spool.folder / items[0].segment
    data = bytearray(path.read_bytes())
    data[items[1].offset + items[1].length - 5] ^= 1
    path.write_bytes(data)
    assert left_behind(spool, items[0].segment) == [items[0], items[2]]
    assert path.stat().st_size == len(data)
    assert _bodies(spool, [items[0], items[2]]) == [bytes([0]) * 100, bytes([2]) * 100]
    with pytest.raises(Corrupt):
        spool.read(items[1].segment, items[1].offset, items[1].length)


def test_a_missing_segment_is_corrupt_and_belongs_to_nobody(spool: Spool) -> None:
    with pytest.raises(Corrupt):
        spool.read("web-0-000001", 0, 100)
    assert spool.abandoned("web-0-000001") is None


_WRITER = """
import sys
from pathlib import Path
from adapters.blobs import spool as m
from gateway.domain.model import Origin
m._SEGMENT_BYTES = 20000
spool = m.Spool(Path(sys.argv[1]), "web")
n = 0
while True:
    for _ in range(3):
        sink = spool.open(Origin("d" * 32, "stow", name=str(n)))
        sink.write(b"%d," % n * (n % 700))
        sink.close()
        n += 1
    spool.sync()
    print(n, flush=True)
"""


def test_what_was_synced_survives_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert writer.stdout is not None
    acknowledged = 0
    while acknowledged < 450:
        acknowledged = int(writer.stdout.readline())
    reader = Spool(tmp_path, "worker")
    segments = reader.segments()
    held = [segment for segment in segments if reader.abandoned(segment) is None]
    assert held == segments  # its writer lives, and has submitted nothing
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    writer.wait(10)
    writer.stdout.close()
    found = [item for segment in reader.segments() for item in left_behind(reader, segment)]
    assert len(reader.segments()) > 2
    numbers = [int(item.origin.name or "") for item in found]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= acknowledged
    for number, item in zip(numbers, found, strict=True):
        assert read(reader, item) == b"%d," % number * (number % 700)
