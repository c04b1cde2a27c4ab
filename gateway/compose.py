"""The composition root: the only module that knows which adapters stand behind the ports.

Each role loads only what it runs: imports stand in the functions.
"""

import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import telemetry
from .domain.errors import NotFound
from .domain.ids import DatastoreId
from .domain.model import DatastoreStatus
from .settings import Settings
from .supervisor import SURFACE_DRAIN_S, Kind, Role, bound_address, http_url

if TYPE_CHECKING:
    from adapters.codecs.decoding import DecodePool
    from adapters.codecs.registry import Codecs
    from adapters.embedded.opening import Embedded
    from adapters.sql.database import Database

    from .http.problems import Asgi


@dataclass(slots=True)
class Backend:
    """What stands behind one process."""

    embedded: "Embedded"
    codecs: "Codecs"
    decoder: "DecodePool"

    def close(self) -> None:
        self.decoder.close()
        self.embedded.close()


def open_backend(settings: Settings, kind: Kind) -> Backend:
    """The backend, for a process of one kind. Raises Unavailable when its database cannot be reached."""
    from adapters.blobs.folder import FolderBlobs
    from adapters.blobs.spool import Spool
    from adapters.codecs.decoding import DecodePool
    from adapters.codecs.registry import Codecs
    from adapters.embedded.mutations import EditRules
    from adapters.embedded.opening import open_embedded

    # Threads here hand over at every database call, read and codec: the default of 5 ms is longer than most requests.
    sys.setswitchinterval(0.0005)
    reserve_bytes = settings.disk_reserve_mb << 20
    codecs, decoder = Codecs(), DecodePool()
    embedded = open_embedded(
        data=settings.data,
        role=kind,
        database=open_database(settings),
        blobs=FolderBlobs(settings.data, reserve_bytes=reserve_bytes),
        spool=Spool(settings.data, kind, reserve_bytes=reserve_bytes),
        codec=codecs,
        decoder=decoder,
        metrics=telemetry.ImportMeter(),
        resent=settings.store.resent,
        rules=EditRules(settings.hi.strict_removal, settings.hi.legacy_uids),
    )
    return Backend(embedded, codecs, decoder)


def open_database(settings: Settings) -> "Database":
    """The database of the settings; nothing is sent to it yet."""
    from adapters.sql.database import Database

    if settings.database_url is not None:
        return Database(settings.database_url.get_secret_value())
    return Database(f"sqlite:///{settings.data.absolute() / 'gateway.db'}")


def migrate(settings: Settings) -> str | None:
    """Brings the database to this release's schema, and returns its revision. Raises Unavailable, Conflict."""
    from adapters.sql import schema

    settings.data.mkdir(parents=True, exist_ok=True)
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


def missing_codecs() -> dict[str, str]:
    """Transfer syntax -> why it cannot be decoded; such instances are kept and passed on as received."""
    from adapters.codecs.registry import Codecs

    return Codecs().missing()


def web_app(settings: Settings, backend: Backend, role: Role) -> "Asgi":
    """The HTTP application over a backend."""
    from adapters.sql.status import Status

    from .dicomweb.exchange import DicomwebServices
    from .dicomweb.routes import DicomwebApp
    from .healthimaging.endpoint import HealthImagingApp
    from .http.app import build_app
    from .http.health import Operations
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
        retrieve=Retrieve(port, backend.codecs, backend.decoder.decode, decoding, missing),
        store=Store(backend.embedded.staging, port),
        search=Search(port, port),
        intake=port,
        public_url=settings.http.public_url,
        empty_qido_status=settings.qido.empty,
    )
    return build_app(
        settings,
        dicomweb=DicomwebApp(services),
        healthimaging=HealthImagingApp(port, settings.region, settings.account),
        operations=Operations(
            Status(backend.embedded.database),
            settings.data,
            settings.disk_reserve_mb << 20,
            lambda: role.processes,
            {"datastoreId": default, "dimse": role.dimse, "aet": settings.dimse.aet},
        ),
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


async def run_web(role: Role) -> None:
    """The web process, from its start to the end of its last request."""
    from .http.server import serve

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
