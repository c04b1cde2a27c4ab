"""How a query becomes a SELECT of keys: the conditions, which table drives, and the order of the answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapters.sql.index.clauses import INDEXED, Subset, Where, pushed
from adapters.sql.index.session import Session
from adapters.sql.tables import END
from gateway.domain.matching import Condition
from gateway.domain.plan import Answering
from gateway.domain.query import SERIES_UID, STUDY_UID, Level

_SMALL: Final = 1000
"""A predicate with no more matches drives the search; a larger one filters a walk in the order of the answer."""


@dataclass(frozen=True, slots=True)
class Select:
    """The statements that give the rows' keys in order, and how many there are; both take `params`."""

    keys: str
    count: str
    params: tuple[Any, ...]
    residual: Sequence[Condition]
    """What Python has to decide."""


class Selecting:
    """The choices for one query."""

    def __init__(self, session: Session, datastore_pk: int, ready: Answering) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query

    def select(self) -> Select:
        """The whole of it."""
        session, query = self._session, self._query
        wheres: list[Where] = []
        subsets: list[Subset] = []
        residual: list[Condition] = []
        for condition in self._ready.conditions:
            asked_of_sql = pushed(session, self._datastore_pk, condition, query.fuzzy)
            if asked_of_sql is None:
                residual.append(condition)
            elif isinstance(asked_of_sql, Subset):
                subsets.append(asked_of_sql)
            else:
                wheres.append(asked_of_sql)
        if query.level is not Level.STUDY:
            # A study's UID stands on its series too: the study's row is then not needed.
            wheres = [Where(w.sql, w.params, "x.study_uid") if w.column == "s.study_uid" else w for w in wheres]
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
        return Select(
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
        self, wheres: Sequence[Where], subsets: Sequence[Subset], pinned: bool
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
            if not walk and (where.column in INDEXED or where.column.endswith("_uid")):
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
