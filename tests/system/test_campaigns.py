"""A seeded hundredth of each campaign (docs/campaigns.md): its clients, kills and looks work, and find nothing.

What a short run cannot show, costs that stay linear and memory that stays flat, the long ones show.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import pytest
import sqlalchemy as sa

from campaigns import associations, bounded, invariants, kill, mixed, mutations, races, requests
from campaigns.clients import Edit, Traffic
from campaigns.dimse import Association
from campaigns.faces import Faces, Unexpected
from campaigns.hostile import CANARY, Request
from campaigns.instances import JPEG, SYNTAXES, Instance, make
from campaigns.requests import Answer
from gateway import compose
from tests.running import SEVERAL, RunningGateway


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all that leave it whole: starting costs seconds."""
    started = RunningGateway(tmp_path_factory.mktemp("campaigns") / "data")
    yield started
    started.close()


def test_kill(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Six kills in two rounds, of a supervisor among others; what the first round sent is deleted in the second."""
    gateway = RunningGateway(tmp_path_factory.mktemp("kill") / "data", env=kill.ENVIRONMENT, ports=kill.lasting_ports())
    try:
        report = kill.Campaign(gateway, 3).run(6, a_round=3, tell=False)
    finally:
        gateway.close()
    assert report.is_whole, f"{report}\n{report.rounds}"
    assert (len(report.kills), len(report.rounds)) == (6, 2)
    assert sum(one.acknowledged for one in report.rounds) > 4
    assert report.rounds[1].deleted > 0
    assert {"lost          0", "duplicated    0", "half-visible  0"} <= set(str(report).splitlines())


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))])
def test_races(tmp_path: Path, database: str) -> None:
    gateway = RunningGateway(tmp_path / "data", env=SEVERAL, database=database)
    try:
        report = races.run(gateway, 20, seed=1)
    finally:
        gateway.close()
    assert not report.faults, report
    assert (report.races, sum(report.wins), sum(report.refusals.values())) == (20, 20, 20), report


def test_associations(lasting: RunningGateway) -> None:
    report = associations.run(lasting, 20, seed=1)
    assert not report.faults, report
    assert [step.last for step in report.steps][-1] == 20
    assert [count for _, count, _ in report.reads] == [20, 20, 10, 10, 10, 10]


def test_mixed(lasting: RunningGateway) -> None:
    report = mixed.run(lasting, 5, seed=2)
    assert not report.faults, report
    assert min(report.acknowledged, report.reads, report.edits) > 0, report
    assert {"supervisor", "web", "dimse", "worker"} <= report.memory.keys()


def test_bounded(lasting: RunningGateway) -> None:
    """A fiftieth of the size, within less memory: what grows with a body would be seen at its full size."""
    report = bounded.Campaign(lasting, 40 << 20, seed=4, limit_mb=350).run()
    assert not report.faults, report
    assert {"supervisor", "web", "dimse", "worker"} <= report.steps[0].peaks.keys()


def test_mutations(gateway: RunningGateway) -> None:
    """Some of these are not DICOM any more in a way that has once been a 500, or a wait."""
    report = mutations.run(gateway, 100, seed=1)
    assert not report.faults, report
    assert report.answers["STOW-RS", "200"] + report.answers["STOW-RS", "202"] > 20, report
    assert report.answers["STOW-RS", "409"] > 20, report
    assert report.answers["C-STORE", "0000"] > 20, report


def test_requests(start_gateway: Callable[..., RunningGateway]) -> None:
    """Of every kind that there is, about a dozen files."""
    gateway = start_gateway(env=requests.ENVIRONMENT)
    report = requests.run(gateway, 1000, seed=4, held=12)
    assert not report.faults, report
    assert report.count == 980, report
    statuses = Counter(status for _, status in report.answers.elements())
    assert min(statuses[status] for status in ("200", "204", "400", "404", "406", "409")) > 0, report
    assert len({kind for kind, _ in report.answers}) > 25, report


@pytest.mark.parametrize(
    ("words", "status", "kind", "body"),
    [
        ("answered 500", 500, "application/problem+json", b'{"status":500,"code":"internal"}'),
        ("answered 503", 503, "application/problem+json", b'{"status":503,"code":"unavailable"}'),
        ("no JSON", 400, "application/problem+json", b"oops"),
        ("in no form", 404, "application/json", b'{"message":"x"}'),
        ("in no form", 404, "application/problem+json", b'{"status":400,"code":"x"}'),
        ("tells what was sent", 400, "application/problem+json", b'{"status":400,"code":"x","detail":"%s"}'),
        ("", 400, "application/problem+json", b'{"status":400,"code":"invalid-input"}'),
        ("", 507, "application/problem+json", b'{"status":507,"code":"out-of-storage"}'),
        ("", 200, "application/json", b"{}"),
        ("no request id", 200, "application/json", b"{}"),
        ("no request id", 400, "application/problem+json", b'{"status":400,"code":"invalid-input"}'),
    ],
)
def test_a_wrong_answer_is_seen(words: str, status: int, kind: str, body: bytes) -> None:
    headers = {"content-type": kind} | ({} if words == "no request id" else {"x-amzn-requestid": "1"})
    said = requests.wrong(Request("read", "GET", "/"), Answer(status, headers, body.replace(b"%s", CANARY.encode())))
    assert (words in said) if words and said else (said is None and not words)


def test_what_the_campaigns_look_for_is_seen(lasting: RunningGateway) -> None:
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
    settings = invariants.settings_of(lasting)
    assert invariants.broken(settings) == []
    database = compose.open_database(settings)
    for words, harm, mend in (
        ("an import job failed", "UPDATE job SET status = 'FAILED'", "UPDATE job SET status = 'COMPLETED'"),
        ("failed to import", "UPDATE job SET n_failed = 1", "UPDATE job SET n_failed = 0"),
        (
            "rule live members",
            "UPDATE image_set SET n_instances = n_instances + 1",
            "UPDATE image_set SET n_instances = n_instances - 1",
        ),
    ):
        for statement, expected in ((harm, True), (mend, False)):
            with database.write() as connection:
                connection.execute(sa.text(statement))
            assert any(words in fault for fault in invariants.broken(settings)) == expected, words
    database.close()


def test_memory_that_grows_is_seen() -> None:
    flat = mixed.Report(8, memory={"web": [50, 90, 100, 100, 100, 100, 104, 104]})
    grows = mixed.Report(8, memory={"web": [50, 90, 100, 100, 150, 160, 170, 180]})
    assert (mixed.grown(flat.memory), len(mixed.grown(grows.memory))) == ([], 1)


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
        before = _decoders(lasting)
        assert before
        sender = threading.Thread(target=_store, args=(lasting, large))
        sender.start()
        deadline = time.monotonic() + 30
        while True:
            assert time.monotonic() < deadline
            busy = [one for one, used in _decoders(lasting).items() if used - before.get(one, 0.0) >= 0.03]
            if busy:
                busy[0].kill()
                break
        sender.join()
        _until_there(faces, [large, small])
        assert kill.half_visible(faces, large.study, {one.sop: one for one in (large, small)}) == []
        assert lasting.asked("SELECT count(*) FROM record WHERE warning IS NOT NULL") == 0


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


def _decoders(gateway: RunningGateway) -> dict[psutil.Process, float]:
    """Its decode processes, with the seconds of the processor that each has used."""
    found = {}
    for one in psutil.Process(gateway.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "adapters.codecs.sandbox" in " ".join(one.cmdline()):
                found[one] = sum(one.cpu_times()[:2])
    return found


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
