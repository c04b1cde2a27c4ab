"""Tombstones are lifted: what was deleted is as it was, in new versions (ports.Tombstones)."""

from typing import Any

import pytest

from gateway.domain.errors import Conflict, Gone, Locked, NotFound
from gateway.domain.model import ImageSetState, Selection, Workflow
from gateway.domain.query import Level
from tests.contract import invariants
from tests.contract.embedded import Store
from tests.contract.test_edits import SERIES, STUDY, of_instance, patient, slice_
from tests.makers import uid


def restore(store: Store, series: str | None = None, sop: str | None = None, actor: str | None = None) -> None:
    store.do(store.web.backend.restore(Selection(store.datastore, STUDY, series, sop), actor))


def test_a_series_comes_back_as_it_was(store: Store) -> None:
    first, _, other = store.put(slice_(1), slice_(2), slice_(1, series=2))
    store.edit(first.image_set, 1, patient(PatientSex="F"))
    before, found, documents = store.json(STUDY), store.find(Level.SERIES), store.document(first.image_set)
    store.delete(first.image_set)
    with pytest.raises(Gone):
        store.select(STUDY, SERIES)
    restore(store, SERIES, actor="alice")
    again = store.image_set(first.image_set)
    assert (again.version, again.state, again.workflow) == (3, ImageSetState.ACTIVE, Workflow.UPDATED)
    assert again.actor == "alice"
    assert store.json(STUDY) == before
    assert {**store.document(first.image_set)} == {**documents}
    assert len(store.find(Level.SERIES)) == len(found)
    assert store.search().keys() == {first.image_set, other.image_set}
    invariants.check(store)
    invariants.check_rebuild(store)
    store.edit(first.image_set, 3, patient(PatientSex="M"))
    assert store.image_set(first.image_set).version == 4


def test_a_study_comes_back_whole(store: Store) -> None:
    outcomes = store.put(slice_(1), slice_(1, series=2))
    for one in outcomes:
        store.delete(one.image_set)
    assert store.find() == []
    restore(store)
    (row,) = store.find()
    assert row["00201206"]["Value"] == [2]
    with pytest.raises(NotFound):
        restore(store)
    invariants.check(store)
    invariants.check_rebuild(store)


def test_of_what_was_deleted_twice_the_last_comes_back(store: Store) -> None:
    (first,) = store.put(slice_(1))
    store.delete(first.image_set)
    (second,) = store.put(slice_(1, ImageComments="anew"))
    with pytest.raises(Conflict):
        restore(store)
    store.delete(second.image_set)
    restore(store)
    assert store.search().keys() == {second.image_set}
    with pytest.raises(Conflict):
        restore(store, SERIES)
    invariants.check(store)


def test_an_instance_comes_back_with_its_edits(store: Store) -> None:
    first, *_ = store.put(slice_(1), slice_(2))
    store.edit(first.image_set, 1, of_instance(1, {"InstanceNumber": "7"}))
    before = store.json(STUDY)
    store.edit(first.image_set, 2, remove=of_instance(1))
    assert store.sops(STUDY) == [uid(1, 1, 2)]
    with pytest.raises(Gone):
        store.select(STUDY, SERIES, uid(1, 1, 1))
    restore(store, SERIES, uid(1, 1, 1))
    assert store.json(STUDY) == before
    assert [row["00201209"]["Value"] for row in store.find(Level.SERIES)] == [[2]]
    assert store.sops(STUDY, SERIES, version=3) == [uid(1, 1, 2)]
    with pytest.raises(Conflict):
        restore(store, SERIES, uid(1, 1, 1))
    with pytest.raises(NotFound):
        restore(store, SERIES, uid(1, 1, 9))
    invariants.check(store)
    invariants.check_rebuild(store)


def test_a_locked_image_set_waits(store: Store) -> None:
    first, *_ = store.put(slice_(1), slice_(2))
    store.edit(first.image_set, 1, remove=of_instance(1))
    store.accept(first.image_set, 2, patient(PatientSex="F"))
    with pytest.raises(Locked):
        restore(store, SERIES, uid(1, 1, 1))
    store.work()
    restore(store, SERIES, uid(1, 1, 1))
    assert store.image_set(first.image_set).version == 4
    invariants.check(store)


def test_nothing_was_deleted(store: Store) -> None:
    store.put(slice_(1))
    for series, sop in ((None, None), (SERIES, None), ("9.9", None), ("9.9", uid(1, 1, 1))):
        with pytest.raises(NotFound):
            restore(store, series, sop)


def test_one_that_is_not_primary_comes_back_by_its_id(store: Store) -> None:
    """A copy, and the primary image set beside it, each alone."""
    (first,) = store.put(slice_(1), slice_(2))[:1]
    copy = store.copy((first.image_set, 1))
    before = store.document(copy.id)
    for one in (first.image_set, copy.id):
        store.delete(one)

    def named(image_set: Any, sop: str | None = None) -> Selection:
        return Selection(store.datastore, STUDY, SERIES, sop, image_set)

    store.do(store.web.backend.restore(named(copy.id)))
    assert store.document(copy.id) == before
    assert store.search().keys() == {copy.id}
    assert store.find() == []
    with pytest.raises(NotFound):
        store.do(store.web.backend.restore(named(copy.id)))
    invariants.check(store)
    invariants.check_rebuild(store)
    restore(store)
    assert store.search().keys() == {copy.id, first.image_set}
    assert len(store.sops(STUDY)) == 2
    removal = {"Study": {"Series": {SERIES: {"Instances": {uid(1, 1, 1): {}}}}}}
    store.edit(copy.id, 2, remove=removal)
    assert store.image_set(copy.id).version == 3
    store.do(store.web.backend.restore(named(copy.id, uid(1, 1, 1))))
    assert store.document(copy.id) == before
    assert len(store.sops(STUDY)) == 2
    invariants.check(store)
    invariants.check_rebuild(store)
