"""The wire runtime against the installed service model, with botocore as the second opinion."""

import base64
import functools
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit

import botocore.session
import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from gateway.awsjson import sigv4, wire
from gateway.awsjson.model import Shape, load

MODEL = load()
STORE = "12345678901234567890123456789012"
SET = "ea92b0d8838c72a3f25d00d13616f87e"
ARN = f"arn:aws:medical-imaging:us-east-1:123456789012:datastore/{STORE}/imageset/{SET}"
IAM = "arn:aws:iam::123456789012"
LAMBDA = "arn:aws:lambda:us-east-1:123456789012:function:"
UPDATE = f"/datastore/{STORE}/imageSet/{SET}/updateImageSetMetadata"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@functools.cache
def service() -> Any:
    return botocore.session.Session().get_service_model("medical-imaging")


def decode(method: str, path: str, query: str = "", body: bytes = b"") -> dict[str, Any]:
    matched = MODEL.match(method, path)
    assert matched is not None
    return wire.decode_request(matched[0], matched[1], query, body)


def faults(method: str, path: str, query: str = "", body: bytes = b"") -> tuple[str, ...]:
    with pytest.raises(wire.Malformed) as caught:
        decode(method, path, query, body)
    return caught.value.faults


# -- the model


def test_the_model_has_the_operations_and_statuses_of_the_reference() -> None:
    assert len(MODEL.operations) >= 18
    assert MODEL.signing_name == "medical-imaging"
    assert sum(operation.host_prefix == "runtime-" for operation in MODEL.operations.values()) == 8
    assert MODEL.errors["ServiceQuotaExceededException"] == 402
    assert MODEL.errors["ThrottlingException"] == 429


def test_the_model_uses_nothing_that_the_runtime_does_not_know() -> None:
    for shape in MODEL.shapes():
        assert shape.type in {"structure", "list", "map", "string", "integer", "boolean", "timestamp", "blob"}
    for operation in MODEL.operations.values():
        assert {member.location for member in operation.input.members.values()} <= {"uri", "querystring", "body"}
        assert {member.location for member in operation.output.members.values()} <= {"header", "body"}


@pytest.mark.parametrize("name", sorted(MODEL.operations))
def test_each_operation_is_found_by_its_own_path(name: str) -> None:
    operation = MODEL.operations[name]
    path = "".join("/" + (part if isinstance(part, str) else "x" * 32) for part in operation.path)
    matched = MODEL.match(operation.method, path)
    assert matched is not None
    assert matched[0] is operation
    assert set(matched[1].values()) <= {"x" * 32}
    assert MODEL.match("PATCH", path) is None


@pytest.mark.parametrize("path", ["", "/", "*", "//", "/datastore/", f"/datastore/{STORE}/studies", "/Datastore"])
def test_other_paths_are_no_operation(path: str) -> None:
    matched = MODEL.match("GET", path)
    assert matched is None or not matched[1]["datastoreId"]


@pytest.mark.parametrize("path", [quote(ARN, safe=""), quote(ARN), ARN], ids=["encoded", "slashes", "bare"])
def test_an_arn_is_one_label_however_it_is_encoded(path: str) -> None:
    assert decode("GET", f"/tags/{path}") == {"resourceArn": ARN}


def _patterns() -> Iterator[Shape]:
    return (shape for shape in MODEL.shapes() if shape.pattern)


def test_every_pattern_refuses_quickly() -> None:
    """A nested repeat takes 2^n steps to refuse n characters: with 1000 it would not end."""
    started = time.process_time()
    for shape in _patterns():
        assert shape.pattern is not None
        for start in ("", "s3://", f"{IAM}:role/", LAMBDA):
            for filler in ("a", "1", "-", "a ", "a.", "aa-"):
                assert not shape.pattern.fullmatch(start + filler * 1000 + "\N{SNOWMAN}\n")
    assert time.process_time() - started < 2


