"""The transaction that makes prepared instances visible: grouping, versions, members, the change feed, the index.

Blobs are durable before it commits; it does so whole or not at all (datamodel.md 6). Its order: decide, write what has
no sequence number, take the numbers, write the few rows that carry one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson
import sqlalchemy as sa

from adapters.embedded.events import Events
from adapters.embedded.jobs import Order, concern, insert_job, pack_outcomes
from adapters.embedded.preparing import PROCESSING_FAILURE, Prepared, PreparedPixel
from adapters.embedded.versions import (
    Publication,
    SetState,
    load_state,
    number,
    searchable_beside,
    shown_attributes,
    store_docs,
)
from adapters.sql import tables as t
from adapters.sql.database import Database, Statement, among, insert_or_keep, now_ms
from adapters.sql.queue import AWAITED, Precedence, WorkItem, WorkQueue, enqueue
from gateway.domain import metadata
from gateway.domain.edits import Overlay
from gateway.domain.grouping import GroupKey, Primary, assign, key_of
from gateway.domain.ids import ImageSetId, new_id
from gateway.domain.model import ImageSetState, JobStatus, Outcome, Workflow

DUPLICATE = 0x0111

# Statements of the publishing path are made once: building one costs as much as running it.
_FIND_PIXEL = Statement(
    sa.select(t.pixel.c.pk).where(
        t.pixel.c.datastore_pk == sa.bindparam("datastore_pk"), t.pixel.c.digest == sa.bindparam("digest")
    )
)
_INSERT_RECORD = Statement(sa.insert(t.record).returning(t.record.c.pk))
_INSERT_MEMBERS = Statement(sa.insert(t.member))
_PUBLISHED = Statement(
    sa.select(t.image_set.c.id, t.image_set.c.visible, t.image_set.c.is_primary)
    .join(t.member, t.member.c.image_set_pk == t.image_set.c.pk)
    .join(t.record, t.record.c.pk == t.member.c.record_pk)
    .where(t.record.c.spool == sa.bindparam("segment"), t.record.c.spool_off == sa.bindparam("at"))
    .order_by(t.member.c.pk)
    .limit(1)
)
_CLOSE_MEMBERS = Statement(sa.update(t.member).where(among(t.member.c.pk, "pks")).values(v_to=sa.bindparam("until")))
_LIVE_MEMBERS = Statement(
    sa.select(t.member.c.sop_uid, t.member.c.pk, t.record.c.identity, sa.func.coalesce(t.pixel.c.n_frames, 0))
    .join(t.record, t.record.c.pk == t.member.c.record_pk)
    .outerjoin(t.pixel, t.pixel.c.pk == t.record.c.pixel_pk)
    .where(
        t.member.c.image_set_pk == sa.bindparam("set_pk"),
        t.member.c.v_to == t.END,
        among(t.member.c.sop_uid, "sop_uids"),
    )
)
_PRIMARY = sa.select(t.image_set.c.pk).where(
    t.image_set.c.datastore_pk == sa.bindparam("datastore_pk"),
    t.LIVING_PRIMARY,
)
_PRIMARY_OF_SERIES = Statement(_PRIMARY.where(t.image_set.c.series_uid == sa.bindparam("series_uid")))
_PRIMARY_OF_STUDY = Statement(_PRIMARY.where(t.image_set.c.study_uid == sa.bindparam("study_uid")).limit(1))
_ANY_LOCK = Statement(sa.select(t.set_lock.c.image_set_pk).limit(1))
_LOCKS = Statement(
    sa.select(t.set_lock.c.image_set_pk)
    .join(t.image_set, t.image_set.c.pk == t.set_lock.c.image_set_pk)
    .where(
        sa.or_(
            among(t.image_set.c.pk, "set_pks"),
            sa.and_(
                t.image_set.c.datastore_pk == sa.bindparam("datastore_pk"),
                among(t.image_set.c.study_uid, "study_uids"),
                t.image_set.c.is_primary,
            ),
        )
    )
)
_NEW_SET = Statement(sa.insert(t.image_set).returning(t.image_set.c.pk))
_GROW_BLOB = Statement(
    sa.update(t.blob)
    .where(t.blob.c.name == sa.bindparam("blob_name"))
    .values(size=sa.case((t.blob.c.size > sa.bindparam("at_least"), t.blob.c.size), else_=sa.bindparam("at_least")))
    .returning(t.blob.c.pk)
)
_END_JOB = Statement(sa.update(t.job).where(t.job.c.pk == sa.bindparam("job_pk")))

Resent = Literal["version", "always", "reject"]


@dataclass(slots=True)
class ImportBatch:
    """One job, with what its staged instances became, in their order."""

    order: Order
    item: WorkItem | None = None
    """None, as is `job_pk`, for an order that was handed over: its row is made by its publication."""
    job_pk: int | None = None
    results: Sequence[Prepared | Outcome] = ()
    outcomes: list[Outcome] = field(default_factory=list)
    """Once published."""
    behind: int | None = None
    """The work item that it has to wait for."""
    then: tuple[str, dict[str, Any]] | None = None
    """Work that follows in the same commit, and that ends the job."""


def publish_imports(
    database: Database,
    queue: WorkQueue,
    batches: Sequence[ImportBatch],
    sizes: Mapping[str, int],
    resent: Resent,
    synced: Callable[[], None],
    events: Events,
) -> list[ImportBatch]:
    """Publishes the jobs that can be, a version each; those that must wait for a lock or their turn, and orders that
    somebody else has taken up, are returned. `sizes` are those of
    the blobs written, by their names; `synced` returns when the blobs are durable, which is awaited before the
    commit.

    Raises LeaseLost: then nothing was published.
    """
    waiting: list[ImportBatch] = []
    with database.write() as connection:
        prepared = [p for batch in batches for p in batch.results if isinstance(p, Prepared)]
        words = [
            f"{batch.order.datastore_pk}:{p.key.study_uid}"
            for batch in batches
            for p in batch.results
            if isinstance(p, Prepared)
        ]
        database.lock_words(connection, words)
        publisher = _Publisher(connection, resent)
        publisher.store_blobs(sizes, prepared)
        for batch in batches:
            if publisher.add(batch):
                if batch.item is not None:
                    queue.finish(connection, batch.item)
                if batch.then is not None:
                    enqueue(connection, *batch.then)
            else:
                waiting.append(batch)
        number(connection, publisher.publications, events)
        synced()
    return waiting


class _Publisher:
    def __init__(self, connection: sa.Connection, resent: Resent) -> None:
        self._connection = connection
        self._resent = resent
        self._precedence = Precedence(connection)
        self._states: dict[int, SetState] = {}
        self._blobs: dict[str, int] = {}
        self.publications: list[Publication] = []

    # ------------------------------------------------------------ blobs, pixels, records

    def store_blobs(self, written: Mapping[str, int], prepared: Sequence[Prepared]) -> None:
        at = now_ms()
        sizes = dict(written)
        for p in prepared:
            if p.pixel is not None:
                sizes.setdefault(p.pixel.blob, 0)
        for name, size in sizes.items():
            self._blobs[name] = store_blob(self._connection, name, size, at)

    def _pixel(self, datastore_pk: int, pixel: PreparedPixel) -> int:
        row = {
            "datastore_pk": datastore_pk,
            "digest": pixel.digest,
            "blob_pk": self._blobs[pixel.blob],
            "off": pixel.offset,
            "len": pixel.length,
            "state": pixel.state,
            "syntax": pixel.syntax,
            "stored_syntax": pixel.stored_syntax,
            "format": pixel.format,
            "n_frames": pixel.frames,
            "frames": pixel.table,
        }
        made = insert_or_keep(self._connection.dialect.name, t.pixel).scalar(self._connection, row)
        if made is None:
            made = _FIND_PIXEL.scalar(self._connection, {"datastore_pk": datastore_pk, "digest": pixel.digest})
        # A sweeper that took the row in between would be the only reason to begin again.
        return int(made) if made is not None else self._pixel(datastore_pk, pixel)

    def _records(self, batch: ImportBatch, prepared: Sequence[Prepared], at: int) -> list[int]:
        rows = [
            {
                "id": p.record_id,
                "datastore_pk": batch.order.datastore_pk,
                "identity": p.identity,
                "sop_uid": p.sop_uid,
                "sop_class": p.sop_class,
                "syntax": p.syntax,
                "number": p.number,
                "warning": p.warning,
                "attrs": p.attrs,
                "pixel_pk": self._pixel(batch.order.datastore_pk, p.pixel) if p.pixel is not None else None,
                "blob_pk": self._blobs[p.blob],
                "head": p.head,
                "json": p.json,
                "node": p.node,
                "fmt": 1,
                "received_at": at,
                "called_ae": p.origin.called_ae,
                "calling_ae": p.origin.calling_ae,
                "principal": p.origin.principal,
                "job_pk": batch.job_pk,
                "spool": p.spool,
                "spool_off": p.spool_offset,
            }
            for p in prepared
        ]
        return [int(_INSERT_RECORD.scalar(self._connection, row)) for row in rows]

    # ------------------------------------------------------------ grouping

    def add(self, batch: ImportBatch) -> bool:
        """Takes a job up; False, with nothing imported, where it must wait for a locked image set or for what was
        acknowledged before, or is another's."""
        at = now_ms()
        outcomes: list[Outcome | None] = [r if isinstance(r, Outcome) else None for r in batch.results]
        if batch.item is not None and batch.item.attempt > 1:
            self._find_published(batch, outcomes)
        groups: dict[GroupKey, list[tuple[int, Prepared]]] = {}
        for position, result in enumerate(batch.results):
            if isinstance(result, Prepared) and outcomes[position] is None:
                groups.setdefault(result.key, []).append((position, result))
        is_awaited = batch.item is None or batch.item.priority == AWAITED
        if is_awaited and groups and self._precedence.matters:
            concerns = {key.study_uid for key in groups}
            concerns |= {concern(p.sop_uid) for instances in groups.values() for _, p in instances}
            batch.behind = self._precedence.behind(batch.item, concerns)
            if batch.behind is not None:
                return False
        studies, series = self._existing(batch, groups)
        # What an operation is about to make of a study's grouping elements decides where the instances belong.
        held = {
            "set_pks": [int(primary.image_set) for primary in series.values()],
            "datastore_pk": batch.order.datastore_pk,
            "study_uids": sorted({key.study_uid for key in groups}),
        }
        if _ANY_LOCK.scalar(self._connection, {}) and _LOCKS.scalar(self._connection, held):
            return False
        if batch.job_pk is None:
            batch.job_pk = insert_job(self._connection, batch.order, JobStatus.IN_PROGRESS)
            if batch.job_pk is None:
                return False
        for assignment in assign(groups, studies, series):
            instances = groups[assignment.key]
            if assignment.target == "merge":
                assert assignment.image_set is not None
                state: SetState | None = self._states[int(assignment.image_set)]
            elif assignment.target == "non-primary":
                instances = self._unless_identical(batch, instances, outcomes)
                state = None
            else:
                state = None
            for some in _rounds(instances):
                state = self._import(batch, state, assignment.target != "non-primary", some, outcomes, at)
            if assignment.conflict is not None and state is not None:
                self._connection.execute(
                    sa.insert(t.conflict),
                    {
                        "datastore_pk": batch.order.datastore_pk,
                        "image_set_pk": state.pk,
                        "attribute": assignment.conflict,
                        "source": batch.order.source,
                        "instances": len(instances),
                        "at": at,
                    },
                )
        batch.outcomes = [outcome for outcome in outcomes if outcome is not None]
        self._end_job(batch, at)
        return True

    def _find_published(self, batch: ImportBatch, outcomes: list[Outcome | None]) -> None:
        """Settles what another job has published from the very same place in the spool.

        That happens where the process that had staged and handed over died, and its spool was looked after by one
        worker before another had ended the import. The place is unique in `record`, so that the second job fails once.
        """
        for position, p in enumerate(batch.results):
            if isinstance(p, Prepared):
                place = {"segment": p.spool, "at": p.spool_offset}
                row = _PUBLISHED.run(self._connection, place).fetchone()
                if row is not None:
                    set_id, version, is_primary = row
                    outcomes[position] = _outcome(
                        p, ImageSetId(set_id), version, is_primary=bool(is_primary), identical=True
                    )

    def _existing(self, batch: ImportBatch, keys: Iterable[GroupKey]) -> tuple[dict[str, GroupKey], dict[str, Primary]]:
        """The grouping elements of the primaries that these groups could meet."""
        studies: dict[str, GroupKey] = {}
        series: dict[str, Primary] = {}
        for key in keys:
            which = {"datastore_pk": batch.order.datastore_pk, "series_uid": key.series_uid}
            if key.series_uid not in series:
                pk = _PRIMARY_OF_SERIES.scalar(self._connection, which)
                if pk is not None:
                    state = self._load(pk, batch)
                    series[key.series_uid] = Primary(str(pk), key_of(state.shown()))
                    studies.setdefault(state.study_uid, series[key.series_uid].key)
            if key.study_uid not in studies:
                which = {"datastore_pk": batch.order.datastore_pk, "study_uid": key.study_uid}
                pk = _PRIMARY_OF_STUDY.scalar(self._connection, which)
                if pk is not None:
                    studies[key.study_uid] = key_of(self._load(pk, batch).shown())
        return studies, series

    def _load(self, pk: int, batch: ImportBatch) -> SetState:
        state = self._states.get(pk)
        if state is None:
            state = self._states[pk] = load_state(self._connection, pk, batch.order.datastore)
        return state

    def _unless_identical(
        self, batch: ImportBatch, instances: list[tuple[int, Prepared]], outcomes: list[Outcome | None]
    ) -> list[tuple[int, Prepared]]:
        """Those of a conflicting group that do not lie in a non-primary image set already."""
        if self._resent == "always":
            return instances
        m, r, s = t.member, t.record, t.image_set
        found: dict[tuple[str, bytes], tuple[ImageSetId, int]] = {}
        for some in _slices([p.sop_uid for _, p in instances]):
            query = (
                sa.select(m.c.sop_uid, r.c.identity, s.c.id, s.c.visible)
                .join(r, r.c.pk == m.c.record_pk)
                .join(s, s.c.pk == m.c.image_set_pk)
                .where(
                    m.c.sop_uid.in_(some),
                    m.c.v_to == t.END,
                    s.c.datastore_pk == batch.order.datastore_pk,
                    sa.not_(s.c.is_primary),
                    s.c.state != ImageSetState.DELETED,
                )
            )
            for sop_uid, identity, set_id, visible in self._connection.execute(query):
                found[sop_uid, bytes(identity)] = (ImageSetId(set_id), visible)
        fresh = []
        for position, p in instances:
            place = found.get((p.sop_uid, p.identity))
            if place is None:
                fresh.append((position, p))
            else:
                outcomes[position] = _outcome(p, place[0], place[1], is_primary=False, identical=True)
        return fresh

    # ------------------------------------------------------------ one version

    def _import(
        self,
        batch: ImportBatch,
        state: SetState | None,
        is_primary: bool,
        instances: list[tuple[int, Prepared]],
        outcomes: list[Outcome | None],
        at: int,
    ) -> SetState | None:
        """One version of one set from instances with different SOP UIDs; no version if all are there already."""
        live = self._live(state, [p.sop_uid for _, p in instances]) if state is not None else {}
        changed: list[tuple[int, Prepared]] = []
        identical: list[tuple[int, Prepared]] = []
        for position, p in instances:
            member = live.get(p.sop_uid)
            if member is None or self._resent == "always":
                changed.append((position, p))
            elif member[1] == p.identity:
                identical.append((position, p))
            elif self._resent == "reject":
                outcomes[position] = Outcome(
                    p.sop_class,
                    p.sop_uid,
                    p.key.study_uid,
                    p.key.series_uid,
                    failure=DUPLICATE,
                    message="An instance with this SOP Instance UID and other content is stored; nothing was replaced.",
                )
            else:
                changed.append((position, p))
        if changed:
            state = self._add_version(batch, state, is_primary, [p for _, p in changed], live, at)
        for same, some in ((False, changed), (True, identical)):
            for position, p in some:
                assert state is not None
                outcomes[position] = _outcome(p, state.id, state.latest, is_primary=is_primary, identical=same)
        return state

    def _live(self, state: SetState, sop_uids: Sequence[str]) -> dict[str, tuple[int, bytes, int]]:
        live: dict[str, tuple[int, bytes, int]] = {}
        for some in _slices(sop_uids):
            rows = _LIVE_MEMBERS.run(self._connection, {"set_pk": state.pk, "sop_uids": list(some)}).fetchall()
            for sop_uid, pk, identity, frames in rows:
                live[sop_uid] = (pk, bytes(identity), frames)
        return live

    def _add_version(
        self,
        batch: ImportBatch,
        state: SetState | None,
        is_primary: bool,
        prepared: list[Prepared],
        live: dict[str, tuple[int, bytes, int]],
        at: int,
    ) -> SetState:
        new_set = state is None
        if state is None:
            state = self._new_set(batch, prepared[0], is_primary, at)
        before = state.levels
        for p in prepared:
            if p.levels != state.levels:
                state.levels = metadata.fold(state.levels, p.levels)
        state.latest += 1
        replaced = [live[p.sop_uid] for p in prepared if p.sop_uid in live]
        for some in _slices([pk for pk, _, _ in replaced]):
            _CLOSE_MEMBERS.run(self._connection, {"pks": list(some), "until": state.latest})
        records = self._records(batch, prepared, at)
        _INSERT_MEMBERS.run_each(
            self._connection,
            [
                {
                    "image_set_pk": state.pk,
                    "sop_uid": p.sop_uid,
                    "v_from": state.latest,
                    "v_to": t.END,
                    "record_pk": record_pk,
                    "overlay_pk": None,
                    "number": p.number,
                    "sop_class": p.sop_class,
                }
                for p, record_pk in zip(prepared, records, strict=True)
            ],
        )
        state.n_instances += len(prepared) - len(replaced)
        state.n_frames += sum(p.pixel.frames for p in prepared if p.pixel) - sum(frames for _, _, frames in replaced)
        if new_set or state.levels != before:
            store_docs(self._connection, state)
        shown_attributes(state)  # once for all versions that show the same
        self.publications.append(
            Publication(
                replace(state),
                state.latest,
                Workflow.CREATED if new_set else Workflow.IMPORTED,
                "import",
                at,
                job_pk=batch.job_pk,
                called_ae=batch.order.called_ae,
                calling_ae=batch.order.calling_ae,
                principal=batch.order.principal,
            )
        )
        return state

    def _new_set(self, batch: ImportBatch, first: Prepared, is_primary: bool, at: int) -> SetState:
        set_id = ImageSetId(new_id())
        pk = _NEW_SET.scalar(
            self._connection,
            {
                "id": set_id,
                "datastore_pk": batch.order.datastore_pk,
                "is_primary": is_primary,
                "study_uid": first.key.study_uid,
                "series_uid": first.key.series_uid,
                "state": ImageSetState.ACTIVE,
                "workflow": Workflow.CREATED,
                "latest": 0,
                "visible": 0,
                "n_instances": 0,
                "n_frames": 0,
                "created_at": at,
                "updated_at": at,
            },
        )
        state = self._states[pk] = SetState(
            pk=pk,
            id=set_id,
            datastore_pk=batch.order.datastore_pk,
            datastore_id=batch.order.datastore,
            is_primary=is_primary,
            study_uid=first.key.study_uid,
            series_uid=first.key.series_uid,
            latest=0,
            n_instances=0,
            n_frames=0,
            created_at=at,
            levels=first.levels,
            overlay=Overlay(),
            beside=searchable_beside(orjson.loads(first.attrs)),
        )
        return state

    def _end_job(self, batch: ImportBatch, at: int) -> None:
        outcomes = batch.outcomes
        stored = [o for o in outcomes if o.failure is None]
        _END_JOB.run(
            self._connection,
            {
                "job_pk": batch.job_pk,
                "status": JobStatus.COMPLETED if batch.then is None else JobStatus.IN_PROGRESS,
                "ended_at": at if batch.then is None else None,
                "n_imported": sum(not o.identical for o in stored),
                "n_identical": sum(o.identical for o in stored),
                "n_failed": len(outcomes) - len(stored),
                "n_warned": sum(o.warning is not None for o in stored),
                "keeps_spool": any(is_kept(outcome, batch.order.source) for outcome in outcomes),
                "outcomes": pack_outcomes(outcomes),
            },
        )


