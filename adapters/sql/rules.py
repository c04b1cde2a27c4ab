"""What must hold between the rows of a store at any moment, as queries for what breaks it (datamodel.md 3)."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import sqlalchemy as sa

from adapters.sql.index.clauses import INSIDE
from adapters.sql.tables import END, TAIL, TAILED
from gateway.domain.query import hexadecimal


class Broken(NamedTuple):
    """A rule that does not hold: what it says, how many rows break it, and the keys of one of them."""

    rule: str
    times: int
    example: str
    derived: bool
    """Only search is wrong: the tables that `index.rebuild` makes anew."""


_JOB_OF_WORK: Final = {
    "sqlite": "json_extract(w.subject, '$.job') = j.pk",
    "postgresql": "CASE WHEN w.kind IN ('import', 'read', 'bulk') THEN (w.subject::json ->> 'job')::bigint END = j.pk",
}

# `key` names a row that breaks the rule. Counted by the database: a rule may be broken a million times.
_TRUTH: Final[dict[str, str]] = {
    "versions of an image set are 1 to its latest": """
        SELECT s.id AS key FROM image_set s LEFT JOIN version v ON v.image_set_pk = s.pk
        WHERE s.state <> 'DELETED' OR s.visible > 0
        GROUP BY s.pk, s.id, s.latest
        HAVING count(v.version) <> s.latest OR min(v.version) <> 1 OR max(v.version) <> s.latest""",
    "the visible version is the last with content of its own": """
        SELECT s.id AS key FROM image_set s WHERE s.visible <> coalesce((SELECT max(v.version) FROM version v
        WHERE v.image_set_pk = s.pk AND v.content = v.version), 0)""",
    "seq runs from 1 to the data store's without a gap": """
        SELECT d.datastore_pk AS key FROM datastore_seq d LEFT JOIN change c ON c.datastore_pk = d.datastore_pk
        GROUP BY d.datastore_pk, d.seq HAVING count(c.seq) <> d.seq OR coalesce(max(c.seq), 0) <> d.seq""",
    "time in the change feed never falls": """
        SELECT a.seq AS key FROM change a JOIN change b ON b.datastore_pk = a.datastore_pk AND b.seq = a.seq + 1
        WHERE b.at < a.at""",
    "each version with content of its own is in the change feed under its seq": """
        SELECT v.image_set_pk AS key, v.version FROM version v LEFT JOIN change c
        ON c.image_set_pk = v.image_set_pk AND c.version = v.version AND c.seq = v.seq
        WHERE v.content = v.version AND c.seq IS NULL""",
    "live members of an image set are its n_instances": f"""
        SELECT s.id AS key FROM image_set s LEFT JOIN member m ON m.image_set_pk = s.pk AND m.v_to = {END}
        WHERE s.state <> 'DELETED' GROUP BY s.pk, s.id, s.n_instances HAVING count(m.pk) <> s.n_instances""",
    "members of a version are its n_instances and n_frames": """
        SELECT v.image_set_pk AS key, v.version FROM version v JOIN image_set s ON s.pk = v.image_set_pk
        LEFT JOIN member m ON m.image_set_pk = v.image_set_pk AND m.v_from <= v.content AND m.v_to > v.content
        LEFT JOIN record r ON r.pk = m.record_pk LEFT JOIN pixel x ON x.pk = r.pixel_pk
        WHERE v.content IS NOT NULL AND s.state <> 'DELETED'
        GROUP BY v.image_set_pk, v.version, v.n_instances, v.n_frames
        HAVING count(m.pk) <> v.n_instances OR coalesce(sum(x.n_frames), 0) <> v.n_frames""",
    "intervals of one instance are disjoint": """
        SELECT a.pk AS key FROM member a JOIN member b ON b.image_set_pk = a.image_set_pk AND b.sop_uid = a.sop_uid
        AND b.pk > a.pk WHERE a.v_from < b.v_to AND b.v_from < a.v_to""",
    "an interval is not empty": "SELECT pk AS key FROM member WHERE v_from >= v_to",
    "one series has one primary image set": """
        SELECT datastore_pk AS key FROM image_set WHERE is_primary AND state <> 'DELETED'
        GROUP BY datastore_pk, series_uid HAVING count(*) > 1""",
    "an image set is of the series that its visible version says": """
        SELECT s.id AS key FROM image_set s JOIN version v ON v.image_set_pk = s.pk AND v.version = s.visible
        WHERE v.series_uid <> s.series_uid OR v.study_uid <> s.study_uid""",
    "a version without content is under a lock": """
        SELECT v.image_set_pk AS key, v.version FROM version v LEFT JOIN set_lock l ON l.image_set_pk = v.image_set_pk
        WHERE v.content IS NULL AND l.image_set_pk IS NULL""",
    "an image set is LOCKED where there is a lock, and nowhere else": """
        SELECT s.id AS key FROM image_set s LEFT JOIN set_lock l ON l.image_set_pk = s.pk
        WHERE (s.state = 'LOCKED') <> (l.image_set_pk IS NOT NULL)""",
    "a lock has its work item": """
        SELECT l.image_set_pk AS key FROM set_lock l LEFT JOIN work w ON w.pk = l.work_pk WHERE w.pk IS NULL""",
    "members are records of their own data store": """
        SELECT m.pk AS key FROM member m JOIN image_set s ON s.pk = m.image_set_pk
        LEFT JOIN record r ON r.pk = m.record_pk WHERE r.pk IS NULL OR r.datastore_pk <> s.datastore_pk""",
    "records have their pixels, in their own data store": """
        SELECT r.id AS key FROM record r LEFT JOIN pixel x ON x.pk = r.pixel_pk
        WHERE r.pixel_pk IS NOT NULL AND (x.pk IS NULL OR x.datastore_pk <> r.datastore_pk)""",
    "an ended job has its outcomes, and one that runs its work item": """
        SELECT j.id AS key FROM job j LEFT JOIN work w ON w.kind IN ('import', 'read', 'bulk') AND {job_of_work}
        WHERE (j.status = 'COMPLETED' AND ((j.outcomes IS NULL AND j.source <> 'import') OR w.pk IS NOT NULL))
        OR (j.status IN ('SUBMITTED', 'IN_PROGRESS') AND w.pk IS NULL)""",
    "one staged instance makes one record": """
        SELECT spool AS key FROM record WHERE spool IS NOT NULL GROUP BY spool, spool_off HAVING count(*) > 1""",
}
_TEXTS: Final = " UNION ALL ".join(
    (
        *(
            f"SELECT pk, datastore_pk, '{kind}' AS kind, {column} AS text FROM study"
            for kind, column in ((hexadecimal(tag), column) for tag, column in INSIDE.items())
        ),
        "SELECT study_pk, datastore_pk, kind, norm FROM study_name WHERE length(kind) = 8",
    )
)
_DERIVED: Final[dict[str, str]] = {
    "a study's counts are the sums over its primary image sets": """
        SELECT t.pk AS key FROM study t LEFT JOIN image_set s
        ON s.datastore_pk = t.datastore_pk AND s.study_uid = t.study_uid AND s.is_primary AND s.state <> 'DELETED'
        GROUP BY t.pk, t.n_series, t.n_instances
        HAVING count(s.pk) <> t.n_series OR coalesce(sum(s.n_instances), 0) <> t.n_instances""",
    "each primary image set has a study, and each live one its search row": """
        SELECT s.id AS key FROM image_set s LEFT JOIN set_index i ON i.image_set_pk = s.pk
        LEFT JOIN study t ON t.datastore_pk = s.datastore_pk AND t.study_uid = s.study_uid
        WHERE s.state <> 'DELETED' AND s.visible > 0 AND (i.image_set_pk IS NULL OR i.n_instances <> s.n_instances
        OR (s.is_primary AND t.pk IS NULL))""",
    "searches find what stands inside a study's texts": f"""
        SELECT t.pk AS key FROM ({_TEXTS}) t LEFT JOIN text_tail l
        ON l.datastore_pk = t.datastore_pk AND l.kind = t.kind AND l.text = t.text
        AND l.tail = CASE WHEN length(t.text) > {TAILED} THEN '' ELSE substr(t.text, 1, {TAIL}) END
        WHERE t.text <> '' AND l.text IS NULL""",
    "a search row is of an image set that is there": """
        SELECT i.image_set_pk AS key FROM set_index i LEFT JOIN image_set s ON s.pk = i.image_set_pk
        WHERE s.pk IS NULL OR s.state = 'DELETED' OR s.series_uid <> i.series_uid""",
}

RULES: Final = (*_TRUTH, *_DERIVED)
"""What each of them says."""


def broken(connection: sa.Connection) -> Iterator[Broken | None]:
    """Each rule in turn: None where it holds. Give it one snapshot, `Database.snapshot`, while somebody writes."""
    for rules, derived in ((_TRUTH, False), (_DERIVED, True)):
        for rule, query in rules.items():
            text = query.replace("{job_of_work}", _JOB_OF_WORK[connection.dialect.name])
            found = connection.execute(sa.text(f"SELECT count(*), min(key) FROM ({text}) AS broken")).one()
            yield Broken(rule, found[0], str(found[1]), derived) if found[0] else None
