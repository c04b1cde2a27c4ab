"""C-FIND: what the index is asked, and how its rows come back."""

import asyncio
import subprocess
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation

from demo.network import undisturbed
from gateway.dimse.find import Find
from gateway.dimse.status import find_status, store_status
from gateway.domain import errors
from gateway.domain.ids import DatastoreId
from gateway.domain.query import DicomQuery, Key, Level
from tests.surfaces.test_dimse_fakes import (
    DEFAULT,
    EXPLICIT,
    IMPLICIT,
    PATIENT_FIND,
    STUDY_FIND,
    VERIFICATION,
    WAIT_S,
    Raw,
    Rows,
    cancel_command,
    echo_command,
    explicit,
    find_command,
    implicit,
    message,
    running,
)

NAME, ID, STUDY, SERIES, DATE, MODALITIES = 0x00100010, 0x00100020, 0x0020000D, 0x0020000E, 0x00080020, 0x00080061
LEVEL = 0x00080052


def identifier(level: str | None = "STUDY", **keys: Any) -> Dataset:
    dataset = Dataset()
    if level is not None:
        dataset.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = EXPLICIT) -> bytes:
    from pydicom.filebase import DicomBytesIO

    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, syntax == IMPLICIT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(out, dataset)
    return out.getvalue()


def find(data: Dataset | bytes, root: str = STUDY_FIND, syntax: str = EXPLICIT) -> Find:
    body = data if isinstance(data, bytes) else encoded(data, syntax)
    return Find(body, root, syntax, datastore=DatastoreId("s"), retrieve_ae="GATEWAY")


def asked(data: Dataset | bytes, root: str = STUDY_FIND, syntax: str = EXPLICIT) -> DicomQuery:
    return find(data, root, syntax).query(limit=10, offset=0)


def answered(question: Dataset | bytes, row: dict[str, Any], syntax: str = EXPLICIT) -> tuple[Dataset, bool]:
    body, is_complete = find(question, syntax=syntax).response(row)
    return read_dataset(BytesIO(body), syntax == IMPLICIT, True), is_complete


def row(**values: Any) -> dict[str, Any]:
    """DICOM JSON of a data set with these attributes."""
    return identifier(None, **values).to_json_dict()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_keys_and_return_keys(syntax: str) -> None:
    query = asked(
        identifier(
            PatientName="DOE^J*",
            PatientID="",
            StudyDate="20200101-20201231",
            StudyInstanceUID=["1.2", "1.3"],
            ModalitiesInStudy=["CT", "MR"],
            AccessionNumber=" A1 ",
            StudyDescription="*",
        ),
        syntax=syntax,
    )
    assert (query.datastore, query.level, query.limit, query.offset) == (DatastoreId("s"), Level.STUDY, 10, 0)
    assert (query.combined_datetime, query.fuzzy) == (False, False)
    assert set(query.keys) == {
        Key((NAME,), "PN", ("DOE^J*",)),
        Key((DATE,), "DA", ("20200101-20201231",)),
        Key((STUDY,), "UI", ("1.2", "1.3")),
        Key((MODALITIES,), "CS", ("CT", "MR")),
        Key((0x00080050,), "SH", ("A1",)),
    }
    assert query.include == {(NAME,), (ID,), (DATE,), (STUDY,), (MODALITIES,), (0x00080050,), (0x00081030,)}


@pytest.mark.parametrize(
    "data",
    [
        explicit(DATE, "DA", "*") + explicit(LEVEL, "CS", "STUDY"),
        explicit(DATE, "DA", "  ") + explicit(LEVEL, "CS", "study "),
        explicit(DATE, "DA", "**") + explicit(LEVEL, "CS", "STUDY\0"),
        explicit(0x00080000, "UL", bytes(4)) + explicit(DATE, "DA", "") + explicit(LEVEL, "CS", " Study"),
        explicit(DATE, "DA", "")
        + explicit(LEVEL, "CS", "STUDY")
        + explicit(0x00090010, "LO", "ACME")
        + explicit(0x00091001, "LO", "x"),
    ],
)
def test_what_devices_send_for_universal_keys(data: bytes) -> None:
    query = asked(data)
    assert (query.level, query.keys, query.include) == (Level.STUDY, (), {(DATE,)})


