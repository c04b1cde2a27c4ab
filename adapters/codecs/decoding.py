"""Decoding of pixels that came from outside, in supervised processes.

A codec library that crashes, hangs or eats memory costs one instance, never the gateway. A process that does so is
killed and replaced; `concurrent.futures.ProcessPoolExecutor` can do neither. Processes are started (not forked) when
they are first needed, stay warm, and die with the gateway: by the parent-death signal on Linux, and by the end of
their socket anywhere.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gateway.domain import syntaxes
from gateway.domain.encapsulation import TRANSCODING_EXCEPTION, UNSUPPORTED_TRANSFER_SYNTAX, PixelFault
from gateway.domain.errors import NotAcceptable, Unavailable
from gateway.domain.pixels import FrameFacts, PixelFormat

from . import wire
from .ingestion import IngestedFrame

Extents = Sequence[Sequence[tuple[int, int]]]

_START_TIMEOUT_S = 60.0
_SOCKET_BUFFER = 4 << 20
"""Asked for; the kernel may give less. A whole frame in flight saves switching between the two processes."""
_ENVIRONMENT = ("PATH", "LANG", "LC_", "LD_", "DYLD_", "OPENBLAS_", "PYTHON")
"""Variables that a decode process needs, by prefix. It gets no others: credentials are none of its business."""
_START = (
    "import json, sys; sys.path[:], *rest = json.loads(sys.argv[1]); "
    "from adapters.codecs.sandbox import main; main(*rest)"
)


class _Process:
    """One decode process and the socket to it. Used by one thread at a time."""

    def __init__(self, memory_bytes: int, plug_ins: Sequence[str] | None) -> None:
        self._socket, theirs = socket.socketpair()
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        path = [entry or os.getcwd() for entry in sys.path]
        arguments = [path, theirs.fileno(), os.getpid(), memory_bytes, None if plug_ins is None else list(plug_ins)]
        environment = {name: value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(arguments)],
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def killed(self) -> bool:
        return self._process.poll() == -signal.SIGKILL

    def send(self, head: dict[str, Any], payload: bytes, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        wire.send(self._socket, head, payload)

    def receive(self, max_payload: int, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        return wire.receive(self._socket, max_payload, timeout_s)

    def kill(self) -> None:
        """Ends the process, however it hangs; any thread that waits for it gets `wire.Lost`."""
        self._process.kill()

    def reap(self) -> str:
        """Ends and forgets the process; says how it ended."""
        self._process.kill()
        status = self._process.wait()
        self._socket.close()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"


class Ingestion(Iterator[IngestedFrame]):
    """The frames of one instance, as they are ready; `digest` once all have come."""

    def __init__(self, frames: Iterator[IngestedFrame | bytes]) -> None:
        self._frames = frames
        self._digest: bytes | None = None

    def __next__(self) -> IngestedFrame:
        item = next(self._frames)
        if isinstance(item, bytes):
            self._digest = item
            for _ in self._frames:
                pass
            raise StopIteration
        return item

    @property
    def digest(self) -> bytes:
        """SHA-256 over that of each decoded frame. Raises ValueError before the last frame has been taken."""
        if self._digest is None:
            raise ValueError("The frames have not all been taken yet.")
        return self._digest

    def close(self) -> None:
        """Gives up the frames that have not been taken."""
        if hasattr(self._frames, "close"):
            self._frames.close()


class DecodePool:
    """At most `size` decode processes, used from any thread; a call waits while all are busy. *Blocking.*

    Limits are for one frame and for one instance, in seconds of the process's work, and for the memory that decoding
    takes beyond the bare process. `plug_ins` as in `registry.Codecs`.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        frame_timeout_s: float = 60.0,
        instance_timeout_s: float = 1800.0,
        memory_bytes: int = 2 << 30,
        plug_ins: Sequence[str] | None = None,
    ) -> None:
        self._size = size or os.cpu_count() or 1
        self._frame_timeout_s = frame_timeout_s
        self._instance_timeout_s = instance_timeout_s
        self._memory_bytes = memory_bytes
        self._plug_ins = plug_ins
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._starting = 0
        self._closed = False
        self._free = threading.Condition()
        # The parent-death signal comes when the *thread* that started a process ends: it must live as long as the pool.
        self._starter = ThreadPoolExecutor(1, "decode-starter")

    def ingest(
        self,
        path: str,
        base: int,
        extents: Extents,
        syntax: str,
        format: PixelFormat,
        lossless: str = syntaxes.HTJ2K_LOSSLESS_RPCL,
    ) -> Ingestion:
        """The frames of a received instance as they are to be stored, in the syntax of `syntaxes.stored_as`.

        `extents` are the fragments of each frame, at `base` + offset in the file `path`. Not for a syntax in
        KEPT_AS_IS; a native big-endian value of 8-bit cells in words must have been swapped before. Each frame is
        decoded, compared with `format`, measured (CRC-32, least and greatest value, over the decoded samples),
        encoded and checked by decoding; a legal HTJ2K frame with RPCL options is kept. No more than a frame or two
        are held at a time.

        A process that is killed from outside costs nothing: once, another one takes its job. The iterator raises
        PixelFault: 0xB120 for a syntax that no codec reads, 0xB100 for a frame that cannot be decoded, or whose
        decoder crashed, hung or took too much memory; Unavailable if no process could be had. Close it, or drop it,
        to give up early.
        """
        return Ingestion(self._ingest(path, base, extents, syntax, format, lossless))

    def decode(self, data: bytes, syntax: str, format: PixelFormat) -> bytes:
        """Native little-endian samples of one frame, as `registry.Codecs.decode` gives them.

        Raises NotAcceptable for a frame that cannot be decoded, whatever the reason; Unavailable.
        """
        job = {"do": "decode", "syntax": syntax, "format": dataclasses.asdict(format)}
        for is_last in (False, True):
            process = self._acquire()
            sound = False
            try:
                process.send(job, data, self._frame_timeout_s)
                head, native = process.receive(_most(format), self._frame_timeout_s)
                sound = not head.get("spent")
                if "fault" in head:
                    raise NotAcceptable(str(head["reason"]))
                return native
            except (wire.Lost, TimeoutError) as error:
                reason = self._blame(process, error)
                if is_last or not _was_killed(process, error):
                    raise NotAcceptable(reason) from error
            finally:
                self._release(process, sound)
        raise AssertionError("the last attempt returns or raises")

    @property
    def idle(self) -> int:
        """Processes that wait for a job: a gauge."""
        return len(self._idle)

    def close(self) -> None:
        """Ends all processes; calls that are under way fail with Unavailable."""
        with self._free:
            self._closed = True
            idle, self._idle = self._idle, []
            for process in self._all:
                process.kill()
            self._free.notify_all()
        for process in idle:
            process.reap()
        self._starter.shutdown()

    def _ingest(
        self, path: str, base: int, extents: Extents, syntax: str, format: PixelFormat, lossless: str
    ) -> Iterator[IngestedFrame | bytes]:
        if syntaxes.stored_as(syntax, format, lossless) is None:
            raise PixelFault(UNSUPPORTED_TRANSFER_SYNTAX, f"Transfer syntax {syntax} is not supported.")
        job = {"do": "ingest", "path": path, "base": base, "extents": [list(f) for f in extents], "syntax": syntax}
        job |= {"format": dataclasses.asdict(format), "stored": lossless}
        left_s = self._instance_timeout_s
        taken = 0
        for is_last in (False, True):
            process = self._acquire()
            sound = False
            come = 0
            try:
                process.send(job, b"", self._frame_timeout_s)
                while True:
                    asked = time.monotonic()
                    head, data = process.receive(_most(format), max(min(left_s, self._frame_timeout_s), 0.0))
                    left_s -= time.monotonic() - asked
                    if "digest" in head:
                        sound = True
                        yield bytes.fromhex(head["digest"])
                        return
                    if "fault" in head:
                        sound = not head.get("spent")
                        raise PixelFault(int(head["fault"]), str(head["reason"]))
                    come += 1
                    if come > taken:  # a second process starts with frames that the first has given already
                        taken = come
                        yield IngestedFrame(data, FrameFacts(*head["facts"]), int(head["prefix"]))
            except (wire.Lost, TimeoutError, KeyError, TypeError, ValueError) as error:
                reason = self._blame(process, error)
                if is_last or not _was_killed(process, error):
                    raise PixelFault(TRANSCODING_EXCEPTION, reason) from error
            finally:
                self._release(process, sound)

    def _blame(self, process: _Process, error: Exception) -> str:
        """Why a process failed its job. Raises Unavailable if the pool was closed meanwhile."""
        if self._closed:
            raise Unavailable("The decode processes are being stopped.") from error
        if isinstance(error, TimeoutError):
            return "Decoding took longer than is allowed, and was stopped."
        return f"The decoder crashed ({process.reap()})."

    def _acquire(self) -> _Process:
        """An idle process, or a new one. Raises Unavailable."""

        def ready() -> bool:
            return self._closed or bool(self._idle) or len(self._all) + self._starting < self._size

        with self._free:
            if not self._free.wait_for(ready, self._instance_timeout_s):
                raise Unavailable("All decode processes are busy.")
            if self._closed:
                raise Unavailable("The decode processes have been stopped.")
            while self._idle:
                process = self._idle.pop()
                if process.alive:
                    return process
                process.reap()
                self._all.discard(process)
            self._starting += 1
        try:
            return self._starter.submit(self._start).result()
        except RuntimeError as error:  # the starter has been shut down
            raise Unavailable("The decode processes have been stopped.") from error
        finally:
            with self._free:
                self._starting -= 1
                self._free.notify()

    def _start(self) -> _Process:
        process = _Process(self._memory_bytes, self._plug_ins)
        try:
            process.receive(0, _START_TIMEOUT_S)
        except (wire.Lost, TimeoutError) as error:
            raise Unavailable(f"A decode process does not start ({process.reap()}).") from error
        with self._free:
            self._all.add(process)
            if self._closed:
                process.kill()
        return process

    def _release(self, process: _Process, sound: bool) -> None:
        if not sound:
            process.reap()
        with self._free:
            if sound and not self._closed:
                self._idle.append(process)
            else:
                self._all.discard(process)
                process.reap()
            self._free.notify()


def _was_killed(process: _Process, error: Exception) -> bool:
    """Whether a process was ended from outside (by hand, or for want of memory elsewhere): no fault of its job."""
    return isinstance(error, wire.Lost) and process.killed


def _most(format: PixelFormat) -> int:
    """More bytes than any answer about a frame of this format has."""
    return 2 * format.rows * format.columns * format.samples * max(format.bits_allocated, 8) + (1 << 16)
