"""Edits, reverts and deletes: accepted under a lock, applied once, seen everywhere at once."""

import re
from typing import Any

import pytest

from adapters.embedded.mutations import Mutations
from gateway.domain.errors import Locked, NotFound, VersionConflict
from gateway.domain.ids import ImageSetId
from gateway.domain.model import ImageSetState, Workflow
from gateway.domain.query import Level
from tests.contract.embedded import Store, close_process, value
from tests.makers import data_set, instance, part10, pixels, uid

STUDY, SERIES = uid(1), uid(1, 1)


def slice_(number: int, series: int = 1, **attributes: Any) -> bytes:
    attributes = {"SeriesNumber": series, "InstanceNumber": number, **attributes}
    return instance(STUDY, uid(1, series), uid(1, series, number), pixels(number), **attributes)


def patient(**attributes: Any) -> dict[str, Any]:
    return {"Patient": {"DICOM": attributes}}


def of_series(**attributes: Any) -> dict[str, Any]:
    return {"Study": {"Series": {SERIES: {"DICOM": attributes}}}}


def of_instance(number: int, attributes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    node: dict[str, Any] = {"DICOM": attributes} if attributes is not None else {}
    return {"Study": {"Series": {SERIES: {"Instances": {uid(1, 1, number): {**node, **more}}}}}}


# ---------------------------------------------------------------- levels


def test_a_patient_edit_shows_everywhere(store: Store) -> None:
    (first,) = store.put(slice_(1))
    accepted = store.accept(first.image_set, 1, patient(PatientName="New^Name"), actor="alice", reason="typing error")
    assert (accepted.version, accepted.state, accepted.workflow) == (2, ImageSetState.LOCKED, Workflow.UPDATING)
    assert store.image_set(first.image_set).state == ImageSetState.LOCKED
    store.work()
    made = store.image_set(first.image_set)
    assert (made.version, made.state, made.workflow, made.actor) == (
        2,
        ImageSetState.ACTIVE,
        Workflow.UPDATED,
        "alice",
    )
    assert store.rows("SELECT reason FROM version WHERE version=2 AND reason IS NOT NULL") == [("typing error",)]
    assert value(store.json(STUDY)[0], "PatientName") == "New^Name"
    assert store.document(first.image_set)["Patient"]["DICOM"]["PatientName"] == "New^Name"
    assert [value(row, "PatientName") for row in store.find(PatientName="New^Name")] == ["New^Name"]
    assert store.find(PatientName="Doe^Jane") == []
    assert store.search()[made.id].tags["DICOMPatientName"] == "New^Name"
    assert value(store.json(STUDY, SERIES, version=1)[0], "PatientName") == "Doe^Jane"


def test_removing_needs_the_current_value(store: Store) -> None:
    (first,) = store.put(slice_(1, PatientSex="F"))
    failed = store.edit(first.image_set, 1, remove=patient(PatientSex="M"))
    assert failed.workflow == Workflow.UPDATE_FAILED
    assert failed.message is not None
    assert "PatientSex" in failed.message
    removed = store.edit(first.image_set, 2, remove=patient(PatientSex="F"))
    assert (removed.version, removed.workflow) == (3, Workflow.UPDATED)
    assert "00100040" not in store.json(STUDY)[0]
    assert "PatientSex" not in store.document(first.image_set)["Patient"]["DICOM"]


def test_a_failed_edit_uses_its_number_and_shows_what_was_there(store: Store) -> None:
    (first,) = store.put(slice_(1))
    failed = store.edit(first.image_set, 1, patient(Modality="MR"))
    assert (failed.version, failed.state, failed.workflow) == (2, ImageSetState.ACTIVE, Workflow.UPDATE_FAILED)
    assert failed.message
    assert re.fullmatch(r"[\w -:]+", failed.message)
    assert store.document_bytes(first.image_set) == store.document_bytes(first.image_set, 1)
    assert store.sops(STUDY, SERIES, version=2) == store.sops(STUDY)
    assert store.rows("SELECT count(*) FROM set_lock") == [(0,)]
    after = store.edit(first.image_set, 2, patient(PatientName="New^Name"))
    assert (after.version, after.workflow, after.message) == (3, Workflow.UPDATED, None)
    reverted = store.edit(first.image_set, 3, revert=2)
    assert reverted.version == 4
    assert store.document_bytes(first.image_set) == store.document_bytes(first.image_set, 1)
    (joined,) = store.put(slice_(2))
    assert joined.version == 5


def test_edits_outlive_what_arrives_later(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.edit(first.image_set, 1, patient(PatientName="Right^Name"))
    (late,) = store.put(slice_(2, PatientName="Wrong^Name", SeriesDescription="new"))
    assert (late.version, late.is_primary) == (3, True)
    assert [value(read, "PatientName") for read in store.json(STUDY)] == ["Right^Name"] * 2
    document = store.document(first.image_set)
    assert document["Patient"]["DICOM"]["PatientName"] == "Right^Name"
    assert document["Study"]["Series"][SERIES]["DICOM"]["SeriesDescription"] == "new"
    (row,) = store.find()
    assert value(row, "PatientName") == "Right^Name"


def test_what_is_sent_again_does_not_undo_an_edit(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.edit(first.image_set, 1, of_instance(1, {"ImageComments": "edited"}))
    (again,) = store.put(slice_(1))
    assert (again.identical, again.version) == (True, 2)
    assert value(store.json(STUDY)[0], "ImageComments") == "edited"


def test_a_study_edit_reaches_all_primaries_in_one_step(store: Store) -> None:
    sets = [outcome.image_set for outcome in store.put(slice_(1), slice_(1, series=2), slice_(1, series=3))]
    beside = store.put(slice_(9, PatientID="P2"))[0].image_set
    store.accept(sets[0], 1, {**patient(PatientID="P9"), "Study": {"DICOM": {"AccessionNumber": "A9"}}}, study=True)
    workflows = [store.image_set(image_set).workflow for image_set in sets]
    assert workflows == [Workflow.UPDATING, *[Workflow.UPDATING_FOR_STUDY_CONSISTENCY] * 2]
    store.work()
    assert [store.image_set(image_set).version for image_set in [*sets, beside]] == [2, 2, 2, 1]
    assert {value(read, "PatientID") for read in store.json(STUDY)} == {"P9"}
    assert {value(read, "AccessionNumber") for read in store.json(STUDY)} == {"A9"}
    assert len(store.find(Level.SERIES, PatientID="P9")) == 3
    (row,) = store.find(AccessionNumber="A9")
    assert value(row, "NumberOfStudyRelatedInstances") == 3
    assert store.find(PatientID="P1") == []
    ats = {store.image_set(image_set).at for image_set in sets}
    assert len(ats) == 1


def test_a_study_edit_is_for_all_or_none(store: Store) -> None:
    one, two = store.put(slice_(1), slice_(1, series=2))
    store.accept(two.image_set, 1, patient(PatientName="New^Name"))
    with pytest.raises(Locked):
        store.accept(one.image_set, 1, patient(PatientID="P9"), study=True)
    assert store.image_set(one.image_set).version == 1
    assert store.image_set(one.image_set).state == ImageSetState.ACTIVE
    store.work()


def test_a_revert_does_not_tear_a_study_apart(store: Store) -> None:
    one, _ = store.put(slice_(1), slice_(1, series=2))
    store.edit(one.image_set, 1, patient(PatientID="P9"), study=True)
    failed = store.edit(one.image_set, 2, revert=1)
    assert failed.workflow == Workflow.UPDATE_FAILED
    assert failed.message is not None
    assert failed.message.startswith("PatientID")
    assert {value(read, "PatientID") for read in store.json(STUDY)} == {"P9"}
    store.edit(one.image_set, 3, patient(PatientName="New^Name"))
    assert store.edit(one.image_set, 4, revert=2).workflow == Workflow.UPDATED


def test_a_grouping_element_of_one_of_many_needs_the_study(store: Store) -> None:
    one, _ = store.put(slice_(1), slice_(1, series=2))
    failed = store.edit(one.image_set, 1, patient(PatientID="P9"))
    assert failed.workflow == Workflow.UPDATE_FAILED
    assert {value(read, "PatientID") for read in store.json(STUDY)} == {"P1"}


# ---------------------------------------------------------------- versions and locks


@pytest.mark.parametrize("expected", [0, 2, 7])
def test_a_stale_version_is_a_conflict(store: Store, expected: int) -> None:
    (first,) = store.put(slice_(1))
    with pytest.raises(VersionConflict):
        store.accept(first.image_set, expected, patient(PatientName="New^Name"))
    assert store.image_set(first.image_set).version == 1


def test_of_two_edits_of_one_version_one_wins(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, patient(PatientName="One^A"))
    with pytest.raises(VersionConflict):
        store.accept(first.image_set, 1, patient(PatientName="Two^B"))
    with pytest.raises(Locked):
        store.accept(first.image_set, 2, patient(PatientName="Two^B"))
    with pytest.raises(Locked):
        store.do(store.web.backend.delete(store.ref(first.image_set)))
    store.work()
    assert value(store.json(STUDY)[0], "PatientName") == "One^A"


def test_what_is_not_there_cannot_be_edited(store: Store) -> None:
    with pytest.raises(NotFound):
        store.accept(ImageSetId("0" * 32), 1, patient(PatientName="New^Name"))
    (first,) = store.put(slice_(1))
    with pytest.raises(NotFound):
        store.accept(first.image_set, 1, revert=5)


def test_a_revert_brings_back_members_and_levels(store: Store) -> None:
    (first,) = store.put(slice_(1), slice_(2))[:1]
    store.put(slice_(3, SeriesDescription="third"))
    store.put(slice_(1, ImageComments="again"))
    store.edit(first.image_set, 3, remove=of_instance(2))
    store.edit(first.image_set, 4, of_series(SeriesDescription="edited"))
    made = store.edit(first.image_set, 5, revert=1)
    assert (made.version, made.workflow) == (6, Workflow.UPDATED)
    assert store.document_bytes(first.image_set) == store.document_bytes(first.image_set, 1)
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert "00204000" not in store.json(STUDY)[0]
    (row,) = store.find(Level.SERIES)
    assert value(row, "NumberOfSeriesRelatedInstances") == 2
    store.edit(first.image_set, 6, revert=5)
    assert store.document_bytes(first.image_set) == store.document_bytes(first.image_set, 5)
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 3)]


# ---------------------------------------------------------------- instances


def test_an_instance_edit_touches_one_instance(store: Store) -> None:
    (first,) = store.put(slice_(1), slice_(2))[:1]
    store.edit(first.image_set, 1, of_instance(2, {"ImageComments": "edited", "InstanceNumber": "7"}))
    one, two = store.json(STUDY)
    assert "00204000" not in one
    assert (value(two, "ImageComments"), value(two, "InstanceNumber")) == ("edited", 7)
    instances = store.document(first.image_set)["Study"]["Series"][SERIES]["Instances"]
    assert instances[uid(1, 1, 2)]["DICOM"]["ImageComments"] == "edited"
    assert "ImageComments" not in instances[uid(1, 1, 1)]["DICOM"]
    (row,) = store.find(Level.INSTANCE, InstanceNumber="7")
    assert value(row, "SOPInstanceUID") == uid(1, 1, 2)


def test_instance_edits_add_up(store: Store) -> None:
    (first,) = store.put(slice_(1, ImageComments="received"))
    store.edit(first.image_set, 1, of_instance(1, {"AcquisitionNumber": "4"}))
    store.edit(first.image_set, 2, of_instance(1, {"AcquisitionNumber": "5", "ContentDate": "20240101"}))
    store.edit(first.image_set, 3, remove=of_instance(1, {"ImageComments": "received"}))
    (read,) = store.json(STUDY)
    assert (value(read, "AcquisitionNumber"), value(read, "ContentDate")) == (5, "20240101")
    assert "00204000" not in read


def test_an_instance_is_removed_from_what_comes_and_stays_in_what_was(store: Store) -> None:
    (first,) = store.put(slice_(1), slice_(2))[:1]
    store.edit(first.image_set, 1, remove=of_instance(1))
    assert store.sops(STUDY) == [uid(1, 1, 2)]
    assert store.sops(STUDY, SERIES, version=1) == [uid(1, 1, 1), uid(1, 1, 2)]
    (row,) = store.find()
    assert value(row, "NumberOfStudyRelatedInstances") == 1
    assert store.find(Level.INSTANCE, SOPInstanceUID=uid(1, 1, 1)) == []
    failed = store.edit(first.image_set, 2, remove=of_instance(2))
    assert failed.workflow == Workflow.UPDATE_FAILED  # the last one
    (again,) = store.put(slice_(1))
    assert (again.version, again.identical) == (4, False)
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]