def test_numbers_and_tags_as_keys() -> None:
    data = explicit(LEVEL, "CS", "IMAGE") + explicit(0x00200013, "IS", "7 ") + explicit(0x00280010, "US", b"\0\2")
    assert asked(data).keys == (Key((0x00200013,), "IS", ("7",)), Key((0x00280010,), "US", ("512",)))
    pointer = explicit(LEVEL, "CS", "IMAGE") + explicit(0x00280009, "AT", b"\x18\0\x63\x10")
    assert asked(pointer).keys == (Key((0x00280009,), "AT", ("00181063",)),)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_sequence_keys(syntax: str) -> None:
    item = Dataset()
    item.ScheduledProcedureStepID, item.RequestedProcedureID = "S1", ""
    query = asked(identifier("SERIES", RequestAttributesSequence=Sequence([item])), syntax=syntax)
    assert query.keys == (Key((0x00400275, 0x00400009), "SH", ("S1",)),)
    assert query.include == {(0x00400275, 0x00400009), (0x00400275, 0x00401001)}
    universal = asked(identifier("SERIES", RequestAttributesSequence=Sequence([])), syntax=syntax)
    assert (universal.keys, universal.include) == ((), {(0x00400275,)})


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (b"ISO_IR 100", "Müller".encode("latin-1")),
        (b"ISO_IR 192", "Müller".encode()),
        (b"", "Müller".encode()),
        (None, "Müller".encode()),
        (None, "Müller".encode("latin-1")),
        (b"ISO 2022 IR 100", "Müller".encode("latin-1")),
        (b"ISO_IR 6\\ISO 2022 IR 100", b"\x1b-AM\xfcller"),
    ],
)
def test_text_of_the_request_reads_in_its_character_set(charset: bytes | None, name: bytes) -> None:
    head = b"" if charset is None else explicit(0x00080005, "CS", charset)
    query = asked(head + explicit(LEVEL, "CS", "STUDY") + explicit(NAME, "PN", name))
    assert query.keys == (Key((NAME,), "PN", ("Müller",)),)


def test_japanese_name() -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    question = identifier(PatientName="")
    question.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    question.PatientName = "=山田*"
    assert asked(question).keys == (Key((NAME,), "PN", ("=山田*",)),)
    answer, _ = answered(question, row(PatientName=name))
    assert answer.SpecificCharacterSet == ["", "ISO 2022 IR 87"]
    assert answer.PatientName == name
    unknown, _ = answered(question, row(PatientName="Müller^Ж"))
    assert unknown.PatientName == "Müller^Ж"


@pytest.mark.parametrize(
    ("charset", "name", "expected"),
    [
        ("ISO_IR 100", "Müller^Jörg", "ISO_IR 100"),
        ("ISO_IR 100", "Жук^Иван", "ISO_IR 192"),
        ("ISO_IR 144", "Жук^Иван", "ISO_IR 144"),
        ("GB18030", "王^小东", "GB18030"),
        ("ISO_IR 192", "王^小东", "ISO_IR 192"),
        (None, "DOE^JOHN", "ISO_IR 192"),
        (None, "Müller", "ISO_IR 192"),
    ],
)
def test_character_set_of_the_response_is_stated_and_loses_nothing(
    charset: str | None, name: str, expected: str
) -> None:
    question = identifier(PatientName="")
    if charset:
        question.SpecificCharacterSet = charset
    answer, _ = answered(question, row(PatientName=name, PatientID="1"))
    assert (answer.SpecificCharacterSet, str(answer.PatientName)) == (expected, name)


