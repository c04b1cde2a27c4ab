"""Copies: accepted at once under locks on both image sets, carried out by a worker (healthimaging.md 9, 13).

A copy moves no byte: its members are rows that name the same records. What a copied instance carries over from its old
image set, edits of levels above it for example, becomes its own overlay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from adapters.embedded.events import Events
from adapters.embedded.locking import begin_version, fail_version, locate, lock_set, unlock
from adapters.embedded.members import Instances, Member
from adapters.embedded.processes import Presence
from adapters.embedded.times import from_ms
from adapters.embedded.versions import Publication, SetState, load_state, number, store_docs
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import FIRST, WorkItem, WorkQueue, enqueue
from gateway.domain import copies
from gateway.domain.edits import Changes
from gateway.domain.errors import InvalidInput, QuotaExceeded, UnacceptableUpdate, VersionConflict
from gateway.domain.grouping import key_of, study_difference
from gateway.domain.ids import DatastoreId, ImageSetId, new_id
from gateway.domain.model import CopyRequest, CopyResult, ImageSet, ImageSetState, Workflow
from gateway.ports import BlobStore

_LOCKED_MS = 50
"""How long a promotion waits before it looks again whether its study is free."""


class _Waits(Exception):
    """An operation on the study has to end first."""


class Copying:
    """Both halves, like `Mutations`: `accept` for the process that was asked, `run` for the worker. Blocking."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        queue: WorkQueue,
        presence: Presence,
        events: Events,
        max_frames: int,
    ) -> None:
        """`max_frames` is the quota of one request."""
        self._database = database
        self._blobs = blobs
        self._queue = queue
        self._presence = presence
        self._events = events
        self._max_frames = max_frames

    # ------------------------------------------------------------ accepting

    def accept(self, datastore_pk: int, request: CopyRequest) -> CopyResult:
        """Raises NotFound, InvalidInput, VersionConflict, Locked, QuotaExceeded."""
        named = [request.source] if request.destination is None else [request.source, request.destination]
        if request.promote and request.destination is not None:
            raise InvalidInput("promoteToPrimary finds its destination itself: leave destinationImageSet out.")
        if request.destination is not None and request.destination.image_set == request.source.image_set:
            raise InvalidInput("An image set cannot be copied into itself.")
        with self._database.write() as connection:
            source, *given = locate(self._database, connection, datastore_pk, named)
            if any(row.latest != ref.version for row, ref in zip([source, *given], named, strict=True)):
                raise VersionConflict()
            if request.promote:
                if source.is_primary:
                    raise InvalidInput("The image set is primary already: there is nothing to promote.")
                given = [*self._primary(connection, datastore_pk, source)]
            self._check_quota(connection, source, request.instances)
            at = now_ms()
            subject = {
                "store": request.source.datastore,
                "source": source.pk,
                "workflow": source.workflow,
                "new": not given,
                "promote": request.promote,
                "force": request.force,
                "actor": request.actor,
                "instances": None
                if request.instances is None
                else {series: sorted(sops) for series, sops in request.instances.items()},
            }
            if given:
                (destination,) = given
                destination_pk, destination_id, version = destination.pk, destination.id, destination.latest + 1
                created_at = destination.created_at
            else:
                destination, destination_id, version, created_at = None, new_id(), 1, at
                destination_pk = _new_set(connection, source, destination_id, at)
            work_pk = enqueue(
                connection,
                "copy",
                {**subject, "destination": destination_pk, "version": version},
                priority=FIRST,
            )
            lock_set(connection, source.pk, work_pk)
            _set_status(
                connection, source.pk, source.latest, ImageSetState.LOCKED, Workflow.COPYING_WITH_READ_ONLY_ACCESS
            )
            if destination is None:
                destination = connection.execute(sa.select(t.image_set).where(t.image_set.c.pk == destination_pk)).one()
            begin_version(
                connection,
                destination,
                Workflow.COPYING,
                work_pk,
                at,
                forced=request.force,
                principal=request.actor,
            )
            self._tell(connection, subject["store"], source.pk, source.latest)
            self._tell(connection, subject["store"], destination_pk, version, copied_from=source.id)
        self._presence.ring("worker")
        return CopyResult(
            ImageSet(
                datastore=request.source.datastore,
                id=request.source.image_set,
                version=source.latest,
                state=ImageSetState.LOCKED,
                workflow=Workflow.COPYING_WITH_READ_ONLY_ACCESS,
                is_primary=source.is_primary,
                created_at=from_ms(source.created_at),
                updated_at=from_ms(source.updated_at),
            ),
            ImageSet(
                datastore=request.source.datastore,
                id=ImageSetId(destination_id),
                version=version,
                state=ImageSetState.LOCKED,
                workflow=Workflow.COPYING,
                is_primary=destination.is_primary,
                created_at=from_ms(created_at),
                updated_at=from_ms(at),
                forced=request.force,
            ),
        )

    def _primary(self, connection: sa.Connection, datastore_pk: int, source: "sa.Row[Any]") -> "Sequence[sa.Row[Any]]":
        """The primary image set of a series; none where there is none."""
        s = t.image_set
        return connection.execute(
            sa.select(s).where(
                s.c.datastore_pk == datastore_pk,
                s.c.series_uid == source.series_uid,
                t.LIVING_PRIMARY,
            )
        ).all()

    def _check_quota(self, connection: sa.Connection, source: "sa.Row[Any]", subset: copies.Subset | None) -> None:
        frames = source.n_frames
        if subset is not None and subset.get(source.series_uid):
            chosen = subset[source.series_uid]
            members = Instances(connection, self._blobs, source.pk).members
            frames = sum(member.frames for sop_uid, member in members.items() if sop_uid in chosen)
        if frames > self._max_frames:
            raise QuotaExceeded(
                f"The copy has {frames} frames, and at most {self._max_frames} can be copied by one request. "
                "Copy a subset of the instances into a new image set first, then the others into that one."
            )

    # ------------------------------------------------------------ carrying out

    def run(self, item: WorkItem) -> None:
        """Carries out an accepted copy. Raises LeaseLost, or whatever makes it come back later."""
        try:
            with self._database.write() as connection:
                task = self._task(connection, item)
                self._queue.finish(connection, item)
                publication = self._copy(connection, task)
                number(connection, [publication], self._events)
                self._free_source(connection, item, Workflow.COPIED)
        except UnacceptableUpdate as fault:
            self._fail(item, fault.detail)
        except _Waits:
            self._queue.retry(item, "waits for a locked image set", delay_ms=_LOCKED_MS, counts=False)

    def give_up(self, item: WorkItem, detail: str) -> None:
        """After its last attempt the copy becomes COPY_FAILED, and both image sets are free again."""
        self._fail(item, "INTERNAL_ERROR: Operation was interrupted.")

    def _task(self, connection: sa.Connection, item: WorkItem) -> "_Task":
        subject = item.subject
        studies = sa.select(t.image_set.c.datastore_pk, t.image_set.c.study_uid).where(
            t.image_set.c.pk.in_([subject["source"], subject["destination"]])
        )
        self._database.lock_words(connection, [f"{store}:{study}" for store, study in connection.execute(studies)])
        datastore = DatastoreId(subject["store"])
        source = load_state(connection, subject["source"], datastore)
        if subject["new"]:
            destination = _empty(connection, subject["destination"], source)
        else:
            destination = load_state(connection, subject["destination"], datastore)
        return _Task(subject, source, destination)

    def _copy(self, connection: sa.Connection, task: "_Task") -> Publication:
        members = Instances(connection, self._blobs, task.source.pk)
        chosen = [members.members[sop_uid] for sop_uid in sorted(self._chosen(task, members))]
        if task.subject["new"]:
            if task.subject["promote"]:
                self._make_primary(connection, task)
            overlays: Mapping[str, int | None] = {member.sop_uid: member.overlay_pk for member in chosen}
        else:
            overlays = self._into(connection, task, members, chosen)
        destination = task.destination
        version: int = task.subject["version"]
        connection.execute(
            sa.insert(t.member),
            [
                {
                    "image_set_pk": destination.pk,
                    "sop_uid": member.sop_uid,
                    "v_from": version,
                    "v_to": t.END,
                    "record_pk": member.record_pk,
                    "overlay_pk": overlays[member.sop_uid],
                    "number": member.number,
                    "sop_class": member.sop_class,
                }
                for member in chosen
            ],
        )
        destination.n_instances += len(chosen)
        destination.n_frames += sum(member.frames for member in chosen)
        return task.publication(Workflow.COPIED)

    def _chosen(self, task: "_Task", members: Instances) -> set[str]:
        """The SOP Instance UIDs to copy. Raises UnacceptableUpdate for what the source does not have."""
        subset: Mapping[str, Sequence[str]] | None = task.subject["instances"]
        if subset is None:
            return set(members)
        if subset.keys() != {task.source.series_uid}:
            raise _refused("A series named in copiableAttributes is not in SourceImageSet.")
        wanted = set(subset[task.source.series_uid]) or set(members)
        if not wanted <= members.keys():
            raise _refused("An instance named in copiableAttributes is not in SourceImageSet.")
        return wanted

    def _into(
        self, connection: sa.Connection, task: "_Task", members: Instances, chosen: Sequence[Member]
    ) -> dict[str, int | None]:
        """SOP Instance UID -> overlay in an existing destination. Raises UnacceptableUpdate where they do not fit."""
        source, destination = task.source, task.destination
        before, after = source.shown(), destination.shown()
        level = copies.difference(before, after)
        if level is not None and not task.subject["force"]:
            raise UnacceptableUpdate(copies.mismatch(level))
        if set(Instances(connection, self._blobs, destination.pk)) & {member.sop_uid for member in chosen}:
            raise _refused("An instance of SourceImageSet is in DestinationImageSet already.")
        carried = Changes()
        for changes in source.overlay.by_level.values():
            carried = carried.then(changes)
        taken = copies.adopted(before, after) if level is not None else Changes()
        overlays: dict[str, int | None] = {}
        for member in chosen:
            changes = carried.then(members.changes(member)).then(taken)
            overlays[member.sop_uid] = members.overlay(member, member.sop_uid, changes) if changes else None
        return overlays

    def _make_primary(self, connection: sa.Connection, task: "_Task") -> None:
        """Turns the new destination into the series' primary image set. Raises UnacceptableUpdate, _Waits."""
        source, s = task.source, t.image_set
        primaries = connection.execute(
            sa.select(s.c.pk, s.c.series_uid, s.c.state)
            .where(
                s.c.datastore_pk == source.datastore_pk,
                t.LIVING_PRIMARY,
                sa.or_(s.c.study_uid == source.study_uid, s.c.series_uid == source.series_uid),
            )
            .order_by(s.c.pk)
        ).all()
        if any(row.series_uid == source.series_uid for row in primaries):
            raise _refused("A primary image set of the series has been made meanwhile. Copy again.")
        if any(row.state == ImageSetState.LOCKED for row in primaries):
            raise _Waits  # it may be about to change what the image sets of a study share
        for row in primaries[:1]:  # they agree with each other
            theirs = key_of(load_state(connection, row.pk, source.datastore_id).shown())
            apart = study_difference(key_of(source.shown()), theirs)
            if apart:
                raise _refused(f"{apart} differs from that of the study's primary image sets. Update it first.")
        connection.execute(sa.update(s).where(s.c.pk == task.destination.pk).values(is_primary=True))
        task.destination.is_primary = True

    # ------------------------------------------------------------ ending

    def _fail(self, item: WorkItem, message: str) -> None:
        """A destination that was there shows what it showed; a new one stays, without instances."""
        with self._database.write() as connection:
            task = self._task(connection, item)
            self._queue.finish(connection, item)
            if task.subject["new"]:
                number(connection, [task.publication(Workflow.COPY_FAILED, message)], self._events)
            else:
                fail_version(
                    connection,
                    task.destination.pk,
                    task.subject["version"],
                    Workflow.COPY_FAILED,
                    message,
                    self._events,
                    task.subject["store"],
                )
            self._free_source(connection, item, Workflow(task.subject["workflow"]))

    def _free_source(self, connection: sa.Connection, item: WorkItem, workflow: Workflow) -> None:
        pk = item.subject["source"]
        latest = connection.execute(sa.select(t.image_set.c.latest).where(t.image_set.c.pk == pk)).scalar_one()
        _set_status(connection, pk, latest, ImageSetState.ACTIVE, workflow)
        self._tell(connection, item.subject["store"], pk, latest)
        unlock(connection, item)

    def _tell(
        self, connection: sa.Connection, datastore: str, pk: int, version: int, copied_from: str | None = None
    ) -> None:
        row = connection.execute(sa.select(t.image_set).where(t.image_set.c.pk == pk)).one()
        self._events.image_set(
            connection,
            datastore,
            row.id,
            version,
            Workflow(row.workflow),
            is_primary=row.is_primary,
            state=ImageSetState(row.state),
            copied_from=copied_from,
        )