@given(st.text(st.sampled_from("ab!~ \x1f\x7fé-"), max_size=12))
def test_the_rewritten_pattern_accepts_what_the_published_one_does(text: str) -> None:
    shape = next(shape for shape in _patterns() if shape.name == "MetadataFilePath")
    assert shape.pattern is not None
    assert shape.published_pattern is not None
    assert shape.pattern.pattern != shape.published_pattern
    assert bool(shape.pattern.fullmatch(text)) == bool(re.fullmatch(shape.published_pattern, text))


def test_patterns_know_ascii_alone() -> None:
    version = next(shape for shape in _patterns() if shape.name == "ImageSetExternalVersionId")
    assert version.pattern is not None
    assert not version.pattern.fullmatch("٣")
    assert decode("GET", "/datastore", "nextToken=" + quote("~ token")) == {"nextToken": "~ token"}
    assert "regular expression" in faults("GET", "/datastore", "nextToken=" + quote("é"))[0]


# -- requests, as a server


def test_every_fault_is_told_at_once_and_no_value_with_it() -> None:
    body = {
        "filters": [
            {"operator": "LIKE", "values": [{"DICOMPatientId": "SECRET" * 100}]},
            {"values": [{"createdAt": "SECRET"}, {}, {}]},
        ],
        "sort": {"sortOrder": "SECRET"},
    }
    found = faults("POST", f"/datastore/{STORE.upper()}X/searchImageSets", "maxResults=51", json.dumps(body).encode())
    for place in (
        "datastoreId",
        "maxResults",
        "searchCriteria.filters.1.operator",
        "searchCriteria.filters.1.values.1.DICOMPatientId",
        "searchCriteria.filters.2.operator",
        "searchCriteria.filters.2.values",
        "searchCriteria.sort.sortField",
        "searchCriteria.sort.sortOrder",
    ):
        assert any(f"'{place}'" in fault for fault in found), place
    assert len(found) == 8
    assert "SECRET" not in str(found)


@pytest.mark.parametrize(
    ("query", "body", "wanted"),
    [
        ("latestVersion=1", b"", "not be null"),
        ("latestVersion=1", b"null", "not be null"),
        ("latestVersion=1", b"{}", "exactly one of: DICOMUpdates, revertToVersionId"),
        ("latestVersion=1", b'{"revertToVersionId":"1","DICOMUpdates":{}}', "exactly one of"),
        ("latestVersion=1", b'{"revertToVersionId":1}', "be a string"),
        ("latestVersion=1", b"[]", "be a JSON object"),
        ("latestVersion=1", b"{", "be JSON"),
        ("latestVersion=1", b"[" * 100_000, "be JSON"),
        ("latestVersion=1", b'{"revertToVersionId":"\xff"}', "be JSON"),
        ("latestVersion=", b'{"revertToVersionId":"1"}', "regular expression"),
        ("", b'{"revertToVersionId":"1"}', "not be null"),
        ("latestVersion=1&latestVersion=2", b'{"revertToVersionId":"1"}', "given once"),
        ("latestVersion=1&force=yes", b'{"revertToVersionId":"1"}', "true or false"),
        ("latestVersion=1", b'{"DICOMUpdates":{"updatableAttributes":"$$"}}', "base64"),
        ("latestVersion=1", b'{"DICOMUpdates":{"updatableAttributes":7}}', "base64"),
        ("latestVersion=1", b'{"DICOMUpdates":{"updatableAttributes":""}}', "at least 1 bytes"),
        ("latestVersion=1", b'{"DICOMUpdates":{"updatableAttributes":"{%s"}}' % (b" " * 30000), "at most 30000"),
    ],
)
def test_a_malformed_update_is_one_clear_fault(query: str, body: bytes, wanted: str) -> None:
    (fault,) = faults("POST", UPDATE, query, body)
    assert wanted in fault


@pytest.mark.parametrize("value", ["0", "51", "x", "", "1.0", "9" * 5000, "٣"])
def test_a_page_size_out_of_range_is_a_fault(value: str) -> None:
    assert "maxResults" in faults("GET", "/datastore", "maxResults=" + quote(value))[0]


