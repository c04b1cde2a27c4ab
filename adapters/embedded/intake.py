"""Import jobs: from staged instances to a job and its work item in one commit; and what a crash left behind."""

import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
import structlog

from adapters.embedded.jobs import Order, insert_job, order_of, read_job, unpack_places
from adapters.embedded.processes import Presence
from adapters.sql import tables as t
from adapters.sql.database import Database
from adapters.sql.queue import BACKGROUND, enqueue
from gateway.domain.errors import NotFound
from gateway.domain.ids import DatastoreId, JobId, new_id
from gateway.domain.model import JobResult, JobStatus, Staged
from gateway.ports import SpoolStaging

log = structlog.get_logger("gateway.intake")

_LOOK_AGAIN_S = 0.5


class JobIntake:
    """Submits jobs and waits for their end. Blocking; thread-safe."""

    def __init__(self, database: Database, presence: Presence) -> None:
        self._database = database
        self._presence = presence
        self._lock = threading.Lock()
        self._waiting: dict[JobId, threading.Event] = {}

    def heard(self, message: str) -> None:
        """A worker rang: the job named has ended."""
        with self._lock:
            event = self._waiting.get(JobId(message))
        if event is not None:
            event.set()

    def submit(self, order: Order, priority: int, keep_for: str | None = None) -> None:
        """Makes the job, unless a worker has made and ended it, to whom the order had been given before; it is kept a
        moment for the worker `keep_for`."""
        # The spool finds again, by `recover`, what a lost job named.
        with self._database.write(durable=False) as connection:
            is_new = submit_job(connection, order, priority, keep_for)
        if is_new:
            self._presence.ring("worker")

    def result(self, job: JobId, timeout_s: float) -> JobResult | None:
        """The job with its outcomes; None when it has not ended after `timeout_s`. Raises NotFound."""
        deadline = time.monotonic() + timeout_s
        event = threading.Event()
        with self._lock:
            self._waiting[job] = event
        try:
            while True:
                found = read_job(self._database, job, with_outcomes=True)
                if found.job.status in (JobStatus.COMPLETED, JobStatus.FAILED):
                    return found
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                if event.wait(min(_LOOK_AGAIN_S, remaining)):
                    event.clear()
        finally:
            with self._lock:
                self._waiting.pop(job, None)


def submit_job(connection: sa.Connection, order: Order, priority: int, keep_for: str | None = None) -> bool:
    """The job, its segments and its work item, in the caller's transaction; False when the job is there already."""
    job_pk = insert_job(connection, order, JobStatus.SUBMITTED)
    if job_pk is None:
        return False
    _enqueue(
        connection,
        priority,
        job_pk,
        order.id,
        order.source,
        len(order.places),
        concerns=order.concerns,
        keep_for=keep_for,
    )
    return True


def _enqueue(
    connection: sa.Connection,
    priority: int,
    job_pk: int,
    job_id: str,
    source: str,
    count: int,
    *,
    concerns: Sequence[str] = (),
    keep_for: str | None = None,
) -> None:
    subject = {"job": job_pk, "id": job_id, "source": source, "size": count, "concerns": concerns}
    enqueue(connection, "import", subject, priority=priority, keep_for=keep_for)


def recover(
    database: Database,
    spool: SpoolStaging,
    datastore_pk: Callable[[DatastoreId], int],
    settled: set[str],
    *,
    may_delete: bool = True,
) -> int:
    """Submits what dead processes had received but not submitted, and removes segments that nobody needs, if it may.

    `settled` remembers, between calls, segments that only wait for the encoder. How many instances were submitted.
    """
    submitted = 0
    for name in spool.segments():
        if name in settled and not (may_delete and _unneeded(database, name)):
            continue
        segment = spool.abandoned(name)
        if segment is None:
            continue
        try:
            if name not in settled:
                submitted += _submit_rest(database, segment.name, list(segment.frames()), datastore_pk)
                settled.add(name)
            if may_delete and _unneeded(database, name):
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
            covered |= {offset for name, offset, _ in unpack_places(staged) if name == segment}
        # A job from a bucket reads again what it had not finished copying.
        rest = [frame for frame in frames if frame.offset not in covered and frame.origin.source != "import"]
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
            submit_job(connection, order_of(JobId(new_id()), pk, items), BACKGROUND)
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
            _enqueue(connection, BACKGROUND, pk, job_id, source, len(unpack_places(staged)))  # it has lost its turn
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
