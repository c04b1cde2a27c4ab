"""The room that deleted image sets took in files is given back, and what is needed still is found where it moved to."""

import fcntl
import os
from contextlib import ExitStack
from typing import Any

import pytest

from gateway.domain.model import Workflow
from tests.contract.embedded import Store
from tests.contract.test_keeping import verify
from tests.contract.test_worker import _crc
from tests.makers import instance, pixels, uid

COUNT = 6


@pytest.fixture
def store(own_store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Six studies of one instance each, encoded, in files that nobody writes to any more; no grace, no retention."""
    sweeper = own_store.worker.worker.sweeper
    monkeypatch.setattr(sweeper, "_grace_ms", -1000)
    monkeypatch.setattr(sweeper, "_retention_ms", -1000)
    for study in range(1, COUNT + 1):
        own_store.put(instance(uid(study), uid(study, 1), uid(study, 1, 1), pixels(study), InstanceNumber=1))
    own_store.encode()
    own_store.blobs.close()
    return own_store


def sweep(store: Store, times: int = 4) -> None:
    for _ in range(times):
        store.worker.worker.sweeper.sweep()


def sizes(store: Store) -> dict[str, int]:
    return {
        f"{kind}/{entry.name}": entry.stat().st_size
        for kind in ("pack", "frames")
        for entry in os.scandir(store.data / kind)
    }


def delete(store: Store, *studies: int) -> None:
    for study in studies:
        (entry,) = store.select(uid(study)).entries
        store.delete(entry.image_set)


def shown(store: Store, study: int) -> list[Any]:
    """All that can be had of a study."""
    (entry,) = store.select(uid(study)).entries
    frame = store.do(store.web.backend.frame(entry, 0))
    assert frame.crc32 == _crc(study)
    (heads,) = store.web.backend.heads([entry])
    return [store.document_bytes(entry.image_set), store.json(uid(study)), heads, bytes(frame.data)]


def test_files_of_which_little_is_needed_are_written_anew(store: Store) -> None:
    old = sizes(store)
    before = [shown(store, study) for study in (2, 5)]
    delete(store, 1, 3, 4, 6)
    sweep(store)
    new = sizes(store)
    assert not old.keys() & new.keys()
    assert 0 < sum(new.values()) < sum(old.values()) / 2
    assert [shown(store, study) for study in (2, 5)] == before  # by readers that knew the old places
    report = verify(store)
    assert report.is_sound, report.faults
    sweep(store)
    assert sizes(store) == new
    (entry,) = store.select(uid(2)).entries
    store.edit(entry.image_set, 1, {"Patient": {"DICOM": {"PatientName": "New^Name"}}})
    assert store.image_set(entry.image_set).workflow == Workflow.UPDATED


def test_files_of_which_most_is_needed_stay(store: Store) -> None:
    old = sizes(store)
    delete(store, 1, 3)
    sweep(store)
    assert sizes(store) == old


def test_files_that_may_still_grow_stay(store: Store) -> None:
    old = sizes(store)
    delete(store, 1, 3, 4, 6)
    with ExitStack() as writers:
        for name in old:  # as the process does that appends to it
            fcntl.flock(writers.enter_context(open(store.data / name, "rb")), fcntl.LOCK_EX)
        sweep(store)
        assert sizes(store) == old
    sweep(store)
    assert not old.keys() & sizes(store).keys()


def test_young_files_stay(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sizes(store)
    delete(store, 1, 3, 4, 6)
    monkeypatch.setattr(store.worker.worker.sweeper, "_grace_ms", 3_600_000)
    sweep(store)
    assert sizes(store) == old


def test_a_damaged_file_stays_and_costs_no_other(store: Store) -> None:
    """For `verify` to tell of, and to mend."""
    delete(store, 1, 3, 4, 6)
    (pack,) = [name for name in sizes(store) if name.startswith("pack/")]
    (frames,) = [name for name in sizes(store) if name.startswith("frames/")]
    os.truncate(store.data / frames, 10)
    sweep(store)
    assert frames in sizes(store)
    assert pack not in sizes(store)
    assert not verify(store).is_sound


def test_who_dies_between_the_new_file_and_the_rows_changes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = sizes(store)
    before = [shown(store, study) for study in (2, 5)]
    delete(store, 1, 3, 4, 6)

    def died(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as context:
        context.setattr("adapters.embedded.compacting.store_blob", died)
        with pytest.raises(ZeroDivisionError):
            sweep(store)
    assert old.items() <= sizes(store).items()
    assert [shown(store, study) for study in (2, 5)] == before
    assert verify(store).is_sound
    store.blobs.close()
    sweep(store, 6)
    assert not old.keys() & sizes(store).keys()
    assert [shown(store, study) for study in (2, 5)] == before


def test_moved_while_it_was_read(store: Store) -> None:
    """Rows that were read before it, bytes that are read after it: the old file is there until its grace is over."""
    (entry,) = store.select(uid(2)).entries
    before = shown(store, 2)
    delete(store, 1, 3, 4, 6)
    store.worker.worker.sweeper.sweep()
    (heads,) = store.web.backend.heads([entry])
    assert heads == before[2]
