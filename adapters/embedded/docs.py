"""Small content-addressed documents: equal content is stored once, however many versions show it."""

import hashlib

import sqlalchemy as sa

from adapters.embedded.chunks import Chunk
from adapters.sql import tables as t
from adapters.sql.database import insert_or_keep


def put_json(connection: sa.Connection, text: bytes) -> int:
    """The key of a JSON document, stored as it is."""
    return _put(connection, hashlib.sha256(b"json" + text).digest(), text, len(text), 0)


def put_chunk(connection: sa.Connection, chunk: Chunk) -> int:
    """The key of a compressed chunk, found by its text's compressed form."""
    return _put(connection, hashlib.sha256(b"chunk" + chunk.data).digest(), chunk.data, chunk.plain, chunk.crc)


def _put(connection: sa.Connection, digest: bytes, body: bytes, plain: int, crc: int) -> int:
    found = connection.execute(sa.select(t.doc.c.pk).where(t.doc.c.digest == digest)).scalar()
    if found is None:
        found = connection.execute(
            insert_or_keep(connection, t.doc).returning(t.doc.c.pk),
            {"digest": digest, "body": body, "plain": plain, "crc": crc},
        ).scalar()
        if found is None:  # another transaction stored the same document just now
            found = connection.execute(sa.select(t.doc.c.pk).where(t.doc.c.digest == digest)).scalar_one()
    return int(found)


def get_json(connection: sa.Connection, pk: int | None) -> bytes | None:
    if pk is None:
        return None
    body: bytes = connection.execute(sa.select(t.doc.c.body).where(t.doc.c.pk == pk)).scalar_one()
    return bytes(body)


def get_chunk(connection: sa.Connection, pk: int) -> Chunk:
    body, plain, crc = connection.execute(
        sa.select(t.doc.c.body, t.doc.c.plain, t.doc.c.crc).where(t.doc.c.pk == pk)
    ).one()
    return Chunk(bytes(body), plain, crc)
