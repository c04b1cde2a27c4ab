"""Import jobs from buckets (API: StartDICOMImportJob): read, stage, publish, report (healthimaging.md 5).

A job is one work item after the other, each committed with what it did: `read` copies the objects into the spool,
`bulk` prepares and publishes them in one transaction, so that an image set gets one version from one job, and `report`
writes the job's folder and ends it. What is interrupted runs again from its last commit.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
import sqlalchemy as sa
import structlog

from adapters.embedded import datastores
from adapters.embedded.encoding import Encoder
from adapters.embedded.events import Events
from adapters.embedded.jobs import job_of, pack_places, require_active, unpack_outcomes
from adapters.embedded.preparing import PROCESSING_FAILURE, Packs, Prepared
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import ImportBatch, Resent, publish_imports
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from adapters.sql.queue import MAX_ATTEMPTS, LeaseLost, WorkItem, WorkQueue, enqueue
from gateway.domain.errors import Denied, GatewayError, InvalidInput, NotFound, QuotaExceeded, Unavailable
from gateway.domain.ids import DatastoreId, JobId, new_id
from gateway.domain.model import ImportJob, ImportRequest, JobStatus, Origin, Outcome, Staged
from gateway.ports import BlobStore, Buckets, SpoolStaging

log = structlog.get_logger("gateway.importer")

MAX_JOBS: Final = 100
"""Jobs of the API that run or wait at once (healthimaging.md 10.1)."""
KINDS: Final = ("read", "bulk", "report")
_DEATHS = 8
_PAUSE_MS = 2000
_IDLE_S = 1.0
_RENEW_S = 15.0
_SLICE = 50
"""Files between two looks at whether the process is to stop."""
_LOCKED_S = 60.0
"""How long a job waits for a locked image set before it goes back to the queue."""

_WARNINGS: Final = {
    0xB000: ("CoercionOfDataElements", "Data elements were changed."),
    0xB006: ("ElementsDiscarded", "Data elements were dropped."),
    0xB007: ("SopClassDataMismatch", "The data set does not match its SOP class."),
    0xB100: ("TranscodingException", "The pixel data cannot be decoded: it is kept as received."),
    0xB110: ("FramesExtractionFailure", "The frames cannot be told apart: the pixel data is kept as received."),
    0xB111: ("FrameNumberMismatch", "The number of frames is another than that of the data set."),
    0xB112: ("InvalidOffsetTable", "The offset table is wrong: the frames cannot be told apart."),
    0xB120: ("UnsupportedTransferSyntax", "The transfer syntax is not supported: the pixel data is kept as received."),
    0xB201: ("InvalidUidFormat", "A UID does not have the form of one."),
    0xB202: ("InvalidDicomValueLength", "A value is too long: it may not be searchable."),
}


# ---------------------------------------------------------------- accepting


def start_import(
    database: Database,
    events: Events,
    presence: Presence,
    datastore_pk: int,
    datastore: DatastoreId,
    request: ImportRequest,
) -> ImportJob:
    """A new job, or with a known client token the one that it made. Raises Conflict, NotFound, QuotaExceeded."""
    asked = [datastore, request.name, request.role_arn, request.input_uri, request.output_uri]
    j = t.job
    with database.write() as connection:
        known = datastores.answered(database, connection, "StartDICOMImportJob", request.client_token, asked)
        if known is None:
            database.lock_words(connection, ["import jobs"])  # so that two at once do not both find the last place
            running = sa.select(sa.func.count()).where(
                j.c.source == "import", j.c.status.in_((JobStatus.SUBMITTED, JobStatus.IN_PROGRESS))
            )
            if connection.execute(running).scalar_one() >= MAX_JOBS:
                raise QuotaExceeded(f"{MAX_JOBS} import jobs run or wait already. Start this one when some have ended.")
            job_id = JobId(new_id())
            folder = f"{request.output_uri.rstrip('/')}/{datastore}-DicomImport-{job_id}/"
            row = connection.execute(
                sa.insert(j).returning(j),
                {
                    "id": job_id,
                    "datastore_pk": datastore_pk,
                    "name": request.name or job_id,
                    "source": "import",
                    "status": JobStatus.SUBMITTED,
                    "submitted_at": now_ms(),
                    "role_arn": request.role_arn,
                    "input_uri": request.input_uri,
                    "output_uri": folder,
                    "principal": request.actor,
                },
            ).one()
            require_active(connection, datastore_pk)
            enqueue(connection, "read", {"job": row.pk, "store": datastore})
            datastores.answer(connection, "StartDICOMImportJob", request.client_token, asked, job_id)
            events.job(connection, row, datastore, JobStatus.SUBMITTED)
        else:
            row = connection.execute(sa.select(j).where(j.c.id == known)).one()
    presence.ring("worker")
    return job_of(row, datastore)


# ---------------------------------------------------------------- carrying out


class _JobFailed(Exception):
    """The job as a whole cannot go on; the text is the job's message."""


