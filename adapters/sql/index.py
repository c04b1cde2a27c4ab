"""The search index: derived tables written inside publishing transactions, and read for QIDO, C-FIND and
SearchImageSets.

What SQL can decide exactly is asked of the database, the rest of `gateway.domain.matching`, row by row in order.
SQL is written by hand and given to the driver as it is: a search by UID costs less than compiling a statement.
`gateway.domain.plan` defines the answers; a property test holds both to it.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from gateway.domain.errors import InvalidInput, NotFound, TooLarge, Unavailable
from gateway.domain.ids import DatastoreId, ImageSetId
from gateway.domain.matching import (
    MIDNIGHT,
    Condition,
    Interval,
    fulfils,
    fuzzy_words,
    glob,
    is_pattern,
    literal,
    name_forms,
    name_patterns,
    name_text,
    name_words,
    normal_time,
    normalize_name,
    number_of,
    text_value,
    time_range,
    time_value,
)
from gateway.domain.model import Criterion, ImageSetSummary, SearchCriteria
from gateway.domain.plan import (
    LARGEST,
    Answering,
    Held,
    answer,
    element,
    fold,
    has_value,
    page,
    patients,
    series_view,
    study_part,
    study_view,
    views_of,
    whole_number,
)
from gateway.domain.query import (
    ACCESSION_NUMBER,
    INSTANCE_NUMBER,
    MODALITIES_IN_STUDY,
    MODALITY,
    PATIENT_BIRTH_DATE,
    PATIENT_ID,
    PATIENT_NAME,
    PATIENT_SEX,
    REFERRING_PHYSICIAN,
    SERIES_NUMBER,
    SERIES_UID,
    SOP_CLASS_UID,
    SOP_CLASSES_IN_STUDY,
    SOP_INSTANCE_UID,
    STUDY_DATE,
    STUDY_DESCRIPTION,
    STUDY_ID,
    STUDY_TIME,
    STUDY_UID,
    Attributes,
    DicomQuery,
    Key,
    Level,
    SearchAnswer,
    Views,
    beyond_index,
    hexadecimal,
    is_creator,
    vr_of,
)

from .tables import DERIVED, END

SERIES_DESCRIPTION: Final = 0x0008103E
BODY_PART: Final = 0x00180015

NAMES: Final = (PATIENT_NAME, REFERRING_PHYSICIAN)
"""Person names that have rows in study_name: whole forms under their tag, words under tag + `w`."""

_SMALL: Final = 1000
"""A predicate with no more matches drives the search; a larger one filters a walk in the order of the answer."""
_CHUNK: Final = 500
_ALL: Final = 2**40
"""More rows than any table has."""

InstanceJson = Callable[[Sequence[tuple[int, int | None]]], Iterable[Attributes]]
"""(record_pk, overlay_pk) pairs -> the DICOM JSON of each, with the overlay's edits, in the same order."""


@lru_cache(maxsize=1024)
def _for_driver(sql: str, postgres: bool) -> str:
    return sql.replace("?", "%s") if postgres else sql


class _Session:
    """A connection, with what differs between the engines: by the driver's own cursor, which costs a third.

    Its errors are the driver's.
    """

    def __init__(self, connection: Connection) -> None:
        self._cursor = connection.connection.cursor()
        self.postgres = connection.dialect.name == "postgresql"

    def all(self, sql: str, *params: Any) -> Sequence[Any]:
        self._cursor.execute(_for_driver(sql, self.postgres), params)
        return self._cursor.fetchall()

    def first(self, sql: str, *params: Any) -> Any:
        self._cursor.execute(_for_driver(sql, self.postgres), params)
        return self._cursor.fetchone()

    def run(self, sql: str, *params: Any) -> None:
        self._cursor.execute(_for_driver(sql, self.postgres), params)

    def run_each(self, sql: str, params: list[tuple[Any, ...]]) -> None:
        if params:
            self._cursor.executemany(_for_driver(sql, self.postgres), params)

    @property
    def among(self) -> str:
        """What follows a column to ask whether it is in a list, which is one parameter: see `values`."""
        return "= ANY(?)" if self.postgres else "IN (SELECT value FROM json_each(?))"

    def values(self, values: Iterable[Any]) -> Any:
        return list(values) if self.postgres else orjson.dumps(list(values)).decode()

    def sorted_by(self, columns: str) -> str:
        """An ORDER BY of few rows that SQLite must not take for a reason to walk an index in that order: it has no
        statistics, and holds a data store to be ten rows."""
        if self.postgres:
            return columns
        return ", ".join(f"+{column}" for column in columns.split(", "))

    def like(self, pattern: str) -> tuple[str, str]:
        """What follows a column to match a wildcard pattern, case-sensitive, and its parameter."""
        if self.postgres:
            escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            return "LIKE ?", escaped.replace("*", "%").replace("?", "_")
        return "GLOB ?", glob(pattern)


# ---------------------------------------------------------------- conditions in SQL


@dataclass(frozen=True, slots=True)
class _Where:
    """A predicate on one column, written `{c}`, or on none."""

    sql: str
    params: tuple[Any, ...]
    column: str = ""
    broad: bool = False
    """May match a large part of the table, and its column has an index that the planner might then mistake for
    the best way."""

    def text(self, *, walk: bool = False) -> str:
        """`walk`: SQLite must not use the column's index."""
        return self.sql.replace("{c}", f"+{self.column}" if walk else self.column)


@dataclass(frozen=True, slots=True)
class _Subset:
    """The studies whose pk another table lists."""

    sql: str
    params: tuple[Any, ...]


_TEXT: Final[Mapping[int, str]] = {
    PATIENT_ID: "s.patient_id",
    ACCESSION_NUMBER: "s.accession",
    STUDY_ID: "s.study_id",
    PATIENT_SEX: "s.sex",
    STUDY_DESCRIPTION: "s.description",
    MODALITY: "x.modality",
    SERIES_DESCRIPTION: "x.series_description",
    BODY_PART: "x.body_part",
}
_UIDS: Final[Mapping[int, str]] = {
    STUDY_UID: "s.study_uid",
    SERIES_UID: "x.series_uid",
    SOP_CLASS_UID: "m.sop_class",
    SOP_INSTANCE_UID: "m.sop_uid",
}
_TIMES: Final[Mapping[int, str]] = {
    STUDY_DATE: "s.study_date",
    STUDY_TIME: "s.study_time",
    PATIENT_BIRTH_DATE: "s.birth_date",
}
_NUMBERS: Final[Mapping[int, str]] = {SERIES_NUMBER: "x.number", INSTANCE_NUMBER: "m.number"}
_INDEXED: Final = frozenset({"s.patient_id", "s.accession", "s.study_id", "s.study_date", "x.modality"})


