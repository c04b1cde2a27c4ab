"""The PDU codec against pynetdicom's, and against what deployed peers send."""

import struct
import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import pdu as peer
from pynetdicom.presentation import build_context

from gateway.dimse import pdu
from gateway.dimse.pdu import Command, ContextResult, ProtocolError
from gateway.domain.header import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION

APPLICATION = "1.2.840.10008.3.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


def their_request(count: int = 3) -> bytes:
    from pynetdicom.pdu_primitives import (
        A_ASSOCIATE,
        ImplementationClassUIDNotification,
        ImplementationVersionNameNotification,
        MaximumLengthNotification,
        SCP_SCU_RoleSelectionNegotiation,
        SOPClassExtendedNegotiation,
    )

    primitive: Any = A_ASSOCIATE()
    primitive.application_context_name = APPLICATION
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "GATEWAY"
    contexts = []
    for number in range(count):
        context = build_context(CT, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
        context.context_id = 2 * number + 1
        contexts.append(context)
    primitive.presentation_context_definition_list = contexts
    length, uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = 28672
    uid.implementation_class_uid = UID("1.2.3.4")
    version.implementation_version_name = "SCANNER_1"
    role, extended = SCP_SCU_RoleSelectionNegotiation(), SOPClassExtendedNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = UID(CT), False, True
    extended.sop_class_uid = UID("1.2.840.10008.5.1.4.1.2.2.1")
    extended.service_class_application_information = b"\1\0\1"
    primitive.user_information = [length, uid, version, role, extended]
    request = peer.A_ASSOCIATE_RQ()
    request.from_primitive(primitive)
    return request.encode()


def test_request_of_pynetdicom_reads_as_it_was_meant() -> None:
    request = pdu.decode_associate_request(their_request()[6:])
    assert (request.version, request.called, request.calling) == (1, "GATEWAY", "SCANNER")
    assert request.application_context == APPLICATION
    assert [context.id for context in request.contexts] == [1, 3, 5]
    assert request.contexts[0].abstract_syntax == CT
    assert request.contexts[0].transfer_syntaxes == ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
    assert request.max_pdu == 28672
    assert (request.implementation_uid, request.implementation_version) == ("1.2.3.4", "SCANNER_1")
    assert request.roles == {CT: (False, True)}
    assert request.extended == {"1.2.840.10008.5.1.4.1.2.2.1": b"\1\0\1"}


def test_pynetdicom_reads_our_accept() -> None:
    accept = pdu.encode_associate_accept(
        b"GATEWAY".ljust(16) + b"SCANNER".ljust(16) + bytes(32),
        [ContextResult(1, 0, CT, "1.2.840.10008.1.2.1"), ContextResult(3, 3, "1.2.9", "1.2.840.10008.1.2")],
        65536,
        {CT: (False, True)},
        {"1.2.840.10008.5.1.4.1.2.2.1": b"\1\0\1"},
    )
    theirs = peer.A_ASSOCIATE_AC()
    theirs.decode(accept)
    primitive: Any = theirs.to_primitive()
    results = primitive.presentation_context_definition_results_list
    assert [(context.context_id, context.result) for context in results] == [(1, 0), (3, 3)]
    assert results[0].transfer_syntax == ["1.2.840.10008.1.2.1"]
    assert primitive.maximum_length_received == 65536
    assert primitive.implementation_class_uid == IMPLEMENTATION_CLASS_UID
    assert theirs.user_information.role_selection[CT].scp_role == 1
    assert theirs.user_information.ext_neg[0].app_info == b"\1\0\1"
    assert accept == theirs.encode()


def test_our_implementation_identity_is_legal() -> None:
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
    assert len(IMPLEMENTATION_VERSION) <= 16


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pdu.encode_associate_reject(2, 3, 2), peer.A_ASSOCIATE_RJ),
        (pdu.encode_release_response(), peer.A_RELEASE_RP),
        (pdu.encode_abort(6), peer.A_ABORT_RQ),
    ],
)
def test_pynetdicom_reads_our_short_pdus(ours: bytes, theirs: Any) -> None:
    read = theirs()
    read.decode(ours)
    assert read.encode() == ours


@pytest.mark.parametrize(
    ("title", "expected"),
    [(b" " * 16, ""), (b"\0" * 16, ""), (b"  AB  ".ljust(16), "AB"), (b"\xc4RZTE".ljust(16), "ÄRZTE")],
)
def test_any_title_reads(title: bytes, expected: str) -> None:
    body = bytearray(their_request()[6:])
    body[20:36] = title
    assert pdu.decode_associate_request(body).calling == expected


