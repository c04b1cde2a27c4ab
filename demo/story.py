"""The main job, step by step, as anybody outside the gateway sees it: DIMSE, DICOMweb, the API and the command."""

import hashlib
import re
import statistics
import subprocess
import time
from datetime import datetime
from typing import Any

import httpx
import imagecodecs
import numpy as np

from . import network
from .gateway import ROOT, Gateway, environment, ours
from .network import value
from .screen import NotAsItShouldBe, Screen, size
from .series import Sample, samples

NEW_NAME = "Roe^Jane"
_STORED = "application/octet-stream; transfer-syntax=*"
_NATIVE = "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
_HTJ2K = "1.2.840.10008.1.2.4.202"
_START_S = 60.0
_IMPORT_S = 20.0
_ENCODE_S = 20.0
_FRAME_READS = 7


class Story:
    """Tells each step on the screen and checks it. Every step raises NotAsItShouldBe."""

    def __init__(self, screen: Screen, gateway: Gateway) -> None:
        self._screen = screen
        self._gateway = gateway
        self._ct, self._mr = samples()

    def tell(self) -> None:
        """All of it, from an empty folder to the third version."""
        self.start()
        with httpx.Client(base_url=self._gateway.http, timeout=30) as http:
            self._http = http
            self.c_store()
            self.stow()
            self.imports()
            self.image_sets()
            self.search()
            self.frames()
            self.rename()
            self.history()
            self.revert()
        self.what_next()

    def start(self) -> None:
        screen, gateway = self._screen, self._gateway
        screen.step("A gateway starts", "One command and an empty folder; here on free ports.")
        screen.command("imageset-gateway serve")
        screen.wait("starting", lambda: gateway.listens() or None, _START_S)
        screen.say(f"DICOMweb and HealthImaging API  {gateway.http}")
        screen.say(f"DICOM                           {gateway.aet} at {gateway.dimse}")
        screen.say(f"data store                      {gateway.datastore}")
        screen.check(True, f"ready after {time.monotonic() - gateway.began:.1f} s")

    def c_store(self) -> None:
        screen, gateway, sample = self._screen, self._gateway, self._ct
        screen.step("A scanner sends a series by C-STORE", _told(sample))
        screen.command(f"C-STORE  {network.CALLING} -> {gateway.aet} at {gateway.dimse}, one association")
        began = time.monotonic()
        with screen.progress("sending", len(sample.files)) as sent:
            statuses = network.c_store(gateway.dimse, gateway.aet, sample, sent)
        released = time.monotonic()
        screen.check(
            set(statuses) == {0}, f"{len(statuses)} times status 0000 (on the disk), {released - began:.1f} s in all"
        )
        screen.wait("importing", lambda: self._stored(sample) or None, _IMPORT_S)
        screen.check(True, f"all found by QIDO-RS {(time.monotonic() - released) * 1000:.0f} ms after the release")

    def stow(self) -> None:
        screen, sample = self._screen, self._mr
        screen.step("A workstation sends another by STOW-RS", _told(sample))
        screen.command(f"POST {self._gateway.http}/dicomweb/studies")
        began = time.monotonic()
        with screen.progress("sending", len(sample.files)) as sent:
            response = network.stow(self._http, sample.files, sent)
        took_s = time.monotonic() - began
        answer = _json(response)
        kept = answer.get("00081199", {}).get("Value", [])
        failed = answer.get("00081198", {}).get("Value", [])
        screen.check(
            response.status_code == 200 and len(kept) == len(sample.files) and not failed,
            f"HTTP {response.status_code}, {len(kept)} instances stored and readable, {took_s:.1f} s in all",
        )

    def imports(self) -> None:
        screen = self._screen
        screen.step("What the import jobs did", "Both doors stage to the disk; the same kind of job does the rest.")
        screen.command(f"GET {self._gateway.http}/metrics")
        rows = []
        text = self._http.get("/metrics").text
        for source, sample in (("dimse", self._ct), ("stow", self._mr)):
            jobs = _metric(text, "gateway_import_seconds_count", source=source)
            seconds = _metric(text, "gateway_import_seconds_sum", source=source)
            stored = _metric(text, "gateway_instances_total", source=source, outcome="stored")
            missing = len(sample.files) - stored
            rows.append((source, f"{jobs:.0f}", f"{stored:.0f}", f"{missing:.0f}", f"{seconds:.2f} s"))
        screen.table(("door", "jobs", "imported", "not imported", "time"), rows)
        screen.check(all(row[3] == "0" for row in rows), "every instance that was sent is imported")
        screen.wait("compressing frames", lambda: self._is_encoded() or None, _ENCODE_S)
        screen.check(True, "every frame is compressed to HTJ2K, lossless")

    def image_sets(self) -> None:
        screen, gateway = self._screen, self._gateway
        screen.step("The series are image sets now", "Pixels never change; every edit is a new, numbered version.")
        screen.command(f"POST {gateway.http}/datastore/{gateway.datastore}/searchImageSets")
        found = self._post("searchImageSets")["imageSetsMetadataSummaries"]
        by_series = {one["DICOMTags"]["DICOMSeriesInstanceUID"]: one for one in found}
        rows = []
        for one in found:
            tags = one["DICOMTags"]
            rows.append((one["imageSetId"], one["version"], tags["DICOMSeriesModality"], tags["DICOMPatientName"]))
        screen.table(("image set", "version", "modality", "patient"), rows)
        expected = {self._ct.series, self._mr.series}
        screen.check(
            set(by_series) == expected and len(found) == 2 and all(one["version"] == 1 for one in found),
            "two series, two image sets, both in version 1",
        )
        self._set: str = by_series[self._mr.series]["imageSetId"]

    def search(self) -> None:
        screen, gateway, sample = self._screen, self._gateway, self._mr
        screen.step("Both doors find the same", "QIDO-RS and C-FIND, by patient id.")
        patient = str(sample.one.PatientID)
        query = f"/dicomweb/studies?PatientID={patient}&StudyInstanceUID={sample.study}"
        screen.command(f"GET {gateway.http}{query}")
        began = time.monotonic()
        rows = _list(self._http.get(query))
        took_ms = (time.monotonic() - began) * 1000
        heads = ("patient", "id", "modality", "date", "instances", "study")
        web = [tuple(value(row, tag) for tag in _STUDY_TAGS.values()) for row in rows]
        screen.table(heads, web)
        screen.say(f"{took_ms:.1f} ms", "dim")
        screen.command(f"C-FIND  STUDY, PatientID={patient}, at {gateway.dimse}")
        keys = dict.fromkeys(_STUDY_TAGS, "") | {"PatientID": patient, "StudyInstanceUID": sample.study}
        matches = network.c_find(gateway.dimse, gateway.aet, **keys)
        dimse = [tuple(str(match.get(keyword, "")) for keyword in _STUDY_TAGS) for match in matches]
        screen.table(heads, dimse)
        screen.check(len(web) == 1 and web == dimse, "one study, and the two answers are equal")
        screen.check(web[0][4] == str(len(sample.files)), f"with all {len(sample.files)} instances")

    def frames(self) -> None:
        screen, sample = self._screen, self._mr
        screen.step(
            "A frame, stored and uncompressed", "HTJ2K for viewers that decode it, Explicit VR LE for all others."
        )
        path = f"{self._series_path(sample)}/instances/{sample.one.SOPInstanceUID}/frames/1"
        screen.command(f"GET {self._gateway.http}{path}")
        stored, stored_type, stored_ms = self._frame(path, _STORED)
        native, native_type, native_ms = self._frame(path, _NATIVE)
        screen.table(
            ("Accept", "transfer syntax", "size", "time (median)"),
            [
                (_STORED, f"{_HTJ2K} (HTJ2K lossless)", size(len(stored)), f"{stored_ms:.1f} ms"),
                (_NATIVE, "1.2.840.10008.1.2.1 (Explicit VR LE)", size(len(native)), f"{native_ms:.1f} ms"),
            ],
        )
        screen.check(_HTJ2K in stored_type, f"stored losslessly at 1 : {len(native) / len(stored):.1f}")
        sent = sample.one.PixelData[: len(native)]
        digest = hashlib.sha256(sent).hexdigest()[:16]
        screen.check(
            "1.2.840.10008.1.2.1" in native_type and native == sent,
            f"uncompressed: the very pixels that were sent (SHA-256 {digest}...)",
        )
        decoded = np.asarray(imagecodecs.htj2k_decode(stored)).astype(sample.one.pixel_array.dtype)
        screen.check(np.array_equal(decoded, sample.one.pixel_array), "as stored: the same, decoded here")

    def rename(self) -> None:
        screen, sample = self._screen, self._mr
        screen.step("The patient's name is corrected: version 2", f"{sample.patient} becomes {NEW_NAME}.")
        self._edit("--version", "1", "--set", f"PatientName={NEW_NAME}")
        query = "/dicomweb/studies?PatientName=Roe*"
        screen.command(f"GET {self._gateway.http}{query}")
        self._found_as(_list(self._http.get(query)), NEW_NAME)
        keys = {"PatientName": NEW_NAME, "StudyInstanceUID": ""}
        matches = network.c_find(self._gateway.dimse, self._gateway.aet, **keys)
        screen.check([str(match.StudyInstanceUID) for match in matches] == [sample.study], "C-FIND shows it, too")

    def history(self) -> None:
        screen, sample = self._screen, self._mr
        screen.step("Nothing is overwritten", "The old version stays readable, for ever and under its number.")
        path = f"{self._series_path(sample)}/metadata"
        names = {}
        for query in ("?version=1", "?version=2", ""):
            screen.command(f"GET {self._gateway.http}{path}{query}")
            instances = _list(self._http.get(path + query))
            names[query] = {value(instance, "00100010") for instance in instances}
            screen.say(f"{len(instances)} instances of {', '.join(sorted(names[query]))}")
        screen.check(
            names == {"?version=1": {sample.patient}, "?version=2": {NEW_NAME}, "": {NEW_NAME}},
            "version 1 has the old name, version 2 the new one, and version 2 is the latest",
        )
        self._versions(2)

    def revert(self) -> None:
        screen, sample = self._screen, self._mr
        screen.step("It was the wrong patient: back again, as version 3")
        self._edit("--revert", "1")
        self._found_as(_list(self._http.get(f"/dicomweb/studies?StudyInstanceUID={sample.study}")), sample.patient)
        others = _list(self._http.get("/dicomweb/studies?PatientName=Roe*"))
        screen.check(others == [], f"nobody is called {NEW_NAME} any more")
        self._versions(3)

    def what_next(self) -> None:
        screen, gateway, sample = self._screen, self._gateway, self._mr
        host, _, port = gateway.dimse.rpartition(":")
        keys = f"-k QueryRetrieveLevel=STUDY -k PatientName -k StudyInstanceUID={sample.study}"
        command = " ".join(ours())
        frame = f"{self._series_path(sample)}/instances/{sample.one.SOPInstanceUID}/frames/1"
        screen.step("Commands to try next")
        screen.say(
            f"""
# DCMTK: send a file, search
storescu -aec {gateway.aet} {host} {port} {sample.files[-1]}
findscu -S -aec {gateway.aet} {keys} {host} {port}

# curl: search, metadata of version 2, a frame as stored
curl -s '{gateway.http}/dicomweb/studies?PatientID={sample.one.PatientID}'
curl -s '{gateway.http}{self._series_path(sample)}/metadata?version=2'
curl -s -H 'Accept: {_STORED}' -o frame.j2c '{gateway.http}{frame}'

# the command itself (from the folder {ROOT}): import, edit, look at the work
{command} import {sample.files[0].parent} --url {gateway.http}
{command} edit {gateway.datastore} {self._set} --set StudyDescription=Checked --url {gateway.http}
{command} queue --url {gateway.http}

# Python: pip install dicomweb-client
from dicomweb_client.api import DICOMwebClient
client = DICOMwebClient("{gateway.http}/dicomweb")
print(client.search_for_studies(search_filters={{"StudyInstanceUID": "{sample.study}"}}))

# Python: pip install boto3; the host of an endpoint of your own takes no prefix
import boto3
from botocore.config import Config
imaging = boto3.client("medical-imaging", endpoint_url="{gateway.http}", region_name="us-east-1",
    aws_access_key_id="any", aws_secret_access_key="any", config=Config(inject_host_prefix=False))
print(imaging.list_image_set_versions(datastoreId="{gateway.datastore}", imageSetId="{self._set}"))
""".strip()
        )

    def _edit(self, *arguments: str) -> None:
        gateway = self._gateway
        words = ["edit", gateway.datastore, self._set, *arguments]
        self._screen.command(f"imageset-gateway {' '.join(words)}")
        done = subprocess.run(
            [*ours(), *words, "--url", gateway.http],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        self._screen.say(done.stdout.strip() or done.stderr.strip())
        if done.returncode != 0:
            raise NotAsItShouldBe("the edit makes a new version")

    def _found_as(self, studies: list[dict[str, Any]], name: str) -> None:
        found = [(value(study, "0020000D"), value(study, "00100010")) for study in studies]
        self._screen.check(found == [(self._mr.study, name)], f"QIDO-RS shows the study as {name}")

    def _versions(self, latest: int) -> None:
        gateway, screen = self._gateway, self._screen
        screen.command(f"POST {gateway.http}/datastore/{gateway.datastore}/imageSet/{self._set}/listImageSetVersions")
        listed = self._post(f"imageSet/{self._set}/listImageSetVersions")["imageSetPropertiesList"]
        screen.table(
            ("version", "made at", "state", "work"),
            [
                (
                    one["versionId"],
                    f"{datetime.fromtimestamp(one.get('updatedAt', one['createdAt'])):%Y-%m-%d %H:%M:%S}",
                    one["imageSetState"],
                    one["ImageSetWorkflowStatus"],
                )
                for one in listed
            ],
        )
        numbers = sorted(int(one["versionId"]) for one in listed)
        screen.check(numbers == list(range(1, latest + 1)), f"versions 1 to {latest}, without a gap")

    def _series_path(self, sample: Sample) -> str:
        return f"/dicomweb/studies/{sample.study}/series/{sample.series}"

    def _stored(self, sample: Sample) -> bool:
        found = _list(self._http.get(f"/dicomweb/studies?StudyInstanceUID={sample.study}"))
        return bool(found) and value(found[0], "00201208") == str(len(sample.files))

    def _is_encoded(self) -> bool:
        work = _json(self._http.get("/queue"))["work"]
        return not any(state["waiting"] or state["running"] for state in work.values())

    def _frame(self, path: str, accept: str) -> tuple[bytes, str, float]:
        """The frame, its content type, and the median time of some requests in milliseconds."""
        times = []
        for _ in range(_FRAME_READS):
            began = time.monotonic()
            response = self._http.get(path, headers={"accept": accept})
            times.append((time.monotonic() - began) * 1000)
            if response.status_code != 200:
                raise NotAsItShouldBe(f"the frame is there as {accept}: HTTP {response.status_code}")
        return response.content, response.headers["content-type"], statistics.median(times)

    def _post(self, operation: str) -> dict[str, Any]:
        path = f"/datastore/{self._gateway.datastore}/{operation}"
        answer: dict[str, Any] = _json(self._http.post(path, content=b"{}"))
        return answer


_STUDY_TAGS = {
    "PatientName": "00100010",
    "PatientID": "00100020",
    "ModalitiesInStudy": "00080061",
    "StudyDate": "00080020",
    "NumberOfStudyRelatedInstances": "00201208",
    "StudyInstanceUID": "0020000D",
}


def _told(sample: Sample) -> str:
    return f"{sample} ({size(sample.bytes)}), patient {sample.patient}"


def _json(response: httpx.Response) -> Any:
    """The answer. Raises NotAsItShouldBe for a refusal."""
    if response.status_code not in (200, 202, 409):
        raise NotAsItShouldBe(f"{response.request.method} {response.request.url.path}: HTTP {response.status_code}")
    return response.json()


def _list(response: httpx.Response) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _json(response)
    return found


def _metric(text: str, name: str, **labels: str) -> float:
    """One value of the Prometheus text format, 0 where it was never counted."""
    for line in re.findall(rf"^{name}{{(.*)}} (.*)$", text, re.MULTILINE):
        if dict(re.findall(r'(\w+)="([^"]*)"', line[0])) == labels:
            return float(line[1])
    return 0.0
