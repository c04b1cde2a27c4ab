"""C-STORE: what arrives, what is answered, and what becomes an import job."""

import subprocess
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pynetdicom import AE

from demo.network import undisturbed
from gateway.dimse.scan import SERIES, SOP_CLASS, SOP_INSTANCE, STUDY, HeaderScan
from gateway.domain.errors import Denied, OutOfStorage
from gateway.domain.ids import DatastoreId
from tests.corpus import CORPUS
from tests.surfaces.test_dimse_fakes import (
    CT,
    DEFAULT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    Raw,
    data_set,
    explicit,
    implicit,
    message,
    p_data,
    pdv,
    request,
    running,
    store_command,
)

BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"


def real_files(most: int = 40) -> list[Path]:
    """Real instances: of the corpus, else of pydicom."""
    if CORPUS is not None:
        files = sorted(CORPUS.rglob("*.dcm"))
        return files[:: max(len(files) // most, 1)]
    names = ("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm")
    return [Path(str(get_testdata_file(name, download=False))) for name in names]


def bare(path: Path) -> tuple[pydicom.FileDataset, bytes]:
    """The file's header, and its bytes behind the file meta information."""
    data = path.read_bytes()
    file = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    start = 144 + int.from_bytes(data[140:144], "little") if data[128:132] == b"DICM" else 0
    return file, data[start:]


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_real_files_arrive_unchanged() -> None:
    sent = []
    with running() as gateway:
        for path in real_files(12):
            file, data = bare(path)
            syntax = getattr(file.file_meta, "TransferSyntaxUID", None)
            if syntax is None or not (file.get("StudyInstanceUID") and file.get("SOPInstanceUID")):
                continue
            with Raw(gateway.port) as raw:
                answers = raw.associate([(1, file.SOPClassUID, [syntax])])
                assert answers == {1: (0, syntax)}
                response = raw.store(1, data, sop=file.SOPInstanceUID, sop_class=file.SOPClassUID)
                assert response.status == 0, (path.name, response.comment)
                assert response.elements[0x1000].rstrip(b"\0").decode() == file.SOPInstanceUID
                raw.release()
            sent.append((str(syntax), str(file.SOPInstanceUID), data))
        assert len(sent) > 3
        stored = [(origin.syntax, origin.sop_uid, data) for origin, data in gateway.spool.closed]
        assert stored == sent


def test_store_of_pynetdicom() -> None:
    file = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    with running() as gateway:
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context(CT, EXPLICIT)
        association = undisturbed(ae.associate("127.0.0.1", gateway.port, ae_title="GATEWAY", max_pdu=4096))
        for _ in range(3):
            assert association.send_c_store(file).Status == 0
        association.release()
        (datastore, items), *rest = gateway.jobs.wait_for(1)
        assert (datastore, len(items), rest) == (DEFAULT, 3, [])
        origin = items[0].origin
        assert (origin.source, origin.part10, origin.syntax) == ("dimse", False, EXPLICIT)
        assert (origin.called_ae, origin.calling_ae, origin.datastore) == ("GATEWAY", "SCANNER", DEFAULT)
        assert (origin.sop_class, origin.sop_uid) == (CT, file.SOPInstanceUID)
        received = gateway.spool.closed[0][1]
        assert read_dataset(BytesIO(received), False, True).PixelData == file.PixelData


@pytest.mark.skipif(not Path("/usr/bin/storescu").exists(), reason="DCMTK is not installed")
@pytest.mark.parametrize("more", [[], ["--max-pdu", "4096"], ["--max-send-pdu", "4096"]])
def test_store_of_dcmtk(more: list[str]) -> None:
    files = [str(get_testdata_file(name, download=False)) for name in ("CT_small.dcm", "MR_small.dcm")]
    with running() as gateway:
        where = ["-aec", "GATEWAY", "127.0.0.1", str(gateway.port)]
        subprocess.run(["/usr/bin/storescu", *more, *where, *files], check=True, timeout=20)
        assert len(gateway.jobs.wait_for(1)[0][1]) == 2
        for path, (origin, data) in zip(files, gateway.spool.closed, strict=True):
            sent, _ = bare(Path(path))
            received = read_dataset(BytesIO(data), origin.syntax == IMPLICIT, True)
            assert (received.SOPInstanceUID, origin.sop_uid) == (sent.SOPInstanceUID, sent.SOPInstanceUID)
            assert received.PixelData == pydicom.dcmread(path).PixelData


@pytest.mark.skipif(not Path("/usr/bin/echoscu").exists(), reason="DCMTK is not installed")
def test_echo_of_dcmtk() -> None:
    with running() as gateway:
        where = ["127.0.0.1", str(gateway.port)]
        subprocess.run(
            ["/usr/bin/echoscu", "-pts", "38", "-ppc", "128", "--repeat", "3", *where], check=True, timeout=20
        )
        assert gateway.counts.wait_for(1) == ["released"]
        assert gateway.counts.messages == [("echo", 0)] * 3


@pytest.mark.parametrize("fragment", [2, 58, 4090, 131066])
def test_any_fragmentation(fragment: int) -> None:
    data = data_set() + explicit(0x7FE00010, "OW", bytes(range(256)) * (4 if fragment < 58 else 800))
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])], max_pdu=64)
        for _ in range(2):
            response = raw.store(1, data, fragment)
            assert response.status == 0
            assert max(response.pdus) <= 64
        assert [body for _, body in gateway.spool.closed] == [data, data]


