"""Pictures over 8 connections: made anew for each request, and out of memory.

    python -m benchmarks.rendered [SECONDS]

`ratio` is the rate of pictures that are made divided by the rate at which bare threads make them in this process.
"""

import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from adapters.codecs.registry import Codecs
from adapters.codecs.rendering import Pictures
from gateway.domain.display import Display, Window
from gateway.domain.pixels import PixelFormat
from gateway.domain.presentation import Rendering, View
from gateway.domain.syntaxes import HTJ2K_LOSSLESS_RPCL

from .frame import rate
from .harness import Missing, ct_series, report, running_gateway, send, wait_until_idle


def bare_rate(frame: bytes, seconds: float) -> float:
    """Pictures a second in two threads: decoding, window and JPEG, nothing else."""
    format = PixelFormat(512, 512, 1, 16, 16, True, "MONOCHROME2")
    codecs = Codecs()
    stored = codecs.encode(frame, format, HTJ2K_LOSSLESS_RPCL)
    view, wanted = View(Display(intercept=-1024.0, window=Window(40, 400))), Rendering("image/jpeg")
    pictures = Pictures(codecs)
    deadline = time.perf_counter() + seconds

    def work() -> int:
        count = 0
        while time.perf_counter() < deadline:
            pictures.render(stored, HTJ2K_LOSSLESS_RPCL, format, view, wanted)
            count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        counts = [job.result() for job in (pool.submit(work), pool.submit(work))]
    return sum(counts) / seconds


def main(seconds: int) -> None:
    if shutil.which("wrk") is None:
        raise Missing("wrk is not installed")
    instances = ct_series("rendered", 50)
    with running_gateway() as gateway:
        send(gateway, instances)
        wait_until_idle(gateway)
        urls = [
            f"{gateway.http}/dicomweb/studies/{one.study}/series/{one.series}/instances/{one.sop}" for one in instances
        ]
        rate([f"{url}/rendered" for url in urls], 1, "image/jpeg", warm=False)  # so that the process has begun to work
        made = [f"{url}/rendered?quality={quality}" for quality in range(95, 70, -1) for url in urls]
        sides = list(product(range(100, 129), repeat=2))
        small = [f"{url}/thumbnail?viewport={width},{height}" for width, height in sides for url in urls]
        figures = {
            "made_per_s": rate(made, seconds, "image/jpeg", warm=False),
            "kept_per_s": rate([f"{url}/rendered" for url in urls], seconds, "image/jpeg"),
            "thumbnails_made_per_s": rate(small, seconds, "image/jpeg", warm=False),
            "thumbnails_kept_per_s": rate([f"{url}/thumbnail" for url in urls], seconds, "image/jpeg"),
        }
    bare = bare_rate(bytes(instances[0].dataset())[-(512 * 512 * 2) :], seconds)
    report("rendered", {**figures, "bare_per_s": bare, "ratio": figures["made_per_s"] / bare})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
