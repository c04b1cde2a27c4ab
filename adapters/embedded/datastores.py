"""Data stores: made, looked up, deleted; and requests that are told twice (client tokens). All blocking."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import sqlalchemy as sa

from adapters.embedded import tagging
from adapters.embedded.events import Events
from adapters.embedded.times import from_ms
from adapters.sql import tables as t
from adapters.sql.database import Database, insert_or_keep, now_ms
from gateway.domain.errors import Conflict, InvalidInput, NotFound
from gateway.domain.ids import DatastoreId, new_id
from gateway.domain.model import Datastore, DatastoreStatus, ImageSetState, JobStatus, Resource
from gateway.domain.syntaxes import LOSSLESS

_DEFAULT_TOKEN = "imageset-gateway-default"


def create_datastore(
    database: Database,
    events: Events,
    name: str | None,
    client_token: str | None,
    storage_format: str,
    tags: Mapping[str, str] | None = None,
) -> Datastore:
    """A new data store, or with a known client token the one that it made. Raises Conflict, InvalidInput."""
    if storage_format not in LOSSLESS:
        raise InvalidInput(f"losslessStorageFormat: this gateway stores {' or '.join(LOSSLESS)} only.")
    asked = [name, storage_format, *([dict(sorted(tags.items()))] if tags else [])]
    with database.write() as connection:
        known = answered(database, connection, "CreateDatastore", client_token, asked)
        if known is not None:
            return datastore_of(connection.execute(sa.select(t.datastore).where(t.datastore.c.id == known)).one())
        datastore_id = DatastoreId(new_id())
        at = now_ms()
        row = connection.execute(
            sa.insert(t.datastore).returning(t.datastore),
            {
                "id": datastore_id,
                "name": name or datastore_id,
                "status": DatastoreStatus.ACTIVE,
                "storage_format": storage_format,
                "created_at": at,
                "updated_at": at,
            },
        ).one()
        connection.execute(sa.insert(t.datastore_seq), {"datastore_pk": row.pk, "seq": 0, "last_at": 0})
        if tags:
            tagging.write(connection, Resource(datastore_id), tags)
        answer(connection, "CreateDatastore", client_token, asked, datastore_id)
        events.datastore(connection, row, DatastoreStatus.CREATING, DatastoreStatus.ACTIVE)
    return datastore_of(row)


def default_datastore(database: Database, events: Events) -> DatastoreId:
    """The data store that exists from the first start on, and keeps its id."""
    return create_datastore(database, events, "default", _DEFAULT_TOKEN, "HTJ2K").id


def delete_datastore(database: Database, events: Events, datastore: DatastoreId) -> Datastore:
    """Deletes an empty data store, and answers it as one that is being deleted. Raises NotFound, Conflict."""
    d, s, j, k = t.datastore, t.image_set, t.job, t.client_token
    with database.write() as connection:
        # Held against jobs in the making: each of their rows refers to this one.
        row = connection.execute(sa.select(d).where(d.c.id == datastore).with_for_update()).first()
        if row is None or row.status == DatastoreStatus.DELETED:
            raise NotFound("There is no data store with this id.")
        default = sa.select(k.c.answer).where(k.c.operation == "CreateDatastore", k.c.token == _DEFAULT_TOKEN)
        if connection.execute(default).scalar() == datastore:
            raise Conflict("The default data store cannot be deleted: DICOMweb and DIMSE without another one use it.")
        used = sa.select(s.c.pk).where(s.c.datastore_pk == row.pk, s.c.state != ImageSetState.DELETED)
        if connection.execute(used.limit(1)).first() is not None:
            raise Conflict("The data store still has image sets. Delete them first.")
        running = sa.select(j.c.pk).where(
            j.c.datastore_pk == row.pk, j.c.status.in_((JobStatus.SUBMITTED, JobStatus.IN_PROGRESS))
        )
        if connection.execute(running.limit(1)).first() is not None:
            raise Conflict("Instances are being imported into the data store. Try again when that has ended.")
        row = connection.execute(
            sa.update(d)
            .where(d.c.pk == row.pk)
            .values(status=DatastoreStatus.DELETED, updated_at=now_ms())
            .returning(d)
        ).one()
        connection.execute(sa.delete(t.tag).where(t.tag.c.resource == datastore))
        events.datastore(connection, row, DatastoreStatus.DELETING, DatastoreStatus.DELETED)
    return replace(datastore_of(row), status=DatastoreStatus.DELETING)


def datastore_of(row: "sa.Row[Any]") -> Datastore:
    """A data store from its row."""
    return Datastore(
        DatastoreId(row.id),
        row.name,
        DatastoreStatus(row.status),
        from_ms(row.created_at),
        from_ms(row.updated_at),
        row.storage_format,
    )


def answered(
    database: Database, connection: sa.Connection, operation: str, client_token: str | None, asked: Any
) -> str | None:
    """The id that a request with this token was answered before; None when it is new. Raises Conflict."""
    if client_token is None:
        return None
    k = t.client_token
    database.lock_words(connection, [f"client token {client_token}"])
    known = connection.execute(
        sa.select(k.c.request_digest, k.c.answer).where(k.c.operation == operation, k.c.token == client_token)
    ).first()
    if known is None:
        return None
    if bytes(known.request_digest) != orjson.dumps(asked):
        raise Conflict("The client token was used for another request.")
    return str(known.answer)


def answer(connection: sa.Connection, operation: str, client_token: str | None, asked: Any, given: str) -> None:
    """Keeps what a request with a token was answered, in the transaction that does what it asks."""
    if client_token is not None:
        row = {"operation": operation, "token": client_token, "request_digest": orjson.dumps(asked), "answer": given}
        insert_or_keep(connection.dialect.name, t.client_token).run(connection, row)
