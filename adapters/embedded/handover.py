"""Orders handed over directly: from the process that staged the instances to a worker that has time for them.

A worker listens on a Unix socket in the run folder; what comes and goes is one JSON value a line. It says whether it is
free, and how many orders it has in hand, `[true, 0]`, again every second while its loop goes round. It is sent orders,
an object each, and answers `[job, outcomes]` after the publication is durable, or `[job, null]` when the order has to
become an ordinary job. A connection that ends, or is silent for too long, answers nothing: then, too, the order becomes
one, and its id keeps it from being done twice (`jobs.insert_job`). And it is told, `[job, places]`, what a job is going
to name.
"""

import asyncio
import contextlib
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from adapters.embedded.jobs import Order, Place
from gateway.domain.ids import JobId
from gateway.domain.model import Outcome

_SUFFIX = ".door"
_LONGEST_PATH = 100
"""Bytes of the name of a Unix socket, on every system."""
_LOOK_S = 0.5
_BACKLOG = 16
_RECEIVED = 1 << 16
_PULSE_S = 1.0
_SILENCE_S = 5.0
"""A worker that has said nothing for so long hangs, or is at something large: it is not waited for."""


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for a Unix socket, which may not be long: on Linux any path has a short one. Raises OSError."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class _Lines:
    """One end of a connection."""

    socket: socket.socket
    _rest: bytes = b""

    def read(self) -> tuple[list[bytes], bool]:
        """The lines that have come, and whether the other side is still there."""
        data, alive = [self._rest], True
        with contextlib.suppress(BlockingIOError):
            try:
                while alive:
                    data.append(self.socket.recv(_RECEIVED))
                    alive = bool(data[-1])
            except (ConnectionError, TimeoutError):
                alive = False
        *lines, self._rest = b"".join(data).split(b"\n")
        return lines, alive

    def send(self, value: object) -> bool:
        """Whether it went out whole: who does not read is not waited for."""
        line = orjson.dumps(value) + b"\n"
        try:
            return self.socket.send(line) == len(line)
        except OSError:
            return False


# ---------------------------------------------------------------- the worker's side


@dataclass(slots=True)
class Given:
    """An order that a worker was given."""

    order: Order
    answer: Callable[[Sequence[Outcome] | None], None]
    """Tells what became of it; None: it is to become a job."""


Announced = tuple[JobId, Sequence[Place]]
"""Staged instances of a job that is still to come."""


