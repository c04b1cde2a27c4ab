"""An import that fails as a whole is told of each of its instances, never as an error of the server's."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from gateway.domain.ids import DatastoreId, JobId
from gateway.domain.model import ConflictEntry, Origin, Outcome, Page, PageRequest, Staged
from gateway.ports import Buffer
from gateway.services.store import PROCESSING_FAILURE, Part, Store

STORE = DatastoreId("0" * 32)


class Spool:
    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def write(self, data: Buffer) -> None: ...

    def close(self) -> Staged:
        return Staged("segment", 0, 1, self._origin)

    def abort(self) -> None: ...


class Failing:
    """A staging and an intake whose jobs all fail."""

    def admit(self) -> None: ...

    def open(self, origin: Origin) -> Spool:
        return Spool(origin)

    def sync(self) -> None: ...

    def announce(self, job: JobId, items: Sequence[Staged]) -> None: ...

    async def submit(self, datastore: DatastoreId, items: Sequence[Staged], job: JobId | None = None) -> JobId:
        return JobId("1" * 32)

    async def imported(
        self, datastore: DatastoreId, items: Sequence[Staged], timeout_s: float
    ) -> Sequence[Outcome] | None:
        return ()

    async def conflicts(self, datastore: DatastoreId, page: PageRequest) -> Page[ConflictEntry]:
        raise NotImplementedError


async def parts() -> AsyncIterator[Part | Buffer]:
    for number in (1, 2, 3):
        yield Part(f"part {number}", "not DICOM" if number == 2 else None)
        yield b"bytes"


def test_each_instance_of_a_failed_job_is_answered() -> None:
    failing = Failing()
    outcomes = asyncio.run(Store(failing, failing).receive(STORE, parts()))
    assert [outcome.failure for outcome in outcomes] == [PROCESSING_FAILURE, 0xC000, PROCESSING_FAILURE]
    assert [outcome.message.partition(":")[0] for outcome in outcomes] == ["part 1", "part 2", "part 3"]
