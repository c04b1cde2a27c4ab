"""Root and resources: ROOT, CAP, URI, DEL."""

from ..reading import texts, value
from ..samples import part10
from ..suite import NotApplicable, Trial, case

_MULTIPART_DICOM = 'multipart/related; type="application/dicom"'


@case("ROOT-01")
def one_base(t: Trial) -> None:
    sample = t.sample("ct")
    t.status(t.get("/studies", {"PatientID": t.samples.mine}), 200, "search")
    t.status(t.get(sample.path, accept=_MULTIPART_DICOM), 200, "retrieve")
    t.status(t.store([("application/dicom", part10(t.samples.loose()))]), (200, 202), "store")


@case("ROOT-02")
def retrieve_resources(t: Trial) -> None:
    sample = t.sample("ct")
    for path in (sample.study_path, sample.series_path, sample.path):
        t.status(t.get(path, accept=_MULTIPART_DICOM), 200, "retrieve")
        t.status(t.get(f"{path}/metadata"), 200, "metadata")
    t.status(t.get(f"{sample.path}/frames/1", accept='multipart/related; type="application/octet-stream"'), 200)
    image = t.sample("B/1/1")  # nothing but an image in its study
    for path in (image.study_path, image.series_path, image.path, f"{image.path}/frames/1"):
        t.status(t.get(f"{path}/rendered", accept="image/jpeg"), 200, "rendered")


@case("ROOT-03")
def search_resources(t: Trial) -> None:
    a, one = t.sample("A/1/1"), {"PatientID": t.samples.patient_id("A")}
    table = {
        "/studies": ({"A"}, one),
        f"{a.study_path}/series": ({"A/1", "A/2"}, {}),
        f"{a.series_path}/instances": ({"A/1/1", "A/1/2", "A/1/3"}, {}),
        "/series": ({"A/1", "A/2"}, one),
        "/instances": ({"A/1/1", "A/1/2", "A/1/3", "A/2/1"}, one),
        f"{a.study_path}/instances": ({"A/1/1", "A/1/2", "A/1/3", "A/2/1"}, {}),
    }
    for resource, (wanted, params) in table.items():
        answer = t.get(resource, params)
        if t.status(answer, 200, resource):
            found = {t.samples.name_of(row) for row in answer.rows()}
            t.equal(found, wanted, resource)


@case("ROOT-04")
def store_resources(t: Trial) -> None:
    made = t.samples.loose()
    t.status(t.store([("application/dicom", part10(made))]), 200, "POST /studies")
    made = t.samples.loose()
    t.status(t.store([("application/dicom", part10(made))], path=f"/studies/{made.StudyInstanceUID}"), 200, "with UID")


@case("ROOT-05")
def all_levels_or_none(t: Trial) -> None:
    sample = t.sample("ct")
    paths = (sample.study_path, sample.series_path, sample.path, f"{sample.path}/frames/1")
    thumbnails = [t.get(f"{path}/thumbnail", accept="image/jpeg").status in (200, 302, 303, 307) for path in paths]
    t.expect(len(set(thumbnails)) == 1, f"thumbnail at study, series, instance, frame: {thumbnails}")
    others = {
        name: [t.get(f"{path}/{name}", accept="*/*").status == 200 for path in paths[:3]]
        for name in ("bulkdata", "pixeldata")
    }
    if not any(thumbnails) and not any(map(any, others.values())):
        raise NotApplicable("neither thumbnails nor whole bulk data are served here")
    for name, served in others.items():
        t.expect(len(set(served)) == 1, f"/{name} at study, series, instance: {served}")


