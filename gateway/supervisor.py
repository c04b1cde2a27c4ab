"""`serve`: one supervisor, and the processes of one data folder (architecture section 8).

The supervisor loads what its children need, binds the listening sockets and forks: a child that dies is there again in
a moment, on the same port, and who calls meanwhile waits in the socket's queue. Parent and child talk over a socket
pair, one JSON object a line: each change of the other processes' state one way, `ready` the other way. Its end of file
means that the other side is gone; on Linux the kernel also kills the children of a killed supervisor at once.
"""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import orjson
import structlog

from .domain.errors import Conflict, Unavailable
from .settings import Address, Settings

Kind = Literal["web", "dimse", "worker"]

SURFACE_DRAIN_S: Final = 10
"""For requests and associations to end; then the workers, who still import what these brought, get their turn."""
WORKER_DRAIN_S: Final = 4
_GRACE_S = 2
_BACKLOG = 1024
_TAKEOVER_S = 3.0
_STEADY_S = 10.0
"""A process that has lived this long failed for a new reason: its back-off starts anew."""
_LONGEST_PAUSE_S = 5.0
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_MOST_DESCRIPTORS = 1 << 20
"""Where a system says that there is no limit."""
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_MALLOC: Final = {"arenas": (-8, 2), "own mapping from": (-3, 4 << 20), "given back from": (-1, 8 << 20)}
"""Of glibc's malloc, option and value. Left to itself it has eight arenas a core, and after one answer of 30 MB keeps
60 MB in each of those that large answers come from."""

_log = structlog.get_logger("gateway.supervisor")


