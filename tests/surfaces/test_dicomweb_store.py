"""STOW-RS over the fakes: bodies of every kind in, a response module out (STOW-01..22)."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from gateway.dicomweb.stow import response_module, status_of
from gateway.domain.errors import OutOfStorage
from gateway.domain.model import Outcome
from gateway.domain.native_model import from_xml
from tests.surfaces.fakes import Surface, document, made, multipart, part10, surface

URL = "/dicomweb/studies"


def send(on: Surface, body: bytes, kind: str, url: str = URL, **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return on.ask("POST", url, content=body, headers={"Content-Type": kind, **named})


def test_several_instances() -> None:
    on = surface()
    body, kind = multipart([part10(made(1)), part10(made(2, syntax="1.2.840.10008.1.2")), part10(document(3))])
    answer = send(on, body, kind)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert answer.headers["content-location"] == "http://pacs.example:8080/dicomweb/studies/1.2.3"
    module = answer.json()
    assert [*module] == ["00081190", "00081199"]
    assert module["00081190"] == {"vr": "UR", "Value": ["http://pacs.example:8080/dicomweb/studies/1.2.3"]}
    items = module["00081199"]["Value"]
    assert items[0] == {
        "00081150": {"vr": "UI", "Value": ["1.2.840.10008.5.1.4.1.1.7"]},
        "00081155": {"vr": "UI", "Value": ["1.2.3.4.1"]},
        "00081190": {
            "vr": "UR",
            "Value": ["http://pacs.example:8080/dicomweb/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.1"],
        },
    }
    assert len(on.get("/dicomweb/instances").json()) == 3
    assert on.staging.syncs == 0  # the publication makes them durable: an answer waits for it


@pytest.mark.parametrize(
    "kind",
    [
        "application/dicom",
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.1",
        "Application/DICOM",
    ],
)
def test_one_instance_as_the_body(kind: str) -> None:
    assert send(surface(), part10(made(1)), kind).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/related; boundary=fence",
        "multipart/related; type=application/dicom; boundary=fence; charset=utf-8",
        'multipart/related;boundary="fence";type="application/dicom;transfer-syntax=1.2.840.10008.1.2.1"',
        "Multipart/Related; Type=Application/Dicom; Boundary=fence",
    ],
)
@pytest.mark.parametrize("part", ["application/dicom; transfer-syntax=1.2", "application/octet-stream"])
def test_what_clients_call_it(kind: str, part: str) -> None:
    body, _ = multipart([part10(made(1))], part)
    assert send(surface(), body, kind).status_code == 200


def test_parts_without_headers() -> None:
    body = b"--fence\r\n\r\n" + part10(made(1)) + b"\r\n--fence--"
    assert send(surface(), body, "multipart/related; boundary=fence").status_code == 200


def test_each_part_stands_for_itself() -> None:
    on = surface()
    dicom = "application/dicom"
    pieces = [(part10(made(1)), dicom), (b"no DICOM at all" * 20, dicom), (b"", dicom), (b"{}", "text/plain")]
    body = b"".join(f"\r\n--fence\r\nContent-Type: {kind}\r\n\r\n".encode() + part for part, kind in pieces)
    answer = send(on, body + b"\r\n--fence--", "multipart/related; boundary=fence")
    assert answer.status_code == 202
    module = answer.json()
    assert [*module] == ["00081190", "00081199", "0008119A"]
    assert len(module["00081199"]["Value"]) == 1
    others = module["0008119A"]["Value"]
    assert [item["00081197"] for item in others] == [{"vr": "US", "Value": [0xC000]}] * 3
    assert "not exist" in others[0]["00000902"]["Value"][0]
    assert "part 4" in others[2]["00000902"]["Value"][0]


def test_the_study_of_the_url() -> None:
    on = surface()
    body, kind = multipart([part10(made(1)), part10(made(2, StudyInstanceUID="9.9"))])
    answer = send(on, body, kind, URL + "/1.2.3")
    assert answer.status_code == 202
    (failed,) = answer.json()["00081198"]["Value"]
    assert failed["00081155"]["Value"] == ["1.2.3.4.2"]
    assert failed["00081197"]["Value"] == [43265]
    refused = send(on, body, kind, URL + "/5.5")
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/dicom+json"
    assert [*refused.json()] == ["00081190", "00081198"]
    assert refused.json()["00081190"] == {"vr": "UR"}


def test_warnings_and_conflicts() -> None:
    on = surface()
    on.intake.answers = {
        "1.2.3.4.1": {"warning": 0xB112},
        "1.2.3.4.2": {"is_primary": False, "image_set": "c" * 32},
        "1.2.3.4.3": {"failure": 0x0122, "message": "a\\b"},
    }
    body, kind = multipart([part10(made(number)) for number in (1, 2, 3)])
    answer = send(on, body, kind)
    assert answer.status_code == 202
    warned, beside = answer.json()["00081199"]["Value"]
    assert warned["00081196"] == {"vr": "US", "Value": [45330]}
    assert beside["00081190"]["Value"][0].endswith("/instances/1.2.3.4.2?imageSetId=" + "c" * 32)
    (failed,) = answer.json()["00081198"]["Value"]
    assert failed["00000902"]["Value"] == ["a b"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/dicom", 400),
        (b"", "multipart/related; boundary=fence", 400),
        (b"--fence--", "multipart/related; boundary=fence", 400),
        (b"--other\r\n\r\nx\r\n--other--", "multipart/related; boundary=fence", 400),
        (b"--fence\r\n\r\nx", "multipart/related; boundary=fence", 400),
        (b"x", "multipart/related; type=application/dicom", 400),
        (b"{}", "application/json", 415),
        (b"{}", "application/dicom+json", 415),
        (b"x", 'multipart/related; type="application/dicom+xml"; boundary=fence', 400),
        (b"x", "multipart/form-data; boundary=fence", 415),
        (b"x", "", 415),
        (b"x", ";;=\"", 415),
    ],
)
def test_refusals(body: bytes, kind: str, status: int) -> None:
    on = surface()
    answer = send(on, body, kind)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert on.staging.synced == 0
    if status == 415:
        assert "application/dicom" in answer.headers["accept"]


def test_what_cannot_be_answered_is_not_stored() -> None:
    on = surface()
    body, kind = multipart([part10(made(1))])
    assert send(on, body, kind, Accept="text/html").status_code == 406
    assert send(on, body, kind, Accept="application/dicom+json, application/json").status_code == 200
    assert len(on.backend.held) == 1


def test_the_answer_as_xml() -> None:
    body, kind = multipart([part10(made(1)), b"rubbish"])
    answer = send(surface(), body, kind, Accept="application/dicom+xml")
    assert (answer.status_code, answer.headers["content-type"]) == (202, "application/dicom+xml")
    module = from_xml(answer.content)
    assert module["00081199"]["Value"][0]["00081155"]["Value"] == ["1.2.3.4.1"]
    assert module["0008119A"]["Value"][0]["00081197"]["Value"] == ["49152"]


def test_a_body_beyond_the_limit() -> None:
    body, kind = multipart([part10(made(1)), part10(made(2))])
    on = surface(max_body_bytes=len(body) - 100)
    answer = send(on, body, kind)
    assert answer.status_code == 413
    assert on.staging.aborted == []  # the length was declared, so nothing was read

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100):
            yield body[at : at + 100]

    answer = on.ask("POST", URL, content=chunks(), headers={"Content-Type": kind})
    assert answer.status_code == 413
    assert len(on.staging.aborted) == 2
    assert on.staging.closed == [None]


def test_a_compressed_body() -> None:
    body, kind = multipart([part10(made(1))])
    packed = gzip.compress(body[:100]) + gzip.compress(body[100:])
    assert send(surface(), packed, kind, Content_Encoding="gzip").status_code == 200
    assert send(surface(), packed[:-9], kind, Content_Encoding="gzip").status_code == 400
    assert send(surface(), body, kind, Content_Encoding="gzip").status_code == 400
    assert send(surface(), body, kind, Content_Encoding="br").status_code == 415
    assert send(surface(), body, kind, Content_Encoding="identity").status_code == 200
    bomb = gzip.compress(b"\0" * 50_000_000)
    on = surface(max_body_bytes=10_000_000)
    assert send(on, bomb, "application/dicom", Content_Encoding="gzip").status_code == 413


@pytest.mark.parametrize("size", [50, 4096, 10**6])
def test_aws_chunked_bodies(size: int) -> None:
    body, kind = multipart([part10(made(1))])
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x;chunk-signature=%064x\r\n%b\r\n" % (len(chunk), 7, chunk) for chunk in [*chunks, b""])
    hash_header = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    assert send(surface(), framed, kind, x_amz_content_sha256=hash_header).status_code == 200
    assert send(surface(), framed, kind, Content_Encoding="aws-chunked").status_code == 200
    # the documented calls say so and send a plain body
    assert send(surface(), body, kind, x_amz_content_sha256=hash_header).status_code == 200
    assert send(surface(), framed[:-90], kind, x_amz_content_sha256=hash_header).status_code == 400


def test_no_success_that_is_none() -> None:
    on = surface(timeout_s=0.5)
    on.intake.slow = True
    body, kind = multipart([part10(made(1))])
    answer = send(on, body, kind)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "again" in answer.json()["detail"]


def test_a_full_disk() -> None:
    on = surface()

    def full(size: int) -> None:
        raise OutOfStorage("The disk is full.")

    on.staging.on_write = full
    body, kind = multipart([part10(made(1))])
    answer = send(on, body, kind)
    assert (answer.status_code, answer.json()["code"]) == (507, "out-of-storage")
    assert len(on.staging.aborted) == 1


def test_a_client_that_leaves_leaves_nothing() -> None:
    on = surface()
    body, kind = multipart([part10(made(1)), part10(made(2))])
    messages = [
        {"type": "http.request", "body": body[: len(body) * 3 // 4], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def exchange() -> None:
        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": URL, "query_string": b"", "scheme": "http"}
        await on.app({**scope, "headers": [(b"content-type", kind.encode())]}, receive, send)

    asyncio.run(exchange())
    assert sent == []
    assert len(on.staging.aborted) == 2
    assert on.backend.held == []


def test_large_instances_stream() -> None:
    on = surface()
    source = made(1, NumberOfFrames=400, Rows=64, Columns=64)
    largest = 0

    def watch(size: int) -> None:
        nonlocal largest
        largest = max(largest, size)

    on.staging.on_write = watch
    body, kind = multipart([part10(source)])

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    answer = on.ask("POST", URL, content=chunks(), headers={"Content-Type": kind})
    assert answer.status_code == 200
    assert largest <= 65536 + 100
    assert on.backend.held[0].data_set.PixelData == source.PixelData


def test_the_principal_is_recorded() -> None:
    on = surface()
    body = part10(made(1))

    async def exchange() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None: ...

        scope = {
            "type": "http", "method": "POST", "path": URL, "query_string": b"", "scheme": "http",
            "headers": [(b"content-type", b"application/dicom")], "state": {"principal": "anna"},
        }  # fmt: skip
        await on.app(scope, receive, send)

    asyncio.run(exchange())
    sink = on.staging.closed[0]
    assert sink is not None
    assert sink.origin.principal == "anna"


def test_statuses_and_modules() -> None:
    stored = Outcome("1.1", "1.2", "1.3", "1.4")
    elsewhere = Outcome("1.1", "1.2", "1.5", "1.4")
    warned = Outcome("1.1", "1.2", "1.3", "1.4", warning=0xB000)
    failed = Outcome("1.1", "1.2", "1.3", "1.4", failure=0xC122)
    nameless = Outcome(None, None, None, None, failure=0xC000, message="x" * 100)
    assert status_of([stored]) == 200
    assert status_of([stored, warned]) == 202
    assert status_of([stored, failed]) == 202
    assert status_of([failed, nameless]) == 409
    module = response_module([stored, elsewhere, failed, nameless], "http://h/dicomweb", None)
    assert module["00081190"] == {"vr": "UR"}
    assert [len(module[tag]["Value"]) for tag in ("00081198", "00081199", "0008119A")] == [1, 2, 1]
    assert module["0008119A"]["Value"][0]["00000902"]["Value"] == ["x" * 64]
    assert orjson.loads(orjson.dumps(module)) == module
