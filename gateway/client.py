"""What the commands `import`, `edit`, `diff`, `queue`, `quarantine` and `echo` do.

They talk to a gateway as any client does.
"""

import base64
import functools
import os
import socket
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import quote

import httpx
import orjson

from .domain.edits import from_keywords
from .domain.errors import GatewayError, InvalidInput, Unavailable

_BATCH_FILES: Final = 100
_BATCH_BYTES: Final = 64 << 20
_CHUNK: Final = 1 << 20
_UNLOCK_S: Final = 60.0
_TIMEOUT = httpx.Timeout(10.0, read=180.0, write=180.0)


class Refused(GatewayError):
    """The gateway answered, and its answer is no."""

    code = "refused"

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


_archive = functools.lru_cache(maxsize=4)(zipfile.ZipFile)
"""An archive's table of contents is read once, however many of its files are sent."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to send. `is_named`: somebody named it, so that it is sent whatever it looks like."""

    path: Path
    size: int
    is_named: bool
    member: str | None = None
    """The file's name in the zip archive at `path`; None for a file of its own."""

    @property
    def name(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    def open(self) -> IO[bytes]:
        """Raises InvalidInput for a damaged or encrypted archive."""
        if self.member is None:
            return self.path.open("rb")
        try:
            return _archive(self.path).open(self.member)
        except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as fault:
            raise InvalidInput(f"{self.name}: it cannot be unpacked ({fault})") from None


@dataclass(slots=True)
class Tally:
    """What became of the files of an import."""

    stored: int = 0
    warned: int = 0
    skipped: list[str] = field(default_factory=list)
    """Files that are not DICOM."""
    failed: list[dict[str, str]] = field(default_factory=list)
    """`sop` (or empty), `reason` in hexadecimal, `comment`."""
    studies: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, Any]:
        return {
            "stored": self.stored,
            "warned": self.warned,
            "skipped": self.skipped,
            "failed": self.failed,
            "studies": sorted(self.studies),
        }


