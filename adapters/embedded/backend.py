"""The port over the embedded store: each coroutine runs its blocking half in a small thread pool."""

import asyncio
import functools
import gzip
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import orjson
import sqlalchemy as sa

from adapters.embedded import tagging
from adapters.embedded.accesses import Accesses
from adapters.embedded.copying import Copying
from adapters.embedded.datastores import create_datastore, datastore_of, delete_datastore
from adapters.embedded.events import Events
from adapters.embedded.handover import Giver
from adapters.embedded.importing import start_import
from adapters.embedded.intake import JobIntake
from adapters.embedded.jobs import Order, job_of, order_of, read_job
from adapters.embedded.mutations import Mutations
from adapters.embedded.processes import Presence
from adapters.embedded.reading import Reader
from adapters.embedded.restoring import Restoring
from adapters.embedded.times import from_ms
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.index import SqlIndex
from adapters.sql.queue import AWAITED, BACKGROUND
from gateway.domain.edits import MetadataUpdate
from gateway.domain.errors import InvalidInput, Locked, NotFound, VersionConflict
from gateway.domain.ids import DatastoreId, FrameId, ImageSetId, JobId, new_id
from gateway.domain.model import (
    Change,
    ConflictEntry,
    CopyRequest,
    CopyResult,
    Datastore,
    DatastoreStatus,
    Document,
    Entry,
    Frame,
    ImageSet,
    ImageSetRef,
    ImageSetState,
    ImageSetSummary,
    ImportJob,
    ImportRequest,
    JobResult,
    JobStatus,
    Outcome,
    Page,
    PageRequest,
    Resource,
    SearchCriteria,
    Selected,
    Selection,
    Staged,
    Workflow,
)
from gateway.domain.query import DicomQuery, SearchAnswer
from gateway.ports import SpoolStaging

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8
_SEARCHERS = {"sqlite": 2, "postgresql": 4}
_JOINERS = 2
"""Threads of a process that search, and that join the metadata of many instances. They mostly make rows and chunks, one
at a time whatever their number: eight at once take twice the processor's time of one, and eight times its memory. With
one, all would wait for the longest."""
_MANY = 50
_GIVEN_INSTANCES = 16
_GIVEN_BYTES = 32 << 20
"""What is larger than this is no small work that a worker does in between: it becomes a job at once."""
_JOBS_LISTED_MS = 90 * 86_400_000