def test_unknown_items_and_long_uids_are_borne() -> None:
    body = their_request()[6:] + b"\x7a\0\0\2xx"
    long_uid = b"1." * 50 + b"1"
    context = b"\x20\0" + (8 + len(long_uid)).to_bytes(2, "big") + b"\x09\0\0\0\x30\0"
    body += context + len(long_uid).to_bytes(2, "big") + long_uid
    body += b"\x50\0\0\6\x5a\0\0\2yy"
    request = pdu.decode_associate_request(body)
    assert request.contexts[-1] == pdu.ProposedContext(9, long_uid.decode(), ())
    assert request.max_pdu == 28672


@pytest.mark.parametrize("cut", [10, 67, 70, 100, -1])
def test_cut_request_is_a_protocol_error(cut: int) -> None:
    with pytest.raises(ProtocolError):
        pdu.decode_associate_request(their_request()[6:][:cut])


@given(st.binary(max_size=400))
def test_no_request_breaks_the_decoder(tail: bytes) -> None:
    for body in (tail, bytes(68) + tail, bytes(68) + b"\x50\0" + len(tail).to_bytes(2, "big") + tail):
        try:
            request = pdu.decode_associate_request(body)
        except ProtocolError:
            continue
        assert len(request.reserved) == 64


@given(st.binary(max_size=200))
def test_no_command_breaks_the_decoder(data: bytes) -> None:
    with suppress(ProtocolError):
        assert 0 <= pdu.decode_command(data).field <= 0xFFFF


@given(
    st.binary(min_size=0, max_size=2000),
    st.integers(0, 4000),
    st.booleans(),
    st.integers(0, 127).map(lambda n: 2 * n + 1),
)
def test_fragments_join_to_the_message_and_keep_the_limit(data: bytes, limit: int, command: bool, context: int) -> None:
    data += b"\0" * (len(data) & 1)
    sent = pdu.encode_p_data(context, data, command=command, max_pdu=limit)
    joined, at, last = b"", 0, 0
    while at < len(sent):
        theirs = peer.P_DATA_TF()
        length = struct.unpack_from(">I", sent, at + 2)[0]
        theirs.decode(sent[at : at + 6 + length])
        at += 6 + length
        assert length <= max(limit, 8) or limit == 0
        (value,) = theirs.presentation_data_value_items
        assert value.context_id == context
        assert not last & 2
        last = value.presentation_data_value[0]
        assert last & 1 == command
        assert len(value.presentation_data_value) % 2 == 1  # the control byte and an even fragment
        joined += value.presentation_data_value[1:]
    assert last & 2
    assert joined == data


def decode_with_pydicom(data: bytes) -> Any:
    from io import BytesIO

    from pydicom.filereader import read_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_dataset(BytesIO(data), True, True)


def test_response_is_a_command_set() -> None:
    request = Command(pdu.C_STORE_RQ, 9, 0, CT, "1.2.3", True)
    data = pdu.encode_response(request, 0xA900, "Grüße, a comment " + "x" * 80, (0x00080018,))
    assert int.from_bytes(data[8:12], "little") == len(data) - 12
    response = decode_with_pydicom(data)
    assert response.CommandField == 0x8001
    assert response.MessageIDBeingRespondedTo == 9
    assert response.CommandDataSetType == 0x0101
    assert response.Status == 0xA900
    assert response.OffendingElement == 0x00080018
    assert len(response.ErrorComment) == 64
    assert response.ErrorComment.startswith("Gr??e, a comment")
    assert (response.AffectedSOPClassUID, response.AffectedSOPInstanceUID) == (CT, "1.2.3")
    assert list(response.keys()) == sorted(response.keys())


def test_command_of_pynetdicom_reads_as_it_was_meant() -> None:
    from pynetdicom.dimse_messages import C_STORE_RQ
    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    primitive = C_STORE()
    primitive.MessageID, primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = 300, CT, "1.2.3.4"
    primitive.Priority = 2
    theirs = C_STORE_RQ()
    theirs.primitive_to_message(primitive)
    theirs.command_set.CommandDataSetType = 1
    data = encode(theirs.command_set, True, True)
    assert data is not None
    assert pdu.decode_command(data) == Command(1, 300, 0, CT, "1.2.3.4", True)
