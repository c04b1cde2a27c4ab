"""WADO-RS over the fakes: metadata, instances, frames, bulk data (dicomweb.md sections 2 to 6)."""

import asyncio
import hashlib
import http.client
import io
import re
import socket
import zipfile
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.config import disable_value_validation
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as DicomSequence
from structlog.testing import capture_logs

from gateway.dicomweb.exchange import Request
from gateway.domain.errors import Corrupt, NotAcceptable
from gateway.domain.model import Frame
from gateway.domain.native_model import from_xml
from gateway.domain.pixels import PixelFormat
from gateway.domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL, JPEG_2000_LOSSLESS, JPEG_BASELINE
from gateway.http.server import serve
from gateway.services import retrieve as retrieving
from gateway.services.retrieve import BATCH_INSTANCES, BATCHES_AHEAD, Retrieve, Wanted
from gateway.settings import HttpSettings
from tests.corpus import CORPUS, manifest
from tests.surfaces.fakes import (
    DATASTORE,
    THREADS,
    FakeCodec,
    decode_foreign,
    decoded,
    document,
    jpeg_instance,
    made,
    split,
    surface,
)

SERIES = "/dicomweb/studies/1.2.3/series/1.2.3.4"
INSTANCE = SERIES + "/instances/1.2.3.4.1"
STARRED = "multipart/related; type=application/octet-stream; transfer-syntax=*"
DICOM = 'multipart/related; type="application/dicom"'
STORED = DICOM + "; transfer-syntax=*"
RPCL = HTJ2K_LOSSLESS_RPCL
BYTES = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}


def read(file: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(file))


def same_attributes(one: Dataset, other: Dataset, *but: str) -> bool:
    def plain(data_set: Dataset) -> dict[str, Any]:
        return {
            tag: element
            for tag, element in data_set.to_json_dict().items()
            if tag not in ("7FE00010", "7FE00008", *but) and not tag.endswith("0000")
        }

    return plain(one) == plain(other)


# --- metadata --------------------------------------------------------------------------------------------------------


def test_metadata_at_three_levels() -> None:
    on = surface([made(1), made(2), made(3, SeriesInstanceUID="1.2.3.5")])
    elsewhere = f"/datastore/{DATASTORE}/studies/1.2.3"
    for path, count in (("/dicomweb/studies/1.2.3", 3), (SERIES, 2), (INSTANCE, 1), (elsewhere, 3)):
        answer = on.get(path + "/metadata", "application/dicom+json")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/dicom+json"
        assert answer.headers["vary"] == "Accept, Accept-Encoding, Origin"
        assert len(answer.json()) == count
    uri = answer.json()[0]["7FE00010"]["BulkDataURI"]
    assert uri.startswith(f"http://pacs.example:8080/datastore/{DATASTORE}/studies/1.2.3/series/")


