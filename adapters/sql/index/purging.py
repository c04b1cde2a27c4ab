"""What searches of the past know of image sets that can no longer be restored goes with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from sqlalchemy import Connection

from adapters.sql.index.clauses import INSIDE, NAMES
from adapters.sql.index.rows import tails_of, texts_of
from adapters.sql.index.session import Session
from gateway.domain.query import hexadecimal

_COLUMNS: Final = {hexadecimal(tag): column for tag, column in INSIDE.items()}
_NAMES: Final = frozenset(map(hexadecimal, NAMES))

_Text = tuple[int, str, str]
"""Of a study: data store, kind, text; as in `tables.text_tail`."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What only studies were called that go with their last image set."""

    texts: frozenset[_Text]
    seen: dict[int, int]
    """Data store -> its sequence number when the past was looked through."""


def forgotten(connection: Connection, image_sets: Sequence[int]) -> Forgotten:
    """What purging these would leave without a study, now or ever. Give it a snapshot: it may read the whole past."""
    session = Session(connection)
    seen = dict(session.all("SELECT datastore_pk, seq FROM datastore_seq"))
    doomed = _doomed(session, image_sets)
    texts = _texts(row[1:] for row in doomed)
    pks = {pk for pk, *_ in doomed}
    for datastore_pk in {text[0] for text in texts}:
        past = session.all("SELECT pk, datastore_pk, attrs FROM study_past WHERE datastore_pk=?", datastore_pk)
        texts -= _texts(row[1:] for row in past if row[0] not in pks)
    return Forgotten(frozenset(texts), seen)


def forget_texts(connection: Connection, forgotten: Forgotten) -> None:
    """Takes the tails of these texts away, but of those that a study has got since.

    In a transaction of its own, before the purge's: it holds up whoever enters a text, and must not wait for them.
    """
    session = Session(connection)
    if session.postgres:  # who has found a text there, and did not enter it, has committed when this is granted
        session.run("LOCK TABLE text_tail IN SHARE ROW EXCLUSIVE MODE")
    texts = set(forgotten.texts)
    for datastore_pk in {text[0] for text in texts}:
        since = "SELECT datastore_pk, attrs FROM study_past WHERE datastore_pk=? AND seq_to>?"
        texts -= _texts(session.all(since, datastore_pk, forgotten.seen[datastore_pk]))
    for datastore_pk, kind, text in sorted(texts):
        if not _is_current(session, datastore_pk, kind, text):
            session.run(
                f"DELETE FROM text_tail WHERE datastore_pk=? AND kind=? AND tail {session.among} AND text=?",
                *(datastore_pk, kind, session.values(sorted(set(tails_of(text)))), text),
            )


def purge_set(connection: Connection, image_set_pk: int) -> None:
    """Takes away how an image set was found in the past, and its study where no other image set was of it then."""
    session = Session(connection)
    session.run_each("DELETE FROM study_past WHERE pk=?", [(pk,) for pk, *_ in _doomed(session, [image_set_pk])])
    session.run("DELETE FROM set_index_past WHERE image_set_pk=?", image_set_pk)


def _doomed(session: Session, image_sets: Sequence[int]) -> Sequence[tuple[int, int, str]]:
    """Key, data store and attributes of each row of a study's past in which it had none but these image sets."""
    sets = session.values(image_sets)
    at_once = "x.datastore_pk=p.datastore_pk AND x.study_uid=p.study_uid AND x.is_primary AND x.seq_from<p.seq_to"
    return session.all(
        "SELECT DISTINCT p.pk, p.datastore_pk, p.attrs FROM study_past p JOIN set_index_past s "
        f"ON s.datastore_pk=p.datastore_pk AND s.study_uid=p.study_uid WHERE s.image_set_pk {session.among} "
        f"AND NOT EXISTS (SELECT 1 FROM set_index x WHERE {at_once}) "
        f"AND NOT EXISTS (SELECT 1 FROM set_index_past x WHERE {at_once} AND x.seq_to>p.seq_from "
        f"AND NOT (x.image_set_pk {session.among}))",
        *(sets, sets),
    )


def _texts(rows: Iterable[tuple[int, str]]) -> set[_Text]:
    """What studies are called, by the data stores and the attributes of rows."""
    return {(datastore_pk, *text) for datastore_pk, attrs in rows for text in texts_of(orjson.loads(attrs))}


def _is_current(session: Session, datastore_pk: int, kind: str, text: str) -> bool:
    if kind in _NAMES:
        of_name = "SELECT 1 FROM study_name WHERE datastore_pk=? AND kind=? AND norm=? LIMIT 1"
        return bool(session.all(of_name, datastore_pk, kind, text))
    of_study = f"SELECT 1 FROM study WHERE datastore_pk=? AND {_COLUMNS[kind]}=? LIMIT 1"
    return bool(session.all(of_study, datastore_pk, text))
