"""The two doors into a gateway, as an independent sender uses them, and the way to find what went through."""

import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import Any, Protocol

import httpx
import pydicom
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.dimse_primitives import C_STORE

from demo.network import undisturbed
from tests.corpus_doors.samples import Sample, Uids
from tests.running import RunningGateway

AT_ONCE = 6
_SETTLED_S = 60.0
_IN_A_REQUEST = 12
_BOUNDARY = b"corpus-doors-5f1d0c"


@dataclass
class Receipt:
    """What a door said of one file, and where the file then was."""

    stored: bool
    code: int = 0
    """Failure reason or warning reason; 0 without either."""
    message: str = ""
    image_set: str | None = None
    """Of the non-primary image set that it landed in."""
    version: int | None = None
    """Where a file shares its SOP Instance UID: the version of its image set that this one made."""
    follows: bool = False
    """The instance was there already: this one is another state of it, or the same once more."""


class Door(Protocol):
    """A way in."""

    name: str

    def send(self, files: Sequence[Sample]) -> dict[Sample, Receipt | None]:
        """Sends files of which no two share a SOP Instance UID; returns when what was accepted is imported.

        None: this door cannot carry the file.
        """
        ...

    def send_all(self, files: Sequence[Sample]) -> None:
        """Sends all in one request or association; every one must be stored. Returns when they are imported."""
        ...

    def send_between(self, files: tuple[Sample, Sample, Sample]) -> list[Receipt | None]:
        """Sends three files in one request or association, in this order, of which the middle one may be broken.

        Any thread may call it; `settle` waits for the import.
        """
        ...

    def settle(self) -> int:
        """Returns when everything that was accepted is imported: how many of it the import has refused."""
        ...


