"""`kill -9` of any process while instances and edits come in: nothing acknowledged is lost, doubled or half-visible.

    python -m campaigns.kill --points 100 --seed 1

Each point sends one study over several associations and STOW-RS clients while its image sets are edited, kills one
process at a random moment, lets the gateway mend, and compares what was acknowledged with what the public faces and the
database show. What the clients send and who is killed follow from the seed; the moment's place in the work does not.
"""

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped,unused-ignore]

from campaigns import clients, invariants
from campaigns.clients import Edit, Traffic
from campaigns.faces import INSTANCE, SERIES, Faces, Unexpected, Version, value
from campaigns.instances import Instance, make
from tests.running import RunningGateway

_CLIENTS: Final = (
    clients.associations,
    clients.associations,
    clients.stows,
    clients.stows,
    clients.edits,
    clients.edits,
)
VICTIMS: Final = ("supervisor", "web", "dimse", "worker", "decoder")
MEND_S: Final = 60.0
"""How long a gateway may take to have everything that it acknowledged in its searches."""
_DECODER_S = 5.0
"""How long to wait for a decode process to kill, best in the midst of its work: a compressed instance starts one."""


@dataclass(slots=True)
class Point:
    """One kill, and how it was mended."""

    number: int
    victim: str
    ready_s: float
    complete_s: float
    acknowledged: int
    edits: int
    failed_edits: int
    lost: list[str]
    duplicated: list[str]
    half_visible: list[str]
    """Everything else that is wrong, in words."""

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.duplicated or self.half_visible)


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    points: list[Point] = field(default_factory=list)
    at_the_end: list[str] = field(default_factory=list)
    leftovers: dict[str, int] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return not self.at_the_end and all(point.is_whole for point in self.points)

    def __str__(self) -> str:
        count = Counter(point.victim for point in self.points)
        ready, complete = (
            sorted(getattr(point, name) for point in self.points) for name in ("ready_s", "complete_s")
        )
        lines = [
            f"points        {len(self.points)}: " + ", ".join(f"{who} {count[who]}" for who in VICTIMS if count[who]),
            f"acknowledged  {sum(point.acknowledged for point in self.points)} instances, "
            f"{sum(point.edits for point in self.points)} edits "
            f"({sum(point.failed_edits for point in self.points)} ended as *_FAILED with a message)",
            f"lost          {sum(len(point.lost) for point in self.points)}",
            f"duplicated    {sum(len(point.duplicated) for point in self.points)}",
            f"half-visible  {sum(len(point.half_visible) for point in self.points) + len(self.at_the_end)}",
            f"ready again   median {statistics.median(ready):.2f} s, longest {ready[-1]:.2f} s after the kill",
            f"complete      median {statistics.median(complete):.2f} s, longest {complete[-1]:.2f} s after the kill",
            "left over     " + ", ".join(f"{number} {what}" for what, number in self.leftovers.items()),
            f"machine       {os.cpu_count()} cores",
        ]
        return "\n".join(lines + [f"  end: {fault}" for fault in self.at_the_end])