@dataclass(slots=True)
class _Task:
    """One copy as the transaction sees it."""

    subject: Mapping[str, Any]
    source: SetState
    destination: SetState
    at: int = field(default_factory=now_ms)

    def publication(self, workflow: Workflow, message: str | None = None) -> Publication:
        self.destination.latest = self.subject["version"]
        return Publication(
            self.destination,
            self.destination.latest,
            workflow,
            "copy",
            self.at,
            forced=self.subject["force"],
            principal=self.subject["actor"],
            message=message,
            copied_from=self.source.id,
            insert_version=False,
        )


def _new_set(connection: sa.Connection, source: "sa.Row[Any]", image_set_id: str, at: int) -> int:
    """The row of a copy that is to be made: not primary, and without a version yet."""
    row = {
        "id": image_set_id,
        "datastore_pk": source.datastore_pk,
        "is_primary": False,
        "study_uid": source.study_uid,
        "series_uid": source.series_uid,
        "state": ImageSetState.LOCKED,
        "workflow": Workflow.COPYING,
        "latest": 0,
        "visible": 0,
        "n_instances": 0,
        "n_frames": 0,
        "created_at": at,
        "updated_at": at,
    }
    pk: int = connection.execute(sa.insert(t.image_set).returning(t.image_set.c.pk), row).scalar_one()
    return pk


