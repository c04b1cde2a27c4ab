"""The worker: what fails, dies or waits costs nothing else; what was acknowledged is imported once."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.blobs import spool as spool_module
from adapters.embedded import intake, publishing
from adapters.embedded.datastores import default_datastore
from adapters.embedded.events import Events
from adapters.embedded.processes import Presence
from adapters.sql import schema
from adapters.sql.database import Database
from gateway.domain.errors import NotFound, Unavailable
from gateway.domain.model import Origin, Workflow
from tests.contract.embedded import Store, close_process, value
from tests.makers import instance, pixels, uid

STUDY, SERIES = uid(1), uid(1, 1)


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(1, 1, number), pixels(number), InstanceNumber=number, **attributes)


def recover(store: Store, settled: set[str] | None = None) -> int:
    worker = store.worker.worker
    return intake.recover(worker.database, worker.spool, worker.datastore_pk, set() if settled is None else settled)


# ---------------------------------------------------------------- the loop


def test_a_running_worker_imports_and_encodes(own_store: Store) -> None:
    store = own_store
    thread = threading.Thread(target=store.worker.worker.run)
    thread.start()
    try:
        job = store.submit(slice_(1))
        result = store.do(store.web.backend.result(job, 20))
        assert result is not None
        assert [o.failure for o in result.outcomes] == [None]
        store.accept(result.outcomes[0].image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
        second = store.submit(slice_(2))
        done = store.do(store.web.backend.result(second, 20))
        assert done is not None
        assert done.outcomes[0].version == 3
        deadline = time.monotonic() + 20
        while store.rows("SELECT 1 FROM pixel WHERE state='raw'"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        store.worker.worker.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert [value(read, "PatientName") for read in store.json(STUDY)] == ["New^Name"] * 2


def test_a_job_that_fails_in_a_group_costs_no_other(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad, last = (store.submit(slice_(n)) for n in (1, 2, 3))
    publish = publishing.publish_imports
    poison = store.rows("SELECT pk FROM job WHERE id=:id", id=bad)[0][0]

    def failing(database: Any, queue: Any, batches: Any, *rest: Any) -> Any:
        if any(batch.job_pk == poison for batch in batches):
            raise ZeroDivisionError
        return publish(database, queue, batches, *rest)

    monkeypatch.setattr("adapters.embedded.worker.publish_imports", failing)
    store.work()
    assert [o.failure for job in (good, last) for o in store.outcomes(job)] == [None, None]
    ended = store.do(store.web.backend.result(bad, 0))
    assert ended is not None
    assert (ended.job.status, ended.job.message) == ("FAILED", "INTERNAL_ERROR: ZeroDivisionError")
    assert ended.job.ended_at is not None
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 3)]


def test_a_job_waits_as_long_as_the_disk_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 5
    create = type(store.blobs).create

    def full(self: Any, kind: str) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise Unavailable("the disk is full")
        return create(self, kind)

    monkeypatch.setattr(type(store.blobs), "create", full)
    (outcome,) = store.put(slice_(1))
    assert (outcome.failure, outcome.version) == (None, 1)
    assert left < 0


def test_imports_that_wait_for_an_edit_do_not_keep_it_waiting(store: Store) -> None:
    """However many they are, and older than it."""
    (first,) = store.put(slice_(1))
    jobs = [store.submit(slice_(number)) for number in range(2, 72)]
    store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    assert store.work_once()
    assert store.image_set(first.image_set, 2).workflow == Workflow.UPDATED
    store.work()
    assert [outcome.failure for job in jobs for outcome in store.outcomes(job)] == [None] * 70


def test_a_lost_lease_publishes_nothing_and_gives_back_the_rest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [store.submit(slice_(n)) for n in (1, 2)]
    thief = store.process("worker")
    publish = publishing.publish_imports

    def stolen(database: Any, queue: Any, batches: Any, *rest: Any) -> Any:
        monkeypatch.undo()
        with database.write() as connection:
            connection.execute(
                sa.text("UPDATE work SET owner=:owner, attempts=attempts+1 WHERE pk=:pk"),
                {"owner": thief.worker.queue.owner, "pk": batches[0].item.pk},
            )
        return publish(database, queue, batches, *rest)

    monkeypatch.setattr("adapters.embedded.worker.publish_imports", stolen)
    assert store.work_once()
    with pytest.raises(NotFound):
        store.select(STUDY)
    assert store.rows("SELECT state, attempts FROM work ORDER BY pk") == [("running", 2), ("waiting", 0)]
    assert store.work_once()
    assert store.sops(STUDY) == [uid(1, 1, 2)]
    close_process(thief)
    store.worker.worker.queue.reclaim()
    store.work()
    assert [store.outcomes(job)[0].version for job in jobs] == [2, 1]


def test_upkeep_that_fails_does_not_end_the_worker(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise sa.exc.IntegrityError("", None, Exception())

    monkeypatch.setattr(type(store.worker.worker.sweeper), "run_one", fails)
    store.worker.worker._look_after()
    (outcome,) = store.put(slice_(1))
    assert outcome.failure is None


# ---------------------------------------------------------------- recovery

_RECEIVER = """
import sys
from pathlib import Path
from adapters.blobs import spool as m
from gateway.domain.model import Origin
from tests.makers import instance, pixels, uid
m._SEGMENT_BYTES = 20000
spool = m.Spool(Path(sys.argv[1]), "dimse")
n = 0
while True:
    for _ in range(4):
        n += 1
        sink = spool.open(Origin(sys.argv[2], "dimse", name=str(n), calling_ae="AE%d" % (n % 2)))
        sink.write(instance(uid(1), uid(1, 1), uid(1, 1, n), pixels(n), InstanceNumber=n))
        sink.close()
    spool.sync()
    print(n, flush=True)