def test_metadata_goes_out_compressed_and_is_not_sent_twice() -> None:
    on = surface([made(1)])
    plain = on.get(INSTANCE + "/metadata")
    packed = on.ask("GET", INSTANCE + "/metadata", headers={"Accept-Encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == plain.json()
    unpacked = on.ask("GET", INSTANCE + "/metadata", headers={"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in unpacked.headers
    assert packed.headers["etag"] != plain.headers["etag"]
    for known in (plain.headers["etag"], f'"x", W/{plain.headers["etag"]}', "*"):
        again = on.get(INSTANCE + "/metadata", If_None_Match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == plain.headers["etag"]
    assert on.get(INSTANCE + "/metadata", If_None_Match=packed.headers["etag"]).status_code == 200


def test_metadata_as_xml() -> None:
    data_sets = [made(number, WindowCenter="1.50") for number in range(1, 20)]
    data_sets[0].add_new(0x00990010, "LO", "ACME")
    data_sets[0].add_new(0x00991001, "LO", "private")
    on = surface(data_sets)
    accept = 'multipart/related; type="application/dicom+xml"'
    answer = on.get(SERIES + "/metadata", accept)
    assert answer.headers["content-type"].startswith(f"{accept}; boundary=")
    documents = on.get(SERIES + "/metadata").json()
    parts = split(answer)
    assert len(parts) == len(documents) == 19
    for (head, body), expected in zip(parts, documents, strict=True):
        assert head["Content-Type"] == "application/dicom+xml"
        assert head["Content-Location"].endswith(f"/{expected['00080018']['Value'][0]}/metadata")
        read = from_xml(body)
        assert read.keys() == expected.keys()
        assert read["00281050"] == {"vr": "DS", "Value": ["1.5"]}  # as the stored JSON has it
        assert read["7FE00010"] == expected["7FE00010"]
    assert b'tag="00990001" vr="LO" privateCreator="ACME"' in parts[0][1]
    assert on.get(SERIES + "/metadata", accept, If_None_Match=answer.headers["etag"]).status_code == 304
    assert on.get(SERIES + "/metadata", If_None_Match=answer.headers["etag"]).status_code == 200
    assert on.ask("HEAD", SERIES + "/metadata", headers={"Accept": accept}).status_code == 200


def test_the_public_url_is_what_payloads_name() -> None:
    on = surface([made(1)], public_url="https://pacs.example.org/imaging/")
    uri = on.get(INSTANCE + "/metadata").json()[0]["7FE00010"]["BulkDataURI"]
    assert uri == "https://pacs.example.org/imaging" + INSTANCE + "/bulkdata/7FE00010"


# --- instances -------------------------------------------------------------------------------------------------------


def test_a_series_as_explicit_little_endian() -> None:
    sources = [made(number) for number in (1, 2, 3, 4, 5, 6, 7)]
    answer = surface(sources).get(SERIES, DICOM)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    parts = split(answer)
    assert len(parts) == 7
    for source, (headers, payload) in zip(sources, parts, strict=True):
        assert headers["Content-Type"] == f"application/dicom; transfer-syntax={EXPLICIT_LE}"
        assert headers["Content-Location"].endswith(f"/instances/{source.SOPInstanceUID}")
        assert int(headers["Content-Length"]) == len(payload)
        back = read(payload)
        assert back.file_meta.TransferSyntaxUID == EXPLICIT_LE
        assert back.file_meta.MediaStorageSOPInstanceUID == source.SOPInstanceUID
        assert back.PixelData == source.PixelData
        assert same_attributes(back, source)


def test_an_instance_in_one_part() -> None:
    source = made(1)
    on = surface([source])
    answer = on.get(INSTANCE, "application/dicom")
    assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT_LE}"
    assert answer.headers["content-location"] == "http://pacs.example:8080" + INSTANCE
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert read(answer.content).PixelData == source.PixelData
    stored = read(on.get(INSTANCE, "application/dicom; transfer-syntax=*").content)
    assert stored.file_meta.TransferSyntaxUID == RPCL
    assert next(generate_frames(stored.PixelData, number_of_frames=1)).startswith(b"\xff\x4f")
    assert same_attributes(stored, source)
    multipart = on.get(INSTANCE)
    assert len(split(multipart)) == 1
    assert int(multipart.headers["content-length"]) == len(multipart.content)


@pytest.mark.parametrize("accept", [DICOM, DICOM + "; transfer-syntax=*"])
@pytest.mark.parametrize("frames", [2, 9])
def test_multi_frame_instances_are_streamed(accept: str, frames: int) -> None:
    source = made(1, NumberOfFrames=frames, Rows=3, Columns=5, BitsAllocated=8, BitsStored=8, HighBit=7)
    (_, payload), = split(surface([source]).get(INSTANCE, accept))
    back = read(payload)
    if back.file_meta.TransferSyntaxUID == EXPLICIT_LE:
        assert back.PixelData == source.PixelData
        assert len(back.PixelData) % 2 == 0
    else:
        encoded = generate_frames(back.PixelData, number_of_frames=frames)
        assert b"".join(map(decoded, encoded)) == source.PixelData[: frames * 15]
    assert same_attributes(back, source)


def test_elements_after_the_pixel_data_stay() -> None:
    source = made(1)
    source.add_new(0xFFFCFFFC, "OB", b"\0" * 10)
    on = surface([source])
    for accept in ("application/dicom", "application/dicom; transfer-syntax=*"):
        assert read(on.get(INSTANCE, accept).content)[0xFFFCFFFC].value == b"\0" * 10


@pytest.mark.parametrize(
    ("photometric", "planar", "native"),
    [("RGB", 0, "RGB"), ("RGB", 1, "RGB"), ("YBR_FULL", 0, "YBR_FULL")],
)
def test_colour_says_how_it_is_encoded(photometric: str, planar: int, native: str) -> None:
    source = made(1, SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=planar, **BYTES)
    source.add_new(0x00081140, "SQ", DicomSequence([made(9)]))
    on = surface([source])
    back = read(on.get(INSTANCE, "application/dicom").content)
    expected = np.frombuffer(source.PixelData, np.uint8)
    if planar:
        expected = expected.reshape(3, -1).T.reshape(-1)
    assert back.PixelData == expected.tobytes()
    assert (back.PhotometricInterpretation, back.PlanarConfiguration) == (native, 0)
    stored = read(on.get(INSTANCE, "application/dicom; transfer-syntax=*").content)
    assert stored.PhotometricInterpretation == ("YBR_RCT" if native == "RGB" else native)
    assert stored.PlanarConfiguration == 0
    assert same_attributes(stored, source, "00280004", "00280006")


def test_missing_planar_configuration_is_added_and_offset_tables_go() -> None:
    source = made(1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=1, **BYTES)
    on = surface([source])
    held = on.backend.held[0].data_set
    del held.PlanarConfiguration
    held.add_new(0x7FE00001, "OV", b"\0" * 8)
    held.add_new(0x7FE00002, "OV", b"\1" * 8)
    back = read(on.get(INSTANCE, "application/dicom").content)
    assert back.PlanarConfiguration == 0
    assert 0x7FE00001 not in back
    assert 0x7FE00002 not in back
    assert "PixelData" in back


def test_lossy_instances_are_kept_and_decoded_on_demand() -> None:
    on = surface([jpeg_instance()])
    stored = read(on.get(INSTANCE, "application/dicom; transfer-syntax=*").content)
    assert stored.file_meta.TransferSyntaxUID == JPEG_BASELINE
    native = read(on.get(INSTANCE, "application/dicom").content)
    assert native.file_meta.TransferSyntaxUID == EXPLICIT_LE
    assert np.allclose(np.frombuffer(native.PixelData, np.uint8), np.arange(30), atol=8)


def test_what_cannot_be_decoded_goes_out_as_it_is() -> None:
    on = surface([jpeg_instance()])
    on.backend.spoil = lambda frame: replace(frame, syntax="1.2.840.10008.1.2.4.91")
    held = on.backend.held[0]
    held.entry = replace(held.entry, stored_syntax="1.2.840.10008.1.2.4.91", received_syntax="1.2.840.10008.1.2.4.91")
    answer = on.get(INSTANCE, "application/dicom")
    assert answer.headers["content-type"].endswith("1.2.4.91")
    assert read(answer.content).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.91"
    frames = on.get(INSTANCE + "/frames/1")
    assert split(frames)[0][0]["Content-Type"] == "image/jp2; transfer-syntax=1.2.840.10008.1.2.4.91"
    refused = on.get(INSTANCE, f"application/dicom; transfer-syntax={EXPLICIT_LE}")
    assert refused.status_code == 406
    assert refused.json()["code"] == "not-acceptable"


def test_pixel_data_that_has_no_frames_goes_out_as_received() -> None:
    source = jpeg_instance()
    source.SamplesPerPixel = None
    del source.SamplesPerPixel
    on = surface([source])
    assert on.get(INSTANCE + "/frames/1").status_code == 404
    for accept in ("application/dicom", "application/dicom; transfer-syntax=*"):
        back = read(on.get(INSTANCE, accept).content)
        assert back.file_meta.TransferSyntaxUID == JPEG_BASELINE
        assert back.PixelData == source.PixelData
    assert on.get(INSTANCE, f"application/dicom; transfer-syntax={EXPLICIT_LE}").status_code == 406


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT_LE, "1.2.840.10008.1.2.2"])
def test_native_pixel_data_that_has_no_frames_is_little_endian(syntax: str) -> None:
    source = made(1, syntax=syntax, PixelData=bytes(range(60)))
    del source.SamplesPerPixel
    back = read(surface([source]).get(INSTANCE, "application/dicom; transfer-syntax=*").content)
    assert back.file_meta.TransferSyntaxUID == EXPLICIT_LE
    expected = np.arange(60, dtype=np.uint8).reshape(-1, 2)
    assert back.PixelData == (expected[:, ::-1] if syntax.endswith(".2.2") else expected).tobytes()


def test_a_mixed_series_is_negotiated_part_by_part() -> None:
    on = surface([made(1), jpeg_instance(2), document(3)])
    parts = split(on.get(SERIES, DICOM + "; transfer-syntax=*"))
    assert [headers["Content-Type"].rpartition("=")[2] for headers, _ in parts] == [RPCL, JPEG_BASELINE, EXPLICIT_LE]
    assert on.get(SERIES, f"{DICOM}; transfer-syntax={RPCL}").status_code == 406
    alone = surface([made(1), document(3)])
    assert len(split(alone.get(SERIES, f"{DICOM}; transfer-syntax={RPCL}"))) == 2
    refused = alone.get(SERIES, f"{DICOM}; transfer-syntax=1.2.840.10008.1.2")
    assert refused.status_code == 406
    assert RPCL in refused.json()["detail"]


def test_one_bit_frames_are_packed_again() -> None:
    source = made(1, NumberOfFrames=3, Rows=3, Columns=5, BitsAllocated=1, BitsStored=1, HighBit=0)
    on = surface([source])
    assert read(on.get(INSTANCE, "application/dicom").content).PixelData[:5] == source.PixelData[:5]
    bits = np.unpackbits(np.frombuffer(source.PixelData, np.uint8), bitorder="little")[:45].reshape(3, 15)
    for (_, payload), frame in zip(split(on.get(INSTANCE + "/frames/1,2,3")), bits, strict=True):
        assert payload == np.packbits(frame, bitorder="little").tobytes()


def test_floating_point_pixels() -> None:
    source = made(1, BitsAllocated=32, BitsStored=32, FloatPixelData=np.arange(30, dtype="<f4").tobytes())
    on = surface([source])
    assert read(on.get(INSTANCE, "application/dicom").content).FloatPixelData == source.FloatPixelData
    assert split(on.get(INSTANCE + "/frames/1"))[0][1] == source.FloatPixelData


# --- frames ----------------------------------------------------------------------------------------------------------


def test_frames_as_viewers_ask_for_them() -> None:
    source = made(1, NumberOfFrames=3)
    on = surface([source])
    answer = on.get(INSTANCE + "/frames/2", STARRED)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith('multipart/related; type="application/octet-stream"; boundary=')
    assert int(answer.headers["content-length"]) == len(answer.content)
    boundary = answer.headers["content-type"].rpartition("=")[2]
    named = f"application/octet-stream; transfer-syntax={RPCL}"
    assert answer.content.startswith(f"--{boundary}\r\nContent-Type: {named}\r\n".encode())
    assert answer.content.endswith(f"\r\n--{boundary}--".encode())
    (headers, payload), = split(answer)
    assert headers["Content-Location"] == "http://pacs.example:8080" + INSTANCE + "/frames/2"
    assert decoded(payload) == source.PixelData[60:120]
    native = split(on.get(INSTANCE + "/frames/3%2C1"))
    assert [payload for _, payload in native] == [source.PixelData[120:], source.PixelData[:60]]
    assert [headers["Content-Location"].rpartition("/")[2] for headers, _ in native] == ["3", "1"]
    single = on.get(INSTANCE + "/frames/1", "image/jphc")
    assert single.headers["content-type"] == f"image/jphc; transfer-syntax={RPCL}"
    assert single.content.startswith(b"\xff\x4f")


@pytest.mark.parametrize(
    ("path", "accept", "status"),
    [
        ("0", None, 400),
        ("1,1", None, 400),
        ("x", None, 400),
        ("-1", None, 400),
        ("4", None, 404),
        ("1,4", None, 404),
        ("1", "text/html", 406),
        ("1,2", "application/octet-stream", 406),
        ("1", f"multipart/related; type=image/jls; transfer-syntax={RPCL}", 406),
        ("1", "image/png, application/octet-stream", 400),
    ],
)
def test_frame_refusals(path: str, accept: str | None, status: int) -> None:
    on = surface([made(1, NumberOfFrames=3)])
    answer = on.get(f"{INSTANCE}/frames/{path}", accept)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "message"}
    assert body["status"] == status
    assert body["message"] == body["detail"]


def test_frames_of_documents_and_videos() -> None:
    video = made(2, PixelData=b"")
    video.PixelData = encapsulate([b"stream"], has_bot=False)
    video.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.102")
    on = surface([document(1), video])
    assert on.get(INSTANCE + "/frames/1").status_code == 404
    assert on.get(SERIES + "/instances/1.2.3.4.2/frames/1").status_code == 406
    stream = on.get(SERIES + "/instances/1.2.3.4.2/bulkdata/7FE00010", "video/mp4")
    assert (stream.status_code, stream.content) == (200, b"stream")
    whole = read(on.get(SERIES + "/instances/1.2.3.4.2", "application/dicom").content)
    assert whole.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.102"


def test_ranges_and_validators_of_a_frame() -> None:
    on = surface([made(1)])
    url = INSTANCE + "/frames/1"
    whole = on.get(url, STARRED)
    size = len(whole.content)
    glued = b""
    for wanted, start, end in (("bytes=0-79", 0, 79), ("bytes=80-", 80, size - 1)):
        part = on.get(url, STARRED, Range=wanted)
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {start}-{end}/{size}"
        assert int(part.headers["content-length"]) == len(part.content)
        glued += part.content
    assert glued == whole.content
    assert on.get(url, STARRED, Range="bytes=-5").content == whole.content[-5:]
    assert on.get(url, STARRED, Range=f"bytes=0-{size * 2}").content == whole.content
    beyond = on.get(url, STARRED, Range=f"bytes={size}-")
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    for senseless in ("bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,3-4", "bytes=x-"):
        assert on.get(url, STARRED, Range=senseless).status_code == 200
    assert on.get(url, STARRED, Range="bytes=0-1", If_Range='"other"').status_code == 200
    before = on.backend.frames_read
    assert on.get(url, STARRED, If_None_Match=whole.headers["etag"]).status_code == 304
    assert on.backend.frames_read == before
    assert on.get(url, If_None_Match=whole.headers["etag"]).status_code == 200


def test_a_damaged_frame_is_never_sent_as_a_whole_answer() -> None:
    on = surface([made(1, NumberOfFrames=3)])

    def spoil(frame: Frame) -> Frame:
        if on.backend.frames_read > 1:
            raise Corrupt("A stored frame does not have its digest.")
        return frame

    on.backend.spoil = spoil
    damaged = on.get(INSTANCE + "/frames/1,2", STARRED)
    assert (damaged.status_code, damaged.json()["code"]) == (500, "corrupt")
    on.backend.frames_read = 0
    messages: list[Any] = []

    async def streamed() -> None:
        async def receive() -> Any:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http", "method": "GET", "path": INSTANCE, "query_string": b"", "scheme": "http",
            "headers": [(b"host", b"h"), (b"accept", b"application/dicom; transfer-syntax=*")],
        }  # fmt: skip
        await on.app(scope, receive, send)

    asyncio.run(streamed())
    assert messages[0]["status"] == 200
    assert messages[-1].get("more_body")