@case("ROOT-06")
def wrong_uids(t: Trial) -> None:
    a, b, nowhere = t.sample("A/1/1"), t.sample("B/1/1"), t.samples.nowhere
    for bad in ("abc", "1.2.x", "1" * 65):
        t.status(t.get(f"/studies/{bad}/metadata"), 400, "a Study Instance UID that is none")
        t.status(t.get(f"{a.study_path}/series/{bad}/metadata"), 400, "a Series Instance UID that is none")
        t.status(t.get(f"{a.series_path}/instances/{bad}", accept=_MULTIPART_DICOM), 400)
    for path in (
        f"/studies/{nowhere}/metadata",
        f"{a.study_path}/series/{nowhere}/metadata",
        f"{a.series_path}/instances/{nowhere}/metadata",
        f"{a.study_path}/series/{b.series}/metadata",
        f"{b.series_path}/instances/{a.sop}/metadata",
        f"{b.study_path}/series/{a.series}/instances/{a.sop}/frames/1",
    ):
        t.status(t.get(path, accept="*/*"), 404, "unknown, or of another parent")


@case("ROOT-07")
def methods(t: Trial) -> None:
    sample = t.sample("ct")
    for method, path in (
        ("PUT", "/studies"),
        ("PATCH", sample.study_path),
        ("PUT", sample.path),
        ("POST", f"{sample.path}/metadata"),
        ("DELETE", f"{sample.path}/frames/1"),
    ):
        answer = t.ask(method, path)
        if t.status(answer, 405, f"{method} is not possible here"):
            t.expect("allow" in answer.headers, "405 without Allow (RFC 9110 §15.5.6)")
    t.status(t.get("/nothing-of-the-kind"), 404)


@case("ROOT-08")
def absolute_urls(t: Trial) -> None:
    sample = t.sample("ct")
    urls = texts(t.row("/studies", {"StudyInstanceUID": sample.study}), "00081190")
    t.demand(urls, "the study has no RetrieveURL")
    for url in urls:
        t.expect(url.startswith(("http://", "https://")), f"RetrieveURL {url} is not absolute")
        t.status(t.get(f"{url}/metadata"), 200, "the RetrieveURL leads to the study")


@case("ROOT-09")
def slash_and_head(t: Trial) -> None:
    sample = t.sample("ct")
    t.status(t.get(f"{sample.series_path}/instances/"), 200, "a slash at the end")
    made = part10(t.samples.loose())
    t.status(t.store([("application/dicom", made)], path="/studies/"), 200, "a slash at the end; no redirection")
    head, whole = t.ask("HEAD", f"{sample.path}/metadata"), t.get(f"{sample.path}/metadata")
    t.equal(head.status, whole.status, "status of HEAD", head)
    t.equal(head.type, whole.type, "Content-Type of HEAD", head)
    t.expect(not head.body, "HEAD has a body", head)


@case("CAP-01")
def capabilities(t: Trial) -> None:
    for accept in (None, "application/vnd.sun.wadl+xml", "application/json"):
        answer = t.ask("OPTIONS", "/", accept=accept)
        # One of the two types is enough.
        if not t.status(answer, (200, 406) if accept else 200, f"OPTIONS with Accept {accept}") or answer.status == 406:
            continue
        t.expect(answer.type in ("application/vnd.sun.wadl+xml", "application/json"), f"Content-Type {answer.type}")
        t.expect(b"studies" in answer.body, "the description does not name /studies")


@case("CAP-02")
def preflight(t: Trial) -> None:
    lines = {"Origin": "https://viewer.example", "Access-Control-Request-Method": "GET"}
    answer = t.ask("OPTIONS", "/studies", headers=lines, authorized=False)
    t.status(answer, (200, 204), "a preflight has no credentials and needs none")


@case("CAP-03")
def capabilities_tell(t: Trial) -> None:
    answer = t.ask("OPTIONS", "/", accept="application/json, application/vnd.sun.wadl+xml;q=0.9")
    if not answer.body or answer.status != 200:
        raise NotApplicable(f"there is no capabilities description (status {answer.status}; see CAP-01)")
    for words in (("application/dicom+json",), ("multipart/related",), ("PatientName", "00100010"), ("fuzzymatching",)):
        t.expect(any(word.encode() in answer.body for word in words), f"the description does not name {words[0]}")


