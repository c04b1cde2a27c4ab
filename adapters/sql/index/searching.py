"""A search from the tables of now: its page of keys, the rows behind them, what is left."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from adapters.sql.index.clauses import Subset, pushed
from adapters.sql.index.held import HeldSearch
from adapters.sql.index.image_sets import search_image_sets
from adapters.sql.index.loading import InstanceJson, Loader
from adapters.sql.index.selecting import Select, Selecting
from adapters.sql.index.session import Session
from gateway.domain.errors import NotFound, Unavailable
from gateway.domain.ids import DatastoreId
from gateway.domain.matching import fulfils
from gateway.domain.model import ImageSetSummary, SearchCriteria
from gateway.domain.plan import Answering, page, patients, views_of
from gateway.domain.query import DicomQuery, Level, SearchAnswer

_ALL: Final = 2**40
"""More rows than any table has."""


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
            loader = Loader(session, datastore_pk, ready, self._instance_json, self._document_budget, self._row_budget)
            if query.as_of is not None or query.image_set is not None:
                return HeldSearch(session, datastore_pk, ready, loader).answer()
            search = _Search(session, datastore_pk, ready, loader)
            return search.patients() if query.level is Level.PATIENT else search.rows()

    def search_image_sets(
        self, datastore_pk: int, criteria: SearchCriteria, size: int, token: str | None = None
    ) -> tuple[list[ImageSetSummary], str | None]:
        """One page of image sets, and the token of the next (API: SearchImageSets). Equal sort values are ordered by
        when the image set was made. Raises InvalidInput for a filter or token that cannot be."""
        with self._reading() as session:
            return search_image_sets(session, datastore_pk, criteria, size, token)

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        try:
            with self._engine.connect() as connection:
                yield Session(connection)
        except (DBAPIError, self._driver_error) as fault:
            raise Unavailable("The index cannot be read now; try again later") from fault

    def _datastore(self, session: Session, datastore: DatastoreId) -> int:
        # Asked anew each time: any process may have deleted it.
        found = session.first("SELECT pk FROM datastore WHERE id=? AND status<>'DELETED'", datastore)
        if found is None:
            raise NotFound("There is no such data store")
        return int(found[0])


class _Search:
    """One search over the tables of now."""

    def __init__(self, session: Session, datastore_pk: int, ready: Answering, loader: Loader) -> None:
        self._session = session
        self._datastore_pk = datastore_pk
        self._ready = ready
        self._query = ready.query
        self._loader = loader

    def rows(self) -> SearchAnswer:
        """Studies, series or instances."""
        query, select = self._query, Selecting(self._session, self._datastore_pk, self._ready).select()
        if select.residual:
            return self._scan(select)
        limit = query.limit
        most = _ALL if limit is None else min(limit, _ALL) + 1
        paging = (most, min(query.offset, _ALL))
        pks = [pk for (pk,) in self._session.all(f"{select.keys} LIMIT ? OFFSET ?", *select.params, *paging)]
        remaining = 0
        if limit is not None and len(pks) > limit:
            pks = pks[:limit]
            (count,) = self._session.first(select.count, *select.count_params)
            remaining = max(1, int(count) - query.offset - limit)
        return SearchAnswer([self._ready.row(views) for views in self._loader.load(pks)], remaining)

    def _scan(self, select: Select) -> SearchAnswer:
        """Candidates in order, each put to the test."""
        query = self._query
        pks = [pk for (pk,) in self._session.all(f"{select.keys} LIMIT ?", *select.params, self._loader.row_budget + 1)]
        self._loader.check_rows(len(pks))
        end = None if query.limit is None else query.offset + query.limit
        rows: list[dict[str, Any]] = []
        matched = 0
        for views in self._loader.load(pks, select.residual):
            if matched >= query.offset and (end is None or matched < end):
                rows.append(self._ready.row(views))
            matched += 1
        return SearchAnswer(rows, 0 if end is None else max(0, matched - end))

    def patients(self) -> SearchAnswer:
        """Patients, each over all its studies. One condition narrows them: several could hold in several studies."""
        session, ready = self._session, self._ready
        sql = "s.datastore_pk=?"
        params: tuple[Any, ...] = (self._datastore_pk,)
        wheres = [pushed(session, self._datastore_pk, condition, self._query.fuzzy) for condition in ready.conditions]
        if narrow := next((where for where in wheres if where), None):
            chosen = f"s.pk IN ({narrow.sql})" if isinstance(narrow, Subset) else narrow.text()
            sql += f" AND s.patient_id IN (SELECT s.patient_id FROM study s WHERE s.datastore_pk=? AND {chosen})"
            params += (self._datastore_pk, *narrow.params)
        pks = session.all(
            f"SELECT s.pk FROM study s WHERE {sql} ORDER BY {session.sorted_by('s.changed DESC, s.pk DESC')} LIMIT ?",
            *params,
            self._loader.row_budget + 1,
        )
        self._loader.check_rows(len(pks))
        studies = self._loader.studies([pk for (pk,) in pks]).values()
        found = [views_of(patient) for patient in patients(views[Level.STUDY] for views in studies)]
        rows, remaining = page([views for views in found if fulfils(views, ready.conditions)], self._query)
        return SearchAnswer([ready.row(views) for views in rows], remaining)