def test_unknown_members_and_nulls_are_ignored() -> None:
    body = b'{"sort":null,"dicomCopies":{},"filters":[{"operator":"EQUAL","values":[{"isPrimary":true,"x":1}],"y":2}]}'
    assert decode("POST", f"/datastore/{STORE}/searchImageSets", "z=1", body) == {
        "datastoreId": STORE,
        "searchCriteria": {"filters": [{"operator": "EQUAL", "values": [{"isPrimary": True}]}]},
    }
    assert decode("POST", f"/datastore/{STORE}/searchImageSets") == {"datastoreId": STORE}
    assert decode("POST", f"/datastore/{STORE}/imageSet/{SET}/getImageSet", "", b"not JSON, not asked for")


DOCUMENT = {"SchemaVersion": 1.1, "Patient": {"DICOM": {"PatientName": "MX^MX"}}}
TEXT = json.dumps(DOCUMENT)
ONCE = base64.b64encode(TEXT.encode()).decode()
TWICE = base64.b64encode(ONCE.encode()).decode()
WRAPPED = "\n".join(re.findall(".{1,20}", ONCE))


@pytest.mark.parametrize(
    "sent",
    [DOCUMENT, TEXT, f"\n {TEXT}", ONCE, WRAPPED, TWICE],
    ids=["object", "text", "text after blanks", "base64", "wrapped base64", "base64 twice"],
)
def test_a_document_arrives_however_it_was_sent(sent: Any) -> None:
    body = json.dumps({"DICOMUpdates": {"updatableAttributes": sent}}).encode()
    request = decode("POST", UPDATE, "latestVersion=1&force=true", body)
    assert request["force"] is True
    assert json.loads(request["updateImageSetMetadataUpdates"]["DICOMUpdates"]["updatableAttributes"]) == DOCUMENT


@given(st.one_of(st.binary(max_size=3), st.binary(max_size=40).map(lambda data: b"%" + data)))
def test_other_blobs_are_plain_base64(data: bytes) -> None:
    assert wire.read_blob(base64.b64encode(data).decode()) == data


