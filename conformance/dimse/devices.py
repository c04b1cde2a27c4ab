"""What devices send in the wild: WILD."""

import copy

from pydicom.dataelem import DataElement

from ..peer import EXPLICIT, IMPLICIT, STUDY_FIND, Context, body_of, encode
from ..samples import BIG_ENDIAN, CT, DEFLATED, PRIVATE_CLASS, SECONDARY, part10, patched, uid
from ..suite import Trial, case
from .association import peer
from .find import keys
from .store import is_found, send


@case("WILD-01")
def odd_uids(t: Trial) -> None:
    for odd in (f"{uid()[:60]}.1.2.3.4.5", f"{uid()[:40]}.007"):
        made = t.samples.loose(SOPInstanceUID=odd)
        status = send(t, made).status
        t.expect(status == 0 or status >> 12 == 0xB, f"status {status:04X} for an instance UID like {odd[-12:]}")


@case("WILD-02")
def no_patient_id(t: Trial) -> None:
    for made in (t.samples.loose(PatientID=""), t.samples.loose(PatientID=None)):
        t.equal(send(t, made).status, 0, "status without a Patient ID")
        t.expect(is_found(t, made), "not found")


@case("WILD-03")
def implicit_private(t: Trial) -> None:
    made = t.samples.loose()
    made.private_block(0x0099, "CONFORMANCE TEST", create=True).add_new(0x01, "LO", "private")
    with peer(t).association(Context(SECONDARY, (IMPLICIT,))) as association:
        answer = association.store(SECONDARY, str(made.SOPInstanceUID), encode(made, IMPLICIT))
        t.equal(answer.status, 0, "status")
    t.demand(is_found(t, made), "not found")
    row = t.row(f"/studies/{made.StudyInstanceUID}/metadata")
    t.expect("00991001" in row, "the private element is gone")


@case("WILD-04")
def wrong_character_set(t: Trial) -> None:
    for named in ("ISO_IR 999", None):
        made = t.samples.loose(SpecificCharacterSet=named, PatientComments="Gr__xxe ")
        body = patched(part10(made), {b"Gr__xxe ": "Grüße ".encode()})
        with peer(t).association(Context(SECONDARY, (EXPLICIT,))) as association:
            answer = association.store(SECONDARY, str(made.SOPInstanceUID), body_of(body))
            t.expect(answer.status in (0, 0xB000, 0xB007), f"status {answer.status:04X} with {named}")
        t.demand(is_found(t, made), "not found")
        t.status(t.get(f"/studies/{made.StudyInstanceUID}/metadata"), 200, "metadata")


@case("WILD-05")
def big_endian_and_deflated(t: Trial) -> None:
    for syntax in (BIG_ENDIAN, DEFLATED):
        made = t.samples.loose()
        wanted = made.PixelData
        body = body_of(part10(made, syntax))
        with peer(t).association(Context(SECONDARY, (syntax,))) as association:
            answer = association.store(SECONDARY, str(made.SOPInstanceUID), body)
            t.equal(f"{answer.status:04X}", "0000", f"status for {syntax}")
        t.demand(is_found(t, made), "not found")
        stored = t.instances(f"/studies/{made.StudyInstanceUID}")[0]
        t.expect(stored.PixelData == wanted, f"other pixels than were sent in {syntax}")


@case("WILD-06")
def odd_fragments(t: Trial) -> None:
    """Two fragments of one frame, an empty offset table, no sequence delimiter."""
    sample = t.sample("jpeg")
    made = copy.deepcopy(sample.data)
    made.SOPInstanceUID, made.SeriesInstanceUID, made.StudyInstanceUID = uid(), uid(), t.samples.own_study()
    stream = sample.fragments[0]
    half = len(stream) // 4 * 2
    pieces = (b"", stream[:half], stream[half:] + b"\0" * (len(stream[half:]) % 2))
    items = b"".join(b"\xfe\xff\x00\xe0" + len(one).to_bytes(4, "little") + one for one in pieces)
    del made.PixelData
    head = encode(made, EXPLICIT) + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
    with peer(t).association(Context(str(made.SOPClassUID), (sample.syntax,))) as association:
        answer = association.store(str(made.SOPClassUID), str(made.SOPInstanceUID), head + items)
        t.expect(answer.status in (0, 0xB007), f"status {answer.status:04X}")
    t.demand(is_found(t, made), "not found")
    path = f"/studies/{made.StudyInstanceUID}/series/{made.SeriesInstanceUID}/instances/{made.SOPInstanceUID}"
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    answer_ = t.get(f"{path}/frames/1", accept=accept)
    if t.status(answer_, 200, "the frame"):
        t.expect(t.parts(answer_)[0].body.rstrip(b"\0") == stream.rstrip(b"\0"), "the fragments are not joined")


