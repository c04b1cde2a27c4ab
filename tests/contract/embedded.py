"""An embedded store for tests: a web process's half and a worker's half over one data folder, driven step by step.

Nothing runs by itself: `work` does what a worker process would do, `encode` what its encoder would, so that every test
sees the states between.
"""

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from adapters.blobs.buckets import FolderBuckets
from adapters.blobs.derived import DerivedFolder
from adapters.blobs.folder import FolderBlobs
from adapters.blobs.quarantine import QuarantineFolder
from adapters.blobs.spool import Spool
from adapters.codecs.decoding import DecodePool
from adapters.codecs.registry import Codecs
from adapters.embedded.opening import Embedded, open_embedded
from adapters.embedded.publishing import Resent
from adapters.sql import schema
from adapters.sql.database import Database
from gateway.domain.edits import parse_update
from gateway.domain.ids import DatastoreId, ImageSetId
from gateway.domain.model import (
    CopyRequest,
    CopyResult,
    Document,
    ImageSet,
    ImageSetRef,
    ImageSetState,
    ImageSetSummary,
    Origin,
    Outcome,
    PageRequest,
    SearchCriteria,
    Selected,
    Selection,
    Staged,
)
from gateway.domain.query import DicomQuery, Key, Level, attribute, vr_of

T = TypeVar("T")

BASE = "http://host/dicomweb"


class Unmeasured:
    def imported(self, source: str, outcomes: Sequence[Outcome], seconds: float) -> None:
        pass


@dataclass
class Store:
    """A data store with the processes that serve it."""

    data: Path
    url: str
    resent: Resent
    decoder: DecodePool
    loop: asyncio.AbstractEventLoop
    web: Embedded
    worker: Embedded
    blobs: FolderBlobs
    datastore: DatastoreId

    # ------------------------------------------------------------ processes

    def process(self, role: str, resent: Resent | None = None) -> Embedded:
        """One more process over the same folder."""
        return open_process(self.data, self.url, role, self.decoder, resent or self.resent)

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def work(self, timeout_s: float = 20) -> None:
        """Runs what waits, until nothing does."""
        deadline = time.monotonic() + timeout_s
        while True:
            done = self.work_once()
            if not done and not self.rows("SELECT 1 FROM work WHERE state='waiting' LIMIT 1"):
                return
            assert time.monotonic() < deadline, self.rows("SELECT kind, state, attempts, error FROM work")
            if not done:
                time.sleep(0.01)  # what waits has a time before which it may not run

    def work_once(self) -> bool:
        worked = self.worker.worker._work()
        return self.worker.worker.importer.work() or worked

    def encode(self) -> None:
        while self.worker.worker.encoder._encode_some():
            pass

    def close(self) -> None:
        for process in (self.web, self.worker):
            close_process(process)

    # ------------------------------------------------------------ the data store

    def rows(self, sql: str, **params: Any) -> list[tuple[Any, ...]]:
        with self.web.database.read() as connection:
            return [tuple(row) for row in connection.execute(sa.text(sql), params)]

    def stage(self, *files: bytes, source: str = "stow", **origin: Any) -> list[Staged]:
        items = []
        for number, file in enumerate(files):
            sink = self.web.staging.open(
                Origin(self.datastore, source, name=str(number), **origin)  # type: ignore[arg-type]
            )
            sink.write(file)
            items.append(sink.close())
        self.web.staging.sync()
        return items

    def submit(self, *files: bytes, **origin: Any) -> Any:
        return self.do(self.web.backend.submit(self.datastore, self.stage(*files, **origin)))

    def outcomes(self, job: Any) -> list[Outcome]:
        result = self.do(self.web.backend.result(job, 0))
        assert result is not None, "the job has not ended"
        assert result.job.status == "COMPLETED", result.job.message
        return list(result.outcomes)

    def put(self, *files: bytes, **origin: Any) -> list[Outcome]:
        """Stores files as one job and answers what became of them."""
        job = self.submit(*files, **origin)
        self.work()
        return self.outcomes(job)

    # ------------------------------------------------------------ image sets

    def ref(self, image_set: ImageSetId | None, version: int | None = None) -> ImageSetRef:
        assert image_set is not None
        return ImageSetRef(self.datastore, image_set, version)

    def image_set(self, image_set: ImageSetId | None, version: int | None = None) -> ImageSet:
        return self.do(self.web.backend.get_image_set(self.ref(image_set, version)))

    def versions(self, image_set: ImageSetId | None) -> list[ImageSet]:
        return list(self.do(self.web.backend.list_versions(self.ref(image_set), PageRequest(1000))).items)

    def accept(
        self,
        image_set: ImageSetId | None,
        expected: int,
        update: dict[str, Any] | None = None,
        *,
        remove: dict[str, Any] | None = None,
        revert: int | None = None,
        **options: Any,
    ) -> ImageSet:
        """Asks for an edit; `work` applies it."""
        asked = parse_update(
            json.dumps(update).encode() if update is not None else None,
            json.dumps(remove).encode() if remove is not None else None,
            str(revert) if revert is not None else None,
            **options,
        )
        return self.do(self.web.backend.update_metadata(self.ref(image_set), expected, asked))

    def edit(
        self, image_set: ImageSetId | None, expected: int, update: dict[str, Any] | None = None, **rest: Any
    ) -> ImageSet:
        """An edit, applied."""
        self.accept(image_set, expected, update, **rest)
        self.work()
        made = self.image_set(image_set)
        assert made.state == ImageSetState.ACTIVE
        return made

    def accept_copy(
        self,
        source: tuple[ImageSetId | None, int],
        destination: tuple[ImageSetId | None, int] | None = None,
        **more: Any,
    ) -> CopyResult:
        """Asks for a copy, both image sets given with their versions; `work` carries it out."""
        target = destination and self.ref(*destination)
        return self.do(self.web.backend.copy(CopyRequest(self.ref(*source), target, **more)))

    def copy(
        self,
        source: tuple[ImageSetId | None, int],
        destination: tuple[ImageSetId | None, int] | None = None,
        **more: Any,
    ) -> ImageSet:
        """A copy, carried out: its destination."""
        accepted = self.accept_copy(source, destination, **more)
        self.work()
        assert self.image_set(source[0]).state == ImageSetState.ACTIVE
        made = self.image_set(accepted.destination.id)
        assert made.state == ImageSetState.ACTIVE
        return made

    def delete(self, image_set: ImageSetId | None) -> None:
        self.do(self.web.backend.delete(self.ref(image_set)))
        self.work()

    def document_bytes(self, image_set: ImageSetId | None, version: int | None = None) -> bytes:
        document = self.do(self.web.backend.get_metadata(self.ref(image_set, version)))
        assert document.gzip
        return document.body

    def document(self, image_set: ImageSetId | None, version: int | None = None) -> dict[str, Any]:
        return json.loads(gzip.decompress(self.document_bytes(image_set, version)))  # type: ignore[no-any-return]

    # ------------------------------------------------------------ instances

    def select(self, study: str, series: str | None = None, sop: str | None = None, **rest: Any) -> Selected:
        return self.do(self.web.backend.select(Selection(self.datastore, study, series, sop, **rest)))

    def sops(self, study: str, series: str | None = None, **rest: Any) -> list[str]:
        return [entry.sop_uid for entry in self.select(study, series, **rest).entries]

    def json(self, study: str, series: str | None = None, sop: str | None = None, **rest: Any) -> list[dict[str, Any]]:
        """The DICOM JSON of a selection."""
        entries = self.select(study, series, sop, **rest).entries
        plain: Document = self.do(self.web.backend.metadata(entries, BASE, gzip=False))
        packed: Document = self.do(self.web.backend.metadata(entries, BASE, gzip=True))
        assert (plain.gzip, packed.gzip) == (False, True)
        assert gzip.decompress(packed.body) == plain.body
        return json.loads(plain.body)  # type: ignore[no-any-return]

    # ------------------------------------------------------------ search

    def find(
        self, level: Level = Level.STUDY, as_of: datetime | None = None, **keys: str
    ) -> list[dict[str, Any]]:
        asked = tuple(
            Key(path, vr_of(path[-1]), (value,)) for keyword, value in keys.items() for path in [attribute(keyword)]
        )
        return self.do(self.web.backend.find(DicomQuery(self.datastore, level, asked, as_of=as_of))).rows

    def search(self) -> dict[ImageSetId, ImageSetSummary]:
        page = self.do(self.web.backend.search(self.datastore, SearchCriteria(), PageRequest(1000)))
        return {summary.id: summary for summary in page.items}


