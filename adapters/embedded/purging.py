"""What a deleted image set held goes when it can no longer be restored; the tombstone stays.

Rows only: its members and versions, and of records, documents and edits what nothing else shows. Pixels and files that
are then without use are the sweeper's.
"""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy as sa

from adapters.embedded.chunks import deflate
from adapters.sql import index
from adapters.sql import tables as t
from adapters.sql.database import Database

_SETS = 10
_SLICE = 1000


def purge(database: Database, before: int) -> None:
    """Purges some of the image sets that were deleted before a time, in milliseconds; none of them half."""
    s = t.image_set
    overdue = sa.select(s.c.pk).where(t.DELETED_NOT_PURGED, s.c.deleted_at < before).order_by(s.c.deleted_at)
    with database.snapshot() as connection:
        pks = list(connection.execute(overdue.limit(_SETS)).scalars())
        if not pks:
            return
        forgotten = index.forgotten(connection, pks)
    if forgotten.texts:
        with database.write() as connection:
            index.forget_texts(connection, forgotten)
    for pk in pks:
        with database.write() as connection:
            if connection.execute(overdue.where(s.c.pk == pk).with_for_update()).first() is not None:
                _purge_set(connection, pk)


def _purge_set(connection: sa.Connection, pk: int) -> None:
    m, v = t.member, t.version
    members = connection.execute(sa.select(m.c.record_pk, m.c.overlay_pk).where(m.c.image_set_pk == pk)).all()
    versions = connection.execute(
        sa.select(v.c.levels_doc, v.c.overlay_doc, v.c.head_doc).where(v.c.image_set_pk == pk)
    ).all()
    for table in (m, v, t.conflict):
        connection.execute(sa.delete(table).where(table.c.image_set_pk == pk))
    for some in _slices(row.record_pk for row in members):
        connection.execute(sa.delete(t.record).where(t.record.c.pk.in_(some), _not_of(t.record, m.c.record_pk)))
    for some in _slices(row.overlay_pk for row in members):
        text = secrets.token_hex(16).encode()
        digest = hashlib.sha256(b"{}\0" + text).digest()
        node = deflate(text)
        empty = {"changes": "{}", "attrs": None, "node": node.data, "plain": node.plain, "crc": node.crc}
        _drop(connection, t.overlay, some, [m.c.overlay_pk], {"digest": digest, **empty})
    for some in _slices(doc for row in versions for doc in row):
        body = f'"{secrets.token_hex(16)}"'.encode()
        digest = hashlib.sha256(b"json" + body).digest()
        empty = {"body": body, "plain": len(body), "crc": 0}
        _drop(connection, t.doc, some, [v.c.levels_doc, v.c.overlay_doc, v.c.head_doc], {"digest": digest, **empty})
    index.purge_set(connection, pk)
    connection.execute(sa.update(t.image_set).where(t.image_set.c.pk == pk).values(visible=0))


def _drop(
    connection: sa.Connection,
    table: sa.Table,
    pks: Sequence[int],
    references: Sequence[sa.Column[int]],
    empty: dict[str, object],
) -> None:
    """Deletes rows that nothing refers to. The one with the highest key is emptied instead: SQLite would give its key
    to the next, and other processes remember by the key what it said."""
    last = connection.execute(sa.select(sa.func.max(table.c.pk))).scalar_one_or_none()
    unused = [table.c.pk.in_(pks), *(_not_of(table, reference) for reference in references)]
    connection.execute(sa.update(table).where(table.c.pk == last, *unused).values(**empty))
    connection.execute(sa.delete(table).where(table.c.pk != last, *unused))


def _not_of(table: sa.Table, reference: sa.Column[int]) -> sa.ColumnElement[bool]:
    return ~sa.exists().where(reference == table.c.pk)


def _slices(keys: Iterable[int | None]) -> Iterator[list[int]]:
    """Each key once."""
    known = sorted({key for key in keys if key is not None})
    for start in range(0, len(known), _SLICE):
        yield known[start : start + _SLICE]
