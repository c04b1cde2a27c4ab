"""What a worker process does: import jobs, edits and deletes, encoding, and looking after the store."""

import functools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import sqlalchemy as sa
import structlog

from adapters.embedded import intake
from adapters.embedded.encoding import Encoder
from adapters.embedded.mutations import Mutations
from adapters.embedded.preparing import PROCESSING_FAILURE, Packs, Prepared, Preparer
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import ImportBatch, Resent, publish_imports
from adapters.embedded.sweeping import Sweeper
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import MAX_ATTEMPTS, LeaseLost, WorkItem, WorkQueue
from gateway.domain.errors import Corrupt, GatewayError, Unavailable
from gateway.domain.ids import DatastoreId
from gateway.domain.model import JobStatus, Outcome
from gateway.ports import BlobStore, SpoolStaging

log = structlog.get_logger("gateway.worker")

_GROUP = 64
"""Import jobs that share a transaction at most."""
_GROUP_INSTANCES = 2000
_IDLE_S = 1.0
_RENEW_S = 15.0
_DEATHS = 8
"""How often a worker may die over one job before nobody takes it up any more."""
_PAUSES_MS = {False: 200, True: 2000}
"""Before the second attempt; eight times as long before the third. Somebody waits for an edit to end."""
_LOCKED_MS = 50
"""How long a job waits before it tries again at a locked image set."""


_JOB = (
    sa.select(t.job, t.datastore.c.id.label("datastore"))
    .join(t.datastore, t.datastore.c.pk == t.job.c.datastore_pk)
    .where(t.job.c.pk == sa.bindparam("job_pk"))
)


def _groups(imports: list[WorkItem]) -> Iterator[list[WorkItem]]:
    """Jobs that share a transaction; one that was begun before, and not ended, gets its own."""
    group: list[WorkItem] = []
    count = 0
    for item in imports:
        if item.attempt > 1:
            yield [item]
            continue
        if group and count + item.subject["instances"] > _GROUP_INSTANCES:
            yield group
            group, count = [], 0
        group.append(item)
        count += item.subject["instances"]
    if group:
        yield group


class ImportMetrics(Protocol):
    """Told once for each job."""

    def imported(self, source: str, outcomes: Sequence[Outcome], seconds: float) -> None: ...


