"""A backup of a store in a folder: the database at one moment, and the files that it names.

    PATH/backup.json        which database file, and how much of each blob, make the backup
    PATH/gateway-N.db       (PostgreSQL: gateway-N.dump)
    PATH/pack, frames       as in the data folder; they only grow, so that a later backup appends
    PATH/spool, quarantine  what waits for its import, and what could not be imported

`backup.json` is replaced last, in one step: whatever breaks off before leaves the backup that was there, whole. Files
that a row names are not deleted in the store meanwhile (`Holding`), and blobs never change, so that what the database
named at its moment is there when it is copied.
"""

import fcntl
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import sqlalchemy as sa

from adapters.embedded.holding import Holding
from adapters.sql import schema
from adapters.sql import tables as t
from adapters.sql.database import Database, now_ms
from gateway.domain.errors import Conflict, Corrupt, InvalidInput, NotFound, OutOfStorage, Unavailable

_FORMAT: Final = 1
_MANIFEST: Final = "backup.json"
_PIECE: Final = 4 << 20
_GROWING: Final = ("pack", "frames")
_WHOLE: Final = ("spool", "quarantine")

Progress = Callable[[int, int], None]
"""Told the bytes that were copied so far, and of how many."""


@dataclass(slots=True)
class Backup:
    """What `backup.json` says."""

    format: int
    revision: str
    """Of the database's schema."""
    at: int
    """Milliseconds UTC: everything that was acknowledged before is in it."""
    database: str
    blobs: dict[str, int] = field(default_factory=dict)
    """Name -> how many bytes of it belong to the backup."""
    files: list[str] = field(default_factory=list)
    """Of the spool and the quarantine."""

    @property
    def size_bytes(self) -> int:
        return sum(self.blobs.values())


@dataclass(frozen=True, slots=True)
class Copied:
    """What a backup or a restore did."""

    backup: Backup
    copied_bytes: int
    seconds: float


def make(database: Database, data: Path, target: Path, progress: Progress) -> Copied:
    """Backs the store of `data` up to `target`, while it serves or at rest; a backup that is there is brought forward.

    Raises Conflict when another backup to there is under way, Unavailable, OutOfStorage.
    """
    began = time.monotonic()
    if target.resolve() == data.resolve() or data.resolve() in target.resolve().parents:
        raise InvalidInput(f"{target} lies in the data folder: a backup belongs on another disk")
    with _told(target), _alone(target):
        before = _manifest(target) if (target / _MANIFEST).exists() else None
        number = 1 if before is None else int(before.database.split("-")[1].split(".")[0]) + 1
        with Holding(data / "run").hold():
            at = now_ms()
            name = f"gateway-{number}.{'db' if database.is_sqlite else 'dump'}"
            _copy_database(database, target / name)
            backup = Backup(_FORMAT, str(schema.revision(database)), at, name)
            backup.blobs = _blobs_of(database, target / name)
            backup.files = [f"{kind}/{path.name}" for kind in _WHOLE for path in _entries(data / kind)]
            copied = _copy_files(data, target, backup, before, progress)
        _write_manifest(target, backup)
        _forget(target, backup)
    return Copied(backup, copied, time.monotonic() - began)


def restore(database: Database, data: Path, source: Path, progress: Progress) -> Copied:
    """Makes a store again from a backup, in a folder that holds none. Broken off, it can be repeated.

    Raises NotFound without a whole backup, Corrupt when one lacks something, Conflict when a store is there.
    """
    began = time.monotonic()
    backup = _manifest(source)
    _require_whole(source, backup)
    data.mkdir(parents=True, exist_ok=True)
    is_again = marker_of(data).exists()
    if not is_again:
        if (data / "gateway.db").exists() or any(_entries(data / kind) for kind in (*_GROWING, *_WHOLE)):
            raise Conflict(f"{data} holds a store already: restore into another folder, or move that one away")
        if not database.is_sqlite and schema.revision(database) is not None:
            raise Conflict("the database holds a store already: restore into an empty one")
    if backup.database.endswith(".db") != database.is_sqlite:
        kind = "SQLite" if backup.database.endswith(".db") else "PostgreSQL"
        raise Conflict(f"the backup is of a store on {kind}, and GATEWAY_DATABASE_URL means another database")
    with _told(data):
        marker_of(data).touch()
        sync_path(data)
        copied = 0
        for name, size in (*backup.blobs.items(), *((name, None) for name in backup.files)):
            copied += _copy(source / name, data / name, 0, size)
            progress(min(copied, backup.size_bytes), backup.size_bytes)
        for kind in (*_GROWING, *_WHOLE):
            if (data / kind).exists():
                sync_path(data / kind)
        if database.is_sqlite:
            _copy(source / backup.database, data / "gateway.db.part", 0, None)
            os.replace(data / "gateway.db.part", data / "gateway.db")
        elif schema.revision(database) is None:  # else it was broken off just behind this step
            how = ("--no-owner", "--exit-on-error", "--single-transaction", "--dbname", _plain_url(database))
            _postgres("pg_restore", database, *how, str(source / backup.database))
        sync_path(data)
        marker_of(data).unlink()
    return Copied(backup, copied, time.monotonic() - began)


def marker_of(data: Path) -> Path:
    """Is there while a restore into the folder is under way, and after one that broke off."""
    return data / "restore-is-not-complete"


# ---------------------------------------------------------------- the database


