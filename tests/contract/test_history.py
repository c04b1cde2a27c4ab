"""What happened, told: the change feed, events, previews; and tags, which happen to image sets too."""

import json
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from adapters.embedded.accesses import Accesses
from adapters.embedded.events import Courier, Events
from adapters.embedded.importing import start_import
from adapters.embedded.processes import Presence
from adapters.sql import tables as t
from gateway.domain import differences
from gateway.domain.edits import parse_update
from gateway.domain.errors import (
    Conflict,
    InvalidInput,
    Locked,
    NotFound,
    UnacceptableUpdate,
    Unavailable,
    VersionConflict,
)
from gateway.domain.ids import ImageSetId
from gateway.domain.model import Change, ImportRequest, PageRequest, Resource, SearchCriteria
from gateway.domain.query import DicomQuery, Level
from tests.contract.embedded import Store, close_process, open_process
from tests.contract.test_bucket_imports import ended, fill, start
from tests.contract.test_edits import SERIES, STUDY, of_instance, patient, slice_
from tests.makers import uid


def test_the_migrations_make_the_tables_that_the_code_knows(own_store: Store) -> None:
    with own_store.web.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        found = [
            difference
            for difference in compare_metadata(context, t.metadata)
            if difference[0] in ("add_table", "remove_table", "add_column", "remove_column")
        ]
    assert found == []


# ---------------------------------------------------------------- the change feed


def feed(store: Store, after: int = 0, limit: int = 1000) -> list[Change]:
    return list(store.do(store.web.backend.changes(store.datastore, after, limit))[0])


def test_the_feed_is_ordered_whole_and_can_be_read_again(store: Store) -> None:
    first, other = store.put(slice_(1), slice_(1, series=2))
    store.edit(first.image_set, 1, patient(PatientSex="F"))
    copied = store.copy((first.image_set, 2))
    store.edit(first.image_set, 2, patient(Modality="CT"))  # fails: nothing that can be read has changed
    store.delete(copied.id)
    entries = feed(store)
    assert [(entry.seq, entry.kind, entry.image_set, entry.version) for entry in entries] == [
        (1, "import", first.image_set, 1),
        (2, "import", other.image_set, 1),
        (3, "update", first.image_set, 2),
        (4, "copy", copied.id, 1),
        (5, "delete", copied.id, 1),
    ]
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    assert (entries[0].study_uid, entries[0].series_uid, entries[0].is_primary) == (STUDY, SERIES, True)
    assert entries[0].job
    assert not entries[3].is_primary
    read: list[Change] = []
    while some := feed(store, read[-1].seq if read else 0, 2):
        read += some
    assert read == entries
    assert store.do(store.web.backend.changes(store.datastore, 99, 10)) == ([], 5)
    empty = store.do(store.web.backend.create_datastore("empty"))
    assert store.do(store.web.backend.changes(empty.id, 0, 10)) == ([], 0)
    with pytest.raises(NotFound):
        store.do(store.web.backend.changes(type(empty.id)("f" * 32), 0, 10))


# ---------------------------------------------------------------- events


class Hook:
    """A webhook that may be out of order."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.fails_at: int | None = None

    def __call__(self, body: bytes) -> None:
        if self.fails_at == len(self.taken):
            self.fails_at = None
            raise Unavailable("the webhook answered 503")
        self.taken.append(json.loads(body))

    def told(self, image_set: ImageSetId | None) -> list[tuple[str, str, str]]:
        """Kind, version and state of an image set's events."""
        return [
            (event["detail-type"], event["detail"]["imageSetVersion"], event["detail"]["imageSetState"])
            for event in self.taken
            if event["detail"].get("imagesetId") == image_set
        ]


