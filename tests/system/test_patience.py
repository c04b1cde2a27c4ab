"""Clients that dawdle, by sockets: they are told, closed, and cost neither memory nor a place."""

import http.client
import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import httpx
import pytest

from campaigns.dimse import Association, Lost
from campaigns.instances import make
from tests.running import ALONE, RunningGateway

PATIENCE_S = 1.0
IMPATIENT = {
    "GATEWAY_HTTP__PATIENCE_S": str(PATIENCE_S),
    "GATEWAY_HTTP__MIN_BYTES_PER_S": "4096",
    "GATEWAY_DIMSE__PATIENCE_S": str(PATIENCE_S),
    "GATEWAY_HTTP__MAX_REQUESTS": "8",
}
HEAD = (
    b"POST /dicomweb/studies HTTP/1.1\r\nhost: x\r\ncontent-type: application/dicom\r\n"
    b"accept: application/dicom+json\r\ncontent-length: 1000000\r\n\r\n"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    started = RunningGateway(tmp_path_factory.mktemp("patience") / "data", env=IMPATIENT)
    yield started
    started.close()


@contextmanager
def connected(gateway: RunningGateway) -> Iterator[socket.socket]:
    host, _, port = gateway.http.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 20) as caller:
        yield caller


def all_of(caller: socket.socket) -> bytes:
    """What comes until the gateway closes."""
    data = b""
    try:
        while more := caller.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def dawdle(caller: socket.socket, piece: bytes, bytes_per_s: int) -> bytes:
    """Sends pieces at a speed, until an answer comes or the connection ends; what came."""
    caller.settimeout(len(piece) / bytes_per_s)  # waiting for the answer is what paces it
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            caller.sendall(piece)
            data = caller.recv(65536)
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return b""
        caller.settimeout(20)
        return data + all_of(caller)
    raise AssertionError("nobody minds")


@pytest.mark.parametrize("head", [b"", b"GET /livez HTTP/1.1\r\nhost:"], ids=["silent", "half a head"])
def test_a_request_that_does_not_come(impatient: RunningGateway, head: bytes) -> None:
    with connected(impatient) as caller:
        caller.sendall(head)
        answer = all_of(caller)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"http.patience_s" in answer


def test_a_head_that_comes_letter_by_letter(impatient: RunningGateway) -> None:
    with connected(impatient) as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nx: ")
        assert dawdle(caller, b"a" * 100, 1000).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "head",
    [b"GET /", b"GET /livez HTTP/1.1\r\nx: ", b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n" * 2 + b"GET /livez?"],
    ids=["line", "header", "behind others"],
)
def test_a_head_without_end(impatient: RunningGateway, head: bytes) -> None:
    """It is refused as soon as it is too long: put together piece by piece, 50 MB would keep everybody waiting."""
    sent = 0
    with connected(impatient) as caller:
        caller.sendall(head)
        with suppress(ConnectionError):
            while sent < 50 << 20:
                caller.sendall(b"x" * 65536)
                sent += 65536
        answer = all_of(caller)
    assert sent < 20 << 20  # what the sockets hold, and no more
    assert not answer or b"HTTP/1.1 431 " in answer  # a client that still sends may lose it
    assert impatient.get("/livez").elapsed.total_seconds() < 1


def test_a_head_that_is_too_long_is_told(impatient: RunningGateway) -> None:
    with connected(impatient) as caller:
        caller.sendall(b"GET /livez HTTP/1.1\r\nx: " + b"x" * (256 << 10))
        answer = all_of(caller)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("piece", [b"", b"x" * 100], ids=["silent", "1 KB/s"])
def test_a_body_that_comes_too_slowly(impatient: RunningGateway, piece: bytes) -> None:
    before = spool(impatient)
    with connected(impatient) as caller:
        caller.sendall(HEAD + b"x" * 10)
        answer = dawdle(caller, piece, 1000) if piece else all_of(caller)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"http.min_bytes_per_s" in answer
    assert spool(impatient) == before


def spool(gateway: RunningGateway) -> list[str]:
    return sorted(path.name for path in (gateway.data / "spool").iterdir())


