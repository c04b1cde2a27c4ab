"""Frames: as stored, by `wrk` over 8 connections, beside the same bytes from memory under the same HTTP server.

    python -m benchmarks.frame [SECONDS]

`ratio` is the rate of the gateway divided by that of a bare ASGI application: the price of everything but HTTP.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from .harness import Missing, ct_series, free_port, report, running_gateway, send, wait_until_idle

_ACCEPT = "application/octet-stream; transfer-syntax=*"
_BARE = """
import sys, uvicorn
body = open(sys.argv[1], "rb").read()
headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
uvicorn.run(app, port=int(sys.argv[2]), loop="uvloop", http="httptools", lifespan="off", log_level="critical")
"""


@contextmanager
def bare_server(body: bytes) -> Iterator[str]:
    """The URL of a server that answers everything with `body`."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        process = subprocess.Popen([sys.executable, "-c", _BARE, file.name, str(port)])
        try:
            url = f"http://127.0.0.1:{port}/"
            for _ in range(600):
                try:
                    httpx.get(url)
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()
            process.wait()


def rate(urls: list[str], seconds: int, accept: str = _ACCEPT, *, warm: bool = True) -> float:
    """Requests a second over all URLs in turn, `warm` after a second of them that does not count.

    Raises RuntimeError where not every answer was good.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "urls.lua")
        paths = ", ".join(f'"/{url.split("/", 3)[3]}"' for url in urls)
        script.write_text(
            f'wrk.headers["Accept"] = "{accept}"\nlocal paths, i = {{{paths}}}, 0\n'
            'function request() i = i % #paths + 1; return wrk.format("GET", paths[i]) end\n'
        )
        command = ["wrk", "-t1", "-c8", "--timeout", "30s", "-s", str(script), urls[0]]
        if warm:
            subprocess.run([*command, "-d1s"], capture_output=True, check=True)
        said = subprocess.run([*command, f"-d{seconds}s"], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found is not None
    return float(found[1])


def main(seconds: int) -> None:
    if shutil.which("wrk") is None:
        raise Missing("wrk is not installed")
    instances = ct_series("frame", 50)
    with running_gateway() as gateway:
        send(gateway, instances)
        wait_until_idle(gateway)
        urls = [
            f"{gateway.http}/dicomweb/studies/{one.study}/series/{one.series}/instances/{one.sop}/frames/1"
            for one in instances
        ]
        body = httpx.get(urls[0], headers={"accept": _ACCEPT}).raise_for_status().content
        with bare_server(body) as bare:
            limit = rate([bare], seconds)
            ours = rate(urls, seconds)
    report("frame", {"bytes": float(len(body)), "ours_per_s": ours, "bare_per_s": limit, "ratio": ours / limit})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
