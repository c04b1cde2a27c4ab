"""Content negotiation: NEG."""

from ..server import DICOM_JSON, DICOM_XML
from ..suite import NotApplicable, Trial, case

OCTETS = "application/octet-stream"
FRAMES = 'multipart/related; type="application/octet-stream"'
INSTANCES = 'multipart/related; type="application/dicom"'


@case("NEG-01")
def accept_grammar(t: Trial) -> None:
    sample = t.sample("ct")
    for accept in (
        'multipart/related; type="application/octet-stream"',
        'Multipart/Related; Type="Application/Octet-Stream"',
        'multipart/related;   type =  "application/octet-stream"',
        "multipart/related;type=application/octet-stream;q=0.5",
        'multipart/related; type="application/octet-stream"; Q=0.5, image/unheard-of; q=1.0',
    ):
        t.status(t.get(f"{sample.path}/frames/1", accept=accept), 200, accept)
    for accept in (
        "application/dicom+json; q=0.3",
        "APPLICATION/DICOM+JSON",
        "text/unheard-of, application/dicom+json",
    ):
        t.status(t.get(f"{sample.path}/metadata", accept=accept), 200, accept)


@case("NEG-02")
def unquoted_type(t: Trial) -> None:
    path = f"{t.sample('ct').path}/frames/1"
    t.status(t.get(path, accept="multipart/related; type=application/octet-stream; transfer-syntax=*"), 200)
    t.status(t.get(path, accept="multipart/related;type=application/octet-stream"), 200)
    t.status(t.get(t.sample("ct").path, accept="multipart/related; type=application/dicom"), 200)


@case("NEG-03")
def quoted_syntax(t: Trial) -> None:
    path = f"{t.sample('ct').path}/frames/1"
    for syntax in ('"*"', '"1.2.840.10008.1.2.1"', "1.2.840.10008.1.2.1"):
        t.status(t.get(path, accept=f"{FRAMES}; transfer-syntax={syntax}"), 200, f"transfer-syntax={syntax}")


@case("NEG-04")
def repeated_syntax(t: Trial) -> None:
    accept = 'multipart/related; type="image/jp2"; transfer-syntax="1.2.840.10008.1.2.4.90"; transfer-syntax="*"'
    answer = t.get(f"{t.sample('ct').path}/frames/1", accept=accept)
    t.status(answer, 200, "the asterisk is a fallback")


@case("NEG-05")
def what_is_no_range(t: Trial) -> None:
    path = f"{t.sample('ct').path}/metadata"
    for accept in (
        "nope, application/dicom+json",
        "*, application/dicom+json",
        "*; q=.2, application/dicom+json",
        "application/dicom+json; boundary=**",
        "application/dicom+json; unheard=of",
    ):
        t.status(t.get(path, accept=accept), 200, accept)
    t.status(t.get(path, accept="application/dicom+json;q=0, text/unheard-of"), 406, "q=0 excludes")


@case("NEG-06")
def syntax_within_the_quotes(t: Trial) -> None:
    accept = 'multipart/related; type="application/dicom; transfer-syntax=*"'
    answer = t.get(t.sample("ct").path, accept=accept)
    if t.status(answer, 200, accept):
        t.equal([part.type for part in t.parts(answer)], ["application/dicom"], "parts")


@case("NEG-07")
def no_accept(t: Trial) -> None:
    sample = t.sample("ct")
    for path in ("/studies", f"{sample.path}/metadata", sample.path, f"{sample.path}/frames/1"):
        params = {"PatientID": t.samples.patient_id("A")} if path == "/studies" else {}
        bare, wild = t.get(path, params, accept=None), t.get(path, params, accept="*/*")
        if t.status(bare, (200, 406), "without Accept: the default, or 406") and bare.status == 200:
            t.equal(bare.type, wild.type, "type without Accept", bare)


@case("NEG-08")
def accept_parameter(t: Trial) -> None:
    path = f"{t.sample('ct').path}/metadata"
    for params in ("accept=application/dicom%2Bjson", "accept=application/dicom+json"):
        answer = t.get(path, params, accept="text/unheard-of")
        if t.status(answer, 200, f"?{params} ranks before the header"):
            t.equal(answer.type, DICOM_JSON, "Content-Type", answer)


@case("NEG-09")
def parameter_beside_a_browsers_header(t: Trial) -> None:
    browser = "text/html, application/xhtml+xml, image/webp, */*;q=0.8"
    answer = t.get(f"{t.sample('ct').path}/metadata", "accept=application/dicom%2Bjson", accept=browser)
    t.status(answer, 200)
    t.equal(answer.type, DICOM_JSON, "Content-Type", answer)