class Campaign:
    """Kills over one gateway and one data folder."""

    def __init__(self, gateway: RunningGateway, seed: int) -> None:
        self._gateway = gateway
        self._seed = seed
        self._random = random.Random(seed)
        self._studies: dict[str, dict[str, Instance]] = {}
        """Study -> what is known to lie in it."""

    def run(self, points: int, tell: bool = True) -> Report:
        """Kills `points` times, then looks at everything once more when all frames have been encoded."""
        report = Report()
        for number in range(1, points + 1):
            victim = VICTIMS[(number - 1 + self._seed) % len(VICTIMS)]
            point = self._point(number, victim)
            report.points.append(point)
            if tell:
                state = "whole" if point.is_whole else "BROKEN"
                print(
                    f"{number:4} {point.victim:10} {point.acknowledged:4} instances {point.edits:3} edits, ready "
                    f"{point.ready_s:5.2f} s, complete {point.complete_s:5.2f} s, {state}",
                    flush=True,
                )
                for fault in (*point.lost, *point.duplicated, *point.half_visible):
                    print(f"     {fault}", flush=True)
        with Faces(self._gateway) as faces:
            _until(lambda: not _backlog(faces, ("encode", "import", "update")), MEND_S)
            for study, instances in self._studies.items():
                report.at_the_end += half_visible(faces, study, instances)
            if faces.conflicts():
                report.at_the_end.append(f"{faces.conflicts()} conflicts, of instances that have none")
        report.at_the_end += invariants.broken(self._gateway.data)
        report.leftovers = invariants.leftovers(self._gateway.data)
        return report

    def _point(self, number: int, victim: str) -> Point:
        traffic = Traffic()
        stop = threading.Event()
        self._send_quiet_series(traffic, number)
        threads = clients.start(_CLIENTS, self._gateway, traffic, stop, self._seed, number)
        time.sleep(self._random.uniform(0.1, 2.0))
        victim, died = self._kill(victim)
        if number % 5:
            time.sleep(self._random.uniform(0.0, 0.5))
            stop.set()
        ready_s = self._mended(victim, died)
        stop.set()
        faults = clients.join(threads, MEND_S) + traffic.refused
        with Faces(self._gateway) as faces:
            studies = sorted({one.study for one in traffic.sent.values()})
            lost, late = self._settled(faces, traffic, studies)
            complete_s = time.monotonic() - died
            faults += late
            duplicated = []
            for study in studies:
                seen = Counter(value(row, INSTANCE) for row in faces.rows(f"/studies/{study}/instances"))
                duplicated += [f"duplicated: {sop} {count} times" for sop, count in seen.items() if count > 1]
                known = {sop: traffic.sent[sop] for sop in seen if sop in traffic.sent}
                faults += [f"never sent: {sop}" for sop in seen if sop not in traffic.sent]
                faults += half_visible(faces, study, known)
                self._studies[study] = known
            failed, wrong = edits_kept(faces, traffic.edits)
        faults += wrong + invariants.broken(self._gateway.data)
        acknowledged, edits = len(traffic.acknowledged), len(traffic.edits)
        return Point(
            number, victim, ready_s, complete_s, acknowledged, edits, failed, lost, duplicated, faults
        )

    def _send_quiet_series(self, traffic: Traffic, point: int) -> None:
        instances = [make(self._seed, point, clients.QUIET_SERIES, number) for number in (1, 2)]
        for instance in instances:
            traffic.sending(instance)
        with Faces(self._gateway) as faces:
            traffic.promised(sorted(faces.stow(instances)))

    # ------------------------------------------------------------ killing and mending

    def _kill(self, victim: str) -> tuple[str, float]:
        """Kills one process; which it was (a worker where no decode process came up), and when."""
        if victim == "supervisor":
            self._gateway.process.kill()
            return victim, time.monotonic()
        patience_s = _DECODER_S if victim == "decoder" else 20.0
        deadline = time.monotonic() + patience_s
        while True:
            late = time.monotonic() > deadline - patience_s / 2
            for process in self._processes(victim):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if victim != "decoder" or late or process.status() == psutil.STATUS_RUNNING:
                        process.send_signal(signal.SIGKILL)
                        return victim, time.monotonic()
            if time.monotonic() > deadline:
                return self._kill("worker")
            time.sleep(0.002)

    def _processes(self, role: str) -> list[psutil.Process]:
        """Processes of a role among the descendants of our own supervisor."""
        sign = "adapters.codecs.sandbox" if role == "decoder" else f"gateway {role} --link"
        found = []
        for process in psutil.Process(self._gateway.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if sign in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _mended(self, victim: str, died: float) -> float:
        """Seconds from the kill until `/readyz` is 200 and every process is up again."""
        if victim == "supervisor":
            self._gateway.kill()
            self._gateway.restart()
        else:
            time.sleep(0.05)  # the supervisor hears of a death at once; a decode process has nobody to wait for
        with Faces(self._gateway) as faces:
            if not _until(lambda: self._is_up(faces), MEND_S):
                raise AssertionError(f"the gateway does not mend:\n{self._gateway.log.read_text()[-3000:]}")
        return time.monotonic() - died

    def _is_up(self, faces: Faces) -> bool:
        if self._gateway.get("/readyz").status_code != 200:
            return False
        return all(state["up"] for state in faces.queue()["processes"].values())

    # ------------------------------------------------------------ looking

    def _settled(self, faces: Faces, traffic: Traffic, studies: Sequence[str]) -> tuple[list[str], list[str]]:
        """Waits until all that was acknowledged is found and nothing is locked: what is lost, what else is late."""
        missing: set[str] = set()
        locked: list[str] = []

        def is_settled() -> bool:
            found = {value(row, INSTANCE) for study in studies for row in faces.rows(f"/studies/{study}/instances")}
            missing.clear()
            missing.update(traffic.acknowledged - found)
            locked[:] = [
                one["imageSetId"]
                for study in studies
                for one in faces.image_sets(study)
                if faces.image_set(one["imageSetId"])["imageSetState"] == "LOCKED"
            ]
            return not missing and not locked and not _backlog(faces, ("import", "update"))

        if _until(is_settled, MEND_S):
            return [], []
        late = [f"LOCKED after {MEND_S:g} s: {one}" for one in locked]
        if not missing and not locked:
            late.append(f"work still in the queue after {MEND_S:g} s: {faces.queue()['work']}")
        return [f"lost: {sop} ({traffic.sent[sop].syntax})" for sop in sorted(missing)], late


# ---------------------------------------------------------------- looking


def half_visible(faces: Faces, study: str, known: dict[str, Instance]) -> list[str]:
    """What of a study does not agree: search, counts, metadata, frames, versions."""
    faults: list[str] = []
    by_series: dict[str, set[str]] = {}
    for row in faces.rows(f"/studies/{study}/instances"):
        by_series.setdefault(value(row, SERIES), set()).add(value(row, INSTANCE))
    listed = {value(row, SERIES): value(row, "00201209") for row in faces.rows(f"/studies/{study}/series")}
    if {series: str(len(sops)) for series, sops in by_series.items()} != listed:
        faults.append(f"series and instances of study {study} disagree: {listed}")
    (total,) = [value(row, "00201208") for row in faces.rows("/studies", StudyInstanceUID=study)] or ["0"]
    if int(total) != sum(map(len, by_series.values())):
        faults.append(f"study {study} counts {total} instances")
    if set().union(*by_series.values()) != set(known):
        faults.append(f"study {study} does not hold what it held")
    for series, sops in by_series.items():
        told = Counter(value(one, INSTANCE) for one in faces.metadata(study, series))
        if told != Counter(sops):
            faults.append(f"metadata of series {series}: {sum(told.values())} instances instead of {len(sops)}")
        for sop in sops & known.keys():
            try:
                if faces.frame(study, series, sop) != known[sop].frame:
                    faults.append(f"other pixels: {sop} ({known[sop].syntax})")
            except Unexpected as answer:
                faults.append(f"no pixels: {sop} ({known[sop].syntax}): {answer}")
    sets = faces.image_sets(study)
    if len(sets) != len(by_series):
        faults.append(f"study {study}: {len(sets)} image sets of {len(by_series)} series")
    for one in sets:
        versions = faces.versions(one["imageSetId"])
        numbers = [version.number for version in versions]
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"versions of {one['imageSetId']} have gaps: {numbers}")
        if any(version.state == "LOCKED" for version in versions):
            faults.append(f"a version of {one['imageSetId']} is LOCKED")
    return faults


