"""C-MOVE, C-GET and Storage Commitment: CMOVE, CGET, SCMT."""

import struct

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from ..peer import (
    COMMITMENT,
    COMMITMENT_INSTANCE,
    STUDY_GET,
    STUDY_MOVE,
    Association,
    Context,
    Message,
    decode,
    encode,
    sub_item,
)
from ..samples import CT, uid
from ..suite import Trial, case
from .association import accepted_or_not_applicable, peer
from .find import keys

_NOBODY = "NOBODY-AT-ALL"


def _move(t: Trial, identifier: Dataset, destination: str) -> list[Message]:
    accepted_or_not_applicable(t, STUDY_MOVE, "C-MOVE")
    with peer(t).association(Context(STUDY_MOVE)) as association:
        context = association.context(STUDY_MOVE) or 1
        command: dict[int, int | str] = {
            0x00000002: STUDY_MOVE,
            0x00000100: 0x0021,
            0x00000600: destination,
            0x00000700: 0,
        }
        association.send(context, command, encode(identifier, association.syntax(context)))
        answers = [association.receive()]
        while answers[-1].status == 0xFF00:
            answers.append(association.receive())
        return answers


@case("CMOVE-01")
def move_levels(t: Trial) -> None:
    a = t.sample("A/1/1")
    for identifier in (
        keys("STUDY", StudyInstanceUID=a.study),
        keys("SERIES", StudyInstanceUID=a.study, SeriesInstanceUID=a.series),
        keys("IMAGE", StudyInstanceUID=a.study, SeriesInstanceUID=a.series, SOPInstanceUID=a.sop),
        keys("STUDY", StudyInstanceUID=a.study, PatientName=""),
    ):
        status = _move(t, identifier, _NOBODY)[-1].status
        t.equal(f"{status:04X}", "A801", "the identifier is taken, the destination is not")


@case("CMOVE-02")
def unknown_destination(t: Trial) -> None:
    answers = _move(t, keys("STUDY", StudyInstanceUID=t.sample("A/1/1").study), _NOBODY)
    t.equal([f"{one.status:04X}" for one in answers], ["A801"], "statuses for an unknown destination")


@case("CMOVE-06")
def bad_identifier(t: Trial) -> None:
    status = _move(t, keys(None, StudyInstanceUID=t.sample("A/1/1").study), _NOBODY)[-1].status
    t.expect(status in (0xA900, 0xA801), f"status {status:04X} without a level, expected A900")


def _get(t: Trial, association: Association, identifier: Dataset) -> tuple[list[Message], list[Dataset]]:
    """The C-GET responses, and the instances that came between them."""
    context = association.context(STUDY_GET) or 1
    command: dict[int, int | str] = {0x00000002: STUDY_GET, 0x00000100: 0x0010, 0x00000700: 0}
    association.send(context, command, encode(identifier, association.syntax(context)))
    answers: list[Message] = []
    stored: list[Dataset] = []
    while not answers or answers[-1].status == 0xFF00:
        message = association.receive()
        if message.number(0x00000100) == 0x0001:
            stored.append(decode(message.data, association.syntax(message.context)))
            reply: dict[int, int | str] = {
                0x00000002: message.text(0x00000002),
                0x00000100: 0x8001,
                0x00000120: message.number(0x00000110) or 0,
                0x00000900: 0,
                0x00001000: message.text(0x00001000),
            }
            association.send(message.context, reply)
        else:
            answers.append(message)
    return answers, stored


def _roles() -> bytes:
    data = sub_item(CT, b"\0\1")
    return struct.pack(">BBH", 0x54, 0, len(data)) + data


@case("CGET-01")
def get(t: Trial) -> None:
    accepted_or_not_applicable(t, STUDY_GET, "C-GET")
    a = t.sample("A/1/1")
    identifier = keys("SERIES", StudyInstanceUID=a.study, SeriesInstanceUID=a.series)
    with peer(t).association(Context(STUDY_GET), Context(CT), user=_roles()) as association:
        answers, stored = _get(t, association, identifier)
    t.equal(f"{answers[-1].status:04X}", "0000", "final status")
    t.equal(len(stored), 3, "instances received")
    t.equal({str(one.SOPInstanceUID) for one in stored} >= {a.sop}, True, "the instance is among them")


@case("CGET-02")
def get_counters(t: Trial) -> None:
    accepted_or_not_applicable(t, STUDY_GET, "C-GET")
    a = t.sample("A/1/1")
    with peer(t).association(Context(STUDY_GET), Context(CT), user=_roles()) as association:
        answers, stored = _get(t, association, keys("STUDY", StudyInstanceUID=a.study))
        nothing, _ = _get(t, association, keys("STUDY", StudyInstanceUID=t.samples.nowhere))
    t.equal(answers[-1].number(0x00001021), len(stored), "completed sub-operations")
    t.equal(f"{answers[-1].status:04X}", "B000", "final status where the SR had no context")
    t.equal(f"{nothing[-1].status:04X}", "0000", "final status of nothing found")


def _commit(t: Trial, association: Association, instance: str, action: int, *sops: tuple[str, str]) -> Message:
    made = Dataset()
    made.TransactionUID = uid()
    items = []
    for sop_class, sop in sops:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
        items.append(item)
    made.ReferencedSOPSequence = Sequence(items)
    context = association.context(COMMITMENT) or 1
    command: dict[int, int | str] = {
        0x00000003: COMMITMENT,
        0x00000100: 0x0130,
        0x00001001: instance,
        0x00001008: action,
    }
    association.send(context, command, encode(made, association.syntax(context)))
    return association.receive()


@case("SCMT-01")
def commitment_request(t: Trial) -> None:
    accepted_or_not_applicable(t, COMMITMENT, "Storage Commitment")
    a = t.sample("A/1/1")
    with peer(t).association(Context(COMMITMENT)) as association:
        answer = _commit(t, association, COMMITMENT_INSTANCE, 1, (CT, a.sop))
        t.equal(f"{answer.status:04X}", "0000", "status")
    with peer(t).association(Context(COMMITMENT)) as association:
        answer = _commit(t, association, "1.2.3", 1, (CT, a.sop))
        t.equal(f"{answer.status:04X}", "0112", "status for another instance than the well-known one")
    with peer(t).association(Context(COMMITMENT)) as association:
        answer = _commit(t, association, COMMITMENT_INSTANCE, 9, (CT, a.sop))
        t.equal(f"{answer.status:04X}", "0123", "status for an unknown action type")


@case("SCMT-03")
def commitment_report(t: Trial) -> None:
    accepted_or_not_applicable(t, COMMITMENT, "Storage Commitment")
    a = t.sample("A/1/1")
    for sops, wanted in ((((CT, a.sop),), 1), (((CT, a.sop), (CT, t.samples.nowhere)), 2)):
        with peer(t).association(Context(COMMITMENT)) as association:
            t.equal(_commit(t, association, COMMITMENT_INSTANCE, 1, *sops).status, 0, "status")
            report = association.receive()
            t.equal(report.number(0x00000100), 0x0100, "N-EVENT-REPORT on the same association")
            t.equal(report.number(0x00001002), wanted, "event type (1 all committed, 2 failures exist)")
            reply: dict[int, int | str] = {
                0x00000002: COMMITMENT,
                0x00000100: 0x8100,
                0x00000120: report.number(0x00000110) or 0,
                0x00000900: 0,
            }
            association.send(report.context, reply)