MOMENT = datetime(1985, 4, 12, 23, 20, 50, 520000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (482196050, MOMENT.replace(microsecond=0)),
        (482196050.52, MOMENT),
        ("1985-04-12T23:20:50.52Z", MOMENT),
        ("1985-04-12T16:20:50.520-07:00", MOMENT),
        ("1985-04-12", datetime(1985, 4, 12, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_numbers_and_as_text(sent: Any, read: datetime) -> None:
    criteria = {"filters": [{"operator": "BETWEEN", "values": [{"createdAt": sent}]}]}
    body = json.dumps(criteria).encode()
    request = decode("POST", f"/datastore/{STORE}/searchImageSets", "", body)
    assert request["searchCriteria"]["filters"][0]["values"] == [{"createdAt": read}]


@pytest.mark.parametrize("sent", ["x", "", "482196050", True, 1e300, -1e300, 10**30, [], "0001-01-01T00:00:00+14:00"])
def test_what_is_no_time_is_a_fault(sent: Any) -> None:
    body = json.dumps({"filters": [{"operator": "BETWEEN", "values": [{"createdAt": sent}]}]}).encode()
    assert "timestamp" in faults("POST", f"/datastore/{STORE}/searchImageSets", "", body)[0]


def test_repeated_query_parameters_make_a_list() -> None:
    assert decode("DELETE", f"/tags/{ARN}", "tagKeys=a&tagKeys=b%3Ac")["tagKeys"] == ["a", "b:c"]
    assert "tagKeys.2" in faults("DELETE", f"/tags/{ARN}", "tagKeys=a&tagKeys=aws:b")[0]
    assert "at most 200 entries" in faults("DELETE", f"/tags/{ARN}", "&".join(["tagKeys=a"] * 201))[0]


def test_maps_are_checked_by_key_and_value() -> None:
    body = json.dumps({"tags": {"aws:x": "v" * 257}}).encode()
    assert len(faults("POST", f"/tags/{ARN}", "", body)) == 2
    assert decode("POST", f"/tags/{ARN}", "", b'{"tags":{"a":""}}')["tags"] == {"a": ""}


def test_a_flood_of_faults_is_counted_not_told() -> None:
    body = json.dumps({"tags": {f"\N{SNOWMAN}{n}": "" for n in range(500)}}).encode()
    with pytest.raises(wire.Malformed, match=r"500 validation errors .* and 480 more$"):
        decode("POST", f"/tags/{ARN}", "", body)


# -- responses, as a server


def test_times_go_out_as_epoch_seconds_with_milliseconds() -> None:
    moment = datetime(2023, 3, 28, 18, 12, 6, 436999, tzinfo=UTC)
    assert wire.timestamp(moment) == 1680027126.436
    answer = {
        "datastoreId": STORE,
        "imageSetId": SET,
        "versionId": "1",
        "imageSetState": "ACTIVE",
        "createdAt": moment,
        "updatedAt": None,
    }
    response = wire.encode_response(MODEL.operations["GetImageSet"], answer, strict=True)
    assert b'"createdAt":1680027126.436' in response.body
    assert b"updatedAt" not in response.body
    assert dict(response.headers) == {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"versionId": None}, "'versionId'.*not be null"),
        ({"lastUpdatedAt": NOW}, "'lastUpdatedAt'.*known to the model"),
        ({"overrides": {"force": True}}, "'overrides.force'.*known to the model"),
        ({"message": "a <tag>"}, "'message'.*regular expression"),
        ({"imageSetState": "GONE"}, "'imageSetState'.*enum"),
        ({"versionId": 1}, "'versionId'.*string"),
    ],
)
def test_a_strict_encoder_finds_what_is_wrong_with_our_own_answer(change: dict[str, Any], wanted: str) -> None:
    answer = {"datastoreId": STORE, "imageSetId": SET, "versionId": "1", "imageSetState": "ACTIVE"}
    operation = MODEL.operations["GetImageSet"]
    wire.encode_response(operation, answer, strict=True)
    wire.encode_response(operation, answer | change)
    with pytest.raises(wire.Malformed, match=wanted):
        wire.encode_response(operation, answer | change, strict=True)


# -- both sides, against botocore's serialiser and parser

CALLS: dict[str, dict[str, Any]] = {
    "CreateDatastore": {"datastoreName": "n", "clientToken": "t", "tags": {"a": "b"}},
    "ListDatastores": {"datastoreStatus": "ACTIVE", "maxResults": 5, "nextToken": "a b&c"},
    "GetImageSet": {"datastoreId": STORE, "imageSetId": SET, "versionId": "2"},
    "SearchImageSets": {
        "datastoreId": STORE,
        "searchCriteria": {"filters": [{"operator": "BETWEEN", "values": [{"createdAt": NOW}, {"createdAt": NOW}]}]},
    },
    "UpdateImageSetMetadata": {
        "datastoreId": STORE,
        "imageSetId": SET,
        "latestVersionId": "1",
        "force": True,
        "updateImageSetMetadataUpdates": {"DICOMUpdates": {"updatableAttributes": TEXT.encode()}},
    },
    "GetImageFrame": {"datastoreId": STORE, "imageSetId": SET, "imageFrameInformation": {"imageFrameId": SET}},
    "UntagResource": {"resourceArn": ARN, "tagKeys": ["a", "b:c"]},
    "StartDICOMImportJob": {
        "datastoreId": STORE,
        "clientToken": "t",
        "dataAccessRoleArn": f"{IAM}:role/ImportJobDataAccessRole",
        "inputS3Uri": "s3://bucket/in/",
        "outputS3Uri": "s3://bucket/out/",
        "importConfiguration": {
            "dicomJsonMetadataImportConfiguration": {
                "dicomMetadataMappings": [{"studyInstanceUID": "1.2", "metadataFilePath": "a b/c.json"}]
            }
        },
    },
}


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_server_reads_what_botocore_writes(name: str) -> None:
    sent = create_serializer("rest-json").serialize_to_request(CALLS[name], service().operation_model(name))
    request = AWSRequest(sent["method"], "http://host" + sent["url_path"], params=sent["query_string"])
    parts = urlsplit(request.prepare().url)
    assert decode(sent["method"], parts.path, parts.query, sent["body"] or b"") == CALLS[name]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_our_client_writes_what_our_server_reads_and_botocore_would_write(name: str) -> None:
    request = wire.encode_request(MODEL.operations[name], CALLS[name])
    assert decode(request.method, request.path, request.query, request.body or b"") == CALLS[name]
    sent = create_serializer("rest-json").serialize_to_request(CALLS[name], service().operation_model(name))
    assert (request.method, request.path) == (sent["method"], sent["url_path"])
    if name != "SearchImageSets":
        assert json.loads(request.body or b"{}") == json.loads(sent["body"] or b"{}")


