"""How data sets and multiparts are written: JSON, XML, MP."""

import base64
from typing import Any

from pydicom.dataset import Dataset

from ..reading import (
    data_sets,
    elements,
    is_multipart,
    json_faults,
    media_parameters,
    native_model,
    texts,
    value,
    values,
)
from ..samples import CREATOR, SETS, part10
from ..server import DICOM_JSON, DICOM_XML, Answer
from ..suite import DECLINED, NotApplicable, Trial, case
from .negotiation import FRAMES, INSTANCES

_XML = f'multipart/related; type="{DICOM_XML}"'


def _everywhere(t: Trial, rule: str) -> None:
    """No JSON of the server breaks a rule: all metadata of the kinds, and what searches answer."""
    looked = 0
    for path, params in (
        (f"{t.sample('ct').study_path}/metadata", {}),
        (f"{t.sample('F/2/1').study_path}/metadata", {}),
        ("/studies", {"PatientID": t.samples.mine}),
        (f"{t.sample('A/1/1').study_path}/series", {"includefield": "all"}),
        (f"{t.sample('A/1/1').study_path}/instances", {"includefield": "all"}),
    ):
        answer = t.get(path, params)
        if answer.status != 200:
            continue
        looked += 1
        with t.readable(answer):
            found = [text for row in answer.rows() for one, text in json_faults(row) if one == rule]
        t.expect(not found, "; ".join(found[:5]), answer)
    t.demand(looked, "neither metadata nor searches answer")


@case("JSON-01")
def media_type_and_array(t: Trial) -> None:
    for path in ("/studies", f"{t.sample('ct').path}/metadata"):
        answer = t.must_be(t.get(path, {"PatientID": t.samples.patient_id("A")} if path == "/studies" else {}), 200)
        t.equal(answer.type, DICOM_JSON, "Content-Type")
        with t.readable(answer):
            t.equal(len(data_sets(answer.body)), 1, "data sets in the array")


@case("JSON-02")
def names(t: Trial) -> None:
    _everywhere(t, "JSON-02")


@case("JSON-03")
def one_form(t: Trial) -> None:
    _everywhere(t, "JSON-03")


@case("JSON-04")
def emptiness(t: Trial) -> None:
    _everywhere(t, "JSON-04")
    every = t.metadata(t.sample("every vr"))
    t.equal(every.get("00102150"), {"vr": "LO"}, "an empty attribute")
    t.equal(values(every, "00080008"), ["A", None, "C"], "an empty value between others")
    t.equal(values(every, "00081110")[:1], [{}], "an empty item")
    t.equal(every.get("00081115"), {"vr": "SQ"}, "a sequence without items")


@case("JSON-05")
def person_names(t: Trial) -> None:
    _everywhere(t, "JSON-05")
    found = value(t.metadata(t.sample("F/1/1")), "00100010")
    wanted = {"Alphabetic": f"{t.samples.family()}^山", "Ideographic": "山田^太郎", "Phonetic": "やまだ^たろう"}
    t.equal(found, wanted, "a name in three groups")
    t.equal(values(t.metadata(t.sample("every vr")), "00101001")[1:], [{"Ideographic": "太郎"}], "one group alone")


@case("JSON-06")
def numbers(t: Trial) -> None:
    _everywhere(t, "JSON-06")
    every = t.metadata(t.sample("every vr"))
    for tag, wanted in (
        ("00720078", [1, 4294967295]),
        ("0072007A", [0, 65535]),
        ("0072007C", [-2147483648, 1]),
        ("00720076", [1.5, -2.5]),
        ("00720064", [1, -2]),
        ("00720082", [-(2**63), 5]),
        ("00720083", [2**64 - 1]),
        ("00181041", [12.5]),
    ):
        found = [float(one) if "." in str(one) else int(one) for one in values(every, tag)]
        t.equal(found, wanted, f"{tag} ({every.get(tag, {}).get('vr')})")


@case("JSON-07")
def not_a_number(t: Trial) -> None:
    every = t.metadata(t.sample("every vr"))
    for tag, wanted in (("00189087", "NaN"), ("00189220", "Infinity")):
        element = every.get(tag, {})
        told = "BulkDataURI" in element or values(every, tag) == [wanted]
        t.expect(told, f"{tag}: {element}, expected the text {wanted} or a BulkDataURI")


@case("JSON-08")
def tags_and_unknown(t: Trial) -> None:
    _everywhere(t, "JSON-08")
    t.equal(values(t.metadata(t.sample("every vr")), "00209165"), ["00100010", "7FE00010"], "values of AT")
    implicit = t.metadata(t.sample("implicit"))
    t.equal(implicit.get("00080060", {}).get("vr"), "CS", "a standard element read from Implicit VR")
    private = implicit.get("00991001", {})
    t.equal(private.get("vr"), "UN", "an unknown private element read from Implicit VR")
    t.equal(base64.b64decode(private.get("InlineBinary", "")), b"unknown!", "its value")


