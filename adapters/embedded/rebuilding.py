"""Search made anew from the truth: every version as it was published, in the order of the change feed."""

from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa

from adapters.embedded import docs
from adapters.embedded.versions import beside_of, load_state, shown_attributes
from adapters.sql import index
from adapters.sql import tables as t
from adapters.sql.database import Database
from gateway.domain.edits import Overlay
from gateway.domain.ids import DatastoreId


def rebuild(database: Database) -> int:
    """Makes the derived tables anew in one transaction, the past with them; how many publications they are made of.

    Writers wait meanwhile; readers see the old answers until it is done.
    """
    with database.write() as connection:
        changes = list(published(connection))
        index.rebuild(connection, changes)
    return len(changes)


def published(connection: sa.Connection) -> Iterator[tuple[int, index.SetRow | int]]:
    """What `index.rebuild` takes: (seq, row of the image set as published, or the key of a deleted one) in order.

    The derived tables are not looked at: they may be lost. What was purged has no past.
    """
    stores = {pk: DatastoreId(name) for pk, name in connection.execute(sa.select(t.datastore.c.pk, t.datastore.c.id))}
    s, v = t.image_set, t.version
    purged = set(connection.execute(sa.select(s.c.pk).where(s.c.deleted_at.is_not(None), s.c.visible == 0)).scalars())
    beside: dict[int, dict[str, Any]] = {}
    for change in connection.execute(sa.select(t.change).order_by(t.change.c.datastore_pk, t.change.c.seq)).all():
        pk = change.image_set_pk
        if pk in purged:
            continue
        if change.kind == "delete":
            yield change.seq, pk
            continue
        if pk not in beside:
            beside[pk] = beside_of(connection, pk)
        state = load_state(connection, pk, stores[change.datastore_pk])
        row = connection.execute(sa.select(v).where(v.c.image_set_pk == pk, v.c.version == change.version)).one()
        state.levels = orjson.loads(docs.get_json(connection, row.levels_doc) or b"{}")
        state.overlay = Overlay.from_json(docs.get_json(connection, row.overlay_doc) or b"{}")
        state.beside = beside[pk]
        state.searchable = None
        yield (
            change.seq,
            index.SetRow(
                image_set_pk=pk,
                datastore_pk=state.datastore_pk,
                is_primary=state.is_primary,
                study_uid=row.study_uid,
                series_uid=row.series_uid,
                attributes=shown_attributes(state),
                n_instances=row.n_instances,
                created_at=state.created_at,
                updated_at=row.at,
            ),
        )