def test_a_client_that_leaves_ends_the_reading() -> None:
    on = surface([made(1, NumberOfFrames=200)])

    async def streamed() -> None:
        leaving = asyncio.Event()

        async def receive() -> Any:
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            leaving.set()
            await asyncio.sleep(0)

        scope = {
            "type": "http", "method": "GET", "path": INSTANCE, "query_string": b"", "scheme": "http",
            "headers": [(b"host", b"h"), (b"accept", b"application/dicom; transfer-syntax=*")],
        }  # fmt: skip
        await on.app(scope, receive, send)

    asyncio.run(streamed())
    assert on.backend.frames_read < 20


# --- bulk data -------------------------------------------------------------------------------------------------------


def test_bulk_data_of_pixels() -> None:
    source = made(1, NumberOfFrames=3)
    on = surface([source])
    url = INSTANCE + "/bulkdata/7FE00010"
    (headers, payload), = split(on.get(url, 'multipart/related; type="application/octet-stream"'))
    assert payload == source.PixelData
    assert headers["Content-Type"] == f"application/octet-stream; transfer-syntax={EXPLICIT_LE}"
    single = on.get(url, "application/octet-stream", Range="bytes=10-19")
    assert (single.status_code, single.content) == (206, source.PixelData[10:20])
    stored = split(on.get(url, STARRED))
    assert [headers["Content-Location"].rpartition("/")[2] for headers, _ in stored] == ["1", "2", "3"]
    assert b"".join(decoded(payload) for _, payload in stored) == source.PixelData
    assert on.get(url.lower()).status_code == 200
    assert on.get(INSTANCE + "/bulkdata/7FE00010", "text/html").status_code == 406


