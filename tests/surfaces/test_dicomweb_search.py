"""QIDO-RS over the fakes: what a request becomes, and what goes back (QIDO-01..31); the list of conflicts."""

from datetime import UTC, datetime

import pytest

from gateway.dicomweb.exchange import Request
from gateway.dicomweb.qido import read_query
from gateway.domain.errors import InvalidInput
from gateway.domain.ids import ImageSetId
from gateway.domain.model import ConflictEntry
from gateway.domain.native_model import from_xml
from gateway.domain.query import DicomQuery, Key, Level
from tests.surfaces.fakes import DATASTORE, made, split, surface

OHIF_LIST = "limit=101&offset=0&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"


def query_of(text: str, level: Level = Level.STUDY, study: str | None = None, series: str | None = None) -> DicomQuery:
    async def receive() -> dict[str, object]:
        return {}

    async def send(message: object) -> None: ...

    services = surface().app._services
    scope = {"method": "GET", "headers": [], "query_string": text.encode(), "scheme": "http"}
    return read_query(Request(services, scope, receive), level, study, series)


def test_what_ohif_asks() -> None:
    query = query_of(
        OHIF_LIST + "&PatientName=*anna*&00100020=a%2Fb&StudyInstanceUID=1.2%5C1.3&ModalitiesInStudy=CT,MR"
        "&StudyDate=19700102-20261231"
    )
    assert (query.limit, query.offset, query.fuzzy, query.include_all) == (101, 0, False, False)
    assert query.include == {(0x00081030,), (0x00080060,), (0x00080090,), (0x00100030,)}
    assert query.keys == (
        Key((0x00100010,), "PN", ("*anna*",)),
        Key((0x00100020,), "LO", ("a/b",)),
        Key((0x0020000D,), "UI", ("1.2", "1.3")),
        Key((0x00080061,), "CS", ("CT", "MR")),
        Key((0x00080020,), "DA", ("19700102-20261231",)),
    )


def test_what_others_ask() -> None:
    query = query_of("StudyInstanceUID=1.2,1.3&includeField=all&fuzzyMatching=true&x=1&&PatientID=")
    assert query.keys == (Key((0x0020000D,), "UI", ("1.2", "1.3")), Key((0x00100020,), "LO"))
    assert (query.include_all, query.fuzzy, query.limit) == (True, True, 10_000)
    # repeated and listed; unknown ones are dropped (QIDO-20, QIDO-21)
    query = query_of("includefield=PatientName,nonsense&includefield=00400275.00400009&includefield=0010010")
    assert query.include == {(0x00100010,), (0x00400275, 0x00400009)}
    assert query_of("limit=5000000").limit == 10_000
    query = query_of("RequestAttributesSequence.ScheduledProcedureStepID=7,8", Level.SERIES, "1.2")
    assert query.keys == (Key((0x0020000D,), "UI", ("1.2",)), Key((0x00400275, 0x00400009), "SH", ("7,8",)))
    assert query_of("imageSetId=" + "a" * 32).image_set == "a" * 32
    assert query_of("asOf=2026-01-01T00:00:00Z").as_of == datetime(2026, 1, 1, tzinfo=UTC)
    assert query_of("SeriesInstanceUID=1.2.3&StudyInstanceUID=1.2", Level.SERIES, "1.2").keys[1].values == ("1.2.3",)


@pytest.mark.parametrize(
    "text",
    [
        "PatientID=1&PatientID=2",
        "PatientID=1&00100020=1",
        "PatientNam=x",
        "0010ffff=x",
        "Modality.PatientID=x",
        "limit=-1",
        "limit=",
        "limit=x",
        "limit=1&limit=2",
        "offset=1.5",
        "offset=%D9%A3",
        "fuzzymatching=yes",
        "fuzzymatching=true&fuzzyMatching=true",
        "imageSetId=1",
        "asOf=2026",
        "version=1",
        "PatientName=%FF",
    ],
)
def test_refusals(text: str) -> None:
    with pytest.raises(InvalidInput):
        query_of(text)
    assert surface([made(1)]).get(f"/dicomweb/studies?{text}").status_code == 400


def test_a_key_in_the_path_and_in_the_query() -> None:
    assert len(query_of("StudyInstanceUID=1.2", Level.SERIES, "1.2").keys) == 1
    with pytest.raises(InvalidInput, match="path"):
        query_of("StudyInstanceUID=1.3", Level.SERIES, "1.2")