def test_private_attributes_are_written_with_their_vr(store: Store) -> None:
    made = data_set(STUDY, SERIES, uid(1, 1, 1), pixels(1))
    block = made.private_block(0x0009, "MAKER", create=True)
    block.add_new(0x01, "LO", "received")
    (first,) = store.put(part10(made))
    made_version = store.edit(
        first.image_set,
        1,
        of_instance(1, {"00091001": "edited", "00091002": 5}, DICOMVRs={"00091001": "LO", "00091002": "US"}),
        force=True,
    )
    assert made_version.workflow == Workflow.UPDATED, made_version.message
    assert made_version.forced
    (read,) = store.json(STUDY)
    assert read["00091001"] == {"vr": "LO", "Value": ["edited"]}
    assert read["00091002"] == {"vr": "US", "Value": [5]}
    (entry,) = store.select(STUDY).entries
    before, _ = store.do(store.web.backend.head(entry))
    assert b"\x09\x00\x01\x10LO\x06\x00edited" in before
    assert b"\x09\x00\x02\x10US\x02\x00\x05\x00" in before


def test_a_sop_uid_may_change_beside_the_primary(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(slice_(2, PatientID="P2"))
    new = uid(1, 1, 777)
    made = store.edit(beside.image_set, 1, of_instance(2, {"SOPInstanceUID": new}), force=True)
    assert made.workflow == Workflow.UPDATED, made.message
    (entry,) = store.select(STUDY, SERIES, image_set=beside.image_set).entries
    assert entry.sop_uid == new
    before, _ = store.do(store.web.backend.head(entry))
    assert new.encode() in before
    assert list(store.document(beside.image_set)["Study"]["Series"][SERIES]["Instances"]) == [new]
    (old,) = store.select(STUDY, SERIES, image_set=beside.image_set, version=1).entries
    assert old.sop_uid == uid(1, 1, 2)
    primary = store.select(STUDY).entries[0]
    failed = store.edit(primary.image_set, 1, of_instance(1, {"SOPInstanceUID": new}), force=True)
    assert failed.workflow == Workflow.UPDATE_FAILED


def test_a_series_uid_may_change_beside_the_primary(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(slice_(2, PatientID="P2"))
    new = uid(1, 88)
    made = store.edit(beside.image_set, 1, of_series(SeriesInstanceUID=new), force=True)
    assert made.workflow == Workflow.UPDATED, made.message
    (entry,) = store.select(STUDY, new, image_set=beside.image_set).entries
    assert entry.series_uid == new
    assert list(store.document(beside.image_set)["Study"]["Series"]) == [new]
    with pytest.raises(NotFound):
        store.select(STUDY, SERIES, image_set=beside.image_set)
    assert store.sops(STUDY, SERIES, image_set=beside.image_set, version=1) == [uid(1, 1, 2)]


# ---------------------------------------------------------------- deletes


def test_a_delete_takes_the_set_out_of_everything(store: Store) -> None:
    one, two = store.put(slice_(1), slice_(1, series=2))
    accepted = store.do(store.web.backend.delete(store.ref(one.image_set)))
    assert (accepted.state, accepted.workflow) == (ImageSetState.LOCKED, Workflow.DELETING)
    assert store.image_set(one.image_set).workflow == Workflow.DELETING
    store.work()
    with pytest.raises(NotFound):
        store.image_set(one.image_set)
    (row,) = store.find()
    assert value(row, "NumberOfStudyRelatedSeries") == 1
    assert value(row, "NumberOfStudyRelatedInstances") == 1
    assert [value(found, "SeriesInstanceUID") for found in store.find(Level.SERIES)] == [uid(1, 2)]
    assert list(store.search()) == [two.image_set]
    assert store.sops(STUDY) == [uid(1, 2, 1)]
    with pytest.raises(NotFound):
        store.accept(one.image_set, 1, patient(PatientName="New^Name"))
    with pytest.raises(NotFound):
        store.do(store.web.backend.delete(store.ref(one.image_set)))
    store.delete(two.image_set)
    assert store.find() == []
    assert store.search() == {}
    store.do(store.web.backend.delete_datastore(store.datastore))


# ---------------------------------------------------------------- interrupted operations


def test_an_operation_that_fails_for_good_frees_the_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = store.put(slice_(1))

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Mutations, "_apply", fails)
    failed = store.edit(first.image_set, 1, patient(PatientName="New^Name"))
    assert failed.workflow == Workflow.UPDATE_FAILED
    assert failed.message == "INTERNAL_ERROR: Operation was interrupted."
    monkeypatch.undo()
    assert store.edit(first.image_set, 2, patient(PatientName="New^Name")).workflow == Workflow.UPDATED


def test_an_edit_of_a_set_whose_bytes_are_lost_fails_and_frees_the_set(own_store: Store) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    for pack in (store.data / "pack").iterdir():
        pack.unlink()
    store.blobs.close()
    failed = store.edit(first.image_set, 1, of_instance(1, {"ImageComments": "edited"}))
    assert failed.workflow == Workflow.UPDATE_FAILED
    assert store.edit(first.image_set, 2, patient(PatientName="New^Name")).workflow == Workflow.UPDATED


def test_an_operation_of_a_dead_worker_is_run_by_another(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, patient(PatientName="New^Name"))
    dying = store.process("worker")
    assert len(dying.worker.queue.lease(("update",), 1)) == 1
    close_process(dying)
    assert not store.work_once()
    assert store.worker.worker.queue.reclaim() == 1
    store.work()
    assert store.image_set(first.image_set).workflow == Workflow.UPDATED


@pytest.mark.parametrize("kind", ["update", "copy", "delete"])
def test_an_operation_that_every_worker_dies_of_is_given_up(store: Store, kind: str) -> None:
    """Its image set is free again; what others asked for at the same time is done."""
    first, other = store.put(slice_(1), slice_(1, series=2))
    if kind == "update":
        store.accept(first.image_set, 1, patient(PatientName="New^Name"))
    elif kind == "copy":
        store.accept_copy((first.image_set, 1))
    else:
        store.do(store.web.backend.delete(store.ref(first.image_set)))
    ((doomed,),) = store.rows("SELECT pk FROM work")
    store.accept(other.image_set, 1, {"Study": {"Series": {uid(1, 2): {"DICOM": {"SeriesDescription": "D"}}}}})
    for _ in range(8):
        dying = store.process("worker")
        taken = dying.worker.queue.lease(("update", "copy", "delete"), 64)
        assert taken[0].pk == doomed
        close_process(dying)
        assert store.worker.worker.queue.reclaim() == len(taken)
    store.work()
    found = store.image_set(first.image_set)
    assert found.state == ImageSetState.ACTIVE
    shown = (2, Workflow.UPDATE_FAILED) if kind == "update" else (1, Workflow.CREATED)
    assert (found.version, found.workflow) == shown
    assert store.image_set(other.image_set).workflow == Workflow.UPDATED
    assert store.rows("SELECT count(*) FROM set_lock") == [(0,)]
    assert store.edit(first.image_set, found.version, patient(PatientName="X")).workflow == Workflow.UPDATED