@case("URI-01")
def wado_uri(t: Trial) -> None:
    sample = t.sample("ct")
    whole = {"requestType": "WADO", "studyUID": sample.study, "seriesUID": sample.series, "objectUID": sample.sop}
    dicom = {**whole, "contentType": "application/dicom"}
    base = _uri_base(t, dicom)
    answer = t.get(base, dicom, accept="application/dicom")
    t.status(answer, 200)
    t.equal(answer.type, "application/dicom", "Content-Type")
    t.expect(answer.body[128:132] == b"DICM", "the body is no DICOM file")
    answer = t.get(base, whole, accept="image/jpeg")
    t.status(answer, 200, "the default type of an image is image/jpeg")
    t.equal(answer.type, "image/jpeg", "Content-Type")
    for missing in whole:
        left = {name: text for name, text in dicom.items() if name != missing}
        t.status(t.get(base, left, accept="application/dicom"), 400, f"{missing} is missing")
    t.status(t.get(base, {**dicom, "objectUID": t.samples.nowhere}, accept="application/dicom"), 404)


@case("URI-02")
def wado_uri_at_the_base(t: Trial) -> None:
    sample = t.sample("ct")
    params = {
        "requestType": "WADO",
        "studyUID": sample.study,
        "seriesUID": sample.series,
        "objectUID": sample.sop,
        "contentType": "application/dicom",
        "transferSyntax": "*",
    }
    _uri_base(t, params)
    answer = t.get("", params, accept="application/dicom")
    t.status(answer, 200)
    t.expect(answer.body[128:132] == b"DICM", "the body is no DICOM file")


def _uri_base(t: Trial, params: dict[str, str]) -> str:
    """Where WADO-URI is served: at the base, or beside it as `wado`."""
    root = "/".join(t.server.base.split("/")[:3])
    for path in ("", "/wado", f"{root}/wado"):
        answer = t.get(path, params, accept="application/dicom")
        if answer.status == 200 and answer.body[128:132] == b"DICM":
            return path
        t.demand(answer.status < 500, f"status {answer.status}")
    raise NotApplicable(f"WADO-URI is not served at the base or at /wado (status {answer.status})")


@case("DEL-01")
def delete(t: Trial) -> None:
    first, second = t.samples.loose(), t.samples.loose()
    second.StudyInstanceUID, second.SeriesInstanceUID = first.StudyInstanceUID, first.SeriesInstanceUID
    t.must_be(t.store([("application/dicom", part10(made)) for made in (first, second)]), 200)
    study = f"/studies/{first.StudyInstanceUID}"
    series = f"{study}/series/{first.SeriesInstanceUID}"
    instance = f"{series}/instances/{first.SOPInstanceUID}"
    refusal = t.ask("DELETE", f"/studies/{t.samples.nowhere}").status
    if refusal in (403, 405, 501):
        raise NotApplicable(f"DELETE is not served here (status {refusal})")
    t.status(t.ask("DELETE", instance), (200, 204), "an instance")
    t.status(t.get(f"{instance}/metadata"), (404, 410), "deleted")
    rows = t.rows(f"{series}/instances")
    t.equal([value(row, "00080018") for row in rows], [second.SOPInstanceUID], "what is left")
    t.status(t.ask("DELETE", study), (200, 204), "a study")
    t.status(t.get(f"{study}/metadata"), (404, 410), "deleted")
    t.finds_nothing("/studies", {"StudyInstanceUID": first.StudyInstanceUID}, "a search after it")
    t.status(t.ask("DELETE", study), (404, 410), "already deleted")


@case("DEL-02")
def reject(t: Trial) -> None:
    made = t.samples.loose()
    t.must_be(t.store([("application/dicom", part10(made))]), 200)
    path = f"/studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}"
    answer = t.ask("POST", f"{path}/reject/113001%5EDCM")
    if answer.status in (404, 405, 501):
        raise NotApplicable(f"rejection is not served here (status {answer.status})")
    t.status(answer, (200, 204))
    t.status(t.get(f"{path}/metadata"), (404, 410), "rejected")
