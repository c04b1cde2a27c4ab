"""/rendered and /thumbnail over the fakes: negotiation, parameters, the display pipeline (dicomweb.md section 9)."""

from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import httpx
import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence

from gateway.domain.syntaxes import EXPLICIT_LE
from tests.corpus import CORPUS, manifest
from tests.surfaces.fakes import Surface, document, jpeg_instance, made, split, surface

STUDY = "/dicomweb/studies/1.2.3"
SERIES = STUDY + "/series/1.2.3.4"
INSTANCE = SERIES + "/instances/1.2.3.4.1"
RENDERED = INSTANCE + "/rendered"
THUMBNAIL = INSTANCE + "/thumbnail"
BYTES = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
BROWSER = "text/html, application/xhtml+xml, application/xml;q=0.9, image/webp, */*;q=0.8"
OCTETS = 'multipart/related; type="application/octet-stream"'


def grey(values: object, **attributes: Any) -> Dataset:
    """An instance of one frame, or of several, of 16 bits; a single row comes twice."""
    array = np.asarray(values, attributes.pop("dtype", "<u2"))
    if array.shape[-2] == 1:
        array = np.repeat(array, 2, axis=-2)
    rows, columns = array.shape[-2:]
    if array.ndim == 3:
        attributes.setdefault("NumberOfFrames", len(array))
    if array.dtype.itemsize == 1:
        attributes = BYTES | attributes
    signed = int(array.dtype.kind == "i")
    data = array.tobytes() + b"\0" * (array.nbytes % 2)
    return made(1, Rows=rows, Columns=columns, PixelRepresentation=signed, PixelData=data, **attributes)


def picture(on: Surface | Dataset, path: str = RENDERED, query: str = "") -> NDArray[np.uint8]:
    """The pixels of a picture, without loss."""
    on = surface([on]) if isinstance(on, Dataset) else on
    answer = on.get(f"{path}?{query}" if query else path, "image/png")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(imagecodecs.png_decode(answer.content))


def item(**attributes: Any) -> Dataset:
    made = Dataset()
    for keyword, value in attributes.items():
        setattr(made, keyword, value)
    return made


def lookup(count: int, first: int, bits: int, data: bytes | list[int]) -> Dataset:
    """A LUT item, its data as words of OW or as values of US."""
    table = item(LUTDescriptor=[count, first, bits])
    table.add_new("LUTData", "OW" if isinstance(data, bytes) else "US", data)
    return table


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "image/jpeg"),
        ("*/*", "image/jpeg"),
        (BROWSER, "image/jpeg"),
        ("image/*", "image/jpeg"),
        ("image/jpeg", "image/jpeg"),
        ("image/png", "image/png"),
        ("image/gif", "image/gif"),
        ("image/png, */*", "image/png"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
        ("image/png, image/*;q=0.1", "image/png"),
        ("image/jpeg;q=0, image/*", "image/png"),
        ("image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50", "image/jpeg"),
        (OCTETS, "image/jpeg"),
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", "image/jpeg"),
        ("text/html", 406),
        ("image/webp", 406),
        ("application/dicom", 406),
        ("image/png, application/dicom", 400),
    ],
)
@pytest.mark.parametrize("path", [RENDERED, THUMBNAIL, f"{INSTANCE}/frames/1/rendered", f"{SERIES}/thumbnail"])
def test_types(accept: str | None, expected: str | int, path: str) -> None:
    answer = surface([made(1)]).get(path, accept)
    if isinstance(expected, int):
        assert answer.status_code == expected
        assert answer.json()["detail"]
        if expected == 406:
            assert "image/png" in answer.json()["detail"]
        return
    assert answer.status_code == 200
    assert answer.headers["content-type"] == expected
    assert answer.content.startswith(
        {"image/jpeg": b"\xff\xd8", "image/png": b"\x89PNG", "image/gif": b"GIF8"}[expected]
    )
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_the_accept_parameter_wins_over_the_header() -> None:
    on = surface([made(1)])
    assert on.get(RENDERED + "?accept=image%2Fpng", OCTETS).headers["content-type"] == "image/png"
    assert on.get(RENDERED + "?accept=image%2Fjpeg", OCTETS).headers["content-type"] == "image/jpeg"


def test_pictures_are_not_sent_twice() -> None:
    on = surface([made(1)])
    answer = on.get(RENDERED)
    assert answer.headers["vary"] == "Accept, Accept-Encoding, Origin"
    assert answer.headers["content-location"] == "http://pacs.example:8080" + RENDERED
    etag = answer.headers["etag"]
    assert on.get(RENDERED, If_None_Match=etag).status_code == 304
    assert on.get(RENDERED + "?quality=5", If_None_Match=etag).status_code == 200
    assert on.get(RENDERED, "image/png", If_None_Match=etag).status_code == 200


def test_a_study_is_shown_by_one_of_its_instances_or_by_all() -> None:
    on = surface([document(9, InstanceNumber=0), made(1), made(2), made(3)])
    for path in (STUDY, SERIES):
        for resource in ("rendered", "thumbnail"):
            answer = on.get(f"{path}/{resource}", "image/jpeg")
            assert answer.headers["content-type"] == "image/jpeg"
            place = f"http://pacs.example:8080{SERIES}/instances/1.2.3.4.2/{resource}"
            assert answer.headers["content-location"] == place
        parts = split(on.get(f"{path}/rendered", 'multipart/related; type="image/png"'))
        assert [headers["Content-Type"] for headers, _ in parts] == ["image/png"] * 3
        assert [headers["Content-Location"][-2:] for headers, _ in parts] == ["ed"] * 3
        assert parts[0][1] == on.get(RENDERED, "image/png").content


