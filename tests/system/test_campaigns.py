"""A seeded hundredth of each campaign (docs/campaigns.md): its clients, kills and looks work, and find nothing.

What a short run cannot show, costs that stay linear and memory that stays flat, the long ones show.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from campaigns import associations, invariants, kill, mixed
from campaigns.clients import Edit, Traffic
from campaigns.faces import Faces, Unexpected
from campaigns.instances import SYNTAXES, make
from tests.running import RunningGateway

Start = Callable[..., RunningGateway]


@pytest.mark.parametrize("seed", [3])
def test_kill(gateway: RunningGateway, seed: int) -> None:
    """One point of a hundred: the worker, in the midst of imports, edits and decoding."""
    report = kill.Campaign(gateway, seed).run(1, tell=False)
    (point,) = report.points
    assert report.is_whole, f"{report}\n{point}"
    assert point.victim == "worker"
    assert point.acknowledged > 2
    assert {"lost          0", "duplicated    0", "half-visible  0"} <= set(str(report).splitlines())


def test_associations(gateway: RunningGateway) -> None:
    report = associations.run(gateway, 20, seed=1)
    assert not report.faults, report
    assert [step.last for step in report.steps][-1] == 20
    assert [count for _, count, _ in report.reads] == [20, 20, 10, 10, 10, 10]


def test_mixed(gateway: RunningGateway) -> None:
    report = mixed.run(gateway, 5, seed=1)
    assert not report.faults, report
    assert min(report.acknowledged, report.reads, report.edits) > 0, report
    assert {"serve", "web", "dimse", "worker"} <= report.memory.keys()


def test_what_the_campaigns_look_for_is_seen(gateway: RunningGateway) -> None:
    """Each way to be wrong, made by hand: a campaign that could not fail would prove nothing."""
    sent = [make(9, 1, 1, number, syntax) for number, syntax in enumerate(SYNTAXES, 1)]
    known = {one.sop: one for one in sent}
    with Faces(gateway) as faces:
        assert faces.stow(sent) == set(known)
        study = sent[0].study
        assert kill.half_visible(faces, study, known) == []
        never = make(9, 1, 1, 99)
        assert kill.half_visible(faces, study, {**known, never.sop: never})
        other = make(9, 1, 1, 98)
        swapped = {**known, sent[0].sop: other}
        assert any(fault.startswith("other pixels") for fault in kill.half_visible(faces, study, swapped))
        (image_set,) = (one["imageSetId"] for one in faces.image_sets(study))
        assert kill.edits_kept(faces, [Edit(image_set, 2, "Series", "x")])[1]
        assert kill.edits_kept(faces, [Edit(image_set, 1, "Series", "x")])[1]
    assert invariants.broken(gateway.data) == []
    gateway.stop()
    for rule, harm in {
        "n_instances": "UPDATE image_set SET n_instances = 7",
        "to its latest": "UPDATE image_set SET latest = 2",
        "seq runs": "UPDATE datastore_seq SET seq = seq + 1",
        "under a lock": "UPDATE version SET content = NULL",
        "LOCKED where": "UPDATE image_set SET state = 'LOCKED'",
        "ended job": "UPDATE job SET status = 'SUBMITTED'",
        "missing": "UPDATE blob SET name = name || 'x'",
        "ends before": "UPDATE blob SET size = size + 100000000",
    }.items():
        assert any(rule in fault for fault in _after(gateway.data, harm)), rule


def _after(data: Path, harm: str) -> list[str]:
    """The rules that are broken after a statement, which is then taken back."""
    original = (data / "gateway.db").read_bytes()
    try:
        with closing(sqlite3.connect(data / "gateway.db")) as connection:
            connection.execute(harm)
            connection.commit()
        return invariants.broken(data)
    finally:
        (data / "gateway.db").write_bytes(original)


def test_memory_that_grows_is_seen() -> None:
    flat = mixed.Report(8, memory={"web": [50, 90, 100, 100, 100, 100, 104, 104]})
    grows = mixed.Report(8, memory={"web": [50, 90, 100, 100, 150, 160, 170, 180]})
    assert (mixed.grown(flat), len(mixed.grown(grows))) == ([], 1)


def test_a_client_that_is_refused_says_so(gateway: RunningGateway) -> None:
    """Unlike a lost connection, which a campaign expects."""
    traffic = Traffic()
    with Faces(gateway) as faces:
        study = make(9, 2, 1, 1).study
        with pytest.raises(Unexpected) as refused:
            faces.metadata(study, study)
    traffic.unexpected(refused.value)
    assert traffic.refused
    assert not traffic.interruptions
