"""`serve` as an operator meets it: one line when ready, restarts, a full stop, and a folder that is free at once."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from pydicom.data import get_testdata_file

from tests.running import STOP_S, RunningGateway, command, wait_until_refused

Start = Callable[..., RunningGateway]
CT = Path(str(get_testdata_file("CT_small.dcm")))


def family(gateway: RunningGateway) -> list[psutil.Process]:
    return psutil.Process(gateway.pid).children(recursive=True)


def test_a_day_in_the_life(start_gateway: Start) -> None:
    """One gateway, several stations: starting costs seconds."""
    gateway = start_gateway()
    assert time.monotonic() - gateway.began < 60
    assert set(gateway.listening) == {"event", "http", "dimse", "aet", "datastoreId"}
    assert gateway.listening["event"] == "listening"
    assert gateway.get("/readyz").status_code == 200
    with socket.create_connection(gateway.dimse, 5):
        pass
    sent = command("import", str(CT), "--url", gateway.http, "--json")
    assert (sent.returncode, json.loads(sent.stdout)["stored"]) == (0, 1), sent.stderr

    # A second one on the folder is refused at once, and told who holds it.
    began = time.monotonic()
    second = command("serve", "--data", str(gateway.data), "--http", "127.0.0.1:0", "--dimse", "127.0.0.1:0")
    assert (second.returncode, second.stdout) == (1, "")
    assert f"process {gateway.pid}" in second.stderr
    assert time.monotonic() - began < 20

    # Whatever is killed comes back, on the same port, with what was stored.
    for role in gateway.pids():
        before = gateway.restarts(role)
        os.kill(gateway.pids()[role], signal.SIGKILL)
        gateway.wait_for_restart(role, before)
    assert gateway.get("/readyz").status_code == 200
    assert len(gateway.get("/dicomweb/studies").json()) == 1
    again = command("import", str(CT), "--url", gateway.http, "--json")
    assert again.returncode == 0, again.stderr

    # A killed supervisor takes its processes along; the next start has folder and ports at once, and the same store.
    children = family(gateway)
    gateway.kill()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    store = gateway.datastore
    http = gateway.http
    gateway.restart()
    assert (gateway.http, gateway.datastore) == (http, store)
    assert len(gateway.get("/dicomweb/studies").json()) == 1

    # SIGTERM ends everything in time.
    children = family(gateway)
    began = time.monotonic()
    assert gateway.stop() == 0
    assert time.monotonic() - began < STOP_S
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(httpx.ConnectError):
        gateway.get("/livez")


def test_a_caller_waits_for_the_web_process_instead_of_being_refused(gateway: RunningGateway) -> None:
    for role in gateway.roles("web"):
        os.kill(gateway.pids()[role], signal.SIGKILL)
    assert gateway.get("/livez").status_code == 200


def test_a_process_that_dies_with_news_unread_comes_back(gateway: RunningGateway) -> None:
    """It stands still while the others' states change; killed then, its link is reset and not just ended."""
    dimse = gateway.pids()["dimse"]
    os.kill(dimse, signal.SIGSTOP)
    worker = gateway.roles("worker")[0]
    os.kill(gateway.pids()[worker], signal.SIGKILL)
    gateway.wait_for_restart(worker, 0)
    os.kill(dimse, signal.SIGKILL)
    gateway.wait_for_restart("dimse", 0)
    assert gateway.stop() == 0


def test_a_process_that_is_just_starting_ends_with_its_supervisor(gateway: RunningGateway) -> None:
    """It has loaded nothing yet, and holds the port that the next supervisor wants."""
    role = gateway.roles("web")[0]
    first = gateway.pids()[role]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (second := gateway.pids()[role]) == first:
        assert time.monotonic() < deadline
    starting = psutil.Process(second)
    gateway.kill()
    deadline = time.monotonic() + 1
    while starting.is_running() and starting.status() != psutil.STATUS_ZOMBIE:  # whoever has to reap it may be slow
        assert time.monotonic() < deadline
    gateway.restart()


def test_a_request_in_flight_is_answered_before_the_end(gateway: RunningGateway) -> None:
    host, _, port = gateway.http.removeprefix("http://").rpartition(":")
    body = CT.read_bytes()
    with socket.create_connection((host, int(port)), 20) as caller:
        head = [
            "POST /dicomweb/studies HTTP/1.1",
            "host: x",
            "expect: 100-continue",
            "content-type: application/dicom",
            "accept: application/dicom+json",
            f"content-length: {len(body)}",
        ]
        caller.sendall("\r\n".join([*head, "", ""]).encode())
        assert caller.recv(4096).startswith(b"HTTP/1.1 100")  # it is being served
        caller.sendall(body[:1000])
        gateway.process.send_signal(signal.SIGTERM)
        wait_until_refused(host, int(port))  # the listener goes first
        caller.sendall(body[1000:])
        assert caller.recv(4096).startswith(b"HTTP/1.1 200")
    assert gateway.stop() == 0


def test_what_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        refused = command("serve", "--data", str(tmp_path / "a"), "--http", taken, "--dimse", "127.0.0.1:0")
    assert refused.returncode == 1
    assert f"cannot listen on {taken}" in refused.stderr
    assert "--http" in refused.stderr

    open_to_all = command("serve", "--data", str(tmp_path / "b"), "--http", "0.0.0.0:0")
    assert open_to_all.returncode == 2
    assert "[auth]" in open_to_all.stderr
    assert not (tmp_path / "b").exists()

    assert command("serve", "--workers", "none").returncode == 2
    assert command("serve", "--config", str(tmp_path / "missing.toml")).returncode == 2

    (tmp_path / "file").write_text("")
    unwritable = command("serve", "--data", str(tmp_path / "file" / "data"))
    assert (unwritable.returncode, "cannot be written" in unwritable.stderr) == (1, True)
