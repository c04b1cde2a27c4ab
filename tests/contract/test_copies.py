"""Copies: accepted under two locks, carried out once, without a byte moved (healthimaging.md 9, 13)."""

import re
from typing import Any

import pytest

from adapters.embedded.copying import Copying
from gateway.domain.errors import InvalidInput, Locked, NotFound, QuotaExceeded, VersionConflict
from gateway.domain.ids import ImageSetId
from gateway.domain.model import ImageSetState, Outcome, Workflow
from tests.contract import invariants
from tests.contract.embedded import Store, value
from tests.contract.test_edits import SERIES, STUDY, of_instance, of_series, patient, slice_
from tests.makers import uid


def conflicting(store: Store, *numbers: int, **attributes: Any) -> Outcome:
    """Slices of the series that land in a non-primary image set: they have another patient."""
    outcomes = store.put(*(slice_(number, PatientID="P2", **attributes) for number in numbers))
    assert not outcomes[0].is_primary
    return outcomes[0]


def sops(store: Store, image_set: ImageSetId | None, version: int | None = None) -> list[str]:
    (series,) = store.document(image_set, version)["Study"]["Series"].values()
    return sorted(series["Instances"])


def frame_ids(store: Store, image_set: ImageSetId | None) -> list[str]:
    (series,) = store.document(image_set)["Study"]["Series"].values()
    return sorted(frame["ID"] for instance in series["Instances"].values() for frame in instance["ImageFrames"])


# ---------------------------------------------------------------- a new image set


def test_a_copy_is_a_new_image_set_beside_its_source(store: Store) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    accepted = store.accept_copy((first.image_set, 1), actor="alice")
    source, made = accepted.source, accepted.destination
    assert (source.version, source.state) == (1, ImageSetState.LOCKED)
    assert source.workflow is Workflow.COPYING_WITH_READ_ONLY_ACCESS
    assert (made.version, made.state, made.workflow) == (1, ImageSetState.LOCKED, Workflow.COPYING)
    assert made.created_at == made.updated_at
    assert made.id != source.id
    seen = store.image_set(first.image_set)
    assert (seen.state, seen.workflow) == (ImageSetState.LOCKED, Workflow.COPYING_WITH_READ_ONLY_ACCESS)
    assert store.image_set(made.id).workflow is Workflow.COPYING
    assert len(sops(store, first.image_set)) == 2, "the source is readable"
    store.work()
    for image_set in (source.id, made.id):
        assert [(v.version, v.state, v.workflow) for v in store.versions(image_set)] == [
            (1, ImageSetState.ACTIVE, Workflow.COPIED)
        ]
    copied = store.image_set(made.id)
    assert (copied.is_primary, copied.actor) == (False, "alice")
    assert sops(store, made.id) == sops(store, first.image_set)
    assert frame_ids(store, made.id) == frame_ids(store, first.image_set)
    document, original = store.document(made.id), store.document(first.image_set)
    assert document["ImageSetID"] == made.id
    assert {**document, "ImageSetID": ""} == {**original, "ImageSetID": ""}
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)], "DICOM services see the primary alone"
    assert store.sops(STUDY, image_set=made.id) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert set(store.search()) == {source.id, made.id}


def test_a_copy_keeps_the_edits_of_its_source_and_goes_its_own_way(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.edit(first.image_set, 1, patient(PatientName="New^Name"))
    store.edit(first.image_set, 2, of_instance(1, {"InstanceNumber": "7"}))
    made = store.copy((first.image_set, 3))
    assert made.version == 1
    (seen,) = store.json(STUDY, image_set=made.id)
    assert (value(seen, "PatientName"), value(seen, "InstanceNumber")) == ("New^Name", 7)
    store.edit(first.image_set, 3, patient(PatientName="Third^Name"))
    store.edit(made.id, 1, patient(PatientName="Own^Name"))
    assert value(store.json(STUDY)[0], "PatientName") == "Third^Name"
    assert value(store.json(STUDY, image_set=made.id)[0], "PatientName") == "Own^Name"
    store.delete(first.image_set)
    assert value(store.json(STUDY, image_set=made.id)[0], "PatientName") == "Own^Name"
    entry = store.select(STUDY, image_set=made.id).entries[0]
    assert store.do(store.web.backend.frame(entry, 0)).data, "its pixels outlive the source"


def test_a_subset_is_copied(store: Store) -> None:
    first, *_ = store.put(slice_(1), slice_(2), slice_(3))
    made = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1), uid(1, 1, 3)})})
    assert sops(store, made.id) == [uid(1, 1, 1), uid(1, 1, 3)]
    whole = store.copy((first.image_set, 1), instances={SERIES: frozenset()})
    assert len(sops(store, whole.id)) == 3


