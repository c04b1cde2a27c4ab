"""The clients that load a gateway in a campaign: modalities, STOW-RS senders, editors and readers.

Each runs in a thread until `stop`, takes what it sends from a seed, and sends again what was not acknowledged.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import httpx

from campaigns.dimse import Association, Lost
from campaigns.faces import INSTANCE, SERIES, Faces, Unexpected, value
from campaigns.instances import LARGE, NATIVE, SYNTAXES, Instance, make
from tests.running import RunningGateway

QUIET_SERIES: Final = 5
"""Sent before the others, and the only one that is reverted: going back takes away what has come since."""
GONE: Final = (httpx.HTTPError, Lost, OSError)
"""What a client meets when the process that it talks to dies."""
_SERIES = 3
_LARGE_SERIES = 4


@dataclass(frozen=True, slots=True)
class Edit:
    """An accepted update: the version that it promises, and what that version should say."""

    image_set: str
    version: int
    level: str
    text: str | None
    """Of the level's description; None for a revert."""
    revert: int | None = None


@dataclass(slots=True)
class Traffic:
    """What clients sent, and what the gateway promised them."""

    sent: dict[str, Instance] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    edits: list[Edit] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Answers that no working gateway gives."""
    interruptions: Counter[str] = field(default_factory=Counter)
    """Connections that ended, and 503s: ordinary where a process has just been killed, and nowhere else."""
    doomed: list[str] = field(default_factory=list)
    """Image sets that are to be deleted."""
    deleted: list[str] = field(default_factory=list)
    """Those whose deletion was accepted."""
    reads: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def sending(self, instance: Instance) -> None:
        with self.lock:
            self.sent[instance.sop] = instance

    def interrupted(self, what: str) -> None:
        with self.lock:
            self.interruptions[what] += 1

    def unexpected(self, answer: Unexpected) -> None:
        if answer.status == 503:
            self.interrupted("503")
        else:
            self.refused.append(str(answer))

    def promised(self, sops: Sequence[str]) -> None:
        with self.lock:
            self.acknowledged.update(sops)


class Client(Protocol):
    """What runs in a thread of its own: `client` tells it from the others that share a study."""

    __name__: str

    def __call__(
        self, gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
    ) -> None: ...


def instances(seed: int, point: int, client: int) -> Iterator[Instance]:
    """Without end: three series that all clients share, all syntaxes, a large one now and then."""
    choice = random.Random(f"{seed} {point} {client}")
    number = 0
    while True:
        number += 1
        place = client * 100_000 + number
        if client == 0 and number == 4 and point % 4 == 1:
            yield make(seed, point, _LARGE_SERIES, place, shape=LARGE)
        else:
            syntax = choice.choices(SYNTAXES, (4, 1, 1))[0]
            shape = (64, 64) if syntax == NATIVE else choice.choice(((64, 64), (512, 512)))
            yield make(seed, point, choice.randint(1, _SERIES), place, syntax, shape)


def associations(
    gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
) -> None:
    """A modality: association after association; what was not acknowledged is sent again."""
    choice = random.Random(f"{seed} {point} {client} associations")
    source = instances(seed, point, client)
    again: list[Instance] = []
    while not stop.is_set():
        batch = again + [next(source) for _ in range(choice.randint(1, 12))]
        again = []
        association: Association | None = None
        try:
            association = Association(gateway.dimse, gateway.aet)
            while batch:
                traffic.sending(batch[0])
                status = association.store(batch[0])
                if status == 0:
                    traffic.promised([batch[0].sop])
                else:
                    traffic.refused.append(f"C-STORE answered {status:04X} ({batch[0].syntax})")
                batch.pop(0)
            association.release()
        except GONE:
            if association is not None:
                association.close()
            traffic.interrupted("C-STORE")
            again = batch
            stop.wait(0.05)


def stows(
    gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
) -> None:
    """A STOW-RS client; a batch that got no answer is sent again."""
    choice = random.Random(f"{seed} {point} {client} stows")
    source = instances(seed, point, client)
    batch: list[Instance] = []
    with Faces(gateway) as faces:
        while not stop.is_set():
            batch = batch or [next(source) for _ in range(choice.randint(1, 8))]
            for instance in batch:
                traffic.sending(instance)
            try:
                stored = faces.stow(batch)
            except GONE:
                traffic.interrupted("STOW")
                stop.wait(0.05)
                continue
            except Unexpected as answer:
                traffic.unexpected(answer)
                stop.wait(0.05)
                continue
            traffic.promised(sorted(stored))
            traffic.refused += [f"STOW refused {one.sop} ({one.syntax})" for one in batch if one.sop not in stored]
            batch = []


def edits(
    gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
) -> None:
    """Somebody who describes the series and the study anew, and now and then goes back to an older version."""
    choice = random.Random(f"{seed} {point} {client} edits")
    count = 0
    with Faces(gateway) as faces:
        while not stop.is_set():
            try:
                stop.wait(0.02)
                with traffic.lock:
                    study = next((one.study for one in traffic.sent.values()), "")
                sets = faces.image_sets(study) if study else []
                if not sets:
                    continue
                target = choice.choice(sorted(sets, key=series_uid))
                image_set = target["imageSetId"]
                state = faces.image_set(image_set)
                latest = int(state["versionId"])
                if state["imageSetState"] == "LOCKED":
                    continue
                count += 1
                text = f"edit {point} {count}"
                kind = choice.choice(("series", "series", "study", "revert"))
                if series_uid(target).endswith(f".{QUIET_SERIES}") and latest > 2 and kind in ("revert", "series"):
                    back = choice.randint(1, latest - 1)
                    accepted = faces.update(image_set, latest, revert=back)
                    edit = Edit(image_set, latest + 1, "Series", None, back)
                elif kind == "study":
                    accepted = faces.update(
                        image_set, latest, set={"Study": {"DICOM": {"StudyDescription": text}}}, study=True
                    )
                    edit = Edit(image_set, latest + 1, "Study", text)
                else:
                    series = {series_uid(target): {"DICOM": {"SeriesDescription": text}}}
                    document = {"Study": {"Series": series}}
                    accepted = faces.update(image_set, latest, set=document)
                    edit = Edit(image_set, latest + 1, "Series", text)
                if accepted:
                    with traffic.lock:
                        traffic.edits.append(edit)
            except GONE:
                traffic.interrupted("edit")
                stop.wait(0.05)
            except Unexpected as answer:
                if answer.status != 409:  # in progress, by somebody else
                    traffic.unexpected(answer)


def deletes(
    gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
) -> None:
    """Somebody who cleans up: deletes the doomed image sets one after the other, each until it is accepted."""
    with Faces(gateway) as faces:
        while traffic.doomed and not stop.wait(0.2):
            try:
                if faces.delete(traffic.doomed[0]):
                    with traffic.lock:
                        traffic.deleted.append(traffic.doomed.pop(0))
            except GONE:
                traffic.interrupted("delete")
            except Unexpected as answer:
                traffic.unexpected(answer)


def reads(
    gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int, client: int
) -> None:
    """A viewer: lists studies, opens a series, and compares a frame with what was sent."""
    choice = random.Random(f"{seed} {point} {client} reads")
    with Faces(gateway) as faces:
        while not stop.is_set():
            try:
                faces.rows("/studies", PatientID=f"P{point}")
                with traffic.lock:
                    study = next((one.study for one in traffic.sent.values()), "")
                rows = faces.rows(f"/studies/{study}/instances") if study else []
                if not rows:
                    stop.wait(0.05)
                    continue
                row = choice.choice(rows)
                series, sop = value(row, SERIES), value(row, INSTANCE)
                faces.metadata(study, series)
                if faces.frame(study, series, sop) != traffic.sent[sop].frame:
                    traffic.refused.append(f"other pixels: {sop} ({traffic.sent[sop].syntax})")
                with traffic.lock:
                    traffic.reads += 1
            except GONE:
                traffic.interrupted("read")
                stop.wait(0.05)
            except Unexpected as answer:
                traffic.unexpected(answer)


def start(
    works: Sequence[Client], gateway: RunningGateway, traffic: Traffic, stop: threading.Event, seed: int, point: int
) -> list[threading.Thread]:
    """Starts clients that share a study, `point` of the seed."""

    def run(work: Client, place: int) -> None:
        try:
            work(gateway, traffic, stop, seed, point, place)
        except Exception as fault:  # a client that died unseen would let the gateway pass
            traffic.refused.append(f"{work.__name__} ended: {fault!r}")

    threads = [
        threading.Thread(target=run, args=(work, place), daemon=True) for place, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    return threads


def join(threads: Sequence[threading.Thread], patience_s: float) -> list[str]:
    """Waits for clients that have been told to stop; which of them do not."""
    for thread in threads:
        thread.join(patience_s)
    return [f"client {place} hangs" for place, thread in enumerate(threads) if thread.is_alive()]


def series_uid(summary: dict[str, Any]) -> str:
    """Of an image set, as SearchImageSets tells it."""
    return str(summary["DICOMTags"]["DICOMSeriesInstanceUID"])
