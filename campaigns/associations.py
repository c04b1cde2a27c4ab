"""A thousand associations that bring one instance each to one series: versions cost the same from first to last.

    python -m campaigns.associations --count 1000

Each instance is an import job and a version of its own. Time and bytes of the last hundred stand beside those of the
first: linear, not quadratic. Afterwards old versions are read, each with the members that it had.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from campaigns import invariants
from campaigns.dimse import Association
from campaigns.faces import INSTANCE, Faces, value
from campaigns.instances import NATIVE, make
from tests.running import RunningGateway

IMPORT_S: Final = 60.0
TIMES: Final = 2.0
"""The last hundred may take so many times the first: a busy machine, not a square, which would be ten times or more."""
BYTES: Final = 1.3


@dataclass(frozen=True, slots=True)
class Step:
    """A tenth of the associations. Seconds of sending, and until all is searchable; bytes that it added."""

    last: int
    send_s: float
    import_s: float
    database: int
    packs: int

    @property
    def total_s(self) -> float:
        return self.send_s + self.import_s

    @property
    def bytes(self) -> int:
        return self.database + self.packs


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    steps: list[Step]
    reads: list[tuple[str, int, float]] = field(default_factory=list)
    """What was read, how many instances it has, milliseconds."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = ["associations   send ms   then import ms   database bytes   pack bytes   (each, mean)"]
        first = 0
        for step in self.steps:
            n = step.last - first
            lines.append(
                f"{first + 1:5}-{step.last:<6} {step.send_s / n * 1000:9.2f} {step.import_s / n * 1000:16.2f} "
                f"{step.database / n:16.0f} {step.packs / n:12.0f}"
            )
            first = step.last
        one, other = self.steps[0], self.steps[-1]
        lines.append(
            f"last to first  time {other.total_s / one.total_s:.2f}, bytes {other.bytes / max(1, one.bytes):.2f}"
        )
        lines += [f"{what:22} {count:6} instances {took:8.1f} ms" for what, count, took in self.reads]
        lines.append(f"machine        {os.cpu_count()} cores")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


def run(gateway: RunningGateway, count: int, seed: int) -> Report:
    """Sends `count` instances, ten steps, and looks at what they became."""
    instances = [make(seed, 1, 1, number, NATIVE, (16, 16)) for number in range(1, count + 1)]
    study, series = instances[0].study, instances[0].series
    steps: list[Step] = []
    with Faces(gateway) as faces:
        before = _sizes(gateway)
        for step in range(1, 11):
            last = count * step // 10
            first = steps[-1].last if steps else 0
            began = time.monotonic()
            for instance in instances[first:last]:
                association = Association(gateway.dimse, gateway.aet, (NATIVE,))
                status = association.store(instance)
                association.release()
                if status:
                    raise AssertionError(f"C-STORE answered {status:04X}")
            sent = time.monotonic()
            _wait(faces, study, last)
            ended = time.monotonic()
            now = _sizes(gateway)
            steps.append(Step(last, sent - began, ended - sent, now[0] - before[0], now[1] - before[1]))
            before = now
        report = Report(steps)
        (image_set,) = (one["imageSetId"] for one in faces.image_sets(study))
        versions = [one.number for one in faces.versions(image_set)]
        if versions != list(range(1, count + 1)):
            report.faults.append(f"{len(versions)} versions of {count} associations")
        order = [instance.sop for instance in instances]
        for name, version in (("latest", None), ("middle", count // 2), ("version 10", 10)):
            began = time.monotonic()
            found = faces.metadata(study, series, version)
            took = (time.monotonic() - began) * 1000
            report.reads.append((f"DICOM JSON, {name}", len(found), took))
            if {value(one, INSTANCE) for one in found} != set(order[: version or count]):
                report.faults.append(f"{name} does not have the first {version or count} instances")
            began = time.monotonic()
            document = faces.document(image_set, version or count)
            took = (time.monotonic() - began) * 1000
            members = document["Study"]["Series"][series]["Instances"]
            report.reads.append((f"document, {name}", len(members), took))
            if set(members) != set(order[: version or count]):
                report.faults.append(f"the document of {name} does not have the first {version or count} instances")
    report.faults += invariants.broken(invariants.settings_of(gateway))
    return report


def _wait(faces: Faces, study: str, count: int) -> None:
    deadline = time.monotonic() + IMPORT_S
    while time.monotonic() < deadline:
        rows = faces.rows("/studies", StudyInstanceUID=study)
        if rows and int(value(rows[0], "00201208")) == count:
            return
        time.sleep(0.005)
    raise AssertionError(f"{count} instances are not searchable after {IMPORT_S:g} s")


def _sizes(gateway: RunningGateway) -> tuple[int, int]:
    """Bytes in use in the database, whatever of it lies in the log still, and in packs."""
    if "GATEWAY_DATABASE_URL" in gateway.environment:
        used = int(gateway.asked("SELECT pg_database_size(current_database())"))
    else:
        pages, free, size = (gateway.asked(f"PRAGMA {name}") for name in ("page_count", "freelist_count", "page_size"))
        used = (pages - free) * size
    folder = gateway.data / "pack"
    packs = sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0
    return used, packs


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if cost is linear and old versions are as they were."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.associations", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        gateway = RunningGateway(Path(scratch) / "data")
        try:
            report = run(gateway, options.count, options.seed)
        finally:
            gateway.close()
    one, other = report.steps[0], report.steps[-1]
    if other.total_s > TIMES * one.total_s:
        report.faults.append(f"the last hundred took {other.total_s / one.total_s:.1f} times the first")
    if other.bytes > BYTES * one.bytes:
        report.faults.append(f"the last hundred needs {other.bytes / one.bytes:.1f} times the bytes of the first")
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
