"""Associations: negotiation, admission, broken peers, timers and the drain."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from pynetdicom import AE, build_context, build_role
from pynetdicom.dimse_primitives import C_ECHO
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from structlog.testing import capture_logs

from demo.network import undisturbed
from gateway.dimse.server import Peer
from tests.surfaces.test_dimse_fakes import (
    CT,
    EXPLICIT,
    IMPLICIT,
    PATIENT_FIND,
    STUDY_FIND,
    VERIFICATION,
    WAIT_S,
    Raw,
    command,
    data_set,
    echo_command,
    explicit,
    item,
    message,
    p_data,
    pdv,
    request,
    running,
    store_command,
    user_items,
)

J2K, J2K_LOSSY, JPEG, HTJ2K, RLE, DEFLATED, BIG = (
    f"1.2.840.10008.1.2.{tail}" for tail in ("4.90", "4.91", "4.50", "4.202", "5", "1.99", "2")
)
ABORT = 7


def test_an_answer_is_for_the_caller_that_waits_for_it() -> None:
    """What pynetdicom's reactor thread may do while an answer arrives: look for a message, and drop it."""
    with running() as gateway:
        ae = AE()
        ae.add_requested_context(VERIFICATION)
        association = undisturbed(ae.associate("127.0.0.1", gateway.port, ae_title="GATEWAY"))
        answer = (1, C_ECHO())
        association.dimse.msg_queue.put(answer)
        assert association.dimse.get_msg() == (None, None)
        assert association.dimse.get_msg(block=True) == answer
        association.release()


def test_echo_of_pynetdicom() -> None:
    with running() as gateway:
        ae = AE()
        ae.add_requested_context(VERIFICATION)
        association = ae.associate("127.0.0.1", gateway.port, ae_title="GATEWAY")
        assert association.is_established
        assert association.send_c_echo().Status == 0
        association.release()
        assert gateway.counts.wait_for(1) == ["released"]
        assert gateway.counts.messages == [("echo", 0)]


def test_each_of_128_contexts_is_answered() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        offered = [(2 * n + 1, CT, [EXPLICIT if n % 2 else IMPLICIT]) for n in range(128)]
        assert raw.associate(offered) == {number: (0, syntaxes[0]) for number, _, syntaxes in offered}
        assert raw.store(255, data_set()).status == 0


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([JPEG, EXPLICIT, IMPLICIT], EXPLICIT),
        ([IMPLICIT, J2K_LOSSY], IMPLICIT),
        ([IMPLICIT, EXPLICIT, J2K], J2K),
        ([J2K, HTJ2K, RLE], HTJ2K),
        ([JPEG, DEFLATED], DEFLATED),
        ([JPEG, BIG], BIG),
        ([JPEG, J2K_LOSSY], J2K_LOSSY),
        ([JPEG], JPEG),
        (["1.2.840.10008.1.2.4.108"], "1.2.840.10008.1.2.4.108"),
    ],
)
def test_an_original_is_never_asked_for_in_a_lossy_form(offered: list[str], chosen: str) -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        assert raw.associate([(1, CT, offered)]) == {1: (0, chosen)}


def test_classes_accepted_and_refused() -> None:
    offered = {
        VERIFICATION: 0,
        "1.2.840.10008.5.1.4.1.1.6": 0,  # ultrasound, retired
        "1.2.840.10008.5.1.4.1.1.12.3": 0,  # biplane, retired
        "1.2.840.10008.5.1.4.1.1.40": 0,  # without a name in the dictionary
        "1.2.840.113619.4.26": 0,  # private
        "1.2.3.4.5": 0,
        STUDY_FIND: 0,
        PATIENT_FIND: 0,
        "1.2.840.10008.5.1.4.1.2.2.2": 3,  # C-MOVE
        "1.2.840.10008.5.1.4.31": 3,  # worklist
        "1.2.840.10008.1.20.1": 3,  # commitment
        "1.2.840.10008.5.1.1.9": 3,  # print
        "1.2.840.10008.1.2": 3,  # no class at all
        "": 3,
    }
    with running() as gateway, Raw(gateway.port) as raw:
        answers = raw.associate([(2 * n + 1, uid, [IMPLICIT]) for n, uid in enumerate(offered)])
        assert {uid: answers[2 * n + 1][0] for n, uid in enumerate(offered)} == offered