def test_a_body_that_comes_slowly_enough_is_taken(impatient: RunningGateway) -> None:
    """For longer than the patience."""
    body = make(3, 1, 1, 1).part10
    with connected(impatient) as caller:
        caller.sendall(HEAD.replace(b"1000000", str(len(body)).encode()))
        caller.settimeout(0.1)
        for start in range(0, len(body), 500):  # 5 KB/s
            caller.sendall(body[start : start + 500])
            if start + 500 < len(body):
                with pytest.raises(TimeoutError):
                    caller.recv(1)
        caller.settimeout(20)
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_nobody_takes(impatient: RunningGateway) -> None:
    """A few of them would fill all places; they are given back, and so is what they held."""
    large = make(3, 2, 1, 1, shape=(3000, 2850))
    stored = httpx.post(
        f"{impatient.http}/dicomweb/studies",
        headers={"content-type": "application/dicom", "accept": "application/dicom+json"},
        content=large.part10,
        timeout=30,
    )
    assert stored.status_code == 200
    path = f"/dicomweb/studies/{large.study}/series/{large.series}/instances/{large.sop}"
    asked = f"GET {path} HTTP/1.1\r\nhost: x\r\naccept: */*\r\n\r\n".encode()
    callers = []
    for _ in range(8):
        host, _, port = impatient.http.removeprefix("http://").rpartition(":")
        caller = socket.socket()
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect((host, int(port)))
        caller.sendall(asked)
        callers.append(caller)
    deadline = time.monotonic() + 20
    while impatient.log.read_text().count('"waited_for":"answer to be taken"') < 8:
        assert time.monotonic() < deadline
        impatient.get("/livez")
    for caller in callers:
        caller.settimeout(20)
        assert len(all_of(caller)) < len(large.part10)
        caller.close()
    assert httpx.get(impatient.http + path, timeout=30).status_code == 200


def test_a_client_that_waits_to_be_asked_is_not_slow(impatient: RunningGateway) -> None:
    """`Expect: 100-continue`, and silence between two requests."""
    with connected(impatient) as caller:
        for _ in range(2):
            caller.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            answer = http.client.HTTPResponse(caller)
            answer.begin()
            answer.read()
            assert answer.status == 200
            caller.settimeout(PATIENCE_S * 2)
            with pytest.raises(TimeoutError):
                caller.recv(1)
            caller.settimeout(20)


def test_an_association_that_is_silent(impatient: RunningGateway) -> None:
    association = Association(impatient.dimse, impatient.aet)
    with pytest.raises(Lost):
        association._receive(2)
    association.close()


def test_a_pdu_that_comes_letter_by_letter(impatient: RunningGateway) -> None:
    association = Association(impatient.dimse, impatient.aet)
    caller = association._socket
    caller.sendall(b"\x04\x00\x00\x01\x00\x00")
    assert dawdle(caller, b"\0" * 10, 100).startswith(b"\x07")  # A-ABORT
    association.close()


def test_too_little_disk_is_507_and_a700(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway(env={"GATEWAY_DISK_RESERVE_MB": str(1 << 40)})
    instance = make(3, 3, 1, 1)
    answer = httpx.post(
        f"{gateway.http}/dicomweb/studies",
        headers={"content-type": "application/dicom", "accept": "application/dicom+json"},
        content=instance.part10,
    )
    assert (answer.status_code, answer.json()["code"]) == (507, "out-of-storage")
    assert re.search(r"MiB is free", answer.json()["detail"])
    association = Association(gateway.dimse, gateway.aet)
    assert association.store(instance) == 0xA700
    association.release()
    assert gateway.get("/readyz").status_code == 503


def stop_idle(gateway: RunningGateway, worker: int) -> None:
    """Not in the midst of a transaction: on SQLite nobody else could write then."""
    database = gateway.data / "gateway.db"
    while True:
        os.kill(worker, signal.SIGSTOP)
        if not database.exists():
            return
        with closing(sqlite3.connect(database, timeout=0.1, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(worker, signal.SIGCONT)
            else:
                connection.execute("ROLLBACK")
                return


def test_a_full_queue_is_503_and_a700(start_gateway: Callable[..., RunningGateway]) -> None:
    """The worker stands still; then it goes on, and so does everything."""
    gateway = start_gateway(env={**ALONE, "GATEWAY_STORE__MAX_WAITING": "2"})
    worker = gateway.pids()["worker"]
    stop_idle(gateway, worker)
    statuses = []
    try:
        deadline = time.monotonic() + 20
        while not statuses or statuses[-1] == 0:
            assert time.monotonic() < deadline
            association = Association(gateway.dimse, gateway.aet)
            statuses.append(association.store(make(3, 4, 1, len(statuses))))
            association.release()
        assert statuses[-1] == 0xA700
        assert len(statuses) > 2
        answer = None
        while answer is None or answer.status_code != 503:
            assert time.monotonic() < deadline
            with suppress(httpx.ReadTimeout):  # the web process has not looked yet, and waits for the import
                answer = httpx.post(
                    f"{gateway.http}/dicomweb/studies",
                    headers={"content-type": "application/dicom", "accept": "application/dicom+json"},
                    content=b"not even DICOM",
                    timeout=1,
                )
        assert (answer.json()["code"], answer.headers["retry-after"]) == ("overloaded", "5")
    finally:
        os.kill(worker, signal.SIGCONT)
    deadline = time.monotonic() + 30
    while len(gateway.get("/dicomweb/instances").json()) < len(statuses) - 1:
        assert time.monotonic() < deadline
    association = Association(gateway.dimse, gateway.aet)
    while association.store(make(3, 4, 2, 1)) != 0:
        assert time.monotonic() < deadline
    association.release()