def _pushed(session: _Session, datastore_pk: int, condition: Condition, fuzzy: bool) -> _Where | _Subset | None:
    """The condition in SQL; None if only Python can decide it exactly."""
    if condition.interval:
        return _interval(condition.interval)
    key = condition.key
    if key is None or key.vr != vr_of(condition.tag):
        return None
    tag = condition.tag
    if tag in _UIDS:
        return _one_of(session, _UIDS[tag], [literal(key, value) for value in key.values])
    if tag in _TEXT:
        column = _TEXT[tag]
        texts = [literal(key, value) for value in key.values]
        if not any(map(is_pattern, texts)):
            return _Where(**_fields(_one_of(session, column, texts)), broad=column == "x.modality")
        sql, params = _text_in(session, texts)
        return _Where(sql, params, column, column in _INDEXED)
    if tag in _TIMES:
        return _in_times(key, _TIMES[tag])
    if tag in _NUMBERS:
        numbers = [number_of(value) for value in key.values]
        if any(n is None or n != n.to_integral_value() or abs(n) > LARGEST for n in numbers):
            return None
        return _one_of(session, _NUMBERS[tag], [int(n) for n in numbers if n is not None])
    if tag in NAMES:
        return _name(session, datastore_pk, key, fuzzy)
    if tag == MODALITIES_IN_STUDY:
        sql, params = _text_in(session, [literal(key, value) for value in key.values])
        chosen = sql.replace("{c}", "modality")
        rows = f"SELECT study_pk FROM study_modality WHERE datastore_pk=? AND {chosen}"
        return _Subset(rows, (datastore_pk, *params))
    if tag == SOP_CLASSES_IN_STUDY:
        one = _one_of(session, "m.sop_class", [literal(key, value) for value in key.values])
        return _Where(
            "EXISTS (SELECT 1 FROM set_index x JOIN member m ON m.image_set_pk=x.image_set_pk WHERE x.datastore_pk="
            f"s.datastore_pk AND x.study_uid=s.study_uid AND x.is_primary AND m.v_to={END} AND {one.text()})",
            one.params,
        )
    return None


def _fields(where: _Where) -> dict[str, Any]:
    return {"sql": where.sql, "params": where.params, "column": where.column}


def _one_of(session: _Session, column: str, values: Sequence[Any]) -> _Where:
    if len(values) == 1:
        return _Where("{c} = ?", (values[0],), column)
    return _Where("{c} " + session.among, (session.values(values),), column)


def _text_in(session: _Session, texts: Iterable[str]) -> tuple[str, tuple[Any, ...]]:
    """Any of some values or wildcard patterns; a literal beginning becomes a range that an index can serve."""
    parts: list[str] = []
    params: list[Any] = []
    for text in texts:
        if not is_pattern(text):
            parts.append("{c} = ?")
            params.append(text)
            continue
        terms = []
        beginning = text[: min(text.find(c) for c in "*?" if c in text)]
        if beginning:
            terms.append("{c} >= ?")
            params.append(beginning)
            if after := _next(beginning):
                terms.append("{c} < ?")
                params.append(after)
        if not beginning or text.strip("*") != beginning or not after:
            operator, parameter = session.like(text)
            terms.append("{c} " + operator)
            params.append(parameter)
        parts.append("(" + " AND ".join(terms) + ")")
    return parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")", tuple(params)


def _next(text: str) -> str:
    """The least text that sorts after all that begin with `text`; empty if there is none."""
    last = ord(text[-1]) + 1
    if last > 0x10FFFF:
        return ""
    return text[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)


def _in_times(key: Key, column: str) -> _Where:
    parts, params, single = [], [], True
    for value in key.values:
        bounds = time_range(key, value)
        single = single and bounds.single
        if bounds.single:
            parts.append("{c} = ?")
            params.append(bounds.low)
            continue
        # A row without a value has an empty text, which is in no range.
        parts.append("({c} >= ? AND {c} <= ?)")
        params += [bounds.low or "0", bounds.high or "9~"]
    sql = parts[0] if len(parts) == 1 else "(" + " OR ".join(parts) + ")"
    return _Where(sql, tuple(params), column, column in _INDEXED and not single)


def _interval(interval: Interval) -> _Where:
    """(date, time) between bounds; the range on the date alone is what an index serves."""
    low, high = interval.low, interval.high
    terms = ["{c} >= ?", "{c} <= ?"]
    params: list[Any] = [low[0] if low else "0", high[0] if high else "9~"]
    if low and low[1] > MIDNIGHT:
        terms.append("({c} > ? OR s.study_time >= ?)")
        params += low
    if high:
        terms.append("({c} < ? OR s.study_time <= ?)")
        params += high
    return _Where(" AND ".join(terms), tuple(params), "s.study_date", broad=True)


def _name(session: _Session, datastore_pk: int, key: Key, fuzzy: bool) -> _Subset:
    kind = hexadecimal(key.path[0])
    rows = "SELECT study_pk FROM study_name WHERE datastore_pk=? AND kind=? AND "
    texts = [literal(key, value) for value in key.values]
    sql, params = _text_in(session, [pattern for text in texts for pattern in name_patterns(text)] or [""])
    union = [rows + sql.replace("{c}", "norm")]
    asked: list[Any] = [datastore_pk, kind, *params]
    for text in texts if fuzzy else ():
        words = []
        for word in fuzzy_words(text):
            begins, bounds = _text_in(session, [word + "*"])
            words.append(rows + begins.replace("{c}", "norm"))
            asked += [datastore_pk, kind + "w", *bounds]
        if words:
            union.append("SELECT study_pk FROM (" + " INTERSECT ".join(words) + ") words")
    return _Subset(" UNION ".join(union), tuple(asked))


# ---------------------------------------------------------------- searches


@dataclass(frozen=True, slots=True)
class _Select:
    """The statements that give the rows' keys in order, and how many there are; both take `params`."""

    keys: str
    count: str
    params: tuple[Any, ...]
    residual: Sequence[Condition]
    """What Python has to decide."""