def test_unknown_character_set_is_no_error() -> None:
    head = explicit(0x00080005, "CS", "KLINGON")
    query = asked(head + explicit(LEVEL, "CS", "STUDY") + explicit(NAME, "PN", b"M\xfcller"))
    assert query.keys == (Key((NAME,), "PN", ("Müller",)),)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_response_holds_what_was_asked_and_no_more(syntax: str) -> None:
    question = identifier(PatientName="", PatientID="", StudyDate="", StudyDescription="", ModalitiesInStudy="")
    full = row(
        PatientName="DOE^JOHN",
        StudyDate="20240102",
        ModalitiesInStudy=["CT", "MR"],
        StudyInstanceUID="1.2.3",
        AccessionNumber="secret",
    )
    answer, is_complete = answered(question, full, syntax)
    assert is_complete
    assert {element.keyword: element.value for element in answer} == {
        "SpecificCharacterSet": "ISO_IR 192",
        "QueryRetrieveLevel": "STUDY",
        "RetrieveAETitle": "GATEWAY",
        "PatientName": "DOE^JOHN",
        "PatientID": "",
        "StudyDate": "20240102",
        "StudyDescription": "",
        "ModalitiesInStudy": ["CT", "MR"],
    }
    assert list(answer.keys()) == sorted(answer.keys())


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_every_value_representation(syntax: str) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "77477000", "Tomographie é"
    values = {
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SOPInstanceUID": "1.2.345",
        "ContentTime": "101010.5",
        "AcquisitionDateTime": "20240101101010",
        "PatientAge": "040Y",
        "PatientComments": "two\r\nlines \\ é",
        "PixelSpacing": [0.123456789012345, 5],
        "InstanceNumber": "17",
        "Rows": 512,
        "SmallestImagePixelValue": None,
        "ReferencePixelX0": -70000,
        "FrameIncrementPointer": 0x00181063,
        "RecommendedDisplayFrameRateInFloat": 2.5,
        "ProcedureCodeSequence": Sequence([item]),
        "RetrieveURL": "http://h/a",
        "LongCodeValue": "x" * 70_000,
        "ICCProfile": b"\1\2\3\4",
        "RetrieveAETitle": "OTHER",
        "SimpleFrameList": [1, 2, 3],
        "EventTimeOffset": 1.25,
    }
    source = Dataset()
    for keyword, value in values.items():
        if value is not None and keyword not in ("ReferencePixelX0", "RecommendedDisplayFrameRateInFloat"):
            setattr(source, keyword, value)
    json = source.to_json_dict()
    question = identifier("IMAGE")
    for keyword in values:
        setattr(question, keyword, None if keyword != "ProcedureCodeSequence" else [])
    answer, is_complete = answered(question, json, syntax)
    assert not is_complete  # those that the row lacks and that no table promises
    for element in source:
        if element.keyword == "RetrieveAETitle":
            assert answer.RetrieveAETitle == "GATEWAY"
        elif element.keyword == "PixelSpacing":
            assert [float(value) for value in answer.PixelSpacing] == pytest.approx([0.123456789012345, 5], abs=1e-13)
        else:
            assert answer[element.tag].value == element.value, element.keyword
            assert answer[element.tag].VR == element.VR


def test_values_that_do_not_fit_are_left_empty() -> None:
    broken = {
        "00280010": {"vr": "US", "Value": [99999]},
        "00200013": {"vr": "IS", "Value": [None]},
        "00080018": {"vr": "UI", "Value": [None]},
        "00100010": {"vr": "PN", "Value": [None]},
        "00280009": {"vr": "AT", "Value": ["oops"]},
        "00080008": {"vr": "CS"},
    }
    question = identifier("IMAGE", Rows=None, InstanceNumber="", SOPInstanceUID="", PatientName="", ImageType="")
    question.FrameIncrementPointer = None
    answer, is_complete = answered(question, broken)
    assert is_complete
    assert all(answer[int(key, 16)].is_empty for key in broken)


