"""A store in the schema of each release, opened by this one: everything is still there.

A store is filled, and its rows are put into tables that the migrations up to a revision have made. It runs for every
revision that there is: what a later one adds is not there in the older, and has to be worked out by its migration.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapters.codecs.decoding import DecodePool
from adapters.sql import schema
from adapters.sql import tables as t
from adapters.sql.database import Database
from gateway.domain.errors import Conflict
from tests.contract.conftest import ENGINES
from tests.contract.embedded import Store, open_store
from tests.contract.test_keeping import fill, shown, slice_, verify
from tests.databases import database_url

REVISIONS = sorted(script.revision for script in ScriptDirectory.from_config(schema._config()).walk_revisions())


def migrate_to(database: Database, revision: str) -> None:
    """The schema as a release left it."""
    config = schema._config()
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


@pytest.fixture(params=ENGINES)
def filled(
    request: pytest.FixtureRequest, tmp_path: Path, decoder: DecodePool, loop: asyncio.AbstractEventLoop
) -> Iterator[Store]:
    with database_url(request.param, tmp_path) as url:
        store = open_store(tmp_path, url, decoder, loop)
        fill(store)
        yield store
        store.close()


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_of_each_released_schema_is_found_whole(
    filled: Store,
    revision: str,
    tmp_path_factory: pytest.TempPathFactory,
    decoder: DecodePool,
    loop: asyncio.AbstractEventLoop,
) -> None:
    before = shown(filled)
    rows = _rows(filled.web.database)
    folder = tmp_path_factory.mktemp("old")
    for kind in ("pack", "frames", "spool"):
        (folder / kind).symlink_to(filled.data / kind)
    with database_url("sqlite" if filled.web.database.is_sqlite else "postgresql", folder) as url:
        database = Database(url)
        migrate_to(database, revision)
        _put(database, rows)
        with database.read() as connection:
            assert MigrationContext.configure(connection).get_current_revision() == revision
        database.close()
        store = open_store(folder, url, decoder, loop)
        try:
            assert schema.revision(store.web.database) == REVISIONS[-1]
            assert shown(store) == before
            assert verify(store).faults == []
            (more,) = store.put(slice_(77))
            assert more.failure is None
            assert verify(store).faults == []
        finally:
            store.close()


def test_a_schema_of_a_newer_release_is_left_alone(filled: Store) -> None:
    database = filled.web.database
    with database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match="newer release"):
        schema.migrate(database)
    with pytest.raises(Conflict, match="revision 9999"):
        schema.require_current(database)


def _rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    with database.read() as connection:
        return {
            table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
            for table in t.metadata.sorted_tables
        }


def _put(database: Database, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Into the tables as they are in the database now, not as this release has them."""
    with database.write() as connection:
        old = sa.MetaData()
        old.reflect(connection)
        for table in old.sorted_tables:
            some = [{name: row[name] for name in row if name in table.c} for row in rows.get(table.name, ())]
            if some:
                connection.execute(sa.insert(table), some)
            if not database.is_sqlite and "pk" in table.c:
                connection.execute(
                    sa.text(
                        f"SELECT setval(pg_get_serial_sequence('{table.name}', 'pk'), "
                        f"(SELECT coalesce(max(pk), 1) FROM {table.name}))"
                    )
                )
