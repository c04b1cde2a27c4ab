"""Puts the embedded backend together over a data folder, for one process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters.embedded.backend import EmbeddedBackend
from adapters.embedded.copying import Copying
from adapters.embedded.datastores import default_datastore
from adapters.embedded.encoding import Encoder
from adapters.embedded.events import Courier, Events
from adapters.embedded.handover import Giver
from adapters.embedded.holding import Holding
from adapters.embedded.importing import Importer
from adapters.embedded.intake import JobIntake
from adapters.embedded.mutations import EditRules, Mutations
from adapters.embedded.preparing import Decoder, ImportCodec, Preparer
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import Resent
from adapters.embedded.reading import Reader
from adapters.embedded.restoring import Restoring
from adapters.embedded.sweeping import Sweeper, SweepTimes
from adapters.embedded.worker import ImportMetrics, Worker
from adapters.sql.database import Database
from adapters.sql.index import SqlIndex
from adapters.sql.queue import WorkQueue
from gateway.domain.ids import DatastoreId
from gateway.ports import BlobStore, Buckets, DerivedFrames, Quarantine, SpoolStaging


class Closing(Protocol):
    def close(self) -> None: ...


@dataclass(slots=True)
class Embedded:
    """One process's share of an embedded store."""

    backend: EmbeddedBackend
    staging: SpoolStaging
    default_datastore: DatastoreId
    worker: Worker
    """To be run in a thread by a worker process; other processes leave it alone."""
    database: Database
    _closing: tuple[Closing, ...]

    def close(self) -> None:
        for part in self._closing:
            part.close()


def open_embedded(
    *,
    data: Path,
    role: str,
    database: Database,
    blobs: BlobStore,
    derived: DerivedFrames,
    spool: SpoolStaging,
    quarantine: Quarantine,
    codec: ImportCodec,
    decoder: Decoder,
    metrics: ImportMetrics,
    resent: Resent = "version",
    rules: EditRules | None = None,
    sweeping: SweepTimes | None = None,
    buckets: Buckets | None = None,
    max_import_files: int = 5000,
    max_copy_frames: int = 1000,
    event_arn: str = "arn:aws:medical-imaging:us-east-1:123456789012:datastore/",
    webhook: Callable[[bytes], None] | None = None,
) -> Embedded:
    """`role` is web, dimse or worker. The database must have its schema (`adapters.sql.schema.migrate`).

    `webhook` takes one event a call (`events.Courier`), whose ARNs begin with `event_arn`; without one there are none.
    """
    presence = Presence(data / "run", role)
    queue = WorkQueue(database, presence.name, presence.is_alive)
    reader = Reader(database, blobs, codec)
    intake = JobIntake(database, presence)
    events = Events(event_arn if webhook is not None else None)
    sweeping = sweeping or SweepTimes()
    mutations = Mutations(database, blobs, queue, presence, rules or EditRules(), events)
    copying = Copying(database, blobs, queue, presence, events, max_copy_frames)
    backend = EmbeddedBackend(
        database=database,
        reader=reader,
        index=SqlIndex(database.engine, reader.json_of),
        mutations=mutations,
        copying=copying,
        restoring=Restoring(database, events, sweeping.retention_s),
        intake=intake,
        giver=Giver(presence.folder),
        spool=spool,
        events=events,
        presence=presence,
        has_buckets=buckets is not None,
    )
    encoder = Encoder(database, blobs, codec, data / "run" / "encoder.lock")
    worker = Worker(
        database=database,
        queue=queue,
        presence=presence,
        spool=spool,
        blobs=blobs,
        preparer=Preparer(codec, decoder, str(data / "spool"), reader.lossless),
        operations={"update": mutations, "delete": mutations, "copy": copying},
        encoder=encoder,
        holding=Holding(data / "run"),
        quarantine=quarantine,
        sweeper=Sweeper(database, blobs, derived, data, sweeping),
        datastore_pk=reader.active,
        resent=resent,
        metrics=metrics,
        events=events,
        courier=Courier(database, webhook, data / "run" / "webhook.lock") if webhook is not None else None,
    )
    worker.importer = Importer(
        database=database,
        queue=queue,
        presence=presence,
        spool=spool,
        blobs=blobs,
        buckets=buckets,
        batch_of=worker.batch_of,
        prepare=worker.prepare,
        encoder=encoder,
        resent=resent,
        events=events,
        imported=metrics.imported,
        max_files=max_import_files,
    )
    if role != "worker":
        presence.listen(intake.heard)
    return Embedded(
        backend=backend,
        staging=spool,
        default_datastore=default_datastore(database, events),
        worker=worker,
        database=database,
        _closing=(backend, presence, database),
    )
