"""How the processes over one data folder know of each other: who is alive, and a bell to wake who waits."""

import contextlib
import fcntl
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from gateway.domain.ids import new_id


class SupportsFileno(Protocol):
    def fileno(self) -> int: ...


class Presence:
    """This process among those of the data folder: a name that others can see to be alive, and a bell.

    A bell is a named pipe: ringing it never blocks, and a lost ring only costs the wait until the next look.
    """

    def __init__(self, run_folder: Path, role: str) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self.folder = run_folder
        self.role = role
        self.name = f"{role}-{os.getpid()}-{new_id()[:8]}"
        # Locked before it gets its name: nobody can take a process that begins for a dead one.
        unborn = run_folder / f"{self.name}.new"
        self._alive = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        unborn.rename(run_folder / f"{self.name}.alive")
        self._bell_path = run_folder / f"{self.name}.bell"
        os.mkfifo(self._bell_path, 0o600)
        # Open for both, so that the pipe neither blocks here nor ends when a ringer closes it.
        self._bell = os.open(self._bell_path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._clear_dead()

    def is_alive(self, name: str) -> bool:
        """Whether the process of that name still runs."""
        try:
            descriptor = os.open(self.folder / f"{name}.alive", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def ring(self, role: str, message: str = "") -> None:
        """Wakes every process of a role; the message is one line of at most 500 bytes."""
        line = message.encode()[:500] + b"\n"
        for entry in os.scandir(self.folder):
            if entry.name.startswith(f"{role}-") and entry.name.endswith(".bell"):
                with contextlib.suppress(OSError):  # nobody listens any more, or its pipe is full of rings already
                    descriptor = os.open(entry.path, os.O_WRONLY | os.O_NONBLOCK)
                    try:
                        os.write(descriptor, line)
                    finally:
                        os.close(descriptor)

    def wait(self, timeout_s: float, *others: SupportsFileno) -> list[str]:
        """The messages rung since the last wait; returns at the first one, or empty after the timeout.

        Returns, too, as soon as one of `others` can be read.
        """
        watched = [self._bell, *(other.fileno() for other in others)]
        if self._bell not in select.select(watched, [], [], timeout_s)[0]:
            return []
        data = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                data += os.read(self._bell, 65536)
                if data.endswith(b"\n"):
                    break
        return data.decode(errors="replace").splitlines()

    def listen(self, heard: Callable[[str], None]) -> threading.Thread:
        """Calls `heard` with each message, from a thread that ends with the process."""

        def run() -> None:
            while self._bell >= 0:
                for message in self.wait(1.0):
                    heard(message)

        thread = threading.Thread(target=run, name="bell", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        self._bell_path.unlink(missing_ok=True)
        (self.folder / f"{self.name}.alive").unlink(missing_ok=True)
        os.close(self._alive)

    def _clear_dead(self) -> None:
        for entry in list(os.scandir(self.folder)):
            name, _, kind = entry.name.rpartition(".")
            if kind in ("alive", "bell", "door") and name != self.name and not self.is_alive(name):
                Path(entry.path).unlink(missing_ok=True)