def test_command_and_data_in_one_pdu_and_messages_back_to_back() -> None:
    data = data_set()
    one = p_data(
        pdv(1, store_command()[:10], is_command=True, is_last=False),
        pdv(1, store_command()[10:], is_command=True),
        pdv(1, data[:30], is_command=False, is_last=False),
        pdv(1, b"", is_command=False, is_last=False),
        pdv(1, data[30:], is_command=False),
    )
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        raw.send(one * 3)
        assert [raw.response().status for _ in range(3)] == [0, 0, 0]
        assert [body for _, body in gateway.spool.closed] == [data] * 3


def test_success_is_answered_only_when_durable() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        assert raw.store(1, data_set()).status == 0
        assert gateway.spool.durable == 1

        def broken(step: str) -> None:
            if step == "sync":
                raise OSError("disk on fire")

        gateway.spool.trouble = broken
        assert raw.store(1, data_set()).status == 0x0110
        raw.release()
        assert [len(items) for _, items in gateway.jobs.wait_for(1)] == [1]


@pytest.mark.parametrize("step", ["open", "write", "close", "sync"])
@pytest.mark.parametrize(
    ("error", "status"),
    [(OutOfStorage("the disk is full"), 0xA700), (Denied("not you"), 0x0124), (ValueError("MARKER^NAME"), 0x0110)],
)
def test_every_fault_becomes_a_status_and_the_association_lives(step: str, error: Exception, status: int) -> None:
    def trouble(now: str) -> None:
        if now == step:
            raise error

    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT]), (3, VERIFICATION, [IMPLICIT])])
        gateway.spool.trouble = trouble
        response = raw.store(1, data_set() + bytes(100_000))
        assert response.status == status
        assert "MARKER" not in response.comment
        gateway.spool.trouble = lambda step: None
        assert raw.store(1, data_set()).status == 0
        assert raw.echo(3) == 0


SEQUENCE = explicit(0x00081140, "SQ", b"\xfe\xff\x00\xe0" + len(data_set()).to_bytes(4, "little") + data_set())
UNDEFINED = (
    b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    + data_set("8.8.8", study="8.8", series="8.9")
    + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
)
UNKNOWN = (
    b"\x09\x00\x40\x11UN\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    + implicit(0x0020000D, "8.8")
    + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
)
HEAD = explicit(SOP_CLASS, "UI", CT) + explicit(SOP_INSTANCE, "UI", "1.2.3")
TAIL = explicit(STUDY, "UI", "1.2") + explicit(SERIES, "UI", "1.2.1")