def test_frames_one_by_one_and_in_a_list() -> None:
    frames = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    on = surface([grey(frames, dtype=np.uint8)])
    for number, frame in enumerate(frames, 1):
        assert np.array_equal(picture(on, f"{INSTANCE}/frames/{number}/rendered"), frame)
    assert np.array_equal(picture(on), frames[0])
    answer = on.get(f"{INSTANCE}/frames/3,1/rendered", "image/png")
    parts = split(answer)
    assert [headers["Content-Location"].rpartition("/frames/")[2] for headers, _ in parts] == [
        "3/rendered",
        "1/rendered",
    ]
    assert np.array_equal(imagecodecs.png_decode(parts[0][1]), frames[2])
    single = on.get(f"{INSTANCE}/frames/2/rendered", 'multipart/related; type="image/jpeg"')
    assert len(split(single)) == 1
    assert on.get(f"{INSTANCE}/frames/4/rendered").status_code == 404
    assert on.get(f"{INSTANCE}/frames/0/rendered").status_code == 400
    assert on.get(f"{INSTANCE}/frames/1,1/rendered").status_code == 400


def test_a_thumbnail_shows_the_representative_frame() -> None:
    frames = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    source = grey(frames, dtype=np.uint8, RepresentativeFrameNumber=3)
    assert np.array_equal(picture(source, THUMBNAIL), frames[2])
    assert np.array_equal(picture(source, f"{INSTANCE}/frames/2/thumbnail"), frames[1])
    assert np.array_equal(picture(source), frames[0])


# --- what is no image ------------------------------------------------------------------------------------------------


def test_a_pdf_is_its_own_picture() -> None:
    pdf = document(1, MIMETypeOfEncapsulatedDocument="application/pdf", EncapsulatedDocument=b"%PDF-1.4 ")
    on = surface([pdf])
    for accept in (None, "*/*", BROWSER, "application/pdf", OCTETS):
        answer = on.get(RENDERED, accept)
        assert answer.headers["content-type"] == "application/pdf"
        assert answer.content == b"%PDF-1.4 "
    assert on.get(RENDERED, If_None_Match=answer.headers["etag"]).status_code == 304
    ((headers, body),) = split(on.get(RENDERED, 'multipart/related; type="application/pdf"'))
    assert (headers["Content-Type"], body) == ("application/pdf", b"%PDF-1.4 ")
    refusal = on.get(RENDERED, "image/jpeg")
    assert refusal.status_code == 406
    assert "application/pdf" in refusal.json()["detail"]
    assert on.get(THUMBNAIL).status_code == 404


def code(meaning: str, value: str = "1") -> DicomSequence:
    return DicomSequence([item(CodeValue=value, CodingSchemeDesignator="99TEST", CodeMeaning=meaning)])


def content(kind: str, name: str, *children: Dataset, **attributes: Any) -> Dataset:
    made = item(RelationshipType="CONTAINS", ValueType=kind, ConceptNameCodeSequence=code(name), **attributes)
    if children:
        made.ContentSequence = DicomSequence(children)
    return made


def test_a_report_is_text() -> None:
    measured = item(NumericValue="4.5", MeasurementUnitsCodeSequence=code("millimeter", "mm"))
    referenced = DicomSequence([item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID="1.2.3.99")])
    report = document(
        1,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33",
        ValueType="CONTAINER",
        ConceptNameCodeSequence=code("Imaging Report"),
        ContentSequence=DicomSequence(
            [
                content(
                    "CONTAINER",
                    "Findings",
                    content("TEXT", "Finding", TextValue="small <b>nodule</b> & \u00e9panchement\nsecond line"),
                    content("NUM", "Diameter", MeasuredValueSequence=DicomSequence([measured])),
                    content("IMAGE", "Source", ReferencedSOPSequence=referenced),
                ),
                content("CODE", "Conclusion", ConceptCodeSequence=code("Benign")),
                content("PNAME", "Observer", PersonName="Roe^Jane"),
            ]
        ),
        SpecificCharacterSet="ISO_IR 192",
    )
    on = surface([report])
    answer = on.get(RENDERED, "text/plain")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines() == [
        "Imaging Report",
        "  Findings",
        "    Finding: small <b>nodule</b> & \u00e9panchement",
        "      second line",
        "    Diameter: 4.5 mm",
        "    Source: 1.2.3.99",
        "  Conclusion: Benign",
        "  Observer: Roe^Jane",
    ]
    for accept in (None, "*/*", BROWSER, "text/html", "text/*"):
        answer = on.get(RENDERED, accept)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"] == "sandbox"
    seen = HtmlText()
    seen.feed(answer.text)
    assert "small <b>nodule</b> & \u00e9panchement" in "".join(seen.words)
    assert seen.open == []
    tree = ElementTree.fromstring(on.get(RENDERED, "text/xml").content)
    assert [node.get("name") for node in tree] == ["Findings", "Conclusion", "Observer"]
    assert [node.get("name") for node in tree[0]] == ["Finding", "Diameter", "Source"]
    assert (tree[0][1].get("type"), tree[0][1].text) == ("NUM", "4.5 mm")
    assert on.get(RENDERED, "image/jpeg").status_code == 406
    assert on.get(THUMBNAIL).status_code == 404


