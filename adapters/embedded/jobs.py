"""Import jobs as rows: what is asked, where the instances lie, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import orjson
import sqlalchemy as sa
from isal import isal_zlib

from adapters.embedded.times import from_ms
from adapters.sql import tables as t
from adapters.sql.database import Database, Statement, insert_or_keep, now_ms
from gateway.domain.errors import NotFound
from gateway.domain.ids import DatastoreId, JobId
from gateway.domain.model import DatastoreStatus, ImportJob, JobResult, JobStatus, Outcome, Staged

Place = tuple[str, int, int]
"""Of a staged instance: segment of the spool, offset, length."""

_IS_ACTIVE = Statement(
    sa.select(t.datastore.c.pk).where(
        t.datastore.c.pk == sa.bindparam("datastore_pk"), t.datastore.c.status == DatastoreStatus.ACTIVE
    )
)
_INSERT_SEGMENTS = Statement(sa.insert(t.job_segment))
_JOB_BY_ID = (
    sa.select(t.job, t.datastore.c.id.label("datastore"))
    .join(t.datastore, t.datastore.c.pk == t.job.c.datastore_pk)
    .where(t.job.c.id == sa.bindparam("job_id"))
)


@dataclass(frozen=True, slots=True)
class Order:
    """What an import job is asked to do. Its id is chosen by who asks: whoever inserts its row decides who does it."""

    id: JobId
    datastore_pk: int
    datastore: DatastoreId
    source: str
    places: Sequence[Place]
    called_ae: str | None = None
    calling_ae: str | None = None
    principal: str | None = None
    concerns: Sequence[str] = ()
    """What of its instances is known before they are read: their studies, else a sum of their SOP Instance UIDs."""


def order_of(job: JobId, datastore_pk: int, items: Sequence[Staged]) -> Order:
    """The order for instances of one origin."""
    origin = items[0].origin
    return Order(
        id=job,
        datastore_pk=datastore_pk,
        datastore=origin.datastore,
        source=origin.source,
        places=[(item.segment, item.offset, item.length) for item in items],
        called_ae=origin.called_ae,
        calling_ae=origin.calling_ae,
        principal=origin.principal,
        concerns=sorted({item.study_uid or concern(item.origin.sop_uid or "") for item in items}),
    )


def concern(sop_uid: str) -> str:
    """Short, for what may have thousands of instances; two that have the same only wait for each other."""
    return f"{isal_zlib.crc32(sop_uid.encode()):x}"


def insert_job(connection: sa.Connection, order: Order, status: JobStatus) -> int | None:
    """The key of the new job, its segments noted with it; None when there is one with this id already.

    Raises NotFound for a data store that has been deleted.
    """
    row = {
        "id": order.id,
        "datastore_pk": order.datastore_pk,
        "name": f"{order.source}-{order.id[:12]}",
        "source": order.source,
        "status": status,
        "submitted_at": now_ms(),
        "called_ae": order.called_ae,
        "calling_ae": order.calling_ae,
        "principal": order.principal,
        "staged": pack_places(order.places),
    }
    job_pk: int | None = insert_or_keep(connection.dialect.name, t.job).scalar(connection, row)
    if job_pk is not None:
        require_active(connection, order.datastore_pk)
        segments = sorted({segment for segment, _, _ in order.places})
        _INSERT_SEGMENTS.run_each(connection, [{"segment": segment, "job_pk": job_pk} for segment in segments])
    return job_pk


def require_active(connection: sa.Connection, datastore_pk: int) -> None:
    """To be asked once the row of a job is there: from then on the data store cannot be deleted. Raises NotFound."""
    if _IS_ACTIVE.scalar(connection, {"datastore_pk": datastore_pk}) is None:
        raise NotFound("There is no data store with this id.")


def read_job(database: Database, job: JobId, *, with_outcomes: bool = False) -> JobResult:
    """Raises NotFound."""
    with database.read() as connection:
        row = connection.execute(_JOB_BY_ID, {"job_id": job}).first()
    if row is None:
        raise NotFound("There is no import job with this id.")
    outcomes = unpack_outcomes(row.outcomes) if with_outcomes and row.outcomes else []
    return JobResult(job_of(row, DatastoreId(row.datastore)), outcomes)


def job_of(row: "sa.Row[Any]", datastore: DatastoreId) -> ImportJob:
    """An import job from its row."""
    return ImportJob(
        id=JobId(row.id),
        datastore=datastore,
        name=row.name,
        status=JobStatus(row.status),
        source=row.source,
        submitted_at=from_ms(row.submitted_at),
        ended_at=from_ms(row.ended_at) if row.ended_at else None,
        message=row.message,
        role_arn=row.role_arn,
        input_uri=row.input_uri,
        output_uri=row.output_uri,
        counts={
            "imported": row.n_imported,
            "identical": row.n_identical,
            "failed": row.n_failed,
            "warned": row.n_warned,
        },
    )


# ---------------------------------------------------------------- packed lists


def pack_places(places: Sequence[Place]) -> bytes:
    return isal_zlib.compress(orjson.dumps(places), 1)


def unpack_places(data: bytes) -> list[Place]:
    return [(segment, offset, length) for segment, offset, length in orjson.loads(isal_zlib.decompress(data))]


_FIELDS = [field.name for field in fields(Outcome)]
_values = attrgetter(*_FIELDS)


def pack_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    rows = [dict(zip(_FIELDS, _values(outcome), strict=True)) for outcome in outcomes]
    return isal_zlib.compress(orjson.dumps(rows), 1)


def unpack_outcomes(data: bytes) -> list[Outcome]:
    return [Outcome(**fields) for fields in orjson.loads(isal_zlib.decompress(data))]