def open_process(
    data: Path,
    url: str,
    role: str,
    decoder: DecodePool,
    resent: Resent = "version",
    webhook: Callable[[bytes], None] | None = None,
) -> Embedded:
    return open_embedded(
        data=data,
        role=role,
        database=Database(url),
        blobs=FolderBlobs(data),
        derived=DerivedFolder(data / "cache", 1 << 30),
        spool=Spool(data, role),
        quarantine=QuarantineFolder(data),
        codec=Codecs(),
        decoder=decoder,
        metrics=Unmeasured(),
        resent=resent,
        buckets=FolderBuckets(data / "s3"),
        webhook=webhook,
    )


def close_process(process: Embedded) -> None:
    process.close()
    for folder in (process.staging, process.worker.blobs):
        assert isinstance(folder, Spool | FolderBlobs)
        folder.close()


def open_store(
    data: Path, url: str, decoder: DecodePool, loop: asyncio.AbstractEventLoop, resent: Resent = "version"
) -> Store:
    """A store over an empty or filled folder and database."""
    database = Database(url)
    schema.migrate(database)
    database.close()
    web = open_process(data, url, "web", decoder, resent)
    worker = open_process(data, url, "worker", decoder, resent)
    blobs = worker.worker.blobs
    assert isinstance(blobs, FolderBlobs)
    return Store(data, url, resent, decoder, loop, web, worker, blobs, web.default_datastore)


def value(document: dict[str, Any], keyword: str) -> Any:
    """The first value of an attribute in DICOM JSON; a person name's alphabetic form."""
    (tag,) = attribute(keyword)
    found = document[f"{tag:08X}"].get("Value", [None])[0]
    return found["Alphabetic"] if isinstance(found, dict) and "Alphabetic" in found else found