def test_events_tell_each_status_in_order(own_store: Store) -> None:
    store, hook = own_store, Hook()
    close_process(store.web)
    close_process(store.worker)
    store.web = open_process(store.data, store.url, "web", store.decoder, webhook=hook)
    store.worker = open_process(store.data, store.url, "worker", store.decoder, webhook=hook)
    courier = store.worker.worker.courier
    assert isinstance(courier, Courier)
    store.datastore = store.do(store.web.backend.create_datastore("told")).id
    fill(store, ("p/a.dcm", slice_(1)), ("p/b.dcm", slice_(2)))
    job = ended(store, start(store))
    (only,) = store.search()
    store.edit(only, 1, patient(PatientSex="F"))
    store.edit(only, 2, patient(Modality="CT"))
    copied = store.copy((only, 3))
    store.copy((only, 3), (copied.id, 1))
    store.delete(copied.id)
    waiting = store.rows("SELECT count(*) FROM event")[0][0]
    hook.fails_at = 2
    with pytest.raises(Unavailable):
        courier.deliver()
    assert len(hook.taken) == 2
    while courier.deliver():
        pass
    assert len(hook.taken) == waiting
    assert store.rows("SELECT count(*) FROM event") == [(0,)]
    assert len({event["id"] for event in hook.taken}) == waiting
    arn = "arn:aws:medical-imaging:us-east-1:123456789012:datastore/" + store.datastore
    first = hook.taken[0]
    assert first.pop("id")
    assert first.pop("time").endswith("Z")
    assert first == {
        "version": "0",
        "detail-type": "Data Store Creating",
        "source": "aws.medical-imaging",
        "account": "123456789012",
        "region": "us-east-1",
        "resources": [arn],
        "detail": {
            "imagingVersion": "1.0",
            "datastoreId": store.datastore,
            "datastoreName": "told",
            "datastoreStatus": "CREATING",
        },
    }
    jobs = [event for event in hook.taken if event["detail"].get("jobId") == job.id]
    assert [event["detail-type"] for event in jobs] == [
        "Import Job Submitted",
        "Import Job In Progress",
        "Import Job Completed",
    ]
    assert jobs[-1]["resources"] == [arn]
    assert jobs[-1]["detail"] == {
        "imagingVersion": "1.0",
        "datastoreId": store.datastore,
        "jobId": job.id,
        "jobName": "my-job",
        "jobStatus": "COMPLETED",
        "inputS3Uri": "s3://in/p/",
        "outputS3Uri": job.output_uri,
    }
    assert hook.told(only) == [
        ("Image Set Created", "1", "ACTIVE"),
        ("Image Set Updating", "2", "LOCKED"),
        ("Image Set Updated", "2", "ACTIVE"),
        ("Image Set Updating", "3", "LOCKED"),
        ("Image Set Update Failed", "3", "ACTIVE"),
        *[
            ("Image Set Copying With Read Only Access", "3", "LOCKED"),
            ("Image Set Copied", "3", "ACTIVE"),
            ("Image Set Copying With Read Only Access", "3", "LOCKED"),
            ("Image Set Copied", "3", "ACTIVE"),
        ],
    ]
    assert hook.told(copied.id) == [
        ("Image Set Copying", "1", "LOCKED"),
        ("Image Set Copied", "1", "ACTIVE"),
        ("Image Set Copying", "2", "LOCKED"),
        ("Image Set Copy Failed", "2", "ACTIVE"),
        ("Image Set Deleting", "2", "LOCKED"),
        ("Image Set Deleted", "2", "DELETED"),
    ]
    copying = next(event for event in hook.taken if event["detail-type"] == "Image Set Copying")
    assert copying["resources"] == [f"{arn}/imageset/{copied.id}"]
    assert copying["detail"]["sourceImageSetArn"] == f"{arn}/imageset/{only}"
    updated = next(event for event in hook.taken if event["detail-type"] == "Image Set Updated")
    assert updated["detail"] == {
        "imagingVersion": "1.0",
        "isPrimary": True,
        "imageSetVersion": "2",
        "datastoreId": store.datastore,
        "imagesetId": only,
        "imageSetState": "ACTIVE",
        "imageSetWorkflowStatus": "UPDATED",
    }


def test_without_a_webhook_nothing_is_kept_for_one(store: Store) -> None:
    store.put(slice_(1))
    assert store.rows("SELECT count(*) FROM event") == [(0,)]


# ---------------------------------------------------------------- previews


def preview(store: Store, image_set: ImageSetId | None, expected: int, **asked: Any) -> list[dict[str, Any]]:
    texts = {name: asked.pop(name, None) for name in ("update", "remove")}
    update, remove = (None if text is None else json.dumps(text).encode() for text in texts.values())
    parsed = parse_update(update, remove, asked.pop("revert", None), **asked)
    before, after = store.do(store.web.backend.preview(store.ref(image_set), expected, parsed))
    return differences.between(before, after)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"update": patient(PatientName="New^Name"), "remove": patient(PatientID="P1")},
            [("Patient", "PatientID", "removed"), ("Patient", "PatientName", "changed")],
        ),
        ({"update": of_instance(1, {"InstanceNumber": "9"})}, [("Instance", "InstanceNumber", "changed")]),
        ({"remove": of_instance(2)}, [("Instance", None, "removed")]),
        (
            {
                "update": of_instance(1, {"00091001": "X"}, DICOMVRs={"00091001": "LO"}),
                "force": True,
            },
            [("Instance", "00091001", "added")],
        ),
    ],
)
def test_a_preview_is_what_the_update_then_makes(
    store: Store, change: dict[str, Any], wanted: list[tuple[str, str | None, str]]
) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    told = preview(store, first.image_set, 1, **change)
    assert [(entry["level"], entry.get("attribute"), entry["change"]) for entry in told] == wanted
    assert store.image_set(first.image_set).version == 1
    assert store.rows("SELECT count(*) FROM work") == [(0,)]
    store.edit(first.image_set, 1, **change)
    made = differences.between(store.document(first.image_set, 1), store.document(first.image_set, 2))
    assert made == told


