"""Storing: STOW."""

import json
from typing import Any
from xml.sax.saxutils import escape

from pydicom.dataset import Dataset

from ..reading import Unreadable, native_model, value, values
from ..samples import BIG_ENDIAN, DEFLATED, IMPLICIT, part10, patched, uid
from ..server import DICOM_JSON, DICOM_XML, Answer, PartToSend, multipart
from ..suite import NotApplicable, Trial, case

_PART = "application/dicom"


def _module(t: Trial, answer: Answer) -> dict[str, Any]:
    """The Store Instances Response Module."""
    with t.readable(answer):
        document = answer.json()
    t.demand(isinstance(document, dict), "the answer is not one data set", answer)
    return dict(document)


def _reasons(t: Trial, answer: Answer) -> list[int]:
    """The failure reasons of an answer."""
    module = _module(t, answer)
    items = values(module, "00081198") + values(module, "0008119A")
    return [int(value(item, "00081197") or 0) for item in items]


def _put(t: Trial, *made: Dataset, **more: Any) -> Answer:
    return t.store([(_PART, part10(one)) for one in made], **more)


@case("STOW-01")
def multipart_of_instances(t: Trial) -> None:
    first, second = t.samples.loose(), t.samples.loose()
    answer = _put(t, first, second)
    t.status(answer, 200)
    stored = {str(value(item, "00081155")) for item in values(_module(t, answer), "00081199")}
    t.equal(stored, {first.SOPInstanceUID, second.SOPInstanceUID}, "instances stored")
    for made in (first, second):
        found = t.rows(f"/studies/{made.StudyInstanceUID}/instances")
        t.equal([value(row, "00080018") for row in found], [made.SOPInstanceUID], "found again")


@case("STOW-02")
def single_body(t: Trial) -> None:
    answer = t.ask("POST", "/studies", headers={"Content-Type": _PART}, content=part10(t.samples.loose()))
    if answer.status == 415:
        raise NotApplicable("a single instance as the body is not taken (status 415)")
    t.status(answer, 200)


@case("STOW-03")
def metadata_in_json(t: Trial) -> None:
    made = t.samples.loose()
    pixels, where = bytes(made.PixelData), "bulk/1"
    document = made.to_json_dict(bulk_data_threshold=1 << 20, bulk_data_element_handler=lambda element: where)
    document["7FE00010"] = {"vr": "OB", "BulkDataURI": where}
    parts: list[PartToSend] = [
        (DICOM_JSON, json.dumps([document]).encode()),
        ({"Content-Type": "application/octet-stream", "Content-Location": where}, pixels),
    ]
    answer = t.store(parts, type=DICOM_JSON)
    if t.status(answer, 200, "metadata in DICOM JSON, pixels as bulk data"):
        _check_stored(t, made, pixels)


def _check_stored(t: Trial, made: Dataset, pixels: bytes) -> None:
    path = f"/studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
    stored = t.instances(path)[0]
    t.expect(stored.PixelData[: len(pixels)] == pixels, "other pixels than were sent")
    t.equal(stored.PatientName, made.PatientName, "Patient's Name")


def _native(made: Dataset, bulk: str) -> bytes:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>']
    lines.append('<NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM" xml:space="preserve">')
    for element in made:
        lines.append(f'<DicomAttribute tag="{int(element.tag):08X}" vr="{element.VR}" keyword="{element.keyword}">')
        if element.keyword == "PixelData":
            lines.append(f'<BulkData uri="{bulk}"/>')
        elif element.VR == "PN" and str(element.value):
            family, _, given = str(element.value).partition("^")
            lines.append(f'<PersonName number="1"><Alphabetic><FamilyName>{escape(family)}</FamilyName>')
            lines.append(f"<GivenName>{escape(given)}</GivenName></Alphabetic></PersonName>")
        elif str(element.value):
            lines.append(f'<Value number="1">{escape(str(element.value))}</Value>')
        lines.append("</DicomAttribute>")
    lines.append("</NativeDicomModel>")
    return "".join(lines).encode()


