"""How the database and its work queue are doing, for those who watch over the gateway."""

import asyncio
from collections.abc import Callable

import sqlalchemy as sa

from adapters.sql.database import Database, now_ms
from adapters.sql.tables import job, pixel, work


class Status:
    """Questions that operations ask of a database."""

    def __init__(
        self,
        database: Database,
        quarantined: Callable[[], int] = lambda: 0,
        handed_over: Callable[[], int] = lambda: 0,
    ) -> None:
        """`handed_over` counts imports under way that are no work items."""
        self._database = database
        self._quarantined = quarantined
        self._handed_over = handed_over

    async def ping(self) -> None:
        """Returns when the database answers. Raises Unavailable."""
        await asyncio.to_thread(self._ping)

    async def work(self) -> dict[str, dict[str, float]]:
        """Kind of work item -> `waiting`, `running`, `oldest_s`; `encode` counts pixel data that awaits
        encoding, `quarantine` the instances that could not be imported, and `kept` the jobs of which some still have to
        be brought there."""
        handed_over = self._handed_over()
        kinds = await asyncio.to_thread(self._work)
        if handed_over:
            kinds.setdefault("import", {"waiting": 0, "running": 0, "oldest_s": 0})["running"] += handed_over
        return kinds

    def _ping(self) -> None:
        with self._database.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def _work(self) -> dict[str, dict[str, float]]:
        kinds: dict[str, dict[str, float]] = {}
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(work.c.kind, work.c.state, sa.func.count(), sa.func.min(work.c.run_after)).group_by(
                    work.c.kind, work.c.state
                )
            ).all()
            kept_jobs = sa.select(sa.func.count()).select_from(job).where(sa.text("keeps_spool"))
            kept = connection.execute(kept_jobs).scalar_one()
            # As text, so that the partial index serves.
            raw_pixels = sa.select(sa.func.count()).select_from(pixel).where(sa.text("state = 'raw'"))
            raw = connection.execute(raw_pixels).scalar_one()
        for kind, state, count, since in rows:
            numbers = kinds.setdefault(kind, {"waiting": 0, "running": 0, "oldest_s": 0})
            numbers[state] = count
            if state == "waiting":
                numbers["oldest_s"] = round(max(0, now_ms() - since) / 1000, 1)
        kinds["kept"] = {"waiting": kept, "running": 0, "oldest_s": 0}
        kinds["quarantine"] = {"waiting": self._quarantined(), "running": 0, "oldest_s": 0}
        kinds["encode"] = {"waiting": raw, "running": 0, "oldest_s": 0}
        return kinds
