"""Accept lists that real clients send, and what each of them gets (dicomweb.md sections 2, 3, 11; viewers.md)."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dicomweb.params import (
    Accepts,
    Form,
    MediaRange,
    Query,
    as_of,
    bulk_forms,
    choose,
    choose_model,
    frame_forms,
    frame_numbers,
    image_set_of,
    instance_forms,
    parse_accept,
    selection,
)
from gateway.domain.errors import InvalidInput, NotAcceptable
from gateway.domain.ids import DatastoreId
from gateway.domain.syntaxes import TABLE

_R = "1.2.840.10008.1.2"
LE = _R + ".1"
JPEG = _R + ".4.50"
J2K = _R + ".4.90"
RPCL = _R + ".4.202"
LOSSY_HT = _R + ".4.203"
OCTETS = "application/octet-stream"
DICOM = "application/dicom"

HTJ2K_STORED = (RPCL, LE)
JPEG_STORED = (JPEG, LE)
NATIVE_STORED = (LE,)
UNDECODABLE = (LOSSY_HT,)


def frames(header: str | None, offers: tuple[str, ...] = HTJ2K_STORED, *, single: bool = True) -> Form | None:
    return choose(Accepts(None, header), frame_forms(offers, single=single))


def instance(header: str | None, offers: tuple[str, ...] = HTJ2K_STORED) -> Form | None:
    return choose(Accepts(None, header), instance_forms(offers))


BROWSER = "text/html, application/xhtml+xml, application/xml;q=0.9, image/webp, */*;q=0.8"
JAVA = "text/html, image/gif, image/jpeg, */*; q=.2, */*; q=.2"
JAVA_URL_CONNECTION = "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"
STARRED = "multipart/related; type=application/octet-stream; transfer-syntax=*"
NATIVE = f"multipart/related; type=application/octet-stream; transfer-syntax={LE}"
OHIF_QUOTED = 'multipart/related; type="application/octet-stream"; transfer-syntax="*"'
OHIF_CONFIGURED = f'multipart/related; type="image/jp2"; transfer-syntax="{J2K}"; transfer-syntax="*"'
JS_MIXED = (
    f'multipart/related; type="image/jhc"; transfer-syntax={RPCL}, '
    f'multipart/related; type="application/octet-stream"; transfer-syntax={LE}'
)

OCTETS_STORED = Form(OCTETS, RPCL, True)
OCTETS_NATIVE = Form(OCTETS, LE, True)
JPHC = Form("image/jphc", RPCL, True)


EVERYTHING = (RPCL, LE, _R + ".4.201", J2K, _R + ".4.80", _R + ".5")
"""What an instance that is stored without loss can be had in."""


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # What is not named stays what it was before there was a choice.
        (None, OCTETS_NATIVE),
        ("*/*", OCTETS_NATIVE),
        (STARRED, OCTETS_STORED),
        (OHIF_QUOTED, OCTETS_STORED),
        (NATIVE, OCTETS_NATIVE),
        ('multipart/related; type="*/*"; transfer-syntax=*', JPHC),
        ('multipart/related; type="image/*"; transfer-syntax=*', JPHC),
        ('multipart/related; type="image/jphc"', JPHC),
        ('multipart/related; type="image/jphc"; transfer-syntax=*', JPHC),
        (JS_MIXED, JPHC),
        # A type means its usual syntax, and a syntax the one named (TS-08).
        ('multipart/related; type="image/jp2"', Form("image/jp2", J2K, True)),
        ("image/jls", Form("image/jls", _R + ".4.80", False)),
        ("image/x-dicom-rle", Form("image/dicom-rle", _R + ".5", False)),
        (f"image/jphc; transfer-syntax={_R}.4.201", Form("image/jphc", _R + ".4.201", False)),
        (OHIF_CONFIGURED, Form("image/jp2", J2K, True)),
        (f"application/octet-stream; transfer-syntax={J2K}", Form(OCTETS, J2K, False)),
        (f'multipart/related; type="image/jp2"; transfer-syntax={RPCL}', None),
        (f'multipart/related; type="image/jp2"; transfer-syntax={_R}.4.91', None),
        ('multipart/related; type="image/jpeg"', None),
    ],
)
def test_frames_of_many_syntaxes(header: str | None, expected: Form | None) -> None:
    assert frames(header, EVERYTHING) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        # defaults (NEG-07, NEG-11, CL-07)
        (None, OCTETS_NATIVE),
        ("", OCTETS_NATIVE),
        ("*/*", OCTETS_NATIVE),
        (BROWSER, OCTETS_NATIVE),
        (JAVA, OCTETS_NATIVE),
        (JAVA_URL_CONNECTION, OCTETS_NATIVE),
        # Python's default for frames (viewers.md 3)
        ('multipart/related; type="*/*"', OCTETS_NATIVE),
        ("multipart/related", OCTETS_NATIVE),
        # the viewers' ways to ask for what is stored (NEG-02..04, TS-06, CL-03, CL-04)
        (STARRED, OCTETS_STORED),
        (OHIF_QUOTED, OCTETS_STORED),
        ('multipart/related;   type =  "application/octet-stream"  ; Transfer-Syntax = *', OCTETS_STORED),
        ('MULTIPART/Related; TYPE="Application/Octet-Stream"; transfer-syntax=*', OCTETS_STORED),
        (OHIF_CONFIGURED, JPHC),
        ('multipart/related; type="*/*"; transfer-syntax=*', JPHC),
        ('multipart/related; type="image/jphc"; transfer-syntax=*', JPHC),
        (f'multipart/related; type="image/jphc"; transfer-syntax={RPCL}', JPHC),
        (f'multipart/related; type="image/jhc"; transfer-syntax="{RPCL}"', JPHC),
        ('multipart/related; type="image/jphc"', JPHC),
        (JS_MIXED, JPHC),
        (f"multipart/related; type=application/octet-stream; transfer-syntax={RPCL}", OCTETS_STORED),
        ('multipart/related; type="image/*"; transfer-syntax=*', JPHC),
        # native, by name or by default (TS-01)
        ('multipart/related; type="application/octet-stream"', OCTETS_NATIVE),
        (f'multipart/related; type="application/octet-stream"; transfer-syntax={LE}', OCTETS_NATIVE),
        (f'multipart/related; type="application/octet-stream; transfer-syntax={LE}"', OCTETS_NATIVE),
        # single part for one frame (WADO-09)
        (OCTETS, Form(OCTETS, LE, False)),
        (f"{OCTETS}; transfer-syntax=*", Form(OCTETS, RPCL, False)),
        ("image/jphc", Form("image/jphc", RPCL, False)),
        (f"image/jphc;transfer-syntax={RPCL}", Form("image/jphc", RPCL, False)),
        ("image/jph, */*;q=0.1", Form("image/jphc", RPCL, False)),
        # weights (NEG-10)
        (f"{STARRED};q=0.4, {NATIVE};q=0.9", OCTETS_NATIVE),
        (f"{STARRED};q=0.9, {NATIVE};q=0.4", OCTETS_STORED),
        (f"{STARRED}, multipart/related; type=application/octet-stream; transfer-syntax={RPCL};q=0", OCTETS_NATIVE),
        # what cannot be read is passed over (NEG-05)
        (f"nope, *, {OCTETS};q=high, boundary=**, {STARRED}; unknown=1", OCTETS_STORED),
        # not to be had (TS-03, TS-08)
        ("nope", None),
        ("*", None),
        ("*/*;q=0", None),
        ("text/html", None),
        ('multipart/related; type="image/jpeg"', None),
        (f'multipart/related; type="image/jp2"; transfer-syntax={J2K}', None),
        (f'multipart/related; type="image/jp2"; transfer-syntax={RPCL}', None),
        (f'multipart/related; type="application/octet-stream"; transfer-syntax={_R}', None),
        (f'multipart/related; type="application/octet-stream"; transfer-syntax={_R}.2', None),
        (f'multipart/related; type="{DICOM}"', None),
    ],
)
def test_frames_stored_as_htj2k(header: str | None, expected: Form | None) -> None:
    assert frames(header) == expected


@pytest.mark.parametrize(
    ("header", "offers", "expected"),
    [
        (None, JPEG_STORED, OCTETS_NATIVE),
        (STARRED, JPEG_STORED, Form(OCTETS, JPEG, True)),
        ('multipart/related; type="image/jpeg"; transfer-syntax=*', JPEG_STORED, Form("image/jpeg", JPEG, True)),
        (f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}', JPEG_STORED, Form("image/jpeg", JPEG, True)),
        ("image/jpeg", JPEG_STORED, Form("image/jpeg", JPEG, False)),
        ("image/dicom+jpeg", JPEG_STORED, Form("image/jpeg", JPEG, False)),
        (STARRED, NATIVE_STORED, OCTETS_NATIVE),
        (None, NATIVE_STORED, OCTETS_NATIVE),
        (f'multipart/related; type="image/jphc"; transfer-syntax={RPCL}', NATIVE_STORED, None),
        # what cannot be decoded is sent as it is, unless native was demanded by name (TS-01)
        (None, UNDECODABLE, Form("image/jphc", LOSSY_HT, True)),
        ('multipart/related; type="application/octet-stream"', UNDECODABLE, Form(OCTETS, LOSSY_HT, True)),
        (f'multipart/related; type="application/octet-stream"; transfer-syntax={LE}', UNDECODABLE, None),
    ],
)
def test_frames_stored_otherwise(header: str | None, offers: tuple[str, ...], expected: Form | None) -> None:
    assert frames(header, offers) == expected


def test_several_frames_need_multipart() -> None:
    assert frames(OCTETS, single=False) is None
    assert frames(f"{OCTETS}, */*;q=0.1", single=False) == OCTETS_NATIVE


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, Form(DICOM, LE, True)),
        ("*/*", Form(DICOM, LE, True)),
        (BROWSER, Form(DICOM, LE, True)),
        ('multipart/related; type="application/dicom"', Form(DICOM, LE, True)),
        ('multipart/related;type="application/dicom";transfer-syntax=*', Form(DICOM, RPCL, True)),
        (f'multipart/related; type="application/dicom"; transfer-syntax={LE}', Form(DICOM, LE, True)),
        (f'multipart/related; type="application/dicom"; transfer-syntax="{RPCL}"', Form(DICOM, RPCL, True)),
        ('multipart/related; type="application/dicom; transfer-syntax=*"', Form(DICOM, RPCL, True)),
        ("multipart/related", Form(DICOM, LE, True)),
        (DICOM, Form(DICOM, LE, False)),
        (f"{DICOM}; transfer-syntax=*", Form(DICOM, RPCL, False)),
        ("application/*", Form(DICOM, LE, False)),
        # single part only where multipart is not wanted as much (WADO-03)
        (f'{DICOM}, multipart/related; type="{DICOM}"', Form(DICOM, LE, True)),
        (f'{DICOM}, multipart/related; type="{DICOM}"; q=0.5', Form(DICOM, LE, False)),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", None),
        (f'multipart/related; type="{DICOM}"; transfer-syntax={J2K}', None),
        (f"{DICOM}; transfer-syntax={_R}", None),
        ("image/jpeg", None),
        ("application/zip, */*", Form(DICOM, LE, True)),
    ],
)
def test_instances(header: str | None, expected: Form | None) -> None:
    assert instance(header) == expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, "json"),
        ("application/dicom+json", "json"),
        ("application/dicom+json, application/json", "json"),
        ("application/json", "json"),
        ("application/dicom+json, multipart/related; type=application/octet-stream; transfer-syntax=*", "json"),
        ("toto, application/dicom+json", "json"),
        (BROWSER, "json"),
        (JAVA, "json"),
        ("application/dicom+json;q=0, */*", None),
        ("application/dicom+xml", "xml"),
        ('multipart/related; type="application/dicom+xml"', "xml"),
        ("multipart/related", "xml"),
        ('application/dicom+json, multipart/related; type="application/dicom+xml"', "json"),
        ('application/dicom+json;q=0.5, multipart/related; type="application/dicom+xml"', "xml"),
        ("application/dicom+json;q=0, application/dicom+xml", "xml"),
        ("application/dicom+xml;q=0.2, */*;q=0.1", "xml"),
        ("application/dicom+xml;q=0", None),
        ("application/xml", None),
        ("text/html", None),
        ("toto", None),
    ],
)
def test_models(header: str | None, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(NotAcceptable, match="json or multipart/related"):
            choose_model(Accepts(None, header))
    else:
        assert choose_model(Accepts(None, header)) == f"application/dicom+{expected}"


def test_the_parameter_ranks_before_the_header() -> None:
    forms = frame_forms(HTJ2K_STORED, single=True)
    assert choose(Accepts("image/jphc", 'multipart/related; type="application/octet-stream"'), forms) == Form(
        "image/jphc", RPCL, False
    )
    # what the parameter names and is not to be had leaves the header (NEG-11), and its wildcards mean nothing (NEG-08)
    assert choose(Accepts("image/png", STARRED), forms) == OCTETS_STORED
    assert choose(Accepts("*/*", STARRED), forms) == OCTETS_STORED
    assert choose(Accepts("image/png", None), forms) is None
    assert choose_model(Accepts("application/dicom+json", "text/html")) == "application/dicom+json"
    assert choose_model(Accepts("application/dicom+xml", "application/json")) == "application/dicom+xml"


def test_dicom_and_rendered_types_do_not_mix() -> None:
    with pytest.raises(InvalidInput, match="mixes"):
        frames(f"image/png, {STARRED}")
    with pytest.raises(InvalidInput, match="mixes"):
        choose_model(Accepts(None, "text/html, application/dicom+json"))
    assert frames(f"image/png;q=0, {STARRED}") == OCTETS_STORED
    assert frames(f"image/jpeg, {STARRED}") == OCTETS_STORED


def test_bulk_data_of_a_document() -> None:
    pdf = bulk_forms("application/pdf")
    octets = Form(OCTETS, LE, True)
    assert choose(Accepts(None, 'multipart/related; type="application/octet-stream"'), pdf) == octets
    assert choose(Accepts(None, None), pdf) == octets
    assert choose(Accepts(None, "application/pdf"), pdf) == Form("application/pdf", LE, False)
    both = 'multipart/related; type="application/pdf", multipart/related; type="application/octet-stream"'
    assert choose(Accepts(None, both), pdf) == Form("application/pdf", LE, True)
    assert choose(Accepts(None, "application/pdf"), bulk_forms(None)) is None


def test_quoting() -> None:
    assert parse_accept('a/b;x="c,d;e\\"f";q=0.5 , multipart/related;type="image/JLS"') == (
        MediaRange("a/b", False, (), 0.5),
        MediaRange("image/jls", True),
    )


def test_the_part_names_its_transfer_syntax_unquoted() -> None:
    assert JPHC.content_type == f"image/jphc; transfer-syntax={RPCL}"


@given(st.text(alphabet='abq=;,"*/\\ .0123-%', max_size=60))
def test_any_text_is_an_accept_header(text: str) -> None:
    form = frames(text)
    assert form is None or form in frame_forms(HTJ2K_STORED, single=True)


def test_every_form_of_every_syntax_can_be_asked_for() -> None:
    for row in TABLE:
        for form in frame_forms((row.uid,), single=True):
            asked = form.content_type
            if form.multipart:
                asked = f'multipart/related; type="{form.media_type}"; transfer-syntax={form.syntax}'
            assert frames(asked, (row.uid,)) == form


# --- query -----------------------------------------------------------------------------------------------------------

STORE = DatastoreId("d" * 32)


def test_query_is_decoded_once() -> None:
    query = Query(b"PatientName=M%C3%BCller%2BX+Y&accept=application/dicom+json&accept=a%2Fb%2Bc&&x")
    assert query.pairs == [
        ("PatientName", "Müller+X Y"),
        ("accept", "application/dicom json"),
        ("accept", "a/b+c"),
        ("x", ""),
    ]
    assert query.accept == "application/dicom+json, a/b+c"
    with pytest.raises(InvalidInput, match="UTF-8"):
        Query(b"PatientName=%FF")
    with pytest.raises(InvalidInput, match="more than once"):
        Query(b"limit=1&limit=1").one("limit")
    with pytest.raises(InvalidInput, match="1000"):
        Query(b"a=b&" * 1001)


@pytest.mark.parametrize(
    ("query", "series", "message"),
    [
        (b"version=1", None, "series"),
        (b"version=0", "2", "whole number"),
        (b"version=x", "2", "whole number"),
        (b"version=1&asOf=2026-01-01T00:00:00Z", "2", "either"),
        (b"asOf=2026-01-01T00:00:00", "2", "zone"),
        (b"asOf=2026-13-01T00:00:00Z", "2", "zone"),
        (b"asOf=yesterday", "2", "zone"),
        (b"imageSetId=xyz", "2", "imageSetId"),
        (b"charset=latin1", "2", "utf-8"),
    ],
)
def test_selection_refuses(query: bytes, series: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        selection(STORE, Query(query), "1", series)


def test_selection() -> None:
    assert selection(STORE, Query(b"version=3&imageSetId=" + b"a" * 32), "1", "2").version == 3
    assert image_set_of(Query(b"imageSetId=" + b"a" * 32)) == "a" * 32
    expected = datetime(2026, 1, 1, 10, 30, tzinfo=UTC)
    for text in (b"2026-01-01T10:30:00Z", b"2026-01-01T12:30:00%2B02:00", b"2026-01-01T12:30:00.000+02:00"):
        assert as_of(Query(b"asOf=" + text)) == expected


def test_frame_numbers() -> None:
    assert frame_numbers("3,1,2") == [3, 1, 2]
    for bad in ("0", "1,1", "-1", "", "1,,2", "a", "1.0", "٣", " 1", "9999999999"):
        with pytest.raises(InvalidInput):
            frame_numbers(bad)
