"""Supervised decoding: what comes out is right, and a codec that crashes, hangs or gorges costs one instance."""

import ctypes
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from adapters.codecs import codestream, wire
from adapters.codecs.decoding import DecodePool
from adapters.codecs.native import Samples
from adapters.codecs.registry import Codecs, Decoder, Encoder
from gateway.domain import syntaxes
from gateway.domain.encapsulation import (
    TRANSCODING_EXCEPTION,
    UNSUPPORTED_TRANSFER_SYNTAX,
    Buffer,
    Extent,
    PixelFault,
    encapsulate,
    frame_extents,
)
from gateway.domain.errors import NotAcceptable, Unavailable
from gateway.domain.pixels import PixelFormat

RPCL, JLS, RLE = syntaxes.HTJ2K_LOSSLESS_RPCL, syntaxes.JPEG_LS_LOSSLESS, syntaxes.RLE
FORMAT = PixelFormat(160, 300, 1, 16, 12, False, "MONOCHROME2")
HOSTILE = f"{__name__}:hostile"
LINUX = sys.platform == "linux"


def picture(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    rows, columns = np.indices((FORMAT.rows, FORMAT.columns))
    noise = np.random.default_rng(seed).integers(0, 9, (FORMAT.rows, FORMAT.columns))
    return ((rows * 7 + columns * 3 + noise) % 4096).astype("<u2")


def hostile(decoders: dict[str, Decoder], encoders: dict[str, Encoder]) -> None:
    """A plug-in whose private syntaxes and one of DICOM's misbehave, as codec libraries have been seen to do."""
    genuine = decoders[JLS]

    def decode(data: Buffer, format: PixelFormat) -> Samples:
        match bytes(data[:5]):
            case b"crash":
                ctypes.string_at(0)
            case b"abort":
                os.abort()
            case b"exits":
                os._exit(0)
            case b"hangs":
                ctypes.CDLL(None).pause()
            case b"gorge":
                return np.ones(1 << 32, np.uint8)
            case b"fails":
                raise RuntimeError("bad marker")
            case b"wrong":
                return np.zeros((3, 3), np.uint8)
        return genuine(data, format)

    decoders[JLS] = decode


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def fragile() -> Iterator[DecodePool]:
    pool = DecodePool(2, plug_ins=[HOSTILE], frame_timeout_s=2.0, memory_bytes=512 << 20)
    yield pool
    pool.close()


def written(folder: Path, frames: list[bytes], syntax: str) -> tuple[str, int, list[list[Extent]]]:
    lead = b"what stands before"
    value = b"".join(encapsulate(frames))
    path = folder / "received"
    path.write_bytes(lead + value)
    return str(path), len(lead), frame_extents(value, 0, len(value), syntax, len(frames))


def jls(seed: int) -> bytes:
    return bytes(imagecodecs.jpegls_encode(picture(seed)))


# --- what comes out -----------------------------------------------------------------------------------------------


def test_frames_are_measured_and_stored_in_the_lossless_format(pool: DecodePool, tmp_path: Path) -> None:
    format = replace(FORMAT, frames=3)
    ingestion = pool.ingest(*written(tmp_path, [jls(n) for n in range(3)], JLS), JLS, format)
    with pytest.raises(ValueError, match="not all been taken"):
        _ = ingestion.digest
    natives = [picture(n).tobytes() for n in range(3)]
    for frame, native in zip(ingestion, natives, strict=True):
        assert Codecs().decode(frame.data, RPCL, format) == native
        assert imagecodecs.jpeg2k_decode(frame.data).tobytes() == native, "an independent decoder"
        assert codestream.parse(frame.data).is_lossless_rpcl
        assert frame.facts.crc32 == zlib.crc32(native)
        samples = np.frombuffer(native, "<u2")
        assert (frame.facts.minimum, frame.facts.maximum) == (samples.min(), samples.max())
        assert frame.facts.decoded_bytes == len(native)
        _, small = Codecs().reduced(frame.data[: frame.prefix], format, 128)
        assert (small.rows, small.columns) == (80, 150)
    digests = [hashlib.sha256(native).digest() for native in natives]
    assert ingestion.digest == hashlib.sha256(b"".join(digests)).digest()


def test_a_legal_frame_is_kept_and_another_encoded_anew(pool: DecodePool, tmp_path: Path) -> None:
    # One resolution less than our encoder makes, so that the two can be told apart.
    legal = bytes(imagecodecs.htj2k_encode(picture(0), reversible=True, resolutions=2, tlm=True, tilepart=1))
    without_tlm = bytes(imagecodecs.htj2k_encode(picture(0), reversible=True, resolutions=2))
    for received, kept in ((legal, True), (legal + b"\x00", True), (without_tlm, False)):
        (frame,) = pool.ingest(*written(tmp_path, [received], RPCL), RPCL, FORMAT)
        assert (frame.data == legal) is kept
        assert codestream.parse(frame.data).is_lossless_rpcl
        assert Codecs().decode(frame.data, RPCL, FORMAT) == picture(0).tobytes()


def test_untransformed_rgb_is_encoded_anew_so_that_its_label_is_true(pool: DecodePool, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (70, 80, 3), dtype=np.uint8)
    received = bytes(imagecodecs.htj2k_encode(rgb, reversible=True, tlm=True, resolutions=1, rgb=False, planar=False))
    format = PixelFormat(70, 80, 3, 8, 8, False, "RGB")
    (frame,) = pool.ingest(*written(tmp_path, [received], RPCL), RPCL, format)
    assert codestream.parse(frame.data).transformed
    assert Codecs().decode(frame.data, RPCL, format) == rgb.tobytes()


def test_one_bit_frames_stay_native(pool: DecodePool, tmp_path: Path) -> None:
    format = PixelFormat(3, 3, 1, 1, 1, False, "MONOCHROME2", frames=2)
    planes = [b"\xff\x01", b"\x0a\x00"]
    frames = [zlib.compress(plane, wbits=-15) for plane in planes]
    ingestion = pool.ingest(*written(tmp_path, frames, syntaxes.DEFLATED_FRAMES), syntaxes.DEFLATED_FRAMES, format)
    taken = list(ingestion)
    assert [frame.data for frame in taken] == planes
    assert [frame.facts.minimum for frame in taken] == [None, None]
    assert syntaxes.stored_as(syntaxes.DEFLATED_FRAMES, format) == syntaxes.EXPLICIT_LE


def test_single_frames_are_decoded(pool: DecodePool) -> None:
    assert pool.decode(jls(5), JLS, FORMAT) == picture(5).tobytes()
    baseline = replace(FORMAT, rows=16, columns=16, bits_allocated=8, bits_stored=8)
    flat = bytes(imagecodecs.jpeg8_encode(np.full((16, 16), 77, np.uint8)))
    assert pool.decode(flat, syntaxes.JPEG_BASELINE, baseline) == b"\x4d" * 256


def test_many_threads_share_it(pool: DecodePool) -> None:
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(lambda n: pool.decode(jls(n), JLS, FORMAT) == picture(n).tobytes(), range(12)))
    assert all(results)


