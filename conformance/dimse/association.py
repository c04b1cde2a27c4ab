"""Associations: NET, AET, SEC, PC, CECHO."""

import struct
from contextlib import ExitStack

from pydicom.dataset import Dataset

from ..peer import (
    APPLICATION_CONTEXT,
    EXPLICIT,
    IMPLICIT,
    PATIENT_FIND,
    STUDY_FIND,
    VERIFICATION,
    Broken,
    Context,
    Peer,
    Rejected,
    body_of,
    sub_item,
)
from ..samples import CT, MR, PRIVATE_CLASS, SECONDARY
from ..suite import NotApplicable, Trial, case

_ECHO = Context(VERIFICATION)
_JPEG = "1.2.840.10008.1.2.4.50"
_P = "1.2.840.10008.1.2"
_ACCEPTED_SYNTAXES = (
    *(f"{_P}{end}" for end in ("", ".1", ".1.99", ".2", ".5")),
    *(f"{_P}.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 92, 93, 110, 111, 112, 201, 202, 203)),
    *(f"{_P}.4.{n}" for n in range(100, 109)),
)
_RETIRED = ("1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.5")


def peer(t: Trial) -> Peer:
    assert t.shared.peer is not None
    return t.shared.peer


@case("NET-01")
def acceptance(t: Trial) -> None:
    with peer(t).association(_ECHO) as association:
        accepted = association.accepted
        t.equal(accepted.application_context, APPLICATION_CONTEXT, "application context")
        t.expect(accepted.item(0x52), "no Implementation Class UID")
        t.expect(accepted.item(0x55), "no Implementation Version Name")


@case("NET-02")
def pdu_sizes(t: Trial) -> None:
    sample = t.sample("ct")
    with peer(t).association(_ECHO, Context(STUDY_FIND), Context(CT), max_pdu=4096) as association:
        size = association.accepted.max_pdu
        t.expect(size == 0 or size >= 4096, f"maximum length {size}")
        identifier = Dataset()
        identifier.QueryRetrieveLevel, identifier.AccessionNumber = "STUDY", t.samples.searched
        identifier.StudyInstanceUID = identifier.PatientName = ""
        association.find(identifier)
        t.expect(association.longest_pdu <= 4096, f"a P-DATA-TF of {association.longest_pdu} bytes, 4096 allowed")
        answer = association.store(CT, sample.sop, body_of(sample.body), piece=1000)
        t.equal(answer.status, 0, "status of a C-STORE in fragments of 1000 bytes")


@case("NET-04")
def many_at_once(t: Trial) -> None:
    with ExitStack() as stack:
        for number in range(50):
            try:
                stack.enter_context(peer(t).association(_ECHO))
            except Broken as fault:
                t.expect(False, f"association {number + 1}: {fault}")
                return
        t.checks += 1


@case("NET-05")
def rejections(t: Trial) -> None:
    for what, more, wanted in (
        ("an unknown application context", {"application_context": "1.2.3.4"}, (1, 1, 2)),
        ("an unknown protocol version", {"protocol": 2}, (1, 2, 2)),
    ):
        try:
            with peer(t).association(_ECHO, **more):
                t.expect(False, f"{what} was accepted")
        except Rejected as answer:
            t.equal(answer.values, wanted, f"result, source, reason for {what}")
        except Broken as fault:
            t.expect(False, f"{what}: {fault}")


@case("NET-06")
def user_information(t: Trial) -> None:
    unknown = struct.pack(">BBH", 0x5E, 0, 3) + b"abc"
    window = struct.pack(">BBHHH", 0x53, 0, 4, 5, 5)
    with peer(t).association(_ECHO, user=unknown + window) as association:
        answered = association.accepted.item(0x53)
        t.expect(answered in (None, b"\0\1\0\1"), f"asynchronous operations window {answered!r}")
        t.equal(association.echo(), 0, "C-ECHO")


@case("NET-07")
def releases_and_aborts(t: Trial) -> None:
    with peer(t).association(_ECHO) as association:
        t.equal(association.echo(), 0, "C-ECHO before A-RELEASE")
    with peer(t).connected([_ECHO]) as association:
        association.send_pdu(1, peer(t).request([_ECHO]))
        association.take_accept()
        association.abort()
    with peer(t).association(_ECHO) as association:
        t.equal(association.echo(), 0, "C-ECHO after another association was aborted")


@case("NET-09")
def one_after_another(t: Trial) -> None:
    for number in range(20):
        with peer(t).association(_ECHO) as association:
            t.equal(association.echo(), 0, f"C-ECHO of association {number + 1}")


@case("AET-01")
def titles(t: Trial) -> None:
    called = peer(t).title
    for padded in (called, f" {called}" if len(called) < 16 else called):
        with peer(t).association(_ECHO, called=padded) as association:
            t.equal(association.echo(), 0, f"called as {padded!r}")


@case("AET-03")
def no_title(t: Trial) -> None:
    try:
        with peer(t).association(_ECHO, calling="") as association:
            t.equal(association.echo(), 0, "C-ECHO of a caller without a title")
    except Rejected as answer:
        raise NotApplicable(f"callers without a title are rejected ({answer.values})") from None


@case("SEC-03")
def user_identity(t: Trial) -> None:
    name = b"nobody"
    identity = struct.pack(">BBH", 1, 0, len(name)) + name + struct.pack(">H", 0)
    try:
        with peer(t).association(_ECHO, user=struct.pack(">BBH", 0x58, 0, len(identity)) + identity) as association:
            t.expect(association.accepted.item(0x59) is None, "an answer that nobody asked for")
            t.equal(association.echo(), 0, "C-ECHO")
    except Rejected as answer:
        t.equal(answer.values, (1, 1, 1), "result, source, reason for a user that is not known")


@case("PC-01")
def many_contexts(t: Trial) -> None:
    contexts = [Context(CT, (syntax,)) for syntax in (IMPLICIT, EXPLICIT)] * 60
    contexts += [_ECHO, Context("1.2.840.10008.1.9"), Context(VERIFICATION, ("1.2.3.4",))]
    with peer(t).association(*contexts) as association:
        results = association.accepted.results
        t.equal(len(results), len(contexts), "contexts answered")
        t.equal([results.get(2 * n + 1) for n in range(4)], [0] * 4, "the same class in several contexts")
        t.equal(results.get(2 * 121 + 1), 3, "result for an abstract syntax that is no service")
        t.equal(results.get(2 * 122 + 1), 4, "result for an unknown transfer syntax")


@case("PC-02")
def classes(t: Trial) -> None:
    wanted = (VERIFICATION, CT, MR, SECONDARY, *_RETIRED, PATIENT_FIND, STUDY_FIND)
    with peer(t).association(*map(Context, wanted)) as association:
        for number, abstract in enumerate(wanted):
            t.equal(association.accepted.results.get(2 * number + 1), 0, f"result for {abstract}")


@case("PC-03")
def private_classes(t: Trial) -> None:
    with peer(t).association(Context(PRIVATE_CLASS)) as association:
        t.equal(association.accepted.results.get(1), 0, "result for a private class")


@case("PC-04")
def implicit_always(t: Trial) -> None:
    wanted = (VERIFICATION, CT, SECONDARY, STUDY_FIND)
    with peer(t).association(*(Context(one, (IMPLICIT,)) for one in wanted)) as association:
        for number, abstract in enumerate(wanted):
            t.equal(association.accepted.results.get(2 * number + 1), 0, f"Implicit VR for {abstract}")


@case("PC-05")
def syntaxes(t: Trial) -> None:
    with peer(t).association(*(Context(SECONDARY, (one,)) for one in _ACCEPTED_SYNTAXES)) as association:
        for number, syntax in enumerate(_ACCEPTED_SYNTAXES):
            t.equal(association.accepted.results.get(2 * number + 1), 0, f"result for {syntax}")


@case("PC-06")
def preferences(t: Trial) -> None:
    for offered, wanted in (
        ((_JPEG, EXPLICIT), EXPLICIT),
        ((_JPEG, IMPLICIT), IMPLICIT),
        ((f"{_P}.4.91", f"{_P}.4.90"), f"{_P}.4.90"),
        ((IMPLICIT, f"{_P}.4.201"), f"{_P}.4.201"),
        ((_JPEG,), _JPEG),
    ):
        with peer(t).association(Context(SECONDARY, offered)) as association:
            t.equal(association.accepted.syntaxes.get(1), wanted, f"chosen of {', '.join(offered)}")


@case("PC-07")
def identifiers_explicit(t: Trial) -> None:
    with peer(t).association(Context(STUDY_FIND, (IMPLICIT, EXPLICIT))) as association:
        t.equal(association.accepted.syntaxes.get(1), EXPLICIT, "chosen of Implicit and Explicit VR")


@case("PC-08")
def roles(t: Trial) -> None:
    def role(uid: str, scu: int, scp: int) -> bytes:
        data = sub_item(uid, bytes((scu, scp)))
        return struct.pack(">BBH", 0x54, 0, len(data)) + data

    with peer(t).association(Context(CT), Context(MR), user=role(CT, 0, 1)) as association:
        answered = [data for kind, data in association.accepted.user if kind == 0x54]
        for data in answered:
            uid = data[2:-2].decode()
            t.equal(uid, CT, "a role answered for a class that proposed one")
            t.expect(data[-2] == 0, "SCU granted though not proposed")
        t.expect(len(answered) <= 1, f"{len(answered)} roles answered, one was proposed")


@case("PC-09")
def message_on_no_context(t: Trial) -> None:
    with peer(t).connected([_ECHO]) as association:
        association.send_pdu(1, peer(t).request([_ECHO]))
        association.take_accept()
        association.send(77, {0x00000002: VERIFICATION, 0x00000100: 0x0030})
        try:
            answer = association.receive()
            t.expect(False, f"answered with status {answer.status:04X}, expected A-ABORT")
        except Broken as fault:
            t.expect("A-ABORT" in str(fault), f"{fault}, expected A-ABORT")


@case("PC-10")
def extended_storage(t: Trial) -> None:
    data = sub_item(CT, b"\2\0\0\0\0\0")
    user = struct.pack(">BBH", 0x56, 0, len(data)) + data
    with peer(t).association(Context(CT), user=user) as association:
        t.equal(association.accepted.results.get(1), 0, "a storage class with extended negotiation")


@case("CECHO-01")
def echo(t: Trial) -> None:
    with peer(t).association(_ECHO, Context(CT)) as association:
        t.equal(association.echo(), 0, "status")
        t.equal(association.echo(), 0, "status the second time")


def accepted_or_not_applicable(t: Trial, abstract: str, name: str) -> None:
    """Goes on where a service is accepted at all."""
    if abstract not in t.shared.offers:
        with peer(t).association(Context(abstract)) as association:
            t.shared.offers[abstract] = association.accepted.results.get(1)
    result = t.shared.offers[abstract]
    if result != 0:
        raise NotApplicable(f"{name} is not served here (presentation context result {result})")
