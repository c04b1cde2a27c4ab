"""Edits, reverts and deletes: accepted at once under a lock, applied by a worker, published in one commit.

Copies are in `copying`; what both need of image sets and their instances is here.

Accepting inserts the lock, the version without content and the work item together; applying is pure until its commit
and guarded by the lock, so that an interrupted operation simply runs again (healthimaging.md 13).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import sqlalchemy as sa

from adapters.embedded.chunks import deflate, inflate, unpack_extents
from adapters.embedded.events import Events
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import (
    Publication,
    SetState,
    beside_of,
    load_state,
    number,
    store_docs,
)
from adapters.embedded.times import from_ms
from adapters.sql import index
from adapters.sql import tables as t
from adapters.sql.database import Database, insert_or_keep, now_ms
from adapters.sql.queue import FIRST, WorkItem, WorkQueue, enqueue
from gateway.domain import edits, metadata
from gateway.domain.edits import Changes, MetadataUpdate, Overlay
from gateway.domain.errors import Conflict, Locked, NotFound, UnacceptableUpdate, VersionConflict
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
        retention_s: float,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._queue = queue
        self._presence = presence
        self._rules = rules
        self._events = events
        self._retention_ms = int(retention_s * 1000)

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
            target = connection.execute(_the_set(datastore_pk, ref)).first()
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

    # ------------------------------------------------------------ restoring, at once

    def restore(
        self,
        datastore_pk: int,
        datastore: DatastoreId,
        study: str,
        series: str | None,
        sop: str | None,
        actor: str | None,
    ) -> None:
        """Lifts the tombstones of a study or series, or puts a removed instance back: new versions, in one commit.

        Raises NotFound where nothing was deleted that is still kept, Conflict where it is there again, or would not
        fit what is there, and Locked.
        """
        with self._database.write() as connection:
            self._database.lock_words(connection, [f"{datastore_pk}:{study}"])
            if series is not None and sop is not None:
                publications = [self._put_back(connection, datastore_pk, datastore, study, series, sop, actor)]
            else:
                publications = self._without_tombstones(connection, datastore_pk, datastore, study, series, actor)
            number(connection, publications, self._events)

    def _without_tombstones(
        self,
        connection: sa.Connection,
        datastore_pk: int,
        datastore: DatastoreId,
        study: str,
        series: str | None,
        actor: str | None,
    ) -> list[Publication]:
        """Of each series, the image set that was deleted last."""
        s, m = t.image_set, t.member
        of_study = [s.c.datastore_pk == datastore_pk, s.c.is_primary, s.c.study_uid == study]
        if series is not None:
            of_study.append(s.c.series_uid == series)
        rows = connection.execute(
            sa.select(s.c.pk, s.c.series_uid)
            .where(*of_study, s.c.state == ImageSetState.DELETED, s.c.deleted_at >= now_ms() - self._retention_ms)
            .where(sa.exists().where(m.c.image_set_pk == s.c.pk))
            .order_by(s.c.deleted_at.desc(), s.c.pk.desc())
        ).all()
        if not rows:
            raise NotFound("Nothing was deleted here that is still kept.")
        taken: set[str] = set()
        publications: list[Publication] = []
        for pk, series_uid in rows:
            # A series has one primary image set, in whichever study.
            living = sa.select(s.c.pk).where(
                s.c.datastore_pk == datastore_pk,
                s.c.is_primary,
                s.c.series_uid == series_uid,
                s.c.state != ImageSetState.DELETED,
            )
            if series_uid in taken or connection.execute(living).first() is not None:
                continue
            taken.add(series_uid)
            state = load_state(connection, pk, datastore)
            sibling = self._sibling(connection, state)
            if sibling is not None:
                theirs = key_of(load_state(connection, sibling, datastore).shown())
                if apart := study_difference(key_of(state.shown()), theirs):
                    raise Conflict(f"{apart} of the study was changed since: give it the old value, then undelete.")
            state.beside = beside_of(connection, pk)
            state.searchable = None
            connection.execute(sa.update(s).where(s.c.pk == pk).values(deleted_at=None))
            publications.append(_restored(state, actor))
        if not publications:
            raise Conflict("What was deleted here has been stored again since: delete that first.")
        return publications

    def _put_back(
        self,
        connection: sa.Connection,
        datastore_pk: int,
        datastore: DatastoreId,
        study: str,
        series: str,
        sop: str,
        actor: str | None,
    ) -> Publication:
        """An instance as it was when it was removed from the primary image set of its series."""
        s, m, r, x = t.image_set, t.member, t.record, t.pixel
        pk = connection.execute(
            sa.select(s.c.pk).where(
                s.c.datastore_pk == datastore_pk,
                s.c.is_primary,
                s.c.study_uid == study,
                s.c.series_uid == series,
                s.c.state != ImageSetState.DELETED,
            )
        ).scalar()
        if pk is None:
            raise NotFound("There is no such series. Where it was deleted as a whole, undelete the series.")
        if connection.execute(sa.select(t.set_lock.c.work_pk).where(t.set_lock.c.image_set_pk == pk)).first():
            raise Locked()
        row = connection.execute(
            sa.select(m, sa.func.coalesce(x.c.n_frames, 0).label("frames"))
            .join(r, r.c.pk == m.c.record_pk)
            .outerjoin(x, x.c.pk == r.c.pixel_pk)
            .where(m.c.image_set_pk == pk, m.c.sop_uid == sop)
            .order_by(m.c.v_to.desc())
            .limit(1)
        ).first()
        if row is None:
            raise NotFound("There was no such instance in this series.")
        if row.v_to == t.END:
            raise Conflict("The instance is there.")
        state = load_state(connection, pk, datastore)
        connection.execute(
            sa.insert(m),
            {
                "image_set_pk": pk,
                "sop_uid": sop,
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

    def _plan(self, state: SetState, instances: "Instances", update: MetadataUpdate, *, sibling: bool) -> edits.Plan:
        return edits.plan(
            update,
            edits.ImageSetContent(
                is_primary=state.is_primary,
                sibling_primaries=self._sibling(instances.connection, state) is not None,
                levels=state.levels,
                overlay=state.overlay,
                series_uid=state.series_uid,
                instances=instances,
            ),
            sibling=sibling,
            strict_removal=self._rules.strict_removal,
            legacy_uids=self._rules.legacy_uids,
        )

    def _sibling(self, connection: sa.Connection, state: SetState) -> int | None:
        """Another primary image set of a primary one's study."""
        if not state.is_primary:
            return None
        s = t.image_set
        pk: int | None = connection.execute(
            sa.select(s.c.pk)
            .where(
                s.c.datastore_pk == state.datastore_pk,
                s.c.study_uid == state.study_uid,
                t.LIVING_PRIMARY,
                s.c.pk != state.pk,
            )
            .limit(1)
        ).scalar()
        return pk

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
        sibling = self._sibling(connection, state)
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


