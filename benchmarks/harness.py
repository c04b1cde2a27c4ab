"""What the benchmarks stand on: the harness (`BENCH_HARNESS`, default `../shared/bench`), data, ports, a gateway."""

import importlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped,unused-ignore]

from demo.gateway import ROOT, Gateway

HARNESS = Path(os.environ.get("BENCH_HARNESS", ROOT.parent / "shared" / "bench"))
CACHE = Path(os.environ.get("BENCH_CACHE", Path(tempfile.gettempdir()) / "imageset-gateway-bench"))
"""Where generated slices are kept between runs."""
_START_S = 60.0
_QUIET_S = 60.0


class Missing(Exception):
    """Something that the benchmark needs is not on this machine."""


def harness_module(name: str) -> Any:
    """A module of the harness. Raises Missing."""
    if not (HARNESS / "harness.py").exists():
        raise Missing(f"there is no harness in {HARNESS}; BENCH_HARNESS says where it lies")
    if str(HARNESS) not in sys.path:
        sys.path.append(str(HARNESS))
    try:
        return importlib.import_module(name)
    except ImportError as fault:
        raise Missing(f"the harness needs the Python package {fault.name}") from None


def ct_series(tag: str, count: int) -> list[Any]:
    """CT instances of 0.53 MB, by the harness's generator: with `study`, `series`, `sop`, `data` and `dataset()`."""
    CACHE.mkdir(parents=True, exist_ok=True)
    return list(harness_module("gen").CTSource(str(CACHE), count).series(tag, count))


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_gateway(*flags: str, **settings: str) -> Iterator[Gateway]:
    """A gateway with the default settings on an empty folder, but for flags of `serve` and settings (`GATEWAY_...`)."""
    with Gateway(*flags, **settings) as gateway:
        deadline = time.monotonic() + _START_S
        while not gateway.listens():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway does not listen after {_START_S:g} s")
            time.sleep(0.05)
        yield gateway


def wait_until_idle(gateway: Gateway) -> None:
    """Returns when nothing is waiting to be imported or encoded."""
    deadline = time.monotonic() + _QUIET_S
    while time.monotonic() < deadline:
        work = httpx.get(f"{gateway.http}/queue").json()["work"]
        if not any(state["waiting"] or state["running"] for state in work.values()):
            return
        time.sleep(0.1)
    raise TimeoutError(f"the gateway is still busy after {_QUIET_S:g} s")


def cpu_seconds(gateway: Gateway) -> float:
    """CPU time of all processes of a gateway."""
    root = psutil.Process(gateway.pid)
    return sum(sum(one.cpu_times()[:2]) for one in (root, *root.children(recursive=True)))


def send(gateway: Gateway, instances: list[Any]) -> float:
    """C-STOREs over one association by the harness's thin client; seconds from the first to the last answer."""
    dimse, gen = harness_module("rawdimse"), harness_module("gen")
    host, _, port = gateway.dimse.rpartition(":")
    association = dimse.Assoc(host, int(port), gateway.aet, "BENCH", [(gen.CT_CLASS, [gen.EXPLICIT_LE])])
    context = next(iter(association.ctx))
    data = [bytes(instance.dataset()) for instance in instances]
    began = time.perf_counter()
    for instance, body in zip(instances, data, strict=True):
        status = association.store(context, instance.sop_class, instance.sop, body)
        if status != 0:
            raise RuntimeError(f"C-STORE answered {status:04X}")
    took = time.perf_counter() - began
    association.release()
    return took


def report(name: str, figures: Mapping[str, float | str]) -> None:
    """One line of JSON on standard output."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"benchmark": name, **rounded}))