class DataFolder:
    """Holds a data folder for one supervisor. Raises Conflict, naming the process that holds it."""

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path / "serve.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as fault:
            raise Unavailable(f"the data folder {path} cannot be written: {fault.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise Conflict(
                f"the data folder {path} is in use by process {holder}: stop it, or choose another with --data"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def bind(address: Address, flag: str) -> socket.socket:
    """A listening socket. Waits a moment for one that a dying process still holds. Raises Unavailable."""
    deadline = time.monotonic() + _TAKEOVER_S
    while True:
        try:
            family, _, _, _, where = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            return socket.create_server(where[:2], family=family, backlog=_BACKLOG)
        except OSError as fault:
            if fault.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise Unavailable(
                f"cannot listen on {address}: {fault.strerror}. Choose another address with {flag}"
            ) from None


def bound_address(listener: socket.socket) -> Address:
    """The real address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def share_metrics(data: Path, *, afresh: bool = False) -> None:
    """Lets the metrics of this process and its children meet in one folder. Before they are first imported."""
    folder = data / "run" / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    if afresh:
        for stale in folder.glob("*.db"):
            stale.unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


class Role:
    """What a web, DIMSE or worker process is given, and when it has to stop."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket | None,
        link: socket.socket | None = None,
        dimse: str | None = None,
    ) -> None:
        self.settings = settings
        self.listener = listener
        self.dimse = dimse or str(settings.dimse.listen)
        """Where DIMSE listens: the bound address, where a supervisor knows it."""
        self.stop = asyncio.Event()
        self.processes: Mapping[str, Mapping[str, float]] = {}
        """State of the processes beside this one, role -> `up`, `restarts`; empty where no supervisor tells."""
        self._link = link

    @property
    def is_supervised(self) -> bool:
        return self._link is not None

    def ready(self, **facts: Any) -> None:
        """Tells that this process serves, and what others should know of it."""
        # What start-up made is here to stay: the collector never looks at it again, which took it 30 ms and more.
        gc.collect()
        gc.freeze()
        if self._link is None:
            print(orjson.dumps({"event": "listening", **facts}).decode(), flush=True)
        else:
            self._link.sendall(orjson.dumps({"ready": facts}) + b"\n")

    def run(self, main: Callable[["Role"], Coroutine[Any, Any, None]]) -> None:
        """Runs `main` in an event loop until it returns; SIGTERM, SIGINT and the supervisor's end set `stop`."""
        import uvloop

        if _libc is not None and hasattr(_libc, "mallopt"):
            for option, value in _MALLOC.values():
                _libc.mallopt(option, value)
        uvloop.run(self._run(main))

    async def _run(self, main: Callable[["Role"], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        listening = asyncio.create_task(self._hear()) if self._link is not None else None
        try:
            await main(self)
        finally:
            if listening is not None:
                listening.cancel()

    async def _hear(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self._link)
        with contextlib.suppress(ConnectionError):
            while (line := await reader.readline()).endswith(b"\n"):
                self.processes = orjson.loads(line)["processes"]
                writer.write(orjson.dumps({"seen": self.processes}) + b"\n")
        self.stop.set()


Become = Callable[[Kind, Role], None]
"""Is a process of a kind until it has to stop."""


def _leave(parent: int, kind: Kind, kept: set[int]) -> None:
    """Makes a child that was just forked a process of its own: nothing of its parent's reaches it but `kept`."""
    if _libc is not None:  # elsewhere it notices the closed link
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
        _libc.prctl(_PR_SET_NAME, f"gateway-{kind}".encode(), 0, 0, 0)
    # A session of its own: Ctrl-C reaches the supervisor alone, and what a process leaves behind can be ended.
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    asyncio.events._set_running_loop(None)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # The objects that hold the closed ones belong to frames below, which are never returned to.
    low = 3
    for descriptor in (*sorted(kept), min(os.sysconf("SC_OPEN_MAX"), _MOST_DESCRIPTORS)):
        os.closerange(low, descriptor)
        low = descriptor + 1


class _Process:
    """A forked child, as `asyncio.subprocess.Process` would have it. For one event loop."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        """Negative for a signal; None while it runs."""
        return self._code.result() if self._code.done() else None

    def reap(self) -> None:
        """Looks whether it has ended."""
        if not self._code.done():
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code.set_result(os.waitstatus_to_exitcode(status))

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def send(self, number: signal.Signals) -> None:
        if not self._code.done():
            os.kill(self.pid, number)


@dataclass(slots=True)
class _Child:
    role: str
    kind: Kind
    listener: socket.socket | None
    process: _Process | None = None
    link: asyncio.StreamWriter | None = None
    facts: Mapping[str, Any] | None = None
    """What it told when it was ready; None before the first time."""
    seen: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What it knows of the other processes."""
    up: bool = False
    restarts: int = 0


class Supervisor:
    """Keeps the processes of one data folder running."""

    def __init__(self, settings: Settings, become: Become) -> None:
        self._settings = settings
        self._become = become
        self._http = bind(settings.http.listen, "--http")
        try:
            self._dimse = bind(settings.dimse.listen, "--dimse")
        except Unavailable:
            self._http.close()
            raise
        self._children = [
            *_several("web", settings.http.processes, self._http),
            _Child("dimse", "dimse", self._dimse),
            *_several("worker", settings.workers, None),
        ]
        self._stopping = asyncio.Event()
        self._failed = False
        self._announced = False

    def run(self) -> int:
        """Serves until SIGTERM or SIGINT; the exit code: 0, or 1 where a process could not start."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        # What was loaded is here to stay, and shared: the children's collectors never write to it.
        gc.collect()
        gc.freeze()
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        for keeper in keepers:
            keeper.add_done_callback(self._ended)
        try:
            await self._stopping.wait()
            await self._drain()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        return 1 if self._failed else 0

    def _ended(self, keeper: "asyncio.Task[None]") -> None:
        """A process that nobody keeps any more is no service: better none at all, which is seen."""
        if not keeper.cancelled() and (fault := keeper.exception()) is not None:
            _log.error("keeper_failed", exc_info=fault)
            self._failed = True
            self._stopping.set()

    async def _keep(self, child: _Child) -> None:
        failures = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._live(child)
            if self._stopping.is_set():
                return
            if code >= 0 and child.facts is None:
                _log.error("process_could_not_start", process=child.role, code=code)
                self._failed = True
                self._stopping.set()
                return
            failures = 1 if time.monotonic() - began > _STEADY_S else failures + 1
            pause = min(_LONGEST_PAUSE_S, 0.05 * 2**failures)
            _log.error("process_died", process=child.role, code=code, restart_in_s=round(pause, 2))
            child.restarts += 1
            self._tell()
            await asyncio.sleep(pause)

    def _reap(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.reap()

    def _start(self, child: _Child, link: socket.socket) -> _Process:
        parent, states, dimse = os.getpid(), self._states(), str(bound_address(self._dimse))
        pid = os.fork()
        if pid:
            return _Process(pid)
        code = 1
        try:
            _leave(parent, child.kind, {one.fileno() for one in (link, child.listener) if one is not None})
            role = Role(self._settings, child.listener, link, dimse)
            role.processes = states
            self._become(child.kind, role)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as fault:
            sys.excepthook(type(fault), fault, fault.__traceback__)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    async def _live(self, child: _Child) -> int:
        """One life of a process, from its start to its end; the exit code, negative for a signal."""
        ours, theirs = socket.socketpair()
        child.process = process = self._start(child, theirs)
        theirs.close()
        _log.info("process_started", process=child.role, pid=process.pid)
        reader, child.link = await asyncio.open_unix_connection(sock=ours)
        self._tell()
        try:
            # One that is killed may leave half a line; and if it has not read all it was told, a link that is reset.
            with contextlib.suppress(ConnectionError):
                while (line := await reader.readline()).endswith(b"\n"):
                    self._note(child, orjson.loads(line))
            return await process.wait()
        finally:
            _end_group(process.pid)
            child.link.close()
            child.link, child.process, child.up = None, None, False
            self._tell()

    def _note(self, child: _Child, report: Mapping[str, Any]) -> None:
        if "ready" in report:
            child.facts, child.up = report["ready"], True
            self._tell()
        else:
            child.seen = report["seen"]
        self._announce()

    def _tell(self) -> None:
        """Every process learns the state of all."""
        states = self._states()
        for child in self._children:
            if child.link is not None:
                child.link.write(orjson.dumps({"processes": states}) + b"\n")

    def _states(self) -> dict[str, dict[str, float]]:
        return {child.role: {"up": int(child.up), "restarts": child.restarts} for child in self._children}

    def _announce(self) -> None:
        """The listening line, once: all that listen serve, and `/readyz` knows it, whoever answers."""
        surfaces = [child for child in self._children if child.kind != "worker"]
        webs = [child for child in surfaces if child.kind == "web"]
        informed = all(web.seen.get(child.role, {}).get("up") for web in webs for child in surfaces)
        if self._announced or not informed:
            return
        self._announced = True
        line = {
            "event": "listening",
            "http": http_url(self._settings, self._http),
            "dimse": str(bound_address(self._dimse)),
            "aet": self._settings.dimse.aet,
            "datastoreId": (webs[0].facts or {}).get("datastoreId"),
        }
        print(orjson.dumps(line).decode(), flush=True)

    async def _drain(self) -> None:
        self._http.close()
        self._dimse.close()
        await _end([child for child in self._children if child.kind != "worker"], SURFACE_DRAIN_S + _GRACE_S)
        await _end([child for child in self._children if child.kind == "worker"], WORKER_DRAIN_S + _GRACE_S)


def _several(kind: Kind, count: int, listener: socket.socket | None) -> list[_Child]:
    """Children of one kind, which share its listener; their roles are numbered where there is more than one."""
    roles = [kind] if count == 1 else [f"{kind}-{number + 1}" for number in range(count)]
    return [_Child(role, kind, listener) for role in roles]


def http_url(settings: Settings, listener: socket.socket) -> str:
    """Where a listening socket answers HTTP: scheme, bound address, real port, no slash at the end."""
    return f"{'https' if settings.http.tls_cert else 'http'}://{bound_address(listener)}"


async def _end(children: Sequence[_Child], patience_s: float) -> None:
    """Asks processes to end, and ends those that have not after `patience_s`."""
    processes = [child.process for child in children if child.process is not None and child.process.returncode is None]
    for process in processes:
        process.send(signal.SIGTERM)
    if not processes:
        return
    waits = [asyncio.create_task(process.wait()) for process in processes]
    _, late = await asyncio.wait(waits, timeout=patience_s)
    if late:
        for process in processes:
            if process.returncode is None:
                _log.warning("process_killed", pid=process.pid)
                process.send(signal.SIGKILL)
        await asyncio.wait(waits)


def _end_group(pid: int) -> None:
    """Ends what a dead process has left running, its decoders for example."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
