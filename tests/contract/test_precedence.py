"""What goes before what: somebody's work before a backlog, and nothing before what was acknowledged of its study."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from adapters.embedded import worker as worker_module
from gateway.domain.ids import JobId
from gateway.domain.model import Outcome, Workflow
from tests.contract.embedded import Store, close_process
from tests.makers import instance, pixels, uid

_PATIENCE_S = 30.0
_BACKLOG = 12


def slice_(study: int, number: int, **attributes: Any) -> bytes:
    where = (uid(study), uid(study, 1), uid(study, 1, number))
    return instance(*where, pixels(number), InstanceNumber=number, **attributes)


def acknowledged(store: Store, *studies: int, name: str = "First^Name", number: int = 1) -> JobId:
    """An association's job, of an instance of each study."""
    items = store.stage(*(slice_(study, number, PatientName=name) for study in studies), source="dimse")
    named = [replace(item, study_uid=uid(study)) for item, study in zip(items, studies, strict=True)]
    return store.do(store.web.backend.submit(store.datastore, named))


def awaited(store: Store, *files: bytes) -> JobId:
    """A job that its sender waits for."""
    before = {pk for (pk,) in store.rows("SELECT pk FROM job")}
    assert store.do(store.web.backend.imported(store.datastore, store.stage(*files), 0)) is None
    ((job,),) = [(job,) for pk, job in store.rows("SELECT pk, id FROM job") if pk not in before]
    return JobId(job)


def states(store: Store, jobs: Sequence[JobId]) -> list[str]:
    known = dict(store.rows("SELECT id, status FROM job"))
    return [known[job] for job in jobs]


def names(store: Store, study: int) -> list[str]:
    """The patient's name in the versions of a study's series, the first one first."""
    (entry,) = store.select(uid(study)).entries
    versions = range(1, len(store.versions(entry.image_set)) + 1)
    documents = [store.document(entry.image_set, version) for version in versions]
    return [document["Patient"]["DICOM"]["PatientName"] for document in documents]


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