def test_context_results_other_than_the_class() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        answers = raw.associate([(1, CT, ["1.2.3"]), (2, CT, [IMPLICIT]), (3, CT, []), (5, STUDY_FIND, [J2K])])
        assert [answers[number][0] for number in (1, 2, 3, 5)] == [4, 2, 4, 4]


def test_roles_are_answered_only_for_what_was_proposed() -> None:
    with running() as gateway:
        ae = AE()
        for uid in (CT, VERIFICATION, "1.2.840.10008.5.1.4.1.1.4"):
            ae.add_requested_context(uid)
        roles: list[Any] = [build_role(CT, scu_role=False, scp_role=True), build_role(VERIFICATION, scu_role=True)]
        association = ae.associate("127.0.0.1", gateway.port, ext_neg=roles)
        assert association.is_established
        answered = association.acceptor.role_selection
        assert {uid: (role.scu_role, role.scp_role) for uid, role in answered.items()} == {
            CT: (False, True),
            VERIFICATION: (True, False),
        }
        association.release()


@pytest.mark.parametrize(
    ("offer", "answer"),
    [(b"\1", b"\1"), (b"\0\1\1", b"\0\1\1"), (b"\1" * 5, b"\1\1\1\0\0"), (b"\1" * 7, b"\1\1\1\0\0\0\0")],
)
def test_extended_negotiation_has_as_many_bytes_as_offered(offer: bytes, answer: bytes) -> None:
    with running() as gateway:
        ae = AE()
        ae.add_requested_context(STUDY_FIND)
        offered = SOPClassExtendedNegotiation()
        offered.sop_class_uid, offered.service_class_application_information = STUDY_FIND, offer
        association = ae.associate("127.0.0.1", gateway.port, ext_neg=[offered])
        assert association.acceptor.sop_class_extended == {STUDY_FIND: answer}
        association.release()


def test_maximum_length_and_identity_are_announced() -> None:
    with running(max_pdu=65536) as gateway, Raw(gateway.port) as raw:
        raw.send(request([(1, CT, [IMPLICIT])]))
        kind, body = raw.pdu()
        assert kind == 2
        assert body[4:36] == b"GATEWAY".ljust(16) + b"TEST".ljust(16)
        items = user_items(body)
        assert items[0x51] == [(65536).to_bytes(4, "big")]
        assert set(items) == {0x51, 0x52, 0x55}


@pytest.mark.parametrize("calling", [b" " * 16, b"\xc4RZTE", b"\0" * 16, b"lower case"])
def test_odd_calling_titles_are_accepted(calling: bytes) -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, VERIFICATION, [IMPLICIT])], calling=calling, user=item(0x5A, b"?") + item(0x53, b"\0\5\0\5"))
        assert raw.echo(1) == 0
        raw.release()


@pytest.mark.parametrize(
    ("settings", "asked", "rejection"),
    [
        ({}, {"version": 2}, (1, 2, 2)),
        ({}, {"application": b"1.2.3"}, (1, 1, 2)),
        ({"unknown_callers": "none"}, {}, (1, 1, 3)),
        ({"unknown_callers": "none", "peers": (Peer("TEST", "h", 1, "10.0.0.0/8"),)}, {}, (1, 1, 3)),
        ({"max_associations": 0}, {}, (2, 3, 2)),
    ],
)
def test_rejections(settings: Any, asked: Any, rejection: tuple[int, ...]) -> None:
    with running(**settings) as gateway, Raw(gateway.port) as raw:
        raw.send(request([(1, VERIFICATION, [IMPLICIT])], **asked))
        assert raw.pdu() == (3, bytes((0, *rejection)))
        assert raw.is_closed()
        raw.socket.close()
        assert gateway.counts.wait_for(1) == ["refused"]


