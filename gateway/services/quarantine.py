"""Instances that were acknowledged and could not be imported: listed, given out as received, tried again, dropped."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ..domain.errors import Corrupt, NotFound
from ..domain.header import write_meta
from ..domain.model import Outcome, Quarantined
from ..ports import Intake, Quarantine, Staging

_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Retried:
    """What became of another attempt. `outcome` is None while the import is still under way, or failed as a whole."""

    outcome: Outcome | None
    is_dropped: bool
    """Whether it has left the quarantine under its old id: it is stored, or is back under another."""


class Quarantines:
    """What people do with the quarantine. Raises NotFound for an id that is not there."""

    def __init__(self, quarantine: Quarantine, staging: Staging, intake: Intake) -> None:
        self._quarantine = quarantine
        self._staging = staging
        self._intake = intake

    async def list(self, after: str, limit: int) -> tuple[Sequence[Quarantined], str | None]:
        """Up to `limit` items behind the id `after`, oldest first, and the id to go on behind."""
        return await asyncio.to_thread(self._list, after, limit)

    def _list(self, after: str, limit: int) -> tuple[Sequence[Quarantined], str | None]:
        ids = [id for id in self._quarantine.ids() if id > after]
        items = []
        for id in ids[:limit]:
            with suppress(NotFound, Corrupt):  # dropped just now; a damaged one is what `verify` tells of
                items.append(self._quarantine.find(id))
        return items, ids[limit - 1] if len(ids) > limit else None

    async def open(self, id: str) -> tuple[int, AsyncGenerator[bytes]]:
        """An instance as received, and how long it is. What came over DIMSE, which carries the bare data set, gets the
        File Meta Information that its command stands for (PS3.10 §7.1); the data set stays as it was."""
        item = await asyncio.to_thread(self._quarantine.find, id)
        head = _file_meta(item)
        return len(head) + item.length, self._stream(id, head)

    async def _stream(self, id: str, head: bytes) -> AsyncGenerator[bytes]:
        if head:
            yield head
        pieces = self._quarantine.pieces(id)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def retry(self, id: str) -> Retried:
        """Imports an instance once more, as if it had just come. Raises OutOfStorage, Throttled."""
        item = await asyncio.to_thread(self._quarantine.find, id)
        staged = await asyncio.to_thread(self._stage, item)
        outcomes = await self._intake.imported(item.origin.datastore, [staged], _RETRY_S)
        outcome = outcomes[0] if outcomes else None
        # An association's instance that fails again comes back by itself; one of STOW-RS may not.
        is_dropped = outcome is not None and (outcome.failure is None or item.origin.source == "dimse")
        if is_dropped:
            await asyncio.to_thread(self._quarantine.drop, id)
        return Retried(outcome, is_dropped)

    def _stage(self, item: Quarantined) -> Any:
        sink = self._staging.open(item.origin)
        try:
            for piece in self._quarantine.pieces(item.id):
                sink.write(piece)
            staged = sink.close()
        except BaseException:
            sink.abort()
            raise
        self._staging.sync()
        return staged

    async def drop(self, id: str) -> None:
        """Forgets an instance for good."""
        await asyncio.to_thread(self._quarantine.drop, id)


def _file_meta(item: Quarantined) -> bytes:
    origin = item.origin
    if origin.part10:
        return b""
    return write_meta(origin.sop_class or "", origin.sop_uid or "", origin.syntax or "", calling_ae=origin.calling_ae)


def as_json(item: Quarantined) -> dict[str, Any]:
    """What a listing says of an item: nothing of the patient, and no UID of the instance."""
    origin = item.origin
    return {
        "id": item.id,
        "job": item.job,
        "datastoreId": origin.datastore,
        "source": origin.source,
        "reason": f"{item.reason:04X}",
        "message": item.message,
        "calledAe": origin.called_ae,
        "callingAe": origin.calling_ae,
        "principal": origin.principal,
        "receivedAt": item.received_at_ms / 1000,
        "sizeBytes": item.length,
    }
