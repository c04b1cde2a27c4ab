"""What deployed clients send, as they send it: CL."""

from ..reading import value
from ..samples import Sample, part10
from ..server import DICOM_JSON, multipart
from ..suite import Trial, case
from .negotiation import FRAMES, INSTANCES

_OHIF_FRAMES = "multipart/related; type=application/octet-stream; transfer-syntax=*"
_BROWSER = "text/html, application/xhtml+xml, application/xml;q=0.9, image/webp, */*;q=0.8"
_JDK = "text/html, image/gif, image/jpeg, */*; q=.2, */*; q=.2"


@case("CL-01")
def ohif_study_list(t: Trial) -> None:
    a, b = t.sample("A/1/1"), t.sample("B/1/1")
    usual = (
        "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"
        f"&00100020={t.samples.patient_id('A')}"
    )
    family = t.samples.family()
    for more in (
        "",
        f"&PatientName=*{family}*",
        f"&AccessionNumber={t.samples.searched}",
        "&StudyDescription=*Head*",
        "&ModalitiesInStudy=CT",
        "&StudyDate=19700102-20261231",
        f"&StudyInstanceUID={a.study}%5C{b.study}",
    ):
        t.finds("/studies", usual + more, {"A"}, more)


@case("CL-02")
def ohif_study(t: Trial) -> None:
    a = t.sample("A/1/1")
    rows = t.rows(f"{a.study_path}/series", "includefield=0008103E%2C00080021")
    t.equal(len(rows), 2, "series")
    for row in rows:
        found = t.rows(f"{a.study_path}/series/{value(row, '0020000E')}/metadata")
        t.equal(len(found), value(row, "00201209"), "instances in the metadata of a series")


@case("CL-03")
def ohif_accept(t: Trial) -> None:
    path = f"{t.sample('ct').path}/frames/1"
    jp2 = 'multipart/related; type="image/jp2"; transfer-syntax="1.2.840.10008.1.2.4.90"; transfer-syntax="*"'
    for accept in (f'{FRAMES}; transfer-syntax="*"', jp2):
        t.status(t.get(path, accept=accept), 200, accept)


@case("CL-04")
def cornerstone_frames(t: Trial) -> None:
    path = f"{t.sample('multi-frame').path}/frames/2"
    whole = t.must_be(t.get(path, accept=_OHIF_FRAMES), 200)
    part = t.parts(whole)[0]
    t.expect("Content-Type" in part.names, f"header names {part.names}")
    t.expect(part.parameter("transfer-syntax"), "the part does not name its transfer syntax")
    ranged = t.get(path, accept=_OHIF_FRAMES, headers={"Range": "bytes=0-65535"})
    t.status(ranged, (200, 206), "Range: bytes=0-65535")
    t.expect(ranged.body == whole.body[:65536] or ranged.body == whole.body, "another body with Range", ranged)


@case("CL-05")
def ohif_thumbnails(t: Trial) -> None:
    sample = t.sample("ct")
    t.offered("rendered", f"{sample.path}/rendered", accept="image/jpeg")
    for params, accept in (
        ("", 'multipart/related; type="application/octet-stream"'),
        ("accept=image%2Fjpeg", 'multipart/related; type="application/octet-stream"'),
        ("", "image/jpeg"),
    ):
        answer = t.get(f"{sample.path}/rendered", params, accept=accept)
        if t.status(answer, 200, f"?{params} with {accept}"):
            t.equal(answer.type, "image/jpeg", "Content-Type")
    rows = t.rows(f"{t.sample('A/1/1').series_path}/instances", "limit=1&includefield=00080018")
    t.equal(len(rows), 1, "instances with limit=1")


@case("CL-06")
def ohif_bulk_data(t: Trial) -> None:
    uri = t.metadata(t.sample("ct")).get("7FE00010", {}).get("BulkDataURI")
    t.demand(uri, "Pixel Data has no BulkDataURI")
    octets = 'multipart/related; type="application/octet-stream"'
    for accept in (octets, f"application/pdf, {octets}", None):
        t.status(t.get(str(uri), accept=accept), 200, f"Accept {accept}")


@case("CL-07")
def ohif_microscopy(t: Trial) -> None:
    t.status(t.get(f"{t.sample('rgb').path}/frames/1", accept="*/*"), 200)


@case("CL-08")
def javascript_client(t: Trial) -> None:
    t.status(t.get(t.sample("ct").path, accept=INSTANCES), 200)
    made = part10(t.samples.loose())
    body = b"\r\n--guid-1\r\nContent-Type: application/dicom\r\n\r\n" + made + b"\r\n--guid-1--"
    kind = 'multipart/related; type="application/dicom"; boundary="guid-1"'
    t.status(
        t.ask("POST", "/studies", headers={"Content-Type": kind}, content=body), (200, 202), "success is 200 or 202"
    )