"""


def test_what_a_killed_receiver_had_synced_is_imported_once(own_store: Store) -> None:
    store = own_store
    receiver = subprocess.Popen(
        [sys.executable, "-c", _RECEIVER, str(store.data), store.datastore],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert receiver.stdout is not None
    acknowledged = 0
    while acknowledged < 40:
        acknowledged = int(receiver.stdout.readline())
    assert recover(store) == 0  # it lives
    receiver.send_signal(signal.SIGKILL)
    rest = receiver.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    receiver.wait(10)
    receiver.stdout.close()
    settled: set[str] = set()
    found = recover(store, settled)
    assert found >= acknowledged
    assert recover(store) == 0  # not again, by whoever looks
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, n) for n in range(1, found + 1)]
    assert store.rows("SELECT count(*) FROM record") == [(found,)]
    assert store.rows("SELECT count(*) FROM job WHERE status<>'COMPLETED'") == [(0,)]
    spool = store.web.staging
    assert recover(store, settled) == 0
    before = [segment for segment in spool.segments() if segment.startswith("dimse")]
    assert before  # the pixels still lie there
    store.encode()
    recover(store, settled)
    assert not [s for s in spool.segments() if s.startswith("dimse")]
    for number, entry in enumerate(store.select(STUDY).entries[:5], 1):
        read = store.do(store.web.backend.frame(entry, 0))
        assert read.crc32 == _crc(number)


def _crc(number: int) -> int:
    return zlib.crc32(pixels(number).tobytes())


def test_a_segment_stays_as_long_as_it_is_needed(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    monkeypatch.setattr(spool_module, "_SEGMENT_BYTES", 1)
    items = store.stage(slice_(1), slice_(2), slice_(3))
    one, two, _ = (item.segment for item in items)
    spool = store.web.staging

    def there() -> list[bool]:
        recover(store)
        return [segment in spool.segments() for segment in (one, two)]

    assert there() == [True, True]  # unsubmitted
    store.do(store.web.backend.submit(store.datastore, items))
    assert there() == [True, True]  # not imported
    store.work()
    assert there() == [True, True]  # raw pixels
    store.encode()
    assert there() == [False, False]
    for entry, n in zip(store.select(STUDY).entries, (1, 2, 3), strict=True):
        assert store.do(store.web.backend.frame(entry, 0)).crc32 == _crc(n)


def test_instances_of_a_deleted_data_store_hold_up_no_others(own_store: Store) -> None:
    store = own_store
    doomed = store.do(store.web.backend.create_datastore("doomed"))
    for datastore, role in ((doomed.id, "a-first"), (store.datastore, "b-second")):
        spool = spool_module.Spool(store.data, role)
        sink = spool.open(Origin(datastore, "dimse"))
        sink.write(slice_(1))
        sink.close()
        spool.sync()
        spool.close()
    store.do(store.web.backend.delete_datastore(doomed.id))
    assert recover(store) == 1
    store.work()
    assert store.sops(STUDY) == [uid(1, 1, 1)]


# ---------------------------------------------------------------- the sweeper


@pytest.fixture
def no_grace(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_store.worker.worker.sweeper, "_grace_ms", -1000)


def _files(store: Store) -> set[str]:
    return {f"{kind}/{name}" for kind in ("pack", "frames") for name in os.listdir(store.data / kind)}


def _restart(store: Store) -> None:
    """Ends what writers keep open, as the end of their process does."""
    store.blobs.close()


@pytest.mark.usefixtures("no_grace")
def test_the_sweeper_leaves_what_is_referenced(own_store: Store) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    store.encode()
    store.put(slice_(1, ImageComments="version 2"))
    _restart(store)
    files = _files(store)
    for _ in range(2):
        store.worker.worker.sweeper.sweep()
    assert _files(store) == files
    for version in (1, 2):
        (entry,) = store.select(STUDY, SERIES, version=version).entries
        assert store.do(store.web.backend.frame(entry, 0)).crc32 == _crc(1)
        assert store.document(first.image_set, version)
    assert store.rows("SELECT count(*) FROM trash") == [(0,)]


@pytest.mark.usefixtures("no_grace")
def test_a_file_that_its_writer_may_name_again_stays(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that lay in it has gone, and a later import is appended to it."""
    store = own_store
    sweeper = store.worker.worker.sweeper
    monkeypatch.setattr(sweeper, "_retention_ms", -1000)
    (doomed,) = store.put(slice_(1))
    store.encode()
    files = _files(store)
    store.delete(doomed.image_set)
    for _ in range(3):
        sweeper.sweep()
    assert store.rows("SELECT count(*) FROM record") == [(0,)]
    (kept,) = store.put(slice_(2))
    store.encode()
    assert _files(store) == files
    for _ in range(3):
        sweeper.sweep()
    assert _files(store) == files
    assert store.document(kept.image_set)