def test_a_place_is_free_again_after_an_association() -> None:
    contexts = [(1, VERIFICATION, [IMPLICIT])]
    with running(max_associations=1) as gateway:
        with Raw(gateway.port) as first, Raw(gateway.port) as second:
            first.associate(contexts)
            second.send(request(contexts))
            assert second.pdu() == (3, b"\0\2\3\2")
            first.release()
        gateway.counts.wait_for(2)
        with Raw(gateway.port) as third:
            third.associate(contexts)
            assert third.echo(1) == 0


def test_unknown_callers_may_only_store_and_known_ones_query() -> None:
    contexts = [(1, CT, [IMPLICIT]), (3, VERIFICATION, [IMPLICIT]), (5, STUDY_FIND, [IMPLICIT])]
    with running(unknown_callers="store", peers=(Peer("KNOWN", "h", 1, "127.0.0.0/8"),)) as gateway:
        for title, expected in ((b"TEST", [0, 0, 1]), (b"KNOWN", [0, 0, 0]), (b"known", [0, 0, 1])):
            with Raw(gateway.port) as raw:
                answers = raw.associate(contexts, calling=title)
                assert [answers[number][0] for number in (1, 3, 5)] == expected


def test_peer_addresses() -> None:
    assert Peer("A", "h", 1).is_caller("A", "203.0.113.9")
    assert Peer("A ", "h", 1, "10.1.0.0/16").is_caller("A", "10.1.2.3")
    assert Peer("A", "h", 1, "10.1.0.0/16").is_caller("A", "::ffff:10.1.2.3")
    assert not Peer("A", "h", 1, "10.1.0.0/16").is_caller("A", "10.2.2.3")
    assert not Peer("A", "h", 1, "10.1.0.0/16").is_caller("A", "::1")


HUGE = 0xFFFFFFF0


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (request([(1, CT, [IMPLICIT])], user=item(0x54, b"\0\x40")), 6),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1),
        (bytes(200), 1),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 1),
        (struct.pack(">BBI", 4, 0, 100) + bytes(100), 2),
        (struct.pack(">BBII", 5, 0, 4, 0), 2),
        (struct.pack(">BBI", 1, 0, HUGE), 6),
        (struct.pack(">BBI", 1, 0, 10) + bytes(10), 6),
        (struct.pack(">BBI", 1, 0, 72) + bytes(68) + b"\x20\0\xff\xff", 6),
    ],
)
def test_garbage_instead_of_a_request(first: bytes, reason: int) -> None:
    with running() as gateway:
        with Raw(gateway.port) as raw:
            raw.send(first)
            kind, body = raw.pdu()
            assert (kind, body) == (ABORT, bytes((0, 0, 2, reason)))
        gateway.counts.wait_for(1)
        with Raw(gateway.port) as raw:
            raw.associate([(1, VERIFICATION, [IMPLICIT])])
            assert raw.echo(1) == 0


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x99\0\0\0\0\4xxxx", 1),
        (request([(1, CT, [IMPLICIT])]), 2),
        (struct.pack(">BBI", 4, 0, HUGE), 6),
        (p_data(pdv(1, echo_command(), is_command=True)[:-4]), 6),
        (p_data(struct.pack(">I", 1) + b"\1"), 6),
        (p_data(b"\0\0\0"), 6),
        (p_data(struct.pack(">IBB", HUGE, 1, 3)), 6),
        (p_data(pdv(9, echo_command(), is_command=True)), 6),
        (p_data(pdv(5, echo_command(), is_command=True)), 6),
        (p_data(pdv(1, b"data", is_command=False)), 5),
        (message(1, store_command()) + p_data(pdv(3, b"data", is_command=False)), 5),
        (message(1, store_command()) + message(1, echo_command()), 5),
        (message(1, b"\0\0\2\0\xff\0\0\0xx"), 6),
        (message(1, b"\2\0\2\0\0\0\0\0"), 6),
        (message(1, b"\0\0"), 6),
        (message(1, command(e0100=1)), 6),
        (message(1, command(e0100=0x8001, e0120=1, e0800=0x101)), 5),
        (p_data(pdv(1, bytes(60000), is_command=True, is_last=False)) * 2, 6),
        (struct.pack(">BBI", 5, 0, 9) + bytes(9), 6),
    ],
)
def test_garbage_within_an_association(sent: bytes, reason: int) -> None:
    contexts = [(1, CT, [IMPLICIT]), (3, VERIFICATION, [IMPLICIT]), (5, "1.2.840.10008.5.1.1.9", [IMPLICIT])]
    with running() as gateway:
        with Raw(gateway.port) as raw:
            raw.associate(contexts)
            raw.send(sent)
            assert raw.pdu() == (ABORT, bytes((0, 0, 2, reason)))
            assert raw.is_closed()
        assert gateway.counts.wait_for(1) == ["protocol"]
        assert gateway.spool.closed == []
        with Raw(gateway.port) as raw:
            raw.associate(contexts)
            assert raw.echo(3) == 0