def test_bulk_data_elsewhere() -> None:
    source = document(1, EncapsulatedDocument=b"%PDF-1.7 " * 3, MIMETypeOfEncapsulatedDocument="application/pdf")
    item = Dataset()
    item.add_new(0x00091010, "OB", b"\1\2")
    source.add_new(0x00081140, "SQ", DicomSequence([Dataset(), item]))
    on = surface([source])
    pdf = on.get(INSTANCE + "/bulkdata/00420011", "application/pdf")
    assert (pdf.headers["content-type"], pdf.content) == ("application/pdf", source.EncapsulatedDocument)
    assert pdf.headers["x-content-type-options"] == "nosniff"
    octets = split(on.get(INSTANCE + "/bulkdata/00420011", 'multipart/related; type="application/octet-stream"'))
    assert octets[0][1] == source.EncapsulatedDocument
    nested = on.get(INSTANCE + "/bulkdata/00081140.1.00091010", "application/octet-stream")
    assert nested.content == b"\1\2"
    for missing in ("00081140.7.00091010", "00100010", "7FE00010", "nonsense", "00091010.x"):
        assert on.get(f"{INSTANCE}/bulkdata/{missing}").status_code == 404
    source.MIMETypeOfEncapsulatedDocument = "text/html"
    assert on.get(INSTANCE + "/bulkdata/00420011", "text/html").headers["content-security-policy"] == "sandbox"


