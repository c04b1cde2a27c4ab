"""Searches over 100,000 studies, by HTTP and DIMSE: QIDO-RS, C-FIND and SearchImageSets.

    python -m benchmarks.search [--studies N] [--database URL] [--data FOLDER]

Fills a store by STOW-RS, so that publishing itself writes every row, and prints a table. A folder that is named is
kept, and measured as it is when it holds a store already. `scan` is the time in which the database reads every row for
the same answer: a search that took as long would use no index. `CPU` is of the gateway's processes, without
PostgreSQL's. On a machine that does other work as well, `p10` and `CPU` tell more than the median does.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa

from demo.gateway import Gateway

from .harness import cpu_seconds, harness_module, running_gateway, wait_until_idle

_BATCH = 250
_IN_SERIES = 500
_BOUNDARY = "search-benchmark"
_ROUNDS = 3
_ROUND_S = 1.5
_AT_LEAST = 20


@dataclass(frozen=True)
class Cell:
    """One kind of search: `ask` sends the next one and answers how many matches came."""

    name: str
    ask: Callable[[int], int]
    matches: tuple[int, int]
    """At least and at most, of every answer."""
    budget_ms: float
    percentile: int = 50
    scan: str = ""
    """SQL that reads every row for the answer; `{}` stands before a column that no index may serve."""


@dataclass
class Figures:
    """What the rounds of a cell measured: ms of each request, CPU ms for one."""

    times: list[float]
    cpu_ms: float = 0.0
    scan_ms: float | None = None

    def percentile(self, which: int) -> float:
        return statistics.quantiles(self.times, n=100, method="inclusive")[which - 1]


# ---------------------------------------------------------------- the store


def fill(gateway: Gateway, studies: int) -> None:
    """Studies of one instance each, three to a patient, and the series of 500."""
    source = harness_module("gen").TinySource()
    began = time.monotonic()
    for start in range(0, studies, _BATCH):
        stow(gateway, [bytes(source.make(i).data) for i in range(start, min(start + _BATCH, studies))])
        if start % 10_000 == 0:
            print(f"{start} studies, {time.monotonic() - began:.0f} s", file=sys.stderr)
    stow(gateway, list(one_series(source, studies)))
    wait_until_idle(gateway)


def one_series(source: Any, studies: int) -> Iterator[bytes]:
    """Instances numbered from 1, of one series of one study more."""
    first = source.make(studies)
    number = b"\x20\x00\x13\x00IS\x02\x001 "
    assert number in bytes(first.data)
    for i in range(_IN_SERIES):
        sop = harness_module("gen").uid("search", "sop", i).encode()
        data = bytes(first.data).replace(first.sop.encode(), sop)
        yield data.replace(number, b"\x20\x00\x13\x00IS\x04\x00" + f"{i + 1:<4}".encode())


def stow(gateway: Gateway, instances: Sequence[bytes]) -> None:
    part = f"--{_BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = b"".join(part + instance + b"\r\n" for instance in instances) + f"--{_BOUNDARY}--\r\n".encode()
    kind = f'multipart/related; type="application/dicom"; boundary={_BOUNDARY}'
    with connected(gateway, 600) as connection:
        connection.request("POST", "/dicomweb/studies", body, {"content-type": kind})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"STOW-RS answered {answer.status}: {said[:200]!r}")


@contextmanager
def connected(gateway: Gateway, timeout_s: float = 60) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(gateway.http.removeprefix("http://"), timeout=timeout_s)
    try:
        yield connection
    finally:
        connection.close()


# ---------------------------------------------------------------- the searches


class Searches:
    """The cells, over the studies that `fill` has stored."""

    def __init__(self, gateway: Gateway, connection: http.client.HTTPConnection, studies: int) -> None:
        gen = harness_module("gen")
        self._gateway = gateway
        self._connection = connection
        self._studies = studies
        pick = random.Random(42)
        self._some = [gen.tiny_record(pick.randrange(studies), 1) for _ in range(200)]
        self._days = [f"{year}{month:02d}" for year in range(2015, 2025) for month in range(1, 13)]
        pick.shuffle(self._days)
        self._big = gen.tiny_record(studies, 1)
        self._dimse = harness_module("rawdimse")
        host, _, port = gateway.dimse.rpartition(":")
        contexts = [(self._dimse.STUDY_FIND, [self._dimse.IVLE])]
        self._association = self._dimse.Assoc(host, int(port), gateway.aet, "BENCH", contexts)

    def close(self) -> None:
        self._association.release()

    def cells(self) -> Iterator[Cell]:
        n = self._studies
        page = (1, 50)

        def of(text: Callable[[Mapping[str, Any]], str]) -> Callable[[int], str]:
            return lambda i: text(self._some[i % len(self._some)])

        def month(i: int) -> str:
            return self._days[i % len(self._days)]

        def infix(text: str) -> str:
            return quote(f"*{text}*") + "&limit=50"

        qido: list[tuple[str, Callable[[int], str], tuple[int, int], float]] = [
            ("PatientID", of(lambda one: f"PatientID={one['pid']}"), (1, 3), 2),
            ("AccessionNumber", of(lambda one: f"AccessionNumber={one['acc']}"), (1, 1), 2),
            ("StudyInstanceUID", of(lambda one: f"StudyInstanceUID={one['study']}"), (1, 1), 2),
            ("PatientName prefix", of(lambda one: f"PatientName={quote(one['name'][:6])}*&limit=50"), page, 10),
            ("PatientName infix", of(lambda one: f"PatientName={infix(one['name'][1:8])}"), page, 10),
            ("PatientName infix, broad", of(lambda one: f"PatientName={infix(one['name'][1:4])}"), page, 10),
            (
                "PatientName fuzzy",
                of(lambda one: f"PatientName={one['name'][:4]}%20{one['name'][-3:]}&fuzzymatching=true&limit=50"),
                (0, 50),
                10,
            ),
            ("PatientID infix", of(lambda one: f"PatientID={infix(one['pid'][-5:])}"), page, 10),
            ("AccessionNumber infix", of(lambda one: f"AccessionNumber={infix(one['acc'][-6:])}"), page, 10),
            ("StudyDescription infix", of(lambda one: f"StudyDescription={infix(one['desc'][2:6])}"), page, 10),
            ("StudyDescription infix, none", lambda i: f"StudyDescription={infix(f'NOT{i}')}", (0, 0), 10),
            ("StudyDate range", lambda i: f"StudyDate={month(i)}01-{month(i)}28&limit=50", page, 10),
            ("StudyDate range, years", lambda i: "StudyDate=20160101-20221231&limit=50", page, 10),
            ("ModalitiesInStudy", lambda i: "ModalitiesInStudy=MR&limit=50", page, 10),
            (
                "StudyDate range and ModalitiesInStudy",
                lambda i: f"StudyDate={month(i)}01-{month(i)}28&ModalitiesInStudy=CT&limit=50",
                page,
                10,
            ),
            ("first page", lambda i: "limit=50", (50, 50), 10),
            ("offset 90%", lambda i: f"limit=50&offset={n * 9 // 10}", (50, 50), 50),
        ]
        for name, query, matches, budget in qido:
            yield Cell(f"QIDO {name}", self._qido("/studies", query), matches, budget)
        instances = f"/studies/{self._big['study']}/series/{self._big['series']}/instances"
        yield Cell("QIDO 500 instances", self._qido(instances, lambda i: ""), (_IN_SERIES, _IN_SERIES), 30)
        yield from self._c_find(month)
        yield from self._image_sets(month)

    def _qido(self, path: str, query: Callable[[int], str]) -> Callable[[int], int]:
        def ask(i: int) -> int:
            self._connection.request("GET", f"/dicomweb{path}?{query(i)}", headers={"accept": "application/dicom+json"})
            answer = self._connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"QIDO-RS answered {answer.status}: {body[:200]!r}")
            return body.count(b'"0020000D"')

        return ask

    # ------------------------------------------------ C-FIND

    def _c_find(self, month: Callable[[int], str]) -> Iterator[Cell]:
        def one(i: int) -> Mapping[str, Any]:
            return self._some[i % len(self._some)]  # type: ignore[no-any-return]

        kinds: list[tuple[str, Callable[[int], dict[tuple[int, int], str]], tuple[int, int]]] = [
            ("PatientID", lambda i: {(0x10, 0x20): one(i)["pid"]}, (1, 3)),
            ("AccessionNumber", lambda i: {(0x8, 0x50): one(i)["acc"]}, (1, 1)),
            (
                "PatientName prefix and birth date",
                lambda i: {(0x10, 0x10): one(i)["name"][:6] + "*", (0x10, 0x30): one(i)["birth"]},
                (1, 50),
            ),
            ("PatientName infix", lambda i: {(0x10, 0x10): f"*{one(i)['name'][2:]}*"}, (1, 400)),
            ("one day", lambda i: {(0x8, 0x20): month(i) + "15"}, (0, 80)),
            ("one day, ModalitiesInStudy", lambda i: {(0x8, 0x20): month(i) + "15", (0x8, 0x61): "CT"}, (0, 50)),
        ]
        for name, keys, matches in kinds:
            yield Cell(f"C-FIND {name}", self._found(keys), matches, 10)

    def _found(self, keys: Callable[[int], dict[tuple[int, int], str]]) -> Callable[[int], int]:
        returned = [(0x8, 0x20), (0x8, 0x30), (0x8, 0x50), (0x8, 0x61), (0x8, 0x1030), (0x10, 0x10), (0x10, 0x20)]

        def ask(i: int) -> int:
            asked = {**dict.fromkeys([*returned, (0x20, 0xD)], ""), (0x8, 0x52): "STUDY", **keys(i)}
            identifier = self._dimse.ident_ivle([(group, element, value) for (group, element), value in asked.items()])
            matches, status, _ = self._association.find(next(iter(self._association.ctx)), identifier)
            if status != 0:
                raise RuntimeError(f"C-FIND ended with {status:04X}")
            return int(matches)

        return ask

    # ------------------------------------------------ SearchImageSets

    def _image_sets(self, month: Callable[[int], str]) -> Iterator[Cell]:
        def equal(name: str, value: Callable[[Mapping[str, Any]], Any]) -> Callable[[int], list[dict[str, Any]]]:
            def filters(i: int) -> list[dict[str, Any]]:
                return [{"operator": "EQUAL", "values": [{name: value(self._some[i % len(self._some)])}]}]

            return filters

        def between(*values: Mapping[str, Any]) -> list[dict[str, Any]]:
            return [{"operator": "BETWEEN", "values": list(values)}]

        def days(i: int) -> list[dict[str, Any]]:
            times = (f"{month(i)}01", "000000"), (f"{month(i)}28", "235959")
            return between(
                *({"DICOMStudyDateAndTime": {"DICOMStudyDate": day, "DICOMStudyTime": at}} for day, at in times)
            )

        def recent(name: str) -> Callable[[int], list[dict[str, Any]]]:
            now = datetime.now(UTC).timestamp()
            return lambda i: between({name: now - 30 * 86400}, {name: now})

        every = (50, 50)
        words: list[tuple[str, Callable[[Mapping[str, Any]], Any], tuple[int, int], str]] = [
            ("DICOMPatientId", lambda one: one["pid"], (1, 3), "{}patient_id = 'x'"),
            ("DICOMAccessionNumber", lambda one: one["acc"], (1, 1), "{}accession = 'x'"),
            ("DICOMStudyId", lambda one: "1", every, "{}study_id = '1'"),
            ("DICOMStudyInstanceUID", lambda one: one["study"], (1, 1), "{}study_uid = 'x'"),
            ("DICOMSeriesInstanceUID", lambda one: one["series"], (1, 1), "{}series_uid = 'x'"),
            ("isPrimary", lambda one: True, every, "is_primary"),
        ]
        kinds = [
            *((name, equal(name, value), matches, scan) for name, value, matches, scan in words),
            ("DICOMStudyDateAndTime", days, (1, 50), "{}study_date BETWEEN '20200101' AND '20200128'"),
            ("createdAt", recent("createdAt"), every, "{}created_at BETWEEN 0 AND 4102444800000"),
            ("updatedAt", recent("updatedAt"), every, "{}updated_at BETWEEN 0 AND 4102444800000"),
            ("no filter", lambda i: [], every, ""),
        ]
        for name, filters, matches, scan in kinds:
            yield Cell(f"SearchImageSets {name}", self._searched(filters), matches, 50, 95, scan)

    def _searched(self, filters: Callable[[int], list[dict[str, Any]]]) -> Callable[[int], int]:
        path = f"/datastore/{self._gateway.datastore}/searchImageSets?maxResults=50"

        def ask(i: int) -> int:
            criteria = {"filters": found} if (found := filters(i)) else {}
            self._connection.request("POST", path, json.dumps(criteria), {"content-type": "application/json"})
            answer = self._connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"SearchImageSets answered {answer.status}: {said[:200]!r}")
            return said.count(b'"imageSetId"')

        return ask


# ---------------------------------------------------------------- measuring


def measure(gateway: Gateway, cells: Sequence[Cell], database: sa.Engine) -> Iterator[tuple[Cell, Figures]]:
    """Each cell in rounds, which take turns with those of the others."""
    figures = {cell.name: Figures([]) for cell in cells}
    cpu = dict.fromkeys(figures, 0.0)
    for _ in range(_ROUNDS):
        for cell in cells:
            times = figures[cell.name].times
            cell.ask(len(times))
            before, end, done = cpu_seconds(gateway), time.monotonic() + _ROUND_S, 0
            while done < _AT_LEAST or time.monotonic() < end:
                began = time.perf_counter()
                matches = cell.ask(len(times))
                times.append((time.perf_counter() - began) * 1000)
                done += 1
                if not cell.matches[0] <= matches <= cell.matches[1]:
                    raise RuntimeError(f"{cell.name}: {matches} matches, not {cell.matches}")
            cpu[cell.name] += cpu_seconds(gateway) - before
    for cell in cells:
        found = figures[cell.name]
        found.cpu_ms = cpu[cell.name] * 1000 / len(found.times)
        found.scan_ms = scanned(database, cell.scan) if cell.scan else None
        yield cell, found


def scanned(database: sa.Engine, where: str) -> float:
    """The median of some readings of every image set's row, in ms."""
    postgres = database.dialect.name == "postgresql"
    query = f"SELECT count(*), max(attrs) FROM set_index WHERE {where.format('' if postgres else '+')}"
    times = []
    with database.connect() as connection:
        if postgres:
            for way in ("indexscan", "indexonlyscan", "bitmapscan"):
                connection.execute(sa.text(f"SET enable_{way} = off"))
        for _ in range(5):
            began = time.perf_counter()
            connection.execute(sa.text(query)).all()
            times.append((time.perf_counter() - began) * 1000)
        connection.rollback()
    return statistics.median(times)


