"""Modalities, STOW-RS senders, viewers and editors at once: no refusal, no 5xx, and memory that does not grow.

    python -m campaigns.mixed --seconds 60

Clients move on to a new study every few seconds, as patients do. Memory is what is a process's own (anonymous
resident), so that the mapped database does not count.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped,unused-ignore]

from campaigns import clients, invariants
from campaigns.clients import Traffic
from tests.running import RunningGateway, role_of

_CLIENTS: Final = (
    clients.associations,
    clients.associations,
    clients.stows,
    clients.stows,
    clients.reads,
    clients.reads,
    clients.edits,
)
ROUND_S: Final = 5.0
GROWTH: Final = 1.25
"""The last quarter's memory may be so many times the second quarter's, and `SLACK_MB`: caches fill in the first."""
SLACK_MB: Final = 32.0
_END_S = 60.0


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    seconds: float
    acknowledged: int = 0
    edits: int = 0
    reads: int = 0
    memory: dict[str, list[float]] = field(default_factory=dict)
    """MB of each process, once a second."""
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.seconds:.0f} s: {self.acknowledged} instances in, {self.reads} series and frames out, "
            f"{self.edits} edits",
            "memory, MB     second quarter   last quarter",
        ]
        for role, samples in sorted(self.memory.items()):
            before, after = quarters(samples)
            lines.append(f"{role:14} {before:14.0f} {after:14.0f}")
        lines.append(f"machine        {os.cpu_count()} cores")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


def run(gateway: RunningGateway, seconds: float, seed: int) -> Report:
    """Loads a gateway for so long."""
    report = Report(seconds)
    restarts = {role: gateway.restarts(role) for role in gateway.pids()}
    ended = threading.Event()
    watching = threading.Thread(target=watch, args=(gateway.pid, report.memory, ended), daemon=True)
    watching.start()
    interruptions: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    point = 0
    while (left := deadline - time.monotonic()) > 0:
        point += 1
        traffic, stop = Traffic(), threading.Event()
        threads = clients.start(_CLIENTS, gateway, traffic, stop, seed, point)
        stop.wait(min(ROUND_S, left))
        stop.set()
        report.faults += clients.join(threads, _END_S) + traffic.refused
        report.acknowledged += len(traffic.acknowledged)
        report.edits += len(traffic.edits)
        report.reads += traffic.reads
        interruptions += traffic.interruptions
    ended.set()
    watching.join()
    report.faults += [f"{count} times interrupted: {what}" for what, count in interruptions.items()]
    report.faults += [f"{role} died" for role, before in restarts.items() if gateway.restarts(role) != before]
    report.faults += invariants.broken(invariants.settings_of(gateway))
    return report


def grown(memory: Mapping[str, Sequence[float]]) -> list[str]:
    """The processes whose memory grew."""
    found = []
    for role, samples in memory.items():
        before, after = quarters(samples)
        if after > GROWTH * before + SLACK_MB:
            found.append(f"{role} grew from {before:.0f} to {after:.0f} MB")
    return found


def quarters(samples: Sequence[float]) -> tuple[float, float]:
    """Medians of the second and of the last quarter."""
    quarter = max(1, len(samples) // 4)
    return statistics.median(samples[quarter : 2 * quarter] or samples), statistics.median(samples[-quarter:])


def watch(supervisor: int, memory: dict[str, list[float]], ended: threading.Event) -> None:
    """Notes the memory of a gateway's processes, by role, once a second until `ended`."""
    own = psutil.Process(supervisor)
    while not ended.wait(1.0):
        sums: Counter[str] = Counter()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                resident = process.memory_info()
                sums[role_of(process)] += resident.rss - resident.shared
        for role, size in sums.items():
            memory.setdefault(role, []).append(size / 2**20)


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.mixed", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        gateway = RunningGateway(Path(scratch) / "data")
        try:
            report = run(gateway, options.seconds, options.seed)
        finally:
            gateway.close()
    report.faults += grown(report.memory)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
