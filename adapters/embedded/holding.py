"""Files that are being copied stay: who deletes files of a store asks first whether somebody holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Holding:
    """A lock over one data folder: shared by those who need every file, exclusive for who deletes some."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / "holding.lock"

    @contextmanager
    def hold(self) -> Iterator[None]:
        """For the time of the block no file that a row names is deleted. Waits for who is deleting."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def try_delete(self) -> Iterator[bool]:
        """Whether files may be deleted in the block; who may not tries again later."""
        descriptor = self._open()
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_free = True
            except BlockingIOError:
                is_free = False
            yield is_free
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
