"""The port over the embedded store: each coroutine runs its blocking half in a small thread pool."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import orjson
import sqlalchemy as sa

from adapters.embedded.intake import JobIntake, job_of, read_job
from adapters.embedded.mutations import Mutations
from adapters.embedded.reading import Reader
from adapters.embedded.times import from_ms
from adapters.sql import tables as t
from adapters.sql.database import Database, insert_or_keep, now_ms
from adapters.sql.index import SqlIndex
from gateway.domain.edits import MetadataUpdate
from gateway.domain.errors import Conflict, InvalidInput, NotFound
from gateway.domain.ids import DatastoreId, FrameId, ImageSetId, JobId, new_id
from gateway.domain.model import (
    ConflictEntry,
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
    Page,
    PageRequest,
    SearchCriteria,
    Selected,
    Selection,
    Staged,
    Workflow,
)
from gateway.domain.query import DicomQuery, SearchAnswer

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8


class EmbeddedBackend:
    """`HealthImaging`, `Instances`, `DicomIndex` and `Intake` over one database and one blob store."""

    def __init__(
        self, database: Database, reader: Reader, index: SqlIndex, mutations: Mutations, intake: JobIntake
    ) -> None:
        self._database = database
        self._reader = reader
        self._index = index
        self._mutations = mutations
        self._intake = intake
        self._threads = ThreadPoolExecutor(_THREADS, "backend")
        # Waiting for a job blocks a thread for long: those threads are apart, so that reads never queue behind them.
        self._waiters = ThreadPoolExecutor(64, "job-waiter")

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(call, *args, **kwargs))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._waiters.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ data stores

    async def create_datastore(
        self, name: str | None, client_token: str | None = None, storage_format: str = "HTJ2K"
    ) -> Datastore:
        return await self._run(create_datastore, self._database, name, client_token, storage_format)

    async def get_datastore(self, datastore: DatastoreId) -> Datastore:
        return await self._run(self._get_datastore, datastore)

    def _get_datastore(self, datastore: DatastoreId) -> Datastore:
        with self._database.read() as connection:
            row = connection.execute(sa.select(t.datastore).where(t.datastore.c.id == datastore)).first()
        if row is None:
            raise NotFound("There is no data store with this id.")
        return _datastore(row)

    async def list_datastores(self, status: DatastoreStatus | None, page: PageRequest) -> Page[Datastore]:
        query = sa.select(t.datastore).order_by(t.datastore.c.pk.desc())
        if status is not None:
            query = query.where(t.datastore.c.status == status)
        return await self._run(self._page, query, t.datastore.c.pk, page, _datastore)

    async def delete_datastore(self, datastore: DatastoreId) -> Datastore:
        return await self._run(self._delete_datastore, datastore)

    def _delete_datastore(self, datastore: DatastoreId) -> Datastore:
        pk = self._reader.datastore_pk(datastore)
        s = t.image_set
        with self._database.write() as connection:
            used = connection.execute(
                sa.select(s.c.pk).where(s.c.datastore_pk == pk, s.c.state != ImageSetState.DELETED).limit(1)
            ).first()
            if used is not None:
                raise Conflict("The data store still has image sets. Delete them first.")
            row = connection.execute(
                sa.update(t.datastore)
                .where(t.datastore.c.pk == pk)
                .values(status=DatastoreStatus.DELETED, updated_at=now_ms())
                .returning(t.datastore)
            ).one()
        self._reader.forget_datastore(datastore)
        deleted = _datastore(row)
        return Datastore(
            deleted.id,
            deleted.name,
            DatastoreStatus.DELETING,
            deleted.created_at,
            deleted.updated_at,
            deleted.storage_format,
        )

    # ------------------------------------------------------------ import jobs

    async def get_import(self, datastore: DatastoreId, job: JobId) -> ImportJob:
        found = (await self._run(read_job, self._database, job)).job
        if found.datastore != datastore:
            raise NotFound("There is no import job with this id.")
        return found

    async def list_imports(
        self, datastore: DatastoreId, status: JobStatus | None, page: PageRequest
    ) -> Page[ImportJob]:
        pk = await self._run(self._reader.datastore_pk, datastore)
        # Jobs of STOW and DIMSE have no S3 URIs, which the API requires: they are not listed (healthimaging.md 11.1).
        query = (
            sa.select(t.job).where(t.job.c.datastore_pk == pk, t.job.c.source == "import").order_by(t.job.c.pk.desc())
        )
        if status is not None:
            query = query.where(t.job.c.status == status)
        return await self._run(self._page, query, t.job.c.pk, page, lambda row: job_of(row, datastore))

    async def start_import(self, datastore: DatastoreId, request: ImportRequest) -> ImportJob:
        await self._run(self._reader.datastore_pk, datastore)
        raise InvalidInput("Imports from S3 need a mapping of buckets, which this gateway has not been given.")

    # ------------------------------------------------------------ image sets

    async def search(
        self, datastore: DatastoreId, criteria: SearchCriteria, page: PageRequest
    ) -> Page[ImageSetSummary]:
        pk = await self._run(self._reader.datastore_pk, datastore)
        items, token = await self._run(self._index.search_image_sets, pk, criteria, page.size, page.token)
        return Page(items, token)

    async def get_image_set(self, ref: ImageSetRef) -> ImageSet:
        return await self._run(self._get_image_set, ref)

    def _get_image_set(self, ref: ImageSetRef) -> ImageSet:
        pk = self._reader.datastore_pk(ref.datastore)
        s, v = t.image_set, t.version
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(s).where(s.c.datastore_pk == pk, s.c.id == ref.image_set, s.c.state != ImageSetState.DELETED)
            ).first()
            if row is None:
                raise NotFound("There is no image set with this id.")
            version = connection.execute(
                sa.select(v).where(
                    v.c.image_set_pk == row.pk, v.c.version == (row.latest if ref.version is None else ref.version)
                )
            ).first()
        if version is None:
            raise NotFound("The image set has no such version.")
        found = _image_set(ref.datastore, row, version)
        if ref.version is None and row.workflow == Workflow.DELETING:
            return _deleting(found)
        return found

    async def list_versions(self, ref: ImageSetRef, page: PageRequest) -> Page[ImageSet]:
        pk = await self._run(self._reader.datastore_pk, ref.datastore)
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
        return await self._run(self._reader.document, ref)

    async def get_frame(self, ref: ImageSetRef, frame: FrameId) -> Frame:
        return await self._run(self._reader.frame_by_id, ref, frame)

    async def update_metadata(self, ref: ImageSetRef, expected: int, update: MetadataUpdate) -> ImageSet:
        pk = await self._run(self._reader.datastore_pk, ref.datastore)
        return await self._run(self._mutations.accept_update, pk, ref, expected, update)

    async def delete(self, ref: ImageSetRef) -> ImageSet:
        pk = await self._run(self._reader.datastore_pk, ref.datastore)
        return await self._run(self._mutations.accept_delete, pk, ref)

    # ------------------------------------------------------------ instances

    async def select(self, selection: Selection) -> Selected:
        at_hand = self._reader.selected(selection)
        return at_hand if at_hand is not None else await self._run(self._reader.select, selection)

    async def metadata(self, entries: Sequence[Entry], base_url: str, *, gzip: bool) -> Document:
        return await self._run(self._reader.metadata, entries, base_url, gzip=gzip)

    async def head(self, entry: Entry) -> tuple[bytes, bytes]:
        return await self._run(self._reader.head, entry)

    async def frame(self, entry: Entry, index: int) -> Frame:
        # A frame in the page cache costs less than the way to a thread and back.
        at_hand = self._reader.frame_at_hand(entry, index)
        return at_hand if at_hand is not None else await self._run(self._reader.frame, entry, index)

    async def pixel_data(self, entry: Entry) -> Frame:
        return await self._run(self._reader.pixel_data, entry)

    async def bulk(self, entry: Entry, path: str) -> tuple[str, bytes]:
        return await self._run(self._reader.bulk, entry, path)

    # ------------------------------------------------------------ search, intake

    async def find(self, query: DicomQuery) -> SearchAnswer:
        return await self._run(self._index.find, query)

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged]) -> JobId:
        pk = await self._run(self._reader.datastore_pk, datastore)
        return await self._run(self._intake.submit, pk, items)

    async def result(self, job: JobId, timeout_s: float) -> JobResult | None:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._waiters, self._intake.result, job, timeout_s)

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]:
        pk = await self._run(self._reader.datastore_pk, datastore)
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
            query = query.where(key < int(page.token))
        with self._database.read() as connection:
            rows = connection.execute(query.limit(page.size + 1)).all()
        more = len(rows) > page.size
        rows = rows[: page.size]
        return Page([make(row) for row in rows], str(getattr(rows[-1], key.name)) if more else None)


def create_datastore(database: Database, name: str | None, client_token: str | None, storage_format: str) -> Datastore:
    """A new data store, or with a known client token the one that it made. Raises Conflict, InvalidInput."""
    if storage_format != "HTJ2K":
        raise InvalidInput("losslessStorageFormat: this gateway stores HTJ2K only.")
    digest = orjson.dumps([name, storage_format])
    token = {"operation": "CreateDatastore", "token": client_token, "request_digest": digest}
    with database.write() as connection:
        k = t.client_token
        if client_token is not None:
            database.lock_words(connection, [f"client token {client_token}"])
            known = connection.execute(
                sa.select(k.c.request_digest, k.c.answer).where(
                    k.c.operation == "CreateDatastore", k.c.token == client_token
                )
            ).first()
            if known is not None:
                if bytes(known.request_digest) != digest:
                    raise Conflict("The client token was used for another request.")
                return _datastore(
                    connection.execute(sa.select(t.datastore).where(t.datastore.c.id == known.answer)).one()
                )
        datastore_id = new_id()
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
        connection.execute(
            sa.insert(t.datastore_seq),
            {"datastore_pk": row.pk, "seq": 0, "last_at": 0},
        )
        if client_token is not None:
            insert_or_keep(connection.dialect.name, k).run(connection, {**token, "answer": datastore_id})
    return _datastore(row)


def default_datastore(database: Database) -> DatastoreId:
    """The data store that exists from the first start on, and keeps its id."""
    return create_datastore(database, "default", "imageset-gateway-default", "HTJ2K").id


def _datastore(row: "sa.Row[Any]") -> Datastore:
    return Datastore(
        DatastoreId(row.id),
        row.name,
        DatastoreStatus(row.status),
        from_ms(row.created_at),
        from_ms(row.updated_at),
        row.storage_format,
    )


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
    )


def _deleting(image_set: ImageSet) -> ImageSet:
    return replace(image_set, state=ImageSetState.LOCKED, workflow=Workflow.DELETING)


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
