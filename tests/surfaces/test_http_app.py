"""The HTTP edge: which face answers a path, who may come in, and what every answer has."""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.domain.errors import Unavailable
from gateway.http.app import build_app
from gateway.http.health import Operations
from gateway.http.middleware import MAX_TARGET_BYTES, template_of
from gateway.http.problems import Asgi, Receive, Scope, Send
from gateway.settings import load

MARKER = "ZEBRA^MARKER"
TOKEN = {"GATEWAY_AUTH__TOKENS": '[{"token": "t0ken", "principal": "viewer"}]'}
BASIC = {"GATEWAY_AUTH__BASIC": '[{"user": "mod", "password": "pa:ss"}]'}
KEYS = {"GATEWAY_AUTH__CREDENTIALS": '[{"accessKeyId": "AKID", "secretAccessKey": "sekret", "principal": "sdk"}]'}


def face(name: str) -> Asgi:
    """Answers with its name, the path, the principal and how much of the body came."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("/boom"):
            raise ValueError(MARKER)
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            if not message.get("more_body", False):
                break
        said = {"face": name, "path": scope["path"], "who": scope["state"].get("principal"), "size": size}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    return answer


class Database:
    """The backend as operations see it."""

    def __init__(self) -> None:
        self.fault: Unavailable | None = None

    async def ping(self) -> None:
        if self.fault is not None:
            raise self.fault

    async def work(self) -> Mapping[str, Mapping[str, float]]:
        return {"import": {"waiting": 3, "running": 1, "oldest_s": 2.5}}


class Edge:
    """The application over stand-ins for its faces, called in one event loop."""

    def __init__(self, data: Path, environ: Mapping[str, str], **sizes: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.database = Database()
        self.processes = {"dimse": {"up": 1, "restarts": 0}, "web": {"up": 1, "restarts": 2}}
        self.app = build_app(
            load(environ=environ),
            dicomweb=face("dicomweb"),
            healthimaging=face("api"),
            history=face("history"),
            operations=Operations(
                self.database, data, sizes.get("reserve_bytes", 0), lambda: self.processes, {"aet": "GATEWAY"}
            ),
            quarantine=face("quarantine"),
            access_log=lambda **line: self.lines.append(line),
        )

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
                return await client.request(method, path, **more)

        answer = asyncio.run(call())
        # Node's parser, and proxies, take no answer with a second Content-Length (RFC 9110 8.6).
        names = Counter(name for name, _ in answer.headers.multi_items() if name not in ("www-authenticate", "vary"))
        assert set(names.values()) == {1}, names
        return answer


@pytest.fixture
def edge(tmp_path: Path) -> Callable[..., Edge]:
    def make(environ: Mapping[str, str] | None = None, **sizes: Any) -> Edge:
        return Edge(tmp_path, environ or {}, **sizes)

    return make


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/dicomweb/studies", "dicomweb"),
        ("/dicomweb", "dicomweb"),
        ("/datastore/abc/studies/1.2/series", "dicomweb"),
        ("/datastore/abc/series", "dicomweb"),
        ("/datastore/abc/instances", "dicomweb"),
        ("/datastore/abc/conflicts", "dicomweb"),
        ("/changes", "history"),
        ("/datastore/abc/changes", "history"),
        ("/datastore/abc/imageSet/def/diff", "history"),
        ("/datastore/abc", "api"),
        ("/datastore", "api"),
        ("/datastore/abc/searchImageSets", "api"),
        ("/datastore/abc/imageSet/studies/getImageSet", "api"),
        ("/startDICOMImportJob/datastore/abc", "api"),
        ("/dicomwebbing", "api"),
        ("/nothing", "api"),
        ("/", "api"),
    ],
)
def test_each_path_has_one_face(edge: Callable[..., Edge], path: str, expected: str) -> None:
    answer = edge()("GET", path, headers={"host": "runtime-medical-imaging.example"})
    assert answer.json()["face"] == expected
    assert answer.json()["path"] == path


def test_every_answer_has_its_own_request_id(edge: Callable[..., Edge]) -> None:
    call = edge()
    ids = [call("GET", path).headers["x-amzn-requestid"] for path in ("/dicomweb/studies", "/", "/livez", "/x/boom")]
    assert len(set(ids)) == 4
    assert {len(one) for one in ids} == {36}


def test_what_breaks_inside_is_answered_without_its_words(edge: Callable[..., Edge], capfd: Any) -> None:
    call = edge()
    api, dicomweb = call("GET", "/x/boom"), call("GET", "/dicomweb/boom")
    assert (api.status_code, api.headers["x-amzn-errortype"]) == (500, "InternalServerException")
    assert (dicomweb.status_code, dicomweb.json()["code"]) == (500, "internal")
    assert dicomweb.headers["content-type"] == "application/problem+json"
    assert MARKER not in api.text + dicomweb.text + str(call.lines)


def test_neither_log_nor_metrics_see_what_a_path_or_query_holds(edge: Callable[..., Edge]) -> None:
    call = edge()
    call("GET", f"/dicomweb/studies/1.2.840.99/series/{MARKER}/metadata?PatientName={MARKER}")
    call("GET", f"/datastore/abc/studies?PatientID={MARKER}")
    call("GET", f"/{MARKER}")
    routes = [line["route"] for line in call.lines]
    assert routes == ["/dicomweb/studies/*/series/*/metadata", "/datastore/*/studies", "/*"]
    assert MARKER not in str(call.lines)
    metrics = call("GET", "/metrics").text
    assert 'route="/datastore/*/studies"' in metrics
    assert MARKER not in metrics
    assert "1.2.840.99" not in metrics


def test_made_up_paths_do_not_fill_the_metrics(edge: Callable[..., Edge]) -> None:
    call = edge()
    for n in range(400):
        call("GET", "/studies" * (n % 20 + 1) + "/series" * (n // 20 + 1))
    assert call("GET", "/metrics").text.count('gateway_http_seconds_count{route="/studies') <= 200
    assert template_of("/livez") == "/livez"


@pytest.mark.parametrize(("length", "status"), [(MAX_TARGET_BYTES - 100, 200), (MAX_TARGET_BYTES, 414)])
def test_a_target_beyond_the_limit_is_refused(edge: Callable[..., Edge], length: int, status: int) -> None:
    sent: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": "/dicomweb/x", "query_string": b"1" * length, "headers": []}
    asyncio.run(edge().app(scope, receive, send))  # type: ignore[arg-type]
    assert sent == [status]


def test_more_requests_than_allowed_are_told_to_come_back(tmp_path: Path) -> None:
    edge = Edge(tmp_path, {"GATEWAY_HTTP__MAX_REQUESTS": "1"})

    async def run() -> tuple[int, int, int, str]:
        release = asyncio.Event()
        began = asyncio.Event()
        sent: list[int] = []

        async def receive() -> dict[str, Any]:
            began.set()
            await release.wait()
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent.append(message["status"])

        scope = {"type": "http", "method": "GET", "path": "/dicomweb/x", "query_string": b"", "headers": []}
        slow = asyncio.create_task(edge.app(scope, receive, send))
        await began.wait()
        transport = httpx.ASGITransport(app=edge.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway.test") as client:
            refused = await client.get("/dicomweb/studies")
            live = await client.get("/livez")
            release.set()
            await slow
            after = await client.get("/dicomweb/studies")
        assert sent == [200]
        return refused.status_code, live.status_code, after.status_code, refused.headers["retry-after"]

    assert asyncio.run(run()) == (503, 200, 200, "1")


class TestBrowsers:
    def test_without_credentials_any_origin_may_read(self, edge: Callable[..., Edge]) -> None:
        answer = edge()("GET", "/dicomweb/studies", headers={"origin": "https://viewer.test"})
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"ETag", "Content-Length", "Content-Range", "Content-Location", "Warning"} <= set(exposed)
        assert answer.headers["cross-origin-resource-policy"] == "cross-origin"

    def test_with_credentials_only_origins_that_are_listed(self, edge: Callable[..., Edge]) -> None:
        assert (
            "access-control-allow-origin" not in edge(TOKEN)("GET", "/livez", headers={"origin": "https://a"}).headers
        )
        call = edge({**TOKEN, "GATEWAY_HTTP__CORS_ORIGINS": '["https://a"]'})
        known = call("GET", "/livez", headers={"origin": "https://a"})
        other = call("GET", "/livez", headers={"origin": "https://b"})
        assert known.headers["access-control-allow-origin"] == "https://a"
        assert known.headers["vary"] == "Origin"
        assert "access-control-allow-origin" not in other.headers

    def test_a_preflight_needs_no_credentials(self, edge: Callable[..., Edge]) -> None:
        call = edge({**TOKEN, "GATEWAY_HTTP__CORS_ORIGINS": '["https://a"]'})
        asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization, range"}
        answer = call("OPTIONS", "/dicomweb/studies", headers={"origin": "https://a", **asked})
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-headers"] == "authorization, range"
        assert answer.headers["access-control-allow-origin"] == "https://a"


def basic(text: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def signed(method: str, path: str, body: bytes, secret: str = "sekret", **headers: str) -> dict[str, str]:
    request = AWSRequest(method=method, url=f"http://gateway.test{path}", data=body, headers=headers)
    SigV4Auth(Credentials("AKID", secret), "medical-imaging", "us-east-1").add_auth(request)
    return dict(request.headers.items())


class TestCallers:
    @pytest.mark.parametrize(
        ("environ", "headers", "who"),
        [
            (TOKEN, {"authorization": "Bearer t0ken"}, "viewer"),
            (TOKEN, {"authorization": "bearer  t0ken"}, "viewer"),
            (BASIC, basic("mod:pa:ss"), "mod"),
            ({**TOKEN, **BASIC}, basic("mod:pa:ss"), "mod"),
        ],
    )
    def test_known_ones_come_in(
        self, edge: Callable[..., Edge], environ: dict[str, str], headers: dict[str, str], who: str
    ) -> None:
        for path in ("/dicomweb/studies", "/datastore"):
            answer = edge(environ)("GET", path, headers=headers)
            assert (answer.status_code, answer.json()["who"]) == (200, who)

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": "Bearer other"},
            {"authorization": "Bearer"},
            {"authorization": "Basic !!!"},
            basic("mod:wrong"),
            {"authorization": "AWS4-HMAC-SHA256 nonsense"},
            {"authorization": "\xff"},
        ],
    )
    @pytest.mark.parametrize("environ", [TOKEN, BASIC, KEYS])
    def test_others_do_not(self, edge: Callable[..., Edge], environ: dict[str, str], headers: dict[str, str]) -> None:
        call = edge(environ)
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("/dicomweb/studies", "/datastore/a/studies", "/metrics", "/queue"):
            answer = call("GET", path, headers=encoded)
            assert answer.status_code in (401, 403), path
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.status_code == 403 or "www-authenticate" in answer.headers
        answer = call("GET", "/datastore", headers=encoded)
        assert answer.status_code in (400, 403)
        assert answer.headers["x-amzn-errortype"]
        assert list(answer.json()) == ["message"]

    def test_the_api_names_a_missing_signature(self, edge: Callable[..., Edge]) -> None:
        answer = edge(TOKEN)("GET", "/datastore")
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")

    def test_the_challenge_names_the_schemes(self, edge: Callable[..., Edge]) -> None:
        challenges = edge({**TOKEN, **BASIC})("GET", "/dicomweb/studies").headers.get_list("www-authenticate")
        assert [one.split()[0] for one in challenges] == ["Bearer", "Basic"]

    def test_liveness_and_readiness_stay_open(self, edge: Callable[..., Edge]) -> None:
        assert [edge(TOKEN)("GET", path).status_code for path in ("/livez", "/readyz")] == [200, 200]

    @pytest.mark.parametrize("path", ["/datastore/abc/searchImageSets?maxResults=5", "/dicomweb/studies"])
    def test_a_signed_request_comes_in_with_its_body(self, edge: Callable[..., Edge], path: str) -> None:
        body = b'{"a": 1}'
        answer = edge(KEYS)("POST", path, content=body, headers=signed("POST", path, body))
        assert (answer.status_code, answer.json()["who"], answer.json()["size"]) == (200, "sdk", len(body)), answer.text

    def test_a_wrong_secret_is_refused(self, edge: Callable[..., Edge]) -> None:
        headers = signed("POST", "/datastore", b"{}", secret="other")
        answer = edge(KEYS)("POST", "/datastore", content=b"{}", headers=headers)
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (403, "InvalidSignatureException")

    @pytest.mark.parametrize("declared", [True, False])
    def test_a_changed_body_is_refused(self, edge: Callable[..., Edge], declared: bool) -> None:
        import hashlib

        more = {"x-amz-content-sha256": hashlib.sha256(b'{"a": 1}').hexdigest()} if declared else {}
        headers = signed("POST", "/datastore", b'{"a": 1}', **more)
        assert edge(KEYS)("POST", "/datastore", content=b'{"a": 1}', headers=headers).status_code == 200
        answer = edge(KEYS)("POST", "/datastore", content=b'{"a": 2}', headers=headers)
        assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (403, "InvalidSignatureException")


class TestOperations:
    def test_live_and_ready(self, edge: Callable[..., Edge]) -> None:
        call = edge()
        assert call("GET", "/livez").json()["status"] == "live"
        ready = call("GET", "/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["aet"]) == (200, "ready", "GATEWAY")
        assert ready.json()["checks"] == {"database": "ok", "disk": "ok", "dimse": "ok"}
        assert call("HEAD", "/readyz").content == b""

    def test_not_ready_says_why(self, edge: Callable[..., Edge]) -> None:
        call = edge()
        call.database.fault = Unavailable("the database did not answer")
        answer = call("GET", "/readyz")
        assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "the database did not answer")
        assert call("GET", "/livez").status_code == 200

        call = edge()
        call.processes["dimse"]["up"] = 0
        assert call("GET", "/readyz").json()["checks"]["dimse"] == "not running"

        full = edge(reserve_bytes=1 << 60)("GET", "/readyz")
        assert (full.status_code, "below the reserve" in full.json()["checks"]["disk"]) == (503, True)

    def test_metrics_and_queue(self, edge: Callable[..., Edge]) -> None:
        call = edge()
        call("GET", "/dicomweb/studies")
        text = call("GET", "/metrics").text
        assert 'gateway_queue{kind="import",state="waiting"} 3.0' in text
        assert 'gateway_process_restarts_total{role="web"} 2.0' in text
        assert 'gateway_http_requests_total{method="GET",route="/dicomweb/studies",status="200"}' in text
        assert call("GET", "/queue").json()["work"]["import"] == {"waiting": 3, "running": 1, "oldest_s": 2.5}

    def test_other_methods_are_told_what_works(self, edge: Callable[..., Edge]) -> None:
        answer = edge()("POST", "/metrics")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
