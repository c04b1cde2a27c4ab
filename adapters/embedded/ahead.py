"""Preparing before there is a job: instances of an association that still goes on.

What was prepared lies in this process's memory, and in blobs that no row names: it is worth time, and nothing else. The
job decides what is imported; what it does not find here it prepares as ever. Who dies with it leaves rubbish to sweep.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from adapters.embedded.jobs import Place
from adapters.embedded.preparing import Packs, Prepared
from gateway.domain.ids import JobId
from gateway.domain.model import Outcome
from gateway.ports import BlobStore

log = structlog.get_logger("gateway.worker")

_MOST_JOBS = 8
_MOST_INSTANCES = 4000
"""Prepared or to be prepared, of all jobs; each takes some 5 KB of memory, more with a large header."""
_FORGET_S = 120.0
"""After this time without news nobody will ask for a job any more: its association's process has died."""


@dataclass(slots=True)
class Begun:
    """A job's instances as far as they are prepared."""

    packs: Packs
    results: dict[tuple[str, int], Prepared | Outcome] = field(default_factory=dict)
    """By segment and offset."""
    rest: deque[Place] = field(default_factory=deque)
    touched: float = field(default_factory=time.monotonic)


class Ahead:
    """Of one worker, in the thread of its loop."""

    def __init__(self, blobs: BlobStore, prepare: Callable[[Place, Packs], Prepared | Outcome]) -> None:
        self._blobs = blobs
        self._prepare = prepare
        self._begun: dict[JobId, Begun] = {}

    @property
    def is_idle(self) -> bool:
        return not any(begun.rest for begun in self._begun.values())

    def announce(self, job: JobId, places: Sequence[Place]) -> None:
        """These will be among the instances of that job; where there is no room for them, that is all."""
        if job not in self._begun and len(self._begun) >= _MOST_JOBS:
            return
        if len(places) + sum(len(one.results) + len(one.rest) for one in self._begun.values()) > _MOST_INSTANCES:
            return
        begun = self._begun.setdefault(job, Begun(Packs(self._blobs)))
        begun.rest.extend(places)
        begun.touched = time.monotonic()

    def go_on(self, for_s: float) -> None:
        """Prepares for about that time."""
        until = time.monotonic() + for_s
        for job, begun in list(self._begun.items()):
            while begun.rest:
                if time.monotonic() >= until:
                    return
                segment, offset, length = begun.rest.popleft()
                try:
                    begun.results[segment, offset] = self._prepare((segment, offset, length), begun.packs)
                except Exception as fault:  # the job will meet it too, and deal with it
                    log.warning("worker.ahead", fault=type(fault).__name__)
                    self._forget(job)
                    break

    def take(self, job: JobId) -> Begun | None:
        """What has been prepared of a job, once; whoever takes it ends its packs."""
        return self._begun.pop(job, None)

    def forget_old(self) -> None:
        oldest = time.monotonic() - _FORGET_S
        for job in [job for job, begun in self._begun.items() if begun.touched < oldest]:
            self._forget(job)

    def close(self) -> None:
        for job in list(self._begun):
            self._forget(job)

    def _forget(self, job: JobId) -> None:
        self._begun.pop(job).packs.abandon()