class Taker:
    """Where a worker is given orders. One thread uses it; `fileno` is readable when there is something to `take`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}{_SUFFIX}"
        self._free = True
        self._in_hand = 0
        self._said = 0.0
        self._announced: list[Announced] = []
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        # A folder whose name is too long for this system has no door: there, every import is a job.
        with contextlib.suppress(OSError), _address(self._path) as address:
            self._listener.bind(address)
            os.chmod(self._path, 0o600)
            self._listener.listen(_BACKLOG)
            self._selector.register(self._listener, selectors.EVENT_READ)

    def fileno(self) -> int:
        return self._selector.fileno()

    def take(self) -> list[Given]:
        """What has been given since; never waits."""
        taken: list[Given] = []
        for key, _ in self._selector.select(0):
            if key.fileobj is self._listener:
                self._welcome()
                continue
            lines: _Lines = key.data
            texts, alive = lines.read()
            if alive:
                for text in texts:
                    said = orjson.loads(text)
                    if isinstance(said, dict):
                        taken.append(self._given(lines, Order(**said)))
                    else:
                        self._announced.append((said[0], [(name, at, size) for name, at, size in said[1]]))
            else:  # what it had staged is found in the spool, and imported by a job
                self._drop(lines)
        return taken

    def announced(self) -> list[Announced]:
        """What has been announced, as far as it was taken, since the last call."""
        announced, self._announced = self._announced, []
        return announced

    def say(self, *, free: bool) -> None:
        """Whether orders are welcome: those that come all the same have to wait."""
        if free != self._free:
            self._free = free
            self._tell()

    def pulse(self) -> None:
        """To be called by who makes progress; tells it every second."""
        if time.monotonic() - self._said >= _PULSE_S:
            self._tell()

    def _tell(self) -> None:
        self._said = time.monotonic()
        for lines in self._connections():
            if not lines.send([self._free, self._in_hand]):
                self._drop(lines)

    def close(self) -> None:
        """Ends every connection, which hands back what was not answered; may be called again."""
        if self._listener.fileno() < 0:
            return
        self._path.unlink(missing_ok=True)
        for lines in self._connections():
            self._drop(lines)
        self._listener.close()
        self._selector.close()

    def _connections(self) -> list[_Lines]:
        return [key.data for key in self._selector.get_map().values() if key.data is not None]

    def _welcome(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone already
            return
        connection.setblocking(False)
        lines = _Lines(connection)
        self._selector.register(connection, selectors.EVENT_READ, lines)
        lines.send([self._free, self._in_hand])

    def _given(self, lines: _Lines, order: Order) -> Given:
        self._in_hand += 1

        def answer(outcomes: Sequence[Outcome] | None) -> None:
            self._in_hand -= 1
            if not lines.send([order.id, outcomes]):
                self._drop(lines)

        return Given(order, answer)

    def _drop(self, lines: _Lines) -> None:
        if lines.socket.fileno() >= 0:
            self._selector.unregister(lines.socket)
            lines.socket.close()


# ---------------------------------------------------------------- the side of who has instances


@dataclass(slots=True, eq=False)
class _Link:
    """To one worker."""

    lines: _Lines
    loop: asyncio.AbstractEventLoop
    is_free: bool = False
    in_hand: int = 0
    """Orders of all that give some, as the worker last said."""
    heard: float = field(default_factory=time.monotonic)
    waiting: dict[JobId, "asyncio.Future[list[Outcome] | None]"] = field(default_factory=dict)


class Giver:
    """Gives orders to workers, the least busy first. Lives on one event loop."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._links: dict[str, _Link] = {}
        self._looked = float("-inf")
        self._told: dict[JobId, str] = {}
        """Who has been told of a job that is still to come."""

    @property
    def waiting(self) -> int:
        """Orders that workers have in hand; those of other processes as of a second ago."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._look()
        return sum(max(len(link.waiting), link.in_hand) for link in self._links.values())

    async def give(self, order: Order, timeout_s: float) -> list[Outcome] | None:
        """What became of the staged instances, in their order; None when no worker took them, or none has answered."""
        name = self._free_one()
        if name is None:
            return None
        link = self._links[name]
        answered: asyncio.Future[list[Outcome] | None] = asyncio.get_running_loop().create_future()
        link.waiting[order.id] = answered
        if not link.lines.send(asdict(order)):
            self._lose(name)
        asked = time.monotonic()
        while not answered.done():
            now = time.monotonic()
            left = min(asked + timeout_s, max(asked, link.heard) + _SILENCE_S) - now
            if left <= 0:
                link.is_free = link.is_free and now - max(asked, link.heard) < _SILENCE_S
                break
            await asyncio.wait({answered}, timeout=left)
        link.waiting.pop(order.id, None)
        return answered.result() if answered.done() else None

    def announce(self, job: JobId, places: Sequence[Place]) -> None:
        """Tells a worker what a job is going to name, always the same one; nothing when there is none."""
        name = self._told.get(job) or self._free_one()
        link = self._links.get(name or "")
        if name is None or link is None or time.monotonic() - link.heard > _SILENCE_S:
            return
        self._told[job] = name
        if not link.lines.send([job, places]):
            self._lose(name)

    def told(self, job: JobId) -> str | None:
        """The worker that knows already of a job that is now made."""
        name = self._told.pop(job, None)
        return name.removesuffix(_SUFFIX) if name in self._links else None

    def _free_one(self) -> str | None:
        if time.monotonic() - self._looked > _LOOK_S:
            self._look()
        free = [name for name, link in self._links.items() if link.is_free]
        return min(free, key=lambda name: len(self._links[name].waiting), default=None)

    def close(self) -> None:
        for name in list(self._links):
            self._lose(name)

    def _look(self) -> None:
        """Finds workers that have begun since; what they say comes later."""
        self._looked = time.monotonic()
        loop = asyncio.get_running_loop()
        with os.scandir(self._folder) as entries:
            doors = [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]
        for name in doors:
            if name in self._links:
                continue
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                with _address(self._folder / name) as address:
                    connection.connect(address)
            except OSError:  # the door of one that has died, or is too busy to open it
                connection.close()
                continue
            self._links[name] = _Link(_Lines(connection), loop)
            loop.add_reader(connection, self._heard, name)

    def _heard(self, name: str) -> None:
        link = self._links[name]
        texts, alive = link.lines.read()
        link.heard = time.monotonic()
        for text in texts:
            job, outcomes = orjson.loads(text)
            if isinstance(job, bool):
                link.is_free, link.in_hand = job, outcomes
                continue
            answered = link.waiting.pop(job, None)
            if answered is not None and not answered.done():
                answered.set_result(None if outcomes is None else [Outcome(**fields) for fields in outcomes])
        if not alive:
            self._lose(name)

    def _lose(self, name: str) -> None:
        link = self._links.pop(name)
        if not link.loop.is_closed():
            link.loop.remove_reader(link.lines.socket)
        link.lines.socket.close()
        for answered in link.waiting.values():
            if not answered.done() and not link.loop.is_closed():
                answered.set_result(None)
