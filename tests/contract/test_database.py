"""Closing a database while other threads use it."""

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from adapters.sql.database import Database
from gateway.domain.errors import Unavailable
from tests.contract.conftest import ENGINES
from tests.databases import database_url


@pytest.mark.parametrize("kind", ENGINES)
def test_closing_closes_the_connections_of_threads_that_still_read(kind: str, tmp_path: Path) -> None:
    with database_url(kind, tmp_path) as url:
        database = Database(url)
        reading, go_on = threading.Event(), threading.Event()
        drivers: list[object] = []
        answers: list[int] = []

        def read() -> None:
            with database.read() as connection:
                drivers.append(connection.connection.dbapi_connection)
                reading.set()
                go_on.wait(10)
                answers.append(connection.execute(sa.text("SELECT 1")).scalar_one())
            with pytest.raises(Unavailable), database.read():
                pass

        reader = threading.Thread(target=read)
        reader.start()
        assert reading.wait(10)
        closing = threading.Thread(target=database.close)
        closing.start()
        go_on.set()
        reader.join(10)
        closing.join(10)
        assert not reader.is_alive()
        assert not closing.is_alive()
        assert answers == [1]  # what had begun came to its end
        with pytest.raises(Exception, match="closed"):
            drivers[0].cursor().execute("SELECT 1")  # type: ignore[attr-defined]
        with pytest.raises(Unavailable), database.write():
            pass
