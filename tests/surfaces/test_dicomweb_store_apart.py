"""STOW-RS of metadata and bulk data apart, over the fakes (STOW-03..05, PS3.18 §10.5.1.4)."""

import errno
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from conformance.reading import differences
from conformance.samples import Samples
from gateway.dicomweb import apart
from gateway.domain.native_model import from_xml, to_xml
from tests.running import RunningGateway
from tests.surfaces.fakes import Surface, made, part10, surface

JSON, XML = "application/dicom+json", "application/dicom+xml"
OCTETS = "application/octet-stream"
SAMPLES = Samples()
NATIVE = [sample.name for sample in SAMPLES if sample.syntax == "1.2.840.10008.1.2.1" and sample.name != "odd values"]
Part = tuple[Mapping[str, str], bytes]


def send(on: Surface, parts: Sequence[Part], kind: str, url: str = "/dicomweb/studies") -> Any:
    body = b""
    for headers, payload in parts:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body += f"\r\n--fence\r\n{lines}\r\n".encode() + payload
    content_type = f'multipart/related; type="{kind}"; boundary=fence'
    return on.ask("POST", url, content=body + b"\r\n--fence--", headers={"Content-Type": content_type})


def metadata(kind: str, document: Mapping[str, Any]) -> Part:
    body = json.dumps([document]).encode() if kind == JSON else to_xml(document)
    return {"Content-Type": kind}, body


def bulk(location: str, payload: bytes, kind: str = OCTETS) -> Part:
    return {"Content-Type": kind, "Content-Location": location}, payload


def deaf_surface() -> Surface:
    """One whose backend does not look at what is stored: the one of the fakes does not decode all."""
    on = surface()
    on.backend.add = lambda data_set, image_set=None: None  # type: ignore[method-assign,assignment,return-value]
    return on


def stored(on: Surface) -> list[Dataset]:
    return [pydicom.dcmread(io.BytesIO(bytes(sink.data))) for sink in on.staging.closed if sink is not None]


def described(data_set: Dataset, uri: str = "bulk/pixels", but: Sequence[str] = ()) -> dict[str, Any]:
    document = data_set.to_json_dict()
    document["7FE00010"] = {"vr": "OB", "BulkDataURI": uri}
    return {tag: element for tag, element in document.items() if tag not in but}


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("kind", [JSON, XML])
def test_what_arrives_apart_is_what_arrives_whole(kind: str, name: str) -> None:
    source = SAMPLES[name].data
    values: dict[str, bytes] = {}

    def place(element: pydicom.DataElement) -> str:
        uri = f"bulk/{len(values)}"
        values[uri] = element.value if isinstance(element.value, bytes) else bytes(element.value)
        return uri

    document = source.to_json_dict(bulk_data_threshold=64, bulk_data_element_handler=place)
    on = surface()
    answer = send(on, [metadata(kind, document), *(bulk(*one) for one in values.items())], kind)
    assert answer.status_code == 200, answer.text
    (back,) = stored(on)
    assert not list(differences(source, back))
    for pixels in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        assert back.get(pixels) == source.get(pixels)
    assert [*back.keys()] == sorted(back.keys())


def test_several_data_sets_and_an_instance_among_them() -> None:
    sources = [made(number) for number in (1, 2, 3)]
    documents = [described(source, f"http://elsewhere/{n}") for n, source in enumerate(sources[:2])]
    parts = [
        ({"Content-Type": JSON}, json.dumps(documents).encode()),
        ({"Content-Type": "application/dicom"}, part10(sources[2])),
        bulk("http://elsewhere/1", sources[1].PixelData),
        bulk("http://elsewhere/0", sources[0].PixelData, f"{OCTETS}; transfer-syntax=1.2.840.10008.1.2.1"),
    ]
    on = surface()
    assert send(on, parts, JSON).status_code == 200
    assert {one.SOPInstanceUID: one.PixelData for one in stored(on)} == {
        one.SOPInstanceUID: one.PixelData for one in sources
    }