class SqlIndex:
    """Searches over the derived tables. *Blocking; any thread.*"""

    def __init__(
        self,
        engine: Engine,
        instance_json: InstanceJson | None = None,
        *,
        document_budget: int = 20_000,
        row_budget: int = 500_000,
    ) -> None:
        """`instance_json` reads instances for attributes that no table has; without it they cannot be matched.
        The budgets bound how many instances and rows one search may look at where SQL cannot decide."""
        postgres = engine.dialect.name == "postgresql"
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT") if postgres else engine
        self._driver_error: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._instance_json = instance_json
        self._document_budget = document_budget
        self._row_budget = row_budget

    def find(self, query: DicomQuery) -> SearchAnswer:
        """The page of rows that a query asks for: studies with the newest update first, series of each by number,
        instances by number, those of several series with the newest update first (HI-01).

        Raises InvalidInput for what cannot be matched, TooLarge beyond a budget, NotFound for an unknown data store
        or image set.
        """
        ready = Answering.of(query)
        with self._reading() as session:
            datastore_pk = self._datastore(session, query.datastore)
            search = _Search(session, datastore_pk, ready, self._instance_json, self._document_budget, self._row_budget)
            if query.as_of is not None or query.image_set is not None:
                return search.held()
            return search.patients() if query.level is Level.PATIENT else search.rows()

    def search_image_sets(
        self, datastore_pk: int, criteria: SearchCriteria, size: int, token: str | None = None
    ) -> tuple[list[ImageSetSummary], str | None]:
        """One page of image sets, and the token of the next (API: SearchImageSets). Equal sort values are ordered by
        when the image set was made. Raises InvalidInput for a filter or token that cannot be."""
        with self._reading() as session:
            return _image_sets(session, datastore_pk, criteria, size, token)

    @contextmanager
    def _reading(self) -> Iterator[_Session]:
        try:
            with self._engine.connect() as connection:
                yield _Session(connection)
        except (DBAPIError, self._driver_error) as fault:
            raise Unavailable("The index cannot be read now; try again later") from fault

    def _datastore(self, session: _Session, datastore: DatastoreId) -> int:
        # Asked anew each time: any process may have deleted it.
        found = session.first("SELECT pk FROM datastore WHERE id=? AND status<>'DELETED'", datastore)
        if found is None:
            raise NotFound("There is no such data store")
        return int(found[0])