def test_operations_that_are_not_served() -> None:
    contexts = [(1, CT, [IMPLICIT]), (3, VERIFICATION, [IMPLICIT]), (5, STUDY_FIND, [IMPLICIT])]
    n_get = command(e0003=VERIFICATION, e0100=0x110, e0110=3, e0800=0x101, e1001="1.2")
    c_move = command(e0002=STUDY_FIND, e0100=0x21, e0110=4, e0800=1)
    foreign_echo = command(e0002=CT, e0100=0x30, e0110=5, e0800=0x101)
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate(contexts)
        for sent, status, field in (
            (message(3, n_get), 0x211, 0x8110),
            (message(5, c_move, explicit(0x00080052, "CS", "STUDY")), 0x211, 0x8021),
            (message(3, foreign_echo), 0x122, 0x8030),
            (message(3, store_command(), data_set()), 0x122, 0x8001),
            (message(1, command(e0002=CT, e0100=1, e0110=1, e0800=0x101, e1000="1.2")), 0xC000, 0x8001),
            (message(3, command(e0100=0xFFF, e0120=1, e0800=0x101)) + message(3, echo_command()), 0, 0x8030),
            (message(1, echo_command()), 0, 0x8030),
        ):
            raw.send(sent)
            response = raw.response()
            assert response.status == status
            assert response.elements[0x0100] == field.to_bytes(2, "little")
        raw.release()


def test_abort_and_reset_end_the_association_alone() -> None:
    part = p_data(pdv(1, data_set()[:40], is_command=False, is_last=False))
    with running() as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [EXPLICIT])])
            assert raw.store(1, data_set("1.2.3")).status == 0
            raw.send(message(1, store_command("1.2.4")) + part)
            raw.send(struct.pack(">BBI4B", 7, 0, 4, 0, 0, 0, 0))
        assert gateway.counts.wait_for(1) == ["aborted"]
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [EXPLICIT])])
            assert raw.store(1, data_set("1.2.5"), sop="1.2.5").status == 0
            raw.send(message(1, store_command("1.2.6")) + part)
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert gateway.counts.wait_for(2) == ["aborted", "lost"]
        batches = gateway.jobs.wait_for(2)
        assert [[staged.origin.sop_uid for staged in items] for _, items in batches] == [["1.2.3"], ["1.2.5"]]
        assert gateway.spool.aborted == 2


def test_silence_before_the_request_ends_at_artim() -> None:
    with running(association_timeout_s=0.2) as gateway, Raw(gateway.port) as raw:
        started = time.monotonic()
        assert raw.pdu()[0] == ABORT
        assert 0.15 < time.monotonic() - started < 5
        raw.socket.close()
        assert gateway.counts.wait_for(1) == ["timeout"]