def test_our_client_refuses_what_the_model_does_not_know() -> None:
    with pytest.raises(wire.Malformed, match="'verzion'"):
        wire.encode_request(MODEL.operations["GetImageSet"], {"datastoreId": STORE, "imageSetId": SET, "verzion": "1"})


def test_botocore_and_our_client_read_what_the_server_writes() -> None:
    operation = MODEL.operations["SearchImageSets"]
    answer = {
        "imageSetsMetadataSummaries": [
            {"imageSetId": SET, "version": 1, "createdAt": MOMENT, "DICOMTags": {"DICOMSeriesNumber": 3}}
        ],
        "sort": {"sortField": "updatedAt", "sortOrder": "DESC"},
        "nextToken": "t",
    }
    response = wire.encode_response(operation, answer, strict=True)
    assert wire.decode_response(operation, {}, response.body) == answer
    parsed = create_parser("rest-json").parse(
        {"status_code": 200, "headers": dict(response.headers), "body": response.body},
        service().operation_model("SearchImageSets").output_shape,
    )
    parsed.pop("ResponseMetadata")
    assert parsed == answer


def test_a_payload_is_the_body_and_its_headers_are_members() -> None:
    operation = MODEL.operations["GetImageFrame"]
    response = wire.encode_response(operation, {"imageFrameBlob": b"\0\1", "contentType": "image/jph"}, strict=True)
    assert (response.body, response.headers) == (b"\0\1", [("Content-Type", "image/jph")])
    assert wire.decode_response(operation, {"content-type": "image/jph"}, b"\0\1") == {
        "imageFrameBlob": b"\0\1",
        "contentType": "image/jph",
    }


@pytest.mark.parametrize(
    ("headers", "body", "told"),
    [
        ({"x-amzn-errortype": "ConflictException:http://x/"}, b'{"message":"m"}', ("ConflictException", "m")),
        ({}, b'{"__type":"ns#ConflictException","Message":"m"}', ("ConflictException", "m")),
        ({}, b"<html>", ("Unknown", "")),
        ({}, b"[1]", ("Unknown", "")),
    ],
)
def test_errors_are_read_in_every_spelling(headers: dict[str, str], body: bytes, told: tuple[str, str]) -> None:
    assert wire.decode_error(headers, body) == told


# -- signatures

KEYS = {
    "AKIDEXAMPLE": sigv4.Credential("secret/+key", "alice"),
    "AKIDOLD": sigv4.Credential("secret/+key", "bob", expires=NOW - timedelta(seconds=1)),
}
BODY = b'{"a":"\xc3\xa9"}'
Signed = tuple[str, str, str, list[tuple[bytes, bytes]]]


@pytest.fixture
def _signing_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore's signers live in the same moment as the checks."""
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, **__: NOW.replace(tzinfo=None))