@case("CL-09")
def python_client(t: Trial) -> None:
    accept = "application/dicom+json, application/json"
    params = {"AccessionNumber": t.samples.searched}
    seen = 0
    while rows := t.rows("/studies", {**params, "limit": "4", "offset": str(seen)}, accept=accept):
        seen += len(rows)
    t.equal(seen, 6, "studies, page after page")
    boundary = "0f3cf5c0-70e0-41ef-baef-c6f9f65ec3e1"
    body = multipart([("application/dicom", part10(t.samples.loose()))], boundary)
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    answer = t.ask("POST", "/studies", accept=DICOM_JSON, headers={"Content-Type": kind}, content=iter([body]))
    t.status(answer, 200, "in chunks")
    t.equal(answer.headers.get("content-type"), DICOM_JSON, "Content-Type, compared as a whole")


@case("CL-10")
def slicer(t: Trial) -> None:
    a = t.sample("A/1/1")
    for row in t.rows(f"{a.study_path}/series", accept="application/dicom+json, application/json"):
        uid = row["0020000E"]["Value"][0]
        found = t.rows(f"{a.study_path}/series/{uid}/metadata", accept="application/dicom+json, application/json")
        for one in found:
            path = f"{a.study_path}/series/{uid}/instances/{one['00080018']['Value'][0]}"
            t.equal(len(t.instances(path, f"{INSTANCES}; transfer-syntax=*")), 1, "instances")


@case("CL-11")
def weasis(t: Trial) -> None:
    a = t.sample("A/1/1")
    patient = t.samples.patient_id("A")
    t.finds("/studies", f"00100020={patient}&includefield=00080020,00080030,00080050,00081030", {"A"})
    row = t.row(f"{a.study_path}/series", f"0020000E={a.series}&includefield=00201209")
    t.equal(value(row, "00201209"), 3, "instances of the series")
    rows = t.rows(f"{a.series_path}/instances", "includefield=00080018,00200013&offset=0&limit=2")
    t.equal(len(rows), 2, "instances of the first page")
    url = str(value(row, "00081190"))
    answer = t.get(url, accept='multipart/related;type="application/dicom";transfer-syntax=*')
    t.status(answer, 200, "the series by its RetrieveURL")
    answer = t.get(f"{url}/thumbnail", "viewport=256%2C256", accept="image/jpeg")
    t.status(answer, (200, 302, 404, 405, 501), "a thumbnail, or none")


@case("CL-12")
def weasis_store(t: Trial) -> None:
    answer = t.store([("application/dicom", part10(t.samples.loose()))], accept="application/dicom+xml")
    t.status(answer, 200)
    t.equal(answer.type, "application/dicom+xml", "Content-Type")


@case("CL-13")
def dcm4che_store(t: Trial) -> None:
    body = multipart([("application/dicom", part10(t.samples.loose()))], "myboundary")
    kind = "multipart/related; type=application/dicom; boundary=myboundary"
    answer = t.ask("POST", "/studies", accept=DICOM_JSON, headers={"Content-Type": kind}, content=body)
    t.status(answer, 200)


@case("CL-14")
def dcm4che_retrieve(t: Trial) -> None:
    sample = t.sample("ct")
    t.status(t.get(f"{sample.path}/metadata", "accept=application/dicom%2Bjson", accept=None), 200)
    t.status(t.get(sample.path, "accept=multipart/related;type=application/dicom", accept=None), (200, 206))


@case("CL-15")
def google_adapter(t: Trial) -> None:
    patient = t.samples.patient_id("A")
    t.finds("/studies", f"limit=5000&includefield=00080020&PatientID={patient}&", {"A"}, "& at the end")
    answer = t.get("/studies", {"PatientID": patient}, accept=_JDK)
    t.status(answer, 200, _JDK)
    t.status(t.get(t.sample("ct").path, accept="application/dicom; transfer-syntax=*"), 200)
    t.status(t.get(f"{t.sample('A/1/1').study_path}/instances", "limit=50000"), 200)


@case("CL-16")
def browsers(t: Trial) -> None:
    for accept in (_BROWSER, _JDK):
        answer = t.get(f"{t.sample('ct').path}/metadata", accept=accept)
        if t.status(answer, 200, accept):
            t.equal(answer.type, DICOM_JSON, "Content-Type")


@case("CL-17")
def test_suites(t: Trial) -> None:
    sample: Sample = t.sample("ct")
    accept = 'multipart/related;   type =  "application/octet-stream"'
    t.status(t.get(f"{sample.path}/frames/1", accept=accept), 200, accept)
    t.status(t.get(f"{sample.path}/metadata", accept="toto, application/dicom+json"), 200, "toto, …")
