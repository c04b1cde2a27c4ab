"""The database: one engine, short transactions, and the same behaviour on SQLite and PostgreSQL.

Synchronous on both, called from threads: an asynchronous driver costs SQLite ten times a read (datamodel.md 9).
"""

import fcntl
import functools
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement

from gateway.domain.errors import Unavailable

_BUSY_S = 30
_CLOSING_S = 10
_CONNECT_PRAGMAS = (
    f"PRAGMA busy_timeout={_BUSY_S * 1000}",
    "PRAGMA foreign_keys=ON",
    # Mapped, so that processes and threads share what they read. A process has a dozen connections: the cache of each
    # is for what is written, and for what lies beyond.
    "PRAGMA cache_size=-16384",
    "PRAGMA mmap_size=1073741824",
    "PRAGMA wal_autocheckpoint=4000",
)


def now_ms() -> int:
    """The time as the tables keep it: integer milliseconds, UTC."""
    return time.time_ns() // 1_000_000


class Statement:
    """A statement of the publishing path: compiled once for each engine, then given to the driver as it is.

    Building and compiling cost many times what SQLite takes to run it. Parameters are by name and always the same
    ones; one that is a list is for `among`. Rows are plain tuples. To be run inside `Database.write`, which has begun
    the transaction: the driver is not asked to.
    """

    def __init__(self, clause: sa.Executable) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, list[tuple[str, Any]]]] = {}

    def run(self, connection: sa.Connection, params: Mapping[str, Any]) -> "DBAPICursor":
        """The driver's cursor after one execution."""
        text, names = self._of(connection, params)
        cursor = connection.connection.cursor()
        cursor.execute(text, _bound(names, params, connection))
        return cursor

    def run_each(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """One execution for each row of parameters."""
        if rows:
            text, names = self._of(connection, rows[0])
            connection.connection.cursor().executemany(text, [_bound(names, row, connection) for row in rows])

    def scalar(self, connection: sa.Connection, params: Mapping[str, Any]) -> Any:
        """The first column of the first row, None without one."""
        row = self.run(connection, params).fetchone()
        return None if row is None else row[0]

    def _of(self, connection: sa.Connection, params: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
        dialect = connection.dialect
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._clause.compile(dialect=dialect, column_keys=list(params))  # type: ignore[attr-defined]
            names = compiled.positiontup if compiled.positiontup is not None else list(compiled.params)
            known = (compiled.string, [(name, compiled.params.get(name)) for name in names])
            self._compiled[dialect.name] = known
        return known


def _bound(names: list[tuple[str, Any]], params: Mapping[str, Any], connection: sa.Connection) -> Any:
    if connection.dialect.positional:
        values = [params.get(name, constant) for name, constant in names]
        return [orjson.dumps(value).decode() if type(value) is list else value for value in values]
    return {name: params.get(name, constant) for name, constant in names}


class among(ColumnElement[bool]):
    """Whether a column's value is in a list, which is one parameter of a `Statement`."""

    inherit_cache = False

    def __init__(self, column: sa.Column[Any], name: str) -> None:
        self.column = column
        self.values: sa.BindParameter[Any] = sa.bindparam(name)


@compiles(among)
def _among(element: among, compiler: SQLCompiler, **more: Any) -> str:
    column, values = (compiler.process(part, **more) for part in (element.column, element.values))
    if compiler.dialect.name == "sqlite":
        return f"{column} IN (SELECT value FROM json_each({values}))"
    return f"{column} = ANY({values})"


@functools.cache
def insert_or_keep(dialect: str, table: sa.Table) -> Statement:
    """An INSERT that returns the new row's key, and leaves a row with the same unique key as it is: then no row."""
    key = next(iter(table.primary_key))
    if dialect == "sqlite":
        return Statement(sqlite.insert(table).on_conflict_do_nothing().returning(key))
    from sqlalchemy.dialects import postgresql

    return Statement(postgresql.insert(table).on_conflict_do_nothing().returning(key))


class Database:
    """An engine with `read` and `write` transactions."""

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        # The connection used last comes first: it has the pages in memory that the next one needs.
        create = functools.partial(sa.create_engine, self.url, pool_use_lifo=True)
        if self.is_sqlite:
            self.engine = create(pool_size=16, max_overflow=16, pool_timeout=30)
            relaxed = create(pool_size=4, max_overflow=8, pool_timeout=30)
            for engine, synchronous in ((self.engine, "FULL"), (relaxed, "NORMAL")):
                event.listen(engine, "connect", functools.partial(_prepare_sqlite, synchronous))
                event.listen(engine, "begin", _begin_sqlite)
            path = Path(self.url.database or "gateway.db")
            self._fair: _FairLock | None = _FairLock(path.with_name(f"{path.name}-writer"))
        else:
            self.engine = create(pool_size=10, max_overflow=10, pool_pre_ping=True)
            event.listen(self.engine, "connect", _prepare_postgres)
            self._fair = None
            relaxed = self.engine
        self._open: set[object] = set()
        self._engines = {self.engine, relaxed}
        for engine in self._engines:
            event.listen(engine, "connect", lambda connection, _: self._open.add(connection))
            event.listen(engine, "close", lambda connection, _: self._open.discard(connection))
        self._durable = self.engine.execution_options(gateway_begin="BEGIN IMMEDIATE")
        self._relaxed = relaxed.execution_options(gateway_begin="BEGIN IMMEDIATE")
        self._driver_fault: type[Exception] = self.engine.dialect.loaded_dbapi.OperationalError
        self._watch: sqlite3.Connection | None = None
        self._watch_lock = threading.Lock()
        self._closed = False
        self._reader = self.engine.execution_options(gateway_begin=None)
        if not self.is_sqlite:  # two ways to the server and back less, which a transaction of one statement costs
            self._reader = self._reader.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Short reads, each statement of its own time: versions never change, so that most need no common snapshot.

        Raises Unavailable when the database cannot be reached.
        """
        try:
            with self._reader.connect() as connection:
                yield connection
        except (OperationalError, self._driver_fault) as fault:
            raise _unavailable(fault) from fault

    @contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """Reads that all see the store as it was at the first of them, however long they take. For looking after a
        store: what is written meanwhile has to be kept beside it.

        Raises Unavailable when the database cannot be reached.
        """
        engine = self.engine
        if not self.is_sqlite:
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with engine.connect() as connection:
                yield connection
        except (OperationalError, self._driver_fault) as fault:
            raise _unavailable(fault) from fault

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """A write that commits at the end of the block, or not at all.

        One that need not be `durable` survives the death of any process, but not always the loss of power: it is for
        what can be found out again, such as who works at what. It costs no sync of the disk.
        """
        engine = self._durable if durable else self._relaxed
        try:
            if self._fair is None:
                with engine.begin() as connection:
                    if not durable:
                        connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
                    yield connection
            else:
                with self._fair, engine.begin() as connection:
                    yield connection
        except (OperationalError, self._driver_fault) as fault:
            raise _unavailable(fault) from fault

    def lock_words(self, connection: sa.Connection, words: list[str]) -> None:
        """Serialises transactions that touch the same words (studies), in one order, until the commit.

        SQLite has one writer at a time anyway.
        """
        if not self.is_sqlite:
            for word in sorted(set(words)):
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:word, 0))"), {"word": word})

    def changes(self) -> int | None:
        """A number that differs from an earlier one if anything was committed in between; None where none is cheap.

        On SQLite it costs some microseconds and touches no disk.
        """
        if not self.is_sqlite:
            return None
        with self._watch_lock:
            if self._closed:
                raise Unavailable("The store is closed.")
            if self._watch is None:
                self._watch = sqlite3.connect(str(self.url.database), check_same_thread=False, isolation_level=None)
            number: int = self._watch.execute("PRAGMA data_version").fetchone()[0]
        return number

    def close(self) -> None:
        """No connection is made any more; those that other threads still use are closed when they are given back."""
        with self._watch_lock:
            self._closed = True
            if self._watch is not None:
                self._watch.close()
                self._watch = None
        pools = [engine.pool for engine in self._engines]
        for engine in self._engines:
            event.listen(engine, "do_connect", _refuse)
            engine.dispose()
        deadline = time.monotonic() + _CLOSING_S
        while self._open and time.monotonic() < deadline:
            time.sleep(0.001)
            for pool in pools:
                pool.dispose()


def _refuse(*_: object) -> None:
    raise Unavailable("The store is closed.")


class _FairLock:
    """Writers in the order in which they came: SQLite's own busy handler starves them (datamodel.md 6)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._threads = threading.Lock()
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._threads.release()


def _prepare_sqlite(synchronous: str, connection: Any, _: object) -> None:
    connection.isolation_level = None  # this module says BEGIN itself
    cursor = connection.cursor()
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:  # where another process opens or closes the database at this moment, SQLite does not wait by itself
            cursor.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    for pragma in _CONNECT_PRAGMAS:
        cursor.execute(pragma)
    cursor.execute(f"PRAGMA synchronous={synchronous}")
    cursor.close()


@functools.cache
def _text_dumper() -> type:
    """Made only where PostgreSQL is used: its driver takes its time to load."""
    from psycopg.types.string import StrDumperUnknown

    class Text(StrDumperUnknown):
        """PostgreSQL has no text with a NUL in it. What has one is written, and asked for, with U+FFFD in its place."""

        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\ufffd"))

    return Text


def _prepare_postgres(connection: Any, _: object) -> None:
    connection.adapters.register_dumper(str, _text_dumper())


def _begin_sqlite(connection: sa.Connection) -> None:
    begin = connection.get_execution_options().get("gateway_begin", "BEGIN")
    if begin is not None:
        connection.exec_driver_sql(begin)


def _unavailable(fault: Exception) -> Unavailable:
    cause = fault.orig if isinstance(fault, DBAPIError) else fault
    # SQLite's words are about files and locks; those of other databases may quote what they were given.
    what = str(cause) if isinstance(cause, sqlite3.Error) else type(cause).__name__
    return Unavailable(f"the database did not answer: {what}")