def test_trickled_request_ends_at_artim() -> None:
    with running(association_timeout_s=0.3) as gateway, Raw(gateway.port) as raw:
        stop = threading.Event()

        def trickle() -> None:
            with suppress(OSError):
                for byte in request([(1, CT, [IMPLICIT])] * 40):
                    raw.send(bytes((byte,)))
                    if stop.wait(0.02):
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        assert gateway.counts.wait_for(1) == ["timeout"]
        stop.set()
        thread.join()


def test_trickled_fragment_and_silence_end_at_the_network_timeout() -> None:
    with running(network_timeout_s=0.3) as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [IMPLICIT])])
            assert raw.pdu() == (ABORT, b"\0\0\2\0")
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [IMPLICIT])])
            raw.send(message(1, store_command()) + struct.pack(">BBIIBB", 4, 0, 1006, 1002, 1, 2) + b"some")
            assert raw.pdu() == (ABORT, b"\0\0\2\0")
        assert gateway.counts.wait_for(2) == ["timeout", "timeout"]
        assert gateway.spool.aborted == 1


def test_drain_lets_the_message_finish_and_submits() -> None:
    with running() as gateway, Raw(gateway.port) as raw, Raw(gateway.port) as silent:
        raw.associate([(1, CT, [EXPLICIT])])
        silent.associate([(1, VERIFICATION, [IMPLICIT])])
        whole = message(1, store_command(), data_set(), fragment=40)
        raw.send(whole[:-60])
        drained = gateway.drain()
        assert silent.pdu() == (ABORT, b"\0\0\2\0")
        silent.socket.close()
        raw.send(whole[-60:])
        assert raw.response().status == 0
        assert raw.pdu() == (ABORT, b"\0\0\2\0")
        raw.socket.close()
        drained.result(WAIT_S)
        assert sorted(gateway.counts.outcomes) == ["drained", "drained"]
        assert len(gateway.jobs.batches) == 1
        with pytest.raises(ConnectionError):
            Raw(gateway.port)


def test_drain_cuts_what_does_not_end() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        assert raw.store(1, data_set()).status == 0
        raw.send(message(1, store_command("1.2.9")))
        started = time.monotonic()
        gateway.drain(0.2).result(WAIT_S)
        assert time.monotonic() - started < 5
        assert [len(items) for _, items in gateway.jobs.wait_for(1)] == [1]


def test_the_log_tells_counts_and_no_patient() -> None:
    with capture_logs() as logs, running() as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [EXPLICIT]), (3, "1.2.840.10008.5.1.1.9", [IMPLICIT])])
            named = explicit(0x00100010, "PN", "MARKER^NAME")
            assert raw.store(1, named + data_set(), sop="1.2.3").status == 0
            assert raw.store(1, data_set("9.9") + named, sop="1.2.3").status == 0xA900
            raw.release()
        gateway.counts.wait_for(1)
    (end,) = [entry for entry in logs if entry["event"] == "association"]
    assert end["outcome"] == "released"
    assert (end["called"], end["calling"], end["address"]) == ("GATEWAY", "TEST", "127.0.0.1")
    assert (end["contexts_accepted"], end["contexts_refused"], end["store"]) == (1, 1, 2)
    assert "MARKER" not in repr(logs)
    assert "'1.2.3'" not in repr(logs)


def test_many_short_associations_leave_nothing_behind() -> None:
    with running() as gateway:
        ae = AE()
        ae.requested_contexts = [build_context(VERIFICATION)]
        for _ in range(5):
            association = ae.associate("127.0.0.1", gateway.port)
            assert association.send_c_echo().Status == 0
            association.abort()
        for _ in range(30):
            with Raw(gateway.port) as raw:
                raw.associate([(1, VERIFICATION, [IMPLICIT])])
                raw.release()
        assert len(gateway.counts.wait_for(35)) == 35
