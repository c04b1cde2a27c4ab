"""Import jobs: from staged instances to a job and its work item in one commit; and what a crash left behind."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import sqlalchemy as sa
import structlog
from isal import isal_zlib

from adapters.embedded.processes import Presence
from adapters.embedded.publishing import unpack_outcomes
from adapters.embedded.times import from_ms
from adapters.sql import tables as t
from adapters.sql.database import Database, Statement, now_ms
from adapters.sql.queue import enqueue
from gateway.domain.errors import NotFound
from gateway.domain.ids import DatastoreId, JobId, new_id
from gateway.domain.model import ImportJob, JobResult, JobStatus, Staged
from gateway.ports import SpoolStaging

log = structlog.get_logger("gateway.intake")

_LOOK_AGAIN_S = 0.5

_INSERT_JOB = Statement(sa.insert(t.job).returning(t.job.c.pk))
_INSERT_SEGMENTS = Statement(sa.insert(t.job_segment))
_JOB_BY_ID = (
    sa.select(t.job, t.datastore.c.id.label("datastore"))
    .join(t.datastore, t.datastore.c.pk == t.job.c.datastore_pk)
    .where(t.job.c.id == sa.bindparam("job_id"))
)


class JobIntake:
    """Submits jobs and waits for their end. Blocking; thread-safe."""

    def __init__(self, database: Database, spool: SpoolStaging, presence: Presence) -> None:
        self._database = database
        self._spool = spool
        self._presence = presence
        self._lock = threading.Lock()
        self._waiting: dict[JobId, threading.Event] = {}

    def heard(self, message: str) -> None:
        """A worker rang: the job named has ended."""
        with self._lock:
            event = self._waiting.get(JobId(message))
        if event is not None:
            event.set()

    def submit(self, datastore_pk: int, items: Sequence[Staged]) -> JobId:
        first = items[0].origin
        job_id = JobId(new_id())
        with self._lock:
            self._waiting[job_id] = threading.Event()
        # The spool finds again, by `recover`, what a lost job named.
        with self._database.write(durable=False) as connection:
            insert_job(connection, datastore_pk, job_id, items, source=first.source)
        self._spool.submitted(items)
        self._presence.ring("worker")
        return job_id

    def result(self, job: JobId, timeout_s: float) -> JobResult | None:
        deadline = time.monotonic() + timeout_s
        with self._lock:
            event = self._waiting.setdefault(job, threading.Event())
        try:
            while True:
                remaining = deadline - time.monotonic()
                rung = event.wait(max(0.0, min(_LOOK_AGAIN_S, remaining)))
                found = read_job(self._database, job, with_outcomes=True)
                if found.job.status in (JobStatus.COMPLETED, JobStatus.FAILED):
                    return found
                if remaining <= 0:
                    return None
                if rung:
                    event.clear()
        finally:
            with self._lock:
                self._waiting.pop(job, None)


def insert_job(
    connection: sa.Connection, datastore_pk: int, job_id: JobId, items: Sequence[Staged], *, source: str
) -> None:
    """The job, its segments and its work item, in the caller's transaction."""
    origin = items[0].origin
    job_pk = _INSERT_JOB.scalar(
        connection,
        {
            "id": job_id,
            "datastore_pk": datastore_pk,
            "name": f"{source}-{job_id[:12]}",
            "source": source,
            "status": JobStatus.SUBMITTED,
            "submitted_at": now_ms(),
            "called_ae": origin.called_ae,
            "calling_ae": origin.calling_ae,
            "principal": origin.principal,
            "staged": pack_items(items),
        },
    )
    _INSERT_SEGMENTS.run_each(
        connection,
        [{"segment": segment, "job_pk": job_pk} for segment in sorted({item.segment for item in items})],
    )
    subject = {"job": job_pk, "id": job_id, "source": source, "instances": len(items)}
    enqueue(connection, "import", subject)


def pack_items(items: Sequence[Staged]) -> bytes:
    return isal_zlib.compress(orjson.dumps([[item.segment, item.offset, item.length] for item in items]), 1)


def unpack_items(data: bytes) -> list[tuple[str, int, int]]:
    """Segment, offset and length of each staged instance."""
    return [(segment, offset, length) for segment, offset, length in orjson.loads(isal_zlib.decompress(data))]


