"""A connection of the index: statements by the driver's own cursor, and what differs between the engines.

SQL is written by hand and given to the driver as it is: a search by UID costs less than compiling a statement.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import Connection

from gateway.domain.matching import glob


@lru_cache(maxsize=1024)
def _for_driver(sql: str, postgres: bool) -> str:
    return sql.replace("?", "%s") if postgres else sql


class Session:
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

    @property
    def table_of_texts(self) -> str:
        """What stands after FROM to have a list of texts as rows with a column `value`; one parameter: see `values`."""
        return "unnest(CAST(? AS text[])) AS texts (value)" if self.postgres else "json_each(?)"

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


def milliseconds(at: datetime) -> int:
    """The time as the tables keep it."""
    return round(at.timestamp() * 1000)