@case("NEG-10")
def weights(t: Trial) -> None:
    sample = t.sample("ct")
    for accept, wanted in (
        (f"{FRAMES};q=0.1, {OCTETS}; transfer-syntax=1.2.840.10008.1.2.1;q=0.9", OCTETS),
        (f"{FRAMES};q=0.9, {OCTETS}; transfer-syntax=1.2.840.10008.1.2.1;q=0.1", "multipart/related"),
    ):
        answer = t.get(f"{sample.path}/frames/1", accept=accept)
        if t.status(answer, 200, accept):
            t.equal(answer.type, wanted, f"the form of the higher q in {accept}", answer)
    answer = t.get(f"{sample.path}/metadata", accept="application/dicom+json;q=0, */*")
    t.expect(answer.type != DICOM_JSON or answer.status == 406, "q=0 of the named type outranks the wildcard", answer)


@case("NEG-11")
def order_and_406(t: Trial) -> None:
    sample = t.sample("ct")
    for path in (f"{sample.path}/metadata", sample.path, f"{sample.path}/frames/1", "/studies"):
        params = {"limit": "1", "PatientID": t.samples.patient_id("A")} if path == "/studies" else {}
        refused = t.get(path, params, accept="text/unheard-of")
        t.status(refused, 406, path)
        t.expect(refused.body, "406 says nothing of what there is", refused)
        t.status(t.get(path, params, accept="*/*"), 200, f"{path}: */* is the default")
        t.status(t.get(path, params, accept="text/unheard-of, */*;q=0.1"), 200, f"{path}: the wildcard is left")
    t.equal(t.get(f"{sample.path}/metadata", accept="*/*").type, DICOM_JSON, "default type of metadata")
    for path, kind in ((sample.path, "application/dicom"), (f"{sample.path}/frames/1", OCTETS)):
        answer = t.get(path, accept="*/*")
        t.equal(answer.type, "multipart/related", f"default type of {path}")
        t.equal({part.type for part in t.parts(answer)}, {kind}, "types of its parts", answer)


@case("NEG-12")
def mixed_kinds(t: Trial) -> None:
    sample = t.sample("ct")
    answer = t.get(sample.path, accept=f"{INSTANCES}, image/png")
    t.status(answer, 400, "DICOM and rendered types in one list")
    t.status(t.get(sample.path, accept=f"{INSTANCES}, */*;q=0.1"), 200, "wildcards do not count")


@case("NEG-13")
def viewers_mixture(t: Trial) -> None:
    accept = f"{DICOM_JSON}, multipart/related; type=application/octet-stream; transfer-syntax=*"
    for path, params in ((f"{t.sample('ct').path}/metadata", {}), ("/studies", {"PatientID": t.samples.mine})):
        answer = t.get(path, params, accept=accept)
        if t.status(answer, 200, accept):
            t.equal(answer.type, DICOM_JSON, "Content-Type", answer)


@case("NEG-14")
def each_part_its_own(t: Trial) -> None:
    names = ("ct", "rle", "rgb")
    wanted = {t.sample(name).sop: t.sample(name).syntax for name in names}
    answer = t.must_be(t.get(t.sample("ct").study_path, accept=f"{INSTANCES}; transfer-syntax=*"), 200)
    seen = {}
    for part in t.parts(answer):
        made = t.instance(part.body)
        seen[made.SOPInstanceUID] = str(made.file_meta.TransferSyntaxUID)
        named = part.parameter("transfer-syntax")
        if named:
            t.equal(named.strip('"'), seen[made.SOPInstanceUID], "the part's transfer-syntax, and its File Meta's")
    t.expect(wanted.keys() <= seen.keys(), "instances of the study are missing")


@case("NEG-15")
def character_sets(t: Trial) -> None:
    sample = t.sample("A/1/1")
    path = f"{sample.path}/metadata"
    for accept in ("application/dicom+json; charset=utf-8", "application/dicom+json; charset=iso-8859-1"):
        t.status(t.get(path, accept=accept), 200, accept)
    t.status(t.get(path, headers={"Accept-Charset": "iso-8859-5, unheard-of"}), 200, "Accept-Charset is no demand")
    answer = t.get(path, "charset=utf-8")
    t.status(answer, 200)
    t.expect("Jörg".encode() in answer.body or b"J\\u00f6rg" in answer.body, "the name is not there in UTF-8", answer)
    t.status(t.get(path, "charset=unheard-of"), 400, "an unsupported charset in the query")


@case("NEG-16")
def zip_archive(t: Trial) -> None:
    sample = t.sample("ct")
    answer = t.get(sample.study_path, accept="application/zip")
    wild = t.get(sample.study_path, accept="*/*")
    t.expect(wild.type != "application/zip", "*/* means multipart, not an archive", wild)
    if answer.status == 406:
        raise NotApplicable("no archives are served (status 406)")
    t.status(answer, 200)
    t.expect(answer.body[:4] == b"PK\3\4", "the body is no zip archive", answer)


__all__ = ["DICOM_XML", "FRAMES", "INSTANCES", "OCTETS"]
