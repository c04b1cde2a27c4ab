"""What a worker process does: import jobs, edits and deletes, encoding, and looking after the store."""

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import sqlalchemy as sa
import structlog

from adapters.embedded import intake, quarantining
from adapters.embedded.ahead import Ahead
from adapters.embedded.encoding import Encoder
from adapters.embedded.events import Courier, Events
from adapters.embedded.handover import Given, Taker
from adapters.embedded.holding import Holding
from adapters.embedded.importing import Importer
from adapters.embedded.jobs import Order, Place, unpack_places
from adapters.embedded.preparing import PROCESSING_FAILURE, Packs, Prepared, Preparer
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import ImportBatch, Resent, publish_imports
from adapters.embedded.sweeping import Sweeper
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import AWAITED, BACKGROUND, FIRST, MAX_ATTEMPTS, LeaseLost, WorkItem, WorkQueue
from gateway.domain.errors import Corrupt, GatewayError, Unavailable
from gateway.domain.ids import DatastoreId, JobId
from gateway.domain.model import JobStatus, Outcome
from gateway.ports import BlobStore, Quarantine, SpoolStaging

log = structlog.get_logger("gateway.worker")

_GROUP = 64
"""Import jobs that share a transaction at most."""
_GROUP_INSTANCES = 500
"""And their instances, unless one job has more."""
_IN_A_ROW = 8
"""How often work that somebody waits for goes first, before what nobody waits for has its turn."""
_LOOK_S = 0.02
"""How long an import is prepared before somebody else's work is looked for."""
_SEARCH_S = 0.2
"""And before it is looked for in the queue though nobody has rung."""
_IDLE_S = 1.0
_RENEW_S = 15.0
_DEATHS = 8
"""How often a worker may die over one job or operation before nobody takes it up any more."""
_PAUSES_MS = {False: 200, True: 2000}
"""Before the second attempt; eight times as long before the third. Somebody waits for an edit to end."""
_LOCKED_MS = 50
"""How long a job waits before it tries again at a locked image set, or whether it is its turn."""
_NOT_ITS_TURN = "waits for what was acknowledged before"


_JOB = (
    sa.select(t.job, t.datastore.c.id.label("datastore"))
    .join(t.datastore, t.datastore.c.pk == t.job.c.datastore_pk)
    .where(t.job.c.pk == sa.bindparam("job_pk"))
)


def _groups(imports: list[WorkItem]) -> Iterator[list[WorkItem]]:
    """Jobs that share a transaction; one that was begun before, and not ended, gets its own."""
    yield from ([item] for item in imports if item.attempt > 1)
    if group := [item for item in imports if item.attempt == 1]:
        yield group


class Operations(Protocol):
    """Carries out operations on image sets that were accepted under a lock."""

    def run(self, item: WorkItem) -> None: ...

    def give_up(self, item: WorkItem, detail: str) -> None: ...

