"""The composition root: the only module that knows which adapters stand behind the ports.

Imports stand in the functions: a role that is run alone, or a command, loads only what it needs.
"""

import ctypes
import importlib
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from . import telemetry
from .domain.errors import Conflict, NotFound
from .domain.ids import DatastoreId
from .domain.model import DatastoreStatus
from .settings import Settings, seconds
from .supervisor import SURFACE_DRAIN_S, Kind, Role, bound_address, http_url

if TYPE_CHECKING:
    from adapters.blobs.derived import DerivedFolder
    from adapters.blobs.quarantine import QuarantineFolder
    from adapters.codecs.decoding import DecodePool
    from adapters.codecs.registry import Codecs
    from adapters.embedded.backup import Copied
    from adapters.embedded.opening import Embedded
    from adapters.embedded.verifying import Report
    from adapters.sql.database import Database

    from .http.problems import Asgi
    from .ports import Buckets


_SHARED: Final = (
    "adapters.blobs.spool",
    "adapters.codecs.decoding",
    "adapters.codecs.registry",
    "adapters.codecs.rendering",
    "adapters.embedded.opening",
    "adapters.sql.status",
    "gateway.dicomweb.routes",
    "gateway.dimse.server",
    "gateway.healthimaging.endpoint",
    "gateway.http.app",
    "gateway.http.health",
    "gateway.http.history",
    "gateway.http.quarantine",
    "gateway.http.server",
    "gateway.services.removal",
    "gateway.worker",
    "uvloop",
)


@dataclass(slots=True)
class Backend:
    """What stands behind one process."""

    embedded: "Embedded"
    codecs: "Codecs"
    decoder: "DecodePool"
    quarantine: "QuarantineFolder"
    derived: "DerivedFolder"

    def close(self) -> None:
        self.decoder.close()
        self.embedded.close()
        self.derived.close()


def open_backend(settings: Settings, kind: Kind) -> Backend:
    """The backend, for a process of one kind. Raises Unavailable when its database cannot be reached."""
    from adapters.blobs.derived import DerivedFolder
    from adapters.blobs.folder import FolderBlobs
    from adapters.blobs.quarantine import QuarantineFolder
    from adapters.blobs.spool import Spool
    from adapters.codecs.decoding import DecodePool
    from adapters.codecs.registry import Codecs
    from adapters.embedded.mutations import EditRules
    from adapters.embedded.opening import open_embedded
    from adapters.embedded.sweeping import SweepTimes
    from adapters.sql.queue import Backlog

    from .healthimaging.operations import datastore_arn

    # Threads here hand over at every database call, read and codec: the default of 5 ms is longer than most requests.
    sys.setswitchinterval(0.0005)
    reserve_bytes = settings.disk_reserve_mb << 20
    database = open_database(settings)
    backlog = Backlog(database, settings.store.max_waiting)
    codecs, decoder, quarantine = Codecs(), DecodePool(), QuarantineFolder(settings.data)
    derived = DerivedFolder(settings.data / "cache", settings.cache, reserve_bytes=reserve_bytes)
    embedded = open_embedded(
        data=settings.data,
        role=kind,
        database=database,
        blobs=FolderBlobs(settings.data, reserve_bytes=reserve_bytes),
        derived=derived,
        spool=Spool(
            settings.data,
            kind,
            reserve_bytes=reserve_bytes,
            memory_bytes=settings.store.memory_mb << 20,
            admit=backlog.admit,
        ),
        quarantine=quarantine,
        codec=codecs,
        decoder=decoder,
        metrics=telemetry.ImportMeter(),
        resent=settings.store.resent,
        rules=EditRules(settings.hi.strict_removal, settings.hi.legacy_uids),
        buckets=_buckets(settings),
        max_import_files=settings.hi.import_files,
        max_copy_frames=settings.hi.copy_frames,
        event_arn=datastore_arn(settings.region, settings.account),
        webhook=_webhook(settings),
        sweeping=SweepTimes(
            every_s=seconds(settings.sweep.every),
            grace_s=seconds(settings.sweep.grace),
            retention_s=seconds(settings.retention),
        ),
    )
    return Backend(embedded, codecs, decoder, quarantine, derived)


def _buckets(settings: Settings) -> "Buckets | None":
    from adapters.blobs.buckets import FolderBuckets, S3Buckets

    if settings.s3_endpoint_url is not None:
        return S3Buckets(settings.s3_endpoint_url, settings.region)
    return FolderBuckets(settings.s3_root) if settings.s3_root is not None else None


def _webhook(settings: Settings) -> "Callable[[bytes], None] | None":
    from adapters.webhook import Webhook

    if settings.webhook.url is None:
        return None
    token = settings.webhook.token
    return Webhook(settings.webhook.url, token.get_secret_value() if token is not None else None)


