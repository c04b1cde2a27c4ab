"""Puts the embedded backend together over a data folder, for one process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from adapters.embedded.backend import EmbeddedBackend, default_datastore
from adapters.embedded.encoding import Encoder
from adapters.embedded.intake import JobIntake
from adapters.embedded.mutations import EditRules, Mutations
from adapters.embedded.preparing import Decoder, ImportCodec, Preparer
from adapters.embedded.processes import Presence
from adapters.embedded.publishing import Resent
from adapters.embedded.reading import Reader
from adapters.embedded.sweeping import Sweeper
from adapters.embedded.worker import ImportMetrics, Worker
from adapters.sql.database import Database
from adapters.sql.index import SqlIndex
from adapters.sql.queue import WorkQueue
from gateway.domain.ids import DatastoreId
from gateway.ports import BlobStore, SpoolStaging


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
    spool: SpoolStaging,
    codec: ImportCodec,
    decoder: Decoder,
    metrics: ImportMetrics,
    resent: Resent = "version",
    rules: EditRules | None = None,
    retention_s: float = 30 * 86400,
) -> Embedded:
    """`role` is web, dimse or worker. The database must have its schema (`adapters.sql.schema.migrate`)."""
    presence = Presence(data / "run", role)
    queue = WorkQueue(database, presence.name, presence.is_alive)
    reader = Reader(database, blobs, codec)
    intake = JobIntake(database, spool, presence)
    mutations = Mutations(database, blobs, queue, presence, rules or EditRules())
    backend = EmbeddedBackend(database, reader, SqlIndex(database.engine, reader.json_of), mutations, intake)
    worker = Worker(
        database=database,
        queue=queue,
        presence=presence,
        spool=spool,
        blobs=blobs,
        preparer=Preparer(codec, decoder, str(data / "spool")),
        mutations=mutations,
        encoder=Encoder(database, blobs, codec, data / "run" / "encoder.lock"),
        sweeper=Sweeper(database, blobs, data, int(retention_s * 1000)),
        datastore_pk=reader.datastore_pk,
        resent=resent,
        metrics=metrics,
    )
    if role != "worker":
        presence.listen(intake.heard)
    return Embedded(
        backend=backend,
        staging=spool,
        default_datastore=default_datastore(database),
        worker=worker,
        database=database,
        _closing=(backend, presence, database),
    )
