"""C-STORE: from fragments to the spool, and from the spool into import jobs (PS3.4 annex B, PS3.7 §9.1.1)."""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import structlog

from ..domain.ids import DatastoreId, JobId, new_id
from ..domain.model import Origin, Staged
from ..ports import Buffer, Intake, Sink, Staging
from .pdu import Command
from .scan import SERIES, SOP_CLASS, SOP_INSTANCE, STUDY, HeaderScan
from .settings import DimseSettings
from .status import (
    CANNOT_UNDERSTAND,
    CLASS_MISMATCH_WARNING,
    MISMATCH,
    MISTYPED_ARGUMENT,
    SUCCESS,
    Status,
    store_status,
)

_log = structlog.get_logger("gateway.dimse")

_ANNOUNCED = 16
"""Instances of a batch that are told of together while it grows."""
_HELD_BACK = 64
"""The newest instances, not told of: while a sender is at work every core is his. At the end these cost some 0.1 s."""
_UID = re.compile("[0-9.]{1,64}")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0


class Reception:
    """Takes one instance's data set into the spool. *Blocking.*

    Whatever goes wrong becomes the status that `finish` returns, and the rest of the data set is let pass
    (CSTORE-09): the association lives on.
    """

    def __init__(self, staging: Staging, command: Command, origin: Origin) -> None:
        self.size_bytes = 0
        self._staging = staging
        self._command = command
        self._scan = HeaderScan(origin.syntax or "")
        self._sink: Sink | None = None
        self._status = Status(SUCCESS)
        if not command.sop_class or not command.sop_uid:
            self._status = Status(MISTYPED_ARGUMENT, "the command names no SOP Class or no SOP Instance UID")
            return
        try:
            staging.admit()
            self._sink = staging.open(origin)
        except Exception as error:
            self._fail(error)

    def write(self, data: Buffer) -> None:
        """Takes the next bytes."""
        self.size_bytes += len(data)
        sink = self._sink
        if sink is None:
            return
        try:
            sink.write(data)
            if not self._scan.done and self._scan.feed(data):
                self._judge()
        except Exception as error:
            self._fail(error)

    def finish(self) -> tuple[Status, Staged | None]:
        """Ends the instance: the status to answer and, when the instance is durable, what to import (CSTORE-01)."""
        try:
            if self._sink is not None and not self._scan.done:
                self._scan.end()
                self._judge()
            if self._sink is None:
                return self._status, None
            staged = self._sink.close()
            self._sink = None
            self._staging.sync()
        except Exception as error:
            self._fail(error)
            return self._status, None
        study = self._scan.found.get(STUDY, "")
        return self._status, replace(staged, study_uid=study) if _UID.fullmatch(study) else staged

    def abort(self) -> None:
        """Forgets the instance (NET-07)."""
        sink, self._sink = self._sink, None
        if sink is not None:
            try:
                sink.abort()
            except Exception as error:
                _log.error("spool", fault=type(error).__name__)

    def _fail(self, error: Exception) -> None:
        self._status = store_status(error)
        _log.warning("store-refused", status=f"{self._status.code:04X}", fault=type(error).__name__)
        self.abort()

    def _judge(self) -> None:
        """Refuses what the head of the data set shows to be wrong (CSTORE-04, CSTORE-05)."""
        found, command = self._scan.found, self._command
        for tag, promised, name in (
            (SOP_CLASS, command.sop_class, "SOP Class UID"),
            (SOP_INSTANCE, command.sop_uid, "SOP Instance UID"),
        ):
            if found.get(tag) and found[tag] != promised:
                self._refuse(Status(MISMATCH, f"{name} of the data set is not the command's", (tag,)))
                return
        if self._scan.truncated:
            self._refuse(Status(CANNOT_UNDERSTAND, "unreadable: the data set ends within an element"))
        elif self._scan.certain:
            missing = tuple(tag for tag in (STUDY, SERIES) if not found.get(tag))
            if missing:
                names = " and ".join("Study" if tag == STUDY else "Series" for tag in missing)
                self._refuse(Status(CANNOT_UNDERSTAND, f"missing {names} Instance UID", missing))
            elif not (found.get(SOP_CLASS) and found.get(SOP_INSTANCE)):
                self._status = Status(CLASS_MISMATCH_WARNING, "SOP Class or Instance UID taken from the command")

    def _refuse(self, status: Status) -> None:
        self._status = status
        self.abort()


class HandOver(Protocol):
    """Where batches go. From any thread; returns at once."""

    def announce(self, job: JobId, items: Sequence[Staged]) -> None:
        """These will be in the batch of that job: preparing them may begin."""
        ...

    def hand_over(self, datastore: DatastoreId, job: JobId, items: Sequence[Staged]) -> None: ...


class Batch:
    """The instances of one association that wait to become one import job. For the association's thread alone."""

    def __init__(
        self,
        datastore: DatastoreId,
        settings: DimseSettings,
        intake: "HandOver",
    ) -> None:
        self._datastore = datastore
        self._settings = settings
        self._intake = intake
        self._job = JobId(new_id())
        self._items: list[Staged] = []
        self._announced = 0
        self._bytes = 0
        self._last = 0.0

    def add(self, staged: Staged) -> None:
        """Takes a durable instance; closes the batch when it has grown enough."""
        self._items.append(staged)
        self._bytes += staged.length
        self._last = time.monotonic()
        if len(self._items) >= self._settings.batch_instances or self._bytes >= self._settings.batch_bytes:
            self.close()
        elif len(self._items) - self._announced >= _ANNOUNCED + _HELD_BACK:
            told = len(self._items) - _HELD_BACK
            self._intake.announce(self._job, self._items[self._announced : told])
            self._announced = told

    def close_if_idle(self) -> None:
        """Closes the batch when nothing has come for `batch_idle_s`."""
        if self._items and time.monotonic() - self._last >= self._settings.batch_idle_s:
            self.close()

    def close(self) -> None:
        """Hands the batch over and starts the next one; does nothing when it is empty."""
        if self._items:
            items, self._items, self._bytes = self._items, [], 0
            job, self._job, self._announced = self._job, JobId(new_id()), 0
            self._intake.hand_over(self._datastore, job, items)


class Submissions:
    """Batches on their way to the intake. Lives on the event loop."""

    def __init__(self, intake: Intake, loop: asyncio.AbstractEventLoop) -> None:
        self._intake = intake
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        # One after the other: of two associations that bring one instance, the later one has to be imported later.
        self._turn = asyncio.Lock()

    def announce(self, job: JobId, items: Sequence[Staged]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._intake.announce, job, items)

    def hand_over(self, datastore: DatastoreId, job: JobId, items: Sequence[Staged]) -> None:
        """Submits a batch, again and again until the intake takes it."""
        try:
            self._loop.call_soon_threadsafe(self._start, datastore, job, items)
        except RuntimeError:  # the loop has ended: the spool keeps the items for the next start
            _log.error("batch-left-in-spool", instances=len(items))

    async def settle(self, timeout_s: float) -> None:
        """Waits for what is on its way; what the intake has not taken by then stays in the spool."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()

    def _start(self, datastore: DatastoreId, job: JobId, items: Sequence[Staged]) -> None:
        task = self._loop.create_task(self._submit(datastore, job, items))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _submit(self, datastore: DatastoreId, job: JobId, items: Sequence[Staged]) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with self._turn:
                    await self._intake.submit(datastore, items, job)
            except Exception as error:
                _log.error("submit-failed", instances=len(items), fault=type(error).__name__, retry_s=pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                _log.info("batch", datastore=datastore, job=job, instances=len(items))
                return