def test_a_preview_of_a_new_uid_and_of_a_way_back(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(slice_(2, PatientID="P2"))
    change = {"update": of_instance(2, {"SOPInstanceUID": "1.2.9"}), "force": True}
    told = preview(store, beside.image_set, 1, **change)
    assert [(entry["instance"], entry["attribute"], entry["to"]) for entry in told] == [
        (uid(1, 1, 2), "MediaStorageSOPInstanceUID", "1.2.9"),
        (uid(1, 1, 2), "SOPInstanceUID", "1.2.9"),
    ]
    store.edit(beside.image_set, 1, **change)
    assert differences.between(store.document(beside.image_set, 1), store.document(beside.image_set, 2)) == told
    back = preview(store, beside.image_set, 2, revert="1")
    assert [(entry["instance"], entry["to"]) for entry in back] == [("1.2.9", uid(1, 1, 2))] * 2


def test_a_preview_fails_as_the_update_would(store: Store) -> None:
    (first,) = store.put(slice_(1))
    for kind, expected, change in (
        (UnacceptableUpdate, 1, {"update": patient(Modality="CT")}),
        (VersionConflict, 2, {"update": patient(PatientSex="F")}),
        (VersionConflict, 2, {"revert": "1"}),
        (NotFound, 1, {"revert": "9"}),
    ):
        with pytest.raises(kind):
            preview(store, first.image_set, expected, **change)
    store.accept(first.image_set, 1, patient(PatientSex="F"))
    with pytest.raises((Locked, Conflict)):
        preview(store, first.image_set, 2, update=patient(PatientSex="M"))
    store.work()


# ---------------------------------------------------------------- tags, data stores, access


def test_tags_are_kept_for_data_stores_and_image_sets(store: Store) -> None:
    (first,) = store.put(slice_(1))
    backend = store.web.backend
    for resource in (Resource(store.datastore), Resource(store.datastore, first.image_set)):
        assert store.do(backend.tags(resource)) == {}
        store.do(backend.tag(resource, {"b": "1", "a": ""}))
        store.do(backend.tag(resource, {"b": "2"}))
        assert store.do(backend.tags(resource)) == {"a": "", "b": "2"}
        store.do(backend.untag(resource, ["a", "never"]))
        assert store.do(backend.tags(resource)) == {"b": "2"}
        with pytest.raises(InvalidInput, match="50"):
            store.do(backend.tag(resource, {f"k{number}": "" for number in range(50)}))
        assert store.do(backend.tags(resource)) == {"b": "2"}
    for unknown in (Resource(type(store.datastore)("f" * 32)), Resource(store.datastore, ImageSetId("f" * 32))):
        for call in (backend.tags(unknown), backend.tag(unknown, {"a": ""}), backend.untag(unknown, ["a"])):
            with pytest.raises(NotFound):
                store.do(call)
    store.delete(first.image_set)
    with pytest.raises(NotFound):
        store.do(backend.tags(Resource(store.datastore, first.image_set)))
    assert store.rows("SELECT count(*) FROM tag WHERE resource LIKE :set", set=f"%{first.image_set}") == [(0,)]


def test_a_data_store_is_made_with_its_tags_and_deleted_when_it_is_empty(store: Store) -> None:
    backend = store.web.backend
    made = store.do(backend.create_datastore("named", "token-tags", tags={"a": "1"}))
    assert (made.status, made.name) == ("CREATING", "named")
    assert store.do(backend.get_datastore(made.id)).status == "ACTIVE"
    assert store.do(backend.tags(Resource(made.id))) == {"a": "1"}
    assert store.do(backend.create_datastore("named", "token-tags", tags={"a": "1"})).id == made.id
    with pytest.raises(Conflict):
        store.do(backend.create_datastore("named", "token-tags", tags={"a": "2"}))
    with pytest.raises(InvalidInput):
        store.do(backend.create_datastore("named", tags={f"k{number}": "" for number in range(51)}))
    (first,) = store.put(slice_(1))
    with pytest.raises(Conflict, match="image sets"):
        store.do(backend.delete_datastore(store.datastore))
    store.delete(first.image_set)
    for datastore in (made.id, store.datastore):
        assert store.do(backend.delete_datastore(datastore)).status == "DELETING"
        assert store.do(backend.get_datastore(datastore)).status == "DELETED"
        with pytest.raises(NotFound):
            store.do(backend.delete_datastore(datastore))
        with pytest.raises(NotFound):
            store.do(backend.tags(Resource(datastore)))
    with pytest.raises(Conflict, match="default"):
        store.do(backend.delete_datastore(store.web.default_datastore))


def test_nothing_comes_into_a_data_store_that_another_process_deleted(store: Store) -> None:
    staged = store.stage(slice_(1))
    other = store.process("web")
    store.do(store.web.backend.search(store.datastore, *_any()))  # this process knows the data store
    store.do(other.backend.delete_datastore(store.datastore))
    with pytest.raises(NotFound):
        store.do(store.web.backend.submit(store.datastore, staged))
    close_process(other)


def test_a_data_store_that_another_process_deleted_is_refused_at_once(store: Store) -> None:
    backend = store.web.backend
    staged = store.stage(slice_(1))
    known = [
        lambda: backend.search(store.datastore, *_any()),
        lambda: backend.changes(store.datastore, 0, 10),
        lambda: backend.conflicts(store.datastore, PageRequest()),
        lambda: backend.list_imports(store.datastore, None, PageRequest()),
        lambda: backend.find(DicomQuery(store.datastore, Level.STUDY)),
    ]
    for call in known:
        store.do(call())  # this process has used the data store
    other = store.process("web")
    store.do(other.backend.delete_datastore(store.datastore))
    close_process(other)
    for call in (
        *known,
        lambda: backend.imported(store.datastore, staged, 5),
        lambda: backend.start_import(store.datastore, ImportRequest("", "s3://in/", "s3://out/", "token")),
    ):
        with pytest.raises(NotFound):
            store.do(call())


def test_an_import_job_for_a_data_store_that_is_deleted_meanwhile_is_refused(store: Store) -> None:
    """Another process deletes it after it was looked up."""
    key = store.web.worker.datastore_pk(store.datastore)
    other = store.process("web")
    store.do(other.backend.delete_datastore(store.datastore))
    close_process(other)
    asked = ImportRequest("", "s3://in/", "s3://out/", "token")
    presence = Presence(store.data / "run", "web")
    with pytest.raises(NotFound):
        start_import(store.web.database, Events(None), presence, key, store.datastore, asked)
    presence.close()
    assert store.rows("SELECT count(*) FROM job WHERE datastore_pk=:key", key=key) == [(0,)]


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30])
def test_numbers_that_no_column_holds_are_of_nothing(store: Store, number: int) -> None:
    (first,) = store.put(slice_(1))
    for missing in (
        lambda: store.image_set(first.image_set, number),
        lambda: store.document(first.image_set, number),
        lambda: store.select(STUDY, SERIES, version=number),
    ):
        with pytest.raises(NotFound):
            missing()
    for stale in (
        lambda: store.accept(first.image_set, number, patient(PatientSex="F")),
        lambda: store.accept_copy((first.image_set, number)),
    ):
        with pytest.raises(VersionConflict):
            stale()
    with pytest.raises(InvalidInput):
        store.accept(first.image_set, 1, revert=number)
    assert feed(store, after=number) == []
    asked = PageRequest(10, str(min(number, 10**18 - 1)))
    (listed,) = store.do(store.web.backend.list_versions(store.ref(first.image_set), asked)).items
    assert listed.version == 1


def _any() -> tuple[Any, Any]:
    return SearchCriteria(), PageRequest()


def test_an_access_is_noted_once_a_day(store: Store) -> None:
    (first,) = store.put(slice_(1))
    assert first.image_set is not None
    made = store.image_set(first.image_set)
    assert made.accessed_at == made.created_at
    accesses = Accesses(store.web.database)
    assert accesses.is_new(first.image_set)
    assert not accesses.is_new(first.image_set)
    accesses.write(first.image_set)
    assert store.image_set(first.image_set).accessed_at == made.created_at, "it was made today"
    with store.web.database.write() as connection:
        connection.execute(
            sa.update(t.image_set).where(t.image_set.c.id == first.image_set).values(accessed_at=1, created_at=1)
        )
    accesses.write(first.image_set)
    accessed = store.image_set(first.image_set).accessed_at
    assert accessed is not None
    assert accessed > made.created_at
    assert store.search()[first.image_set].accessed_at == accessed
