"""Receipt: C-STORE over one association, beside the disk alone, which must have each instance before its answer.

    python -m benchmarks.receive [COUNT]

`ratio` is the rate of the gateway divided by that of one append and `fdatasync` an instance: group commit can exceed
it with more associations, never with one.
"""

import os
import sys
import time
from pathlib import Path

from .harness import ct_series, report, running_gateway, send


def disk_rate(folder: Path, bodies: list[bytes]) -> float:
    """Appends with a sync each, per second."""
    began = time.perf_counter()
    descriptor = os.open(folder / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for body in bodies:
            os.write(descriptor, body)
            os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    return len(bodies) / (time.perf_counter() - began)


def main(count: int) -> None:
    instances = ct_series("receive", count)
    with running_gateway() as gateway:
        limit = disk_rate(gateway.folder, [bytes(instance.data) for instance in instances])
        rate = len(instances) / send(gateway, instances)
    report("receive", {"instances_per_s": rate, "append_and_sync_per_s": limit, "ratio": rate / limit})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
