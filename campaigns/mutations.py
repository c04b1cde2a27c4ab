"""Thousands of broken files by STOW-RS and C-STORE: each gets an answer, soon, and no process is the worse for it.

    python -m campaigns.mutations --count 10000 --seed 1

Real files (and synthetic ones where there is no corpus) are truncated, their bits flipped, their lengths, VRs and UIDs
replaced, pieces doubled, dropped and moved. What was stored all the same is read back: any answer will do but a 5xx.
Nothing may take longer than ten seconds, no process may die, and memory stays flat.
"""

import argparse
import contextlib
import random
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import httpx
import pydicom
import pydicom.data

from campaigns import invariants, mixed
from campaigns.clients import GONE
from campaigns.dimse import Association, Lost
from campaigns.faces import Faces
from campaigns.instances import SYNTAXES, make
from campaigns.kill import until
from campaigns.report import Report
from tests.corpus import CORPUS, manifest
from tests.running import RunningGateway

SLOW_S: Final = 10.0
_LARGEST: Final = 200_000
_SENDERS: Final = 2
_QUEUE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Source:
    """A sound file: where its data set begins, and what a C-STORE command says of it."""

    part10: bytes
    start: int
    sop_class: str
    sop: str
    syntax: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken file. `what` was done to it, `number` finds it again."""

    number: int
    what: str
    source: Source
    part10: bytes
    data_set: bytes

    def __str__(self) -> str:
        return f"file {self.number} ({self.what})"


# ---------------------------------------------------------------- files


def sources() -> list[Source]:
    """Sound files of many kinds, not large: the corpus, pydicom's, our own; in a fixed order."""
    files = []
    if CORPUS is not None:
        files = [CORPUS / record["path"] for record in manifest()]
    files += (Path(str(pydicom.data.__file__)).parent / "test_files").glob("*.dcm")
    found = [make(1, 1, 1, number, syntax).part10 for number, syntax in enumerate(SYNTAXES, 1)]
    for path in sorted(set(files)):
        with contextlib.suppress(OSError):
            if path.stat().st_size <= _LARGEST:
                found.append(path.read_bytes())
    known = []
    for data in found:
        with contextlib.suppress(Exception):  # whatever pydicom says of it: it is not sound
            meta = pydicom.dcmread(BytesIO(data), stop_before_pixels=True).file_meta
            start = 144 + meta.FileMetaInformationGroupLength
            sop_class, sop = str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID)
            if sop_class and sop:
                known.append(Source(data, start, sop_class, sop, str(meta.TransferSyntaxUID)))
    return known


def mutant(sound: Sequence[Source], seed: int, number: int) -> Mutant:
    """File `number` of a seed: always the same."""
    choice = random.Random(f"{seed} {number}")
    source = choice.choice(sound)
    data = bytearray(source.part10[source.start :])
    done = []
    for _ in range(choice.choice((1, 1, 2, 5))):
        if len(data) < 16:
            break
        mutate = choice.choice(_MUTATIONS)
        mutate(choice, data)
        done.append(mutate.__name__.strip("_"))
    head = bytearray(source.part10[: source.start])
    if choice.random() < 0.1:
        _bits(choice, head)
        done.append("head")
    return Mutant(number, "+".join(done), source, bytes(head + data), bytes(data))


def _bits(choice: random.Random, data: bytearray) -> None:
    for _ in range(choice.choice((1, 3, 30))):
        data[_place(choice, data)] ^= 1 << choice.randrange(8)


def _bytes(choice: random.Random, data: bytearray) -> None:
    at = _place(choice, data)
    count = choice.choice((1, 4, 64))
    data[at : at + count] = choice.randbytes(min(count, len(data) - at))


def _truncated(choice: random.Random, data: bytearray) -> None:
    del data[_place(choice, data) :]


def _dropped(choice: random.Random, data: bytearray) -> None:
    at = _place(choice, data)
    del data[at : at + choice.choice((1, 2, 8, 100))]


def _doubled(choice: random.Random, data: bytearray) -> None:
    at = _place(choice, data)
    piece = data[at : at + choice.choice((8, 100, 1000))]
    data[at:at] = piece * choice.choice((1, 1, 20))


def _moved(choice: random.Random, data: bytearray) -> None:
    at, to = _place(choice, data), _place(choice, data)
    piece = data[at : at + 64]
    del data[at : at + 64]
    data[to:to] = piece


def _length(choice: random.Random, data: bytearray) -> None:
    """What may be a length becomes another one."""
    at = _place(choice, data) & ~1
    value = choice.choice((0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, len(data), choice.getrandbits(32)))
    data[at : at + 4] = struct.pack("<I", value)


def _vr(choice: random.Random, data: bytearray) -> None:
    """The VR of some element, where it is explicit."""
    for _ in range(50):
        at = _place(choice, data) & ~1
        if bytes(data[at : at + 2]).isalpha() and bytes(data[at : at + 2]).isupper():
            data[at : at + 2] = choice.choice((b"SQ", b"UN", b"OB", b"US", b"DS", b"PN", b"UI", b"AT", b"ZZ", b"\0\0"))
            return


