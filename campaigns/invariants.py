"""What must hold in the embedded store's SQLite database and its blobs, read without writing (datamodel.md 3)."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

_END = 2147483647

_NONE: dict[str, str] = {
    "versions of an image set are 1 to its latest": """
        SELECT s.id, count(v.version) FROM image_set s LEFT JOIN version v ON v.image_set_pk = s.pk
        GROUP BY s.pk HAVING count(v.version) <> s.latest OR min(v.version) <> 1 OR max(v.version) <> s.latest""",
    "the visible version is the last with content of its own": """
        SELECT s.id, s.visible FROM image_set s WHERE s.visible IS NOT (SELECT max(v.version) FROM version v
        WHERE v.image_set_pk = s.pk AND v.content = v.version)""",
    "seq runs from 1 to the data store's without a gap": """
        SELECT d.datastore_pk, d.seq, count(c.seq), max(c.seq) FROM datastore_seq d
        LEFT JOIN change c ON c.datastore_pk = d.datastore_pk
        GROUP BY d.datastore_pk HAVING count(c.seq) <> d.seq OR coalesce(max(c.seq), 0) <> d.seq""",
    "time in the change feed never falls": """
        SELECT a.seq FROM change a JOIN change b ON b.datastore_pk = a.datastore_pk AND b.seq = a.seq + 1
        WHERE b.at < a.at""",
    "each version with content of its own is in the change feed under its seq": """
        SELECT v.image_set_pk, v.version FROM version v LEFT JOIN change c
        ON c.image_set_pk = v.image_set_pk AND c.version = v.version AND c.seq = v.seq
        WHERE v.content = v.version AND c.seq IS NULL""",
    "live members of an image set are its n_instances": f"""
        SELECT s.id, s.n_instances, count(m.pk) FROM image_set s
        LEFT JOIN member m ON m.image_set_pk = s.pk AND m.v_to = {_END}
        WHERE s.state <> 'DELETED' GROUP BY s.pk HAVING count(m.pk) <> s.n_instances""",
    "members of a version are its n_instances": """
        SELECT v.image_set_pk, v.version, v.n_instances, count(m.pk) FROM version v
        LEFT JOIN member m ON m.image_set_pk = v.image_set_pk AND m.v_from <= v.content AND m.v_to > v.content
        WHERE v.content IS NOT NULL GROUP BY v.image_set_pk, v.version HAVING count(m.pk) <> v.n_instances""",
    "intervals of one instance are disjoint": """
        SELECT a.pk FROM member a JOIN member b ON b.image_set_pk = a.image_set_pk AND b.sop_uid = a.sop_uid
        AND b.pk > a.pk WHERE a.v_from < b.v_to AND b.v_from < a.v_to""",
    "a version without content is under a lock": """
        SELECT v.image_set_pk, v.version FROM version v LEFT JOIN set_lock l ON l.image_set_pk = v.image_set_pk
        WHERE v.content IS NULL AND l.image_set_pk IS NULL""",
    "an image set is LOCKED where there is a lock, and nowhere else": """
        SELECT s.id FROM image_set s LEFT JOIN set_lock l ON l.image_set_pk = s.pk
        WHERE (s.state = 'LOCKED') <> (l.image_set_pk IS NOT NULL)""",
    "a lock has its work item": """
        SELECT l.image_set_pk FROM set_lock l LEFT JOIN work w ON w.pk = l.work_pk WHERE w.pk IS NULL""",
    "members are records of their own data store": """
        SELECT m.image_set_pk FROM member m JOIN record r ON r.pk = m.record_pk JOIN image_set s
        ON s.pk = m.image_set_pk WHERE r.datastore_pk <> s.datastore_pk""",
    "a study's counts are the sums over its primary image sets": """
        SELECT t.pk, t.n_series, t.n_instances, count(s.pk), sum(s.n_instances) FROM study t LEFT JOIN image_set s
        ON s.datastore_pk = t.datastore_pk AND s.study_uid = t.study_uid AND s.is_primary AND s.state <> 'DELETED'
        GROUP BY t.pk HAVING count(s.pk) <> t.n_series OR sum(s.n_instances) <> t.n_instances""",
    "each primary image set has a study, and each live one its search row": """
        SELECT s.id FROM image_set s LEFT JOIN set_index i ON i.image_set_pk = s.pk
        LEFT JOIN study t ON t.datastore_pk = s.datastore_pk AND t.study_uid = s.study_uid
        WHERE s.state <> 'DELETED' AND (i.image_set_pk IS NULL OR i.n_instances <> s.n_instances
        OR (s.is_primary AND t.pk IS NULL))""",
    "an ended job has its outcomes, and one that runs its work item": """
        SELECT j.id, j.status FROM job j LEFT JOIN work w ON w.kind = 'import'
        AND json_extract(w.subject, '$.job') = j.pk
        WHERE (j.status = 'COMPLETED' AND (j.outcomes IS NULL OR w.pk IS NOT NULL))
        OR (j.status IN ('SUBMITTED', 'IN_PROGRESS') AND w.pk IS NULL)""",
    "no import job failed": "SELECT id, message FROM job WHERE status = 'FAILED'",
    "no instance that was received failed to import": "SELECT id, n_failed FROM job WHERE n_failed > 0",
    "one staged instance makes one record": """
        SELECT spool, spool_off FROM record WHERE spool IS NOT NULL GROUP BY spool, spool_off HAVING count(*) > 1""",
    "no pixels are damaged": "SELECT pk FROM pixel WHERE state = 'damaged'",
}
"""What the rule says -> rows that break it."""


def broken(data: Path) -> list[str]:
    """The rules that do not hold over a data folder, each with an example. One snapshot; the gateway may run."""
    with closing(_open(data)) as connection:
        connection.execute("BEGIN")
        faults = [fault for rule, query in _NONE.items() for fault in _faults(rule, connection.execute(query))]
        return faults + list(_extents(connection, data))


def _faults(rule: str, rows: sqlite3.Cursor) -> Iterator[str]:
    wrong = rows.fetchall()
    if wrong:
        yield f"not so: {rule}; {len(wrong)} times, for example {wrong[0]}"


def _extents(connection: sqlite3.Connection, data: Path) -> Iterator[str]:
    """Blobs that rows name exist and are long enough for what they say."""
    query = """
        SELECT b.name, max(b.size, coalesce((SELECT max(x.off + x.len) FROM pixel x WHERE x.blob_pk = b.pk), 0))
        FROM blob b WHERE EXISTS (SELECT 1 FROM pixel x WHERE x.blob_pk = b.pk)
        OR EXISTS (SELECT 1 FROM record r WHERE r.blob_pk = b.pk)"""
    for name, size in connection.execute(query).fetchall():
        path = data / name
        try:
            if path.stat().st_size < size:
                yield f"blob {name} ends before what lies in it"
        except FileNotFoundError:
            if not name.startswith("spool/") or _is_pointed_at(data, name):
                yield f"blob {name} is missing"


def _is_pointed_at(data: Path, name: str) -> bool:
    """Whether pixels lie in a blob now: the encoder may have moved them since the snapshot, and the segment be gone."""
    with closing(_open(data)) as connection:
        query = "SELECT 1 FROM pixel JOIN blob ON blob.pk = pixel.blob_pk WHERE blob.name = ?"
        return connection.execute(query, (name,)).fetchone() is not None


def _open(data: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{data / 'gateway.db'}?mode=ro", uri=True, timeout=30)


def leftovers(data: Path) -> dict[str, int]:
    """Segments still in the spool, and files that no row names: rubbish for the sweeper, by kind."""
    with closing(_open(data)) as connection:
        known = {name for (name,) in connection.execute("SELECT name FROM blob")}
    orphans = [
        path for kind in ("pack", "frames") for path in (data / kind).glob("*") if f"{kind}/{path.name}" not in known
    ]
    return {"spool segments": len(list((data / "spool").iterdir())), "orphan files": len(orphans)}