_MAY_PASS = (GatewayError, OSError, MemoryError)
"""Faults that another attempt may not meet; any other is one of our own with these very bytes."""


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
    operations: Mapping[str, Operations]
    """By the kind of their work items."""
    encoder: Encoder
    sweeper: Sweeper
    holding: Holding
    quarantine: Quarantine
    datastore_pk: Callable[[DatastoreId], int]
    resent: Resent
    metrics: ImportMetrics
    events: Events
    courier: Courier | None
    """None without a webhook."""
    importer: Importer = field(init=False)
    """Prepares with `prepare`, and is therefore set once this worker is made."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _settled: set[str] = field(default_factory=set)
    _held: Sequence[WorkItem] = ()
    _in_a_row: int = 0
    _rung: bool = False
    _is_passing: bool = False
    """What is done now is done between two instances of an import."""
    _has_more: bool = False
    """There may be more in the queue that somebody waits for."""
    _is_waited_for: bool = False
    """The import in hand holds up what would pass."""
    _look_at: float = 0.0
    _searched: float = 0.0
    _syncing: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "sync"))
    _taker: Taker | None = None
    _ahead: Ahead = field(init=False)

    def __post_init__(self) -> None:
        self._ahead = Ahead(self.blobs, self._prepare_one)

    def stop(self) -> None:
        self._stop.set()
        self.presence.ring("worker")

    def run(self) -> None:
        """Until `stop`: finishes what it has begun, then returns."""
        with suppress(GatewayError):
            intake.retry_failed(self.database)
        self.encoder.start()
        self.importer.start()
        if self.courier is not None:
            self.courier.start()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        self._taker = taker = Taker(self.presence.folder, self.presence.name)
        try:
            self._loop(taker)
        finally:
            self._taker = None
            taker.close()
            self._ahead.close()
            self.importer.stop()
            if self.courier is not None:
                self.courier.stop()
            self.encoder.stop()

    def _loop(self, taker: Taker) -> None:
        looked = 0.0
        worked = True
        while not self._stop.is_set():
            due = time.monotonic() - looked >= _IDLE_S
            if due:
                self._look_after()
                self._ahead.forget_old()
                looked = time.monotonic()
            given = self._take(taker)
            # The queue is looked at when somebody rings, and else once a second: not after each order.
            rung, self._rung = self._rung, False
            worked = (rung or worked or due) and self._work(expected=rung)
            if not (worked or given or self._ahead.is_idle):
                self.encoder.stand_back()
                self._ahead.go_on(_LOOK_S)
            is_idle = self._ahead.is_idle and not (worked or given or self._rung)
            self._hear(_IDLE_S if is_idle else 0, taker)

    def _hear(self, timeout_s: float, taker: Taker) -> bool:
        """Whether somebody has rung."""
        if rung := bool(self.presence.wait(timeout_s, taker)):
            self._rung = True
            self.importer.wake()
        return rung

    def _take(self, taker: Taker) -> bool:
        """Imports what has been handed over; whether there was any."""
        taker.pulse()
        given = taker.take()
        for job, places in taker.announced():
            self._ahead.announce(job, places)
        for some in _slices(given):
            self._import_given(some)
        return bool(given)

    def _pulse(self) -> None:
        if self._taker is not None:
            self._taker.pulse()

    def _let_pass(self) -> None:
        """Between two instances of an import: what somebody waits for goes first, however large the import is."""
        taker = self._taker
        if taker is None:
            return
        began = time.monotonic()
        if self._is_waited_for or began < self._look_at:
            taker.pulse()
            return
        self._is_passing = True
        try:
            self._take(taker)
            # Nobody rings for what had to wait for another.
            if self._hear(0, taker) or self._has_more or time.monotonic() - self._searched > _SEARCH_S:
                edited = self._lease_and_run(last=FIRST)
                self._has_more = self._lease_and_run(last=AWAITED) or edited
                self._searched = time.monotonic()
        finally:
            self._is_passing = False
        # As long as this took, the import goes on: what passes must not bring it to a halt.
        ended = time.monotonic()
        self._look_at = ended + max(_LOOK_S, ended - began)

    def _look_after(self) -> None:
        try:
            self.queue.reclaim()
            with self.holding.try_delete() as may_delete:
                intake.recover(self.database, self.spool, self.datastore_pk, self._settled, may_delete=may_delete)
                if may_delete:
                    quarantining.take_in(self.database, self.spool, self.quarantine)
                    self.sweeper.run_one()
        except GatewayError as fault:
            log.warning("worker.upkeep", code=fault.code, detail=fault.detail)
        except Exception:  # another worker was faster, or a publication met the sweeper: the next look finds it settled
            log.exception("worker.upkeep")

    def _work(self, *, expected: bool = False) -> bool:
        """Whether there was anything to do; `expected` when somebody rang."""
        if self._in_a_row >= _IN_A_ROW:
            self._in_a_row = 0
            if self._lease_and_run(first=BACKGROUND):
                return True
        return self._lease_and_run(expected=expected)

    def _lease_and_run(self, first: int = FIRST, last: int = BACKGROUND, *, expected: bool = False) -> bool:
        """Work of the first priority that there is; whether there was any."""
        kinds = (*self.operations, "import")
        try:
            items = self.queue.lease(
                kinds, _GROUP, first=first, last=last, instances=_GROUP_INSTANCES, expected=expected
            )
        except GatewayError as fault:
            log.warning("worker.lease", code=fault.code, detail=fault.detail)
            self._stop.wait(_IDLE_S)
            return False
        if not items:
            return False
        self._in_a_row = 0 if items[0].priority == BACKGROUND else self._in_a_row + 1
        if self._is_passing or items[0].kind != "import":  # an import lets orders pass
            self._say(free=False)
        for item in items:
            if item.attempt > _DEATHS:
                self._guarded([item], functools.partial(self._give_up, item, "the worker died of it"))
            elif item.kind != "import":
                self._guarded([item], functools.partial(self.operations[item.kind].run, item))
        for group in _groups([item for item in items if item.kind == "import" and item.attempt <= _DEATHS]):
            self._guarded(group, functools.partial(self._import_leased, group))
        self._say(free=True)
        if not self._is_passing:
            self._is_waited_for = False
        return True

    def _say(self, *, free: bool) -> None:
        if self._taker is not None:
            self._taker.say(free=free)

    def _guarded(self, items: Sequence[WorkItem], run: Callable[[], None]) -> None:
        """Runs work. A group that fails is run again one by one; what fails alone comes back later, and is given up
        after its attempts."""
        held, self._held = self._held, (*self._held, *items)
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
                    self._guarded([item], functools.partial(self._import_leased, [item]))
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
            self.operations[item.kind].give_up(item, detail)

    # ------------------------------------------------------------ imports

    def _import_leased(self, items: list[WorkItem]) -> None:
        began = time.monotonic()
        early = [item for item in items if "behind" in item.subject and self.queue.is_there(item.subject["behind"])]
        self._wait_for(item.subject["behind"] for item in early)
        for item in early:  # is not prepared once more to learn it
            self.queue.retry(item, _NOT_ITS_TURN, delay_ms=_LOCKED_MS, counts=False)
        items = [item for item in items if item not in early]
        batches = [self.batch_of(item) for item in items]
        waiting = self._import(batches) if batches else ()
        for batch in waiting:
            assert batch.item is not None
            if batch.behind is None:
                self.queue.retry(batch.item, "waits for a locked image set", delay_ms=_LOCKED_MS, counts=False)
            else:  # which is taken up first, unless another worker has it in hand
                self.queue.retry(batch.item, _NOT_ITS_TURN, delay_ms=0, counts=False, behind=batch.behind)
        held = [batch.item for batch in waiting]
        self._ring([item for item in items if item not in held])
        self._account([batch for batch in batches if batch not in waiting], began)

    def _import_given(self, given: Sequence[Given]) -> None:
        """Orders without a job; what cannot be published at once becomes one, and what fails is tried again there."""
        began = time.monotonic()
        batches = [ImportBatch(one.order) for one in given]
        try:
            waiting = self._import(batches)
        except Exception as fault:
            log.warning("worker.handed_back", orders=len(given), fault=type(fault).__name__)
            waiting = batches
        for one, batch in zip(given, batches, strict=True):
            one.answer(None if batch in waiting else batch.outcomes)
        self._account([batch for batch in batches if batch not in waiting], began)

    def _import(self, batches: Sequence[ImportBatch]) -> Sequence[ImportBatch]:
        """Publishes in one transaction; those that could not be are returned."""
        self.encoder.stand_back()
        is_leased = all(batch.item is not None for batch in batches)
        between = self._let_pass if is_leased and not self._is_passing else self._pulse
        packs = [Packs(self.blobs)]
        try:
            # What was staged without a sync (STOW) becomes durable while it is being prepared.
            segments = {segment for batch in batches for segment, _, _ in batch.order.places}
            settled = self._syncing.submit(self.spool.settle, segments)
            for batch in batches:
                begun = self._ahead.take(batch.order.id)
                if begun is not None:
                    packs.append(begun.packs)
                batch.results = self.prepare(batch, packs[0], between, begun.results if begun is not None else None)
            for some in packs:
                some.seal()
        except BaseException:
            _abandon(packs)
            raise
        finished = self._syncing.submit(_finish, packs)

        def synced() -> None:
            finished.result()
            settled.result()

        sizes = {name: size for some in packs for name, size in some.sizes.items()}
        try:
            waiting = publish_imports(self.database, self.queue, batches, sizes, self.resent, synced, self.events)
            self._wait_for(batch.behind for batch in waiting if batch.behind is not None)
            return waiting
        finally:
            if finished.exception() is not None:
                _abandon(packs)

    def _wait_for(self, keys: Iterable[int]) -> None:
        """Work that wants to pass waits for these items; where one is in hand, that is done without further ado."""
        held = {item.pk for item in self._held}
        self._is_waited_for = self._is_waited_for or (self._is_passing and not held.isdisjoint(keys))

    def _account(self, ended: Sequence[ImportBatch], began: float) -> None:
        """What can wait until who asked has been answered."""
        self.encoder.wake()
        for batch in ended:
            source = batch.order.source
            self.metrics.imported(source, batch.outcomes, time.monotonic() - began)
            refused = [o.failure for o in batch.outcomes if o.failure is not None]
            if refused and source == "dimse":
                log.warning("import.refused_after_acknowledgement", job=batch.order.id, codes=sorted(refused))

    def _ring(self, items: Sequence[WorkItem]) -> None:
        for item in items:
            if item.subject["source"] == "stow":  # somebody waits for it
                self.presence.ring("web", item.subject["id"])

    def batch_of(self, item: WorkItem) -> ImportBatch:
        """A job, not yet prepared."""
        with self.database.read() as connection:
            row = connection.execute(_JOB, {"job_pk": item.subject["job"]}).one()
        order = Order(
            id=JobId(row.id),
            datastore_pk=row.datastore_pk,
            datastore=DatastoreId(row.datastore),
            source=row.source,
            places=unpack_places(row.staged),
            called_ae=row.called_ae,
            calling_ae=row.calling_ae,
            principal=row.principal,
        )
        return ImportBatch(order, item, row.pk)

    def prepare(
        self,
        batch: ImportBatch,
        packs: Packs,
        between: Callable[[], None] | None = None,
        known: Mapping[tuple[str, int], Prepared | Outcome] | None = None,
    ) -> list[Prepared | Outcome]:
        """What the staged instances of a job become; their bytes go into the packs. Calls `between` before each.

        Those `known`, by segment and offset, have been prepared before.
        """
        is_last = batch.item is not None and batch.item.attempt >= MAX_ATTEMPTS
        results: list[Prepared | Outcome] = []
        for place in batch.order.places:
            if known is not None and place[:2] in known:
                results.append(known[place[:2]])
                continue
            if between is not None:
                between()
            results.append(self._prepare_one(place, packs, is_last=is_last))
        return results

    def _prepare_one(self, place: Place, packs: Packs, *, is_last: bool = False) -> Prepared | Outcome:
        """Raises what another attempt may not meet, unless this is the last one."""
        segment, offset, length = place
        try:
            origin, body, body_at = self.spool.read(segment, offset, length)
        except Corrupt as fault:
            log.error("worker.spool_damaged", detail=fault.detail)
            return Outcome(None, None, None, None, failure=PROCESSING_FAILURE, message="The staged copy is damaged.")
        try:
            return self.preparer.prepare(origin, segment, offset, body, body_at, packs)
        except Exception as fault:
            if isinstance(fault, Unavailable) or (isinstance(fault, _MAY_PASS) and not is_last):
                raise
            log.exception("worker.instance_failed")  # one that cannot be prepared does not take the others with it
            return Outcome(
                origin.sop_class,
                origin.sop_uid,
                None,
                None,
                failure=PROCESSING_FAILURE,
                message="The gateway failed to process the instance; its log says more.",
            )


def _finish(packs: Sequence[Packs]) -> None:
    for some in packs:
        some.finish()


def _abandon(packs: Sequence[Packs]) -> None:
    for some in packs:
        some.abandon()


def _slices(given: Sequence[Given]) -> Iterator[Sequence[Given]]:
    for start in range(0, len(given), _GROUP):
        yield given[start : start + _GROUP]
