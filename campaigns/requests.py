"""A hundred thousand requests that no sound client sends: each gets an answer, soon, and no 5xx that has no cause.

    python -m campaigns.requests --count 100000 --seed 1

One gateway holds a sample of the corpus. Several connections ask it what `campaigns.hostile` and, for a part,
schemathesis make of its OpenAPI document (`campaigns.described`). Every answer has the form that its face gives to
answers, comes within five seconds, and no refusal tells what may be a patient's; no process dies, memory stays flat,
and what was stored reads as before. `--only N` sends request N of a seed alone, and prints it and its answer.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import re
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import pydicom

from campaigns import described, hostile, invariants, mixed, mutations
from campaigns.clients import series_uid
from campaigns.faces import Faces
from campaigns.hostile import CANARY, Held, Request, Stock
from campaigns.instances import NATIVE, make
from campaigns.kill import until
from campaigns.mutations import Source
from campaigns.report import Report
from tests.running import RunningGateway

SLOW_S: Final = 5.0
_PATIENCE_S: Final = 30.0
_SENDERS: Final = 6
_DESCRIBED: Final = 0.02
"""The part of all requests that schemathesis makes: each takes it tens of milliseconds of CPU."""
HELD: Final = 40
_VICTIMS: Final = 4
_RENEWED: Final = 500
"""Requests after which there are other victims: those before may be gone."""
_QUEUE_S: Final = 300.0
_SHOWN_BYTES: Final = 1500
ENVIRONMENT: Final = {"GATEWAY_TEST_STRICT": "0"}
"""What was stored with UIDs that are none is listed with them, which the service model of the API does not foresee."""
_DUE: Final = frozenset({(503, "overloaded"), (503, "throttled"), (507, "out-of-storage")})
"""What a gateway under load may answer: its code says so."""
_UNSEEN: Final = frozenset({(400, "text/plain"), (408, "application/problem+json"), (431, "application/problem+json")})
"""How the connection itself refuses."""
METHODS: Final = frozenset({"get", "post", "delete", "options"})
_FORMS: Final = frozenset({"application/dicom+json", "application/dicom+xml"})
"""In which a store tells that nothing was stored."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


# ---------------------------------------------------------------- stock


