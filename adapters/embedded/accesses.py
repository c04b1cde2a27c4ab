"""When image sets were last read: a row is written once a day at most, and nobody waits for it."""

import threading
import time

import sqlalchemy as sa
import structlog

from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import GatewayError
from gateway.domain.ids import ImageSetId

log = structlog.get_logger("gateway.accesses")

_DAY_MS = 86_400_000
_KNOWN = 200_000


class Accesses:
    """What this process has noted today. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._noted: set[ImageSetId] = set()
        self._day = 0

    def is_new(self, image_set: ImageSetId) -> bool:
        """Whether this is the image set's first access today, as far as this process knows. Does not block."""
        today = int(time.time() // 86_400)
        if today == self._day and image_set in self._noted:
            return False
        with self._lock:
            if today != self._day or len(self._noted) >= _KNOWN:
                self._noted.clear()
                self._day = today
            self._noted.add(image_set)
        return True

    def write(self, image_set: ImageSetId) -> None:
        """Notes the access, unless another process has within a day."""
        s, at = t.image_set, now_ms()
        # One made today needs no row: it counts as accessed when it was made.
        old = sa.func.coalesce(s.c.accessed_at, s.c.created_at) < at - _DAY_MS
        try:
            with self._database.read() as connection:
                pk = connection.execute(sa.select(s.c.pk).where(s.c.id == image_set, old)).scalar()
            if pk is not None:
                with self._database.write(durable=False) as connection:
                    connection.execute(sa.update(s).where(s.c.pk == pk, old).values(accessed_at=at))
        except GatewayError as fault:
            log.warning("access.not_noted", code=fault.code)