def _empty(connection: sa.Connection, pk: int, source: SetState) -> SetState:
    """A new copy before its instances: patient, study and series of the source, with their edits."""
    row = connection.execute(sa.select(t.image_set).where(t.image_set.c.pk == pk)).one()
    made = SetState(
        pk=pk,
        id=ImageSetId(row.id),
        datastore_pk=row.datastore_pk,
        datastore_id=source.datastore_id,
        is_primary=False,
        study_uid=source.study_uid,
        series_uid=source.series_uid,
        latest=0,
        n_instances=0,
        n_frames=0,
        created_at=row.created_at,
        levels=source.levels,
        overlay=source.overlay,
        beside=source.beside,
    )
    store_docs(connection, made)
    return made


def _set_status(connection: sa.Connection, pk: int, version: int, state: ImageSetState, workflow: Workflow) -> None:
    """The status of an image set whose content stays: of its row, and of its latest version."""
    s, v = t.image_set, t.version
    connection.execute(sa.update(s).where(s.c.pk == pk).values(state=state, workflow=workflow))
    connection.execute(
        sa.update(v).where(v.c.image_set_pk == pk, v.c.version == version).values(state=state, workflow=workflow)
    )


def _refused(text: str) -> UnacceptableUpdate:
    return UnacceptableUpdate(f"INVALID_REQUEST: {text}")