class Stow:
    """STOW-RS, some files a request."""

    name = "STOW-RS"

    def __init__(self, gateway: RunningGateway, http: httpx.Client) -> None:
        self._http = http

    def send(self, files: Sequence[Sample]) -> dict[Sample, Receipt | None]:
        batches = [files[start : start + _IN_A_REQUEST] for start in range(0, len(files), _IN_A_REQUEST)]
        receipts: dict[Sample, Receipt | None] = {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for batch, answer in zip(batches, pool.map(self._post, batches), strict=True):
                by_uid, others = answer
                assert not others
                for file in batch:
                    assert file.uids is not None
                    receipts[file] = by_uid.pop(file.uids[2])
                assert not by_uid
        return receipts

    def send_all(self, files: Sequence[Sample]) -> None:
        answer = self._request(files)
        assert answer.status_code == 200, answer.text[:500]
        assert len(answer.json()["00081199"]["Value"]) == len(files)

    def send_between(self, files: tuple[Sample, Sample, Sample]) -> list[Receipt | None]:
        by_uid, others = self._post(files)
        first, second = (by_uid.pop(file.uids[2]) for file in (files[0], files[2]) if file.uids is not None)
        (answer,) = [*by_uid.values(), *others]
        return [first, answer, second]

    def settle(self) -> int:
        return 0  # an answer comes after the import

    def _post(self, files: Sequence[Sample]) -> tuple[dict[str, Receipt], list[Receipt]]:
        """One request: the receipts by SOP Instance UID, and those of instances that have none."""
        answer = self._request(files)
        assert answer.status_code in (200, 202, 409), (answer.status_code, answer.text[:300])
        module = answer.json()
        by_uid: dict[str, Receipt] = {}
        others: list[Receipt] = []
        for tag, read in (("00081199", self._good), ("00081198", self._bad), ("0008119A", self._bad)):
            for item in module.get(tag, {}).get("Value", []):
                sop_uid = item.get("00081155", {}).get("Value", [None])[0]
                if sop_uid is None:
                    others.append(read(item))
                else:
                    assert sop_uid not in by_uid
                    by_uid[sop_uid] = read(item)
        receipts = [*by_uid.values(), *others]
        assert len(receipts) == len(files), answer.text[:500]
        stored = [receipt for receipt in receipts if receipt.stored]
        perfect = len(stored) == len(files) and not any(receipt.code for receipt in stored)
        assert answer.status_code == (409 if not stored else 200 if perfect else 202)
        return by_uid, others

    def _request(self, files: Sequence[Sample]) -> httpx.Response:
        body = b"".join(
            b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (_BOUNDARY, file.data) for file in files
        )
        return self._http.post(
            "/dicomweb/studies",
            content=body + b"--%b--\r\n" % _BOUNDARY,
            headers={"content-type": f'multipart/related; type="application/dicom"; boundary={_BOUNDARY.decode()}'},
        )

    @staticmethod
    def _good(item: dict[str, Any]) -> Receipt:
        url = item["00081190"]["Value"][0]
        found = re.search(r"\?imageSetId=([0-9a-z]{32})\Z", url)
        warning = item.get("00081196", {}).get("Value", [0])[0]
        return Receipt(True, warning, image_set=found[1] if found else None)

    @staticmethod
    def _bad(item: dict[str, Any]) -> Receipt:
        comment = item.get("00000902", {}).get("Value", [""])[0]
        return Receipt(False, item["00081197"]["Value"][0], comment)


class Dimse:
    """C-STORE of the very bytes of the files, each in a presentation context of its own class and syntax."""

    name = "C-STORE"

    def __init__(self, gateway: RunningGateway, http: httpx.Client) -> None:
        self._gateway = gateway
        self._http = http
        self._known: set[tuple[Uids, str]] = set()
        self._accepted = 0
        self._counting = Lock()

    def send(self, files: Sequence[Sample]) -> dict[Sample, Receipt | None]:
        receipts: dict[Sample, Receipt | None] = dict.fromkeys(files)
        groups: list[list[Sample]] = [[] for _ in range(3)]
        for number, file in enumerate(file for file in files if file.for_dimse() is not None):
            groups[number % len(groups)].append(file)
        with ThreadPoolExecutor(len(groups)) as pool:
            for group, answers in zip(groups, pool.map(self._associate, groups), strict=True):
                receipts.update(zip(group, answers, strict=True))
        self.settle()
        beside = {uids: image_set for uids, image_set in self._beside() if (uids, image_set) not in self._known}
        self._known.update(beside.items())
        for file, receipt in receipts.items():
            if receipt is not None and receipt.stored and file.uids is not None:
                receipt.image_set = beside.get(file.uids)
        return receipts

    def send_all(self, files: Sequence[Sample]) -> None:
        for answer in self._associate(files):
            assert answer is not None
            assert answer.stored
            assert not answer.code
        assert self.settle() == 0

    def send_between(self, files: tuple[Sample, Sample, Sample]) -> list[Receipt | None]:
        return [None, None, None] if files[1].for_dimse() is None else self._associate(files)

    def settle(self) -> int:
        deadline = time.monotonic() + _SETTLED_S
        while sum((counts := self._imported()).values()) < self._accepted:
            assert time.monotonic() < deadline, f"{counts} of {self._accepted} imported"
            time.sleep(0.05)
        assert sum(counts.values()) == self._accepted
        return counts.get("failed", 0)

    def _imported(self) -> dict[str, int]:
        """Instances by what became of them."""
        lines = re.findall(r"(?m)^gateway_instances_total\{(.+)\} (\S+)$", self._http.get("/metrics").text)
        labels = ((dict(re.findall(r'(\w+)="(\w+)"', text)), int(float(count))) for text, count in lines)
        return {each["outcome"]: count for each, count in labels if each["source"] == "dimse"}

    def _beside(self) -> Iterable[tuple[Uids, str]]:
        """Every instance in a non-primary image set, as the list of conflicts and QIDO tell."""
        token: str | None = None
        while True:
            query = {"maxResults": "100"} | ({"nextToken": token} if token else {})
            page = self._http.get("/dicomweb/conflicts", params=query).json()
            for conflict in page["conflicts"]:
                rows = self._http.get("/dicomweb/instances", params={"imageSetId": conflict["imageSetId"]}).json()
                assert len(rows) == conflict["instances"]
                for row in rows:
                    yield uids_of(row), conflict["imageSetId"]
            token = page.get("nextToken")
            if token is None:
                return

    def _associate(self, files: Sequence[Sample]) -> list[Receipt | None]:
        """One association after another, each with as many contexts as it may have."""
        answers: list[Receipt | None] = []
        waiting = list(files)
        while waiting:
            contexts: dict[tuple[str, str], None] = {}
            batch = []
            for file in waiting:
                carried = file.for_dimse()
                assert carried is not None
                contexts[carried[0], carried[2]] = None
                if len(contexts) > 120:
                    break
                batch.append(file)
            waiting = waiting[len(batch) :]
            answers += self._exchange(batch)
        return answers

    def _exchange(self, files: Sequence[Sample]) -> list[Receipt | None]:
        entity = AE(ae_title="CORPUS")
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        carried = [file.for_dimse() or ("", "", "", b"") for file in files]
        for sop_class, syntax in dict.fromkeys((one[0], one[2]) for one in carried):
            entity.add_requested_context(sop_class, syntax)
        host, port = self._gateway.dimse
        association = undisturbed(entity.associate(host, port, ae_title=self._gateway.aet))
        assert association.is_established
        accepted = {
            (str(context.abstract_syntax), str(context.transfer_syntax[0])): context.context_id
            for context in association.accepted_contexts
        }
        answers: list[Receipt | None] = []
        for number, (sop_class, sop_uid, syntax, data) in enumerate(carried, 1):
            context = accepted.get((sop_class, syntax))
            if context is None:
                answers.append(Receipt(False, 0x0122, "the presentation context was rejected"))
                continue
            request = C_STORE()
            request.MessageID = number
            request.AffectedSOPClassUID = sop_class
            request.AffectedSOPInstanceUID = sop_uid
            request.Priority = 2
            request.DataSet = BytesIO(data)
            association.dimse.send_msg(request, context)
            _, answer = association.dimse.get_msg(block=True)
            status = getattr(answer, "Status", None)
            assert status is not None, f"no answer to C-STORE of {files[number - 1].name}"
            stored = status == 0 or status >> 12 == 0xB
            answers.append(Receipt(stored, status, str(getattr(answer, "ErrorComment", "") or "")))
        association.release()
        with self._counting:
            self._accepted += sum(answer is not None and answer.stored for answer in answers)
        return answers


def uids_of(row: dict[str, Any]) -> Uids:
    """Of a row at instance level."""
    return row["0020000D"]["Value"][0], row["0020000E"]["Value"][0], row["00080018"]["Value"][0]


class ImageSets:
    """The image sets of the default data store, through the HealthImaging API."""

    def __init__(self, gateway: RunningGateway, http: httpx.Client) -> None:
        self._base = f"/datastore/{gateway.datastore}"
        self._http = http

    def search(self) -> list[dict[str, Any]]:
        """The summaries of all."""
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            query = {"maxResults": "50"} | ({"nextToken": token} if token else {})
            answer = self._http.post(f"{self._base}/searchImageSets", params=query, json={})
            assert answer.status_code == 200, answer.text
            found += answer.json()["imageSetsMetadataSummaries"]
            token = answer.json().get("nextToken")
            if token is None:
                return found

    def document(self, image_set: str) -> dict[str, Any]:
        """The metadata document of the latest version."""
        answer = self._http.post(f"{self._base}/imageSet/{image_set}/getImageSetMetadata")
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()
        return made

    def instance(self, uids: Uids, image_set: str, version: int) -> Dataset | None:
        """An instance as it was in a version; None where it was not there yet."""
        url = "/dicomweb/studies/{}/series/{}/instances/{}".format(*uids)
        answer = self._http.get(
            url, params={"imageSetId": image_set, "version": version}, headers={"accept": "application/dicom"}
        )
        if answer.status_code == 404:
            return None
        assert answer.status_code == 200, answer.text
        return pydicom.dcmread(BytesIO(answer.content))

    def latest_version(self, image_set: str) -> int:
        answer = self._http.post(f"{self._base}/imageSet/{image_set}/getImageSet")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["versionId"])

    def primary_image_set(self, series: str) -> str:
        filters = [{"DICOMSeriesInstanceUID": series}], [{"isPrimary": True}]
        criteria = {"filters": [{"operator": "EQUAL", "values": values} for values in filters]}
        answer = self._http.post(f"{self._base}/searchImageSets", json=criteria)
        assert answer.status_code == 200, answer.text
        (found,) = answer.json()["imageSetsMetadataSummaries"]
        return str(found["imageSetId"])