# --- paths, methods, selection ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/dicomweb/studies/9.9/metadata", 404),
        ("/dicomweb/studies/1.2.3/series/9.9", 404),
        ("/dicomweb/studies/1.2.x/metadata", 400),
        ("/dicomweb/studies/1.2.3/metadata?version=1", 400),
        (SERIES + "/metadata?version=1", 200),
        (SERIES + "/metadata?version=2", 404),
        (SERIES + "/metadata?version=1&asOf=2026-01-01T00:00:00Z", 400),
        (SERIES + "/metadata?asOf=2026-01-01", 400),
        (SERIES + "/metadata?imageSetId=" + "0" * 32, 404),
        (SERIES + "/metadata?accept=application%2Fdicom%2Bjson", 200),
        (SERIES + "/metadata?accept=text%2Fhtml", 406),
        (SERIES + "/metadata?x=%zz", 200),
        (SERIES + "/metadata?x=%ff", 400),
        (SERIES + "/metadata/", 200),
        (SERIES + "//metadata", 404),
        ("/dicomweb/nothing", 404),
        ("/dicomweb", 404),
        ("/dicomweb/", 404),
        (f"/datastore/{DATASTORE}/studies/1.2.3/metadata", 200),
        ("/datastore/other/studies/1.2.3/metadata", 404),
    ],
)
def test_paths(path: str, status: int) -> None:
    assert surface([made(1)]).get(path).status_code == status