@pytest.mark.parametrize(
    ("subset", "wanted"),
    [
        ({SERIES: frozenset({"1.2.3"})}, "An instance named"),
        ({"1.2.3": frozenset()}, "A series named"),
        ({SERIES: frozenset(), "1.2.3": frozenset()}, "A series named"),
    ],
)
def test_what_the_source_does_not_have_fails_the_copy(
    store: Store, subset: dict[str, frozenset[str]], wanted: str
) -> None:
    (first,) = store.put(slice_(1))
    made = store.copy((first.image_set, 1), instances=subset)
    assert (made.version, made.workflow) == (1, Workflow.COPY_FAILED)
    assert made.message is not None
    assert made.message.startswith(f"INVALID_REQUEST: {wanted}")
    assert re.fullmatch(r"[\w -:]+", made.message)
    assert sops(store, made.id) == []
    assert store.image_set(first.image_set).workflow is Workflow.CREATED, "the source is what it was"
    store.delete(made.id)
    with pytest.raises(NotFound):
        store.image_set(made.id)


# ---------------------------------------------------------------- into an image set


def test_instances_go_into_a_consistent_image_set(store: Store) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    half = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1)})})
    made = store.copy((first.image_set, 1), (half.id, 1), instances={SERIES: frozenset({uid(1, 1, 2)})})
    assert (made.id, made.version, made.workflow, made.forced) == (half.id, 2, Workflow.COPIED, False)
    assert sops(store, made.id) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert sops(store, made.id, 1) == [uid(1, 1, 1)]
    assert [v.workflow for v in store.versions(first.image_set)] == [Workflow.COPIED]


def test_edits_above_the_instances_go_with_them_and_can_be_edited_again(store: Store) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    half = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1)})})
    store.edit(first.image_set, 1, patient(PatientName="New^Name"))
    store.edit(half.id, 1, patient(PatientName="New^Name"))
    made = store.copy((first.image_set, 2), (half.id, 2), instances={SERIES: frozenset({uid(1, 1, 2)})})
    assert made.workflow is Workflow.COPIED, made.message
    assert [value(one, "PatientName") for one in store.json(STUDY, image_set=made.id)] == ["New^Name"] * 2
    document = store.document(made.id)
    (series,) = document["Study"]["Series"].values()
    assert all("PatientName" not in instance["DICOM"] for instance in series["Instances"].values())
    store.edit(made.id, 3, patient(PatientName="Last^Name"))
    assert [value(one, "PatientName") for one in store.json(STUDY, image_set=made.id)] == ["Last^Name"] * 2


@pytest.mark.parametrize(
    ("edit", "level"),
    [
        (patient(PatientName="Other^Name"), "Patient"),
        ({"Study": {"DICOM": {"StudyDescription": "OTHER"}}}, "Study"),
        (of_series(SeriesDescription="OTHER"), "Series"),
    ],
)
def test_inconsistent_image_sets_fail_the_copy_and_use_a_version(
    store: Store, edit: dict[str, Any], level: str
) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    half = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1)})})
    store.edit(half.id, 1, edit)
    source = (first.image_set, 1)
    subset = {SERIES: frozenset({uid(1, 1, 2)})}
    before = store.document_bytes(half.id)
    failed = store.copy(source, (half.id, 2), instances=subset)
    assert (failed.version, failed.state, failed.workflow) == (3, ImageSetState.ACTIVE, Workflow.COPY_FAILED)
    assert failed.message == f"INVALID_REQUEST: {level} of SourceImageSet and DestinationImageSet don't match."
    assert store.document_bytes(half.id) == before
    with pytest.raises(VersionConflict):
        store.copy(source, (half.id, 2), instances=subset)
    shown = store.document(half.id)
    made = store.copy(source, (half.id, 3), instances=subset, force=True)
    assert (made.version, made.workflow, made.forced) == (4, Workflow.COPIED, True)
    after = store.document(half.id)
    assert after["Patient"] == shown["Patient"]
    assert after["Study"]["DICOM"] == shown["Study"]["DICOM"]
    assert sops(store, half.id) == [uid(1, 1, 1), uid(1, 1, 2)]
    one, other = store.json(STUDY, image_set=half.id)
    for keyword in ("PatientName", "StudyDescription", "SeriesDescription"):
        assert [value(x, keyword) if _tag(keyword) in x else None for x in (one, other)] in (
            [value(one, keyword)] * 2 if _tag(keyword) in one else [None] * 2,
        )


