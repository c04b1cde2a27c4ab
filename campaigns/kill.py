"""`kill -9` of any process while instances and edits come in: nothing acknowledged is lost, doubled or half-visible.

    python -m campaigns.kill --points 1000 --seed 1 [--database postgresql] [--web 2] [--workers 4]

In each round, one study is sent over several associations and STOW-RS clients while its image sets are edited and those
of the round before deleted, encoding and sweeping go on, and one process after the other is killed at a random moment.
Then the gateway is left to mend, and what was acknowledged is compared with what the public faces show; the whole store
is verified. What the clients send and who is killed follow from the seed; the moment's place in the work does not.
"""

import argparse
import contextlib
import os
import random
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped,unused-ignore]

from campaigns import clients, invariants
from campaigns.clients import Edit, Traffic
from campaigns.faces import INSTANCE, SERIES, Faces, Unexpected, Version, value
from campaigns.instances import Instance, make
from tests.running import RunningGateway, role_of

_CLIENTS: Final = (
    clients.associations,
    clients.associations,
    clients.stows,
    clients.stows,
    clients.edits,
    clients.edits,
    clients.deletes,
)
VICTIMS: Final[Mapping[str, int]] = {"supervisor": 1, "web": 3, "dimse": 3, "worker": 5, "decoder": 3}
"""Who is killed, and how often of fifteen times."""
ENVIRONMENT: Final = {"GATEWAY_SWEEP__EVERY": "1s", "GATEWAY_SWEEP__GRACE": "30s", "GATEWAY_RETENTION": "2s"}
"""Settings under which rubbish is swept within a few rounds."""
MEND_S: Final = 90.0
"""How long a gateway may take to have everything that it acknowledged in its searches."""
_PAUSE_S: Final = (0.05, 1.5)
"""Between two kills."""
_HUNT_S: Final = 1.0
"""How long to wait for a decode process in the midst of its work; then one that is idle will do, or another victim."""


@dataclass(slots=True)
class Round:
    """Some kills, and how they were mended."""

    number: int
    kills: list[str] = field(default_factory=list)
    mended: list[tuple[str, float]] = field(default_factory=list)
    """Role, and the seconds until it served again; of some kills another one came first."""
    complete_s: float = 0.0
    """From the last kill until all that was acknowledged is found and nothing waits."""
    acknowledged: int = 0
    edits: int = 0
    failed_edits: int = 0
    deleted: int = 0
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    half_visible: list[str] = field(default_factory=list)
    """Everything else that is wrong, in words."""

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.duplicated or self.half_visible)


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    rounds: list[Round] = field(default_factory=list)
    at_the_end: list[str] = field(default_factory=list)
    leftovers: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_whole(self) -> bool:
        return not self.at_the_end and all(one.is_whole for one in self.rounds)

    @property
    def kills(self) -> list[str]:
        return [victim for one in self.rounds for victim in one.kills]

    def __str__(self) -> str:
        count = Counter(self.kills)
        complete = sorted(one.complete_s for one in self.rounds)
        rounds = self.rounds
        lines = [
            f"kills         {len(self.kills)} in {len(rounds)} rounds and {self.seconds / 60:.1f} minutes: "
            + ", ".join(f"{who} {count[who]}" for who in VICTIMS if count[who]),
            f"acknowledged  {sum(one.acknowledged for one in rounds)} instances, "
            f"{sum(one.edits for one in rounds)} edits "
            f"({sum(one.failed_edits for one in rounds)} ended as *_FAILED with a message), "
            f"{sum(one.deleted for one in rounds)} deletions",
            f"lost          {sum(len(one.lost) for one in rounds)}",
            f"duplicated    {sum(len(one.duplicated) for one in rounds)}",
            f"half-visible  {sum(len(one.half_visible) for one in rounds) + len(self.at_the_end)}",
        ]
        for who in VICTIMS:
            times = sorted(took for one in rounds for role, took in one.mended if role.partition("-")[0] == who)
            if times:
                median = statistics.median(times)
                lines.append(f"mended        {who}: median {median:.2f} s, longest {times[-1]:.2f} s, of {len(times)}")
        lines += [
            f"complete      median {statistics.median(complete):.2f} s, longest {complete[-1]:.2f} s after a round",
            "left over     " + ", ".join(f"{number} {what}" for what, number in self.leftovers.items()),
            f"machine       {os.cpu_count()} cores",
        ]
        return "\n".join(lines + [f"  end: {fault}" for fault in self.at_the_end])