def test_ill_formed_uids_are_served_where_stored_so() -> None:
    with pytest.warns(UserWarning, match="Invalid value"):
        source = made(1, StudyInstanceUID="not_a_uid")
    assert surface([source]).get("/dicomweb/studies/not_a_uid/metadata").status_code == 200


def test_methods() -> None:
    on = surface([made(1)])
    head = on.ask("HEAD", INSTANCE + "/metadata")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(on.get(INSTANCE + "/metadata").content)
    refused = on.ask("DELETE", INSTANCE + "/metadata")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert on.ask("POST", SERIES).status_code == 405
    options = on.ask("OPTIONS", "/dicomweb/studies")
    assert (options.status_code, options.headers["allow"]) == (204, "GET, POST, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("host", "address", "port", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", 8080, "http://127.0.0.1:8080/"),
        ("localhost", "127.0.0.1", 8080, "http://localhost:8080/"),
        ("127.0.0.1:9000", "127.0.0.1", 8080, "http://127.0.0.1:9000/"),
        ("127.0.0.1", "127.0.0.1", 80, "http://127.0.0.1/"),
        ("pacs.example", "127.0.0.1", 8080, "http://pacs.example/"),
        (None, "10.0.0.1", 8080, "http://10.0.0.1:8080/"),
        ("[::1]:80", "::1", 8080, "http://[::1]:80/"),
    ],
)
def test_the_host_in_payloads(host: str | None, address: str, port: int, expected: str) -> None:
    scope = {"method": "GET", "scheme": "http", "server": (address, port), "query_string": b""}
    headers = [] if host is None else [(b"host", host.encode())]
    request = Request(surface().app._services, {**scope, "headers": headers}, None)  # type: ignore[arg-type]
    assert request.root == expected + "dicomweb"


def test_a_host_that_is_none_is_refused() -> None:
    assert surface([made(1)]).get(INSTANCE + "/metadata", Host='a"b').status_code == 400


# --- real files ------------------------------------------------------------------------------------------------------


def test_real_files_of_pydicom() -> None:
    names = ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "SC_rgb_small_odd.dcm", "JPEG2000.dcm", "rtplan.dcm")
    for name in names:
        path = get_testdata_file(name, download=False)
        assert path is not None
        source = pydicom.dcmread(path)
        on = surface([source])
        url = f"/dicomweb/studies/{source.StudyInstanceUID}/series/{source.SeriesInstanceUID}"
        url += f"/instances/{source.SOPInstanceUID}"
        back = read(on.get(url, "application/dicom").content)
        assert same_attributes(back, source, "00280004", "00280006"), name
        if "PixelData" in source:
            assert np.array_equal(back.pixel_array, source.pixel_array), name


@pytest.mark.needs("corpus")
def test_frames_of_the_corpus_are_bit_equal() -> None:
    compared = 0
    for record in manifest():
        pixel = record.get("pixel") or {}
        hashes = pixel.get("frame_sha256")
        if record["bytes"] > 200_000 or not hashes or not pixel.get("ground_truth") or not record["read_by_pydicom"]:
            continue
        if record.get("deliberately_broken") or record.get("bits_allocated") not in (8, 16) or "note" in pixel:
            continue
        assert CORPUS is not None
        source = pydicom.dcmread(CORPUS / record["path"])
        try:
            on = surface([source])
        except Exception:  # what the fake cannot take apart is not this test's matter
            continue
        entry = on.backend.held[0].entry
        if entry.stored_syntax != RPCL:
            continue
        url = f"/dicomweb/studies/{entry.study_uid}/series/{entry.series_uid}/instances/{entry.sop_uid}"
        parts = split(on.get(f"{url}/frames/{','.join(map(str, range(1, entry.frames + 1)))}"))
        assert [hashlib.sha256(payload).hexdigest() for _, payload in parts] == hashes, record["path"]
        back = read(on.get(url, "application/dicom").content)
        assert same_attributes(back, source, "00280004", "00280006", "7FE00001", "7FE00002"), record["path"]
        compared += 1
        if compared == 60:
            break
    assert compared > 20




