"""A store that can be verified, backed up, restored and rebuilt, on both databases."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.blobs.folder import FolderBlobs
from adapters.codecs.decoding import DecodePool
from adapters.embedded import backup, rebuilding, verifying
from adapters.sql import rules
from adapters.sql.database import Database
from gateway.domain.errors import Conflict, Corrupt, InvalidInput, NotFound
from tests.contract.embedded import Store, open_store
from tests.databases import database_url
from tests.makers import instance, pixels, uid
from tests.running import ROOT

STUDY, SERIES = uid(7), uid(7, 1)

on_sqlite = pytest.mark.parametrize("own_store", ["sqlite"], indirect=True)
"""Where PostgreSQL would do the same."""
needs_pg_dump = pytest.mark.needs("pg_dump")


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(7, 1, number), pixels(number, 2), InstanceNumber=number, **attributes)


def fill(store: Store, count: int = 3) -> None:
    """A few instances, edits of two levels and a frame that waits for its encoding."""
    (first, *_) = store.put(*(slice_(number) for number in range(1, count + 1)))
    store.encode()
    store.edit(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    instances = {uid(7, 1, 1): {"DICOM": {"ImageComments": "edited"}}}
    store.edit(first.image_set, 2, {"Study": {"Series": {SERIES: {"Instances": instances}}}})
    store.put(slice_(count + 1))


def shown(store: Store) -> list[Any]:
    """All that can be seen of a store: every version's document, the DICOM JSON and the frames."""
    everything: list[Any] = []
    for image_set in sorted(store.search()):
        for version in store.versions(image_set):
            everything.append((image_set, version.version, store.document_bytes(image_set, version.version)))
    everything.append(store.json(STUDY))
    for entry in store.select(STUDY).entries:
        frames = [store.do(store.web.backend.frame(entry, index)) for index in range(entry.frames)]
        everything.append((entry.sop_uid, [frame.crc32 for frame in frames]))
    everything.append(store.find(PatientName="New*"))
    return everything


def verify(store: Store, **options: Any) -> verifying.Report:
    worker = store.worker.worker
    blobs = FolderBlobs(store.data)  # what this process has open may be older than the harm
    try:
        return verifying.Verifier(
            worker.database, blobs, worker.spool, worker.quarantine, worker.preparer, worker.holding, **options
        ).run()
    finally:
        blobs.close()