def _tag(choice: random.Random, data: bytearray) -> None:
    at = _place(choice, data) & ~1
    tags = (0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010, 0x00080018, 0x00280010, 0x00080005, 0x00020010)
    tag = choice.choice(tags)
    data[at : at + 4] = struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _nested(choice: random.Random, data: bytearray) -> None:
    """Sequences within sequences, deep."""
    at = _place(choice, data) & ~1
    one = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    data[at:at] = one * choice.choice((3, 70, 5000))


_MUTATIONS: Final[Sequence[Callable[[random.Random, bytearray], None]]] = (
    *(_bits, _bytes, _truncated, _dropped, _doubled, _moved, _length, _length, _vr, _tag, _nested),
)


def _place(choice: random.Random, data: bytearray) -> int:
    """Anywhere, but mostly in the header, where there is more to break."""
    if choice.random() < 0.7:
        return choice.randrange(min(len(data), 4000))
    return choice.randrange(len(data))


# ---------------------------------------------------------------- sending


def run(gateway: RunningGateway, count: int, seed: int) -> Report:
    """Sends `count` files both ways, reads what was stored, and waits until all is imported."""
    report = Report(SLOW_S)
    sound = sources()
    restarts = {role: gateway.restarts(role) for role in gateway.pids()}
    ended = threading.Event()
    watch = threading.Thread(target=mixed.watch, args=(gateway.pid, report.memory, ended), daemon=True)
    watch.start()
    began = time.monotonic()

    def work(way: Callable[[Mutant], None], first: int) -> None:
        for number in range(first, count, _SENDERS):
            try:
                way(mutant(sound, seed, number))
            except Exception as fault:  # a sender that died unseen would let the gateway pass
                report.fault(f"file {number}: {fault!r}")
                return

    with httpx.Client(timeout=120) as http:
        ways = [lambda one: _stow(gateway, http, report, one), lambda one: _store(gateway, report, one)]
        threads = [threading.Thread(target=work, args=(way, first)) for way in ways for first in range(_SENDERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Faces(gateway) as faces:
        if not until(lambda: not waiting(faces), _QUEUE_S):
            report.fault(f"work still in the queue: {faces.queue()['work']}")
    report.seconds = time.monotonic() - began
    ended.set()
    watch.join()
    report.faults += [f"{role} died" for role, before in restarts.items() if gateway.restarts(role) != before]
    settings = invariants.settings_of(gateway)
    report.faults += [fault for fault in invariants.broken(settings) if "failed to import" not in fault]
    return report


def waiting(faces: Faces) -> float:
    """How much work is not done yet."""
    work = faces.queue()["work"]
    return float(sum(numbers["waiting"] + numbers["running"] for kind, numbers in work.items() if kind != "quarantine"))


def _stow(gateway: RunningGateway, http: httpx.Client, report: Report, one: Mutant) -> None:
    headers = {"content-type": "application/dicom", "accept": "application/dicom+json"}
    began = time.monotonic()
    try:
        answer = http.post(f"{gateway.http}/dicomweb/studies", headers=headers, content=one.part10)
    except httpx.HTTPError as fault:
        report.fault(f"STOW-RS: {fault!r}, {one}")
        return
    report.note("STOW-RS", str(answer.status_code), time.monotonic() - began, str(one))
    if answer.status_code >= 500:
        report.fault(f"STOW-RS answered {answer.status_code}: {one}: {answer.text[:200]}")
        return
    for item in answer.json().get("00081199", {}).get("Value", []):
        url = item["00081190"]["Value"][0]
        path, question, query = url.partition("?")
        for resource in ("", "/metadata", "/frames/1"):
            began = time.monotonic()
            with contextlib.suppress(httpx.InvalidURL):  # a broken UID makes no URL
                try:
                    status = http.get(path + resource + question + query).status_code
                except httpx.RemoteProtocolError:  # a later frame cannot be decoded: the answer has begun by then
                    status = 0
                report.note(f"GET {resource}", str(status or "broken off"), time.monotonic() - began, str(one))
                if status >= 500:
                    report.fault(f"GET {resource} answered {status}: {one}")


def _store(gateway: RunningGateway, report: Report, one: Mutant) -> None:
    began = time.monotonic()
    try:
        source = one.source
        association = Association(
            gateway.dimse, gateway.aet, (source.syntax,), timeout_s=60, sop_class=source.sop_class
        )
        answer = "not negotiated"
        try:
            if association.takes(source.syntax):
                answer = f"{association.store_pieces(source.sop, source.syntax, [one.data_set or bytes(2)]):04X}"
            association.release()
        finally:
            association.close()
        report.note("C-STORE", answer, time.monotonic() - began, str(one))
    except (*GONE, Lost) as fault:
        report.fault(f"C-STORE: {fault!r}, {one}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the data and the log, kept afterwards")
    parser.add_argument("--save", type=int, help="write this file of the seed to ./mutant.dcm, and do nothing else")
    options = parser.parse_args(arguments)
    if options.save is not None:
        Path("mutant.dcm").write_bytes(mutant(sources(), options.seed, options.save).part10)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        gateway = RunningGateway(folder / "data")
        try:
            report = run(gateway, options.count, options.seed)
        finally:
            gateway.close()
    report.faults += mixed.grown(report.memory)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