class HtmlText(HTMLParser):
    """The words of a page, and the elements that were left open."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.needs("corpus")
def test_the_reports_of_the_corpus_are_text() -> None:
    assert CORPUS is not None
    names = [r["path"] for r in manifest() if r.get("modality") == "SR" and not r["deliberately_broken"]]
    assert names
    for name in names:
        report = pydicom.dcmread(CORPUS / name)
        on = surface([report])
        path = f"/dicomweb/studies/{report.StudyInstanceUID}/series/{report.SeriesInstanceUID}"
        path += f"/instances/{report.SOPInstanceUID}/rendered"
        for kind in ("text/html", "text/plain", "text/xml"):
            answer = on.get(path, kind)
            assert answer.status_code == 200, name
            assert str(report.ConceptNameCodeSequence[0].CodeMeaning)[:8] in answer.text
        ElementTree.fromstring(answer.content)
        page = HtmlText()
        page.feed(on.get(path).text)
        assert page.open == [], name


def test_a_video_is_sent_as_it_is() -> None:
    from pydicom.encaps import encapsulate

    source = made(1, **BYTES, syntax="1.2.840.10008.1.2.4.102", PixelData=encapsulate([b"\0\0\0\x18ftypmp42"]))
    on = surface([source])
    answer = on.get(RENDERED, "video/mp4")
    assert (answer.headers["content-type"], answer.content) == ("video/mp4", b"\0\0\0\x18ftypmp42")
    assert on.get(RENDERED).headers["content-type"] == "video/mp4"
    assert on.get(RENDERED, "image/jpeg").status_code == 406


def test_what_has_nothing_to_show_is_not_found() -> None:
    on = surface([document(1)])
    for path in (RENDERED, THUMBNAIL, f"{STUDY}/rendered", f"{SERIES}/thumbnail", f"{INSTANCE}/frames/1/rendered"):
        assert on.get(path).status_code == 404
    state = surface([document(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1")])
    for query in ("window=1,2,linear", "viewport=10,10,,,5,5"):
        assert state.get(f"{RENDERED}?{query}").status_code == 400
    for path in (RENDERED, THUMBNAIL):
        assert on.get(path.replace("1.2.3.4.1", "1.9")).status_code == 404
        assert on.get(path.replace("1.2.3.4.1", "x")).status_code == 400


@pytest.mark.parametrize("photometric", ["HSV", "CMYK"])
def test_colour_spaces_that_are_not_shown_are_refused(photometric: str) -> None:
    source = made(1, **BYTES, SamplesPerPixel=3, PhotometricInterpretation=photometric, PlanarConfiguration=0)
    answer = surface([source]).get(RENDERED)
    assert answer.status_code == 406
    assert answer.json()["detail"]


def test_foreign_frames_are_decoded_first() -> None:
    shown = picture(jpeg_instance())
    assert shown.shape == (6, 5)
    assert np.abs(shown.astype(int) - np.arange(30).reshape(6, 5)).max() <= 8


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        *("quality=0", "quality=101", "quality=", "quality=high", "quality=5.5", "quality=-1", "quality=9&quality=8"),
        *("window=1,2", "window=", "window=1,2,cubic", "window=a,2,linear", "window=1,0,linear", "window=1,.5,linear"),
        *("window=1,0,sigmoid", "window=1,-2,linear-exact", "window=nan,2,linear", "window=1,2,3,linear"),
        *("window=inf,2,linear", "window=1e999,2,linear", "window=,,linear"),
        *("viewport=", "viewport=10", "viewport=0,10", "viewport=10,99999", "viewport=10,10,1", "viewport=a,b"),
        *(
            "viewport=-5,5",
            "viewport=10,10,,,0,",
            "viewport=10,10,-1,,,",
            "viewport=10,10,90,90,,",
            "viewport=1,1,a,,,",
        ),
        *("viewport=10,10,,,,,", "viewport=8193,1", "viewport=10.5,10"),
        *("annotation=", "annotation=name", "annotation=patient,,technique", "annotation=patient,x"),
        *("iccprofile=", "iccprofile=maybe", "iccprofile=srgb&accept=image/gif"),
    ],
)
def test_bad_parameters_are_told(query: str) -> None:
    answer = surface([made(1)]).get(f"{RENDERED}?{query}")
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_a_thumbnail_has_no_region() -> None:
    on = surface([made(1)])
    assert on.get(THUMBNAIL + "?viewport=10,10,,,2,2").status_code == 400
    assert on.get(THUMBNAIL + "?viewport=10,x").status_code == 400
    assert on.get(THUMBNAIL + "?viewport=256%2C256").status_code == 200


def test_profiles_are_not_there_and_said_to_be_so() -> None:
    on = surface([made(1)])
    answer = on.get(RENDERED + "?annotation=patient,technique&iccprofile=srgb")
    assert answer.status_code == 200
    assert '299 pacs.example:8080 "The iccprofile parameter is not supported' in answer.headers["warning"]
    for query in ("", "?iccprofile=no", "?unknown=1", "?annotation=patient,technique"):
        assert "warning" not in on.get(RENDERED + query).headers


def test_quality_is_of_the_jpeg() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    on = surface([grey(noise, dtype=np.uint8)])
    sizes = [len(on.get(f"{RENDERED}?quality={quality}").content) for quality in (1, 50, 90, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 3 < sizes[-1]
    assert on.get(RENDERED).content == on.get(RENDERED + "?quality=90").content


def test_viewports() -> None:
    image = np.add.outer(np.arange(40) * 2, np.arange(60)).astype(np.uint8)
    on = surface([grey(image, dtype=np.uint8)])
    assert picture(on, query="viewport=30,30").shape == (20, 30)
    assert picture(on, query="viewport=600,100").shape == (100, 150)
    assert picture(on, query="viewport=1,1").shape == (1, 1)
    assert np.array_equal(picture(on, query="viewport=60,40"), image)
    assert np.array_equal(picture(on, query="viewport=20,10,5,6,20,10"), image[6:16, 5:25])
    assert np.array_equal(picture(on, query="viewport=20,10,5,6,-20,10"), image[6:16, 5:25][:, ::-1])
    assert np.array_equal(picture(on, query="viewport=20,10,5,6,20,-10"), image[6:16, 5:25][::-1])
    assert np.array_equal(picture(on, query="viewport=60,40,,,-60,"), image[:, ::-1])
    assert np.array_equal(picture(on, query="viewport=60,40,50,,,"), image[:, 50:])
    assert np.array_equal(picture(on, query="viewport=10,10,50,30,900,900"), image[30:, 50:])
    # Twice the size: three quarters of the one neighbour, one of the other.
    double = picture(on, query="viewport=120,80,0,0,60,40")
    assert np.abs(double[1::2, 1::2].astype(float) - (image + 0.75)).max() <= 1.5
    # Half the size: the mean of four neighbours, or what a wavelet makes of them, half a pixel aside.
    half = image.reshape(20, 2, 30, 2).mean(axis=(1, 3))
    assert np.abs(picture(on, query="viewport=30,20") - half).max() <= 2


def test_large_frames_are_read_at_the_resolution_that_is_needed() -> None:
    """A circle of full white on black: the low-pass bands of a wavelet overshoot at its edge, and must not wrap."""
    y, x = np.mgrid[:512, :512]
    circle = np.where((x - 250) ** 2 + (y - 250) ** 2 < 150**2, 255, 0)
    for kind, bits in (("u1", 8), ("<u2", 16), ("<u2", 12)):
        image = (circle / 255 * ((1 << bits) - 1)).astype(kind)
        source = grey(image, dtype=kind, BitsStored=bits, HighBit=bits - 1)
        source.WindowCenter, source.WindowWidth = (1 << bits) / 2, 1 << bits
        on = surface([source])
        for side in (256, 100, 64):
            small = picture(on, THUMBNAIL, f"viewport={side},{side}").astype(float)
            assert small.shape == (side, side)
            exact = picture(surface([grey(circle, dtype=np.uint8)]), RENDERED, f"viewport={side},{side},0,0,512,512")
            around = [np.roll(exact, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
            inside, outside = np.min(around, axis=0) == 255, np.max(around, axis=0) == 0
            assert (inside | outside).mean() > 0.8
            assert small[inside].min() > 190
            assert small[outside].max() < 65


def test_enlarging_has_a_limit() -> None:
    on = surface([grey(np.zeros((60, 60)), dtype=np.uint8)])
    assert on.get(f"{RENDERED}?viewport=8000,8000").status_code == 400
    assert picture(on, query="viewport=8000,40").shape == (40, 40)
    assert picture(on, query="viewport=3000,3000").shape == (3000, 3000)


def test_thumbnails_are_128_and_never_larger_than_the_image() -> None:
    assert picture(grey(np.zeros((300, 600)), BitsStored=12), THUMBNAIL).shape == (64, 128)
    assert picture(grey(np.zeros((30, 60)), BitsStored=12), THUMBNAIL).shape == (30, 60)
    assert picture(grey(np.zeros((30, 60)), BitsStored=12), THUMBNAIL, "viewport=120,120").shape == (60, 120)


# --- the pipeline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # PS3.3 C.11.2.1.2, by hand: (x - (c - 0.5)) / (w - 1) + 0.5
        ("2048,4096,linear", [0, 127, 255]),
        ("2048,1,linear", [0, 255, 255]),
        ("2048,4096,linear-exact", [0, 128, 255]),
        ("2048,1024,SIGMOID", [0, 128, 255]),
        ("1e3,2.5e3,Linear", [26, 234, 255]),
        ("+100,.5,linear-exact", [0, 255, 255]),
    ],
)
def test_windows_of_the_request(window: str, expected: list[int]) -> None:
    shown = picture(
        grey([[0, 2048, 4095]], WindowCenter=1, WindowWidth=2), query=f"window={window.replace('+', '%2B')}"
    )
    assert np.abs(shown[0].astype(int) - expected).max() <= 1


def test_windows_of_the_instance_come_after_rescaling() -> None:
    values = [[0, 1024, 1064, 1264, 4000]]
    source = grey(values, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=[40, 300], WindowWidth=[400, 20])
    shown = picture(source)[0].astype(int)
    assert np.abs(shown - [0, 102, 128, 255, 255]).max() <= 1
    source.VOILUTFunction = "SIGMOID"
    assert np.abs(picture(source)[0].astype(int) - [0, 102, 128, 225, 255]).max() <= 1
    source.WindowWidth = [0, 1]  # not valid: from the least to the greatest
    assert picture(source)[0].tolist() == [0, 65, 68, 81, 255]


def test_monochrome1_and_inverse_shapes_turn_it_once() -> None:
    values = np.array([[0, 100, 255]], np.uint8)
    for attributes in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        assert picture(grey(values, dtype=np.uint8, **attributes))[0].tolist() == [255, 155, 0]
    assert picture(grey(values, dtype=np.uint8, PresentationLUTShape="IDENTITY"))[0].tolist() == [0, 100, 255]


def test_without_a_window_wide_samples_are_shown_from_least_to_greatest() -> None:
    assert picture(grey([[1000, 1500, 2000]]))[0].tolist() == [0, 128, 255]
    assert picture(grey([[-1000, 0, 1000]], dtype="<i2"))[0].tolist() == [0, 128, 255]
    assert picture(grey([[7, 7, 7]]))[0].tolist() == [0, 0, 0]
    assert picture(grey([[10, 20, 30]], dtype=np.uint8))[0].tolist() == [10, 20, 30]
    assert picture(grey([[-128, 0, 127]], dtype="i1"))[0].tolist() == [0, 128, 255]


def test_padding_is_black_and_does_not_widen_the_window() -> None:
    values = [[63536, 100, 200, 300]]
    assert picture(grey(values, PixelPaddingValue=63536))[0].tolist() == [0, 0, 128, 255]
    negative = [[-2000, 100, 200, 300]]
    for told in (-2000, 63536):
        source = grey(negative, dtype="<i2")
        source.add_new("PixelPaddingValue", "SS" if told < 0 else "US", told)
        assert picture(source)[0].tolist() == [0, 0, 128, 255]
    limited = grey([[0, 5, 10, 20, 30]], PixelPaddingValue=0, PixelPaddingRangeLimit=9)
    assert picture(limited)[0].tolist() == [0, 0, 0, 128, 255]
    inverse = grey(values, PixelPaddingValue=63536, PhotometricInterpretation="MONOCHROME1")
    assert picture(inverse)[0].tolist() == [0, 255, 127, 0]


def test_bits_above_bits_stored_are_no_image() -> None:
    """An overlay in bit 15 of 12-bit samples."""
    values = np.array([[0, 2048, 4095]], "<u2") | 0x8000
    assert picture(grey(values, BitsStored=12, HighBit=11))[0].tolist() == [0, 128, 255]


def test_lookup_tables_for_modality_and_voi() -> None:
    table = lookup(4, 10, 16, words(0, 1000, 3000, 4000))
    values = [[0, 10, 11, 12, 13, 99]]
    modality = grey(values, ModalityLUTSequence=DicomSequence([table]))
    assert picture(modality)[0].tolist() == [0, 0, 64, 191, 255, 255]
    modality.WindowCenter, modality.WindowWidth = 3000.5, 2
    assert picture(modality)[0].tolist() == [0, 0, 0, 128, 255, 255]
    voi = grey(values, VOILUTSequence=DicomSequence([lookup(4, 10, 12, [4095, 2048, 100, 0])]))
    voi.WindowCenter, voi.WindowWidth = 5, 10
    assert picture(voi)[0].tolist() == [255, 255, 128, 6, 0, 0]
    assert picture(voi, query="window=10.5,4,linear")[0].tolist() == [0, 128, 212, 255, 255, 255]
    bytes_in_words = lookup(4, 10, 8, bytes([0, 50, 100, 255]))
    assert picture(grey(values, VOILUTSequence=DicomSequence([bytes_in_words])))[0].tolist() == [
        0,
        0,
        50,
        100,
        255,
        255,
    ]
    short = lookup(4, 10, 16, [0, 1000])  # contradicts itself: passed over
    assert picture(grey(values, VOILUTSequence=DicomSequence([short])))[0].tolist()[-1] == 255


def palette(
    source: Dataset, red: bytes, green: bytes, blue: bytes, bits: int, first: int = 0, kind: str = ""
) -> Dataset:
    count = 4
    for colour, data in (("Red", red), ("Green", green), ("Blue", blue)):
        setattr(source, f"{colour}PaletteColorLookupTableDescriptor", [count, first, bits])
        setattr(source, f"{kind}{colour}PaletteColorLookupTableData", data)
    return source


def words(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


COLOURS = [[255, 0, 0], [0, 128, 0], [0, 0, 255], [10, 20, 30]]


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("kind", ["8", "8 in words", "16", "segmented 8", "segmented 16"])
def test_palettes(kind: str, first: int) -> None:
    index = np.array([[0, 1, 2, 3, 3]], np.uint8) + first
    source = grey(index, dtype=np.uint8, PhotometricInterpretation="PALETTE COLOR", WindowCenter=1, WindowWidth=1)
    columns = [list(column) for column in zip(*COLOURS, strict=True)]
    if kind == "8":
        palette(source, *map(bytes, columns), bits=8, first=first)
    elif kind == "8 in words":
        palette(source, *(words(*column) for column in columns), bits=8, first=first)
    elif kind == "16":
        palette(source, *(words(*(value * 257 for value in column)) for column in columns), bits=16, first=first)
    elif kind == "segmented 8":
        palette(source, *(bytes([0, 4, *column]) for column in columns), bits=8, first=first, kind="Segmented")
    else:
        data = (words(0, 4, *(value * 257 for value in column)) for column in columns)
        palette(source, *data, bits=16, first=first, kind="Segmented")
    shown = picture(source)[0].tolist()
    assert shown == [*COLOURS, COLOURS[3]]
    assert picture(source, query="viewport=5,2")[0].tolist() == shown
    assert picture(source, query="window=1,1,linear")[0].tolist() == shown, "a palette knows no window"


def test_segments_of_every_kind() -> None:
    """Discrete, linear, and indirect: PS3.3 C.7.9.2."""
    # 0: discrete 0, 100; 8: linear over 4 to 500; indirect: two segments from byte 0 on
    data = words(0, 2, 0, 100, 1, 4, 500, 2, 2, 0, 0)
    source = grey(np.arange(12).reshape(1, 12), dtype=np.uint8, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(source, f"{colour}PaletteColorLookupTableDescriptor", [12, 0, 16])
        setattr(source, f"Segmented{colour}PaletteColorLookupTableData", data)
    entries = np.array([0, 100, 200, 300, 400, 500] * 2) / 65535 * 255
    assert np.array_equal(picture(source)[0, :, 0], np.rint(entries))


def test_colours() -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8)
    colour = {"SamplesPerPixel": 3, "Rows": 6, "Columns": 8, **BYTES}
    by_pixel = made(1, **colour, PhotometricInterpretation="RGB", PlanarConfiguration=0, PixelData=rgb.tobytes())
    assert np.array_equal(picture(by_pixel), rgb)
    wide = made(
        1, **{**colour, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, PhotometricInterpretation="RGB",
        PlanarConfiguration=0, PixelData=(rgb.astype(int) * 4095 // 255).astype("<u2").tobytes(),
    )  # fmt: skip
    assert np.abs(picture(wide).astype(int) - rgb).max() <= 1
    grey_ybr = np.stack([rgb[..., 0], np.full((6, 8), 128), np.full((6, 8), 128)], -1).astype(np.uint8)
    ybr = made(1, **colour, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=0, PixelData=grey_ybr.tobytes())
    assert np.array_equal(picture(ybr), np.repeat(rgb[..., :1], 3, axis=2))
    pairs = np.stack([rgb[:, ::2, 0], rgb[:, 1::2, 0], np.full((6, 4), 128), np.full((6, 4), 128)], -1).astype(np.uint8)
    half = made(1, **colour, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0, PixelData=pairs.tobytes())
    assert np.array_equal(picture(half), np.repeat(rgb[..., :1], 3, axis=2))


@pytest.mark.parametrize("count", [5, 400])
def test_gif_has_the_colours_that_there_are_up_to_256(count: int) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (count, 3), np.uint8)[np.arange(400) % count].reshape(20, 20, 3)
    source = made(
        1, SamplesPerPixel=3, Rows=20, Columns=20, **BYTES, PhotometricInterpretation="RGB", PlanarConfiguration=0,
        PixelData=rgb.tobytes(),
    )  # fmt: skip
    shown = imagecodecs.gif_decode(surface([source]).get(RENDERED, "image/gif").content)
    assert np.abs(shown.astype(int) - rgb).max() <= (0 if count == 5 else 26)
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shown = imagecodecs.gif_decode(surface([grey(values, dtype=np.uint8)]).get(RENDERED, "image/gif").content)
    assert np.array_equal(shown[..., 0], values)


def test_a_gif_of_noise_is_larger_than_the_picture() -> None:
    noise = np.random.default_rng(5).integers(0, 256, (300, 300), np.uint8)
    answer = surface([grey(noise, dtype=np.uint8)]).get(RENDERED, "image/gif")
    assert len(answer.content) > noise.size
    assert np.array_equal(imagecodecs.gif_decode(answer.content)[..., 0], noise)


def test_single_bits_and_floating_point() -> None:
    bits = np.random.default_rng(4).integers(0, 2, (2, 6, 9), np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    source = made(
        1, Rows=6, Columns=9, NumberOfFrames=2, BitsAllocated=1, BitsStored=1, HighBit=0,
        PixelData=packed + b"\0" * (len(packed) % 2),
    )  # fmt: skip
    assert np.array_equal(picture(source, f"{INSTANCE}/frames/2/rendered"), bits[1] * 255)
    floating = made(1, Rows=1, Columns=4, BitsAllocated=32, syntax=EXPLICIT_LE)
    del floating.PixelData, floating.BitsStored, floating.HighBit, floating.PixelRepresentation
    floating.FloatPixelData = np.array([0, 0.5, 1, np.nan], "<f4").tobytes()
    assert picture(floating)[0].tolist() == [0, 128, 255, 0]
    floating.WindowCenter, floating.WindowWidth, floating.VOILUTFunction = 0.5, 0.5, "LINEAR_EXACT"
    assert picture(floating)[0].tolist() == [0, 128, 255, 0]


def test_each_frame_has_its_own_window_and_rescaling() -> None:
    def groups(center: float | None, intercept: float | None) -> Dataset:
        found = Dataset()
        if center is not None:
            found.FrameVOILUTSequence = DicomSequence([item(WindowCenter=center, WindowWidth=1)])
        if intercept is not None:
            found.PixelValueTransformationSequence = DicomSequence([item(RescaleSlope=1, RescaleIntercept=intercept)])
        return found

    frames = np.tile(np.array([[100, 200, 300]], "<u2"), (3, 1, 1))
    source = grey(
        frames,
        WindowCenter=0,
        WindowWidth=1,
        SharedFunctionalGroupsSequence=DicomSequence([groups(250, None)]),
        PerFrameFunctionalGroupsSequence=DicomSequence([groups(150, None), groups(None, None), groups(None, 100)]),
    )
    on = surface([source])
    shown = [picture(on, f"{INSTANCE}/frames/{number}/rendered")[0].tolist() for number in (1, 2, 3)]
    assert shown == [[0, 255, 255], [0, 0, 255], [0, 255, 255]]


def test_attributes_that_make_no_sense_cost_no_picture() -> None:
    source = grey([[0, 1, 2]], RescaleSlope=0, RescaleIntercept=5)
    assert picture(source).shape == (2, 3)
    source = grey([[0, 1, 2]], PresentationLUTShape="ODD", ModalityLUTSequence=DicomSequence([Dataset()]))
    source.VOILUTSequence = DicomSequence([item(LUTDescriptor=[1, 2])])
    source.PerFrameFunctionalGroupsSequence = DicomSequence([])
    assert picture(source)[0].tolist() == [0, 128, 255]
    source = grey([[0, 1, 2]], dtype=np.uint8, PhotometricInterpretation="PALETTE COLOR")
    assert picture(source)[0].tolist() == [0, 1, 2]
    source = made(1, **BYTES, SamplesPerPixel=3, PhotometricInterpretation="MONOCHROME2", PlanarConfiguration=0)
    assert picture(source).shape == (6, 5, 3)


def test_who_asks_for_the_same_picture_at_once_has_it_made_once() -> None:
    import asyncio

    on = surface([made(1)])

    async def exchange() -> list[httpx.Response]:
        transport = httpx.ASGITransport(on.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pacs.example:8080") as client:
            return list(await asyncio.gather(*(client.get(RENDERED) for _ in range(8))))

    answers = asyncio.run(exchange())
    assert {answer.status_code for answer in answers} == {200}
    assert on.backend.frames_read == 1
    assert on.get(RENDERED).content == answers[0].content
    assert on.backend.frames_read == 1


# --- annotations -----------------------------------------------------------------------------------------------------


def written(source: Dataset, query: str, path: str = RENDERED) -> NDArray[np.bool_]:
    """Where an annotation changes a picture."""
    plain, annotated = picture(source, path, query.partition("annotation")[0].rstrip("&")), picture(source, path, query)
    changed = plain != annotated
    return np.asarray(changed if changed.ndim == 2 else changed.any(axis=2))


def corners(changed: NDArray[np.bool_]) -> list[bool]:
    """Top left, top right, bottom left, bottom right: whether anything is there. Nothing is in the middle."""
    rows, columns = changed.shape[0] // 2, changed.shape[1] // 2
    assert not changed[rows - 2 : rows + 2].any()
    assert not changed[:, columns - 2 : columns + 2].any()
    return [
        bool(changed[down, right].any())
        for down in (slice(None, rows), slice(rows, None))
        for right in (slice(None, columns), slice(columns, None))
    ]


def captioned(shade: int = 0, **attributes: Any) -> Dataset:
    values = np.full((200, 300), shade, np.uint8)
    return grey(values, dtype=np.uint8, **attributes)


@pytest.mark.parametrize("shade", [0, 128, 255])
def test_annotations_stand_in_the_corners_and_can_be_read_on_any_shade(shade: int) -> None:
    source = captioned(shade, KVP=120, SliceThickness=5)
    assert corners(written(source, "annotation=patient")) == [True, False, False, False]
    assert corners(written(source, "annotation=technique")) == [False, True, True, True]
    assert corners(written(source, "annotation=technique, patient")) == [True] * 4
    shown = picture(source, query="viewport=900,600&annotation=patient")[:200, :400].astype(int)
    # White letters with a black edge: both are there, whatever is behind.
    assert (shown > 240).sum() > 100
    assert (shown < 15).sum() > 100
    assert picture(source).tolist() == np.full((200, 300), shade).tolist()


@pytest.mark.parametrize("accept", ["image/jpeg", "image/png", "image/gif"])
def test_annotations_are_in_every_type_and_are_another_representation(accept: str) -> None:
    on = surface([captioned()])
    plain, patient, both = (
        on.get(RENDERED + query, accept) for query in ("", "?annotation=patient", "?annotation=patient,technique")
    )
    assert len({answer.headers["etag"] for answer in (plain, patient, both)}) == 3
    assert len({answer.content for answer in (plain, patient, both)}) == 3
    assert on.get(RENDERED + "?annotation=patient", accept, If_None_Match=patient.headers["etag"]).status_code == 304
    assert on.get(RENDERED + "?annotation=patient", accept, If_None_Match=plain.headers["etag"]).status_code == 200
    assert on.get(RENDERED + "?annotation=technique,patient", accept).content == both.content


def test_annotations_say_what_the_attributes_say() -> None:
    first = picture(captioned(), query="annotation=patient")
    assert np.array_equal(first, picture(captioned(Modality="CT", KVP=90), query="annotation=patient"))
    for attributes in ({"PatientName": "Test^Anne"}, {"PatientID": "ID-2"}, {"PatientSex": "F"}, {"PatientName": ""}):
        assert not np.array_equal(first, picture(captioned(**attributes), query="annotation=patient")), attributes
    first = picture(captioned(), query="annotation=technique")
    assert np.array_equal(first, picture(captioned(PatientName="Other^Name"), query="annotation=technique"))
    for attributes in (
        *({"Modality": "CT"}, {"StudyDate": "20200101"}, {"AcquisitionDate": "20200101"}, {"InstanceNumber": 2}),
        *({"KVP": 120}, {"RepetitionTime": 500}, {"SliceThickness": 2}, {"SliceLocation": -3.5}),
        *({"SeriesDescription": "Axial"}, {"PixelSpacing": [0.5, 0.5]}, {"ImagePositionPatient": [1, 2, 3]}),
        {"WindowCenter": 1000, "WindowWidth": 4000},
    ):
        assert not np.array_equal(first, picture(captioned(**attributes), query="annotation=technique")), attributes
    # The window is that of the picture.
    asked = [picture(captioned(), query=f"annotation=technique&window={n},1,linear") for n in (1000, 2000)]
    assert not np.array_equal(*asked)


def test_each_frame_has_its_own_annotation() -> None:
    groups = []
    for location in (1, 2):
        position = item(PlanePositionSequence=DicomSequence([item(ImagePositionPatient=[0, 0, location])]))
        groups.append(position)
    source = grey(np.zeros((2, 200, 300)), dtype=np.uint8, PerFrameFunctionalGroupsSequence=DicomSequence(groups))
    on = surface([source])
    first, second = (picture(on, f"{INSTANCE}/frames/{n}/rendered", "annotation=technique") for n in (1, 2))
    assert (first[100:] != second[100:]).any(), "the position differs"
    assert (first[:100] != second[:100]).any(), "the frame's number differs"
    parts = split(on.get(f"{INSTANCE}/frames/1,2/rendered?annotation=technique", "image/png"))
    for (_, body), shown in zip(parts, (first, second), strict=True):
        assert np.array_equal(imagecodecs.png_decode(body), shown)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize(
    "name",
    [
        *("M\u00fcller^\u017baneta", "\u0416\u0443\u043a^\u0410\u043d\u043d\u0430", "\u0394\u03b9\u03bf\u03bd"),
        *("\u05e9\u05dc\u05d5\u05dd", "\u0645\u062d\u0645\u062f", "\u0e01\u0e23\u0e38\u0e07"),
        *("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce", "=\u5c71\u7530^\u592a\u90ce", "\U0001f600\ufffe"),
        *("a\u202eb\u0301\u200d\u0000", "^" * 70, "W" * 5000, "e\u0301" * 40),
    ],
)
def test_names_in_any_script_are_drawn(name: str) -> None:
    source = captioned(SpecificCharacterSet="ISO_IR 192", PatientID="")
    del source.PatientName
    source.add_new("PatientName", "PN", name)
    changed = written(source, "annotation=patient")
    assert corners(changed) == [name.strip("^") != "", False, False, False]
    assert np.array_equal(changed, written(source, "annotation=patient"))


def test_letters_that_no_font_has_are_marked() -> None:
    def of(name: str) -> NDArray[np.uint8]:
        return picture(captioned(SpecificCharacterSet="ISO_IR 192", PatientName=name), query="annotation=patient")

    assert not np.array_equal(of("A\u5c71B"), of("AB"))
    assert np.array_equal(of("A\u5c71B"), of("A\u7530B"))
    assert not np.array_equal(of("M\u00fcller"), of("Muller"))
    assert np.array_equal(of("Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"), of("Yamada^Tarou"))


def test_annotations_grow_with_the_picture_and_stay_in_it() -> None:
    source = captioned(PatientName="Very^Long" * 5, SeriesDescription="x" * 64, StudyDescription="y" * 64, KVP=120)
    for query in ("viewport=60,40&", "viewport=1200,800&", "viewport=300,200,0,0,-300,-200&"):
        changed = written(source, query + "annotation=patient,technique")
        assert all(corners(changed)), query
    small, large = (written(source, f"viewport={w},{w}&annotation=patient") for w in (300, 1500))
    heights = [np.ptp(np.flatnonzero(changed.any(axis=1))) / len(changed) for changed in (small, large)]
    assert abs(heights[0] - heights[1]) < 0.1
    tiny = grey(np.zeros((3, 4)), dtype=np.uint8)
    assert picture(tiny, query="annotation=patient,technique").shape == (3, 4)


def test_colour_is_annotated_and_thumbnails_are_not() -> None:
    rgb = np.full((200, 300, 3), (200, 30, 30), np.uint8)
    colour = made(
        1, **{**BYTES, "SamplesPerPixel": 3, "Rows": 200, "Columns": 300}, PhotometricInterpretation="RGB",
        PlanarConfiguration=0, PixelData=rgb.tobytes(),
    )  # fmt: skip
    assert corners(written(colour, "annotation=patient")) == [True, False, False, False]
    assert np.array_equal(picture(colour, THUMBNAIL), picture(colour, THUMBNAIL, "annotation=patient"))
