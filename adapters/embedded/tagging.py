"""Tags of data stores and image sets. All blocking."""

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa

from adapters.sql import tables as t
from adapters.sql.database import Database
from gateway.domain.errors import InvalidInput, NotFound
from gateway.domain.model import DatastoreStatus, ImageSetState, Resource

MAX_TAGS: Final = 50
"""Of one resource (healthimaging.md 10)."""


def read(database: Database, resource: Resource) -> dict[str, str]:
    """The tags of a resource, by key in order. Raises NotFound."""
    with database.read() as connection:
        _check(connection, resource)
        return _tags(connection, resource)


def add(database: Database, resource: Resource, tags: Mapping[str, str]) -> None:
    """Adds tags, or gives them new values. Raises NotFound, InvalidInput beyond MAX_TAGS."""
    with database.write() as connection:
        database.lock_words(connection, [f"tags {_name(resource)}"])
        _check(connection, resource)
        write(connection, resource, tags)


def remove(database: Database, resource: Resource, keys: Sequence[str]) -> None:
    """Raises NotFound for the resource; keys that are not there are no fault."""
    with database.write() as connection:
        _check(connection, resource)
        connection.execute(sa.delete(t.tag).where(t.tag.c.resource == _name(resource), t.tag.c.key.in_(keys)))


def write(connection: sa.Connection, resource: Resource, tags: Mapping[str, str]) -> None:
    """`add` inside the caller's transaction, which knows that the resource is there. Raises InvalidInput."""
    merged = {**_tags(connection, resource), **tags}
    if len(merged) > MAX_TAGS:
        raise InvalidInput(f"A resource has at most {MAX_TAGS} tags. Remove some that are not needed any more.")
    name = _name(resource)
    connection.execute(sa.delete(t.tag).where(t.tag.c.resource == name, t.tag.c.key.in_(list(tags))))
    if tags:
        connection.execute(
            sa.insert(t.tag), [{"resource": name, "key": key, "value": value} for key, value in tags.items()]
        )


def _tags(connection: sa.Connection, resource: Resource) -> dict[str, str]:
    rows = connection.execute(
        sa.select(t.tag.c.key, t.tag.c.value).where(t.tag.c.resource == _name(resource)).order_by(t.tag.c.key)
    )
    return {row.key: row.value for row in rows}


def _name(resource: Resource) -> str:
    return resource.datastore if resource.image_set is None else f"{resource.datastore}/{resource.image_set}"


def _check(connection: sa.Connection, resource: Resource) -> None:
    d, s = t.datastore, t.image_set
    query = sa.select(d.c.pk).where(d.c.id == resource.datastore, d.c.status != DatastoreStatus.DELETED)
    if resource.image_set is not None:
        query = query.join(s, s.c.datastore_pk == d.c.pk).where(
            s.c.id == resource.image_set, s.c.state != ImageSetState.DELETED
        )
    if connection.execute(query).first() is None:
        raise NotFound("There is no resource with this ARN.")
