"""Two writers, each a process with a connection to another web process, edit one image set at the same moment.

    python -m campaigns.races --races 200 --seed 1 [--database postgresql]

Each race is two UpdateImageSetMetadata with the same `latestVersionId`: exactly one is accepted, the next version is
what it asked for, and no version that anybody has read changes.
"""

import argparse
import base64
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import httpx

from campaigns import invariants
from campaigns.faces import Faces
from campaigns.instances import make
from tests.running import RunningGateway

WRITERS: Final = 2
_PATIENCE_S: Final = 60.0


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    races: int = 0
    wins: list[int] = field(default_factory=lambda: [0] * WRITERS)
    refusals: dict[str, int] = field(default_factory=dict)
    """By status and error type: what the losers were told."""
    took_ms: list[float] = field(default_factory=list)
    """From the start of a race until its version can be read."""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        told = ", ".join(f"{number} x {what}" for what, number in sorted(self.refusals.items()))
        took = sorted(self.took_ms) or [0.0]
        return "\n".join(
            [
                f"races     {self.races} in {self.seconds:.0f} s; won by the writers: {self.wins}",
                f"losers    {told}",
                f"readable  median {statistics.median(took):.0f} ms, longest {took[-1]:.0f} ms after the start",
                f"faults    {len(self.faults)}",
                f"machine   {os.cpu_count()} cores",
                *(f"  {fault}" for fault in self.faults),
            ]
        )


def _write(url: str, orders: Connection, start: Barrier) -> None:
    """A writer's life: connects when told to, then edits as soon as all of them are about to."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    with httpx.Client(base_url=url, timeout=_PATIENCE_S, limits=limits) as client:
        while (order := orders.recv()) is not None:
            if order == "connect":
                client.get("/livez").raise_for_status()
                orders.send("connected")
                continue
            path, latest, body = order
            start.wait(_PATIENCE_S)
            answer = client.post(path, params={"latestVersion": str(latest)}, content=body)
            orders.send((answer.status_code, answer.headers.get("x-amzn-errortype", "").partition(":")[0]))


@contextmanager
def _writers(gateway: RunningGateway) -> Iterator[list[Connection]]:
    """Writers, each connected to another web process as far as there are as many."""
    spawn = multiprocessing.get_context("spawn")
    start = spawn.Barrier(WRITERS)
    with ExitStack() as stack:
        writers = []
        for _ in range(WRITERS):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_write, args=(gateway.http, theirs, start), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, _PATIENCE_S)
            stack.callback(ours.close)
            stack.callback(ours.send, None)
            writers.append(ours)
        roles = gateway.roles("web")
        for number, writer in enumerate(writers):
            with gateway.only(roles[number % len(roles)]):
                writer.send("connect")
                assert writer.recv() == "connected"
        yield writers


def run(gateway: RunningGateway, races: int, seed: int) -> Report:
    """Races over one image set, and a look at all of its versions."""
    report = Report()
    began = time.monotonic()
    instance = make(seed, 1, 1, 1)
    with Faces(gateway) as faces, _writers(gateway) as writers, httpx.Client(timeout=_PATIENCE_S) as reader:
        assert faces.stow([instance]) == {instance.sop}
        (found,) = faces.image_sets(instance.study)
        image_set = found["imageSetId"]
        path = f"/datastore/{gateway.datastore}/imageSet/{image_set}"

        def digest(version: int) -> str:
            """Of the document's bytes as they are sent."""
            url = f"{gateway.http}{path}/getImageSetMetadata"
            with reader.stream("POST", url, params={"version": str(version)}, content=b"{}") as answer:
                answer.raise_for_status()
                return hashlib.sha256(b"".join(answer.iter_raw())).hexdigest()

        seen = {1: digest(1)}
        for latest in range(1, races + 1):
            started = time.monotonic()
            for number, writer in enumerate(writers):
                writer.send((f"{path}/updateImageSetMetadata", latest, _edit(_name(latest, number))))
            answers = [writer.recv() for writer in writers]
            winners = [number for number, (status, _) in enumerate(answers) if status == 200]
            for status, error in answers:
                if status != 200:
                    report.refusals[f"{status} {error}"] = report.refusals.get(f"{status} {error}", 0) + 1
            report.races += 1
            if len(winners) != 1 or not all(status in (200, 409, 404) for status, _ in answers):
                report.faults.append(f"race {latest}: {answers}")
                break
            made = _settled(faces, image_set)
            report.took_ms.append((time.monotonic() - started) * 1000)
            report.wins[winners[0]] += 1
            if (made["versionId"], made.get("imageSetWorkflowStatus")) != (str(latest + 1), "UPDATED"):
                report.faults.append(f"race {latest} made {made}")
                break
            name = faces.document(image_set, latest + 1)["Patient"]["DICOM"]["PatientName"]
            if name != _name(latest, winners[0]):
                report.faults.append(f"race {latest}: the version shows {name}, not what its winner asked for")
            if digest(latest) != seen[latest]:
                report.faults.append(f"version {latest} has changed")
            seen[latest + 1] = digest(latest + 1)
        numbers = [version.number for version in faces.versions(image_set)]
        if numbers != list(range(1, len(numbers) + 1)) or len(numbers) != len(seen):
            report.faults.append(f"versions with gaps: {numbers}")
        report.faults += [f"version {number} has changed" for number in seen if digest(number) != seen[number]]
    report.faults += invariants.broken(invariants.settings_of(gateway))
    report.seconds = time.monotonic() - began
    return report


def _name(race: int, writer: int) -> str:
    return f"Race{race}^Writer{writer}"


def _edit(name: str) -> bytes:
    document = json.dumps({"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": name}}}).encode()
    attributes = base64.b64encode(document).decode()
    return json.dumps({"DICOMUpdates": {"updatableAttributes": attributes}}).encode()


def _settled(faces: Faces, image_set: str) -> dict[str, Any]:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found = faces.image_set(image_set)
        if found["imageSetState"] != "LOCKED":
            return found
        assert time.monotonic() < deadline, f"LOCKED after {_PATIENCE_S:g} s"
        time.sleep(0.002)


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if each race had one winner and nothing changed."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.races", description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--web", type=int, default=2, help="web processes")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--database", help="sqlite, postgresql (a fresh one), or the SQLAlchemy URL of an empty one")
    options = parser.parse_args(arguments)
    environment = {"GATEWAY_HTTP__PROCESSES": str(options.web), "GATEWAY_WORKERS": str(options.workers)}
    with tempfile.TemporaryDirectory() as scratch:
        gateway = RunningGateway(Path(scratch) / "data", env=environment, database=options.database)
        try:
            report = run(gateway, options.races, options.seed)
        finally:
            gateway.close()
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
