"""The conformance suite: it finds the gateway to be what it claims, and finds every fault that is put into it."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import imagecodecs
import numpy as np
import pytest

from conformance import reading
from conformance.dicomweb.stow import _native
from conformance.report import as_html, as_json, as_junit, text
from conformance.running import Report, Run, Target, run
from conformance.samples import Samples
from conformance.server import Answer
from conformance.statement import claimed, is_claimed, statement
from conformance.suite import CASES, Verdict, requirements
from gateway.dicomweb.routes import ROUTES
from gateway.dimse import contexts
from gateway.domain.query import Level, attribute, supported
from tests.running import RunningGateway, command
from tests.wrong_server import Exchange, Spoil, WrongServer, agreeable_peer, deaf_peer

KNOWN = requirements()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    running = RunningGateway(tmp_path_factory.mktemp("conformance") / "data")
    yield running
    running.close()


@pytest.fixture(scope="module")
def report(gateway: RunningGateway) -> Report:
    host, port = gateway.dimse
    return run(Target(f"{gateway.http}/dicomweb", aet=gateway.aet, host=host, port=port))


# ---------------------------------------------------------------- what is claimed


def test_every_claim_holds(report: Report) -> None:
    wanting = {
        result.requirement.id: (result.reason, [fault.text for fault in result.faults])
        for result in report.results
        if result.requirement.id in claimed() and result.verdict is not Verdict.PASS
    }
    assert not wanting
    assert not report.refused
    assert len(report.results) == len(CASES)


def test_claims_and_cases_belong_together() -> None:
    told = statement()
    assert told["claims"].keys() == KNOWN.keys(), "each requirement is claimed, planned or declined"
    assert told["unseen"].keys() | CASES.keys() == KNOWN.keys(), "a claim without a case needs a reason"
    assert not told["unseen"].keys() & CASES.keys(), "what has a case is seen"
    for name, claim in told["claims"].items():
        assert is_claimed(claim) or claim.keys() in ({"planned"}, {"no"}), name


def test_the_statement_is_the_gateway() -> None:
    told = statement()
    assert tuple(told["syntaxes"]["storage"]) == contexts._STORAGE_SYNTAXES
    assert tuple(told["syntaxes"]["message"]) == contexts._MESSAGE_SYNTAXES
    for service in told["service"]:
        uid = service["sop_class"]
        assert uid in ("all", contexts.VERIFICATION) or uid in contexts.FIND_ROOTS
    for listed in told["resources"].values():
        for resource in listed:
            method, path = resource.split(" ")
            assert method in ROUTES[path], resource
    levels = {"study": Level.STUDY, "series": Level.SERIES, "instance": Level.INSTANCE}
    for name, keywords in told["keys"].items():
        for keyword in keywords:
            assert supported(levels[name], attribute(keyword)[0]), keyword


# ---------------------------------------------------------------- reports


def test_reports(report: Report) -> None:
    document = json.loads(as_json(report))
    assert [one["id"] for one in document["results"]] == [name for name in KNOWN if name in CASES]
    counts = {verdict.value: report.count(verdict) for verdict in Verdict}
    assert {name: count["all"] for name, count in document["counts"].items()} == counts
    suites = ElementTree.fromstring(as_junit(report))
    assert sum(int(one.get("tests", "0")) for one in suites) == len(report.results)
    assert sum(int(one.get("failures", "0")) for one in suites) == counts["fail"]
    assert len(suites.findall(".//skipped")) == counts["not applicable"]
    page = as_html(report)
    for result in report.results:
        assert (f"href=#{result.requirement.id}>" in page) == (result.verdict is Verdict.FAIL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page), "self-contained"
    assert f"{counts['pass']} passed" in text(report)


def test_reports_show_no_strangers_and_no_secrets() -> None:
    rows = json.dumps([{"0020000D": {"vr": "UI", "Value": ["1.2.3"]}, "00100010": {"vr": "PN", "Value": ["Doe^Jane"]}}])

    def answer(own: bool) -> Answer:
        headers = httpx.Headers({"content-type": "application/dicom+json"})
        sent = [("Authorization", "Bearer secret-1")]
        return Answer("GET", "http://x/studies", sent, b"", 200, headers, rows.encode(), lambda uid: own)

    assert "Doe^Jane" in answer(True).answer_text()
    assert "Doe^Jane" not in answer(False).answer_text()
    assert "secret-1" not in answer(True).request_text()


def test_a_server_that_heeds_no_key_gives_no_patient_away() -> None:
    stranger = {
        "00080018": {"vr": "UI", "Value": ["1.2.3.4.5"]},
        "00081190": {"vr": "UR", "Value": ["http://127.0.0.1:9/Doe-Jane"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane"}]},
        "00100020": {"vr": "LO", "Value": ["Doe-Jane"]},
        "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3.4"]},
    }
    wrong = WrongServer()
    wrong.after = _answers(200, json.dumps([stranger]).encode())
    try:
        came = run(Target(wrong.url))
    finally:
        wrong.close()
    assert came.count(Verdict.FAIL) > 100
    for written in (as_json(came), as_html(came), as_junit(came), text(came)):
        assert "Doe" not in written


# ---------------------------------------------------------------- the command


def test_the_command(gateway: RunningGateway, tmp_path: Path) -> None:
    host, port = gateway.dimse
    files = {name: tmp_path / f"out.{name}" for name in ("html", "json", "xml")}
    flags = ["--dicomweb", f"{gateway.http}/dicomweb", "--aet", gateway.aet, "--host", host, "--port", str(port)]
    flags += ["--report", str(files["html"]), "--json", str(files["json"]), "--junit", str(files["xml"])]
    done = command("conformance", *flags, "--only", "QIDO-0[12]$|CECHO")
    assert done.returncode == 0, done.stderr
    assert "3 requirements, 3 passed" in done.stdout
    assert all(file.stat().st_size for file in files.values())
    assert {one["id"] for one in json.loads(files["json"].read_text())["results"]} == {"QIDO-01", "QIDO-02", "CECHO-01"}


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--dicomweb", "http://127.0.0.1:9/dicomweb"], 1, "no answer"),
        (["--dicomweb", "ftp://127.0.0.1"], 2, "must be a URL"),
        (["--dicomweb", "http://127.0.0.1:9", "--only", "("], 2, "regular expression"),
    ],
)
def test_the_command_refuses(flags: list[str], code: int, says: str) -> None:
    done = command("conformance", *flags)
    assert done.returncode == code
    assert says in done.stderr


def test_a_server_that_fails() -> None:
    wrong = WrongServer()
    wrong.after = _answers(200, b"[]")
    try:
        done = command("conformance", "--dicomweb", wrong.url, "--only", "QIDO-02")
        assert done.returncode == 1
        assert "QIDO-02" in done.stderr
        done = command("conformance", "--dicomweb", wrong.url, "--only", "QIDO-99")
        assert done.returncode == 2
    finally:
        wrong.close()


def test_credentials(start_gateway: Callable[..., RunningGateway]) -> None:
    running = start_gateway(env={"GATEWAY_AUTH__TOKENS": '[{"token":"t-1","principal":"tester"}]'})
    target = Target(f"{running.http}/dicomweb", auth="Bearer t-1")
    came = run(target, "ERR-01|QIDO-02")
    assert [result.verdict for result in came.results] == [Verdict.PASS] * 2
    came = run(Target(f"{running.http}/dicomweb"), "QIDO-02")
    assert came.results[0].verdict is Verdict.NOT_APPLICABLE
    assert "status 401" in next(iter(came.refused.values()))


# ---------------------------------------------------------------- every case can fail


def _answers(status: int, body: bytes, content_type: str = "application/dicom+json") -> Spoil:
    def after(exchange: Exchange) -> None:
        exchange.status, exchange.body = status, body
        exchange.headers = {"content-type": content_type, "access-control-allow-origin": "https://elsewhere.example"}

    return after


def _only_below_series(exchange: Exchange) -> None:
    _answers(200 if "/series/" in exchange.path else 404, b"", "image/jpeg")(exchange)


def test_no_case_of_dicomweb_passes_everywhere() -> None:
    """A server that has nothing, one that is broken, and one that answers all alike: each case sees one of them."""
    cases = [KNOWN[name] for name in CASES if KNOWN[name].protocol == "dicomweb"]
    unseen = {requirement.id for requirement in cases}
    wrong = WrongServer()
    wrong.after = _answers(200, b"[]")
    try:
        this = Run(Target(wrong.url))
        for sample in this.samples:
            sample.is_stored = True
        for after in (_answers(500, b"oops", "text/plain"), _answers(200, b"[]"), _only_below_series):
            wrong.after = after
            this.samples["big endian"].is_stored = after is not _only_below_series
            for requirement in cases:
                if requirement.id in unseen and this.judge(requirement).verdict is Verdict.FAIL:
                    unseen.remove(requirement.id)
        this.server.close()
    finally:
        wrong.close()
    assert not unseen


def test_no_case_of_dimse_passes_everywhere(gateway: RunningGateway) -> None:
    cases = [KNOWN[name] for name in CASES if KNOWN[name].protocol == "dimse"]
    with deaf_peer() as port:
        this = Run(Target(f"{gateway.http}/dicomweb", aet="DEAF", host="127.0.0.1", port=port))
        for sample in this.samples:
            sample.is_stored = True
        passed = {requirement.id for requirement in cases if this.judge(requirement).verdict is not Verdict.FAIL}
        this.server.close()
    assert not passed


def test_a_peer_that_agrees_to_everything_is_found_out(gateway: RunningGateway) -> None:
    failing = (
        *("NET-05", "PC-01", "PC-06", "PC-07", "PC-09", "CSTORE-04", "CSTORE-05", "CSTORE-09"),
        *("CFIND-01", "CFIND-02", "CFIND-04", "CFIND-06", "CMOVE-02", "CGET-01", "SCMT-01"),
    )
    with agreeable_peer() as port:
        this = Run(Target(f"{gateway.http}/dicomweb", aet="YES", host="127.0.0.1", port=port))
        for sample in this.samples:
            sample.is_stored = True
        verdicts = {name: this.judge(KNOWN[name]).verdict for name in (*failing, "CECHO-01", "PC-03", "NET-09")}
        this.server.close()
    assert verdicts == {name: Verdict.PASS if name not in failing else Verdict.FAIL for name in verdicts}


def _json(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Changes each data set of a DICOM JSON array."""

    def after(exchange: Exchange) -> None:
        if exchange.is_json and exchange.body.startswith(b"["):
            exchange.body = json.dumps([change(row) or row for row in json.loads(exchange.body)]).encode()

    return after