def is_kept(outcome: Outcome, source: str) -> bool:
    """Whether an instance that was not stored is kept as it came: an association has acknowledged all it staged, and
    where processing failed it was not the sender's fault. What came from a bucket is there still."""
    if source == "import":
        return False
    return outcome.failure == PROCESSING_FAILURE or (outcome.failure is not None and source == "dimse")


def store_blob(connection: sa.Connection, name: str, size: int, at: int) -> int:
    """The key of a blob's row, new or grown to `size`."""
    known = _GROW_BLOB.scalar(connection, {"blob_name": name, "at_least": size})
    if known is not None:
        return int(known)
    row = {"name": name, "kind": name.partition("/")[0], "size": size, "created_at": at}
    made = insert_or_keep(connection.dialect.name, t.blob).scalar(connection, row)
    return int(made) if made is not None else store_blob(connection, name, size, at)


# ---------------------------------------------------------------- outcomes


def _outcome(p: Prepared, image_set: ImageSetId, version: int, *, is_primary: bool, identical: bool) -> Outcome:
    return Outcome(
        p.sop_class,
        p.sop_uid,
        p.key.study_uid,
        p.key.series_uid,
        image_set=image_set,
        version=version,
        is_primary=is_primary,
        identical=identical,
        warning=p.warning,
    )


def _rounds(instances: list[tuple[int, Prepared]]) -> Iterable[list[tuple[int, Prepared]]]:
    """Instances split so that no SOP Instance UID comes twice in one version: each that was sent stays readable."""
    rest = instances
    while rest:
        taken: dict[str, tuple[int, Prepared]] = {}
        later = []
        for position, p in rest:
            if p.sop_uid in taken:
                later.append((position, p))
            else:
                taken[p.sop_uid] = (position, p)
        yield list(taken.values())
        rest = later


def _slices(values: Sequence[Any], size: int = 500) -> Iterable[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
