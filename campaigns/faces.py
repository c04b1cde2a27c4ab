"""The public HTTP faces as a campaign uses them: STOW-RS, QIDO-RS, WADO-RS and the HealthImaging API."""

import base64
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from campaigns.instances import NATIVE, Instance
from tests.running import RunningGateway

INSTANCE, SERIES, STUDY = "00080018", "0020000E", "0020000D"


class Unexpected(Exception):
    """An answer that no working gateway gives."""

    def __init__(self, what: str, answer: httpx.Response) -> None:
        super().__init__(f"{what} answered {answer.status_code}: {answer.text[:300]}")
        self.status = answer.status_code


@dataclass(frozen=True, slots=True)
class Version:
    """One row of ListImageSetVersions."""

    number: int
    state: str
    workflow: str
    message: str


class Faces:
    """A client of one gateway; for one thread. Raises httpx.HTTPError when nobody answers, Unexpected."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway = gateway
        self._http = httpx.Client(timeout=60)

    def __enter__(self) -> "Faces":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # STOW-RS

    def stow(self, instances: Sequence[Instance]) -> set[str]:
        """The SOP Instance UIDs that ReferencedSOPSequence acknowledges, of one request (PS3.18 §10.5.3)."""
        boundary = uuid.uuid4().hex
        body = b"".join(
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + one.part10 + b"\r\n"
            for one in instances
        )
        answer = self._http.post(
            f"{self._gateway.http}/dicomweb/studies",
            headers={
                "content-type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "accept": "application/dicom+json",
            },
            content=body + f"--{boundary}--\r\n".encode(),
        )
        if answer.status_code not in (200, 202, 409):
            raise Unexpected("STOW", answer)
        items = answer.json().get("00081199", {}).get("Value", [])
        return {item["00081155"]["Value"][0] for item in items}

    # QIDO-RS and WADO-RS

    def rows(self, path: str, **query: str) -> list[dict[str, Any]]:
        """The answers of a search, all pages."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._get(f"/dicomweb{path}", {"limit": "5000", "offset": str(len(found)), **query}).json()
            found += page
            if len(page) < 5000:
                return found

    def metadata(self, study: str, series: str, version: int | None = None) -> list[dict[str, Any]]:
        """The DICOM JSON of a series, as of a version."""
        query = {} if version is None else {"version": str(version)}
        answer = self._get(f"/dicomweb/studies/{study}/series/{series}/metadata", query)
        found: list[dict[str, Any]] = answer.json()
        return found

    def frame(self, study: str, series: str, sop: str) -> bytes:
        """The first frame in Explicit VR Little Endian."""
        accept = f'multipart/related; type="application/octet-stream"; transfer-syntax={NATIVE}'
        answer = self._get(
            f"/dicomweb/studies/{study}/series/{series}/instances/{sop}/frames/1", {}, accept=accept
        )
        boundary = answer.headers["content-type"].partition("boundary=")[2].split(";")[0].strip('"').encode()
        return answer.content.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--" + boundary + b"--")[0]

    # HealthImaging API

    def image_sets(self, study: str) -> list[dict[str, Any]]:
        """SearchImageSets by study, all pages."""
        criteria = {"filters": [{"values": [{"DICOMStudyInstanceUID": study}], "operator": "EQUAL"}]}
        return self._pages("searchImageSets", "imageSetsMetadataSummaries", criteria)

    def image_set(self, image_set: str) -> dict[str, Any]:
        """GetImageSet."""
        return self._call(f"imageSet/{image_set}/getImageSet", None)

    def versions(self, image_set: str) -> list[Version]:
        """ListImageSetVersions, from 1 upwards."""
        listed = self._pages(f"imageSet/{image_set}/listImageSetVersions", "imageSetPropertiesList", None)
        return sorted(
            (
                Version(
                    int(one["versionId"]),
                    one["imageSetState"],
                    one.get("ImageSetWorkflowStatus") or "",
                    one.get("message") or "",
                )
                for one in listed
            ),
            key=lambda one: one.number,
        )

    def document(self, image_set: str, version: int) -> dict[str, Any]:
        """GetImageSetMetadata of a version."""
        return self._call(f"imageSet/{image_set}/getImageSetMetadata", {}, {"version": str(version)})

    def update(
        self,
        image_set: str,
        latest: int,
        *,
        set: dict[str, Any] | None = None,
        revert: int | None = None,
        study: bool = False,
    ) -> bool:
        """UpdateImageSetMetadata; whether it was accepted: that others were first is an ordinary no."""
        if revert is not None:
            body: dict[str, Any] = {"revertToVersionId": str(revert)}
        else:
            document = json.dumps({"SchemaVersion": 1.1, **(set or {})}).encode()
            body = {"DICOMUpdates": {"updatableAttributes": base64.b64encode(document).decode()}}
        query = {"latestVersion": str(latest)}
        if study:
            query["includeStudyImageSets"] = "true"
        answer = self._post(f"imageSet/{image_set}/updateImageSetMetadata", body, query)
        if answer.status_code == 409 or (answer.status_code == 404 and "not the latest" in answer.text):
            return False
        if answer.status_code not in (200, 202):
            raise Unexpected("UpdateImageSetMetadata", answer)
        return True

    def delete(self, image_set: str) -> bool:
        """DeleteImageSet; whether it was accepted now or is gone already: that another operation holds it is no."""
        answer = self._post(f"imageSet/{image_set}/deleteImageSet", None, {})
        if answer.status_code not in (200, 202, 404, 409):
            raise Unexpected("DeleteImageSet", answer)
        return answer.status_code != 409

    # operations

    def queue(self) -> dict[str, Any]:
        """`/queue`: waiting and running work, and the processes."""
        found: dict[str, Any] = self._get("/queue", {}).json()
        return found

    def conflicts(self) -> int:
        """How many conflicts the default data store has listed."""
        answer = self._get(f"/datastore/{self._gateway.datastore}/conflicts", {}).json()
        return len(answer.get("conflicts", answer) if isinstance(answer, dict) else answer)

    def _get(self, path: str, query: dict[str, str], accept: str = "*/*") -> httpx.Response:
        answer = self._http.get(self._gateway.http + path, params=query, headers={"accept": accept})
        if answer.status_code == 204:
            return httpx.Response(200, json=[])
        if answer.status_code != 200:
            raise Unexpected(path, answer)
        return answer

    def _post(self, path: str, body: Any, query: dict[str, str]) -> httpx.Response:
        content = b"" if body is None else json.dumps(body).encode()
        return self._http.post(
            f"{self._gateway.http}/datastore/{self._gateway.datastore}/{path}", params=query, content=content
        )

    def _call(self, path: str, body: Any, query: dict[str, str] | None = None) -> dict[str, Any]:
        answer = self._post(path, body, query or {})
        if answer.status_code != 200:
            raise Unexpected(path.rpartition("/")[2], answer)
        found: dict[str, Any] = answer.json()
        return found

    def _pages(self, path: str, member: str, body: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        query = {"maxResults": "50"}
        while True:
            page = self._call(path, body, query)
            found += page[member]
            if not page.get("nextToken"):
                return found
            query["nextToken"] = page["nextToken"]


def value(row: dict[str, Any], tag: str) -> str:
    """The first value of an element in DICOM JSON; empty where there is none."""
    return str(next(iter(row.get(tag, {}).get("Value", ())), ""))