class _Search:
    """One search under way."""

    def __init__(
        self,
        session: _Session,
        datastore_pk: int,
        ready: Answering,
        instance_json: InstanceJson | None,
        document_budget: int,
        row_budget: int,
    ) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query
        self._instance_json = instance_json
        self._documents_left = document_budget
        self._row_budget = row_budget
        if instance_json is None:
            for condition in ready.conditions:
                if beyond_index(condition.tag):
                    raise InvalidInput(f"{hexadecimal(condition.tag)} cannot be matched here")

    # ------------------------------------------------ from the current tables

    def rows(self) -> SearchAnswer:
        query, select = self._query, self._select()
        if select.residual:
            return self._scan(select)
        limit = query.limit
        most = _ALL if limit is None else min(limit, _ALL) + 1
        paging = (most, min(query.offset, _ALL))
        pks = [pk for (pk,) in self._session.all(f"{select.keys} LIMIT ? OFFSET ?", *select.params, *paging)]
        remaining = 0
        if limit is not None and len(pks) > limit:
            pks = pks[:limit]
            (count,) = self._session.first(select.count, *select.params)
            remaining = max(1, int(count) - query.offset - limit)
        return SearchAnswer([self._ready.row(views) for views in self._load(pks)], remaining)

    def _scan(self, select: _Select) -> SearchAnswer:
        """Candidates in order, each put to the test."""
        query = self._query
        pks = [pk for (pk,) in self._session.all(f"{select.keys} LIMIT ?", *select.params, self._row_budget + 1)]
        self._check_rows(len(pks))
        end = None if query.limit is None else query.offset + query.limit
        rows: list[dict[str, Any]] = []
        matched = 0
        for views in self._load(pks, select.residual):
            if matched >= query.offset and (end is None or matched < end):
                rows.append(self._ready.row(views))
            matched += 1
        return SearchAnswer(rows, 0 if end is None else max(0, matched - end))

    def _check_rows(self, looked_at: int) -> None:
        if looked_at > self._row_budget:
            raise TooLarge("The search would look at too many rows; add a patient, a study or a range of dates")

    def patients(self) -> SearchAnswer:
        """Patients, each over all its studies. One condition narrows them: several could hold in several studies."""
        session, ready = self._session, self._ready
        sql = "s.datastore_pk=?"
        params: tuple[Any, ...] = (self._datastore_pk,)
        wheres = [_pushed(session, self._datastore_pk, condition, self._query.fuzzy) for condition in ready.conditions]
        if narrow := next((where for where in wheres if where), None):
            chosen = f"s.pk IN ({narrow.sql})" if isinstance(narrow, _Subset) else narrow.text()
            sql += f" AND s.patient_id IN (SELECT s.patient_id FROM study s WHERE s.datastore_pk=? AND {chosen})"
            params += (self._datastore_pk, *narrow.params)
        pks = session.all(
            f"SELECT s.pk FROM study s WHERE {sql} ORDER BY {session.sorted_by('s.changed DESC, s.pk DESC')} LIMIT ?",
            *params,
            self._row_budget + 1,
        )
        self._check_rows(len(pks))
        studies = self._studies([pk for (pk,) in pks]).values()
        found = [views_of(patient) for patient in patients(views[Level.STUDY] for views in studies)]
        rows, remaining = page([views for views in found if fulfils(views, ready.conditions)], self._query)
        return SearchAnswer([ready.row(views) for views in rows], remaining)

    def _select(self) -> _Select:
        session, query = self._session, self._query
        wheres: list[_Where] = []
        subsets: list[_Subset] = []
        residual: list[Condition] = []
        for condition in self._ready.conditions:
            pushed = _pushed(session, self._datastore_pk, condition, query.fuzzy)
            if pushed is None:
                residual.append(condition)
            elif isinstance(pushed, _Subset):
                subsets.append(pushed)
            else:
                wheres.append(pushed)
        if query.level is not Level.STUDY:
            # A study's UID stands on its series too: the study's row is then not needed.
            wheres = [_Where(w.sql, w.params, "x.study_uid") if w.column == "s.study_uid" else w for w in wheres]
        pinned = {where.column for where in wheres if where.column.endswith("_uid")}
        terms, params, drives = self._terms(wheres, subsets, bool(pinned))
        asked = {where.column[:1] or "s" for where in wheres} | ({"s"} if subsets else set())
        order, tables = self._order(pinned, drives, "s" in asked)
        pk = {Level.STUDY: "s.pk", Level.SERIES: "x.image_set_pk", Level.INSTANCE: "m.pk"}[query.level]
        # The counts on the rows above spare counting the rows below.
        total, counted = "count(*)", tables
        if asked <= {"s"} and query.level is not Level.STUDY:
            sums = {Level.SERIES: "s.n_series", Level.INSTANCE: "s.n_instances"}
            total, counted = f"coalesce(sum({sums[query.level]}), 0)", ["s"]
        elif query.level is Level.INSTANCE and "m" not in asked:
            total, counted = "coalesce(sum(x.n_instances), 0)", [table for table in tables if table != "m"]
        elif query.level is Level.SERIES and "s" not in asked:
            counted = ["x"]
        return _Select(
            f"SELECT {pk} FROM {self._source(tables, terms)} ORDER BY "
            + (session.sorted_by(order) if pinned or drives else order),
            f"SELECT {total} FROM {self._source(counted, terms)}",
            tuple(params),
            residual,
        )

    def _source(self, tables: Sequence[str], terms: Sequence[str]) -> str:
        """FROM and WHERE. SQLite takes the tables of a CROSS JOIN in the order written; PostgreSQL plans for itself."""
        names = {"s": "study s", "x": "set_index x", "m": "member m"}
        store = self._datastore_pk
        joined = {
            "s": [f"s.datastore_pk={store}"],
            "x": [f"x.datastore_pk={store}", "x.is_primary"],
            "m": [f"m.v_to={END}"],
        }
        conditions = [term for table in tables for term in joined[table]]
        if "s" in tables and "x" in tables:
            conditions.append("s.study_uid=x.study_uid")
        if "m" in tables and "x" in tables:
            conditions.append("m.image_set_pk=x.image_set_pk")
        return " CROSS JOIN ".join(names[table] for table in tables) + " WHERE " + " AND ".join([*conditions, *terms])

    def _terms(
        self, wheres: Sequence[_Where], subsets: Sequence[_Subset], pinned: bool
    ) -> tuple[list[str], list[Any], set[str]]:
        """The conditions in SQL, and the tables that some condition narrows to a few rows. A broad condition is
        probed: its index serves only where it finds few."""
        session = self._session
        terms: list[str] = []
        params: list[Any] = []
        drives: set[str] = set()
        for where in wheres:
            walk = False
            if where.broad and not pinned and not session.postgres:
                table = {"s": "study s", "x": "set_index x"}[where.column[0]]
                (count,) = session.first(
                    f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {where.column[0]}.datastore_pk=? "
                    f"AND {where.text()} LIMIT {_SMALL + 1})",
                    self._datastore_pk,
                    *where.params,
                )
                walk = count > _SMALL
            if not walk and (where.column in _INDEXED or where.column.endswith("_uid")):
                drives.add(where.column[0])
            terms.append(where.text(walk=walk))
            params += where.params
        small: set[int] | None = None
        for subset in subsets:
            if session.postgres or pinned:
                terms.append(f"s.pk IN ({subset.sql})")
                params += subset.params
                continue
            pks = session.all(f"SELECT study_pk FROM ({subset.sql}) LIMIT {_SMALL + 1}", *subset.params)
            if len(pks) > _SMALL:
                terms.append(f"+s.pk IN ({subset.sql})")
                params += subset.params
            else:
                found = {pk for (pk,) in pks}
                small = found if small is None else small & found
        if small is not None:
            terms.append(f"s.pk {session.among}")
            params.append(session.values(small))
            drives.add("s")
        return terms, params, drives

    def _order(self, pinned: set[str], drives: set[str], needs_study: bool) -> tuple[str, list[str]]:
        """ORDER BY, and the tables from the one that drives."""
        level, query = self._query.level, self._query
        if level is Level.STUDY:
            return "s.changed DESC, s.pk DESC", ["s"]
        series_first = bool(pinned & {"x.study_uid", "x.series_uid"})
        if level is Level.SERIES:
            by_number = "x.number NULLS LAST, x.series_uid"
            if query.single(STUDY_UID) is not None and not needs_study:
                return by_number, ["x"]
            tables = ["x", "s"] if series_first or ("x" in drives and "s" not in drives) else ["s", "x"]
            return f"s.changed DESC, s.pk DESC, {by_number}", tables
        order = "m.number NULLS LAST, m.sop_uid"
        if query.single(SERIES_UID) is None:
            order = f"x.updated_at DESC, x.image_set_pk DESC, {order}"
        if "m.sop_uid" in pinned:
            tables = ["m", "x"]
        elif needs_study and not series_first and "s" in drives:
            return order, ["s", "x", "m"]
        else:
            tables = ["x", "m"]
        if needs_study:
            tables.insert(tables.index("x") + 1, "s")
        return order, tables

    # ------------------------------------------------ rows by their keys

    def _load(self, pks: Sequence[int], demanded: Sequence[Condition] = ()) -> Iterator[Views]:
        """What is known of each row, in the order of the keys, without those that fail a condition."""
        for start in range(0, len(pks), _CHUNK):
            chunk = pks[start : start + _CHUNK]
            if self._query.level is Level.INSTANCE:
                yield from self._members(chunk, demanded)
                continue
            found = self._series(chunk) if self._query.level is Level.SERIES else self._studies(chunk)
            for views in found.values():
                if fulfils(views, demanded):
                    yield views

    def _studies(self, values: Collection[Any], column: str = "pk") -> dict[Any, Views]:
        """Studies by their keys, in the order of these; or by UID."""
        session = self._session
        found = session.all(
            f"SELECT {column}, study_uid, attrs, modalities, n_series, n_instances FROM study "
            f"WHERE datastore_pk=? AND {column} {session.among}",
            self._datastore_pk,
            session.values(values),
        )
        classes = self._sop_classes([uid for _, uid, *_ in found])
        views = {
            value: views_of(
                study_view(
                    orjson.loads(attrs),
                    uid,
                    modalities.split("\\") if modalities else (),
                    series,
                    instances,
                    classes.get(uid, ()),
                )
            )
            for value, uid, attrs, modalities, series, instances in found
        }
        return {value: views[value] for value in values if value in views}

    def _sop_classes(self, study_uids: Sequence[str]) -> dict[str, list[str]]:
        """SOPClassesInStudy, where somebody asks."""
        if not self._ready.wants(SOP_CLASSES_IN_STUDY):
            return {}
        session = self._session
        classes: dict[str, list[str]] = {}
        for uid, sop_class in session.all(
            "SELECT DISTINCT x.study_uid, m.sop_class FROM set_index x JOIN member m ON m.image_set_pk=x.image_set_pk "
            f"WHERE x.datastore_pk=? AND x.is_primary AND m.v_to={END} AND x.study_uid {session.among} ORDER BY 1, 2",
            self._datastore_pk,
            session.values(study_uids),
        ):
            classes.setdefault(uid, []).append(sop_class)
        return classes

    def _series(self, pks: Sequence[int]) -> dict[int, Views]:
        """Series with their studies, by image set."""
        session = self._session
        found = session.all(
            "SELECT image_set_pk, study_uid, series_uid, attrs, n_instances FROM set_index "
            f"WHERE image_set_pk {session.among}",
            session.values(pks),
        )
        studies = self._studies({uid for _, uid, *_ in found}, "study_uid") if self._needs_study() else {}
        views: dict[int, Views] = {}
        for pk, study_uid, series_uid, attrs, count in found:
            study = studies.get(study_uid) or views_of({_STUDY_UID: element("UI", study_uid)})
            views[pk] = {**study, Level.SERIES: series_view(orjson.loads(attrs), study_uid, series_uid, count)}
        return {pk: views[pk] for pk in pks if pk in views}

    def _needs_study(self) -> bool:
        return (
            self._query.include_all
            or any(column.level in _UPPER and column.tag != _STUDY_UID for column in self._ready.columns)
            or any(condition.level in _UPPER for condition in self._ready.conditions if condition.tag != STUDY_UID)
        )

    def _members(self, pks: Sequence[int], demanded: Sequence[Condition]) -> Iterator[Views]:
        session = self._session
        found = session.all(f"{_MEMBER} WHERE m.pk {session.among}", session.values(pks))
        by_pk = {member[0]: member for member in found}
        series = self._series(list({member[1] for member in found}))
        at_hand = [condition for condition in demanded if not beyond_index(condition.tag)]
        kept: list[tuple[Any, Views]] = []
        for pk in pks:
            member = by_pk.get(pk)
            if member is not None and member[1] in series:
                views: Views = {**series[member[1]], Level.INSTANCE: _instance(member)}
                if fulfils(views, at_hand):
                    kept.append((member, views))
        from_documents = [condition for condition in demanded if beyond_index(condition.tag)]
        if not (from_documents or self._shows_documents()):
            yield from (views for _, views in kept)
            return
        documents = self._documents([member for member, _ in kept], matched=bool(from_documents))
        for (member, views), document in zip(kept, documents, strict=True):
            whole: Views = {**views, Level.INSTANCE: {**document, _SOP_UID: element("UI", member[2])}}
            if fulfils(whole, from_documents):
                yield whole

    def _documents(self, members: Sequence[Any], *, matched: bool) -> Iterable[Attributes]:
        """The whole instances; within the budget where they are read to be matched."""
        if self._instance_json is None:
            return [_instance(member) for member in members]
        if matched:
            self._documents_left -= len(members)
            if self._documents_left < 0:
                raise TooLarge(
                    "The search would read too many instances, for it asks for an attribute that is not indexed; "
                    "add a study, a series or a range of dates"
                )
        return self._instance_json([(member[3], member[4]) for member in members])

    def _shows_documents(self) -> bool:
        return any(beyond_index(int(column.tag, 16)) for column in self._ready.columns) or any(
            is_creator(key.path[0]) for key in self._query.keys
        )

    # ------------------------------------------------ one image set, or the past

    def held(self) -> SearchAnswer:
        """Over image sets in memory: the one that the query names, or all that may match as they once were."""
        as_of = self._query.as_of
        sets = self._current(self._image_set()) if as_of is None else self._past(as_of)
        return answer(self._ready, sets, self._instances_of)

    def _image_set(self) -> int:
        found = self._session.first(
            "SELECT pk FROM image_set WHERE datastore_pk=? AND id=?", self._datastore_pk, self._query.image_set
        )
        if found is None:
            raise NotFound("There is no such image set")
        return int(found[0])

    def _current(self, image_set_pk: int) -> list[Held]:
        found = self._session.first(
            "SELECT study_uid, series_uid, attrs, n_instances FROM set_index WHERE image_set_pk=?", image_set_pk
        )
        if found is None:
            raise NotFound("There is no such image set")
        study_uid, series_uid, attrs, count = found
        return [self._one(image_set_pk, END - 1, study_uid, series_uid, attrs, count, 0)]

    def _past(self, as_of: datetime) -> list[Held]:
        session = self._session
        last = session.first(
            "SELECT seq FROM change WHERE datastore_pk=? AND at<=? ORDER BY at DESC, seq DESC LIMIT 1",
            self._datastore_pk,
            _milliseconds(as_of),
        )
        if last is None:
            return []
        seq = int(last[0])
        if self._query.image_set is not None:
            chosen, params = "image_set_pk=?", [self._image_set()]
        else:
            chosen, params = f"is_primary AND study_uid {session.among}", [session.values(self._studies_at(seq))]
        columns = "image_set_pk, study_uid, series_uid, attrs"
        found = session.all(
            f"SELECT {columns} FROM set_index WHERE datastore_pk=? AND seq_from<=? AND {chosen} UNION ALL "
            f"SELECT {columns} FROM set_index_past WHERE datastore_pk=? AND seq_from<=? AND seq_to>? AND {chosen}",
            *(self._datastore_pk, seq, *params, self._datastore_pk, seq, seq, *params),
        )
        self._check_rows(len(found))
        versions = {
            pk: (content, count, at)
            for pk, content, count, at in session.all(
                "SELECT v.image_set_pk, v.content, v.n_instances, v.seq FROM version v JOIN ("
                "SELECT image_set_pk, max(version) AS version FROM version WHERE seq<=? AND content IS NOT NULL "
                f"AND image_set_pk {session.among} GROUP BY image_set_pk) last "
                "ON last.image_set_pk=v.image_set_pk AND last.version=v.version",
                seq,
                session.values({pk for pk, *_ in found}),
            )
        }
        held = []
        for pk, study_uid, series_uid, attrs in found:
            if pk in versions:
                content, count, at = versions[pk]
                held.append(self._one(pk, content, study_uid, series_uid, attrs, count, at))
        return held

    def _studies_at(self, seq: int) -> list[str]:
        """The studies whose values at `seq` meet what SQL can ask of them."""
        session = self._session
        wheres = [
            where
            for condition in self._ready.conditions
            if isinstance(where := _pushed(session, self._datastore_pk, condition, self._query.fuzzy), _Where)
            and where.column
        ]
        # What else is known of a patient may stand in another study; the identifier stands in each.
        narrowing = "s.patient_id" if self._query.level is Level.PATIENT else "s."
        on_study = [where for where in wheres if where.column.startswith(narrowing)]
        on_series = [where for where in wheres if where.column == "x.series_uid"]
        terms = "".join(f" AND {where.text()}" for where in on_study)
        params = [value for where in on_study for value in where.params]
        for where in on_series:
            either = (
                f"SELECT x.study_uid FROM {table} x WHERE x.datastore_pk=? AND {where.text()}"
                for table in ("set_index", "set_index_past")
            )
            terms += f" AND s.study_uid IN ({' UNION '.join(either)})"
            params += [self._datastore_pk, *where.params] * 2
        found = session.all(
            f"SELECT s.study_uid FROM study s WHERE s.datastore_pk=? AND s.seq_from<=?{terms} UNION "
            f"SELECT s.study_uid FROM study_past s WHERE s.datastore_pk=? AND s.seq_from<=? AND s.seq_to>?{terms} "
            "LIMIT ?",
            *(self._datastore_pk, seq, *params, self._datastore_pk, seq, seq, *params, self._row_budget + 1),
        )
        self._check_rows(len(found))
        return [uid for (uid,) in found]

    def _one(
        self, pk: int, content: int, study_uid: str, series_uid: str, attrs: str, count: int, updated: int
    ) -> Held:
        classes: Iterable[str] = ()
        if self._ready.wants(SOP_CLASSES_IN_STUDY):
            classes = [
                sop_class
                for (sop_class,) in self._session.all(
                    "SELECT DISTINCT sop_class FROM member WHERE image_set_pk=? AND v_from<=? AND v_to>?",
                    *(pk, content, content),
                )
            ]
        return Held((pk, content), study_uid, series_uid, orjson.loads(attrs), count, updated, frozenset(classes))

    def _instances_of(self, held: Held) -> Iterable[Attributes]:
        pk, content = held.ref
        members = self._session.all(
            f"{_MEMBER} WHERE m.image_set_pk=? AND m.v_from<=? AND m.v_to>?", pk, content, content
        )
        matched = any(beyond_index(condition.tag) for condition in self._ready.conditions)
        if not (matched or self._shows_documents()):
            return map(_instance, members)
        documents = self._documents(members, matched=matched)
        return (
            {**document, _SOP_UID: element("UI", member[2])}
            for member, document in zip(members, documents, strict=True)
        )