@case("STOW-04")
def metadata_in_xml(t: Trial) -> None:
    made = t.samples.loose()
    pixels, where = bytes(made.PixelData), "bulk/1"
    parts: list[PartToSend] = [
        (DICOM_XML, _native(made, where)),
        ({"Content-Type": "application/octet-stream", "Content-Location": where}, pixels),
    ]
    answer = t.store(parts, type=DICOM_XML)
    if t.status(answer, 200, "metadata in DICOM XML, pixels as bulk data"):
        _check_stored(t, made, pixels)


@case("STOW-05")
def encoded_bulk_data(t: Trial) -> None:
    sample = t.sample("jpeg")
    made = t.samples.loose()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, keyword)
    for keyword in ("SamplesPerPixel", "PhotometricInterpretation"):
        delattr(made, keyword)
    document = made.to_json_dict()
    document["7FE00010"] = {"vr": "OB", "BulkDataURI": "bulk/1"}
    parts: list[PartToSend] = [
        (DICOM_JSON, json.dumps([document]).encode()),
        (
            {"Content-Type": f"image/jpeg; transfer-syntax={sample.syntax}", "Content-Location": "bulk/1"},
            sample.fragments[0],
        ),
    ]
    answer = t.store(parts, type=DICOM_JSON)
    if answer.status == 415:
        raise NotApplicable("metadata and bulk data apart are not taken (status 415; see STOW-03)")
    if t.status(answer, (200, 202), "a JPEG as bulk data"):
        row = t.row(f"/studies/{made.StudyInstanceUID}/metadata")
        t.equal([value(row, "00280010"), value(row, "00280011")], [32, 32], "Rows and Columns, derived from the JPEG")


@case("STOW-06")
def tolerated_forms(t: Trial) -> None:
    for kind in (
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1; boundary=b',
        "multipart/related; type=application/dicom; boundary=b",
        "multipart/related; boundary=b",
        'multipart/related; type="application/dicom"; charset=utf-8; boundary=b',
    ):
        body = multipart([(_PART, part10(t.samples.loose()))], "b")
        t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}, content=body), 200, kind)
    body = multipart([({}, part10(t.samples.loose()))], "b")
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    t.status(
        t.ask("POST", "/studies", headers={"Content-Type": kind}, content=body), 200, "a part without Content-Type"
    )


@case("STOW-07")
def chunked_body(t: Trial) -> None:
    body = multipart([(_PART, part10(t.samples.loose()))], "b")
    pieces = (body[at : at + 100] for at in range(0, len(body), 100))
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}, content=pieces), 200, "without Content-Length")


@case("STOW-08")
def other_syntaxes(t: Trial) -> None:
    for name, syntax in (("implicit", IMPLICIT), ("big endian", BIG_ENDIAN), ("deflated", DEFLATED)):
        sample = t.samples[name]
        t.expect(sample.is_stored, f"an instance in {name} ({syntax}) was not stored: {sample.refusal}")


@case("STOW-09")
def another_study(t: Trial) -> None:
    made = t.samples.loose()
    answer = _put(t, made, path=f"/studies/{t.samples.own_study()}")
    t.status(answer, 409, "an instance of another study than the path's")
    if answer.status in (202, 409):
        t.equal(_reasons(t, answer), [0xA901], "failure reason (A901 is 43265)", answer)
    t.finds_nothing("/studies", {"StudyInstanceUID": str(made.StudyInstanceUID)}, "stored nevertheless")


@case("STOW-10")
def statuses(t: Trial) -> None:
    made = t.samples.loose()
    t.status(_put(t, made), 200, "all stored")
    bad = part10(t.samples.loose(StudyInstanceUID=None))
    t.status(t.store([(_PART, part10(t.samples.loose())), (_PART, bad)]), 202, "one of two stored")
    t.status(t.store([(_PART, bad)]), 409, "none stored")
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}, content=b"--b--"), 400, "no part")
    t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}), 400, "an empty body")
    t.status(t.ask("POST", "/studies", headers={"Content-Type": "text/unheard-of"}, content=b"x"), 415)
    broken = multipart([(_PART, part10(t.samples.loose()))], "other")
    t.status(t.ask("POST", "/studies", headers={"Content-Type": kind}, content=broken), 400, "another boundary")