def edits_kept(faces: Faces, edits: Sequence[Edit]) -> tuple[int, list[str]]:
    """How many accepted edits became *_FAILED with a message, and which were not kept."""
    failed = 0
    faults: list[str] = []
    versions: dict[str, dict[int, Version]] = {}
    for edit in edits:
        if edit.image_set not in versions:
            versions[edit.image_set] = {one.number: one for one in faces.versions(edit.image_set)}
        version = versions[edit.image_set].get(edit.version)
        name = f"edit of {edit.image_set} version {edit.version}"
        if version is None:
            faults.append(f"{name} is gone")
        elif version.workflow.endswith("_FAILED"):
            failed += 1
            if not version.message:
                faults.append(f"{name} is {version.workflow} without a message")
        else:
            document = faces.document(edit.image_set, edit.version)
            expected = edit.text
            if edit.revert is not None:
                expected = _description(faces.document(edit.image_set, edit.revert), edit.level)
            if _description(document, edit.level) != expected:
                faults.append(f"{name} ({version.workflow}) does not show what was asked")
    return failed, faults


def _series_of(document: dict[str, Any]) -> str:
    (series,) = document["Study"]["Series"]
    return str(series)


def _description(document: dict[str, Any], level: str) -> str | None:
    study = document["Study"]
    if level == "Study":
        found = study["DICOM"].get("StudyDescription")
    else:
        found = study["Series"][_series_of(document)]["DICOM"].get("SeriesDescription")
    return None if found is None else str(found)


def _backlog(faces: Faces, kinds: Sequence[str]) -> int:
    work = faces.queue()["work"]
    return sum(work[kind]["waiting"] + work[kind]["running"] for kind in kinds if kind in work)


def _until(done: Callable[[], bool], patience_s: float) -> bool:
    """Asks until it is so; False after `patience_s`. Errors of a mending gateway count as no."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(*clients.GONE, Unexpected):
            if done():
                return True
        time.sleep(0.02)
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.kill", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the data and the log, kept afterwards")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        gateway = RunningGateway(folder / "data")
        try:
            report = Campaign(gateway, options.seed).run(options.points)
        finally:
            gateway.stop()
    print(report)
    return 0 if report.is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
