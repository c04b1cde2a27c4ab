"""What must hold of an embedded store at any quiet moment (datamodel.md 3), read from its tables."""

import itertools
from collections import defaultdict
from typing import Any

import sqlalchemy as sa

from adapters.embedded.rebuilding import published
from adapters.sql import index
from adapters.sql import tables as t
from tests.contract.embedded import Store


def check(store: Store) -> None:
    """Asserts every invariant."""
    with store.web.database.read() as connection:
        _versions(connection)
        _members(connection)
        _primaries(connection)
        _change_feed(connection)
        _counts(connection)
        _extents(store, connection)
        _past(connection)


def _all(connection: sa.Connection, sql: str) -> list[Any]:
    return list(connection.execute(sa.text(sql)))


def _versions(connection: sa.Connection) -> None:
    numbers: dict[int, list[int]] = defaultdict(list)
    for pk, version, content in _all(
        connection, "SELECT image_set_pk, version, content FROM version ORDER BY image_set_pk, version"
    ):
        numbers[pk].append(version)
        assert content is not None, "content is null without an operation"
        assert 1 <= content <= version
    for pk, latest, visible, deleted in _all(connection, "SELECT pk, latest, visible, deleted_at FROM image_set"):
        is_purged = deleted is not None and not visible
        assert numbers[pk] == ([] if is_purged else list(range(1, latest + 1))), "versions have gaps"
        assert visible <= latest
    assert _all(connection, "SELECT * FROM set_lock") == []
    assert _all(connection, "SELECT * FROM work") == []


def _members(connection: sa.Connection) -> None:
    counts: dict[int, int] = defaultdict(int)
    intervals: dict[tuple[int, str], list[tuple[int, int]]] = defaultdict(list)
    rows = _all(connection, "SELECT image_set_pk, sop_uid, v_from, v_to FROM member ORDER BY v_from")
    for pk, sop_uid, v_from, v_to in rows:
        assert v_from < v_to, "an empty interval"
        intervals[pk, sop_uid].append((v_from, v_to))
        counts[pk] += v_to == t.END
    for some in intervals.values():
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(some)), "intervals overlap"
    for pk, n_instances in _all(connection, "SELECT pk, n_instances FROM image_set WHERE visible > 0"):
        assert counts[pk] == n_instances, "n_instances is not the live members"
    for pk, version, content, n_instances, n_frames in _all(
        connection, "SELECT image_set_pk, version, content, n_instances, n_frames FROM version"
    ):
        held = connection.execute(
            sa.text(
                "SELECT count(*), coalesce(sum(x.n_frames), 0) FROM member m JOIN record r ON r.pk=m.record_pk "
                "LEFT JOIN pixel x ON x.pk=r.pixel_pk WHERE m.image_set_pk=:pk AND m.v_from<=:n AND m.v_to>:n"
            ),
            {"pk": pk, "n": content},
        ).one()
        assert tuple(held) == (n_instances, n_frames), f"version {version} does not count its members"


def _primaries(connection: sa.Connection) -> None:
    series = _all(
        connection,
        "SELECT datastore_pk, series_uid, count(*) FROM image_set WHERE is_primary AND state<>'DELETED' "
        "GROUP BY datastore_pk, series_uid HAVING count(*)>1",
    )
    assert series == [], "two primaries of one series"
    studies: dict[tuple[int, str], set[tuple[str, ...]]] = defaultdict(set)
    for store, study, *values in _all(
        connection,
        "SELECT datastore_pk, study_uid, patient_id, study_date, accession, study_id FROM set_index WHERE is_primary",
    ):
        studies[store, study].add(tuple(values))
    assert all(len(values) == 1 for values in studies.values()), "the primaries of a study differ"