def test_only_the_keys_asked_for_inside_a_sequence() -> None:
    nested, wanted = Dataset(), Dataset()
    nested.ScheduledProcedureStepID, nested.RequestedProcedureID = "S1", "R1"
    wanted.RequestedProcedureID = ""
    json = row(RequestAttributesSequence=Sequence([nested]))
    answer, _ = answered(identifier("SERIES", RequestAttributesSequence=Sequence([wanted])), json)
    assert [element.keyword for element in answer.RequestAttributesSequence[0]] == ["RequestedProcedureID"]
    whole, _ = answered(identifier("SERIES", RequestAttributesSequence=Sequence([])), json)
    assert len(whole.RequestAttributesSequence[0]) == 2


def test_unsupported_keys_are_left_out_and_told() -> None:
    answer, is_complete = answered(identifier(PatientID="", Modality="", InstanceAvailability=""), row(PatientID="1"))
    assert not is_complete
    assert "Modality" not in answer
    assert answer.InstanceAvailability == "ONLINE"


@pytest.mark.parametrize(
    ("root", "level", "keys", "relational"),
    [
        (STUDY_FIND, "STUDY", {}, False),
        (PATIENT_FIND, "PATIENT", {}, False),
        (PATIENT_FIND, "STUDY", {}, True),
        (PATIENT_FIND, "STUDY", {"PatientID": "1"}, False),
        (STUDY_FIND, "SERIES", {}, True),
        (STUDY_FIND, "SERIES", {"StudyInstanceUID": "1.2"}, False),
        (STUDY_FIND, "SERIES", {"StudyInstanceUID": ["1.2", "1.3"]}, True),
        (STUDY_FIND, "IMAGE", {"StudyInstanceUID": "1.2"}, True),
        (STUDY_FIND, "IMAGE", {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}, False),
    ],
)
def test_a_query_without_its_parents_is_answered_as_relational(
    root: str, level: str, keys: dict[str, Any], relational: bool
) -> None:
    question = find(identifier(level, **keys), root)
    assert question.relational == relational
    assert question.query(limit=1, offset=0).level == Level(level)


@pytest.mark.parametrize(
    ("data", "root", "comment"),
    [
        (explicit(DATE, "DA", ""), STUDY_FIND, "is missing"),
        (explicit(LEVEL, "CS", ""), STUDY_FIND, "is missing"),
        (explicit(LEVEL, "CS", "FRAME"), STUDY_FIND, "is not PATIENT"),
        (explicit(LEVEL, "CS", "PATIENT"), STUDY_FIND, "does not exist in Study Root"),
        (b"garbage that is no data set", STUDY_FIND, ""),
        (explicit(LEVEL, "CS", "STUDY")[:-3], STUDY_FIND, ""),
        (
            explicit(LEVEL, "CS", "SERIES") + explicit(0x00400275, "SQ", b"\xfe\xff\0\xe0\0\0\0\0" * 2),
            STUDY_FIND,
            "more than one item",
        ),
    ],
)
def test_bad_identifiers(data: bytes, root: str, comment: str) -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, root, [EXPLICIT])])
        raw.send(message(1, find_command(root=root), data))
        response = raw.response()
        assert response.status == 0xA900
        assert comment in response.comment
        assert gateway.index.queries == []
        raw.send(message(1, find_command(root=root), explicit(LEVEL, "CS", "STUDY")))
        assert raw.response().status == 0


def studies(count: int) -> Rows:
    return Rows([row(StudyInstanceUID=f"1.2.{number}", PatientName=f"DOE^{number}") for number in range(count)])