@pytest.mark.parametrize("uri", ["bulk", "{}/frames/"])
def test_frames_in_parts_of_their_own(uri: str) -> None:
    source = made(1, NumberOfFrames=3)
    frames = [source.PixelData[60 * n : 60 * n + 60] for n in range(3)]
    places = [uri.replace("{}", "bulk") + (str(n) if uri != "bulk" else "") for n in (1, 2, 3)]
    on = surface()
    parts = [metadata(JSON, described(source, "bulk"))]
    parts += [bulk(place, frame) for place, frame in zip(places, frames, strict=True)]
    assert send(on, parts, JSON).status_code == 200
    assert stored(on)[0].PixelData == source.PixelData


def ramp(shape: Sequence[int], kind: str = "uint8") -> Any:
    return (np.arange(np.prod(shape)).reshape(shape) % 251).astype(kind)


CODED = {
    "jpeg": (imagecodecs.jpeg8_encode(ramp((6, 5)), level=90), "image/jpeg", ".50", 1, 8, "MONOCHROME2"),
    "jpeg colour": (
        imagecodecs.jpeg8_encode(ramp((16, 16, 3)), level=90, subsampling="422"),
        "image/jpeg",
        ".50",
        3,
        8,
        "YBR_FULL_422",
    ),
    "jpeg lossless": (imagecodecs.ljpeg_encode(ramp((6, 5))), "image/jpeg", ".57", 1, 8, "MONOCHROME2"),
    "jpeg-ls": (imagecodecs.jpegls_encode(ramp((6, 5), "uint16")), "image/jls", ".80", 1, 16, "MONOCHROME2"),
    "jpeg-ls lossy": (imagecodecs.jpegls_encode(ramp((6, 5)), level=2), "image/jls", ".81", 1, 8, "MONOCHROME2"),
    "jpeg 2000": (
        imagecodecs.jpeg2k_encode(ramp((32, 32, 3)), codecformat="j2k", reversible=True, mct=True),
        "image/jp2",
        ".90",
        3,
        8,
        "YBR_RCT",
    ),
    "jpeg 2000 lossy in boxes": (
        imagecodecs.jpeg2k_encode(ramp((32, 32)), codecformat="jp2", reversible=False, level=30),
        "image/jp2",
        ".91",
        1,
        8,
        "MONOCHROME2",
    ),
    "htj2k": (imagecodecs.htj2k_encode(ramp((32, 32), "uint16")), "image/jphc", ".201", 1, 16, "MONOCHROME2"),
}
MODULE = [f"0028{number:04d}" for number in (2, 4, 6, 8, 10, 11, 100, 101, 102, 103)]


@pytest.mark.parametrize("name", CODED)
def test_coded_images_tell_what_the_metadata_leave_out(name: str) -> None:
    image, kind, syntax, samples, bits, photometric = CODED[name]
    image = bytes(image)
    on = deaf_surface()
    answer = send(on, [metadata(JSON, described(made(1), but=MODULE)), bulk("bulk/pixels", image, kind)], JSON)
    assert answer.status_code == 200, answer.text
    (back,) = stored(on)
    assert back.file_meta.TransferSyntaxUID == f"1.2.840.10008.1.2.4{syntax}"
    assert (back.SamplesPerPixel, back.BitsStored, back.PhotometricInterpretation) == (samples, bits, photometric)
    assert ("PlanarConfiguration" in back) == (samples > 1)
    is_lossy = syntax in (".50", ".81", ".91")
    assert back.get("LossyImageCompression") == ("01" if is_lossy else None)
    (frame,) = generate_frames(back.PixelData, number_of_frames=1)
    assert frame.rstrip(b"\0") == image.rstrip(b"\0"), "unchanged"


