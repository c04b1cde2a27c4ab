"""The quarantine: instances that were acknowledged and could not be imported, each a file of its own.

A file is one line of JSON (where the instance came from and why it is here; its length and CRC-32) and then its bytes
as received. Its name is its id, and begins with the time of its arrival.
"""

import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from isal import isal_zlib

from adapters.blobs.folder import sync_folder, translate
from gateway.domain.errors import Corrupt, NotFound
from gateway.domain.ids import JobId
from gateway.domain.model import Origin, Quarantined
from gateway.ports import Buffer

_ID = re.compile(r"[0-9]{13}-[0-9a-f]{32}-[0-9]{5}\Z")
_PIECE_BYTES = 1 << 20
_MAX_LINE = 1 << 16


class QuarantineFolder:
    """`Quarantine` in a folder. Blocking; any thread and process."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "quarantine"

    def put(self, item: Quarantined, body: Buffer) -> None:
        view = memoryview(body)
        crc = 0
        for at in range(0, len(view), _PIECE_BYTES):
            crc = isal_zlib.crc32(view[at : at + _PIECE_BYTES], crc)
        facts = {**asdict(item), "crc": crc}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part = self._folder / f".{item.id}.{secrets.token_hex(4)}"
            try:
                with part.open("xb") as file:
                    file.write(orjson.dumps(facts) + b"\n")
                    for at in range(0, len(view), _PIECE_BYTES):
                        file.write(view[at : at + _PIECE_BYTES])
                    file.flush()
                    os.fdatasync(file.fileno())
                part.rename(self._folder / item.id)
            finally:
                part.unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as fault:
            raise translate(fault) from fault

    def ids(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._folder) if _ID.match(name))
        except FileNotFoundError:
            return []

    def find(self, id: str) -> Quarantined:
        return self._facts(id)[0]

    def pieces(self, id: str) -> Iterator[bytes]:
        item, crc, start = self._facts(id)
        found, left = 0, item.length
        with self._open(id) as file:
            file.seek(start)
            while left and (piece := file.read(min(left, _PIECE_BYTES))):
                found = isal_zlib.crc32(piece, found)
                left -= len(piece)
                yield piece
        if left or found != crc:
            raise Corrupt(f"quarantined instance {id} is damaged")

    def drop(self, id: str) -> None:
        self._facts(id)
        (self._folder / id).unlink(missing_ok=True)

    def _facts(self, id: str) -> tuple[Quarantined, int, int]:
        """What is known of an item, its CRC-32, and where its bytes begin."""
        with self._open(id) as file:
            line = file.readline(_MAX_LINE)
        try:
            facts: dict[str, Any] = orjson.loads(line)
            crc = facts.pop("crc")
            origin = Origin(**facts.pop("origin"))
            return Quarantined(**{**facts, "origin": origin, "job": JobId(facts["job"])}), crc, len(line)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise Corrupt(f"quarantined instance {id} is damaged") from fault

    def _open(self, id: str) -> Any:
        try:
            if _ID.match(id):
                return (self._folder / id).open("rb")
        except FileNotFoundError:
            pass
        raise NotFound("There is no quarantined instance with this id.")