@pytest.mark.parametrize("fragment", [16, 16000])
@pytest.mark.parametrize(
    ("data", "status", "comment", "offending"),
    [
        (data_set("1.2.9"), 0xA900, "SOP Instance UID", [SOP_INSTANCE]),
        (data_set(sop_class="1.2.840.10008.5.1.4.1.1.4"), 0xA900, "SOP Class UID", [SOP_CLASS]),
        (data_set(study=""), 0xC000, "missing Study Instance UID", [STUDY]),
        (data_set(series=""), 0xC000, "missing Series Instance UID", [SERIES]),
        (data_set(study="", series=""), 0xC000, "missing Study and Series Instance UID", [STUDY, SERIES]),
        (data_set(study="\0\0"), 0xC000, "missing Study Instance UID", [STUDY]),
        (HEAD, 0xC000, "missing Study and Series", [STUDY, SERIES]),
        (HEAD + UNDEFINED, 0xC000, "missing Study and Series", [STUDY, SERIES]),
        (HEAD + SEQUENCE + explicit(0x00280010, "US", b"\0\0"), 0xC000, "missing Study", [STUDY, SERIES]),
        (b"", 0xC000, "missing Study and Series", [STUDY, SERIES]),
        (b"this is no data set at all, nor was it ever meant to be one", 0xC000, "", [STUDY, SERIES]),
        (HEAD + explicit(0x00100010, "PN", "A" * 50)[:-10], 0xC000, "unreadable", []),
        (HEAD + TAIL[:-3], 0xC000, "unreadable", []),
        (data_set(sop=""), 0xB007, "from the command", []),
        (data_set(sop_class=""), 0xB007, "from the command", []),
        (data_set(), 0, "", []),
        (HEAD + SEQUENCE + TAIL, 0, "", []),
        (HEAD + UNDEFINED + UNKNOWN + TAIL, 0, "", []),
        (explicit(0x00020010, "UI", EXPLICIT) + explicit(0x00080000, "UL", b"\1\0\0\0") + data_set(), 0, "", []),
        (HEAD + explicit(0x00091010, "OB", bytes(100_000)) + TAIL, 0, "", []),
        (HEAD + explicit(0x00180050, "XX", "1") + TAIL, 0, "", []),  # who knows: left to the import
        (TAIL + HEAD, 0, "", []),
        (implicit(SOP_CLASS, CT) + implicit(SOP_INSTANCE, "9.9"), 0xA900, "SOP Instance", [SOP_INSTANCE]),
    ],
)
def test_what_the_head_of_the_data_set_shows(
    data: bytes, status: int, comment: str, offending: list[int], fragment: int
) -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        raw.send(message(1, store_command(), data or b"\0\0", fragment) if data else message(1, store_command()))
        if not data:
            raw.send(p_data(pdv(1, b"", is_command=False)))
        response = raw.response()
        assert response.status == status, response.comment
        assert comment in response.comment
        tags = response.elements.get(0x0901, b"")
        assert [
            int.from_bytes(tags[at : at + 2], "little") << 16 | int.from_bytes(tags[at + 2 : at + 4], "little")
            for at in range(0, len(tags), 4)
        ] == offending
        is_kept = status in (0, 0xB007)
        assert (len(gateway.spool.closed), gateway.spool.aborted) == ((1, 0) if is_kept else (0, 1))
        assert raw.store(1, data_set()).status == 0


@pytest.mark.parametrize(
    ("syntax", "data"),
    [
        (IMPLICIT, implicit(SOP_CLASS, CT) + implicit(SOP_INSTANCE, "9.9.9")),
        (BIG, data_set("9.9.9", order=">")),
        (IMPLICIT, data_set("9.9.9")),  # explicit though implicit was negotiated (WILD-07)
    ],
)
def test_mismatch_in_other_encodings(syntax: str, data: bytes) -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [syntax])])
        assert raw.store(1, data).status == 0xA900
        assert gateway.spool.closed == []


def test_a_deflated_data_set_is_left_to_the_import() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [DEFLATED])])
        assert raw.store(1, b"\x03\x00").status == 0
        assert gateway.spool.closed[0][0].syntax == DEFLATED


def test_command_without_uids_is_refused() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        assert raw.store(1, data_set(), sop="").status == 0x0212
        assert raw.store(1, data_set()).status == 0
        assert len(gateway.spool.closed) == 1


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("path", real_files(), ids=lambda path: path.name)
@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
def test_scan_finds_what_pydicom_finds(path: Path, piece: int) -> None:
    file, data = bare(path)
    syntax = str(getattr(file.file_meta, "TransferSyntaxUID", IMPLICIT))
    scan = HeaderScan(syntax)
    if syntax != DEFLATED:
        for at in range(0, len(data), piece):
            if scan.feed(data[at : at + piece]):
                break
        else:
            scan.end()
        wanted = {tag: str(file[tag].value) for tag in (SOP_CLASS, SOP_INSTANCE, STUDY, SERIES) if tag in file}
        assert scan.found == wanted
        assert scan.certain
    assert scan.done


