"""Bodies and instances larger than memory, in and out, with every process under a bound; and clients that dawdle.

    python -m campaigns.bounded --gb 2 --limit 500

Sends a STOW-RS body of many instances, one of a single multi-frame instance, and half as much in one instance by
C-STORE; reads everything back as frames and as instances and compares digests; and watches the resident memory of each
process.
"""

import argparse
import contextlib
import hashlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, CTImageStorage

from campaigns.dimse import Association
from campaigns.faces import Faces
from campaigns.instances import NATIVE
from campaigns.kill import until
from tests.makers import data_set, uid
from tests.running import RunningGateway, role_of

LIMIT_MB: Final = 500.0
_SIDE: Final = 1024
_FRAME_BYTES: Final = 2 * _SIDE * _SIDE
_FRAMES_A_REQUEST: Final = 50
_SETTLE_S: Final = 1800.0


@dataclass(frozen=True)
class Volume:
    """An instance of so many frames, made as it is sent: the same numbers, the same bytes."""

    seed: int
    study: int
    number: int
    frames: int

    @property
    def study_uid(self) -> str:
        return uid(self.seed, 77, self.study)

    @property
    def series_uid(self) -> str:
        return uid(self.seed, 77, self.study, 1)

    @property
    def sop(self) -> str:
        return uid(self.seed, 77, self.study, 1, self.number)

    @property
    def path(self) -> str:
        return f"/dicomweb/studies/{self.study_uid}/series/{self.series_uid}/instances/{self.sop}"

    def frame(self, index: int) -> bytes:
        """Native samples: noise that is another in each frame."""
        return (_noise(self.seed) ^ np.uint16((self.number * 31 + index) & 0xFFF)).tobytes()

    def data_set(self) -> Iterator[bytes]:
        """The data set in Explicit VR Little Endian, piece by piece."""
        made = data_set(self.study_uid, self.series_uid, self.sop, np.zeros((1, 8, 8), np.uint16))
        del made.PixelData
        made.Rows = made.Columns = _SIDE
        made.NumberOfFrames = self.frames
        made.InstanceNumber = self.number
        target = BytesIO()
        dcmwrite(target, made, implicit_vr=False, little_endian=True, enforce_file_format=False)
        yield target.getvalue() + b"\xe0\x7f\x10\x00OW\0\0" + (self.frames * _FRAME_BYTES).to_bytes(4, "little")
        for index in range(self.frames):
            yield self.frame(index)

    def part10(self) -> Iterator[bytes]:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(self.sop)
        meta.TransferSyntaxUID = UID(NATIVE)
        made = data_set(self.study_uid, self.series_uid, self.sop)
        made.file_meta = meta
        target = BytesIO()
        dcmwrite(target, made, enforce_file_format=True)
        whole = target.getvalue()
        yield whole[: 144 + int.from_bytes(whole[140:144], "little")]
        yield from self.data_set()


_noises: dict[int, "np.ndarray[tuple[int, int], np.dtype[np.uint16]]"] = {}