@case("JSON-09")
def binary(t: Trial) -> None:
    _everywhere(t, "JSON-09")
    every = t.metadata(t.sample("every vr"))
    for tag, wanted in (("00720065", b"\xff\0"), ("00720069", b"\1\2\3\4"), ("00720081", bytes(range(8)))):
        t.equal(_binary(t, every.get(tag, {})), wanted, tag)


def _binary(t: Trial, element: dict[str, Any]) -> bytes | None:
    if "InlineBinary" in element:
        return base64.b64decode(element["InlineBinary"])
    if "BulkDataURI" not in element:
        return None
    answer = t.get(str(element["BulkDataURI"]), accept=FRAMES)
    return t.parts(answer)[0].body if answer.status == 200 else None


@case("JSON-10")
def utf_8(t: Trial) -> None:
    for label, name in SETS.items():
        groups = dict(zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False))
        sample = t.samples[label]
        if not t.expect(sample.is_stored, f"{label} was not stored: {sample.refusal}"):
            continue
        answer = t.get(f"{sample.path}/metadata")
        if not t.status(answer, 200, label):
            continue
        row = answer.rows()[0]
        t.equal(value(row, "00100010"), groups, f"the name in {label}", answer)
        item = value(row, "0040A073")
        t.equal(value(item or {}, "0040A123"), groups, f"the name in an item in {label}", answer)
        t.expect(texts(row, "00080005") in ([], ["ISO_IR 192"]), f"(0008,0005) {texts(row, '00080005')}", answer)
    odd = t.samples["unknown charset"]
    if odd.is_stored:
        t.status(t.get(f"{odd.path}/metadata"), 200, "an unknown character set is no error")


@case("JSON-11")
def backslashes(t: Trial) -> None:
    _everywhere(t, "JSON-11")
    every = t.metadata(t.sample("every vr"))
    t.equal(values(every, "00720070"), ["long \\ text, one value"], "UT with a backslash")
    t.equal(values(every, "0072006E"), ["short\\text"], "ST with a backslash")
    t.equal(values(every, "00720068"), ["a\\b"], "LT with a backslash")
    t.equal(values(every, "0072006F"), ["first", "second"], "UC with a backslash")


@case("JSON-12")
def padding(t: Trial) -> None:
    for name in ("ct", "every vr"):
        row = t.metadata(t.sample(name))
        padded = [
            where
            for where, tag, element in elements(row)
            for one in element.get("Value") or ()
            if isinstance(one, str) and one != one.rstrip(" \0") and element.get("vr") not in ("LT", "ST", "UT")
        ]
        t.expect(not padded, f"{name}: trailing padding in {', '.join(padded[:5])}")


@case("JSON-13")
def everything_is_there(t: Trial) -> None:
    for name in ("ct", "private", "sr", "every vr", "F/2/1"):
        sample = t.sample(name)
        row = t.metadata(sample)
        for text in _missing(sample.data, row):
            t.expect(False, f"{name}: {text}")
        t.checks += 1
    pixel_data = t.metadata(t.sample("ct")).get("7FE00010", {})
    t.expect("BulkDataURI" in pixel_data or "InlineBinary" in pixel_data, f"Pixel Data is {pixel_data}")
    private = t.metadata(t.sample("private"))
    t.equal(texts(private, "00990010"), [CREATOR], "a private creator")
    t.equal(texts(private, "00991001"), ["private text"], "a private element")