class Mending:
    """Watches when what was killed serves again."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.times: list[tuple[str, float]] = []
        self._gateway = gateway
        self._waiting: dict[str, tuple[int, float]] = {}
        """Role -> process id of the killed, and when."""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def killed(self, pid: int, at: float) -> None:
        with self._lock:
            self._waiting |= {role: (pid, at) for role, known in self._gateway.pids().items() if known == pid}

    def supervisor_killed(self, at: float, back: float) -> None:
        """Which takes all others along."""
        with self._lock:
            self._waiting.clear()
            self.times.append(("supervisor", back - at))

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with Faces(self._gateway) as faces:
            while not self._ended.wait(0.05):
                with self._lock:
                    waiting = dict(self._waiting)
                with contextlib.suppress(*clients.GONE, Unexpected, KeyError, ValueError):
                    if waiting and (states := faces.queue()["processes"]):
                        pids = self._gateway.pids()
                        self._note({role for role in waiting if states[role]["up"] and pids[role] != waiting[role][0]})

    def _note(self, back: set[str]) -> None:
        now = time.monotonic()
        with self._lock:
            for role in back & self._waiting.keys():
                self.times.append((role, now - self._waiting.pop(role)[1]))


class Campaign:
    """Kills over one gateway and one data folder."""

    def __init__(self, gateway: RunningGateway, seed: int) -> None:
        self._gateway = gateway
        self._seed = seed
        self._settings = invariants.settings_of(gateway)
        self._random = random.Random(seed)
        self._study = ""
        """Of the round before."""
        self._known: dict[str, Instance] = {}
        """What lies in it."""

    def run(self, points: int, a_round: int = 20, tell: bool = True) -> Report:
        """Kills `points` times, then looks at everything once more when all frames have been encoded."""
        report = Report()
        began = time.monotonic()
        number = 0
        while (left := points - len(report.kills)) > 0:
            number += 1
            done = self._round(number, min(left, a_round))
            report.rounds.append(done)
            report.seconds = time.monotonic() - began
            if tell:
                state = "whole" if done.is_whole else "BROKEN"
                print(
                    f"{len(report.kills):5} kills {report.seconds:6.0f} s: {done.acknowledged:4} instances "
                    f"{done.edits:3} edits {done.deleted:2} deletions, complete {done.complete_s:5.2f} s, {state}",
                    flush=True,
                )
                for fault in (*done.lost, *done.duplicated, *done.half_visible):
                    print(f"      {fault}", flush=True)
        with Faces(self._gateway) as faces:
            until(lambda: not _backlog(faces, ("encode", "import", "update", "delete")), MEND_S)
            report.at_the_end += half_visible(faces, self._study, self._known)
            if faces.conflicts():
                report.at_the_end.append(f"{faces.conflicts()} conflicts, of instances that have none")
        report.at_the_end += invariants.broken(self._settings)
        report.leftovers = invariants.leftovers(self._settings)
        report.seconds = time.monotonic() - began
        return report

    def _round(self, number: int, kills: int) -> Round:
        done = Round(number)
        traffic = Traffic()
        stop = threading.Event()
        before = self._study
        self._send_quiet_series(traffic, number)
        with Faces(self._gateway) as faces:
            traffic.doomed = [one["imageSetId"] for one in faces.image_sets(before)] if before else []
        threads = clients.start(_CLIENTS, self._gateway, traffic, stop, self._seed, number)
        mending = Mending(self._gateway)
        died = time.monotonic()
        try:
            while len(done.kills) < kills:
                time.sleep(self._random.uniform(*_PAUSE_S))
                victim, died = self._kill(self._random.choices(*zip(*VICTIMS.items(), strict=True))[0], mending)
                done.kills.append(victim)
            stop.set()
            with Faces(self._gateway) as faces:
                if not until(lambda: self._is_up(faces), MEND_S):
                    raise AssertionError(f"the gateway does not mend:\n{self._gateway.log.read_text()[-3000:]}")
        finally:
            stop.set()
            mending.stop()
        done.mended = mending.times
        faults = clients.join(threads, MEND_S) + traffic.refused
        with Faces(self._gateway) as faces:
            for doomed in traffic.doomed:  # what the client did not come to
                if not until(lambda doomed=doomed: faces.delete(doomed), MEND_S):  # type: ignore[misc]
                    faults.append(f"{doomed} cannot be deleted")
                traffic.deleted.append(doomed)
            studies = sorted({one.study for one in traffic.sent.values()})
            done.lost, late = self._settled(faces, traffic, studies)
            done.complete_s = time.monotonic() - died
            faults += late
            (study,) = studies
            seen = Counter(value(row, INSTANCE) for row in faces.rows(f"/studies/{study}/instances"))
            done.duplicated = [f"duplicated: {sop} {count} times" for sop, count in seen.items() if count > 1]
            known = {sop: traffic.sent[sop] for sop in seen if sop in traffic.sent}
            faults += [f"never sent: {sop}" for sop in seen if sop not in traffic.sent]
            faults += half_visible(faces, study, known)
            if before and (faces.rows("/studies", StudyInstanceUID=before) or faces.image_sets(before)):
                faults.append(f"study {before} was deleted and is still there")
            done.failed_edits, wrong = edits_kept(faces, traffic.edits)
        self._study, self._known = study, known
        done.half_visible = faults + wrong + invariants.broken(self._settings)
        done.acknowledged, done.edits = len(traffic.acknowledged), len(traffic.edits)
        done.deleted = len(traffic.deleted)
        return done

    def _send_quiet_series(self, traffic: Traffic, number: int) -> None:
        instances = [make(self._seed, number, clients.QUIET_SERIES, place) for place in (1, 2)]
        for instance in instances:
            traffic.sending(instance)
        with Faces(self._gateway) as faces:
            traffic.promised(sorted(faces.stow(instances)))

    # ------------------------------------------------------------ killing and mending

    def _kill(self, victim: str, mending: Mending) -> tuple[str, float]:
        """Kills one process, another one where none of this role is found; which it was, and when."""
        if victim == "supervisor":
            died = time.monotonic()
            self._gateway.kill()
            self._gateway.restart()
            mending.supervisor_killed(died, time.monotonic())
            return victim, died
        deadline = time.monotonic() + _HUNT_S
        while True:
            late = time.monotonic() > deadline - _HUNT_S / 2
            for process in self._processes(victim):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if victim != "decoder" or late or process.status() == psutil.STATUS_RUNNING:
                        process.send_signal(signal.SIGKILL)
                        died = time.monotonic()
                        if victim != "decoder":
                            mending.killed(process.pid, died)
                        return victim, died
            if time.monotonic() > deadline:
                victim, deadline = self._random.choice(("worker", "web", "dimse")), time.monotonic() + _HUNT_S
            time.sleep(0.002)

    def _processes(self, role: str) -> list[psutil.Process]:
        """Processes of a role among the descendants of our own supervisor."""
        found = []
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._gateway.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if role_of(process) == role:
                        found.append(process)
        return found

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
            return not missing and not locked and not _backlog(faces, ("import", "update", "delete"))

        if until(is_settled, MEND_S):
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
            try:
                document = faces.document(edit.image_set, edit.version)
                expected = edit.text
                if edit.revert is not None:
                    expected = _description(faces.document(edit.image_set, edit.revert), edit.level)
                if _description(document, edit.level) != expected:
                    faults.append(f"{name} ({version.workflow}) does not show what was asked")
            except Unexpected as answer:
                faults.append(f"{name} ({version.workflow}): {answer}")
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


def until(done: Callable[[], bool], patience_s: float) -> bool:
    """Asks until it is so; False after `patience_s`. Errors of a mending gateway count as no."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with contextlib.suppress(*clients.GONE, Unexpected):
            if done():
                return True
        time.sleep(0.02)
    return False


def lasting_ports() -> tuple[int, int]:
    """Two free ports that no connection of this machine is given while the gateway is down (below 32768)."""
    found: list[int] = []
    for port in random.Random(os.getpid()).sample(range(15_000, 32_000), 1000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == 2:
            return found[0], found[1]
    raise AssertionError("there are no free ports")


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.kill", description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100, help="kills")
    parser.add_argument("--round", type=int, default=20, help="kills before everything is looked at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--web", type=int, default=1, help="web processes")
    parser.add_argument("--database", help="sqlite, postgresql (a fresh one), or the SQLAlchemy URL of an empty one")
    parser.add_argument("--keep", type=Path, help="a folder for the data and the log, kept afterwards")
    options = parser.parse_args(arguments)
    several = {"GATEWAY_HTTP__PROCESSES": str(options.web), "GATEWAY_WORKERS": str(options.workers)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        gateway = RunningGateway(
            folder / "data", env={**ENVIRONMENT, **several}, ports=lasting_ports(), database=options.database
        )
        try:
            report = Campaign(gateway, options.seed).run(options.points, options.round)
        finally:
            gateway.close()
    print(report)
    return 0 if report.is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
