"""What every operation on an image set shares: its lock, and the version that it begins and perhaps fails.

Accepting inserts the lock, the version without content and the work item in one transaction; the worker's commit, or
its giving up, frees the lock again (healthimaging.md 13).
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from adapters.embedded.events import Events
from adapters.sql import tables as t
from adapters.sql.database import Database, insert_or_keep, now_ms
from adapters.sql.queue import WorkItem
from gateway.domain.errors import Locked, NotFound
from gateway.domain.model import ImageSetRef, ImageSetState, Workflow


def living_set(datastore_pk: int, ref: ImageSetRef) -> "sa.Select[Any]":
    return sa.select(t.image_set).where(
        t.image_set.c.datastore_pk == datastore_pk,
        t.image_set.c.id == ref.image_set,
        t.image_set.c.state != ImageSetState.DELETED,
    )


def locate(
    database: Database, connection: sa.Connection, datastore_pk: int, refs: Sequence[ImageSetRef]
) -> "list[sa.Row[Any]]":
    """The rows of image sets, with their studies serialised against imports. Raises NotFound."""

    def rows() -> "list[sa.Row[Any]]":
        found = [connection.execute(living_set(datastore_pk, ref)).first() for ref in refs]
        if None in found:
            raise NotFound("There is no image set with this id.")
        return [row for row in found if row is not None]

    database.lock_words(connection, [f"{datastore_pk}:{row.study_uid}" for row in rows()])
    return rows()


def lock_set(connection: sa.Connection, image_set_pk: int, work_pk: int) -> None:
    """Raises Locked when another operation holds the image set."""
    row = {"image_set_pk": image_set_pk, "work_pk": work_pk}
    if insert_or_keep(connection.dialect.name, t.set_lock).scalar(connection, row) is None:
        raise Locked()


def unlock(connection: sa.Connection, item: WorkItem) -> None:
    """Frees the image sets that an operation holds."""
    connection.execute(sa.delete(t.set_lock).where(t.set_lock.c.work_pk == item.pk))


def begin_version(
    connection: sa.Connection,
    row: "sa.Row[Any]",
    workflow: Workflow,
    work_pk: int,
    at: int,
    *,
    forced: bool,
    principal: str | None,
    reason: str | None = None,
) -> None:
    """Locks an image set and gives it its next version, without content yet. Raises Locked."""
    lock_set(connection, row.pk, work_pk)
    connection.execute(
        sa.insert(t.version),
        {
            "image_set_pk": row.pk,
            "version": row.latest + 1,
            "content": None,
            "state": ImageSetState.LOCKED,
            "workflow": workflow,
            "forced": forced,
            "study_uid": row.study_uid,
            "series_uid": row.series_uid,
            "n_instances": row.n_instances,
            "n_frames": row.n_frames,
            "at": at,
            "principal": principal,
            "reason": reason,
        },
    )
    connection.execute(
        sa.update(t.image_set)
        .where(t.image_set.c.pk == row.pk)
        .values(latest=row.latest + 1, state=ImageSetState.LOCKED, workflow=workflow, message=None, accessed_at=at)
    )


def fail_version(
    connection: sa.Connection,
    pk: int,
    version: int,
    workflow: Workflow,
    message: str,
    events: Events,
    datastore: str,
) -> None:
    """Ends a version that was begun: its number stays used, and it shows what the one before showed."""
    s, v = t.image_set, t.version
    row = connection.execute(sa.select(s.c.id, s.c.visible, s.c.is_primary).where(s.c.pk == pk)).one()
    content = connection.execute(
        sa.select(v.c.content).where(v.c.image_set_pk == pk, v.c.version == row.visible)
    ).scalar_one()
    values = {"state": ImageSetState.ACTIVE, "workflow": workflow, "message": message}
    connection.execute(
        sa.update(v).where(v.c.image_set_pk == pk, v.c.version == version).values(content=content, **values)
    )
    connection.execute(sa.update(s).where(s.c.pk == pk).values(updated_at=now_ms(), **values))
    events.image_set(
        connection, datastore, row.id, version, workflow, is_primary=row.is_primary, state=ImageSetState.ACTIVE
    )