def open_database(settings: Settings) -> "Database":
    """The database of the settings; nothing is sent to it yet."""
    from adapters.sql.database import Database

    if settings.database_url is not None:
        return Database(settings.database_url.get_secret_value())
    return Database(f"sqlite:///{settings.data.absolute() / 'gateway.db'}")


def migrate(settings: Settings) -> str | None:
    """Brings the database to this release's schema, and returns its revision. Raises Unavailable, Conflict."""
    from adapters.embedded import backup
    from adapters.sql import schema

    settings.data.mkdir(parents=True, exist_ok=True)
    if backup.marker_of(settings.data).exists():
        raise Conflict(f"{settings.data} holds half a restored store: run `imageset-gateway db restore` again")
    database = open_database(settings)
    try:
        schema.migrate(database)
        return schema.revision(database)
    finally:
        database.close()


def schema_revision(settings: Settings) -> str | None:
    """The revision of the database's schema, None where there is none yet. Raises Unavailable."""
    from adapters.sql import schema

    if settings.database_url is None and not (settings.data / "gateway.db").exists():
        return None
    database = open_database(settings)
    try:
        return schema.revision(database)
    finally:
        database.close()


@contextmanager
def _store_of(settings: Settings) -> "Iterator[Database]":
    """The database of a store that is there, in this release's schema. Raises NotFound, Conflict, Unavailable."""
    from adapters.sql import schema

    if settings.database_url is None and not (settings.data / "gateway.db").exists():
        raise NotFound(f"there is no store in {settings.data}; say where it is with --data")
    database = open_database(settings)
    try:
        schema.require_current(database)
        yield database
    finally:
        database.close()


def verify(settings: Settings, *, repair: bool, backup: Path | None, progress: Callable[[int, int], None]) -> "Report":
    """Scrubs the store, whether a gateway serves it or not; see `adapters.embedded.verifying`."""
    from adapters.blobs.folder import FolderBlobs
    from adapters.blobs.quarantine import QuarantineFolder
    from adapters.blobs.spool import Spool
    from adapters.codecs.decoding import DecodePool
    from adapters.codecs.registry import Codecs
    from adapters.embedded.holding import Holding
    from adapters.embedded.preparing import Preparer
    from adapters.embedded.reading import Reader
    from adapters.embedded.verifying import Verifier

    if backup is not None and not backup.is_dir():
        raise NotFound(f"{backup}: there is no such folder")
    blobs, decoder = FolderBlobs(settings.data), DecodePool()
    copies = None if backup is None else FolderBlobs(backup)
    try:
        with _store_of(settings) as database:
            spool = Spool(settings.data, "verify")
            codec = Codecs()
            preparer = Preparer(codec, decoder, str(spool.folder), Reader(database, blobs, codec).lossless)
            holding = Holding(settings.data / "run")
            verifier = Verifier(
                database,
                blobs,
                spool,
                QuarantineFolder(settings.data),
                preparer,
                holding,
                repair=repair,
                backup=copies,
                progress=progress,
            )
            return verifier.run()
    finally:
        decoder.close()
        for folder in (blobs, copies):
            if folder is not None:
                folder.close()


def back_up(settings: Settings, target: Path, progress: Callable[[int, int], None]) -> "Copied":
    """Backs the store up to a folder, or brings the backup there forward; see `adapters.embedded.backup`."""
    from adapters.embedded import backup

    with _store_of(settings) as database:
        return backup.make(database, settings.data, target, progress)


def restore(settings: Settings, source: Path, progress: Callable[[int, int], None]) -> "Copied":
    """Makes a store again from a backup; see `adapters.embedded.backup`."""
    from adapters.embedded import backup

    database = open_database(settings)
    try:
        return backup.restore(database, settings.data, source, progress)
    finally:
        database.close()


def rebuild_index(settings: Settings) -> int:
    """Makes the search index anew; from how many publications."""
    from adapters.embedded.rebuilding import rebuild

    with _store_of(settings) as database:
        return rebuild(database)


def missing_codecs() -> dict[str, str]:
    """Transfer syntax -> why it cannot be decoded; such instances are kept and passed on as received."""
    from adapters.codecs.registry import Codecs

    return Codecs().missing()


