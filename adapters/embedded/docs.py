"""Small content-addressed documents: equal content is stored once, however many versions show it."""

import hashlib

import sqlalchemy as sa

from adapters.embedded.chunks import Chunk
from adapters.sql import tables as t
from adapters.sql.database import Statement, insert_or_keep
from gateway.domain.errors import Corrupt

_FIND = Statement(sa.select(t.doc.c.pk).where(t.doc.c.digest == sa.bindparam("digest")))
_BODY = Statement(sa.select(t.doc.c.body, t.doc.c.plain, t.doc.c.crc).where(t.doc.c.pk == sa.bindparam("pk")))


def put_json(connection: sa.Connection, text: bytes) -> int:
    """The key of a JSON document, stored as it is."""
    return _put(connection, hashlib.sha256(b"json" + text).digest(), text, len(text), 0)


def put_chunk(connection: sa.Connection, chunk: Chunk) -> int:
    """The key of a compressed chunk, found by its text's compressed form."""
    return _put(connection, hashlib.sha256(b"chunk" + chunk.data).digest(), chunk.data, chunk.plain, chunk.crc)


def _put(connection: sa.Connection, digest: bytes, body: bytes, plain: int, crc: int) -> int:
    found = _FIND.scalar(connection, {"digest": digest})
    if found is None:
        row = {"digest": digest, "body": body, "plain": plain, "crc": crc}
        found = insert_or_keep(connection.dialect.name, t.doc).scalar(connection, row)
        if found is None:  # another transaction stored the same document just now
            found = _FIND.scalar(connection, {"digest": digest})
    return int(found)


def is_whole(digest: bytes, body: bytes, plain: int, crc: int) -> bool:
    """Whether a stored document is what was put."""
    if digest == hashlib.sha256(b"json" + body).digest():
        return True
    if digest != hashlib.sha256(b"chunk" + body).digest():
        return False
    try:
        Chunk(body, plain, crc).text()
    except Corrupt:
        return False
    return True


def get_json(connection: sa.Connection, pk: int | None) -> bytes | None:
    if pk is None:
        return None
    return bytes(_BODY.scalar(connection, {"pk": pk}))


def get_chunk(connection: sa.Connection, pk: int) -> Chunk:
    row = _BODY.run(connection, {"pk": pk}).fetchone()
    assert row is not None
    body, plain, crc = row
    return Chunk(bytes(body), plain, crc)