def test_giving_up_early_frees_the_process(pool: DecodePool, tmp_path: Path) -> None:
    format = replace(FORMAT, frames=40)
    place = written(tmp_path, [jls(n % 3) for n in range(40)], JLS)
    for _ in range(3):
        ingestion = pool.ingest(*place, JLS, format)
        next(ingestion)
        ingestion.close()
    assert pool.decode(jls(1), JLS, FORMAT) == picture(1).tobytes()


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_", "reason"),
    [
        (b"crash", "crashed"),
        (b"abort", "SIGABRT"),
        (b"exits", "exit status 0"),
        (b"hangs", "longer than is allowed"),
        (b"gorge", "memory"),
        (b"fails", "bad marker"),
        (b"wrong", "3 x 3"),
    ],
)
def test_a_bad_frame_costs_its_instance_only(fragile: DecodePool, tmp_path: Path, bytes_: bytes, reason: str) -> None:
    place = written(tmp_path, [jls(0), bytes_, jls(1)], JLS)
    ingestion = fragile.ingest(*place, JLS, replace(FORMAT, frames=3))
    assert len(next(ingestion).data) > 0
    with pytest.raises(PixelFault, match=reason) as fault:
        next(ingestion)
    assert fault.value.code == TRANSCODING_EXCEPTION
    with pytest.raises(NotAcceptable, match=reason):
        fragile.decode(bytes_, JLS, FORMAT)
    assert fragile.decode(jls(2), JLS, FORMAT) == picture(2).tobytes()