def web_app(settings: Settings, backend: Backend, role: Role) -> "Asgi":
    """The HTTP application over a backend."""
    from adapters.codecs.rendering import Pictures
    from adapters.sql.status import Status

    from .dicomweb.exchange import DicomwebServices
    from .dicomweb.routes import DicomwebApp
    from .healthimaging.endpoint import HealthImagingApp
    from .http.app import build_app
    from .http.health import Operations
    from .http.history import HistoryApp
    from .http.quarantine import QuarantineApp
    from .services.quarantine import Quarantines
    from .services.removal import Removal
    from .services.render import Render
    from .services.retrieve import Retrieve
    from .services.search import Search
    from .services.store import Store

    port = backend.embedded.backend
    default = backend.embedded.default_datastore
    decoding = ThreadPoolExecutor(os.cpu_count() or 2, "decode")
    missing = frozenset(backend.codecs.missing())
    services = DicomwebServices(
        default_datastore=default,
        resolve=_resolver(backend),
        retrieve=Retrieve(port, backend.codecs, backend.decoder.decode, decoding, missing, backend.derived),
        render=Render(port, Pictures(backend.codecs), backend.decoder.decode, decoding),
        store=Store(backend.embedded.staging, port),
        search=Search(port, port),
        intake=port,
        removal=Removal(port, port, port),
        decode=backend.decoder.decode,
        temporary=settings.data / "run",
        public_url=settings.http.public_url,
        empty_qido_status=settings.qido.empty,
    )
    return build_app(
        settings,
        dicomweb=DicomwebApp(services),
        healthimaging=HealthImagingApp(
            port,
            settings.region,
            settings.account,
            history=port,
            # Set by tests alone: an answer that breaks the service's model then becomes a 500.
            strict=os.environ.get("GATEWAY_TEST_STRICT") == "1",
        ),
        history=HistoryApp(port, port, default),
        operations=Operations(
            Status(backend.embedded.database, lambda: len(backend.quarantine.ids()), lambda: port.handed_over),
            settings.data,
            settings.disk_reserve_mb << 20,
            lambda: role.processes,
            {"datastoreId": default, "dimse": role.dimse, "aet": settings.dimse.aet},
        ),
        quarantine=QuarantineApp(Quarantines(backend.quarantine, backend.embedded.staging, port)),
        access_log=telemetry.access_log(settings.log.level, settings.log.format, role="web"),
    )


def _resolver(backend: Backend) -> Callable[[str], Awaitable[DatastoreId]]:
    """Ids of data stores that exist; the default one costs no look-up."""
    default = backend.embedded.default_datastore

    async def resolve(text: str) -> DatastoreId:
        if text == default:
            return default
        found = await backend.embedded.backend.get_datastore(DatastoreId(text))
        if found.status is not DatastoreStatus.ACTIVE:
            raise NotFound("There is no data store with this id.")
        return found.id

    return resolve


def _keep_freed_memory() -> None:
    """Frames come and go in pieces of half a megabyte, and by default each would be mapped and zeroed anew: a quarter
    of the price of sending one. What is kept instead is bounded."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    with suppress(OSError, AttributeError):  # another C library than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 4 << 20)
        libc.mallopt(trim_threshold, 32 << 20)


async def run_web(role: Role) -> None:
    """The web process, from its start to the end of its last request."""
    from .http.server import serve

    _keep_freed_memory()
    settings = role.settings
    assert role.listener is not None
    url = http_url(settings, role.listener)
    backend = open_backend(settings, "web")
    try:
        await serve(
            web_app(settings, backend, role),
            settings.http,
            role.listener,
            role.stop,
            on_listening=lambda: role.ready(http=url, datastoreId=backend.embedded.default_datastore),
            drain_s=SURFACE_DRAIN_S,
        )
    finally:
        backend.close()


async def run_dimse(role: Role) -> None:
    """The DIMSE process, from its start to the end of its last association."""
    from .dimse.server import DimseServer, DimseSettings, Peer

    settings = role.settings
    assert role.listener is not None
    host, port = bound_address(role.listener)
    backend = open_backend(settings, "dimse")
    try:
        server = DimseServer(
            DimseSettings(
                host=host,
                port=port,
                ae_title=settings.dimse.aet,
                titles={title: DatastoreId(store) for title, store in settings.dimse.titles.items()},
                peers=tuple(Peer(peer.title, peer.host, peer.port, peer.cidr) for peer in settings.dimse.peers),
                unknown_callers=settings.unknown_callers,
                max_associations=settings.dimse.max_associations,
                network_timeout_s=settings.dimse.patience_s,
            ),
            backend.embedded.staging,
            backend.embedded.backend,
            backend.embedded.backend,
            backend.embedded.default_datastore,
            telemetry.DimseMeter(),
        )
        await server.start(role.listener)
        role.ready(dimse=str(bound_address(role.listener)), aet=settings.dimse.aet)
        await role.stop.wait()
        await server.drain(SURFACE_DRAIN_S)
    finally:
        backend.close()


async def run_worker(role: Role) -> None:
    """A worker process, from its start to the end of the job in hand."""
    from .worker import serve

    backend = open_backend(role.settings, "worker")
    try:
        role.ready()
        await serve(backend.embedded.worker, role.stop)
    finally:
        backend.close()


MAINS: Final[Mapping[Kind, Callable[[Role], Coroutine[Any, Any, None]]]] = {
    "web": run_web,
    "dimse": run_dimse,
    "worker": run_worker,
}
"""What the processes of each kind do."""


def load() -> None:
    """Loads the modules that the processes need, so that those that are forked share them, and start in a moment."""
    for name in _SHARED:
        importlib.import_module(name)