@pytest.mark.parametrize("root", [STUDY_FIND, PATIENT_FIND])
def test_find_of_pynetdicom(root: str) -> None:
    with running(studies(3), ae_title="ARCHIVE") as gateway:
        ae = AE()
        ae.add_requested_context(root)
        association = undisturbed(ae.associate("127.0.0.1", gateway.port, max_pdu=128))
        responses = list(association.send_c_find(identifier(PatientName="DOE*", StudyInstanceUID=""), root))
        assert [status.Status for status, _ in responses] == [0xFF00] * 3 + [0]
        assert [match.StudyInstanceUID for _, match in responses[:-1]] == ["1.2.0", "1.2.1", "1.2.2"]
        assert responses[0][1].RetrieveAETitle == "ARCHIVE"
        assert responses[-1][1] is None
        (status, match), *_ = association.send_c_find(identifier("STUDY", Modality=""), root)
        assert (status.Status, "Modality" in match) == (0xFF01, False)
        association.release()
        assert gateway.index.queries[0].datastore == DEFAULT


@pytest.mark.skipif(not Path("/usr/bin/findscu").exists(), reason="DCMTK is not installed")
def test_find_of_dcmtk(tmp_path: Path) -> None:
    with running(studies(2)) as gateway:
        subprocess.run(
            [
                *("/usr/bin/findscu", "-S", "-X", "-od", str(tmp_path), "127.0.0.1", str(gateway.port)),
                *("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientName=D*", "-k", "StudyInstanceUID"),
            ],
            check=True,
            timeout=20,
        )
        files = sorted(tmp_path.iterdir())
        from pydicom import dcmread

        assert [dcmread(file, force=True).StudyInstanceUID for file in files] == ["1.2.0", "1.2.1"]
        assert gateway.index.queries[0].keys == (Key((NAME,), "PN", ("D*",)),)


def test_no_match_is_success_without_identifier() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])])
        raw.send(message(1, find_command(), implicit(LEVEL, "STUDY ")))
        response = raw.response()
        assert (response.status, response.data, response.elements[0x0800]) == (0, b"", b"\1\1")


def test_many_matches_come_in_pages_up_to_the_cap() -> None:
    with running(studies(2600), find_limit=2500) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])])
        raw.send(message(1, find_command(), implicit(LEVEL, "STUDY ") + implicit(STUDY, "")))
        seen = set()
        while (response := raw.response()).status == 0xFF00:
            seen.add(response.data)
        assert len(seen) == 2500
        assert response.status == 0xA700
        assert "2500" in response.comment
        assert [(query.offset, query.limit) for query in gateway.index.queries] == [
            (0, 1000),
            (1000, 1000),
            (2000, 500),
        ]


def test_cancel_while_the_index_works() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    index = studies(3)
    index.before = forever
    with running(index) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])])
        raw.send(message(1, find_command(7), implicit(LEVEL, "STUDY ")))
        raw.send(message(1, cancel_command(7)))
        assert raw.response().status == 0xFE00
        index.before = None
        raw.send(message(1, find_command(9), implicit(LEVEL, "STUDY ")))
        assert [raw.response().status for _ in range(4)] == [0xFF00] * 3 + [0]
        raw.send(message(1, cancel_command(9)))
        raw.release()


def test_cancel_of_another_message_and_a_message_ahead_of_time_wait() -> None:
    index = studies(2)
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    index.before = wait
    with running(index) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT]), (3, VERIFICATION, [IMPLICIT])])
        raw.send(message(1, find_command(7), implicit(LEVEL, "STUDY ")))
        raw.send(message(1, cancel_command(8)) + message(3, echo_command()))
        gateway.loop.call_soon_threadsafe(gateway.loop.call_later, 0.3, gate.set)
        assert [raw.response().status for _ in range(4)] == [0xFF00, 0xFF00, 0, 0]


def test_cancel_between_matches() -> None:
    wide = Rows([row(StudyInstanceUID=f"1.{number}", TextValue="x" * 60_000) for number in range(1000)])
    with running(wide) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])], max_pdu=0)
        raw.send(message(1, find_command(7), implicit(LEVEL, "STUDY ") + implicit(0x0040A160, "")))
        assert raw.response().status == 0xFF00
        raw.send(message(1, cancel_command(7)))
        statuses = []
        while (status := raw.response().status) == 0xFF00:
            statuses.append(status)
        assert status == 0xFE00
        assert len(statuses) < 999