_UPPER: Final = (Level.PATIENT, Level.STUDY)
_STUDY_UID: Final = hexadecimal(STUDY_UID)
_SOP_UID: Final = hexadecimal(SOP_INSTANCE_UID)
_MEMBER: Final = (
    "SELECT m.pk, m.image_set_pk, m.sop_uid, m.record_pk, m.overlay_pk, coalesce(o.attrs, r.attrs) "
    "FROM member m JOIN record r ON r.pk=m.record_pk LEFT JOIN overlay o ON o.pk=m.overlay_pk"
)


def _instance(member: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = orjson.loads(member[5])
    attributes[_SOP_UID] = element("UI", member[2])
    return attributes


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


# ---------------------------------------------------------------- SearchImageSets

_WORDS: Final = {
    "DICOMPatientId": "x.patient_id",
    "DICOMAccessionNumber": "x.accession",
    "DICOMStudyId": "x.study_id",
    "DICOMStudyInstanceUID": "x.study_uid",
    "DICOMSeriesInstanceUID": "x.series_uid",
}
_SORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "updatedAt": ("x.updated_at",),
    "createdAt": ("x.created_at",),
    "DICOMStudyDateAndTime": ("x.study_date", "x.study_time"),
}
_TAGS: Final = {
    "DICOMPatientId": PATIENT_ID,
    "DICOMPatientBirthDate": PATIENT_BIRTH_DATE,
    "DICOMPatientSex": PATIENT_SEX,
    "DICOMStudyId": STUDY_ID,
    "DICOMStudyDescription": STUDY_DESCRIPTION,
    "DICOMAccessionNumber": ACCESSION_NUMBER,
    "DICOMSeriesModality": MODALITY,
    "DICOMSeriesBodyPart": BODY_PART,
    "DICOMStudyDate": STUDY_DATE,
    "DICOMStudyTime": STUDY_TIME,
}