@dataclass(slots=True)
class Importer:
    """One thread of a worker process, beside its loop: a job of thousands of files holds nobody up. Blocking."""

    database: Database
    queue: WorkQueue
    presence: Presence
    spool: SpoolStaging
    blobs: BlobStore
    buckets: Buckets | None
    batch_of: Callable[[WorkItem], ImportBatch]
    prepare: Callable[[ImportBatch, Packs], list[Prepared | Outcome]]
    encoder: Encoder
    resent: Resent
    events: Events
    imported: Callable[[str, Sequence[Outcome], float], None]
    """Told once for each job: source, outcomes, seconds."""
    max_files: int
    _stop: threading.Event = field(default_factory=threading.Event)
    _wake: threading.Event = field(default_factory=threading.Event)
    _held: Sequence[WorkItem] = ()
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for name, run in (("importer", self._run), ("importer-lease", self._renew)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """There may be a job."""
        self._wake.set()

    def stop(self) -> None:
        """Returns when the slice in hand is done; a job goes on at the next start."""
        self._stop.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            try:
                worked = self.work()
            except GatewayError as fault:
                log.warning("importer.lease", code=fault.code, detail=fault.detail)
                worked = False
            if not worked:
                self._wake.wait(_IDLE_S)

    def _renew(self) -> None:
        while not self._stop.wait(_RENEW_S):
            if held := self._held:
                with suppress(GatewayError):
                    self.queue.renew(held)

    def work(self) -> bool:
        """Takes up one work item; whether there was any."""
        items = self.queue.lease(KINDS, 1)
        for item in items:
            self._held = (item,)
            try:
                self._do(item)
            finally:
                self._held = ()
        return bool(items)

    def _do(self, item: WorkItem) -> None:
        try:
            if item.attempt > _DEATHS:
                raise _JobFailed("INTERNAL_ERROR: The import was interrupted too often.")
            {"read": self._read, "bulk": self._publish, "report": self._report}[item.kind](item)
        except LeaseLost:
            log.warning("importer.lease_lost")
        except _JobFailed as fault:
            self._fail(item, str(fault))
        except Exception as fault:
            detail = fault.detail if isinstance(fault, GatewayError) else type(fault).__name__
            log.exception("importer.failed", kind=item.kind)
            if isinstance(fault, Unavailable | OSError):  # the machine's fault, which may take long
                self.queue.retry(item, detail, delay_ms=_PAUSE_MS, counts=False)
            elif item.attempt < MAX_ATTEMPTS:
                self.queue.retry(item, detail, delay_ms=_PAUSE_MS)
            else:
                self._fail(item, "INTERNAL_ERROR: The import failed. The log of the gateway says more.")

    def _fail(self, item: WorkItem, message: str) -> None:
        with self.database.write() as connection:
            self.queue.finish(connection, item)
            self._end(connection, item, JobStatus.FAILED, message)

    def _end(self, connection: sa.Connection, item: WorkItem, status: JobStatus, message: str | None = None) -> None:
        row = connection.execute(
            sa.update(t.job)
            .where(t.job.c.pk == item.subject["job"])
            .values(status=status, ended_at=now_ms(), message=message)
            .returning(t.job)
        ).one()
        self.events.job(connection, row, item.subject["store"], status)

    def _job(self, item: WorkItem) -> "sa.Row[Any]":
        with self.database.read() as connection:
            return connection.execute(
                sa.select(t.job, t.datastore.c.id.label("datastore"))
                .join(t.datastore, t.datastore.c.pk == t.job.c.datastore_pk)
                .where(t.job.c.pk == item.subject["job"])
            ).one()

    # ------------------------------------------------------------ from the bucket into the spool

    def _read(self, item: WorkItem) -> None:
        job = self._job(item)
        if job.status == JobStatus.SUBMITTED:
            with self.database.write(durable=False) as connection:
                connection.execute(sa.update(t.job).where(t.job.c.pk == job.pk).values(status=JobStatus.IN_PROGRESS))
                self.events.job(connection, job, job.datastore, JobStatus.IN_PROGRESS)
        buckets = self._buckets()
        bucket, prefix = split_uri(job.input_uri)
        keys = self._listed(job, bucket, prefix)
        staged: list[Staged] = []
        names: list[str] = []
        unread: list[tuple[str, str]] = []
        try:
            for key in keys:
                if self._stop.is_set():
                    self._give_back(staged)
                    self.queue.retry(item, "the process was stopped", delay_ms=0, counts=False)
                    return
                fault = self._stage(buckets, job, bucket, key, staged)
                if fault is None:
                    names.append(key)
                else:
                    unread.append((key, fault))
            self.spool.sync()
            places = [(one.segment, one.offset, one.length) for one in staged]
            following = {**item.subject, "names": names, "unread": unread, "id": job.id, "source": "import"}
            with self.database.write() as connection:
                self.queue.finish(connection, item)
                connection.execute(sa.update(t.job).where(t.job.c.pk == job.pk).values(staged=pack_places(places)))
                segments = sorted({one.segment for one in staged})
                if segments:
                    connection.execute(
                        sa.insert(t.job_segment), [{"segment": name, "job_pk": job.pk} for name in segments]
                    )
                enqueue(connection, "bulk", following)
        except BaseException:
            self._give_back(staged)
            raise
        self.spool.submitted(staged)

    def _buckets(self) -> Buckets:
        if self.buckets is None:
            raise _JobFailed("INVALID_REQUEST: Buckets are not set up any more: s3_root or s3_endpoint_url is missing.")
        return self.buckets

    def _listed(self, job: "sa.Row[Any]", bucket: str, prefix: str) -> list[str]:
        """The keys to import. Raises _JobFailed."""
        buckets = self._buckets()
        output, _ = split_uri(job.output_uri)
        try:
            buckets.check(output)
            keys = []
            for key, _ in buckets.list(bucket, prefix):
                keys.append(key)
                if len(keys) > self.max_files:
                    raise _JobFailed(
                        f"FILE_COUNTS_LIMIT: There are more than {self.max_files} files under the input prefix."
                    )
        except (NotFound, Denied, InvalidInput) as fault:
            raise _JobFailed(f"INVALID_REQUEST: {fault.detail}") from None
        return keys

    def _stage(self, buckets: Buckets, job: "sa.Row[Any]", bucket: str, key: str, staged: list[Staged]) -> str | None:
        """Copies one object into the spool; why it could not be read, if so."""
        origin = Origin(DatastoreId(job.datastore), "import", principal=job.principal, name=key)
        sink = self.spool.open(origin)
        try:
            for piece in buckets.read(bucket, key):
                sink.write(piece)
            staged.append(sink.close())
        except (NotFound, Denied) as fault:
            sink.abort()
            return fault.detail
        except BaseException:
            sink.abort()
            raise
        return None

    def _give_back(self, staged: list[Staged]) -> None:
        """Lets go of what was staged for nothing; the next start removes its segments."""
        self.spool.submitted(staged)

    # ------------------------------------------------------------ from the spool into image sets

    def _publish(self, item: WorkItem) -> None:
        began = time.monotonic()
        batch = self.batch_of(item)
        places = batch.order.places
        packs = Packs(self.blobs)
        try:
            with ThreadPoolExecutor(1, "settle") as syncing:
                # Where the copies lie in the page cache of a machine that crashed, they do not lie on its disk.
                settled = syncing.submit(self.spool.settle, {segment for segment, _, _ in places})
                results: list[Prepared | Outcome] = []
                for start in range(0, len(places), _SLICE):
                    self.encoder.stand_back()
                    if self._stop.is_set():
                        packs.abandon()
                        self.queue.retry(item, "the process was stopped", delay_ms=0, counts=False)
                        return
                    order = replace(batch.order, places=places[start : start + _SLICE])
                    results += self.prepare(replace(batch, order=order), packs)
                batch.results = results
                packs.seal()
                packs.finish()
                settled.result()
        except BaseException:
            packs.abandon()
            raise
        batch.then = ("report", item.subject)
        deadline = time.monotonic() + _LOCKED_S
        while publish_imports(self.database, self.queue, [batch], packs.sizes, self.resent, lambda: None, self.events):
            if self._stop.wait(0.05) or time.monotonic() > deadline:
                self.queue.retry(item, "waits for a locked image set or its turn", delay_ms=0, counts=False)
                return
        self.encoder.wake()
        self.imported("import", batch.outcomes, time.monotonic() - began)

    # ------------------------------------------------------------ the job's folder

    def _report(self, item: WorkItem) -> None:
        job = self._job(item)
        outcomes = unpack_outcomes(job.outcomes)
        named = list(zip(item.subject["names"], outcomes, strict=True))
        documents = report(job, job.datastore, named, item.subject["unread"])
        bucket, folder = split_uri(job.output_uri)
        try:
            for name, body in documents.items():
                self._buckets().write(bucket, folder + name, body)
        except (NotFound, Denied, InvalidInput) as fault:
            raise _JobFailed(
                f"INVALID_REQUEST: The instances are imported, but the output cannot be written. {fault.detail}"
            ) from None
        with self.database.write() as connection:
            self.queue.finish(connection, item)
            self._end(connection, item, JobStatus.COMPLETED)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key, or prefix, of an S3 URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def report(
    job: Any, datastore: str, named: Sequence[tuple[str, Outcome]], unread: Sequence[tuple[str, str]]
) -> dict[str, bytes]:
    """The objects of a job's folder by their names: the manifest, last, and one line for each file of each kind."""
    success: list[bytes] = []
    warning: list[bytes] = []
    failure: list[bytes] = []
    server_faults = 0
    sets: dict[str, dict[str, Any]] = {}
    generated: set[str] = set()
    for name, outcome in named:
        if outcome.failure is not None:
            ours = outcome.failure == PROCESSING_FAILURE
            server_faults += ours
            failure.append(_failed(name, outcome.message, ours=ours))
            continue
        assert outcome.image_set is not None
        place = {
            "imageSetId": outcome.image_set,
            "imageSetVersion": outcome.version,
            "isPrimary": outcome.is_primary,
        }
        entry = sets.setdefault(outcome.image_set, {**place, "numberOfMatchedSOPInstances": 0})
        entry["imageSetVersion"] = max(entry["imageSetVersion"], outcome.version or 0)
        entry["numberOfMatchedSOPInstances"] += 1
        if not outcome.identical:
            generated.add(outcome.image_set)
        success.append(orjson.dumps({"inputFile": name, "importResponse": place}))
        if outcome.warning is not None:
            kind, message = _WARNINGS.get(outcome.warning, ("Other", "The instance was stored with a warning."))
            told = {"warning_reason_code": outcome.warning, "type": kind, "message": message}
            response = {**place, "warnings": [told]}
            warning.append(orjson.dumps({"inputFile": name, "importResponse": response}))
    for name, detail in unread:
        server_faults += 1
        failure.append(_failed(name, detail, ours=True))
    summary = {
        "jobId": job.id,
        "datastoreId": datastore,
        "inputS3Uri": job.input_uri,
        "outputS3Uri": job.output_uri,
        "successOutputS3Uri": f"{job.output_uri}SUCCESS/",
        "failureOutputS3Uri": f"{job.output_uri}FAILURE/",
        "warningsOutputS3Uri": f"{job.output_uri}WARNING/",
        "numberOfScannedFiles": len(named) + len(unread),
        "numberOfImportedFiles": len(success),
        "numberOfFilesWithCustomerError": len(failure) - server_faults,
        "numberOfFilesWithServerError": server_faults,
        "numberOfGeneratedImageSets": len(generated),
        "imageSetsSummary": list(sets.values()),
    }
    return {
        "SUCCESS/success.ndjson": _lines(success),
        "FAILURE/failure.ndjson": _lines(failure),
        "WARNING/warning.ndjson": _lines(warning),
        "job-output-manifest.json": orjson.dumps({"jobSummary": summary}),
    }


def _failed(name: str, message: str, *, ours: bool) -> bytes:
    kind = "InternalServerException" if ours else "ValidationException"
    return orjson.dumps({"inputFile": name, "exception": {"exceptionType": kind, "message": message}})


def _lines(entries: Sequence[bytes]) -> bytes:
    return b"".join(entry + b"\n" for entry in entries)