def _missing(data: Dataset, row: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for element in data:
        tag = f"{int(element.tag):08X}"
        if tag not in row:
            found.append(f"{path}{tag} is missing")
        elif element.VR == "SQ":
            for number, (item, theirs) in enumerate(zip(element.value, values(row, tag), strict=False)):
                found += _missing(item, theirs or {}, f"{path}{tag}[{number}].")
    return found


@case("JSON-14")
def absolute_bulk_uris(t: Trial) -> None:
    uris = [
        str(element["BulkDataURI"])
        for name in ("ct", "private", "pdf")
        for _, _, element in elements(t.metadata(t.sample(name)))
        if "BulkDataURI" in element
    ]
    t.demand(uris, "no BulkDataURI in the metadata of an image, private data and a document")
    for uri in uris:
        t.expect(uri.startswith(("http://", "https://")), f"BulkDataURI {uri} is relative")


def _xml(t: Trial, path: str, params: dict[str, str] | None = None) -> Answer:
    answer = t.get(path, params or {}, accept=_XML)
    if answer.status == 406:
        t.expect(False, "DICOM XML is not served (status 406), which every origin server has to")
        raise NotApplicable("no XML")
    t.must_be(answer, 200)
    return answer


@case("XML-01")
def native_model_documents(t: Trial) -> None:
    sample = t.sample("every vr")
    answer = _xml(t, f"{sample.path}/metadata")
    part = t.parts(answer)[0]
    t.equal(part.type, DICOM_XML, "type of the part")
    with t.readable(answer):
        model = native_model(part.body)
    t.expect(b'xml:space="preserve"' in part.body, 'no xml:space="preserve"')
    t.equal(model.get("00080060", {}).get("keyword"), "Modality", "keyword of 00080060")
    t.equal(values(model, "0072006F"), ["first", "second"], "UC")
    t.equal(values(model, "00080018"), [sample.sop], "SOP Instance UID")
    items = values(model, "00081110")
    t.equal([value(item, "00080104") for item in items], [None, "Ünïcode"], "items, the first of them empty")


@case("XML-02")
def one_document_a_part(t: Trial) -> None:
    sample = t.sample("A/1/1")
    answer = _xml(t, f"{sample.series_path}/metadata")
    parts = t.parts(answer)
    t.equal(len(parts), 3, "parts for three instances")
    with t.readable(answer):
        t.equal(value(native_model(parts[0].body), "00100010"), {"Alphabetic": f"{t.samples.family()}^Jörg"}, "a name")
        answer = _xml(t, f"{t.sample('private').path}/metadata")
        model = native_model(t.parts(answer)[0].body)
    t.equal(model.get("00990001", {}).get("privateCreator"), CREATOR, "creator of the private tag 00990001")
    t.equal(texts(model, "00990001"), ["private text"], "its value")


def _multiparts(t: Trial) -> list[Answer]:
    sample, multi = t.sample("A/1/1"), t.sample("multi-frame")
    return [
        t.must_be(t.get(path, accept=accept), 200)
        for path, accept in (
            (sample.series_path, INSTANCES),
            (sample.path, INSTANCES),
            (f"{multi.path}/frames/1,2,3", FRAMES),
            (f"{multi.path}/frames/1", FRAMES),
        )
    ]


@case("MP-01")
def grammar(t: Trial) -> None:
    for answer in _multiparts(t):
        header = answer.headers.get("content-type", "")
        t.expect(is_multipart(header), f"Content-Type {header}", answer)
        parameters = media_parameters(header)
        boundary = parameters.get("boundary", "")
        t.expect(0 < len(boundary) <= 70, f"a boundary of {len(boundary)} characters", answer)
        t.expect("type" in parameters, "the header has no type", answer)
        t.parts(answer)


@case("MP-02")
def part_headers(t: Trial) -> None:
    for answer in _multiparts(t):
        for part in t.parts(answer):
            for name in ("content-type", "content-location"):
                t.expect(name in part.headers, f"a part has no {name}", answer)
            t.expect(
                "content-length" in part.headers or "content-encoding" in part.headers, "a part has no length", answer
            )
            t.expect(not part.faults, "; ".join(part.faults), answer)


@case("MP-03")
def as_viewers_read(t: Trial) -> None:
    for answer in _multiparts(t):
        t.expect(answer.body.startswith(b"--"), "the body does not begin with the boundary", answer)
        for part in t.parts(answer):
            t.expect("Content-Type" in part.names, f"header names {part.names}", answer)
            t.expect(not part.faults, "; ".join(part.faults), answer)
        t.expect(t.parts(answer)[0].offset < 1000, "the first payload begins behind byte 1000", answer)
    sample = t.sample("multi-frame")
    answer = t.get(f"{sample.path}/frames/2", accept=FRAMES)
    t.equal(t.parts(answer)[0].body, sample.frames[1], "the payload, not a byte more", answer)


@case("MP-04")
def unlikely_boundaries(t: Trial) -> None:
    for answer in _multiparts(t):
        boundary = media_parameters(answer.headers["content-type"])["boundary"]
        t.expect(len(boundary) >= 16, f"the boundary {boundary} is short", answer)
        t.expect(not set(boundary) & set(";\" '"), f"the boundary {boundary} needs quotes", answer)
        for part in t.parts(answer):
            t.expect(boundary.encode() not in part.body, "a payload holds the boundary", answer)


@case("MP-05")
def tolerant_reader(t: Trial) -> None:
    boundary = "odd_boundary.1"
    plain = f'multipart/related; type="application/dicom"; boundary={boundary}'
    head = b"Content-Type: application/dicom\r\n\r\n"

    def send(what: str, kind: str, before: bytes, after: bytes, headers: bytes = head) -> None:
        made = part10(t.samples.loose(ImageComments="\r\n\r\n--odd_boundary\r\n"))
        body = before + b"--odd_boundary.1\r\n" + headers + made + after
        t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}, content=body), 200, what)

    end = b"\r\n--odd_boundary.1--"
    send("CRLF at the start", plain, b"\r\n", end + b"\r\n")
    send("a preamble", plain, b"preamble\r\n", end + b"\r\n")
    send("no CRLF at the end", plain, b"", end)
    send("an epilogue", plain, b"", end + b"\r\nepilogue")
    send("a quoted boundary", plain.replace(boundary, f'"{boundary}"'), b"", end)
    send("lower-case part headers", plain, b"", end, head.lower())


@case("MP-06")
def metadata_before_bulk(t: Trial) -> None:
    answer = t.get(f"{t.sample('ct').path}/metadata", accept=_XML)
    if answer.status in DECLINED:
        raise NotApplicable(f"no multipart holds metadata and bulk data (XML metadata: status {answer.status})")
    t.must_be(answer, 200)
    types = [part.type for part in t.parts(answer)]
    t.equal(types, sorted(types, key=lambda kind: kind != DICOM_XML), "order of the parts")