def _image_sets(
    session: _Session, datastore_pk: int, criteria: SearchCriteria, size: int, token: str | None
) -> tuple[list[ImageSetSummary], str | None]:
    terms, params = ["x.datastore_pk=?"], [datastore_pk]
    for criterion in criteria.filters:
        term, values = _criterion(criterion)
        terms.append(term)
        params += values
    sort = _SORTS[criteria.sort_field]
    keys = (*sort, "x.image_set_pk")
    digest = hashlib.sha256(repr((datastore_pk, criteria)).encode()).hexdigest()[:16]
    if token is not None:
        after = _read_token(token, digest, len(sort))
        terms.append(f"({', '.join(keys)}) {'>' if criteria.ascending else '<'} ({', '.join('?' * len(keys))})")
        params += after
    order = ", ".join(key + ("" if criteria.ascending else " DESC") for key in keys)
    if any(criterion.key in _WORDS for criterion in criteria.filters):
        order = session.sorted_by(order)
    found = session.all(
        f"SELECT {', '.join(keys)} FROM set_index x WHERE {' AND '.join(terms)} ORDER BY {order} LIMIT ?",
        *params,
        size + 1,
    )
    next_token = _write_token(found[size - 1], digest) if len(found) > size else None
    pks = [key[-1] for key in found[:size]]
    wide = {
        row[0]: row
        for row in session.all(
            "SELECT x.image_set_pk, i.id, i.latest, x.is_primary, x.created_at, x.updated_at, x.attrs, x.study_uid, "
            "x.series_uid, x.number, x.n_instances, s.n_series, s.n_instances, i.accessed_at FROM set_index x "
            "JOIN image_set i ON i.pk=x.image_set_pk LEFT JOIN study s ON x.is_primary "
            f"AND s.datastore_pk=x.datastore_pk AND s.study_uid=x.study_uid WHERE x.image_set_pk {session.among}",
            session.values(pks),
        )
    }
    return [_summary(wide[pk]) for pk in pks if pk in wide], next_token


def _criterion(criterion: Criterion) -> tuple[str, list[Any]]:
    key, values = criterion.key, criterion.values
    if not 1 <= len(values) <= 2:
        raise InvalidInput(f"A filter on {key} takes one value, or two for BETWEEN")
    low, high = values[0], values[-1]
    if key in ("createdAt", "updatedAt"):
        column = {"createdAt": "x.created_at", "updatedAt": "x.updated_at"}[key]
        return f"{column} BETWEEN ? AND ?", [_milliseconds(low), _milliseconds(high)]
    if key == "DICOMStudyDateAndTime":
        interval = Interval(_moment(low), _moment(high))
        where = _interval(interval)
        return where.text().replace("s.study", "x.study"), list(where.params)
    if len(values) == 2:
        raise InvalidInput(f"BETWEEN cannot be asked of {key}")
    if key == "isPrimary":
        return "x.is_primary" if low else "NOT x.is_primary", []
    if key in _WORDS:
        # What the columns hold has no padding and no NUL.
        return f"{_WORDS[key]} = ?", [str(low).replace("\0", "").strip()]
    raise InvalidInput(f"{key} is no filter")


def _moment(value: tuple[str, str]) -> tuple[str, str]:
    """(YYYYMMDD, HHMMSS.FFFFFF), a time that is missing or short filled with zeros."""
    day, time = normal_time("DA", value[0]), normal_time("TM", value[1] or MIDNIGHT)
    if day is None or time is None:
        raise InvalidInput("DICOMStudyDateAndTime needs a date YYYYMMDD and a time HHMMSS.FFFFFF")
    return day, time