def _tag(keyword: str) -> str:
    return {"PatientName": "00100010", "StudyDescription": "00081030", "SeriesDescription": "0008103E"}[keyword]


def test_a_forced_copy_takes_over_the_series_of_its_destination(store: Store) -> None:
    first, other = (store.put(slice_(1, series=number))[0] for number in (1, 2))
    made = store.copy((other.image_set, 1), (first.image_set, 1), force=True)
    assert (made.is_primary, made.version, made.workflow) == (True, 2, Workflow.COPIED)
    assert sops(store, first.image_set) == [uid(1, 1, 1), uid(1, 2, 1)]
    (series_uid,) = store.document(first.image_set)["Study"]["Series"]
    assert series_uid == SERIES
    moved = next(one for one in store.json(STUDY, SERIES) if value(one, "SOPInstanceUID") == uid(1, 2, 1))
    assert (value(moved, "SeriesInstanceUID"), value(moved, "SeriesNumber")) == (SERIES, 1)
    assert store.sops(STUDY, uid(1, 2)) == [uid(1, 2, 1)], "the source keeps its own"
    (row,) = store.find(StudyInstanceUID=STUDY)
    assert value(row, "NumberOfStudyRelatedInstances") == 3


def test_an_instance_that_is_there_already_fails_the_copy_with_force_too(store: Store) -> None:
    (first,) = store.put(slice_(1))
    made = store.copy((first.image_set, 1))
    for version, force in ((1, False), (2, True)):
        failed = store.copy((first.image_set, 1), (made.id, version), force=force)
        assert (failed.version, failed.workflow) == (version + 1, Workflow.COPY_FAILED)
        assert failed.message == "INVALID_REQUEST: An instance of SourceImageSet is in DestinationImageSet already."


# ---------------------------------------------------------------- promotion


def test_promotion_makes_a_new_primary_where_there_is_none(store: Store) -> None:
    (first,) = store.put(slice_(1))
    beside = conflicting(store, 2)
    store.delete(first.image_set)
    made = store.copy((beside.image_set, 1), promote=True)
    assert (made.is_primary, made.version, made.workflow) == (True, 1, Workflow.COPIED)
    assert made.id not in (first.image_set, beside.image_set)
    assert store.sops(STUDY) == [uid(1, 1, 2)]
    assert [value(row, "PatientID") for row in store.find(StudyInstanceUID=STUDY)] == ["P2"]
    assert not store.image_set(beside.image_set).is_primary, "the source stays what it was"


def test_promotion_merges_into_a_consistent_primary(store: Store) -> None:
    (first,) = store.put(slice_(1))
    beside = conflicting(store, 2)
    store.edit(beside.image_set, 1, patient(PatientID="P1"))
    made = store.copy((beside.image_set, 2), promote=True)
    assert (made.id, made.version, made.workflow) == (first.image_set, 2, Workflow.COPIED), made.message
    assert [value(one, "PatientID") for one in store.json(STUDY)] == ["P1", "P1"]


def test_a_promotion_that_conflicts_fails(store: Store) -> None:
    (first,) = store.put(slice_(1, series=2))
    beside = conflicting(store, 1)
    failed = store.copy((beside.image_set, 1), promote=True)
    assert (failed.is_primary, failed.workflow) == (False, Workflow.COPY_FAILED)
    assert failed.message is not None
    assert "PatientID" in failed.message
    store.put(slice_(1))
    other = store.copy((beside.image_set, 1), promote=True)
    assert (other.version, other.workflow) == (2, Workflow.COPY_FAILED)
    assert other.message == "INVALID_REQUEST: Patient of SourceImageSet and DestinationImageSet don't match."
    assert store.sops(STUDY, uid(1, 2)) == [uid(1, 2, 1)]
    assert first.is_primary


