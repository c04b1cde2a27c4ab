"""C-STORE: CSTORE."""

import time
from typing import Final

from pydicom.dataset import Dataset

from ..peer import EXPLICIT, VERIFICATION, Broken, Context, Message, body_of, encode
from ..reading import differences
from ..samples import CT, SECONDARY, part10, uid
from ..suite import Trial, case
from .association import peer

_SEARCHABLE_S: Final = 20.0
_PAUSE_S: Final = 0.05


def send(t: Trial, made: Dataset) -> Message:
    """The response to C-STORE of one data set, Explicit VR."""
    sop_class = str(made.SOPClassUID)
    with peer(t).association(Context(sop_class, (EXPLICIT,))) as association:
        return association.store(sop_class, str(made.get("SOPInstanceUID") or uid()), body_of(part10(made)))


def is_found(t: Trial, made: Dataset) -> bool:
    """Whether a search by HTTP finds a study within the time that a server may need."""
    deadline = time.monotonic() + _SEARCHABLE_S
    while time.monotonic() < deadline:
        if t.rows("/studies", {"StudyInstanceUID": str(made.StudyInstanceUID)}):
            return True
        time.sleep(_PAUSE_S)
    return False


@case("CSTORE-01")
def stored_and_found(t: Trial) -> None:
    made = t.samples.loose()
    t.equal(send(t, made).status, 0, "status")
    t.expect(is_found(t, made), f"not found {_SEARCHABLE_S:g} s after a success")


@case("CSTORE-03")
def unchanged(t: Trial) -> None:
    made = t.samples.loose()
    made.private_block(0x0099, "CONFORMANCE TEST", create=True).add_new(0x01, "LO", "private")
    t.equal(send(t, made).status, 0, "status")
    t.demand(is_found(t, made), "not found")
    stored = t.instances(f"/studies/{made.StudyInstanceUID}")[0]
    t.expect(not (found := list(differences(made, stored))), "; ".join(found[:5]))
    t.expect(stored.PixelData == made.PixelData, "other pixels than were sent")


@case("CSTORE-04")
def command_and_data(t: Trial) -> None:
    made = t.samples.loose()
    with peer(t).association(Context(SECONDARY, (EXPLICIT,)), Context(CT, (EXPLICIT,))) as association:
        answer = association.store(SECONDARY, uid(), encode(made, EXPLICIT))
        t.equal(f"{answer.status:04X}", "A900", "status where the command names another instance")
        answer = association.store(CT, str(made.SOPInstanceUID), encode(made, EXPLICIT))
        t.equal(f"{answer.status:04X}", "A900", "status where the command names another class")
    t.finds_nothing("/studies", {"StudyInstanceUID": str(made.StudyInstanceUID)}, "stored nevertheless")


@case("CSTORE-05")
def missing_uids(t: Trial) -> None:
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID"):
        answer = send(t, t.samples.loose(**{keyword: None}))
        t.expect(answer.status >> 12 == 0xC, f"status {answer.status:04X} without {keyword}, expected Cxxx")
        t.expect(answer.text(0x00000902), f"no Error Comment without {keyword}")


@case("CSTORE-06")
def stored_again(t: Trial) -> None:
    made = t.samples.loose()
    t.equal(send(t, made).status, 0, "status")
    t.equal(send(t, made).status, 0, "status of the same instance again")
    made.ImageComments = "another content"
    status = send(t, made).status
    t.expect(status in (0, 0x0111), f"status {status:04X} for other content, expected 0000 or 0111")


@case("CSTORE-08")
def error_comments(t: Trial) -> None:
    made = t.samples.loose(StudyInstanceUID=None)
    answer = send(t, made)
    comment = answer.text(0x00000902)
    t.expect(len(comment) <= 64, f"an Error Comment of {len(comment)} characters")
    t.expect(str(made.PatientID) not in comment and t.samples.family() not in comment, "a patient in the comment")


@case("CSTORE-09")
def rubbish_is_a_status(t: Trial) -> None:
    with peer(t).association(Context(SECONDARY, (EXPLICIT,)), Context(VERIFICATION)) as association:
        try:
            answer = association.store(SECONDARY, uid(), b"\xff\xff\xff\xff rubbish, no data set at all " * 4)
        except Broken as fault:
            t.expect(False, f"rubbish is answered by {fault}, expected a status")
            return
        t.expect(answer.status != 0, "rubbish is a success")
        t.equal(association.echo(), 0, "C-ECHO on the same association")


@case("CSTORE-10")
def from_a_move(t: Trial) -> None:
    made = t.samples.loose()
    with peer(t).association(Context(SECONDARY, (EXPLICIT,))) as association:
        context = association.context(SECONDARY)
        t.demand(context, "the context was not accepted")
        assert context is not None
        command: dict[int, int | str] = {
            0x00000002: SECONDARY,
            0x00000100: 0x0001,
            0x00000700: 1,
            0x00001000: str(made.SOPInstanceUID),
            0x00001030: "MOVER",
            0x00001031: 7,
        }
        association.send(context, command, encode(made, EXPLICIT))
        t.equal(association.receive().status, 0, "status of a sub-operation of C-MOVE")
    t.expect(is_found(t, made), "not found")