@pytest.mark.parametrize("farewell", ["close", "abort"])
def test_a_requestor_that_goes_ends_its_query(farewell: str) -> None:
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    index = Rows()
    index.before = forever
    with running(index) as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, STUDY_FIND, [IMPLICIT])])
            raw.send(message(1, find_command(), implicit(LEVEL, "STUDY ")))
            if farewell == "abort":
                raw.send(b"\7\0\0\0\0\4\0\0\0\0")
        assert gateway.counts.wait_for(1) == ["lost" if farewell == "close" else "aborted"]
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(cancelled.wait(), WAIT_S), gateway.loop).result(WAIT_S)


@pytest.mark.parametrize(
    ("error", "status", "comment"),
    [
        (errors.InvalidInput("no such range"), 0xA900, "no such range"),
        (errors.TooLarge("too broad"), 0xA700, "too broad"),
        (errors.Unavailable("later"), 0xA700, "later"),
        (errors.Gone("the data store is gone"), 0xC001, "gone"),
        (errors.Denied("no"), 0x0124, "no"),
        (OSError("DOE^JOHN"), 0xC001, "log"),
        (TimeoutError("DOE^JOHN"), 0xC001, "log"),
    ],
)
def test_errors_of_the_index_become_statuses(error: Exception, status: int, comment: str) -> None:
    async def fail() -> None:
        raise error

    index = Rows()
    index.before = fail
    with running(index) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT]), (3, VERIFICATION, [IMPLICIT])])
        raw.send(message(1, find_command(), implicit(LEVEL, "STUDY ")))
        response = raw.response()
        assert response.status == status
        assert comment in response.comment
        assert "DOE" not in response.comment
        assert raw.echo(3) == 0


def leaves(kind: type[errors.GatewayError]) -> list[type[errors.GatewayError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(errors.GatewayError)[1:])
def test_every_error_has_a_status_of_its_own(kind: type[errors.GatewayError]) -> None:
    assert store_status(kind("a detail")).comment == "a detail"
    assert find_status(kind("a detail")).comment == "a detail"


@pytest.mark.parametrize(
    ("offer", "expected"), [(None, (False, False)), (b"\1", (False, False)), (b"\0\1\1", (True, True))]
)
def test_extended_negotiation_reaches_the_query(offer: bytes | None, expected: tuple[bool, bool]) -> None:
    with running() as gateway:
        ae = AE()
        ae.add_requested_context(STUDY_FIND)
        items: list[Any] = []
        if offer is not None:
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = STUDY_FIND, offer
            items.append(item)
        association = ae.associate("127.0.0.1", gateway.port, ext_neg=items)
        assert [status.Status for status, _ in association.send_c_find(identifier(), STUDY_FIND)] == [0]
        association.release()
        (query,) = gateway.index.queries
        assert (query.combined_datetime, query.fuzzy) == expected


def test_an_endless_identifier_is_refused_without_keeping_it() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])])
        raw.send(message(1, find_command(), bytes(2 << 20), 100_000))
        response = raw.response()
        assert response.status == 0xA700
        assert "1 MB" in response.comment
        assert gateway.index.queries == []


def test_title_of_a_data_store_is_searched_and_given_as_retrieve_title() -> None:
    other = DatastoreId("e" * 32)
    with running(studies(1), titles={"RESEARCH": other}) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, STUDY_FIND, [IMPLICIT])], called=b"RESEARCH")
        raw.send(message(1, find_command(), implicit(LEVEL, "STUDY ")))
        answer = read_dataset(BytesIO(raw.response().data), True, True)
        assert answer.RetrieveAETitle == "RESEARCH"
        assert gateway.index.queries[0].datastore == other