def test_a_promotion_waits_for_an_edit_of_its_study(store: Store) -> None:
    first, _ = store.put(slice_(1), slice_(1, series=2))
    beside = conflicting(store, 2)
    store.delete(first.image_set)
    (other,) = [s.id for s in store.search().values() if s.tags["DICOMSeriesInstanceUID"] == uid(1, 2)]
    store.accept(other, 1, {"Patient": {"DICOM": {"PatientID": "P2"}}})
    accepted = store.accept_copy((beside.image_set, 1), promote=True)
    (update, copy) = store.worker.worker.queue.lease(("update", "copy"), 2)
    assert (update.kind, copy.kind) == ("update", "copy")
    operations = store.worker.worker.operations
    operations["copy"].run(copy)
    assert store.image_set(accepted.destination.id).workflow is Workflow.COPYING
    operations["update"].run(update)
    store.work()
    made = store.image_set(accepted.destination.id)
    assert (made.is_primary, made.workflow) == (True, Workflow.COPIED)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_copied_is_refused_at_once(store: Store) -> None:
    (first,) = store.put(slice_(1))
    beside = conflicting(store, 2)
    at = (first.image_set, 1)
    for call, kind in (
        (lambda: store.accept_copy((first.image_set, 2)), VersionConflict),
        (lambda: store.accept_copy(at, (beside.image_set, 2)), VersionConflict),
        (lambda: store.accept_copy((ImageSetId("f" * 32), 1)), NotFound),
        (lambda: store.accept_copy(at, (ImageSetId("f" * 32), 1)), NotFound),
        (lambda: store.accept_copy(at, at), InvalidInput),
        (lambda: store.accept_copy(at, promote=True), InvalidInput),
        (lambda: store.accept_copy((beside.image_set, 1), at, promote=True), InvalidInput),
    ):
        with pytest.raises(kind):
            call()
    assert len(store.search()) == 2
    assert store.rows("SELECT count(*) FROM set_lock") == [(0,)]


def test_a_locked_image_set_takes_part_in_no_copy(store: Store) -> None:
    (first,) = store.put(slice_(1))
    beside = conflicting(store, 2)
    store.accept(beside.image_set, 1, patient(PatientName="X"))
    for call in (
        lambda: store.accept_copy((beside.image_set, 2)),
        lambda: store.accept_copy((first.image_set, 1), (beside.image_set, 2)),
    ):
        with pytest.raises(Locked):
            call()
    assert store.image_set(first.image_set).state is ImageSetState.ACTIVE
    store.work()
    store.accept_copy((first.image_set, 1))
    for refused in (
        lambda: store.accept(first.image_set, 1, patient(PatientName="X")),
        lambda: store.do(store.web.backend.delete(store.ref(first.image_set))),
        lambda: store.accept_copy((first.image_set, 1)),
    ):
        with pytest.raises(Locked):
            refused()
    store.work()


def test_a_copy_has_a_quota_of_frames(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = store.put(slice_(1), slice_(2))
    monkeypatch.setattr(store.web.backend._copying, "_max_frames", 1)
    with pytest.raises(QuotaExceeded, match="2 frames"):
        store.accept_copy((first.image_set, 1))
    made = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1)})})
    assert made.workflow is Workflow.COPIED


# ---------------------------------------------------------------- interruptions


def test_a_copy_that_was_interrupted_runs_again(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    copy = Copying._copy
    failures = iter([True, False])

    def failing(self: Copying, *arguments: Any) -> Any:
        made = copy(self, *arguments)
        if next(failures):
            raise RuntimeError
        return made

    monkeypatch.setattr(Copying, "_copy", failing)
    made = store.copy((first.image_set, 1))
    assert made.workflow is Workflow.COPIED
    invariants.check(store)
    invariants.check_rebuild(store)


@pytest.mark.parametrize("into", [False, True])
def test_a_copy_that_never_succeeds_is_given_up(own_store: Store, monkeypatch: pytest.MonkeyPatch, into: bool) -> None:
    store = own_store
    (first,) = store.put(slice_(1))
    beside = conflicting(store, 2)

    def failing(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(Copying, "_copy", failing)
    failed = store.copy((first.image_set, 1), (beside.image_set, 1) if into else None)
    assert (failed.workflow, failed.message) == (
        Workflow.COPY_FAILED,
        "INTERNAL_ERROR: Operation was interrupted.",
    )
    invariants.check(store)
    invariants.check_rebuild(store)


def test_all_of_it_keeps_the_invariants(own_store: Store) -> None:
    store = own_store
    first, *_ = store.put(slice_(1), slice_(2), slice_(1, series=2))
    beside = conflicting(store, 3)
    made = store.copy((first.image_set, 1), instances={SERIES: frozenset({uid(1, 1, 1)})})
    store.copy((first.image_set, 1), (made.id, 1), instances={SERIES: frozenset({uid(1, 1, 2)})})
    store.copy((beside.image_set, 1), (first.image_set, 1), force=True)
    store.edit(first.image_set, 2, revert=1)
    store.edit(first.image_set, 3, revert=2)
    assert len(sops(store, first.image_set)) == 3
    store.delete(beside.image_set)
    invariants.check(store)
    invariants.check_rebuild(store)