def _change_feed(connection: sa.Connection) -> None:
    for pk, seq, last_at in _all(connection, "SELECT datastore_pk, seq, last_at FROM datastore_seq"):
        rows = connection.execute(
            sa.text("SELECT seq, at FROM change WHERE datastore_pk=:pk ORDER BY seq"), {"pk": pk}
        ).all()
        assert [row.seq for row in rows] == list(range(1, seq + 1)), "the change feed has gaps"
        ats = [row.at for row in rows]
        assert ats == sorted(ats), "time runs backwards in the change feed"
        assert not ats or ats[-1] == last_at
    assert (
        _all(
            connection,
            "SELECT v.seq FROM version v LEFT JOIN change c ON c.seq=v.seq AND c.image_set_pk=v.image_set_pk AND "
            "c.version=v.version WHERE v.seq IS NOT NULL AND c.seq IS NULL",
        )
        == []
    ), "a version is not in the change feed"


def _counts(connection: sa.Connection) -> None:
    told = _all(
        connection, "SELECT datastore_pk, study_uid, n_series, n_instances FROM study ORDER BY datastore_pk, study_uid"
    )
    summed = _all(
        connection,
        "SELECT datastore_pk, study_uid, count(*), sum(n_instances) FROM image_set WHERE is_primary AND "
        "state<>'DELETED' GROUP BY datastore_pk, study_uid ORDER BY datastore_pk, study_uid",
    )
    assert [tuple(row) for row in told] == [tuple(map(_plain, row)) for row in summed]
    indexed = _all(connection, "SELECT image_set_pk, n_instances FROM set_index ORDER BY image_set_pk")
    living = _all(connection, "SELECT pk, n_instances FROM image_set WHERE state<>'DELETED' ORDER BY pk")
    assert [tuple(row) for row in indexed] == [tuple(row) for row in living]


def _plain(number: Any) -> Any:
    return number if isinstance(number, str) else int(number)


def _extents(store: Store, connection: sa.Connection) -> None:
    for name, off, length in _all(
        connection, "SELECT b.name, x.off, x.len FROM pixel x JOIN blob b ON b.pk=x.blob_pk"
    ):
        assert off + length <= (store.data / name).stat().st_size, "pixels beyond their blob"


def _past(connection: sa.Connection) -> None:
    shown = "x.datastore_pk=p.datastore_pk AND x.study_uid=p.study_uid AND x.is_primary AND x.seq_from<p.seq_to"
    assert (
        _all(
            connection,
            f"SELECT p.pk FROM study_past p WHERE NOT EXISTS (SELECT 1 FROM set_index x WHERE {shown}) "
            f"AND NOT EXISTS (SELECT 1 FROM set_index_past x WHERE {shown} AND x.seq_to>p.seq_from)",
        )
        == []
    ), "a study had a past without image sets"


def check_rebuild(store: Store, *, purged: bool = False) -> None:
    """The derived tables are what the truth makes of them. Leaves them as they are.

    What was `purged` is seen in the past of a study that it shared with others: that is not made anew.
    """
    database = store.web.database
    with database.engine.connect() as connection:
        transaction = connection.begin()
        try:
            before = _derived(connection)
            index.rebuild(connection, list(published(connection)))
            after = _derived(connection)
        finally:
            transaction.rollback()
    tails = t.text_tail.name  # those of texts that are gone stay, and of studies with one text any may have brought it
    assert set(after.pop(tails)) <= set(before.pop(tails)), f"{tails} lacks what a rebuild makes"
    for table in before.keys() - ({t.study.name, t.study_past.name} if purged else set()):
        assert after[table] == before[table], f"{table} is not what a rebuild makes"


def _derived(connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """The derived tables' rows without their keys, which a rebuild gives anew."""
    found = {}
    names = {row.pk: (row.datastore_pk, row.study_uid) for row in connection.execute(sa.select(t.study))}
    for table in t.DERIVED:
        left_out = ("pk",) if table is not t.text_tail else ("study_pk",)
        rows = []
        for row in connection.execute(sa.select(*(column for column in table.c if column.name not in left_out))):
            values = row._asdict()
            if "study_pk" in values:
                values["study_pk"] = names[values["study_pk"]]
            rows.append(tuple(values.values()))
        found[table.name] = sorted(rows, key=repr)
    return found
