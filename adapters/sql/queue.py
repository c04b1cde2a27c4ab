"""Work items: leased, renewed and finished in the database that also holds what they are about."""

import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from adapters.sql.database import Database, Statement, among, now_ms
from adapters.sql.tables import work
from gateway.domain.errors import GatewayError, Overloaded

LEASE_MS = 60_000
MAX_ATTEMPTS = 3
_KEPT_MS = 500
FIRST = -1
"""Priority of what ends a lock: imports that wait for it must not fill the queue in front of it."""
HASTENED = 0
"""Of background work that somebody's work has to wait for."""
AWAITED = 1
"""Of work whose end somebody waits for."""
BACKGROUND = 2
"""Of work that has been acknowledged already."""
_LOOK_S = 0.5


# Made once: building a statement costs as much as running it.
_other = work.alias("other")
_CANDIDATES = (
    sa.select(work.c.pk, work.c.lock_key, work.c.priority, work.c.subject, work.c.attempts)
    .where(
        work.c.state == "waiting",
        work.c.priority.between(sa.bindparam("first"), sa.bindparam("last")),
        work.c.kind.in_(sa.bindparam("kinds", expanding=True)),
        work.c.run_after <= sa.bindparam("now"),
        sa.or_(
            work.c.owner.is_(None),
            work.c.owner == sa.bindparam("me"),
            work.c.run_after <= sa.bindparam("not_kept"),
        ),
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
    .returning(work.c.pk, work.c.kind, work.c.lock_key, work.c.subject, work.c.attempts, work.c.priority)
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
_ACKNOWLEDGED = Statement(
    sa.select(work.c.pk, work.c.state, work.c.priority, work.c.attempts, work.c.subject)
    .where(work.c.kind == "import", work.c.state != "failed", work.c.priority != AWAITED)
    .order_by(work.c.pk.desc())
)
_HASTEN = Statement(
    sa.update(work)
    .where(among(work.c.pk, "pks"), work.c.state == "waiting", work.c.priority == BACKGROUND)
    .values(priority=HASTENED)
)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A leased item. `attempt` counts from 1."""

    pk: int
    kind: str
    lock_key: str | None
    subject: dict[str, Any]
    owner: str
    attempt: int
    priority: int


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
    priority: int = AWAITED,
    keep_for: str | None = None,
) -> int:
    """Adds a waiting item inside the caller's transaction; its key. It is kept for one owner, for a moment."""
    row = _ENQUEUE.scalar(
        connection,
        {
            "kind": kind,
            "lock_key": lock_key,
            "subject": json.dumps(subject),
            "priority": priority,
            "owner": keep_for,
            "state": "waiting",
            "run_after": now_ms(),
            "attempts": 0,
        },
    )
    return int(row)


class Precedence:
    """Which imports go before which, as one transaction sees it: what was acknowledged earlier and concerns the same.

    An import that has failed, and waits for another attempt, holds up nobody.
    """

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._earlier: list[tuple[int, bool, frozenset[str]]] | None = None
        """Key, whether it can be put in front, and what it concerns; the last one first."""

    @property
    def matters(self) -> bool:
        """Whether anything that was acknowledged has still to be imported."""
        return bool(self._acknowledged())

    def behind(self, item: WorkItem | None, concerns: Collection[str]) -> int | None:
        """Behind which item an import that concerns these has to wait, awaited since `item` was made (None: since now);
        None when it need not.

        What it waits for is put in front of all that is awaited, with what goes before that in turn.
        """
        wanted = set(concerns)
        found: list[int] = []
        behind: int | None = None
        for pk, can_move, own in self._acknowledged():
            if (item is None or pk < item.pk) and not wanted.isdisjoint(own):
                behind = behind or pk
                wanted |= own
                if can_move:
                    found.append(pk)
        if found:
            _HASTEN.run(self._connection, {"pks": found})
        return behind

    def _acknowledged(self) -> list[tuple[int, bool, frozenset[str]]]:
        if self._earlier is None:
            self._earlier = []
            for pk, state, priority, attempts, subject in _ACKNOWLEDGED.run(self._connection, {}).fetchall():
                if state == "waiting" and attempts:
                    continue
                concerns = json.loads(subject).get("concerns", ())
                can_move = state == "waiting" and priority == BACKGROUND
                self._earlier.append((pk, can_move, frozenset(concerns)))
        return self._earlier


class WorkQueue:
    """The items that one process takes, under its `owner` name."""

    def __init__(self, database: Database, owner: str, is_alive: Callable[[str], bool]) -> None:
        self._database = database
        self.owner = owner
        self._is_alive = is_alive

    def lease(
        self,
        kinds: Sequence[str],
        limit: int,
        *,
        first: int = FIRST,
        last: int = BACKGROUND,
        instances: int | None = None,
        expected: bool = False,
    ) -> list[WorkItem]:
        """Up to `limit` items that may run now, oldest first; never two with one lock key.

        They are of one priority, the first from `first` to `last` that there is, and have together no more than that
        many `instances`; one item may have more. One that was attempted before comes alone: should the process die of
        it again, no other is counted as attempted. Unless there is one `expected`, it looks before it takes the write
        lock: the queue is mostly empty.
        """
        now = now_ms()
        asked = {"kinds": list(kinds), "now": now, "most": limit, "first": first, "last": last}
        asked |= {"me": self.owner, "not_kept": now - _KEPT_MS}
        try:
            return self._lease(asked, instances, expected)
        except sa.exc.IntegrityError:  # another process has just taken an item with the same lock key
            return []

    def _lease(self, asked: dict[str, Any], instances: int | None, expected: bool) -> list[WorkItem]:
        if not expected:
            with self._database.read() as connection:
                if connection.execute(_CANDIDATES, {**asked, "most": 1}).first() is None:
                    return []
        with self._database.write(durable=False) as connection:
            keys: set[str] = set()
            chosen: list[int] = []
            level: int | None = None
            is_alone = False
            rows = connection.execute(_TAKEN if not self._database.is_sqlite else _CANDIDATES, asked).all()
            for pk, lock_key, priority, subject, attempts in rows:
                if lock_key in keys:
                    continue
                if chosen and (is_alone or attempts):
                    break
                is_alone = bool(attempts)
                if instances is not None:
                    instances -= json.loads(subject).get("size", 1)
                if chosen and (priority != level or (instances is not None and instances < 0)):
                    break
                chosen.append(pk)
                level = priority
                if lock_key is not None:
                    keys.add(lock_key)
            if not chosen:
                return []
            started = connection.execute(
                _START, {"pks": chosen, "new_owner": self.owner, "new_lease": now_ms() + LEASE_MS}
            ).all()
        return [
            WorkItem(pk, kind, key, json.loads(subject), self.owner, attempts, priority)
            for pk, kind, key, subject, attempts, priority in sorted(started)
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

    def is_there(self, pk: int) -> bool:
        """Whether the item of that key has still to be done."""
        with self._database.read() as connection:
            return connection.execute(sa.select(work.c.pk).where(work.c.pk == pk)).first() is not None

    def retry(
        self, item: WorkItem, error: str, *, delay_ms: int, counts: bool = True, behind: int | None = None
    ) -> None:
        """Puts the item back for later; `counts=False` when it only had to wait for another, the item `behind` which
        it then remembers to be."""
        with self._database.write(durable=False) as connection:
            connection.execute(
                sa.update(work)
                .where(work.c.pk == item.pk, work.c.owner == item.owner, work.c.attempts == item.attempt)
                .values(
                    state="waiting",
                    owner=None,
                    lease_until=None,
                    run_after=now_ms() + delay_ms,
                    subject=json.dumps({**item.subject, "behind": behind}) if behind else work.c.subject,
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