def read_job(database: Database, job: JobId, *, with_outcomes: bool = False) -> JobResult:
    """Raises NotFound."""
    with database.read() as connection:
        row = connection.execute(_JOB_BY_ID, {"job_id": job}).first()
    if row is None:
        raise NotFound("There is no import job with this id.")
    outcomes = unpack_outcomes(row.outcomes) if with_outcomes and row.outcomes else []
    return JobResult(job_of(row, DatastoreId(row.datastore)), outcomes)


def job_of(row: "sa.Row[Any]", datastore: DatastoreId) -> ImportJob:
    """An import job from its row."""
    return ImportJob(
        id=JobId(row.id),
        datastore=datastore,
        name=row.name,
        status=JobStatus(row.status),
        source=row.source,
        submitted_at=from_ms(row.submitted_at),
        ended_at=from_ms(row.ended_at) if row.ended_at else None,
        message=row.message,
        role_arn=row.role_arn,
        input_uri=row.input_uri,
        output_uri=row.output_uri,
        counts={
            "imported": row.n_imported,
            "identical": row.n_identical,
            "failed": row.n_failed,
            "warned": row.n_warned,
        },
    )


def recover(
    database: Database, spool: SpoolStaging, datastore_pk: Callable[[DatastoreId], int], settled: set[str]
) -> int:
    """Submits what dead processes had received but not submitted, and removes segments that nobody needs.

    `settled` remembers, between calls, segments that only wait for the encoder. How many instances were submitted.
    """
    submitted = 0
    for name in spool.segments():
        if name in settled and not _unneeded(database, name):
            continue
        segment = spool.abandoned(name)
        if segment is None:
            continue
        try:
            if name not in settled:
                submitted += _submit_rest(database, segment.name, list(segment.frames()), datastore_pk)
                settled.add(name)
            if _unneeded(database, name):
                segment.delete()
                settled.discard(name)
        finally:
            segment.release()
    return submitted


def _submit_rest(
    database: Database, segment: str, frames: list[Staged], datastore_pk: Callable[[DatastoreId], int]
) -> int:
    with database.write() as connection:
        covered: set[int] = set()
        for (staged,) in connection.execute(
            sa.select(t.job.c.staged)
            .join(t.job_segment, t.job_segment.c.job_pk == t.job.c.pk)
            .where(t.job_segment.c.segment == segment)
        ):
            covered |= {offset for name, offset, _ in unpack_items(staged) if name == segment}
        rest = [frame for frame in frames if frame.offset not in covered]
        groups: dict[tuple[str, str, str | None], list[Staged]] = {}
        for frame in rest:
            origin = frame.origin
            groups.setdefault((origin.datastore, origin.source, origin.calling_ae), []).append(frame)
        for items in groups.values():
            try:
                pk = datastore_pk(items[0].origin.datastore)
            except NotFound:
                log.warning("spool.store_deleted", segment=segment, instances=len(items))
                rest = [frame for frame in rest if frame not in items]
                continue
            insert_job(connection, pk, JobId(new_id()), items, source=items[0].origin.source)
    if rest:
        log.info("spool.recovered", segment=segment, instances=len(rest))
    return len(rest)


def retry_failed(database: Database) -> int:
    """Gives jobs that failed as a whole another chance, at the start of a worker: what failed them may be mended."""
    j = t.job
    with database.write() as connection:
        failed = connection.execute(
            sa.update(j)
            .where(j.c.status == JobStatus.FAILED, j.c.keeps_spool)
            .values(status=JobStatus.SUBMITTED, message=None, keeps_spool=False)
            .returning(j.c.pk, j.c.id, j.c.source, j.c.staged)
        ).all()
        for pk, job_id, source, staged in failed:
            subject = {"job": pk, "id": job_id, "source": source, "instances": len(unpack_items(staged))}
            enqueue(connection, "import", subject)
    return len(failed)


def _unneeded(database: Database, segment: str) -> bool:
    """No pixels lie in it any more and every job that names it has ended."""
    with database.read() as connection:
        pixels = sa.select(t.pixel.c.pk).join(t.blob).where(t.blob.c.name == f"spool/{segment}").limit(1)
        jobs = (
            sa.select(t.job.c.pk)
            .join(t.job_segment)
            .where(
                t.job_segment.c.segment == segment,
                sa.or_(t.job.c.status.in_((JobStatus.SUBMITTED, JobStatus.IN_PROGRESS)), t.job.c.keeps_spool),
            )
            .limit(1)
        )
        return connection.execute(pixels).first() is None and connection.execute(jobs).first() is None
