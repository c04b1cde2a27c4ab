"""WADO-URI over the fakes (PS3.18 §9, URI-01, URI-02)."""

import io

import imagecodecs
import pydicom
import pytest

from gateway.domain.syntaxes import EXPLICIT_LE, HTJ2K_LOSSLESS_RPCL
from tests.surfaces.fakes import DATASTORE, Surface, document, jpeg_instance, made, surface

UIDS = "studyUID=1.2.3&seriesUID=1.2.3.4&objectUID=1.2.3.4.{}"


def ask(on: Surface, number: int = 1, more: str = "", base: str = "/dicomweb", accept: str | None = None) -> object:
    return on.get(f"{base}?requestType=WADO&{UIDS.format(number)}{more and '&' + more}", accept)


@pytest.fixture
def on() -> Surface:
    return surface([made(1), made(2, NumberOfFrames=3), jpeg_instance(3), document(4)])


def test_an_instance_as_a_file(on: Surface) -> None:
    for base in ("/dicomweb", "/dicomweb/", f"/datastore/{DATASTORE}/"):
        for kind in ("contentType=application/dicom", "contentType=application%2Fdicom&transferSyntax=" + EXPLICIT_LE):
            answer = ask(on, 1, kind, base)
            assert answer.status_code == 200
            assert answer.headers["content-type"] == f"application/dicom; transfer-syntax={EXPLICIT_LE}"
            read = pydicom.dcmread(io.BytesIO(answer.content))
            assert read.PixelData == on.backend.held[0].data_set.PixelData
    stored = ask(on, 1, "contentType=application/dicom&transferSyntax=*")
    assert pydicom.dcmread(io.BytesIO(stored.content)).file_meta.TransferSyntaxUID == HTJ2K_LOSSLESS_RPCL


def test_the_default_type(on: Surface) -> None:
    kinds = [ask(on, number).headers["content-type"].partition(";")[0] for number in (1, 2, 3, 4)]
    assert kinds == ["image/jpeg", "application/dicom", "image/jpeg", "application/dicom"]
    # What a browser accepts means nothing here.
    assert ask(on, 1, accept="text/html").headers["content-type"] == "image/jpeg"


def test_pictures(on: Surface) -> None:
    def shape(more: str, number: int = 1) -> tuple[int, ...]:
        answer = ask(on, number, f"contentType=image/png&{more}")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
        return tuple(imagecodecs.png_decode(answer.content).shape[:2])

    assert shape("") == (6, 5)
    assert shape("frameNumber=3", 2) == (6, 5)
    assert shape("rows=12") == (12, 10)
    assert shape("columns=20") == (24, 20)
    assert shape("rows=3&columns=100") == (3, 2)
    assert shape("region=0,0,0.4,0.5") == (3, 2)
    assert shape("region=0,0,0.4,0.5&rows=6") == (6, 4)
    assert ask(on, 1, "contentType=image/png&windowCenter=5&windowWidth=2").content != ask(
        on, 1, "contentType=image/png"
    ).content
    assert ask(on, 1, "contentType=image/jpg").headers["content-type"] == "image/jpeg"
    assert ask(on, 1, "contentType=application/x-unheard-of,image/gif").headers["content-type"] == "image/gif"
    rough, fine = (ask(on, 1, f"imageQuality={quality}").content for quality in (1, 100))
    assert len(rough) < len(fine)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("requestType=WADO&studyUID=1.2.3&seriesUID=1.2.3.4", 400),
        ("requestType=WADO&studyUID=1.2.3&objectUID=1.2.3.4.1", 400),
        ("requestType=WADO&seriesUID=1.2.3.4&objectUID=1.2.3.4.1", 400),
        ("requestType=WADA&" + UIDS.format(1), 400),
        (UIDS.format(1), 400),
        ("", 404),
        ("requestType=WADO&" + UIDS.format(9), 404),
        ("requestType=WADO&" + UIDS.format("x"), 400),
        *(
            (f"requestType=WADO&{UIDS.format(1)}&{more}", status)
            for more, status in (
                ("contentType=text/html", 406),
                ("contentType=application/x-unheard-of", 406),
                ("contentType=image/jp2", 406),
                ("contentType=application/dicom&transferSyntax=1.2.840.10008.1.2.4.50", 406),
                ("contentType=application/dicom&transferSyntax=x,y", 400),
                ("anonymize=yes", 400),
                ("frameNumber=0", 400),
                ("frameNumber=2", 404),
                ("rows=0", 400),
                ("rows=99999999", 400),
                ("columns=x", 400),
                ("region=0,0,1", 400),
                ("region=0.5,0,0.5,1", 400),
                ("region=0,0,1,1.5", 400),
                ("windowCenter=5", 400),
                ("windowCenter=5&windowWidth=0", 400),
                ("windowCenter=5&windowWidth=x", 400),
                ("imageQuality=0", 400),
                ("charset=latin", 400),
            )
        ),
    ],
)
def test_refusals(on: Surface, query: str, status: int) -> None:
    answer = on.get(f"/dicomweb?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