def kinds() -> list[Dataset]:
    """A series of what is one piece each: of odd frames, without pixels, by plane, with elements behind the pixels."""
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", **BYTES}
    trailing = made(5)
    trailing.add_new(0xFFFCFFFC, "OB", b"\0" * 10)
    return [
        made(1),
        made(2, Rows=3, **BYTES),
        document(3),
        made(4, Rows=3, Columns=3, PlanarConfiguration=1, **colour),
        trailing,
        made(6, BitsAllocated=32, BitsStored=32, FloatPixelData=np.arange(30, dtype="<f4").tobytes()),
        *(made(number, Rows=1, Columns=number, **BYTES) for number in range(7, 40)),
    ]


def test_a_whole_series_has_its_length() -> None:
    sources = kinds()
    on = surface(sources)
    colour = on.backend.held[3]
    colour.data_set.PhotometricInterpretation = "YBR_RCT"  # leaves as RGB, a shorter value
    assert colour.entry.format is not None
    came_as = replace(colour.entry.format, photometric="YBR_RCT")
    colour.entry = replace(colour.entry, received_syntax=JPEG_2000_LOSSLESS, format=came_as)
    answer = on.get(SERIES, DICOM)
    assert int(answer.headers["content-length"]) == len(answer.content)
    parts = split(answer)
    for source, (headers, payload) in zip(sources, parts, strict=True):
        assert int(headers["Content-Length"]) == len(payload)
        assert same_attributes(read(payload), source, "00280004", "00280006")
    assert read(parts[3][1]).PhotometricInterpretation == "RGB"
    assert on.backend.heads_read == len(sources), "a header is read twice"
    head = on.ask("HEAD", SERIES, headers={"Accept": DICOM})
    assert (head.headers["content-length"], head.content) == (answer.headers["content-length"], b"")
    grey = surface([source for source in sources if source.get("SamplesPerPixel") != 3])
    stored = grey.get(SERIES, STORED)
    assert int(stored.headers["content-length"]) == len(stored.content)
    assert {headers["Content-Type"].rpartition("=")[2] for headers, _ in split(stored)} == {RPCL, EXPLICIT_LE}


@pytest.mark.parametrize(
    ("other", "accept"),
    [
        (made(2, NumberOfFrames=2), DICOM),
        (made(2, Rows=3, BitsAllocated=1, BitsStored=1, HighBit=0), DICOM),
        (made(2, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, **BYTES), STORED),
        (jpeg_instance(2), DICOM),  # as stored, if it cannot be decoded
    ],
    ids=["frames", "bits", "transformed", "undecodable"],
)
def test_a_length_that_cannot_be_known_is_not_told(other: Dataset, accept: str) -> None:
    answer = surface([made(1), other]).get(SERIES, accept)
    assert "content-length" not in answer.headers
    assert len(split(answer)) == 2


def test_what_is_surely_decoded_has_its_length() -> None:
    answer = surface([made(1), jpeg_instance(2)]).get(SERIES, f"{DICOM}; transfer-syntax={EXPLICIT_LE}")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(split(answer)) == 2


def test_headers_beyond_the_bound_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    on = surface(kinds())
    known = on.get(SERIES, DICOM)
    for bound, value in (("MEASURED_INSTANCES", 38), ("MEASURED_BYTES", 8000)):
        with monkeypatch.context() as bounded:
            bounded.setattr(retrieving, bound, value)
            answer = on.get(SERIES, DICOM)
        assert "content-length" not in answer.headers
        assert answer.content == known.content


@pytest.mark.parametrize("rows", [5, 7])
def test_a_length_that_cannot_be_kept_closes_the_connection(rows: int) -> None:
    """Neither padded nor cut: the client has a part of the answer, and knows it."""
    on = surface([made(number) for number in range(1, 41)])
    whole = on.get(SERIES, DICOM).content
    on.backend.held[-1].frames = surface([made(1, Rows=rows)]).backend.held[0].frames

    def read_to_the_end(port: int) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", SERIES, headers={"Accept": DICOM, "Host": "pacs.example:8080"})
            answer = connection.getresponse()
            with pytest.raises(http.client.IncompleteRead) as broken:
                answer.read()
            return int(answer.headers["Content-Length"]), broken.value.partial

    async def exchange() -> tuple[int, bytes]:
        stop, listening = asyncio.Event(), asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            serving = serve(on.app, HttpSettings(), listener, stop, on_listening=listening.set, drain_s=1)
            server = asyncio.create_task(serving)
            await listening.wait()
            try:
                return await asyncio.to_thread(read_to_the_end, port)
            finally:
                stop.set()
                await server

    with capture_logs() as logs:
        promised, got = asyncio.run(exchange())
    assert [entry["error"] for entry in logs if entry["event"] == "retrieve-broken-off"] == ["Corrupt"]
    assert promised == len(whole)
    assert 0 < len(got) < promised
    assert whole.startswith(got)