def test_work_that_is_awaited_goes_between_two_instances_of_a_backlog(
    own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is in the midst of associations, and is asked for a STOW and an edit: it does them next."""
    store = own_store
    (first,) = store.put(slice_(1, 1))
    monkeypatch.setattr(worker_module, "_LOOK_S", 0)
    preparer = store.worker.worker.preparer
    prepare = type(preparer).prepare
    in_hand, asked = threading.Event(), threading.Event()
    done: list[str] = []

    def watched(self: Any, origin: Any, *rest: Any, **more: Any) -> Any:
        done.append(origin.source)
        if done.count("dimse") == 3:
            in_hand.set()
            assert asked.wait(_PATIENCE_S)
        return prepare(self, origin, *rest, **more)

    monkeypatch.setattr(type(preparer), "prepare", watched)
    jobs = [acknowledged(store, *range(study, study + 5)) for study in range(10, 10 + 5 * _BACKLOG, 5)]
    with running(store):
        assert in_hand.wait(_PATIENCE_S)
        job = awaited(store, slice_(2, 1))
        store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
        asked.set()
        result = store.do(store.web.backend.result(job, _PATIENCE_S))
        assert result is not None
        for one in jobs:
            ended = store.do(store.web.backend.result(one, _PATIENCE_S))
            assert ended is not None
            assert [outcome.failure for outcome in ended.outcomes] == [None] * 5
    assert [outcome.failure for outcome in result.outcomes] == [None]
    assert done.index("stow") <= 4  # the edit came first, or it
    assert store.image_set(first.image_set, 2).workflow == Workflow.UPDATED
    feed = store.rows("SELECT s.study_uid FROM change c JOIN image_set s ON s.pk=c.image_set_pk ORDER BY c.seq")
    assert {study for (study,) in feed[1:3]} == {uid(1), uid(2)}


def test_a_backlog_has_its_turn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much there is that somebody waits for."""
    monkeypatch.setattr(worker_module, "_GROUP", 1)
    patient = acknowledged(store, 1)
    jobs = [awaited(store, slice_(study, 1)) for study in range(10, 30)]
    for _ in range(worker_module._IN_A_ROW + 1):
        assert store.work_once()
    assert states(store, [patient]) == ["COMPLETED"]
    assert states(store, jobs).count("COMPLETED") == worker_module._IN_A_ROW
    store.work()


def test_what_was_acknowledged_before_is_imported_before(store: Store) -> None:
    """Of its study, and of the studies that its jobs have in common with others; the rest of the backlog waits."""
    ahead = [acknowledged(store, 3), acknowledged(store, 2), acknowledged(store, 2, 1), acknowledged(store, 4)]
    job = awaited(store, slice_(1, 1, PatientName="Last^Name"))
    later = acknowledged(store, 1, name="Later^Name")
    while states(store, [job]) != ["COMPLETED"]:
        assert store.work_once()
    assert states(store, ahead) == ["SUBMITTED", "COMPLETED", "COMPLETED", "SUBMITTED"]
    assert states(store, [later]) == ["SUBMITTED"]
    assert names(store, 1) == ["First^Name", "Last^Name"]
    store.work()
    assert names(store, 1) == ["First^Name", "Last^Name", "Later^Name"]


def test_where_the_study_is_not_known_it_is_the_instance(store: Store) -> None:
    """As of what a process left that died: nobody has looked into it yet."""
    known = [
        store.submit(slice_(study, 1, PatientName="First^Name"), source="dimse", sop_uid=uid(study, 1, 1))
        for study in (1, 2)
    ]
    job = awaited(store, slice_(1, 1, PatientName="Last^Name"))
    while states(store, [job]) != ["COMPLETED"]:
        assert store.work_once()
    assert states(store, known) == ["COMPLETED", "SUBMITTED"]
    assert names(store, 1) == ["First^Name", "Last^Name"]
    store.work()


def test_a_job_that_has_to_wait_is_prepared_once_more_at_most(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has in hand what was acknowledged before."""
    other = store.process("worker")
    first = acknowledged(store, 1)
    (item,) = other.worker.queue.lease(("import",), 1)
    job = awaited(store, slice_(1, 1, PatientName="Last^Name"))
    monkeypatch.setattr(worker_module, "_LOCKED_MS", 0)
    prepare = type(store.worker.worker).prepare
    prepared = []

    def counted(self: Any, batch: Any, *rest: Any) -> Any:
        prepared.append(batch.order.id)
        return prepare(self, batch, *rest)

    monkeypatch.setattr(type(store.worker.worker), "prepare", counted)
    for _ in range(5):
        assert store.work_once()
    assert prepared == [job]
    other.worker._guarded([item], lambda: other.worker._import_leased([item]))
    store.work()
    assert prepared == [job, first, job]
    assert names(store, 1) == ["First^Name", "Last^Name"]
    close_process(other)


def test_a_failed_import_holds_up_nobody(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledged(store, 1)
    publish = worker_module.publish_imports

    def fails(*_: Any) -> Any:
        monkeypatch.setattr(worker_module, "publish_imports", publish)
        raise ZeroDivisionError

    monkeypatch.setattr(worker_module, "publish_imports", fails)
    assert store.work_once()
    job = awaited(store, slice_(1, 1, PatientName="Last^Name"))
    assert store.work_once()
    outcomes: list[Outcome] = store.outcomes(job)
    assert [outcome.version for outcome in outcomes] == [1]
    store.work()


def test_what_is_in_hand_is_ended_for_who_waits_for_it(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A STOW of the study that a worker is importing waits for that import, and nothing else is done before it ends."""
    store = own_store
    monkeypatch.setattr(worker_module, "_LOOK_S", 0)
    monkeypatch.setattr(worker_module, "_SEARCH_S", 0)
    preparer = type(store.worker.worker.preparer)
    prepare = preparer.prepare
    in_hand, asked = threading.Event(), threading.Event()
    done: list[str] = []

    def watched(self: Any, origin: Any, *rest: Any, **more: Any) -> Any:
        done.append(origin.source)
        if len(done) == 2:
            in_hand.set()
            assert asked.wait(_PATIENCE_S)
        return prepare(self, origin, *rest, **more)

    monkeypatch.setattr(preparer, "prepare", watched)
    first = acknowledged(store, *range(1, 21))
    with running(store):
        assert in_hand.wait(_PATIENCE_S)
        job = awaited(store, slice_(20, 1, PatientName="Last^Name"))
        asked.set()
        for one in (first, job):
            result = store.do(store.web.backend.result(one, _PATIENCE_S))
            assert result is not None
            assert {outcome.failure for outcome in result.outcomes} == {None}
    assert names(store, 20) == ["First^Name", "Last^Name"]
    assert done.count("stow") == 2
    assert done.index("stow") <= 3
