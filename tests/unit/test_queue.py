"""The work queue: one owner an item, whoever loses the lease cannot commit, nothing is lost with its owner."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.sql import schema
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import LEASE_MS, LeaseLost, WorkQueue, enqueue
from adapters.sql.tables import work
from tests.databases import database_url


@dataclass
class Queues:
    database: Database
    alive: set[str]

    def of(self, owner: str) -> WorkQueue:
        self.alive.add(owner)
        return WorkQueue(self.database, owner, self.alive.__contains__)

    def add(self, *subjects: int, kind: str = "import", lock_key: str | None = None, priority: int = 0) -> list[int]:
        with self.database.write() as connection:
            return [enqueue(connection, kind, {"n": n}, lock_key=lock_key, priority=priority) for n in subjects]

    def states(self) -> list[tuple[str, str | None, int]]:
        with self.database.read() as connection:
            rows = connection.execute(sa.select(work.c.state, work.c.owner, work.c.attempts).order_by(work.c.pk))
            return [tuple(row) for row in rows]

    def expire(self) -> None:
        with self.database.write() as connection:
            connection.execute(sa.update(work).values(lease_until=now_ms() - 1))


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))]
)
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp("queue")
    with database_url(request.param, folder) as url:
        made = Database(url)
        schema.migrate(made)
        yield made
        made.close()


@pytest.fixture
def queues(database: Database) -> Queues:
    with database.write() as connection:
        connection.execute(sa.delete(work))
    return Queues(database, set())


def test_items_come_in_order_once(queues: Queues) -> None:
    one, two = queues.of("one"), queues.of("two")
    pks = queues.add(1, 2, 3)
    first = one.lease(("import",), 2)
    assert [(item.pk, item.subject, item.attempt, item.owner) for item in first] == [
        (pks[0], {"n": 1}, 1, "one"),
        (pks[1], {"n": 2}, 1, "one"),
    ]
    assert [item.pk for item in two.lease(("import",), 9)] == [pks[2]]
    assert one.lease(("import",), 9) == two.lease(("import",), 9) == []


def test_priority_kind_and_time_decide(queues: Queues) -> None:
    queue = queues.of("one")
    (late,) = queues.add(1, priority=1)
    (other,) = queues.add(2, kind="update")
    (early,) = queues.add(3)
    assert [item.pk for item in queue.lease(("import",), 1)] == [early]
    assert [item.pk for item in queue.lease(("update",), 1)] == [other]
    (leased,) = queue.lease(("import",), 9)
    assert leased.pk == late
    queue.retry(leased, "later", delay_ms=60_000)
    assert queue.lease(("import",), 9) == []


def test_finish_removes_in_the_callers_transaction(queues: Queues) -> None:
    queue = queues.of("one")
    queues.add(1)
    (item,) = queue.lease(("import",), 1)

    def fails_afterwards() -> None:
        with queues.database.write() as connection:
            queue.finish(connection, item)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_afterwards()
    assert queues.states() == [("running", "one", 1)]
    with queues.database.write() as connection:
        queue.finish(connection, item)
    assert queues.states() == []
    with pytest.raises(LeaseLost), queues.database.write() as connection:
        queue.finish(connection, item)


def test_retry_counts_attempts_unless_it_only_waited(queues: Queues) -> None:
    queue = queues.of("one")
    queues.add(1)
    (item,) = queue.lease(("import",), 1)
    queue.retry(item, "x" * 1000, delay_ms=0, counts=False)
    assert queues.states() == [("waiting", None, 0)]
    (item,) = queue.lease(("import",), 1)
    assert item.attempt == 1
    queue.retry(item, "failed", delay_ms=0)
    (item,) = queue.lease(("import",), 1)
    assert item.attempt == 2


def test_what_was_attempted_before_comes_alone(queues: Queues) -> None:
    """Whoever dies of it again has nothing else in hand."""
    one, two, three = queues.of("one"), queues.of("two"), queues.of("three")
    queues.add(1, 2)
    assert len(one.lease(("import",), 2)) == 2
    queues.add(3, 4)
    queues.alive.discard("one")
    assert two.reclaim() == 2
    leased = [[(item.subject["n"], item.attempt) for item in three.lease(("import",), 9)] for _ in range(4)]
    assert leased == [[(1, 2)], [(2, 2)], [(3, 1), (4, 1)], []]


def test_what_a_dead_owner_held_comes_back_at_once(queues: Queues) -> None:
    one, two = queues.of("one"), queues.of("two")
    queues.add(1, 2)
    (lost, _) = one.lease(("import",), 2)
    assert two.reclaim() == 0
    queues.alive.discard("one")
    assert two.reclaim() == 2
    again = [item for _ in range(2) for item in two.lease(("import",), 2)]
    assert [item.attempt for item in again] == [2, 2]
    with pytest.raises(LeaseLost), queues.database.write() as connection:
        one.finish(connection, lost)
    with queues.database.write() as connection:
        two.finish(connection, again[0])


def test_a_lease_that_ran_out_comes_back_and_a_renewed_one_does_not(queues: Queues) -> None:
    one, two = queues.of("one"), queues.of("two")
    queues.add(1)
    items = one.lease(("import",), 1)
    queues.expire()
    one.renew(items)
    assert two.reclaim() == 0
    queues.expire()
    assert one.reclaim() == 0  # its own: it is still at it
    assert two.reclaim() == 1
    (taken,) = two.lease(("import",), 1)
    one.retry(items[0], "too late", delay_ms=0)
    one.renew(items)
    with queues.database.read() as connection:
        owner, until = connection.execute(sa.select(work.c.owner, work.c.lease_until)).one()
    assert owner == "two"
    assert until <= now_ms() + LEASE_MS
    with pytest.raises(LeaseLost), queues.database.write() as connection:
        one.finish(connection, items[0])
    with queues.database.write() as connection:
        two.finish(connection, taken)


def test_an_owner_that_gets_its_item_again_cannot_finish_the_first_attempt(queues: Queues) -> None:
    one, two = queues.of("one"), queues.of("two")
    queues.add(1)
    (stale,) = one.lease(("import",), 1)
    queues.expire()
    two.reclaim()
    (fresh,) = one.lease(("import",), 1)
    assert (stale.attempt, fresh.attempt) == (1, 2)
    with pytest.raises(LeaseLost), queues.database.write() as connection:
        one.finish(connection, stale)
    with queues.database.write() as connection:
        one.finish(connection, fresh)


def test_of_one_lock_key_one_item_runs(queues: Queues) -> None:
    one, two = queues.of("one"), queues.of("two")
    queues.add(1, 2, lock_key="set-1")
    (other,) = queues.add(3, lock_key="set-2")
    first = one.lease(("import",), 9)
    assert [item.subject["n"] for item in first] == [1, 3]
    assert other == first[1].pk
    assert two.lease(("import",), 9) == []
    with queues.database.write() as connection:
        one.finish(connection, first[0])
    assert [item.subject["n"] for item in two.lease(("import",), 9)] == [2]


def test_the_database_itself_keeps_a_lock_key_single(
    queues: Queues, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that look at the same moment both find the key free; the second gets nothing, and no error."""
    one, two = queues.of("one"), queues.of("two")
    queues.add(1, 2, lock_key="set-1")
    (first,) = one.lease(("import",), 1)
    monkeypatch.setattr(sa, "or_", lambda *_: sa.true())  # as if the look had come before the lease
    assert two.lease(("import",), 1) == []
    monkeypatch.undo()
    assert queues.states() == [("running", "one", 1), ("waiting", None, 0)]
    with queues.database.write() as connection:
        one.finish(connection, first)


def test_many_owners_share_the_work(queues: Queues) -> None:
    queues.add(*range(60))
    done: list[int] = []
    lock = threading.Lock()

    def run(name: str) -> None:
        queue = queues.of(name)
        while items := queue.lease(("import",), 3):
            for item in items:
                with queues.database.write() as connection:
                    queue.finish(connection, item)
                with lock:
                    done.append(item.subject["n"])

    threads = [threading.Thread(target=run, args=(f"owner-{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    # SKIP LOCKED may tell an owner that nothing is left while others still hold what is.
    assert sorted(done) == list(range(60))
