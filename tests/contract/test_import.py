"""Imports: which image set an instance joins, and which version of it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from adapters.embedded.publishing import Resent
from gateway.domain.errors import NotFound
from gateway.domain.ids import DatastoreId, ImageSetId
from gateway.domain.model import ImageSetState, PageRequest, Resource, Workflow
from gateway.domain.query import Level
from tests.contract.embedded import Store, value
from tests.makers import instance, pixels, uid

STUDY, SERIES = uid(1), uid(1, 1)


def slice_(number: int, **attributes: Any) -> bytes:
    return instance(STUDY, SERIES, uid(1, 1, number), pixels(number), InstanceNumber=number, **attributes)


def test_the_first_instance_makes_version_1_of_a_primary(store: Store) -> None:
    (outcome,) = store.put(slice_(1))
    assert (outcome.version, outcome.is_primary, outcome.identical, outcome.failure) == (1, True, False, None)
    assert (outcome.study_uid, outcome.series_uid, outcome.sop_uid) == (STUDY, SERIES, uid(1, 1, 1))
    made = store.image_set(outcome.image_set)
    assert (made.version, made.state, made.workflow, made.is_primary) == (
        1,
        ImageSetState.ACTIVE,
        Workflow.CREATED,
        True,
    )


def test_the_same_content_again_makes_no_version(store: Store) -> None:
    (first,) = store.put(slice_(1))
    (again,) = store.put(slice_(1))
    assert (again.image_set, again.version, again.identical) == (first.image_set, 1, True)
    assert len(store.versions(first.image_set)) == 1
    (job,) = store.rows("SELECT n_imported, n_identical, n_failed FROM job ORDER BY pk DESC LIMIT 1")
    assert job == (0, 1, 0)


def test_other_content_makes_a_version_and_the_old_one_stays(store: Store) -> None:
    (first,) = store.put(slice_(1, ImageComments="before"))
    (second,) = store.put(slice_(1, ImageComments="after"))
    assert (second.image_set, second.version, second.identical) == (first.image_set, 2, False)
    assert store.image_set(first.image_set).workflow == Workflow.IMPORTED
    (now,) = store.json(STUDY, SERIES)
    (before,) = store.json(STUDY, SERIES, version=1)
    assert (value(before, "ImageComments"), value(now, "ImageComments")) == ("before", "after")


def test_other_pixels_make_a_version(store: Store) -> None:
    store.put(slice_(1))
    (second,) = store.put(instance(STUDY, SERIES, uid(1, 1, 1), pixels(99), InstanceNumber=1))
    assert second.version == 2
    old = store.select(STUDY, version=1, series=SERIES).entries[0]
    new = store.select(STUDY).entries[0]
    assert store.do(store.web.backend.frame(old, 0)).data == pixels(1).tobytes()
    assert store.do(store.web.backend.frame(new, 0)).data == pixels(99).tobytes()


def test_two_contents_of_one_sop_uid_in_one_job_make_two_versions(store: Store) -> None:
    one, two = store.put(slice_(1, PatientName="First^A"), slice_(1, PatientName="Second^B"))
    assert (one.version, two.version) == (1, 2)
    for version, name in ((1, "First^A"), (2, "Second^B")):
        (read,) = store.json(STUDY, SERIES, version=version)
        assert value(read, "PatientName") == name
        assert store.document(one.image_set, version)["Patient"]["DICOM"]["PatientName"] == name
    assert [made.version for made in store.versions(one.image_set)] == [2, 1]


def test_versions_of_one_transaction_keep_their_own_levels_and_counts(store: Store) -> None:
    jobs = [store.submit(slice_(n, PatientName=f"Name^{n}", SeriesDescription=f"{n}")) for n in (1, 2, 3)]
    assert store.work_once()  # one lease, one transaction
    outcomes = [store.outcomes(job)[0] for job in jobs]
    assert [o.version for o in outcomes] == [1, 2, 3]
    image_set = outcomes[0].image_set
    for n in (1, 2, 3):
        document = store.document(image_set, n)
        assert document["Patient"]["DICOM"]["PatientName"] == f"Name^{n}"
        series = document["Study"]["Series"][SERIES]
        assert series["DICOM"]["SeriesDescription"] == str(n)
        assert len(series["Instances"]) == n
    rows = store.rows(
        "SELECT v.version, v.n_instances, v.n_frames FROM version v JOIN image_set s ON s.pk=v.image_set_pk "
        "WHERE s.id=:id ORDER BY 1",
        id=image_set,
    )
    assert rows == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]


def test_an_instance_of_a_known_series_makes_the_next_version(store: Store) -> None:
    store.put(slice_(1))
    (second,) = store.put(slice_(2))
    assert second.version == 2
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]
    assert store.sops(STUDY, SERIES, version=1) == [uid(1, 1, 1)]


def test_one_job_makes_one_version(store: Store) -> None:
    outcomes = store.put(*(slice_(n) for n in range(1, 6)))
    assert {o.version for o in outcomes} == {1}
    assert len(store.sops(STUDY)) == 5


def test_a_job_of_several_series_and_studies(store: Store) -> None:
    files = [
        instance(uid(1, a), uid(1, a, b), uid(1, a, b, 1), SeriesNumber=b, InstanceNumber=1)
        for a in (1, 2)
        for b in (1, 2)
    ]
    outcomes = store.put(*files)
    assert len({o.image_set for o in outcomes}) == 4
    assert all(o.is_primary and o.version == 1 for o in outcomes)
    assert len(store.find(Level.STUDY)) == 2
    assert len(store.find(Level.SERIES)) == 4


@pytest.mark.parametrize(
    ("resent", "version", "identical"), [("version", 1, True), ("reject", 1, True), ("always", 2, False)]
)
def test_identical_content_under_each_policy(
    policy: Callable[[Resent], Store], resent: Resent, version: int, identical: bool
) -> None:
    store = policy(resent)
    store.put(slice_(1))
    (again,) = store.put(slice_(1))
    assert (again.version, again.identical, again.failure) == (version, identical, None)
    assert len(store.sops(STUDY)) == 1


@pytest.mark.parametrize(("resent", "versions"), [("version", 2), ("always", 2), ("reject", 1)])
def test_other_content_under_each_policy(policy: Callable[[Resent], Store], resent: Resent, versions: int) -> None:
    store = policy(resent)
    (first,) = store.put(slice_(1, ImageComments="before"))
    (second, other) = store.put(slice_(1, ImageComments="after"), slice_(2))
    assert (second.failure == 0x0111) == (resent == "reject")
    assert other.failure is None
    (read,) = store.json(STUDY, SERIES, uid(1, 1, 1))
    assert value(read, "ImageComments") == ("before" if resent == "reject" else "after")
    assert len(store.versions(first.image_set)) == 2  # slice 2 makes one in any case
    if resent == "reject":
        assert "ACC1" not in second.message
        assert "nothing was replaced" in second.message


@pytest.mark.parametrize(
    ("keyword", "other"),
    [
        ("PatientID", "P2"),
        ("StudyDate", "20240103"),
        ("AccessionNumber", "ACC2"),
        ("StudyID", "S2"),
        ("SeriesNumber", 2),
        ("PatientID", None),
    ],
)
def test_a_conflict_lands_beside_the_primary(store: Store, keyword: str, other: Any) -> None:
    (first,) = store.put(slice_(1))
    (beside,) = store.put(slice_(2, **{keyword: other}))
    assert (beside.is_primary, beside.version, beside.failure) == (False, 1, None)
    assert beside.image_set != first.image_set
    assert store.sops(STUDY) == [uid(1, 1, 1)]
    assert store.sops(STUDY, image_set=beside.image_set) == [uid(1, 1, 2)]
    assert store.image_set(beside.image_set).is_primary is False
    (listed,) = store.do(store.web.backend.conflicts(store.datastore, PageRequest())).items
    assert (listed.image_set, listed.attribute, listed.instances) == (beside.image_set, keyword, 1)
    assert (listed.study_uid, listed.series_uid, listed.source) == (STUDY, SERIES, "stow")
    (study,) = store.find(Level.STUDY)
    assert value(study, "NumberOfStudyRelatedInstances") == 1
    assert store.search()[store.ref(beside.image_set).image_set].is_primary is False


def test_a_conflict_of_the_study_reaches_a_new_series(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(instance(STUDY, uid(1, 2), uid(1, 2, 1), PatientID="P2"))
    assert beside.is_primary is False
    with pytest.raises(NotFound):
        store.select(STUDY, uid(1, 2))


def test_a_conflicting_instance_again_is_identical(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(slice_(2, PatientID="P2"))
    (again,) = store.put(slice_(2, PatientID="P2"))
    assert (again.image_set, again.version, again.identical, again.is_primary) == (beside.image_set, 1, True, False)
    assert len(store.do(store.web.backend.conflicts(store.datastore, PageRequest())).items) == 1
    (third,) = store.put(slice_(3, PatientID="P2"))
    assert third.image_set != beside.image_set


def test_one_series_uid_in_two_studies(store: Store) -> None:
    store.put(slice_(1))
    (beside,) = store.put(instance(uid(2), SERIES, uid(2, 1, 1)))
    assert beside.is_primary is False
    (listed,) = store.do(store.web.backend.conflicts(store.datastore, PageRequest())).items
    assert listed.attribute == "StudyInstanceUID"
    assert [value(row, "StudyInstanceUID") for row in store.find(Level.STUDY)] == [STUDY]


def test_of_groups_that_conflict_in_one_job_the_first_by_key_becomes_primary(store: Store) -> None:
    later, earlier = store.put(slice_(1, StudyDate="20240109"), slice_(2, StudyDate="20240101"))
    assert (earlier.is_primary, later.is_primary) == (True, False)


def test_outcomes_come_in_the_order_staged(store: Store) -> None:
    order = [5, 3, 9, 1, 7]
    outcomes = store.put(*(slice_(n, PatientID="P2" if n == 9 else "P1") for n in order))
    assert [o.sop_uid for o in outcomes] == [uid(1, 1, n) for n in order]


def test_empty_and_absent_group_alike(store: Store) -> None:
    store.put(slice_(1, AccessionNumber=""))
    (second,) = store.put(slice_(2, AccessionNumber=None))
    assert (second.is_primary, second.version) == (True, 2)
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 2)]


def test_padding_is_no_difference(store: Store) -> None:
    (first,) = store.put(slice_(1, PatientID="P1 "))
    (second,) = store.put(slice_(2, PatientID="P1"))
    assert second.image_set == first.image_set


def test_an_import_waits_for_a_locked_set_and_then_succeeds(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    held = store.worker.worker.queue.lease(("update",), 1)
    job = store.submit(slice_(2))
    assert store.work_once()
    assert store.do(store.web.backend.result(job, 0)) is None
    assert store.rows("SELECT attempts FROM work WHERE kind='import'") == [(0,)]
    store.worker.worker.operations[held[0].kind].run(held[0])
    store.work()
    (second,) = store.outcomes(job)
    assert (second.version, second.image_set) == (3, first.image_set)
    assert len(store.sops(STUDY)) == 2


def test_an_import_of_another_series_waits_for_an_edit_of_its_study(store: Store) -> None:
    """Decided by what the study is about to be, not by what it was: its primaries stay of one patient."""
    (first,) = store.put(slice_(1))
    store.accept(first.image_set, 1, {"Patient": {"DICOM": {"PatientID": "P9"}}}, study=True)
    held = store.worker.worker.queue.lease(("update",), 1)
    job = store.submit(instance(STUDY, uid(1, 2), uid(1, 2, 1)))
    store.work_once()
    store.worker.worker.operations[held[0].kind].run(held[0])
    store.work()
    (late,) = store.outcomes(job)
    assert late.is_primary is False
    assert [value(row, "PatientID") for row in store.find(Level.SERIES, PatientID="P9")] == ["P9"]


def test_what_cannot_be_read_fails_alone(store: Store) -> None:
    good, bad = store.put(slice_(1), b"\0" * 200)
    assert good.failure is None
    assert bad.failure == 0xC000
    assert bad.message
    (job,) = store.rows("SELECT n_imported, n_failed FROM job ORDER BY pk DESC LIMIT 1")
    assert job == (1, 1)


def test_an_instance_that_breaks_the_importer_fails_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    preparer = store.worker.worker.preparer
    prepare = preparer._prepare

    def breaking(origin: Any, *rest: Any) -> Any:
        if origin.name == "1":
            raise ZeroDivisionError
        return prepare(origin, *rest)

    monkeypatch.setattr(preparer, "_prepare", breaking)
    one, two, three = store.put(slice_(1), slice_(2), slice_(3))
    assert (one.failure, two.failure, three.failure) == (None, 0x0110, None)
    assert store.sops(STUDY) == [uid(1, 1, 1), uid(1, 1, 3)]


def test_another_study_than_the_request_named_is_refused(store: Store) -> None:
    (refused,) = store.put(slice_(1), study_uid=uid(7))
    assert refused.failure == 0xA901
    with pytest.raises(NotFound):
        store.select(STUDY)


def test_origin_reaches_version_and_record(store: Store) -> None:
    (first,) = store.put(slice_(1), source="dimse", called_ae="GATEWAY", calling_ae="MODALITY", principal="alice")
    assert store.image_set(first.image_set).actor == "alice"
    assert store.rows(
        "SELECT r.called_ae, r.calling_ae, v.calling_ae FROM record r JOIN version v ON v.job_pk=r.job_pk "
        "JOIN image_set s ON s.pk=v.image_set_pk WHERE s.id=:id",
        id=first.image_set,
    ) == [("GATEWAY", "MODALITY", "MODALITY")]


def test_data_stores_are_apart(store: Store) -> None:
    (first,) = store.put(slice_(1))
    other = replace(store, datastore=store.do(store.web.backend.create_datastore("other")).id)
    (second,) = other.put(slice_(1))
    assert (second.version, second.identical) == (1, False)
    assert second.image_set != first.image_set
    with pytest.raises(NotFound):
        other.image_set(first.image_set)
    with pytest.raises(NotFound):
        other.document(first.image_set)


def test_a_nul_inside_of_text_is_no_fault_on_any_engine(store: Store) -> None:
    """PostgreSQL has no text that holds one. Matching leaves it out; no UID or id has one."""
    study = uid(51)
    odd = {"PatientID": "A\0B", "PatientName": "Nul^Mid\0dle", "AccessionNumber": "X\0Y", "StudyDescription": "a\0b"}
    (outcome,) = store.put(instance(study, uid(51, 1), uid(51, 1, 1), **odd))
    assert outcome.failure is None
    for keyword, text in odd.items():
        for asked in (text, text.replace("\0", "")):
            assert [value(row, "StudyInstanceUID") for row in store.find(**{keyword: asked})] == [study]
    assert store.json(study)[0]["00100020"]["Value"] == ["A\0B"]
    assert store.document(outcome.image_set)["Patient"]["DICOM"]["PatientID"] == "A\0B"
    assert store.edit(outcome.image_set, 1, {"Patient": {"DICOM": {"PatientSex": "O"}}}).version == 2
    for call in (
        lambda: store.select(f"{study}\0"),
        lambda: store.select(study, f"{uid(51, 1)}\0"),
        lambda: store.image_set(ImageSetId("0\0")),
        lambda: store.do(store.web.backend.get_datastore(DatastoreId("\0"))),
        lambda: store.do(store.web.backend.tags(Resource(DatastoreId("\0")))),
    ):
        with pytest.raises(NotFound):
            call()
