"""Preparing before there is a job: worth time, and nothing else; and workers that hang instead of dying."""

import asyncio
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from adapters.embedded import ahead, handover
from adapters.embedded.handover import Given, Taker
from adapters.embedded.jobs import Place
from adapters.sql import queue as queue_module
from gateway.domain.errors import NotFound
from gateway.domain.ids import JobId, new_id
from gateway.domain.model import Outcome, Staged
from tests.contract.embedded import Store, close_process
from tests.contract.test_handover import counts, hear_of_workers, idle_worker, running
from tests.makers import instance, pixels, uid

STUDY, SERIES = uid(1), uid(1, 1)
_PATIENCE_S = 20.0


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(1, 1, number), pixels(number), InstanceNumber=number, **attributes)


def places(items: Sequence[Staged]) -> list[Place]:
    return [(item.segment, item.offset, item.length) for item in items]


def submit(store: Store, items: Sequence[Staged], job: JobId) -> None:
    store.do(store.web.backend.submit(store.datastore, items, job))


@pytest.fixture
def prepared(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Offsets in the spool of what has been prepared, as often as it was."""
    found: list[int] = []
    preparer = type(store.worker.worker.preparer)
    prepare = preparer.prepare

    def noted(self: Any, origin: Any, segment: str, offset: int, *rest: Any) -> Any:
        found.append(offset)
        return prepare(self, origin, segment, offset, *rest)

    monkeypatch.setattr(preparer, "prepare", noted)
    return found


def test_what_was_announced_is_prepared_once_and_shown_by_the_job_alone(store: Store, prepared: list[int]) -> None:
    worker = store.worker.worker
    items = store.stage(*map(slice_, range(1, 6)), source="dimse")
    job = JobId(new_id())
    worker._ahead.announce(job, places(items[:2]))
    worker._ahead.announce(job, places(items[2:4]))
    worker._ahead.go_on(_PATIENCE_S)
    assert worker._ahead.is_idle
    assert prepared == [item.offset for item in items[:4]]
    with pytest.raises(NotFound):
        store.select(STUDY)
    submit(store, items, job)
    store.work()
    assert prepared == [item.offset for item in items]
    assert [outcome.failure for outcome in store.outcomes(job)] == [None] * 5
    assert store.sops(STUDY) == [uid(1, 1, n) for n in range(1, 6)]
    assert counts(store) == {"jobs": 1, "records": 5, "changes": 1}
    store.encode()
    for number, entry in enumerate(store.select(STUDY).entries, 1):
        assert store.do(store.web.backend.frame(entry, 0)).crc32 == zlib.crc32(pixels(number).tobytes())


def test_a_worker_that_dies_with_what_it_has_prepared(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "_KEPT_MS", 0)
    other = store.process("worker")
    items = store.stage(slice_(1), slice_(2), source="dimse")
    job = JobId(new_id())
    other.worker._ahead.announce(job, places(items))
    other.worker._ahead.go_on(_PATIENCE_S)
    submit(store, items, job)
    begun = other.worker._ahead.take(job)
    assert begun is not None
    for writer in begun.packs.written:  # as the end of a process does
        writer._file.close()  # type: ignore[attr-defined]
    close_process(other)
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert counts(store) == {"jobs": 1, "records": 2, "changes": 1}


def test_what_cannot_be_prepared_ahead_is_left_to_the_job(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = store.worker.worker
    items = store.stage(slice_(1), slice_(2), source="dimse")
    job = JobId(new_id())
    create = type(store.blobs).create

    def full(*_: Any) -> Any:
        raise OSError("the disk is full")

    worker._ahead.announce(job, places(items))
    monkeypatch.setattr(type(store.blobs), "create", full)
    worker._ahead.go_on(_PATIENCE_S)
    monkeypatch.setattr(type(store.blobs), "create", create)
    assert worker._ahead.take(job) is None
    submit(store, items, job)
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]


def test_a_transaction_that_fails_leaves_nothing_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job runs again, and prepares what it had found prepared."""
    worker = store.worker.worker
    items = store.stage(slice_(1), slice_(2), source="dimse")
    job = JobId(new_id())
    worker._ahead.announce(job, places(items))
    worker._ahead.go_on(_PATIENCE_S)
    submit(store, items, job)

    def fails(*_: Any) -> Any:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr("adapters.embedded.worker.publish_imports", fails)
    store.work()
    assert [outcome.failure for outcome in store.outcomes(job)] == [None] * 2
    assert counts(store) == {"jobs": 1, "records": 2, "changes": 1}


def test_there_is_an_end_to_what_is_prepared_ahead(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = ahead.Ahead(store.blobs, lambda place, packs: Outcome(None, None, None, None))
    monkeypatch.setattr(ahead, "_MOST_JOBS", 2)
    monkeypatch.setattr(ahead, "_MOST_INSTANCES", 5)
    jobs = [JobId(new_id()) for _ in range(3)]
    for job in jobs:
        begun.announce(job, [("segment", offset, 1) for offset in (1, 2)])
    begun.announce(jobs[0], [("segment", 3, 1), ("segment", 4, 1)])
    begun.go_on(_PATIENCE_S)
    found = [begun.take(job) for job in jobs]
    assert [one and list(one.results) for one in found] == [[("segment", 1), ("segment", 2)]] * 2 + [None]
    begun.announce(jobs[0], [("segment", 5, 1)])
    begun.forget_old()
    assert not begun.is_idle
    monkeypatch.setattr(ahead, "_FORGET_S", -1)
    begun.forget_old()
    assert begun.is_idle
    assert begun.take(jobs[0]) is None


def test_a_job_is_kept_a_moment_for_who_has_prepared_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    items = store.stage(slice_(1), source="dimse")
    job = JobId(new_id())
    other = store.process("worker")
    with idle_worker(store) as taker:

        async def announce() -> None:
            store.web.backend.announce(job, items)

        store.do(announce())
        assert taker.take() == []
        assert taker.announced() == [(job, places(items))]
        submit(store, items, job)
    monkeypatch.setattr(queue_module, "_KEPT_MS", 3_600_000)
    assert other.worker.queue.lease(("import",), 1) == []
    (item,) = store.worker.worker.queue.lease(("import",), 1)
    store.worker.worker.queue.retry(item, "", delay_ms=0, counts=False)
    (item,) = other.worker.queue.lease(("import",), 1)  # once it had been taken up, it is anybody's
    other.worker._guarded([item], lambda: other.worker._import_leased([item]))
    close_process(other)
    assert store.sops(STUDY) == [uid(1, 1, 1)]


def test_a_submission_that_is_repeated_makes_one_job(store: Store) -> None:
    items = store.stage(slice_(1), source="dimse")
    job = JobId(new_id())
    submit(store, items, job)
    submit(store, items, job)
    store.work()
    submit(store, items, job)
    store.work()
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_an_association_is_prepared_while_it_goes_on(store: Store, prepared: list[int]) -> None:
    backend = store.web.backend
    items = store.stage(*map(slice_, range(1, 4)), source="dimse")
    job = JobId(new_id())

    async def until(done: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while not done():
                await asyncio.sleep(0.001)

    async def associate() -> None:
        backend.announce(job, items[:2])
        await until(lambda: len(prepared) == 2)
        await backend.submit(store.datastore, items, job)
        result = await backend.result(job, _PATIENCE_S)
        assert result is not None
        assert [outcome.failure for outcome in result.outcomes] == [None] * 3

    with running(store):
        hear_of_workers(store)
        store.do(associate())
    assert prepared == [item.offset for item in items]
    assert store.sops(STUDY) == [uid(1, 1, n) for n in (1, 2, 3)]


# ---------------------------------------------------------------- workers that hang


def in_hand(
    store: Store, taker: Taker, meanwhile: Callable[[Given], Any], seen: list[int]
) -> Sequence[Outcome] | None:
    """What becomes of one instance; `meanwhile` is called again and again once the taker has its order.

    How many orders are in hand is noted each time.
    """

    async def exchange() -> Sequence[Outcome] | None:
        items = store.stage(slice_(1))
        asking = asyncio.create_task(store.web.backend.imported(store.datastore, items, _PATIENCE_S))
        given: list[Given] = []
        async with asyncio.timeout(_PATIENCE_S):
            while not asking.done():
                await asyncio.sleep(0.001)
                given += taker.take() if not given else []
                if given:
                    seen.append(store.web.backend.handed_over)
                    await asyncio.to_thread(meanwhile, given[0])
        return await asking

    return store.do(exchange())


def test_a_worker_that_hangs_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_SILENCE_S", 0.05)
    with idle_worker(store) as taker:
        outcomes = in_hand(store, taker, lambda _: store.work_once(), [])
        assert outcomes is not None
        assert [(o.version, o.identical) for o in outcomes] == [(1, False)]
        assert not any(link.is_free for link in store.web.backend._giver._links.values())
        monkeypatch.setattr(handover, "_PULSE_S", 0)
        taker.pulse()
        hear_of_workers(store, taker)  # it goes on, and is asked again
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_a_worker_that_goes_on_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes; meanwhile the queue shows what it has in hand."""
    monkeypatch.setattr(handover, "_SILENCE_S", 2.0)
    monkeypatch.setattr(handover, "_PULSE_S", 0)
    seen: list[int] = []
    done: list[JobId] = []
    began = time.monotonic()

    def go_on(given: Given) -> None:
        taker.pulse()
        if time.monotonic() > began + 3 and given.order.id not in done:
            done.append(given.order.id)
            store.worker.worker._import_given([given])

    with idle_worker(store) as taker:
        outcomes = in_hand(store, taker, go_on, seen)
    assert outcomes is not None
    assert [o.version for o in outcomes] == [1]
    assert set(seen[: len(seen) // 2]) == {1}
    assert store.rows("SELECT count(*) FROM work") == [(0,)]