@case("STOW-11")
def module_of_failures(t: Trial) -> None:
    good, bad = t.samples.loose(), t.samples.loose(StudyInstanceUID=None)
    answer = _put(t, good, bad)
    if t.status(answer, 202):
        module = _module(t, answer)
        t.equal([value(i, "00081155") for i in values(module, "00081199")], [good.SOPInstanceUID], "stored", answer)
        t.equal(len(_reasons(t, answer)), 1, "failures told", answer)
    answer = _put(t, bad)
    if t.status(answer, 409):
        t.equal(len(_reasons(t, answer)), 1, "failures told", answer)


@case("STOW-12")
def one_data_set(t: Trial) -> None:
    made = t.samples.loose()
    answer = t.must_be(_put(t, made), 200)
    module = _module(t, answer)
    t.expect("00081190" in module, "no RetrieveURL", answer)
    t.expect("00081198" not in module, "a Failed SOP Sequence though nothing failed", answer)
    t.expect(values(module, "00081199"), "no Referenced SOP Sequence", answer)
    answer = t.store([(_PART, b"no DICOM at all, " * 20)])
    if t.status(answer, (400, 409), "a part that is no DICOM") and answer.status == 409:
        module = _module(t, answer)
        t.expect("00081199" not in module, "a Referenced SOP Sequence though nothing was stored", answer)
        told = values(module, "0008119A") or values(module, "00081198")
        t.expect(told, "nothing tells of the part that could not be named", answer)


@case("STOW-13")
def items(t: Trial) -> None:
    made = t.samples.loose()
    answer = t.must_be(_put(t, made), 200)
    for item in values(_module(t, answer), "00081199"):
        t.equal(value(item, "00081150"), made.SOPClassUID, "class", answer)
        t.equal(value(item, "00081155"), made.SOPInstanceUID, "instance", answer)
        url = str(value(item, "00081190"))
        t.expect(url.endswith(f"/instances/{made.SOPInstanceUID}"), f"RetrieveURL {url}", answer)
        t.status(t.get(f"{url}/metadata"), 200, "the RetrieveURL leads to the instance")
    bad = t.samples.loose(SeriesInstanceUID=None)
    answer = _put(t, bad)
    if t.status(answer, 409):
        for item in values(_module(t, answer), "00081198"):
            t.equal(value(item, "00081155"), bad.SOPInstanceUID, "instance that failed", answer)
            t.equal(item.get("00081197", {}).get("vr"), "US", "VR of FailureReason", answer)


@case("STOW-14")
def content_type(t: Trial) -> None:
    answer = _put(t, t.samples.loose())
    t.equal(answer.headers.get("content-type"), DICOM_JSON, "Content-Type, the whole of it")


@case("STOW-15")
def coercion(t: Trial) -> None:
    made = t.samples.loose(SpecificCharacterSet=None)
    answer = _put(t, made)
    t.status(answer, (200, 202))
    warned = [w for i in values(_module(t, answer), "00081199") if (w := value(i, "00081196")) is not None]
    row = t.row(f"/studies/{made.StudyInstanceUID}/metadata")
    if 0xB000 in warned:
        t.expect("04000561" in row, "coerced (B000) without Original Attributes Sequence")
    else:
        changed = [tag for tag in ("00080005", "00100020", "0020000D") if tag in row and tag not in _tags(made)]
        t.expect(changed in ([], ["00080005"]), f"changed without a warning: {changed}")


def _tags(made: Dataset) -> set[str]:
    return {f"{int(tag):08X}" for tag in made.keys()}  # noqa: SIM118


@case("STOW-16")
def what_is_needed(t: Trial) -> None:
    t.status(_put(t, t.samples.loose(PatientID="")), (200, 202), "an empty Patient ID")
    t.status(_put(t, t.samples.loose(PatientID=None, PatientName=None)), (200, 202), "no patient")
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        t.status(_put(t, t.samples.loose(**{keyword: None})), (400, 409), f"no {keyword}")
    odd = patched(part10(t.samples.loose(SeriesNumber="7070707070")), {b"7070707070": b"no number "})
    answer = t.store([(_PART, odd)])
    t.status(answer, (200, 202), "a value that its VR does not allow")
    if answer.status == 200:
        t.expect("00081199" in _module(t, answer), "not stored")


