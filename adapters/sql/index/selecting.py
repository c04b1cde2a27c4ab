"""How a query becomes a SELECT of keys: the conditions, which table drives, and the order of the answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from adapters.sql.index.clauses import INDEXED, Subset, Where, pushed
from adapters.sql.index.session import Session
from adapters.sql.tables import END
from gateway.domain.matching import Condition
from gateway.domain.plan import Answering
from gateway.domain.query import SERIES_UID, STUDY_UID, Level

_SMALL: Final = 1000
"""A predicate with no more matches drives the search; a larger one filters a walk in the order of the answer."""
_LISTED: Final = 5000
"""So many studies are listed, or looked up to be counted, before it is cheaper to put each study to the test."""


@dataclass(frozen=True, slots=True)
class Select:
    """The statements that give the rows' keys in order, and how many there are, with their parameters."""

    keys: str
    params: tuple[Any, ...]
    count: str
    count_params: tuple[Any, ...]
    residual: Sequence[Condition]
    """What Python has to decide."""


@dataclass(slots=True)
class _Terms:
    """Conditions in SQL, with their parameters in order."""

    texts: list[str] = field(default_factory=list)
    params: list[Any] = field(default_factory=list)
    by_key: bool = False
    """The studies are found by their keys, which are of the data store."""

    def add(self, text: str, params: Iterable[Any]) -> None:
        self.texts.append(text)
        self.params += params


@dataclass(slots=True)
class _Plan:
    """A query's conditions as the walk over keys asks them, and as their count does."""

    keys: _Terms = field(default_factory=_Terms)
    count: _Terms = field(default_factory=_Terms)
    drives: set[str] = field(default_factory=set)
    """The tables that some condition narrows to a few rows."""
    studies: str = ""
    """A statement that lists what is to be counted, with the parameters of `count`, where there is a cheaper one."""

    def both(self, text: str, params: Iterable[Any]) -> None:
        params = tuple(params)
        self.keys.add(text, params)
        self.count.add(text, params)


@dataclass(frozen=True, slots=True)
class _Sized:
    """A subset, and how many studies it lists, as far as it matters."""

    subset: Subset
    size: int