@case("WILD-07")
def another_encoding_than_named(t: Trial) -> None:
    made = t.samples.loose()
    with peer(t).association(Context(SECONDARY, (IMPLICIT,)), Context("1.2.840.10008.1.1")) as association:
        answer = association.store(SECONDARY, str(made.SOPInstanceUID), encode(made, EXPLICIT))
        t.expect(answer.status is not None, "no status for Explicit VR inside an Implicit VR context")
        t.equal(association.echo(), 0, "C-ECHO on the same association")


@case("WILD-08")
def association_for_each_image(t: Trial) -> None:
    study, series = t.samples.own_study(), uid()
    for number in range(1, 6):
        made = t.samples.loose(StudyInstanceUID=study, SeriesInstanceUID=series, InstanceNumber=number)
        t.equal(send(t, made).status, 0, f"status of image {number}")
        t.equal(send(t, made).status, 0, f"status of image {number}, sent again")
    t.demand(is_found(t, made), "not found")


@case("WILD-09")
def a_context_for_each_syntax(t: Trial) -> None:
    contexts = [Context(one, (syntax,)) for one in (CT, SECONDARY) for syntax in (IMPLICIT, EXPLICIT)] * 30
    made = t.samples.loose()
    with peer(t).association(*contexts) as association:
        for context in (5, 7, 237, 239):
            syntax = association.accepted.syntaxes.get(context)
            if t.expect(syntax is not None, f"context {context} was not accepted"):
                answer = association.store(
                    SECONDARY, str(made.SOPInstanceUID), encode(made, str(syntax)), context=context
                )
                t.equal(answer.status, 0, f"status on context {context}")


@case("WILD-10")
def odd_values(t: Trial) -> None:
    made = t.samples.loose(SeriesNumber="707077", StudyDescription="D" * 80, SeriesDate="19990909")
    body = patched(part10(made), {b"707077": b"x     ", b"19990909": b"no date "})
    with peer(t).association(Context(SECONDARY, (EXPLICIT,))) as association:
        answer = association.store(SECONDARY, str(made.SOPInstanceUID), body_of(body))
        t.expect(answer.status in (0, 0xB007), f"status {answer.status:04X}")
    t.demand(is_found(t, made), "not found")
    t.status(t.get(f"/studies/{made.StudyInstanceUID}/metadata"), 200, "metadata")


@case("WILD-11")
def private_class_stored(t: Trial) -> None:
    made = t.samples.loose(SOPClassUID=PRIVATE_CLASS)
    t.equal(send(t, made).status, 0, "status of a private class")
    t.expect(is_found(t, made), "not found")


@case("WILD-12")
def stray_groups(t: Trial) -> None:
    made = t.samples.loose()
    meta = bytes.fromhex("02001000") + b"UI" + (20).to_bytes(2, "little") + b"1.2.840.10008.1.2.1\0"
    length = bytes.fromhex("08000000") + b"UL" + (4).to_bytes(2, "little") + (100).to_bytes(4, "little")
    with peer(t).association(Context(SECONDARY, (EXPLICIT,))) as association:
        answer = association.store(SECONDARY, str(made.SOPInstanceUID), meta + length + encode(made, EXPLICIT))
        t.expect(answer.status in (0, 0xB000, 0xB007), f"status {answer.status:04X}")
    t.expect(is_found(t, made), "not found")


@case("WILD-14")
def odd_queries(t: Trial) -> None:
    a = t.sample("A/1/1")
    for level, more in (("study", {}), ("STUDY", {"PatientName": " "}), ("STUDY", {"StudyDate": "*"})):
        identifier = keys(level, StudyInstanceUID=a.study, **more)
        identifier.add(DataElement(0x00080005, "CS", "ISO_IR 192"))
        with peer(t).association(Context(STUDY_FIND)) as association:
            found = association.find(identifier)
        t.equal(found.status, 0, f"status for level {level!r} and {more}")
        t.equal(len(found.rows), 1, f"studies for level {level!r} and {more}")


@case("WILD-15")
def several_keys_at_once(t: Trial) -> None:
    a, b = t.sample("A/1/1"), t.sample("B/1/1")
    identifier = keys(
        "STUDY",
        StudyInstanceUID=[a.study, b.study, t.samples.nowhere],
        PatientName=f"{t.samples.family()}*",
        ModalitiesInStudy="",
    )
    with peer(t).association(Context(STUDY_FIND)) as association:
        found = association.find(identifier)
    t.equal({str(row.StudyInstanceUID) for row in found.rows}, {a.study, b.study}, "studies found")
