"""What the commands `import`, `edit`, `queue` and `echo` do: they talk to a running gateway, as any client would."""

import base64
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

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


@dataclass(frozen=True, slots=True)
class File:
    """A file to send. `is_named`: somebody named it, so that it is sent whatever it looks like."""

    path: Path
    size: int
    is_named: bool


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
    ) -> dict[str, Any]:
        """Asks for a new version and waits until it is there; the image set's properties then.

        `version` is the one that the edit is meant for, None the latest. Raises InvalidInput for keywords that cannot
        be placed, VersionConflict's text as Refused when somebody else was first.
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
        self._json(
            self._send("POST", f"{path}/updateImageSetMetadata", params=params, content=orjson.dumps(body)), also=(202,)
        )
        return self._unlocked(path)

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
            raise Unavailable(
                f"no answer from {self.url} ({type(fault).__name__}): does the gateway run there? Say where with --url"
            ) from None
        except (httpx.InvalidURL, UnicodeError):
            raise InvalidInput(f"{self.url} is not a URL") from None

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
    """The files that paths mean: folders are walked, without hidden files and DICOMDIR. Raises InvalidInput."""
    found = []
    for path in paths:
        if path.is_dir():
            for folder, names, files in os.walk(path):
                names[:] = sorted(name for name in names if not name.startswith("."))
                for name in sorted(files):
                    if not name.startswith(".") and name != "DICOMDIR":
                        file = Path(folder, name)
                        found.append(File(file, file.stat().st_size, is_named=False))
        elif path.is_file():
            found.append(File(path, path.stat().st_size, is_named=True))
        else:
            raise InvalidInput(f"{path}: there is no such file or folder")
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
    with file.path.open("rb") as stream:
        start = stream.read(132)
    if start[128:] == b"DICM":
        return True
    tally.skipped.append(str(file.path))
    return False


def _parts(files: Sequence[File], boundary: str) -> Iterator[bytes]:
    for file in files:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with file.path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
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
