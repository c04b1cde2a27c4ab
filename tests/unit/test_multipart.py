"""multipart/related in both directions (MP-01..07)."""

import email
import email.policy
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dicomweb.multipart import MAX_HEADERS_BYTES, Reader, boundary_for, closing, content_type, part_head
from gateway.dicomweb.params import parameters_of
from gateway.domain.errors import InvalidInput


def read(body: bytes, boundary: bytes = b"b", step: int | None = None) -> list[tuple[dict[str, str], bytes]]:
    reader = Reader(boundary)
    parts: list[tuple[dict[str, str], bytes]] = []
    step = step or max(1, len(body))
    for at in range(0, len(body), step):
        for event in reader.feed(body[at : at + step]):
            if isinstance(event, Mapping):
                parts.append((dict(event), b""))
            else:
                headers, payload = parts[-1]
                parts[-1] = headers, payload + bytes(event)
    reader.close()
    return parts


PLAIN = b"--b\r\nContent-Type: application/dicom\r\n\r\none\r\n--b\r\ncontent-type:x/y\r\nA: b\r\n\r\ntwo\r\n--b--"
EXPECTED = [({"content-type": "application/dicom"}, b"one"), ({"content-type": "x/y", "a": "b"}, b"two")]


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        PLAIN + b"\r\n",
        PLAIN + b"\r\nan epilogue --b\r\n",
        b"\r\n" + PLAIN,
        b"a preamble\r\n\r\n" + PLAIN,
        PLAIN.replace(b"--b\r\n", b"--b \t\r\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 3, 7, None])
def test_tolerance(body: bytes, step: int | None) -> None:
    assert read(body, step=step) == EXPECTED


@pytest.mark.parametrize("step", [1, 2, 5, None])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"--b",
        b"x--b--",
        b"\r\n--",
        b"\r\n--c\r\n",
        b"\r\n--bb\r\n",
        b"\r\n--b!\r\n",
        b"\r\n--b-x",
        b"\r\n--b \t x\r\n",
        b"\r\n--b" + b" " * 300 + b"\r\n",
        b"\r\r\n\r\n--",
        b"\n--b\n",
    ],
)
def test_payloads_that_look_like_boundaries(payload: bytes, step: int | None) -> None:
    body = b"--b\r\nContent-Type: a/b\r\n\r\n" + payload + b"\r\n--b\r\n\r\n" + payload + b"\r\n--b--\r\n"
    assert read(body, step=step) == [({"content-type": "a/b"}, payload), ({}, payload)]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b"-", b"--", b"--b", b"b", b" ", b"\0", b"xyz"]))),
    st.integers(1, 40),
)
def test_round_trip_in_any_chunks(payloads: list[list[bytes]], step: int) -> None:
    boundary = boundary_for("x")
    bodies = [b"".join(pieces).replace(b"b", boundary[:9].encode()) for pieces in payloads]
    wire = b"".join(
        part_head(boundary, "a/b; transfer-syntax=1.2", "http://h/x", len(body), first=number == 0) + body
        for number, body in enumerate(bodies)
    )
    wire += closing(boundary)
    if not bodies:
        return
    parts = read(wire, boundary.encode(), step)
    assert [payload for _, payload in parts] == bodies
    assert all(
        headers
        == {
            "content-type": "a/b; transfer-syntax=1.2",
            "content-length": str(len(body)),
            "content-location": "http://h/x",
        }
        for (headers, _), body in zip(parts, bodies, strict=True)
    )


def test_another_reader_reads_what_is_written() -> None:
    boundary = boundary_for("etag")
    wire = f"Content-Type: {content_type('a/b', boundary)}\r\n\r\n".encode()
    wire += part_head(boundary, "a/b", "http://h/1", 3, first=True) + b"abc"
    wire += part_head(boundary, "a/b", "http://h/2", None, first=False) + b"defg" + closing(boundary)
    message = email.message_from_bytes(wire, policy=email.policy.HTTP)
    assert [part.get_payload(decode=True) for part in message.iter_parts()] == [b"abc", b"defg"]
    assert [part["Content-Location"] for part in message.iter_parts()] == ["http://h/1", "http://h/2"]


def test_what_viewers_demand_of_a_body() -> None:
    boundary = boundary_for("etag")
    head = part_head(boundary, "image/jphc; transfer-syntax=1.2", "http://" + "h" * 400, 3, first=True)
    assert head.startswith(b"--" + boundary.encode() + b"\r\nContent-Type: ")
    assert len(head) < 1000
    assert len(boundary) == 32
    assert boundary == boundary_for("etag") != boundary_for("other")
    assert closing(boundary) == b"\r\n--" + boundary.encode() + b"--"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "No part"),
        (b"nothing of the kind", "No part"),
        (b"--c\r\n\r\nx\r\n--c--", "No part"),
        (b"--b\r\n\r\nx", "before its closing"),
        (b"--b\r\nContent-Type: a/b", "before its closing"),
        (b"--b\r\n\r\nx\r\n--b\r\n", "before its closing"),
        (b"--b\r\nno colon\r\n\r\nx\r\n--b--", "colon"),
        (b"--b\r\nX: " + b"x" * MAX_HEADERS_BYTES, "longer than"),
    ],
)
def test_refusals(body: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(body)


@given(st.binary(max_size=200))
def test_no_input_is_a_crash(body: bytes) -> None:
    with suppress(InvalidInput):
        read(b"--b\r\n" + body, step=3)


def test_content_type() -> None:
    assert parameters_of('Multipart/Related; type="application/dicom"; Boundary="a b;c,d"') == (
        "multipart/related",
        {"type": "application/dicom", "boundary": "a b;c,d"},
    )
    assert parameters_of("") == ("", {})