def _summary(row: Any) -> ImageSetSummary:
    (
        _,
        id_,
        version,
        primary,
        created,
        updated,
        text,
        study_uid,
        series_uid,
        number,
        own,
        series,
        instances,
        accessed,
    ) = row
    attributes = orjson.loads(text)
    tags: dict[str, str | int] = {name: value for name, tag in _TAGS.items() if (value := text_value(attributes, tag))}
    if names := attributes.get(hexadecimal(PATIENT_NAME), {}).get("Value"):
        tags["DICOMPatientName"] = name_text(names[0])
    tags["DICOMStudyInstanceUID"] = study_uid
    tags["DICOMSeriesInstanceUID"] = series_uid
    if number is not None:
        tags["DICOMSeriesNumber"] = number
    tags["DICOMNumberOfStudyRelatedSeries"] = 1 if series is None else series
    tags["DICOMNumberOfStudyRelatedInstances"] = own if instances is None else instances
    return ImageSetSummary(
        ImageSetId(id_),
        version,
        bool(primary),
        _datetime(created),
        _datetime(updated),
        tags,
        _datetime(accessed or created),
    )


def _datetime(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _write_token(key: Sequence[Any], digest: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([digest, *key])).decode()


def _read_token(token: str, digest: str, sorts: int) -> list[Any]:
    fault = InvalidInput("The nextToken is not one that this search has given")
    try:
        read = orjson.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise fault from None
    kinds = [int] if sorts == 1 else [str, str]
    if not isinstance(read, list) or len(read) != sorts + 2 or read[0] != digest:
        raise fault
    if not all(type(value) is kind for value, kind in zip(read[1:], [*kinds, int], strict=True)):
        raise fault
    return read[1:]


# ---------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class SetRow:
    """What searches need of an image set as it is published."""

    image_set_pk: int
    datastore_pk: int
    is_primary: bool
    study_uid: str
    series_uid: str
    attributes: Attributes
    """DICOM JSON of the patient, study and series levels with their edits, and `query.SERIES_BESIDE`."""
    n_instances: int
    created_at: int
    updated_at: int


_SET_COLUMNS: Final = (
    "datastore_pk, is_primary, study_uid, series_uid, patient_id, accession, study_id, study_date, study_time, "
    "modality, series_number, series_description, body_part, attrs, seq_from"
)
_STUDY_COLUMNS: Final = (
    "datastore_pk, study_uid, patient_id, accession, study_id, study_date, study_time, birth_date, sex, "
    "description, attrs, seq_from"
)


def _marks(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))


def _assignments(columns: str) -> str:
    return ", ".join(f"{column.strip()}=?" for column in columns.split(","))


_INSERT_SET: Final = (
    f"INSERT INTO set_index ({_SET_COLUMNS}, number, n_instances, created_at, updated_at, image_set_pk) "
    f"VALUES ({_marks(_SET_COLUMNS)}, ?, ?, ?, ?, ?)"
)
_UPDATE_SET: Final = (
    f"UPDATE set_index SET {_assignments(_SET_COLUMNS)}, number=?, n_instances=?, created_at=?, updated_at=? "
    "WHERE image_set_pk=?"
)
_SET_TO_PAST: Final = (
    f"INSERT INTO set_index_past (image_set_pk, {_SET_COLUMNS}, seq_to) "
    f"SELECT image_set_pk, {_SET_COLUMNS}, ? FROM set_index WHERE image_set_pk=? AND seq_from<?"
)
_INSERT_STUDY: Final = (
    f"INSERT INTO study ({_STUDY_COLUMNS}, modalities, n_series, n_instances, changed) "
    f"VALUES ({_marks(_STUDY_COLUMNS)}, ?, ?, ?, ?) RETURNING pk"
)
_UPDATE_STUDY: Final = f"UPDATE study SET {_assignments(_STUDY_COLUMNS)} WHERE pk=?"
_STUDY_TO_PAST: Final = (
    f"INSERT INTO study_past ({_STUDY_COLUMNS}, seq_to) SELECT {_STUDY_COLUMNS}, ? FROM study WHERE pk=? AND seq_from<?"
)


def publish_set(connection: Connection, row: SetRow, seq: int) -> None:
    """Enters a published version of an image set, new or not: its row, and for a primary one its study's.

    In the publishing transaction, which holds the study's lock. `seq` is the change's number. Without changed values
    it costs two reads and three small updates.
    """
    session = _Session(connection)
    text = _json(row.attributes)
    old = session.first(
        "SELECT attrs, n_instances, modality, study_uid, series_uid FROM set_index WHERE image_set_pk=?",
        row.image_set_pk,
    )
    changed = old is None or (old[0], old[3], old[4]) != (text, row.study_uid, row.series_uid)
    modality = text_value(row.attributes, MODALITY) if changed else old[2]
    if changed:
        if old is not None:
            session.run(_SET_TO_PAST, seq, row.image_set_pk, seq)
        attributes = row.attributes
        session.run(
            _INSERT_SET if old is None else _UPDATE_SET,
            row.datastore_pk,
            row.is_primary,
            row.study_uid,
            row.series_uid,
            text_value(attributes, PATIENT_ID),
            text_value(attributes, ACCESSION_NUMBER),
            text_value(attributes, STUDY_ID),
            time_value(attributes, STUDY_DATE, "DA"),
            time_value(attributes, STUDY_TIME, "TM"),
            modality,
            text_value(attributes, SERIES_NUMBER),
            text_value(attributes, SERIES_DESCRIPTION),
            text_value(attributes, BODY_PART),
            text,
            seq,
            whole_number(attributes, SERIES_NUMBER),
            row.n_instances,
            row.created_at,
            row.updated_at,
            row.image_set_pk,
        )
    else:
        session.run(
            "UPDATE set_index SET n_instances=?, updated_at=? WHERE image_set_pk=?",
            *(row.n_instances, row.updated_at, row.image_set_pk),
        )
    if row.is_primary:
        former = orjson.loads(old[0]) if changed and old is not None else None
        remodelled = old is None or old[2] != modality
        _publish_study(session, row, seq, former, remodelled, old is None, row.n_instances - (old[1] if old else 0))


def remove_set(connection: Connection, image_set_pk: int, seq: int) -> None:
    """Takes a deleted image set out of the searches, with its last series the study. In the deleting transaction."""
    session = _Session(connection)
    old = session.first(
        "SELECT datastore_pk, is_primary, study_uid, n_instances FROM set_index WHERE image_set_pk=?", image_set_pk
    )
    if old is None:
        return
    datastore_pk, primary, study_uid, count = old
    session.run(_SET_TO_PAST, seq, image_set_pk, seq)
    session.run("DELETE FROM set_index WHERE image_set_pk=?", image_set_pk)
    if not primary:
        return
    study = _locked_study(session, datastore_pk, study_uid)
    if study is None:
        return
    pk, text, n_series, changed = study
    if n_series <= 1:
        session.run(_STUDY_TO_PAST, seq, pk, seq)
        session.run("DELETE FROM study_name WHERE study_pk=?", pk)
        session.run("DELETE FROM study_modality WHERE study_pk=?", pk)
        session.run("DELETE FROM study WHERE pk=?", pk)
        return
    # A deletion is no update: the study takes the place that its remaining series give it.
    (latest,) = session.first(
        "SELECT max(v.seq) FROM set_index x JOIN version v ON v.image_set_pk=x.image_set_pk "
        "WHERE x.datastore_pk=? AND x.study_uid=? AND x.is_primary",
        *(datastore_pk, study_uid),
    )
    session.run(
        "UPDATE study SET n_series=n_series-1, n_instances=n_instances-?, changed=? WHERE pk=?",
        *(count, latest or changed, pk),
    )
    _write_values(session, pk, datastore_pk, study_uid, fold(_parts(session, datastore_pk, study_uid)), text, seq)
    _write_modalities(session, pk, datastore_pk, study_uid, latest or changed)


