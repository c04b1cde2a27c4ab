"""Edits, reverts and deletes: accepted at once under a lock, applied by a worker, published in one commit.

Applying is pure until its commit and guarded by the lock, so that an interrupted operation simply runs again
(healthimaging.md 13). Copies are in `copying`, what is put back at once in `restoring`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from adapters.embedded.events import Events
from adapters.embedded.locking import begin_version, fail_version, living_set, locate, lock_set, unlock
from adapters.embedded.members import Instances
from adapters.embedded.processes import Presence
from adapters.embedded.times import from_ms
from adapters.embedded.versions import Publication, SetState, load_state, number, sibling_primary, store_docs
from adapters.sql import index
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import FIRST, WorkItem, WorkQueue, enqueue
from gateway.domain import edits
from gateway.domain.edits import MetadataUpdate, Overlay
from gateway.domain.errors import NotFound, UnacceptableUpdate, VersionConflict
from gateway.domain.grouping import key_of, study_difference
from gateway.domain.ids import DatastoreId
from gateway.domain.model import ImageSet, ImageSetRef, ImageSetState, Workflow
from gateway.ports import BlobStore


@dataclass(frozen=True, slots=True)
class EditRules:
    """The switches of healthimaging.md 8."""

    strict_removal: bool = False
    legacy_uids: bool = False


class Mutations:
    """Both halves: `accept_*` for the process that was asked, `run` for the worker. Blocking."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        queue: WorkQueue,
        presence: Presence,
        rules: EditRules,
        events: Events,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._queue = queue
        self._presence = presence
        self._rules = rules
        self._events = events

    # ------------------------------------------------------------ accepting

    def accept_update(self, datastore_pk: int, ref: ImageSetRef, expected: int, update: MetadataUpdate) -> ImageSet:
        """Raises NotFound, VersionConflict, Locked."""
        with self._database.write() as connection:
            (target,) = locate(self._database, connection, datastore_pk, [ref])
            if target.latest != expected:
                raise VersionConflict()
            if update.revert_to is not None:
                v = t.version
                there = sa.select(v.c.content).where(v.c.image_set_pk == target.pk, v.c.version == update.revert_to)
                if connection.execute(there).first() is None:
                    raise NotFound("The image set has no version with the number to revert to.")
            sets = [target]
            if update.study and update.revert_to is None:
                sets += self._siblings(connection, datastore_pk, target)
            work_pk = enqueue(
                connection,
                "update",
                {
                    "store": ref.datastore,
                    "sets": [[row.pk, row.latest + 1] for row in sets],
                    "update": _plain(update),
                },
                priority=FIRST,
            )
            at = now_ms()
            for row in sets:
                workflow = Workflow.UPDATING if row is target else Workflow.UPDATING_FOR_STUDY_CONSISTENCY
                begin_version(
                    connection,
                    row,
                    workflow,
                    work_pk,
                    at,
                    forced=update.force,
                    principal=update.actor,
                    reason=update.reason,
                )
                self._events.image_set(
                    connection,
                    ref.datastore,
                    row.id,
                    row.latest + 1,
                    workflow,
                    is_primary=row.is_primary,
                    state=ImageSetState.LOCKED,
                )
        self._presence.ring("worker")
        return ImageSet(
            datastore=ref.datastore,
            id=ref.image_set,
            version=expected + 1,
            state=ImageSetState.LOCKED,
            workflow=Workflow.UPDATING,
            is_primary=target.is_primary,
            created_at=from_ms(target.created_at),
            updated_at=from_ms(at),
            forced=update.force,
        )

    def preview(
        self, datastore_pk: int, ref: ImageSetRef, update: MetadataUpdate, before: dict[str, Any]
    ) -> dict[str, Any]:
        """The document that an update would make of `before`, the latest one. Nothing is written.

        Raises NotFound, UnacceptableUpdate. Not for reverts: their document is there.
        """
        with self._database.read() as connection:
            target = connection.execute(living_set(datastore_pk, ref)).first()
            if target is None:
                raise NotFound("There is no image set with this id.")
            state = load_state(connection, target.pk, ref.datastore)
            plan = self._plan(state, Instances(connection, self._blobs, state.pk), update, sibling=False)
        return edits.planned(plan, state.levels, before)

    def accept_delete(self, datastore_pk: int, ref: ImageSetRef, actor: str | None = None) -> ImageSet:
        """Raises NotFound, Locked."""
        with self._database.write() as connection:
            (target,) = locate(self._database, connection, datastore_pk, [ref])
            work_pk = enqueue(
                connection,
                "delete",
                {"store": ref.datastore, "set": target.pk, "workflow": target.workflow, "actor": actor},
                priority=FIRST,
            )
            lock_set(connection, target.pk, work_pk)
            connection.execute(
                sa.update(t.image_set)
                .where(t.image_set.c.pk == target.pk)
                .values(state=ImageSetState.LOCKED, workflow=Workflow.DELETING)
            )
            self._events.image_set(
                connection,
                ref.datastore,
                target.id,
                target.latest,
                Workflow.DELETING,
                is_primary=target.is_primary,
                state=ImageSetState.LOCKED,
            )
        self._presence.ring("worker")
        return ImageSet(
            datastore=ref.datastore,
            id=ref.image_set,
            version=target.latest,
            state=ImageSetState.LOCKED,
            workflow=Workflow.DELETING,
            is_primary=target.is_primary,
            created_at=from_ms(target.created_at),
            updated_at=from_ms(target.updated_at),
        )

    def _siblings(self, connection: sa.Connection, datastore_pk: int, target: "sa.Row[Any]") -> "Sequence[sa.Row[Any]]":
        return connection.execute(
            sa.select(t.image_set)
            .where(
                t.image_set.c.datastore_pk == datastore_pk,
                t.image_set.c.study_uid == target.study_uid,
                t.LIVING_PRIMARY,
                t.image_set.c.pk != target.pk,
            )
            .order_by(t.image_set.c.pk)
        ).all()

    # ------------------------------------------------------------ applying

    def run(self, item: WorkItem) -> None:
        """Applies an accepted operation. Raises LeaseLost, or whatever makes it come back later."""
        if item.kind == "delete":
            self._delete(item)
            return
        update = MetadataUpdate(**item.subject["update"])
        try:
            with self._database.write() as connection:
                self._queue.finish(connection, item)
                publications = [
                    self._apply(connection, item, update, pk, version, sibling=bool(place))
                    for place, (pk, version) in enumerate(item.subject["sets"])
                ]
                number(connection, publications, self._events)
                unlock(connection, item)
        except UnacceptableUpdate as fault:
            self._fail(item, fault.detail)

    def give_up(self, item: WorkItem, detail: str) -> None:
        """After its last attempt the operation becomes *_FAILED and the image set is free again."""
        if item.kind == "update":
            self._fail(item, "INTERNAL_ERROR: Operation was interrupted.")
            return
        with self._database.write() as connection:
            self._queue.finish(connection, item)
            connection.execute(
                sa.update(t.image_set)
                .where(t.image_set.c.pk == item.subject["set"])
                .values(state=ImageSetState.ACTIVE, workflow=item.subject["workflow"])
            )
            unlock(connection, item)

    def _fail(self, item: WorkItem, message: str) -> None:
        """The number stays used; the version shows what the one before showed."""
        with self._database.write() as connection:
            self._queue.finish(connection, item)
            for pk, version in item.subject["sets"]:
                fail_version(
                    connection, pk, version, Workflow.UPDATE_FAILED, message, self._events, item.subject["store"]
                )
            unlock(connection, item)

    def _apply(
        self,
        connection: sa.Connection,
        item: WorkItem,
        update: MetadataUpdate,
        pk: int,
        version: int,
        *,
        sibling: bool,
    ) -> Publication:
        state = load_state(connection, pk, DatastoreId(item.subject["store"]))
        if update.revert_to is not None:
            self._revert(connection, state, update.revert_to, version)
        else:
            self._edit(connection, state, update, version, sibling=sibling)
        state.latest = version
        return Publication(
            state,
            version,
            Workflow.UPDATED,
            "update",
            now_ms(),
            forced=update.force,
            principal=update.actor,
            reason=update.reason,
            insert_version=False,
        )

    def _edit(
        self, connection: sa.Connection, state: SetState, update: MetadataUpdate, version: int, *, sibling: bool
    ) -> None:
        instances = Instances(connection, self._blobs, state.pk)
        plan = self._plan(state, instances, update, sibling=sibling)
        state.overlay = plan.overlay
        state.study_uid = plan.study_uid or state.study_uid
        state.series_uid = plan.series_uid or state.series_uid
        store_docs(connection, state)
        touched = plan.instance_changes.keys() | plan.removed
        opened = []
        for sop_uid in sorted(touched):
            member = instances.members[sop_uid]
            connection.execute(sa.update(t.member).where(t.member.c.pk == member.pk).values(v_to=version))
            if sop_uid in plan.removed:
                state.n_instances -= 1
                state.n_frames -= member.frames
                continue
            new_uid = plan.rekeyed.get(sop_uid, sop_uid)
            opened.append(
                {
                    "image_set_pk": state.pk,
                    "sop_uid": new_uid,
                    "v_from": version,
                    "v_to": t.END,
                    "record_pk": member.record_pk,
                    "overlay_pk": instances.overlay(member, new_uid, plan.instance_changes[sop_uid]),
                    "number": instances.number(member, plan.instance_changes[sop_uid]),
                    "sop_class": plan.instance_changes[sop_uid].set.get("SOPClassUID", member.sop_class),
                }
            )
        if opened:
            connection.execute(sa.insert(t.member), opened)

    def _plan(self, state: SetState, instances: Instances, update: MetadataUpdate, *, sibling: bool) -> edits.Plan:
        return edits.plan(
            update,
            edits.ImageSetContent(
                is_primary=state.is_primary,
                sibling_primaries=sibling_primary(instances.connection, state) is not None,
                levels=state.levels,
                overlay=state.overlay,
                series_uid=state.series_uid,
                instances=instances,
            ),
            sibling=sibling,
            strict_removal=self._rules.strict_removal,
            legacy_uids=self._rules.legacy_uids,
        )

    def _revert(self, connection: sa.Connection, state: SetState, to: int, version: int) -> None:
        v, m = t.version, t.member
        content = connection.execute(
            sa.select(v.c.content).where(v.c.image_set_pk == state.pk, v.c.version == to)
        ).scalar_one()
        row = connection.execute(sa.select(v).where(v.c.image_set_pk == state.pk, v.c.version == content)).one()
        of_set = m.c.image_set_pk == state.pk
        held = sa.and_(m.c.v_from <= content, m.c.v_to > content)
        connection.execute(sa.update(m).where(of_set, m.c.v_to == t.END, sa.not_(held)).values(v_to=version))
        again = sa.select(
            m.c.image_set_pk,
            m.c.sop_uid,
            sa.literal(version),
            sa.literal(t.END),
            m.c.record_pk,
            m.c.overlay_pk,
            m.c.number,
            m.c.sop_class,
        ).where(of_set, held, m.c.v_to != t.END)
        connection.execute(
            sa.insert(m).from_select(
                ["image_set_pk", "sop_uid", "v_from", "v_to", "record_pk", "overlay_pk", "number", "sop_class"], again
            )
        )
        state.levels = orjson.loads(_json(connection, row.levels_doc))
        state.overlay = Overlay.from_json(_json(connection, row.overlay_doc)) if row.overlay_doc else Overlay()
        state.levels_doc, state.overlay_doc, state.head_doc = row.levels_doc, row.overlay_doc, row.head_doc
        state.study_uid, state.series_uid = row.study_uid, row.series_uid
        state.n_instances, state.n_frames = row.n_instances, row.n_frames
        state.searchable = None
        sibling = sibling_primary(connection, state)
        if sibling is not None:
            theirs = key_of(load_state(connection, sibling, state.datastore_id).shown())
            apart = study_difference(key_of(state.shown()), theirs)
            if apart:
                raise UnacceptableUpdate(
                    f"{apart} must be the same in all primary image sets of the study: that version had another."
                )

    def _delete(self, item: WorkItem) -> None:
        pk = item.subject["set"]
        with self._database.write() as connection:
            self._queue.finish(connection, item)
            s, d = t.image_set, t.datastore_seq
            row = connection.execute(sa.select(s).where(s.c.pk == pk)).one()
            at = now_ms()
            seq, at = connection.execute(
                sa.update(d)
                .where(d.c.datastore_pk == row.datastore_pk)
                .values(seq=d.c.seq + 1, last_at=sa.case((d.c.last_at > at, d.c.last_at), else_=at))
                .returning(d.c.seq, d.c.last_at)
            ).one()
            index.remove_set(connection, pk, seq)
            connection.execute(
                sa.update(s)
                .where(s.c.pk == pk)
                .values(
                    state=ImageSetState.DELETED, workflow=Workflow.DELETED, deleted_at=at, updated_at=at, message=None
                )
            )
            connection.execute(
                sa.insert(t.change),
                {
                    "datastore_pk": row.datastore_pk,
                    "seq": seq,
                    "at": at,
                    "kind": "delete",
                    "image_set_pk": pk,
                    "version": row.latest,
                    "principal": item.subject["actor"],
                },
            )
            resource = f"{item.subject['store']}/{row.id}"
            connection.execute(sa.delete(t.tag).where(t.tag.c.resource == resource))
            self._events.image_set(
                connection,
                item.subject["store"],
                row.id,
                row.latest,
                Workflow.DELETED,
                is_primary=row.is_primary,
                state=ImageSetState.DELETED,
            )
            unlock(connection, item)


def _json(connection: sa.Connection, pk: int) -> bytes:
    body: bytes = connection.execute(sa.select(t.doc.c.body).where(t.doc.c.pk == pk)).scalar_one()
    return bytes(body)


def _plain(update: MetadataUpdate) -> dict[str, Any]:
    plain = asdict(update)
    return {key: value for key, value in plain.items() if value is not None}
