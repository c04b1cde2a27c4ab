"""Random histories of imports, edits, reverts and deletes: the invariants hold, and nothing acknowledged is lost."""

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from adapters.codecs.decoding import DecodePool
from gateway.domain.errors import Locked, NotFound, VersionConflict
from gateway.domain.ids import ImageSetId
from gateway.domain.model import ImageSetState
from tests.contract import invariants
from tests.contract.embedded import Store, close_process, open_store
from tests.contract.test_keeping import verify
from tests.databases import database_url
from tests.makers import instance, pixels, uid

ENGINES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgres"))]


@pytest.fixture(params=ENGINES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    pool, loop = DecodePool(1), asyncio.new_event_loop()
    with capture_logs(), database_url(request.param, tmp_path) as url:
        opened = open_store(tmp_path, url, pool, loop)
        yield opened
        opened.close()
    pool.close()
    loop.close()


class History:
    """Random operations, and what a store must remember of them."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.seen: dict[tuple[ImageSetId, int], bytes] = {}
        """The document of every version, as it was when it was the latest."""
        self.more: list[Callable[[], None]] = []
        """What else may happen."""

    def step(self) -> None:
        kinds = [self.imports] * 5 + [self.edits, self.edits_instance, self.reverts, self.studies, self.removes]
        kinds += [self.copies] * 3
        self.random.choice([*kinds, self.fails, self.deletes, *self.more])()
        self.store.work()
        if self.random.random() < 0.2:
            self.store.encode()
        for image_set in self.store.search():
            version = self.store.image_set(image_set).version
            body = self.store.document_bytes(image_set)
            assert self.seen.setdefault((image_set, version), body) == body

    def imports(self) -> None:
        jobs = []
        for _ in range(self.random.randint(1, 3)):
            files = []
            for _ in range(self.random.randint(1, 4)):
                study, series, number = (self.random.randint(1, n) for n in (2, 2, 4))
                files.append(
                    instance(
                        uid(study),
                        uid(study, series),
                        uid(study, series, number),
                        pixels(self.random.randint(1, 3), frames=self.random.randint(1, 2)),
                        InstanceNumber=self.random.choice([number, None]),
                        SeriesNumber=series,
                        PatientID=self.random.choice(["P1", "P1", "P1", "P2"]),
                        PatientName=self.random.choice(["A^B", "C^D", ""]),
                        Modality=self.random.choice(["CT", "MR"]),
                        StudyDescription=self.random.choice(["one", "two", None]),
                    )
                )
            jobs.append((files, self.store.submit(*files)))
        self.store.work()
        for files, job in jobs:
            outcomes = self.store.outcomes(job)
            assert len(outcomes) == len(files)
            assert all(outcome.failure is None and outcome.image_set for outcome in outcomes)

    def _some_set(self) -> tuple[ImageSetId, int] | None:
        living = self.store.search()  # in the order in which they were made: ids are random
        sets = [found for (found,) in self.store.rows("SELECT id FROM image_set ORDER BY pk") if found in living]
        if not sets:
            return None
        chosen = self.random.choice(sets)
        return chosen, self.store.image_set(chosen).version

    def _accept(self, **what: Any) -> None:
        chosen = self._some_set()
        if chosen is not None:
            self.store.accept(chosen[0], chosen[1], **what)

    def edits(self) -> None:
        self._accept(update={"Patient": {"DICOM": {"PatientName": self.random.choice(["X^Y", "Z^Z"])}}})

    def studies(self) -> None:
        self._accept(update={"Patient": {"DICOM": {"PatientID": self.random.choice(["P1", "P3"])}}}, study=True)

    def fails(self) -> None:
        self._accept(update={"Patient": {"DICOM": {"Modality": "MR"}}})

    def reverts(self) -> None:
        chosen = self._some_set()
        if chosen is not None:
            self.store.accept(chosen[0], chosen[1], revert=self.random.randint(1, chosen[1]))

    def _instance(self, node: dict[str, Any], member: str) -> None:
        chosen = self._some_set()
        if chosen is None:
            return
        ((series, content),) = self.store.document(chosen[0])["Study"]["Series"].items()
        if not content["Instances"]:  # a copy that failed
            return
        sop = self.random.choice(sorted(content["Instances"]))
        document = {"Study": {"Series": {series: {"Instances": {sop: node}}}}}
        if member == "update":
            self.store.accept(chosen[0], chosen[1], document)
        else:
            self.store.accept(chosen[0], chosen[1], remove=document)

    def edits_instance(self) -> None:
        self._instance({"DICOM": {"ImageComments": self.random.choice(["e", "f"])}}, "update")

    def removes(self) -> None:
        self._instance({}, "remove")

    def copies(self) -> None:
        source, target = self._some_set(), self._some_set()
        if source is None or target is None:
            return
        into = target if target[0] != source[0] and self.random.random() < 0.5 else None
        ((series, content),) = self.store.document(source[0])["Study"]["Series"].items()
        chosen = frozenset(sop for sop in content["Instances"] if self.random.random() < 0.7)
        promote = into is None and not self.store.image_set(source[0]).is_primary and self.random.random() < 0.7
        force = self.random.random() < 0.5
        self.store.accept_copy(source, into, instances={series: chosen}, force=force, promote=promote)

    def deletes(self) -> None:
        chosen = self._some_set()
        if chosen is not None:
            self.store.do(self.store.web.backend.delete(self.store.ref(chosen[0])))

    def purges(self) -> None:
        """What was deleted goes for good, and files of which little is needed are written anew."""
        self.store.blobs.close()  # so that none of them may still grow
        for _ in range(3):
            self.store.worker.worker.sweeper.sweep()

    def ends(self) -> None:
        """Nothing that was seen has changed."""
        self.store.encode()
        for (image_set, version), body in self.seen.items():
            try:
                assert self.store.document_bytes(image_set, version) == body
            except NotFound:
                assert image_set not in self.store.search()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_history_keeps_the_invariants(store: Store, seed: int) -> None:
    history = History(store, seed)
    for step in range(16):
        history.step()
        if step % 8 == 7:
            invariants.check(store)
    history.ends()
    invariants.check(store)
    invariants.check_rebuild(store)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_random_history_with_purges_keeps_them_too(
    store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("_retention_ms", "_grace_ms"):
        monkeypatch.setattr(store.worker.worker.sweeper, kind, -1000)
    history = History(store, seed)
    history.more = [history.deletes] * 3 + [history.purges] * 3
    for step in range(24):
        history.step()
        if step % 8 == 7:
            invariants.check(store)
    history.purges()
    history.ends()
    invariants.check(store)
    invariants.check_rebuild(store, purged=True)
    assert verify(store).is_sound
    assert store.rows("SELECT count(*) FROM image_set WHERE deleted_at IS NOT NULL AND visible > 0") == [(0,)]
    shown = "SELECT 1 FROM version v WHERE d.pk IN (v.levels_doc, v.overlay_doc, v.head_doc)"
    emptied = 34  # what is in a row that had the highest key
    assert store.rows(f"SELECT pk FROM doc d WHERE length(body)<>{emptied} AND NOT EXISTS ({shown})") == []


def test_threads_that_import_into_one_series_and_edit_it(store: Store) -> None:
    """No instance is lost, no number given twice, and everybody comes to an end."""
    study, series = uid(1), uid(1, 1)
    workers = [store.process("worker") for _ in range(4)]
    backend = store.web.backend
    stop = threading.Event()
    faults: list[BaseException] = []

    def serve(index: int) -> None:
        try:
            while not stop.is_set():
                if not workers[index].worker._work():
                    stop.wait(0.005)
        except BaseException as fault:
            faults.append(fault)

    (first,) = store.put(instance(study, series, uid(1, 1, 1), InstanceNumber=1))
    threads = [threading.Thread(target=serve, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    jobs = []
    try:
        for round_ in range(10):
            for n in range(4):
                number = 2 + round_ * 4 + n
                jobs.append(
                    store.submit(
                        instance(study, series, uid(1, 1, number), pixels(number), InstanceNumber=number)
                    )
                )
            for _ in range(200):
                try:
                    latest = store.image_set(first.image_set).version
                    store.accept(first.image_set, latest, {"Patient": {"DICOM": {"PatientName": f"N^{round_}"}}})
                    break
                except (VersionConflict, Locked):
                    continue  # an import or the edit before was faster
        for job in jobs:
            result = store.do(backend.result(job, 30))
            assert result is not None
            (outcome,) = result.outcomes
            assert (outcome.failure, outcome.is_primary, outcome.image_set) == (None, True, first.image_set)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert faults == []
    store.work()
    for worker in workers:
        close_process(worker)
    assert store.sops(study) == [uid(1, 1, number) for number in range(1, 42)]
    assert store.image_set(first.image_set).state == ImageSetState.ACTIVE
    invariants.check(store)
    invariants.check_rebuild(store)
    assert sum(made.workflow == "UPDATED" for made in store.versions(first.image_set)) > 6


_IMPORTER = """
import asyncio, sys
from pathlib import Path
from adapters.codecs.decoding import DecodePool
from tests.contract.embedded import close_process, open_process
from tests.databases import database_url
from tests.makers import instance, uid
from gateway.domain.model import Origin
data, url, datastore, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
pool = DecodePool(1)
process = open_process(data, url, "worker", pool)
print("ready", flush=True)
sys.stdin.readline()

async def main():
    jobs = []
    for n in range(8):
        sop = 1 + name * 8 + n
        sink = process.staging.open(Origin(datastore, "stow"))
        sink.write(instance(uid(1), uid(1, 1), uid(1, 1, sop), InstanceNumber=sop))
        item = sink.close()
        process.staging.sync()
        jobs.append(await process.backend.submit(datastore, [item]))
        process.worker._work()
    for job in jobs:
        while True:
            result = await process.backend.result(job, 0)
            if result is not None:
                break
            if not process.worker._work():
                await asyncio.sleep(0.005)
        assert result.outcomes[0].failure is None, result
asyncio.run(main())
close_process(process)
pool.close()
"""


def test_processes_that_import_into_one_series(store: Store) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = [sys.executable, "-c", _IMPORTER, str(store.data), store.url, store.datastore]
    running = [
        subprocess.Popen([*arguments, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for n in range(4)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
    for process in running:
        assert process.wait(60) == 0
        assert process.stdout is not None
        process.stdout.close()
    store.work()
    assert store.sops(uid(1)) == [uid(1, 1, n) for n in range(1, 33)]
    assert store.rows("SELECT count(*) FROM image_set") == [(1,)]
    invariants.check(store)
    invariants.check_rebuild(store)