def _noise(seed: int) -> "np.ndarray[tuple[int, int], np.dtype[np.uint16]]":
    if seed not in _noises:
        tile = np.random.default_rng(seed).integers(0, 4096, (64, 64), dtype=np.uint16)
        _noises[seed] = np.tile(tile, (_SIDE // 64, _SIDE // 64))
    return _noises[seed]


@dataclass(slots=True)
class Step:
    """One thing that was done."""

    what: str
    seconds: float
    bytes: int
    peaks: dict[str, float]
    """MB resident, of the process of each role that had most."""


@dataclass(slots=True)
class Report:
    """What a campaign found."""

    limit_mb: float
    steps: list[Step] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            peaks = ", ".join(f"{role} {size:.0f}" for role, size in sorted(step.peaks.items()))
            size = step.bytes / 1e6
            rate = f"{size:8.0f} MB {size / step.seconds:6.0f} MB/s"
            lines.append(f"{step.what:34} {step.seconds:7.1f} s {rate}   RSS {peaks}")
        lines.append(f"machine {os.cpu_count()} cores")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


class Watch:
    """Samples the resident memory of every process of a gateway."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._own = psutil.Process(gateway.pid)
        self._peaks: dict[str, float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        roles: dict[int, str] = {}
        while not self._ended.wait(0.05):
            with contextlib.suppress(psutil.Error):
                for process in (self._own, *self._own.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        if process.pid not in roles:
                            roles[process.pid] = role_of(process)
                        role = roles[process.pid]
                        size = process.memory_info().rss / 2**20
                        self._peaks[role] = max(size, self._peaks.get(role, 0.0))

    def peaks(self) -> dict[str, float]:
        """Since the last call."""
        peaks, self._peaks = self._peaks, {}
        return peaks

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()


class Campaign:
    """Loads one gateway; `size_bytes` of pixels in a body."""

    def __init__(self, gateway: RunningGateway, size_bytes: int, seed: int, limit_mb: float) -> None:
        self._gateway = gateway
        self._seed = seed
        self._report = Report(limit_mb)
        frames = max(2, size_bytes // _FRAME_BYTES)
        self._many = [Volume(seed, 1, number, 1) for number in range(1, frames + 1)]
        self._one = Volume(seed, 2, 1, frames)
        self._cstore = Volume(seed, 3, 1, max(2, frames // 2))

    def run(self) -> Report:
        watch = Watch(self._gateway)
        try:
            for what, volumes, act in (
                ("STOW-RS, one body, many instances", self._many, lambda: self._stow(self._many)),
                ("STOW-RS, one instance", [self._one], lambda: self._stow([self._one])),
                ("C-STORE, one instance", [self._cstore], self._store),
            ):
                self._step(watch, what, volumes, act)
            for name, volumes in (
                ("many instances", self._many),
                ("STOW's one", [self._one]),
                ("C-STORE's one", [self._cstore]),
            ):
                self._step(watch, f"frames of {name}", volumes, lambda v=volumes: self._frames(v))
                self._step(watch, f"instances, native, {name}", volumes, lambda v=volumes: self._native(v))
            self._step(watch, "encoding the rest", [], self._encoded)
            for name, volumes in (
                ("many instances", self._many),
                ("STOW's one", [self._one]),
                ("C-STORE's one", [self._cstore]),
            ):
                self._step(watch, f"frames, encoded, of {name}", volumes, lambda v=volumes: self._frames(v))
                self._step(watch, f"instances, encoded, {name}", volumes, lambda v=volumes: self._native(v))
                self._step(watch, f"instances, stored, {name}", volumes, lambda v=volumes: self._stored(v))
            self._step(watch, "study, native, many instances", self._many, self._study)
        finally:
            watch.stop()
        return self._report

    def _step(self, watch: Watch, what: str, volumes: Sequence[Volume], act: Callable[[], None]) -> None:
        watch.peaks()
        began = time.monotonic()
        try:
            act()
        except (httpx.HTTPError, OSError, AssertionError) as fault:
            self._report.faults.append(f"{what}: {fault!r}"[:500])
        seconds = time.monotonic() - began
        peaks = watch.peaks()
        size = sum(volume.frames for volume in volumes) * _FRAME_BYTES
        self._report.steps.append(Step(what, seconds, size, peaks))
        print(str(self._report).splitlines()[len(self._report.steps) - 1], flush=True)
        for role, peak in peaks.items():
            if peak > self._report.limit_mb:
                self._report.faults.append(f"{what}: {role} had {peak:.0f} MB")

    # ------------------------------------------------------------ in

    def _stow(self, volumes: Sequence[Volume]) -> None:
        def body() -> Iterator[bytes]:
            for volume in volumes:
                yield b"--b\r\nContent-Type: application/dicom\r\n\r\n"
                yield from volume.part10()
                yield b"\r\n"
            yield b"--b--\r\n"

        headers = {
            "content-type": 'multipart/related; type="application/dicom"; boundary=b',
            "accept": "application/dicom+json",
        }
        url = f"{self._gateway.http}/dicomweb/studies"
        answer = httpx.post(url, headers=headers, content=body(), timeout=_SETTLE_S)
        if answer.status_code == 503:  # safe, and still being imported
            with Faces(self._gateway) as faces:
                assert until(lambda: not _busy(faces, "import"), _SETTLE_S)
            answer = httpx.post(url, headers=headers, content=body(), timeout=_SETTLE_S)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text[:300]}"
        assert len(answer.json()["00081199"]["Value"]) == len(volumes)

    def _store(self) -> None:
        association = Association(self._gateway.dimse, self._gateway.aet, (NATIVE,), timeout_s=300)
        status = association.store_pieces(self._cstore.sop, NATIVE, self._cstore.data_set())
        association.release()
        assert status == 0, f"C-STORE answered {status:04X}"
        with Faces(self._gateway) as faces:
            assert until(lambda: bool(faces.rows(f"/studies/{self._cstore.study_uid}/instances")), _SETTLE_S)

    def _encoded(self) -> None:
        with Faces(self._gateway) as faces:
            assert until(lambda: not _busy(faces, "encode"), _SETTLE_S)

    # ------------------------------------------------------------ out

    def _frames(self, volumes: Sequence[Volume]) -> None:
        accept = f'multipart/related; type="application/octet-stream"; transfer-syntax={NATIVE}'
        with httpx.Client(timeout=_SETTLE_S) as client:
            for volume in volumes:
                for start in range(0, volume.frames, _FRAMES_A_REQUEST):
                    indexes = range(start, min(volume.frames, start + _FRAMES_A_REQUEST))
                    path = f"{volume.path}/frames/{','.join(str(index + 1) for index in indexes)}"
                    with client.stream("GET", self._gateway.http + path, headers={"accept": accept}) as answer:
                        assert answer.status_code == 200, f"{path} {answer.status_code}"
                        for index, got in zip(indexes, _parts(answer), strict=True):
                            assert got == _digest([volume.frame(index)]), f"other pixels: frame {index + 1}"

    def _native(self, volumes: Sequence[Volume]) -> None:
        """Each instance in Explicit VR Little Endian: its pixels are the end of the file."""
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={NATIVE}'
        with httpx.Client(timeout=_SETTLE_S) as client:
            for volume in volumes:
                with client.stream("GET", self._gateway.http + volume.path, headers={"accept": accept}) as answer:
                    assert answer.status_code == 200, f"{volume.path} {answer.status_code}"
                    (got,) = _parts(answer, volume.frames * _FRAME_BYTES)
                assert got == _digest(volume.frame(index) for index in range(volume.frames)), "other pixels"

    def _stored(self, volumes: Sequence[Volume]) -> None:
        """Each instance as it is stored: that it comes whole is all that can be said of it here."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with httpx.Client(timeout=_SETTLE_S) as client:
            for volume in volumes:
                with client.stream("GET", self._gateway.http + volume.path, headers={"accept": accept}) as answer:
                    assert answer.status_code == 200, f"{volume.path} {answer.status_code}"
                    assert len(list(_parts(answer))) == 1

    def _study(self) -> None:
        accept = f'multipart/related; type="application/dicom"; transfer-syntax={NATIVE}'
        with (
            httpx.Client(timeout=_SETTLE_S) as client,
            client.stream(
                "GET",
                f"{self._gateway.http}/dicomweb/studies/{self._many[0].study_uid}",
                headers={"accept": accept},
            ) as answer,
        ):
            assert answer.status_code == 200, answer.status_code
            got = list(_parts(answer, _FRAME_BYTES))
        assert sorted(got) == sorted(_digest([volume.frame(0)]) for volume in self._many), "other pixels"


def _parts(answer: httpx.Response, last: int | None = None) -> Iterator[str]:
    """SHA-256 of each part's payload of a multipart answer, or of its last so many bytes, without holding it."""
    boundary = b"\r\n--" + answer.headers["content-type"].partition("boundary=")[2].split(";")[0].strip('"').encode()
    data = b"\r\n"
    digest: hashlib._Hash | None = None
    size = skip = 0
    source = answer.iter_bytes(1 << 20)
    ended = False
    while not ended:
        more = next(source, None)
        if more is None:
            raise AssertionError("the answer ends before its closing boundary")
        data += more
        while True:
            at = data.find(boundary)
            keep = len(boundary) + 512
            payload, data = (
                (data[:at], data[at:]) if at >= 0 else (data[:-keep], data[-keep:]) if len(data) > keep else (b"", data)
            )
            if digest is not None:
                cut = min(skip, len(payload))
                skip -= cut
                digest.update(payload[cut:])
                size += len(payload)
            if at < 0:
                break
            if digest is not None:
                yield digest.hexdigest()
            after = data[len(boundary) :]
            if after.startswith(b"--"):
                ended = True
                break
            if b"\r\n\r\n" not in after:
                digest = None
                break  # the headers of the part have not come whole
            head, _, data = after.partition(b"\r\n\r\n")
            digest, size, skip = hashlib.sha256(), 0, 0
            if last is not None:
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                skip = int(length[0].split(b":")[1]) - last


def _digest(pieces: "Sequence[bytes] | Iterator[bytes]") -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _busy(faces: Faces, kind: str) -> float:
    work = faces.queue()["work"].get(kind, {"waiting": 0, "running": 0})
    return float(work["waiting"] + work["running"])


def main(arguments: Sequence[str] | None = None) -> int:
    """The campaign as a command; 0 if all went well."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.bounded", description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0, help="of a STOW-RS body")
    parser.add_argument("--limit", type=float, default=LIMIT_MB, help="MB resident, of each process")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        gateway = RunningGateway(Path(scratch) / "data")
        try:
            report = Campaign(gateway, int(options.gb * 2**30), options.seed, options.limit).run()
        finally:
            gateway.close()
    print("\n".join(str(report).splitlines()[len(report.steps) :]))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
