"""PostgreSQL databases for tests and campaigns: fresh ones, and what lies in a gateway's."""

import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg

POSTGRES = os.environ.get("GATEWAY_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1/test")


def libpq(url: str) -> str:
    """The URL as PostgreSQL's own programs know it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def create_database() -> str:
    """The SQLAlchemy URL of a fresh, empty PostgreSQL database."""
    name = f"gateway_{secrets.token_hex(6)}"
    with psycopg.connect(libpq(POSTGRES), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type,unused-ignore]
    return f"{POSTGRES.rpartition('/')[0]}/{name}"


def drop_database(url: str) -> None:
    """Also where somebody is still connected."""
    name = url.rpartition("/")[2]
    with psycopg.connect(libpq(POSTGRES), autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type,unused-ignore]


@contextmanager
def database_url(engine: str, folder: Path) -> Iterator[str]:
    """The URL of an empty database of its own, of sqlite in `folder` or of postgresql; dropped afterwards."""
    if engine == "sqlite":
        yield f"sqlite:///{folder / 'gateway.db'}"
        return
    url = create_database()
    try:
        yield url
    finally:
        drop_database(url)


def asked(data: Path, environment: Mapping[str, str], sql: str) -> Any:
    """The first column of the first row that a gateway's database answers, read beside its processes."""
    url = environment.get("GATEWAY_DATABASE_URL")
    if url is None:
        with closing(sqlite3.connect(f"file:{data / 'gateway.db'}?mode=ro", uri=True, timeout=30)) as connection:
            return connection.execute(sql).fetchone()[0]
    with psycopg.connect(libpq(url)) as session:
        row = session.execute(sql).fetchone()  # type: ignore[arg-type,unused-ignore]
        assert row is not None
        return row[0]