def main(studies: int, database: str | None, data: Path | None) -> None:
    flags = [*(("--data", str(data)) if data else ())]
    settings = {"GATEWAY_DATABASE_URL": database} if database else {}
    with running_gateway(*flags, **settings) as gateway, connected(gateway) as connection:
        url = database or f"sqlite:///{data or gateway.folder / 'data'}/gateway.db"
        engine = sa.create_engine(url)
        with engine.connect() as read:
            stored = read.execute(sa.text("SELECT count(*) FROM study")).scalar_one()
        if stored < studies:
            fill(gateway, studies)
        if not engine.url.drivername.startswith("sqlite"):  # as its autovacuum does within a minute, where that is on
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as upkeep:
                upkeep.execute(sa.text("VACUUM ANALYZE"))
        searches = Searches(gateway, connection, studies)
        print("| search | p10 ms | p50 ms | p95 ms | CPU ms | scan ms | budget |  |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for cell, found in measure(gateway, list(searches.cells()), engine):
            judged = found.percentile(cell.percentile)
            figures = (*(found.percentile(which) for which in (10, 50, 95)), found.cpu_ms)
            shown = " | ".join(f"{figure:.2f}" for figure in figures)
            scan = f"{found.scan_ms:.0f}" if found.scan_ms is not None else ""
            verdict = "met" if judged < cell.budget_ms else "**not met**"
            budget = f"p{cell.percentile} < {cell.budget_ms:g}"
            print(f"| {cell.name} | {shown} | {scan} | {budget} | {verdict} |", flush=True)
        searches.close()
        engine.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description="Searches over many studies.")
    parser.add_argument("--studies", type=int, default=100_000)
    parser.add_argument("--database", help="an empty PostgreSQL database, or the one of the folder [default: SQLite]")
    parser.add_argument("--data", type=Path, help="a folder to keep the store in [default: one that goes]")
    asked = parser.parse_args()
    main(asked.studies, asked.database, asked.data)