def _elements(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """Changes each element of each data set."""

    def rows(row: dict[str, Any]) -> None:
        for _, _, element in reading.elements(row):
            change(element)  # type: ignore[arg-type]

    return _json(rows)


def _status(old: int, new: int) -> Spoil:
    def after(exchange: Exchange) -> None:
        if exchange.status == old:
            exchange.status = new

    return after


def _header(name: str, value: str | None) -> Spoil:
    def after(exchange: Exchange) -> None:
        exchange.headers.pop(name, None)
        if value is not None:
            exchange.headers[name] = value

    return after


def _multipart(pattern: bytes, by: bytes) -> Spoil:
    def after(exchange: Exchange) -> None:
        if exchange.is_multipart:
            exchange.replace(pattern, by)

    return after


def _stored(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Changes the response module of a store request."""

    def after(exchange: Exchange) -> None:
        if exchange.method == "POST" and exchange.is_json and exchange.status in (200, 202, 409):
            module = json.loads(exchange.body)
            exchange.body = json.dumps(change(module) or module).encode()

    return after


def _without(*names: str) -> Spoil:
    """Passes over parameters of a query."""

    def before(exchange: Exchange) -> None:
        pairs = [pair for pair in exchange.query.split("&") if pair.partition("=")[0] not in names]
        exchange.query = "&".join(pairs)

    return before


def _deaf_to(*names: str) -> Spoil:
    """Passes over headers of a request."""

    def before(exchange: Exchange) -> None:
        for name in names:
            exchange.asked.pop(name, None)

    return before


def _short_boundary(exchange: Exchange) -> None:
    kind = exchange.headers.get("content-type", "")
    if exchange.is_multipart:
        boundary = reading.media_parameters(kind)["boundary"]
        exchange.headers["content-type"] = kind.replace(boundary, "b")
        exchange.body = exchange.body.replace(boundary.encode(), b"b")


def _upside_down(exchange: Exchange) -> None:
    if exchange.headers.get("content-type") == "image/png":
        exchange.body = bytes(imagecodecs.png_encode(np.ascontiguousarray(imagecodecs.png_decode(exchange.body)[::-1])))


def _last_byte(exchange: Exchange) -> None:
    """Another last byte in each payload."""
    if exchange.is_multipart and b"--" in exchange.body:
        boundary = reading.media_parameters(exchange.headers["content-type"])["boundary"].encode()
        exchange.replace(rb"(?s)(.)(?=\r\n--" + re.escape(boundary) + rb")", b"\xaa")


def _emptied(element: dict[str, Any]) -> None:
    if element.keys() == {"vr"}:
        element["Value"] = []


def _as_text(element: dict[str, Any]) -> None:
    if element.get("vr") in ("US", "UL", "FD"):
        element["Value"] = [str(one) for one in element.get("Value", [])]


def _name_as_text(element: dict[str, Any]) -> None:
    if element.get("vr") == "PN" and element.get("Value"):
        element["Value"] = ["Doe^Jane"]


def _error_body(exchange: Exchange) -> None:
    if exchange.status >= 400:
        exchange.body = b""


def _no_cors_on_errors(exchange: Exchange) -> None:
    if exchange.status >= 400:
        exchange.headers.pop("access-control-allow-origin", None)


def _add(row: dict[str, Any], tag: str, value: str) -> None:
    row[tag] = {"vr": "CS", "Value": [value]}


FAULTS: dict[str, tuple[Spoil | None, Spoil | None, str]] = {
    "unknown things are there": (None, _status(404, 200), "ROOT-06 WADO-01"),
    "what is wrong is done all the same": (
        None,
        _status(400, 200),
        "NEG-15 WADO-05 QIDO-07 QIDO-11 QIDO-23 QIDO-25 QIDO-29",
    ),
    "wrong requests break it": (None, _status(400, 500), "ERR-03 QIDO-08 ROOT-06"),
    "405 without Allow": (None, _header("allow", None), "ROOT-07"),
    "no URL": (None, _json(lambda row: row.pop("00081190", None) and None), "ROOT-08 QIDO-30 QIDO-33"),
    "it cannot refuse a type": (None, _status(406, 200), "NEG-05 NEG-11 TS-03 TS-04 WADO-09"),
    "Accept is not read": (_deaf_to("accept"), None, "NEG-10 WADO-03 WADO-09"),
    "accept is not read": (_without("accept"), None, "NEG-08"),
    "limit is not read": (_without("limit"), None, "QIDO-25 QIDO-26 QIDO-27"),
    "an annotation is neither drawn nor said to be missing": (_without("annotation"), None, "REND-06"),
    "pictures are upside down": (None, _upside_down, "REND-10"),
    "a key is not read": (_without("PatientName", "StudyDate", "Modality"), None, "QIDO-01 QIDO-02 QIDO-10 QIDO-11"),
    "includefield is not read": (_without("includefield"), None, "QIDO-20 QIDO-21"),
    "nothing says that more is left": (None, _header("warning", None), "QIDO-27"),
    "lower levels are answered": (None, _json(lambda row: _add(row, "00080060", "CT")), "QIDO-21"),
    "upper levels are not": (None, _json(lambda row: row.pop("0020000D", None) and None), "QIDO-31 QIDO-33"),
    "tags in any order": (None, _json(lambda row: dict(reversed(row.items()))), "JSON-02"),
    "a second form": (None, _elements(lambda element: element.update(extra=1)), "JSON-03"),
    "empty arrays": (None, _elements(_emptied), "JSON-04"),
    "names as text": (None, _elements(_name_as_text), "JSON-05 JSON-10"),
    "numbers as text": (None, _elements(_as_text), "JSON-06"),
    "an attribute is left out": (None, _json(lambda row: row.pop("00080016", None) and None), "JSON-13"),
    "an object, no array": (None, lambda exchange: exchange.replace(rb"^\[(.*)\]$", rb"\1"), "JSON-01"),
    "relative bulk data": (None, lambda exchange: exchange.replace(rb'"http://[^/]+/', b'"/'), "JSON-14"),
    "the end is missing": (None, _multipart(rb"--$", b""), "MP-01 WADO-02 WADO-06"),
    "parts without a place": (None, _multipart(rb"Content-Location: [^\r]*\r\n", b""), "MP-02 WADO-06"),
    "headers in lower case": (None, _multipart(rb"Content-Type:", b"content-type:"), "MP-03 CL-04"),
    "a short boundary": (None, _short_boundary, "MP-04"),
    "parts hide their syntax": (None, _multipart(rb"; transfer-syntax=[0-9.]+", b""), "TS-06 TS-07 CL-04"),
    "parts of another type": (None, _multipart(rb"Content-Type: [^;\r]+", b"Content-Type: image/jp2"), "TS-08"),
    "another byte": (None, _last_byte, "WADO-05 WADO-06 WADO-07 WADO-08 TS-01 BULK-01"),
    "ranges are not read": (_deaf_to("range"), None, "BULK-02"),
    "no entity tags": (None, _header("etag", None), "CACHE-01"),
    "no Vary": (None, _header("vary", None), "CACHE-02"),
    "every encoding is fine": (_deaf_to("content-encoding"), None, "COMP-02"),
    "part of it is all of it": (None, _status(202, 200), "STOW-10 STOW-11 STOW-18"),
    "nothing is a success": (None, _status(409, 200), "STOW-09 STOW-10 STOW-13"),
    "an array of one": (None, _stored(lambda module: [module]), "STOW-12"),
    "no instance is named": (
        None,
        _stored(lambda module: [item.pop("00081155") for item in module["00081199"]["Value"]] and None),
        "STOW-01 STOW-13",
    ),
    "a charset": (None, _header("content-type", "application/dicom+json; charset=utf-8"), "STOW-14 CL-09"),
    "no place": (None, _header("content-location", None), "STOW-19 WADO-11"),
    "errors without a word": (None, _error_body, "ERR-01 NEG-11"),
    "errors for this origin alone": (None, _no_cors_on_errors, "CORS-01"),
    "nothing is exposed": (None, _header("access-control-expose-headers", None), "CORS-03"),
    "not for isolated pages": (None, _header("cross-origin-resource-policy", None), "CORS-04"),
}
"""What is done to requests, what to answers, and the requirements whose cases have to notice."""


@pytest.fixture(scope="module")
def spoiled(gateway: RunningGateway) -> Iterator[tuple[WrongServer, Run]]:
    """A proxy before the gateway, and a run through it whose samples are stored."""
    wrong = WrongServer(gateway.http)
    this = Run(Target(f"{wrong.url}/dicomweb"))
    this.store()
    assert all(sample.is_stored for sample in this.samples)
    yield wrong, this
    this.server.close()
    wrong.close()


def test_the_proxy_itself_does_no_harm(spoiled: tuple[WrongServer, Run]) -> None:
    _, this = spoiled
    judged = {name for _, _, names in FAULTS.values() for name in names.split()}
    results = {name: this.judge(KNOWN[name]) for name in sorted(judged)}
    assert {
        name: [fault.text for fault in result.faults]
        for name, result in results.items()
        if result.verdict is not Verdict.PASS
    } == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, spoiled: tuple[WrongServer, Run]) -> None:
    wrong, this = spoiled
    before, after, names = FAULTS[fault]
    try:
        wrong.before, wrong.after = before or (lambda exchange: None), after or (lambda exchange: None)
        verdicts = {name: this.judge(KNOWN[name]).verdict for name in names.split()}
    finally:
        wrong.before = wrong.after = lambda exchange: None
    assert set(verdicts.values()) == {Verdict.FAIL}, verdicts


# ---------------------------------------------------------------- the readers


@pytest.mark.parametrize(
    ("element", "rule"),
    [
        ({"vr": "XX"}, "JSON-03"),
        ({"vr": "US", "Value": [1], "BulkDataURI": "b"}, "JSON-03"),
        ({"vr": "LO", "Value": []}, "JSON-04"),
        ({"vr": "PN", "Value": [{"Alphabetic": ""}]}, "JSON-05"),
        ({"vr": "US", "Value": ["1"]}, "JSON-06"),
        ({"vr": "AT", "Value": ["0010001a"]}, "JSON-08"),
        ({"vr": "LO", "InlineBinary": "AA=="}, "JSON-09"),
        ({"vr": "OB", "InlineBinary": "A"}, "JSON-09"),
        ({"vr": "PN", "BulkDataURI": "x"}, "JSON-09"),
        ({"vr": "LT", "Value": ["a", "b"]}, "JSON-11"),
        ({"vr": "SQ", "Value": [{"00100010": {"vr": "PN", "Value": ["Doe"]}}]}, "JSON-05"),
    ],
)
def test_the_reader_of_json(element: dict[str, Any], rule: str) -> None:
    assert [one for one, _ in reading.json_faults({"00100020": element})] == [rule]
    assert not list(reading.json_faults({"00100020": {"vr": "LO", "Value": ["a"]}, "00100021": {"vr": "LO"}}))


@pytest.mark.parametrize("body", [b"\xef\xbb\xbf[]", b"[NaN]", b'[{"a":1,"a":2}]', b"[\xff]", b"{}", b"[1]", b""])
def test_what_is_no_array_of_data_sets(body: bytes) -> None:
    with pytest.raises(reading.Unreadable):
        reading.data_sets(body)


def test_the_reader_of_multiparts() -> None:
    kind = "multipart/related; type=x; boundary=b"
    one, two = reading.parts(kind, {}, b"--b\r\nA: 1\r\n\r\nx\r\n--b\r\n\r\n\r\n--b--")
    assert (one.headers, one.body, two.body) == ({"a": "1"}, b"x", b"")
    (held,) = reading.parts(kind, {}, b"--b\r\nContent-Length: 7\r\n\r\nx\r\n--bx\r\n--b--")
    assert (held.body, held.faults) == (b"x\r\n--bx", ())
    for broken in (b"", b"x--b\r\n", b"--b\r\n\r\nx", b"--b\r\nA", b"--bx"):
        with pytest.raises(reading.Unreadable):
            reading.parts(kind, {}, broken)


def test_the_reader_of_xml() -> None:
    made = Samples().loose(PatientName="Doe^Jane")
    model = reading.native_model(_native(made, "bulk/1"))
    assert reading.texts(model, "00100010") == ["Doe^Jane"]
    assert model["7FE00010"]["BulkDataURI"] == "bulk/1"
    assert model["00080060"]["keyword"] == "Modality"
    for broken in (b"<a/>", b"<!DOCTYPE a><a/>", b"no XML"):
        with pytest.raises(reading.Unreadable):
            reading.native_model(broken)


def test_samples_are_read_as_they_were_made() -> None:
    odd = {"odd values", "unknown charset", "charset ISO 2022 IR 58"}
    samples = Samples()
    for sample in samples:
        stored = reading.instance(sample.body)
        if sample.name not in odd:
            assert not list(reading.differences(sample.data, stored)), sample.name
    assert len({sample.sop for sample in samples}) == len(list(samples))
    assert not {sample.sop for sample in samples} & {sample.sop for sample in Samples()}
