"""The change feed, differences and the webhook of a running gateway."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom.data import get_testdata_file

from tests.running import RunningGateway, command

CT, MR = (Path(str(get_testdata_file(name))) for name in ("CT_small.dcm", "MR_small.dcm"))


def sent(gateway: RunningGateway, *paths: Path) -> None:
    done = command("import", *map(str, paths), "--url", gateway.http)
    assert done.returncode == 0, done.stderr


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == answer.json()["message"]
    return answer.status_code, answer.json()["code"]


def test_the_feed_and_the_differences_over_http(gateway: RunningGateway) -> None:
    empty = gateway.get("/changes").json()
    assert empty == {"datastoreId": gateway.datastore, "changes": [], "next": 0, "latest": 0}
    sent(gateway, CT)
    sent(gateway, MR)
    feed = gateway.get("/changes").json()
    assert ([entry["seq"] for entry in feed["changes"]], feed["next"], feed["latest"]) == ([1, 2], 2, 2)
    first = feed["changes"][0]
    assert first.keys() == {
        "seq",
        "at",
        "kind",
        "imageSetId",
        "versionId",
        "isPrimary",
        "studyInstanceUID",
        "seriesInstanceUID",
        "jobId",
    }
    assert (first["kind"], first["versionId"]) == ("import", "1")
    one = gateway.get(f"/datastore/{gateway.datastore}/changes?after=0&limit=1").json()
    assert (one["changes"], one["next"], one["latest"]) == ([first], 1, 2)
    rest = gateway.get("/changes?after=1").json()
    assert (rest["changes"], rest["next"]) == (feed["changes"][1:], 2)
    assert gateway.get("/changes?after=2").json() == {**empty, "next": 2, "latest": 2}
    assert gateway.get("/changes?after=99").json()["next"] == 2, "a reader of another history starts where this ends"
    head = httpx.head(f"{gateway.http}/changes")
    assert (head.status_code, head.content, int(head.headers["content-length"]) > 100) == (200, b"", True)
    for path in ("after=x", "after=-1", "after=1&after=2", "limit=0", "limit=1001", "since=1", f"after={10**16}"):
        assert problem(gateway.get(f"/changes?{path}")) == (400, "invalid-input"), path
    assert problem(gateway.get(f"/datastore/{'0' * 32}/changes")) == (404, "not-found")
    assert problem(httpx.post(f"{gateway.http}/changes"))[0] == 405

    path = f"/datastore/{gateway.datastore}/imageSet/{first['imageSetId']}/diff"
    alone = gateway.get(path).json()
    assert (alone["from"], alone["to"], alone["differences"]) == (1, 1, [])
    for query, code in (("from=2", 404), ("to=0", 400), (f"to={2**31}", 400), ("from=a", 400), ("version=1", 400)):
        assert problem(gateway.get(f"{path}?{query}"))[0] == code, query
    other = path.replace(first["imageSetId"], "0" * 32)
    assert problem(gateway.get(other)) == (404, "not-found")


class Receiver:
    """A webhook's endpoint: it refuses what comes until `open`, and then takes it."""

    def __init__(self) -> None:
        self.taken: queue.Queue[dict[str, Any]] = queue.Queue()
        self.refused = threading.Event()
        self.open = threading.Event()
        self.tokens: set[str | None] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.tokens.add(self.headers["authorization"])
                if receiver.open.is_set():
                    receiver.taken.put(json.loads(body))
                else:
                    receiver.refused.set()
                self.send_response(204 if receiver.open.is_set() else 503)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/events"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_events_reach_the_webhook_though_all_processes_die(
    start_gateway: Callable[..., RunningGateway], receiver: Receiver
) -> None:
    gateway = start_gateway(env={"GATEWAY_WEBHOOK__URL": receiver.url, "GATEWAY_WEBHOOK__TOKEN": "t0ken"})
    sent(gateway, CT)
    assert receiver.refused.wait(30)
    gateway.kill()
    receiver.open.set()
    gateway.restart()
    kinds = []
    while "Image Set Created" not in kinds:
        kinds.append(receiver.taken.get(timeout=30)["detail-type"])
    assert kinds == ["Data Store Creating", "Data Store Created", "Image Set Created"]
    sent(gateway, MR)
    event = receiver.taken.get(timeout=30)
    assert event["detail-type"] == "Image Set Created"
    assert event["resources"][0].startswith(
        f"arn:aws:medical-imaging:us-east-1:123456789012:datastore/{gateway.datastore}/imageset/"
    )
    assert receiver.tokens == {"Bearer t0ken"}
    assert "CompressedSamples" not in gateway.log.read_text()
