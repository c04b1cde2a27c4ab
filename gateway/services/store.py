"""Instances in: staged as they arrive, imported by one job, answered one by one (STOW-18, STOW-20)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from ..domain.errors import Unavailable
from ..domain.ids import DatastoreId
from ..domain.model import Origin, Outcome, Staged
from ..ports import Buffer, Intake, Sink, Staging

CANNOT_UNDERSTAND: Final = 0xC000
PROCESSING_FAILURE: Final = 0x0110
LARGE_WRITE: Final = 1 << 20
"""Bytes from which a write is worth the hop to a thread."""


@dataclass(frozen=True, slots=True)
class Part:
    """The beginning of one instance in a stream of parts; its bytes follow, up to the next `Part`."""

    name: str
    """How answers call it when its bytes do not say what it is, e.g. `part 3`."""
    refusal: str | None = None
    """Why it is not taken; its bytes are passed over."""
    sop_class: str | None = None
    sop_uid: str | None = None
    """Of what is refused, where that is known."""


class Store:
    """Stages, imports and waits; `timeout_s` is how long an answer may take after the last byte."""

    def __init__(self, staging: Staging, intake: Intake, *, timeout_s: float = 60.0) -> None:
        self._staging = staging
        self._intake = intake
        self._timeout_s = timeout_s

    async def receive(
        self,
        datastore: DatastoreId,
        parts: AsyncIterator[Part | Buffer],
        *,
        study_uid: str | None = None,
        principal: str | None = None,
    ) -> list[Outcome]:
        """One outcome for each part, in order.

        What `parts` raises leaves nothing behind. Raises OutOfStorage, Overloaded, and Unavailable when the import has
        not ended in time: the instances are then safe and will be imported, and sending them again does no harm.
        """
        self._staging.admit()
        outcomes: list[Outcome | None] = []
        sinks: list[Sink] = []
        staged: list[Staged] = []
        try:
            current: Sink | None = None
            written = 0
            async for piece in parts:
                if isinstance(piece, Part):
                    if current is not None:
                        self._end(current, written, outcomes, staged)
                    current, written = None, 0
                    if piece.refusal is not None:
                        message = f"{piece.name}: {piece.refusal}"
                        outcomes.append(replace(_refused(message), sop_class=piece.sop_class, sop_uid=piece.sop_uid))
                        continue
                    origin = Origin(datastore, "stow", study_uid=study_uid, principal=principal, name=piece.name)
                    current = self._staging.open(origin)
                    sinks.append(current)
                    outcomes.append(None)
                elif current is not None:
                    written += len(piece)
                    if len(piece) >= LARGE_WRITE:
                        await asyncio.to_thread(current.write, piece)
                    else:
                        current.write(piece)
            if current is not None:
                self._end(current, written, outcomes, staged)
        except BaseException:
            for sink in sinks:
                sink.abort()
            raise
        if staged:
            imported = await self._intake.imported(datastore, staged, self._timeout_s)
            if imported is None:
                await asyncio.to_thread(self._staging.sync)  # the import has not made them durable yet
                raise Unavailable(
                    f"The instances are safe, but their import did not end within {self._timeout_s:g} s. "
                    "Send them again later: what is stored by then counts as success."
                )
            answers = iter(imported or map(_not_imported, staged))
            outcomes = [next(answers) if outcome is None else outcome for outcome in outcomes]
        return [outcome for outcome in outcomes if outcome is not None]

    def _end(self, sink: Sink, written: int, outcomes: list[Outcome | None], staged: list[Staged]) -> None:
        if written:
            staged.append(sink.close())
        else:
            sink.abort()
            outcomes[-1] = _refused("An instance without a single byte.")


def _not_imported(staged: Staged) -> Outcome:
    """Of a job that failed as a whole: nothing is known of its instances but where they came from."""
    message = f"{staged.origin.name}: the import failed; see the log and send it again."
    return Outcome(None, None, None, None, failure=PROCESSING_FAILURE, message=message)


def _refused(message: str) -> Outcome:
    return Outcome(None, None, None, None, failure=CANNOT_UNDERSTAND, message=message)
