"""Work items: leased, renewed and finished in the database that also holds what they are about."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.sql.database import Database, Statement, now_ms
from adapters.sql.tables import work
from gateway.domain.errors import GatewayError, Overloaded

LEASE_MS = 60_000
MAX_ATTEMPTS = 3
FIRST = -1
"""Priority of what ends a lock: imports that wait for it must not fill the queue in front of it."""
_LOOK_S = 0.5


# Made once: building a statement costs as much as running it.
_other = work.alias("other")
_CANDIDATES = (
    sa.select(work.c.pk, work.c.lock_key)
    .where(
        work.c.state == "waiting",
        work.c.kind.in_(sa.bindparam("kinds", expanding=True)),
        work.c.run_after <= sa.bindparam("now"),
        sa.or_(
            work.c.lock_key.is_(None),
            ~sa.exists().where(_other.c.lock_key == work.c.lock_key, _other.c.state == "running"),
        ),
    )
    .order_by(work.c.priority, work.c.pk)
    .limit(sa.bindparam("most"))
)
_TAKEN = _CANDIDATES.with_for_update(skip_locked=True)
_START = (
    sa.update(work)
    .where(work.c.pk.in_(sa.bindparam("pks", expanding=True)))
    .values(
        state="running",
        owner=sa.bindparam("new_owner"),
        lease_until=sa.bindparam("new_lease"),
        attempts=work.c.attempts + 1,
    )
    .returning(work.c.pk, work.c.kind, work.c.lock_key, work.c.subject, work.c.attempts)
)
_FINISH = Statement(
    sa.delete(work)
    .where(
        work.c.pk == sa.bindparam("item"),
        work.c.owner == sa.bindparam("holder"),
        work.c.attempts == sa.bindparam("attempt"),
    )
    .returning(work.c.pk)
)
_ENQUEUE = Statement(sa.insert(work).returning(work.c.pk))


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A leased item. `attempt` counts from 1."""

    pk: int
    kind: str
    lock_key: str | None
    subject: dict[str, Any]
    owner: str
    attempt: int


class Backlog:
    """Says no while more than `most` import jobs wait. Looks at most every half second, in a thread of its own: who
    asks never waits for a database."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most
        self._is_full = False
        self._look_at = 0.0
        self._looking = threading.Lock()
        some = sa.select(work.c.pk).where(work.c.kind == "import", work.c.state == "waiting").limit(most + 1)
        self._count = sa.select(sa.func.count()).select_from(some.subquery())

    def admit(self) -> None:
        """Raises Overloaded."""
        if time.monotonic() >= self._look_at and self._looking.acquire(blocking=False):
            self._look_at = time.monotonic() + _LOOK_S
            threading.Thread(target=self._look, name="backlog", daemon=True).start()
        if self._is_full:
            raise Overloaded(f"More than {self._most} import jobs wait (store.max_waiting). Send it again in a moment.")

    def _look(self) -> None:
        try:
            with self._database.read() as connection:
                self._is_full = connection.execute(self._count).scalar_one() > self._most
        except GatewayError:
            pass  # who submits will be told
        finally:
            self._looking.release()


class LeaseLost(Exception):
    """Somebody else has the item now: what was done with it must not be committed."""


def enqueue(
    connection: sa.Connection,
    kind: str,
    subject: dict[str, Any],
    *,
    lock_key: str | None = None,
    priority: int = 0,
) -> int:
    """Adds a waiting item inside the caller's transaction; its key."""
    row = _ENQUEUE.scalar(
        connection,
        {
            "kind": kind,
            "lock_key": lock_key,
            "subject": json.dumps(subject),
            "priority": priority,
            "state": "waiting",
            "run_after": now_ms(),
            "attempts": 0,
        },
    )
    return int(row)


class WorkQueue:
    """The items that one process takes, under its `owner` name."""

    def __init__(self, database: Database, owner: str, is_alive: Callable[[str], bool]) -> None:
        self._database = database
        self.owner = owner
        self._is_alive = is_alive

    def lease(self, kinds: Sequence[str], limit: int, *, expected: bool = False) -> list[WorkItem]:
        """Up to `limit` items that may run now, oldest first; never two with one lock key.

        Unless there is one `expected`, it looks before it takes the write lock: the queue is mostly empty.
        """
        asked = {"kinds": list(kinds), "now": now_ms(), "most": limit}
        try:
            return self._lease(asked, expected)
        except sa.exc.IntegrityError:  # another process has just taken an item with the same lock key
            return []

    def _lease(self, asked: dict[str, Any], expected: bool) -> list[WorkItem]:
        if not expected:
            with self._database.read() as connection:
                if connection.execute(_CANDIDATES, {**asked, "most": 1}).first() is None:
                    return []
        with self._database.write(durable=False) as connection:
            keys: set[str] = set()
            chosen = []
            for pk, lock_key in connection.execute(_TAKEN if not self._database.is_sqlite else _CANDIDATES, asked):
                if lock_key is None or lock_key not in keys:
                    chosen.append(pk)
                    if lock_key is not None:
                        keys.add(lock_key)
            if not chosen:
                return []
            rows = connection.execute(
                _START, {"pks": chosen, "new_owner": self.owner, "new_lease": now_ms() + LEASE_MS}
            ).all()
        return [
            WorkItem(pk, kind, key, json.loads(subject), self.owner, attempts)
            for pk, kind, key, subject, attempts in sorted(rows)
        ]

    def renew(self, items: Sequence[WorkItem]) -> None:
        with self._database.write(durable=False) as connection:
            connection.execute(
                sa.update(work)
                .where(work.c.pk.in_([item.pk for item in items]), work.c.owner == self.owner)
                .values(lease_until=now_ms() + LEASE_MS)
            )

    def finish(self, connection: sa.Connection, item: WorkItem) -> None:
        """Removes the item inside the transaction that does its work. Raises LeaseLost."""
        held = {"item": item.pk, "holder": item.owner, "attempt": item.attempt}
        if _FINISH.scalar(connection, held) is None:
            raise LeaseLost(item.kind)

    def retry(self, item: WorkItem, error: str, *, delay_ms: int, counts: bool = True) -> None:
        """Puts the item back for later; `counts=False` when it only had to wait for another."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                sa.update(work)
                .where(work.c.pk == item.pk, work.c.owner == item.owner, work.c.attempts == item.attempt)
                .values(
                    state="waiting",
                    owner=None,
                    lease_until=None,
                    run_after=now_ms() + delay_ms,
                    error=error[:500],
                    attempts=item.attempt if counts else item.attempt - 1,
                )
            )

    def reclaim(self) -> int:
        """Returns to the queue what dead owners held, or whose lease ran out; how many."""
        with self._database.read() as connection:
            running = connection.execute(
                sa.select(work.c.pk, work.c.owner, work.c.lease_until).where(work.c.state == "running")
            ).all()
        alive: dict[str, bool] = {}
        lost = []
        for pk, owner, lease_until in running:
            if owner != self.owner and owner not in alive:
                alive[owner] = self._is_alive(owner)
            if owner != self.owner and (not alive[owner] or lease_until < now_ms()):
                lost.append((pk, owner))
        if not lost:
            return 0
        with self._database.write(durable=False) as connection:
            for pk, owner in lost:
                connection.execute(
                    sa.update(work)
                    .where(work.c.pk == pk, work.c.owner == owner, work.c.state == "running")
                    .values(state="waiting", owner=None, lease_until=None)
                )
        return len(lost)
