"""What was deleted and can no longer be restored: nothing of it is left, and nothing else is touched."""

import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from adapters.embedded import rebuilding
from adapters.sql import tables as t
from gateway.domain.errors import NotFound
from tests.contract.embedded import Store, value
from tests.contract.test_keeping import verify
from tests.makers import instance, pixels, uid

DOOMED, KEPT = uid(1), uid(2)
SECRETS = ("unmistakable", "rosebud", "x-73115", "a-90210", "hush")


def doomed(number: int = 1, series: int = 1, **attributes: Any) -> bytes:
    said = {"PatientName": "Unmistakable^Name", "PatientID": "X-73115", "AccessionNumber": "A-90210", **attributes}
    return instance(DOOMED, uid(1, series), uid(1, series, number), pixels(number), InstanceNumber=number, **said)


def kept(number: int = 1, **attributes: Any) -> bytes:
    return instance(KEPT, uid(2, 1), uid(2, 1, number), pixels(number), InstanceNumber=number, **attributes)


def purge(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = store.worker.worker.sweeper
    monkeypatch.setattr(sweeper, "_retention_ms", -1000)
    for _ in range(3):
        sweeper.sweep()


def said(store: Store) -> str:
    """Every text and every document in the database, inflated, in lower case."""
    found = []
    with store.web.database.read() as connection:
        for table in t.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                for field in row:
                    if isinstance(field, bytes | memoryview):
                        data = bytes(field)
                        with suppress(zlib.error):
                            data += zlib.decompressobj(-15).decompress(data)
                        found.append(data.decode("latin-1"))
                    else:
                        found.append(str(field))
    return "\n".join(found).lower()


def edit_of_instance(store: Store, image_set: Any, version: int, comment: str, number: int = 1) -> None:
    instances = {uid(1, 1, number): {"DICOM": {"ImageComments": comment}}}
    store.edit(image_set, version, {"Study": {"Series": {uid(1, 1): {"Instances": instances}}}})


def test_nothing_is_left_of_it(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    (first, second) = store.put(doomed(), doomed(series=2))
    (beside,) = store.put(doomed(2, PatientID="other"))  # not primary
    store.edit(first.image_set, 1, {"Study": {"DICOM": {"StudyDescription": "Rosebud"}}}, study=True)
    edit_of_instance(store, first.image_set, 2, "hush")
    assert store.rows("SELECT count(*) > 0 FROM text_tail WHERE text='A-90210'") == [(True,)]
    everything = said(store)
    assert [secret for secret in SECRETS if secret not in everything] == []
    for image_set in (first.image_set, second.image_set, beside.image_set):
        store.delete(image_set)
    everything = said(store)
    assert [secret for secret in SECRETS if secret not in everything] == []
    purge(store, monkeypatch)
    everything = said(store)
    assert [secret for secret in SECRETS if secret in everything] == []
    for table in ("member", "record", "pixel", "version", "study_past", "set_index_past", "text_tail", "conflict"):
        assert store.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert store.rows("SELECT state, visible FROM image_set") == [("DELETED", 0)] * 3
    with pytest.raises(NotFound):
        store.select(DOOMED)
    report = verify(store)
    assert report.is_sound, report.faults
    assert rebuilding.rebuild(store.worker.worker.database) == 0


def test_what_others_share_stays(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy, and a study of the same patient: found as before, now and in the past."""
    store = own_store
    (first,) = store.put(doomed())
    edit_of_instance(store, first.image_set, 1, "hush")
    copy = store.copy((first.image_set, 2))
    (other,) = store.put(kept(PatientName="Unmistakable^Name", PatientID="X-73115", StudyDescription="old"))
    before = datetime.now(UTC)
    while datetime.now(UTC) <= before:
        pass
    store.edit(other.image_set, 1, {"Study": {"DICOM": {"StudyDescription": "new"}}})
    documents = {one: store.document_bytes(one) for one in (copy.id, other.image_set)}
    store.delete(first.image_set)

    def found() -> list[Any]:
        return [
            store.find(PatientName="*mistak*"),
            store.find(PatientID="*7311*"),
            store.find(StudyDescription="*e*w*"),
            store.find(StudyDescription="*ol*", as_of=before),
            store.find(PatientName="*mistak*", as_of=before),
        ]

    now = found()
    assert [len(rows) for rows in now] == [1, 1, 1, 1, 2]
    purge(store, monkeypatch)
    after = found()
    assert after[:4] == now[:4]
    assert [value(row, "StudyInstanceUID") for row in after[4]] == [KEPT]
    assert {one: store.document_bytes(one) for one in documents} == documents
    edited = store.json(DOOMED, uid(1, 1), uid(1, 1, 1), image_set=copy.id)
    assert [value(one, "ImageComments") for one in edited] == ["hush"]
    assert store.rows("SELECT count(*) FROM text_tail WHERE text='A-90210'") == [(0,)]
    report = verify(store)
    assert report.is_sound, report.faults
    rebuilding.rebuild(store.worker.worker.database)
    assert found() == after


def test_a_later_edit_is_not_mixed_up_with_a_purged_one(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite gives the highest key anew when its row has gone, and readers remember by key what an edit said."""
    store = own_store
    (first,) = store.put(doomed())
    edit_of_instance(store, first.image_set, 1, "hush")
    store.edit(first.image_set, 2, {"Patient": {"DICOM": {"PatientName": "Unmistakable^Too"}}})
    (shown,) = store.json(DOOMED)
    assert (value(shown, "ImageComments"), value(shown, "PatientName")) == ("hush", "Unmistakable^Too")
    store.delete(first.image_set)
    purge(store, monkeypatch)
    (later,) = store.put(doomed())
    edit_of_instance(store, later.image_set, 1, "another")
    store.edit(later.image_set, 2, {"Patient": {"DICOM": {"PatientName": "Another^Name"}}})
    (shown,) = store.json(DOOMED)
    assert (value(shown, "ImageComments"), value(shown, "PatientName")) == ("another", "Another^Name")
    report = verify(store)
    assert report.is_sound, report.faults


def test_a_store_is_sound_while_a_copy_waits(own_store: Store) -> None:
    store = own_store
    (first,) = store.put(doomed())
    store.accept_copy((first.image_set, 1))
    report = verify(store)
    assert report.is_sound, report.faults