class Client:
    """A running gateway. Every method raises Unavailable when nobody answers, Refused when the answer is an error."""

    def __init__(self, url: str, token: str | None = None, user: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        name, _, password = (user or "").partition(":")
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url, headers=headers, auth=(name, password) if user else None, timeout=_TIMEOUT
        )

    def close(self) -> None:
        self._http.close()

    def readiness(self) -> dict[str, Any]:
        """What `/readyz` says, ready or not."""
        return self._json(self._send("GET", "/readyz"), also=(503,))

    def queue(self) -> dict[str, Any]:
        """Waiting and running work, and the processes."""
        return self._json(self._send("GET", "/queue"))

    # quarantine

    def quarantined(self) -> Iterator[dict[str, Any]]:
        """What is in the quarantine, the oldest first."""
        after = ""
        while True:
            page = self._json(self._send("GET", "/quarantine", params={"limit": "1000", "after": after}))
            yield from page["quarantine"]
            if not (after := page.get("next", "")):
                return

    def fetch_quarantined(self, id: str, target: IO[bytes]) -> None:
        """Writes an instance as it was received, as a DICOM file."""
        try:
            with self._http.stream("GET", f"/quarantine/{quote(id, safe='')}") as response:
                if response.status_code != 200:
                    response.read()
                    self._json(response)
                for piece in response.iter_bytes():
                    target.write(piece)
        except httpx.HTTPError as fault:
            raise self._nobody(fault) from None

    def retry_quarantined(self, id: str) -> dict[str, Any]:
        """Has it imported once more: `stored`, and `reason` and `message` if it was not."""
        return self._json(self._send("POST", f"/quarantine/{quote(id, safe='')}"), also=(202,))

    def drop_quarantined(self, id: str) -> None:
        """Forgets it for good."""
        self._json(self._send("DELETE", f"/quarantine/{quote(id, safe='')}"), also=(204,))

    # import

    def store(self, files: Iterable[File], datastore: str | None) -> Iterator[tuple[int, int, Tally]]:
        """Sends files by STOW-RS in batches; after each: its files, its bytes, what became of them."""
        base = f"/datastore/{datastore}" if datastore else "/dicomweb"
        for batch in _batches(files):
            tally = Tally()
            sent = [file for file in batch if _is_wanted(file, tally)]
            if sent:
                self._store_batch(base, sent, tally)
            yield len(batch), sum(file.size for file in batch), tally

    def _store_batch(self, base: str, files: Sequence[File], tally: Tally) -> None:
        boundary = uuid.uuid4().hex
        response = self._send(
            "POST",
            f"{base}/studies",
            headers={
                "content-type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "accept": "application/dicom+json",
            },
            content=_parts(files, boundary),
        )
        answer = self._json(response, also=(202, 409))
        for item in _items(answer, "00081199"):
            tally.stored += 1
            tally.warned += "00081196" in item
            study = _value(item, "00081190")
            if "/studies/" in study:
                tally.studies.add(study.split("/studies/")[1].split("/")[0])
        # Instances that were refused, and those that could not even be named (PS3.18 §10.5.3).
        for item in (*_items(answer, "00081198"), *_items(answer, "0008119A")):
            reason = _value(item, "00081197")
            comment = _value(item, "00000902") or _value(item, "00741048")
            tally.failed.append(
                {"sop": _value(item, "00081155"), "reason": f"{int(reason or 0):04X}", "comment": comment}
            )

    # edit

    def edit(
        self,
        datastore: str,
        image_set: str,
        *,
        version: int | None,
        set: Mapping[str, str],
        remove: Sequence[str],
        revert: int | None,
        series: str | None,
        instance: str | None,
        force: bool,
        study: bool,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Asks for a new version and waits until it is there; the image set's properties then.

        With `dry_run` nothing is changed, and the answer has the `differences` that there would be. `version` is the
        one that the edit is meant for, None the latest. Raises InvalidInput for keywords that cannot be placed,
        VersionConflict's text as Refused when somebody else was first.
        """
        path = f"/datastore/{datastore}/imageSet/{image_set}"
        if version is None:
            version = int(self._json(self._send("POST", f"{path}/getImageSet", content=b""))["versionId"])
        if revert is not None:
            body: dict[str, Any] = {"revertToVersionId": str(revert)}
        else:
            response = self._send(
                "POST", f"{path}/getImageSetMetadata", params={"version": str(version)}, content=b"{}"
            )
            current = self._json(response)
            updates = {}
            for name, document in zip(
                ("updatableAttributes", "removableAttributes"),
                from_keywords(set, remove, current, series, instance),
                strict=True,
            ):
                if document is not None:
                    updates[name] = base64.b64encode(orjson.dumps(document)).decode()
            body = {"DICOMUpdates": updates}
        params = {"latestVersion": str(version)}
        if force:
            params["force"] = "true"
        if study:
            params["includeStudyImageSets"] = "true"
        if dry_run:
            params["dryRun"] = "true"
        answer = self._json(
            self._send("POST", f"{path}/updateImageSetMetadata", params=params, content=orjson.dumps(body)), also=(202,)
        )
        return answer if dry_run else self._unlocked(path)

    def diff(self, datastore: str, image_set: str, start: int | None, end: int | None) -> dict[str, Any]:
        """What differs between two versions; by default the latest one and the one before it."""
        params = {name: str(version) for name, version in (("from", start), ("to", end)) if version is not None}
        return self._json(self._send("GET", f"/datastore/{datastore}/imageSet/{image_set}/diff", params=params))

    def _unlocked(self, path: str) -> dict[str, Any]:
        deadline = time.monotonic() + _UNLOCK_S
        pause = 0.02
        while True:
            properties = self._json(self._send("POST", f"{path}/getImageSet", content=b""))
            if properties.get("imageSetState") != "LOCKED":
                if properties.get("imageSetWorkflowStatus") == "UPDATE_FAILED":
                    raise Refused(409, properties.get("message") or "the update failed")
                return properties
            if time.monotonic() > deadline:
                raise Unavailable(f"the image set is still locked after {_UNLOCK_S:g} s; look again with `queue`")
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)

    # wire

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **request)
        except httpx.HTTPError as fault:
            raise self._nobody(fault) from None
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidInput(f"{self.url} is not a URL") from None

    def _nobody(self, fault: Exception) -> Unavailable:
        return Unavailable(
            f"no answer from {self.url} ({type(fault).__name__}): does the gateway run there? Say where with --url"
        )

    def _json(self, response: httpx.Response, also: tuple[int, ...] = ()) -> dict[str, Any]:
        try:
            document: Any = orjson.loads(response.content or b"{}")
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise Refused(response.status_code, f"{self.url} answered {response.status_code}, not as a gateway does")
        if response.status_code != 200 and response.status_code not in also:
            said = document.get("message") or document.get("detail") or response.reason_phrase
            raise Refused(response.status_code, f"{said} (HTTP {response.status_code})")
        return document


def echo(address: str, called: str, calling: str = "ECHOSCU") -> float:
    """One C-ECHO (PS3.4 A) to `HOST:PORT`; seconds from the connection to the answer. Raises Unavailable, Refused."""
    from pynetdicom import AE

    host, _, port = address.rpartition(":")
    began = time.monotonic()
    entity = AE(ae_title=calling)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = 10
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate(host.strip("[]"), int(port), ae_title=called)
    if not association.is_established:
        if association.is_rejected:
            raise Refused(0, f"{called} at {address} rejected the association")
        raise Unavailable(f"no DICOM association with {called} at {address}")
    try:
        status = association.send_c_echo()
    finally:
        association.release()
    if getattr(status, "Status", None) != 0:
        raise Refused(0, f"{called} at {address} did not answer C-ECHO with success")
    return time.monotonic() - began


def files_under(paths: Sequence[Path]) -> list[File]:
    """The files that paths mean.

    Folders are walked and zip archives opened, without hidden files and DICOMDIR; a DICOMDIR that was named stands for
    the files that it refers to. Raises InvalidInput.
    """
    found = []
    for path in paths:
        if path.is_dir():
            for folder, names, files in os.walk(path):
                names[:] = sorted(name for name in names if not name.startswith("."))
                for name in sorted(files):
                    if _is_content(name):
                        file = Path(folder, name)
                        if name.lower().endswith(".zip"):
                            found += _members(file)
                        else:
                            found.append(File(file, file.stat().st_size, is_named=False))
        elif not path.is_file():
            raise InvalidInput(f"{path}: there is no such file or folder")
        elif path.name.upper() == "DICOMDIR":
            found += _referenced(path)
        elif zipfile.is_zipfile(path):
            found += _members(path)
        else:
            found.append(File(path, path.stat().st_size, is_named=True))
    return found


def _is_content(name: str) -> bool:
    return not name.startswith(".") and name.upper() != "DICOMDIR"


def _members(path: Path) -> list[File]:
    """The files in a zip archive, by name."""
    try:
        entries = _archive(path).infolist()
    except (zipfile.BadZipFile, OSError) as fault:
        raise InvalidInput(f"{path}: it is not a zip archive that can be read ({fault})") from None
    names = {entry.filename: entry for entry in entries if not entry.is_dir()}
    wanted = [name for name in sorted(names) if all(map(_is_content, PurePosixPath(name).parts))]
    return [File(path, names[name].file_size, is_named=False, member=name) for name in wanted]


def _referenced(path: Path) -> list[File]:
    """The files that a DICOMDIR refers to (PS3.10 8.6), whatever case the medium's file system shows them in."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        records = dcmread(path).get("DirectoryRecordSequence") or []
    except (InvalidDicomError, EOFError, ValueError) as fault:
        raise InvalidInput(f"{path}: it is not a DICOMDIR that can be read ({type(fault).__name__})") from None
    listed: dict[Path, dict[str, Path]] = {}

    def below(folder: Path, name: str) -> Path | None:
        if folder not in listed:
            listed[folder] = {entry.name.upper(): entry for entry in folder.iterdir()} if folder.is_dir() else {}
        there = listed[folder]
        return there.get(name.upper()) or there.get(f"{name.upper()}.DCM")

    found = []
    missing = []
    for record in records:
        parts = record.get("ReferencedFileID")
        if not parts:
            continue
        names = [parts] if isinstance(parts, str) else list(parts)
        place: Path | None = path.parent
        for name in names:
            place = below(place, name) if place is not None else None
        if place is not None and place.is_file():
            found.append(File(place, place.stat().st_size, is_named=True))
        else:
            missing.append("/".join(names))
    if missing:
        raise InvalidInput(
            f"{path}: {len(missing)} of the files that it names are not there, {missing[0]} for one. "
            "Import the folder to send what there is"
        )
    return found


def _batches(files: Iterable[File]) -> Iterator[list[File]]:
    batch: list[File] = []
    size = 0
    for file in files:
        if batch and (len(batch) >= _BATCH_FILES or size + file.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _is_wanted(file: File, tally: Tally) -> bool:
    """Files that somebody named, and those that say that they are DICOM (PS3.10 7.1)."""
    if file.is_named:
        return True
    with file.open() as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    tally.skipped.append(file.name)
    return False


def _parts(files: Sequence[File], boundary: str) -> Iterator[bytes]:
    for file in files:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with file.open() as stream:
            try:
                while chunk := stream.read(_CHUNK):
                    yield chunk
            except (zipfile.BadZipFile, zlib.error) as fault:
                raise InvalidInput(f"{file.name}: it cannot be unpacked ({fault})") from None
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _items(answer: Mapping[str, Any], tag: str) -> Sequence[Mapping[str, Any]]:
    items: Sequence[Mapping[str, Any]] = answer.get(tag, {}).get("Value", ())
    return items


def _value(item: Mapping[str, Any], tag: str) -> str:
    return str(next(iter(item.get(tag, {}).get("Value", ())), ""))


def port_is_free(host: str, port: int) -> bool:
    """Whether a listener could take the address now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