def signed(
    url: str = f"http://localhost:8080/tags/{quote(ARN, safe='')}?tagKeys=b%20c&tagKeys=a",
    *,
    method: str = "DELETE",
    body: bytes = BODY,
    key: str = "AKIDEXAMPLE",
    secret: str = "secret/+key",
    region: str = "us-east-1",
    service: str = "medical-imaging",
    headers: dict[str, str] | None = None,
    presign_s: int | None = None,
) -> Signed:
    """A request signed by botocore, as the server gets it."""
    request = AWSRequest(method=method, url=url, data=body if presign_s is None else None, headers=headers or {})
    credentials = Credentials(key, secret)
    if presign_s is None:
        SigV4Auth(credentials, service, region).add_auth(request)
    else:
        SigV4QueryAuth(credentials, service, region, expires=presign_s).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    received = [(b"host", parts.netloc.encode())]
    for name, value in prepared.headers.items():
        received.append((name.lower().encode(), value if isinstance(value, bytes) else value.encode()))
    return method, parts.path, parts.query, received


def verify(request: Signed, body: bytes | None = BODY, **changes: Any) -> str:
    method, path, query, headers = request
    keywords: dict[str, Any] = {"region": "us-east-1", "now": NOW} | changes
    body_hash = None if body is None else hashlib.sha256(body).hexdigest()
    return sigv4.verify(method, path, query, headers, body_hash, KEYS.get, **keywords)