def test_a_reader_that_stops_is_not_read_ahead_for_without_end() -> None:
    """What is read is what was taken, and no more than the batches under way."""
    on = surface([made(number) for number in range(1, 201)])
    retrieve = Retrieve(on.backend, FakeCodec(), decode_foreign, THREADS)
    wanted = [Wanted(held.entry, RPCL) for held in on.backend.held]

    async def take(batches: int) -> int:
        files = retrieve.instances(wanted)
        taken = sum([len(await anext(files)) for _ in range(batches)])
        await files.aclose()
        await asyncio.get_running_loop().shutdown_default_executor()
        return taken

    taken = asyncio.run(take(3))
    assert taken == 3 * BATCH_INSTANCES
    assert taken <= on.backend.frames_read <= taken + BATCHES_AHEAD * BATCH_INSTANCES


def test_one_instance_that_cannot_be_decoded_among_others() -> None:
    """It alone comes as stored, where the request allows that; otherwise nothing comes."""
    broken = jpeg_instance(3)
    broken.PixelData = encapsulate([b"\xff\xd8 no JPEG \xff\xd9"])
    on = surface([made(1), made(2), broken, made(4)])
    on.backend.held[2].frames[0] = b"\xff\xd8 no JPEG \xff\xd9"

    def refuse(data: bytes, syntax: str, format: PixelFormat) -> bytes:
        raise NotAcceptable("It cannot be decoded.")

    retrieve = Retrieve(on.backend, FakeCodec(), refuse, THREADS)

    async def syntaxes(or_stored: bool) -> list[str]:
        wanted = [Wanted(held.entry, EXPLICIT_LE, or_stored) for held in on.backend.held]
        async with aclosing(retrieve.instances(wanted)) as batches:
            return [file.syntax async for batch in batches for file in batch]

    assert asyncio.run(syntaxes(True)) == [EXPLICIT_LE, EXPLICIT_LE, JPEG_BASELINE, EXPLICIT_LE]
    with pytest.raises(NotAcceptable):
        asyncio.run(syntaxes(False))


# --- archives --------------------------------------------------------------------------------------------------------


def test_a_study_as_an_archive() -> None:
    sources = [made(1, NumberOfFrames=3), made(2), made(3, SeriesInstanceUID="1.2.3.5"), document(4)]
    on = surface(sources)
    answer = on.get("/dicomweb/studies/1.2.3", "application/zip")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/zip")
    assert answer.headers["content-disposition"] == 'attachment; filename="1.2.3.zip"'
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert archive.testzip() is None
    assert sorted(archive.namelist()) == sorted(f"{s.SeriesInstanceUID}/{s.SOPInstanceUID}.dcm" for s in sources)
    for source in sources:
        read = pydicom.dcmread(archive.open(f"{source.SeriesInstanceUID}/{source.SOPInstanceUID}.dcm"))
        assert read.file_meta.TransferSyntaxUID == EXPLICIT_LE
        assert read.get("PixelData") == source.get("PixelData")
    assert on.get("/dicomweb/studies/1.2.3", "application/zip").content == answer.content
    assert on.get("/dicomweb/studies/1.2.3", "application/zip", If_None_Match=answer.headers["etag"]).status_code == 304
    assert len(zipfile.ZipFile(io.BytesIO(on.get(f"{SERIES}?accept=application/zip").content)).namelist()) == 3


def test_the_transfer_syntax_in_an_archive() -> None:
    on = surface([made(1), jpeg_instance(2)])
    stored = on.get(SERIES, "application/zip; transfer-syntax=*")
    archive = zipfile.ZipFile(io.BytesIO(stored.content))
    syntaxes = [pydicom.dcmread(archive.open(name)).file_meta.TransferSyntaxUID for name in archive.namelist()]
    assert syntaxes == [RPCL, "1.2.840.10008.1.2.4.50"]
    assert on.get(SERIES, "application/zip; transfer-syntax=1.2.840.10008.1.2.4.57").status_code == 406


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/zip, */*", "multipart/related"),
        ("*/*", "multipart/related"),
        ("application/zip, */*;q=0.5", "application/zip"),
        ("application/zip;q=0, */*", "multipart/related"),
        ('application/zip;q=0.5, multipart/related; type="application/dicom"', "multipart/related"),
    ],
)
def test_an_archive_is_for_who_asks_for_it(accept: str, kind: str) -> None:
    assert surface([made(1)]).get(SERIES, accept).headers["content-type"].startswith(kind)


def test_names_in_an_archive_are_no_paths() -> None:
    with disable_value_validation():
        on = surface([made(1, SOPInstanceUID="../../evil"), made(2, SOPInstanceUID="..")])
        names = zipfile.ZipFile(io.BytesIO(on.get(SERIES, "application/zip").content)).namelist()
    assert all(re.fullmatch(r"1\.2\.3\.4/[0-9a-f]{32}\.dcm", name) for name in names)
    assert len(set(names)) == 2