def test_rows_of_every_resource() -> None:
    on = surface(
        [
            made(1),
            made(2),
            made(3, SeriesInstanceUID="1.2.3.5", Modality="CT"),
            made(4, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1"),
        ]
    )
    root = "http://pacs.example:8080/dicomweb"
    counts = {
        "/studies": 2,
        "/series": 3,
        "/instances": 4,
        "/studies/1.2.3/series": 2,
        "/studies/1.2.3/instances": 3,
        "/studies/1.2.3/series/1.2.3.4/instances": 2,
        "/studies?ModalitiesInStudy=CT": 1,
        "/studies?PatientName=TEST*": 2,
        "/studies/1.2.3/series?Modality=CT": 1,
        "/studies?limit=0": 0,
        "/studies?limit=1&offset=1": 1,
        "/studies/": 2,
    }
    for path, count in counts.items():
        answer = on.get("/dicomweb" + path, "application/dicom+json")
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "application/dicom+json"
        assert answer.headers["cache-control"] == "no-store"
        rows = answer.json()
        assert len(rows) == count, path
        assert all([*row] == sorted(row) for row in rows)
    assert on.get("/dicomweb/studies").json()[0]["00081190"] == {"vr": "UR", "Value": [f"{root}/studies/1.2.3"]}
    series = on.get("/dicomweb/series").json()[1]
    assert series["00081190"]["Value"] == [f"{root}/studies/1.2.3/series/1.2.3.5"]
    assert series["00201209"]["Value"] == [1]
    instance = on.get(f"/datastore/{DATASTORE}/studies/1.2.3/instances").json()[0]
    assert instance["00081190"]["Value"] == [
        f"http://pacs.example:8080/datastore/{DATASTORE}/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.1"
    ]
    assert on.get("/dicomweb/studies?Modality=CT").status_code == 400


def test_more_than_the_limit_is_told() -> None:
    on = surface([made(number, StudyInstanceUID=f"1.2.{number}") for number in range(1, 6)])
    answer = on.get("/dicomweb/studies?limit=2&offset=1")
    assert answer.headers["warning"] == '299 pacs.example:8080 "There are 2 additional results that can be requested"'
    assert "warning" not in on.get("/dicomweb/studies").headers
    small = surface([made(number, StudyInstanceUID=f"1.2.{number}") for number in range(1, 4)], max_results=2)
    answer = small.get("/dicomweb/studies?limit=100")
    assert len(answer.json()) == 2
    assert "1 additional" in answer.headers["warning"]


def test_nothing_found() -> None:
    answer = surface().get("/dicomweb/studies?PatientID=none")
    assert (answer.status_code, answer.json()) == (200, [])
    answer = surface(empty_qido_status=204).get("/dicomweb/studies?PatientID=none")
    assert (answer.status_code, answer.content) == (204, b"")
    assert surface().get("/dicomweb/studies/9.9/series").json() == []
    assert surface().get("/dicomweb/studies/nonsense/series").status_code == 400


def test_accept() -> None:
    on = surface([made(1)])
    for accept in (None, "application/json", "application/dicom+json, application/json", "*/*"):
        assert on.get("/dicomweb/studies", accept).headers["content-type"] == "application/dicom+json"
    assert on.get("/dicomweb/studies", "text/html").status_code == 406
    many = surface([made(number, StudyInstanceUID=f"1.2.{number}") for number in range(1, 9)])
    packed = many.ask("GET", "/dicomweb/studies", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.json()) == 8


def test_an_image_set_beside_the_primary_one() -> None:
    on = surface([made(1)])
    on.backend.add(made(2, SeriesInstanceUID="1.2.3.9"), "b" * 32)
    assert len(on.get("/dicomweb/series").json()) == 1
    (found,) = on.get("/dicomweb/series?imageSetId=" + "b" * 32).json()
    assert found["00081190"]["Value"][0].endswith("/series/1.2.3.9?imageSetId=" + "b" * 32)
    assert on.get("/dicomweb/studies/1.2.3/series/1.2.3.9/metadata").status_code == 404
    assert on.get("/dicomweb/studies/1.2.3/series/1.2.3.9/metadata?imageSetId=" + "b" * 32).status_code == 200


def test_conflicts() -> None:
    on = surface()
    at = datetime(2026, 11, 5, 12, 0, tzinfo=UTC)
    on.intake.listed = [
        ConflictEntry(ImageSetId(f"{number:032}"), 1, "1.2", "1.3", "PatientID", at, "stow", 4) for number in range(3)
    ]
    first = on.get(f"/datastore/{DATASTORE}/conflicts?maxResults=2").json()
    assert first["conflicts"][0] == {
        "imageSetId": f"{0:032}",
        "version": 1,
        "studyInstanceUID": "1.2",
        "seriesInstanceUID": "1.3",
        "attribute": "PatientID",
        "instances": 4,
        "at": "2026-11-05T12:00:00.000Z",
        "source": "stow",
    }
    last = on.get(f"/datastore/{DATASTORE}/conflicts?maxResults=2&nextToken={first['nextToken']}").json()
    assert len(last["conflicts"]) == 1
    assert "nextToken" not in last
    assert on.get(f"/datastore/{DATASTORE}/conflicts?maxResults=0").status_code == 400


def test_rows_as_xml() -> None:
    on = surface([made(1), made(2, StudyInstanceUID="1.2.9", PatientName="Jörg^Anna")])
    for accept in ('multipart/related; type="application/dicom+xml"', "application/dicom+xml"):
        answer = on.get("/dicomweb/studies?limit=5", accept)
        assert answer.headers["content-type"].startswith('multipart/related; type="application/dicom+xml"; boundary=')
        parts = split(answer)
        rows = on.get("/dicomweb/studies?limit=5").json()
        assert [head["Content-Location"] for head, _ in parts] == [row["00081190"]["Value"][0] for row in rows]
        names = [from_xml(body)["00100010"]["Value"] for _, body in parts]
        assert names == [row["00100010"]["Value"] for row in rows]
    nothing = on.get("/dicomweb/studies?PatientID=none", "application/dicom+xml")
    assert (nothing.status_code, nothing.content) == (204, b"")