PICTURES = {
    "png": (imagecodecs.png_encode(ramp((6, 5))), "image/png", ramp((6, 5))),
    "png of 16 bits": (imagecodecs.png_encode(ramp((6, 5), "uint16") * 257), "image/png", ramp((6, 5), "uint16") * 257),
    "png in colour": (imagecodecs.png_encode(ramp((5, 7, 3))), "image/png", ramp((5, 7, 3))),
    "opaque png": (
        imagecodecs.png_encode(np.dstack([ramp((6, 5, 3)), np.full((6, 5), 255, np.uint8)])),
        "image/png",
        ramp((6, 5, 3)),
    ),
    "gif": (imagecodecs.gif_encode(ramp((6, 5))), "image/gif", np.stack([ramp((6, 5))] * 3, axis=-1)),
    "gif of three": (imagecodecs.gif_encode(ramp((3, 6, 5))), "image/gif", np.stack([ramp((3, 6, 5))] * 3, axis=-1)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_become_native_pixels(name: str) -> None:
    image, kind, expected = PICTURES[name]
    on = surface()
    document = described(made(1, BitsAllocated=16, Rows=3), but=["00280008"])
    answer = send(on, [metadata(JSON, document), bulk("bulk/pixels", bytes(image), kind)], JSON)
    assert answer.status_code == 200, answer.text
    (back,) = stored(on)
    assert back.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert np.array_equal(back.pixel_array, expected)
    assert back.PhotometricInterpretation == ("RGB" if expected.shape[-1] == 3 else "MONOCHROME2")


def test_each_frame_as_a_picture() -> None:
    frames = [ramp((6, 5)), ramp((6, 5))[::-1]]
    pngs = [bytes(imagecodecs.png_encode(np.ascontiguousarray(frame))) for frame in frames]
    on = surface()
    parts = [bulk(f"bulk/pixels/frames/{n}", png, "image/png") for n, png in enumerate(pngs, 1)]
    assert send(on, [metadata(XML, described(made(1), but=MODULE)), *parts], XML).status_code == 200
    assert np.array_equal(stored(on)[0].pixel_array, np.stack(frames))


CLEAR = imagecodecs.png_encode(np.dstack([ramp((6, 5, 3)), np.full((6, 5), 9, np.uint8)]))
VAST = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1 << 30).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([(bytes(CLEAR), "image/png")], "An image of Pixel Data cannot be read"),
        ([(VAST, "image/png")], "A PNG or GIF image of more than"),
        ([(bytes(PICTURES["png"][0])[:60], "image/png")], "An image of Pixel Data cannot be read"),
        ([(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png")], "too early"),
        ([(bytes(PICTURES["gif"][0])[:40], "image/gif")], "too early"),
        ([(b"BM", "image/png")], "no PNG and no GIF"),
        ([(bytes(PICTURES["png"][0]), "image/png"), (bytes(PICTURES["png in colour"][0]), "image/png")], "several"),
    ],
)
def test_pictures_that_cannot_be_taken(images: list[tuple[bytes, str]], said: str) -> None:
    on = surface()
    parts = [bulk("bulk/pixels", *image) for image in images]
    answer = send(on, [metadata(JSON, described(made(1), but=MODULE)), *parts], JSON)
    assert answer.status_code == 409, answer.text
    assert said[:30] in answer.json()["00081198"]["Value"][0]["00000902"]["Value"][0]
    assert not stored(on)


def test_what_metadata_say_goes_before_what_an_image_says() -> None:
    image = bytes(CODED["jpeg"][0])
    document = described(made(1, BitsAllocated=8, BitsStored=8, HighBit=7, NumberOfFrames=2), but=["00280010"])
    document["00280004"]["Value"] = ["MONOCHROME1"]
    kind = "image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"
    on = surface()
    parts = [bulk("bulk/pixels", image, kind)] * 2
    assert send(on, [metadata(XML, document), *parts], XML).status_code == 200
    (back,) = stored(on)
    assert (back.Rows, back.PhotometricInterpretation, back.NumberOfFrames) == (6, "MONOCHROME1", 2)
    assert len(list(generate_frames(back.PixelData, number_of_frames=2))) == 2


PIXELS = bulk("bulk/pixels", bytes(60))


@pytest.mark.parametrize(
    ("document", "parts", "said"),
    [
        (described(made(1)), [], "A BulkDataURI names no part"),
        (described(made(1)), [bulk("bulk/other", b"1234")], "A BulkDataURI names no part"),
        (described(made(1)), [bulk("bulk/pixels", b"x", "image/webp")], "media type of Pixel Data"),
        (described(made(1), but=MODULE), [bulk("bulk/pixels", b"x", "image/jpeg")], "no JPEG"),
        (described(made(1), but=MODULE), [bulk("bulk/pixels", b"\xff\xd8\xff\xe0", "image/jpeg")], "too early"),
        (described(made(1)), [bulk("bulk/pixels", b"x", "image/jpeg; transfer-syntax=1.2.840.10008.1.2.5")], "syntax"),
        (described(made(1)), [PIXELS, bulk("bulk/pixels", b"x", "image/jpeg")], "several media types"),
        ({**described(made(1)), "00080018": {"vr": "UI"}}, [PIXELS], "SOPInstanceUID does not exist"),
        ({**described(made(1)), "00280010": {"vr": "US", "Value": [-1]}}, [PIXELS], "(0028,0010): a value"),
        ({**described(made(1)), "00280010": {"vr": "US", "Value": "x"}}, [PIXELS], "(0028,0010): Value is an array"),
        ({**described(made(1)), "00280010": {"vr": "XX", "Value": [1]}}, [PIXELS], "(0028,0010): there is no VR"),
        ({**described(made(1)), "00280010": 5}, [PIXELS], "(0028,0010): an attribute"),
        ({**described(made(1)), "00081140": {"vr": "SQ", "Value": [5]}}, [PIXELS], "(0008,1140): an item"),
        ({**described(made(1)), "00420011": {"vr": "OB", "InlineBinary": "?"}}, [PIXELS], "(0042,0011): Inline"),
        ({**described(made(1)), "PatientName": {"vr": "PN"}}, [PIXELS], "8 hexadecimal digits"),
        *(
            ({**described(made(1)), "00091001": {"vr": vr, "Value": [value]}}, [PIXELS], "(0009,1001): a value")
            for vr, value in (("AT", {}), ("AT", "0010"), ("US", "x"), ("FD", {}), ("LO", {}), ("UN", "AA=="))
        ),
        ({**described(made(1)), "00080016": {"vr": "UI", "Value": ["1." * 40_000]}}, [PIXELS], "SOPClassUID is longer"),
    ],
)
def test_a_data_set_that_cannot_be_stored(document: dict[str, Any], parts: list[Part], said: str) -> None:
    on = surface()
    answer = send(on, [metadata(JSON, document), *parts], JSON)
    assert answer.status_code == 409, answer.text
    module = answer.json()
    failed = module.get("00081198", module.get("0008119A"))["Value"]
    assert said[:40] in failed[0]["00000902"]["Value"][0]
    if said != "SOPInstanceUID does not exist":
        assert failed[0]["00081155"]["Value"] == ["1.2.3.4.1"]
    assert not stored(on)


def test_the_others_are_stored() -> None:
    good, bad = described(made(1)), {**described(made(2)), "00280010": 5}
    xml = b"<NativeDicomModel>"
    parts = [({"Content-Type": JSON}, json.dumps([bad, good]).encode()), ({"Content-Type": XML}, xml), PIXELS,
             bulk("bulk/lonely", b"1")]
    on = surface()
    answer = send(on, parts, JSON)
    assert answer.status_code == 202
    module = answer.json()
    assert [one["00081155"]["Value"] for one in module["00081199"]["Value"]] == [["1.2.3.4.1"]]
    assert [one["00081155"]["Value"] for one in module["00081198"]["Value"]] == [["1.2.3.4.2"]]
    told = [one["00000902"]["Value"][0] for one in module["0008119A"]["Value"]]
    assert told[0].startswith("part 2: The XML is not well-formed")
    assert told[1].startswith("part 4: No BulkDataURI names")


@pytest.mark.parametrize(
    "parts",
    [
        [({"Content-Type": JSON}, b"[{]")],
        [({"Content-Type": JSON}, b"[" * 100_000)],
        [({"Content-Type": JSON}, b"[1]")],
        [({"Content-Type": JSON}, b'[{"00080018": {"vr": "UI", "Value": ["\\ud800"]}}]')],
        [({"Content-Type": JSON}, b'[{"00080018": {"vr": "UI", "Value": ["1.2\xed\xa0\x80"]}}]')],
        [metadata(JSON, described(made(1))), ({"Content-Type": OCTETS}, b"1234")],
        [metadata(JSON, described(made(1))), bulk("http://[", b"1234")],
        [],
    ],
)
def test_a_body_that_cannot_be_read(parts: list[Part]) -> None:
    on = surface()
    answer = send(on, parts, JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert not stored(on)


def test_metadata_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "MAX_METADATA_BYTES", 100)
    assert send(surface(), [metadata(JSON, described(made(1)))], JSON).status_code == 413


@pytest.mark.parametrize("kind", [JSON, XML])
def test_a_gateway_takes_them(gateway: RunningGateway, kind: str) -> None:
    colour, grey, expected = ramp((16, 16, 3)), ramp((6, 5)), []
    parts: list[Part] = []
    for number, (image, media_type, native) in enumerate(
        (
            (imagecodecs.png_encode(colour), "image/png", colour),
            (imagecodecs.gif_encode(grey), "image/gif", np.stack([grey] * 3, axis=-1)),
            (imagecodecs.jpegls_encode(grey), "image/jls", grey),
            (imagecodecs.jpeg2k_encode(ramp((32, 32)), codecformat="j2k", level=0), "image/jp2", ramp((32, 32))),
            (grey.tobytes() * 2, OCTETS, None),
        ),
        1,
    ):
        but = MODULE if native is not None else ()
        parts.append(metadata(kind, described(made(number, WindowCenter=None, WindowWidth=None), f"b/{number}", but)))
        parts.append(bulk(f"b/{number}", bytes(image), media_type))
        expected.append(native)
    parts.append(bulk("b/none", bytes(imagecodecs.png_encode(colour))[:99], "image/png"))
    parts.append(metadata(kind, described(made(9), "b/none", MODULE)))
    body = b""
    for headers, payload in sorted(parts, key=lambda part: part[0]["Content-Type"] != kind):
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body += f"\r\n--fence\r\n{lines}\r\n".encode() + payload
    content = {"Content-Type": f'multipart/related; type="{kind}"; boundary=fence', "Accept": kind}
    url = f"{gateway.http}/dicomweb/studies"
    answer = httpx.post(url, content=body + b"\r\n--fence--", headers=content, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (202, kind), answer.text
    module = answer.json() if kind == JSON else from_xml(answer.content)
    assert [one["00081155"]["Value"] for one in module["00081198"]["Value"]] == [["1.2.3.4.9"]]
    assert len(module["00081199"]["Value"]) == 5
    for number, native in enumerate(expected, 1):
        if native is not None:
            url = f"/dicomweb/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.{number}/frames/1"
            assert gateway.get(url, headers={"Accept": OCTETS}).content == native.tobytes()


def test_another_study() -> None:
    answer = send(surface(), [metadata(JSON, described(made(1))), PIXELS], JSON, "/dicomweb/studies/9.9")
    assert answer.status_code == 409
    assert answer.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA901]


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(apart.tempfile, "TemporaryFile", lambda dir: Full())
    answer = send(surface(), [metadata(JSON, described(made(1))), PIXELS], JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json")