@pytest.mark.usefixtures("no_grace")
def test_what_a_deleted_set_held_goes_after_the_retention(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    (doomed,) = store.put(slice_(1))
    store.encode()
    _restart(store)
    old = _files(store)
    (kept,) = store.put(instance(uid(2), uid(2, 1), uid(2, 1, 1), pixels(2)))
    store.encode()
    _restart(store)
    store.delete(doomed.image_set)
    sweeper = store.worker.worker.sweeper
    for _ in range(3):
        sweeper.sweep()
    assert old <= _files(store)
    assert store.rows("SELECT count(*) FROM member") == [(2,)]
    monkeypatch.setattr(sweeper, "_retention_ms", -1000)
    for _ in range(3):
        sweeper.sweep()
    assert not old & _files(store)
    assert store.rows("SELECT count(*) FROM member") == store.rows("SELECT count(*) FROM pixel") == [(1,)]
    assert store.document(kept.image_set)
    (entry,) = store.select(uid(2)).entries
    assert store.do(store.web.backend.frame(entry, 0)).crc32 == _crc(2)
    with pytest.raises(NotFound):
        store.select(STUDY)


def test_pixels_that_took_the_key_of_deleted_ones_are_not_mixed_up_with_them(
    own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the grace the old file is there, and a process that has read it remembers its place."""
    store = own_store
    sweeper = store.worker.worker.sweeper
    monkeypatch.setattr(sweeper, "_retention_ms", -1000)
    (doomed,) = store.put(slice_(1))
    store.encode()
    (entry,) = store.select(STUDY).entries
    assert store.do(store.web.backend.frame(entry, 0)).crc32 == _crc(1)
    assert store.web.backend.first_frames([entry])[0].crc32 == _crc(1)
    store.delete(doomed.image_set)
    for _ in range(3):
        sweeper.sweep()
    assert store.rows("SELECT count(*) FROM pixel") == [(0,)]
    (later,) = store.put(instance(uid(2), uid(2, 1), uid(2, 1, 1), pixels(2)))
    store.encode()
    (entry,) = store.select(uid(2)).entries
    assert store.do(store.web.backend.frame(entry, 0)).crc32 == _crc(2)
    assert store.web.backend.first_frames([entry])[0].crc32 == _crc(2)
    (number,) = (
        frame["ID"]
        for series in store.document(later.image_set)["Study"]["Series"].values()
        for one in series["Instances"].values()
        for frame in one["ImageFrames"]
    )
    assert store.do(store.web.backend.get_frame(store.ref(later.image_set), number)).crc32 == _crc(2)


def test_the_grace_protects_what_is_young(own_store: Store) -> None:
    store = own_store
    orphan = store.data / "pack" / "0123-000001"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"of a publication under way")
    store.worker.worker.sweeper.sweep()
    assert orphan.exists()
    os.utime(orphan, (time.time() - 7200, time.time() - 7200))
    store.worker.worker.sweeper.sweep()
    assert not orphan.exists()


# ---------------------------------------------------------------- processes that start together


def test_who_begins_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Presence(tmp_path, "web")
    flock = fcntl.flock

    def meanwhile(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        other._clear_dead()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    begun = Presence(tmp_path, "worker")
    assert other.is_alive(begun.name)
    begun.close()
    assert not other.is_alive(begun.name)
    other.close()


def test_all_processes_find_the_same_default_data_store(own_store: Store) -> None:
    with own_store.web.database.write() as connection:
        connection.execute(sa.text("DELETE FROM client_token"))
    databases = [Database(own_store.url) for _ in range(6)]
    barrier = threading.Barrier(6)
    found: list[str] = []

    def start(database: Database) -> None:
        barrier.wait(10)
        schema.migrate(database)
        found.append(default_datastore(database, Events()))
        database.close()

    threads = [threading.Thread(target=start, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 6
    assert len(set(found)) == 1
    assert own_store.rows("SELECT count(*) FROM datastore") == [(2,)]


def test_a_reopened_store_is_the_same(own_store: Store) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    body = store.document_bytes(first.image_set)
    reader = store.process("web")
    assert reader.default_datastore == store.datastore
    again = store.do(reader.backend.get_metadata(store.ref(first.image_set)))
    assert again.body == body
    assert store.image_set(first.image_set).workflow == Workflow.CREATED
    close_process(reader)
