"""Publication: CPU time of all processes for an instance, from its arrival to its frame as HTJ2K.

    python -m benchmarks.publish [COUNT]

`ratio` is the CPU time of encoding the frames and nothing else, divided by ours: 1 would be an import for nothing.
"""

import io
import sys
import time
from typing import Any

import imagecodecs
import pydicom

from .harness import cpu_seconds, ct_series, report, running_gateway, send, wait_until_idle


def encode_ms(instances: list[Any]) -> float:
    """CPU milliseconds to encode one frame, the mean of some."""
    arrays = [pydicom.dcmread(io.BytesIO(bytes(instance.data))).pixel_array for instance in instances[:20]]
    began = time.process_time()
    for array in arrays:
        imagecodecs.htj2k_encode(array, reversible=True)
    return (time.process_time() - began) * 1000 / len(arrays)


def main(count: int) -> None:
    instances = ct_series("publish", count)
    limit = encode_ms(instances)
    with running_gateway() as gateway:
        send(gateway, instances[:10])  # what only the first instances pay is not counted
        wait_until_idle(gateway)
        before, began = cpu_seconds(gateway), time.perf_counter()
        send(gateway, instances[10:])
        wait_until_idle(gateway)
        cpu_ms = (cpu_seconds(gateway) - before) * 1000 / (count - 10)
        rate = (count - 10) / (time.perf_counter() - began)
    report(
        "publish",
        {"cpu_ms_per_instance": cpu_ms, "encode_ms": limit, "ratio": limit / cpu_ms, "encoded_per_s": rate},
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
