"""The inside of a decode process: takes jobs over a socket until it closes, within limits that the kernel keeps."""

import contextlib
import ctypes
import dataclasses
import hashlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from gateway.domain.encapsulation import TRANSCODING_EXCEPTION, UNSUPPORTED_TRANSFER_SYNTAX
from gateway.domain.errors import Corrupt, NotAcceptable
from gateway.domain.pixels import PixelFormat

from . import wire
from .ingestion import ingest
from .registry import MAX_FRAME_BYTES, Codecs

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int, memory_bytes: int, plug_ins: Sequence[str] | None) -> None:
    """Serves until the other end closes or `parent`, the process that started this one, dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the gateway decides
    _die_with(parent)
    connection = socket.socket(fileno=descriptor)
    codecs = Codecs(plug_ins)
    _limit(memory_bytes)
    with contextlib.suppress(wire.Lost):
        wire.send(connection, {"ready": True})
        while True:
            job, payload = wire.receive(connection, 2 * MAX_FRAME_BYTES)
            _serve(connection, codecs, job, payload)


def _serve(connection: socket.socket, codecs: Codecs, job: dict[str, Any], payload: bytes) -> None:
    try:
        format = PixelFormat(**job["format"])
        if job["do"] == "decode":
            wire.send(connection, {}, codecs.decode(payload, job["syntax"], format))
            return
        digest = hashlib.sha256()
        frames = _frames(job["path"], job["base"], job["extents"])
        for frame in ingest(codecs, frames, job["syntax"], format, digest, job["stored"]):
            wire.send(connection, {"facts": dataclasses.astuple(frame.facts), "prefix": frame.prefix}, frame.data)
        wire.send(connection, {"digest": digest.hexdigest()})
    except NotAcceptable as error:
        wire.send(connection, {"fault": UNSUPPORTED_TRANSFER_SYNTAX, "reason": error.detail})
    except Corrupt as error:
        wire.send(connection, {"fault": TRANSCODING_EXCEPTION, "reason": error.detail})
    except OSError as error:
        reason = f"The received file cannot be read ({error.strerror})."
        wire.send(connection, {"fault": TRANSCODING_EXCEPTION, "reason": reason})
    except MemoryError:
        reason = "Decoding needs more memory than is allowed."
        wire.send(connection, {"fault": TRANSCODING_EXCEPTION, "reason": reason, "spent": True})


def _frames(path: str, base: int, extents: Sequence[Sequence[Sequence[int]]]) -> Iterator[bytes]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for fragments in extents:
            pieces = [os.pread(file, length, base + offset) for offset, length in fragments]
            if any(len(piece) != length for piece, (_, length) in zip(pieces, fragments, strict=True)):
                raise Corrupt("The received file ends before its last frame.")
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
    finally:
        os.close(file)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _limit(memory_bytes: int) -> None:
    """No core dump (it would hold pixels), and so much memory beyond what the program has by now."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = used + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
