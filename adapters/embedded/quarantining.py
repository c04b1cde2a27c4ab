"""From the spool into the quarantine: what was acknowledged and could not be imported no longer holds up a segment."""

import sqlalchemy as sa
import structlog

from adapters.embedded.jobs import unpack_outcomes, unpack_places
from adapters.embedded.publishing import is_kept
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Corrupt
from gateway.domain.ids import JobId
from gateway.domain.model import JobStatus, Outcome, Quarantined
from gateway.ports import Quarantine, SpoolStaging

log = structlog.get_logger("gateway.quarantine")

_SLICE = 20
_SECOND_CHANCE_MS = 3_600_000
"""A job that failed as a whole is tried once more when a worker starts (`intake.retry_failed`); after this time, it is
somebody's business."""
_WHOLE_JOB = Outcome(None, None, None, None, failure=0x0110)


def take_in(database: Database, spool: SpoolStaging, quarantine: Quarantine) -> int:
    """Moves what ended jobs could not import into the quarantine; how many instances.

    Broken off, it begins again and comes to the same: an instance has its id from its job and its place there.
    """
    j = t.job.c
    ended = sa.or_(
        j.status == JobStatus.COMPLETED,
        sa.and_(j.status == JobStatus.FAILED, j.ended_at < now_ms() - _SECOND_CHANCE_MS),
    )
    # As text, so that the partial index serves.
    kept = sa.select(t.job).where(sa.text("keeps_spool"), ended).order_by(j.pk).limit(_SLICE)
    with database.read() as connection:
        jobs = connection.execute(kept).all()
    count = 0
    for job in jobs:
        staged = unpack_places(bytes(job.staged))
        outcomes = unpack_outcomes(bytes(job.outcomes)) if job.outcomes else [_WHOLE_JOB] * len(staged)
        for place, ((segment, offset, length), outcome) in enumerate(zip(staged, outcomes, strict=True)):
            if not is_kept(outcome, job.source):
                continue
            try:
                origin, body, _ = spool.read(segment, offset, length)
            except Corrupt as fault:
                log.error("quarantine.damaged", job=job.id, detail=fault.detail)
                continue
            item = Quarantined(
                id=f"{job.submitted_at:013d}-{job.id}-{place:05d}",
                job=JobId(job.id),
                origin=origin,
                reason=outcome.failure or 0,
                message=outcome.message or job.message or "",
                received_at_ms=job.submitted_at,
                length=len(body),
            )
            quarantine.put(item, body)
            count += 1
        with database.write() as connection:
            connection.execute(sa.update(t.job).where(j.pk == job.pk).values(keeps_spool=False))
    if count:
        log.warning("quarantine.taken_in", instances=count)
    return count