def test_others_go_on_while_one_hangs(fragile: DecodePool) -> None:
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(fragile.decode, b"hangs", JLS, FORMAT)
        for n in range(5):
            assert fragile.decode(jls(n), JLS, FORMAT) == picture(n).tobytes()
        with pytest.raises(NotAcceptable):
            hanging.result()


def test_unsupported_syntaxes_say_so(pool: DecodePool, tmp_path: Path) -> None:
    place = written(tmp_path, [b"ab"], RLE)
    for syntax in ("1.2.3", "1.2.840.10008.1.2.4.94"):
        with pytest.raises(PixelFault) as fault:
            next(pool.ingest(*place, syntax, FORMAT))
        assert fault.value.code == UNSUPPORTED_TRANSFER_SYNTAX
        with pytest.raises(NotAcceptable):
            pool.decode(b"ab", syntax, FORMAT)


def test_a_file_cut_short_is_a_fault(pool: DecodePool, tmp_path: Path) -> None:
    path, base, extents = written(tmp_path, [jls(0)], JLS)
    os.truncate(path, 100)
    with pytest.raises(PixelFault, match="ends before"):
        next(pool.ingest(path, base, extents, JLS, FORMAT))
    with pytest.raises(PixelFault):
        next(pool.ingest(str(tmp_path / "absent"), base, extents, JLS, FORMAT))
    assert pool.decode(jls(1), JLS, FORMAT) == picture(1).tobytes()


@pytest.mark.parametrize("syntax", [RPCL, JLS, syntaxes.JPEG_2000_LOSSLESS, syntaxes.JPEG_LOSSLESS_SV1, RLE])
def test_mutated_frames_are_decoded_or_refused(pool: DecodePool, syntax: str) -> None:
    """Whatever the bytes: samples of the right number, or NotAcceptable; never a hang or another exception."""
    source = picture(0)
    planes = (source >> 8).astype(np.uint8), source.astype(np.uint8)
    segments = [imagecodecs.packbits_encode(plane) for plane in planes]
    header = np.array([2, 64, 64 + len(segments[0]), *[0] * 13], "<u4").tobytes()
    encoders: dict[str, Callable[[], bytes]] = {
        RPCL: lambda: Codecs().encode(source.tobytes(), FORMAT, RPCL),
        JLS: lambda: jls(0),
        syntaxes.JPEG_2000_LOSSLESS: lambda: bytes(imagecodecs.jpeg2k_encode(source, level=0, codecformat="J2K")),
        syntaxes.JPEG_LOSSLESS_SV1: lambda: bytes(imagecodecs.ljpeg_encode(source, bitspersample=12)),
        RLE: lambda: header + b"".join(segments),
    }
    good = encoders[syntax]()
    random = np.random.default_rng(7)
    outcomes = set()
    for number in range(60):
        mutant = bytearray(good)
        if number % 3 == 0:
            del mutant[random.integers(len(mutant)) :]
        else:
            reach = 120 if number % 3 == 1 else len(mutant)  # headers matter most
            for at in random.integers(0, reach, random.integers(1, 5)):
                mutant[at] = random.integers(256)
        try:
            outcomes.add(len(pool.decode(bytes(mutant), syntax, FORMAT)))
        except NotAcceptable:
            outcomes.add(0)
    assert outcomes <= {0, FORMAT.frame_bytes}
    assert 0 in outcomes


