"""Orders handed over directly: one transaction, no job before it, and exactly one import whoever dies when."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapters.embedded import intake
from adapters.embedded.handover import Given, Giver, Taker
from adapters.embedded.jobs import order_of
from adapters.embedded.publishing import Resent
from adapters.sql.queue import AWAITED
from gateway.domain.ids import JobId, new_id
from gateway.domain.model import Outcome
from tests.contract.embedded import Store, close_process
from tests.makers import instance, pixels, uid

STUDY, SERIES = uid(1), uid(1, 1)
_PATIENCE_S = 20.0


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(1, 1, number), pixels(number), InstanceNumber=number, **attributes)


@contextmanager
def running(store: Store) -> Iterator[None]:
    thread = threading.Thread(target=store.worker.worker.run)
    thread.start()
    try:
        yield
    finally:
        store.worker.worker.stop()
        thread.join(_PATIENCE_S)
    assert not thread.is_alive()


def hear_of_workers(store: Store, taker: Taker | None = None) -> None:
    """Returns when the web process knows of a worker that is free; `taker` is one whose loop does not run."""
    giver = store.web.backend._giver

    async def until_free() -> None:
        async with asyncio.timeout(_PATIENCE_S):
            while not any(link.is_free for link in giver._links.values()):
                giver._look()
                if taker is not None:
                    taker.take()
                await asyncio.sleep(0.001)

    store.do(until_free())


def imported(store: Store, *files: bytes, timeout_s: float = _PATIENCE_S) -> Sequence[Outcome] | None:
    return store.do(store.web.backend.imported(store.datastore, store.stage(*files), timeout_s))


@contextmanager
def idle_worker(store: Store) -> Iterator[Taker]:
    """A worker that takes orders when the test does."""
    presence = store.worker.worker.presence
    taker = Taker(presence.folder, presence.name)
    try:
        hear_of_workers(store, taker)
        yield taker
    finally:
        taker.close()


def while_held(store: Store, taker: Taker, meanwhile: Callable[[Given], None]) -> Sequence[Outcome]:
    """Imports one instance, calls `meanwhile` once a worker has its order, then runs the queue until it is answered."""

    async def exchange() -> Sequence[Outcome] | None:
        items = store.stage(slice_(1))
        asking = asyncio.create_task(store.web.backend.imported(store.datastore, items, _PATIENCE_S))
        given: list[Given] = []
        async with asyncio.timeout(_PATIENCE_S):
            while not given:
                await asyncio.sleep(0.001)
                given = taker.take()
        meanwhile(given[0])
        while not asking.done():
            await asyncio.sleep(0.001)
            await asyncio.to_thread(store.work_once)
        return await asking

    outcomes = store.do(exchange())
    assert outcomes is not None
    return outcomes


def counts(store: Store) -> dict[str, int]:
    pk = store.rows("SELECT pk FROM datastore WHERE id=:id", id=store.datastore)[0][0]
    asked = {"jobs": "job", "records": "record", "changes": "change"}
    return {
        name: store.rows(f"SELECT count(*) FROM {table} WHERE datastore_pk=:pk", pk=pk)[0][0]
        for name, table in asked.items()
    }


def test_an_order_is_published_without_a_work_item(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store

    def refused(*_: Any) -> None:
        raise AssertionError("an ordinary job was made")

    with running(store):
        hear_of_workers(store)
        monkeypatch.setattr(store.web.backend._intake, "submit", refused)
        first = imported(store, slice_(1))
        again = imported(store, slice_(1))
        both = imported(store, slice_(2), b"no DICOM")
    assert first is not None
    assert again is not None
    assert both is not None
    assert [(o.version, o.identical, o.failure) for o in (*first, *again)] == [(1, False, None), (1, True, None)]
    assert [(o.version, o.failure) for o in both] == [(2, None), (None, 0xC000)]
    assert store.rows("SELECT source, status, n_imported, n_identical, n_failed FROM job ORDER BY pk") == [
        ("stow", "COMPLETED", 1, 0, 0),
        ("stow", "COMPLETED", 0, 1, 0),
        ("stow", "COMPLETED", 1, 0, 1),
    ]
    assert store.rows("SELECT count(*) FROM work") == [(0,)]
    assert [v.version for v in store.versions(first[0].image_set)] == [2, 1]


def test_orders_that_wait_share_a_transaction(store: Store) -> None:
    worker = store.worker.worker
    with idle_worker(store) as taker:

        async def exchange() -> list[Sequence[Outcome] | None]:
            asking = [
                asyncio.create_task(store.web.backend.imported(store.datastore, store.stage(slice_(n)), _PATIENCE_S))
                for n in (1, 2, 3)
            ]
            given: list[Given] = []
            async with asyncio.timeout(_PATIENCE_S):
                while len(given) < 3:
                    await asyncio.sleep(0.001)
                    given += taker.take()
                await asyncio.to_thread(worker._import_given, given)
                return list(await asyncio.gather(*asking))

        answers = store.do(exchange())
    assert sorted(outcome.version or 0 for answer in answers for outcome in answer or ()) == [1, 2, 3]
    blobs = "SELECT DISTINCT r.blob_pk FROM record r JOIN datastore d ON d.pk=r.datastore_pk WHERE d.id=:id"
    assert len(store.rows(blobs, id=store.datastore)) == 1


def test_without_a_worker_it_is_a_job_and_safe(store: Store) -> None:
    assert imported(store, slice_(1), timeout_s=0) is None
    pending = "SELECT j.status FROM job j JOIN datastore d ON d.pk=j.datastore_pk WHERE d.id=:id"
    assert store.rows(pending, id=store.datastore) == [("SUBMITTED",)]
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1)]


def test_a_busy_worker_is_not_waited_for(store: Store) -> None:
    with idle_worker(store) as taker:
        taker.say(free=False)
        store.do(asyncio.sleep(0.001))
        assert imported(store, slice_(1), timeout_s=0) is None
        assert taker.take() == []
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1)]


def test_many_instances_are_a_job(store: Store) -> None:
    with idle_worker(store) as taker:
        assert imported(store, *(slice_(n) for n in range(1, 18)), timeout_s=0) is None
        assert taker.take() == []
    store.work()
    assert len(store.sops(STUDY)) == 17


def test_a_worker_that_dies_with_an_order(store: Store) -> None:
    with idle_worker(store) as taker:
        outcomes = while_held(store, taker, lambda _: taker.close())
    assert [(o.version, o.identical) for o in outcomes] == [(1, False)]
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_a_worker_that_dies_between_its_commit_and_its_answer(store: Store) -> None:
    def publish_and_die(given: Given) -> None:
        store.worker.worker._import_given([Given(given.order, lambda _: None)])
        taker.close()

    with idle_worker(store) as taker:
        outcomes = while_held(store, taker, publish_and_die)
    assert [(o.version, o.identical) for o in outcomes] == [(1, False)]
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_a_worker_that_cannot_hands_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        monkeypatch.undo()
        raise OSError("the disk is full")

    def try_it(given: Given) -> None:
        monkeypatch.setattr("adapters.embedded.worker.publish_imports", fails)
        store.worker.worker._import_given([given])

    with idle_worker(store) as taker:
        outcomes = while_held(store, taker, try_it)
    assert [(o.version, o.identical) for o in outcomes] == [(1, False)]
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_an_order_for_a_locked_set_waits_as_a_job(store: Store) -> None:
    (first,) = store.put(slice_(2))
    store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    with idle_worker(store) as taker:
        outcomes = while_held(store, taker, lambda given: store.worker.worker._import_given([given]))
    assert [o.version for o in outcomes] == [3]


def test_an_order_given_up_is_done_by_its_job_alone(store: Store) -> None:
    """The request was answered 503, its job exists: a worker that is late with the order publishes nothing."""
    answers: list[Sequence[Outcome] | None] = []
    with idle_worker(store) as taker:
        assert imported(store, slice_(1), timeout_s=0.01) is None
        (late,) = taker.take()
        assert store.rows("SELECT status FROM job WHERE id=:id", id=late.order.id) == [("SUBMITTED",)]
        store.worker.worker._import_given([Given(late.order, answers.append)])
    assert answers == [None]
    store.work()
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


@pytest.mark.parametrize("resent", ["version", "always"])
@pytest.mark.parametrize("order_first", [True, False])
def test_what_two_imports_take_from_one_place_is_stored_once(
    policy: Callable[[Resent], Store], resent: Resent, order_first: bool
) -> None:
    """The process that staged has died: one worker found its spool, another still had the order."""
    store = policy(resent)
    worker = store.worker.worker
    items = store.stage(slice_(1))
    pk = worker.datastore_pk(store.datastore)
    found, order = (order_of(JobId(new_id()), pk, items) for _ in range(2))
    answers: list[Sequence[Outcome] | None] = []
    with worker.database.write() as connection:
        intake.submit_job(connection, found, AWAITED)  # which the order need not wait for
    if order_first:
        worker._import_given([Given(order, answers.append)])
    store.work()
    if not order_first:
        worker._import_given([Given(order, answers.append)])
    (outcome,) = store.outcomes(found.id)
    assert (outcome.failure, outcome.version, outcome.identical) == (None, 1, order_first)
    (answer,) = answers
    if answer is None:  # handed back, to nobody: its process is gone
        assert (order_first, resent) == (False, "always")
    else:
        assert [(o.failure, o.version, o.identical) for o in answer] == [(None, 1, not order_first)]
    assert counts(store)["records"] == counts(store)["changes"] == 1


def test_a_restart_finds_nothing_to_do(own_store: Store) -> None:
    store = own_store
    with running(store):
        hear_of_workers(store)
        for number in (1, 2, 3):
            assert imported(store, slice_(number)) is not None
    for process in (store.web, store.worker):
        close_process(process)
    store.web, store.worker = store.process("web"), store.process("worker")
    worker = store.worker.worker
    settled: set[str] = set()
    assert intake.recover(worker.database, worker.spool, worker.datastore_pk, settled) == 0
    store.encode()
    assert intake.recover(worker.database, worker.spool, worker.datastore_pk, settled) == 0
    assert worker.spool.segments() == []
    assert counts(store) == {"jobs": 3, "records": 3, "changes": 3}


def test_what_was_handed_over_by_one_that_died_is_found(own_store: Store) -> None:
    store = own_store
    worker = store.worker.worker
    with idle_worker(store) as taker:
        items = store.stage(slice_(1))
        asking = store.loop.create_task(store.web.backend.imported(store.datastore, items, _PATIENCE_S))
        store.do(asyncio.sleep(0.01))
        assert intake.recover(worker.database, worker.spool, worker.datastore_pk, set()) == 0  # its process lives
        asking.cancel()
        for task in store.web.backend._imports:
            task.cancel()
        store.do(asyncio.sleep(0))
        close_process(store.web)
        assert taker.take() == []  # nobody is there to be answered
    store.web = store.process("web")
    assert intake.recover(worker.database, worker.spool, worker.datastore_pk, set()) == 1
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1)]
    assert counts(store) == {"jobs": 1, "records": 1, "changes": 1}


def test_a_folder_with_a_long_name(tmp_path: Path) -> None:
    """The name of a Unix socket has 107 bytes at most, a folder's may have thousands."""
    folder = tmp_path / ("x" * 120) / "run"
    folder.mkdir(parents=True)
    taker = Taker(folder, "worker-1")
    giver = Giver(folder)

    async def meet() -> bool:
        giver._look()
        async with asyncio.timeout(_PATIENCE_S):
            while not any(link.is_free for link in giver._links.values()):
                taker.take()
                await asyncio.sleep(0.001)
        giver.close()
        return True

    assert asyncio.run(meet())
    taker.close()
    assert list(folder.iterdir()) == []