def _restored(state: SetState, actor: str | None) -> Publication:
    """The next version, which shows what the state has."""
    state.latest += 1
    return Publication(state, state.latest, Workflow.UPDATED, "restore", now_ms(), principal=actor)


@dataclass(frozen=True, slots=True)
class Member:
    pk: int
    sop_uid: str
    sop_class: str
    number: int | None
    record_pk: int
    overlay_pk: int | None
    frames: int


class Instances(Mapping[str, "_Content"]):
    """The live instances of a set; attributes are read only where an edit asks for them."""

    def __init__(self, connection: sa.Connection, blobs: BlobStore, image_set_pk: int) -> None:
        self.connection = connection
        self._blobs = blobs
        m, r, x = t.member, t.record, t.pixel
        self.members = {
            row.sop_uid: Member(*row)
            for row in connection.execute(
                sa.select(
                    m.c.pk,
                    m.c.sop_uid,
                    m.c.sop_class,
                    m.c.number,
                    m.c.record_pk,
                    m.c.overlay_pk,
                    sa.func.coalesce(x.c.n_frames, 0),
                )
                .join(r, r.c.pk == m.c.record_pk)
                .outerjoin(x, x.c.pk == r.c.pixel_pk)
                .where(m.c.image_set_pk == image_set_pk, m.c.v_to == t.END)
            )
        }

    def __getitem__(self, sop_uid: str) -> "_Content":
        return _Content(self, self.members[sop_uid])

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def changes(self, member: Member) -> Changes:
        if member.overlay_pk is None:
            return Changes()
        text = self.connection.execute(
            sa.select(t.overlay.c.changes).where(t.overlay.c.pk == member.overlay_pk)
        ).scalar_one()
        return Changes.from_json(text.encode())

    def received_node(self, member: Member) -> bytes:
        """The node chunk's text as imported: `"<sop>":{...}`."""
        blob, node = self.connection.execute(
            sa.select(t.blob.c.name, t.record.c.node)
            .join(t.record, t.record.c.blob_pk == t.blob.c.pk)
            .where(t.record.c.pk == member.record_pk)
        ).one()
        extent = unpack_extents(node)[0]
        return inflate(self._blobs.read(blob, extent.offset, extent.length), extent.plain, extent.crc)

    def current(self, member: Member) -> dict[str, Any]:
        """`DICOM` and `DICOMVRs` with the edits so far."""
        document: dict[str, Any] = orjson.loads(b"{" + self.received_node(member) + b"}")
        (instance,) = document.values()
        changes = self.changes(member)
        return {
            "DICOM": edits.apply(instance["DICOM"], changes),
            "DICOMVRs": {**instance["DICOMVRs"], **changes.vrs},
        }

    def number(self, member: Member, changes: Changes) -> int | None:
        if "InstanceNumber" in changes.removed:
            return None
        try:
            return int(changes.set["InstanceNumber"])
        except (KeyError, TypeError, ValueError):
            return member.number

    def overlay(self, member: Member, sop_uid: str, changes: Changes) -> int:
        """The key of the overlay row with these cumulative changes, and the node chunk that they make."""
        document: dict[str, Any] = orjson.loads(b"{" + self.received_node(member) + b"}")
        (instance,) = document.values()
        plain = b'"DICOM":%b,"DICOMVRs":%b' % (orjson.dumps(instance["DICOM"]), orjson.dumps(instance["DICOMVRs"]))
        rest = {key: value for key, value in instance.items() if key not in ("DICOM", "DICOMVRs")}
        text = b"%b:{%b,%b}" % (
            orjson.dumps(sop_uid),
            metadata.edited_node(plain, changes.of_level("Instance")),
            orjson.dumps(rest)[1:-1],
        )
        attrs: dict[str, Any] = orjson.loads(
            self.connection.execute(sa.select(t.record.c.attrs).where(t.record.c.pk == member.record_pk)).scalar_one()
        )
        edited = metadata.to_dicom_json(changes.set, changes.vrs)
        for tag in list(attrs):
            if tag in edited:
                attrs[tag] = edited[tag]
        for tag in metadata.to_dicom_json(dict.fromkeys(changes.removed)):
            attrs.pop(tag, None)
        chunk = deflate(text)
        row = {
            "digest": hashlib.sha256(changes.to_json() + b"\0" + text).digest(),
            "changes": changes.to_json().decode(),
            "attrs": orjson.dumps(attrs).decode(),
            "node": chunk.data,
            "plain": chunk.plain,
            "crc": chunk.crc,
        }
        o = t.overlay
        pk = insert_or_keep(self.connection.dialect.name, o).scalar(self.connection, row)
        if pk is None:
            pk = self.connection.execute(sa.select(o.c.pk).where(o.c.digest == row["digest"])).scalar_one()
        return int(pk)


@dataclass(frozen=True, slots=True)
class _Content:
    """One instance as the rules look at it."""

    instances: Instances
    member: Member

    @property
    def changes(self) -> Changes:
        return self.instances.changes(self.member)

    def attributes(self) -> Mapping[str, Any]:
        attributes: Mapping[str, Any] = self.instances.current(self.member)["DICOM"]
        return attributes

    def vrs(self) -> Mapping[str, str]:
        vrs: Mapping[str, str] = self.instances.current(self.member)["DICOMVRs"]
        return vrs


def _the_set(datastore_pk: int, ref: ImageSetRef) -> "sa.Select[Any]":
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
        found = [connection.execute(_the_set(datastore_pk, ref)).first() for ref in refs]
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


def _json(connection: sa.Connection, pk: int) -> bytes:
    body: bytes = connection.execute(sa.select(t.doc.c.body).where(t.doc.c.pk == pk)).scalar_one()
    return bytes(body)


def _plain(update: MetadataUpdate) -> dict[str, Any]:
    plain = asdict(update)
    return {key: value for key, value in plain.items() if value is not None}