# --- life and death -----------------------------------------------------------------------------------------------


def test_no_process_before_the_first_job_and_none_after_close() -> None:
    before = children()
    pool = DecodePool(1, plug_ins=[HOSTILE])
    assert children() == before
    pool.decode(jls(0), JLS, FORMAT)
    assert len(children() - before) == (1 if LINUX else 0)
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(pool.decode, b"hangs", JLS, FORMAT)
        wait_until_busy(pool)
        pool.close()
        with pytest.raises(Unavailable):
            hanging.result(20)
    assert children() == before
    with pytest.raises(Unavailable):
        pool.decode(jls(0), JLS, FORMAT)


def wait_until_busy(pool: DecodePool) -> None:
    """Returns once the only process has left the idle ones."""
    deadline = time.monotonic() + 20
    while pool.idle and time.monotonic() < deadline:
        threading.Event().wait(0.005)


def children() -> set[str]:
    """The process ids of the decode processes of this process (on Linux)."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*") if LINUX else ():
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == os.getpid() and status[0] != "Z" and b"sandbox" in command:
            found.add(entry.name)
    return found


def test_a_process_that_was_killed_while_idle_is_replaced() -> None:
    pool = DecodePool(1)
    try:
        before = children()
        pool.decode(jls(0), JLS, FORMAT)
        for child in children() - before:
            watch = os.pidfd_open(int(child))
            os.kill(int(child), signal.SIGKILL)
            assert select.select([watch], [], [], 20)[0]
            os.close(watch)
        assert pool.decode(jls(1), JLS, FORMAT) == picture(1).tobytes()
    finally:
        pool.close()


@pytest.mark.skipif(not LINUX, reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("job", ["idle", "hangs"])
def test_it_dies_with_its_parent(job: str, tmp_path: Path) -> None:
    (tmp_path / "hanging_plug_in.py").write_text(
        "import ctypes\n"
        "def plug_in(decoders, encoders):\n"
        "    decoders['1.2.3'] = lambda data, format: ctypes.PyDLL(None).pause()\n"  # with the GIL held
    )
    program = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from adapters.codecs.decoding import DecodePool\n"
        "from gateway.domain.pixels import PixelFormat\n"
        "pool = DecodePool(1, plug_ins=['hanging_plug_in:plug_in'])\n"
        "format = PixelFormat(2, 2, 1, 8, 8, False, 'MONOCHROME2')\n"
        "pool.decode(b'abcd', '1.2.840.10008.1.2.1', format)\n"
        "children = Path('/proc/self/task').glob('*/children')\n"
        "print(' '.join(path.read_text() for path in children), flush=True)\n"
        f"pool.decode(b'', '1.2.3', format) if {job == 'hangs'} else sys.stdin.read()\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        watch = os.pidfd_open(child)
        parent.kill()
        assert select.select([watch], [], [], 20)[0], "the decode process outlived its parent"
        os.close(watch)


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_it_knows_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "marker-of-a-secret")
    monkeypatch.setenv("GATEWAY_DATABASE_URL", "marker-of-a-secret")
    pool = DecodePool(1)
    try:
        before = children()
        pool.decode(jls(0), JLS, FORMAT)
        (child,) = children() - before
        assert b"marker-of-a-secret" not in Path(f"/proc/{child}/environ").read_bytes()
        assert "Max core file size        0" in Path(f"/proc/{child}/limits").read_text()
    finally:
        pool.close()


def test_who_answers_and_goes_has_been_sent_everything() -> None:
    """A decode process may die of its first frame while the message's empty end is still to be sent."""

    class Hasty(socket.socket):
        def sendall(self, data: Any, flags: int = 0) -> None:
            super().sendall(data, flags)
            theirs.close()

    ours, theirs = socket.socketpair()
    with closing(Hasty(fileno=ours.detach())) as hasty:
        wire.send(hasty, {"do": "ingest"})
