"""Undelete: tombstones are lifted, removed instances put back, at once and in one commit (ADR 15)."""

import sqlalchemy as sa

from adapters.embedded.events import Events
from adapters.embedded.versions import Publication, SetState, beside_of, load_state, number, sibling_primary
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Conflict, Locked, NotFound
from gateway.domain.grouping import key_of, study_difference
from gateway.domain.model import ImageSetState, Selection, Workflow


class Restoring:
    """Blocking, like `Mutations`."""

    def __init__(self, database: Database, events: Events, retention_s: float) -> None:
        self._database = database
        self._events = events
        self._retention_ms = int(retention_s * 1000)

    def restore(self, datastore_pk: int, selection: Selection, actor: str | None) -> None:
        """Lifts the tombstones of a study or series, or puts a removed instance back: new versions, in one commit.

        Raises NotFound where nothing was deleted that is still kept, Conflict where it is there again, or would not
        fit what is there, and Locked.
        """
        with self._database.write() as connection:
            self._database.lock_words(connection, [f"{datastore_pk}:{selection.study}"])
            if selection.sop is not None:
                publications = [_put_back(connection, datastore_pk, selection, actor)]
            else:
                publications = self._without_tombstones(connection, datastore_pk, selection, actor)
            number(connection, publications, self._events)

    def _without_tombstones(
        self, connection: sa.Connection, datastore_pk: int, selection: Selection, actor: str | None
    ) -> list[Publication]:
        """Of each series, the image set that was deleted last."""
        s, m = t.image_set, t.member
        rows = connection.execute(
            sa.select(s.c.pk, s.c.series_uid, s.c.is_primary)
            .where(*_meant(datastore_pk, selection), s.c.state == ImageSetState.DELETED)
            .where(s.c.deleted_at >= now_ms() - self._retention_ms)
            .where(sa.exists().where(m.c.image_set_pk == s.c.pk))
            .order_by(s.c.deleted_at.desc(), s.c.pk.desc())
        ).all()
        if not rows:
            raise NotFound("Nothing was deleted here that is still kept.")
        taken: set[str] = set()
        publications: list[Publication] = []
        for pk, series_uid, is_primary in rows:
            # A series has one primary image set, in whichever study.
            living = sa.select(s.c.pk).where(
                s.c.datastore_pk == datastore_pk,
                s.c.is_primary,
                s.c.series_uid == series_uid,
                s.c.state != ImageSetState.DELETED,
            )
            if is_primary and (series_uid in taken or connection.execute(living).first() is not None):
                continue
            taken.add(series_uid)
            state = load_state(connection, pk, selection.datastore)
            sibling = sibling_primary(connection, state)
            if sibling is not None:
                theirs = key_of(load_state(connection, sibling, selection.datastore).shown())
                if apart := study_difference(key_of(state.shown()), theirs):
                    raise Conflict(f"{apart} of the study was changed since: give it the old value, then undelete.")
            state.beside = beside_of(connection, pk)
            state.searchable = None
            connection.execute(sa.update(s).where(s.c.pk == pk).values(deleted_at=None))
            publications.append(_restored(state, actor))
        if not publications:
            raise Conflict("What was deleted here has been stored again since: delete that first.")
        return publications


def _put_back(connection: sa.Connection, datastore_pk: int, selection: Selection, actor: str | None) -> Publication:
    """An instance as it was when it was removed from the image set that is named, or the primary one of its series."""
    s, m, r, x = t.image_set, t.member, t.record, t.pixel
    pk = connection.execute(
        sa.select(s.c.pk).where(*_meant(datastore_pk, selection), s.c.state != ImageSetState.DELETED)
    ).scalar()
    if pk is None:
        raise NotFound("There is no such series. Where it was deleted as a whole, undelete the series.")
    if connection.execute(sa.select(t.set_lock.c.work_pk).where(t.set_lock.c.image_set_pk == pk)).first():
        raise Locked()
    row = connection.execute(
        sa.select(m, sa.func.coalesce(x.c.n_frames, 0).label("frames"))
        .join(r, r.c.pk == m.c.record_pk)
        .outerjoin(x, x.c.pk == r.c.pixel_pk)
        .where(m.c.image_set_pk == pk, m.c.sop_uid == selection.sop)
        .order_by(m.c.v_to.desc())
        .limit(1)
    ).first()
    if row is None:
        raise NotFound("There was no such instance in this series.")
    if row.v_to == t.END:
        raise Conflict("The instance is there.")
    state = load_state(connection, pk, selection.datastore)
    connection.execute(
        sa.insert(m),
        {
            "image_set_pk": pk,
            "sop_uid": selection.sop,
            "v_from": state.latest + 1,
            "v_to": t.END,
            "record_pk": row.record_pk,
            "overlay_pk": row.overlay_pk,
            "number": row.number,
            "sop_class": row.sop_class,
        },
    )
    state.n_instances += 1
    state.n_frames += row.frames
    return _restored(state, actor)


def _meant(datastore_pk: int, selection: Selection) -> list[sa.ColumnElement[bool]]:
    """Of which image sets of a study or series it is said: the one that is named, or the primary ones."""
    s = t.image_set
    meant = [s.c.datastore_pk == datastore_pk, s.c.study_uid == selection.study]
    if selection.series is not None:
        meant.append(s.c.series_uid == selection.series)
    named = selection.image_set
    return [*meant, s.c.is_primary if named is None else s.c.id == named]


def _restored(state: SetState, actor: str | None) -> Publication:
    """The next version, which shows what the state has."""
    state.latest += 1
    return Publication(state, state.latest, Workflow.UPDATED, "restore", now_ms(), principal=actor)