def test_scan_survives_cut_and_changed_bytes() -> None:
    file = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    out: Any = pydicom.filebase.DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, False
    write_dataset(out, file)
    data = out.getvalue()[:3000]
    for at in range(0, len(data), 3):
        for changed in (
            data[:at],
            data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :],
            data[:at] + bytes(4) + data[at + 4 :],
        ):
            scan = HeaderScan(EXPLICIT)
            if not scan.feed(changed):
                scan.end()
            assert scan.done


def test_called_title_names_the_data_store() -> None:
    other = DatastoreId("e" * 32)
    with running(titles={"RESEARCH": other}) as gateway:
        for title, datastore in ((b"RESEARCH", other), (b"ANYTHING", DEFAULT)):
            with Raw(gateway.port) as raw:
                raw.associate([(1, CT, [EXPLICIT])], called=title)
                assert raw.store(1, data_set()).status == 0
                raw.release()
            assert gateway.jobs.wait_for(1).pop()[0] == datastore
            assert gateway.spool.closed.pop()[0].datastore == datastore


@pytest.mark.parametrize("limit", [{"batch_instances": 2}, {"batch_bytes": 2 * len(data_set("1.0"))}])
def test_a_full_batch_becomes_a_job_at_once(limit: Any) -> None:
    with running(**limit) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        for number in range(5):
            assert raw.store(1, data_set(f"1.{number}"), sop=f"1.{number}").status == 0
        gateway.jobs.wait_for(2)
        raw.release()
        batches = gateway.jobs.wait_for(3)
        assert [[staged.origin.sop_uid for staged in items] for _, items in batches] == [
            ["1.0", "1.1"],
            ["1.2", "1.3"],
            ["1.4"],
        ]
        assert {staged.study_uid for _, items in batches for staged in items} == {"1.2"}


def test_what_comes_is_announced_under_the_job_that_it_will_be() -> None:
    """So that preparing it may begin; not the newest 64, nor anything twice."""
    with running(batch_instances=104) as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [EXPLICIT])])
            for number in range(190):
                assert raw.store(1, data_set(f"1.{number}"), sop=f"1.{number}").status == 0
            raw.release()
        batches = [items for _, items in gateway.jobs.wait_for(2)]
        assert [len(items) for items in batches] == [104, 86]
        assert len(set(gateway.jobs.jobs)) == 2
        for job, items, told in zip(gateway.jobs.jobs, batches, (32, 16), strict=True):
            assert gateway.jobs.announced[job] == items[:told]


def test_an_idle_batch_becomes_a_job_while_the_association_stays_open() -> None:
    with running(batch_idle_s=0.1) as gateway, Raw(gateway.port) as raw:
        raw.associate([(1, CT, [EXPLICIT])])
        assert raw.store(1, data_set()).status == 0
        assert len(gateway.jobs.wait_for(1)) == 1
        assert raw.store(1, data_set()).status == 0
        assert len(gateway.jobs.wait_for(2)) == 2
        raw.release()


def test_an_association_without_instances_makes_no_job() -> None:
    with running() as gateway:
        with Raw(gateway.port) as raw:
            raw.associate([(1, CT, [EXPLICIT])])
            raw.release()
        gateway.counts.wait_for(1)
    assert gateway.jobs.batches == []


def test_submission_is_tried_again() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        gateway.jobs.failures = 1
        raw.associate([(1, CT, [EXPLICIT])])
        assert raw.store(1, data_set()).status == 0
        raw.release()
        assert [len(items) for _, items in gateway.jobs.wait_for(1)] == [1]


def test_jobs_are_submitted_in_the_order_of_the_associations() -> None:
    """However long the first submission takes: the instance that was sent last is the one that stays."""
    with running() as gateway:
        slow = threading.Event()
        gateway.jobs.held = [slow]
        for sizes in (1, 2):
            with Raw(gateway.port) as raw:
                raw.associate([(1, CT, [EXPLICIT])])
                for _ in range(sizes):
                    assert raw.store(1, data_set()).status == 0
                raw.release()
        with gateway.jobs.changed:
            assert not gateway.jobs.changed.wait_for(lambda: gateway.jobs.batches, 0.5)
        slow.set()
        assert [len(items) for _, items in gateway.jobs.wait_for(2)] == [1, 2]


def test_the_request_may_come_in_pieces() -> None:
    with running() as gateway, Raw(gateway.port) as raw:
        asked = request([(1, VERIFICATION, [IMPLICIT])])
        for at in range(0, len(asked), 11):
            raw.send(asked[at : at + 11])
        assert raw.pdu()[0] == 2
        assert raw.echo(1) == 0