def _copy_database(database: Database, target: Path) -> None:
    target.unlink(missing_ok=True)  # of a backup that broke off
    if not database.is_sqlite:
        _postgres("pg_dump", database, "--format=custom", "--no-owner", "--file", str(target), _plain_url(database))
        sync_path(target)
        return
    # In one step, under one read lock: writers go on, and what they commit meanwhile is not part of it.
    with closing(sqlite3.connect(str(database.url.database))) as ours, closing(sqlite3.connect(target)) as copy:
        ours.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    sync_path(target)


def _blobs_of(database: Database, copy: Path) -> dict[str, int]:
    """What the copied database names, and how long it was then. PostgreSQL cannot be asked what its dump holds: there,
    what the database names a moment later, which is more."""
    if not database.is_sqlite:
        with database.read() as connection:
            rows = connection.execute(sa.select(t.blob.c.name, t.blob.c.size).where(t.blob.c.kind.in_(_GROWING)))
            return {row.name: row.size for row in rows}
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT name, size FROM blob WHERE kind IN ('pack', 'frames')"))


def _postgres(program: str, database: Database, *arguments: str) -> None:
    """Raises Unavailable, with what to do."""
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{program} is not installed: install the PostgreSQL client of the server's version")
    environment = dict(os.environ)
    if database.url.password is not None:  # not among the arguments, which everybody on the machine can see
        environment["PGPASSWORD"] = str(database.url.password)
    done = subprocess.run(
        [found, *arguments], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Unavailable(f"{program} failed with exit code {done.returncode}: {last[0]}")


def _plain_url(database: Database) -> str:
    url = database.url.set(drivername="postgresql", password=None)
    return url.render_as_string(hide_password=False)


# ---------------------------------------------------------------- files


def _copy_files(data: Path, target: Path, backup: Backup, before: Backup | None, progress: Progress) -> int:
    """Appends what is new of each blob, and replaces the others; how many bytes."""
    copied = 0
    done = 0
    for name, size in backup.blobs.items():
        known = 0 if before is None else before.blobs.get(name, 0)
        copied += _copy(data / name, target / name, known, size)
        done += size
        progress(done, backup.size_bytes)
    for name in list(backup.files):
        try:
            copied += _copy(data / name, target / f"{name}.part", 0, None)
        except Corrupt:  # given up by its sender, or dropped, since it was listed: no row names it
            backup.files.remove(name)
            continue
        os.replace(target / f"{name}.part", target / name)
    for kind in (*_GROWING, *_WHOLE):
        if (target / kind).exists():
            sync_path(target / kind)
    return copied


def _copy(source: Path, target: Path, start: int, size: int | None) -> int:
    """Copies from `start` to `size`, or to the end, and syncs; how many bytes. Raises Corrupt."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Corrupt(f"{source} is missing: run `imageset-gateway verify`") from None
    try:
        if start and (not target.exists() or target.stat().st_size < start):
            start = 0
        if size is not None and start >= size:
            return 0
        with open(target, "r+b" if start else "wb") as copy:
            copy.truncate(start)  # what a broken-off backup had appended
            copy.seek(start)
            at = start
            while (size is None or at < size) and (
                piece := os.pread(descriptor, _PIECE if size is None else min(_PIECE, size - at), at)
            ):
                copy.write(piece)
                at += len(piece)
            copy.flush()
            os.fdatasync(copy.fileno())
    finally:
        os.close(descriptor)
    if size is not None and at < size:
        raise Corrupt(f"{source} ends at {at}, before {size}: run `imageset-gateway verify`")
    return at - start


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _forget(target: Path, backup: Backup) -> None:
    """Removes what only earlier backups needed."""
    needed = {*backup.blobs, *backup.files}
    for kind in (*_GROWING, *_WHOLE):
        for path in _entries(target / kind):
            if f"{kind}/{path.name}" not in needed:
                path.unlink()
    for path in target.glob("gateway-*"):
        if path.name != backup.database:
            path.unlink()


def sync_path(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- the manifest


def _manifest(folder: Path) -> Backup:
    """Raises NotFound, Corrupt."""
    try:
        document: Mapping[str, Any] = orjson.loads((folder / _MANIFEST).read_bytes())
        backup = Backup(**document)
    except FileNotFoundError:
        raise NotFound(f"{folder} holds no whole backup: {_MANIFEST} is not there") from None
    except (orjson.JSONDecodeError, TypeError) as fault:
        raise Corrupt(f"{folder / _MANIFEST} cannot be read") from fault
    if backup.format != _FORMAT:
        raise Conflict(f"{folder} was made by a newer release of imageset-gateway: restore it with that one")
    return backup


def _write_manifest(folder: Path, backup: Backup) -> None:
    part = folder / f"{_MANIFEST}.part"
    part.write_bytes(orjson.dumps(asdict(backup)))
    sync_path(part)
    os.replace(part, folder / _MANIFEST)
    sync_path(folder)


def _require_whole(folder: Path, backup: Backup) -> None:
    """Raises Corrupt."""
    for name, size in {backup.database: 0, **backup.blobs, **dict.fromkeys(backup.files, 0)}.items():
        try:
            found = (folder / name).stat().st_size
        except FileNotFoundError:
            raise Corrupt(f"the backup lacks {name}") from None
        if found < size:
            raise Corrupt(f"the backup's {name} ends at {found}, before {size}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises Conflict."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "backup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another backup to {folder} is under way") from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raises OutOfStorage, Unavailable in place of the system's faults."""
    try:
        yield
    except OSError as fault:
        with suppress(OSError):
            if not shutil.disk_usage(folder).free >> 20:
                raise OutOfStorage(f"the disk of {folder} is full") from fault
        raise Unavailable(f"{folder} cannot be used: {fault.strerror}") from fault
    except sqlite3.Error as fault:
        raise Unavailable(f"the database could not be copied: {fault}") from fault