@dataclass(slots=True)
class Worker:
    """The loop of one worker process. Blocking; `stop` may be called from another thread."""

    database: Database
    queue: WorkQueue
    presence: Presence
    spool: SpoolStaging
    blobs: BlobStore
    preparer: Preparer
    mutations: Mutations
    encoder: Encoder
    sweeper: Sweeper
    datastore_pk: Callable[[DatastoreId], int]
    resent: Resent
    metrics: ImportMetrics
    _stop: threading.Event = field(default_factory=threading.Event)
    _settled: set[str] = field(default_factory=set)
    _held: Sequence[WorkItem] = ()
    _syncing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "sync"))

    def stop(self) -> None:
        self._stop.set()
        self.presence.ring("worker")

    def run(self) -> None:
        """Until `stop`: finishes what it has begun, then returns."""
        with suppress(GatewayError):
            intake.retry_failed(self.database)
        self.encoder.start()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        looked = 0.0
        rung = False
        while not self._stop.is_set():
            if time.monotonic() - looked >= _IDLE_S:
                self._look_after()
                looked = time.monotonic()
            worked = self._work(expected=rung)
            rung = not worked and bool(self.presence.wait(_IDLE_S))
        self.encoder.stop()

    def _look_after(self) -> None:
        try:
            self.queue.reclaim()
            intake.recover(self.database, self.spool, self.datastore_pk, self._settled)
            self.sweeper.run_one()
        except GatewayError as fault:
            log.warning("worker.upkeep", code=fault.code, detail=fault.detail)
        except Exception:  # another worker was faster, or a publication met the sweeper: the next look finds it settled
            log.exception("worker.upkeep")

    def _work(self, *, expected: bool = False) -> bool:
        """Whether there was anything to do; `expected` when somebody rang."""
        try:
            items = self.queue.lease(("update", "delete", "import"), _GROUP, expected=expected)
        except GatewayError as fault:
            log.warning("worker.lease", code=fault.code, detail=fault.detail)
            self._stop.wait(_IDLE_S)
            return False
        for item in items:
            if item.kind != "import":
                self._guarded([item], functools.partial(self.mutations.run, item))
        for group in _groups([item for item in items if item.kind == "import"]):
            if group[0].attempt > _DEATHS:
                self._give_up(group[0], "the worker died of it")
            else:
                self._guarded(group, functools.partial(self._import, group))
        return bool(items)

    def _guarded(self, items: Sequence[WorkItem], run: Callable[[], None]) -> None:
        """Runs work. A group that fails is run again one by one; what fails alone comes back later, and is given up
        after its attempts."""
        held, self._held = self._held, items
        try:
            run()
        except LeaseLost:
            log.warning("worker.lease_lost", items=len(items))
            for item in items:  # those of the group that are still ours; the lost one is left alone
                self.queue.retry(item, "shared a transaction with a lost lease", delay_ms=0, counts=False)
        except Exception as fault:
            detail = fault.detail if isinstance(fault, GatewayError) else type(fault).__name__
            log.exception("worker.failed", kinds=sorted({item.kind for item in items}), items=len(items))
            for item in items:
                if isinstance(fault, Unavailable | OSError):  # the machine's fault, not the work's: it may take long
                    self.queue.retry(item, detail, delay_ms=1000, counts=False)
                elif len(items) > 1:
                    self._guarded([item], functools.partial(self._import, [item]))
                elif item.attempt < MAX_ATTEMPTS:
                    self.queue.retry(item, detail, delay_ms=_PAUSES_MS[item.kind == "import"] * item.attempt**3)
                else:
                    self._give_up(item, detail)
        finally:
            self._held = held

    def _renew(self) -> None:
        """Keeps the leases of what is under way, for as long as this process lives."""
        while not self._stop.wait(_RENEW_S):
            if held := self._held:
                with suppress(GatewayError):
                    self.queue.renew(held)

    def _give_up(self, item: WorkItem, detail: str) -> None:
        if item.kind == "import":
            with self.database.write() as connection:
                self.queue.finish(connection, item)
                connection.execute(
                    sa.update(t.job)
                    .where(t.job.c.pk == item.subject["job"])
                    .values(
                        status=JobStatus.FAILED,
                        ended_at=now_ms(),
                        message=f"INTERNAL_ERROR: {detail}",
                        keeps_spool=True,
                    )
                )
            self._ring([item])
        else:
            self.mutations.give_up(item, detail)

    # ------------------------------------------------------------ imports

    def _import(self, items: list[WorkItem]) -> None:
        began = time.monotonic()
        self.encoder.stand_back()
        packs = Packs(self.blobs)
        try:
            jobs = [self._job(item) for item in items]
            # What was staged without a sync (STOW) becomes durable while it is being prepared.
            segments = {segment for _, staged in jobs for segment, _, _ in staged}
            settled = self._syncing.submit(self.spool.settle, segments)
            batches = [self._prepare(item, row, staged, packs) for item, (row, staged) in zip(items, jobs, strict=True)]
            packs.finish()
            settled.result()
        except BaseException:
            packs.abandon()
            raise
        waiting = publish_imports(self.database, self.queue, batches, packs, self.resent)
        for batch in waiting:
            self.queue.retry(batch.item, "waits for a locked image set", delay_ms=_LOCKED_MS, counts=False)
        ended = [batch for batch in batches if batch not in waiting]
        self._ring([batch.item for batch in ended])
        self.encoder.wake()
        for batch in ended:
            outcomes = [
                Outcome(r.sop_class, r.sop_uid, None, None, warning=r.warning) if isinstance(r, Prepared) else r
                for r in batch.results
            ]
            self.metrics.imported(batch.source, outcomes, time.monotonic() - began)
            refused = [o.failure for o in outcomes if o.failure is not None]
            if refused and batch.source == "dimse":
                log.warning("import.refused_after_acknowledgement", job=batch.item.subject["id"], codes=sorted(refused))

    def _ring(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            if item.subject["source"] == "stow":  # somebody waits for it
                self.presence.ring("web", item.subject["id"])

    def _job(self, item: WorkItem) -> tuple[Any, list[tuple[str, int, int]]]:
        """The job's row, and where its instances lie in the spool."""
        with self.database.read() as connection:
            row = connection.execute(_JOB, {"job_pk": item.subject["job"]}).one()
        return row, intake.unpack_items(row.staged)

    def _prepare(self, item: WorkItem, row: Any, staged: Sequence[tuple[str, int, int]], packs: Packs) -> ImportBatch:
        results: list[Prepared | Outcome] = []
        for segment, offset, length in staged:
            try:
                origin, body, body_at = self.spool.read(segment, offset, length)
            except Corrupt as fault:
                log.error("worker.spool_damaged", detail=fault.detail)
                results.append(
                    Outcome(None, None, None, None, failure=PROCESSING_FAILURE, message="The staged copy is damaged.")
                )
                continue
            try:
                results.append(self.preparer.prepare(origin, segment, offset, body, body_at, packs))
            except Exception as fault:
                if item.attempt < MAX_ATTEMPTS or isinstance(fault, Unavailable):
                    raise
                log.exception("worker.instance_failed")  # one that cannot be prepared does not take the others with it
                results.append(
                    Outcome(
                        origin.sop_class,
                        origin.sop_uid,
                        None,
                        None,
                        failure=PROCESSING_FAILURE,
                        message="The gateway failed to process the instance; its log says more.",
                    )
                )
        return ImportBatch(
            item=item,
            job_pk=row.pk,
            datastore_pk=row.datastore_pk,
            datastore_id=DatastoreId(row.datastore),
            source=row.source,
            results=results,
            called_ae=row.called_ae,
            calling_ae=row.calling_ae,
            principal=row.principal,
        )
