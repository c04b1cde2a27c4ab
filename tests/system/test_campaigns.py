"""A seeded hundredth of each campaign (docs/campaigns.md): its clients, kills and looks work, and find nothing.

What a short run cannot show, costs that stay linear and memory that stays flat, the long ones show.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest

from campaigns import associations, invariants, kill, mixed
from campaigns.clients import Edit, Traffic
from campaigns.dimse import Association
from campaigns.faces import Faces, Unexpected
from campaigns.instances import JPEG, SYNTAXES, Instance, make
from tests.running import RunningGateway


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all that leave it whole: starting costs seconds."""
    started = RunningGateway(tmp_path_factory.mktemp("campaigns") / "data")
    yield started
    started.stop()


def test_kill(lasting: RunningGateway) -> None:
    """One point of a hundred: the worker, in the midst of imports, edits and decoding."""
    report = kill.Campaign(lasting, 3).run(1, tell=False)
    (point,) = report.points
    assert report.is_whole, f"{report}\n{point}"
    assert point.victim == "worker"
    assert point.acknowledged > 2
    assert {"lost          0", "duplicated    0", "half-visible  0"} <= set(str(report).splitlines())


def test_associations(lasting: RunningGateway) -> None:
    report = associations.run(lasting, 20, seed=1)
    assert not report.faults, report
    assert [step.last for step in report.steps][-1] == 20
    assert [count for _, count, _ in report.reads] == [20, 20, 10, 10, 10, 10]


def test_mixed(lasting: RunningGateway) -> None:
    report = mixed.run(lasting, 5, seed=2)
    assert not report.faults, report
    assert min(report.acknowledged, report.reads, report.edits) > 0, report
    assert {"serve", "web", "dimse", "worker"} <= report.memory.keys()


def test_what_the_campaigns_look_for_is_seen(lasting: RunningGateway, tmp_path: Path) -> None:
    """Each way to be wrong, made by hand: a campaign that could not fail would prove nothing."""
    sent = [make(9, 1, 1, number, syntax) for number, syntax in enumerate(SYNTAXES, 1)]
    known = {one.sop: one for one in sent}
    with Faces(lasting) as faces:
        assert faces.stow(sent[:1]) | faces.stow(sent[1:]) == set(known)
        study = sent[0].study
        assert kill.half_visible(faces, study, known) == []
        never = make(9, 1, 1, 99)
        assert kill.half_visible(faces, study, {**known, never.sop: never})
        swapped = {**known, sent[0].sop: make(9, 1, 1, 98)}
        assert any(fault.startswith("other pixels") for fault in kill.half_visible(faces, study, swapped))
        (image_set,) = (one["imageSetId"] for one in faces.image_sets(study))
        assert kill.edits_kept(faces, [Edit(image_set, 2, "Series", "x")])[1]
        assert kill.edits_kept(faces, [Edit(image_set, 1, "Series", "x")])[1]
    assert invariants.broken(lasting.data) == []
    for kind in ("pack", "frames", "spool"):
        (tmp_path / kind).symlink_to(lasting.data / kind)
    for rule, harm in {
        "live members": "UPDATE image_set SET n_instances = 7",
        "to its latest": "UPDATE image_set SET latest = latest + 1",
        "visible version": "UPDATE image_set SET visible = visible + 1",
        "seq runs": "UPDATE datastore_seq SET seq = seq + 1",
        "under its seq": "UPDATE version SET seq = seq + 1",
        "time in": "UPDATE change SET at = -seq",
        "members of a version": "UPDATE version SET n_instances = n_instances + 1",
        "disjoint": "UPDATE member SET v_to = v_from + 1; INSERT INTO member SELECT pk + 100000, image_set_pk, "
        "sop_uid, v_from, v_to + 1, record_pk, overlay_pk, number, sop_class FROM member",
        "under a lock": "UPDATE version SET content = NULL",
        "LOCKED where": "UPDATE image_set SET state = 'LOCKED'",
        "work item": "INSERT INTO set_lock SELECT pk, 0 FROM image_set",
        "counts are the sums": "UPDATE study SET n_instances = n_instances + 1",
        "search row": "DELETE FROM set_index",
        "ended job": "UPDATE job SET status = 'SUBMITTED'",
        "job failed": "UPDATE job SET status = 'FAILED'",
        "failed to import": "UPDATE job SET n_failed = 1",
        "damaged": "UPDATE pixel SET state = 'damaged'",
        "missing": "UPDATE blob SET name = name || 'x'",
        "ends before": "UPDATE blob SET size = size + 100000000",
    }.items():
        assert any(rule in fault for fault in _after(lasting.data, tmp_path, harm)), rule