class Selecting:
    """The choices for one query."""

    def __init__(self, session: Session, datastore_pk: int, ready: Answering) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query

    def select(self) -> Select:
        """The statements, and what they leave to decide."""
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
        plan = self._plan(wheres, subsets, bool(pinned))
        asked = {where.column[:1] or "s" for where in wheres} | ({"s"} if subsets else set())
        order, tables = self._order(pinned, plan.drives, "s" in asked)
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
        source = f"({plan.studies}) counted" if plan.studies else self._source(counted, plan.count)
        return Select(
            f"SELECT {pk} FROM {self._source(tables, plan.keys)} ORDER BY "
            + (session.sorted_by(order) if pinned or plan.drives else order),
            tuple(plan.keys.params),
            f"SELECT {total} FROM {source}",
            tuple(plan.count.params),
            residual,
        )

    def _source(self, tables: Sequence[str], terms: _Terms) -> str:
        """FROM and WHERE. SQLite takes the tables of a CROSS JOIN in the order written; PostgreSQL plans for itself."""
        names = {"s": "study s", "x": "set_index x", "m": "member m"}
        store = self._datastore_pk
        joined = {
            "s": [] if terms.by_key else [f"s.datastore_pk={store}"],
            "x": [f"x.datastore_pk={store}", "x.is_primary"],
            "m": [f"m.v_to={END}"],
        }
        conditions = [term for table in tables for term in joined[table]]
        if "s" in tables and "x" in tables:
            conditions.append("s.study_uid=x.study_uid")
        if "m" in tables and "x" in tables:
            conditions.append("m.image_set_pk=x.image_set_pk")
        return (
            " CROSS JOIN ".join(names[table] for table in tables)
            + " WHERE "
            + " AND ".join([*conditions, *terms.texts])
        )

    def _plan(self, wheres: Sequence[Where], subsets: Sequence[Subset], pinned: bool) -> _Plan:
        """The conditions in SQL. On SQLite a broad one is probed: its index serves only where it finds few."""
        session, plan = self._session, _Plan()
        broad = []
        for where in wheres:
            if where.broad and not pinned and not session.postgres and self._is_large(where):
                broad.append(where)
                continue
            if where.column in INDEXED or where.column.endswith("_uid"):
                plan.drives.add(where.column[0])
            plan.both(where.text(), where.params)
        if session.postgres:
            for subset in subsets:
                plan.keys.add(f"s.pk IN ({subset.sql})", subset.params)
            if not self._count_alone(plan, broad, subsets):
                for subset in subsets:
                    plan.count.add(f"s.pk IN ({subset.sql})", subset.params)
            return plan
        large = [_Sized(subset, 0) for subset in subsets]
        if not pinned and "s" not in plan.drives:
            large, small = self._sized(subsets)
            if small is not None:
                plan.both(f"s.pk {session.among}", (session.values(small),))
                plan.keys.by_key = plan.count.by_key = True
                plan.drives.add("s")
        if pinned or plan.drives:
            for where in broad:
                plan.both(where.text(walk=True), where.params)
            for one in large:
                plan.both(one.subset.holds, one.subset.holds_params)
            return plan
        self._walk(plan, broad, large)
        self._count(plan, broad, large)
        return plan

    def _sized(self, subsets: Sequence[Subset]) -> tuple[list[_Sized], set[int] | None]:
        """The large subsets, and what all small ones have in common; None without a small one."""
        large: list[_Sized] = []
        small: set[int] | None = None
        for subset in subsets:
            pks = self._session.all(f"SELECT study_pk FROM ({subset.sql}) LIMIT {_SMALL + 1}", *subset.params)
            if len(pks) <= _SMALL:
                found = {pk for (pk,) in pks}
                small = found if small is None else small & found
                continue
            rows = f"SELECT 1 FROM ({subset.sql}) LIMIT {_LISTED + 1}"
            (size,) = self._session.first(f"SELECT count(*) FROM ({rows})", *subset.params)
            large.append(_Sized(subset, int(size)))
        return large, small

    def _walk(self, plan: _Plan, broad: Sequence[Where], large: Sequence[_Sized]) -> None:
        """Keys where nothing narrows the search: a walk in the order of the answer."""
        query = self._query
        # Near the top it is cheaper to put studies to the test than to list all that pass it.
        shallow = query.limit is not None and query.offset + query.limit <= _SMALL
        for where in broad:
            plan.keys.add(where.text(walk=True), where.params)
        for one in large:
            if shallow and one.size > _LISTED:
                plan.keys.add(one.subset.holds, one.subset.holds_params)
            else:
                plan.keys.add(f"+s.pk IN ({one.subset.sql})", one.subset.params)

    def _count(self, plan: _Plan, broad: Sequence[Where], large: Sequence[_Sized]) -> None:
        """How many there are: the order does not matter, so that indexes serve that the walk must not take."""
        if self._count_alone(plan, broad, [one.subset for one in large]):
            return
        least = min(large, key=lambda one: one.size, default=None)
        if least is not None and least.size > _LISTED:
            least = None  # looking all of them up would cost more than a walk
        for one in large:
            if one is least:
                plan.count.add(f"s.pk IN ({one.subset.sql})", one.subset.params)
                plan.count.by_key = True
            elif least is not None:
                plan.count.add(one.subset.holds, one.subset.holds_params)
            else:
                plan.count.add(f"+s.pk IN ({one.subset.sql})", one.subset.params)
        for where in broad:
            plan.count.add(where.text(walk=least is not None), where.params)

    def _count_alone(self, plan: _Plan, broad: Sequence[Where], subsets: Sequence[Subset]) -> bool:
        """Whether one subset is all that is asked for, so that its own rows can be counted: then they are."""
        if self._query.level is not Level.STUDY or len(subsets) != 1 or broad or plan.count.texts:
            return False
        (one,) = subsets
        plan.count.params += one.params
        plan.studies = one.sql if one.unique else f"SELECT DISTINCT study_pk FROM ({one.sql}) listed"
        return True

    def _is_large(self, where: Where) -> bool:
        table = {"s": "study s", "x": "set_index x"}[where.column[0]]
        (count,) = self._session.first(
            f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {where.column[0]}.datastore_pk=? "
            f"AND {where.text()} LIMIT {_SMALL + 1})",
            self._datastore_pk,
            *where.params,
        )
        return int(count) > _SMALL

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