@pytest.mark.usefixtures("_signing_now")
class TestSignatures:
    def test_what_botocore_signs_is_verified(self) -> None:
        request = signed(headers={"x-thing": "a   b"})
        assert sigv4.is_signed(request[2], request[3])
        assert verify(request) == "alice"

    @pytest.mark.parametrize(
        ("signed_as", "sent"),
        [
            ("", ""),
            ("b=2&a=1", "b=2&a=1"),
            ("a=%2F%20~", "a=%2F%20~"),
            ("a=", "a"),
            ("includefield=0008%2C0005", "includefield=0008,0005"),
            ("a=x%20y", "a=x+y"),
            # As botocore signs a URL that it is given: sorted, and nothing encoded.
            ("b=1,2&a=x", "b=1,2&a=x"),
        ],
    )
    def test_queries_are_put_into_canonical_form(self, signed_as: str, sent: str) -> None:
        method, path, _, headers = signed(f"http://h/dicomweb/studies?{signed_as}")
        assert verify((method, path, sent, headers)) == "alice"

    @pytest.mark.parametrize(
        ("signed_as", "sent", "same"),
        [
            ("/frames/1%2C2", "/frames/1,2", False),
            ("/frames/1,2", "/frames/1,2", True),
            ("/frames/./1", "/frames/1", True),
            ("/tags/a%2Fb", "/tags/a/b", False),
            ("/tags/a%2Fb", "/tags/a%252Fb", False),
        ],
    )
    def test_a_path_is_signed_as_it_is_encoded(self, signed_as: str, sent: str, same: bool) -> None:
        method, _, query, headers = signed(f"http://h{signed_as}")
        if same:
            assert verify((method, sent, query, headers)) == "alice"
        else:
            with pytest.raises(sigv4.SignatureError, match="does not match"):
                verify((method, sent, query, headers))

    def test_old_curls_way_is_taken(self) -> None:
        """Signed by curl 7.88, which encodes neither path nor query and sorts nothing."""
        method, path, query = "GET", "/dicomweb/frames/1,2", "includefield=0008,0005&StudyDate=2020-2021"
        stamp, scope = "20260301T120000Z", "20260301/us-east-1/medical-imaging/aws4_request"
        empty = hashlib.sha256(b"").hexdigest()
        canonical = f"{method}\n{path}\n{query}\nhost:h\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{empty}"
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4secret/+key"
        for part in [*scope.split("/"), text]:
            key = hmac.digest(key, part.encode(), "sha256")
        signature = f"Credential=AKIDEXAMPLE/{scope}, SignedHeaders=host;x-amz-date, Signature={key.hex()}"
        headers = [(b"host", b"h"), (b"x-amz-date", stamp.encode())]
        headers.append((b"authorization", f"AWS4-HMAC-SHA256 {signature}".encode()))
        assert verify((method, path, query, headers), b"") == "alice"
        with pytest.raises(sigv4.SignatureError, match="does not match"):
            verify((method, path, query.replace("2021", "2022"), headers), b"")

    @pytest.mark.parametrize("change", ["method", "path", "query", "host", "body", "secret", "header"])
    def test_any_change_breaks_it(self, change: str) -> None:
        method, path, query, headers = signed(
            secret="other" if change == "secret" else "secret/+key", headers={"x-thing": "1"}
        )
        swap = {b"host": b"elsewhere"} if change == "host" else {b"x-thing": b"2"} if change == "header" else {}
        request = (
            "GET" if change == "method" else method,
            path + "#x" if change == "path" else path,
            query + "&force=true" if change == "query" else query,
            [(name, swap.get(name, value)) for name, value in headers],
        )
        with pytest.raises(sigv4.SignatureError, match="does not match") as caught:
            verify(request, BODY + b" " if change == "body" else BODY)
        assert (caught.value.code, caught.value.status) == ("InvalidSignatureException", 403)

    def test_a_presigned_request_is_verified_for_its_lifetime(self) -> None:
        request = signed(method="GET", presign_s=60)
        assert sigv4.is_signed(request[2], request[3])
        assert verify(request, b"", now=NOW + timedelta(seconds=60)) == "alice"
        with pytest.raises(sigv4.SignatureError, match="expired"):
            verify(request, b"", now=NOW + timedelta(seconds=61))
        method, path, query, headers = request
        with pytest.raises(sigv4.SignatureError, match="does not match"):
            verify((method, path, query.replace("X-Amz-Expires=60", "X-Amz-Expires=600"), headers), b"")
        with pytest.raises(sigv4.Incomplete, match="X-Amz-Expires"):
            verify((method, path, query.replace("X-Amz-Expires=60", "X-Amz-Expires=9999999"), headers), b"")

    @pytest.mark.parametrize(("seconds", "wanted"), [(301, "expired"), (-301, "not yet current")])
    def test_the_clocks_may_differ_by_five_minutes(self, seconds: int, wanted: str) -> None:
        near = seconds - 1 if seconds > 0 else seconds + 1
        assert verify(signed(), now=NOW + timedelta(seconds=near)) == "alice"
        with pytest.raises(sigv4.SignatureError, match=wanted):
            verify(signed(), now=NOW + timedelta(seconds=seconds))

    def test_a_date_header_will_do(self) -> None:
        request = signed(headers={"Date": "x"})
        assert b"x-amz-date" not in dict(request[3])
        assert verify(request) == "alice"

    def test_the_scope_is_ours(self) -> None:
        with pytest.raises(sigv4.SignatureError, match="valid region: 'us-east-1'"):
            verify(signed(region="eu-west-1"))
        with pytest.raises(sigv4.SignatureError, match="correct service: 'medical-imaging'"):
            verify(signed(service="s3"))

    def test_unknown_and_expired_keys(self) -> None:
        with pytest.raises(sigv4.Unrecognized) as unknown:
            verify(signed(key="NOBODY"))
        assert (unknown.value.code, unknown.value.status) == ("UnrecognizedClientException", 403)
        with pytest.raises(sigv4.Expired) as expired:
            verify(signed(key="AKIDOLD"))
        assert (expired.value.code, expired.value.status) == ("ExpiredTokenException", 403)

    def test_a_declared_hash_must_be_that_of_the_body(self) -> None:
        request = signed(headers={"x-amz-content-sha256": hashlib.sha256(BODY).hexdigest()})
        assert sigv4.read_claim(request[2], request[3]).payload == hashlib.sha256(BODY).hexdigest()
        assert verify(request, None) == "alice"
        with pytest.raises(sigv4.SignatureError, match="hash"):
            verify(request, b"other")

    @pytest.mark.parametrize("form", ["UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"])
    def test_bodies_may_go_unsigned(self, form: str) -> None:
        request = signed(headers={"x-amz-content-sha256": form})
        assert verify(request, None) == verify(request, b"anything") == "alice"
        plain = signed()
        with pytest.raises(sigv4.SignatureError, match="does not match"):
            verify((*plain[:3], [*plain[3], (b"x-amz-content-sha256", form.encode())]))

    def test_without_a_declared_hash_the_body_is_needed(self) -> None:
        request = signed()
        assert sigv4.read_claim(request[2], request[3]).payload is None
        with pytest.raises(sigv4.Incomplete, match="x-amz-content-sha256"):
            verify(request, None)

    def test_no_signature_at_all(self) -> None:
        assert not sigv4.is_signed("", [(b"authorization", b"Bearer x")])
        with pytest.raises(sigv4.MissingToken) as caught:
            sigv4.verify("GET", "/", "", [(b"host", b"h")], None, KEYS.get, region="us-east-1")
        assert (caught.value.code, caught.value.status) == ("MissingAuthenticationTokenException", 403)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"AWS4-HMAC-SHA256 ", b"AWS4-HMAC-SHA1 "),
            (b"Signature=", b"Sig="),
            (b"Credential=", b"Cred="),
            (b"/aws4_request", b""),
            (b"SignedHeaders=host;", b"SignedHeaders="),
        ],
    )
    def test_an_incomplete_header_says_what_is_missing(self, old: bytes, new: bytes) -> None:
        method, path, query, headers = signed()
        broken = [(name, value.replace(old, new)) for name, value in headers]
        assert broken != headers
        with pytest.raises(sigv4.Incomplete) as caught:
            verify((method, path, query, broken))
        assert (caught.value.code, caught.value.status) == ("IncompleteSignature", 403)

    def test_a_dropped_header_and_a_missing_time(self) -> None:
        method, path, query, headers = signed(headers={"x-thing": "1"})
        with pytest.raises(sigv4.SignatureError, match="did not arrive"):
            verify((method, path, query, [pair for pair in headers if pair[0] != b"x-thing"]))
        with pytest.raises(sigv4.Incomplete, match="X-Amz-Date"):
            verify((method, path, query, [pair for pair in headers if pair[0] != b"x-amz-date"]))

    @given(st.data())
    def test_garbage_is_a_signature_error_and_nothing_else(self, data: st.DataObject) -> None:
        parts = st.sampled_from(
            ["AWS4-HMAC-SHA256", " ", "Credential=", "AKIDEXAMPLE/20260301/us-east-1/medical-imaging/aws4_request", ",",
             "SignedHeaders=", "host", ";", "Signature=", "é", "\N{SNOWMAN}", "/", "=", "20260301T120000Z"]
        )
        text = st.lists(parts, max_size=14).map("".join)
        date = st.sampled_from([b"20260301T120000Z", b"x", b"99991231T235959Z"])
        headers = [(b"host", b"h"), (b"authorization", data.draw(text).encode()), (b"x-amz-date", data.draw(date))]
        query = data.draw(st.one_of(st.just(""), text.map(lambda value: f"X-Amz-Credential={value}&X-Amz-Expires=٣")))
        with pytest.raises(sigv4.SignatureError):
            sigv4.verify("GET", "//[", query, headers, "", KEYS.get, region="us-east-1", now=NOW)


def test_secrets_do_not_show() -> None:
    assert "secret" not in repr(KEYS["AKIDEXAMPLE"]).replace("secret_key", "secret")


def test_chunked_framing_is_told_from_a_plain_body() -> None:
    frame = b"10000;chunk-signature=" + b"0" * 64 + b"\r\nDICM"
    assert sigv4.is_aws_chunked(frame)
    assert not sigv4.is_aws_chunked(b"--boundary\r\nContent-Type: application/dicom\r\n\r\n")
    assert not sigv4.is_aws_chunked(b"")