def _after(data: Path, folder: Path, harm: str) -> list[str]:
    """The rules that are broken after a statement, in a copy of the database."""
    copy = folder / "gateway.db"
    for path in folder.glob("gateway.db*"):
        path.unlink()
    with closing(sqlite3.connect(data / "gateway.db")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.executescript(harm)
    return invariants.broken(folder)


def test_memory_that_grows_is_seen() -> None:
    flat = mixed.Report(8, memory={"web": [50, 90, 100, 100, 100, 100, 104, 104]})
    grows = mixed.Report(8, memory={"web": [50, 90, 100, 100, 150, 160, 170, 180]})
    assert (mixed.grown(flat), len(mixed.grown(grows))) == ([], 1)


def test_a_client_that_is_refused_says_so(lasting: RunningGateway) -> None:
    """Unlike a lost connection, which a campaign expects."""
    traffic = Traffic()
    with Faces(lasting) as faces:
        study = make(9, 2, 1, 1).study
        with pytest.raises(Unexpected) as refused:
            faces.metadata(study, study)
    traffic.unexpected(refused.value)
    assert traffic.refused
    assert not traffic.interruptions


def test_a_decode_process_killed_in_the_midst_costs_nothing(lasting: RunningGateway) -> None:
    """By hand, or by a kernel short of memory: the file is as good as it was."""
    large, small = make(9, 3, 1, 1, JPEG, (3000, 3000)), make(9, 3, 2, 1, JPEG)
    with Faces(lasting) as faces:
        assert faces.stow([small]) == {small.sop}  # starts the decode process
        (decoder,) = (
            one
            for one in psutil.Process(lasting.pid).children(recursive=True)
            if "adapters.codecs.sandbox" in " ".join(one.cmdline())
        )
        before = sum(decoder.cpu_times()[:2])
        sender = threading.Thread(target=_store, args=(lasting, large))
        sender.start()
        deadline = time.monotonic() + 30
        while sum(decoder.cpu_times()[:2]) - before < 0.03:
            assert time.monotonic() < deadline
        decoder.kill()
        sender.join()
        _until_there(faces, [large, small])
        assert kill.half_visible(faces, large.study, {one.sop: one for one in (large, small)}) == []
        assert _warnings(lasting.data) == {None}


def test_a_fault_that_passes_costs_nothing_that_was_acknowledged(gateway: RunningGateway) -> None:
    """No pack can be written for longer than a job is tried; then all is well again."""
    packs = gateway.data / "pack"
    if packs.exists():
        packs.rename(gateway.data / "pack.away")
    packs.write_text("in the way")
    instance = make(9, 4, 1, 1)
    assert _store(gateway, instance) == 0
    deadline = time.monotonic() + 10
    while gateway.log.read_text().count('"worker.failed"') < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    gateway.stop()
    packs.unlink()
    if (gateway.data / "pack.away").exists():
        (gateway.data / "pack.away").rename(packs)
    gateway.restart()
    with Faces(gateway) as faces:
        _until_there(faces, [instance])
        assert kill.half_visible(faces, instance.study, {instance.sop: instance}) == []


def _store(gateway: RunningGateway, instance: Instance) -> int:
    association = Association(gateway.dimse, gateway.aet)
    status = association.store(instance)
    association.release()
    return status


def _until_there(faces: Faces, instances: list[Instance]) -> None:
    deadline = time.monotonic() + 30
    while len(faces.rows(f"/studies/{instances[0].study}/instances")) < len(instances):
        assert time.monotonic() < deadline, faces.queue()
        time.sleep(0.05)


def _warnings(data: Path) -> set[int | None]:
    with closing(sqlite3.connect(f"file:{data / 'gateway.db'}?mode=ro", uri=True)) as connection:
        return {warning for (warning,) in connection.execute("SELECT warning FROM record")}
