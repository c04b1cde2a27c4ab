"""Which rows the statements of imports and searches look at: what they ask for, however many others there are."""

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from adapters.codecs.decoding import DecodePool
from adapters.sql import tables as t
from gateway.domain.query import DicomQuery, Key, Level, attribute, vr_of
from tests.contract.embedded import Store, open_store
from tests.databases import database_url
from tests.makers import instance, pixels, uid

QUEUE = {"work", "set_lock", "datastore", "datastore_seq", "job_segment"}
"""Tables that hold what is under way, or a row for each data store."""
STORED = {table.name for table in t.metadata.sorted_tables} - QUEUE


@pytest.fixture
def on_sqlite(tmp_path: Path, decoder: DecodePool, loop: asyncio.AbstractEventLoop) -> Iterator[Store]:
    with database_url("sqlite", tmp_path) as url:
        store = open_store(tmp_path, url, decoder, loop)
        yield store
        store.close()


def slice_(series: int, number: int, **attributes: Any) -> bytes:
    return instance(uid(1), uid(1, series), uid(1, series, number), pixels(number), **attributes)


def test_no_statement_of_an_import_walks_the_store(on_sqlite: Store) -> None:
    store = on_sqlite
    store.put(slice_(1, 1))
    seen = statements(store)
    store.put(slice_(1, 2), slice_(2, 1))  # a new instance, and a new series
    store.put(slice_(1, 2, PatientName="Other^Name"), slice_(3, 1, PatientID="another"))  # a change, and a conflict
    walks = {(sql, step) for sql in seen for step in walked(store, sql)}
    assert walks == set()
    assert len(seen) > 30


@pytest.mark.parametrize(
    "asked",
    [
        {"PatientID": "P1"},
        {"PatientID": "*P1"},
        {"AccessionNumber": "*CC*"},
        {"PatientName": "doe*"},
        {"PatientName": "*oe^j*"},
        {"PatientName": "Doe^*"},
        {"StudyDescription": "*ea*"},
        {"StudyDate": "20240101-20240131"},
        {"ModalitiesInStudy": "CT"},
        {"ModalitiesInStudy": "CT", "StudyDate": "20240101-20240131", "PatientName": "*ane*"},
    ],
    ids=str,
)
def test_no_search_with_few_matches_walks_the_store(on_sqlite: Store, asked: dict[str, str]) -> None:
    store = on_sqlite
    store.put(slice_(1, 1, StudyDescription="Head"))
    keys = [Key(attribute(name), vr_of(attribute(name)[-1]), (value,)) for name, value in asked.items()]
    seen = statements(store)
    found = store.do(store.web.backend.find(DicomQuery(store.datastore, Level.STUDY, tuple(keys), limit=50)))
    assert len(found.rows) == 1
    assert {(sql, step) for sql in seen for step in walked(store, sql)} == set()


def statements(store: Store) -> set[str]:
    """Every statement that its processes run from now on."""
    seen: set[str] = set()

    def note(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_trace_callback(seen.add)

    for engine in {*store.worker.database._engines, *store.web.database._engines}:
        event.listen(engine, "checkout", note)
    return seen


def walked(store: Store, sql: str) -> list[str]:
    """The steps of a statement that go through a table of stored things, or all of a data store's rows in one."""
    if not re.match(r"(SELECT|INSERT|UPDATE|DELETE)\b", sql):
        return []
    connection = sqlite3.connect(str(store.web.database.url.database))
    try:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
    finally:
        connection.close()
    return [
        step
        for step in steps
        if (found := re.match(r"(SCAN|SEARCH) (\w+)(.*)", step))
        and table_of(found[2], sql) in STORED
        and (found[1] == "SCAN" or found[3].endswith(("(datastore_pk=?)", "(datastore_pk=? AND kind=?)")))
    ]


def table_of(alias: str, sql: str) -> str:
    named = re.search(rf"(?:FROM|JOIN) (\w+)(?: AS)? {alias}\b", sql)
    return named[1] if named else alias