def stocked(gateway: RunningGateway, seed: int, size: int = HELD) -> Stock:
    """Stores a sample of about `size` files, and tells what requests are made of."""
    sources = mutations.sources()
    held = []
    with httpx.Client(base_url=gateway.http, timeout=60) as http:
        for source in sources[:: max(1, len(sources) // size)]:
            stored = http.post(
                "/dicomweb/studies", content=source.part10, headers={"content-type": "application/dicom"}
            )
            for item in stored.json().get("00081199", {}).get("Value", []):
                if found := _held(http, httpx.URL(item["00081190"]["Value"][0]).path):
                    held.append(found)
        api = f"/datastore/{gateway.datastore}"
        listed = http.post(f"{api}/searchImageSets?maxResults=50", json={}).json()["imageSetsMetadataSummaries"]
        frames = {}
        for one in sorted(one["imageSetId"] for one in listed):
            document = http.post(f"{api}/imageSet/{one}/getImageSetMetadata", json={}).text
            frames[one] = next(iter(re.findall(r'"ID": ?"([0-9a-f]{32})"', document)), "0" * 32)
    others = [found for source in sources[:: max(1, len(sources) // (4 * size))] if (found := _elsewhere(source))]
    arn = httpx.get(f"{gateway.http}{api}").json()["datastoreProperties"]["datastoreArn"]
    return Stock(gateway.datastore, arn, held, list(frames), frames, _victims(gateway, seed, 0), others, seed)


def _held(http: httpx.Client, path: str) -> Held | None:
    """What is to be had of an instance that was just stored; None where XML cannot hold its texts."""
    _, _, _, study, _, series, _, sop = path.split("/")
    read = http.get(f"{path}/metadata").content
    xml = http.get(f"{path}/metadata", headers={"accept": 'multipart/related; type="application/dicom+xml"'}).content
    if b"<?xml" not in xml:
        return None
    accept = f"application/octet-stream; transfer-syntax={NATIVE}"
    pixels = http.get(f"{path}/frames/1", headers={"accept": accept})
    pixelled = pixels.status_code == 200
    return Held(
        *(study, series, sop),
        frames=_frames(json.loads(read)[0]) if pixelled else 0,
        json=read,
        xml=xml[xml.index(b"<?xml") : xml.rindex(b">") + 1],
        pixels=pixels.content if pixelled else b"",
        bulk=re.findall(r"/bulkdata/([0-9A-F.]+)", read.decode()),
    )


def _frames(document: Mapping[str, Any]) -> int:
    told = str(document.get("00280008", {}).get("Value", [1])[0])
    return int(told) if told.isdecimal() else 1


def _elsewhere(source: Source) -> Source | None:
    """The same file of another study; None where there is no study to be seen."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # what pydicom cannot read is of no use here
        warnings.simplefilter("ignore")
        uid = str(pydicom.dcmread(BytesIO(source.part10), stop_before_pixels=True).StudyInstanceUID).encode()
        other = uid[:-2] + (b"77" if uid[-2:] != b"77" else b"78")
        if uid and uid in source.part10:  # deflated, it is not to be seen
            return replace(source, part10=source.part10.replace(uid, other))
    return None


def _victims(gateway: RunningGateway, seed: int, round: int) -> list[tuple[str, str, str]]:
    """Stores a few series that requests may change and delete."""
    made = [make(seed, 1000 + round, series, 1) for series in range(1, _VICTIMS + 1)]
    with Faces(gateway) as faces:
        faces.stow(made)
        found = {series_uid(one): str(one["imageSetId"]) for one in faces.image_sets(made[0].study)}
    return [(one.study, one.series, found.get(one.series, "0" * 32)) for one in made]


# ---------------------------------------------------------------- asking


class Connection:
    """One connection that is kept as long as the gateway keeps it; for one thread."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._address = httpx.URL(gateway.http)
        self._socket: socket.socket | None = None

    @property
    def host(self) -> str:
        return f"{self._address.host}:{self._address.port}"

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, request: Request) -> Answer:
        """Sends it and reads the answer; once more where a connection that was kept has gone meanwhile.

        Raises OSError, http.client.HTTPException.
        """
        if self._socket is not None:
            with contextlib.suppress(ConnectionError):  # also http.client's RemoteDisconnected
                return self._ask(self._socket, request)
            self.close()
        self._socket = self._connected()
        return self._ask(self._socket, request)

    def _ask(self, connected: socket.socket, request: Request) -> Answer:
        connected.sendall(request.wire(self.host))
        with http.client.HTTPResponse(connected, method=request.method) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, headers, response.read())
            if response.will_close:
                self.close()
        return answer

    def throw(self, raw: bytes) -> bytes:
        """Sends bytes over a connection of their own, ends that half of it, and reads until the gateway ends the other.

        Raises TimeoutError.
        """
        with self._connected() as connected:
            received = bytearray()
            try:
                connected.sendall(raw)
                connected.shutdown(socket.SHUT_WR)
            except TimeoutError:
                raise
            except OSError:
                pass  # the gateway has had enough of it already
            with contextlib.suppress(ConnectionError):
                while some := connected.recv(1 << 16):
                    received += some
            return bytes(received)

    def _connected(self) -> socket.socket:
        connected = socket.create_connection((self._address.host, self._address.port or 80), _PATIENCE_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected


def judged(connection: Connection, report: Report, request: Request, which: str) -> Answer | None:
    """Sends a request, and notes what is wrong with its answer. Of what is no request only a 5xx is wrong."""
    began = time.monotonic()
    answer, words = None, None
    try:
        if request.raw is not None:
            said = re.findall(rb"^HTTP/1\.1 (\d+)", connection.throw(request.raw), re.MULTILINE)
            status = int(said[-1]) if said else 0
            words = "answered 5xx" if any(one.startswith(b"5") for one in said) else None
        else:
            answer = connection.ask(request)
            status, words = answer.status, wrong(request, answer)
    except (OSError, http.client.HTTPException) as fault:
        connection.close()
        status, words = 0, f"no answer: {fault!r}"
    took = time.monotonic() - began
    report.note(request.kind, str(status or "-"), took, which)
    if words is not None:
        report.fault(_told(words, request, which))
    return answer


def _told(words: str, request: Request, which: str) -> str:
    """What is wrong with the answer to a request, with that as it went over the connection."""
    sent = request.wire("gateway")
    return f"{which}: {words}\n      {sent[:_SHOWN_BYTES]!r}" + (" ..." if len(sent) > _SHOWN_BYTES else "")


def wrong(request: Request, answer: Answer) -> str | None:
    """What no working gateway answers, in words."""
    status, kind = answer.status, answer.headers.get("content-type", "").partition(";")[0]
    shown = f"{status} {answer.body[:300]!r}"
    if "x-amzn-requestid" not in answer.headers:
        # What is no HTTP is refused before any face sees it.
        return None if (status, kind) in _UNSEEN else f"no request id: {shown}"
    if status < 400 or request.method == "HEAD" or kind in _FORMS:
        return f"answered {shown}" if status >= 500 else None
    try:
        told = json.loads(answer.body)
        code = told.get("code", "")
    except ValueError:
        return f"a refusal that is no JSON: {shown}"
    if status >= 500 and (status, code) not in _DUE:
        return f"answered {shown}"
    is_problem = kind == "application/problem+json" and told.get("status") == status and code
    is_fault = kind == "application/json" and "message" in told and "x-amzn-errortype" in answer.headers
    if not is_problem and not is_fault:
        return f"a refusal in no form: {shown}"
    return f"a refusal tells what was sent: {shown}" if CANARY.encode() in answer.body else None


# ---------------------------------------------------------------- the campaign


def run(gateway: RunningGateway, count: int, seed: int, held: int = HELD) -> Report:
    """Sends `count` requests about a sample of `held` files, and looks at the gateway afterwards."""
    report = Report(SLOW_S)
    stock = stocked(gateway, seed, held)
    _settle(gateway, report)
    prints = fingerprints(gateway, stock)
    before = gateway.pids()
    ended = threading.Event()
    watch = threading.Thread(target=mixed.watch, args=(gateway.pid, report.memory, ended), daemon=True)
    watch.start()
    began = time.monotonic()
    by_description = int(count * _DESCRIBED)

    def send(first: int) -> None:
        connection = Connection(gateway)
        for number in range(first, count - by_description, _SENDERS):
            if first == 0 and number // _SENDERS % (_RENEWED // _SENDERS) == 0 and number:
                stock.victims = _victims(gateway, seed, number)
            judged(connection, report, hostile.request(stock, number), f"request {number} of seed {seed}")
        connection.close()

    works: list[Callable[[], None]] = [lambda first=first: send(first) for first in range(_SENDERS)]  # type: ignore[misc]
    works.append(lambda: describe(gateway, stock, report, by_description))
    threads = [threading.Thread(target=_seen, args=(report, work)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.seconds = time.monotonic() - began
    _settle(gateway, report)
    ended.set()
    watch.join()
    report.faults += _aftermath(gateway, stock, prints, before)
    return report


def describe(gateway: RunningGateway, stock: Stock, report: Report, count: int) -> None:
    """Sends about `count` requests that schemathesis makes, and compares the answers with the OpenAPI document too.

    As many of each operation; none where there are more operations than that.
    """
    url = f"{gateway.http}/openapi.json"
    operations = sum(len(item.keys() & METHODS) for item in httpx.get(url).json()["paths"].values())
    connection = Connection(gateway)
    place = 0

    def use(case: described.Case) -> None:
        nonlocal place
        which = f"case {place} of seed {stock.seed}"
        place += 1
        request = described.request_of(case)
        answer = judged(connection, report, request, which)
        if answer is not None:
            for words in described.departures(case, answer.status, answer.headers, answer.body):
                report.fault(_told(words, request, which))

    each = count // operations
    described.every(url, stock, stock.seed, lambda _, mode: -(-each * 3 // 4) if mode.is_positive else each // 4, use)
    connection.close()


def _seen(report: Report, work: Callable[[], None]) -> None:
    try:
        work()
    except Exception as fault:  # a sender that died unseen would let the gateway pass
        report.fault(f"a sender ended: {fault!r}")


def _settle(gateway: RunningGateway, report: Report) -> None:
    with Faces(gateway) as faces:
        if not until(lambda: not mutations.waiting(faces), _QUEUE_S):
            report.fault(f"work still in the queue: {faces.queue()['work']}")


def fingerprints(gateway: RunningGateway, stock: Stock) -> dict[str, str]:
    """Of what is to be had of each instance that is held: metadata without what names a version, and frames."""
    found = {}
    with httpx.Client(base_url=gateway.http, timeout=60) as http:
        for held in stock.held:
            for path in ("/metadata", *(["/frames/1"] if held.pixels else [])):
                answer = http.get(f"/dicomweb{held.path}{path}")
                found[f"{held.path}{path}"] = f"{answer.status_code} {hashlib.sha256(answer.content).hexdigest()}"
    return found


def _aftermath(
    gateway: RunningGateway, stock: Stock, prints: Mapping[str, str], before: Mapping[str, int]
) -> Iterator[str]:
    """What should not be after all those requests."""
    ready = gateway.get("/readyz")
    if ready.status_code != 200:
        yield f"not ready afterwards: {ready.text[:300]}"
    after = gateway.pids()
    yield from (f"{role} died" for role, pid in before.items() if after[role] != pid)
    now = fingerprints(gateway, stock)
    for path, print in prints.items():
        if now[path] != print:
            yield f"reads otherwise than before ({print[:3]}, {now[path][:3]}): {path}"
    log = gateway.log.read_text()
    for word in ('"request_failed"', "Traceback", CANARY, CANARY.lower()):
        if word in log:
            line = next(line for line in log.splitlines() if word in line)
            yield f"{log.count(word)} times in the log: {word}, for example {line[:2000]}"
    if CANARY.lower() in gateway.get("/metrics").text.lower():
        yield "a patient's name in the metrics"
    yield from (
        fault for fault in invariants.broken(invariants.settings_of(gateway)) if "import" not in fault.partition(":")[0]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.requests", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="send this request of the seed alone, and print it and its answer")
    parser.add_argument("--keep", type=Path, help="a folder for the data and the log, kept afterwards")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        gateway = RunningGateway(folder / "data", env=ENVIRONMENT)
        try:
            if options.only is not None:
                request = hostile.request(stocked(gateway, options.seed), options.only)
                print(request.wire("gateway"))
                report = Report(SLOW_S)
                print(judged(Connection(gateway), report, request, f"request {options.only}"))
            else:
                report = run(gateway, options.count, options.seed)
        finally:
            gateway.close()
    report.faults += mixed.grown(report.memory)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