def rebuild(connection: Connection, changes: Iterable[tuple[int, SetRow | int]]) -> None:
    """Makes the derived tables anew, the past with them, from (seq, what was published) in order of seq; an image
    set's pk in its place means that it was deleted."""
    for table in DERIVED:
        connection.execute(table.delete())
    for seq, change in changes:
        if isinstance(change, SetRow):
            publish_set(connection, change, seq)
        else:
            remove_set(connection, change, seq)


def _publish_study(
    session: _Session,
    row: SetRow,
    seq: int,
    former: Attributes | None,
    remodelled: bool,
    new_series: bool,
    more: int,
) -> None:
    """`former`: the image set's attributes before, if they changed; `more`: how many instances it gained."""
    part = fold([study_part(row.attributes)])
    study = _locked_study(session, row.datastore_pk, row.study_uid)
    if study is None:
        values = _study_values(row.datastore_pk, row.study_uid, part, seq)
        modality = text_value(row.attributes, MODALITY)
        (pk,) = session.first(_INSERT_STUDY, *values, modality, 1, row.n_instances, seq)
        _write_names(session, pk, row.datastore_pk, {}, part)
        if modality:
            session.run(_INSERT_MODALITY, row.datastore_pk, modality, seq, pk)
        return
    pk, text, *_ = study
    session.run(
        "UPDATE study SET n_series=n_series+?, n_instances=n_instances+?, changed=? WHERE pk=?",
        *(int(new_series), more, seq, pk),
    )
    if text != _json(part):
        lost = former is not None and any(has_value(was) and tag not in part for tag, was in study_part(former).items())
        # What this image set no longer says may still be said by an older one.
        before = _parts(session, row.datastore_pk, row.study_uid, row.image_set_pk) if lost else [orjson.loads(text)]
        _write_values(session, pk, row.datastore_pk, row.study_uid, fold([*before, part]), text, seq)
    if remodelled:
        _write_modalities(session, pk, row.datastore_pk, row.study_uid, seq)
    else:
        session.run("UPDATE study_modality SET changed=? WHERE study_pk=?", seq, pk)


def _locked_study(session: _Session, datastore_pk: int, study_uid: str) -> Any:
    return session.first(
        "SELECT pk, attrs, n_series, changed FROM study WHERE datastore_pk=? AND study_uid=?"
        + (" FOR UPDATE" if session.postgres else ""),
        *(datastore_pk, study_uid),
    )


def _parts(session: _Session, datastore_pk: int, study_uid: str, without: int = 0) -> list[dict[str, Any]]:
    """What the primary image sets of a study say of it, in order of their last update."""
    # Sorted here: asked for an order, SQLite would rather walk an index of the whole data store.
    found = session.all(
        "SELECT updated_at, image_set_pk, attrs FROM set_index "
        "WHERE datastore_pk=? AND study_uid=? AND is_primary AND image_set_pk<>?",
        *(datastore_pk, study_uid, without),
    )
    return [study_part(orjson.loads(text)) for _, _, text in sorted(tuple(row) for row in found)]


def _study_values(datastore_pk: int, study_uid: str, attributes: Attributes, seq: int) -> tuple[Any, ...]:
    """In the order of `_STUDY_COLUMNS`."""
    return (
        datastore_pk,
        study_uid,
        text_value(attributes, PATIENT_ID),
        text_value(attributes, ACCESSION_NUMBER),
        text_value(attributes, STUDY_ID),
        time_value(attributes, STUDY_DATE, "DA"),
        time_value(attributes, STUDY_TIME, "TM"),
        time_value(attributes, PATIENT_BIRTH_DATE, "DA"),
        text_value(attributes, PATIENT_SEX),
        text_value(attributes, STUDY_DESCRIPTION),
        _json(attributes),
        seq,
    )


def _write_values(
    session: _Session, pk: int, datastore_pk: int, study_uid: str, attributes: Attributes, old: str, seq: int
) -> None:
    """The study's values, if they are not what `old` says; the former ones go to the past."""
    if _json(attributes) == old:
        return
    session.run(_STUDY_TO_PAST, seq, pk, seq)
    session.run(_UPDATE_STUDY, *_study_values(datastore_pk, study_uid, attributes, seq), pk)
    _write_names(session, pk, datastore_pk, orjson.loads(old), attributes)


def _write_names(session: _Session, pk: int, datastore_pk: int, old: Attributes, new: Attributes) -> None:
    for tag in NAMES:
        kind = hexadecimal(tag)
        if old.get(kind) == new.get(kind):
            continue
        if old.get(kind):
            session.run("DELETE FROM study_name WHERE study_pk=? AND kind IN (?, ?)", pk, kind, kind + "w")
        rows = set()
        for value in new.get(kind, {}).get("Value") or ():
            if value is not None:
                rows |= {(kind, form) for form in name_forms(value)}
                rows |= {(kind + "w", word) for word in name_words(normalize_name(name_text(value)))}
        session.run_each(
            "INSERT INTO study_name (datastore_pk, kind, norm, study_pk) VALUES (?, ?, ?, ?)",
            [(datastore_pk, kind, norm, pk) for kind, norm in sorted(rows)],
        )


_INSERT_MODALITY: Final = "INSERT INTO study_modality (datastore_pk, modality, changed, study_pk) VALUES (?, ?, ?, ?)"


def _write_modalities(session: _Session, pk: int, datastore_pk: int, study_uid: str, seq: int) -> None:
    found = session.all(
        "SELECT modality FROM set_index WHERE datastore_pk=? AND study_uid=? AND is_primary", datastore_pk, study_uid
    )
    modalities = sorted({modality for (modality,) in found if modality})
    session.run("UPDATE study SET modalities=? WHERE pk=?", "\\".join(modalities), pk)
    session.run("DELETE FROM study_modality WHERE study_pk=?", pk)
    session.run_each(_INSERT_MODALITY, [(datastore_pk, modality, seq, pk) for modality in modalities])


def _json(attributes: Attributes) -> str:
    return orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS).decode()