@case("STOW-17")
def stored_again(t: Trial) -> None:
    made = t.samples.loose()
    t.must_be(_put(t, made), 200)
    t.status(_put(t, made), 200, "the same instance again")
    made.ImageComments = "another content"
    answer = _put(t, made)
    t.status(answer, (200, 202, 409), "the same UID with other content: replaced, or refused with 0111")
    row = t.row(f"/studies/{made.StudyInstanceUID}/metadata")
    if answer.status in (200, 202):
        t.equal(value(row, "00204000"), "another content", "what is there then")
    else:
        t.equal(_reasons(t, answer), [0x0111], "failure reason", answer)


@case("STOW-18")
def parts_are_independent(t: Trial) -> None:
    good = [t.samples.loose() for _ in range(2)]
    whole = part10(t.samples.loose())
    parts = [(_PART, part10(good[0])), (_PART, b"rubbish"), (_PART, whole[:200]), (_PART, part10(good[1]))]
    answer = t.store(parts)
    t.status(answer, 202, "two good parts around two bad ones")
    stored = {value(item, "00081155") for item in values(_module(t, answer), "00081199")}
    t.equal(stored, {made.SOPInstanceUID for made in good}, "stored", answer)


@case("STOW-19")
def location_and_early_406(t: Trial) -> None:
    made = t.samples.loose()
    answer = t.must_be(_put(t, made), 200)
    t.expect({"location", "content-location"} & set(answer.headers), "neither Location nor Content-Location", answer)
    other = t.samples.loose()
    t.status(_put(t, other, accept="text/unheard-of"), 406)
    what = "stored although the answer could not be given"
    t.finds_nothing("/studies", {"StudyInstanceUID": str(other.StudyInstanceUID)}, what)


@case("STOW-20")
def at_once(t: Trial) -> None:
    for _ in range(3):
        made = t.samples.loose()
        t.must_be(_put(t, made), 200)
        found = t.rows("/studies", {"StudyInstanceUID": made.StudyInstanceUID})
        t.equal(len(found), 1, "studies found right after the answer")
        t.status(t.get(f"/studies/{made.StudyInstanceUID}/metadata"), 200, "read right after the answer")


@case("STOW-21")
def preamble(t: Trial) -> None:
    made = t.samples.loose()
    evil = b"MZ" + b"\x90" * 126
    t.must_be(t.store([(_PART, part10(made, preamble=evil))]), 200)
    for stored in t.instances(f"/studies/{made.StudyInstanceUID}"):
        t.expect(stored.preamble != evil, "the preamble leaves as it came: a file may be two kinds of file at once")


@case("STOW-22")
def unsupported_is_a_failure_of_the_instance(t: Trial) -> None:
    strange = part10(t.samples.loose())
    body = strange.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0", 1)
    good = t.samples.loose()
    answer = t.store([(_PART, body), (_PART, part10(good))])
    t.status(answer, (200, 202), "an unknown transfer syntax beside a good instance; 415 is for the media type")
    module = _module(t, answer)
    stored = {value(item, "00081155") for item in values(module, "00081199")}
    t.expect(good.SOPInstanceUID in stored, "the good instance was not stored", answer)
    if answer.status == 202 and _reasons(t, answer):
        known = (0xC122, 0x0122, 0xC000, 0x0110)
        t.expect(set(_reasons(t, answer)) <= set(known), f"failure reasons {_reasons(t, answer)}", answer)
    alone = t.store([(_PART, part10(t.samples.loose(SOPClassUID=f"{uid()}")))])
    t.status(alone, (200, 202, 409), "an unknown SOP class")


@case("STOW-23")
def xml_answer(t: Trial) -> None:
    answer = _put(t, t.samples.loose(), accept=DICOM_XML)
    if answer.status == 406:
        t.expect(False, "the answer is not to be had in DICOM XML (status 406)")
        return
    t.status(answer, 200)
    t.equal(answer.type, DICOM_XML, "Content-Type")
    try:
        t.expect("00081199" in native_model(answer.body), "no Referenced SOP Sequence")
    except Unreadable as fault:
        t.expect(False, str(fault))