class EmbeddedBackend:
    """`HealthImaging`, `History`, `Instances`, `DicomIndex` and `Intake` over one database and one blob store."""

    def __init__(
        self,
        *,
        database: Database,
        reader: Reader,
        index: SqlIndex,
        mutations: Mutations,
        copying: Copying,
        restoring: Restoring,
        intake: JobIntake,
        giver: Giver,
        spool: SpoolStaging,
        events: Events,
        presence: Presence,
        has_buckets: bool,
    ) -> None:
        self._database = database
        self._reader = reader
        self._index = index
        self._mutations = mutations
        self._copying = copying
        self._restoring = restoring
        self._intake = intake
        self._giver = giver
        self._spool = spool
        self._imports: set[asyncio.Task[Sequence[Outcome] | None]] = set()
        self._events = events
        self._presence = presence
        self._has_buckets = has_buckets
        self._accesses = Accesses(database)
        self._threads = ThreadPoolExecutor(_THREADS, "backend")
        self._searchers = ThreadPoolExecutor(_SEARCHERS[database.engine.dialect.name], "search")
        self._joiners = ThreadPoolExecutor(_JOINERS, "join")
        # Waiting for a job blocks a thread for long: those threads are apart, so that reads never queue behind them.
        self._waiters = ThreadPoolExecutor(64, "job-waiter")

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run_in(self._threads, call, *args, **kwargs)

    async def _run_in(self, threads: Executor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, functools.partial(call, *args, **kwargs))

    def close(self) -> None:
        self._giver.close()
        for threads in (self._threads, self._searchers, self._joiners, self._waiters):
            threads.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ data stores

    async def create_datastore(
        self,
        name: str | None,
        client_token: str | None = None,
        storage_format: str = "HTJ2K",
        tags: Mapping[str, str] | None = None,
    ) -> Datastore:
        made = await self._run(create_datastore, self._database, self._events, name, client_token, storage_format, tags)
        return replace(made, status=DatastoreStatus.CREATING)  # it is active by the time anybody can ask

    async def get_datastore(self, datastore: DatastoreId) -> Datastore:
        return await self._run(self._get_datastore, datastore)

    def _get_datastore(self, datastore: DatastoreId) -> Datastore:
        with self._database.read() as connection:
            row = connection.execute(sa.select(t.datastore).where(t.datastore.c.id == datastore)).first()
        if row is None:
            raise NotFound("There is no data store with this id.")
        return datastore_of(row)

    async def list_datastores(self, status: DatastoreStatus | None, page: PageRequest) -> Page[Datastore]:
        query = sa.select(t.datastore).order_by(t.datastore.c.pk.desc())
        if status is not None:
            query = query.where(t.datastore.c.status == status)
        return await self._run(self._page, query, t.datastore.c.pk, page, datastore_of)

    async def delete_datastore(self, datastore: DatastoreId) -> Datastore:
        return await self._run(delete_datastore, self._database, self._events, datastore)

    async def tags(self, resource: Resource) -> Mapping[str, str]:
        return await self._run(tagging.read, self._database, resource)

    async def tag(self, resource: Resource, tags: Mapping[str, str]) -> None:
        await self._run(tagging.add, self._database, resource, tags)

    async def untag(self, resource: Resource, keys: Sequence[str]) -> None:
        await self._run(tagging.remove, self._database, resource, keys)

    # ------------------------------------------------------------ import jobs

    async def get_import(self, datastore: DatastoreId, job: JobId) -> ImportJob:
        found = (await self._run(read_job, self._database, job)).job
        if found.datastore != datastore:
            raise NotFound("There is no import job with this id.")
        return found

    async def list_imports(
        self, datastore: DatastoreId, status: JobStatus | None, page: PageRequest
    ) -> Page[ImportJob]:
        pk = await self._run(self._reader.active, datastore)
        # Jobs of STOW and DIMSE have no S3 URIs, which the API requires: they are not listed (healthimaging.md 11.1).
        query = (
            sa.select(t.job)
            .where(
                t.job.c.datastore_pk == pk,
                t.job.c.source == "import",
                t.job.c.submitted_at > now_ms() - _JOBS_LISTED_MS,
            )
            .order_by(t.job.c.pk.desc())
        )
        if status is not None:
            query = query.where(t.job.c.status == status)
        return await self._run(self._page, query, t.job.c.pk, page, lambda row: job_of(row, datastore))

    async def start_import(self, datastore: DatastoreId, request: ImportRequest) -> ImportJob:
        pk = await self._run(self._reader.active, datastore)
        if not self._has_buckets:
            raise InvalidInput(
                "This gateway has no buckets. Start it with --s3-root FOLDER, or set GATEWAY_S3_ENDPOINT_URL."
            )
        return await self._run(start_import, self._database, self._events, self._presence, pk, datastore, request)

    # ------------------------------------------------------------ image sets

    async def search(
        self, datastore: DatastoreId, criteria: SearchCriteria, page: PageRequest
    ) -> Page[ImageSetSummary]:
        pk = await self._run(self._reader.active, datastore)
        items, token = await self._run_in(
            self._searchers, self._index.search_image_sets, pk, criteria, page.size, page.token
        )
        return Page(items, token)

    async def get_image_set(self, ref: ImageSetRef) -> ImageSet:
        return await self._run(self._get_image_set, ref)

    def _get_image_set(self, ref: ImageSetRef) -> ImageSet:
        pk = self._reader.key_of(ref.datastore)
        s, v = t.image_set, t.version
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(s).where(s.c.datastore_pk == pk, s.c.id == ref.image_set, s.c.state != ImageSetState.DELETED)
            ).first()
            if row is None:
                raise NotFound("There is no image set with this id.")
            number = row.latest if ref.version is None else min(ref.version, t.MAX_VERSION)
            version = connection.execute(sa.select(v).where(v.c.image_set_pk == row.pk, v.c.version == number)).first()
        if version is None:
            raise NotFound("The image set has no such version.")
        found = _image_set(ref.datastore, row, version)
        if ref.version is None and row.workflow == Workflow.DELETING:
            return _deleting(found)
        return found

    async def list_versions(self, ref: ImageSetRef, page: PageRequest) -> Page[ImageSet]:
        pk = await self._run(self._reader.key_of, ref.datastore)
        return await self._run(self._list_versions, pk, ref, page)

    def _list_versions(self, datastore_pk: int, ref: ImageSetRef, page: PageRequest) -> Page[ImageSet]:
        s, v = t.image_set, t.version
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(s).where(
                    s.c.datastore_pk == datastore_pk, s.c.id == ref.image_set, s.c.state != ImageSetState.DELETED
                )
            ).first()
        if row is None:
            raise NotFound("There is no image set with this id.")
        query = sa.select(v).where(v.c.image_set_pk == row.pk).order_by(v.c.version.desc())
        return self._page(query, v.c.version, page, lambda version: _image_set(ref.datastore, row, version))

    async def get_metadata(self, ref: ImageSetRef) -> Document:
        document = await self._run(self._reader.document, ref)
        self._accessed(ref.image_set)
        return document

    async def get_frame(self, ref: ImageSetRef, frame: FrameId) -> Frame:
        found = await self._run(self._reader.frame_by_id, ref, frame)
        self._accessed(ref.image_set)
        return found

    async def update_metadata(self, ref: ImageSetRef, expected: int, update: MetadataUpdate) -> ImageSet:
        pk = await self._run(self._reader.key_of, ref.datastore)
        return await self._run(self._mutations.accept_update, pk, ref, expected, update)

    async def copy(self, request: CopyRequest) -> CopyResult:
        pk = await self._run(self._reader.key_of, request.source.datastore)
        return await self._run(self._copying.accept, pk, request)

    async def delete(self, ref: ImageSetRef, actor: str | None = None) -> ImageSet:
        pk = await self._run(self._reader.key_of, ref.datastore)
        return await self._run(self._mutations.accept_delete, pk, ref, actor)

    async def restore(self, selection: Selection, actor: str | None = None) -> None:
        pk = await self._run(self._reader.active, selection.datastore)
        await self._run(self._restoring.restore, pk, selection, actor)

    def _accessed(self, *image_sets: ImageSetId) -> None:
        """Notes a read of image sets, without waiting for it to be written."""
        for image_set in image_sets:
            if self._accesses.is_new(image_set):
                self._threads.submit(self._accesses.write, image_set)

    # ------------------------------------------------------------ history

    async def changes(self, datastore: DatastoreId, after: int, limit: int) -> tuple[Sequence[Change], int]:
        pk = await self._run(self._reader.active, datastore)
        return await self._run(self._changes, pk, after, limit)

    def _changes(self, datastore_pk: int, after: int, limit: int) -> tuple[Sequence[Change], int]:
        c, s, j, d = t.change, t.image_set, t.job, t.datastore_seq
        query: sa.Select[Any] = (
            sa.select(
                c.c.seq,
                c.c.at,
                c.c.kind,
                s.c.id,
                c.c.version,
                s.c.is_primary,
                s.c.study_uid,
                s.c.series_uid,
                j.c.id.label("job"),
                c.c.principal,
            )
            .join(s, s.c.pk == c.c.image_set_pk)
            .outerjoin(j, j.c.pk == c.c.job_pk)
            .where(c.c.datastore_pk == datastore_pk, c.c.seq > min(after, t.MAX_KEY))
            .order_by(c.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            # First: an entry that comes in between is then told as one that there is, and not as one too many.
            rows = connection.execute(query).all()
            newest = connection.execute(sa.select(d.c.seq).where(d.c.datastore_pk == datastore_pk)).scalar_one()
        return [_change(row) for row in rows], newest

    async def preview(
        self, ref: ImageSetRef, expected: int, update: MetadataUpdate
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        pk = await self._run(self._reader.key_of, ref.datastore)
        return await self._run(self._preview, pk, ref, expected, update)

    def _preview(
        self, datastore_pk: int, ref: ImageSetRef, expected: int, update: MetadataUpdate
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        latest = self._get_image_set(replace(ref, version=None))
        if latest.version != expected:
            raise VersionConflict
        if latest.state is ImageSetState.LOCKED:
            raise Locked
        before = self._document(replace(ref, version=expected))
        if update.revert_to is not None:
            return before, self._document(replace(ref, version=update.revert_to))
        return before, self._mutations.preview(datastore_pk, ref, update, before)

    def _document(self, ref: ImageSetRef) -> dict[str, Any]:
        document: dict[str, Any] = orjson.loads(gzip.decompress(self._reader.document(ref).body))
        return document

    # ------------------------------------------------------------ instances

    async def select(self, selection: Selection) -> Selected:
        at_hand = self._reader.selected(selection)
        return at_hand if at_hand is not None else await self._run(self._reader.select, selection)

    async def metadata(self, entries: Sequence[Entry], base_url: str, *, gzip: bool) -> Document:
        self._accessed(*{entry.image_set for entry in entries})
        threads = self._joiners if len(entries) > _MANY else self._threads
        return await self._run_in(threads, self._reader.metadata, entries, base_url, gzip=gzip)

    async def head(self, entry: Entry) -> tuple[bytes, bytes]:
        self._accessed(entry.image_set)
        return (await self._run(self._reader.heads, [entry]))[0]

    def heads(self, entries: Sequence[Entry]) -> list[tuple[bytes, bytes]]:
        self._accessed(*{entry.image_set for entry in entries})
        return self._reader.heads(entries)

    async def frame(self, entry: Entry, index: int) -> Frame:
        self._accessed(entry.image_set)
        # A frame in the page cache costs less than the way to a thread and back.
        at_hand = self._reader.frame_at_hand(entry, index)
        return at_hand if at_hand is not None else await self._run(self._reader.frame, entry, index)

    def first_frames(self, entries: Sequence[Entry]) -> list[Frame]:
        return self._reader.first_frames(entries)

    async def frame_start(self, entry: Entry, index: int) -> Frame | None:
        return await self._run(self._reader.frame_start, entry, index)

    def first_lengths(self, entries: Sequence[Entry]) -> list[tuple[str, int]]:
        return self._reader.first_lengths(entries)

    async def pixel_data(self, entry: Entry) -> Frame:
        return await self._run(self._reader.pixel_data, entry)

    async def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        return await self._run(self._reader.bulk, entry, path)

    # ------------------------------------------------------------ search, intake

    async def find(self, query: DicomQuery) -> SearchAnswer:
        return await self._run_in(self._searchers, self._index.find, query)

    def announce(self, job: JobId, items: Sequence[Staged]) -> None:
        self._giver.announce(job, [(item.segment, item.offset, item.length) for item in items])

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged], job: JobId | None = None) -> JobId:
        datastore_pk = await self._run(self._reader.key_of, datastore)
        order = order_of(job or JobId(new_id()), datastore_pk, items)
        await self._run(self._intake.submit, order, BACKGROUND, self._giver.told(order.id))
        self._spool.submitted(items)
        return order.id

    async def imported(
        self, datastore: DatastoreId, items: Sequence[Staged], timeout_s: float
    ) -> Sequence[Outcome] | None:
        datastore_pk = self._reader.known_key(datastore)
        if datastore_pk is None:  # a way to a thread and back costs more than all else that is done here
            datastore_pk = await self._run(self._reader.key_of, datastore)
        order = order_of(JobId(new_id()), datastore_pk, items)
        # Whoever asked may leave: what he sent is imported all the same.
        task = asyncio.create_task(self._import(order, items, timeout_s))
        self._imports.add(task)
        task.add_done_callback(self._imports.discard)
        return await asyncio.shield(task)

    async def _import(self, order: Order, items: Sequence[Staged], timeout_s: float) -> Sequence[Outcome] | None:
        deadline = time.monotonic() + timeout_s
        if len(items) <= _GIVEN_INSTANCES and sum(item.length for item in items) <= _GIVEN_BYTES:
            outcomes = await self._giver.give(order, timeout_s)
            if outcomes is not None:
                self._spool.submitted(items)
                return outcomes
        await self._run(self._intake.submit, order, AWAITED)
        self._spool.submitted(items)
        result = await self.result(order.id, deadline - time.monotonic())
        return None if result is None else result.outcomes

    @property
    def handed_over(self) -> int:
        """Requests that workers have in hand, and that are no jobs yet."""
        return self._giver.waiting

    async def result(self, job: JobId, timeout_s: float) -> JobResult | None:
        """The job's outcomes once it has ended; None when it has not after `timeout_s`."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._waiters, self._intake.result, job, timeout_s)

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]:
        pk = await self._run(self._reader.active, datastore)
        c, s = t.conflict, t.image_set
        query = (
            sa.select(c, s.c.id.label("set_id"), s.c.study_uid, s.c.series_uid)
            .join(s, s.c.pk == c.c.image_set_pk)
            .where(c.c.datastore_pk == pk, s.c.state != ImageSetState.DELETED)
            .order_by(c.c.pk.desc())
        )
        return await self._run(self._page, query, c.c.pk, page, _conflict)

    def _page(
        self, query: "sa.Select[Any]", key: "sa.Column[int]", page: PageRequest, make: Callable[["sa.Row[Any]"], T]
    ) -> Page[T]:
        """A page in falling order of `key`; the token is the key of its last row."""
        if page.token is not None:
            if not page.token.isdecimal() or len(page.token) > 18:
                raise InvalidInput("The page token was not given by this operation. Start again without one.")
            query = query.where(key < sa.literal(int(page.token), sa.BigInteger))
        with self._database.read() as connection:
            rows = connection.execute(query.limit(page.size + 1)).all()
        more = len(rows) > page.size
        rows = rows[: page.size]
        return Page([make(row) for row in rows], str(getattr(rows[-1], key.name)) if more else None)


def _image_set(datastore: DatastoreId, row: "sa.Row[Any]", version: "sa.Row[Any]") -> ImageSet:
    return ImageSet(
        datastore=datastore,
        id=ImageSetId(row.id),
        version=version.version,
        state=ImageSetState(version.state),
        workflow=Workflow(version.workflow),
        is_primary=row.is_primary,
        created_at=from_ms(row.created_at),
        updated_at=from_ms(version.at),
        message=version.message,
        forced=version.forced,
        at=from_ms(version.at),
        actor=version.principal,
        accessed_at=from_ms(row.accessed_at or row.created_at),
    )


def _deleting(image_set: ImageSet) -> ImageSet:
    return replace(image_set, state=ImageSetState.LOCKED, workflow=Workflow.DELETING)


def _change(row: "sa.Row[Any]") -> Change:
    return Change(
        seq=row.seq,
        at=from_ms(row.at),
        kind=row.kind,
        image_set=ImageSetId(row.id),
        version=row.version,
        is_primary=row.is_primary,
        study_uid=row.study_uid,
        series_uid=row.series_uid,
        job=JobId(row.job) if row.job else None,
        actor=row.principal,
    )


def _conflict(row: "sa.Row[Any]") -> ConflictEntry:
    return ConflictEntry(
        image_set=ImageSetId(row.set_id),
        version=1,
        study_uid=row.study_uid,
        series_uid=row.series_uid,
        attribute=row.attribute,
        at=from_ms(row.at),
        source=row.source,
        instances=row.instances,
    )
