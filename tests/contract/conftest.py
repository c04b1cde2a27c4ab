"""Stores on SQLite and on PostgreSQL: a database and a folder for each module, a data store for each test."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from adapters.codecs.decoding import DecodePool
from adapters.embedded.publishing import Resent
from tests.contract.embedded import Store, close_process, open_store
from tests.databases import database_url

ENGINES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Failures made on purpose are logged with their stack: rendering those would take longer than the tests."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is tried again at once."""
    monkeypatch.setattr("adapters.embedded.worker._PAUSES_MS", (1, 1))


@pytest.fixture(scope="session")
def decoder() -> Iterator[DecodePool]:
    pool = DecodePool(1)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module", params=ENGINES)
def shared_store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    decoder: DecodePool,
    loop: asyncio.AbstractEventLoop,
) -> Iterator[Store]:
    data = tmp_path_factory.mktemp(request.param)
    with database_url(request.param, data) as url:
        opened = open_store(data, url, decoder, loop)
        yield opened
        opened.close()


@pytest.fixture
def store(shared_store: Store) -> Store:
    """An empty data store in the module's database."""
    made = shared_store.do(shared_store.web.backend.create_datastore("test"))
    return replace(shared_store, datastore=made.id)


@pytest.fixture(params=ENGINES)
def own_store(
    request: pytest.FixtureRequest, tmp_path: Path, decoder: DecodePool, loop: asyncio.AbstractEventLoop
) -> Iterator[Store]:
    """A store with a database and a folder that no other test touches."""
    with database_url(request.param, tmp_path) as url:
        opened = open_store(tmp_path, url, decoder, loop)
        yield opened
        opened.close()


@pytest.fixture
def policy(store: Store) -> Iterator[Callable[[Resent], Store]]:
    """The same data store, served by a worker with another policy for what is sent again."""
    opened: list[Store] = []

    def use(resent: Resent) -> Store:
        worker = store.process("worker", resent)
        opened.append(replace(store, worker=worker, resent=resent))
        return opened[-1]

    yield use
    for one in opened:
        close_process(one.worker)