def flip(path: Path, offset: int) -> None:
    """One bit of rot."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def place(store: Store, table: str, sop: str) -> tuple[Path, int, int]:
    """The blob of an instance's pixels or record, its extent's place and length."""
    if table == "pixel":
        sql = "SELECT b.name, x.off, x.len FROM record r JOIN pixel x ON x.pk=r.pixel_pk JOIN blob b ON b.pk=x.blob_pk"
    else:
        sql = "SELECT b.name, r.head, 0 FROM record r JOIN blob b ON b.pk=r.blob_pk"
    ((name, at, length),) = store.rows(f"{sql} WHERE r.sop_uid=:sop", sop=sop)
    if table == "record":
        at, length = int.from_bytes(bytes(at)[:8], "little"), int.from_bytes(bytes(at)[8:12], "little")
    return store.data / name, at, length


# ---------------------------------------------------------------- verify


def test_a_sound_store_is_sound_while_work_waits(own_store: Store) -> None:
    fill(own_store)
    own_store.submit(slice_(9))
    seen: list[tuple[int, int]] = []
    report = verify(own_store, progress=lambda done, total: seen.append((done, total)))
    assert report.is_sound, report.faults
    assert (report.records, report.frames, report.staged) == (4, 8, 1)
    assert report.rules == len(rules.RULES)
    assert report.documents > 0
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


@on_sqlite
@pytest.mark.parametrize("table", ["pixel", "record"])
def test_rot_is_found_and_mended_from_a_backup(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, table: str
) -> None:
    store = own_store
    fill(store)
    store.encode()
    for segment in (store.data / "spool").iterdir():  # nobody needs it any more
        segment.unlink()
    copy = tmp_path_factory.mktemp("copy")
    for kind in ("pack", "frames"):
        shutil.copytree(store.data / kind, copy / kind)
    before = shown(store)
    path, at, length = place(store, table, uid(7, 1, 2))
    flip(path, at + length // 2)
    found = verify(store)
    assert [(fault.kind, fault.repaired) for fault in found.faults] == [(table, False)]
    assert not found.is_sound
    assert uid(7, 1, 2) not in str(found), "UIDs are no business of a report"
    without = verify(store, repair=True)
    assert not without.is_sound, "there is nothing to mend it from"
    mended = verify(store, repair=True, backup=FolderBlobs(copy))
    assert [(fault.kind, fault.repaired) for fault in mended.faults] == [(table, True)]
    assert verify(store).faults == []
    assert shown(store) == before


@on_sqlite
def test_rot_is_mended_from_what_was_received(own_store: Store) -> None:
    """As long as an instance lies in the spool."""
    store = own_store
    store.put(slice_(1), slice_(2))
    before = shown(store)
    store.encode()
    for table in ("pixel", "record"):
        path, at, length = place(store, table, uid(7, 1, 1))
        flip(path, at + length // 2)
    assert sorted(fault.kind for fault in verify(store).faults) == ["pixel", "record"]
    assert all(fault.repaired for fault in verify(store, repair=True).faults)
    assert verify(store).faults == []
    store.encode()
    assert verify(store).faults == []
    assert shown(store) == before


@on_sqlite
def test_a_damaged_instance_in_the_spool_is_found(own_store: Store) -> None:
    store = own_store
    (staged,) = store.stage(slice_(1))
    store.do(store.web.backend.submit(store.datastore, [staged]))
    flip(store.data / "spool" / staged.segment, staged.offset + staged.length - 3)
    assert [fault.kind for fault in verify(store).faults] == ["staged"]


@on_sqlite
def test_documents_have_their_digest(own_store: Store) -> None:
    fill(own_store)
    with own_store.web.database.write() as connection:
        pks = connection.execute(sa.text("SELECT pk, body FROM doc ORDER BY pk")).all()
        for pk, body in pks[:2]:
            rotten = bytes(body)[:-1] + bytes([bytes(body)[-1] ^ 1])
            connection.execute(sa.text("UPDATE doc SET body=:body WHERE pk=:pk"), {"body": rotten, "pk": pk})
    assert [(fault.kind, fault.repaired) for fault in verify(own_store, repair=True).faults] == [
        ("document", False),
        ("document", False),
    ]


HARM = {
    "live members": "UPDATE image_set SET n_instances = 7",
    "1 to its latest": "UPDATE image_set SET latest = latest + 1",
    "visible version": "UPDATE image_set SET visible = visible + 1",
    "seq runs": "UPDATE datastore_seq SET seq = seq + 1",
    "under its seq": "UPDATE version SET seq = seq + 1",
    "time in": "UPDATE change SET at = -seq",
    "members of a version": "UPDATE version SET n_frames = n_frames + 1",
    "disjoint": "UPDATE member SET v_to = v_from + 1; INSERT INTO member SELECT pk + 100000, image_set_pk, "
    "sop_uid, v_from, v_to + 1, record_pk, overlay_pk, number, sop_class FROM member",
    "not empty": "UPDATE member SET v_to = v_from",
    "series that its visible": "UPDATE image_set SET series_uid = '1.2'",
    "under a lock": "UPDATE version SET content = NULL",
    "LOCKED where": "UPDATE image_set SET state = 'LOCKED'",
    "work item": "INSERT INTO set_lock SELECT pk, 0 FROM image_set",
    "ended job": "UPDATE job SET status = 'SUBMITTED'",
    "own data store": "INSERT INTO datastore SELECT pk + 9, 'x', 'x', status, storage_format, 0, 0 FROM datastore "
    "WHERE pk = 1; UPDATE record SET datastore_pk = 10",
    "their pixels": "INSERT INTO datastore SELECT pk + 9, 'x', 'x', status, storage_format, 0, 0 FROM datastore "
    "WHERE pk = 1; UPDATE pixel SET datastore_pk = 10",
    "counts are the sums": "UPDATE study SET n_instances = n_instances + 1",
    "live one its search row": "DELETE FROM set_index",
    "inside a study's texts": "DELETE FROM text_tail WHERE kind = '00100010'",
    "search row is of": "UPDATE set_index SET series_uid = '1.2'",
}
"""Words of a rule -> what breaks it. Two rules are missing: the database itself keeps them."""


def test_every_rule_can_be_broken(own_store: Store) -> None:
    fill(own_store)
    database = own_store.web.database
    assert len(HARM) == len(rules.RULES) - 2
    with database.snapshot() as connection:
        assert not any(rules.broken(connection))
    for words, harm in HARM.items():
        with database.engine.connect() as connection:
            for statement in harm.split("; "):
                connection.execute(sa.text(statement))
            found = [one.rule for one in rules.broken(connection) if one is not None]
            connection.rollback()
        assert any(words in rule for rule in found), words


def test_a_wrong_search_index_is_made_anew(own_store: Store) -> None:
    fill(own_store)
    before = shown(own_store)
    for harm in ("DELETE FROM set_index", "DELETE FROM text_tail", "UPDATE study SET n_instances = 99"):
        with own_store.web.database.write() as connection:
            connection.execute(sa.text(harm))
        assert not verify(own_store).is_sound
        assert verify(own_store, repair=True).is_sound
        assert verify(own_store).faults == []
        assert shown(own_store) == before
    assert rebuilding.rebuild(own_store.web.database) == 4
    assert shown(own_store) == before


# ---------------------------------------------------------------- backup and restore


@pytest.fixture
def again(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, decoder: DecodePool, loop: asyncio.AbstractEventLoop
) -> Any:
    """Restores a backup into a new folder and database, and gives what it shows."""

    def restored(source: Path) -> list[Any]:
        folder = tmp_path_factory.mktemp("again")
        with database_url("sqlite" if own_store.web.database.is_sqlite else "postgresql", folder) as url:
            database = Database(url)
            backup.restore(database, folder, source, _quiet)
            with pytest.raises(Conflict):
                backup.restore(database, folder, source, _quiet)
            database.close()
            store = open_store(folder, url, decoder, loop)
            try:
                recovered(store)
                assert verify(store).faults == []
                return shown(store)
            finally:
                store.close()

    return restored


def recovered(store: Store) -> None:
    worker = store.worker.worker
    worker.queue.reclaim()
    worker._look_after()
    store.work()


def _quiet(done: int, total: int) -> None:
    pass


@needs_pg_dump
def test_a_backup_is_the_store_at_one_moment_and_grows_with_it(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, again: Callable[[Path], list[Any]]
) -> None:
    store, target = own_store, tmp_path_factory.mktemp("backup")
    fill(store)
    first = backup.make(store.web.database, store.data, target, _quiet)
    before = shown(store)
    assert again(target) == before
    store.put(*(slice_(number) for number in range(20, 25)))
    store.encode()
    blobs = sum((target / name).stat().st_size for name in first.backup.blobs)
    second = backup.make(store.web.database, store.data, target, _quiet)
    spool = sum((target / name).stat().st_size for name in second.backup.files)
    assert second.copied_bytes - spool <= second.backup.size_bytes - blobs, "what was there was copied again"
    assert again(target) == shown(store) != before
    assert [path.name for path in target.glob("gateway-*")] == [second.backup.database]


@on_sqlite
def test_what_was_acknowledged_and_not_imported_is_in_a_backup(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, again: Callable[[Path], list[Any]]
) -> None:
    store, target = own_store, tmp_path_factory.mktemp("backup")
    fill(store)
    store.submit(slice_(7))  # a job waits
    store.stage(slice_(8))  # not even that: acknowledged over DIMSE just now
    backup.make(store.web.database, store.data, target, _quiet)
    seen = next(one for one in again(target) if isinstance(one, list) and len(one) == 6)
    assert {entry["00080018"]["Value"][0] for entry in seen} == {uid(7, 1, n) for n in (1, 2, 3, 4, 7, 8)}


_KILLED = """
import os, signal, sys
from pathlib import Path
from adapters.embedded import backup
from adapters.sql.database import Database
url, data, target, step = sys.argv[1:]
class Steps:
    left = int(step)
