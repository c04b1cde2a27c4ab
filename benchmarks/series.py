"""A whole series of 100 CT as DICOM, by one `curl`: as stored, and in Explicit VR LE without and with cached frames.

    python -m benchmarks.series [REPETITIONS]

Each `..._ratio` is the time that the same bytes take from memory under the same HTTP server, divided by the gateway's:
1 is a gateway that costs nothing but HTTP. `cpu_ms` is of all its processes, for one instance.
"""

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from demo.gateway import Gateway

from .frame import bare_server
from .harness import Missing, cpu_seconds, ct_series, report, running_gateway, send, wait_until_idle

_COUNT = 100
_STORED = "*"
_NATIVE = "1.2.840.10008.1.2.1"
_FILLED_S = 30.0


def accept_of(syntax: str) -> str:
    return f'multipart/related; type="application/dicom"; transfer-syntax={syntax}'


def timed(url: str, accept: str) -> tuple[float, int]:
    """Seconds and bytes of one answer, read to its end and thrown away. Raises RuntimeError unless it was good."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_total} %{size_download}"]
    said = subprocess.run([*command, "-H", f"Accept: {accept}", url], capture_output=True, text=True).stdout.split()
    if said[0] != "200":
        raise RuntimeError(f"HTTP {said[0]}")
    return float(said[1]), int(said[2])


def measure(gateway: Gateway, url: str, syntax: str, repetitions: int, before: Callable[[], None]) -> dict[str, float]:
    """Medians: wall time, rate, CPU an instance, and what a server costs that has the bytes in memory."""
    accept = accept_of(syntax)
    body = httpx.get(url, headers={"accept": accept}).raise_for_status().content
    walls, cpu = [], 0.0
    with bare_server(body) as bare:
        timed(bare, accept)
        limits = []
        for _ in range(repetitions):
            before()
            began = cpu_seconds(gateway)
            walls.append(timed(url, accept)[0])
            cpu += cpu_seconds(gateway) - began
            limits.append(timed(bare, accept)[0])
    wall, limit = statistics.median(walls), statistics.median(limits)
    return {
        "ms": wall * 1000,
        "mb_per_s": len(body) / wall / 1e6,
        "cpu_ms": cpu / repetitions / _COUNT * 1000,
        "ratio": limit / wall,
    }


def cached(folder: Path) -> int:
    """Frames in the cache of a gateway."""
    return sum(1 for path in folder.glob("??/*") if not path.name.startswith("_"))


def main(repetitions: int) -> None:
    if shutil.which("curl") is None:
        raise Missing("curl is not installed")
    instances = ct_series("series", _COUNT)
    with running_gateway() as gateway:
        send(gateway, instances)
        wait_until_idle(gateway)
        folder = gateway.folder / "data" / "cache"
        url = f"{gateway.http}/dicomweb/studies/{instances[0].study}/series/{instances[0].series}"

        def empty() -> None:
            wait_until_quiet()
            for shard in folder.glob("??"):
                shutil.rmtree(shard)

        def wait_until_quiet() -> int:
            """Returns when nothing more comes into the cache: what is in it."""
            before, now = -1, cached(folder)
            while before != now:
                time.sleep(0.2)
                before, now = now, cached(folder)
            return now

        def fill() -> None:
            deadline = time.monotonic() + _FILLED_S
            while wait_until_quiet() < _COUNT:
                if time.monotonic() > deadline:
                    raise TimeoutError("the decoded frames are not in the cache")
                timed(url, accept_of(_NATIVE))

        figures = {"stored": measure(gateway, url, _STORED, repetitions, lambda: None)}
        figures["cold"] = measure(gateway, url, _NATIVE, repetitions, empty)
        figures["warm"] = measure(gateway, url, _NATIVE, repetitions, fill)
    report("series", {f"{case}_{name}": value for case, some in figures.items() for name, value in some.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