def count(*_):
    Steps.left -= 1
    if Steps.left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
if step == "-1":  # at the last moment
    backup._write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if step == "-2":  # when it counts already
    backup._forget = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
{call}
"""


def killed(call: str, url: str, data: Path, path: Path, step: int) -> None:
    """Runs a backup or a restore in a process that is killed on its way."""
    script = _KILLED.replace("{call}", call)
    done = subprocess.run(
        [sys.executable, "-c", script, url, str(data), str(path), str(step)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == -9


MAKE = "backup.make(Database(url), Path(data), Path(target), count)"
RESTORE = "backup.restore(Database(url), Path(data), Path(target), count)"


@on_sqlite
def test_half_a_backup_is_never_taken_for_a_whole_one(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, again: Callable[[Path], list[Any]]
) -> None:
    store, target = own_store, tmp_path_factory.mktemp("backup")
    fill(store)
    killed(MAKE, store.url, store.data, target, 1)
    with pytest.raises(NotFound):
        backup.restore(store.web.database, store.data, target, _quiet)
    backup.make(store.web.database, store.data, target, _quiet)
    before = shown(store)
    store.put(*(slice_(number) for number in range(20, 25)))
    for step in (1, -1):
        killed(MAKE, store.url, store.data, target, step)
        seen = again(target)  # what the spool holds beyond that is imported again: it was acknowledged
        assert all(version in seen for version in before if isinstance(version, tuple) and len(version) == 3)
    killed(MAKE, store.url, store.data, target, -2)
    assert again(target) == shown(store)
    backup.make(store.web.database, store.data, target, _quiet)
    assert again(target) == shown(store)


@needs_pg_dump
def test_a_broken_off_restore_is_no_store_and_can_be_repeated(
    own_store: Store, tmp_path_factory: pytest.TempPathFactory, decoder: DecodePool, loop: asyncio.AbstractEventLoop
) -> None:
    from gateway import compose
    from gateway.settings import load

    store, target = own_store, tmp_path_factory.mktemp("backup")
    fill(store)
    backup.make(store.web.database, store.data, target, _quiet)
    folder = tmp_path_factory.mktemp("again")
    with database_url("sqlite" if store.web.database.is_sqlite else "postgresql", folder) as url:
        killed(RESTORE, url, folder, target, 1)
        with pytest.raises(Conflict, match="db restore"):
            compose.migrate(load(flags={"data": folder}, environ={}))
        database = Database(url)
        backup.restore(database, folder, target, _quiet)
        database.close()
        opened = open_store(folder, url, decoder, loop)
        try:
            assert shown(opened) == shown(store)
        finally:
            opened.close()


@on_sqlite
def test_a_damaged_backup_is_refused(own_store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    store, target = own_store, tmp_path_factory.mktemp("backup")
    fill(store)
    made = backup.make(store.web.database, store.data, target, _quiet).backup
    folder = tmp_path_factory.mktemp("again")
    blob = target / next(iter(made.blobs))
    os.truncate(blob, blob.stat().st_size - 1)
    for _ in range(2):
        with pytest.raises(Corrupt):
            backup.restore(Database(f"sqlite:///{folder / 'gateway.db'}"), folder, target, _quiet)
        blob.unlink(missing_ok=True)
    assert list(folder.iterdir()) == []
    with pytest.raises(InvalidInput):
        backup.make(store.web.database, store.data, store.data / "backup", _quiet)


@on_sqlite
def test_what_a_backup_copies_stays_meanwhile(own_store: Store, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The worker finds a segment that nobody needs any more, and leaves it until the backup is done."""
    store, target = own_store, tmp_path_factory.mktemp("backup")
    store.put(slice_(1))
    store.encode()
    spool = store.web.staging
    spool.close()  # type: ignore[attr-defined]
    segments: list[int] = []

    def look_after(done: int, total: int) -> None:
        store.worker.worker._look_after()
        segments.append(len(spool.segments()))

    backup.make(store.web.database, store.data, target, look_after)
    assert set(segments) == {1}
    store.worker.worker._look_after()
    assert spool.segments() == []


def test_text_that_no_database_takes_is_stored_all_the_same(own_store: Store) -> None:
    """NUL is no character of PostgreSQL's text."""
    outcomes = own_store.put(
        instance(STUDY, SERIES, uid(7, 1, 1), PatientID="a\x00b", AccessionNumber="\x00c", StudyDescription="d\x00e")
    )
    assert [outcome.failure for outcome in outcomes] == [None]
    assert own_store.sops(STUDY) == [uid(7, 1, 1)]
    assert verify(own_store).faults == []
